# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition of every kernel, in float64 NumPy: what the other back ends are tested against.

Arrays shared by the functions
------------------------------
volume
    (2c+1, 2c+1, c+1) complex: the half x >= 0 of a centred Fourier volume, voxel (z, y, x) at index [z+c, y+c, x]; the
    other half follows from Friedel symmetry, V(-v) = conj V(v). Image frequency k (cycles per box) sits at padding k.
rotations
    (C, 3, 3), RELION's A: takes map coordinates (x, y, z) to image coordinates.
kx, ky
    (J,) the pixels of the disc: one of each Friedel pair, without the origin, with padding max|k| + 2 <= c.
owner
    (C,) integer: the image that each candidate rotation belongs to, ascending.

Image pixel (kx, ky) of candidate c is the voxel v = padding A_c^T (kx, ky, 0) of the volume (projection-slice theorem);
where v_x < 0 the mate -v is used, with the complex conjugate. A curved slice, a part of an Ewald sphere, has
v = padding A_c^T (kx, ky, curvature k^2).

This back end computes in float64 and complex128 throughout and returns them; the others return float32 and complex64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsecv.kernels import host_memory
from sparsecv.kernels.contract import (
    LEAST_DENOMINATOR,
    PRECISIONS,
    check_candidates,
    check_curvature,
    check_kernel,
    check_product,
    check_quotient,
    check_reach,
    check_shifts,
    half_width,
)
from sparsecv.kernels.reference_nonuniform import butterworth as butterworth
from sparsecv.kernels.reference_nonuniform import filtered_error as filtered_error
from sparsecv.kernels.reference_nonuniform import take_better as take_better
from sparsecv.kernels.reference_nonuniform import window as window
from sparsecv.kernels.reference_posterior import grid_maxima as grid_maxima
from sparsecv.kernels.reference_posterior import leaders as leaders
from sparsecv.kernels.reference_posterior import mark_best as mark_best
from sparsecv.kernels.reference_posterior import normalise_runs as normalise_runs
from sparsecv.kernels.reference_posterior import run_maxima as run_maxima
from sparsecv.kernels.reference_posterior import run_sums as run_sums
from sparsecv.kernels.reference_sparse_tv import penalties as penalties
from sparsecv.kernels.reference_sparse_tv import penalty_weights as penalty_weights
from sparsecv.kernels.reference_sparse_tv import relax_step as relax_step
from sparsecv.kernels.reference_sparse_tv import smoothed_variation_gradient as smoothed_variation_gradient
from sparsecv.kernels.reference_sparse_tv import sparse_prox as sparse_prox
from sparsecv.kernels.reference_sparse_tv import split_step as split_step

Array = Any  # numpy.ndarray; the shapes and types stand in each docstring
xp = np
name = "reference"
SUMS = np.complex128, np.float64  # of accumulators


def to_host(array: Array) -> Array:
    """The array in host memory (here: itself)."""
    return array


def free_memory() -> tuple[int, int]:
    """Free and total bytes of the back end's memory."""
    return host_memory.free_memory()


def devices() -> int:
    """Number of memories over which the processes of a machine are spread: one, or one of each GPU."""
    return 1


def limit_memory(size: int) -> None:
    """Ask for more than ``size`` bytes in all to fail; the memory of a host is not limited."""


def release_memory() -> None:
    """Give back what is kept for later: after memory has run out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out."""
    return isinstance(error, MemoryError)


def rfft2(images: Array) -> Array:
    """Transforms of a stack of images, X(k) = sum_r x(r) exp(-2 pi i k.r / box) for k_x >= 0.

    Parameters
    ----------
    images
        (n, box, box) real.

    Returns
    -------
    (n, box, box // 2 + 1) complex128.
    """
    return np.fft.rfft2(np.asarray(images, np.float64), axes=(1, 2))


def rfftn(volume: Array) -> Array:
    """Transform of a volume (box, box, box), as `rfft2`; (box, box, box // 2 + 1) complex128."""
    return np.fft.rfftn(np.asarray(volume, np.float64))


