# SPDX-License-Identifier: GPL-3.0-or-later
"""What every back end asks of its arguments, checked once per call in Python so that no kernel has to."""

from __future__ import annotations

from typing import Any

import numpy as np

KERNELS = ("trilinear", "gaussian")
LEAST_DENOMINATOR = 1e-30  # of a quotient: where nothing was deposited, the data are 0, too
HOPELESS = -1e30  # score of a candidate that could not be computed
PRECISIONS = ("fp32", "tf32", "bf16")  # of the factors of a matrix product; sums are always in float32


def half_width(shape: tuple[int, ...]) -> int:
    """The c of a half Fourier volume's shape (2c+1, 2c+1, c+1); ValueError for any other shape."""
    c = int(shape[-1]) - 1
    if tuple(shape) != (2 * c + 1, 2 * c + 1, c + 1):
        raise ValueError(f"a half Fourier volume has shape (2c+1, 2c+1, c+1), not {tuple(shape)}")
    return c


def check_reach(shape: tuple[int, ...], kx: Any, ky: Any, padding: float, curvature: Any = None) -> None:
    """Refuse, with ValueError, pixels kx, ky (J,) that leave the volume; the rule is padding max|k| + 2 <= c.

    On curved slices |k| is that of (kx, ky, curvature k^2).
    """
    check_radius(shape, largest_radius(kx, ky), padding, curvature)


def largest_radius(kx: Any, ky: Any) -> float:
    """max|k| of pixels kx, ky (J,); ValueError where these are no lists of the same length."""
    if kx.ndim != 1 or kx.shape != ky.shape or kx.size == 0:
        raise ValueError(f"kx and ky are lists of the same length, at least 1, not {kx.shape} and {ky.shape}")
    return float((kx * kx + ky * ky).max()) ** 0.5


def curved_radius(radius: Any, curvature: Any) -> Any:
    """Distance from the origin of pixels whose |k| is ``radius``, on slices curved by kz = curvature k^2."""
    return radius * np.sqrt(1 + (curvature * radius) ** 2)


def check_radius(shape: tuple[int, ...], radius: float, padding: float, curvature: Any = None) -> None:
    """The rule of `check_reach` for a radius that is known."""
    c = half_width(shape)
    if curvature is not None:
        radius = float(curved_radius(radius, np.abs(curvature).max(initial=0)))
    reach = padding * radius + 2
    if not reach <= c:  # so written that NaN is refused
        raise ValueError(f"the disc needs a half width of {reach:.1f} (padding x frequency + 2), the volume has {c}")


def check_candidates(rotations: Any, owner: Any, images: Any, ctf2: Any, weights: Any, kx: Any) -> None:
    """Refuse, with ValueError, arrays whose shapes do not belong together; weights may be None."""
    candidates, (n_images, shifts, pixels) = len(owner), images.shape
    expected = {
        "rotations": (rotations.shape, (candidates, 3, 3)),
        "ctf2": (ctf2.shape, (n_images, pixels)),
        "kx": (kx.shape, (pixels,)),
    }
    if weights is not None:
        expected["weights"] = (weights.shape, (candidates, shifts))
    for name, (shape, wanted) in expected.items():
        if tuple(shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(shape)}; its companions ask for {wanted}")


def check_curvature(curvature: Any, images: Any) -> np.ndarray | None:
    """Curvatures of images (I, T, J), one for each, as float64 (I,); None for none. ValueError for any other number.

    They stay on the host, where they decide whether a disc fits: to look at them on the device is to wait for it.
    """
    if curvature is None:
        return None
    given = np.asarray(curvature, np.float64)
    if given.shape != images.shape[:1]:
        raise ValueError(f"curvature has shape {given.shape}; the images ask for ({len(images)},)")
    return given


def check_shifts(images: Any, shifts: Any, kx: Any) -> None:
    """Refuse, with ValueError, images (I, J) and shifts (I, T, 2) that do not belong together."""
    if images.ndim != 2 or images.shape[1] != len(kx):
        raise ValueError(f"images have shape {tuple(images.shape)}; the disc asks for (images, {len(kx)})")
    if shifts.ndim != 3 or shifts.shape[0] != len(images) or shifts.shape[2] != 2:
        raise ValueError(f"shifts have shape {tuple(shifts.shape)}; the images ask for ({len(images)}, shifts, 2)")


