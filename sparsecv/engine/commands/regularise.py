# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv regularise``: a prior on half maps or on kept accumulators, without refining."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.errors import tell
from sparsecv.engine.refine.settings import RegulariseSettings

SETTINGS = RegulariseSettings
RESULTS = ("regularised.mrc", "regularised_half[12].mrc")  # of half maps, of accumulators


def run(settings: RegulariseSettings, save: Save) -> int:
    """Regularise, and write maps, numbers, pictures and the settings into the output folder."""
    from sparsecv.engine.commands.maps import read_halves, read_pair, warn
    from sparsecv.engine.io.results import refuse_to_overwrite, write_checksums
    from sparsecv.engine.refine.regularise import WRITTEN, HalfMaps, regularise
    from sparsecv.engine.threads import keep_freed_memory, use_threads
    from sparsecv.kernels import ops

    check_device(settings.device)
    use_threads(settings.threads)
    keep_freed_memory()
    maps = None
    inputs = (settings.half1, settings.half2, settings.mask, settings.previous)
    refuse_to_overwrite(settings.output, RESULTS[:1] if settings.accumulators is None else RESULTS, inputs)
    if settings.half1 is not None and settings.half2 is not None:
        first, second = read_halves(settings.half1, settings.half2, settings.pixel_size)
        previous = None
        if settings.previous is not None:
            previous = read_pair(settings.half1, settings.previous, settings.pixel_size)[1]
        maps = HalfMaps(first, second, previous)
    written = regularise(settings, ops(settings.device), maps, lambda text: warn([text]))
    save(settings.output / "regularise.toml")
    write_checksums(settings.output, (*WRITTEN, "regularise.toml"))
    tell(f"results in {settings.output}: {', '.join(path.name for path in written)}, regularise.json, pictures")
    tell("regularised maps are for looking at and to align against: their FSC is no resolution")
    return 0
