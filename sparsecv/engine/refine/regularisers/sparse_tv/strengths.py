# SPDX-License-Identifier: GPL-3.0-or-later
"""The strengths of the two penalties, in units that the data give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsecv.engine.refine.regularisers.sparse_tv.half_problem import HalfProblem
from sparsecv.engine.refine.regularisers.sparse_tv.problem import FORBIDDEN, Penalty, Quadratic
from sparsecv.engine.refine.regularisers.sparse_tv.splitting import Steps

GRADIENT_LEVEL = 0.5  # eps' / eps: densities rise over two voxels or so
# Steps of the splitting: rho_1 = max(0.5 alpha / eps^2, 2 mean N), rho_2 = max(0.15 beta / eps'^2, 0.3 mean N), found
# on the problem of benchmarks/sparse_tv_solver.py at three scales of the strengths.
SPARSE_STEP, VARIATION_STEP = 0.5, 0.15
LEAST_SPARSE_STEP, LEAST_VARIATION_STEP = 2.0, 0.3


@dataclass(frozen=True)
class Strengths:
    """Everything the problem needs beside the data.

    Attributes
    ----------
    alpha, beta
        Of the sparse and of the TV penalty: F has alpha |x| / (|x_0| + eps) and beta |D x| / (|D x_0| + eps').
    gamma
        Of gamma/2 |x - x_previous|^2.
    epsilon, epsilon_gradient
        eps and eps', densities.
    mean_weight
        Mean N, which bounds the steps of the solver from below.
    """

    alpha: float
    beta: float
    gamma: float
    epsilon: float
    epsilon_gradient: float
    mean_weight: float

    @property
    def steps(self) -> Steps:
        """Step sizes of the splitting."""
        return Steps(
            max(SPARSE_STEP * self.alpha / self.epsilon**2, LEAST_SPARSE_STEP * self.mean_weight),
            max(VARIATION_STEP * self.beta / self.epsilon_gradient**2, LEAST_VARIATION_STEP * self.mean_weight),
        )

    def in_units_of(self, noise: float) -> Kappas:
        """alpha / (sigma_b eps) and beta / (sigma_b eps')."""
        noise = max(noise, 1e-30)
        return Kappas(self.alpha / (noise * self.epsilon), self.beta / (noise * self.epsilon_gradient))

    def penalty(self, ops: Any, about: Any, support: Any, *, positive: bool = False) -> Penalty:
        """The weighted norms that majorise the log penalties about a map."""
        xp = ops.xp
        a, c = ops.penalty_weights(about, self.epsilon, self.epsilon_gradient)
        a *= xp.float32(self.alpha)
        c *= xp.float32(self.beta)
        a[~support] = FORBIDDEN
        return Penalty(a, c, positive)

    def data(self, data: Quadratic, previous: Any) -> Quadratic:
        """The data term with the pull to the previous reference."""
        return data.damped(self.gamma, previous)


@dataclass(frozen=True)
class Kappas:
    """Strengths in units of the noise: alpha = kappa_1 sigma_b eps, beta = kappa_2 sigma_b eps'.

    A voxel of b that is noise has the size sigma_b, and alpha / eps is what an empty voxel must exceed to be kept.
    """

    sparse: float = 1.0
    variation: float = 1.0


@dataclass(frozen=True)
class NoiseUnits:
    """Strengths anchored to the noise of b.

    ``gamma`` is in units of mean N; ``epsilon`` and ``epsilon_gradient`` are densities, None for the molecule's level
    and half of it.
    """

    gamma: float
    epsilon: float | None = None
    epsilon_gradient: float | None = None

    def strengths(self, problem: HalfProblem, kappas: Kappas, *, quarter: bool = False) -> Strengths:
        """Strengths for a half, or for one quarter of it, which has half of the weight and of the noise power."""
        epsilon = self.epsilon or problem.level
        gradient = self.epsilon_gradient or GRADIENT_LEVEL * epsilon
        noise = problem.noise / (2**0.5 if quarter else 1)
        weight = problem.mean_weight / (2 if quarter else 1)
        return Strengths(kappas.sparse * noise * epsilon, kappas.variation * noise * gradient, self.gamma * weight,
                         epsilon, gradient, weight)


@dataclass(frozen=True)
class PaperUnits:
    """The paper's strengths: alpha in units of rms(A^H D y) eps, beta of rms(A^H D y) eps', gamma of mean N."""

    alpha: float
    beta: float
    gamma: float
    epsilon: float
    epsilon_gradient: float

    def strengths(self, problem: HalfProblem) -> Strengths:
        """Strengths for a half."""
        return Strengths(
            self.alpha * problem.power * self.epsilon, self.beta * problem.power * self.epsilon_gradient,
            self.gamma * problem.mean_weight, self.epsilon, self.epsilon_gradient, problem.mean_weight,
        )  # fmt: skip
