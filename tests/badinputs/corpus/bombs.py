# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that execute code, or grow without bound, where a reader trusts them."""

from __future__ import annotations

import io
import os
import zipfile
from typing import Any

import numpy as np

from corpus.case import TOUCH


class Bomb:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (TOUCH,)


def npy(descr: str, shape: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with any header."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + content


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An npz file of these parts."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as target:
        for name, data in parts.items():
            target.writestr(name, data)
    return content.getvalue()


def _object_array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Bomb()], dtype=object), allow_pickle=True)
    return content.getvalue()


def npz_bombs() -> dict[str, bytes]:
    """Archives that must not be unpacked, by what they are."""
    plain = npy("'|u1'", "(2,)", b"{}")
    return {
        "pickle": archive({"plain.npy": plain, "data.npy": _object_array()}),
        "zip bomb": archive({"plain.npy": plain, "data.npy": npy("'|u1'", "(100000000,)", bytes(10**8))},
                            zipfile.ZIP_DEFLATED),
        "huge shape": archive({"plain.npy": plain, "data.npy": npy("'<f8'", "(100000000000,)", bytes(8))}),
        "path": archive({"../../canary.npy": plain, "plain.npy": plain}),
        "no zip": b"PK\x03\x04" + bytes(500),
    }  # fmt: skip
