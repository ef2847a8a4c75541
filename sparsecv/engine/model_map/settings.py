# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a validation of a map against a model; lengths are in A."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.model_map.frame import FRAMES
from sparsecv.engine.settings import check_range, option, required

FITS = ("none", "rigid", "chains", "global")
B_FACTORS = ("model", "refit")
RANGES: dict[str, tuple[float, float]] = {
    "pixel_size": (0.01, 1000),
    "resolution": (0.1, 1000),
    "mask_radius": (0.5, 100),
    "mask_edge": (0, 1000),
    "sharpening": (-1000, 1000),
    "q_sigma": (0.05, 5),
    "seed": (0, 2**32 - 1),
    "threads": (0, 4096),
}


@dataclass(frozen=True)
class ValidateSettings:
    """Validation of a map against an atomic model; checked when it is made."""

    model: Path = required("atomic model, PDB or mmCIF")
    map: Path = required("map, as it is to be judged: sharpened or not, unmasked")
    output: Path = required("folder for the results")
    half1: Path | None = option(None, "half map, unfiltered: for the ceiling and the test for over-fitting")
    half2: Path | None = option(None, "the other half map")
    mask: Path | None = option(None, "soft mask, values 0 to 1, on the map's grid (default: made around the model)")
    fit: str = option("none", "move the model first: rigid (as a whole, from where it is), chains (then each chain), "
                      "global (wherever it is and however it is turned)", choices=FITS)  # fmt: skip
    frame: str = option("header", "where the map stands: as its MRC header says, at Scipion's origin (--origin, or the "
                        "centre of the box at 0), or centred (voxel n//2 at 0)", choices=FRAMES)  # fmt: skip
    origin: str | None = option(None, "with --frame scipion: position of the first voxel, A, as --origin=X,Y,Z")
    versus: Path | None = option(None, "another map on the same grid, to be compared with the same model and mask")
    resolution: float | None = option(None, "of the map, for mask, model density and correlations, A (default: of the "
                                      "half maps at FSC 0.143, or against the model at 0.5)")  # fmt: skip
    level: float | None = option(None, "contour level for the atoms inside (default: the surface that encloses as much "
                                 "volume as the model)")  # fmt: skip
    bfactors: str = option("model", "B-factors of the density: those of the model, or shifted for each chain to fit",
                           choices=B_FACTORS)  # fmt: skip
    assembly: str | None = option(None, "biological assembly to build from the model (default: its chains as they are)")
    pixel_size: float | None = option(None, "of all maps, A, instead of what the headers say")
    seed: int = option(1, "of random phases and resampling")
    threads: int = option(0, "threads; 0 takes all cores")
    mask_radius: float | None = option(None, "of the mask around each atom, A (default: 3 A or the resolution)",
                                       expert=True)  # fmt: skip
    mask_edge: float | None = option(None, "soft edge of that mask, A (default: 5 pixels or the resolution)",
                                     expert=True)  # fmt: skip
    sharpening: float | None = option(None, "B by which maps are sharpened before they are masked, A^2; 0 for not at "
                                      "all (default: the map's fall-off against point atoms)", expert=True)  # fmt: skip
    q_sigma: float = option(0.4, "of the profile of Q-scores, A", expert=True)
    no_chains: bool = option(False, "no curves of single chains", expert=True)

    def __post_init__(self) -> None:
        for name, limits in RANGES.items():
            check_range(name, getattr(self, name), *limits)
        if (self.half1 is None) != (self.half2 is None):
            raise InputError("only one half map is given", item="half1" if self.half2 else "half2",
                             rule="both or none")  # fmt: skip
        if self.half1 is not None and self.half1 == self.half2:
            raise InputError("both half maps are the same file", item="half2", value=str(self.half2),
                             rule="two independent half maps")  # fmt: skip
        if self.origin is not None and self.frame != "scipion":
            raise InputError("an origin is given for a frame that has its own", item="origin", value=self.origin,
                             rule="--frame scipion")  # fmt: skip
        if self.level is not None and not math.isfinite(self.level):
            raise InputError("not a number", item="level", value=self.level, rule="a density")
        self.origin_xyz  # noqa: B018  refuses what is no position

    @property
    def origin_xyz(self) -> tuple[float, float, float] | None:
        """Position of the first voxel as numbers; InputError where it is not three of them."""
        if self.origin is None:
            return None
        try:
            x, y, z = (float(part) for part in self.origin.split(","))
        except ValueError as error:
            raise InputError("not a position", item="origin", value=self.origin, rule="X,Y,Z in A") from error
        if not all(math.isfinite(value) for value in (x, y, z)):
            raise InputError("not a position", item="origin", value=self.origin, rule="finite numbers")
        return x, y, z
