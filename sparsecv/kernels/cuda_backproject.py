# SPDX-License-Identifier: GPL-3.0-or-later
"""Backprojection on the GPU in two ways, of which the faster one is found while they work.

*Scattering* gives each pixel a thread, which adds to the voxels around it atomically: memory decides how fast that is,
and the order of additions differs from run to run. *Gathering* gives each tile of voxels a block, which looks for the
pixels around them: no atomic additions, the same bits in each run, more arithmetic. Which of them is faster hangs on
card, box and number of candidates.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsecv.kernels.contract import (
    check_candidates,
    check_curvature,
    check_kernel,
    check_radius,
    half_width,
    largest_radius,
)
from sparsecv.kernels.cuda_launch import blocks, contiguous, import_cupy, launch

LEAST_PADDING = 2  # of gathering: below, more pixels reach a tile than it has room for
TILE = 8  # voxels of a tile of gathering along an axis
WORTH_A_TRIAL = 1e8  # pixels of all candidates of a call


def _radius_of(kx: Any, ky: Any) -> float:
    """Length of the longest (kx, ky), looked for once for each list: to look is to wait for the device."""
    found: float = _remembered(_radii, kx, ky, largest_radius)
    return found


def _remembered(known: deque[Any], kx: Any, ky: Any, make: Callable[[Any, Any], Any]) -> Any:
    for first, second, value in known:
        if first() is kx and second() is ky:
            return value
    value = make(kx, ky)
    known.append((weakref.ref(kx), weakref.ref(ky), value))
    return value


_radii: deque[Any] = deque(maxlen=32)
_tables: deque[Any] = deque(maxlen=8)  # each of up to a few MB


def check_reach(shape: tuple[int, ...], kx: Any, ky: Any, padding: float, curvature: Any = None) -> None:
    """:func:`.contract.check_reach`, which looks at the numbers of a list of pixels once."""
    check_radius(shape, _radius_of(kx, ky), padding, curvature)


def check_accumulators(data: Any, weight: Any) -> None:
    """The accumulators are changed in place, so they cannot be converted: ValueError where that would be needed."""
    half_width(data.shape)
    if data.shape != weight.shape:
        raise ValueError(f"data {data.shape} and weight {weight.shape} differ in shape")
    for array, dtype in ((data, np.complex64), (weight, np.float32)):
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(f"accumulators are contiguous complex64 and float32 arrays, not {array.dtype}")


def backproject(
    images: Any,
    ctf2: Any,
    weights: Any,
    rotations: Any,
    owner: Any,
    kx: Any,
    ky: Any,
    padding: float,
    data: Any,
    weight: Any,
    kernel: str = "trilinear",
    curvature: Sequence[float] | None = None,
) -> None:
    """Add weighted images to data (complex64) and weight (float32) in place: see :func:`.reference.backproject`."""
    bends = check_curvature(curvature, images)
    check_reach(data.shape, kx, ky, padding, bends)
    check_candidates(rotations, owner, images, ctf2, weights, kx)
    check_kernel(kernel)
    check_accumulators(data, weight)
    (images,) = contiguous(np.complex64, images)
    ctf2, weights, rotations = contiguous(np.float32, ctf2, weights, rotations)
    (owner,) = contiguous(np.int32, owner)
    given = images, ctf2, weights, rotations, owner, kx, ky, padding, data, weight, kernel
    pixels = len(owner) * len(kx)
    if bends is not None or pixels < WORTH_A_TRIAL or not can_gather(kx, ky, padding):
        scatter(*given, bends)
        return
    trial = _trial(import_cupy().cuda.Device().id, data.shape, kernel)
    with trial.timed(pixels) as way:
        way(*given)


@contextmanager
def backprojection(data: Any, weight: Any, kernel: str = "trilinear") -> Iterator[Callable[..., None]]:
    """Backproject many batches: see :func:`.reference.backprojection`."""
    check_kernel(kernel)
    yield functools.partial(backproject, data=data, weight=weight, kernel=kernel)


def scatter(
    images: Any, ctf2: Any, weights: Any, rotations: Any, owner: Any, kx: Any, ky: Any, padding: float, data: Any,
    weight: Any, kernel: str, bends: Any = None,
) -> None:  # fmt: skip
    """`backproject` with atomic additions, arguments checked already."""
    kx, ky = contiguous(np.float32, kx, ky)
    sizes = (len(kx), images.shape[1], float(padding), half_width(data.shape))
    curved = () if bends is None else (import_cupy().asarray(bends.astype(np.float32)),)
    arguments = (images, ctf2, weights, rotations, owner, *curved, kx, ky, *sizes, data, weight)
    macros = {"CURVED": 1} if curved else {}
    launch("backproject", f"backproject_{kernel}", (len(owner), blocks(len(kx))), arguments, **macros)


def gather(
    images: Any, ctf2: Any, weights: Any, rotations: Any, owner: Any, kx: Any, ky: Any, padding: float, data: Any,
    weight: Any, kernel: str,
) -> None:  # fmt: skip
    """`backproject` of flat slices tile by tile, arguments checked already; the same bits in each run.

    kx and ky are whole numbers, and no pixel stands in the list beside its Friedel mate: see `can_gather`.
    """
    xp, c = import_cupy(), half_width(data.shape)
    table, radius = _table_of(kx, ky), _radius_of(kx, ky)
    active = (weights != 0).any(axis=1).astype(xp.int32)
    sizes = (len(table) // 2, radius, len(owner), len(kx), images.shape[1], float(padding), c)
    arguments = (images, ctf2, weights, rotations, owner, active, table, *sizes, data, weight)
    tiles = (c // TILE + 1) * (2 * c // TILE + 1) ** 2
    launch("gather", "gather", (tiles,), arguments, GAUSSIAN=int(kernel == "gaussian"))


def can_gather(kx: Any, ky: Any, padding: float) -> bool:
    """Whether `gather` can do it: padding 2 or more, whole frequencies, no pixel with its mate in the list."""
    return padding >= LEAST_PADDING and _table_of(kx, ky) is not None


def _table_of(kx: Any, ky: Any) -> Any:
    """(2 r + 1, 2 r + 1) int32 on the device, the table of gather.cu; None where the list allows none."""
    return _remembered(_tables, kx, ky, _make_table)


def _make_table(kx: Any, ky: Any) -> Any:
    xp, r = import_cupy(), int(np.ceil(_radius_of(kx, ky)))
    x, y = kx.astype(xp.int32), ky.astype(xp.int32)
    if bool(((x != kx) | (y != ky)).any()):
        return None
    numbers = xp.arange(1, len(kx) + 1, dtype=xp.int32)
    table = xp.zeros((2 * r + 1, 2 * r + 1), xp.int32)
    table[r + y, r + x] = numbers
    table[r - y, r - x] = -numbers
    return table if int(xp.count_nonzero(table)) == 2 * len(kx) else None


class Trial:
    """Which of two ways is faster: each is timed once, after a call that compiles it; nobody waits for the device.

    Times are between two events in the device's stream, looked at when both have happened.
    """

    def __init__(self, ways: tuple[Callable[..., None], ...]) -> None:
        self.waiting = [way for way in ways for _ in range(2)]
        self.seconds: dict[Callable[..., None], float] = {}
        self.marks: deque[tuple[Callable[..., None], int, Any, Any]] = deque()
        self.ways = ways

    @contextmanager
    def timed(self, amount: int) -> Iterator[Callable[..., None]]:
        """The way to go for an amount of work, and its time taken where that is still wanted."""
        event = import_cupy().cuda.Event
        self._look(import_cupy().cuda.get_elapsed_time)
        if not self.waiting:
            yield min(self.ways, key=lambda way: self.seconds.get(way, 0.0))  # 0: not known yet, both are on their way
            return
        way, first, last = self.waiting[0], event(), event()
        first.record()
        yield way  # an exception, of memory that has run out, leaves the way waiting
        last.record()
        self.waiting.pop(0)
        self.marks.append((way, amount, first, last))

    def _look(self, elapsed: Callable[[Any, Any], float]) -> None:
        """Take over the times of what has been done; the second one of each way is the one that counts."""
        while self.marks and self.marks[0][3].done:
            way, amount, first, last = self.marks.popleft()
            self.seconds[way] = elapsed(first, last) / amount


@functools.lru_cache(maxsize=64)
def _trial(device: int, shape: tuple[int, ...], kernel: str) -> Trial:
    """The trial of a device, a size of sums and a kernel; kept for the life of the process."""
    return Trial((scatter, gather))
