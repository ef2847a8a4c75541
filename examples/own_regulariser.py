# SPDX-License-Identifier: GPL-3.0-or-later
"""A regulariser of one's own, through the seam of ARCHITECTURE.md: no prior but a limit, applied to two half maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from half_maps import PIXEL_SIZE, made

from sparsecv.engine.api import RegulariserSettings, regularise
from sparsecv.engine.refine.regularisers import Evidence, Regularised
from sparsecv.engine.validate.fsc import last_shell_above

BEYOND = 1e6  # prior precision beyond the limit, in units of the shell's mean weight


@dataclass(frozen=True)
class Cutoff:
    """V = B / N up to the last shell before the FSC falls below ``threshold``, 0 beyond."""

    threshold: float = 0.143
    name: str = "cutoff"
    confidence: float = 0.7
    shows_halves: bool = False

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        """Limited map, inside the support."""
        total = evidence.quarters[0] + evidence.quarters[1]
        last = last_shell_above(evidence.fsc, self.threshold)
        beyond = np.arange(total.last_shell + 1) > last
        density = total.solve(ops, np.where(beyond, BEYOND * total.mean_weight(ops), 0.0))
        return Regularised(density * evidence.support, shown={"last_shell": last})

    def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
        """None: the FSC of the halves decides."""
        return None


def main() -> None:
    """The own one beside those of the program."""
    first, second, truth = made()
    wiener, sparse = RegulariserSettings(), RegulariserSettings(regulariser="sparse-tv", strength="noise")
    for name, prior in {"cutoff": Cutoff(), "wiener": wiener, "sparse-tv": sparse}.items():
        found = regularise(first, second, PIXEL_SIZE, prior, threads=2)
        print(f"{name}: correlation with the truth {np.corrcoef(found.map.ravel(), truth.ravel())[0, 1]:.3f}")


if __name__ == "__main__":
    main()
