# SPDX-License-Identifier: GPL-3.0-or-later
"""cryoSPARC's tables (``.cs``): files of plain rows, read, joined by ``uid`` and written.

A ``.cs`` file is a NumPy structured array, one row per particle; fields are named by what they belong to, such as
``blob/path`` or ``ctf/df1_A``. What a job does not change stands in *passthrough* files beside its own, and rows of all
of them belong together by ``uid``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_write
from sparsecv.engine.io.npz import LONGEST_HEADER, check_array
from sparsecv.engine.io.regular import read_bytes

REMEDY = "export the particles from cryoSPARC again"
MAGIC = b"\x93NUMPY"
COMPRESSED = (b"\x94CSDAT", b"\x95CSDAT")  # the other format of cryosparc-tools, by version
# What a new table has, where there is no original to be updated.
NEW = [
    ("uid", "<u8"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"), ("ctf/type", "S9"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"), ("ctf/scale", "<f4"), ("ctf/scale_const", "<f4"),
    ("ctf/shift_A", "<f4", (2,)), ("ctf/tilt_A", "<f4", (2,)), ("ctf/trefoil_A", "<f4", (2,)),
    ("ctf/tetra_A", "<f4", (4,)), ("ctf/anisomag", "<f4", (4,)), ("ctf/bfactor", "<f4"),
]  # fmt: skip
ALIGNMENT = [
    ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/psize_A", "<f4"), ("alignments3D/alpha", "<f4"), ("alignments3D/class", "<u4"),
    ("alignments3D/class_posterior", "<f4"), ("alignments3D/class_ess", "<f4"),
]  # fmt: skip
ONE = ("blob/sign", "ctf/scale", "ctf/scale_const", "alignments3D/alpha", "alignments3D/class_posterior",
       "alignments3D/class_ess")  # fmt: skip

# By field, what NumPy calls the kinds that it may be of, the shape of its values, and both in words.
NUMBERS, WHOLE, TEXT = "fiu", "iu", "SU"
FIELDS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "blob/path": (TEXT, (), "text"), "location/micrograph_path": (TEXT, (), "text"),
    "location/center_x_frac": (NUMBERS, (), "a number"), "location/center_y_frac": (NUMBERS, (), "a number"),
    "location/micrograph_shape": (NUMBERS, (2,), "2 numbers"),
}  # fmt: skip
for _field in np.dtype([*NEW, *ALIGNMENT]).fields.items():  # type: ignore[union-attr]  # it has fields
    _kinds = WHOLE if _field[1][0].base.kind == "u" else NUMBERS
    _words = "whole number" if _kinds == WHOLE else "number"
    _shape = _field[1][0].shape
    if _field[0] != "ctf/type":
        FIELDS[_field[0]] = (_kinds, _shape, f"{_shape[0]} {_words}s" if _shape else f"a {_words}")


def read_cs(path: str | Path, passthroughs: Sequence[str | Path] = ()) -> NDArray[Any]:
    """Read a ``.cs`` table; nothing in the file is executed.

    Parameters
    ----------
    path
        The file.
    passthroughs
        Files whose further fields are joined by ``uid``; they may have more rows, and in another order. Of a field that
        several files have, the first file's is taken.

    Returns
    -------
    Structured array, one row per particle of ``path``.

    Raises
    ------
    InputError
        Not a NumPy file of plain rows, pickled objects in it, without ``uid``, a ``uid`` twice, or a row that a
        passthrough file lacks.
    """
    table = _load(Path(path))
    for other in passthroughs:
        table = _joined(table, _load(Path(other)), Path(other))
    return table


def _load(path: Path) -> NDArray[Any]:
    content = read_bytes(path)
    rule = "a .cs file of cryoSPARC: a NumPy table of plain rows"
    if content.startswith(COMPRESSED):
        raise InputError("is in cryoSPARC's compressed format, CSDAT", file=path, rule="its default format, of NumPy",
                         remedy="rewrite it in Python with cryosparc-tools: from cryosparc.dataset import Dataset; "
                         "Dataset.load(OLD).save(NEW)")
    if not content.startswith(MAGIC):
        raise InputError("is no .cs file of cryoSPARC", file=path, value=content[:8], rule=rule,
                         remedy=REMEDY)
    try:
        check_array(io.BytesIO(content), len(content))
        table = np.load(io.BytesIO(content), allow_pickle=False, max_header_size=LONGEST_HEADER)
    except Exception as error:  # a damaged header fails in one of many ways, SyntaxError and MemoryError among them
        raise InputError(f"cannot be read: {str(error)[:200]}", file=path, rule=rule, remedy=REMEDY) from error
    if table.dtype.names is None or table.ndim != 1:
        raise InputError("holds no table of named fields", file=path, value=str(table.dtype)[:200], rule=rule,
                         remedy=REMEDY)
    if "uid" not in table.dtype.names:
        raise InputError("has no field uid", file=path, rule=rule, remedy=REMEDY)
    for name, (kinds, shape, words) in FIELDS.items():
        if name in table.dtype.names:
            base, own = table.dtype[name].base, table.dtype[name].shape
            if base.kind not in kinds or own != shape:
                raise InputError("is of another type", file=path, item=name, value=str(table.dtype[name]), rule=words,
                                 remedy=REMEDY)  # fmt: skip
    if len(np.unique(table["uid"])) < len(table):
        raise InputError("a uid occurs twice", file=path, rule="each row is one particle",
                         remedy="remove the duplicates in cryoSPARC")
    return table


def _joined(table: NDArray[Any], other: NDArray[Any], path: Path) -> NDArray[Any]:
    order = np.argsort(other["uid"])
    place = np.minimum(np.searchsorted(other["uid"], table["uid"], sorter=order), max(len(other) - 1, 0))
    rows = order[place] if len(other) else place
    is_missing = other["uid"][rows] != table["uid"] if len(other) else np.ones(len(table), dtype=bool)
    if is_missing.any():
        raise InputError(f"{int(is_missing.sum())} of {len(table)} particles are not in it", file=path,
                         item=f"uid {table['uid'][int(np.argmax(is_missing))]}",
                         rule="the passthrough file of the same job",
                         remedy="give that with --passthrough")
    added = [name for name in names_of(other) if name not in names_of(table)]
    return with_fields(table, [(name, other.dtype[name], other[name][rows]) for name in added])


def names_of(table: NDArray[Any]) -> tuple[str, ...]:
    """Names of a table's fields."""
    return table.dtype.names or ()


def with_fields(table: NDArray[Any], added: Sequence[tuple[str, Any, Any]]) -> NDArray[Any]:
    """The table with further fields (name, dtype, values)."""
    found = np.zeros(len(table), dtype=[(name, table.dtype[name]) for name in names_of(table)]
                     + [(name, dtype) for name, dtype, _ in added])  # fmt: skip
    for name in names_of(table):
        found[name] = table[name]
    for name, _, values in added:
        found[name] = values
    return found


def write_cs(path: str | Path, table: NDArray[Any]) -> None:
    """Write a ``.cs`` table, atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        np.save(out, table, allow_pickle=False)


def text_of(value: Any) -> str:
    """A text field's value; bytes that are no text stand there escaped."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