def irfftn(transform: Array, box: int) -> Array:
    """Volume (box, box, box), float64, of a half transform: the inverse of `rfftn`, for even and odd boxes.

    The other back ends may overwrite the transform.
    """
    return np.fft.irfftn(np.asarray(transform, np.complex128), s=(box, box, box), axes=(0, 1, 2))


def rfft(values: Array) -> Array:
    """Half transforms of real values along the last axis, X(k) = sum_r x(r) exp(-2 pi i k r / n), complex128."""
    return np.fft.rfft(np.asarray(values, np.float64))


def fft(values: Array, axis: int) -> Array:
    """Transform along one axis of any array, complex128. The other back ends may overwrite the values."""
    return np.fft.fft(np.asarray(values, np.complex128), axis=axis)


def ifft(values: Array, axis: int) -> Array:
    """Inverse of `fft`, which may overwrite the values as well."""
    return np.fft.ifft(np.asarray(values, np.complex128), axis=axis)


def irfft(values: Array, size: int) -> Array:
    """Real values, ``size`` of them, of half transforms along the last axis, float64."""
    return np.fft.irfft(np.asarray(values, np.complex128), n=size)


def prefetched(
    read: Callable[[Array], Array], batches: Sequence[Array], shape: tuple[int, ...]
) -> Iterator[Array]:
    """Batches of images in the back end's memory, one after another.

    The other back ends read the next batch while the caller works on the one it has, in a thread of their own: ``read``
    must not change anything that the caller looks at. A batch is the caller's until it asks for the next one.

    Parameters
    ----------
    read
        Gives the images (n, *shape) of the rows (n,) that it is called with, float32 on the host.
    batches
        Rows of each batch, none without any.
    shape
        Of an image.
    """
    for index in batches:
        yield np.asarray(read(index), np.float64)


def product(rows: Array, columns: Array, precision: str = "fp32") -> Array:
    """Matrix product rows @ columns^T.

    Parameters
    ----------
    rows, columns
        (M, K) and (N, K) real.
    precision
        What the factors may be rounded to before they are multiplied, where the device gains by it: "fp32" (no
        rounding), "tf32" (11 significant bits) or "bf16" (8). Sums are in float32 at least. Only a GPU rounds.

    Returns
    -------
    (M, N) float64.
    """
    check_product(rows, columns, precision)
    return np.asarray(rows, np.float64) @ np.asarray(columns, np.float64).T


def product_precisions() -> tuple[str, ...]:
    """Precisions of `product` that differ on this device."""
    return PRECISIONS[:1]


def _positions(
    rotation: Array, kx: Array, ky: Array, padding: float, curvature: float = 0.0
) -> tuple[Array, Array]:
    """Voxel positions (x, y, z) with x >= 0 of the disc's pixels, (J, 3), and where the mate was taken, (J,) bool."""
    rotation, kx, ky = (np.asarray(array, np.float64) for array in (rotation, kx, ky))
    kz = curvature * (kx * kx + ky * ky)
    position = padding * (np.outer(kx, rotation[0]) + np.outer(ky, rotation[1]) + np.outer(kz, rotation[2]))
    flipped = position[:, 0] < 0
    position[flipped] *= -1
    return position, flipped


