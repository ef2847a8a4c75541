# SPDX-License-Identifier: GPL-3.0-or-later
"""From scores to posteriors, on every back end: maxima, pruning, normalisation, and products of lower precision.

Back ends: see backends.py. That results are the definition's is in test_kernels.py.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from backends import Backend
from cuda_host.fake_cupy import rounded
from scipy.special import logsumexp

from sparsecv.kernels import reference
from sparsecv.kernels.contract import HOPELESS, PRECISIONS

SIZES = (1, 300, 2, 129, 5)  # of runs: one row, and more rows than a block has threads
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32)


def scores(columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, (OFFSETS[-1], columns)).astype(np.float32)


@pytest.mark.parametrize("orientations", [1, 63, 64, 200])
def test_grid_maxima_are_those_of_the_sum(backend: Backend, orientations: int) -> None:
    rng = np.random.default_rng(1)
    cross, norm = rng.normal(size=(3, 7, orientations)), rng.random((3, orientations))
    prior = -rng.random((3, 7))
    whole = cross + prior[:, :, None] - norm[:, None] / 2
    of_orientations, of_shifts = backend.call("grid_maxima", *(a.astype(np.float32) for a in (cross, norm, prior)))
    np.testing.assert_allclose(of_orientations, whole.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(of_shifts, whole.max(axis=2), atol=1e-6)


def test_what_is_no_number_is_hopeless(backend: Backend) -> None:
    """Image 0 has a few such scores, image 1 nothing else; a lowest score is still better than none."""
    cross = np.full((2, 3, 130), -1e6, np.float32)
    cross[0, 0, :5], cross[0, 1, 129], cross[0, :, 64] = np.nan, np.inf, -np.inf
    cross[1] = np.nan
    norm, prior = np.zeros((2, 130), np.float32), np.zeros((2, 3), np.float32)
    of_orientations, of_shifts = backend.call("grid_maxima", cross, norm, prior)
    finite = np.arange(130) != 64
    np.testing.assert_allclose(of_orientations[0, finite], -1e6)
    np.testing.assert_allclose(of_shifts[0], -1e6)
    for broken in (of_orientations[0, 64], of_orientations[1], of_shifts[1]):
        np.testing.assert_allclose(broken, np.float32(HOPELESS))


@pytest.mark.parametrize("columns", [1, 3, 12, 128, 131])
def test_maxima_and_sums_of_runs(backend: Backend, columns: int) -> None:
    values = scores(columns)
    parts = [values[start:end].astype(float) for start, end in pairwise(OFFSETS)]
    np.testing.assert_array_equal(backend.call("run_maxima", values, OFFSETS), [part.max(axis=0) for part in parts])
    found = backend.call("run_sums", values.astype(np.float64), OFFSETS)
    np.testing.assert_allclose(found, [part.sum(axis=0) for part in parts], rtol=1e-12, atol=1e-12)


def test_sums_of_runs_are_in_double_precision(backend: Backend) -> None:
    values = np.array([[1.0], [1e-12], [-1.0]])
    offsets = np.array([0, 3], np.int32)
    assert backend.call("run_sums", values, offsets)[0, 0] == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize("most", [1, 4, 140])
def test_leaders_are_the_largest_in_order(backend: Backend, most: int) -> None:
    values = np.round(scores(1)[:, 0])  # with many equal ones
    found = backend.call("leaders", values, OFFSETS, most).astype(int)
    for run, (start, end) in enumerate(pairwise(OFFSETS)):
        wanted = sorted(range(start, end), key=lambda row: (-values[row], row))[:most]
        assert found[run, : len(wanted)].tolist() == wanted
        assert (found[run, len(wanted) :] == -1).all()


@pytest.mark.parametrize("margin", [0.0, 3.0, 1e6])
@pytest.mark.parametrize("most", [1, 3, 10**6])
def test_marks_keep_the_best_and_no_more_than_asked(backend: Backend, margin: float, most: int) -> None:
    values = np.round(scores(1)[:, 0])
    marks = backend.call("mark_best", values, OFFSETS, margin, most).astype(bool)
    for start, end in pairwise(OFFSETS):
        near = [row for row in range(start, end) if values[row] >= values[start:end].max() - margin]
        wanted = sorted(near, key=lambda row: (-values[row], row))[:most]
        assert np.flatnonzero(marks[start:end]).tolist() == sorted(row - start for row in wanted)


def test_a_hopeless_run_still_keeps_a_candidate(backend: Backend) -> None:
    values = np.full(7, HOPELESS, np.float32)
    values[3] = -2e5
    offsets = np.array([0, 3, 7], np.int32)
    assert backend.call("mark_best", values, offsets, 8.0, 2).tolist() == [1, 1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("margin", [2.0, 7.0, 1e6])
def test_posteriors_are_the_softmax_of_each_run(backend: Backend, margin: float) -> None:
    score = scores(5)
    weights, top, mass, significant = backend.call("normalise_runs", score, OFFSETS, margin)
    for run, (start, end) in enumerate(pairwise(OFFSETS)):
        own = score[start:end].astype(float)
        kept = own >= own.max() - margin
        total = logsumexp(own[kept])
        np.testing.assert_allclose(weights[start:end], np.where(kept, np.exp(own - total), 0), rtol=1e-5, atol=1e-30)
        assert top[run] + np.log(mass[run]) == pytest.approx(total, abs=1e-5)
        assert significant[run] == np.count_nonzero(weights[start:end])


def test_a_hopeless_run_has_no_posterior(backend: Backend) -> None:
    score = np.full((4, 2), HOPELESS, np.float32)
    score[3] = -2e5, -2e5
    weights, top, _, significant = backend.call("normalise_runs", score, np.array([0, 2, 4], np.int32), 5.0)
    np.testing.assert_array_equal(weights, [[0, 0], [0, 0], [0, 0], [0.5, 0.5]])
    assert significant.tolist() == [0, 2] and top[1] == -2e5


def test_shapes_that_do_not_belong_together_are_refused(backend: Backend) -> None:
    grid = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="norm"):
        backend.call("grid_maxima", grid, np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="orientations"):
        backend.call("grid_maxima", grid[:, :0], np.zeros((2, 4), np.float32), np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="runs"):
        backend.call("run_maxima", np.zeros((2, 3), np.float32), np.arange(4, dtype=np.int32))
    with pytest.raises(ValueError, match="axes"):
        backend.call("mark_best", np.zeros((2, 3), np.float32), np.array([0, 2], np.int32), 1.0, 1)
    with pytest.raises(ValueError, match="second axis"):
        backend.call("product", np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="precision"):
        backend.call("product", np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), "fp8")


# ------------------------------------------------------------------------------------------------ matrix products
@pytest.mark.parametrize("precision", PRECISIONS)
def test_product_is_exact_but_for_its_rounding(backend: Backend, precision: str) -> None:
    rng = np.random.default_rng(1)
    rows, columns = (rng.standard_normal((n, 50)).astype(np.float32) for n in (7, 5))
    found = backend.call("product", rows[::-1], columns, precision)
    bits = {"tf32": 11, "bf16": 8}.get(precision, 24) if backend.ops.name == "cuda" else 24
    exact = rows[::-1].astype(float) @ columns.T
    bound = 1e-6 if bits == 24 else 2.0**-bits * 2
    magnitude = np.abs(rows[::-1]) @ np.abs(columns.T)
    assert (np.abs(found - exact) <= bound * magnitude).all()
    # powers of two are the same in every precision
    powers = [2.0 ** rng.integers(-2, 3, (n, 9)) for n in (2, 3)]
    found = backend.call("product", *(p.astype(np.float32) for p in powers), precision)
    np.testing.assert_array_equal(found, powers[0] @ powers[1].T)


def test_product_of_nothing(backend: Backend) -> None:
    none, some = np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32)
    assert backend.call("product", none, some).shape == (0, 3)
    np.testing.assert_array_equal(backend.call("product", some[:, :0], some[:, :0]), np.zeros((3, 3)))


def test_rounding_is_that_of_bfloat16_and_tf32() -> None:
    """The emulation that stands for the tensor cores, at ties and against NumPy's own float16 mantissa of 11 bits."""
    values = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8 - 2.0**-20, 3e38], np.float32)
    wanted = np.array([1, 1 + 2.0**-6, -1 - 2.0**-7, 2.0**127 * (1 + 98 / 128)], np.float32)
    np.testing.assert_array_equal(rounded(values, 8), wanted)
    values = np.random.default_rng(1).uniform(0.5, 2, 1000).astype(np.float32)
    np.testing.assert_array_equal(rounded(values, 11), values.astype(np.float16).astype(np.float32))


def test_the_definition_takes_what_the_device_takes() -> None:
    """float32 arguments, in double precision."""
    assert reference.product(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)).dtype == np.float64
