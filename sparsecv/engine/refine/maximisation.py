# SPDX-License-Identifier: GPL-3.0-or-later
"""The maximisation step's sums: backprojection, residuals, scale, and the best pose of each particle.

Like the expectation step, it runs where the images are, and nothing here makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsecv.engine.physics.ctf import CtfParameters
from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.physics.geometry import rotvec_to_matrix
from sparsecv.engine.physics.symmetry import nearest_equivalents
from sparsecv.engine.refine.expectation import Posterior
from sparsecv.engine.refine.images import ImageBatch
from sparsecv.engine.refine.sidebands import EwaldSlices
from sparsecv.engine.refine.volumes import PADDING


def thinned(ops: Any, posterior: Posterior, uniform: Any, most: int) -> Posterior:
    """The posterior with at most ``most`` orientations for each image, by systematic sampling.

    An image with more orientations keeps those that ``most`` equidistant points of its cumulative posterior hit, each
    with the weight of its hits: no sum is biased, and neighbouring orientations, whose slices are nearly the same
    anyway, are not all backprojected. The others stay in the list with weight 0, which backprojection passes over:
    to take them out, the host would have to learn how many they are.

    Parameters
    ----------
    uniform
        (I,) numbers in [0, 1): offset of each image's points.
    """
    xp, owner = ops.xp, posterior.owner
    offsets = posterior.offsets(xp)
    starts, sizes = offsets[:-1], xp.diff(offsets)
    marginal = posterior.weights.sum(axis=1, dtype=xp.float64)
    cumulative = xp.cumsum(marginal)
    before = cumulative[starts] - marginal[starts]
    mass = xp.maximum(cumulative[offsets[1:] - 1] - before, 1e-30)
    scaled = (cumulative - before[owner]) / mass[owner] * most - xp.asarray(uniform)[owner]
    reached = xp.floor(scaled) + 1  # points hit up to and including this orientation
    previous = xp.concatenate([xp.zeros(1), reached[:-1]])
    previous[starts] = 0
    hits = xp.clip(reached, 0, most) - xp.clip(previous, 0, most)
    is_large = (sizes > most)[owner]
    factor = xp.where(is_large, hits * mass[owner] / (most * xp.maximum(marginal, 1e-30)), 1.0)
    return replace(posterior, weights=posterior.weights * factor[:, None].astype(xp.float32))


def accumulate(ops: Any, batch: ImageBatch, posterior: Posterior, disc: Disc, add: Callable[..., None]) -> None:
    """Add a batch to an accumulator: B += posterior C X / sigma^2 and N += posterior C^2 / sigma^2.

    The whole posterior is used, not its maximum, and the images without their circular mask [Scheres2012, eq. 8].

    Parameters
    ----------
    add
        Of the accumulator: see :meth:`.Accumulator.adding`.
    """
    xp, j, pixels = ops.xp, len(disc), disc.on(ops.xp)
    weight = batch.ctf[:, :j] * batch.inverse_noise[:, :j]
    shifts = posterior.shifts.astype(xp.float32)
    moved = ops.shift_images(batch.unmasked[:, :j] * weight, shifts, pixels.kx, pixels.ky, disc.box)
    places = posterior.weights, posterior.rotations.astype(xp.float32), posterior.owner
    add(moved, batch.ctf[:, :j] * weight, *places, pixels.kx, pixels.ky, PADDING)


def accumulate_sidebands(
    ops: Any, batch: ImageBatch, images: Any, parameters: CtfParameters, groups: np.ndarray, posterior: Posterior,
    slices: EwaldSlices, add: Callable[..., None],
) -> None:  # fmt: skip
    """`accumulate` with the curvature of the Ewald sphere: the same posterior, two sidebands on slices of their own.

    Parameters
    ----------
    images
        (I, box, box) those of the batch as they are read, divided by their norms.
    parameters, groups
        Terms of their CTFs with the scale of the particle's group, and their optics groups, (I,).
    """
    xp = ops.xp
    precision = batch.inverse_noise.take(xp.asarray(slices.chosen), axis=1)
    sums = slices.sums(ops, images, batch.centre_px, parameters, groups, precision)
    slices.deposit(ops, add, sums, groups, posterior.shifts.astype(xp.float32), posterior.weights,
                   posterior.rotations.astype(xp.float32), posterior.owner)


@dataclass
class SampleStatistics:
    """Per image and shell, float64 (I, S) on the device: of one pose drawn from each image's posterior.

    ``residual`` = sum |X - C P|^2, ``cross`` = sum Re conj(C P) X, ``signal`` = sum |C P|^2, with the masked image.
    """

    residual: Any
    cross: Any
    signal: Any


def sample_statistics(
    ops: Any, volume: Any, batch: ImageBatch, posterior: Posterior, uniform: Any, disc: Disc, last_shell: int
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
    pixels, all_pixels, j = inner.on(xp), disc.on(xp), len(inner)
    candidate, shift_index = draw(ops, posterior, uniform)
    shifts = posterior.shifts[xp.arange(len(candidate)), shift_index][:, None, :].astype(xp.float32)
    rotations = posterior.rotations[candidate].astype(xp.float32)
    predicted = ops.extract_slices(volume, rotations, pixels.kx, pixels.ky, PADDING)
    predicted = predicted * batch.ctf[:, :j]
    moved = ops.shift_images(batch.masked, shifts, all_pixels.kx, all_pixels.ky, disc.box)[:, 0]
    seen = moved[:, :j]
    power = moved.real**2 + moved.imag**2
    cross = xp.zeros_like(power)
    cross[:, :j] = predicted.real * seen.real + predicted.imag * seen.imag
    signal = xp.zeros_like(power)
    signal[:, :j] = predicted.real**2 + predicted.imag**2
    sums = [ops.sum_disc_shells(values, all_pixels.offsets) for values in (power, cross, signal)]
    return SampleStatistics(sums[0] - 2 * sums[1] + sums[2], sums[1], sums[2])


def draw(ops: Any, posterior: Posterior, uniform: Any) -> tuple[Any, Any]:
    """Candidate and shift index (I,) of one sample from each image's posterior."""
    xp, n_shifts = ops.xp, posterior.weights.shape[1]
    cumulative = xp.cumsum(posterior.weights.ravel(), dtype=xp.float64)
    offsets = posterior.offsets(xp).astype(xp.int64) * n_shifts
    starts, ends = offsets[:-1], offsets[1:]
    before = xp.where(starts > 0, cumulative[xp.maximum(starts, 1) - 1], 0)
    mass = cumulative[ends - 1] - before
    chosen = xp.searchsorted(cumulative, before + xp.asarray(uniform) * mass, side="right")
    chosen = xp.clip(chosen, starts, ends - 1)
    return chosen // n_shifts, chosen % n_shifts


