# SPDX-License-Identifier: GPL-3.0-or-later
"""How sure an FSC curve is: bands from resampling the directions of Fourier space.

A mask ties neighbouring coefficients to each other, and molecules are not alike in all directions, so coefficients are
no independent samples. Cones of directions nearly are: the curve is made again from cones drawn with replacement
(block bootstrap), and the spread of those curves is its uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.physics.fourier import shell_indices

POLAR, AROUND = 8, 16  # cones of equal solid angle of the half space kx >= 0
DRAWS = 400
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class ConeSums:
    """Sums over cones of a pair of transforms, each (shells, cones): Re X Y*, |X|^2, |Y|^2."""

    cross: NDArray[np.float64]
    power1: NDArray[np.float64]
    power2: NDArray[np.float64]

    @property
    def curve(self) -> NDArray[np.float64]:
        """The FSC, (shells,); shell 0 is 1, a shell without power 0, as in ``fsc.fsc``."""
        return _ratio(self.cross.sum(axis=1), self.power1.sum(axis=1), self.power2.sum(axis=1))

    def resampled(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """The curve of each draw of cones (draws, cones), (draws, shells)."""
        return _ratio(draws @ self.cross.T, draws @ self.power1.T, draws @ self.power2.T)


def cone_sums(transform1: NDArray[np.complex64], transform2: NDArray[np.complex64]) -> ConeSums:
    """Sums of two half transforms of one box over the parts of each shell that lie in one cone.

    Each pair k, -k counts twice, as in ``fourier.shell_sums``; its members on kx = 0 lie in different cones.
    """
    box = transform1.shape[0]
    index, twice = _cells(box)
    shells = box // 2 + 1

    def sums(values: NDArray[np.float32]) -> NDArray[np.float64]:
        cells = (shells + 1) * POLAR * AROUND
        counted = np.asarray(np.bincount(index, weights=(values * twice).ravel(), minlength=cells), dtype=np.float64)
        return counted.reshape(shells + 1, -1)[:shells]

    return ConeSums(
        sums(transform1.real * transform2.real + transform1.imag * transform2.imag),
        sums(transform1.real**2 + transform1.imag**2), sums(transform2.real**2 + transform2.imag**2),
    )  # fmt: skip


def draws_of_cones(seed: int) -> NDArray[np.float64]:
    """How often each cone is taken in each draw, (draws, cones)."""
    cones = POLAR * AROUND
    drawn = np.random.default_rng(seed).multinomial(cones, np.full(cones, 1 / cones), size=DRAWS)
    return drawn.astype(np.float64)


def band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end of 95 % of resampled curves, each (shells,)."""
    low, high = np.quantile(curves, LEVELS, axis=0)
    return low, high


def _ratio(
    cross: NDArray[np.float64], power1: NDArray[np.float64], power2: NDArray[np.float64]
) -> NDArray[np.float64]:
    power = power1 * power2
    curve: NDArray[np.float64] = np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)
    curve[..., 0] = 1.0
    return curve


@lru_cache(maxsize=1)
def _cells(box: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Flat index shell x cone of every coefficient (the corners in one more shell), and 1 or 2 along kx."""
    k = (np.fft.fftfreq(box) * box).astype(np.float32)
    kx = np.arange(box // 2 + 1, dtype=np.float32)
    shells, last = shell_indices(box), box // 2
    index = np.empty(shells.shape, dtype=np.int32)
    around = np.arctan2(k[:, None], k[None, :]) / np.float32(2 * np.pi) % 1
    for z in range(box):
        radius = np.sqrt(k[z] ** 2 + k[:, None] ** 2 + kx**2)
        polar = np.minimum(kx / np.maximum(radius, 1) * POLAR, POLAR - 1).astype(np.int32)
        turn = np.minimum(around[z] * AROUND, AROUND - 1).astype(np.int32)
        index[z] = (np.minimum(shells[z], last + 1) * POLAR + polar) * AROUND + turn[:, None]
    twice = np.full(len(kx), 2, dtype=np.float32)
    twice[0] = 1
    if box % 2 == 0:
        twice[-1] = 1
    flat = index.ravel()
    flat.setflags(write=False)
    twice.setflags(write=False)
    return flat, twice
