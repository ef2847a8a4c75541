# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of cryoSPARC, to be converted."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from inputs import Inputs, with_field, without_field

from corpus.bombs import Bomb, npy
from corpus.case import Cases, Make

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


def _cs(change: Callable[[np.ndarray], np.ndarray] | None, *words: object) -> Make:
    return lambda p: p.cs(change).convert(*words)


def _set(name: str, value: Any, row: int = 2) -> Make:
    def change(table: np.ndarray) -> np.ndarray:
        table[name][row] = value
        return table

    return _cs(change)


CS = {"file": "particles.cs"}
accepted("metadata", ".cs: whole", _cs(None), "20 particles")
refused("metadata", ".cs: no uid", _cs(lambda t: without_field(t, "uid")), "no field uid", **CS)
refused("metadata", ".cs: a uid twice", _cs(lambda t: t[[0, 1, 1]]), "uid occurs twice", **CS)
refused("metadata", ".cs: no rows", _cs(lambda t: t[:0]), "no particles", **CS)
refused("metadata", ".cs: no defocus", _cs(lambda t: without_field(t, "ctf/df1_A")), "ctf/df1_A", "--passthrough", **CS)
for _field, _type, _value in (("ctf/df1_A", "S4", b"a"), ("blob/shape", "<u4", 16),
                              ("alignments3D/pose", ("<f4", (2,)), 0),
                              ("blob/idx", "<f4", 0), ("blob/path", "<f4", 0), ("ctf/cs_mm", "<c8", 1)):  # fmt: skip
    refused(
        "metadata",
        f".cs: {_field} of another type",
        _cs(lambda t, f=_field, d=_type, v=_value: with_field(t, f, d, v)),
        _field,
        "of another type",
        **CS,
    )
refused("metadata", ".cs: NaN", _set("ctf/df1_A", np.nan), "row 3, ctf/df1_A", "not a finite number", **CS)
refused("metadata", ".cs: not square", _set("blob/shape", (16, 17)), "row 3, blob/shape", "not square", **CS)
refused("metadata", ".cs: third half set", _set("alignments3D/split", 2), "row 3, alignments3D/split", "0 or 1", **CS)
refused("metadata", ".cs: pixel size 0", _set("blob/psize_A", 0), "row 3, blob/psize_A", "0 < pixel size", **CS)
refused(
    "metadata", ".cs: name with a line break", _set("blob/path", b"a\nb.mrc"), "row 3, blob/path", "line breaks", **CS
)
refused("metadata", ".cs: no name", _set("blob/path", b""), "row 3, blob/path", "the name of a file", **CS)
refused(
    "metadata", ".cs: text", lambda p: (p.raw("particles.cs", b"hello" * 9), p.convert())[1], "is no .cs file", **CS
)
refused("metadata", ".cs: empty", lambda p: (p.raw("particles.cs", b""), p.convert())[1], "is no .cs file", **CS)


def _cs_cut(p: Inputs) -> Sequence[object]:
    p.cs()
    os.truncate(p.folder / "particles.cs", (p.folder / "particles.cs").stat().st_size - 10)
    return p.convert()


def _other_passthrough(p: Inputs) -> Sequence[object]:
    def changed(table: np.ndarray) -> np.ndarray:
        table["uid"][4] += 1
        return table

    p.cs(changed)
    (p.folder / "particles.cs").rename(p.folder / "passthrough.cs")
    return p.cs().convert("--passthrough", p.folder / "passthrough.cs")


refused("metadata", ".cs: cut off", _cs_cut, "cannot be read", "announces", **CS)
refused(
    "metadata",
    ".cs: passthrough file of another job",
    _other_passthrough,
    "1 of 20 particles are not in it",
    file="passthrough.cs",
)


def _pickled_cs(p: Inputs) -> Sequence[object]:
    content = io.BytesIO()
    table = np.zeros(2, dtype=[("uid", "<u8"), ("blob/path", "O")])
    table["uid"], table["blob/path"] = [1, 2], [Bomb(), Bomb()]
    np.save(content, table, allow_pickle=True)
    p.raw("particles.cs", content.getvalue())
    return p.convert()


def _pure_pickle(p: Inputs) -> Sequence[object]:
    p.raw("particles.cs", pickle.dumps(Bomb()))
    return p.convert()


refused("security", ".cs: pickled objects", _pickled_cs, "pickled objects", **CS)
refused("security", ".cs: a pickle", _pure_pickle, "is no .cs file", **CS)
for _what, _raw in (("huge shape", npy("[('uid', '<u8')]", "(10000000000000,)", bytes(8))),
                    ("negative shape", npy("[('uid', '<u8')]", "(-1,)", bytes(8))),
                    ("code in the header", npy("__import__('os').system('touch canary')", "(1,)", bytes(8))),
                    ("nested header", npy("[" * 5000 + "]" * 5000, "(1,)", bytes(8))),
                    ("no header", b"\x93NUMPY\x01\x00"), ("format 9", npy("'<u8'", "(1,)", bytes(8), b"\x09\x00")),
                    ("zip", b"PK\x03\x04" + bytes(99))):  # fmt: skip
    refused("security", f".cs: {_what}", lambda p, raw=_raw: (p.raw("particles.cs", raw), p.convert())[1], "cs", **CS)
