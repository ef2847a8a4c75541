# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of a refinement: in the device's memory as far as they fit, read ahead from the disc where they do not.

Every iteration looks at every image once. What has been read once stays on the device, in float32, or in float16 with a
factor for each image, as long as there is the room that was planned for it (`memory_plan`); all other batches are read
by a thread while the batch before is worked on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsecv.engine.io.particles import ParticleTable

HALF_PEAK = 2.0**14  # largest value of an image in float16, whose largest number is 65504; the smallest normal is 2^-14
KINDS = ("float32", "float16")


class ImageStore:
    """Images of a table on a device.

    Parameters
    ----------
    ops
        Kernels.
    table
        The particles.
    capacity
        Images that may stay on the device; 0 for none.
    kind
        ``"float32"`` or ``"float16"``: how they stay.

    Notes
    -----
    Rounding to float16 moves a pixel by at most 2^-11 of itself, or 2^-39 of its image's largest value where that is
    more: for noise a relative error of 2e-4, a ten-millionth of the noise power.
    """

    def __init__(self, ops: Any, table: ParticleTable, capacity: int = 0, kind: str = "float32") -> None:
        self._ops, self._table = ops, table
        self.reserve(capacity, kind)
        self._slot = np.full(len(table), -1, dtype=np.int64)  # place of a row among the resident images
        self._used = 0
        self._images: Any = None  # (capacity, box, box), made when the first images come
        self._peak: Any = None

    def reserve(self, capacity: int, kind: str) -> None:
        """Let as many images stay as have room, in ``kind``; before the first one is read."""
        if kind not in KINDS:
            raise ValueError(f"images stay as one of {', '.join(KINDS)}, not {kind!r}")
        self._capacity, self._kind = capacity, kind

    @property
    def resident(self) -> int:
        """Images on the device."""
        return self._used

    def show(self, table: ParticleTable) -> None:
        """Give images as another table of the same rows has them: through other optics all have to be read anew."""
        if table.optics != self._table.optics:
            self._slot[:] = -1
            self._used = 0
        self._table = table

    def get(self, index: np.ndarray) -> Any:
        """Images of some rows of the table, float32 (n, box, box) on the device; zeros for what cannot be used."""
        absent = index[self._slot[index] < 0]
        read = self._ops.xp.asarray(self._read(absent)) if len(absent) else None
        return self._put_together(index, absent, read)

    def batches(self, batches: Sequence[np.ndarray], *, keeps: bool = True) -> Iterator[tuple[np.ndarray, Any]]:
        """Rows and images of each batch, as from `get`; they are the caller's until it asks for the next.

        Parameters
        ----------
        keeps
            Whether those that are read may stay on the device.
        """
        absent = [index[self._slot[index] < 0] for index in batches]
        stream = self._ops.prefetched(self._read, [rows for rows in absent if len(rows)], (self._table.box,) * 2)
        try:
            for index, rows in zip(batches, absent, strict=True):
                yield index, self._put_together(index, rows, next(stream) if len(rows) else None, keeps)
        finally:
            stream.close()

    def _read(self, index: np.ndarray) -> np.ndarray:
        return self._table.read_images(index)[0]

    def _put_together(self, index: np.ndarray, absent: np.ndarray, read: Any, keeps: bool = True) -> Any:
        """Images of ``index``, of which the rows ``absent`` have been read."""
        if keeps and read is not None and self._used + len(absent) <= self._capacity:
            self._keep(absent, read)
            absent = absent[:0]
        if not len(absent):
            return self._resident(index)
        if len(absent) == len(index):
            return read
        xp, is_absent = self._ops.xp, self._slot[index] < 0
        images = xp.empty((len(index), self._table.box, self._table.box), dtype=xp.float32)
        images[xp.asarray(np.flatnonzero(is_absent))] = read
        images[xp.asarray(np.flatnonzero(~is_absent))] = self._resident(index[~is_absent])
        return images

    def _keep(self, rows: np.ndarray, images: Any) -> None:
        xp, box = self._ops.xp, self._table.box
        if self._images is None:
            self._images = xp.empty((self._capacity, box, box), dtype=self._kind)
            self._peak = xp.ones(self._capacity, dtype=xp.float32)
        first, last = self._used, self._used + len(rows)
        if self._kind == "float16":
            peak = xp.abs(images).max(axis=(1, 2)) / xp.float32(HALF_PEAK)
            peak = xp.where(peak > 0, peak, xp.float32(1))
            self._images[first:last] = (images / peak[:, None, None]).astype(xp.float16)
            self._peak[first:last] = peak
        else:
            self._images[first:last] = images
        self._slot[rows] = np.arange(first, last)  # last: what has failed on the way is read again
        self._used = last

    def _resident(self, index: np.ndarray) -> Any:
        xp = self._ops.xp
        slots = xp.asarray(self._slot[index])
        images = self._images[slots]
        if self._kind == "float16":
            images = images.astype(xp.float32) * self._peak[slots][:, None, None]
        return images
