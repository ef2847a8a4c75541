# SPDX-License-Identifier: GPL-3.0-or-later
"""The Fourier pixels of an image that a refinement uses, as one list sorted by resolution.

A real image's transform has Friedel symmetry, so only half of it is independent. The *disc* lists that half without
the origin, sorted by shell: cropping to a lower resolution is taking a prefix, without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np


class DeviceDisc(NamedTuple):
    """The lists of a `Disc` in the memory of a device."""

    kx: Any
    ky: Any
    shell: Any
    offsets: Any
    flat: Any


@dataclass(frozen=True, eq=False)
class Disc:
    """Unique Fourier pixels up to a shell.

    Attributes
    ----------
    box
        Box of the images, pixels.
    kx, ky
        Integer frequencies (cycles per box), int32, shape (J,); kx > 0, or kx == 0 and ky > 0.
    shell
        Rounded radius of each pixel, int32, shape (J,), ascending.
    offsets
        Shell s holds pixels ``offsets[s]:offsets[s + 1]``; int32, shape (last + 2,). Shell 0 is empty: the mean of an
        image carries no information about orientation.
    flat
        Index of each pixel in a raveled ``rfft2`` of shape (box, box // 2 + 1), int64, shape (J,).
    """

    box: int
    kx: np.ndarray
    ky: np.ndarray
    shell: np.ndarray
    offsets: np.ndarray
    flat: np.ndarray

    @property
    def last(self) -> int:
        """Highest shell in the list."""
        return len(self.offsets) - 2

    def __len__(self) -> int:
        return len(self.kx)

    def size(self, shell: int) -> int:
        """Number of pixels up to and including a shell."""
        return int(self.offsets[min(shell, self.last) + 1])

    def crop(self, shell: int) -> Disc:
        """The disc up to and including a lower shell; the same object for the same shell."""
        return self if shell >= self.last else _cropped(self, shell)

    def on(self, xp: Any) -> DeviceDisc:
        """The lists as arrays of a module, uploaded once."""
        return _uploaded(self, xp)


@lru_cache(maxsize=256)
def _cropped(disc: Disc, shell: int) -> Disc:
    j = disc.size(shell)
    return Disc(disc.box, disc.kx[:j], disc.ky[:j], disc.shell[:j], disc.offsets[: shell + 2], disc.flat[:j])


@lru_cache(maxsize=64)
def _uploaded(disc: Disc, xp: Any) -> DeviceDisc:
    return DeviceDisc(*map(xp.asarray, (disc.kx, disc.ky, disc.shell, disc.offsets, disc.flat)))


@lru_cache(maxsize=8)
def make_disc(box: int, last_shell: int | None = None) -> Disc:
    """Disc of a box up to a shell (default: the last whole one below Nyquist)."""
    limit = (box - 1) // 2 if last_shell is None else min(last_shell, (box - 1) // 2)
    grid = np.meshgrid(np.arange(-limit, limit + 1), np.arange(0, limit + 1), indexing="ij")
    ky, kx = grid[0].ravel(), grid[1].ravel()
    shell = np.rint(np.hypot(kx, ky)).astype(np.int32)
    keep = (shell <= limit) & ((kx > 0) | (ky > 0))
    kx, ky, shell = kx[keep], ky[keep], shell[keep]
    order = np.lexsort((np.arctan2(ky, kx), shell))
    kx, ky, shell = kx[order].astype(np.int32), ky[order].astype(np.int32), shell[order]
    offsets = np.searchsorted(shell, np.arange(limit + 2)).astype(np.int32)
    flat = (ky % box).astype(np.int64) * (box // 2 + 1) + kx
    return Disc(box, kx, ky, shell, offsets, flat)
