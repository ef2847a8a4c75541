# SPDX-License-Identifier: GPL-3.0-or-later
"""Sampling that belongs to a resolution, the stages of a refinement, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import PADDING, PIXEL_SIZE, blobs, write_particles

from sparsecv.engine.physics.sampling import GlobalGrid, LocalGrid
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine.expectation import GridBank
from sparsecv.engine.refine.half import HalfResult, Particles, Search, expectation_maximisation
from sparsecv.engine.refine.schedule import (
    BAND_MARGIN,
    FEWEST_ORIENTATIONS,
    Draws,
    Geometry,
    is_converged,
    next_band,
    next_stage,
    search_plan,
    update_search,
)
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState
from sparsecv.engine.refine.volumes import map_to_volume
from sparsecv.kernels import cpu

GEOMETRY = Geometry(100, 2.0, 120.0)
IDENTITY = np.eye(3)[None]


def half_of(box: int = 100, **values: float) -> HalfState:
    given = {"shift_sigma_px": 3.0, "reach_px": 4.0, "local_sigma_deg": 5.0} | values
    return HalfState(np.zeros((box,) * 3, np.float32), np.ones((1, (box - 1) // 2 + 1)), np.ones(1), **given)


# ------------------------------------------------------------------------------------------------------- geometry
def test_sizes() -> None:
    assert GEOMETRY.length == 200.0
    assert GEOMETRY.nyquist_shell == 49
    assert Geometry(99, 2.0, 120.0).nyquist_shell == 49
    assert [GEOMETRY.shell_of(d) for d in (1000.0, 150.0, 40.0, 39.0, 10.0, 4.0, 1.0)] == [0, 1, 5, 5, 20, 49, 49]


def test_an_angular_step_serves_the_resolution_of_the_rim() -> None:
    # 7.5 degrees move the rim of 60 A by 7.85 A; divided by 1.2 that is 6.54 A, shell 30.6 of 200 A
    assert GEOMETRY.shell_of_step(7.5) == round(200 / (np.deg2rad(7.5) * 60 / 1.2)) == 31
    assert GEOMETRY.step_of_shell(20) == pytest.approx(np.rad2deg(1.2 * 10 / 60))
    for shell in (5, 11, 30, 49):
        assert GEOMETRY.shell_of_step(GEOMETRY.step_of_shell(shell)) == shell
    assert GEOMETRY.shell_of_step(0.1) == 49 and GEOMETRY.shell_of_step(180.0) == 3


def test_a_shift_step_is_a_quarter_of_a_wavelength() -> None:
    assert GEOMETRY.shift_step_of_shell(10) == 100 / 10 / 4


def test_backprojection_goes_beyond_the_band() -> None:
    for band in range(4, 50):
        accumulated = GEOMETRY.accumulated_shell(band)
        assert min(band + 4, 49) <= accumulated <= 49
    assert GEOMETRY.accumulated_shell(20) == 28


# ---------------------------------------------------------------------------------------------------------- plans
@pytest.mark.parametrize("name", ["C1", "D7", "I2"])
@pytest.mark.parametrize("band", [6, 20, 40])
def test_global_plans_go_from_coarse_to_the_band(name: str, band: int) -> None:
    group = symmetry_matrices(name)
    plan = search_plan(GEOMETRY, band, half_of(), group, Draws.of(1, 1, 10), "global")
    assert isinstance(plan.grid, GlobalGrid)
    assert len(plan.grid.cells()) > 0.8 * FEWEST_ORIENTATIONS
    steps = [plan.grid.step(level.depth) for level in plan.levels]
    assert len(steps) >= 2
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] <= 1.5 * 0.5 * GEOMETRY.step_of_shell(band)
    assert all(level.shell <= max(GEOMETRY.shell_of_step(step), 3)
               for level, step in zip(plan.levels[:-1], steps[:-1], strict=True))
    check_levels(plan.levels, band)
    assert plan.confidence == 1.0


@pytest.mark.parametrize("stage", ["local", "fine"])
@pytest.mark.parametrize("band", [6, 20, 40])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 5.0, 20.0])
def test_local_plans_stay_around_the_poses(stage: str, band: int, sigma: float) -> None:
    plan = search_plan(GEOMETRY, band, half_of(local_sigma_deg=sigma), IDENTITY, Draws.of(1, 1, 10), stage,
                       confidence=0.6)
    assert isinstance(plan.grid, LocalGrid)
    assert plan.grid.sigma == sigma
    finest = min(0.5 * GEOMETRY.step_of_shell(band), 2 * sigma) / (2 if stage == "fine" else 1)
    assert len(plan.grid.cells()) > 0
    assert plan.grid.step(plan.levels[-1].depth) == pytest.approx(finest)
    assert plan.grid.spacing >= min(0.7 * sigma, 0.5 * GEOMETRY.step_of_shell(band))
    check_levels(plan.levels, band)
    assert plan.confidence == 0.6


def check_levels(levels: Any, band: int) -> None:
    depths, shells = [level.depth for level in levels], [level.shell for level in levels]
    assert depths[0] == 0 and set(np.diff(depths).tolist()) <= {0, 1}
    assert shells == sorted(shells) and shells[-1] == band
    for coarse, fine in pairwise(levels):
        assert fine.shift_step in (coarse.shift_step, coarse.shift_step / 2)
        assert fine.margin <= coarse.margin


# ----------------------------------------------------------------------------------------------------------- band
def curve(*values: float) -> np.ndarray:
    out = np.zeros(50)
    out[: len(values)] = values
    return out


def test_band_ends_beyond_the_first_fall_of_the_correlation() -> None:
    falling = np.where(np.arange(50) < 20, 0.9, 0.05)
    assert next_band(GEOMETRY, falling, 30) == 20 + BAND_MARGIN
    dip = falling.copy()
    dip[12] = 0.1  # what comes back after a fall does not count
    assert next_band(GEOMETRY, dip, 30) == 12 + BAND_MARGIN
    assert next_band(GEOMETRY, np.ones(50), 30) == 31 + BAND_MARGIN  # as far as anything was backprojected
    assert next_band(GEOMETRY, np.ones(50), 49) == 49
    assert next_band(GEOMETRY, curve(1.0), 30) == 4


def test_regularisers_may_say_what_their_references_support() -> None:
    falling = np.where(np.arange(50) < 20, 0.9, 0.05)
    assert next_band(GEOMETRY, falling, 30, 25) == 25
    assert next_band(GEOMETRY, falling, 30, None) == 22
    assert next_band(GEOMETRY, falling, 30, 45) == 30  # nothing was backprojected beyond


# ---------------------------------------------------------------------------------------------------------- stages
def state_of(
    stage: str, band: int, history: list[tuple[str, int]], turned: float = 1.0, jumps: Sequence[float] = ()
) -> RefinementState:
    """A state after iterations with the stages and bands given."""
    particles = ParticleState.start(np.tile(np.eye(3), (10, 1, 1)), np.zeros((10, 2)))
    particles.turned_deg[:] = turned
    plain = {"turned_deg": turned, "step_deg": 5.0, "jumped": 0.0}
    entries = [plain | {"stage": one, "band": width} for one, width in history]
    for entry, jumped in zip(entries, jumps, strict=False):
        entry["jumped"] = jumped
    return RefinementState(particles, (half_of(8), half_of(8)), np.zeros(4), band, stage, len(history), entries)


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (state_of("global", 9, [("global", 6)], turned=0.1), "global"),  # the first has nothing to compare with
        (state_of("global", 9, [("global", 6), ("global", 9)], turned=5.0), "global"),
        (state_of("global", 9, [("global", 6), ("global", 9)], turned=1.0), "local"),
        (state_of("global", 9, [("global", 6), ("global", 9)], turned=1.0, jumps=(0.6, 0.2)), "global"),
        (state_of("global", 9, [("global", 6), ("global", 9)], turned=1.0, jumps=(0.2, 0.05)), "local"),
        (state_of("global", 9, [("global", 6), ("global", 9)], turned=1.0, jumps=(0.3, 0.29)), "local"),  # junk
        (state_of("local", 15, [("global", 9), ("local", 12)]), "local"),  # it still brings shells
        (state_of("local", 12, [("global", 9), ("local", 12)]), "fine"),
        (state_of("local", 13, [("global", 9), ("local", 12)]), "fine"),  # one shell is no progress
        (state_of("local", 10, [("local", 14), ("local", 12)]), "fine"),  # nor are shells regained
        (state_of("fine", 20, [("local", 12), ("fine", 12)]), "fine"),
    ],
)
def test_stages(state: RefinementState, after: str) -> None:
    assert next_stage(state, 3.75) == after


def test_rejected_particles_have_no_say() -> None:
    state = state_of("global", 9, [("global", 6), ("global", 9)], turned=1.0)
    state.particles.turned_deg[:6] = 90.0
    assert next_stage(state, 3.75) == "global"
    state.particles.is_rejected[:6] = True
    assert next_stage(state, 3.75) == "local"


def test_convergence() -> None:
    assert is_converged(state_of("fine", 12, [("local", 12), ("fine", 12)]))
    assert not is_converged(state_of("fine", 12, [("local", 12)]))  # no fine iteration has run yet
    assert not is_converged(state_of("fine", 15, [("local", 12), ("fine", 12)]))
    assert not is_converged(state_of("local", 12, [("local", 12)]))


def test_the_fine_stage_waits_for_the_poses_to_rest() -> None:
    state = state_of("fine", 12, [("local", 12), ("fine", 12)], turned=2.0)
    assert not is_converged(state)  # they still move by almost half of a step of 5 degrees
    state.history.append(state.history[-1] | {"turned_deg": 1.5})
    assert not is_converged(state)  # and come to rest
    state.history.append(state.history[-1] | {"turned_deg": 1.3})
    assert is_converged(state)  # or not: waiting does not help


def test_searches_narrow_with_the_poses() -> None:
    rng = np.random.default_rng(1)
    particles = state_of("global", 9, [("global", 9)]).particles
    particles.turned_deg[:] = 2.0
    particles.spread_deg[:] = 1.0
    particles.moved_px[:] = 0.3
    particles.shifts_px[:] = rng.normal(0, 2, (10, 2))
    members = np.arange(10)
    half = half_of(reach_px=6.0)
    update_search(half, particles, members, GEOMETRY, 20, finest_deg=3.75, before="global", after="global")
    assert half.shift_sigma_px == pytest.approx(np.sqrt((particles.shifts_px**2).mean()))
    assert 1.0 <= half.reach_px < 6.0
    update_search(half, particles, members, GEOMETRY, 20, finest_deg=3.75, before="global", after="local")
    wide = half.local_sigma_deg
    assert 1.0 <= wide <= 1.5 * 3.75
    particles.turned_deg[:] = 30.0
    update_search(half, particles, members, GEOMETRY, 20, finest_deg=3.75, before="local", after="local")
    assert half.local_sigma_deg == wide  # a local search never grows
    particles.turned_deg[:] = 0.0
    particles.moved_px[:] = 50.0
    reach = half.reach_px
    update_search(half, particles, members, GEOMETRY, 40, finest_deg=3.75, before="local", after="local")
    assert half.local_sigma_deg < wide and half.reach_px == reach


# ----------------------------------------------------------------------------------------------------- randomness
def test_draws_are_functions_of_seed_and_iteration() -> None:
    one, same = Draws.of(1, 3, 100), Draws.of(1, 3, 100)
    for name in ("turn", "shift_offset", "lattice_offset", "uniform"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        for other in (Draws.of(2, 3, 100), Draws.of(1, 4, 100)):
            assert not np.array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.turn @ one.turn.T, np.eye(3), atol=1e-12)
    assert np.abs(one.shift_offset).max() <= 0.5 and np.abs(one.lattice_offset).max() <= 0.5
    assert 0 <= one.uniform.min() and one.uniform.max() < 1


@pytest.mark.parametrize("stage", ["global", "local"])
def test_batches_of_another_size_change_nothing_but_rounding(tmp_path: Path, stage: str) -> None:
    box, count = 24, 50
    table = write_particles(tmp_path, count, box, density=blobs(box), noise=30.0)
    geometry = Geometry(box, PIXEL_SIZE, 80.0)
    draws = Draws.of(1, 1, count)
    half = replace(half_of(box), reference=blobs(box), noise=np.full((1, 12), 450.0))
    plan = search_plan(geometry, 6, half, IDENTITY, draws, stage)
    volume = map_to_volume(cpu, half.reference, 10)

    def one_pass(megabytes: float) -> tuple[ParticleState, HalfResult, list[int]]:
        particles = Particles.of(cpu, table, geometry, IDENTITY, megabytes)
        bank = GridBank(cpu, volume, plan, particles.disc, PADDING) if stage == "global" else None
        state = ParticleState.start(table.rotations, np.zeros((count, 2)))
        done: list[int] = []
        result = expectation_maximisation(cpu, particles, state, half, np.arange(count), np.arange(count) % 2,
                                          Search(plan, volume, bank, draws, 10, 8), done.append)
        return state, result, done

    (small, one, several), (large, two, few) = one_pass(1e-3), one_pass(1e3)
    assert several == [16, 25, 41, 50] and few == [25, 50]
    np.testing.assert_allclose(small.rotations, large.rotations, atol=1e-4)
    np.testing.assert_allclose(small.shifts_px, large.shifts_px, atol=1e-3)
    np.testing.assert_allclose(small.log_likelihood, large.log_likelihood, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(one.residuals.residual, two.residuals.residual, rtol=1e-4)
    for first, second in zip(one.quarters, two.quarters, strict=True):
        np.testing.assert_allclose(first.data, second.data, atol=1e-3 * np.abs(second.data).max())
