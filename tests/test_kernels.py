# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kernel on every back end: against the float64 definition, and the definition against closed forms.

Back ends: see backends.py. The kernels of the sparse + TV prior are in test_kernels_sparse_tv.py.
"""

from __future__ import annotations

import importlib
import inspect
import types
from typing import Any

import numpy as np
import pytest
from backends import Backend, relative_error
from cuda_host.problem import (
    BOX,
    PADDING,
    complex_normal,
    disc,
    hermitian_volume,
    make_problem,
    random_rotations,
    run_all,
)

from sparsecv.kernels import cuda, reference


# ------------------------------------------------------------------------------------ against the definition
@pytest.mark.parametrize("sizes", [{}, {"shifts": 1, "candidates": 1}, {"shifts": 19, "images": 1, "largest": 6}])
def test_results_are_the_definition(backend: Backend, sizes: dict[str, int]) -> None:
    problem = make_problem(**sizes)
    expected = run_all(reference, problem)
    found = run_all(backend.ops, {name: backend.up(array) for name, array in problem.items()})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        result = backend.down(found[name])
        assert result.shape == value.shape, name
        assert relative_error(result, value.astype(result.dtype)) < 1e-5, name


def test_types_on_the_device(backend: Backend) -> None:
    if backend.ops is reference:
        pytest.skip("the definition stays in double precision")
    problem = {name: backend.up(array) for name, array in make_problem(candidates=2).items()}
    results = run_all(backend.ops, problem)
    singles = {"extract_slices": np.complex64, "cross": np.float32, "norm": np.float32, "shift_images": np.complex64}
    singles |= {"symmetrise data": np.complex64, "symmetrise weight": np.float32}
    for name, dtype in (singles | {"sum_disc_shells": np.float64, "sum_volume_shells": np.float64}).items():
        assert results[name].dtype == dtype, name


def _operations(module: types.ModuleType) -> dict[str, list[tuple[Any, ...]]]:
    """Name, kind and default of every parameter of a module's public operations."""
    functions = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and not n.startswith("_")}
    functions = {n: f for n, f in functions.items() if f.__module__.startswith(module.__name__)}  # and its companion's
    signatures = {n: inspect.signature(f).parameters.values() for n, f in functions.items()}
    return {n: [(p.name, p.kind, p.default) for p in parameters] for n, parameters in signatures.items()}


def test_back_ends_offer_the_same_operations() -> None:
    expected = _operations(reference)
    helpers = {"blocks", "check_accumulators", "check_reach", "contiguous", "import_cupy", "launch"}  # of its parts
    assert len(expected) >= 26
    for module in (pytest.importorskip("sparsecv.kernels.cpu", exc_type=ImportError), cuda):
        found = {name: parameters for name, parameters in _operations(module).items() if name not in helpers}
        assert found == expected, module.__name__


def test_integer_and_real_frequencies_are_the_same(backend: Backend) -> None:
    p = make_problem()
    slices = [
        backend.call("extract_slices", p["volume"], p["rotations"], p["kx"].astype(t), p["ky"].astype(t), PADDING)
        for t in (np.int32, np.float32)
    ]
    np.testing.assert_array_equal(*slices)


# --------------------------------------------------------------------------------------------- closed forms
def test_slice_of_a_gaussian_is_a_gaussian(backend: Backend) -> None:
    kx, ky, _ = disc(12)
    c, width = 28, 10.0
    z, y, x = np.meshgrid(np.arange(-c, c + 1), np.arange(-c, c + 1), np.arange(c + 1), indexing="ij")
    volume = np.exp(-(x**2 + y**2 + z**2) / (2 * width**2)).astype(np.complex64)
    slices = backend.call("extract_slices", volume, random_rotations(np.random.default_rng(2), 6), kx, ky, PADDING)
    expected = np.exp(-(PADDING**2) * (kx**2 + ky**2) / (2 * width**2))
    assert np.abs(slices - expected).max() < 3 / (8 * width**2) * 1.05  # h^2/8 max|f''| for each of three axes


