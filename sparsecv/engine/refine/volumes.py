# SPDX-License-Identifier: GPL-3.0-or-later
"""Between maps and the centred, oversampled Fourier volumes that are sliced and deposited into.

A map V (z, y, x) of ``box`` voxels has the transform F = fftn(pad(V)) / box on a grid ``PADDING`` times finer, so that
a central slice of F is the transform, divided by box, of V summed along the view: images and slices share one scale.
Only voxels up to the resolution in use are kept, as a half volume (2c+1, 2c+1, c+1).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsecv.engine.physics.gridding import correct_gridding

PADDING = 2  # oversampling of Fourier volumes, RELION's --pad 2
BLOCK = 32_000_000  # bytes that are transformed at once: sizes from 1 to 64 MB are as fast on a CPU
WEIGHT_FLOOR = 1e-3  # of the shell's mean: RELION's floor where a direction was hardly seen


def half_width(last_shell: int) -> int:
    """Half width c of the Fourier volume that holds shells up to ``last_shell``."""
    return PADDING * last_shell + 3


def map_to_volume(ops: Any, density: Any, last_shell: int) -> Any:
    """Fourier volume of a map, ready for trilinear slicing.

    Axis by axis, each padded when its turn comes and cropped at once to the shells that are kept, in blocks: the padded
    cube, 32 bytes a voxel of the map, never exists, and its zeros are not transformed.

    Parameters
    ----------
    ops
        Kernels.
    density
        (box, box, box) float32 map on the device.
    last_shell
        Highest shell that will be sliced.

    Returns
    -------
    (2c+1, 2c+1, c+1) complex64 with c = `half_width`.
    """
    xp, box = ops.xp, density.shape[0]
    big, c = PADDING * box, half_width(last_shell)
    reach = min(c, box - 1)
    side = 2 * reach + 1
    corrected = correct_gridding(density, PADDING, "trilinear", xp)
    corrected *= xp.float32(1 / box)
    planes = xp.empty((box, side, reach + 1), dtype=xp.complex64)
    for z in _blocks(box, big * (reach + 1)):
        lines = ops.rfft(_padded(xp, corrected[z], big, 2))[:, :, : reach + 1]
        planes[z] = _centred(xp, ops.fft(_padded(xp, lines, big, 1), 1), side, 1)
    del corrected, lines  # gigabytes, at the largest boxes
    volume = xp.zeros((2 * c + 1, 2 * c + 1, c + 1), dtype=xp.complex64)
    inner = _inner(volume, reach)
    for y in _blocks(side, big * (reach + 1)):
        inner[:, y] = _centred(xp, ops.fft(_padded(xp, planes[:, y], big, 0), 0), side, 0)
    return volume


def volume_to_map(ops: Any, volume: Any, box: int, kernel: str) -> Any:
    """Map of a Fourier volume, cropped to the box and corrected for the kernel that the volume was made with.

    The way of `map_to_volume` backwards: what lies outside of the box is dropped axis by axis.
    """
    xp, big = ops.xp, PADDING * box
    reach = min(volume.shape[2] - 1, box - 1)
    side = 2 * reach + 1
    inner = _inner(volume, reach)
    planes = xp.empty((box, side, reach + 1), dtype=xp.complex64)
    for y in _blocks(side, big * (reach + 1)):
        planes[:, y] = _centred(xp, ops.ifft(_padded(xp, inner[:, y], big, 0), 0), box, 0)
    del volume, inner  # gigabytes, at the largest boxes
    density = xp.empty((box, box, box), dtype=xp.float32)
    for z in _blocks(box, big * (reach + 1)):
        rows = _centred(xp, ops.ifft(_padded(xp, planes[z], big, 1), 1), box, 1)
        density[z] = _centred(xp, ops.irfft(rows, big), box, 2)
    del planes, rows
    density *= xp.float32(box)
    return correct_gridding(density, PADDING, kernel, xp)


def _blocks(count: int, values: int) -> list[slice]:
    """``count`` planes of so many complex values in blocks of `BLOCK` bytes, or of a single plane."""
    step = max(1, BLOCK // (8 * values))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _inner(volume: Any, reach: int) -> Any:
    """The part of a centred half volume up to ``reach`` along each axis."""
    c = volume.shape[2] - 1
    return volume[c - reach : c + reach + 1, c - reach : c + reach + 1, : reach + 1]


def _padded(xp: Any, values: Any, size: int, axis: int) -> Any:
    """Values padded to ``size`` along an axis; what was at the centre, index n // 2, is now at index 0."""
    n = values.shape[axis]
    shape = list(values.shape)
    shape[axis] = size
    padded = xp.zeros(shape, dtype=values.dtype)
    inner, outer = values.swapaxes(0, axis), padded.swapaxes(0, axis)
    outer[: n - n // 2] = inner[n // 2 :]
    outer[size - n // 2 :] = inner[: n // 2]
    return padded


def _centred(xp: Any, values: Any, count: int, axis: int) -> Any:
    """The ``count`` values about index 0, which comes to index count // 2: takes `_padded` back."""
    size, outer = values.shape[axis], values.swapaxes(0, axis)
    inner = xp.concatenate([outer[size - count // 2 :], outer[: count - count // 2]], axis=0)
    return inner.swapaxes(0, axis)


def move_map(ops: Any, density: Any, shift_px: np.ndarray) -> Any:
    """A map (box, box, box) displaced by (x, y, z) pixels, periodic, float32: its transform times a phase."""
    xp, box = ops.xp, density.shape[0]
    full, half = np.fft.fftfreq(box), np.fft.rfftfreq(box)
    phases = [xp.asarray(np.exp(-2j * np.pi * k * t).astype(np.complex64))
              for k, t in zip((half, full, full), shift_px, strict=True)]
    transform = ops.rfftn(density)
    transform *= phases[2][:, None, None] * phases[1][None, :, None] * phases[0][None, None, :]
    return ops.irfftn(transform, box)


def shell_means(ops: Any, volume: Any, n_shells: int) -> np.ndarray:
    """Mean of a real half volume per shell (of image frequency), float64 (n_shells,) on the host."""
    means: np.ndarray = ops.to_host(ops.mean_volume_shells(volume, PADDING, n_shells))
    return means


def quotient(ops: Any, data: Any, weight: Any, floor: np.ndarray, prior: np.ndarray) -> Any:
    """B / (max(N, floor) + prior) with values per shell on the host; 0 beyond the last of these shells."""
    tables = (ops.xp.asarray(table.astype(np.float32)) for table in (floor, prior))
    return ops.quotient(data, weight, *tables, PADDING)


def radial(ops: Any, values: np.ndarray, shape: tuple[int, ...]) -> Any:
    """Spread values per shell over a half volume of a shape; float32, 0 beyond the last shell."""
    xp, c = ops.xp, shape[2] - 1
    k = xp.arange(-c, c + 1, dtype=xp.float32)
    radius = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, c:] ** 2
    xp.sqrt(radius, out=radius)
    radius /= PADDING
    xp.rint(radius, out=radius)
    shell = xp.minimum(radius, len(values)).astype(xp.int32)
    table = xp.asarray(np.append(values, 0).astype(np.float32))
    return table[shell]


def _split_group(matrices: np.ndarray) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """Generators of the group's half turns about x, y and z, and one member of each of their cosets.

    A half turn about an axis maps the grid onto itself: it needs no interpolation, which is both exact and cheap. With
    G the union of the cosets K h, the sum over the group of f(g v) is the sum over h of F(h v), F(v) = sum_K f(k v).
    """
    diagonal = [m for m in matrices if np.allclose(np.abs(m), np.eye(3), atol=1e-6)]
    signs = [(round(m[0, 0]), round(m[1, 1]), round(m[2, 2])) for m in diagonal]
    half_turns = [sign for sign in signs if sign != (1, 1, 1)]
    generators = half_turns[:2] if len(half_turns) == 3 else half_turns
    others: list[np.ndarray] = []
    for matrix in matrices:
        if not any(np.allclose(np.diag(sign) @ matrix, known, atol=1e-6) for sign in signs for known in others):
            others.append(matrix)
    return generators, np.stack(others)


def _flip(values: Any, signs: tuple[int, int, int]) -> Any:
    """A copy turned by half a turn, signs (x, y, z) of its diagonal matrix; x < 0 by Friedel symmetry."""
    turned = values[:: signs[2] * signs[0], :: signs[1] * signs[0], :]
    return turned.conj() if signs[0] < 0 and values.dtype.kind == "c" else turned.copy()


@dataclass
class Accumulator:
    """Sums of backprojection: data B and weight N of the design, and how they were deposited.

    Attributes
    ----------
    data
        sum of posterior x CTF x image / sigma^2, half volume, complex64.
    weight
        sum of posterior x CTF^2 / sigma^2, half volume, float32. While images are added, both are of the kernels'
        ``SUMS``.
    box
        Of the images, pixels.
    last_shell
        Highest shell that was deposited.
    kernel
        ``"trilinear"`` or ``"gaussian"``.

    Notes
    -----
    What takes the kernels wants the arrays in their memory (:meth:`on_device`), but for :meth:`mean_weight`; the sum of
    two accumulators is made where both are.
    """

    data: Any
    weight: Any
    box: int
    last_shell: int
    kernel: str = "trilinear"

    @classmethod
    def empty(cls, ops: Any, box: int, last_shell: int, kernel: str = "trilinear") -> Accumulator:
        """An accumulator with nothing in it."""
        c = half_width(last_shell)
        shape = (2 * c + 1, 2 * c + 1, c + 1)
        data, weight = (ops.xp.zeros(shape, dtype=dtype) for dtype in ops.SUMS)
        return cls(data, weight, box, last_shell, kernel)

    def __add__(self, other: Accumulator) -> Accumulator:
        return replace(self, data=self.data + other.data, weight=self.weight + other.weight)

    def parked(self, ops: Any) -> Accumulator:
        """The same sums in the memory of the host, where they may wait; on the CPU they are there already."""
        return replace(self, data=ops.to_host(self.data), weight=ops.to_host(self.weight))

    def on_device(self, ops: Any) -> Accumulator:
        """The same sums in the kernels' memory; nothing is copied where they are there already."""
        return replace(self, data=ops.xp.asarray(self.data), weight=ops.xp.asarray(self.weight))

    def adding(self, ops: Any) -> AbstractContextManager[Callable[..., None]]:
        """A block that yields the function which adds batches; the sums are complete when the block ends."""
        found: AbstractContextManager[Callable[..., None]] = ops.backprojection(self.data, self.weight, self.kernel)
        return found

    def completed(self, ops: Any, matrices: np.ndarray) -> Accumulator:
        """Both Friedel mates on the plane x = 0, and the sum over the point group, in single precision.

        What the accumulator itself held is used up.
        """
        ops.complete_hermitian(self.data, self.weight)
        data = self.data.astype(np.complex64, copy=False)
        weight = self.weight.astype(np.float32, copy=False)
        flips, others = _split_group(matrices)
        for signs in flips:
            data += _flip(data, signs)
            weight += _flip(weight, signs)
        if len(others) > 1:
            data, weight = ops.symmetrise(data, weight, ops.xp.asarray(others.astype(np.float32)))
        return replace(self, data=data, weight=weight)

    def moved(self, ops: Any, shift_px: np.ndarray) -> Accumulator:
        """The sums of a map moved by (x, y, z) pixels: its transform times exp(-2 pi i k.shift / box)."""
        xp, c = ops.xp, self.data.shape[2] - 1
        step = -2j * np.pi / (PADDING * self.box)
        k = np.arange(-c, c + 1)
        x, y, z = (xp.asarray(np.exp(step * k * shift).astype(np.complex64)) for shift in shift_px)
        phase = z[:, None, None] * y[None, :, None] * x[None, None, c:]
        return replace(self, data=self.data * phase)

    def mean_weight(self, ops: Any) -> np.ndarray:
        """Mean weight per shell, float64 (last_shell + 1,)."""
        return shell_means(ops, ops.xp.asarray(self.weight), self.last_shell + 1)

    def solve(self, ops: Any, prior: np.ndarray | None = None) -> Any:
        """Map V = B / (N + prior) [Scheres2012], with N floored at a thousandth of its shell's mean.

        Parameters
        ----------
        prior
            Prior precision per shell in the units of N, float64 (last_shell + 1,); None for no regularisation.
        """
        return volume_to_map(ops, self._quotient(ops, prior), self.box, self.kernel)

    def _quotient(self, ops: Any, prior: np.ndarray | None) -> Any:
        """B / (N + prior) up to the last shell, complex64."""
        floor = WEIGHT_FLOOR * self.mean_weight(ops)
        added = np.zeros_like(floor) if prior is None else prior[: self.last_shell + 1]
        return quotient(ops, self.data, self.weight, floor, added)
