# SPDX-License-Identifier: GPL-3.0-or-later
"""What each kernel must do at least: bytes, floating-point operations and additions to shared memory, by formulas.

Bytes: every input read once, every output written once (what is changed in place counts twice), as float32, complex64
and int32. FLOPs: additions, multiplications, divisions and square roots of floating-point numbers as the CUDA source
has them, a fused multiply-add being two; rounding, comparisons, signs, exponentials and sines are not counted. Adds:
floats that are added to memory that other threads add to. tests/test_benchmarks_gpu.py counts the last two in the
running source.

Letters: C candidates, I images, T shifts, J pixels of the disc, R orientations of the grid, S shells, V voxels of a
half volume that a disc can reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecv.engine.refine.volumes import PADDING

POSITION = 14  # 2 padding k, 9 A^T k, 3 signs
TRILINEAR = 45  # 3 fractions, and twice seven mixtures a + f (b - a)
TRILINEAR_REAL = 24  # the same for real numbers


@dataclass(frozen=True)
class Work:
    """What an operation must do at least.

    Attributes
    ----------
    bytes
        Read and written.
    flops, precision
        Floating-point operations, and of which ceiling.
    adds
        Floats added to shared memory.
    link_bytes
        Moved from the host.
    """

    bytes: float
    flops: float = 0.0
    precision: str = "fp32"
    adds: float = 0.0
    link_bytes: float = 0.0

    def times(self, bandwidth: float, flops: dict[str, float], adds: float, link: float) -> dict[str, float]:
        """Seconds that each of the resources needs for it."""
        peak = flops.get(self.precision, flops["fp32"])
        return {"bytes": self.bytes / bandwidth, "FLOPs": self.flops / peak, "adds": self.adds / adds,
                "link": self.link_bytes / link}  # fmt: skip


def reachable(last_shell: int) -> float:
    """V: voxels of the half ball of a Fourier volume with shells up to ``last_shell``, with the neighbours' layer."""
    return 2 / 3 * np.pi * (PADDING * last_shell + 1) ** 3


def half_volume(c: int) -> float:
    """H: voxels of a half volume (2c+1, 2c+1, c+1)."""
    return float((2 * c + 1) ** 2 * (c + 1))


def extract_slices(C: float, J: float, V: float) -> Work:
    """Volume, rotations and pixels in, slices out."""
    return Work(8 * V + 36 * C + 8 * J + 8 * C * J, C * J * (POSITION + TRILINEAR))


def score_candidates(C: float, I: float, T: float, J: float, V: float, most_shifts: int = 16) -> Work:  # noqa: E741
    """Volume, images at all shifts, CTF and rotations in, T + 1 numbers of each candidate out.

    Per pixel a slice, anew for each tile of ``most_shifts``, 4 FLOPs for each shift, 5 for the norm.
    """
    tiles = -(-T // most_shifts)
    moved = 8 * V + 8 * I * T * J + 4 * I * J + 8 * J + 40 * C + 4 * C * (T + 1)
    return Work(moved, C * J * (tiles * (POSITION + TRILINEAR + 5) + 4 * T))


def shift_images(I: float, T: float, J: float) -> Work:  # noqa: E741
    """Images in, images at all shifts out; 5 FLOPs for the angle and 6 for the complex product."""
    return Work(8 * I * J + 8 * I * T + 8 * J + 8 * I * T * J, 11 * I * T * J)


def backproject(C: float, I: float, T: float, J: float, V: float, kernel: str = "trilinear") -> Work:  # noqa: E741
    """Images, CTF, weights and rotations in; the sums in and out. T: shifts of a candidate that have any weight.

    Per pixel: 5 FLOPs for each shift and 1 for the CTF; trilinear: 3 fractions and 12 complements of them; gaussian: 18
    for nine distances and 18 for the exponents; and for each of 8 or 27 voxels 2 for the coefficient and 3 for its
    products. The additions themselves are counted as adds.
    """
    voxels, before = (8, 15) if kernel == "trilinear" else (27, 36)
    moved = 24 * V + 8 * I * T * J + 4 * I * J + 8 * J + 4 * C * T + 40 * C
    return Work(moved, C * J * (POSITION + 1 + 5 * T + before + 5 * voxels), adds=3.0 * voxels * C * J)


def product(M: float, N: float, K: float, precision: str = "fp32") -> Work:
    """(M, K) times (N, K)^T."""
    return Work(4 * (M * K + N * K + M * N), 2.0 * M * N * K, precision)


def grid_maxima(I: float, T: float, R: float) -> Work:  # noqa: E741
    """Cross and norm terms in, a maximum per orientation and one per shift out; 3 FLOPs for a score, made twice."""
    return Work(4 * (I * T * R + I * R + I * T) + 4 * (I * R + I * T), 6 * I * T * R)


def runs(C: float, I: float, T: float, out: float, size: int = 4) -> Work:  # noqa: E741
    """Values (C, T) of ``size`` bytes and I runs in, ``out`` bytes out: maxima, sums, marks, leaders, posteriors."""
    return Work(size * C * T + 4 * I + out, C * T)


def symmetrise(c: int, operations: int) -> Work:
    """Both sums in and out; for each operation 18 FLOPs for the place, two interpolations, 3 sums."""
    inside = 2 / 3 * np.pi * max(c - 2, 0) ** 3
    return Work(24 * half_volume(c), inside * operations * (18 + TRILINEAR + TRILINEAR_REAL + 3))


def complete_hermitian(c: int) -> Work:
    """The plane x = 0 of both sums, read twice (itself and its mates) and written."""
    return Work(36 * float((2 * c + 1) ** 2), 3 * float((2 * c + 1) ** 2))


def sum_disc_shells(N: float, J: float, S: float) -> Work:
    """Rows of values in, double sums per shell out."""
    return Work(4 * N * J + 8 * N * S, N * J)


def sum_volume_shells(c: int, S: float) -> Work:
    """Two complex volumes in, three double sums per shell out."""
    return Work(16 * half_volume(c) + 24 * S, 15 * half_volume(c))


def mean_volume_shells(c: int, S: float) -> Work:
    """A real volume in, double means per shell out."""
    return Work(4 * half_volume(c) + 8 * S, 2 * half_volume(c))


def quotient(c: int) -> Work:
    """Data and weight in, a volume out."""
    return Work(20 * half_volume(c), 5 * half_volume(c))


def voxelwise(side: int, reads: float, writes: float, flops: float) -> Work:
    """Volumes of float32 read and written, and FLOPs per voxel."""
    return Work(4 * (reads + writes) * side**3, flops * side**3)


def butterworth(side: int, order: int) -> Work:
    """A half transform in and out."""
    values = side**2 * (side // 2 + 1)
    return Work(16.0 * values, (12 + order) * values)


def window(bins: int, taps: int) -> Work:
    """A small volume in and out along each of three axes, as one pass at least."""
    return Work(8.0 * bins**3 + 4 * taps, 6 * taps * bins**3)


def fft(values: float, transformed: float, reads: float, writes: float) -> Work:
    """A transform of real values: 2.5 N log2 N FLOPs for N values that are transformed together, bytes in and out."""
    return Work(reads + writes, 2.5 * values * np.log2(max(transformed, 2)))
