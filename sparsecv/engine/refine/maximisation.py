# SPDX-License-Identifier: GPL-3.0-or-later
"""The maximisation step's sums: backprojection, residuals, scale, and the best pose of each particle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.physics.geometry import rotvec_to_matrix
from sparsecv.engine.physics.symmetry import nearest_equivalents
from sparsecv.engine.refine.expectation import Posterior
from sparsecv.engine.refine.images import ImageBatch
from sparsecv.engine.refine.volumes import PADDING


def thinned(posterior: Posterior, uniform: np.ndarray, most: int) -> Posterior:
    """The posterior with at most ``most`` orientations for each image, by systematic sampling.

    An image with more orientations keeps those that ``most`` equidistant points of its cumulative posterior hit, each
    with the weight of its hits: no sum is biased, and neighbouring orientations, whose slices are nearly the same
    anyway, are not all backprojected.

    Parameters
    ----------
    uniform
        (I,) numbers in [0, 1): offset of each image's points.
    """
    owner, count = posterior.owner, len(posterior.shifts)
    marginal = posterior.weights.sum(axis=1, dtype=np.float64)
    starts = np.searchsorted(owner, np.arange(count))
    sizes = np.diff(np.append(starts, len(owner)))
    if sizes.max() <= most:
        return posterior
    cumulative = np.cumsum(marginal)
    before = cumulative[starts] - marginal[starts]
    mass = np.maximum(cumulative[np.append(starts[1:], len(owner)) - 1] - before, 1e-30)
    scaled = (cumulative - before[owner]) / mass[owner] * most - uniform[owner]
    reached = np.floor(scaled) + 1  # points hit up to and including this orientation
    previous = np.concatenate([[0.0], reached[:-1]])
    previous[starts] = 0
    hits = np.clip(reached, 0, most) - np.clip(previous, 0, most)
    is_large = (sizes > most)[owner]
    factor = np.where(is_large, hits * mass[owner] / (most * np.maximum(marginal, 1e-30)), 1.0)
    kept = np.flatnonzero(factor > 0)
    weights = posterior.weights[kept] * factor[kept, None].astype(np.float32)
    return replace(posterior, owner=owner[kept], rotations=posterior.rotations[kept], weights=weights)


def accumulate(ops: Any, batch: ImageBatch, posterior: Posterior, disc: Disc, add: Callable[..., None]) -> None:
    """Add a batch to an accumulator: B += posterior C X / sigma^2 and N += posterior C^2 / sigma^2.

    The whole posterior is used, not its maximum, and the images without their circular mask [Scheres2012, eq. 8].

    Parameters
    ----------
    add
        Of the accumulator: see :meth:`.Accumulator.adding`.
    """
    xp, j = ops.xp, len(disc)
    weight = batch.ctf[:, :j] * batch.inverse_noise[:, :j]
    kx, ky = xp.asarray(disc.kx), xp.asarray(disc.ky)
    shifts = xp.asarray(posterior.shifts.astype(np.float32))
    moved = ops.shift_images(batch.unmasked[:, :j] * weight, shifts, kx, ky, disc.box)
    add(
        moved,
        batch.ctf[:, :j] * weight,
        xp.asarray(posterior.weights),
        xp.asarray(posterior.rotations.astype(np.float32)),
        xp.asarray(posterior.owner),
        kx,
        ky,
        PADDING,
    )


@dataclass
class SampleStatistics:
    """Per image and shell, float64 (I, S): of one pose drawn from each image's posterior.

    ``residual`` = sum |X - C P|^2, ``cross`` = sum Re conj(C P) X, ``signal`` = sum |C P|^2, with the masked image.
    """

    residual: np.ndarray
    cross: np.ndarray
    signal: np.ndarray


def sample_statistics(
    ops: Any, volume: Any, batch: ImageBatch, posterior: Posterior, uniform: np.ndarray, disc: Disc, last_shell: int
) -> SampleStatistics:
    """Residual and signal power of each image at one pose drawn from its posterior.

    The expectation over the posterior would need every slice again; one draw per image is an unbiased estimate of it,
    and the sums that it feeds run over thousands of images.

    Parameters
    ----------
    uniform
        (I,) numbers in [0, 1) that decide the draw.
    disc
        All the pixels that the batch holds; residuals beyond ``last_shell`` are the images' own power.
    last_shell
        Highest shell of the reference volume.
    """
    xp, inner = ops.xp, disc.crop(last_shell)
    candidate, shift_index = draw(posterior, uniform)
    count = len(uniform)
    shifts = posterior.shifts[np.arange(count), shift_index][:, None, :].astype(np.float32)
    rotations = xp.asarray(posterior.rotations[candidate].astype(np.float32))
    predicted = ops.extract_slices(volume, rotations, xp.asarray(inner.kx), xp.asarray(inner.ky), PADDING)
    predicted = predicted * batch.ctf[:, : len(inner)]
    moved = ops.shift_images(batch.masked, xp.asarray(shifts), xp.asarray(disc.kx), xp.asarray(disc.ky), disc.box)[:, 0]
    seen = moved[:, : len(inner)]
    offsets = xp.asarray(disc.offsets)
    power = moved.real**2 + moved.imag**2
    cross = xp.zeros_like(power)
    cross[:, : len(inner)] = predicted.real * seen.real + predicted.imag * seen.imag
    signal = xp.zeros_like(power)
    signal[:, : len(inner)] = predicted.real**2 + predicted.imag**2
    sums = [ops.to_host(ops.sum_disc_shells(values, offsets)) for values in (power, cross, signal)]
    return SampleStatistics(sums[0] - 2 * sums[1] + sums[2], sums[1], sums[2])


def draw(posterior: Posterior, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidate and shift index (I,) of one sample from each image's posterior."""
    n_shifts = posterior.weights.shape[1]
    cumulative = np.cumsum(posterior.weights.ravel(), dtype=np.float64)
    starts = np.searchsorted(posterior.owner, np.arange(len(uniform))) * n_shifts
    before = np.where(starts > 0, cumulative[np.maximum(starts, 1) - 1], 0)
    ends = np.append(starts[1:], len(cumulative))
    mass = cumulative[ends - 1] - before
    chosen = np.searchsorted(cumulative, before + uniform * mass, side="right")
    chosen = np.clip(chosen, starts, ends - 1)
    return chosen // n_shifts, chosen % n_shifts


