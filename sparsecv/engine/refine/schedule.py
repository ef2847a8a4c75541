# SPDX-License-Identifier: GPL-3.0-or-later
"""What the next iteration compares, how finely it searches, and when to stop.

A rotation by half a step moves the rim of a particle of diameter D by step D / 4; it can be told apart only at a
resolution finer than that. RELION ties the two by d = step (pi/180) (D/2) / 1.2, which is used here in both directions:
each level of a search compares shells up to the resolution of its step, and the finest level has half the step that
belongs to the band in use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsecv.engine.physics.geometry import random_rotation
from sparsecv.engine.physics.sampling import GlobalGrid, LocalGrid, angular_step, shift_lattice
from sparsecv.engine.refine.expectation import Level, SearchPlan
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState

GLOBAL_ORDER = 2  # 15 degrees: small enough to compare exhaustively, by matrix product
FEWEST_ORIENTATIONS = 1500  # of the exhaustive level: point groups of high order start one level finer
COARSE_MARGIN = 8.0  # nats: cells this far below the best at their own level are given up
FINE_MARGIN = 5.5  # nats: samples this far below the best (0.4 %) get no weight
CELLS_KEPT = 24
MOST_SLICES = {"global": 32, "local": 8, "fine": 8}  # backprojected for one image
SHIFTS_KEPT = 3
COARSE_PART = 0.5  # of the band: compared at the first level of a local search
BAND_FSC = 0.143
BAND_MARGIN = 2  # shells above the last with that FSC
LEAST_BAND = 4  # shells without which no orientation could be told from another
GROWTH, LEAST_GROWTH = 0.4, 4  # shells that are backprojected beyond the band, so that the FSC can show more
JUMP_STEPS, FEW_JUMP = 4.0, 0.1  # a turn by more steps than that is a jump; part of the particles that may still jump
SETTLED = 0.25  # of the finest step: the median change of a pose that is at rest
SLOWED = 0.8  # of what the iteration before showed: no point in waiting for less
NOTABLE_SHELLS = 1  # an iteration that widens the band by no more has converged
RMS_PER_MEDIAN_2D, RMS_PER_MEDIAN_3D = 1 / 1.177, 1 / 1.538  # per axis, of the length of a Gaussian vector


@dataclass(frozen=True)
class Geometry:
    """Sizes that sampling depends on: box (pixels), pixel size (A), particle diameter (A)."""

    box: int
    pixel_size: float
    diameter: float

    @property
    def nyquist_shell(self) -> int:
        """Last whole shell of the box."""
        return (self.box - 1) // 2

    @property
    def length(self) -> float:
        """Side of the box, A: shell s has resolution length / s."""
        return self.box * self.pixel_size

    def shell_of(self, resolution: float) -> int:
        """Last shell within a resolution in A; 0 where even the first is finer."""
        return int(min(np.floor(self.length / resolution + 1e-6), self.nyquist_shell))

    def shell_of_step(self, step_deg: float) -> int:
        """Highest shell that an angular step can serve."""
        resolution = np.deg2rad(step_deg) * (self.diameter / 2) / 1.2
        return int(np.clip(round(self.length / resolution), 3, self.nyquist_shell))

    def step_of_shell(self, shell: int) -> float:
        """Angular step in degrees that serves a shell."""
        return float(np.rad2deg(1.2 * self.length / max(shell, 1) / (self.diameter / 2)))

    def shift_step_of_shell(self, shell: int) -> float:
        """Spacing of shifts in pixels that serves a shell: a quarter of its wavelength."""
        return self.box / (4.0 * max(shell, 1))

    def accumulated_shell(self, band: int) -> int:
        """Highest shell to backproject when shells up to ``band`` are compared."""
        return min(self.nyquist_shell, band + max(LEAST_GROWTH, int(GROWTH * band)))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one iteration, functions of (seed, iteration) alone.

    ``turn`` of the global grid, offsets of the shift and rotation lattices as fractions of their steps, and one uniform
    number for each particle, by its row in the table.
    """

    turn: np.ndarray
    shift_offset: np.ndarray
    lattice_offset: np.ndarray
    uniform: np.ndarray

    @classmethod
    def of(cls, seed: int, iteration: int, particles: int) -> Draws:
        """Numbers for an iteration."""
        rng = np.random.default_rng([seed, iteration])
        return cls(random_rotation(rng), rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.5, 0.5, 3), rng.random(particles))


def search_plan(
    geometry: Geometry, band: int, half: HalfState, matrices: np.ndarray, draws: Draws, stage: str,
    confidence: float = 1.0,
) -> SearchPlan:
    """Levels of the next search of one half; ``confidence`` is the regulariser's, and holds in local stages."""
    finest = 0.5 * geometry.step_of_shell(band)
    if stage == "global":
        order = GLOBAL_ORDER
        while 12 * 4**order * 6 * 2**order / len(matrices) < FEWEST_ORIENTATIONS:
            order += 1
        steps = [angular_step(order), angular_step(order + 1)]
        while steps[-1] > 1.5 * finest:
            steps.append(steps[-1] / 2)
        grid: GlobalGrid | LocalGrid = GlobalGrid(order, draws.turn, matrices)
    else:
        # No coarser than the prior is wide, or no cell might lie within it.
        steps = [min(finest, 2 * half.local_sigma_deg)]
        while steps[0] < 0.7 * half.local_sigma_deg:
            steps.insert(0, 2 * steps[0])
        grid = LocalGrid(steps[0], half.local_sigma_deg, draws.lattice_offset)
    levels = _levels(geometry, steps, band, stage)
    shifts = shift_lattice(half.reach_px, levels[0].shift_step, draws.shift_offset)
    return SearchPlan(grid, levels, shifts, half.shift_sigma_px, 1.0 if stage == "global" else confidence)


