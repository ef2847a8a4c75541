# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernels of the sparse + TV prior on every back end: against the definition, and by what they have to be."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import Backend
from cuda_host import host
from cuda_host.problem import make_sparse_tv_problem, run_sparse_tv

from sparsecv.kernels import cuda_launch, cuda_sparse_tv, reference

SIDES = (1, 2, 5, 8, 13, 33)  # 33: one more than blocks and chunks hold along x, y and z


def _normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _filled(side: int, value: float) -> np.ndarray:
    return np.full((side, side, side), value, np.float32)


def _differences(backend: Backend, x: np.ndarray) -> np.ndarray:
    """D x, (3, G, G, G) float32, from relax_step: with w2 = 0, 0 + 1 (D x - 0)."""
    zero, w2 = np.zeros_like(x), np.zeros((3, *x.shape), np.float32)
    backend.call("relax_step", x, zero.copy(), w2, zero, zero, 1.0, 1.0, 1.0)
    return w2


def _adjoint_differences(backend: Backend, u: np.ndarray) -> np.ndarray:
    """D^T u, (G, G, G) float64, from split_step: without thresholds z2 = w2 = u, and 2 z2 - w2 = u."""
    zero = np.zeros(u.shape[1:], np.float32)
    return backend.call("split_step", zero, zero, u, zero, zero, 1.0, 1.0, 2.0)


def _vector_prox(backend: Backend, w2: np.ndarray, c: np.ndarray, rho2: float) -> np.ndarray:
    """z2, (3, G, G, G) float32, from relax_step: with x = 0, w2 becomes w2 - z2."""
    zero, moved = np.zeros_like(c), w2.copy()
    backend.call("relax_step", zero, zero.copy(), moved, zero, c, 1.0, rho2, 1.0)
    return w2 - moved


# ------------------------------------------------------------------------------------ against the definition
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_results_are_the_definition(backend: Backend, side: int, positive: bool) -> None:
    """At every voxel: a wrong one at the end of each row would be lost in a norm."""
    problem = make_sparse_tv_problem(side)
    given = {name: array.copy() for name, array in problem.items()}
    expected = run_sparse_tv(reference, problem, positive=positive)
    found = run_sparse_tv(backend.ops, {n: backend.up(array) for n, array in problem.items()}, positive=positive)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        largest = np.abs(value).max()
        np.testing.assert_allclose(backend.down(found[name]), value, rtol=1e-5, atol=1e-6 * largest, err_msg=name)
    for name, array in given.items():
        np.testing.assert_array_equal(problem[name], array, err_msg=f"{name} was changed")


def test_types(backend: Backend) -> None:
    problem = {name: backend.up(array) for name, array in make_sparse_tv_problem(5).items()}
    real = np.float64 if backend.ops is reference else np.float32
    for name, value in run_sparse_tv(backend.ops, problem, positive=False).items():
        if name in ("l1 norm", "TV norm"):
            assert type(value) is float, name
        else:
            assert isinstance(value, backend.ops.xp.ndarray), name
            assert value.dtype == (np.float32 if name in ("w1", "w2") else real), name


def test_definition_takes_doubles() -> None:
    single = make_sparse_tv_problem(5)
    double = {name: array.astype(np.float64) for name, array in single.items()}
    expected = run_sparse_tv(reference, single, positive=False)
    for name, value in run_sparse_tv(reference, double, positive=False).items():
        tolerance = 1e-6 if name in ("w1", "w2") else 1e-14  # those two were rounded to single precision
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


# ----------------------------------------------------------------------------------------- soft threshold
def test_soft_threshold_is_equation_21(backend: Backend) -> None:
    """[Luo2019, eq. 21] case by case; the numbers are exact in single precision, and so is the result."""
    w1 = (np.arange(-62, 63) / 8).reshape(5, 5, 5).astype(np.float32)
    a = _filled(5, 1.5)
    a[2, 2] = 0
    threshold = a / 2
    expected = np.where(np.abs(w1) < threshold, 0, w1 - threshold * np.sign(w1))
    np.testing.assert_array_equal(backend.call("sparse_prox", w1, a, 2.0), expected)
    assert np.count_nonzero(np.abs(w1) == threshold) >= 3  # the two ends of the flat part, and w1 = 0 without threshold
    expected = np.where(w1 < threshold, 0, w1 - threshold)
    np.testing.assert_array_equal(backend.call("sparse_prox", w1, a, 2.0, True), expected)


