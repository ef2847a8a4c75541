# SPDX-License-Identifier: GPL-3.0-or-later
"""The sums of backprojection on the grid of the map itself.

N and B are kept on a Fourier grid twice as fine as the box asks for. The map is 0 outside the particle's sphere, and
<x, N x> of such a map hardly needs that: N is smooth, so its convolution kernel is short. On the map's own grid the
problem is eight times smaller, and refinements end the same (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.physics.fourier import shell_indices
from sparsecv.engine.refine.volumes import Accumulator, volume_to_map


def folded_weight(ops: Any, total: Accumulator) -> Any:
    """N on the box's grid in the layout of rfftn, float32 (box, box, box // 2 + 1); 0 beyond the last shell.

    N_box(k) = sum_d w(d) N(2k + d), w = (1/4, 1/2, 1/4) along each axis: N's kernel in real space times a positive
    taper that ends at the box's side, after which wrapping round changes nothing.
    """
    xp, box, last = ops.xp, total.box, total.last_shell
    weight = xp.asarray(total.weight)
    c = weight.shape[2] - 1
    mirrored = xp.concatenate([weight[::-1, ::-1, 1:2], weight], axis=2)  # N(-k) = N(k)
    for axis in range(3):
        first = (c - 2 * last) if axis < 2 else 1
        count = (2 * last + 1) if axis < 2 else last + 1

        def taken(offset: int, first: int = first, count: int = count, axis: int = axis, values: Any = mirrored) -> Any:
            index = [slice(None)] * 3
            index[axis] = slice(first + offset, first + offset + 2 * count - 1, 2)
            return values[tuple(index)]

        mirrored = (taken(-1) + taken(1)) / 4 + taken(0) / 2
    out = xp.zeros((box, box, box // 2 + 1), dtype=xp.float32)
    for zin, zout in ((slice(last, None), slice(0, last + 1)), (slice(0, last), slice(box - last, box))):
        for yin, yout in ((slice(last, None), slice(0, last + 1)), (slice(0, last), slice(box - last, box))):
            out[zout, yout, : last + 1] = mirrored[zin, yin]
    return out


def shell_table(ops: Any, values: np.ndarray, box: int) -> Any:
    """Values per shell over a half transform in the layout of rfftn, float32 (box, box, box // 2 + 1); 0 beyond."""
    xp = ops.xp
    table = np.zeros(box, dtype=np.float32)
    table[: min(len(values), box)] = values[:box]
    return xp.asarray(table)[xp.asarray(shell_indices(box))]


def mean_per_shell(ops: Any, values: Any) -> np.ndarray:
    """Mean over each shell of the upper half of a half transform, (box,) float64; as good as that of the whole."""
    box = values.shape[0]
    shells = shell_indices(box).ravel()
    sums = np.bincount(shells, weights=ops.to_host(values).ravel(), minlength=box)
    return (sums / np.maximum(np.bincount(shells, minlength=box), 1))[:box]


def backprojection(ops: Any, total: Accumulator) -> Any:
    """b = A^H D y on the map's grid, float32 (box, box, box), so scaled that b = N x where there is no noise."""
    return volume_to_map(ops, ops.xp.asarray(total.data), total.box, total.kernel)
