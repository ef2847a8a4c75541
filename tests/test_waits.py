# SPDX-License-Identifier: GPL-3.0-or-later
"""The inner loop stays on the device: how often the host would have to wait for it, and what is brought to the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cuda_host.fake_cupy import Waits
from tiny import PADDING, PIXEL_SIZE, batch_of, blobs, exact_slices, noise_of, random_rotations, write_particles

from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.refine.expectation import GridBank, SearchPlan, find_posterior
from sparsecv.engine.refine.half import Particles, Search, expectation_maximisation
from sparsecv.engine.refine.schedule import Draws, Geometry, search_plan
from sparsecv.engine.refine.state import HalfState, ParticleState
from sparsecv.engine.refine.volumes import map_to_volume
from sparsecv.kernels import cpu, cuda

BOX, COUNT, BAND = 24, 6, 6
GEOMETRY = Geometry(BOX, PIXEL_SIZE, 80.0)
HALF = HalfState(blobs(BOX), np.full((1, 12), 45.0), np.ones(1), 3.0, 4.0, 5.0)
DRAWS = Draws.of(1, 1, COUNT)


def plan_of(stage: str) -> SearchPlan:
    return search_plan(GEOMETRY, BAND, HALF, np.eye(3)[None], DRAWS, stage)


@pytest.mark.parametrize("stage", ["global", "local", "fine"])
def test_a_search_waits_once_for_each_level(stage: str, imitation: None) -> None:
    disc, truth, plan = make_disc(BOX), random_rotations(COUNT), plan_of(stage)
    images = exact_slices(HALF.reference, truth, disc) + noise_of((COUNT, len(disc)), 45.0)
    volume = map_to_volume(cpu, HALF.reference, BAND)
    found = []
    for ops in (cpu, cuda):
        batch = batch_of(images, 45.0)
        on_device = (ops.xp.asarray(a) for a in (batch.masked, batch.unmasked, batch.ctf, batch.inverse_noise))
        batch = type(batch)(batch.index, batch.centre_px, *on_device)
        reference = ops.xp.asarray(volume)
        bank = GridBank(ops, reference, plan, disc, PADDING) if stage == "global" else None
        search = (ops, reference, batch, plan, disc, PADDING, truth, np.zeros((COUNT, 2)), bank)
        find_posterior(*search)  # the radii of discs are looked at once
        Waits.reset()
        found.append(find_posterior(*search))
        assert Waits.count == (len(plan.levels) if ops is cuda else 0)
        assert Waits.nbytes == 0
    on_cpu, on_gpu = found
    assert cuda.to_host(on_gpu.owner).tolist() == on_cpu.owner.tolist()
    np.testing.assert_allclose(cuda.to_host(on_gpu.weights), on_cpu.weights, atol=2e-4)
    np.testing.assert_allclose(cuda.to_host(on_gpu.rotations), on_cpu.rotations, atol=1e-12)
    np.testing.assert_allclose(cuda.to_host(on_gpu.log_evidence), on_cpu.log_evidence, atol=1e-3)


@pytest.mark.parametrize(("stage", "hand"), [("global", 0), ("local", 0), ("local", 1)])
def test_a_batch_brings_back_its_poses_and_sums_only(stage: str, hand: int, imitation: None, tmp_path: Path) -> None:
    """One wait for each level, and one transfer at the end of each batch."""
    table = write_particles(tmp_path, COUNT, BOX, density=HALF.reference, noise=30.0)
    particles = Particles.of(cuda, table, GEOMETRY, np.eye(3)[None], 100.0)
    plan = plan_of(stage)
    volume = map_to_volume(cuda, cuda.xp.asarray(HALF.reference), 10)
    bank = GridBank(cuda, volume, plan, particles.disc, PADDING) if stage == "global" else None
    slices = particles.ewald_slices(cuda, 10, hand) if hand else None
    search = Search(plan, volume, bank, DRAWS, 10, 8, slices)

    def one_pass() -> None:
        state = ParticleState.start(table.rotations, np.zeros((COUNT, 2)))
        half = replace(HALF, noise=np.full((1, 12), 450.0))
        quarters = np.arange(COUNT) % 2
        expectation_maximisation(cuda, particles, state, half, np.arange(COUNT), quarters, search, lambda done: None)

    one_pass()
    Waits.reset()
    one_pass()
    of_the_pass = 1 if bank else 0  # the signal power, which decides on the precision
    assert Waits.count == 2 * (len(plan.levels) + 1) + of_the_pass  # a batch for each quarter
    of_an_image = 4 + 9 + 2 + 1 + 3 * (particles.disc.last + 1)  # evidence, power, pose, three sums over shells
    assert Waits.nbytes == 8 * of_an_image * COUNT + 8 * of_the_pass


def test_waiting_would_be_seen(imitation: None) -> None:
    x = cuda.xp.arange(4.0)
    for misuse in (lambda: float(x[0]), lambda: bool((x > 9).any()), lambda: x[x > 1], lambda: cuda.xp.nonzero(x),
                   lambda: x.get(), lambda: x[1].item(), lambda: x.tolist()):  # fmt: skip
        Waits.reset()
        misuse()
        assert Waits.count == 1
