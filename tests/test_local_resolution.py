# SPDX-License-Identifier: GPL-3.0-or-later
"""Local resolution by windowed FSC: known band limits, noise, the edges of the box; and the views of a surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from halfmaps import filtered

from sparsecv.engine.errors import InputError
from sparsecv.engine.report.band_limit import plot_band_limit, plot_local_resolution
from sparsecv.engine.report.chimerax import BandLimits, write_band_limit_script
from sparsecv.engine.report.surface import view
from sparsecv.engine.validate.local_resolution import local_resolution, window_size

BOX, PIXEL = 40, 2.0


def white(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(BOX,) * 3)


def halves_with_limits(left: float, right: float, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Signal up to one frequency (cycles per pixel) where x < 20 and up to another beyond, and a little noise."""
    smooth, rough = (filtered(white(1), lambda k, end=end: k <= end) for end in (left, right))
    signal = np.where(np.arange(BOX) < BOX // 2, smooth / smooth.std(), rough / rough.std())
    return signal + noise * white(2), signal + noise * white(3)


def test_known_band_limits_are_found_on_either_side() -> None:
    """To the resolution of a sphere of 16 pixels: a shell and a half of its own transform."""
    first, second = halves_with_limits(0.15, 0.35, noise=1.0)
    found = local_resolution(first, second, PIXEL, size=16, step=4)
    # spheres that touch neither the other side nor the end of the box, whose edge both halves share
    left, right = (float(np.median(found[10:30, 10:30, where])) for where in (slice(8, 13), slice(28, 33)))
    assert 16 * PIXEL / left == pytest.approx(16 * 0.15, abs=1.5)
    assert 16 * PIXEL / right == pytest.approx(16 * 0.35, abs=1.5)
    assert left > 1.4 * right


def test_equal_maps_resolve_two_pixels_and_noise_nothing() -> None:
    one = white(1)
    assert local_resolution(one, one, PIXEL, size=12, step=8) == pytest.approx(2 * PIXEL)
    found = local_resolution(one, white(2), PIXEL, size=16, step=8)
    assert np.median(found) > 0.6 * 16 * PIXEL


def test_outside_of_the_mask_nothing_is_estimated() -> None:
    first, second = halves_with_limits(0.2, 0.2)
    mask = np.zeros((BOX,) * 3)
    mask[10:30, 10:30, 10:30] = 1
    found = local_resolution(first, second, PIXEL, mask=mask, size=16, step=4)
    assert (found[mask == 0] == 16 * PIXEL).all()
    everywhere = local_resolution(first, second, PIXEL, size=16, step=4)
    np.testing.assert_allclose(found[mask == 1], everywhere[mask == 1], rtol=1e-6)  # its rim is not blurred


def test_the_window_follows_the_resolution() -> None:
    assert window_size(white(1), white(1), PIXEL) == 14  # 7 x 2 pixels
    coarse = filtered(white(1), lambda k: k < 0.2)
    assert 30 <= window_size(coarse + 1e-3 * white(2), coarse + 1e-3 * white(3), PIXEL) <= 40


@pytest.mark.parametrize("size", [2, 15, 42])
def test_a_sphere_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="does not fit"):
        local_resolution(white(1), white(2), PIXEL, size=size)


# ---------------------------------------------------------------------------------------------------------- pictures
def test_views_are_not_mirrored() -> None:
    """A bump towards (+x, +y, +z) is on the right and above in each view, or behind where it is not seen."""
    volume = np.zeros((20, 20, 20))
    volume[6:14, 6:14, 6:14] = 1
    colour = np.broadcast_to(np.arange(20.0)[:, None, None], volume.shape)  # z
    volume[10, 10, 16], volume[10, 16, 10] = 1, 1  # spikes along +x and +y
    from_z, from_y, from_x = (view(volume, 0.5, colour, axis) for axis in range(3))
    assert from_z.hit[10, 16] and from_z.hit[16, 10]  # rows y, columns x
    assert from_y.hit[10, 16] and not from_y.hit[16, 10]  # rows z, columns x; the spike along y is behind
    assert from_x.hit[10, 16] and not from_x.hit[16, 10]  # rows z, columns y
    assert from_z.values[8, 8] == 13  # the face nearest to the viewer
    assert from_y.values[8, 8] == 8
    assert (from_z.shade[from_z.hit] > 0.3).all() and from_z.shade.max() <= 1


def test_pictures_are_the_same_bytes_again(tmp_path: Path) -> None:
    density = filtered(white(1), lambda k: k < 0.1)
    limits = np.where(np.arange(BOX) < 20, 5.0, 12.0) * np.ones((BOX,) * 3)
    shares = {"half 1": ([25.0, 12.0, 5.0], [0.5, 0.3, 0.2]), "half 2": ([25.0, 12.0, 5.0], [0.4, 0.4, 0.2])}
    for number in (1, 2):
        plot_band_limit(tmp_path / f"a{number}.png", density, limits, shares, PIXEL, title="t", with_surface=True)
        plot_local_resolution(tmp_path / f"b{number}.png", limits, limits[::-1], density > 0, PIXEL)
    for name in "ab":
        first, second = ((tmp_path / f"{name}{number}.png").read_bytes() for number in (1, 2))
        assert first == second and len(first) > 10_000
    constant = np.full_like(limits, 25.0)  # nothing but the coarsest filter
    plot_band_limit(tmp_path / "c.png", density, constant, {"half 1": ([25.0], [1.0])}, PIXEL, title="t")
    assert (tmp_path / "c.png").is_file()


def test_a_script_has_a_key_in_angstrom(tmp_path: Path) -> None:
    write_band_limit_script(tmp_path / "a.cxc", "map.mrc", 0.125, BandLimits("limits.mrc", 4.0, 24.0))
    text = (tmp_path / "a.cxc").read_text()
    assert "volume #1 style surface step 1 level 0.125" in text
    assert "palette 4.00,#fde725:9.00," in text and text.count("#440154") == 2 and "#440154:24.0" in text
