# SPDX-License-Identifier: GPL-3.0-or-later
"""The expectation step: how likely is each orientation and shift, for each image?

With a = C X / sigma^2 and c = C^2 / sigma^2, the log-likelihood of orientation r and shift t is, up to a constant,

    score(r, t) = Re <T_t a, P_r> - 1/2 sum_j c_j |P_rj|^2 + log prior.

The first level of a global search scores every orientation of a shared grid: one matrix product for the cross terms of
a block of images and shifts, one for the norm terms. Later levels halve the angular and shift steps inside the cells
that can still carry posterior mass, at the resolution that belongs to the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.physics.sampling import GlobalGrid, LocalGrid
from sparsecv.engine.refine.images import ImageBatch

HOPELESS = -1e30  # score of a candidate that could not be computed
SHIFT_CHILDREN = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])


@dataclass(frozen=True)
class Level:
    """One level of the search.

    Attributes
    ----------
    depth
        Level of the grid: where it is that of the level before, the surviving cells are compared again, not split.
    shell
        Highest shell compared.
    shift_step
        Spacing of the shifts, pixels.
    margin
        Nats below the best score at which a cell is given up for the next level.
    keep
        Most orientation cells of an image that are carried on.
    keep_shifts
        Shifts of an image that are carried on.
    """

    depth: int
    shell: int
    shift_step: float
    margin: float
    keep: int
    keep_shifts: int


@dataclass(frozen=True)
class SearchPlan:
    """Levels of a search, coarse to fine, and its prior on shifts.

    Attributes
    ----------
    grid, levels
        Orientations, and how they are searched.
    shifts
        (T, 2) shifts of level 0 relative to the present one, pixels.
    shift_sigma
        Width of the Gaussian prior on shifts, pixels.
    confidence
        Factor of the log-likelihood. Below 1 it widens posteriors that are too narrow because a particle is also in its
        own reference, and because what images hold beside the reference (detergent) is no white noise.
    """

    grid: GlobalGrid | LocalGrid
    levels: tuple[Level, ...]
    shifts: np.ndarray
    shift_sigma: float
    confidence: float = 1.0


@dataclass
class Posterior:
    """Significant orientations and shifts of a batch.

    Attributes
    ----------
    owner
        (C,) int32 image of the batch that each orientation belongs to, ascending.
    rotations
        (C, 3, 3) float64.
    shifts
        (I, T, 2) pixels (x, y), relative to the batch's ``centre_px``.
    weights
        (C, T) float32 posterior probabilities; each image's sum to 1.
    log_evidence
        (I,) log of the sum of the likelihoods, up to a constant of the image; NaN where no score could be computed.
    best_probability
        (I,) largest posterior probability of a single sample.
    significant
        (I,) number of samples kept.
    """

    owner: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    weights: np.ndarray
    log_evidence: np.ndarray
    best_probability: np.ndarray
    significant: np.ndarray


class GridBank:
    """Slices of the shared grid at the first level, cut once per reference and iteration."""

    def __init__(self, ops: Any, volume: Any, plan: SearchPlan, disc: Disc, padding: int) -> None:
        xp = ops.xp
        self.cells = plan.grid.cells()
        self.disc = disc.crop(plan.levels[0].shell)
        rotations = plan.grid.rotations(self.cells, 0)
        kx, ky = xp.asarray(self.disc.kx), xp.asarray(self.disc.ky)
        slices = ops.extract_slices(volume, xp.asarray(rotations.astype(np.float32)), kx, ky, padding)
        self.power = (slices.real**2 + slices.imag**2).astype(xp.float32)
        self.pairs = slices.view(xp.float32)

    def products(self, ops: Any, images: Any, ctf2: Any, shifts: np.ndarray) -> tuple[Any, Any]:
        """Cross terms (I, T, R) and norm terms (I, R) of images (I, J) at shifts (I, T, 2), by matrix products."""
        xp, (count, j) = ops.xp, images.shape
        kx, ky = xp.asarray(self.disc.kx), xp.asarray(self.disc.ky)
        moved = ops.shift_images(images, xp.asarray(shifts.astype(np.float32)), kx, ky, self.disc.box)
        rows = moved.view(xp.float32).reshape(-1, 2 * j)
        return (rows @ self.pairs.T).reshape(count, shifts.shape[1], -1), ctf2 @ self.power.T

    def scale(self, factor: float) -> None:
        """Multiply the reference by a factor."""
        self.pairs *= np.float32(factor)
        self.power *= np.float32(factor**2)


def find_posterior(
    ops: Any,
    volume: Any,
    batch: ImageBatch,
    plan: SearchPlan,
    disc: Disc,
    padding: int,
    rotations: np.ndarray,
    shifts: np.ndarray,
    bank: GridBank | None,
) -> Posterior:
    """Posterior over orientations and shifts of a batch of images.

    Parameters
    ----------
    volume
        Fourier volume of the reference.
    rotations
        (I, 3, 3) centres of a local search; not used by a global one.
    shifts
        (I, 2) present shifts relative to the batch's centre, pixels: where the search for shifts starts. The prior on
        shifts is around them in a local search, and around the centre of the box in a global one.
    bank
        Slices of the shared grid for a global search; None for a local one.
    """
    count = len(batch.index)
    expected = shifts if bank is None else -batch.centre_px.astype(np.float64)
    tried = plan.shifts[None] + shifts[:, None, :]
    if bank is not None:
        best_r, best_t = _score_grid(ops, batch, tried, _shift_prior(tried, expected, plan.shift_sigma), bank)
        owner, cell_index = _prune_dense(best_r, plan.levels[0])
        cells = bank.cells[cell_index]
        first = 1
        tried = _finer_shifts(best_t, tried, plan.levels[0], plan.levels[1].shift_step)
        owner, cells = _split(plan, owner, cells, 0)
    else:
        start = plan.grid.cells()
        owner = np.repeat(np.arange(count, dtype=np.int32), len(start))
        cells = np.tile(start, (count, 1))
        first = 0
    for number in range(first, len(plan.levels)):
        level = plan.levels[number]
        candidates = _rotations(plan.grid, cells, level.depth, owner, rotations)
        score = _score_candidates(ops, volume, batch, owner, candidates, tried, disc.crop(level.shell), padding)
        score *= np.float32(plan.confidence)
        score += plan.grid.log_prior(cells, level.depth).astype(np.float32)[:, None]
        score += _shift_prior(tried, expected, plan.shift_sigma)[owner]
        # An image whose scores are no numbers must not stop the others: it ends with no posterior at all.
        np.nan_to_num(score, copy=False, nan=HOPELESS, posinf=HOPELESS, neginf=HOPELESS)
        if number + 1 == len(plan.levels):
            return _normalise(owner, candidates, tried, score, count, level)
        kept = _prune(owner, score.max(axis=1), level)
        best_t = np.maximum.reduceat(score, _starts(owner, count), axis=0)
        tried = _finer_shifts(best_t, tried, level, plan.levels[number + 1].shift_step)
        owner, cells = _split(plan, owner[kept], cells[kept], number)
    raise ValueError("a global search needs at least two levels")


def _score_grid(
    ops: Any, batch: ImageBatch, shifts: np.ndarray, shift_prior: np.ndarray, bank: GridBank
) -> tuple[np.ndarray, np.ndarray]:
    """Best score over shifts for each orientation (I, R), and over orientations for each shift (I, T)."""
    xp, j = ops.xp, len(bank.disc)
    images, ctf2 = weighted_images(batch, j)
    cross, norm = bank.products(ops, images, ctf2, shifts)
    cross += xp.asarray(shift_prior)[:, :, None]
    cross -= xp.float32(0.5) * norm[:, None, :]
    best = ops.to_host(cross.max(axis=1)), ops.to_host(cross.max(axis=2))
    for values in best:
        np.nan_to_num(values, copy=False, nan=HOPELESS, posinf=HOPELESS, neginf=HOPELESS)
    return best


def weighted_images(batch: ImageBatch, pixels: int) -> tuple[Any, Any]:
    """a = C X / sigma^2 and c = C^2 / sigma^2 of the first pixels of the disc, (I, J) each."""
    ctf, inverse = batch.ctf[:, :pixels], batch.inverse_noise[:, :pixels]
    weight = ctf * inverse
    return batch.masked[:, :pixels] * weight, ctf * weight


def _score_candidates(
    ops: Any,
    volume: Any,
    batch: ImageBatch,
    owner: np.ndarray,
    rotations: np.ndarray,
    shifts: np.ndarray,
    disc: Disc,
    padding: int,
) -> np.ndarray:
    """Scores (C, T) float32 on the host."""
    xp = ops.xp
    images, ctf2 = weighted_images(batch, len(disc))
    kx, ky = xp.asarray(disc.kx), xp.asarray(disc.ky)
    moved = ops.shift_images(images, xp.asarray(shifts.astype(np.float32)), kx, ky, disc.box)
    cross, norm = ops.score_candidates(
        volume, xp.asarray(rotations.astype(np.float32)), xp.asarray(owner), moved, ctf2, kx, ky, padding
    )
    return ops.to_host(cross - xp.float32(0.5) * norm[:, None])


def _shift_prior(shifts: np.ndarray, centre: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian log prior of shifts (I, T), float32."""
    return (-0.5 * ((shifts - centre[:, None, :]) ** 2).sum(axis=2) / sigma**2).astype(np.float32)