def _levels(geometry: Geometry, steps: list[float], band: int, stage: str) -> tuple[Level, ...]:
    """Depth, shell and shift step of every level; the last compares the whole band."""
    depths = list(range(len(steps)))
    shells = [min(band, geometry.shell_of_step(step)) for step in steps]
    if stage != "global":
        # Half of the shells decide which of the neighbouring cells deserve the whole band, a quarter of the pixels.
        depths += [depths[-1] + 1] if stage == "fine" else []
        coarse = max(3, round(COARSE_PART * band))
        shells = [min(shell, coarse) for shell in (*shells, band)[: len(depths)]]
        depths, shells = [*depths, depths[-1]], [*shells, band]
    shells[-1] = band
    levels: list[Level] = []
    for depth, shell in zip(depths, shells, strict=True):
        shift_step = geometry.shift_step_of_shell(shell)
        if levels:
            before = levels[-1].shift_step
            is_split = shift_step < before / 1.5 or stage == "fine"
            shift_step = before / 2 if is_split else before
        levels.append(Level(depth, shell, shift_step, COARSE_MARGIN, CELLS_KEPT, SHIFTS_KEPT))
    levels[-1] = replace(levels[-1], margin=FINE_MARGIN)
    return tuple(levels)


def next_band(geometry: Geometry, fsc: np.ndarray, accumulated: int, supported: int | None = None) -> int:
    """Highest shell to compare next: a little beyond the first fall of the FSC below 0.143.

    The Wiener filter damps the shells of low FSC in the reference, so that they cannot do harm; shells may also be lost
    again, because the first FSC of a refinement is inflated by the common start.

    Parameters
    ----------
    supported
        Highest shell that the regularised references support; it is taken in place of the FSC's.
    """
    if supported is not None:
        return int(np.clip(supported, LEAST_BAND, min(accumulated, geometry.nyquist_shell)))
    return int(np.clip(band_of(fsc[: accumulated + 1]), LEAST_BAND, geometry.nyquist_shell))


def band_of(fsc: np.ndarray) -> int:
    """Two shells beyond the first of a curve (from shell 0) that is below 0.143, or beyond its end."""
    low = np.flatnonzero(fsc[1:] < BAND_FSC)
    last = int(low[0]) if len(low) else len(fsc) - 1
    return last + 1 + BAND_MARGIN


def part_that_jumped(particles: ParticleState, finest_deg: float) -> float:
    """Part of the particles that the last iteration turned by more than four of its finest steps."""
    return float((particles.turned_deg[~particles.is_rejected] > JUMP_STEPS * finest_deg).mean())


def update_search(
    half: HalfState, particles: ParticleState, members: np.ndarray, geometry: Geometry, band: int, *,
    finest_deg: float, before: str, after: str,
) -> None:  # fmt: skip
    """Widths of the next search of a half, from how its own poses moved between the stages before and after."""
    turned, moved = np.median(particles.turned_deg[members]), np.median(particles.moved_px[members])
    spread = np.median(particles.spread_deg[members])
    moved_sigma = moved * RMS_PER_MEDIAN_2D
    if after == "global":
        rms = np.sqrt((particles.shifts_px[members] ** 2).sum(axis=1).mean() / 2)
        half.shift_sigma_px = float(max(rms, 1.5 / geometry.pixel_size))
    else:
        width = max(1.5 * turned * RMS_PER_MEDIAN_3D, 1.2 * spread / np.sqrt(3), 0.5 * geometry.step_of_shell(band))
        widest = 1.5 * finest_deg if before == "global" else half.local_sigma_deg
        half.local_sigma_deg = float(np.clip(width, 1.0, max(widest, 1.0)))
        half.shift_sigma_px = float(max(2 * moved_sigma, 2.0 / geometry.pixel_size))
    half.reach_px = float(np.clip(3 * moved_sigma + 0.5, 1.0, max(half.reach_px, 1.0)))


def next_stage(state: RefinementState, finest_deg: float) -> str:
    """Stage after the iteration that ``state.history`` ends with.

    Global searches end when the median pose moves by less than their finest step, and few particles, or no fewer than
    in the iteration before (there may be no particle in an image), still jump from one mode to another: a local search
    would leave those where they are. Local ones become fine when they have stopped to widen the band. The fine stage
    lasts to the end.
    """
    if state.stage == "global":
        jumps = [entry["jumped"] for entry in state.history]
        is_placed = len(jumps) > 1 and (jumps[-1] < FEW_JUMP or jumps[-1] > SLOWED * jumps[-2])
        kept = ~state.particles.is_rejected
        is_settled = is_placed and np.median(state.particles.turned_deg[kept]) < finest_deg
        return "local" if is_settled else "global"
    return "fine" if state.stage == "fine" or not _widened(state) else "local"


def is_converged(state: RefinementState) -> bool:
    """Whether a fine iteration has brought no wider band and its poses are at rest: one joined iteration is left then.

    Poses are at rest when they move by little of the finest step, or no less than in the fine iteration before.
    """
    fine = [entry for entry in state.history if entry["stage"] == "fine"]
    if state.stage != "fine" or not fine or _widened(state):
        return False
    turned = [entry["turned_deg"] for entry in fine]
    is_still = turned[-1] < SETTLED * fine[-1]["step_deg"]
    return bool(is_still or (len(turned) > 1 and turned[-1] > SLOWED * turned[-2]))


def _widened(state: RefinementState) -> bool:
    """Whether the last iteration lets the next compare clearly more shells than any before."""
    widest = max(entry["band"] for entry in state.history)
    return state.band > widest + NOTABLE_SHELLS
