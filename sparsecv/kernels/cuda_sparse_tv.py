# SPDX-License-Identifier: GPL-3.0-or-later
"""Stencils and proximal steps of the sparse + TV prior on NVIDIA GPUs; definitions in :mod:`.reference_sparse_tv`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsecv.kernels.contract import check_volumes
from sparsecv.kernels.cuda_launch import THREADS, blocks, import_cupy, launch

FAMILY = "sparse_tv"
ROW, PLANES = 32, 16  # voxels along x and z of a block; THREADS // ROW along y


def _grid(side: int) -> tuple[int, int, int]:
    """Blocks along x, y, z for a volume of a side; the most along y and z, 65535, are never reached."""
    return -(-side // ROW), -(-side // (THREADS // ROW)), -(-side // PLANES)


def _launch_columns(kernel: str, side: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel whose blocks take ROW x (THREADS // ROW) columns, PLANES planes high."""
    launch(FAMILY, kernel, _grid(side), arguments, ROW=ROW, PLANES=PLANES)


def split_step(
    b: Any, w1: Any, w2: Any, a: Any, c: Any, rho1: float, rho2: float, reflect: float, positive: bool = False
) -> Any:
    """b + rho1 (f z1 - w1) + rho2 D^T (f z2 - w2): see :func:`.reference_sparse_tv.split_step`."""
    check_volumes(w1.shape, b=b, w1=w1, w2=w2, a=a, c=c)
    side, out = len(w1), import_cupy().empty_like(w1)
    steps = (float(rho1), float(rho2), float(reflect), int(positive))
    _launch_columns("split_step", side, (b, w1, w2, a, c, side, *steps, out))
    return out


def relax_step(
    x: Any, w1: Any, w2: Any, a: Any, c: Any, rho1: float, rho2: float, relaxation: float, positive: bool = False
) -> None:
    """Move w1 and w2 on, in place: see :func:`.reference_sparse_tv.relax_step`."""
    check_volumes(w1.shape, x=x, w1=w1, w2=w2, a=a, c=c)
    side = len(w1)
    steps = (float(rho1), float(rho2), float(relaxation), int(positive))
    _launch_columns("relax_step", side, (x, w1, w2, a, c, side, *steps))


def sparse_prox(w1: Any, a: Any, rho1: float, positive: bool = False) -> Any:
    """soft(w1, a / rho1): see :func:`.reference_sparse_tv.sparse_prox`."""
    check_volumes(w1.shape, w1=w1, a=a)
    out = import_cupy().empty_like(w1)
    arguments = (w1, a, len(w1), float(rho1), int(positive), out)
    launch(FAMILY, "sparse_prox", (blocks(w1.size),), arguments, ROW=ROW, PLANES=PLANES)
    return out


def penalties(x: Any, a: Any, c: Any) -> tuple[float, float]:
    """sum a |x| and sum c |D x|: see :func:`.reference_sparse_tv.penalties`."""
    check_volumes(x.shape, x=x, a=a, c=c)
    sums = import_cupy().empty((2, math.prod(_grid(len(x)))), np.float64)  # a pair for each block
    _launch_columns("penalties", len(x), (x, a, c, len(x), sums))
    sparse, variation = sums.sum(axis=1).tolist()
    return sparse, variation


def penalty_weights(x: Any, eps: float, eps_gradient: float) -> tuple[Any, Any]:
    """1 / (|x| + eps) and 1 / (|D x| + eps'): see :func:`.reference_sparse_tv.penalty_weights`."""
    check_volumes(x.shape, x=x)
    a, c = import_cupy().empty_like(x), import_cupy().empty_like(x)
    _launch_columns("penalty_weights", len(x), (x, len(x), float(eps), float(eps_gradient), a, c))
    return a, c


def smoothed_variation_gradient(x: Any, c: Any, mu: float) -> Any:
    """Gradient of the smoothed TV norm: see :func:`.reference_sparse_tv.smoothed_variation_gradient`."""
    check_volumes(x.shape, x=x, c=c)
    out = import_cupy().empty_like(x)
    _launch_columns("smoothed_variation_gradient", len(x), (x, c, len(x), float(mu), out))
    return out