def check_grid(cross: Any, norm: Any, prior: Any) -> None:
    """Refuse, with ValueError, cross (I, T, R), norm (I, R) and prior (I, T) that do not belong together."""
    if cross.ndim != 3 or 0 in cross.shape:
        raise ValueError(f"cross has shape {tuple(cross.shape)}, not (images, shifts, orientations), each at least 1")
    images, shifts, orientations = cross.shape
    for name, array, wanted in (("norm", norm, (images, orientations)), ("prior", prior, (images, shifts))):
        if tuple(array.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; its companions ask for {wanted}")


def check_runs(values: Any, offsets: Any, dimensions: int) -> None:
    """Refuse, with ValueError, values (C,) or (C, T) and offsets of runs (I + 1,) that cannot belong together."""
    if values.ndim != dimensions:
        raise ValueError(f"values have {dimensions} axes, not shape {tuple(values.shape)}")
    if offsets.ndim != 1 or len(offsets) < 2 or len(offsets) - 1 > len(values):
        raise ValueError(f"{len(values)} rows cannot be runs with {tuple(offsets.shape)} offsets, none of them empty")


def check_product(rows: Any, columns: Any, precision: str) -> None:
    """Refuse, with ValueError, matrices (M, K) and (N, K) that do not fit, and an unknown precision."""
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(f"a product of {tuple(rows.shape)} and {tuple(columns.shape)}: both have the same second axis")
    if precision not in PRECISIONS:
        raise ValueError(f"the precision is one of {', '.join(PRECISIONS)}, not {precision!r}")


def check_kernel(kernel: str) -> None:
    """Refuse, with ValueError, the name of a spreading kernel that does not exist."""
    if kernel not in KERNELS:
        raise ValueError(f"the kernel is one of {', '.join(KERNELS)}, not {kernel!r}")


def check_shapes(shape: tuple[int, ...], **volumes: Any) -> None:
    """Refuse, with ValueError, what is no volume of ``shape`` (G, G, G); of the vectors in w2 there are three."""
    if len(shape) != 3 or len(set(shape)) != 1:
        raise ValueError(f"volumes have shape (G, G, G), not {tuple(shape)}")
    for name, volume in volumes.items():
        wanted = (3, *shape) if name == "w2" else tuple(shape)
        if tuple(volume.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(volume.shape)}; its companions ask for {wanted}")


def check_volumes(shape: tuple[int, ...], **volumes: Any) -> None:
    """`check_shapes`, and refuse, with ValueError, arrays that are not float32 and contiguous."""
    check_shapes(shape, **volumes)
    for name, volume in volumes.items():
        if volume.dtype != "float32" or not volume.flags.c_contiguous:
            raise ValueError(f"{name} is a contiguous float32 array, not {volume.dtype}, strides {volume.strides}")


def bins_of(side: int, bin: int) -> int:
    """Bins along a side, the last of which may be partial; ValueError for bins without a voxel."""
    if bin < 1:
        raise ValueError(f"a bin has at least one voxel along a side, not {bin}")
    return -(-side // bin)


def bin_places(side: int, bin: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower neighbour among the bins' centres of each voxel of a side, int64, and the distance from it, float32."""
    count = bins_of(side, bin)
    position = np.clip((np.arange(side) + 0.5) / bin - 0.5, 0, count - 1)
    lower = np.minimum(position.astype(np.int64), max(count - 2, 0))
    return lower, (position - lower).astype(np.float32)


def check_taps(taps: Any) -> int:
    """Radius of a symmetric window with 2 r + 1 taps; ValueError for an even number of them."""
    if taps.ndim != 1 or len(taps) % 2 == 0:
        raise ValueError(f"a window has an odd number of taps, not shape {tuple(taps.shape)}")
    return len(taps) // 2


def check_chosen(chosen: Any) -> None:
    """Refuse, with ValueError, numbers of filters that are not uint8 and contiguous."""
    if chosen.dtype != "uint8" or not chosen.flags.c_contiguous:
        raise ValueError(f"chosen is a contiguous uint8 array, not {chosen.dtype}, strides {chosen.strides}")


def check_quotient(data: Any, weight: Any, floor: Any, prior: Any) -> int:
    """Half width of the volumes of a quotient; ValueError for shapes that do not belong together."""
    if data.shape != weight.shape:
        raise ValueError(f"data {tuple(data.shape)} and weight {tuple(weight.shape)} differ in shape")
    if floor.ndim != 1 or floor.shape != prior.shape:
        raise ValueError(f"floor and prior have one value for each shell, not {tuple(floor.shape)} and "
                         f"{tuple(prior.shape)}")  # fmt: skip
    return half_width(data.shape)
