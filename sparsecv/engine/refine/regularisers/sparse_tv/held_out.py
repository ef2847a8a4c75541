# SPDX-License-Identifier: GPL-3.0-or-later
"""Choice of the strengths inside one half set: what a map of one quarter says about the data of the other.

    E(kappa) = sum over both orders of  sum_k w_k (N_t |X|^2 - 2 Re B_t* X) / sum_k w_k |B_t|^2 / N_t

X is the map solved from one quarter, B_t and N_t the sums of the other; but for a constant it is the log-likelihood of
the data left out. The weight w_k = |k|^2 up to the band in use counts what a rotation of the map would change in the
likelihood, the Fisher information of a pose, so that the shells which carry the alignment decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.sparse_tv.grid import shell_table
from sparsecv.engine.refine.regularisers.sparse_tv.half_problem import HalfProblem
from sparsecv.engine.refine.regularisers.sparse_tv.problem import Quadratic, hermitian_sum
from sparsecv.engine.refine.regularisers.sparse_tv.splitting import solve
from sparsecv.engine.refine.regularisers.sparse_tv.strengths import Kappas, NoiseUnits

FACTORS_VARIATION, FACTORS_SPARSE = (0.5, 2.0), (1 / 3, 3.0)  # neighbours tried, times the present value
LOWEST, HIGHEST = 0.1, 10.0
LEAST_WEIGHT = 1e-3  # of the mean of N, where B is divided by it
WORTH = 0.01  # of the score: a weaker prior must predict that much better than a stronger one
WARM_ITERATIONS, COLD_ITERATIONS = 4, 8  # of the splitting for a trial, from a neighbour's solution or the start


@dataclass(frozen=True)
class Trial:
    """Kappas and their held-out score; lower is better, 0 is that of an empty map."""

    kappas: Kappas
    score: float


@dataclass(frozen=True)
class LeftOut:
    """The data of a quarter that a map of the other one is to predict.

    Attributes
    ----------
    whitened
        B / N, complex half transform.
    weight
        w N, its real companion.
    power
        sum w |B|^2 / N over the spectrum.
    """

    whitened: Any
    weight: Any
    power: float

    @classmethod
    def of(cls, ops: Any, data: Quadratic, weight: Any) -> LeftOut:
        """Data with the weights w."""
        least = ops.xp.float32(LEAST_WEIGHT * float(data.hessian.mean()) + 1e-30)
        floored = ops.xp.maximum(data.hessian, least)
        whitened = ops.rfftn(data.linear) / floored
        weighted = weight * floored
        return cls(whitened, weighted, hermitian_sum(ops, weighted, whitened))

    def misfit(self, ops: Any, x: Any) -> float:
        """sum w N |X - B/N|^2 = sum w (N |X|^2 - 2 Re B* X) + power."""
        return hermitian_sum(ops, self.weight, ops.rfftn(x) - self.whitened)


@dataclass
class HeldOut:
    """Held-out scores of one half.

    Attributes
    ----------
    problem, units
        The half and the units of its strengths.
    left_out
        Data of the quarters, each to be predicted from the other.
    maps
        Solution of each quarter at the kappas tried last: neighbours start from it.
    """

    problem: HalfProblem
    units: NoiseUnits
    left_out: tuple[LeftOut, LeftOut]
    positive: bool
    maps: list[Any]

    @classmethod
    def of(cls, ops: Any, problem: HalfProblem, units: NoiseUnits, band: int, *, positive: bool = False) -> HeldOut:
        """Scores up to a band."""
        box = problem.quarters[0].size
        shells = np.arange(min(band, problem.last_shell) + 1, dtype=np.float64)
        weight = shell_table(ops, shells**2, box)
        first, second = (LeftOut.of(ops, quarter, weight) for quarter in problem.quarters)
        return cls(problem, units, (first, second), positive, [problem.start, problem.start])

    def score(self, ops: Any, kappas: Kappas, iterations: int = COLD_ITERATIONS) -> Trial:
        """E(kappas), from maps solved by so many iterations."""
        strengths = self.units.strengths(self.problem, kappas, quarter=True)
        gain, power = 0.0, 0.0
        for number, own in enumerate(self.problem.quarters):
            penalty = strengths.penalty(ops, self.problem.start, self.problem.support, positive=self.positive)
            data = strengths.data(own, self.problem.previous)
            found = solve(ops, data, penalty, self.maps[number], strengths.steps, most=iterations,
                          check_every=iterations)
            self.maps[number] = found.x
            other = self.left_out[1 - number]
            gain, power = gain + other.misfit(ops, found.x) - other.power, power + other.power
        return Trial(kappas, gain / max(power, 1e-30))


def choose_kappas(ops: Any, held_out: HeldOut, start: Kappas) -> tuple[Kappas, list[Trial]]:
    """Move the kappas where the held-out data ask: first the strength of TV, then that of sparsity.

    Of scores within ``WORTH`` of the best, the strongest prior is taken.

    Returns
    -------
    The choice, and every trial in the order in which it was made.
    """
    trials = [held_out.score(ops, start)]
    best = trials[0]
    for name, factors in (("variation", FACTORS_VARIATION), ("sparse", FACTORS_SPARSE)):
        line = [best]
        for factor in factors:
            value = float(np.clip(getattr(best.kappas, name) * factor, LOWEST, HIGHEST))
            kappas = Kappas(**{**vars(best.kappas), name: value})
            if kappas != best.kappas:
                line.append(held_out.score(ops, kappas, WARM_ITERATIONS))
        trials += line[1:]
        best = _preferred(line, name)
    return best.kappas, trials


def _preferred(line: list[Trial], name: str) -> Trial:
    """The strongest prior within ``WORTH`` of the best score."""
    lowest = min(trial.score for trial in line)
    good = [trial for trial in line if trial.score <= lowest + WORTH * abs(lowest)]
    return max(good, key=lambda trial: getattr(trial.kappas, name))