def _trilinear(position: Array) -> tuple[Array, Array]:
    """Eight neighbours (8, J, 3) of positions and their coefficients (8, J): prod over axes of 1 - |v - n|."""
    corner = np.floor(position).astype(np.int64)
    steps = np.array([(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    neighbours = corner[None] + steps[:, None]
    return neighbours, np.prod(1.0 - np.abs(position[None] - neighbours), axis=2)


def _gaussian(position: Array) -> tuple[Array, Array]:
    """The 27 neighbours round(v) + {-1, 0, 1}^3, (27, J, 3), and their coefficients exp(-|v - n|^2 / 2), (27, J)."""
    nearest = np.rint(position).astype(np.int64)
    steps = np.array([(x, y, z) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    neighbours = nearest[None] + steps[:, None]
    return neighbours, np.exp(-0.5 * np.sum((position[None] - neighbours) ** 2, axis=2))


def _interpolate(volume: Array, position: Array, flipped: Array) -> Array:
    """Trilinear value of the volume at positions with x >= 0, conjugated where flipped."""
    c = half_width(volume.shape)
    neighbours, coefficients = _trilinear(position)
    x, y, z = np.moveaxis(neighbours, 2, 0)
    values = np.sum(coefficients * volume[z + c, y + c, x], axis=0)
    return np.where(flipped, np.conj(values), values)


def extract_slices(volume: Array, rotations: Array, kx: Array, ky: Array, padding: float) -> Array:
    """Central slices of a Fourier volume by trilinear interpolation.

    P_c(k) = sum_n prod_axes (1 - |v - n|) V(n),  v = padding A_c^T (kx, ky, 0), over the 8 voxels n around v.

    Returns
    -------
    (C, J) complex128.

    Raises
    ------
    ValueError
        When the disc does not fit into the volume.
    """
    check_reach(volume.shape, kx, ky, padding)
    slices = np.empty((len(rotations), len(kx)), np.complex128)
    for candidate, rotation in enumerate(rotations):
        slices[candidate] = _interpolate(volume, *_positions(rotation, kx, ky, padding))
    return slices


def score_candidates(
    volume: Array, rotations: Array, owner: Array, images: Array, ctf2: Array, kx: Array, ky: Array, padding: float
) -> tuple[Array, Array]:
    """Cross and norm terms of the log-likelihood of candidate poses [Scheres2012, eq. 4].

    cross[c, t] = sum_j Re(conj(images[owner_c, t, j]) P_c(j)),  norm[c] = sum_j ctf2[owner_c, j] |P_c(j)|^2,
    so that log p = cross - norm / 2 + a constant per image, where images and ctf2 are weighted as below.

    Parameters
    ----------
    images
        (I, T, J) complex: image times CTF / sigma2, at T shifts.
    ctf2
        (I, J) real: CTF^2 / sigma2.

    Returns
    -------
    cross (C, T) and norm (C,), float64.
    """
    check_candidates(rotations, owner, images, ctf2, None, kx)
    slices = extract_slices(volume, rotations, kx, ky, padding)
    owner = np.asarray(owner)
    cross = np.empty((len(rotations), images.shape[1]))
    norm = np.empty(len(rotations))
    for candidate, (image, projection) in enumerate(zip(owner, slices, strict=True)):
        cross[candidate] = np.real(np.conj(images[image].astype(np.complex128)) @ projection)
        norm[candidate] = ctf2[image].astype(np.float64) @ np.abs(projection) ** 2
    return cross, norm


def shift_images(images: Array, shifts: Array, kx: Array, ky: Array, box: int) -> Array:
    """Images moved by several shifts each, in Fourier space.

    out[i, t, j] = images[i, j] exp(-2 pi i (kx_j dx_it + ky_j dy_it) / box): the transform of image i moved by
    +(dx, dy).

    Parameters
    ----------
    images
        (I, J) complex.
    shifts
        (I, T, 2) real: dx, dy in pixels.
    box
        Of the images, pixels.

    Returns
    -------
    (I, T, J) complex128.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    check_shifts(images, shifts, kx)
    shifts = np.asarray(shifts, np.float64)
    turns = (shifts[:, :, :1] * kx + shifts[:, :, 1:] * ky) / box
    return images.astype(np.complex128)[:, None] * np.exp(-2j * np.pi * turns)


def backproject(
    images: Array,
    ctf2: Array,
    weights: Array,
    rotations: Array,
    owner: Array,
    kx: Array,
    ky: Array,
    padding: float,
    data: Array,
    weight: Array,
    kernel: str = "trilinear",
    curvature: Sequence[float] | None = None,
) -> None:
    """Add weighted images to the numerator and the weight of the reconstruction, in place [Scheres2012, eq. 5].

    s_c(j) = sum_t weights[c, t] images[owner_c, t, j],  w_c(j) = ctf2[owner_c, j] sum_t weights[c, t],
    data(n) += g(v - n) s_c(j) (its conjugate at -v),  weight(n) += g(v - n) w_c(j).

    Parameters
    ----------
    weights
        (C, T) real: posterior of candidate c at shift t.
    data, weight
        (2c+1, 2c+1, c+1) complex and real accumulators.
    kernel
        "trilinear": g = prod (1 - |d|) on 8 voxels, the adjoint of `extract_slices`; "gaussian": g = exp(-|d|^2 / 2) on
        the 27 voxels around round(v); a neighbour at x = -1 is its mate (-z, -y, 1), conjugated.
    curvature
        (I,) on the host: each image lies on a slice curved by kz = curvature k^2, k in cycles per box. None: all are
        flat.

    Notes
    -----
    Only one of each Friedel pair is added: on the plane x = 0 `complete_hermitian` adds the other.
    """
    bends = check_curvature(curvature, images)
    check_reach(data.shape, kx, ky, padding, bends)
    check_candidates(rotations, owner, images, ctf2, weights, kx)
    check_kernel(kernel)
    spread = _trilinear if kernel == "trilinear" else _gaussian
    c = half_width(data.shape)
    for candidate, image in enumerate(np.asarray(owner)):
        shift_weights = np.asarray(weights[candidate], np.float64)
        if not np.any(shift_weights):
            continue
        position, flipped = _positions(rotations[candidate], kx, ky, padding, 0.0 if bends is None else bends[image])
        values = shift_weights @ images[image].astype(np.complex128)
        values = np.where(flipped, np.conj(values), values)
        neighbours, coefficients = spread(position)
        mate = neighbours[..., 0] < 0
        neighbours = np.where(mate[..., None], -neighbours, neighbours)
        x, y, z = np.moveaxis(neighbours, 2, 0)
        voxel = (z + c, y + c, x)
        np.add.at(data, voxel, coefficients * np.where(mate, np.conj(values), values))
        np.add.at(weight, voxel, coefficients * (ctf2[image].astype(np.float64) * shift_weights.sum()))


@contextmanager
def backprojection(data: Array, weight: Array, kernel: str = "trilinear") -> Iterator[Callable[..., None]]:
    """Backproject many batches: yields a function of the arguments of `backproject` from ``images`` to ``padding``, and
    of ``curvature``.

    ``data`` and ``weight`` hold the sums when the block ends; within it they may not be looked at.
    """
    check_kernel(kernel)
    yield functools.partial(backproject, data=data, weight=weight, kernel=kernel)


def complete_hermitian(data: Array, weight: Array) -> None:
    """Add, in place, what the other half of the Friedel pairs would have added to the plane x = 0.

    On x = 0: D(z, y) <- D(z, y) + conj D(-z, -y),  W(z, y) <- W(z, y) + W(-z, -y).
    """
    data[:, :, 0] += np.conj(data[::-1, ::-1, 0])
    weight[:, :, 0] += weight[::-1, ::-1, 0].copy()


def symmetrise(data: Array, weight: Array, matrices: Array) -> tuple[Array, Array]:
    """Sum of a reconstruction's accumulators over a point group.

    out(v) = sum_g in(R_g v) by trilinear interpolation, for |v| <= c - 2, and 0 outside.

    Parameters
    ----------
    matrices
        (G, 3, 3): rotations R_g acting on (x, y, z), identity included.

    Returns
    -------
    New data (complex128) and weight (float64). The accumulators must be Friedel-complete.
    """
    c = half_width(data.shape)
    z, y, x = np.meshgrid(np.arange(-c, c + 1), np.arange(-c, c + 1), np.arange(c + 1), indexing="ij")
    inside = x**2 + y**2 + z**2 <= max(c - 2, 0) ** 2
    voxels = np.stack([x[inside], y[inside], z[inside]], axis=1).astype(np.float64)
    new_data, new_weight = np.zeros(data.shape, np.complex128), np.zeros(weight.shape)
    for matrix in np.asarray(matrices, np.float64):
        position = voxels @ matrix.T
        flipped = position[:, 0] < 0
        position[flipped] *= -1
        new_data[inside] += _interpolate(data, position, flipped)
        new_weight[inside] += _interpolate(weight, position, flipped)
    return new_data, new_weight


def sum_disc_shells(values: Array, offsets: Array) -> Array:
    """Sums over the shells of a disc whose pixels are sorted by shell.

    out[n, s] = sum of values[n, j] for offsets[s] <= j < offsets[s+1].

    Parameters
    ----------
    values
        (N, J) real.
    offsets
        (S+1,) integer, ascending, offsets[0] = 0.

    Returns
    -------
    (N, S) float64; empty shells are 0.
    """
    running = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, dtype=np.float64, out=running[:, 1:])
    return np.diff(running[:, np.asarray(offsets)], axis=1)


def sum_volume_shells(first: Array, second: Array, padding: float, n_shells: int) -> Array:
    """Cross and auto power of two Fourier volumes per shell: FSC = out[:, 0] / sqrt(out[:, 1] out[:, 2]).

    out[s] = sum over voxels with round(|v| / padding) = s of (Re(a conj b), |a|^2, |b|^2), over the
    Friedel-completed volume: voxels with x > 0 count twice. Halves round to even, as everywhere here.

    Returns
    -------
    (n_shells, 3) float64.
    """
    c = half_width(first.shape)
    axis = np.arange(-c, c + 1)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + np.arange(c + 1) ** 2)
    shell = np.rint(radius / padding).astype(np.int64)
    times = np.where(np.arange(c + 1) > 0, 2.0, 1.0) * (shell < n_shells)
    a, b = first.astype(np.complex128), second.astype(np.complex128)
    terms = (np.real(a * np.conj(b)), np.abs(a) ** 2, np.abs(b) ** 2)
    shell = np.minimum(shell, n_shells).ravel()
    sums = [np.bincount(shell, (times * term).ravel(), n_shells + 1)[:n_shells] for term in terms]
    return np.stack(sums, axis=1)


def mean_volume_shells(values: Array, padding: float, n_shells: int) -> Array:
    """Mean of a real half volume per shell round(|v| / padding), over the Friedel-completed volume.

    Returns
    -------
    (n_shells,) float64; 0 where a shell has no voxel.
    """
    sums = sum_volume_shells(values, np.ones_like(values), padding, n_shells)
    return sums[:, 0] / np.maximum(sums[:, 2], 1)


def quotient(data: Array, weight: Array, floor: Array, prior: Array, padding: float) -> Array:
    """Fourier volume of a map from its sums, V = B / (max(N, floor_s) + prior_s) up to the last shell [Scheres2012].

    s = round(|v| / padding), as in `sum_volume_shells`. Where the denominator is 0 the result is B times 1e30.

    Parameters
    ----------
    data, weight
        B, (2c+1, 2c+1, c+1) complex, and N, real.
    floor, prior
        (S,) real, not negative: per shell. Beyond the last of these shells the result is 0.

    Returns
    -------
    (2c+1, 2c+1, c+1) complex128.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    c = check_quotient(data, weight, floor, prior)
    axis = np.arange(-c, c + 1)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + np.arange(c + 1) ** 2)
    shell = np.minimum(np.rint(radius / padding).astype(np.int64), len(floor))
    floors, priors = (np.append(np.asarray(table, np.float64), 0) for table in (floor, prior))
    denominator = np.maximum(np.maximum(weight, floors[shell]) + priors[shell], LEAST_DENOMINATOR)
    return np.where(shell < len(floor), data / denominator, 0)
