# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps, Fourier volumes and sums of backprojection, against exact projections and closed forms."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from cuda_host.fake_cupy import Allocations
from scipy.integrate import quad
from tiny import PADDING, blobs, exact_slices, random_rotations

from sparsecv.engine.physics import gridding
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine import volumes
from sparsecv.engine.refine.volumes import Accumulator, map_to_volume, radial, shell_means, volume_to_map
from sparsecv.engine.threads import use_threads
from sparsecv.engine.validate.fsc import fsc
from sparsecv.kernels import cpu, cuda

BOX = 32
DISC = make_disc(BOX)
KERNELS = ("trilinear", "gaussian")


def backprojected(slices: np.ndarray, rotations: np.ndarray, kernel: str = "trilinear") -> Accumulator:
    """Sums of slices (n, J) at their rotations, each with weight 1; not completed."""
    total = Accumulator.empty(cpu, BOX, DISC.last, kernel)
    count = len(slices)
    ones = np.ones(slices.shape, dtype=np.float32)
    cpu.backproject(slices[:, None], ones, np.ones((count, 1), dtype=np.float32), rotations.astype(np.float32),
                    np.arange(count, dtype=np.int32), DISC.kx, DISC.ky, PADDING, total.data, total.weight, kernel)
    return total


def grey(found: np.ndarray, truth: np.ndarray) -> float:
    """Factor of a map relative to the truth."""
    return float((found * truth).sum() / (truth * truth).sum())


def test_slices_of_a_map_are_the_transforms_of_its_projections() -> None:
    density, rotations = blobs(BOX), random_rotations(20)
    volume = map_to_volume(cpu, density, DISC.last)
    slices = cpu.extract_slices(volume, rotations.astype(np.float32), DISC.kx, DISC.ky, PADDING)
    truth = exact_slices(density, rotations, DISC)
    error = np.abs(slices - truth) ** 2
    # measured: 2.4 % of the amplitude over all pixels
    assert np.sqrt(error.sum() / (np.abs(truth) ** 2).sum()) < 0.03
    assert np.vdot(truth, slices).real / np.vdot(truth, truth).real == pytest.approx(1, abs=0.005)


def test_a_slice_along_the_axes_needs_no_interpolation() -> None:
    """Seen along z, the transform's plane z = 0 is hit at its voxels: the sum along z, divided by the box."""
    density = blobs(BOX)
    correction = gridding.correct_gridding(density, PADDING, "trilinear")
    volume = map_to_volume(cpu, density, DISC.last)
    found = cpu.extract_slices(volume, np.eye(3, dtype=np.float32)[None], DISC.kx, DISC.ky, PADDING)[0]
    image = np.fft.rfft2(np.fft.ifftshift(correction.sum(axis=0))).ravel()[DISC.flat] / BOX
    np.testing.assert_allclose(found, image, atol=2e-5 * np.abs(image).max())


@pytest.mark.parametrize("box", [31, 32])
def test_a_volume_gives_its_map_back(box: int) -> None:
    density = blobs(box)
    last = box - 1  # beyond Nyquist, all of the padded transform that a half volume can hold
    volume = map_to_volume(cpu, density, last)
    back = volume_to_map(cpu, volume, box, "trilinear")
    twice = gridding.gridding_profile(box, PADDING, "trilinear")
    expected = density / (twice[:, None, None] * twice[:, None] * twice) ** 2
    np.testing.assert_allclose(back, expected, atol=2e-3 * expected.max())


@pytest.mark.parametrize(("box", "last"), [(12, 11), (13, 12), (12, 5), (13, 3)])
def test_transforms_are_those_of_the_padded_cube(box: int, last: int) -> None:
    """In double precision, and whole: the definition."""
    rng, big, c = np.random.default_rng(box), PADDING * box, volumes.half_width(last)
    density = rng.standard_normal((box,) * 3).astype(np.float32)
    profile = gridding.gridding_profile(box, PADDING, "trilinear")
    attenuation = profile[:, None, None] * profile[:, None] * profile
    place = slice(box - box // 2, 2 * box - box // 2)  # the map's centre, box // 2, is the padded map's
    padded = np.zeros((big,) * 3)
    padded[place, place, place] = density / attenuation
    reach = min(c, box - 1)
    inner = slice(box - reach, box + reach + 1)  # without the Nyquist frequency, which has no sign
    whole = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(padded)))[inner, inner, box : box + reach + 1] / box
    expected = np.zeros((2 * c + 1, 2 * c + 1, c + 1), complex)
    expected[c - reach : c + reach + 1, c - reach : c + reach + 1, : reach + 1] = whole
    volume = map_to_volume(cpu, density, last)
    assert volume.dtype == np.complex64 and volume.shape == expected.shape
    np.testing.assert_allclose(volume, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    full = np.zeros((big,) * 3, complex)
    full[inner, inner, box : box + reach + 1] = whole
    full[inner, inner, box - reach : box] = np.conj(whole[::-1, ::-1, :0:-1])
    back = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(full)).real)[place, place, place] * box / attenuation
    found = volume_to_map(cpu, volume, box, "trilinear")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, back, rtol=0, atol=1e-6 * np.abs(back).max())


