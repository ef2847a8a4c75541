# SPDX-License-Identifier: GPL-3.0-or-later
"""MRC/CCP4 maps and particle stacks, in modes 0, 1, 2, 6 and 12 and both byte orders.

Maps are (z, y, x) float32, whatever the order of the axes in the file; lengths are in A. Stacks are read in batches by
position, without loading them, through a small set of open files that is shared by all stacks.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike, NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_write
from sparsecv.engine.io.regular import open_regular

HEADER_BYTES = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
LARGEST_SIDE = 1 << 20  # pixels; a larger number in a header is damage
LARGEST_BOX = 4096  # pixels of a particle's image
OPEN_FILES = 128  # of the usual limit of 1024 per process
CHECKSUM = "sparsecv crc32 "  # beginning of the second label
SECOND_LABEL = slice(304, 384)  # of the header's bytes
MRC_RULE, MRC_REMEDY = "an MRC file, unpacked", "copy it again, or have the program that wrote it write it anew"
READ_BYTES = 1 << 30  # Linux reads at most 2 GiB in one call


@dataclass(frozen=True)
class Map:
    """A density map.

    Attributes
    ----------
    data
        Float32, shape (z, y, x).
    pixel_size
        A per voxel.
    origin
        Position (x, y, z) of voxel (0, 0, 0), A.
    warnings
        Sentences about what is odd in the file.
    """

    data: NDArray[np.float32]
    pixel_size: float
    origin: tuple[float, float, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class MrcHeader:
    """What a header says: columns, rows and sections, how values are stored, where they begin, and all its fields."""

    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    offset: int
    fields: np.void
    warnings: tuple[str, ...]

    def pixel_sizes(self) -> NDArray[np.float64]:
        """Return A per voxel along x, y, z; 0 where the header does not say."""
        cell = np.array([self.fields["cella"][axis] for axis in "xyz"], dtype=np.float64)
        steps = np.array([self.fields[name] for name in ("mx", "my", "mz")], dtype=np.float64)
        known = (steps > 0) & np.isfinite(cell) & (cell > 0)
        sizes = np.where(known, cell / np.where(known, steps, 1), 0.0)
        return np.array([float(f"{size:.7g}") for size in sizes])  # the digits that float32 holds


def read_map(path: str | Path, *, cubic: bool = True, pixel_size: float | None = None) -> Map:
    """Read a density map.

    Parameters
    ----------
    path
        An MRC or CCP4 file.
    cubic
        Refuse maps whose sides differ.
    pixel_size
        A, to be used instead of what the header says.

    Raises
    ------
    InputError
        Not a regular file, damaged header, truncated, values that are not finite, no or different pixel sizes along the
        axes (more than 1 %), several volumes in one file, or not cubic.
    """
    path = Path(path)
    handle = open_regular(path)
    try:
        header = _read_header(handle, path)
        _check_memory(header, path)
        values = np.empty(header.shape[::-1], dtype=header.dtype)
        _pread(handle, values, header.offset, path)
    finally:
        os.close(handle)
    if int(header.fields["ispg"]) >= 401:
        raise InputError("holds a stack of volumes", file=path, rule="one volume per file",
                         remedy="take one volume out of it")
    order = _axis_order(header, path)
    # values has the axes (sections, rows, columns), which are (maps, mapr, mapc) with x = 1, y = 2, z = 3
    data = np.ascontiguousarray(values.transpose([2 - order.index(axis) for axis in (2, 1, 0)]), dtype=np.float32)
    if cubic and len(set(data.shape)) > 1:
        raise InputError("not a cubic map", file=path, value=data.shape[::-1], rule="all three sides are equal",
                         remedy="pad or cut it to a cube")
    finite = np.isfinite(data)
    if not finite.all():
        z, y, x = (int(place) for place in np.unravel_index(int(np.argmin(finite)), data.shape))
        wrong = data.size - int(finite.sum())
        raise InputError(f"{wrong} values are not finite", file=path, item=f"voxel x, y, z = {x}, {y}, {z}",
                         rule="finite numbers everywhere", remedy="make the map again")
    size = _isotropic(header, path) if pixel_size is None else float(pixel_size)
    origin = np.array([header.fields["origin"][axis] for axis in "xyz"], dtype=np.float64)
    if not np.isfinite(origin).all() or not origin.any():
        starts = [int(header.fields[name]) for name in ("nxstart", "nystart", "nzstart")]
        origin = size * np.array([starts[order.index(axis)] for axis in range(3)], dtype=np.float64)
    return Map(data, size, (float(origin[0]), float(origin[1]), float(origin[2])), _check_sum(header, values, path))


def write_map(
    path: str | Path,
    data: ArrayLike,
    pixel_size: float,
    origin: tuple[float, float, float] | None = None,
    label: str | None = None,
) -> None:
    """Write a density map in mode 2, atomically; the same input gives the same bytes.

    A label of the header holds a checksum of the whole file, by which :func:`read_map` notices damage: the format has
    none.

    Parameters
    ----------
    path
        The file to write.
    data
        Shape (z, y, x).
    pixel_size
        A.
    origin
        Position (x, y, z) of voxel (0, 0, 0), A; default 0.
    label
        Up to 80 ASCII characters for the header; default the program's name.
    """
    values = np.ascontiguousarray(data, dtype=np.float32)
    if values.ndim != 3:
        raise ValueError(f"a map has three axes, not {values.ndim}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: a map with values that are not finite is not written")
    with atomic_write(path) as temporary:
        with mrcfile.new(temporary, overwrite=True) as mrc:
            mrc.set_data(values)
            mrc.set_volume()
            _finish_header(mrc, pixel_size, label)
            if origin is not None:
                mrc.header.origin = tuple(origin)
            mrc.header.label[1] = CHECKSUM.encode()
            mrc.header.nlabl = 2
            header = np.array(mrc.header)
        header["label"][1] = f"{CHECKSUM}{_sum_of(header, values):08x}".encode()
        with temporary.open("r+b") as file:
            file.write(header.tobytes())


def unlike_written(path: str | Path, pixel_size: float) -> list[str]:
    """In what the header of a map differs from one by :func:`write_map` with that pixel size (A); empty if in nothing.

    Maps that differ in none of it superpose in every program.
    """
    path = Path(path)
    handle = open_regular(path)
    try:
        header = _read_header(handle, path)
    finally:
        os.close(handle)
    fields = header.fields
    starts = [int(fields[name]) for name in ("nxstart", "nystart", "nzstart")]
    origin = [float(fields["origin"][axis]) for axis in "xyz"]
    sizes = header.pixel_sizes()
    differs = {
        f"mode {int(fields['mode'])}": int(fields["mode"]) != 2,
        f"pixel size {', '.join(f'{size:.5g}' for size in sorted(set(sizes.tolist())))} A":
            bool(np.abs(sizes / pixel_size - 1).max() > 1e-4),
        f"start {starts}": any(starts),
        f"origin {origin}": any(origin),
        "another order of axes": _axis_order(header, path) != [0, 1, 2],
        "bytes in the other order": header.dtype.byteorder == ">",
        f"space group {int(fields['ispg'])}": int(fields["ispg"]) != 1,
        "an extended header": int(fields["nsymbt"]) > 0,
    }
    return [text for text, is_so in differs.items() if is_so]


def _sum_of(header: NDArray[np.void] | np.void, values: NDArray[np.generic]) -> int:
    """CRC-32 of a header, with an empty checksum in its label, and of the values as the file has them."""
    plain = bytearray(header.tobytes())
    plain[SECOND_LABEL] = CHECKSUM.encode().ljust(80, b"\0")
    return zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(plain))


def _check_sum(header: MrcHeader, values: NDArray[np.generic], path: Path) -> tuple[str, ...]:
    """A warning where a file has a checksum that is not its own; programs that change a map may keep the old one."""
    text = bytes(header.fields["label"][1]).decode("ascii", "replace").strip()
    if not text.startswith(CHECKSUM) or text == f"{CHECKSUM}{_sum_of(header.fields, values):08x}":
        return ()
    return (f"{path}: its checksum is wrong: the file is damaged, or another program has changed it",)


def write_stack(
    path: str | Path,
    images: NDArray[np.floating] | Iterable[NDArray[np.floating]],
    pixel_size: float,
    label: str | None = None,
) -> None:
    """Write particle images in mode 2, atomically and without holding them all.

    Parameters
    ----------
    path
        The file to write, by custom ending in ``.mrcs``.
    images
        Images (n, box, box), or batches of such arrays.
    pixel_size
        A.
    label
        As in :func:`write_map`.
    """
    batches = iter([images] if isinstance(images, np.ndarray) else images)
    first = np.asarray(next(batches), dtype=np.float32)
    count, total, squares, lowest, highest = 0, 0.0, 0.0, np.inf, -np.inf
    with atomic_write(path) as temporary:
        with mrcfile.new(temporary, overwrite=True) as mrc:
            mrc.set_data(np.zeros_like(first[:1]))
            mrc.set_image_stack()
            _finish_header(mrc, pixel_size, label)
            header = np.array(mrc.header)
        with temporary.open("r+b") as file:
            file.seek(HEADER_BYTES)
            for batch in _chain(first, batches):
                values = np.ascontiguousarray(batch, dtype="<f4")
                if values.shape[1:] != first.shape[1:]:
                    raise ValueError(f"images of {values.shape[1:]} pixels in a stack of {first.shape[1:]}")
                file.write(values.data)
                count += len(values)
                total += float(values.sum(dtype=np.float64))
                squares += float(np.square(values, dtype=np.float64).sum())
                lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            mean = total / (count * first[0].size)
            header["nz"] = count  # mz stays 1: a stack of images, not a volume
            header["dmin"], header["dmax"], header["dmean"] = lowest, highest, mean
            header["rms"] = np.sqrt(max(squares / (count * first[0].size) - mean**2, 0.0))
            file.seek(0)
            file.write(header.tobytes())


class ImageStack:
    """A stack of square particle images (or a single image), read by position.

    Parameters
    ----------
    path
        ``.mrcs``, ``.mrc`` or ``.st`` file.

    Attributes
    ----------
    count, box
        Number of images and their side in pixels.
    pixel_size
        A, as the header says; 0 where it does not. Headers of particle stacks are often wrong: the STAR file rules.
    warnings
        Sentences about what is odd in the header but harmless.

    Raises
    ------
    InputError
        Not a regular file, damaged header, unknown mode, truncated, images that are not square.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._header = _read_header(_OPEN.get(self.path).fileno, self.path)
        columns, rows, sections = self._header.shape
        if columns != rows:
            raise InputError("images are not square", file=self.path, value=(columns, rows), rule="rows = columns",
                             remedy="extract the particles in square boxes")
        if columns > LARGEST_BOX:
            raise InputError("no images of particles", file=self.path, value=columns,
                             rule=f"at most {LARGEST_BOX} pixels a side", remedy="give stacks of extracted particles")
        self.box, self.count = columns, sections
        self.pixel_size = float(self._header.pixel_sizes()[0])
        self.warnings = self._header.warnings

    def read(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return images by number from 0, in the order asked, shape (k, box, box); neighbours are read together."""
        asked = np.asarray(indices, dtype=np.int64).reshape(-1)
        if asked.size and (asked.min() < 0 or asked.max() >= self.count):
            raise InputError(
                "no such image", file=self.path, value=int(asked.max()) + 1, rule=f"images 1 to {self.count} exist"
            )
        wanted, place = np.unique(asked, return_inverse=True)
        stored = np.empty((len(wanted), self.box, self.box), dtype=self._header.dtype)
        image_bytes = stored.dtype.itemsize * self.box * self.box
        source = _OPEN.get(self.path)
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        for run in np.split(np.arange(len(wanted)), breaks) if len(wanted) else []:
            offset = self._header.offset + int(wanted[run[0]]) * image_bytes
            _pread(source.fileno, stored[run[0] : run[-1] + 1], offset, self.path)
        images = stored.astype(np.float32, copy=False)
        return images if np.array_equal(place, np.arange(len(wanted))) else images[place]


class _OpenFile:
    """A descriptor that closes when nobody holds it any more: eviction never closes a file that is being read."""

    def __init__(self, path: Path) -> None:
        self.fileno = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "fileno"):
            os.close(self.fileno)


class _OpenFiles:
    """The most recently used descriptors; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._files: OrderedDict[Path, _OpenFile] = OrderedDict()

    def get(self, path: Path) -> _OpenFile:
        with self._lock:
            file = self._files.get(path)
            if file is None or not _is_current(file, path):
                file = self._files[path] = _OpenFile(path)
            self._files.move_to_end(path)
            if len(self._files) > self._limit:
                self._files.popitem(last=False)
            return file


_OPEN = _OpenFiles(OPEN_FILES)


def _is_current(file: _OpenFile, path: Path) -> bool:
    """Whether the name still leads to the open file: a stack may be replaced between two runs in one process."""
    try:
        return os.path.samestat(os.fstat(file.fileno), path.stat())
    except OSError:
        return False


def _read_header(handle: int, path: Path) -> MrcHeader:
    try:
        raw = os.pread(handle, HEADER_BYTES, 0)
    except OSError as error:
        if not stat.S_ISREG(os.fstat(handle).st_mode) or os.fstat(handle).st_size == 0:  # as in /proc
            raise InputError(f"cannot be read: {error.strerror}", file=path, rule=MRC_RULE,
                             remedy=MRC_REMEDY) from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    if raw[:2] in (b"\x1f\x8b", b"BZ"):
        raise InputError("compressed", file=path, rule=MRC_RULE, remedy="unpack it: noise hardly compresses")
    if len(raw) < HEADER_BYTES:
        raise InputError("too short for an MRC header", file=path, value=len(raw), rule=f"{HEADER_BYTES} bytes",
                         remedy=MRC_REMEDY)
    order = _byte_order(raw, path)
    fields = np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(order))[0]
    mode, extended = int(fields["mode"]), int(fields["nsymbt"])
    shape = (int(fields["nx"]), int(fields["ny"]), int(fields["nz"]))
    if mode not in MODES:
        raise InputError("unknown MRC mode", file=path, value=mode, rule=f"modes {', '.join(map(str, MODES))} are read",
                         remedy="convert it to mode 2 (32-bit real)")
    if not all(0 < side <= LARGEST_SIDE for side in shape[:2]) or shape[2] <= 0 or extended < 0:
        raise InputError("impossible sizes in the MRC header", file=path, value=(*shape, extended),
                         rule="columns, rows and sections of 1 or more, and 0 or more bytes of extended header",
                         remedy=MRC_REMEDY)
    dtype = np.dtype(order + MODES[mode])
    needed = HEADER_BYTES + extended + dtype.itemsize * shape[0] * shape[1] * shape[2]
    size = os.fstat(handle).st_size
    if size < needed:
        raise InputError("truncated", file=path, value=size, rule=f"its header announces {needed} bytes",
                         remedy=MRC_REMEDY)
    notes = []
    if size > needed:
        notes.append(f"{path}: {size - needed} bytes beyond the {shape[2]} sections of its header are ignored")
    return MrcHeader(shape, dtype, HEADER_BYTES + extended, fields, tuple(notes))


