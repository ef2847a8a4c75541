# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of cryoSPARC, to be converted."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inputs import Inputs, old_file, with_field, without_field

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


# aberrations, and other values that no particle has
for _name, _most in (("shift_A", 1e4), ("tilt_A", 1e8), ("trefoil_A", 1e8), ("tetra_A", 1e10), ("anisomag", 0.2)):
    refused("metadata", f".cs: {_name} NaN", _set(f"ctf/{_name}", np.nan), f"row 3, ctf/{_name}", "not a finite", **CS)
    refused("metadata", f".cs: {_name} too large", _set(f"ctf/{_name}", 1.01 * _most), f"row 3, ctf/{_name}",
            f"at most {_most:g}", **CS)  # fmt: skip
for _name, _value, _rule in (
    ("ctf/cs_mm", 1e30, "1e4 mm"), ("ctf/amp_contrast", 5, "0 to 1"), ("ctf/df1_A", -1e30, "1e6 A"),
    ("ctf/df_angle_rad", 1e30, "1e4 degrees"), ("ctf/phase_shift_rad", 1e30, "1e4 degrees"),
    ("ctf/bfactor", 1e30, "1e4 A^2"), ("ctf/scale", 1e30, "1e3"), ("alignments3D/alpha", 1e30, "1e3"),
    ("alignments3D/pose", 1e30, "1e3 rad"), ("alignments3D/shift", 1e30, "2^20 pixels"), ("blob/sign", 0, "-1 where"),
):  # fmt: skip
    refused("metadata", f".cs: {_name} {_value}", _set(_name, _value), f"row 3, {_name}", _rule, **CS)


def _terms(convention: str, **fields: float) -> Make:
    def change(table: np.ndarray) -> np.ndarray:
        for name, value in fields.items():
            table[f"ctf/{name}"] = value
        return table

    return _cs(change, "--aberrations", convention)


accepted("metadata", ".cs: aberrations by specter", _terms("specter", tilt_A=1000, tetra_A=500), "of specter", "tilt_A")
accepted("metadata", ".cs: aberrations by pyem", _terms("pyem", tilt_A=1000, trefoil_A=50), "of pyem", "trefoil_A")
accepted("metadata", ".cs: aberrations left out", _terms("none", tilt_A=1000), "not carried over", "tilt_A")
accepted("numerics", ".cs: beam tilt without spherical aberration", _terms("specter", tilt_A=1000, cs_mm=0), "tilt_A")
refused("metadata", ".cs: aberrations NaN that are left out", _terms("none", tilt_A=np.nan), "row 1, ctf/tilt_A", **CS)


def _unplaced(table: np.ndarray) -> np.ndarray:
    fields = (("micrograph_path", "S9", b";mic.mrc"), ("center_x_frac", "<f4", np.nan), ("center_y_frac", "<f4", 0.5),
              ("micrograph_shape", ("<u4", (2,)), 4000))  # fmt: skip
    for name, dtype, values in fields:
        table = with_field(table, f"location/{name}", dtype, values)
    return table


accepted("metadata", ".cs: particles without a place", _cs(_unplaced), "no coordinates are written")


# several passthrough files
def _passed(*changes: Callable[[Inputs, Path], object]) -> Make:
    """A table without half sets; each function makes one passthrough file."""

    def make(p: Inputs) -> Sequence[object]:
        words: list[object] = []
        for number, change in enumerate(changes, 1):
            change(p, p.folder / f"passthrough{number}.cs")
            words += ["--passthrough", p.folder / f"passthrough{number}.cs"]
        return p.cs(lambda table: without_field(table, "alignments3D/split")).convert(*words)

    return make


def _table(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Inputs, Path], object]:
    return lambda p, path: (p.cs(change), (p.folder / "particles.cs").rename(path))


def _nothing_but_uid(table: np.ndarray) -> np.ndarray:
    for name in table.dtype.names:
        table = table if name == "uid" else without_field(table, name)
    return table


