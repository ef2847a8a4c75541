# SPDX-License-Identifier: GPL-3.0-or-later
"""Scoring with rounded factors: the laws of its error, and that pruning with it loses nothing that matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from cuda_host import fake_cupy, host
from cuda_host.fake_cupy import rounded
from scipy.optimize import brentq
from tiny import PADDING, batch_of, blobs, exact_slices, noise_of, random_rotations, write_particles

from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.refine import half as half_module
from sparsecv.engine.refine.expectation import GridBank, find_posterior
from sparsecv.engine.refine.half import Particles, Search, expectation_maximisation
from sparsecv.engine.refine.precision import FULL, LARGEST_ERROR, WIDENING, SignalPower, choose_precision
from sparsecv.engine.refine.schedule import Draws, Geometry, search_plan
from sparsecv.engine.refine.state import HalfState, ParticleState
from sparsecv.engine.refine.volumes import map_to_volume
from sparsecv.kernels import cpu, cuda, cuda_launch, reference

BITS = {"bf16": 8, "tf32": 11}  # significant ones


def whitened(pixels: int, power: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """References (count, 2 pixels) that have something in common, and images of them with noise of variance 1."""
    rng = np.random.default_rng(seed)
    envelope = np.repeat(np.exp(-np.arange(pixels) / pixels * 2), 2)
    p = (rng.standard_normal(2 * pixels) + rng.standard_normal((count, 2 * pixels))) * envelope
    p *= np.sqrt(power) / np.linalg.norm(p, axis=1, keepdims=True)
    return p, p + rng.standard_normal(p.shape)


def power_of(p: np.ndarray) -> SignalPower:
    """Of whitened references (count, 2 J)."""
    pixels = p[:, ::2] ** 2 + p[:, 1::2] ** 2
    return SignalPower(pixels.sum(axis=1).max(), (pixels**2).sum(axis=1).max())


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize(("pixels", "power"), [
    (300, 30), (300, 1e4), (1150, 150), (6000, 1000), (12000, 1e4), (12000, 1e6),
])  # fmt: skip
def test_errors_are_within_their_law(precision: str, pixels: int, power: float) -> None:
    """Products of rounded factors, as tensor cores make them, against float64; the law is no wild guess either.

    Above one for each pixel, (300, 1e4) and (12000, 1e6), nearly all of the error is the signal's own.
    """
    p, x = whitened(pixels, power, 40, seed=1)
    exact, bits = x @ p.T, BITS[precision]
    found = rounded(x.astype(np.float32), bits).astype(float) @ rounded(p.astype(np.float32), bits).T.astype(float)
    law, error = power_of(p).error(precision), found - exact
    assert 0.4 * law < error.std() < law
    assert np.diag(error).std() < 1.25 * law  # of images and their own references: 40 numbers
    assert np.abs(error).max() < 4 * law


@pytest.mark.parametrize(("pixels", "power"), [(300, 1e4), (1150, 150), (12000, 1e4)])
def test_norm_terms_in_tf32_add_little(pixels: int, power: float) -> None:
    """sum c |P|^2 / 2 in TF32 errs by less than a third of what the cross terms do in bfloat16."""
    p, _ = whitened(pixels, power, 40, seed=2)
    squares = p[:, ::2] ** 2 + p[:, 1::2] ** 2
    c = np.random.default_rng(3).uniform(0.2, 1, (20, pixels))
    exact = c @ squares.T
    found = rounded(c.astype(np.float32), 11).astype(float) @ rounded(squares.astype(np.float32), 11).T.astype(float)
    assert (found - exact).std() / 2 < power_of(p).error("bf16") / 3


WEAK, STRONG = SignalPower(1e3, 1e3), SignalPower(5e4, 1e6)


def noise_at_which(power: SignalPower, precision: str, error: float) -> float:
    """Noise power at which scores err by so much, where the sums are those at a noise power of 1."""
    return float(brentq(lambda s: SignalPower(power.second / s, power.fourth / s**2).error(precision) - error, 1e-9,
                        1e12, xtol=1e-12, rtol=1e-12))  # fmt: skip


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for ops in (cpu, reference):
        assert choose_precision(ops, "auto", WEAK) is FULL
    with fake_cupy.installed():
        assert choose_precision(cuda, "fp32", WEAK) is FULL
        weak, strong = (choose_precision(cuda, "auto", power) for power in (WEAK, STRONG))
        assert (weak.cross, weak.norm, weak.widening) == ("bf16", "tf32", WIDENING)
        assert (strong.cross, strong.norm, strong.widening) == ("tf32", "tf32", WIDENING)
        assert "bfloat16" in weak.reason and "TF32" in strong.reason
        for power in (SignalPower(1e4, 1e7), SignalPower(2e6, 0.0), SignalPower(1e3, np.nan), SignalPower(np.nan, 1.0)):
            exact = choose_precision(cuda, "auto", power)
            assert (exact.cross, exact.norm, exact.widening) == ("fp32", "fp32", 0)
            assert "float32" in exact.reason
        monkeypatch.setattr(fake_cupy.Device, "compute_capability", "75")  # no bfloat16
        assert choose_precision(cuda, "auto", WEAK) is FULL


def test_power_is_the_most_that_an_image_can_see() -> None:
    """Of all references, in the quietest optics group at each shell, at the largest scale of a group."""
    box = 16
    density, disc = blobs(box), make_disc(box, 6)
    scale, rng = np.array([0.8, 1.5]), np.random.default_rng(5)
    noise = rng.uniform(0.5, 2, (2, box // 2 + 1))
    half = HalfState(density, noise, scale, 2.0, 2.0, 5.0)
    plan = search_plan(Geometry(box, 6.0, 80.0), 6, half, np.eye(3)[None], Draws.of(1, 1, 5), "global")
    bank = GridBank(cpu, map_to_volume(cpu, density, disc.last), plan, disc, PADDING)
    slices = bank.pairs.view(np.complex64).astype(complex)
    power = (np.abs(slices) * scale.max()) ** 2 / noise.min(axis=0)[bank.disc.shell]
    wanted = power.sum(axis=1).max(), (power**2).sum(axis=1).max()
    assert bank.signal_power(cpu, noise, scale) == pytest.approx(wanted, rel=1e-4)


def test_scales_of_particles_are_part_of_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CTF may be above 1: rlnCtfScalefactor, to which cryoSPARC's alpha becomes; its sign is that of the contrast."""
    box, count = 16, 4
    table, seen = write_particles(tmp_path, count, box, density=blobs(box), noise=30.0), list[SignalPower]()
    geometry, draws = Geometry(box, table.pixel_size, 40.0), Draws.of(1, 1, count)
    particles = Particles.of(cpu, table, geometry, np.eye(3)[None], 100.0)
    half = HalfState(blobs(box), np.ones((1, particles.disc.last + 1)), np.array([0.5]), 2.0, 2.0, 5.0)
    plan = search_plan(geometry, 4, half, np.eye(3)[None], draws, "global")
    volume = map_to_volume(cpu, half.reference, particles.disc.last)
    search = Search(plan, volume, GridBank(cpu, volume, plan, particles.disc, PADDING), draws, particles.disc.last, 8)

    def chosen(ops: Any, asked: str, power: SignalPower) -> NoReturn:
        seen.append(power)
        raise InterruptedError

    monkeypatch.setattr(half_module, "choose_precision", chosen)
    for scale in (np.ones(count), np.array([1, 1, -2, 1.5])):
        particles.parameters = replace(particles.parameters, scale=scale)
        with pytest.raises(InterruptedError):
            expectation_maximisation(cpu, particles, ParticleState.start(table.rotations, np.zeros((count, 2))), half,
                                     np.arange(count), np.zeros(count), search, lambda done: None)  # fmt: skip
    assert seen[1] == pytest.approx((4 * seen[0].second, 16 * seen[0].fourth))


