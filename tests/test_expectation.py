# SPDX-License-Identifier: GPL-3.0-or-later
"""Posteriors against the enumeration of every orientation and shift, and what is made of a posterior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from tiny import PADDING, batch_of, blobs, exact_slices, noise_of, random_rotations

from sparsecv.engine.physics.disc import Disc, make_disc
from sparsecv.engine.physics.geometry import angular_distance, rotvec_to_matrix
from sparsecv.engine.physics.sampling import GlobalGrid, LocalGrid, shift_lattice
from sparsecv.engine.physics.symmetry import symmetric_distance, symmetry_matrices
from sparsecv.engine.refine.expectation import GridBank, Level, Posterior, SearchPlan, find_posterior
from sparsecv.engine.refine.images import ImageBatch, image_power, noise_norms
from sparsecv.engine.refine.maximisation import accumulate, draw, estimate_poses, sample_statistics, thinned
from sparsecv.engine.refine.schedule import Draws, Geometry, search_plan
from sparsecv.engine.refine.state import HalfState
from sparsecv.engine.refine.volumes import Accumulator, map_to_volume
from sparsecv.kernels import cpu, reference

BOX, SIGMA2, SHIFT_SIGMA = 16, 4.0, 1.5
DISC = make_disc(BOX, 5)
DENSITY = blobs(BOX)
VOLUME = map_to_volume(cpu, DENSITY, DISC.last)
NO_SYMMETRY = np.eye(3)[None]
EVERYTHING = 10**6  # margin in nats, and number of cells kept: nothing is pruned
TURN = random_rotations(1, seed=9)[0]


def exhaustive(grid: GlobalGrid | LocalGrid, confidence: float = 1.0) -> SearchPlan:
    """A search of two levels that compares everything."""
    everything = (EVERYTHING, EVERYTHING, EVERYTHING)
    levels = (Level(0, 4, 2.0, *everything), Level(1, 5, 1.0, *everything))
    return SearchPlan(grid, levels, shift_lattice(2.0, 2.0, np.zeros(2)), SHIFT_SIGMA, confidence)


def noisy_images(count: int, disc: Disc = DISC, sigma2: float = SIGMA2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, J) of the map with noise, and the rotations they show."""
    rotations = random_rotations(count, seed)
    return exact_slices(DENSITY, rotations, disc) + noise_of((count, len(disc)), sigma2, seed), rotations


def log_posterior(batch: ImageBatch, image: int, posterior: Posterior, confidence: float, log_prior: np.ndarray,
                  centre: np.ndarray) -> np.ndarray:
    """The docstring's formula, term by term, in float64: (C, T) of one image."""
    x = batch.masked[image].astype(np.complex128)
    contrast, inverse = batch.ctf[image].astype(float), batch.inverse_noise[image].astype(float)
    own = posterior.owner == image
    slices = reference.extract_slices(VOLUME, posterior.rotations[own], DISC.kx, DISC.ky, PADDING)
    out = np.empty((len(slices), posterior.shifts.shape[1]))
    for t, (dx, dy) in enumerate(posterior.shifts[image]):
        moved = x * np.exp(-2j * np.pi * (DISC.kx * dx + DISC.ky * dy) / BOX)
        residual = (np.abs(moved - contrast * slices) ** 2 - np.abs(moved) ** 2) * inverse / 2
        away = ((posterior.shifts[image, t] - centre) ** 2).sum() / (2 * SHIFT_SIGMA**2)
        out[:, t] = -confidence * residual.sum(axis=1) + log_prior - away
    return out


@pytest.mark.parametrize("confidence", [1.0, 0.6])
def test_global_posterior_is_that_of_the_enumeration(confidence: float) -> None:
    images, _ = noisy_images(3)
    contrast = np.random.default_rng(3).uniform(-1, 1, images.shape)
    batch = batch_of(images * contrast, SIGMA2, contrast)
    grid = GlobalGrid(0, TURN, np.eye(3)[None])
    plan = replace(exhaustive(grid), confidence=confidence)
    bank = GridBank(cpu, VOLUME, plan, DISC, PADDING)
    start = np.array([[0.3, -0.2], [0.0, 0.0], [0.5, 0.5]])
    found = find_posterior(cpu, VOLUME, batch, plan, DISC, PADDING, np.empty((3, 3, 3)), start, bank)
    for image in range(3):
        own = found.owner == image
        log_p = log_posterior(batch, image, found, confidence, np.zeros(np.count_nonzero(own)), np.zeros(2))
        total = logsumexp(log_p)
        np.testing.assert_allclose(found.weights[own], np.exp(log_p - total), atol=2e-4)
        assert found.log_evidence[image] == pytest.approx(total, abs=2e-3)
        assert found.best_probability[image] == pytest.approx(np.exp(log_p.max() - total), rel=2e-3)
    # all of the grid was compared, at four children of each shift, but for what float32 cannot hold
    fine = GlobalGrid(1, TURN, np.eye(3)[None])
    assert found.shifts.shape == (3, 4 * len(plan.shifts), 2)
    everywhere = fine.rotations(fine.cells(), 0).reshape(-1, 9)
    distances = np.abs(found.rotations.reshape(-1, 1, 9) - everywhere).max(axis=2)
    assert distances.min(axis=1).max() < 1e-12
    assert found.significant.tolist() == [np.count_nonzero(found.weights[found.owner == i]) for i in range(3)]


