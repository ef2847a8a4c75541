# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a selection of particles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.settings import check_range, option, required

PREFERENCES = ("high", "low", "middle")
GROUPS = ("none", "optics", "defocus", "micrograph")
NAMES = ("fit", "evidence", "probability", "samples", "spread", "norm", "scale", "likelihood", "defocus",
         "astigmatism", "ctf-fit", "ctf-resolution")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """A selection; rules act in the order of the fields, within each half set by itself. Checked when it is made."""

    particles: Path = required("STAR file of the particles")
    output: Path = required("STAR file for those that are kept; the others go beside it, to OUTPUT_removed.star")
    optics_groups: str | None = option(None, "keep these optics groups only: names or numbers, with commas between")
    micrographs: Path | None = option(None, "keep the particles of these micrographs only: a STAR file with "
                                      "rlnMicrographName, or a text file with a name in each line")  # fmt: skip
    by: str = option("fit", f"what particles are judged by: {', '.join(NAMES)}, or the name of a column of numbers")
    keep: float | None = option(None, "keep this fraction, above 0 and below 1: the best of each half set")
    least: float | None = option(None, "keep particles whose value is this or higher")
    most: float | None = option(None, "keep particles whose value is this or lower")
    random: int | None = option(None, "keep so many, drawn at random from both half sets alike")
    split: int | None = option(None, "also write those kept as so many random subsets, OUTPUT_part1.star ...")
    seed: int = option(1, "of what is drawn at random")
    relative_to: str | None = option(None, "take the value relative to the particle's group, in robust standard "
                                     "deviations from its median; defocus are those of its optics group with a like "
                                     "defocus (default: that for what a refinement has found, none for defocus, CTF "
                                     "and columns)", choices=GROUPS)  # fmt: skip
    prefer: str | None = option(None, "which values of a column --keep takes for the best: middle are those near the "
                                "median (default: known for the names above)", choices=PREFERENCES)  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("particles", "output", "micrographs"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        if self.output.suffix != ".star":
            raise InputError("is no name for a STAR file", item="output", value=str(self.output),
                             rule="a name that ends in .star")  # fmt: skip
        if self.keep is not None and not 0 < self.keep < 1:
            raise InputError("out of range", item="keep", value=self.keep, rule="above 0 and below 1",
                             remedy="0.9 keeps the best nine in ten")  # fmt: skip
        for name in ("least", "most"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError("not a finite number", item=name, value=value, rule="a finite number",
                                 remedy="leave it away where nothing is to be cut off")  # fmt: skip
        if self.least is not None and self.most is not None and self.least > self.most:
            raise InputError("nothing can be kept", item="least", value=self.least,
                             rule=f"at most {self.most:g}, which --most is", remedy="exchange the two")  # fmt: skip
        check_range("random", self.random, 1, 1e9)
        check_range("split", self.split, 2, 1000)
        check_range("seed", self.seed, 0, 2**32 - 1)
        for name, allowed in (("relative_to", GROUPS), ("prefer", PREFERENCES)):
            if getattr(self, name) not in (None, *allowed):
                raise InputError("unknown", item=name, value=getattr(self, name), rule=f"one of {', '.join(allowed)}")
        if not self.judges and not any((self.optics_groups, self.micrographs, self.random, self.split)):
            raise InputError("nothing says which particles to keep", rule="--keep, --least, --most, --optics-groups, "
                             "--micrographs, --random or --split",
                             remedy="--keep 0.9 keeps the nine in ten that fit best")  # fmt: skip
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuse, with InputError, what would change nothing: a user has meant something by it."""
        judging = "with --keep, --least or --most, which judge particles"
        unused = {
            "by": (not self.judges and self.by != "fit", judging),
            "relative_to": (not self.judges and self.relative_to is not None, judging),
            "prefer": (self.keep is None and self.prefer is not None, "with --keep, which takes the best"),
        }
        for name, (is_unused, rule) in unused.items():
            if is_unused:
                raise InputError("has no meaning here", item=name, value=getattr(self, name), rule=rule,
                                 remedy="leave it away, or say what is to be kept")  # fmt: skip

    @property
    def judges(self) -> bool:
        """Whether particles are judged by their values."""
        return not (self.keep is None and self.least is None and self.most is None)
