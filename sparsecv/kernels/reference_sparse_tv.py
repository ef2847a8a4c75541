# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition of the kernels of the sparse + TV prior, in float64 NumPy: what the others are tested against.

They are the steps between two transforms of Douglas-Rachford splitting [Eckstein1992] for

    F(x) = <x, H x> / 2 - <b, x> + sum_i a_i |x_i| + sum_i c_i |D x|_i,   x_i >= 0 where asked for,

the weighted l1 and total-variation norms of [Luo2019, eq. 11]. One iteration, with the proximal points

    z1 = soft(w1, a / rho1),   z2 = shrink(w2, c / rho2),

makes the right side b + rho1 (2 z1 - w1) + rho2 D^T (2 z2 - w2) (`split_step`), solves
(H + rho1 + rho2 D^T D) x = right side in Fourier space, and moves w1 by r (x - z1) and w2 by r (D x - z2)
(`relax_step`). The map is z1 (`sparse_prox`).

Arrays shared by the functions
------------------------------
x, b, w1, a, c
    (G, G, G) real, indexed [z, y, x], periodic; a, c >= 0. A voxel where the map must be 0 has a huge a (1e20).
w2
    (3, G, G, G) real, a vector at each voxel: component 0 along x, 1 along y, 2 along z.
rho1, rho2
    Positive step sizes (as penalties: thresholds are a / rho1 and c / rho2).

D x are forward differences: (D x)[0] = x[z, y, x+1] - x[z, y, x], and so on; D^T u = sum over axes of u[x-1] - u[x].
|D x| is the length of the vector at a voxel. ([Luo2019, eq. 12] writes backward differences, its program takes forward
ones.)

This back end computes in float64 throughout and takes any real type; the others take contiguous float32 arrays only, as
w1 and w2 are changed in place, and return float32. Sums are Python floats everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.kernels.contract import check_shapes

Array = Any  # numpy.ndarray; the shapes and types stand in each docstring
_AXES = (2, 1, 0)  # of the array: x, y, z


def _differences(x: Array) -> Array:
    """D x, (3, G, G, G) float64."""
    x = np.asarray(x, np.float64)
    return np.stack([np.roll(x, -1, axis) - x for axis in _AXES])


def _adjoint_differences(u: Array) -> Array:
    """D^T u, (G, G, G): <D x, u> = <x, D^T u>."""
    return sum(np.roll(component, 1, axis) - component for component, axis in zip(u, _AXES, strict=True))


def _length(u: Array) -> Array:
    """|u| at each voxel, (G, G, G)."""
    return np.sqrt(np.sum(u**2, axis=0))


def _soft(w: Array, threshold: Array, positive: bool) -> Array:
    """argmin_z (z - w)^2 / 2 + threshold |z|, over z >= 0 where ``positive``."""
    w = np.asarray(w, np.float64)
    if positive:
        return np.maximum(w - threshold, 0)
    return np.sign(w) * np.maximum(np.abs(w) - threshold, 0)


def _shrink(w: Array, threshold: Array) -> Array:
    """argmin_z |z - w|^2 / 2 + threshold |z| for the vector at each voxel: w max(0, 1 - threshold / |w|)."""
    w = np.asarray(w, np.float64)
    length = _length(w)
    kept = np.maximum(length - threshold, 0)
    return w * np.divide(kept, length, out=np.zeros_like(length), where=length > 0)


def split_step(
    b: Array,
    w1: Array,
    w2: Array,
    a: Array,
    c: Array,
    rho1: float,
    rho2: float,
    reflect: float,
    positive: bool = False,
) -> Array:
    """Right side of the linear equation of an iteration, b + rho1 (f z1 - w1) + rho2 D^T (f z2 - w2).

    Parameters
    ----------
    reflect
        f: 2 for an iteration, which reflects w at the proximal point; 1 for the residual of the dual.
    positive
        Whether z1 is kept from negative values: z1 = max(0, w1 - a / rho1).

    Returns
    -------
    (G, G, G) float64.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    check_shapes(w1.shape, b=b, w1=w1, w2=w2, a=a, c=c)
    a, c = np.asarray(a, np.float64), np.asarray(c, np.float64)
    sparse = reflect * _soft(w1, a / rho1, positive) - w1
    variation = reflect * _shrink(w2, c / rho2) - w2
    return b + rho1 * sparse + rho2 * _adjoint_differences(variation)


def relax_step(
    x: Array,
    w1: Array,
    w2: Array,
    a: Array,
    c: Array,
    rho1: float,
    rho2: float,
    relaxation: float,
    positive: bool = False,
) -> None:
    """End of an iteration, in place: w1 += r (x - z1), w2 += r (D x - z2), with z1 and z2 of the w1 and w2 given.

    Parameters
    ----------
    relaxation
        r, between 0 and 2.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    check_shapes(w1.shape, x=x, w1=w1, w2=w2, a=a, c=c)
    x, a, c = (np.asarray(volume, np.float64) for volume in (x, a, c))
    w1 += relaxation * (x - _soft(w1, a / rho1, positive))
    w2 += relaxation * (_differences(x) - _shrink(w2, c / rho2))


def sparse_prox(w1: Array, a: Array, rho1: float, positive: bool = False) -> Array:
    """Proximal point of the weighted l1 norm, z1 = soft(w1, a / rho1) [Luo2019, eq. 21]: exactly 0 up to the threshold.

    Returns
    -------
    (G, G, G) float64.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    check_shapes(w1.shape, w1=w1, a=a)
    return _soft(w1, np.asarray(a, np.float64) / rho1, positive)


def penalties(x: Array, a: Array, c: Array) -> tuple[float, float]:
    """The two norms of [Luo2019, eq. 11], sum a |x| and sum c |D x|; ValueError where the shapes differ."""
    check_shapes(x.shape, x=x, a=a, c=c)
    x, a, c = (np.asarray(volume, np.float64) for volume in (x, a, c))
    return float(np.sum(a * np.abs(x))), float(np.sum(c * _length(_differences(x))))


def penalty_weights(x: Array, eps: float, eps_gradient: float) -> tuple[Array, Array]:
    """Weights that make the norms tangent to logarithms at x [Luo2019, eq. 11]: 1 / (|x| + eps), 1 / (|D x| + eps').

    Parameters
    ----------
    eps, eps_gradient
        eps and eps', positive, in the units of x.

    Returns
    -------
    Two volumes (G, G, G) float64, per voxel of x and of D x.

    Raises
    ------
    ValueError
        When x is no volume (G, G, G).
    """
    check_shapes(x.shape, x=x)
    x = np.asarray(x, np.float64)
    return 1 / (np.abs(x) + eps), 1 / (_length(_differences(x)) + eps_gradient)


def smoothed_variation_gradient(x: Array, c: Array, mu: float) -> Array:
    """Gradient of the smoothed TV norm, D^T (c u) with u = D x / max(|D x|, mu) [Luo2019, eq. 15-17].

    The norm is sum c h(|D x|), h(t) = t^2 / (2 mu) up to mu and t - mu / 2 beyond [Luo2019, eq. 14].

    Parameters
    ----------
    mu
        Positive, in the units of x.

    Returns
    -------
    (G, G, G) float64.

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    check_shapes(x.shape, x=x, c=c)
    steps = _differences(x)
    return _adjoint_differences(np.asarray(c, np.float64) / np.maximum(_length(steps), mu) * steps)
