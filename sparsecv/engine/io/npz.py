# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays and plain JSON in one npz file, whose zip checksums show any damage; nothing in it is pickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from sparsecv.engine.io.atomic import atomic_write

PLAIN = "plain"  # name of the JSON among the arrays


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], plain: Mapping[str, object]) -> None:
    """Write arrays by name and what JSON can hold, atomically."""
    content = dict(arrays) | {PLAIN: np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)}
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **content)  # type: ignore[arg-type]  # NumPy's own types take the arrays for its options


def read_npz(stream: IO[bytes]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain values; a damaged file raises one of several exceptions, as zip, npy and JSON have them."""
    if not zipfile.is_zipfile(stream):
        raise ValueError("it has no table of contents")
    stream.seek(0)
    stored = np.load(stream, allow_pickle=False)
    arrays = {name: stored[name] for name in stored.files}
    return arrays, json.loads(arrays.pop(PLAIN).tobytes())
