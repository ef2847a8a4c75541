# SPDX-License-Identifier: GPL-3.0-or-later
"""The expectation step: how likely is each orientation and shift, for each image?

With a = C X / sigma^2 and c = C^2 / sigma^2, the log-likelihood of orientation r and shift t is, up to a constant,

    score(r, t) = Re <T_t a, P_r> - 1/2 sum_j c_j |P_rj|^2 + log prior.

The first level of a global search scores every orientation of a shared grid: one matrix product for the cross terms of
a block of images and shifts, one for the norm terms. Later levels halve the angular and shift steps inside the cells
that can still carry posterior mass, at the resolution that belongs to the step.

All of it runs where the images are: arrays are those of ``ops.xp``, and no score leaves the device. Once per level the
host has to wait for it, to learn how many cells survive (`kept_rows`); nothing else here makes it wait.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.physics.sampling import GlobalGrid, LocalGrid
from sparsecv.engine.refine.images import ImageBatch
from sparsecv.engine.refine.precision import FULL, Precision, SignalPower
from sparsecv.kernels.contract import HOPELESS

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
    """Significant orientations and shifts of a batch; arrays on the device.

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

    owner: Any
    rotations: Any
    shifts: Any
    weights: Any
    log_evidence: Any
    best_probability: Any
    significant: Any

    def offsets(self, xp: Any) -> Any:
        """First orientation of each image and the end of the last one, (I + 1,) int32; every image has at least one."""
        return run_offsets(xp, self.owner, len(self.shifts))


def run_offsets(xp: Any, owner: Any, count: int) -> Any:
    """Where the runs of 0, 1 ... count - 1 in ``owner`` begin, and the end, (count + 1,) int32; none may be missing."""
    return xp.searchsorted(owner, xp.arange(count + 1, dtype=owner.dtype)).astype(xp.int32)