@dataclass
class PoseEstimates:
    """Poses of a batch.

    ``rotations`` (I, 3, 3) and ``shifts`` (I, 2) pixels relative to the batch's centre: the posterior's mean within
    its strongest mode. ``spread`` (I,): root mean square rotation about it, degrees.
    """

    rotations: np.ndarray
    shifts: np.ndarray
    spread: np.ndarray


def estimate_poses(posterior: Posterior, mode_radius: float, matrices: np.ndarray) -> PoseEstimates:
    """Mean pose in the neighbourhood of the most probable one.

    The mean over the strongest mode has a smaller error than the grid point with the highest probability, which can be
    no better than the grid. A global search holds one of all equivalent orientations, so that a mode on the border of
    the asymmetric unit has parts on other sides of it: they count at the equivalent nearest to the most probable one.

    Parameters
    ----------
    mode_radius
        Degrees: samples farther from the most probable orientation belong to other modes.
    matrices
        Point group, (G, 3, 3).
    """
    owner, count = posterior.owner, len(posterior.shifts)
    marginal = posterior.weights.sum(axis=1, dtype=np.float64)
    order = np.lexsort((-marginal, owner))
    best = order[np.searchsorted(owner[order], np.arange(count))]
    centre = posterior.rotations[best]
    near_centre = nearest_equivalents(posterior.rotations, centre[owner], matrices)
    relative = np.matmul(near_centre, centre[owner].transpose(0, 2, 1))
    vectors = 0.5 * np.stack(  # sin(angle) x axis: the rotation vector of a small rotation
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        axis=1,
    )
    cosine = (np.trace(relative, axis1=1, axis2=2) - 1) / 2
    weight = marginal * (cosine > np.cos(np.deg2rad(mode_radius)))
    total = np.maximum(np.bincount(owner, weight, count), 1e-30)
    mean = np.stack([np.bincount(owner, weight * vectors[:, k], count) for k in range(3)], axis=1) / total[:, None]
    square = np.bincount(owner, weight * ((vectors - mean[owner]) ** 2).sum(axis=1), count) / total
    rotations = np.matmul(rotvec_to_matrix(mean), centre)
    near = posterior.weights * (weight > 0)[:, None]
    weighted = [(near * posterior.shifts[owner, :, k]).sum(axis=1, dtype=np.float64) for k in (0, 1)]
    shifts = np.stack([np.bincount(owner, values, count) for values in weighted], axis=1)
    return PoseEstimates(rotations, shifts / total[:, None], np.rad2deg(np.sqrt(square)))
