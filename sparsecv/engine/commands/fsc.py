# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv fsc``: the Fourier shell correlation of two maps, and the resolutions read from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import tell
from sparsecv.engine.validate.settings import FscSettings

if TYPE_CHECKING:
    import numpy as np

SETTINGS = FscSettings
COLUMNS = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "random phases": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    "mask-corrected": "rlnFourierShellCorrelationCorrected",
}


def run(settings: FscSettings, save: Save) -> int:
    """Print the resolution at 0.143 and 0.5 of each curve; with an output folder write curves and a picture."""
    from sparsecv.engine.commands.maps import read_mask, read_pair, refuse_flat
    from sparsecv.engine.io.results import refuse_to_overwrite
    from sparsecv.engine.threads import use_threads
    from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF, resolution

    if settings.output is not None:
        refuse_to_overwrite(settings.output, (), ())
    workers = use_threads(settings.threads)
    first, second = read_pair(settings.map1, settings.map2, settings.pixel_size)
    refuse_flat(settings.map1, first)
    refuse_flat(settings.map2, second)
    mask = read_mask(settings.mask, first, settings.pixel_size)
    curves = _curves(first.data, second.data, mask, settings.seed, workers)
    box, pixel_size = first.data.shape[0], first.pixel_size
    tell(f"resolution from {settings.map1} against {settings.map2}")
    for name, curve in curves.items():
        if name != "random phases":
            found = ", ".join(f"{resolution(curve, t, box, pixel_size)} at {t:g}" for t in (GOLD_STANDARD, HALF))
            tell(f"  {name:14s} {found}")
    if settings.output is not None:
        _write(settings.output, curves, box, pixel_size)
        save(settings.output / "fsc.toml")
    return 0


def _curves(
    first: np.ndarray, second: np.ndarray, mask: np.ndarray | None, seed: int, workers: int
) -> dict[str, np.ndarray]:
    """Curves by name, the most meaningful one first."""
    import numpy as np

    from sparsecv.engine.commands.maps import warn
    from sparsecv.engine.validate.fsc import fsc, mask_corrected_fsc
    from sparsecv.engine.validate.postprocess import doubtful_independence

    if np.array_equal(first, second):
        warn(["the two maps are identical: their FSC says nothing"])
    if mask is None:
        unmasked = fsc(first, second, workers=workers)
        warn(doubtful_independence(unmasked))
        return {"unmasked": unmasked}
    found = mask_corrected_fsc(first, second, mask, np.random.default_rng(seed), workers=workers)
    warn([*found.warnings, *doubtful_independence(found.unmasked)])
    return {"mask-corrected": found.corrected, "masked": found.masked, "unmasked": found.unmasked,
            "random phases": found.randomised}


def _write(folder: Path, curves: dict[str, np.ndarray], box: int, pixel_size: float) -> None:
    import numpy as np

    from sparsecv.engine.io.star import StarFile
    from sparsecv.engine.report.plots import plot_fsc
    from sparsecv.engine.validate.fsc_files import write_fsc_xml

    folder.mkdir(parents=True, exist_ok=True)
    best = next(iter(curves))
    shells = np.arange(len(curves[best]))
    with np.errstate(divide="ignore"):
        angstrom = np.where(shells > 0, box * pixel_size / shells, 999.0)  # RELION's value for shell 0
    star = StarFile.new()
    table = {"rlnSpectralIndex": shells, "rlnResolution": 1 / angstrom, "rlnAngstromResolution": angstrom}
    star.add_loop("fsc", table | {COLUMNS[name]: curve for name, curve in curves.items()})
    star.write(folder / "fsc.star")
    write_fsc_xml(folder / "fsc.xml", curves[best], pixel_size, box=box, title=f"FSC, {best}")
    plot_fsc(folder / "fsc.png", curves, box, pixel_size, without_crossing=("random phases",))
    tell(f"curves in {folder}: fsc.star, fsc.xml, fsc.png")
