# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition of the kernels that turn scores into posteriors, in float64 NumPy: what the others are tested against.

Candidates of one image follow each other, so that what is asked of each image is asked of a *run* of rows.

Arrays shared by the functions
------------------------------
offsets
    (I + 1,) integer, strictly ascending from 0: run i is the rows offsets[i] to offsets[i + 1], and none is empty.

A score that is no finite number counts as HOPELESS (`.contract`): a broken image must not stop the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.kernels.contract import HOPELESS, check_grid, check_runs

Array = Any  # numpy.ndarray; the shapes and types stand in each docstring


def grid_maxima(cross: Array, norm: Array, prior: Array) -> tuple[Array, Array]:
    """Best scores of images on a grid of R orientations and T shifts.

    s[i, t, r] = cross[i, t, r] + prior[i, t] - norm[i, r] / 2;  the maxima over t and over r.

    Parameters
    ----------
    cross, norm, prior
        (I, T, R), (I, R) and (I, T) real.

    Returns
    -------
    (I, R) and (I, T), float64.
    """
    check_grid(cross, norm, prior)
    with np.errstate(invalid="ignore", over="ignore"):
        score = np.asarray(cross, np.float64) + np.asarray(prior, np.float64)[:, :, None]
        score = score - np.asarray(norm, np.float64)[:, None, :] / 2
    score = np.where(np.isfinite(score), score, HOPELESS)
    return score.max(axis=1), score.max(axis=2)


def run_maxima(values: Array, offsets: Array) -> Array:
    """Largest value of each column (C, T) within each run, (I, T) float64."""
    check_runs(values, offsets, 2)
    return np.maximum.reduceat(np.asarray(values, np.float64), offsets[:-1], axis=0)


def run_sums(values: Array, offsets: Array) -> Array:
    """Sum of each column (C, K) within each run, (I, K) float64."""
    check_runs(values, offsets, 2)
    return np.add.reduceat(np.asarray(values, np.float64), offsets[:-1], axis=0)


def leaders(values: Array, offsets: Array, most: int) -> Array:
    """Rows of the largest values (C,) of each run, largest first, of equal ones the first row first.

    Returns
    -------
    (I, most) int32; -1 where the run has fewer rows.
    """
    check_runs(values, offsets, 1)
    rows = np.full((len(offsets) - 1, most), -1, np.int32)
    for run, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        order = np.argsort(-np.asarray(values[start:end]), kind="stable")[:most]
        rows[run, : len(order)] = start + order
    return rows


def mark_best(values: Array, offsets: Array, margin: float, most: int) -> Array:
    """Which rows (C,) are at most ``margin`` below the largest of their run, and among its `leaders`, (C,) bool."""
    check_runs(values, offsets, 1)
    marks = np.zeros(len(values), np.bool_)
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        run = np.asarray(values[start:end], np.float64)
        order = np.argsort(-run, kind="stable")[:most]
        marks[start + order] = run[order] >= run.max() - margin
    return marks


def normalise_runs(score: Array, offsets: Array, margin: float) -> tuple[Array, Array, Array, Array]:
    """Posterior probabilities of candidates and shifts from their scores (C, T).

    top_i = max s within the run;  w = exp(s - top_i) where s >= top_i - margin, else 0;  mass_i = sum w;
    weights = w / mass_i. A run whose best score is HOPELESS has weights 0.

    Returns
    -------
    weights (C, T) float64, top (I,) float64, mass (I,) float64, and the number of weights above 0, (I,) int32.
    """
    check_runs(score, offsets, 2)
    score = np.asarray(score, np.float64)
    weights = np.empty_like(score)
    count = len(offsets) - 1
    top, mass, significant = np.empty(count), np.empty(count), np.empty(count, np.int32)
    for run, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        own = score[start:end]
        top[run] = own.max()
        values = np.where(own >= top[run] - margin, np.exp(own - top[run]), 0)
        mass[run] = values.sum()
        weights[start:end] = values / mass[run] if top[run] > HOPELESS / 2 else 0
        significant[run] = np.count_nonzero(weights[start:end])
    return weights, top, mass, significant
