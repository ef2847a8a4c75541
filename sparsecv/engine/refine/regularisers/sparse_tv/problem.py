# SPDX-License-Identifier: GPL-3.0-or-later
"""The optimisation problem of one M-step: a quadratic data term and two penalties [Luo2019, eq. 7].

    F(x) = 1/2 <x, H x> - <b, x> + sum_j a_j |x_j| + sum_j c_j |(D x)_j|      (x = 0 outside the support)

H = N + gamma is diagonal in Fourier space, b = A^H D y + gamma x_previous, D the forward differences of a voxel to its
three neighbours. The weights a = alpha / (|x_0| + eps) and c = beta / (|D x_0| + eps') majorise, about x_0, the
penalties alpha log(|x| + eps) and beta log(|D x| + eps').
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FORBIDDEN = 1e20  # weight that no density can pay


@dataclass(frozen=True)
class Quadratic:
    """Data term 1/2 <x, H x> - <b, x>.

    Attributes
    ----------
    linear
        b, (n, n, n) float32.
    hessian
        Eigenvalues of H in the layout of ``rfftn``, (n, n, n // 2 + 1) float32, positive.
    """

    linear: Any
    hessian: Any

    def __add__(self, other: Quadratic) -> Quadratic:
        return Quadratic(self.linear + other.linear, self.hessian + other.hessian)

    @property
    def size(self) -> int:
        """Voxels along a side."""
        return int(self.linear.shape[0])

    def apply(self, ops: Any, x: Any) -> Any:
        """H x."""
        return ops.irfftn(ops.rfftn(x) * self.hessian, self.size)

    def energy(self, ops: Any, x: Any) -> float:
        """1/2 <x, H x>, by Parseval's theorem: one transform."""
        return 0.5 * hermitian_sum(ops, self.hessian, ops.rfftn(x))

    def dual_energy(self, ops: Any, r: Any) -> float:
        """1/2 <r, H^-1 r>."""
        return 0.5 * hermitian_sum(ops, 1 / self.hessian, ops.rfftn(r))

    def value(self, ops: Any, x: Any) -> float:
        """1/2 <x, H x> - <b, x>."""
        return self.energy(ops, x) - dot(ops, self.linear, x)

    def damped(self, gamma: float, previous: Any) -> Quadratic:
        """With gamma/2 |x - previous|^2 added, but for its constant."""
        strength = np.float32(gamma)
        return Quadratic(self.linear + strength * previous, self.hessian + strength)


@dataclass(frozen=True)
class Penalty:
    """Weights of the two norms.

    Attributes
    ----------
    sparse, variation
        a and c, (n, n, n) float32, not negative. Where a is ``FORBIDDEN`` the map stays 0: outside the support.
    positive
        Whether x >= 0 is asked for as well.
    """

    sparse: Any
    variation: Any
    positive: bool = False

    def value(self, ops: Any, x: Any) -> float:
        """sum a |x| + sum c |D x| of an x that keeps to the support (and the sign)."""
        return float(sum(ops.penalties(x, self.sparse, self.variation)))


def objective(ops: Any, data: Quadratic, penalty: Penalty, x: Any) -> float:
    """F(x)."""
    return data.value(ops, x) + penalty.value(ops, x)


def dot(ops: Any, first: Any, second: Any) -> float:
    """Scalar product of two real volumes, summed in pairs of planes so that float32 is enough."""
    return float((first * second).sum(axis=(1, 2), dtype=np.float64).sum())


def hermitian_sum(ops: Any, weights: Any, transform: Any) -> float:
    """sum_k weights |transform|^2 / n^3 over the whole spectrum of a real volume, from its half transform."""
    n = transform.shape[0]
    power = transform.real**2
    power += transform.imag**2
    power *= weights
    planes = ops.to_host(power.sum(axis=(0, 1), dtype=np.float64))
    counts = np.full(n // 2 + 1, 2.0)
    counts[0] = 1
    if n % 2 == 0:
        counts[-1] = 1
    return float(counts @ planes) / n**3


def difference_spectrum(ops: Any, n: int) -> Any:
    """Eigenvalues of D^T D, Lambda = sum over axes of 4 sin^2(pi k / n), (n, n, n // 2 + 1) float32."""
    xp = ops.xp
    one = 4 * np.sin(np.pi * np.fft.fftfreq(n)) ** 2
    full, half = (xp.asarray(values.astype(np.float32)) for values in (one, one[: n // 2 + 1]))
    return full[:, None, None] + full[None, :, None] + half[None, None, :]
