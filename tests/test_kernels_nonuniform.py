# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernels of non-uniform filtering on every back end: against the definition, and by what they have to be."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Backend
from cuda_host.problem import make_nonuniform_problem, run_nonuniform
from scipy import ndimage

from sparsecv.kernels import reference

SIZES = ((1, 1), (1, 2), (5, 2), (8, 2), (13, 4), (33, 2))  # sides and bins, partial ones too


def _normal(side: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((side, side, side)).astype(np.float32)


# ------------------------------------------------------------------------------------ against the definition
@pytest.mark.parametrize(("side", "bin"), SIZES)
def test_results_are_the_definition(backend: Backend, side: int, bin: int) -> None:
    problem = make_nonuniform_problem(side, bin)
    given = {name: np.copy(value) for name, value in problem.items()}
    expected = run_nonuniform(reference, problem)
    found = run_nonuniform(backend.ops, {name: backend.up(value) for name, value in problem.items()})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(backend.down(found[name]), value, rtol=2e-5, atol=1e-5 * np.abs(value).max(),
                                   err_msg=name)  # fmt: skip
    for name, value in given.items():
        np.testing.assert_array_equal(problem[name], value, err_msg=f"{name} was changed")


def test_types(backend: Backend) -> None:
    problem = {name: backend.up(value) for name, value in make_nonuniform_problem(6, 2).items()}
    is_definition = backend.ops is reference
    for name, value in run_nonuniform(backend.ops, problem).items():
        kinds = (np.complex64, np.complex128) if name.startswith("butterworth") else (np.float32, np.float64)
        wanted = {"chosen": np.uint8, "best": np.float32}.get(name, kinds[is_definition])
        assert value.dtype == wanted, name


# --------------------------------------------------------------------------------------------- what they are
def test_butterworth_at_its_cutoff(backend: Backend) -> None:
    """Amplitude 1/sqrt(2) at the cut-off whatever the order, 1 at 0, (cutoff / k)^n far beyond."""
    ones = np.ones((32, 32, 17), np.complex64)
    for order in (1, 2, 8):
        found = backend.call("butterworth", ones, 4.0, order)
        assert found[0, 0, 0] == pytest.approx(1)
        for voxel in ((4, 0, 0), (-4, 0, 0), (0, 0, 4)):
            assert found[voxel] == pytest.approx(2**-0.5, rel=1e-5)
        assert found[0, 16, 0].real == pytest.approx((4 / 16) ** order, rel=0.04)


def test_error_is_equation_4(backend: Backend) -> None:
    """One voxel at a time: bins of one voxel."""
    m1, m2, f1, f2 = (_normal(4, seed) for seed in range(4))
    weight = np.full((4, 4, 4), 2.0, np.float32)
    found = backend.call("filtered_error", m1, m2, f1, f2, weight, 0.0, 1)
    np.testing.assert_allclose(found, 2 * ((f1 - m2) ** 2 + (f2 - m1) ** 2), rtol=1e-5)


def test_the_correction_makes_it_the_error_of_the_mean(backend: Backend) -> None:
    """Less the same for unfiltered maps: 2 |(f1 + f2) / 2 - x|^2 in the mean over noise, for the truth x."""
    rng, side = np.random.default_rng(1), 40
    truth = rng.standard_normal((side,) * 3).astype(np.float32)
    noise = [rng.standard_normal((side,) * 3).astype(np.float32) for _ in "12"]
    m1, m2 = truth + noise[0], truth + noise[1]
    ones = np.ones_like(truth)

    def error(gain: float) -> float:
        arguments = (m1, m2, np.float32(gain) * m1, np.float32(gain) * m2, ones, 1.0, 4)
        return float(backend.call("filtered_error", *arguments).sum())

    for gain in (0.3, 0.6667, 0.9):
        wanted = 2 * np.sum((gain * (m1 + m2) / 2 - truth) ** 2) - 2 * np.sum(truth**2)
        deviation = 4 * gain * (1.5 * side**3) ** 0.5  # of the difference, 4 g sum(m1 m2 - truth (m1 + m2) / 2)
        assert error(gain) - error(0.0) == pytest.approx(wanted, abs=4 * deviation)
    # Wiener's gain for the mean of two maps of SNR 1 is 2/3, not the 1/2 of one of them
    assert error(0.6667) < min(error(0.5), error(0.85))


def test_window_is_a_convolution(backend: Backend) -> None:
    errors, taps = _normal(9), np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
    expected = errors.astype(np.float64)
    for axis in range(3):
        expected = ndimage.correlate1d(expected, taps.astype(np.float64), axis=axis, mode="constant")
    np.testing.assert_allclose(backend.call("window", errors, taps), expected, rtol=1e-4, atol=1e-6)
    wide = np.full(41, 1 / 41, np.float32)  # wider than the volume
    np.testing.assert_allclose(backend.call("window", errors, wide), errors.sum(dtype=float) / 41**3, atol=1e-6)


def test_the_better_filter_is_taken_between_bins(backend: Backend) -> None:
    """The advantage is a ramp along x that changes its sign at voxel 8 of 16, in bins of 2; holes of the mask stay."""
    side = 16
    advantage = np.broadcast_to(np.arange(-7.0, 9.0, 2.0), (8, 8, 8)).astype(np.float32).copy()
    weight = np.ones((side,) * 3, np.float32)
    weight[3, 4, 2] = 0
    value, best, chosen = _normal(side), np.zeros((side,) * 3, np.float32), np.full((side,) * 3, 3, np.uint8)
    backend.call("take_better", advantage, 2, weight, 9, value, chosen, best)
    expected = np.broadcast_to(np.where(np.arange(side) < 8, 9, 3), chosen.shape).copy()
    expected[3, 4, 2] = 3
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(best, np.where(expected == 9, value, 0))


def test_what_does_not_fit_is_refused(backend: Backend) -> None:
    maps = [_normal(6, seed) for seed in range(4)]
    weight, chosen = np.ones((6, 6, 6), np.float32), np.zeros((6, 6, 6), np.uint8)
    with pytest.raises(ValueError, match="filtered2"):
        backend.call("filtered_error", *maps[:3], _normal(5), weight, 0.0, 2)
    with pytest.raises(ValueError, match="at least one voxel"):
        backend.call("filtered_error", *maps, weight, 0.0, 0)
    with pytest.raises(ValueError, match="odd number"):
        backend.call("window", _normal(3), np.ones(4, np.float32))
    with pytest.raises(ValueError):
        backend.call("take_better", _normal(2), 2, weight, 1, maps[0], chosen, maps[1])
    if backend.ops is not reference:
        with pytest.raises(ValueError, match="uint8"):
            backend.call("take_better", _normal(3), 2, weight, 1, maps[0], chosen.astype(np.int32), maps[1])


def test_large_windows_do_not_depend_on_threads() -> None:
    numba = pytest.importorskip("numba")
    from sparsecv.kernels import cpu

    problem, results = make_nonuniform_problem(33, 2), []
    before = numba.get_num_threads()
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        numba.set_num_threads(threads)
        results.append(run_nonuniform(cpu, problem))
    numba.set_num_threads(before)
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)