def test_transforms_do_not_depend_on_blocks_or_threads(
    monkeypatch: pytest.MonkeyPatch, threads_as_before: None
) -> None:
    found = []
    for block, threads in ((1, 1), (50_000, 1), (50_000, 2), (volumes.BLOCK, 2)):
        monkeypatch.setattr(volumes, "BLOCK", block)
        use_threads(threads)
        volume = map_to_volume(cpu, blobs(BOX), DISC.last)
        found.append((volume, volume_to_map(cpu, volume, BOX, "gaussian")))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_no_padded_cube_is_ever_made(monkeypatch: pytest.MonkeyPatch, imitation: None) -> None:
    """There and back: beside map and volume their planes, half of a volume, and a few blocks."""
    block, xp = 16_000, cuda.xp
    monkeypatch.setattr(volumes, "BLOCK", block)
    density = xp.asarray(blobs(BOX))
    for transform in (
        lambda: map_to_volume(cuda, density, DISC.last),
        lambda: volume_to_map(cuda, xp.zeros(map_to_volume(cpu, blobs(BOX), DISC.last).shape, xp.complex64), BOX,
                              "trilinear"),
    ):  # fmt: skip
        gc.collect()  # what earlier tests have left must not go while this one counts
        Allocations.reset()
        before = Allocations.alive
        made = transform().nbytes
        volume = max(made, 8 * (2 * BOX + 3) ** 2 * (BOX + 2))
        assert volume < Allocations.peak - before < 1.5 * volume + 6 * block
        assert Allocations.alive == before  # of what the transform made nothing is left


@pytest.mark.parametrize("kernel", KERNELS)
def test_projections_reconstruct_their_map(kernel: str) -> None:
    density, rotations = blobs(BOX, count=12, width=0.8), random_rotations(1500)
    total = backprojected(exact_slices(density, rotations, DISC), rotations, kernel).completed(cpu, np.eye(3)[None])
    found, inside = total.solve(cpu), sphere(BOX, 13, 2)
    curve = fsc(found * inside, density * inside)
    assert curve[: DISC.last].min() > 0.99
    assert grey(found * inside, density * inside) == pytest.approx(1, abs=0.02)


