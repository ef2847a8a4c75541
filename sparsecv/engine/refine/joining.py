# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two halves share: one frame, their low resolution, and the map made of both at the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.wiener import prior_precision
from sparsecv.engine.refine.volumes import PADDING, Accumulator, radial


def frame_shift(rotations: np.ndarray, shifts_px: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Point of the map, (x, y, z) in pixels from the centre, to which the particles' shifts belong.

    Map moved by -t and origins by -(A t)_xy together leave every image's likelihood as it is, so that the prior on
    shifts alone decides: t = argmin sum_i |o_i - (A_i t)_xy|^2. Expectation maximisation would get there as well, in
    hundreds of iterations; until then the map stays where a poor start (a reference without the detergent belt that the
    images show) has put it.

    Parameters
    ----------
    rotations, shifts_px
        (n, 3, 3) and (n, 2): poses of both halves.
    matrices
        Point group, (G, 3, 3): t lies in the subspace that it leaves in place, the axis of Cn.

    Returns
    -------
    (3,) float64; 0 along directions that no view shows.
    """
    # The mean of the group is the projector on what it leaves in place: its eigenvalues are 0 and 1. The fit is made in
    # that subspace, as views that lie on one side of the axis would tilt a free solution.
    values, vectors = np.linalg.eigh(matrices.mean(axis=0))
    basis = vectors[:, values > 0.5]
    seen = rotations[:, :2] @ basis
    normal = np.einsum("nki,nkj->ij", seen, seen)
    shift: np.ndarray = basis @ np.linalg.lstsq(normal, np.einsum("nki,nk->i", seen, shifts_px), rcond=None)[0]
    return shift


Low = tuple[np.ndarray, np.ndarray]  # data and weight of the low shells, in a cube, on the host


def low_resolution(ops: Any, own: Accumulator, last_shared: int) -> Low:
    """What an accumulator holds up to a shell, in the cube around it."""
    cube = _cube(own, last_shared)
    return ops.to_host(own.data[cube].copy()), ops.to_host(own.weight[cube].copy())


def share_low_resolution(ops: Any, own: Accumulator, low: tuple[Low, Low], last_shared: int) -> None:
    """Put the mean of both halves' sums up to a shell into one half's: it keeps them in one frame.

    Parameters
    ----------
    low
        :func:`low_resolution` of the two halves' accumulators.
    """
    cube = _cube(own, last_shared)
    is_low = radial(ops, np.arange(last_shared + 1) >= 0, own.weight[cube].shape) > 0
    xp = ops.xp
    for part, array in enumerate((own.data, own.weight)):
        shared = xp.where(is_low, xp.asarray((low[0][part] + low[1][part]) / 2), xp.asarray(array[cube]))
        array[cube] = ops.to_host(shared) if isinstance(array, np.ndarray) else shared


def _cube(own: Accumulator, last_shared: int) -> tuple[slice, slice, slice]:
    """The part of a half volume beyond which nothing lies in the shells up to the last one that is shared."""
    c = own.weight.shape[2] - 1
    reach = min(PADDING * last_shared + 1, c)
    return slice(c - reach, c + reach + 1), slice(c - reach, c + reach + 1), slice(0, reach + 1)


def joined_map(ops: Any, total: Accumulator, fsc: np.ndarray, support: Any, tau_factor: float) -> np.ndarray:
    """Wiener-filtered map of all particles inside the support, float32 on the host.

    The FSC of the whole is 2 FSC / (1 + FSC), which makes its signal-to-noise ratio twice that of a half. RELION's T,
    ``tau_factor``, is that of the iterations before.
    """
    density = total.solve(ops, prior_precision(ops, total, fsc, 2 * tau_factor))
    return np.asarray(ops.to_host(density * support))
