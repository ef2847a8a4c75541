# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays and plain JSON in one npz file, whose zip checksums show any damage; nothing in it is pickled."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from sparsecv.engine.io.atomic import atomic_write

PLAIN = "plain"  # name of the JSON among the arrays
LONGEST_HEADER = 1_000_000  # characters: a table of a hundred fields has more than NumPy reads by default
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], plain: Mapping[str, object]) -> None:
    """Write arrays by name and what JSON can hold, atomically."""
    content = dict(arrays) | {PLAIN: np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)}
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **content)  # type: ignore[arg-type]  # NumPy's own types take the arrays for its options


def read_npz(stream: IO[bytes]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain values; a damaged file raises one of several exceptions, as zip, npy and JSON have them.

    No more memory is taken than the file has bytes: we store arrays as they are, so that anything compressed, stored
    twice over or of a shape beyond its bytes is none of ours, and could unpack to any size.
    """
    if not zipfile.is_zipfile(stream):
        raise ValueError("it has no table of contents")
    stream.seek(0)
    with zipfile.ZipFile(stream) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed")
        if sum(part.file_size for part in parts) > stream.seek(0, os.SEEK_END):
            raise ValueError("it announces more than it holds")
        for part in parts:
            with archive.open(part) as member:
                check_array(member, part.file_size)
    stream.seek(0)
    stored = np.load(stream, allow_pickle=False)
    arrays = {name: stored[name] for name in stored.files}
    return arrays, json.loads(arrays.pop(PLAIN).tobytes())


def check_array(stream: IO[bytes], size: int) -> None:
    """Refuse, with ValueError, a stored array of ``size`` bytes whose header announces more, or pickled objects."""
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"format {version} of NumPy is not read")
    shape, _, dtype = HEADERS[version](stream, max_header_size=LONGEST_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    needed, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if needed > there or min(shape, default=0) < 0:
        raise ValueError(f"its header announces {needed} bytes, and {there} follow")
