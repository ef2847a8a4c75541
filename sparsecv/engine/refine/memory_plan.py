# SPDX-License-Identifier: GPL-3.0-or-later
"""What fits into memory, planned before the first iteration for the last one, which needs most.

A plan says where images stay, how large a batch may be, and whether sums that are not in use are parked on the host. It
is an estimate, and a careful one: `tests/test_memory.py` holds it against the arrays that a refinement makes. Memory
that runs out all the same halves the batch (`in_batches` in half.py), and the pass goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecv.engine.refine.image_store import KINDS
from sparsecv.engine.refine.schedule import Geometry
from sparsecv.engine.refine.volumes import BLOCK, half_width

# Bytes per voxel of a padded Fourier volume (half of it is stored).
SUMS = 12  # of one quarter: data complex64, weight float32; all four live to the end of an iteration
CPU_SUMS = 24  # while images are added on the CPU: complex128 and float64, of the half at work, and one private copy
REFERENCE = 8
SOLVING = SUMS + 8 + 4  # a sum of quarters, its quotient, and the planes that `volume_to_map` makes of it
# Bytes per voxel of the map.
MAPS = 20  # five, while a map is solved: support, sphere, previous reference, and what corrects the new one
# A prior, with those of MAPS that it still needs: 28 maps of the sparse + TV solver while it chooses strengths, and
# fewer of non-uniform filters. And cuFFT's work on whole maps, two there and two back: a guess until it has run.
PRIOR = 112 + 16
BLOCKS = 6  # of the transforms, while one is padded, transformed and cropped
PARKED = 5 * SUMS  # on the host: the quarters, and a sum of two
RESERVE = 0.1  # of the memory: libraries, pieces between arrays
CPU_BATCH = 256e6  # bytes: larger ones leave the caches of a processor
SMALLEST_GPU_BATCH, LARGEST_GPU_BATCH = 256e6, 16e9
PART_OF_BATCH = 0.25  # of what volumes leave on a GPU
LEAST_PART = 0.1  # of the images: fewer on the device are not worth it


@dataclass(frozen=True)
class MemoryPlan:
    """Where images stay, how large batches are, and why.

    Attributes
    ----------
    batch_bytes
        Memory of one batch.
    resident, kind
        Images that stay on the device, and in what: see `ImageStore`.
    parks_sums
        Whether the quarters' sums wait on the host but for the one in use, as all of them would not fit.
    lines
        One or two lines to be shown: what was asked, what is free, what won.
    warning
        Why the last iteration may not fit; empty where it should.
    """

    batch_bytes: float
    resident: int
    kind: str
    parks_sums: bool
    lines: tuple[str, ...]
    warning: str = ""


def volume_bytes(geometry: Geometry, *, is_gpu: bool, parks_sums: bool = False) -> float:
    """Bytes of all volumes of an iteration in which shells up to Nyquist are backprojected, as in the last one.

    The sums of all quarters, unless they are parked, and beside them what solves a map or what a prior makes of it. On
    a GPU that is more than the reference and what is being added to or symmetrised; on the CPU, where sums are made in
    double precision, it is less.
    """
    voxels, cube = _voxels(geometry), geometry.box**3
    kept = 0 if parks_sums else 4 * SUMS * voxels
    solving = kept + max(SOLVING * voxels + MAPS * cube, PRIOR * cube) + BLOCKS * BLOCK
    expecting = 0 if is_gpu else (REFERENCE + 2 * SUMS + 3 * CPU_SUMS) * voxels
    return float(max(solving, expecting))


def _voxels(geometry: Geometry) -> int:
    """Of the half volume that holds all shells up to Nyquist."""
    c = half_width(geometry.nyquist_shell)
    return (2 * c + 1) ** 2 * (c + 1)


def plan_memory(
    geometry: Geometry,
    images: int,
    *,
    is_gpu: bool,
    free: int,
    total: int,
    host: int = 0,
    asked: float | None = None,
    asked_batch: float | None = None,
) -> MemoryPlan:
    """Plan of a refinement.

    Parameters
    ----------
    images
        Images that this process works on.
    is_gpu
        Whether memory is that of a GPU. The host keeps files that were read by itself: there nothing needs to stay.
    free, total
        Bytes.
    host
        Bytes free on the host of a GPU; 0 where that is not known.
    asked, asked_batch
        Bytes that may be used (None: what is free), and that a batch may take (None: what suits the device).
    """
    usable = (1 - RESERVE) * (free if asked is None else min(asked, free))
    volumes = volume_bytes(geometry, is_gpu=is_gpu)
    parks_sums, on_host, parked = is_gpu and volumes + (asked_batch or SMALLEST_GPU_BATCH) > usable, "", 0.0
    if parks_sums:
        parked, whole = float(PARKED * _voxels(geometry)), volumes
        volumes = volume_bytes(geometry, is_gpu=True, parks_sums=True)
        on_host = f"; sums that are not in use wait on the host ({_gb(parked)}): with them it would be {_gb(whole)}"
    left = max(usable - volumes, 0.0)
    if asked_batch is not None:
        batch = asked_batch
    elif is_gpu:
        batch = min(max(PART_OF_BATCH * left, SMALLEST_GPU_BATCH), LARGEST_GPU_BATCH)
    else:
        batch = CPU_BATCH
    resident, kind, why = 0, KINDS[0], "read ahead from the files"
    if is_gpu:
        resident, kind, why = _residence(images, geometry.box, left - batch)
    where = "of the GPU" if is_gpu else "of this machine"
    limit = "" if asked is None else f", {_gb(asked)} asked for (--memory)"
    chosen = "" if asked_batch is None else " asked for (--batch-memory)"
    lines = (
        f"memory {where}: {_gb(free)} free of {_gb(total)}{limit}; volumes of the last iteration {_gb(volumes)}"
        f"{on_host}",
        f"{images} images of {_gb(4.0 * geometry.box**2 * images)}: {why}; batches of {_gb(batch)}{chosen}",
    )
    warning = ""
    for what, wanted, there in (
        ("memory", volumes + batch, usable if free else 0),
        ("memory on the host", parked, (1 - RESERVE) * host),
    ):
        if there and wanted > there:
            warning = (f"the last iteration may need {_gb(wanted)} of {what} and {_gb(there)} can be used: it may not "
                       "finish; crop or bin the images, or take a machine with more")  # fmt: skip
    return MemoryPlan(batch, resident, kind, parks_sums, lines, warning)


def _residence(images: int, box: int, room: float) -> tuple[int, str, str]:
    """Images that stay on the device, in what, and why."""
    pixels = box**2
    full, half = (size * pixels * images for size in (4.0, 2.0))
    if full <= room:
        return images, KINDS[0], "they stay on it in float32"
    if half <= room:
        return images, KINDS[1], f"they stay on it in float16, as {_gb(room)} are left for them"
    left = f"{_gb(max(room, 0.0))} are left for them"
    fitting = int(max(room, 0) // (2 * pixels))
    if fitting >= LEAST_PART * images:
        return fitting, KINDS[1], f"{fitting} of them stay on it in float16, as {left}; the others are streamed"
    return 0, KINDS[0], f"streamed, as {left}"


def _gb(size: float) -> str:
    """Bytes in GB, or in MB where they are few."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
