# SPDX-License-Identifier: GPL-3.0-or-later
"""The traditional prior: Gaussian Fourier coefficients with a radial signal spectrum [Scheres2012].

    V = B / (N + <N>_s / (T SSNR_s)),     SSNR = FSC / (1 - FSC)

because the noise of an unregularised map is 1 / <N>_s per coefficient and the signal SSNR times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.base import Evidence, Regularised
from sparsecv.engine.refine.volumes import Accumulator

LEAST_FSC, MOST_FSC = 0.001, 0.999  # RELION's limits, which keep SSNR finite and positive


def prior_precision(ops: Any, total: Accumulator, fsc: np.ndarray, tau_factor: float) -> np.ndarray:
    """Precision of the signal prior per shell in the units of N, float64 (last_shell + 1,)."""
    curve = np.clip(fsc[: total.last_shell + 1], LEAST_FSC, MOST_FSC)
    curve = np.pad(curve, (0, total.last_shell + 1 - len(curve)), constant_values=LEAST_FSC)
    return total.mean_weight(ops) * (1 - curve) / (curve * tau_factor)


@dataclass(frozen=True)
class Wiener:
    """Radial Wiener filter; ``tau_factor`` is RELION's T, 1 for the plain Wiener filter."""

    tau_factor: float = 1.0
    name: str = "wiener"
    confidence: float = 0.7  # see docs/decisions.md, "Confidence"
    shows_halves: bool = False

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        """Wiener-filtered map of the half, inside the support."""
        total = evidence.total(ops)
        prior = prior_precision(ops, total, evidence.fsc, self.tau_factor)
        density = total.solve(ops, prior)
        return Regularised(density * evidence.support)

    def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
        """None: the filter damps what the FSC does not support."""
        return None
