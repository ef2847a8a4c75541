# SPDX-License-Identifier: GPL-3.0-or-later
"""What one half set says about its own map: sums, noise, density level. Nothing here sees the other half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.base import Evidence
from sparsecv.engine.refine.regularisers.sparse_tv.grid import (
    backprojection,
    folded_weight,
    mean_per_shell,
    shell_table,
)
from sparsecv.engine.refine.regularisers.sparse_tv.problem import Quadratic
from sparsecv.engine.refine.regularisers.wiener import LEAST_FSC, MOST_FSC
from sparsecv.engine.refine.volumes import PADDING
from sparsecv.engine.validate.fsc import fsc

DENSITY_PERCENTILE = 93.0  # of the voxels inside the support: about the level of the molecule's density
LEAST_WEIGHT = 0.1  # of the shell's mean, in maps of quarters: few images leave directions empty
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
        start = _wiener(ops, (quarters[0], quarters[1]), inside, first.last_shell)
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


def _wiener(ops: Any, quarters: tuple[Quadratic, Quadratic], inside: Any, last_shell: int) -> Any:
    """Wiener map of a half on the map's own grid, its signal-to-noise ratio from its own quarters.

    The FSC of the half would be f = 2 q / (1 + q) with that of its quarters, q, so that N (1 - f) / f = N (1 - q) / 2q.
    """
    xp, box = ops.xp, inside.shape[0]
    shells = np.arange(box) <= last_shell
    known = shell_table(ops, shells, box)  # interpolation has spilt a little of B and N beyond
    spectra = [ops.rfftn(quarter.linear) * known for quarter in quarters]
    means = [mean_per_shell(ops, quarter.hessian) * shells for quarter in quarters]
    maps = []
    for spectrum, quarter, mean in zip(spectra, quarters, means, strict=True):
        least = shell_table(ops, LEAST_WEIGHT * mean, box)
        quotient = spectrum / xp.maximum(xp.maximum(quarter.hessian, least), xp.float32(1e-30))
        maps.append(ops.to_host(ops.irfftn(quotient, box) * inside))
    curve = np.clip(fsc(*maps), LEAST_FSC, MOST_FSC)
    curve = np.pad(curve, (0, box - len(curve)), constant_values=LEAST_FSC)
    prior = shell_table(ops, (means[0] + means[1]) * (1 - curve) / (2 * curve), box)
    whole = spectra[0] + spectra[1]
    whole *= (prior > 0) / xp.maximum(quarters[0].hessian + quarters[1].hessian + prior, xp.float32(1e-30))
    return ops.irfftn(whole, box) * inside


def _density_level(xp: Any, values: Any) -> float:
    """Level of the molecule's density; small but positive where a map shows none."""
    highest = float(xp.abs(values).max())
    return max(float(xp.percentile(values, DENSITY_PERCENTILE)), LEAST_LEVEL * highest)


def _rms(values: Any) -> float:
    return float((values**2).mean(dtype=np.float64)) ** 0.5
