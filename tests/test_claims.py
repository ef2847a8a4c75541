# SPDX-License-Identifier: GPL-3.0-or-later
"""What half maps may claim: noise aligned to one reference, simulated, stays within what the rule calls explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
from scipy.special import j1

from sparsecv.engine.physics.masks import image_circle
from sparsecv.engine.validate.claims import LEAK, Common
from sparsecv.engine.validate.fsc import Resolution, resolution
from sparsecv.engine.validate.postprocess import postprocess

BOX, PIXEL_SIZE = 64, 3.0


def found(angstrom: float, crossed: bool = True) -> Resolution:
    return Resolution(angstrom, crossed, 0.143, BOX * PIXEL_SIZE / angstrom)


def shared(angstrom: float) -> Resolution:
    return replace(found(angstrom), is_shared=True)


def test_what_is_shared_is_no_crossing():
    assert str(shared(40.0)) == "40.00 A (shared by the halves; none beyond is claimed)"


def test_what_noise_can_reach_is_not_claimed():
    common = Common(40.0, 160.0)
    assert common.reach == pytest.approx(1 / (1 / 40 + 5.75 / 160))
    assert common.claim(found(26.7), 192.0) == shared(40.0)
    assert common.claim(found(16.3), 192.0) == found(16.3)
    noise = Common(40.0, 172.8)  # refinements of noise whose curves fell below 0.143 at these resolutions
    for reached in (17.9, 18.1, 19.8):
        assert noise.claim(found(reached), 192.0) == shared(40.0)
    assert common.claim(found(55.0), 192.0) == found(55.0)
    # A curve that never falls says no more where noise can reach Nyquist, and is believed where it cannot.
    assert common.claim(found(25.0, crossed=False), 192.0) == shared(40.0)
    at_nyquist = found(6.0, crossed=False)
    assert common.claim(at_nyquist, 192.0) == at_nyquist


def ring_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, two = scipy.fft.rfft2(first), scipy.fft.rfft2(second)
    ky = scipy.fft.fftfreq(BOX) * BOX
    shell = np.rint(np.hypot(ky[:, None], np.arange(BOX // 2 + 1))).astype(int).ravel()
    sums = [np.bincount(shell, v.ravel())[: BOX // 2] for v in ((one * two.conj()).real, abs(one) ** 2, abs(two) ** 2)]
    return sums[0] / np.sqrt(sums[1] * sums[2])


def test_aligned_noise_leaks_no_further():
    """Averages of noise images, shifted to correlate best inside a circle with a low-passed reference (2D)."""
    rng = np.random.default_rng(7)
    diameter = 0.9 * BOX * PIXEL_SIZE
    circle = image_circle(BOX, diameter / 2 / PIXEL_SIZE)
    last = 5  # common shell: 38.4 A
    ky = scipy.fft.fftfreq(BOX) * BOX
    radius = np.hypot(ky[:, None], np.arange(BOX // 2 + 1))
    reference = scipy.fft.rfft2(rng.standard_normal((BOX, BOX))) * (radius <= last)
    averages = np.zeros((2, BOX, BOX))
    for half in range(2):
        for image in rng.standard_normal((1500, BOX, BOX), dtype=np.float32):
            turned = (image, image[::-1], image[:, ::-1], image[::-1, ::-1], image.T, image.T[::-1], -image, -image.T)
            scores = [(scipy.fft.rfft2(one * circle) * reference.conj()).real.sum() for one in turned]
            averages[half] += turned[int(np.argmax(scores))]
    curve = ring_correlation(*averages)
    assert curve[1 : last + 1].min() > 0.5  # noise, and yet it correlates
    common = Common(BOX * PIXEL_SIZE / last, diameter)
    crossing = resolution(curve, 0.143, BOX, PIXEL_SIZE)
    assert crossing.angstrom < common.resolution
    assert common.claim(crossing, BOX * PIXEL_SIZE).angstrom == common.resolution


def test_leak_of_the_circle_is_small_beyond_the_limit():
    x = np.pi * np.linspace(LEAK, 50, 2000)
    assert np.abs(2 * j1(x) / x).max() < 0.05


def test_postprocess_says_what_it_does_not_claim():
    """Halves that agree to 29 A after a common start of 40 A: the resolution is 40 A and a warning says why."""
    rng = np.random.default_rng(1)
    k = scipy.fft.fftfreq(48) * 48
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(25) ** 2)
    shared = scipy.fft.irfftn(scipy.fft.rfftn(rng.standard_normal((48, 48, 48))) * (radius <= 5), s=(48, 48, 48))
    halves = [(shared + 0.05 * rng.standard_normal((48, 48, 48))).astype(np.float32) for _ in range(2)]
    mask = np.ones((48, 48, 48), dtype=np.float32)
    free = postprocess(*halves, PIXEL_SIZE, mask=mask, bfactor=0.0)
    held = postprocess(*halves, PIXEL_SIZE, mask=mask, bfactor=0.0, common=Common(40.0, 100.0))
    assert free.resolution_0143.angstrom < 30
    assert held.resolution_0143.angstrom == 40.0
    assert held.final_resolution >= 40.0
    assert any("no resolution beyond 40 A" in text for text in held.warnings)
