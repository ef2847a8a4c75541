# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of Fourier pixels: counts, order and uniqueness against the full plane, values against the plain sum."""

from __future__ import annotations

import numpy as np
import pytest

from sparsecv.engine.physics.disc import make_disc

BOXES = [7, 8, 31, 32]


def plane(box: int) -> tuple[np.ndarray, np.ndarray]:
    """Every frequency (kx, ky) of a box and its rounded radius, DC and corners included."""
    k = np.rint(np.fft.fftfreq(box) * box).astype(int)
    pairs = np.stack(np.meshgrid(k, k, indexing="ij"), axis=-1).reshape(-1, 2)
    return pairs, np.rint(np.hypot(*pairs.T)).astype(int)


@pytest.mark.parametrize("box", BOXES)
def test_shells_hold_half_of_the_plane(box: int) -> None:
    disc = make_disc(box)
    pairs, shell = plane(box)
    limit = (box - 1) // 2
    counts = [np.count_nonzero((shell == s) & pairs.any(axis=1)) for s in range(limit + 1)]
    assert disc.last == limit
    assert (2 * np.diff(disc.offsets)).tolist() == counts
    assert disc.offsets[1] == 0  # no DC
    assert [disc.size(s) for s in range(limit + 1)] == disc.offsets[1:].tolist()


@pytest.mark.parametrize("box", BOXES)
def test_every_pixel_or_its_mate_is_there_once(box: int) -> None:
    disc = make_disc(box)
    listed = set(zip(disc.kx.tolist(), disc.ky.tolist(), strict=True))
    mates = {(-x, -y) for x, y in listed}
    pairs, shell = plane(box)
    wanted = {(x, y) for (x, y), s in zip(pairs.tolist(), shell.tolist(), strict=True) if (x or y) and s <= disc.last}
    assert len(listed) == len(disc)
    assert not listed & mates
    assert listed | mates == wanted


@pytest.mark.parametrize("shell", [1, 4, 9, 15, 40])
def test_a_lower_resolution_is_a_prefix(shell: int) -> None:
    whole = make_disc(32)
    cropped, made = whole.crop(shell), make_disc(32, shell)
    assert cropped.last == made.last == min(shell, whole.last)
    for name in ("kx", "ky", "shell", "offsets", "flat"):
        np.testing.assert_array_equal(getattr(cropped, name), getattr(made, name))
    np.testing.assert_array_equal(whole.kx[: len(cropped)], cropped.kx)


def test_sorted_by_shell_and_angle() -> None:
    disc = make_disc(32)
    np.testing.assert_array_equal(disc.shell, np.rint(np.hypot(disc.kx, disc.ky)))
    assert (np.diff(disc.shell) >= 0).all()
    for s in range(1, disc.last + 1):
        part = slice(disc.offsets[s], disc.offsets[s + 1])
        assert (np.diff(np.arctan2(disc.ky[part], disc.kx[part])) > 0).all()


@pytest.mark.parametrize("box", [7, 8])
def test_flat_indices_find_the_frequencies_in_a_transform(box: int) -> None:
    image = np.random.default_rng(1).normal(size=(box, box))
    disc = make_disc(box)
    y, x = np.indices((box, box))
    turns = np.multiply.outer(disc.kx, x) + np.multiply.outer(disc.ky, y)
    plain_sum = (image * np.exp(-2j * np.pi * turns / box)).sum(axis=(1, 2))
    np.testing.assert_allclose(np.fft.rfft2(image).ravel()[disc.flat], plain_sum, atol=1e-10)
