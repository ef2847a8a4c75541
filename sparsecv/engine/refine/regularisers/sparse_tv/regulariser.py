# SPDX-License-Identifier: GPL-3.0-or-later
"""The sparse + TV regulariser: from the sums of one half to its next reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsecv.engine.refine.regularisers.base import Evidence, Regularised
from sparsecv.engine.refine.regularisers.sparse_tv.half_problem import HalfProblem
from sparsecv.engine.refine.regularisers.sparse_tv.held_out import HeldOut, Trial, choose_kappas
from sparsecv.engine.refine.regularisers.sparse_tv.proximal_gradient import SMOOTHING, solve_smoothed
from sparsecv.engine.refine.regularisers.sparse_tv.splitting import Solution, solve
from sparsecv.engine.refine.regularisers.sparse_tv.strengths import Kappas, NoiseUnits, PaperUnits, Strengths
from sparsecv.engine.refine.schedule import band_of
from sparsecv.engine.validate.fsc import fsc

REWEIGHTS = 2  # majorisations of the log penalties per M-step: EM goes on reweighting
GAP = 1e-2  # certified, of each of them
MOST_ITERATIONS = 30
PAPER_ITERATIONS = 150
FIRST_CHOICE, CHOICE_EVERY = 2, 3  # iterations of the refinement; the first reference is the start's


@dataclass(frozen=True)
class SparseTv:
    """Sparse + total-variation prior [Luo2019] with strengths that the half chooses for itself.

    Attributes
    ----------
    units
        What strengths are measured in: the noise, or the paper's power of b.
    kappas
        Strengths in units of the noise: where the choice starts, or what they are.
    is_chosen
        Whether held-out data move the kappas (noise units only).
    is_paper_solver
        Proximal gradient with smoothed TV in place of the splitting.
    is_positive
        Whether densities are kept from being negative.
    confidence
        Less noise in the reference than the Wiener filter leaves: the likelihood needs no damping.
    """

    units: NoiseUnits | PaperUnits
    kappas: Kappas
    is_chosen: bool = True
    is_paper_solver: bool = False
    is_positive: bool = False
    name: str = "sparse-tv"
    confidence: float = 1.0
    shows_halves: bool = False

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        """Minimiser of the log-penalty objective of the half, exactly 0 outside the support."""
        problem = HalfProblem.of(ops, evidence)
        if problem.level == 0:  # no density at all: nothing to weigh
            return Regularised(problem.start, memory=evidence.memory)
        kappas, trials = self._kappas(ops, problem, evidence)
        if isinstance(self.units, NoiseUnits):
            strengths = self.units.strengths(problem, kappas)
        else:
            strengths = self.units.strengths(problem)
            kappas = strengths.in_units_of(problem.noise)  # to be compared with those that a half would choose
        found = self.solve(ops, problem, strengths)
        memory = {"kappa_sparse": kappas.sparse, "kappa_variation": kappas.variation}
        return Regularised(found.x, memory, _shown(problem, strengths, kappas, found, trials))

    def solve(self, ops: Any, problem: HalfProblem, strengths: Strengths) -> Solution:
        """Majorise the log penalties about the Wiener map, minimise, and once more about what that gave."""
        data = strengths.data(problem.whole, problem.previous)
        found = Solution(problem.start, 0, [], [])
        for _ in range(REWEIGHTS):
            penalty = strengths.penalty(ops, found.x, problem.support, positive=self.is_positive)
            if self.is_paper_solver:
                mu = SMOOTHING * strengths.epsilon_gradient
                step = solve_smoothed(ops, data, penalty, found.x, mu, iterations=PAPER_ITERATIONS // REWEIGHTS)
            else:
                step = solve(ops, data, penalty, found.x, strengths.steps, gap=GAP, most=MOST_ITERATIONS)
            found = Solution(step.x, found.iterations + step.iterations, step.objective, step.gaps)
        return found

    def _kappas(self, ops: Any, problem: HalfProblem, evidence: Evidence) -> tuple[Kappas, list[Trial]]:
        """Kappas of this iteration, and the trials where they were chosen anew."""
        kappas = self.kappas
        if evidence.memory:
            kappas = Kappas(evidence.memory["kappa_sparse"], evidence.memory["kappa_variation"])
        since = evidence.iteration - FIRST_CHOICE
        is_due = since >= 0 and since % CHOICE_EVERY == 0
        if not (self.is_chosen and is_due and isinstance(self.units, NoiseUnits)):
            return kappas, []
        held_out = HeldOut.of(ops, problem, self.units, evidence.band, positive=self.is_positive)
        return choose_kappas(ops, held_out, kappas)

    def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
        """The rule of the unregularised halves, applied to the regularised ones; None for empty maps.

        The prior has taken the noise out of the references, so their own correlation, and not that of the unregularised
        halves, says which shells can be compared.
        """
        references = [ops.to_host(found.reference) for found in (first, second)]
        return band_of(fsc(*references)) if all(reference.any() for reference in references) else None


def _shown(
    problem: HalfProblem, strengths: Strengths, kappas: Kappas, found: Solution, trials: list[Trial]
) -> dict[str, Any]:
    """Plain numbers of one half and iteration."""
    shown: dict[str, Any] = {
        "alpha": strengths.alpha,
        "beta": strengths.beta,
        "gamma": strengths.gamma,
        "epsilon": strengths.epsilon,
        "epsilon_gradient": strengths.epsilon_gradient,
        "noise": problem.noise,
        "kappa_sparse": kappas.sparse,
        "kappa_variation": kappas.variation,
        "iterations": found.iterations,
        "objective": found.objective,
        "gap": found.gaps,
        "nonzero": float((found.x[problem.support] != 0).mean()),
    }
    if trials:
        shown["held_out"] = [vars(trial.kappas) | {"score": trial.score} for trial in trials]
    return shown