def test_slice_of_a_point_is_a_plane_wave_at_its_projection(backend: Backend) -> None:
    kx, ky, _ = disc(12)
    c, box, point = 28, 64, np.array([1.5, -0.7, 0.9])  # map coordinates (x, y, z) of the point, pixels
    z, y, x = np.meshgrid(np.arange(-c, c + 1), np.arange(-c, c + 1), np.arange(c + 1), indexing="ij")
    phase = x * point[0] + y * point[1] + z * point[2]
    volume = np.exp(-2j * np.pi * phase / (PADDING * box)).astype(np.complex64)
    rotations = random_rotations(np.random.default_rng(3), 6)
    slices = backend.call("extract_slices", volume, rotations, kx, ky, PADDING)
    projected = rotations @ point  # A takes map to image coordinates
    expected = np.exp(-2j * np.pi * (projected[:, :1] * kx + projected[:, 1:2] * ky) / box)
    step = 2 * np.pi * np.abs(point) / (PADDING * box)
    assert np.abs(slices - expected).max() < np.sum(step**2) / 8 * 1.05


def test_scores_are_the_squared_difference(backend: Backend) -> None:
    """sum |X - C P|^2 / sigma2 = sum |X|^2 / sigma2 - 2 cross + norm."""
    p, rng = make_problem(), np.random.default_rng(4)
    observed, ctf = p["images"], rng.uniform(-1, 1, p["ctf2"].shape).astype(np.float32)
    sigma2 = rng.uniform(1, 2, len(p["kx"])).astype(np.float32)
    scaled, ctf2 = (observed * (ctf / sigma2)[:, None]).astype(np.complex64), ctf**2 / sigma2
    arguments = (p["volume"], p["rotations"], p["owner"], scaled, ctf2, p["kx"], p["ky"], PADDING)
    cross, norm = backend.call("score_candidates", *arguments)
    slices = reference.extract_slices(p["volume"], p["rotations"], p["kx"], p["ky"], PADDING)
    difference = observed[p["owner"]] - (ctf[p["owner"]] * slices)[:, None]
    expected = np.sum(np.abs(difference) ** 2 / sigma2, axis=2)
    found = np.sum(np.abs(observed[p["owner"]]) ** 2 / sigma2, axis=2) - 2 * cross + norm[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def _disc_of(transforms: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Pixels of the disc from transforms (n, box, box // 2 + 1)."""
    return transforms[:, ky % transforms.shape[1], kx]


def test_shift_by_whole_pixels_turns_the_image_round_the_box(backend: Backend) -> None:
    kx, ky, _ = disc(BOX // 2 - 1)
    images = np.random.default_rng(9).standard_normal((3, BOX, BOX)).astype(np.float32)
    shifts = np.array([[[0, 0], [3, -2]], [[-20, 1], [0, 39]], [[40, 0], [-7, -40]]], np.float32)
    turned = [[np.roll(image, (int(y), int(x)), axis=(0, 1)) for x, y in pair]
              for image, pair in zip(images, shifts, strict=True)]
    transforms = _disc_of(np.fft.rfft2(images), kx, ky).astype(np.complex64)
    moved = backend.call("shift_images", transforms, shifts, kx, ky, BOX)
    expected = np.stack([_disc_of(np.fft.rfft2(pair), kx, ky) for pair in turned])
    assert moved.shape == (3, 2, len(kx))
    assert relative_error(moved, expected) < 2e-6


def test_shift_by_fractions_moves_a_gaussian(backend: Backend) -> None:
    """exp(-|r - d|^2 / 2 w^2), of which nothing reaches the box's edge or Nyquist."""
    kx, ky, _ = disc(BOX // 2 - 1)
    width, centre = 2.5, BOX // 2
    shifts = np.array([[[0.5, 0.25], [-1.37, 2.81], [1e-3, -4.6]]], np.float32)
    y, x = np.mgrid[:BOX, :BOX] - centre

    def gaussian(dx: float, dy: float) -> np.ndarray:
        return np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * width**2))

    transform = _disc_of(np.fft.rfft2(gaussian(0, 0)[None]), kx, ky).astype(np.complex64)
    moved = backend.call("shift_images", transform, shifts, kx, ky, BOX)[0]
    expected = _disc_of(np.fft.rfft2(np.stack([gaussian(*shift) for shift in shifts[0].tolist()])), kx, ky)
    assert relative_error(moved, expected) < 2e-6


def test_shifts_of_nothing(backend: Backend) -> None:
    kx, ky, _ = disc(5)
    for images, shifts in ((0, 3), (2, 0)):
        arguments = (np.zeros((images, len(kx)), np.complex64), np.zeros((images, shifts, 2), np.float32))
        assert backend.call("shift_images", *arguments, kx, ky, BOX).shape == (images, shifts, len(kx))


@pytest.mark.parametrize("box", [8, 9])
def test_transforms_of_images_and_volumes(backend: Backend, box: int) -> None:
    """Of plane waves: one pixel each; and back, for even and odd boxes."""
    r = np.arange(box)
    waves = np.cos(2 * np.pi * (2 * r + np.outer([1, -3], r)[:, :, None]) / box).astype(np.float32)  # kx = 2
    expected = np.zeros((2, box, box // 2 + 1))
    expected[0, 1, 2] = expected[1, -3, 2] = box**2 / 2
    np.testing.assert_allclose(backend.call("rfft2", waves), expected, atol=2e-5 * box)
    volume = np.cos(2 * np.pi * (r - 2 * r[:, None] + 3 * r[:, None, None]) / box).astype(np.float32)
    transform = backend.call("rfftn", volume)
    expected = np.zeros((box, box, box // 2 + 1))
    expected[3, -2, 1] = box**3 / 2
    np.testing.assert_allclose(transform, expected, atol=2e-5 * box**1.5)
    back = backend.call("irfftn", transform.astype(np.complex64), box)
    np.testing.assert_allclose(back, volume, atol=1e-6)


@pytest.mark.parametrize("size", [8, 9])
def test_transforms_along_one_axis(backend: Backend, size: int) -> None:
    """Of a voxel in the middle of nowhere: waves along that axis; and back."""
    k, place = np.arange(size), (1, 2, 3)
    wave = np.exp(-2j * np.pi * np.outer(k, place) / size)
    point = np.zeros((size, size, size), np.float32)
    point[place] = 1
    for axis in range(3):
        line = tuple(slice(None) if a == axis else place[a] for a in range(3))
        expected = np.zeros(point.shape, np.complex128)
        expected[line] = wave[:, axis]
        found = backend.call("fft", point.astype(np.complex64), axis)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(backend.call("ifft", found.astype(np.complex64), axis), point, atol=1e-6)
    half = backend.call("rfft", point)
    np.testing.assert_allclose(half, expected[:, :, : size // 2 + 1], atol=1e-6)
    np.testing.assert_allclose(backend.call("irfft", half.astype(np.complex64), size), point, atol=1e-6)


def test_trilinear_backprojection_is_the_adjoint_of_slicing(backend: Backend) -> None:
    p, rng = make_problem(shifts=1), np.random.default_rng(5)
    count = len(p["rotations"])
    volume, values = complex_normal(rng, *p["data"].shape), complex_normal(rng, count, 1, len(p["kx"]))
    data, weight = np.zeros_like(p["data"]), np.zeros_like(p["weight"])
    one_each = (values, np.ones((count, len(p["kx"])), np.float32), np.ones((count, 1), np.float32))
    disc_arguments = (p["rotations"], np.arange(count, dtype=np.int32), p["kx"], p["ky"], PADDING)
    backend.call("backproject", *one_each, *disc_arguments, data, weight, "trilinear")
    slices = backend.call("extract_slices", volume, p["rotations"], p["kx"], p["ky"], PADDING)
    left, right = np.real(np.vdot(data, volume)), np.real(np.vdot(values[:, 0], slices))
    assert abs(left - right) < 1e-5 * np.linalg.norm(values) * np.linalg.norm(slices)
    assert weight.sum(dtype=np.float64) == pytest.approx(count * len(p["kx"]), rel=1e-5)  # coefficients add up to 1


@pytest.mark.parametrize("pixel", [(3, 0), (0, 3), (2, -1)])
def test_gaussian_kernel_of_one_pixel(backend: Backend, pixel: tuple[int, int]) -> None:
    """Identity rotation: 27 voxels around v, and after completion also their Friedel mates; none lost at x < 0."""
    c, value = 10, np.complex64(2 - 3j)
    data, weight = np.zeros((21, 21, 11), np.complex64), np.zeros((21, 21, 11), np.float32)
    kx, ky = (np.array([k], np.int32) for k in pixel)
    image, ones = np.full((1, 1, 1), value), np.ones((1, 1), np.float32)
    identity, owner = np.eye(3, dtype=np.float32)[None], np.zeros(1, np.int32)
    backend.call("backproject", image, ones, ones, identity, owner, kx, ky, PADDING, data, weight, "gaussian")
    backend.call("complete_hermitian", data, weight)
    whole = np.zeros((21, 21, 21), np.complex128)  # the full volume, written directly
    for dz, dy, dx in np.ndindex(3, 3, 3):
        x, y, z = PADDING * pixel[0] + dx - 1, PADDING * pixel[1] + dy - 1, dz - 1
        g = np.exp(-((dx - 1) ** 2 + (dy - 1) ** 2 + (dz - 1) ** 2) / 2)
        whole[z + c, y + c, x + c] += g * value
        whole[c - z, c - y, c - x] += g * np.conj(value)
    np.testing.assert_allclose(data, whole[:, :, c:], atol=1e-6)
    np.testing.assert_allclose(weight, np.abs(whole[:, :, c:]) / abs(value), atol=1e-6)


# ------------------------------------------------------------------------------------------------ curved slices
def _curved(p: dict[str, Any]) -> tuple[float, ...]:
    """Curvatures of the images of a problem: strong, none, and weak the other way."""
    return (0.02, 0.0, -0.006)[: len(p["images"])]


def _roomier(p: dict[str, Any], c: int) -> tuple[np.ndarray, np.ndarray]:
    """Accumulators that are not empty."""
    rng = np.random.default_rng(31)
    shape = (2 * c + 1, 2 * c + 1, c + 1)
    return complex_normal(rng, *shape), rng.random(shape, dtype=np.float32)


@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
def test_curved_backprojection_is_the_definition(backend: Backend, kernel: str) -> None:
    p = make_problem()
    expected, found = _roomier(p, 28), _roomier(p, 28)
    arguments = [p[name] for name in ("images", "ctf2", "weights", "rotations", "owner", "kx", "ky")]
    reference.backproject(*arguments, PADDING, *expected, kernel, _curved(p))
    backend.call("backproject", *arguments, PADDING, *found, kernel, _curved(p))
    flat = _roomier(p, 28)
    reference.backproject(*arguments, PADDING, *flat, kernel)
    for one, wanted, other in zip(found, expected, flat, strict=True):
        assert relative_error(one, wanted) < 1e-5
        assert relative_error(one, other) > 0.01
    with backend.ops.backprojection(*(backend.up(array) for array in _roomier(p, 28)), kernel) as add:
        add(*map(backend.up, arguments), PADDING, curvature=_curved(p))


@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
def test_slices_without_curvature_are_flat(backend: Backend, kernel: str) -> None:
    p = make_problem()
    arguments = [p[name] for name in ("images", "ctf2", "weights", "rotations", "owner", "kx", "ky")]
    flat, curved = _roomier(p, 28), _roomier(p, 28)
    backend.call("backproject", *arguments, PADDING, *flat, kernel)
    backend.call("backproject", *arguments, PADDING, *curved, kernel, (0.0, 0.0, 0.0))
    for one, other in zip(curved, flat, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("turn", "bend"), [(0, 0.2), (1, 0.2), (1, -0.2), (2, 0.4)])
def test_pixel_of_a_curved_slice_lies_off_the_plane(backend: Backend, turn: int, bend: float) -> None:
    """kz = bend k^2 is whole here: pixel (2, -1) of a slice falls on the one voxel A^T (2, -1, 5 bend), or its mate."""
    c, rotation = 10, random_rotations(np.random.default_rng(1), 3)[turn]
    x, y, z = np.rint(PADDING * rotation.T @ (2, -1, 5 * bend)).astype(int)
    data, weight = np.zeros((21, 21, 11), np.complex64), np.zeros((21, 21, 11), np.float32)
    image, ones = np.full((1, 1, 1), 2 - 3j, np.complex64), np.ones((1, 1), np.float32)
    place = rotation[None], np.zeros(1, np.int32), np.array([2], np.int32), np.array([-1], np.int32)
    backend.call("backproject", image, ones, ones, *place, PADDING, data, weight, "trilinear", (bend,))
    found = data[z + c, y + c, x] if x >= 0 else np.conj(data[c - z, c - y, -x])
    assert found == pytest.approx(2 - 3j, abs=1e-5)
    assert np.abs(data).sum() == pytest.approx(abs(2 - 3j), abs=1e-4)
    assert weight.sum() == pytest.approx(1, abs=1e-5)


def test_curvature_that_leaves_the_volume_is_refused(backend: Backend) -> None:
    """The disc ends at |k| = 11.4, where kz = bend k^2 adds to it; one image's curvature is enough."""
    p = make_problem()
    arguments = [p[name] for name in ("images", "ctf2", "weights", "rotations", "owner", "kx", "ky")]
    radius, c = np.hypot(p["kx"], p["ky"]).max(), p["data"].shape[2] - 1
    most = np.sqrt(((c - 2) / PADDING / radius) ** 2 - 1) / radius
    backend.call("backproject", *arguments, PADDING, p["data"], p["weight"], "trilinear", (0.0, -0.99 * most, 0.0))
    with pytest.raises(ValueError, match="half width"):
        backend.call("backproject", *arguments, PADDING, p["data"], p["weight"], "trilinear", (0.0, -1.01 * most, 0.0))
    with pytest.raises(ValueError, match="curvature has shape"):
        backend.call("backproject", *arguments, PADDING, p["data"], p["weight"], "trilinear", (0.0, 0.0))


def test_completed_accumulators_obey_friedel(backend: Backend) -> None:
    p = make_problem()
    data, weight = p["data"].copy(), p["weight"].copy()
    backend.call("complete_hermitian", data, weight)
    np.testing.assert_allclose(data[:, :, 0], np.conj(data[::-1, ::-1, 0]), atol=1e-6)
    np.testing.assert_allclose(weight[:, :, 0], weight[::-1, ::-1, 0], atol=1e-6)
    centre = p["data"].shape[0] // 2
    assert data[centre, centre, 0] == pytest.approx(2 * p["data"][centre, centre, 0].real)
    np.testing.assert_array_equal(data[:, :, 1:], p["data"][:, :, 1:])


def test_symmetrising_by_exact_quarter_turns(backend: Backend) -> None:
    """C4 about z maps voxels on voxels: the sum is that of the turned full volumes."""
    c, rng = 9, np.random.default_rng(6)
    half = hermitian_volume(rng, c)
    full = np.concatenate([np.conj(half[::-1, ::-1, :0:-1]), half], axis=2)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    group = np.stack([np.linalg.matrix_power(turn, n) for n in range(4)])
    data, weight = backend.call("symmetrise", half, np.abs(half).astype(np.float32), group)
    z, y, x = np.meshgrid(*[np.arange(-c, c + 1)] * 3, indexing="ij")
    inside = (x**2 + y**2 + z**2 <= (c - 2) ** 2)[:, :, c:]
    turned = [np.rot90(full, n, axes=(1, 2)) for n in range(4)]
    expected = np.where(inside, sum(turned)[:, :, c:], 0)
    np.testing.assert_allclose(data, expected, atol=1e-5)
    magnitude = np.where(inside, sum(map(np.abs, turned))[:, :, c:], 0)
    np.testing.assert_allclose(weight, magnitude, atol=1e-5)


def test_sums_over_shells_of_a_disc(backend: Backend) -> None:
    kx, ky, offsets = disc(9)
    values = np.random.default_rng(7).random((3, len(kx)), dtype=np.float32)
    shell = np.rint(np.hypot(kx, ky)).astype(int)
    expected = np.stack([np.bincount(shell, row, len(offsets) - 1) for row in values.astype(np.float64)])
    sums = backend.call("sum_disc_shells", values, offsets)
    np.testing.assert_allclose(sums, expected, rtol=1e-12)
    assert not sums[:, 0].any()  # shell 0 is empty


def test_volume_shells_hold_the_power_of_the_map(backend: Backend) -> None:
    """Parseval: all shells together hold N^3 times the map's sum of products; and a shell's FSC with itself is 1."""
    c, rng = 8, np.random.default_rng(8)
    n = 2 * c + 1  # odd, so that the centred half volume is the whole transform
    maps = rng.standard_normal((2, n, n, n))
    a, b = (np.fft.fftshift(np.fft.fftn(m))[:, :, c:].astype(np.complex64) for m in maps)
    sums = backend.call("sum_volume_shells", a, b, PADDING, 9)
    expected = n**3 * np.array([np.sum(maps[0] * maps[1]), np.sum(maps[0] ** 2), np.sum(maps[1] ** 2)])
    np.testing.assert_allclose(sums.sum(axis=0), expected, rtol=1e-5, atol=1e-5 * expected[1])
    own = backend.call("sum_volume_shells", a, a, PADDING, 5)
    np.testing.assert_allclose(own, np.repeat(sums[:5, 1:2], 3, axis=1), rtol=1e-12)


def test_means_of_shells_count_friedel_mates(backend: Backend) -> None:
    """A volume that is its own shell, of which one half space is stored: each mean is the shell's number."""
    c = 9
    axis = np.arange(-c, c + 1)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + np.arange(c + 1) ** 2)
    shells = np.rint(radius / PADDING).astype(np.float32)
    np.testing.assert_allclose(backend.call("mean_volume_shells", shells, PADDING, 4), np.arange(4), atol=1e-12)
    values = np.random.default_rng(1).random(shells.shape).astype(np.float32)
    whole = np.concatenate([values[::-1, ::-1, :0:-1], values], axis=2)
    of_whole = np.concatenate([shells[::-1, ::-1, :0:-1], shells], axis=2)
    wanted = [whole[of_whole == s].mean() for s in range(4)]
    np.testing.assert_allclose(backend.call("mean_volume_shells", values, PADDING, 4), wanted, rtol=1e-6)


def test_quotient_is_the_wiener_equation(backend: Backend) -> None:
    """B / (max(N, floor) + prior), case by case; 0 beyond the last shell, finite where nothing is known."""
    c = 4
    data = np.full((2 * c + 1, 2 * c + 1, c + 1), 6 + 2j, np.complex64)
    weight = np.full(data.shape, 2.0, np.float32)
    weight[c, c, 0], weight[c, c, 2], data[c, c, 2] = 0, 0, 0
    found = backend.call("quotient", data, weight, np.array([4.0, 0.0]), np.array([4.0, 0.0]), PADDING)
    assert found[c, c, 0] == pytest.approx((6 + 2j) / 8)  # floor 4, prior 4
    assert found[c, c + 2, 0] == pytest.approx(3 + 1j)  # shell 1
    assert found[c, c, 2] == 0  # nothing there, and no prior
    assert not found[:, :, 4].any()  # shell 2
    with pytest.raises(ValueError, match="differ in shape"):
        backend.call("quotient", data, weight[1:], np.ones(2), np.ones(2), PADDING)
    with pytest.raises(ValueError, match="for each shell"):
        backend.call("quotient", data, weight, np.ones(2), np.ones(3), PADDING)


# ------------------------------------------------------------------------------------------------ the edges
def test_disc_beyond_the_volume_is_refused(backend: Backend) -> None:
    p = make_problem()
    kx = p["kx"] + 1
    with pytest.raises(ValueError, match="half width"):
        backend.call("extract_slices", p["volume"], p["rotations"], kx, p["ky"], PADDING)
    arguments = (p["rotations"], p["owner"], p["images"], p["ctf2"], kx, p["ky"], PADDING)
    with pytest.raises(ValueError, match="half width"):
        backend.call("score_candidates", p["volume"], *arguments)


def test_unknown_kernel_is_refused(backend: Backend) -> None:
    p = make_problem()
    arguments = (p["images"], p["ctf2"], p["weights"], p["rotations"], p["owner"], p["kx"], p["ky"], PADDING)
    with pytest.raises(ValueError, match="kernel"):
        backend.call("backproject", *arguments, p["data"], p["weight"], "nearest")
    with pytest.raises(ValueError, match="kernel"), backend.ops.backprojection(p["data"], p["weight"], "nearest"):
        pass


@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
def test_candidate_without_weight_adds_nothing(backend: Backend, kernel: str) -> None:
    """Not even where its image is not a number."""
    p = make_problem()
    images = np.full_like(p["images"], np.nan)
    data, weight = p["data"].copy(), p["weight"].copy()
    arguments = (p["ctf2"], np.zeros_like(p["weights"]), p["rotations"], p["owner"], p["kx"], p["ky"], PADDING)
    backend.call("backproject", images, *arguments, data, weight, kernel)
    np.testing.assert_array_equal(data, p["data"])
    np.testing.assert_array_equal(weight, p["weight"])


@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
def test_batches_of_one_backprojection_add_up(backend: Backend, kernel: str) -> None:
    """Onto what is in the accumulators already, for batches that differ in size and in their pixels."""
    p, ops = make_problem(), backend.ops
    expected = p["data"].copy(), p["weight"].copy()
    batches = []
    for keep, pixels in ((slice(0, 3), len(p["kx"])), (slice(3, None), len(p["kx"]) // 2)):
        candidates = (p["weights"][keep], p["rotations"][keep], p["owner"][keep])
        disc_pixels = p["kx"][:pixels], p["ky"][:pixels]
        batches.append((p["images"][..., :pixels], p["ctf2"][:, :pixels], *candidates, *disc_pixels, PADDING))
        reference.backproject(*batches[-1], *expected, kernel)
    data, weight = (ops.xp.asarray(p[name].copy()) for name in ("data", "weight"))
    with ops.backprojection(data, weight, kernel) as add:
        for batch in batches:
            add(*map(backend.up, batch))
    assert relative_error(backend.down(data), expected[0]) < 1e-6
    assert relative_error(backend.down(weight), expected[1]) < 1e-6


def test_no_candidates(backend: Backend) -> None:
    p = make_problem()
    none = {name: p[name][:0] for name in ("rotations", "owner", "weights")}
    assert backend.call("extract_slices", p["volume"], none["rotations"], p["kx"], p["ky"], PADDING).shape[0] == 0
    arguments = (none["rotations"], none["owner"], p["images"], p["ctf2"], p["kx"], p["ky"], PADDING)
    cross, norm = backend.call("score_candidates", p["volume"], *arguments)
    assert cross.shape == (0, p["images"].shape[1])
    assert norm.shape == (0,)


def test_cuda_module_imports_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "cupy", None)
    module = importlib.reload(cuda)
    with pytest.raises(RuntimeError, match="CuPy"):
        _ = module.xp
