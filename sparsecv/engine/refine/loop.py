# SPDX-License-Identifier: GPL-3.0-or-later
"""The refinement loop: expectation, maximisation, FSC, regularisation, schedule; then one joined last iteration."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsecv.engine.physics.masks import fade_corners
from sparsecv.engine.refine.expectation import GridBank
from sparsecv.engine.refine.half import HalfResult, Particles, Search, expectation_maximisation
from sparsecv.engine.refine.joining import frame_shift, joined_map, share_low_resolution
from sparsecv.engine.refine.noise import grey_scale, update_noise, update_norm, update_scale
from sparsecv.engine.refine.regularisers import Evidence, Regularised, Regulariser, Wiener
from sparsecv.engine.refine.regularisers.nonuniform import BAND_LIMIT, disagreement
from sparsecv.engine.refine.schedule import (
    MOST_SLICES,
    Draws,
    is_converged,
    next_band,
    next_stage,
    part_that_jumped,
    search_plan,
    update_search,
)
from sparsecv.engine.refine.state import HalfState, RefinementState
from sparsecv.engine.refine.volumes import PADDING, Accumulator, map_to_volume, move_map
from sparsecv.engine.validate.claims import Common
from sparsecv.engine.validate.fsc import fsc, resolution


@dataclass
class Iteration:
    """What one iteration made, for outputs and reports.

    Attributes
    ----------
    half_maps
        Unregularised maps of the two halves, float32 on the host.
    fsc
        Between the half maps inside the sphere.
    noise_gain
        Mean weight per shell of all particles: 1 over the noise power of the average map.
    regularised
        What the regulariser returned for each half; of the last iteration only where it shows something of the halves.
    joined
        Wiener-filtered map of all particles, float32 on the host; of the last iteration only.
    joined_regularised
        The same by another regulariser, where that is not the Wiener filter.
    quarters
        Accumulators of the quarters of each half; of the last iteration, and where they are to be kept, only.
    """

    half_maps: tuple[np.ndarray, np.ndarray]
    fsc: np.ndarray
    noise_gain: np.ndarray
    regularised: tuple[Regularised, ...] = ()
    joined: np.ndarray | None = None
    joined_regularised: np.ndarray | None = None
    quarters: tuple[tuple[Accumulator, Accumulator], ...] = ()


@dataclass
class Refinement:
    """A refinement in progress.

    Attributes
    ----------
    ops
        Kernels of the device.
    particles
        Particles and what stays the same.
    regulariser
        Prior on the map.
    state
        What changes.
    support
        (box, box, box) soft mask of the reference, on the device.
    sphere
        (box, box, box) soft sphere of the particle's diameter, on the host: the FSC is measured inside it.
    halves, quarters
        (n,) half set 1 or 2 and quarter 0 or 1 of each particle.
    seed
        Of everything random.
    join_below
        Resolution in A below which the halves are averaged; 0 never.
    frame_is_free
        Whether a global search may move the map's origin.
    on_batch
        Called as on_batch(done, total) during an iteration.
    common
        What the halves share, beyond which alone their FSC shows a resolution; None if that is not known.
    grey_scales
        Factor that brought the starting reference to the grey scale of the images, for each half.
    keeps_accumulators
        Whether the last iteration hands on its accumulators, each as large as a padded map.
    """

    ops: Any
    particles: Particles
    regulariser: Regulariser
    state: RefinementState
    support: Any
    sphere: np.ndarray
    halves: np.ndarray
    quarters: np.ndarray
    seed: int
    join_below: float
    frame_is_free: bool
    on_batch: Callable[[int, int], None] = lambda done, total: None
    common: Common | None = None
    grey_scales: list[float] = field(default_factory=list)
    keeps_accumulators: bool = False

    @property
    def is_ready_to_finish(self) -> bool:
        """Whether the next iteration should be the joined last one."""
        return is_converged(self.state)

    def iterate(self, *, is_last: bool = False) -> Iteration:
        """Run one iteration and move ``state`` on.

        The last one backprojects to Nyquist, joins the halves in one map and leaves the references as they are.
        """
        geometry, state = self.particles.geometry, self.state
        accumulated = geometry.nyquist_shell if is_last else geometry.accumulated_shell(state.band)
        results = [self._expectation_maximisation(number, accumulated) for number in (0, 1)]
        if self.frame_is_free and not state.is_local:
            self._centre_frame(results)
        iteration = self._half_maps(results, accumulated)
        if is_last:
            self._join(results, iteration)
            band, told = state.band, shown_of(iteration.regularised)
        else:
            band, told = self._next_references(results, iteration, accumulated)
        self._update(results, iteration.fsc, band, is_last)
        state.history[-1] |= told
        return iteration

    # ------------------------------------------------------------------------------------------------- the steps
    def _members(self, number: int) -> np.ndarray:
        return np.flatnonzero((self.halves == number + 1) & ~self.state.particles.is_rejected)

    def _search(self, number: int, accumulated: int, members: np.ndarray) -> Search:
        """Plan and reference of a half's next search; a global one first fits the start to the images' grey scale."""
        state, half, ops = self.state, self.state.halves[number], self.ops
        draws = Draws.of(self.seed, state.iteration + 1, len(self.halves))
        plan = search_plan(self.particles.geometry, state.band, half, self.particles.matrices, draws, state.stage,
                           self._prior(state.fsc).confidence)
        volume = map_to_volume(ops, ops.xp.asarray(half.reference), accumulated)
        bank = None if state.is_local else GridBank(ops, volume, plan, self.particles.disc, PADDING)
        if state.iteration == 0 and bank is not None:
            factor = grey_scale(ops, self.particles, state.particles, half, members, plan, bank)
            self.grey_scales.append(factor)
            half.reference = half.reference * np.float32(factor)
            volume = volume * np.float32(factor)
            bank.scale(factor)
        return Search(plan, volume, bank, draws, accumulated, MOST_SLICES[state.stage])

    def _expectation_maximisation(self, number: int, accumulated: int) -> HalfResult:
        members = [self._members(0), self._members(1)]
        own, before = members[number], number * len(members[0])
        total = len(members[0]) + len(members[1])
        return expectation_maximisation(
            self.ops, self.particles, self.state.particles, self.state.halves[number], own, self.quarters[own],
            self._search(number, accumulated, own), lambda done: self.on_batch(before + done, total),
        )  # fmt: skip

    def _centre_frame(self, results: list[HalfResult]) -> None:
        """Move the map's origin to where the particles' shifts are smallest; both halves move alike."""
        particles = self.state.particles
        rows = np.concatenate([result.members for result in results])
        rows = rows[~particles.is_rejected[rows]]
        shift = frame_shift(particles.rotations[rows], particles.shifts_px[rows], self.particles.matrices)
        particles.shifts_px[rows] -= particles.rotations[rows][:, :2] @ shift
        for half, result in zip(self.state.halves, results, strict=True):
            first, second = (quarter.moved(self.ops, -shift) for quarter in result.quarters)
            result.quarters = (first, second)
            half.reference = self.ops.to_host(move_map(self.ops, self.ops.xp.asarray(half.reference), -shift))

    def _half_maps(self, results: list[HalfResult], accumulated: int) -> Iteration:
        """The unregularised halves and their FSC."""
        # Sums of quarters are made where they are used: each is as large as all of a quarter.
        first, second = (
            self.ops.to_host(fade_corners(result.total.solve(self.ops), self.ops.xp)) for result in results
        )
        curve = fsc(first * self.sphere, second * self.sphere)
        curve[accumulated + 1 :] = 0
        gain = np.sum([quarter.mean_weight(self.ops) for result in results for quarter in result.quarters], axis=0)
        return Iteration((first, second), curve, gain)

    def _join(self, results: list[HalfResult], iteration: Iteration) -> None:
        """The maps of all particles: Wiener-filtered, and, to look at, by the regulariser of the references."""
        first, second = (result.total for result in results)
        tau_factor = getattr(self.regulariser, "tau_factor", 1.0)  # of the Wiener prior alone
        iteration.joined = joined_map(self.ops, first + second, iteration.fsc, self.support, tau_factor)
        prior = self._prior(iteration.fsc)
        if prior.name != Wiener.name:
            memories = [half.memory for half in self.state.halves]
            memory = {name: float(np.sqrt(value * memories[1][name])) for name, value in memories[0].items()}
            reference = self.ops.xp.asarray((self.state.halves[0].reference + self.state.halves[1].reference) / 2)
            evidence = self._evidence((first, second), reference, iteration.fsc, memory, number=1)
            iteration.joined_regularised = self.ops.to_host(prior.regularise(self.ops, evidence).reference)
        if self.regulariser.shows_halves:
            iteration.regularised = tuple(
                self._regularised(self.regulariser, result.quarters, half, iteration.fsc)
                for half, result in zip(self.state.halves, results, strict=True)
            )
        if self.keeps_accumulators:
            iteration.quarters = tuple(result.quarters for result in results)

    def _next_references(
        self, results: list[HalfResult], iteration: Iteration, accumulated: int
    ) -> tuple[int, dict[str, Any]]:
        """Regularise both halves; the next band, and what the history is told."""
        started, prior = time.process_time(), self._prior(iteration.fsc)
        first, second = self._regularise(results, iteration.fsc, prior)
        supported = prior.alignment_band(self.ops, first, second)
        iteration.regularised = first, second
        band = next_band(self.particles.geometry, iteration.fsc, accumulated, supported)
        spent = round(time.process_time() - started, 3)
        return band, {"prior": prior.name, "regulariser_cpu_s": spent} | shown_of(iteration.regularised)

    def _prior(self, curve: np.ndarray) -> Regulariser:
        """The regulariser, once the halves show more than they share, and the Wiener filter until then.

        A prior that sharpens what both halves start from gives them the same edges beyond the start's resolution; noise
        would be aligned to these in both, and the FSC would call it signal.
        """
        if self.common is None or isinstance(self.regulariser, Wiener):
            return self.regulariser
        found = resolution(curve, 0.143, self.particles.geometry.box, self.particles.geometry.pixel_size)
        return self.regulariser if self.common.is_exceeded_by(found) else Wiener()

    def _regularise(
        self, results: list[HalfResult], curve: np.ndarray, prior: Regulariser
    ) -> tuple[Regularised, Regularised]:
        """The next references, each from its own half but for the low resolution that both share."""
        geometry = self.particles.geometry
        pairs = list(zip(results[0].quarters, results[1].quarters, strict=True))
        if self.join_below > 0:
            current = resolution(curve, 0.5, geometry.box, geometry.pixel_size).angstrom
            last = geometry.shell_of(max(self.join_below, current))
            pairs = [share_low_resolution(self.ops, first, second, last) for first, second in pairs]
        regularised = []
        for half, (first, second) in zip(self.state.halves, zip(*pairs, strict=True), strict=True):
            found = self._regularised(prior, (first, second), half, curve)
            half.reference = self.ops.to_host(found.reference).astype(np.float32)
            half.memory = found.memory
            regularised.append(found)
        return regularised[0], regularised[1]

    def _regularised(
        self, prior: Regulariser, quarters: tuple[Accumulator, Accumulator], half: HalfState, curve: np.ndarray
    ) -> Regularised:
        """What a prior makes of the sums of a half."""
        previous = self.ops.xp.asarray(half.reference)
        return prior.regularise(self.ops, self._evidence(quarters, previous, curve, half.memory,
                                                         self.state.iteration + 1))

    def _evidence(
        self, quarters: tuple[Accumulator, Accumulator], previous: Any, curve: np.ndarray, memory: dict[str, float],
        number: int,
    ) -> Evidence:  # fmt: skip
        geometry = self.particles.geometry
        return Evidence(quarters, previous, curve, self.support, self.ops.xp.asarray(self.sphere), geometry.box,
                        geometry.pixel_size, number, self.state.band, memory)

    def _update(self, results: list[HalfResult], curve: np.ndarray, band: int, is_last: bool) -> None:
        """History, noise, scales, and what the next search compares and how widely."""
        state, geometry = self.state, self.particles.geometry
        particles, finest = state.particles, results[0].finest_deg
        for row in np.flatnonzero(particles.is_rejected):
            state.rejected.setdefault(int(row), "no orientation has a finite likelihood")
        state.iteration += 1
        state.history.append(self._summary(curve, finest, is_last))
        state.fsc, state.band = curve, band
        before, after = state.stage, next_stage(state, finest)
        for half, result in zip(state.halves, results, strict=True):
            update_noise(self.particles, half, result)
            update_scale(half, result, curve)
            update_norm(particles, result)
            members = result.members[~particles.is_rejected[result.members]]
            update_search(half, particles, members, geometry, state.band, finest_deg=finest, before=before, after=after)
        state.stage = after

    def _summary(self, curve: np.ndarray, finest_deg: float, is_last: bool) -> dict[str, Any]:
        """Plain numbers of the iteration that has just ended."""
        state, geometry = self.state, self.particles.geometry
        kept = ~state.particles.is_rejected
        found = [resolution(curve, level, geometry.box, geometry.pixel_size) for level in (0.143, 0.5)]
        claimed = found
        if self.common is not None and self.common.explains(found[0]):
            claimed = [self.common.claim(one, geometry.length) for one in found]
        return {
            "iteration": state.iteration,
            "stage": state.stage,
            "is_last": is_last,
            "band": state.band,
            "resolution_0143": claimed[0].angstrom,
            "resolution_05": claimed[1].angstrom,
            "resolution_is_shared": claimed[0].is_shared,
            "crossing_0143": found[0].angstrom,
            "crossing_05": found[1].angstrom,
            "step_deg": finest_deg,
            "turned_deg": float(np.median(state.particles.turned_deg[kept])),
            "jumped": part_that_jumped(state.particles, finest_deg),
            "moved_A": float(np.median(state.particles.moved_px[kept]) * geometry.pixel_size),
            "spread_deg": float(np.median(state.particles.spread_deg[kept])),
            "best_probability": float(state.particles.best_probability[kept].mean()),
            "significant": float(np.median(state.particles.significant[kept])),
            "rejected": len(state.rejected),
        }


def shown_of(regularised: tuple[Regularised, ...]) -> dict[str, Any]:
    """What the history is told of the halves' regularised maps."""
    if not regularised:
        return {}
    told: dict[str, Any] = {"regulariser": [one.shown for one in regularised]}
    limits = [one.volumes[BAND_LIMIT] for one in regularised if BAND_LIMIT in one.volumes]
    if len(limits) == 2:
        told["band_limit_disagreement"] = disagreement(limits[0], limits[1])
    return told