class GridBank:
    """Slices of the shared grid at the first level, cut once per reference and iteration."""

    def __init__(self, ops: Any, volume: Any, plan: SearchPlan, disc: Disc, padding: int) -> None:
        xp = ops.xp
        self.cells = xp.asarray(plan.grid.cells())
        self.disc = disc.crop(plan.levels[0].shell)
        rotations = plan.grid.rotations(self.cells, 0, xp).astype(xp.float32)
        pixels = self.disc.on(xp)
        slices = ops.extract_slices(volume, rotations, pixels.kx, pixels.ky, padding)
        self.power = (slices.real**2 + slices.imag**2).astype(xp.float32)
        self.pairs = slices.view(xp.float32)

    def products(
        self, ops: Any, images: Any, ctf2: Any, shifts: Any, precision: Precision = FULL
    ) -> tuple[Any, Any]:
        """Cross terms (I, T, R) and norm terms (I, R) of images (I, J) at shifts (I, T, 2), by matrix products."""
        xp, (count, j) = ops.xp, images.shape
        pixels = self.disc.on(xp)
        moved = ops.shift_images(images, xp.asarray(shifts).astype(xp.float32), pixels.kx, pixels.ky, self.disc.box)
        rows = moved.view(xp.float32).reshape(-1, 2 * j)
        cross = ops.product(rows, self.pairs, precision.cross).reshape(count, shifts.shape[1], -1)
        return cross, ops.product(ctf2, self.power, precision.norm)

    def signal_power(self, ops: Any, noise: np.ndarray, scale: np.ndarray) -> SignalPower:
        """What an image can see in a slice at most: c_j |P_rj|^2 with a CTF of 1, and its square, summed over pixels.

        Parameters
        ----------
        noise, scale
            (optics groups, shells) sigma^2, and scales of the groups, times the largest of a particle.
        """
        inverse = (np.max(scale) ** 2 / noise.min(axis=0))[self.disc.shell].astype(np.float32)
        whitened = self.power * ops.xp.asarray(inverse)
        largest = ops.xp.stack([whitened.sum(axis=1).max(), (whitened**2).sum(axis=1).max()])
        return SignalPower(*ops.to_host(largest).tolist())

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
    precision: Precision = FULL,
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
    precision
        Of the first level of a global search.
    """
    xp, count = ops.xp, len(batch.index)
    expected = xp.asarray(shifts if bank is None else -batch.centre_px.astype(np.float64))
    tried = xp.asarray(plan.shifts[None] + shifts[:, None, :])
    if bank is not None:
        prior = _shift_prior(xp, tried, expected, plan.shift_sigma)
        best, best_of_shifts = _score_grid(ops, batch, tried, prior, bank, precision)
        columns = best.shape[1]
        widened = replace(plan.levels[0], margin=plan.levels[0].margin + precision.widening)
        kept = kept_rows(ops, best.ravel(), _equal_runs(xp, count, columns), widened)
        owner, cells = (kept // columns).astype(xp.int32), bank.cells[kept % columns]
        tried = _finer_shifts(ops, best_of_shifts, tried, plan.levels[0], plan.levels[1].shift_step)
        owner, cells = _split(xp, plan, owner, cells, 0)
    else:
        start = xp.asarray(plan.grid.cells())
        owner = xp.repeat(xp.arange(count, dtype=xp.int32), len(start))
        cells = xp.tile(start, (count, 1))
    centres = xp.asarray(rotations) if isinstance(plan.grid, LocalGrid) else None
    for number in range(0 if bank is None else 1, len(plan.levels)):
        level = plan.levels[number]
        candidates = plan.grid.rotations(cells, level.depth, xp)
        if centres is not None:
            candidates = xp.matmul(candidates, centres[owner])
        score = _score_candidates(ops, volume, batch, owner, candidates, tried, disc.crop(level.shell), padding)
        score *= xp.float32(plan.confidence)
        score += plan.grid.log_prior(cells, level.depth, xp).astype(xp.float32)[:, None]
        score += _shift_prior(xp, tried, expected, plan.shift_sigma)[owner]
        # An image whose scores are no numbers must not stop the others: it ends with no posterior at all.
        xp.nan_to_num(score, copy=False, nan=HOPELESS, posinf=HOPELESS, neginf=HOPELESS)
        offsets = run_offsets(xp, owner, count)
        if number + 1 == len(plan.levels):
            return _normalise(ops, owner, candidates, tried, score, offsets, level)
        kept = kept_rows(ops, score.max(axis=1), offsets, level)
        best_of_shifts = ops.run_maxima(score, offsets)
        tried = _finer_shifts(ops, best_of_shifts, tried, level, plan.levels[number + 1].shift_step)
        owner, cells = _split(xp, plan, owner[kept], cells[kept], number)
    raise ValueError("a global search needs at least two levels")


def kept_rows(ops: Any, best: Any, offsets: Any, level: Level) -> Any:
    """Rows, ascending, that a level keeps of the scores (C,) of each run; the host waits for their number."""
    return ops.xp.flatnonzero(ops.mark_best(best, offsets, level.margin, level.keep))


def _equal_runs(xp: Any, count: int, length: int) -> Any:
    """Offsets of runs that are all of one length."""
    return xp.arange(count + 1, dtype=xp.int32) * xp.int32(length)


def _score_grid(
    ops: Any, batch: ImageBatch, shifts: Any, shift_prior: Any, bank: GridBank, precision: Precision
) -> tuple[Any, Any]:
    """Best score over shifts for each orientation (I, R), and over orientations for each shift (I, T)."""
    images, ctf2 = weighted_images(batch, len(bank.disc))
    cross, norm = bank.products(ops, images, ctf2, shifts, precision)
    best: tuple[Any, Any] = ops.grid_maxima(cross, norm, shift_prior)
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
    owner: Any,
    rotations: Any,
    shifts: Any,
    disc: Disc,
    padding: int,
) -> Any:
    """Scores (C, T) float32."""
    xp, pixels = ops.xp, disc.on(ops.xp)
    images, ctf2 = weighted_images(batch, len(disc))
    moved = ops.shift_images(images, shifts.astype(xp.float32), pixels.kx, pixels.ky, disc.box)
    places = rotations.astype(xp.float32), owner
    cross, norm = ops.score_candidates(volume, *places, moved, ctf2, pixels.kx, pixels.ky, padding)
    cross -= xp.float32(0.5) * norm[:, None]
    return cross


def _shift_prior(xp: Any, shifts: Any, centre: Any, sigma: float) -> Any:
    """Gaussian log prior of shifts (I, T), float32."""
    return (-0.5 * ((shifts - centre[:, None, :]) ** 2).sum(axis=2) / sigma**2).astype(xp.float32)


def _finer_shifts(ops: Any, best: Any, shifts: Any, level: Level, step: float) -> Any:
    """The four children of each image's best shifts, (I, 4 keep, 2); as many of the shifts themselves at one step."""
    xp, (images, count) = ops.xp, best.shape
    is_finer = step < level.shift_step
    most = min(level.keep_shifts if is_finer else 4 * level.keep_shifts, count)
    row = xp.arange(images)[:, None]
    parents = shifts[row, ops.leaders(best.ravel(), _equal_runs(xp, images, count), most) - row * count]
    if not is_finer:
        return parents
    children = xp.asarray(SHIFT_CHILDREN * (level.shift_step / 4))
    return (parents[:, :, None, :] + children).reshape(images, -1, 2)


def _split(xp: Any, plan: SearchPlan, owner: Any, cells: Any, number: int) -> tuple[Any, Any]:
    """The cells that the level after ``number`` compares."""
    depth = plan.levels[number].depth
    if plan.levels[number + 1].depth == depth:
        return owner, cells
    children = plan.grid.children(cells, depth, xp)
    return xp.repeat(owner, children.shape[1]), children.reshape(-1, children.shape[2])


def _normalise(
    ops: Any, owner: Any, rotations: Any, shifts: Any, score: Any, offsets: Any, level: Level
) -> Posterior:
    """Posterior probabilities; what lies below the margin of the last level is dropped."""
    xp = ops.xp
    weights, top, mass, significant = ops.normalise_runs(score, offsets, level.margin)
    is_hopeless = top <= HOPELESS / 2
    # A hopeless image keeps its first candidate, at weight 0, so that every image has one.
    has_weight = weights.any(axis=1)
    has_weight[offsets[:-1]] |= is_hopeless
    kept = xp.flatnonzero(has_weight)  # the host waits for their number
    return Posterior(
        owner=owner[kept],
        rotations=rotations[kept],
        shifts=shifts,
        weights=weights[kept],
        log_evidence=xp.where(is_hopeless, xp.nan, top + xp.log(mass)),
        best_probability=1 / mass,
        significant=significant,
    )
