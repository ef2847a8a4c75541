# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of post-processing and of a comparison of two maps; lengths are in A."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from sparsecv.engine.settings import check_range, option, required

RANGES: dict[str, tuple[float, float]] = {
    "pixel_size": (0.01, 1000),
    "mtf_pixel_size": (0.01, 1000),
    "bfactor": (-10_000, 10_000),
    "autob_lowres": (0.1, 1000),
    "autob_highres": (0, 1000),
    "low_pass": (0.1, 10_000),
    "seed": (0, 2**32 - 1),
    "threads": (0, 4096),
}


def _check(settings: object) -> None:
    for entry in fields(settings):  # type: ignore[arg-type]
        if entry.name in RANGES:
            check_range(entry.name, getattr(settings, entry.name), *RANGES[entry.name])


@dataclass(frozen=True)
class PostprocessSettings:
    """Sharpening and filtering of two half maps; checked when it is made."""

    half1: Path = required("unfiltered, unmasked half map", positional=True)
    half2: Path = required("the other half map", positional=True)
    output: Path = required("folder for the results")
    mask: Path | None = option(None, "soft mask, values 0 to 1 (default: made from the map)")
    pixel_size: float | None = option(None, "A, instead of what the headers say")
    mtf: Path | None = option(None, "STAR file with the detector's MTF")
    mtf_pixel_size: float | None = option(None, "of the movies that the MTF refers to, A (default: the map's)")
    bfactor: float | None = option(None, "A^2, negative sharpens (default: from the Guinier plot)")
    low_pass: float | None = option(None, "A (default: the resolution at FSC = 0.143)")
    seed: int = option(1, "of the random phases")
    threads: int = option(0, "threads; 0 takes all cores")
    autob_lowres: float = option(10.0, "low end of the Guinier fit, A", expert=True)
    autob_highres: float = option(0.0, "high end of the Guinier fit, A; 0 for Nyquist", expert=True)
    no_fsc_weighting: bool = option(False, "do not weight by sqrt(2 FSC / (1 + FSC))", expert=True)
    force_mask: bool = option(False, "use the mask also where it makes the resolution worse", expert=True)
    no_deposition: bool = option(False, "leave out emdb/, in which the half maps are copied", expert=True)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class FscSettings:
    """Fourier shell correlation of two maps; checked when it is made."""

    map1: Path = required("a map, or a half map", positional=True)
    map2: Path = required("the map to compare it with", positional=True)
    mask: Path | None = option(None, "soft mask, values 0 to 1, for the masked and the mask-corrected curve")
    output: Path | None = option(None, "folder for fsc.star, fsc.xml and fsc.png (default: only print)")
    pixel_size: float | None = option(None, "A, instead of what the headers say")
    seed: int = option(1, "of the random phases behind the mask correction")
    threads: int = option(0, "threads; 0 takes all cores")

    def __post_init__(self) -> None:
        _check(self)
