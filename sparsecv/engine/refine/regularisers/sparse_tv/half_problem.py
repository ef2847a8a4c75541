# SPDX-License-Identifier: GPL-3.0-or-later
"""What one half set says about its own map: sums, noise, density level. Nothing here sees the other half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.base import Evidence
from sparsecv.engine.refine.regularisers.sparse_tv.grid import backprojection, folded_weight, shell_table
from sparsecv.engine.refine.regularisers.sparse_tv.problem import Quadratic
from sparsecv.engine.refine.regularisers.wiener import prior_precision
from sparsecv.engine.refine.volumes import PADDING

DENSITY_PERCENTILE = 93.0  # of the voxels inside the support: about the level of the molecule's density
LEAST_LEVEL = 1e-3  # of the largest density, where the percentile is no positive density


@dataclass(frozen=True)
class HalfProblem:
    """The data term of a half and of its quarters, and the scales that strengths are measured in.

    Attributes
    ----------
    quarters
        Data terms of the two quarters; that of the half is their sum.
    start
        (box, box, box) float32 Wiener map inside the support: where the first weights come from.
    previous
        (box, box, box) float32 reference of the iteration before, inside the support.
    support
        (box, box, box) bool.
    noise
        rms of the noise of b = A^H D y of the half inside the support, from the difference of its quarters.
    power
        rms of b over the padded grid: the paper's unit of strength.
    mean_weight
        Mean of N up to the last shell.
    level
        Density of the molecule in ``start``.
    last_shell
        Highest shell with data.
    """

    quarters: tuple[Quadratic, Quadratic]
    start: Any
    previous: Any
    support: Any
    noise: float
    power: float
    mean_weight: float
    level: float
    last_shell: int

    @classmethod
    def of(cls, ops: Any, evidence: Evidence) -> HalfProblem:
        """The problem of a half from its sums.

        The noise of b = b_1 + b_2 has the variance of b_1 - b_2, in which the signal of two equal quarters cancels. It
        is measured, not computed from N: posterior averaging takes noise out of B but not out of N.
        """
        xp, (first, second) = ops.xp, evidence.quarters
        quarters = tuple(Quadratic(backprojection(ops, q), folded_weight(ops, q)) for q in (first, second))
        whole = quarters[0] + quarters[1]
        support = xp.asarray(evidence.support) > 0.5
        inside = support.astype(xp.float32)
        start = _wiener(ops, whole, evidence, first + second) * inside
        difference = (quarters[0].linear - quarters[1].linear)[support]
        data_shells = shell_table(ops, np.arange(evidence.box) <= first.last_shell, evidence.box) > 0
        return cls(
            quarters=(quarters[0], quarters[1]),
            start=start,
            previous=xp.asarray(evidence.previous) * inside,
            support=support,
            noise=_rms(difference),
            power=_rms(whole.linear) / PADDING**1.5,
            mean_weight=float(whole.hessian[data_shells].mean(dtype=np.float64)),
            level=_density_level(xp, start[support]),
            last_shell=first.last_shell,
        )

    @property
    def whole(self) -> Quadratic:
        """Data term of the half."""
        return self.quarters[0] + self.quarters[1]


def _wiener(ops: Any, data: Quadratic, evidence: Evidence, total: Any) -> Any:
    """Wiener map on the map's own grid: close to that of the Wiener regulariser, without another padded transform."""
    prior = shell_table(ops, prior_precision(ops, total, evidence.fsc, 1.0), evidence.box)
    transform = ops.rfftn(data.linear)
    transform *= (prior > 0) / ops.xp.maximum(data.hessian + prior, ops.xp.float32(1e-30))
    return ops.irfftn(transform, evidence.box)


def _density_level(xp: Any, values: Any) -> float:
    """Level of the molecule's density; small but positive where a map shows none."""
    highest = float(xp.abs(values).max())
    return max(float(xp.percentile(values, DENSITY_PERCENTILE)), LEAST_LEVEL * highest)


def _rms(values: Any) -> float:
    return float((values**2).mean(dtype=np.float64)) ** 0.5