def test_local_posterior_is_that_of_the_enumeration() -> None:
    images, truth = noisy_images(2)
    batch = batch_of(images, SIGMA2)
    grid = LocalGrid(10.0, 8.0, np.array([0.1, -0.3, 0.2]))
    plan = exhaustive(grid)
    start = np.array([[0.4, 0.1], [-1.0, 0.6]])
    found = find_posterior(cpu, VOLUME, batch, plan, DISC, PADDING, truth, start, None)
    for image in range(2):
        own = found.owner == image
        away = angular_distance(found.rotations[own], np.tile(truth[image], (np.count_nonzero(own), 1, 1)))
        log_p = log_posterior(batch, image, found, 1.0, -(away**2) / (2 * 8.0**2), start[image])
        np.testing.assert_allclose(found.weights[own], np.exp(log_p - logsumexp(log_p)), atol=2e-4)
        assert found.log_evidence[image] == pytest.approx(logsumexp(log_p), abs=2e-3)


def test_the_likelihood_is_that_of_the_whole_image() -> None:
    """Evidence, power and norm make the density of the image's pixels, summed over poses: RELION's log-likelihood."""
    images, truth = noisy_images(2)
    batch = batch_of(images, SIGMA2)
    grid = LocalGrid(10.0, 8.0, np.zeros(3))
    found = find_posterior(cpu, VOLUME, batch, exhaustive(grid), DISC, PADDING, truth, np.zeros((2, 2)), None)
    noise = np.full((1, DISC.last + 1), SIGMA2)
    norm = noise_norms(noise, DISC, np.array([DISC.last]))[0]
    power = np.asarray(image_power(cpu, batch))
    for image in range(2):
        own = np.flatnonzero(found.owner == image)
        slices = reference.extract_slices(VOLUME, found.rotations[own], DISC.kx, DISC.ky, PADDING)
        away = angular_distance(found.rotations[own], np.tile(truth[image], (len(own), 1, 1)))
        terms = []
        for dx, dy in found.shifts[image]:
            moved = images[image] * np.exp(-2j * np.pi * (DISC.kx * dx + DISC.ky * dy) / BOX)
            # of transforms divided by box^2, a complex Gaussian at each pixel
            residual = np.abs(moved - slices) ** 2 / BOX**2
            variance = SIGMA2 / BOX**2
            density = (-residual / (2 * variance) - np.log(2 * np.pi * variance)).sum(axis=1)
            terms.append(density - away**2 / (2 * 8.0**2) - (dx**2 + dy**2) / (2 * SHIFT_SIGMA**2))
        assert found.log_evidence[image] - power[image] - norm == pytest.approx(logsumexp(terms), abs=1e-2)
    # a group whose images end before is less
    assert noise_norms(noise, DISC, np.array([2]))[0] == pytest.approx(norm * DISC.size(2) / len(DISC))


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_without_numbers_does_not_touch_the_others(kind: str, value: float) -> None:
    images, truth = noisy_images(4)
    grid = GlobalGrid(0, TURN, np.eye(3)[None]) if kind == "global" else LocalGrid(10.0, 8.0, np.zeros(3))
    plan = exhaustive(grid)
    bank = GridBank(cpu, VOLUME, plan, DISC, PADDING) if kind == "global" else None
    uniform = np.full(4, 0.5)

    def everything(images: np.ndarray) -> tuple[Posterior, Accumulator, np.ndarray]:
        batch = batch_of(images, SIGMA2)
        found = find_posterior(cpu, VOLUME, batch, plan, DISC, PADDING, truth[: len(images)],
                               np.zeros((len(images), 2)), bank)
        total = Accumulator.empty(cpu, BOX, DISC.last)
        with total.adding(cpu) as add:
            accumulate(cpu, batch, thinned(cpu, found, uniform[: len(images)], 8), DISC, add)
        residual = sample_statistics(cpu, VOLUME, batch, found, uniform[: len(images)], DISC, DISC.last).residual
        return found, total, residual

    broken = images.copy()
    broken[3] = value
    with np.errstate(invalid="ignore", over="ignore"):
        found, total, residual = everything(broken)
        alone, alone_total, alone_residual = everything(images[:3])
    assert np.isnan(found.log_evidence).tolist() == [False, False, False, True]
    own = found.owner < 3
    np.testing.assert_allclose(found.weights[own], alone.weights, atol=1e-6)
    assert not found.weights[~own].any() and np.count_nonzero(~own) == 1
    np.testing.assert_allclose(total.data, alone_total.data, atol=1e-4 * np.abs(alone_total.data).max())
    np.testing.assert_allclose(residual[:3], alone_residual, rtol=1e-4)
    assert np.isfinite(estimate_poses(cpu, found, 20.0, NO_SYMMETRY).rotations[:3]).all()