def _check_memory(header: MrcHeader, path: Path) -> None:
    """Refuse a map that this machine cannot hold: a sparse file takes no space on the disk, whatever it announces."""
    needed = math.prod(header.shape) * (header.dtype.itemsize + 4)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError("larger than the memory", file=path, value=header.shape,
                         rule=f"a map takes {needed / 1e9:.0f} GB, and this machine has {there / 1e9:.0f} GB",
                         remedy="cut or bin the map")


def _byte_order(raw: bytes, path: Path) -> str:
    """Return "<" or ">": by the mode, which has small values only, as machine stamps are often wrong."""
    for order in "<>":
        if int(np.frombuffer(raw, dtype=order + "i4", count=4)[3]) in range(128):
            if int(np.frombuffer(raw, dtype=order + "i4", count=4)[0]) in range(1, LARGEST_SIDE + 1):
                return order
    # what it holds is not shown: a STAR file may name any file, and a message may be read by anybody
    raise InputError("not an MRC file", file=path, rule="it begins with three sizes and a mode",
                     remedy="give a map or stack in MRC format")


def _axis_order(header: MrcHeader, path: Path) -> list[int]:
    """Return which axis (x = 0) the columns, rows and sections run along."""
    order = [int(header.fields[name]) - 1 for name in ("mapc", "mapr", "maps")]
    if order == [-1, -1, -1]:  # old writers left it empty
        return [0, 1, 2]
    if sorted(order) != [0, 1, 2]:
        value = [axis + 1 for axis in order]
        raise InputError("impossible axis order", file=path, value=value, rule="1, 2 and 3 in any order",
                         remedy=MRC_REMEDY)
    return order