@pytest.mark.parametrize("positive", [False, True])
def test_soft_threshold_minimises(backend: Backend, positive: bool) -> None:
    """(z - w)^2 / 2 + t |z| is nowhere lower: not on a grid over all that matters, not after small random steps."""
    rng = np.random.default_rng(2)
    w1, a = _normal(5, 5, 5), rng.exponential(1, (5, 5, 5)).astype(np.float32)
    rho1, lowest = 1.3, 0.0 if positive else -4.0
    z1 = backend.call("sparse_prox", w1, a, rho1, positive)
    assert 20 < np.count_nonzero(z1) < 105
    assert z1.min() >= lowest

    def cost(z: Any) -> Any:
        return (z - w1.astype(np.float64)) ** 2 / 2 + a.astype(np.float64) / rho1 * np.abs(z)

    steps = rng.choice([1e-3, 1e-2, 0.1, 1], (2000, 1, 1, 1)) * rng.standard_normal((2000, 5, 5, 5))
    for others in (np.linspace(lowest, 4, 2001).reshape(-1, 1, 1, 1), np.maximum(z1 + steps, lowest)):
        assert np.all(cost(others).min(axis=0) >= cost(z1) - 1e-12)


def test_vector_shrinkage_minimises(backend: Backend) -> None:
    """|z - w|^2 / 2 + t |z| is nowhere lower, for the vector at each voxel."""
    rng = np.random.default_rng(3)
    w2, c, rho2 = _normal(3, 5, 5, 5), rng.exponential(2, (5, 5, 5)).astype(np.float32), 1.3
    z2 = _vector_prox(backend, w2, c, rho2).astype(np.float64)
    kept = np.any(z2 != 0, axis=0)
    assert 20 < np.count_nonzero(kept) < 105

    def cost(z: Any) -> Any:  # z (..., 3, G, G, G)
        distance = np.sum((z - w2.astype(np.float64)) ** 2, axis=-4)
        return distance / 2 + c.astype(np.float64) / rho2 * np.sqrt(np.sum(z**2, axis=-4))

    steps = rng.choice([1e-3, 1e-2, 0.1, 1], (2000, 1, 1, 1, 1)) * rng.standard_normal((2000, 3, 5, 5, 5))
    axis = np.linspace(-3.6, 3.6, 13)
    grid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3, 1, 1, 1)
    along = np.linspace(-1, 2, 301).reshape(-1, 1, 1, 1, 1) * w2
    for others in (z2 + steps, grid, along):
        assert np.all(cost(others).min(axis=0) >= cost(z2) - 1e-12)


