# SPDX-License-Identifier: GPL-3.0-or-later
"""Douglas-Rachford splitting for the sparse + TV problem, with a certificate of how far it is from the minimum.

The data term and the coupling of x to z1 = x, z2 = D x are solved exactly in Fourier space, the penalties voxel by
voxel; an iteration is one transform forth and one back. Its dual variables u1 = rho1 (w1 - z1), u2 = rho2 (w2 - z2)
obey |u1| <= a and |u2| <= c at every iteration, so that they bound the minimum from below:

    F* >= -1/2 <r, H^-1 r>,    r = b - u1 - D^T u2,

and the iteration stops when F(z1) is within a stated part of |F(z1)| of the bound: no reference solution is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.sparse_tv.problem import (
    Penalty,
    Quadratic,
    difference_spectrum,
    objective,
)

RELAXATION = 1.7
CHECK_EVERY = 3  # iterations: a check costs two transforms, an iteration has two


@dataclass(frozen=True)
class Steps:
    """Step sizes rho1 and rho2 of the two splittings, in the units of H."""

    sparse: float
    variation: float


@dataclass
class Solution:
    """A minimiser and how it was reached.

    Attributes
    ----------
    x
        z1: exactly 0 where the sparse penalty wins and outside the support.
    iterations
        Of the splitting.
    objective, gaps
        F(z1), and its relative distance from the dual bound, at every check.
    """

    x: Any
    iterations: int
    objective: list[float]
    gaps: list[float]

    @property
    def gap(self) -> float:
        """The last certified relative gap."""
        return self.gaps[-1]


def solve(
    ops: Any, data: Quadratic, penalty: Penalty, start: Any, steps: Steps, *, gap: float = 1e-3, most: int = 60,
    check_every: int = CHECK_EVERY,
) -> Solution:
    """Minimise F from a starting map.

    Parameters
    ----------
    start
        (n, n, n) float32.
    gap
        Certified relative gap (F - bound) / |F| at which to stop.
    most
        Iterations after which to stop in any case.
    """
    xp = ops.xp
    fixed = (penalty.sparse, penalty.variation, steps.sparse, steps.variation)
    inverse = 1 / (
        data.hessian + np.float32(steps.sparse) + np.float32(steps.variation) * difference_spectrum(ops, data.size)
    )
    w1, w2 = start.copy(), gradient(xp, start)
    found = Solution(start, 0, [], [])
    for iteration in range(1, most + 1):
        transform = ops.rfftn(ops.split_step(data.linear, w1, w2, *fixed, 2.0, penalty.positive))
        transform *= inverse
        x = ops.irfftn(transform, data.size)
        ops.relax_step(x, w1, w2, *fixed, RELAXATION, penalty.positive)
        del transform, x  # a check needs room of its own
        if iteration % check_every == 0 or iteration == most:
            found.iterations = iteration
            found.x = ops.sparse_prox(w1, penalty.sparse, steps.sparse, penalty.positive)
            value = objective(ops, data, penalty, found.x)
            r = ops.split_step(data.linear, w1, w2, *fixed, 1.0, penalty.positive)
            bound = -data.dual_energy(ops, r)
            found.objective.append(value)
            found.gaps.append((value - bound) / max(abs(value), 1e-30))
            if found.gap < gap:
                break
    return found


def gradient(xp: Any, x: Any) -> Any:
    """Forward differences along x, y and z, periodic, (3, n, n, n)."""
    return xp.stack([xp.roll(x, -1, axis) - x for axis in (2, 1, 0)])
