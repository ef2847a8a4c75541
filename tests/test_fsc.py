# SPDX-License-Identifier: GPL-3.0-or-later
"""Fourier helpers and FSC against closed forms and the full complex transform."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from halfmaps import half_maps, particle

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics import fourier
from sparsecv.engine.physics.masks import solvent_mask
from sparsecv.engine.validate import fsc as validate


def full_shells(box: int) -> np.ndarray:
    k = np.fft.fftfreq(box) * box
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)


@pytest.mark.parametrize("box", [9, 16])
def test_shell_sums_count_the_whole_transform(box):
    volume = np.random.default_rng(1).normal(size=(box, box, box))
    power = np.abs(scipy.fft.fftn(volume)) ** 2
    expected = np.bincount(full_shells(box).ravel(), weights=power.ravel())[: box // 2 + 1]
    half = np.abs(scipy.fft.rfftn(volume)) ** 2
    np.testing.assert_allclose(fourier.shell_sums(half), expected, rtol=1e-10)
    np.testing.assert_array_equal(fourier.shell_counts(box), np.bincount(full_shells(box).ravel())[: box // 2 + 1])


@pytest.mark.parametrize("box", [9, 16])
def test_fsc_is_that_of_the_full_transform(box):
    rng = np.random.default_rng(2)
    map1, map2, mask = rng.normal(size=(3, box, box, box)).astype(np.float32)
    first, second = scipy.fft.fftn(map1 * mask), scipy.fft.fftn(map2 * mask)
    shells = full_shells(box).ravel()

    def total(values):
        return np.bincount(shells, weights=values.ravel())[: box // 2 + 1]

    cross = total((first * second.conj()).real)
    expected = cross / np.sqrt(total(np.abs(first) ** 2) * total(np.abs(second) ** 2))
    np.testing.assert_allclose(validate.fsc(map1, map2, mask)[1:], expected[1:], atol=2e-6)


def test_fsc_of_signal_and_noise_is_snr_over_one_plus_snr():
    """White signal and noise of known power: FSC = S / (S + N), within its own standard error."""
    rng, box, snr = np.random.default_rng(3), 48, 0.5
    signal = rng.normal(size=(box, box, box)) * np.sqrt(snr)
    curve = validate.fsc(signal + rng.normal(size=signal.shape), signal + rng.normal(size=signal.shape))
    expected = snr / (1 + snr)
    error = (1 - expected**2) / np.sqrt(fourier.shell_counts(box) / 2)
    assert np.abs((curve - expected) / error)[3:].max() < 4
    assert abs((curve - expected)[3:].mean()) < 0.01


def test_fsc_limits():
    volume = particle(24, 2.0)
    np.testing.assert_allclose(validate.fsc(volume, 3 * volume), 1.0, atol=1e-5)
    np.testing.assert_allclose(validate.fsc(volume, -volume)[1:], -1.0, atol=1e-5)
    empty = validate.fsc(volume, np.zeros_like(volume))
    assert empty[0] == 1 and not empty[1:].any()
    with pytest.raises(InputError, match="differ in box size"):
        validate.fsc(volume, volume[:-1, :-1, :-1])
    with pytest.raises(InputError, match="not a cube"):
        validate.fsc(volume[1:], volume[1:])


def test_resolution_interpolates_in_frequency():
    box, pixel_size = 100, 1.5
    curve = 1 - np.arange(51) / 40.0  # 0.143 at shell 34.28, 0.5 at shell 20
    found = validate.resolution(curve, 0.143, box, pixel_size)
    assert found.crossed and found.angstrom == pytest.approx(box * pixel_size / 34.28)
    assert validate.resolution(curve, 0.5, box, pixel_size).angstrom == pytest.approx(box * pixel_size / 20)
    assert validate.last_shell_above(curve, 0.143) == 34


def test_resolution_takes_the_first_crossing_and_never_passes_nyquist():
    curve = np.ones(33)
    never = validate.resolution(curve, 0.143, 64, 2.0)
    assert not never.crossed and never.angstrom == 4.0 and "no crossing" in str(never)
    curve[10], curve[30:] = 0.0, 0.0
    assert validate.resolution(curve, 0.143, 64, 2.0).shell == pytest.approx(9 + 0.857)
    curve[10] = np.nan
    assert validate.resolution(curve, 0.143, 64, 2.0).shell == pytest.approx(9 + 0.857)
    odd = np.ones(33)
    assert validate.resolution(odd, 0.143, 65, 2.0).angstrom == 4.0
    bad = validate.resolution(np.full(33, -1.0), 0.143, 64, 2.0)
    assert bad.crossed and bad.angstrom == pytest.approx(128 / 0.5)


def test_phase_randomisation_keeps_amplitudes_and_low_shells():
    volume, start = particle(32, 2.0, bfactor=20), 6
    changed = validate.phase_randomise(volume, start, np.random.default_rng(4))
    before, after = scipy.fft.rfftn(volume), scipy.fft.rfftn(changed)
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-4 * np.abs(before).max())
    kept = fourier.shell_indices(32) < start
    np.testing.assert_allclose(after[kept], before[kept], atol=1e-4 * np.abs(before).max())
    correlation = validate.fsc(volume, changed)
    assert np.allclose(correlation[:start], 1, atol=1e-4)
    assert np.abs(correlation[start + 2 :]).max() < 0.25


def test_mask_correction_undoes_a_tight_mask_on_noise():
    """Common signal up to shell 10, then noise: a tight mask raises the FSC, the correction brings it back to zero."""
    box, rng = 48, np.random.default_rng(6)
    k2 = np.arange(-box // 2, box // 2) ** 2
    radius = np.sqrt(k2[:, None, None] + k2[:, None] + k2)
    window = np.where(radius < 9, 1.0, np.exp(-((radius - 9) ** 2) / 8))
    noise = rng.normal(size=(2, box, box, box)).astype(np.float32)
    shells = fourier.shell_indices(box)
    common = scipy.fft.irfftn(np.where(shells <= 10, scipy.fft.rfftn(rng.normal(size=window.shape) * 6), 0))
    curves = validate.mask_corrected_fsc(common + noise[0], common + noise[1], window, np.random.default_rng(7))
    assert curves.randomised_from == 11
    assert curves.unmasked[9] > 0.95
    assert curves.masked[14:18].mean() > 0.03 or curves.masked[12] > 0.3  # leakage through the mask
    assert np.abs(curves.corrected[14:]).mean() < 0.1
    np.testing.assert_array_equal(curves.corrected[:13], curves.masked[:13])


def test_correction_is_the_published_formula():
    masked, randomised = np.linspace(1, 0.2, 9), np.linspace(1, 0.1, 9)
    corrected = validate.correct_for_mask(masked, randomised, 3)
    np.testing.assert_array_equal(corrected[:5], masked[:5])
    np.testing.assert_allclose(corrected[5:], (masked[5:] - randomised[5:]) / (1 - randomised[5:]))


def test_masked_fsc_of_a_particle_lies_above_the_unmasked():
    half1, half2 = half_maps(48, 2.5, noise=0.02)
    mask = solvent_mask((half1 + half2) / 2, 2.5)
    curves = validate.mask_corrected_fsc(half1, half2, mask, np.random.default_rng(8))
    middle = (curves.unmasked > 0.1) & (curves.unmasked < 0.9)
    assert middle.sum() > 3
    assert (curves.masked - curves.unmasked)[middle].mean() > 0.05
    assert (curves.corrected - curves.unmasked)[middle].mean() > 0.03
    again = validate.mask_corrected_fsc(half1, half2, mask, np.random.default_rng(8))
    np.testing.assert_array_equal(curves.corrected, again.corrected)


def test_halves_that_agree_to_nyquist_are_not_corrected():
    volume = particle(24, 2.0)
    curves = validate.mask_corrected_fsc(volume, volume, np.ones_like(volume), np.random.default_rng(9))
    assert curves.randomised_from is None and curves.warnings
    np.testing.assert_array_equal(curves.corrected, curves.masked)


def plane_wave(box: int, cycles_per_angstrom: np.ndarray, pixel_size: float) -> np.ndarray:
    axis = (np.arange(box) - box // 2) * pixel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    k = cycles_per_angstrom
    return np.cos(2 * np.pi * (k[0] * z + k[1] * y + k[2] * x)).astype(np.float32)


def gaussian(box: int, pixel_size: float, centre: tuple[float, float, float], sigma: float) -> np.ndarray:
    axis = (np.arange(box) - box // 2) * pixel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    r2 = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
    return np.exp(-r2 / (2 * sigma**2)).astype(np.float32)


@pytest.mark.parametrize(
    ("box", "pixel_size", "new_box", "new_pixel_size"),
    [
        (48, 2.0, 32, 3.0),
        (48, 2.0, 33, 3.0),
        (33, 3.0, 64, 2.0),
        (48, 2.0, 50, 1.37),
        (40, 2.0, 48, 2.0),
        (49, 2.0, 30, 2.71),
    ],
)
def test_resample_keeps_position_and_density(box, pixel_size, new_box, new_pixel_size):
    """A Gaussian off the centre, sampled on the new grid, is the closed form."""
    place, sigma = (6.0, -9.0, 3.0), 7.0
    found = fourier.resample(gaussian(box, pixel_size, place, sigma), pixel_size, new_box, new_pixel_size)
    expected = gaussian(new_box, new_pixel_size, place, sigma)
    inner = round(box * pixel_size / new_pixel_size) - 4  # what the old box holds, short of its faces
    shown = fourier.crop_or_pad(np.ones((inner,) * 3), new_box)
    assert found.dtype == np.float32 and found.shape == (new_box,) * 3
    assert np.abs((found - expected) * shown).max() < 5e-3


@pytest.mark.parametrize(("old", "new"), [(8, 8), (8, 12), (12, 8), (8, 7), (7, 8), (9, 6), (1, 4)])
def test_crop_or_pad_keeps_the_centre(old, new):
    volume = np.arange(old**3, dtype=np.float32).reshape(old, old, old) + 1
    moved = fourier.crop_or_pad(volume, new, fill=-1.0)
    assert moved[new // 2, new // 2, new // 2] == volume[old // 2, old // 2, old // 2]
    assert (moved == -1).sum() == max(new, old) ** 3 - old**3 if new > old else not (moved == -1).any()


def test_low_pass_is_half_at_its_resolution():
    box, pixel_size = 32, 2.0
    inverse = 1 / (box * pixel_size)
    wave = {s: plane_wave(box, np.array([0, s * inverse, 0]), pixel_size) for s in (6, 8, 10)}
    filtered = fourier.low_pass(wave[6] + wave[8] + wave[10], pixel_size, box * pixel_size / 8, edge_shells=2)
    np.testing.assert_allclose(filtered, wave[6] + 0.5 * wave[8], atol=1e-4)
    with pytest.raises(InputError, match="positive"):
        fourier.low_pass(filtered, pixel_size, 0.0)


def test_forward_has_phases_about_the_centre():
    volume = np.zeros((9, 9, 9), dtype=np.float32)
    volume[4, 4, 4] = 1
    np.testing.assert_allclose(fourier.forward(volume), 1, atol=1e-6)
    noise = np.random.default_rng(10).normal(size=(8, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(fourier.backward(fourier.forward(noise)), noise, atol=1e-6)