def test_forbidden_voxels_and_zero_vectors(backend: Backend) -> None:
    """Where a is huge z1 is exactly 0, whatever w1; a vector of length 0 stays 0, with a threshold and without."""
    side, x, w1 = 8, _normal(8, 8, 8), 1e3 * _normal(8, 8, 8, seed=2)
    a, c, w2 = _filled(side, 1e20), _filled(side, 0.5), np.zeros((3, side, side, side), np.float32)
    c[: side // 2] = 0
    assert not backend.call("sparse_prox", w1, a, 1e-3).any()
    right_side = backend.call("split_step", x, w1, w2, a, c, 2.0, 3.0, 2.0)
    np.testing.assert_allclose(right_side, x - 2.0 * w1.astype(np.float64), rtol=1e-6, atol=1e-4)
    moved = w1.copy()
    backend.call("relax_step", x, moved, w2, a, c, 2.0, 3.0, 1.5)
    np.testing.assert_allclose(moved, w1 + 1.5 * x, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(w2, 1.5 * _differences(backend, x), rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------------------------- differences
@pytest.mark.parametrize("side", SIDES)
def test_differences_are_forward_along_x_y_z_and_periodic(backend: Backend, side: int) -> None:
    """D of x + 10 y + 100 z: the steps are 1, 10, 100, and back to the beginning at the end of each axis; exact."""
    z, y, x = np.meshgrid(*[np.arange(side)] * 3, indexing="ij")
    steps = _differences(backend, (x + 10 * y + 100 * z).astype(np.float32))
    for component, position, size in zip(steps, (x, y, z), (1, 10, 100), strict=True):
        np.testing.assert_array_equal(component, np.where(position < side - 1, size, -(side - 1) * size))


@pytest.mark.parametrize("side", SIDES)
def test_adjoint(backend: Backend, side: int) -> None:
    """<D x, u> = <x, D^T u>; and D^T takes the value at one voxel to that voxel and the next ones, exactly."""
    x, u = _normal(side, side, side), _normal(3, side, side, side, seed=2)
    left = np.sum(_differences(backend, x).astype(np.float64) * u)
    right = np.sum(x * _adjoint_differences(backend, u))
    assert left == pytest.approx(right, abs=1e-6 * float(np.linalg.norm(x) * np.linalg.norm(u)))
    if side == 1:
        return
    u, expected = np.zeros_like(u), np.zeros_like(x)
    last = side - 1
    u[:, last, last, last] = 1, 10, 100
    expected[last, last, last] = -111
    expected[last, last, 0] += 1
    expected[last, 0, last] += 10
    expected[0, last, last] += 100
    np.testing.assert_array_equal(_adjoint_differences(backend, u), expected)


# -------------------------------------------------------------------------------------------------- the norms
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 1), (4, 4, 4)])
def test_norms_of_a_point(backend: Backend, place: tuple[int, int, int]) -> None:
    """A point of height h: |D x| is sqrt(3) h there and h at the three voxels before it."""
    x = _filled(5, 0)
    x[place] = -0.5
    a, c = _filled(5, 2), _filled(5, 3)
    sparse, variation = backend.call("penalties", x, a, c)
    assert sparse == pytest.approx(2 * 0.5, rel=1e-6)
    assert variation == pytest.approx(3 * (np.sqrt(3) + 3) * 0.5, rel=1e-6)
    sparse_weights, variation_weights = backend.call("penalty_weights", x, 0.25, 0.125)
    expected, expected_variation = _filled(5, 1 / 0.25), _filled(5, 1 / 0.125)
    expected[place] = 1 / (0.5 + 0.25)
    expected_variation[place] = 1 / (0.5 * np.sqrt(3) + 0.125)
    for axis in range(3):
        before = tuple((p - (k == axis)) % 5 for k, p in enumerate(place))
        expected_variation[before] = 1 / (0.5 + 0.125)
    np.testing.assert_allclose(sparse_weights, expected, rtol=1e-6)
    np.testing.assert_allclose(variation_weights, expected_variation, rtol=1e-6)


def test_weighted_norms_are_tangent_above_the_logarithms(backend: Backend) -> None:
    """sum log(|y| + eps) <= sum log(|x| + eps) + sum a (|y| - |x|), equal at first order in y - x."""
    x, eps, eps_gradient = _normal(8, 8, 8).astype(np.float32), 0.3, 0.1

    def logarithms(y: np.ndarray) -> np.ndarray:
        y = y.astype(np.float64)
        steps = [np.roll(y, -1, axis) - y for axis in range(3)]
        length = np.sqrt(sum(step**2 for step in steps))
        return np.array([np.sum(np.log(np.abs(y) + eps)), np.sum(np.log(length + eps_gradient))])

    a, c = (w.astype(np.float32) for w in backend.call("penalty_weights", x, eps, eps_gradient))
    tangent = np.array(backend.call("penalties", x, a, c))
    for size in (1e-3, 0.1, 1, 10):
        y = (x + size * _normal(8, 8, 8, seed=4)).astype(np.float32)
        rise = np.array(backend.call("penalties", y, a, c)) - tangent
        assert np.all(logarithms(y) - logarithms(x) <= rise + 1e-3 * size)
        if size == 1e-3:
            np.testing.assert_allclose(logarithms(y) - logarithms(x), rise, rtol=0.05, atol=0.02)


# ------------------------------------------------------------------------------------- the smoothed TV norm
def _smoothed_norm(x: np.ndarray, c: np.ndarray, mu: float) -> float:
    """[Luo2019, eq. 14] in closed form: the maximum over |u| <= 1 is at u = D x / max(|D x|, mu)."""
    length = np.sqrt(sum((np.roll(x, -1, axis) - x) ** 2 for axis in range(3)))
    return float(np.sum(c * np.where(length < mu, length**2 / (2 * mu), length - mu / 2)))