def _starts(owner: np.ndarray, count: int) -> np.ndarray:
    """First row of each image's run in ``owner``; every image has at least one."""
    return np.searchsorted(owner, np.arange(count))


def _prune_dense(best: np.ndarray, level: Level) -> tuple[np.ndarray, np.ndarray]:
    """Image and column of the entries of (I, R) within the margin, at most ``keep`` per image."""
    threshold = best.max(axis=1) - level.margin
    if best.shape[1] > level.keep:
        cap = np.partition(best, best.shape[1] - level.keep, axis=1)[:, best.shape[1] - level.keep]
        threshold = np.maximum(threshold, cap)
    kept = best >= threshold[:, None]
    is_hopeless = best.max(axis=1) <= HOPELESS / 2
    kept[is_hopeless] = False
    kept[is_hopeless, 0] = True  # all its entries are equal: one stands for them
    owner, column = np.nonzero(kept)
    return owner.astype(np.int32), column


def _prune(owner: np.ndarray, best: np.ndarray, level: Level) -> np.ndarray:
    """Indices of the candidates within the margin of their image's best, at most ``keep`` per image."""
    count = int(owner[-1]) + 1
    top = np.maximum.reduceat(best, _starts(owner, count))
    alive = np.flatnonzero(best >= top[owner] - level.margin)
    alive = alive[np.lexsort((-best[alive], owner[alive]))]
    rank = np.arange(len(alive)) - _starts(owner[alive], count)[owner[alive]]
    return np.sort(alive[rank < level.keep])


