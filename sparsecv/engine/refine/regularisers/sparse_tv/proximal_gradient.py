# SPDX-License-Identifier: GPL-3.0-or-later
"""The solver of the paper: proximal gradient with a smoothed TV norm [Luo2019, eq. 13-21].

    x' = x - eta (H x - b + D^T c u_mu(D x)),    x <- soft(x', eta a)

The paper's step, lr / (N_max + mean N), ignores the curvature of the smoothed TV norm and makes the iteration
oscillate; the step here is safe: eta = 1 / (max H + 12 max c / mu), as |D^T D| <= 12.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.sparse_tv.problem import Penalty, Quadratic, objective
from sparsecv.engine.refine.regularisers.sparse_tv.splitting import Solution

DIFFERENCE_NORM = 12.0  # largest eigenvalue of D^T D in three dimensions
SMOOTHING = 0.05  # mu in units of eps'


def solve_smoothed(
    ops: Any, data: Quadratic, penalty: Penalty, start: Any, mu: float, *, iterations: int = 150, record: int = 10
) -> Solution:
    """Minimise F with its TV norm smoothed, from a starting map.

    Parameters
    ----------
    start
        (n, n, n) float32.
    mu
        Length of gradient below which the TV norm is smoothed to a parabola, density.
    iterations
        Fixed: the method has no certificate, so ``Solution.gaps`` stays empty.
    record
        Iterations between the values of F that are kept.
    """
    xp = ops.xp
    eta = 1 / (float(data.hessian.max()) + DIFFERENCE_NORM * float(penalty.variation.max()) / mu)
    x = xp.asarray(start)
    found = Solution(x, 0, [], [])
    for iteration in range(1, iterations + 1):
        slope = data.apply(ops, x) - data.linear
        slope += ops.smoothed_variation_gradient(x, penalty.variation, mu)
        x = ops.sparse_prox(x - np.float32(eta) * slope, penalty.sparse, 1 / eta, penalty.positive)
        if iteration % record == 0 or iteration == iterations:
            found.objective.append(objective(ops, data, penalty, x))
    found.x, found.iterations = x, iterations
    return found