def test_closed_form_of_the_smoothed_norm_is_equation_14() -> None:
    """The maximum of <u, D x> - mu |u|^2 / 2 over vectors of length up to 1."""
    rng, mu = np.random.default_rng(5), 1.5
    x = rng.standard_normal((4, 4, 4))
    steps = np.stack([np.roll(x, -1, axis) - x for axis in (2, 1, 0)])
    length = np.sqrt(np.sum(steps**2, axis=0))
    assert 10 < np.count_nonzero(length < mu) < 54

    def value(u: np.ndarray) -> float:
        return float(np.sum(u * steps) - mu / 2 * np.sum(u**2))

    best = _smoothed_norm(x, np.ones_like(x), mu)
    maximiser = steps / np.maximum(length, mu)
    assert value(maximiser) == pytest.approx(best, rel=1e-12)
    for size in (1e-3, 0.1, 1, 10):
        other = maximiser + size * rng.standard_normal(steps.shape)
        assert value(other / np.maximum(np.sqrt(np.sum(other**2, axis=0)), 1)) < best


def test_smoothed_variation_gradient_is_the_gradient(backend: Backend) -> None:
    """Against central differences of the norm along each voxel, in double precision."""
    x, c, mu, h = _normal(5, 5, 5), np.random.default_rng(6).random((5, 5, 5), dtype=np.float32), 2.0, 1e-5
    gradient = backend.call("smoothed_variation_gradient", x, c, mu)
    expected = np.empty(x.shape)
    for voxel in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[voxel] = h
        ends = (_smoothed_norm(x.astype(np.float64) + sign * step, c.astype(np.float64), mu) for sign in (1, -1))
        expected[voxel] = (next(ends) - next(ends)) / (2 * h)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=2e-6)


def test_smoothed_variation_gradient_is_equations_16_and_17(backend: Backend) -> None:
    """Written out as in the paper, i along x; its backward differences are ours of the mirrored map."""
    n, mu = 5, 2.0
    ours = _normal(n, n, n)
    x = ours[::-1, ::-1, ::-1].T.astype(np.float64)  # [i, j, k], mirrored
    shifts = np.eye(3, dtype=int)
    u = np.empty((3, n, n, n))
    is_smooth = []
    for i, j, k in np.ndindex(n, n, n):
        d = np.array([x[i, j, k] - x[i - 1, j, k], x[i, j, k] - x[i, j - 1, k], x[i, j, k] - x[i, j, k - 1]])  # eq. 12
        is_smooth.append(np.linalg.norm(d) < mu)
        u[:, i, j, k] = d / mu if is_smooth[-1] else d / np.linalg.norm(d)  # eq. 16
    assert 20 < sum(is_smooth) < 105
    expected = np.zeros((n, n, n))
    for place in np.ndindex(n, n, n):
        for a in range(3):
            following = tuple((np.array(place) + shifts[a]) % n)
            expected[place] += u[a][place] - u[a][following]  # eq. 17
    found = backend.call("smoothed_variation_gradient", ours, _filled(n, 1), mu)
    np.testing.assert_allclose(found[::-1, ::-1, ::-1].T, expected, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------- the whole iteration
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_iterations_reach_the_fused_lasso(backend: Backend, axis: int) -> None:
    """F with H = 1 and a map of two levels has a closed form (Friedman et al., Ann. Appl. Stat. 1, 302 (2007)).

    TV moves each level by 2 c / (its voxels along the axis), as two steps bound it; l1 then thresholds the result by a.
    """
    side, a, c = 8, 0.2, 0.3
    profile = np.where(np.arange(side) < side // 2, -0.5, 1.5).astype(np.float32)
    b = np.ascontiguousarray(np.moveaxis(np.broadcast_to(profile, (side, side, side)), 2, axis))
    level = {-0.5: -0.5 + 4 * c / side, 1.5: 1.5 - 4 * c / side}
    expected = np.where(b < 0, level[-0.5] + a, level[1.5] - a)
    expected_positive = np.where(b < 0, 0, level[1.5] - a)
    frequency = 2 - 2 * np.cos(2 * np.pi * np.arange(side) / side)
    laplacian = frequency[:, None, None] + frequency[:, None] + frequency  # D^T D
    rho1, rho2 = 1.0, 0.5
    volumes_a, volumes_c = _filled(side, a), _filled(side, c)
    for positive, solution in ((False, expected), (True, expected_positive)):
        w1, w2 = b.copy(), _differences(backend, b)
        for _ in range(60):
            right_side = backend.call("split_step", b, w1, w2, volumes_a, volumes_c, rho1, rho2, 2.0, positive)
            x = np.fft.ifftn(np.fft.fftn(right_side) / (1 + rho1 + rho2 * laplacian)).real.astype(np.float32)
            backend.call("relax_step", x, w1, w2, volumes_a, volumes_c, rho1, rho2, 1.7, positive)
        np.testing.assert_allclose(backend.call("sparse_prox", w1, volumes_a, rho1, positive), solution, atol=1e-5)


# --------------------------------------------------------------------------------------------------- the edges
FAULTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another shape": lambda p: {"a": p["a"][:4]},
    "no cube": lambda p: {name: array[..., :4].copy() for name, array in p.items()},
    "no vectors": lambda p: {"w2": p["a"]},
    "double precision": lambda p: {"a": p["a"].astype(np.float64)},
    "not contiguous": lambda p: {"a": p["a"].T},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_arrays_are_refused(backend: Backend, fault: str) -> None:
    p = {name: backend.up(array) for name, array in make_sparse_tv_problem(5).items()}
    p |= FAULTS[fault](p)  # made there: an upload might tidy them up
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("split_step", (p["b"], p["w1"], p["w2"], p["a"], p["c"], 1.0, 1.0, 2.0)),
        ("relax_step", (p["x"], p["w1"], p["w2"], p["a"], p["c"], 1.0, 1.0, 1.0)),
    ]
    if fault != "no vectors":
        calls += [("sparse_prox", (p["w1"], p["a"], 1.0)), ("penalties", (p["x"], p["a"], p["c"]))]
        calls += [("penalty_weights", (p["a"], 1.0, 1.0)), ("smoothed_variation_gradient", (p["a"], p["c"], 1.0))]
    for name, arguments in calls:
        operation = getattr(backend.ops, name)
        if backend.ops is reference and fault in ("double precision", "not contiguous"):
            operation(*arguments)  # the definition takes any real array
        else:
            with pytest.raises(ValueError, match=r"shape|contiguous float32"):
                operation(*arguments)


def test_threads_do_not_change_the_result() -> None:
    numba = pytest.importorskip("numba")
    ops = pytest.importorskip("sparsecv.kernels.cpu", exc_type=ImportError)
    problem, before, results = make_sparse_tv_problem(33), numba.get_num_threads(), []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            results.append(run_sparse_tv(ops, problem, positive=False))
    finally:
        numba.set_num_threads(before)
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)


