# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise spectra, intensity scales and grey scale: the parameters beside poses and map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.ranks import ALONE, Comm
from sparsecv.engine.ranks.comm import summed
from sparsecv.engine.refine.expectation import GridBank, SearchPlan, weighted_images
from sparsecv.engine.refine.half import HalfResult, Particles, in_batches
from sparsecv.engine.refine.state import HalfState, ParticleState
from sparsecv.engine.refine.volumes import PADDING

LEAST_NOISE = 1e-12  # sigma^2: a shell without any power must not divide by zero
SCALE_FSC = 0.75  # SSNR 3: shells that tell the scale of a group
SCALE_LIMIT = 5.0  # a scale lies within this factor of the median
NORM_LIMIT = 3.0
GREY_IMAGES, GREY_FEWEST, GREY_CYCLES = 400, 100, 20
GREY_TOLERANCE = 1e-4  # relative change of the last cycle; each is a third of the one before


def signal_to_noise(fsc: np.ndarray) -> np.ndarray:
    """SSNR = FSC / (1 - FSC) per shell, at most 999."""
    curve = np.clip(fsc, 0, 0.999)
    return curve / (1 - curve)


def image_power(
    ops: Any, particles: Particles, members: np.ndarray, shifts_px: np.ndarray, comm: Comm = ALONE
) -> np.ndarray:
    """Mean power of masked images, as sigma^2 per optics group and shell (groups, shells).

    The first noise spectra, and the later ones beyond the band: there an image is nearly all noise.
    """
    table = particles.table
    total, counts = np.zeros((len(table.optics), particles.disc.last + 1)), np.zeros(len(table.optics))
    ones = np.ones_like(total)
    own = members[comm.rank * len(members) // comm.size : (comm.rank + 1) * len(members) // comm.size]

    def add(part: slice, images: Any) -> None:
        index = own[part]
        batch = particles.batch(ops, index, shifts_px[index], np.ones(len(index)), np.ones(len(index)), ones, images)
        power = batch.masked.real**2 + batch.masked.imag**2
        sums = ops.to_host(ops.sum_disc_shells(power, particles.disc.on(ops.xp).offsets))
        np.add.at(total, table.optics_index[index], sums)
        np.add.at(counts, table.optics_index[index], 1)

    # Of several ranks each has other images here than in the search: these need not stay on the device.
    in_batches(ops, particles, own, particles.batch_size(None, 0), add, keeps=comm.size == 1)
    parts = comm.gathered((total, counts))
    return comm.at_root(lambda: _spectra(particles, *(summed(sums) for sums in zip(*parts, strict=True))))


def _spectra(particles: Particles, total: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sigma^2 per real component from summed |.|^2 of masked images.

    A circular mask keeps the part ``masked_power`` of white noise. The likelihood adds up masked residuals over all
    Fourier pixels, which by Parseval is the sum over the pixels inside the mask: it needs the sigma^2 of the *unmasked*
    noise, or the pixels outside the mask would be counted as information.
    """
    counts = np.where(counts > 0, counts, 1)
    spectra = total / (2 * particles.masked_power * particles.pixels_per_shell() * counts[:, None])
    spectra = np.maximum(spectra, LEAST_NOISE)
    spectra[:, 0] = spectra[:, 1]
    return spectra


def update_noise(particles: Particles, half: HalfState, result: HalfResult) -> None:
    """New noise spectra of a half from its residuals; a group without particles keeps its own."""
    spectra = _spectra(particles, result.residuals.residual, result.residuals.counts)
    half.noise = np.where(result.residuals.counts[:, None] > 0, spectra, half.noise)


def update_scale(half: HalfState, result: HalfResult, fsc: np.ndarray) -> None:
    """Scale of each group relative to the mean, sum XA / sum A^2 over well-determined shells [RELION]."""
    low = np.flatnonzero(fsc[1:] < SCALE_FSC)
    last = int(low[0]) if len(low) else len(fsc) - 1
    cross = result.residuals.cross[:, 1 : last + 1].sum(axis=1)
    signal = result.residuals.signal[:, 1 : last + 1].sum(axis=1)
    known = signal > 0
    if last < 1 or np.count_nonzero(known) < 2:
        return
    factor = np.where(known, cross / np.where(known, signal, 1), 1.0)
    scale = half.scale * np.maximum(factor, 1e-3)
    middle = np.median(scale[known])
    scale = np.clip(scale, middle / SCALE_LIMIT, middle * SCALE_LIMIT)
    half.scale = np.where(known, scale / scale[known].mean(), 1.0)


def update_norm(state: ParticleState, result: HalfResult) -> None:
    """Factors by which images are divided, so that their residuals fit one noise spectrum; mean 1 in a half."""
    factors = result.residuals.factors
    known = ~state.is_rejected[result.members] & np.isfinite(factors)
    members = result.members[known]
    if not len(members):
        return
    norm = state.norm[members] * np.sqrt(np.clip(factors[known], 1 / NORM_LIMIT**2, NORM_LIMIT**2))
    middle = np.median(norm)
    norm = np.clip(norm, middle / NORM_LIMIT, middle * NORM_LIMIT)
    state.norm[members] = norm / norm.mean()


def grey_scale(
    ops: Any, particles: Particles, state: ParticleState, half: HalfState, members: np.ndarray, plan: SearchPlan,
    bank: GridBank,
) -> float:
    """Factor that brings a reference of unknown grey scale to that of the images.

    Started from the poses of highest normalised cross-correlation, which does not depend on the scale, then made the
    maximum-likelihood one by cycles of expectation maximisation over the scale alone: the correlation's own
    scale is too high, because the best of many poses also fits noise.

    It takes the first 400 images, or as many as have room for all their products in half of the batch memory, but at
    least 100: where these have not, their products are computed again in each cycle.
    """
    xp = ops.xp
    per_image = 4 * len(plan.shifts) * len(bank.cells)  # bytes of cross terms
    room = int(particles.batch_bytes / 2 / per_image)
    index = members[: int(np.clip(room, GREY_FEWEST, GREY_IMAGES))]
    # A cycle takes three more arrays like the products; the smallest batch would not fit if the search is very wide.
    size = min(particles.batch_size(plan, 4 * len(bank.cells)), max(1, room // 4))
    blocks: Iterable[tuple[Any, Any]] = _Products(ops, particles, state, half, index, plan, bank, size)
    if room >= len(index):
        blocks = list(blocks)
    sums = np.zeros(2)
    for cross, norm in blocks:
        best_shift = cross.max(axis=1)  # the norm does not depend on the shift
        best = (best_shift / xp.sqrt(xp.maximum(norm, xp.float32(1e-30)))).argmax(axis=1)
        at = xp.arange(len(cross))
        sums += _totals(best_shift[at, best], norm[at, best])
    if not sums[0] > 0 or not sums[1] > 0:
        return 1.0
    scale_factor = sums[0] / sums[1]
    for _ in range(GREY_CYCLES):
        sums[:] = 0
        for cross, norm in blocks:
            score = xp.float32(scale_factor) * cross - xp.float32(scale_factor**2 / 2) * norm[:, None, :]
            weight = xp.exp(score - score.max(axis=(1, 2), keepdims=True))
            weight /= weight.sum(axis=(1, 2), keepdims=True)
            sums += _totals(weight * cross, weight.sum(axis=1) * norm)
        if not sums[0] > 0:
            break
        before, scale_factor = scale_factor, sums[0] / sums[1]
        if abs(scale_factor / before - 1) < GREY_TOLERANCE:
            break
    return float(scale_factor)


def _totals(cross: Any, norm: Any) -> tuple[float, float]:
    """Sums over a block, in double precision, so that the size of blocks does not show."""
    return float(cross.sum(dtype=np.float64)), float(norm.sum(dtype=np.float64))


@dataclass(frozen=True)
class _Products:
    """Cross and norm terms of images with the whole grid, by ``size`` images, computed anew each time they are read."""

    ops: Any
    particles: Particles
    state: ParticleState
    half: HalfState
    index: np.ndarray
    plan: SearchPlan
    bank: GridBank
    size: int

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        table, state, half = self.particles.table, self.state, self.half
        for start in range(0, len(self.index), self.size):
            rows = self.index[start : start + self.size]
            scale = half.scale[table.group_index[rows]]
            batch = self.particles.batch(self.ops, rows, state.shifts_px[rows], state.norm[rows], scale, half.noise)
            images, ctf2 = weighted_images(batch, len(self.bank.disc))
            shifts = self.plan.shifts[None] + (state.shifts_px[rows] - batch.centre_px)[:, None, :]
            yield self.bank.products(self.ops, images, ctf2, shifts)


def grey_scale_at_poses(
    ops: Any, particles: Particles, state: ParticleState, half: HalfState, members: np.ndarray, volume: Any,
    last_shell: int,
) -> float:  # fmt: skip
    """The same factor where poses are given: sum Re <a, P> / sum c |P|^2 over shells that the poses' errors spare.

    Negative where the reference has the opposite contrast of the images.
    """
    xp, disc = ops.xp, particles.disc.crop(last_shell)
    pixels = disc.on(xp)
    sums = np.zeros(2)
    index = members[:GREY_IMAGES]
    for start in range(0, len(index), size := particles.batch_size(None, 0)):
        rows = index[start : start + size]
        scale = half.scale[particles.table.group_index[rows]]
        batch = particles.batch(ops, rows, state.shifts_px[rows], state.norm[rows], scale, half.noise)
        images, ctf2 = weighted_images(batch, len(disc))
        shifts = (state.shifts_px[rows] - batch.centre_px)[:, None, :].astype(np.float32)
        moved = ops.shift_images(images, xp.asarray(shifts), pixels.kx, pixels.ky, disc.box)
        rotations = xp.asarray(state.rotations[rows].astype(np.float32))
        owner = xp.arange(len(rows), dtype=xp.int32)
        cross, norm = ops.score_candidates(volume, rotations, owner, moved, ctf2, pixels.kx, pixels.ky, PADDING)
        sums += _totals(cross, norm)
    return float(sums[0] / sums[1]) if sums[1] > 0 else 1.0
