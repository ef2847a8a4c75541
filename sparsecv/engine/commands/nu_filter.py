# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv nu-filter``: cross-validated local filters for the half maps of any program, without refining."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.errors import tell
from sparsecv.engine.refine.settings import NuFilterSettings

SETTINGS = NuFilterSettings
RESULTS = ("filtered.mrc", "sharpened.mrc", "bandlimit.mrc", "local_resolution.mrc", "strength.mrc")


def run(settings: NuFilterSettings, save: Save) -> int:
    """Filter, and write maps, numbers, pictures and the settings into the output folder."""
    from sparsecv.engine.commands.maps import read_halves, warn
    from sparsecv.engine.io.results import refuse_to_overwrite, write_checksums
    from sparsecv.engine.refine.nu_filter import WRITTEN, nu_filter
    from sparsecv.engine.threads import keep_freed_memory, use_threads
    from sparsecv.kernels import ops

    check_device(settings.device)
    workers = use_threads(settings.threads)
    keep_freed_memory()
    refuse_to_overwrite(settings.output, RESULTS, (settings.half1, settings.half2, settings.mask, settings.mtf))
    first, second = read_halves(settings.half1, settings.half2, settings.pixel_size)
    found = nu_filter(settings, ops(settings.device), first, second, lambda text: warn([text]), workers)
    save(settings.output / "nu_filter.toml")
    write_checksums(settings.output, WRITTEN)
    low, middle, high = found.quartiles
    if found.is_band_limit:
        tell(f"band limits inside the mask: median {middle:.2f} A, quartiles {low:.2f} and {high:.2f} A")
    else:
        tell(f"factors of the strengths inside the mask: median {middle:.3g}, quartiles {low:.3g} and {high:.3g}")
    if found.resolution_quartiles is not None:
        low, middle, high = found.resolution_quartiles
        relation = found.rank_correlation
        tell(f"local resolution, FSC 0.5 in spheres: median {middle:.2f} A, quartiles {low:.2f} and {high:.2f} A"
             + ("" if relation is None else f"; rank correlation with the band limits {relation:.2f}"))
    tell(f"results in {settings.output}: {', '.join(found.written)}")
    tell("filtered maps are for looking at: both half maps have chosen the filters, and their FSC is no resolution")
    return 0
