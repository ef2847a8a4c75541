# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a comparison of refinements; lengths are in A."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.settings import check_range, option, required


@dataclass(frozen=True)
class CompareSettings:
    """Finished refinements side by side; checked when it is made."""

    runs: tuple[Path, ...] = required("folders of refinements, sparsecv's or RELION's; all others are compared with "
                                      "the first", positional=True)  # fmt: skip
    output: Path = required("folder for the results")
    mask: Path | None = option(None, "soft mask, values 0 to 1, in the frame of the first run (default: that of its "
                               "post-processing, else made from its map)")  # fmt: skip
    symmetry: str | None = option(None, "point group of all runs (default: what their folders say)")
    seed: int = option(1, "of the random phases behind the mask correction")
    threads: int = option(0, "threads; 0 takes all cores")

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise InputError("a single run", item="RUNS", value=len(self.runs), rule="two or more folders",
                             remedy="name the refinements to be compared, the one to compare with first")
        places: dict[Path, Path] = {}
        for run in self.runs:
            if run.resolve() in places:
                raise InputError(f"the same folder as {places[run.resolve()]}", file=run, rule="every run once",
                                 remedy="leave it away")
            places[run.resolve()] = run
        if self.symmetry is not None:
            from sparsecv.engine.physics.symmetry import parse_symmetry  # NumPy is slow to import, for --help as well

            parse_symmetry(self.symmetry)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check_range("threads", self.threads, 0, 4096)