def _finer_shifts(best: np.ndarray, shifts: np.ndarray, level: Level, step: float) -> np.ndarray:
    """The four children of each image's best shifts, (I, 4 keep, 2)."""
    keep = min(level.keep_shifts, shifts.shape[1])
    if step >= level.shift_step:
        order = np.argsort(-best, axis=1)[:, : min(4 * level.keep_shifts, shifts.shape[1])]
        return np.take_along_axis(shifts, order[:, :, None], axis=1)
    order = np.argsort(-best, axis=1)[:, :keep]
    parents = np.take_along_axis(shifts, order[:, :, None], axis=1)
    return (parents[:, :, None, :] + SHIFT_CHILDREN * (level.shift_step / 4)).reshape(len(shifts), -1, 2)


def _split(plan: SearchPlan, owner: np.ndarray, cells: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells that the level after ``number`` compares."""
    depth = plan.levels[number].depth
    if plan.levels[number + 1].depth == depth:
        return owner, cells
    children = plan.grid.children(cells, depth)
    return np.repeat(owner, children.shape[1]), children.reshape(-1, children.shape[2])


def _rotations(
    grid: GlobalGrid | LocalGrid, cells: np.ndarray, level: int, owner: np.ndarray, prior: np.ndarray
) -> np.ndarray:
    rotations = grid.rotations(cells, level)
    return np.matmul(rotations, prior[owner]) if isinstance(grid, LocalGrid) else rotations


def _normalise(
    owner: np.ndarray, rotations: np.ndarray, shifts: np.ndarray, score: np.ndarray, count: int, level: Level
) -> Posterior:
    """Posterior probabilities; what lies below the margin of the last level is dropped."""
    starts = _starts(owner, count)
    top = np.maximum.reduceat(score.max(axis=1), starts)
    weights = np.exp(score - top[owner][:, None])
    weights[weights < np.exp(-level.margin)] = 0
    mass = np.add.reduceat(weights.sum(axis=1, dtype=np.float64), starts)
    is_hopeless = top <= HOPELESS / 2
    weights *= np.where(is_hopeless, 0, 1 / mass)[owner][:, None].astype(np.float32)
    significant = np.add.reduceat(np.count_nonzero(weights, axis=1), starts)
    # A hopeless image keeps its first candidate, at weight 0, so that every image has one.
    has_weight = weights.any(axis=1)
    has_weight[starts[is_hopeless]] = True
    kept = np.flatnonzero(has_weight)
    return Posterior(
        owner=owner[kept],
        rotations=rotations[kept],
        shifts=shifts,
        weights=weights[kept],
        log_evidence=np.where(is_hopeless, np.nan, top + np.log(mass)),
        best_probability=1 / mass,
        significant=significant,
    )
