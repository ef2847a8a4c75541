# SPDX-License-Identifier: GPL-3.0-or-later
"""Masks against closed forms, and the automatic solvent mask on particles of known extent."""

from __future__ import annotations

import numpy as np
import pytest
from halfmaps import filtered, particle

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics import masks


def ball(box: int, radius: float, centre=(0.0, 0.0, 0.0)) -> np.ndarray:
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) <= radius


@pytest.mark.parametrize("box", [31, 32])
def test_image_circle_profile(box):
    circle = masks.image_circle(box, 8, 4)
    row, centre = circle[box // 2], box // 2
    assert circle.dtype == np.float32 and circle.shape == (box, box)
    np.testing.assert_array_equal(row[centre : centre + 9], 1)
    expected = 0.5 + 0.5 * np.cos(np.pi * np.array([1, 2, 3, 4]) / 4)
    np.testing.assert_allclose(row[centre + 9 : centre + 13], expected, atol=1e-6)
    assert not row[centre + 12 :].any()
    np.testing.assert_array_equal(circle, circle.T)
    np.testing.assert_array_equal(masks.sphere(box, 8, 4)[box // 2], circle)


def test_hard_circle_and_bad_radius():
    assert set(np.unique(masks.image_circle(16, 5, 0))) == {0.0, 1.0}
    for radius, edge in ((0, 5), (-1, 5), (5, -1), (np.nan, 5)):
        with pytest.raises(InputError, match="radius"):
            masks.image_circle(16, radius, edge)


def test_corners_become_their_mean():
    density = np.random.default_rng(3).normal(2.0, 1.0, (24, 24, 24)).astype(np.float32)
    faded = masks.fade_corners(density)
    inside, outside = ball(24, 12), ~ball(24, 15)
    np.testing.assert_array_equal(faded[inside], density[inside])
    assert np.ptp(faded[outside]) == 0
    assert faded[outside][0] == pytest.approx(2.0, abs=0.05)
    flat = np.full((9, 9, 9), 3.5, dtype=np.float32)
    np.testing.assert_allclose(masks.fade_corners(flat), flat, rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.4])
def test_otsu_parts_two_normal_classes(fraction):
    rng = np.random.default_rng(1)
    count = 100_000
    inside = int(count * fraction)
    values = np.concatenate([rng.normal(0, 1, count - inside), rng.normal(10, 1, inside)])
    assert 3 < masks.otsu(values) < 8
    with pytest.raises(InputError, match="flat"):
        masks.otsu(np.ones(10))


@pytest.mark.parametrize(("radius", "snr"), [(8, 20.0), (8, 1.0), (18, 1.0), (26, 1.0), (18, 0.3), (12, np.inf)])
def test_solvent_mask_finds_a_ball(radius, snr):
    """A blurred ball in noise: the mask is the ball, grown by the extension, over a range of noise power."""
    box, pixel_size = 80, 3.0
    body = ball(box, radius).astype(np.float32)
    noise = np.random.default_rng(2).normal(size=body.shape).astype(np.float32) / np.sqrt(snr)
    mask = masks.solvent_mask(body + noise, pixel_size, extend=6.0, edge=15.0)
    assert mask.dtype == np.float32 and mask.min() == 0 and mask.max() == 1
    effective = (3 * (mask >= 0.999).sum() / (4 * np.pi)) ** (1 / 3)
    assert radius + 1 < effective < radius + 4.5
    np.testing.assert_array_equal(mask[body > 0], 1)


def test_solvent_mask_keeps_domains_and_drops_specks():
    box, pixel_size = 80, 3.0
    body, domain = ball(box, 14), ball(box, 8, (0, 0, 25))
    speck = ball(box, 3, (0, 25, 0))
    volume = (body | domain | speck).astype(np.float32)
    mask = masks.solvent_mask(volume, pixel_size)
    assert mask[body].min() == 1 and mask[domain].min() == 1
    assert mask[speck].max() == 0


def test_solvent_mask_fills_cavities():
    shell = ball(64, 20) & ~ball(64, 9)
    assert masks.solvent_mask(shell.astype(np.float32), 3.0)[32, 32, 32] == 1


def test_solvent_mask_holds_the_particle_and_little_else():
    """At least 99 % of the density of a particle of atoms, in less than a third of the box, even when noisy."""
    box, pixel_size = 64, 2.5
    signal = particle(box, pixel_size, bfactor=100)
    for level in (0.0, 0.5, 2.0):
        noise = np.random.default_rng(3).normal(size=signal.shape) * level * signal[signal > 0.02].mean()
        mask = masks.solvent_mask(signal + filtered(noise, lambda k: 1.0), pixel_size)
        assert (signal * mask).sum() > 0.99 * signal.sum()
        assert mask.mean() < 0.33


def test_solvent_mask_refuses_what_has_no_particle():
    with pytest.raises(InputError, match="flat"):
        masks.solvent_mask(np.zeros((32, 32, 32), dtype=np.float32), 2.0)
    with pytest.raises(InputError, match="no density above"):
        masks.solvent_mask(ball(32, 6).astype(np.float32), 2.0, threshold=9.0)
    broken = ball(32, 6).astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        masks.solvent_mask(broken, 2.0)


def test_check_mask():
    good = masks.sphere(32, 8, 5)
    assert masks.check_mask(good, (32, 32, 32), 2.0, mask_pixel_size=2.001) == []
    bad_masks = {"outside": (good * 1.1, good - 0.1, good * np.nan), "empty": (good * 0,)}
    for match, bad in ((match, bad) for match, group in bad_masks.items() for bad in group):
        with pytest.raises(InputError, match=match):
            masks.check_mask(bad, (32, 32, 32), 2.0, file="mask.mrc")
    with pytest.raises(InputError, match="box size"):
        masks.check_mask(good, (34, 34, 34), 2.0)
    with pytest.raises(InputError, match="pixel size"):
        masks.check_mask(good, (32, 32, 32), 2.0, mask_pixel_size=1.0)
    assert "whole box" in masks.check_mask(np.ones_like(good), (32, 32, 32), 2.0)[0]
    assert "hard edge" in masks.check_mask((good > 0.5).astype(np.float32), (32, 32, 32), 2.0)[0]
    assert "face" in masks.check_mask(np.roll(good, 12, axis=0), (32, 32, 32), 2.0)[0]