# ------------------------------------------------------------------------------------ volumes beyond 2^31 numbers
def _unbacked(*shape: int) -> np.ndarray:
    """Zeros (float32) that take memory only where they are written."""
    noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, 4 * int(np.prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="needs Linux's memory management")
def test_indices_of_large_volumes_do_not_overflow() -> None:
    """One column of blocks through volumes of side 1024, whose w2 has 3 x 2^30 numbers."""
    if host.compiler() is None:
        pytest.skip("g++ is not installed")
    side, last = 1024, 1023
    x, w1, a, c, b, out = (_unbacked(side, side, side) for _ in range(6))
    w2 = _unbacked(3, side, side, side)
    x[last, 0, 0], x[0, 0, 0], x[last, 1, 1], w2[2, last, 1, 1] = 3, 1, 5, 7
    macros = {"ROW": cuda_sparse_tv.ROW, "PLANES": cuda_sparse_tv.PLANES}
    module = host.HostModule(cuda_launch.source("sparse_tv"), cuda_launch.options(**macros))
    grid = (1, 1, cuda_sparse_tv._grid(side)[2])
    one = np.float32(1)
    block = (cuda_launch.THREADS,)
    module.get_function("split_step")(
        grid, block, (b, w1, w2, a, c, np.int32(side), one, one, np.float32(2), np.int32(0), out)
    )
    assert out[last, 1, 1] == -7
    assert out[0, 1, 1] == 7
    module.get_function("relax_step")(grid, block, (x, w1, w2, a, c, np.int32(side), one, one, one, np.int32(0)))
    assert w2[2, last, 0, 0] == 1 - 3
    assert w2[2, last, 1, 1] == 0 - 5
    assert w1[last, 1, 1] == 5
    assert w2[2, last - 1, 1, 1] == 5
