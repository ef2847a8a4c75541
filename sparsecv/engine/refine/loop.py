# SPDX-License-Identifier: GPL-3.0-or-later
"""The refinement loop: expectation, maximisation, FSC, regularisation, schedule; then one joined last iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsecv.engine.physics.masks import fade_corners
from sparsecv.engine.refine.expectation import GridBank
from sparsecv.engine.refine.half import HalfResult, Particles, expectation_maximisation, reference_volume
from sparsecv.engine.refine.noise import grey_scale, update_noise, update_norm, update_scale
from sparsecv.engine.refine.regularisers import Evidence, Regularised, Regulariser
from sparsecv.engine.refine.schedule import (
    MOST_SLICES,
    Draws,
    is_converged,
    next_band,
    next_stage,
    search_plan,
    update_search,
)
from sparsecv.engine.refine.state import RefinementState
from sparsecv.engine.refine.volumes import PADDING, Accumulator, radial
from sparsecv.engine.validate.claims import Common
from sparsecv.engine.validate.fsc import fsc, resolution


@dataclass
class Iteration:
    """What one iteration made, for outputs and reports.

    Attributes
    ----------
    half_maps
        Unregularised maps of the two halves, float32 on the host.
    joined
        Regularised map of all particles; of the last iteration only.
    fsc
        Between the half maps inside the sphere.
    regularised
        What the regulariser returned for each half; empty for the last iteration.
    noise_gain
        Mean weight per shell of all particles: 1 over the noise power of the average map.
    """

    half_maps: tuple[np.ndarray, np.ndarray]
    joined: np.ndarray | None
    fsc: np.ndarray
    regularised: tuple[Regularised, ...]
    noise_gain: np.ndarray


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
    scale_is_known
        Whether the reference has the grey scale of the images.
    frame_is_free
        Whether a global search may move the map's origin.
    on_batch
        Called as on_batch(done, total) during an iteration.
    common
        What the halves share, beyond which alone their FSC shows a resolution; None if that is not known.
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
    scale_is_known: bool
    frame_is_free: bool
    on_batch: Callable[[int, int], None] = lambda done, total: None
    common: Common | None = None

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
        # Sums of quarters are made where they are used: each is as large as all of a quarter.
        maps = tuple(self.ops.to_host(fade_corners(result.total.solve(self.ops), self.ops.xp)) for result in results)
        curve = fsc(maps[0] * self.sphere, maps[1] * self.sphere)
        curve[accumulated + 1 :] = 0
        joined, regularised = None, ()
        if is_last:
            joined = self._join(results[0].total + results[1].total, curve)
        else:
            regularised = self._regularise(results, curve)
        gain = np.sum([quarter.mean_weight(self.ops) for result in results for quarter in result.quarters], axis=0)
        self._update(results, curve, accumulated, is_last)
        return Iteration((maps[0], maps[1]), joined, curve, regularised, gain)

    # ------------------------------------------------------------------------------------------------- the steps
    def _members(self, number: int) -> np.ndarray:
        return np.flatnonzero((self.halves == number + 1) & ~self.state.particles.is_rejected)

    def _expectation_maximisation(self, number: int, accumulated: int) -> HalfResult:
        state, half = self.state, self.state.halves[number]
        draws = Draws.of(self.seed, state.iteration + 1, len(self.halves))
        plan = search_plan(self.particles.geometry, state.band, half, self.particles.matrices, draws, state.stage)
        members = self._members(number)
        volume = reference_volume(self.ops, half, accumulated)
        bank = None
        if not state.is_local:
            bank = GridBank(self.ops, volume, plan, self.particles.disc, PADDING)
        if not self.scale_is_known and state.iteration == 0 and bank is not None:
            factor = grey_scale(self.ops, self.particles, state.particles, half, members, plan, bank)
            half.reference = half.reference * np.float32(factor)
            volume = volume * np.float32(factor)
            bank.scale(factor)
        total = len(self._members(0)) + len(self._members(1))
        done = number * (total - len(members))

        def advance(images: int) -> None:
            nonlocal done
            done += images
            self.on_batch(done, total)

        return expectation_maximisation(
            self.ops, self.particles, state.particles, half, members, self.quarters[members], plan, bank, volume,
            draws, accumulated, MOST_SLICES[state.stage], advance,
        )  # fmt: skip

    def _centre_frame(self, results: list[HalfResult]) -> None:
        """Move the map's origin to where the particles' shifts are smallest.

        Map moved by -t and origins by -(A t)_xy together leave every image's likelihood as it is, so that the prior on
        shifts alone decides: t = argmin sum_i |o_i - (A_i t)_xy|^2. Expectation maximisation would get there as well,
        in hundreds of iterations; until then the map stays where a poor start (a reference without the detergent belt
        that the images show) has put it. Both halves move alike. A point group allows t along its axis only.
        """
        particles = self.state.particles
        rows = np.concatenate([result.members for result in results])
        rows = rows[~particles.is_rejected[rows]]
        views, shifts = particles.rotations[rows][:, :2], particles.shifts_px[rows]
        normal = np.einsum("nki,nkj->ij", views, views)
        t = np.linalg.lstsq(normal, np.einsum("nki,nk->i", views, shifts), rcond=None)[0]
        t = self.particles.matrices.mean(axis=0) @ t
        particles.shifts_px[rows] -= views @ t
        for result in results:
            first, second = (quarter.moved(self.ops, -t) for quarter in result.quarters)
            result.quarters = (first, second)

    def _regularise(self, results: list[HalfResult], curve: np.ndarray) -> tuple[Regularised, ...]:
        geometry, out = self.particles.geometry, []
        quarters = [list(result.quarters) for result in results]
        if self.join_below > 0:
            self._join_low_resolution(quarters, curve)
        for number, half in enumerate(self.state.halves):
            previous = self.ops.xp.asarray(half.reference)
            evidence = Evidence(
                (quarters[number][0], quarters[number][1]), previous, curve, self.support, geometry.box,
                geometry.pixel_size,
            )  # fmt: skip
            regularised = self.regulariser.regularise(self.ops, evidence)
            half.reference = self.ops.to_host(regularised.reference).astype(np.float32)
            out.append(regularised)
        return tuple(out)

    def _join_low_resolution(self, quarters: list[list[Accumulator]], curve: np.ndarray) -> None:
        """Average the halves, quarter by quarter, below max(join_below, current resolution): they stay in one frame."""
        geometry, xp = self.particles.geometry, self.ops.xp
        current = resolution(curve, 0.5, geometry.box, geometry.pixel_size).angstrom
        last = geometry.shell_of(max(self.join_below, current))
        for quarter in (0, 1):
            first, second = quarters[0][quarter], quarters[1][quarter]
            low = radial(self.ops, np.arange(first.last_shell + 1) <= last, first.weight.shape) > 0
            data, weight = (first.data + second.data) / 2, (first.weight + second.weight) / 2
            for number, own in enumerate((first, second)):
                quarters[number][quarter] = replace(
                    own, data=xp.where(low, data, own.data), weight=xp.where(low, weight, own.weight)
                )

    def _join(self, total: Accumulator, curve: np.ndarray) -> np.ndarray:
        """Wiener-filtered map of all particles: the FSC of the whole is 2 FSC / (1 + FSC)."""
        clipped = np.clip(curve[: total.last_shell + 1], 0.001, 0.999)
        prior = total.mean_weight(self.ops) * (1 - clipped) / (2 * clipped)
        density = total.solve(self.ops, prior)
        return np.asarray(self.ops.to_host(density * self.support))

    def _update(self, results: list[HalfResult], curve: np.ndarray, accumulated: int, is_last: bool) -> None:
        """Noise, scales, widths of the next search, band, and history."""
        state, geometry = self.state, self.particles.geometry
        particles, finest = state.particles, results[0].finest_deg
        for row in np.flatnonzero(particles.is_rejected):
            state.rejected.setdefault(int(row), "no orientation has a finite likelihood")
        state.iteration += 1
        state.history.append(self._summary(curve, finest, is_last))
        state.fsc = curve
        if not is_last:
            state.band = next_band(geometry, curve, accumulated)
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
        if self.common is not None and self.common.explains(found[0]):
            found = [self.common.claim(one, geometry.length) for one in found]
        at = {"resolution_0143": found[0].angstrom, "resolution_05": found[1].angstrom}
        return {
            "iteration": state.iteration,
            "stage": state.stage,
            "is_last": is_last,
            "band": state.band,
            **at,
            "step_deg": finest_deg,
            "turned_deg": float(np.median(state.particles.turned_deg[kept])),
            "moved_A": float(np.median(state.particles.moved_px[kept]) * geometry.pixel_size),
            "spread_deg": float(np.median(state.particles.spread_deg[kept])),
            "best_probability": float(state.particles.best_probability[kept].mean()),
            "significant": float(np.median(state.particles.significant[kept])),
            "rejected": len(state.rejected),
        }