WHOLE = _table(lambda table: table[::-1])
accepted("metadata", ".cs: two passthrough files, in another order", _passed(_table(_nothing_but_uid), WHOLE),
         "20 particles")  # fmt: skip
for _what, _made, _words in (
    ("of fewer particles", _table(lambda table: table[:5]), "15 of 20 particles are not in it"),
    ("of none", _table(lambda table: table[:0]), "20 of 20 particles are not in it"),
    ("with a uid twice", _table(lambda table: table[[0, *range(20)]]), "a uid occurs twice"),
    ("with half sets of text", _table(lambda t: with_field(t, "alignments3D/split", "S4", b"a")), "of another type"),
    ("that is text", lambda p, path: path.write_text("hello"), "is no .cs file"),
    ("that is missing", lambda p, path: None, "No such file"),
    ("that is a named pipe", lambda p, path: os.mkfifo(path), "named pipe"),
    ("that is a directory", lambda p, path: path.mkdir(), "directory"),
):  # fmt: skip
    refused("metadata", f".cs: second passthrough file {_what}", _passed(WHOLE, _made), _words, file="passthrough2.cs")


# and back, from STAR files
def _back(*words: object, **columns: object) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        return ["convert", p.cs().table(**columns).star, p.out / "out.cs", *words]

    return make


refused("metadata", "to .cs: a uid twice", _back(csUid=[*range(19), 3]), "row 20, column csUid", "as in row 4")
for _value in ("-1", str(2**64), "7" * 5000, "1.5"):
    refused("metadata", f"to .cs: uid {_value[:30]}", _back(csUid={4: _value}), "row 5, column csUid", "is no uid")
for _value, _words in (("nan", "not a finite number"), ("1e30", "at most 1e3")):
    refused("metadata", f"to .cs: csAlpha {_value}", _back(csAlpha={4: _value}), "row 5, column csAlpha", _words)
accepted("metadata", "to .cs: an image twice", _back(rlnImageName={6: "000003@particles.mrcs"}), "occur more than once")
accepted("metadata", "to .cs: RELION 3.0",
         lambda p: (old_file(p), ["convert", p.star, p.out / "out.cs"])[1], "20 particles")  # fmt: skip
refused("metadata", "to .cs: passthrough file without the original", _back("--passthrough", "particles.cs"),
        "--original", file="")  # fmt: skip
refused("metadata", ".cs: the original of a STAR file",
        lambda p: p.cs().convert("--original", p.folder / "particles.cs"), "ends in .cs", file="")  # fmt: skip


# names of results
def _to(prepare: Callable[[Inputs], object], name: str = "out.star") -> Make:
    def make(p: Inputs) -> Sequence[object]:
        command = p.cs().convert()
        prepare(p)
        return [*command[:2], p.out / name]

    return make


OUT = {"file": "out.star"}
refused("security", ".cs: output that links to the input",
        _to(lambda p: (p.out / "out.star").symlink_to(p.folder / "particles.cs")), "would be overwritten", **OUT)
refused("security", ".cs: output that is another name of the input",
        _to(lambda p: os.link(p.folder / "particles.cs", p.out / "out.star")), "would be overwritten", **OUT)
refused("security", ".cs: output that is a directory", _to(lambda p: (p.out / "out.star").mkdir()), "is a directory",
        **OUT)  # fmt: skip
refused("security", ".cs: output that is a named pipe", _to(lambda p: os.mkfifo(p.out / "out.star")), "is a named pipe",
        **OUT)  # fmt: skip
refused("security", ".cs: name of the output too long", _to(lambda p: None, "o" * 252 + ".star"), "too long",
        file="ooo")  # fmt: skip
accepted("security", ".cs: output with line breaks and escape codes", _to(lambda p: None, "-a\n\x1b[31m;.star"),
         "-a\\n\\x1b[31m;.star")  # fmt: skip
