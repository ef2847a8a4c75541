# SPDX-License-Identifier: GPL-3.0-or-later
"""What fits into memory, planned before the first iteration for the last one, which needs most.

A plan says where images stay and how large a batch may be. It is an estimate, and rather too careful: memory that runs
out all the same halves the batch (`in_batches` in half.py), and the pass goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecv.engine.refine.image_store import KINDS
from sparsecv.engine.refine.schedule import Geometry
from sparsecv.engine.refine.volumes import PADDING, half_width

# Bytes per voxel of a padded Fourier volume (half of it is stored).
SUMS = 12  # of one quarter: data complex64, weight float32; all four quarters live to the end of the last iteration
REFERENCE = 8
# Bytes per voxel of the padded map of (2 box)^3: the map or its half transform, a copy of it on the way, cuFFT's work.
TRANSFORMS = 18
REGULARISER = 100  # per voxel of the map: a dozen volumes of the sparse + TV solver, two dozen of non-uniform filters
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
    lines
        One or two lines to be shown: what was asked, what is free, what won.
    warning
        Why the last iteration may not fit; empty where it should.
    """

    batch_bytes: float
    resident: int
    kind: str
    lines: tuple[str, ...]
    warning: str = ""


def volume_bytes(geometry: Geometry) -> float:
    """Bytes of all volumes of the last iteration, when shells up to Nyquist are backprojected.

    The sums of all quarters, and beside them either the reference and one quarter that is being symmetrised, or, later,
    both halves, their sum, the transforms of a map and the work of a regulariser.
    """
    c = half_width(geometry.nyquist_shell)
    voxels = (2 * c + 1) ** 2 * (c + 1)
    expecting = (REFERENCE + SUMS) * voxels
    joining = 3 * SUMS * voxels + TRANSFORMS * (PADDING * geometry.box) ** 3 + REGULARISER * geometry.box**3
    return float(4 * SUMS * voxels + max(expecting, joining))


def plan_memory(
    geometry: Geometry,
    images: int,
    *,
    is_gpu: bool,
    free: int,
    total: int,
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
    asked, asked_batch
        Bytes that may be used (None: what is free), and that a batch may take (None: what suits the device).
    """
    usable = (1 - RESERVE) * (free if asked is None else min(asked, free))
    volumes = volume_bytes(geometry)
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
        f"memory {where}: {_gb(free)} free of {_gb(total)}{limit}; volumes of the last iteration {_gb(volumes)}",
        f"{images} images of {_gb(4.0 * geometry.box**2 * images)}: {why}; batches of {_gb(batch)}{chosen}",
    )
    warning = ""
    if free and volumes + batch > usable:
        warning = (f"the last iteration may need {_gb(volumes + batch)} of memory and {_gb(usable)} can be used: it "
                   "may not finish; crop or bin the images, or take a machine with more")  # fmt: skip
    return MemoryPlan(batch, resident, kind, lines, warning)


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