# ---------------------------------------------------------------------------------------- what becomes of posteriors
def posterior(
    weights: list[np.ndarray], rotations: np.ndarray | None = None, shifts: np.ndarray | None = None
) -> Posterior:
    """A posterior of images with the weights (C_i, T) given."""
    sizes = [len(w) for w in weights]
    count, total = len(weights), sum(sizes)
    rotations = random_rotations(total) if rotations is None else rotations
    shifts = np.zeros((count, weights[0].shape[1], 2)) if shifts is None else shifts
    owner = np.repeat(np.arange(count, dtype=np.int32), sizes)
    stacked = np.concatenate([w / w.sum() for w in weights]).astype(np.float32)
    return Posterior(owner, rotations, shifts, stacked, np.zeros(count), np.ones(count), np.ones(count))


def random_weights(*sizes: int, shifts: int = 3, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((size, shifts)) ** 4 + 1e-6 for size in sizes]


def test_thinning_keeps_few_and_every_sum() -> None:
    full = posterior(random_weights(40, 3, 17, 1))
    most, times = 5, 400
    mean = np.zeros_like(full.weights, dtype=np.float64)
    for number in range(times):
        thin = thinned(cpu, full, np.full(4, (number + 0.5) / times), most)
        assert np.bincount(thin.owner, thin.weights.any(axis=1)).max() <= most
        np.testing.assert_allclose(np.bincount(thin.owner, thin.weights.sum(axis=1)), 1, atol=1e-5)
        mean += thin.weights / times
    np.testing.assert_allclose(mean, full.weights, atol=1 / times)
    small = np.isin(full.owner, (1, 3))
    np.testing.assert_allclose(mean[small], full.weights[small], rtol=1e-5)


def test_thinning_what_is_thin_changes_nothing() -> None:
    full = posterior(random_weights(4, 3))
    np.testing.assert_array_equal(thinned(cpu, full, np.full(2, 0.3), 4).weights, full.weights)


def test_draws_have_the_frequencies_of_the_posterior() -> None:
    full = posterior(random_weights(6, 1, 9))
    times = 4000
    hits = np.zeros(full.weights.shape)
    for number in range(times):
        candidate, shift = draw(cpu, full, np.full(3, (number + 0.5) / times))
        assert full.owner[candidate].tolist() == [0, 1, 2]
        np.add.at(hits, (candidate, shift), 1 / times)
    np.testing.assert_allclose(hits, full.weights, atol=1.5 / times)


def test_a_draw_at_the_ends_stays_with_its_image() -> None:
    full = posterior(random_weights(6, 2, 9))
    for edge in (0.0, np.nextafter(1.0, 0.0)):
        candidate, _ = draw(cpu, full, np.full(3, edge))
        assert full.owner[candidate].tolist() == [0, 1, 2]