@dataclass
class PoseEstimates:
    """Poses of a batch, on the device.

    ``rotations`` (I, 3, 3) and ``shifts`` (I, 2) pixels relative to the batch's centre: the posterior's mean within
    its strongest mode. ``spread`` (I,): root mean square rotation about it, degrees.
    """

    rotations: Any
    shifts: Any
    spread: Any


def estimate_poses(ops: Any, posterior: Posterior, mode_radius: float, matrices: np.ndarray) -> PoseEstimates:
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
    xp, owner = ops.xp, posterior.owner
    offsets = posterior.offsets(xp)
    marginal = posterior.weights.sum(axis=1, dtype=xp.float64)
    centre = posterior.rotations[ops.leaders(marginal, offsets, 1)[:, 0]]
    near_centre = nearest_equivalents(posterior.rotations, centre[owner], matrices, xp)
    relative = xp.matmul(near_centre, centre[owner].transpose(0, 2, 1))
    vectors = 0.5 * xp.stack(  # sin(angle) x axis: the rotation vector of a small rotation
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        axis=1,
    )
    cosine = (xp.trace(relative, axis1=1, axis2=2) - 1) / 2
    weight = (marginal * (cosine > np.cos(np.deg2rad(mode_radius))))[:, None]
    near = posterior.weights * (weight > 0)
    moved = [(near * posterior.shifts[owner, :, k]).sum(axis=1, dtype=xp.float64)[:, None] for k in (0, 1)]
    sums = ops.run_sums(xp.concatenate([weight, weight * vectors, *moved], axis=1), offsets)
    total = xp.maximum(sums[:, :1], 1e-30)
    mean, shifts = sums[:, 1:4] / total, sums[:, 4:] / total
    away = ((vectors - mean[owner]) ** 2).sum(axis=1)[:, None]
    square = (ops.run_sums(weight * away, offsets) / total)[:, 0]
    rotations = xp.matmul(rotvec_to_matrix(mean, xp), centre)
    return PoseEstimates(rotations, shifts, xp.rad2deg(xp.sqrt(square)))
