# SPDX-License-Identifier: GPL-3.0-or-later
"""Curves of map against model: crossings, bands, controls, ceilings, over-fitting, each with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from models import atoms_of, centred_grid, clean_transform, half, noisy, protein

from sparsecv.engine.model_map import curves as c
from sparsecv.engine.model_map.density import to_map, to_transform
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.model_map.neighbourhood import around
from sparsecv.engine.physics.fourier import shell_counts
from sparsecv.engine.physics.masks import soft_edge
from sparsecv.engine.validate.fsc import fsc
from sparsecv.engine.validate.fsc_bands import AROUND, POLAR, band, cone_sums, draws_of_cones

BOX, PIXEL = 64, 2.2
GRID = centred_grid(BOX, PIXEL)
DRAWS = draws_of_cones(1)


def model_mask(radius: float = 5.0, edge: float = 11.0) -> np.ndarray:
    return soft_edge(around(atoms_of(protein()).positions, radius, GRID), 0.0, edge / PIXEL)


# --------------------------------------------------------------------------------------------------------- crossings
def step(*parts: tuple[int, float]) -> np.ndarray:
    return np.concatenate([np.full(count, value) for count, value in parts])


def test_a_plain_crossing_is_interpolated() -> None:
    values = step((11, 1.0), (22, 0.0))
    at = c.crossing(values, 0.5, GRID)
    assert at.resolution is not None
    assert at.resolution.angstrom == pytest.approx(GRID.length / 10.5)
    assert at.rises_from is None
    assert at.above_again_to is None
    assert str(at) == f"{GRID.length / 10.5:.2f} A"


def test_a_curve_that_misses_low_frequencies_crosses_where_it_falls() -> None:
    """The first crossing of a plain rule would be at shell 1: solvent is in no model."""
    values = step((1, 1.0), (4, 0.3), (10, 0.9), (18, 0.1))
    at = c.crossing(values, 0.5, GRID)
    assert at.resolution is not None
    assert at.resolution.shell == pytest.approx(14.5)
    assert at.rises_from == pytest.approx(GRID.length / 5)


def test_one_high_shell_is_no_resolution() -> None:
    values = step((1, 1.0), (5, 0.3), (2, 0.9), (25, 0.1))
    at = c.crossing(values, 0.5, GRID)
    assert at.resolution is None
    assert str(at) == "never above 0.5"


def test_a_curve_that_comes_back_is_reported_at_its_first_fall() -> None:
    values = step((11, 0.9), (4, 0.2), (6, 0.7), (12, 0.1))
    at = c.crossing(values, 0.5, GRID)
    assert at.resolution is not None
    assert at.resolution.shell == pytest.approx(10 + (0.9 - 0.5) / (0.9 - 0.2))
    assert at.above_again_to == pytest.approx(GRID.length / 20)


def test_a_curve_above_to_the_end_claims_no_more_than_nyquist() -> None:
    at = c.crossing(np.full(33, 0.8), 0.5, GRID)
    assert at.resolution is not None
    assert not at.resolution.crossed
    assert at.resolution.angstrom == 2 * PIXEL


@pytest.mark.parametrize("resolution", [6.0, 8.0, 12.0])
def test_a_known_resolution_is_found_within_one_shell(resolution) -> None:
    clean = clean_transform("AB", BOX, PIXEL)
    found = c.curve_of(cone_sums(to_transform(noisy(clean, half(resolution), GRID, 2)), clean), GRID, DRAWS)
    assert found.at_05.resolution is not None
    assert abs(found.at_05.resolution.shell - GRID.length / resolution) < 1
    coarsest, finest = found.at_05.interval
    assert coarsest * 1.03 > resolution > finest * 0.97
    assert coarsest / finest < 1.15


# ------------------------------------------------------------------------------------------------------------- bands
def test_sums_over_cones_are_the_fsc() -> None:
    first, second = np.random.default_rng(3).normal(size=(2, 20, 20, 20)).astype(np.float32)
    sums = cone_sums(scipy.fft.rfftn(first), scipy.fft.rfftn(first + second))
    assert np.allclose(sums.curve, fsc(first, first + second), atol=1e-6)
    whole = np.full((1, POLAR * AROUND), 1.0)
    assert np.allclose(sums.resampled(whole)[0], sums.curve)
    odd = np.random.default_rng(3).normal(size=(2, 15, 15, 15)).astype(np.float32)
    assert np.allclose(cone_sums(*(scipy.fft.rfftn(one) for one in odd)).curve, fsc(*odd), atol=1e-6)


def test_cones_have_equal_solid_angles() -> None:
    ones = np.ones((48, 48, 25), dtype=np.complex64)
    inner = cone_sums(ones, ones).cross[8:24].sum(axis=0)
    rings = inner.reshape(POLAR, AROUND).sum(axis=1)
    assert rings.std() / rings.mean() < 0.03
    assert inner.std() / inner.mean() < 0.15  # of a few hundred grid points in each
    assert inner.sum() == shell_counts(48)[8:24].sum()


def test_bands_hold_the_truth_as_often_as_they_say() -> None:
    clean = clean_transform("AB", BOX, PIXEL)
    truth = half(8.0)(np.arange(BOX // 2 + 1) / GRID.length)
    inside = []
    for seed in range(12):
        sums = cone_sums(to_transform(noisy(clean, half(8.0), GRID, seed)), clean)
        low, high = band(sums.resampled(DRAWS))
        inside.append(((low <= truth) & (truth <= high))[6:30])
    assert 0.88 < np.mean(inside) < 0.99


# ------------------------------------------------------------------------------------------------- masks and controls
def test_the_control_shows_what_a_tight_mask_brings() -> None:
    """Noise under a hard mask of atoms correlates with the model under it; the curve with random phases says so."""
    noise = np.random.default_rng(4).normal(size=(BOX,) * 3).astype(np.float32) + 3.0
    model = to_map(clean_transform("AB", BOX, PIXEL))
    mask = around(atoms_of(protein()).positions, 2.5, GRID).astype(np.float32)
    values = fsc(noise * mask, model * mask)
    control, start = c.control(noise, model, mask, values, 1)
    beyond = slice(start + 2, None)
    assert values[beyond].mean() > 0.1
    assert control[beyond].mean() == pytest.approx(values[beyond].mean(), abs=0.05)
    assert abs(c.corrected(values, control, start)[beyond].mean()) < 0.05


def test_sharpening_before_the_mask_saves_what_blur_carries_outside() -> None:
    """Model and map are one density, blurred: inside a mask that cuts the blur they agree only if sharpened before."""
    clean = clean_transform("AB", BOX, PIXEL)
    weights = c.Sharpening(-300.0, None).weights(GRID)
    blurred = to_transform(noisy(clean * weights, half(7.0), GRID, 5))
    mask = model_mask(3.0, 5.0)
    curves = []
    for b_factor in (0.0, 300.0):
        used = c.Sharpening(b_factor, 7.0)
        under = [c.masked(c.sharpened(one, used, GRID), mask) for one in (blurred, clean * weights)]
        curves.append(cone_sums(*under).curve)
    fine = slice(14, 21)  # 10 to 7 A
    assert curves[1][fine].mean() > curves[0][fine].mean() - 0.02
    assert c.Sharpening(0.0, None).weights(GRID) is None
    strong = c.Sharpening(300.0, 7.0).weights(GRID)
    assert strong[0, 0, 30] == pytest.approx(np.exp(300 / 4 / 49), rel=1e-5)
    assert strong[0, 0, 10] == pytest.approx(np.exp(300 / 4 * (10 / GRID.length) ** 2), rel=1e-5)
    assert strong[20, 20, 20] == 0


def test_a_chain_has_the_curve_of_its_mask() -> None:
    model = to_map(clean_transform("AB", BOX, PIXEL))
    density = noisy(clean_transform("AB", BOX, PIXEL), half(8.0), GRID, 6)
    mask = soft_edge(around(atoms_of(protein()).positions[:700], 5.0, GRID), 0.0, 5.0)
    found = c.chain_curve(density, model, mask, GRID, 1)
    whole = fsc(density * mask, model * mask)
    assert found.grid.box < BOX
    frequency = np.arange(len(whole)) / GRID.length
    own = np.interp(frequency, np.arange(len(found.curve.values)) / found.grid.length, found.curve.values)
    assert np.abs(own - whole)[3:-2].mean() < 0.03
    window, cube = c.around_mask(mask, GRID)
    assert (mask[window] > 0).sum() == (mask > 0).sum()
    assert np.allclose(cube.origin, GRID.origin + PIXEL * np.array([part.start for part in window[::-1]]))


# -------------------------------------------------------------------------------------------------------- half maps
def halves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    clean = clean_transform("AB", BOX, PIXEL)
    of_one = lambda s: half(7.0)(s) / np.sqrt(2 - half(7.0)(s) ** 2)  # noqa: E731  so that their mean has half(7)
    first, second = (noisy(clean, of_one, GRID, seed + k) for k in (0, 100))
    return first, second


def test_the_ceiling_is_what_a_perfect_model_reaches() -> None:
    clean = clean_transform("AB", BOX, PIXEL)
    first, second = halves(1)
    reached = cone_sums(to_transform((first + second) / 2), clean).curve
    assert np.abs(c.ceiling(fsc(first, second)) - reached)[1:22].max() < 0.03
    assert c.ceiling(np.array([1.0, 0.0, -0.3])).tolist() == [1, 0, 0]


@pytest.mark.parametrize("is_fitted_to_noise", [False, True])
def test_a_model_that_follows_noise_is_noticed(is_fitted_to_noise) -> None:
    """A model that takes over a part of the noise of one half agrees with it, and beyond the ceiling."""
    first, second = halves(2)
    model = clean_transform("AB", BOX, PIXEL).copy()
    if is_fitted_to_noise:
        model = model + np.complex64(0.5) * (to_transform(first) - model)
    under = [to_transform(one) for one in (first, second)]
    sums = [cone_sums(one, model) for one in under]
    over = c.over_fit(sums[0], sums[1], shell_counts(BOX), 24, GRID, DRAWS)
    assert over.is_significant == is_fitted_to_noise
    whole = cone_sums((under[0] + under[1]) / 2, model)
    beyond = c.beyond_ceiling(whole, cone_sums(*under), DRAWS)
    assert beyond.any() == is_fitted_to_noise
    if is_fitted_to_noise:
        assert over.difference > 0.1
        assert beyond[16:26].all()


def test_small_grids_have_a_crossing_too() -> None:
    tiny = Grid(8, 3.0, np.zeros(3))
    at = c.crossing(np.array([1.0, 0.9, 0.8, 0.9, 0.9]), 0.5, tiny)
    assert at.resolution is not None
    assert not at.resolution.crossed