def test_what_has_no_weight_is_never_drawn() -> None:
    weights = [np.array([[0.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])]
    for uniform in (0.0, 0.5, 0.999):
        candidate, shift = draw(cpu, posterior(weights), np.full(2, uniform))
        assert candidate.tolist() == [1, 4] and shift.tolist() == [1, 0]


def test_mean_poses_are_finer_than_the_grid() -> None:
    """A Gaussian posterior on a lattice gives its centre, far between the lattice's points."""
    step, sigma, shift_sigma = 4.0, 4.0, 0.8
    truth = random_rotations(3, seed=5)
    offsets = np.random.default_rng(2).uniform(-step / 2, step / 2, (3, 3))
    centres = np.random.default_rng(3).uniform(-0.4, 0.4, (3, 2))
    lattice = LocalGrid(step, 6.0, np.zeros(3)).cells()
    shifts = shift_lattice(4.0, 0.8, np.zeros(2))
    weights, rotations = [], []
    for image in range(3):
        angular = np.exp(-((lattice - offsets[image]) ** 2).sum(axis=1) / (2 * sigma**2))
        spatial = np.exp(-((shifts - centres[image]) ** 2).sum(axis=1) / (2 * shift_sigma**2))
        weights.append(angular[:, None] * spatial)
        rotations.append(rotvec_to_matrix(np.deg2rad(lattice)) @ truth[image])
    full = posterior(weights, np.concatenate(rotations), np.tile(shifts, (3, 1, 1)))
    found = estimate_poses(cpu, full, 25.0, NO_SYMMETRY)
    wanted = rotvec_to_matrix(np.deg2rad(offsets)) @ truth
    assert angular_distance(found.rotations, wanted).max() < 0.1 * step
    assert np.abs(found.shifts - centres).max() < 0.05 * 0.8
    np.testing.assert_allclose(found.spread, np.sqrt(3) * sigma, rtol=0.1)


def test_other_modes_do_not_pull_the_pose() -> None:
    one = random_rotations(1, seed=5)[0]
    other = rotvec_to_matrix(np.array([[0, np.deg2rad(120), 0]]))[0] @ one
    weights = [np.array([[0.6], [0.4]])]
    found = estimate_poses(cpu, posterior(weights, np.stack([one, other])), 10.0, NO_SYMMETRY)
    assert angular_distance(found.rotations, one[None])[0] < 1e-5
    assert found.spread[0] < 1e-5


@pytest.mark.parametrize("name", ["C2", "C4", "D7", "I2"])
def test_a_mode_crosses_the_border_of_an_asymmetric_unit(name: str) -> None:
    """What a global search finds of a mode beyond the border are equivalents, far away; the pose must not heed that."""
    matrices, rng = symmetry_matrices(name), np.random.default_rng(6)
    lattice = LocalGrid(4.0, 4.0, np.array([0.2, -0.1, 0.3])).cells()
    weights = [np.exp(-(lattice**2).sum(axis=1) / (2 * 4.0**2))[:, None] * np.array([[0.7, 0.3]]) for _ in "123"]
    shifts = rng.normal(size=(3, 2, 2))
    whole = np.concatenate([rotvec_to_matrix(np.deg2rad(lattice)) @ centre for centre in random_rotations(3, seed=5)])
    beyond = np.tile(lattice[:, 0] > 0, 3)
    split = np.where(beyond[:, None, None], whole @ matrices[rng.integers(1, len(matrices), len(whole))], whole)
    radius = 0.4 * 360 / max(int(name[1:]), 5)  # modes of equivalents are apart
    wanted = estimate_poses(cpu, posterior(weights, whole, shifts), radius, NO_SYMMETRY)
    found = estimate_poses(cpu, posterior(weights, split, shifts), radius, matrices)
    assert symmetric_distance(found.rotations, wanted.rotations, matrices).max() < 1e-4
    np.testing.assert_allclose(found.shifts, wanted.shifts, atol=1e-6)
    np.testing.assert_allclose(found.spread, wanted.spread, rtol=1e-6)


def test_pruning_keeps_the_true_pose() -> None:
    """The search as it is run, on images without noise: what is given up at coarse levels is never the truth."""
    box, pixel_size = 32, 4.0
    density, disc = blobs(box), make_disc(box, 10)
    geometry = Geometry(box, pixel_size, 0.8 * box * pixel_size)
    truth = random_rotations(30, seed=7)
    images = exact_slices(density, truth, disc)
    # a likelihood as sharp as at a signal-to-noise ratio of 0.3 in the pixels of real images
    sigma2 = float((np.abs(images) ** 2).mean()) / 2 / 0.3
    half = HalfState(density, np.full((1, 16), sigma2), np.ones(1), 2.0, 3.0, 5.0)
    plan = search_plan(geometry, 10, half, np.eye(3)[None], Draws.of(1, 1, 30), "global")
    volume = map_to_volume(cpu, density, disc.last)
    bank = GridBank(cpu, volume, plan, disc, PADDING)
    found = find_posterior(cpu, volume, batch_of(images, sigma2), plan, disc, PADDING, truth, np.zeros((30, 2)), bank)
    step = plan.grid.step(plan.levels[-1].depth)
    nearest = angular_distance(found.rotations, truth[found.owner])
    assert max(nearest[found.owner == image].min() for image in range(30)) < step
    poses = estimate_poses(cpu, found, 2.5 * step + 3, NO_SYMMETRY)
    assert angular_distance(poses.rotations, truth).max() < step
    assert np.linalg.norm(poses.shifts, axis=1).max() < 0.3
    # and it did prune
    assert len(found.owner) < 0.02 * 30 * len(bank.cells) * 8 ** plan.levels[-1].depth