def _isotropic(header: MrcHeader, path: Path) -> float:
    sizes = header.pixel_sizes()
    if not (sizes > 0).all():
        raise InputError("no pixel size in the header", file=path, rule="a pixel size above 0",
                         remedy="write it into the header")
    if sizes.max() > 1.01 * sizes.min():
        value = sizes.round(4).tolist()
        raise InputError("pixel sizes differ between the axes", file=path, value=value, rule="equal within 1 %",
                         remedy="correct the header, or resample the map")
    return float(sizes[0])


def _pread(handle: int, target: NDArray[np.generic], offset: int, path: Path) -> None:
    """Fill an array from a position of a file."""
    view = target.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done : done + READ_BYTES]], offset + done)
        if got == 0:
            raise InputError("ended before its last image", file=path, remedy="is another program still writing it?")
        done += got


def _finish_header(mrc: mrcfile.mrcfile.MrcFile, pixel_size: float, label: str | None) -> None:
    mrc.voxel_size = float(pixel_size)
    # mrcfile's own label holds the time, which would make equal results differ
    mrc.header.label[:] = b""
    mrc.header.label[0] = (label or "sparsecv").encode("ascii", "replace")[:80]
    mrc.header.nlabl = 1


def _chain(first: NDArray[np.float32], rest: Iterable[NDArray[np.floating]]) -> Iterable[NDArray[np.floating]]:
    yield first
    yield from rest