@pytest.mark.parametrize(("precision", "part"), [("bf16", 0.2), ("bf16", 0.5), ("bf16", 0.98), ("tf32", 0.98)])
def test_pruning_keeps_all_that_matters(precision: str, part: float) -> None:
    """At several parts of the largest error allowed: what has a posterior in float32 has the same with less.

    The margin alone decides here. The most cells that an image keeps are a cut among cells of equal rank, which falls
    elsewhere for any change of the scores.
    """
    if host.compiler() is None:
        pytest.skip("g++ is not installed")
    box, count, pixel_size = 32, 12, 4.0
    density, disc = blobs(box), make_disc(box, 10)
    truth = random_rotations(count, seed=7)
    images = exact_slices(density, truth, disc)
    geometry = Geometry(box, pixel_size, 0.8 * box * pixel_size)
    volume = map_to_volume(cpu, density, disc.last)
    half = HalfState(density, np.ones((1, 16)), np.ones(1), 2.0, 2.0, 5.0)
    plan = search_plan(geometry, 10, half, np.eye(3)[None], Draws.of(1, 1, count), "global")
    plan = replace(plan, levels=tuple(replace(level, keep=10**6) for level in plan.levels))
    power = GridBank(cpu, volume, plan, disc, PADDING).signal_power(cpu, half.noise, half.scale)
    sigma2 = noise_at_which(power, precision, part * LARGEST_ERROR)
    batch = batch_of(images + noise_of(images.shape, sigma2), sigma2)
    cuda_launch.compiled.cache_clear()
    with fake_cupy.installed():
        on_device = (cuda.xp.asarray(a) for a in (batch.masked, batch.unmasked, batch.ctf, batch.inverse_noise))
        batch = type(batch)(batch.index, batch.centre_px, *on_device)
        reference_volume = cuda.xp.asarray(volume)
        bank = GridBank(cuda, reference_volume, plan, disc, PADDING)
        rough = choose_precision(cuda, "auto", bank.signal_power(cuda, sigma2 * half.noise, half.scale))
        assert rough.cross == precision
        exact, found = (
            find_posterior(cuda, reference_volume, batch, plan, disc, PADDING, truth, np.zeros((count, 2)), bank, one)
            for one in (FULL, rough)
        )
        lists = []
        for one in (exact, found):
            owner, rotations, weights = (cuda.to_host(a) for a in (one.owner, one.rotations, one.weights))
            named = zip(owner.tolist(), rotations.round(9), weights, strict=True)
            lists.append({(image, rotation.tobytes()): weight for image, rotation, weight in named})
        gained = cuda.to_host(found.log_evidence - exact.log_evidence)
    cuda_launch.compiled.cache_clear()
    assert gained.min() > -0.01  # nats
    assert len(lists[0]) > (2 * count if part < 0.4 else count - 1)
    for name, weight in lists[0].items():
        if weight.sum() > 0.004:  # the margin of the last level
            # the likelihood of the sample; beside it more may have been kept than in float32
            assert lists[1][name].sum() == pytest.approx(weight.sum() * np.exp(-gained[name[0]]), abs=0.01)
