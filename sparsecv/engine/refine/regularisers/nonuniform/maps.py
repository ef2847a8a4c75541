# SPDX-License-Identifier: GPL-3.0-or-later
"""The two raw maps that a space-varying filter is chosen from, on the coarsest grid that holds their data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.fft

from sparsecv.engine.physics.fourier import resize_transform
from sparsecv.engine.refine.regularisers.base import Evidence
from sparsecv.engine.refine.volumes import Accumulator, quotient, volume_to_map

LEAST_WEIGHT = 0.1  # of the shell's mean: few images leave directions empty
NOISE_SHELL = 4  # voxels on either side of a distance, over which the noise is averaged
LEAST_NOISE = 0.05  # of the mean


@dataclass(frozen=True)
class RawMaps:
    """Two raw maps of the same particle with independent noise.

    Attributes
    ----------
    first, second
        (side, side, side) float32.
    weight
        (side, side, side) float32: of each voxel's error; 0 outside the mask, where nothing is chosen, inside it 1
        over the noise power at the voxel's distance from the centre, mean 1.
    length
        Of the side, A.
    last_shell
        Highest shell with data.
    """

    first: Any
    second: Any
    weight: Any
    length: float
    last_shell: int

    @property
    def side(self) -> int:
        """Voxels along a side."""
        return int(self.first.shape[0])

    @classmethod
    def of_maps(
        cls, ops: Any, first: Any, second: Any, inside: Any, length: float, last_shell: int, *, whitened: bool = True
    ) -> RawMaps:
        """From two maps and the mask (bool) inside which filters are chosen, all (side, side, side) on the device.

        Parameters
        ----------
        whitened
            Whether errors are divided by the noise power at their distance from the centre: division by the
            interpolation kernel makes noise rise towards the side of the box.
        """
        mask = inside.astype(ops.xp.float32)
        weight = _whitening(ops, first - second, mask) if whitened else mask
        return cls(first, second, weight, length, last_shell)

    @classmethod
    def of(cls, ops: Any, evidence: Evidence, *, whitened: bool = True, full: bool = False) -> RawMaps:
        """From the sums of a half's quarters.

        The maps are 0 outside the particle's sphere; a mask only limits where filters are chosen, as density that the
        images show must not be missing from a reference. Both quarters are divided by half of the *common* weight,
        m_q = B_q / (N / 2), so that their mean is the half's own B / N: what is chosen for the quarters is applied to
        it without another transform.

        Parameters
        ----------
        full
            On the box's own grid, though there may be no data for the finer shells.
        """
        quarters = evidence.quarters
        last = quarters[0].last_shell
        side = evidence.box if full else smallest_side(evidence.box, last)
        half = ops.xp.asarray(quarters[0].weight + quarters[1].weight) * np.float32(0.5)
        means = replace(quarters[0], weight=half).mean_weight(ops)
        ball = on_grid(ops.xp, evidence.sphere > 0.5, side)
        first, second = (_solved(ops, quarter, half, means, side) * ball for quarter in quarters)
        inside = ball & on_grid(ops.xp, ops.xp.asarray(evidence.support) > 0.5, side)
        return cls.of_maps(ops, first, second, inside, evidence.box * evidence.pixel_size, last, whitened=whitened)


def smallest_side(box: int, last_shell: int) -> int:
    """Smallest even side, quick to transform, that holds the shells up to the last; an odd box stays as it is."""
    if box % 2:
        return box
    side = 2 * (last_shell + 1)
    while side < box and (side % 2 or scipy.fft.next_fast_len(side, real=True) != side):
        side += 1
    return min(side, box)


def _solved(ops: Any, quarter: Accumulator, weight: Any, means: np.ndarray, side: int) -> Any:
    """B / N of a quarter on a grid of another side but the same extent; densities stay what they are."""
    volume = quotient(ops, ops.xp.asarray(quarter.data), weight, LEAST_WEIGHT * means, np.zeros_like(means))
    density = volume_to_map(ops, volume, side, quarter.kernel)
    density *= np.float32((side / quarter.box) ** 2)  # a transform is divided by its own side
    return density


def on_grid(xp: Any, values: Any, side: int) -> Any:
    """The nearest voxels of a volume on a grid of another side and the same extent and centre."""
    box = int(values.shape[0])
    if side == box:
        return values
    index = np.clip(np.rint((np.arange(side) - side // 2) * (box / side)).astype(np.int64) + box // 2, 0, box - 1)
    for axis in range(3):
        values = xp.take(values, xp.asarray(index), axis=axis)
    return values


def resampled(ops: Any, values: Any, box: int) -> Any:
    """A map on a finer grid of the same extent, by padding its transform with zeros; both sides are even."""
    xp, side = ops.xp, int(values.shape[0])
    if side == box:
        return values
    wide = resize_transform(ops.rfftn(values), box, xp)
    wide *= xp.float32((box / side) ** 3)
    return ops.irfftn(wide, box)


def _whitening(ops: Any, difference: Any, mask: Any) -> Any:
    """1 / noise power by distance from the centre, inside the mask; mean 1 there."""
    xp, side = ops.xp, int(mask.shape[0])
    difference = difference * mask
    axis = xp.arange(side, dtype=xp.float32) - np.float32(side // 2)
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    radius = xp.sqrt(squared).astype(xp.int32).ravel()
    count = xp.bincount(radius, weights=mask.ravel())
    power = xp.bincount(radius, weights=(difference * difference).ravel())
    # a few voxels about the centre say little: over neighbouring distances as well
    kernel = np.ones(2 * NOISE_SHELL + 1)
    counts, powers = (np.convolve(ops.to_host(sums), kernel, "same") for sums in (count, power))
    mean = float(power.sum()) / max(float(count.sum()), 1.0)
    if not mean > 0:
        return mask
    profile = np.where(counts > 0, powers / np.maximum(counts, 1), mean)
    gain = (mean / np.maximum(profile, LEAST_NOISE * mean)).astype(np.float32)
    return mask * xp.asarray(gain)[radius].reshape(mask.shape)
