# SPDX-License-Identifier: GPL-3.0-or-later
"""The refinement loop: expectation, maximisation, FSC, regularisation, schedule; then one joined last iteration."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparsecv.engine.physics.masks import fade_corners
from sparsecv.engine.ranks import ALONE, Comm, Shares
from sparsecv.engine.refine.ctf_refine.inside import InnerCtf
from sparsecv.engine.refine.expectation import GridBank
from sparsecv.engine.refine.half import HalfResult, Particles, Residuals, Search, expectation_maximisation
from sparsecv.engine.refine.joining import Low, frame_shift, joined_map, low_resolution, share_low_resolution
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
from sparsecv.engine.refine.sidebands import EwaldSlices
from sparsecv.engine.refine.state import RefinementState
from sparsecv.engine.refine.stopwatch import Stopwatch
from sparsecv.engine.refine.volumes import PADDING, Accumulator, map_to_volume, move_map
from sparsecv.engine.validate.claims import Common
from sparsecv.engine.validate.fsc import fsc, resolution


@dataclass
class Iteration:
    """What one iteration made, for outputs and reports; of several ranks, the root has it.

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
        Factor that brought the starting reference to the grey scale of the images, by number of the half, 0 or 1.
    keeps_accumulators
        Whether the last iteration hands on its accumulators, each as large as a padded map.
    ewald_hand
        +1 or -1 where the sums of the last iteration are made with the curvature of the Ewald sphere, 0 where not.
    comm
        The ranks that share the work: each has a piece of the particles, and the state as the root has it.
    watch
        Time of the parts of an iteration.
    ctf
        What of the CTF is refined after each local or fine iteration; None for nothing.
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
    grey_scales: dict[int, float] = field(default_factory=dict)
    keeps_accumulators: bool = False
    ewald_hand: int = 0
    comm: Comm = ALONE
    watch: Stopwatch = field(default_factory=Stopwatch)
    ctf: InnerCtf | None = None

    @property
    def is_ready_to_finish(self) -> bool:
        """Whether the next iteration should be the joined last one."""
        return is_converged(self.state) and (self.ctf is None or self.ctf.is_settled(self.state))

    def iterate(self, *, is_last: bool = False) -> Iteration:
        """Run one iteration and move ``state`` on.

        The last one backprojects to Nyquist, joins the halves in one map and leaves the references as they are.
        """
        geometry, state = self.particles.geometry, self.state
        if self.ctf is not None:
            self.ctf.bring(self.particles, state)
        accumulated = geometry.nyquist_shell if is_last else geometry.accumulated_shell(state.band)
        members = self._members(0), self._members(1)
        shares = Shares.of(len(members[0]), len(members[1]), self.comm.size)
        slices = None
        if is_last and self.ewald_hand:
            slices = self.particles.ewald_slices(self.ops, accumulated, self.ewald_hand)
        with self.watch.part("search and sums"):
            results = [self._expectation_maximisation(number, accumulated, members, shares, slices)
                       for number in (0, 1)]
            self._add_up(results, members, shares)
        with self.watch.part("half maps and FSC"):
            if self.frame_is_free and not state.is_local:
                self._centre_frame(results)
            iteration = self._half_maps(results, accumulated)
        with self.watch.part("regularisation"):
            if is_last:
                self._join(results, iteration)
                band, told = state.band, shown_of(iteration.regularised)
            else:
                band, told = self._next_references(results, iteration, accumulated)
        if self.ctf is not None and state.is_local and not is_last:
            with self.watch.part("CTF"):
                for result in results:
                    result.quarters = ()  # their memory is needed
                found = self.ctf.update(self.ops, self.particles, state, iteration.half_maps, iteration.fsc, self.comm)
                told = told | {"ctf": found}
        self.state = self.comm.at_root(lambda: self._updated(results, iteration.fsc, band, told, is_last))
        return iteration

    # ------------------------------------------------------------------------------------------------- the steps
    def _members(self, number: int) -> np.ndarray:
        return np.flatnonzero((self.halves == number + 1) & ~self.state.particles.is_rejected)

    def _search(
        self, number: int, accumulated: int, members: np.ndarray, shares: Shares, slices: EwaldSlices | None
    ) -> Search:
        """Plan and reference of a half's next search; a global one first fits the start to the images' grey scale."""
        state, half, ops = self.state, self.state.halves[number], self.ops
        draws = Draws.of(self.seed, state.iteration + 1, len(self.halves))
        plan = search_plan(self.particles.geometry, state.band, half, self.particles.matrices, draws, state.stage,
                           self._prior(state.fsc).confidence)
        volume = map_to_volume(ops, ops.xp.asarray(half.reference), accumulated)
        bank = None if state.is_local else GridBank(ops, volume, plan, self.particles.disc, PADDING)
        if state.iteration == 0 and bank is not None:
            factor = self.comm.from_owner(number, shares.sharers(number), lambda: grey_scale(
                ops, self.particles, state.particles, half, members, plan, bank))  # fmt: skip
            self.grey_scales[number] = factor
            half.reference = half.reference * np.float32(factor)
            volume *= np.float32(factor)
            bank.scale(factor)
        return Search(plan, volume, bank, draws, accumulated, MOST_SLICES[state.stage], slices)

    def _expectation_maximisation(
        self, number: int, accumulated: int, members: tuple[np.ndarray, np.ndarray], shares: Shares,
        slices: EwaldSlices | None,
    ) -> HalfResult:  # fmt: skip
        """What this rank's piece of a half makes of it."""
        rank, half = self.comm.rank, self.state.halves[number]
        pieces = [shares.piece(rank, 0), shares.piece(rank, 1)]
        own = members[number][pieces[number]]
        if not len(own):
            return HalfResult(own, 0.0, (), Residuals.empty(half, 0))
        total = sum(piece.stop - piece.start for piece in pieces)
        before = number * (pieces[0].stop - pieces[0].start)
        search = self._search(number, accumulated, members[number], shares, slices)
        result = expectation_maximisation(
            self.ops, self.particles, self.state.particles, half, own, self.quarters[own], search,
            lambda done: self.on_batch(before + done, total),
        )  # fmt: skip
        del search  # its volume, before more is made
        if shares.sharers(number) == [rank]:  # before the other half's sums are made: these shrink by it
            self._complete(result)
        return result

    def _complete(self, result: HalfResult) -> None:
        self._change(result, lambda quarter: quarter.completed(self.ops, self.particles.matrices))

    def _change(self, result: HalfResult, change: Callable[[Accumulator], Accumulator]) -> None:
        """Change the quarters of a half on the device, one after the other: what each was makes room for the next."""
        left, result.quarters = list(result.quarters), ()
        while left:
            result.quarters += (self.particles.kept(self.ops, change(left.pop(0).on_device(self.ops))),)

    def _add_up(self, results: list[HalfResult], members: tuple[np.ndarray, np.ndarray], shares: Shares) -> None:
        """Bring together what the ranks have made: sums of a half at its owner, all else at the root."""
        comm, state = self.comm, self.state
        for number, result in enumerate(results):
            sharers = shares.sharers(number)
            if len(sharers) > 1:
                arrays = [array for quarter in result.quarters for array in (quarter.data, quarter.weight)]
                comm.add_up(number, sharers, arrays)
                if comm.owns(number):
                    self._complete(result)
                else:
                    result.quarters = ()
        rows = [result.members for result in results]
        if state.iteration == 0 and not state.is_local:  # where `_search` has fitted them
            self.grey_scales = dict(enumerate(comm.of_halves(lambda number: self.grey_scales[number])))
        parts = comm.gathered([(state.particles.of(own), result.residuals)
                               for own, result in zip(rows, results, strict=True)])  # fmt: skip
        for number, result in enumerate(results if parts else ()):
            result.members = members[number]
            for rank, part in enumerate(parts):
                if rank != comm.rank:
                    state.particles.put(members[number][shares.piece(rank, number)], part[number][0])
            result.residuals = Residuals.of_ranks([part[number][1] for part in parts])

    def _centre_frame(self, results: list[HalfResult]) -> None:
        """Move the map's origin to where the particles' shifts are smallest; both halves move alike."""
        shift = self.comm.at_root(lambda: self._centre_poses(results))
        for number, result in enumerate(results):
            self._change(result, lambda quarter: quarter.moved(self.ops, -shift))
            if self.comm.owns(number):
                half = self.state.halves[number]
                half.reference = self.ops.to_host(move_map(self.ops, self.ops.xp.asarray(half.reference), -shift))

    def _centre_poses(self, results: list[HalfResult]) -> np.ndarray:
        """Point to which the particles' shifts belong, (3,) pixels; it is taken out of them."""
        particles = self.state.particles
        rows = np.concatenate([result.members for result in results])
        rows = rows[~particles.is_rejected[rows]]
        shift = frame_shift(particles.rotations[rows], particles.shifts_px[rows], self.particles.matrices)
        particles.shifts_px[rows] -= particles.rotations[rows][:, :2] @ shift
        return shift

    def _half_maps(self, results: list[HalfResult], accumulated: int) -> Iteration:
        """The unregularised halves and their FSC."""
        # Sums of quarters are made where they are used: each is as large as all of a quarter.
        halves = self.comm.of_halves(lambda number: self._half_map(results[number]))

        def curve_of_maps() -> np.ndarray:
            found = fsc(halves[0][0] * self.sphere, halves[1][0] * self.sphere)
            found[accumulated + 1 :] = 0
            return found

        curve = self.comm.at_root(curve_of_maps)
        if not self.comm.is_root:
            return Iteration((np.empty(0), np.empty(0)), curve, np.empty(0))
        return Iteration((halves[0][0], halves[1][0]), curve, halves[0][1] + halves[1][1])

    def _half_map(self, result: HalfResult) -> tuple[np.ndarray, np.ndarray]:
        """The unregularised map of a half, and the mean weight per shell of its two quarters."""
        density = self.ops.to_host(fade_corners(result.total.on_device(self.ops).solve(self.ops), self.ops.xp))
        first, second = (quarter.mean_weight(self.ops) for quarter in result.quarters)
        return density, first + second

    def _join(self, results: list[HalfResult], iteration: Iteration) -> None:
        """The maps of all particles: Wiener-filtered, and, to look at, by the regulariser of the references."""
        if self.regulariser.shows_halves:
            shown = self.comm.of_halves(lambda number: self._regularised(
                self.regulariser, results[number], number, iteration.fsc))  # fmt: skip
        references = self.comm.of_halves(lambda number: self.state.halves[number].reference)
        self._bring_to_root(results[1])
        if not self.comm.is_root:
            return
        iteration.regularised = shown if self.regulariser.shows_halves else ()
        for half, reference in zip(self.state.halves, references, strict=True):
            half.reference = reference
        first, second = (self._taken_apart(result, iteration) for result in results)
        tau_factor = getattr(self.regulariser, "tau_factor", 1.0)  # of the Wiener prior alone
        whole = (first + second).on_device(self.ops)
        iteration.joined = joined_map(self.ops, whole, iteration.fsc, self.support, tau_factor)
        del whole
        prior = self._prior(iteration.fsc)
        if prior.name != Wiener.name:
            memories = [half.memory for half in self.state.halves]
            memory = {name: float(np.sqrt(value * memories[1][name])) for name, value in memories[0].items()}
            reference = self.ops.xp.asarray((references[0] + references[1]) / 2)
            evidence = self._evidence((first, second), reference, iteration.fsc, memory, number=1)
            iteration.joined_regularised = self.ops.to_host(prior.regularise(self.ops, evidence).reference)

    def _taken_apart(self, result: HalfResult, iteration: Iteration) -> Accumulator:
        """The sum of a half's quarters, which leave the device: to be kept on the host, if at all."""
        total, (one, two) = result.total, result.quarters
        if self.keeps_accumulators:
            iteration.quarters += ((one.parked(self.ops), two.parked(self.ops)),)
        result.quarters = ()
        return total

    def _bring_to_root(self, result: HalfResult) -> None:
        """The sums of half set 2 to the root, where the halves are joined."""
        arrays = [array for quarter in result.quarters for array in (quarter.data, quarter.weight)]
        found = self.comm.at_root_from_owner(1, arrays)
        if self.comm.is_root and not self.comm.owns(1):
            box, last = self.particles.geometry.box, self.particles.geometry.nyquist_shell
            quarters = (Accumulator(found[k], found[k + 1], box, last, self.particles.kernel) for k in (0, 2))
            result.quarters = tuple(one if self.particles.parks_sums else one.on_device(self.ops) for one in quarters)

    def _next_references(
        self, results: list[HalfResult], iteration: Iteration, accumulated: int
    ) -> tuple[int, dict[str, Any]]:
        """Regularise both halves; the next band, and what the history is told."""
        started, prior = time.process_time(), self._prior(iteration.fsc)
        first, second = self._regularise(results, iteration.fsc, prior)
        if not self.comm.is_root:
            return self.state.band, {}  # the root's are broadcast with the state
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
        geometry, last = self.particles.geometry, 0
        low: list[tuple[Low, Low]] = []
        if self.join_below > 0:
            current = resolution(curve, 0.5, geometry.box, geometry.pixel_size).angstrom
            last = geometry.shell_of(max(self.join_below, current))
            parts = self.comm.of_halves(
                lambda number: [low_resolution(self.ops, one, last) for one in results[number].quarters])
            low = self.comm.at_root(lambda: list(zip(*parts, strict=True)))

        def regularised(number: int) -> Regularised:
            for quarter, pair in zip(results[number].quarters, low, strict=bool(low)):
                share_low_resolution(self.ops, quarter, pair, last)
            return self._regularised(prior, results[number], number, curve)

        found = self.comm.of_halves(regularised)
        if self.comm.is_root:
            found = found[0], replace(found[1], reference=self.ops.xp.asarray(found[1].reference))
            for half, one in zip(self.state.halves, found, strict=True):
                half.reference = self.ops.to_host(one.reference).astype(np.float32)
                half.memory = one.memory
        return found

    def _regularised(
        self, prior: Regulariser, result: HalfResult, number: int, curve: np.ndarray
    ) -> Regularised:
        """What a prior makes of the sums of a half; on the host where it goes to another rank."""
        half = self.state.halves[number]
        previous, (first, second) = self.ops.xp.asarray(half.reference), result.quarters
        evidence = self._evidence((first, second), previous, curve, half.memory, self.state.iteration + 1)
        found = prior.regularise(self.ops, evidence)
        return found if self.comm.is_root else replace(found, reference=self.ops.to_host(found.reference))

    def _evidence(
        self, quarters: tuple[Accumulator, Accumulator], previous: Any, curve: np.ndarray, memory: dict[str, float],
        number: int,
    ) -> Evidence:  # fmt: skip
        geometry = self.particles.geometry
        return Evidence(quarters, previous, curve, self.support, self.ops.xp.asarray(self.sphere), geometry.box,
                        geometry.pixel_size, number, self.state.band, memory)

    def _updated(
        self, results: list[HalfResult], curve: np.ndarray, band: int, told: dict[str, Any], is_last: bool
    ) -> RefinementState:
        """The state with history, noise, scales, and what the next search compares and how widely."""
        state, geometry = self.state, self.particles.geometry
        particles, finest = state.particles, results[0].finest_deg
        for row in np.flatnonzero(particles.is_rejected):
            state.rejected.setdefault(int(row), "no orientation has a finite likelihood")
        state.iteration += 1
        state.history.append(self._summary(curve, finest, is_last) | told)
        state.fsc, state.band = curve, band
        before, after = state.stage, next_stage(state, finest)
        for half, result in zip(state.halves, results, strict=True):
            update_noise(self.particles, half, result)
            update_scale(half, result, curve)
            update_norm(particles, result)
            members = result.members[~particles.is_rejected[result.members]]
            update_search(half, particles, members, geometry, state.band, finest_deg=finest, before=before, after=after)
        state.stage = after
        return state

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