def test_gridding_profiles_are_the_transforms_of_the_kernels() -> None:
    def gaussian(f: float) -> float:
        return quad(lambda d: np.exp(-d * d / 2) * np.cos(2 * np.pi * f * d), -1.5, 1.5)[0]

    r = np.arange(BOX) - BOX // 2
    for kernel, face in (("trilinear", 0.81), ("gaussian", 0.465)):
        profile = gridding.gridding_profile(BOX, PADDING, kernel)
        assert profile[BOX // 2] == 1
        assert profile[0] == pytest.approx(face, abs=0.005)
        if kernel == "trilinear":  # the transform of the triangle 1 - |d|
            form = [quad(lambda d, f=f: (1 - abs(d)) * np.cos(2 * np.pi * f * d), -1, 1)[0] for f in r / (2 * BOX)]
        else:
            form = [gaussian(f) / gaussian(0) for f in r / (2 * BOX)]
        np.testing.assert_allclose(profile, form, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_the_correction_a_kernel_is_a_hidden_mask(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob far from the centre is attenuated by its kernel's profile, and by nothing with the correction."""
    axis = np.arange(BOX) - BOX // 2
    off = -12
    x, y, z = (np.exp(-((axis - c) ** 2) / (2 * 1.2**2)) for c in (off, 0, 0))
    density = (z[:, None, None] * y[:, None] * x).astype(np.float32)
    rotations = random_rotations(1500)
    total = backprojected(exact_slices(density, rotations, DISC), rotations, kernel).completed(cpu, np.eye(3)[None])
    assert grey(total.solve(cpu), density) == pytest.approx(1, abs=0.03)
    monkeypatch.setattr("sparsecv.engine.refine.volumes.correct_gridding", lambda density, *_: density)
    expected = gridding.gridding_profile(BOX, PADDING, kernel)[BOX // 2 + off]
    assert grey(total.solve(cpu), density) == pytest.approx(expected, abs=0.03)


def test_moved_sums_are_those_of_the_moved_map() -> None:
    rotations = random_rotations(300)
    total = backprojected(exact_slices(blobs(BOX), rotations, DISC), rotations).completed(cpu, np.eye(3)[None])
    plain = np.roll(total.solve(cpu), (3, -1, 2), axis=(0, 1, 2))  # (z, y, x)
    moved = total.moved(cpu, np.array([2.0, -1.0, 3.0])).solve(cpu)
    inside = sphere(BOX, 12, 2)  # the correction for the kernel does not move along
    assert np.linalg.norm((moved - plain) * inside) < 0.03 * np.linalg.norm(plain * inside)
    back = total.moved(cpu, np.array([0.4, 0.0, -0.7])).moved(cpu, np.array([-0.4, 0.0, 0.7]))
    np.testing.assert_allclose(back.data, total.data, atol=1e-5 * np.abs(total.data).max())


@pytest.mark.parametrize("name", ["C2", "C7", "D2", "D7", "T", "O", "I2"])
def test_symmetric_sums_are_those_of_all_equivalent_views(name: str) -> None:
    """Sums over the point group against each image deposited at every one of its equivalent poses."""
    group = symmetry_matrices(name)
    rotations = random_rotations(40)
    slices = exact_slices(blobs(BOX), rotations, DISC)
    found = backprojected(slices, rotations).completed(cpu, group)
    equivalent = (rotations[:, None] @ group[None]).reshape(-1, 3, 3)
    explicit = backprojected(np.repeat(slices, len(group), axis=0), equivalent).completed(cpu, np.eye(3)[None])
    if name in ("C2", "D2"):  # half turns about the axes need no interpolation
        np.testing.assert_allclose(found.data, explicit.data, atol=1e-4 * np.abs(explicit.data).max())
        np.testing.assert_allclose(found.weight, explicit.weight, atol=1e-4 * explicit.weight.max())
    # 1 voxel of the weights is spread by the second interpolation: compared are shells, and the map
    shells = slice(2, DISC.last)
    ratio = found.mean_weight(cpu)[shells] / explicit.mean_weight(cpu)[shells]
    np.testing.assert_allclose(ratio, 1, atol=0.02)
    inside = sphere(BOX, 11, 3)
    one, two = found.solve(cpu) * inside, explicit.solve(cpu) * inside
    assert fsc(one, two)[:12].min() > 0.98
    assert grey(one, two) == pytest.approx(1, abs=0.05)


def test_symmetric_sums_have_the_symmetry() -> None:
    group = symmetry_matrices("D2")
    rotations = random_rotations(40)
    found = backprojected(exact_slices(blobs(BOX), rotations, DISC), rotations).completed(cpu, group).solve(cpu)
    inner = found[1:, 1:, 1:]  # an even box has a row without a mate
    for turned in (inner[:, ::-1, ::-1], inner[::-1, :, ::-1], inner[::-1, ::-1, :]):
        np.testing.assert_allclose(turned, inner, atol=1e-4 * np.abs(inner).max())


def test_quarters_add_up_to_the_half() -> None:
    rotations = random_rotations(60)
    slices = exact_slices(blobs(BOX), rotations, DISC)
    identity = np.eye(3)[None]
    odd, even = (backprojected(slices[k::2], rotations[k::2]).completed(cpu, identity) for k in (0, 1))
    whole = backprojected(slices, rotations).completed(cpu, identity)
    both = odd + even
    np.testing.assert_allclose(both.data, whole.data, atol=1e-5 * np.abs(whole.data).max())
    np.testing.assert_allclose(both.weight, whole.weight, rtol=1e-4, atol=1e-4)
    assert (both.box, both.last_shell, both.kernel) == (whole.box, whole.last_shell, whole.kernel)


def test_shell_means_and_their_inverse() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(1, 2, DISC.last + 1)
    c = PADDING * DISC.last + 3
    spread = radial(cpu, values, (2 * c + 1, 2 * c + 1, c + 1))
    np.testing.assert_allclose(shell_means(cpu, spread, len(values)), values, rtol=1e-5)
    assert spread[c, c, c] == 0  # beyond the last shell


def test_a_prior_damps_and_directions_without_data_stay_finite() -> None:
    rotations = random_rotations(5)
    total = backprojected(exact_slices(blobs(BOX), rotations, DISC), rotations).completed(cpu, np.eye(3)[None])
    plain, damped = total.solve(cpu), total.solve(cpu, 10 * total.mean_weight(cpu))
    assert np.isfinite(plain).all()
    assert np.linalg.norm(damped) < 0.5 * np.linalg.norm(plain)
    empty = Accumulator.empty(cpu, BOX, DISC.last).completed(cpu, np.eye(3)[None])
    assert not empty.solve(cpu).any()
