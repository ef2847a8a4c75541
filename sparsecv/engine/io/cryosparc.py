# SPDX-License-Identifier: GPL-3.0-or-later
"""cryoSPARC's particle tables (``.cs``) as RELION's STAR files, and back.

A ``.cs`` file is a NumPy structured array; what a job does not change stands in a *passthrough* file beside it, and
rows of the two belong together by ``uid``. Conventions, with A of RELION's angles (:mod:`..physics.geometry`):

    exp([pose]x) = A^T,    shift psize_A = (rlnOriginXAngst, rlnOriginYAngst),    split + 1 = rlnRandomSubset

``blob/sign`` is -1 where particles are dark in the file. RELION has no such column: the sign goes into
rlnCtfScalefactor, by which the CTF is multiplied.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_write
from sparsecv.engine.io.checks import ANGLES, SHIFTS
from sparsecv.engine.io.npz import LONGEST_HEADER, check_array
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.paths import IMAGE_NAME, split_image_names
from sparsecv.engine.io.regular import read_bytes
from sparsecv.engine.io.star import StarFile, broken_rule
from sparsecv.engine.physics.geometry import euler_to_matrix, matrix_to_euler

REMEDY = "export the particles from cryoSPARC again"
UID = "csUid"  # no column of RELION's, which keeps columns that it does not know
MAGIC = b"\x93NUMPY"
IMAGES = ("blob/path", "blob/idx", "blob/shape", "blob/psize_A")
OPTICS = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
DEFOCUS = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")
POSE = ("alignments3D/pose", "alignments3D/shift")
GROUP_NAME = "exp_group_{}"
# Terms of the image formation that are not carried over, and the value at which they say nothing.
UNCARRIED = {"ctf/shift_A": 0, "ctf/tilt_A": 0, "ctf/trefoil_A": 0, "ctf/tetra_A": 0, "ctf/anisomag": 0}
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
        Files whose further fields are joined by ``uid``; they may have more rows, and in another order.

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
    added = [name for name in _names(other) if name not in _names(table)]
    return _with_fields(table, [(name, other.dtype[name], other[name][rows]) for name in added])


def _names(table: NDArray[Any]) -> tuple[str, ...]:
    return table.dtype.names or ()


def _with_fields(table: NDArray[Any], added: Sequence[tuple[str, Any, Any]]) -> NDArray[Any]:
    """The table with further fields (name, dtype, values)."""
    found = np.zeros(len(table), dtype=[(name, table.dtype[name]) for name in _names(table)]
                     + [(name, dtype) for name, dtype, _ in added])  # fmt: skip
    for name in _names(table):
        found[name] = table[name]
    for name, _, values in added:
        found[name] = values
    return found


# --------------------------------------------------------------------------------------------------- .cs to STAR file
def star_of_cs(table: NDArray[Any], path: str | Path) -> tuple[StarFile, list[str]]:
    """The STAR file, RELION 3.1 and later, of a ``.cs`` table.

    Parameters
    ----------
    table
        As :func:`read_cs` returns it: with images and CTF; poses are optional.
    path
        Of the table, for messages.

    Returns
    -------
    star, notes
        The file, and sentences on what it does not hold.

    Raises
    ------
    InputError
        Where a field is missing, or a number is not finite.
    """
    names = _names(table)
    missing = [name for name in (*IMAGES, *OPTICS, *DEFOCUS) if name not in names]
    if missing:
        raise InputError(f"has no {', '.join(missing)}", file=path, rule="images and CTF of each particle",
                         remedy="give the passthrough file of the same job with --passthrough")
    if len(table) == 0:
        raise InputError("holds no particles", file=path, rule="at least one row", remedy=REMEDY)
    for name in names:
        if table.dtype[name].base.kind == "f" and name in _USED and not np.isfinite(table[name]).all():
            row = int(np.argmin(np.isfinite(table[name]).reshape(len(table), -1).all(axis=1)))
            raise InputError("not a finite number", file=path, item=f"row {row + 1}, {name}",
                             value=table[name][row].tolist(), rule="finite numbers",
                             remedy="remove the particle in cryoSPARC")  # fmt: skip
    _check_values(table, path)
    groups, index = _groups(table, path)
    columns: dict[str, Any] = {IMAGE_NAME: _image_names(table)}
    columns |= _micrographs(table)
    columns |= {
        "rlnDefocusU": _float(table, "ctf/df1_A"), "rlnDefocusV": _float(table, "ctf/df2_A"),
        "rlnDefocusAngle": np.rad2deg(_float(table, "ctf/df_angle_rad")),
        "rlnPhaseShift": np.rad2deg(_float(table, "ctf/phase_shift_rad", 0)),
        "rlnCtfBfactor": _float(table, "ctf/bfactor", 0),
        "rlnCtfScalefactor": _float(table, "ctf/scale", 1) * np.sign(_float(table, "blob/sign", 1)),
        "rlnOpticsGroup": index + 1,
    }  # fmt: skip
    if all(name in names for name in POSE):
        matrices = Rotation.from_rotvec(np.asarray(table["alignments3D/pose"], dtype=np.float64)).as_matrix()
        columns |= dict(zip(ANGLES, matrix_to_euler(np.swapaxes(matrices, 1, 2)).T, strict=True))
        pixel = _float(table, "alignments3D/psize_A" if "alignments3D/psize_A" in names else "blob/psize_A")
        shifts = np.asarray(table["alignments3D/shift"], dtype=np.float64) * pixel[:, None]
        columns |= dict(zip(SHIFTS, shifts.T, strict=True))
    if "alignments3D/split" in names:
        columns["rlnRandomSubset"] = table["alignments3D/split"].astype(np.int64) + 1
    columns[UID] = [str(uid) for uid in table["uid"].tolist()]
    star = StarFile.new()
    star.add_loop("optics", groups)
    star.add_loop("particles", columns)
    return star, _lost(table, path)


def _check_values(table: NDArray[Any], path: str | Path) -> None:
    """Refuse, with InputError, values that no STAR file of particles can have, or no particle has."""
    ranges = {
        "blob/idx": (0, 2**31 - 2, "0 or more, below 2^31"), "blob/shape": (1, 2**20, "1 or more pixels"),
        "blob/psize_A": (1e-6, 1000, "0 < pixel size < 1000 A"), "alignments3D/split": (0, 1, "0 or 1"),
    }  # fmt: skip
    for name, (low, high, rule) in ranges.items():
        if name in _names(table):
            good = ((table[name] >= low) & (table[name] <= high)).reshape(len(table), -1).all(axis=1)
            if not good.all():
                row = int(np.argmin(good))
                raise InputError("out of range", file=path, item=f"row {row + 1}, {name}", rule=rule,
                                 value=table[name][row].tolist(), remedy=REMEDY)  # fmt: skip
    for name in ("blob/path", "location/micrograph_path"):
        if name in _names(table):
            values, first = np.unique(table[name], return_index=True)
            for value, row in zip(values, first.tolist(), strict=True):
                text = _text(value).removeprefix(">")
                rule = broken_rule(f"000001@{text}") or ("" if text or name != "blob/path" else "the name of a file")
                if rule:
                    raise InputError("a name that a STAR file cannot hold", file=path, item=f"row {row + 1}, {name}",
                                     value=text, rule=rule, remedy="rename the file, or link to it under a plain name")


_USED = {*IMAGES, *OPTICS, *DEFOCUS, *POSE, "ctf/phase_shift_rad", "ctf/bfactor", "ctf/scale", "blob/sign",
         "alignments3D/psize_A"}  # fmt: skip


def _float(table: NDArray[Any], name: str, default: float | None = None) -> NDArray[np.float64]:
    if name not in _names(table) and default is not None:
        return np.full(len(table), float(default))
    return np.asarray(table[name], dtype=np.float64)


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _image_names(table: NDArray[Any]) -> list[str]:
    """``number@stack``; the > that stands before the paths of imported stacks is cryoSPARC's own mark."""
    paths = [_text(path).removeprefix(">") for path in table["blob/path"]]
    return [f"{number + 1:06d}@{path}" for number, path in zip(table["blob/idx"].tolist(), paths, strict=True)]


def _micrographs(table: NDArray[Any]) -> dict[str, Any]:
    names = _names(table)
    if "location/micrograph_path" not in names:
        return {}
    columns: dict[str, Any] = {
        "rlnMicrographName": [_text(path).removeprefix(">") for path in table["location/micrograph_path"]]
    }
    needed = ("location/center_x_frac", "location/center_y_frac", "location/micrograph_shape")
    if all(name in names for name in needed):
        shape = np.asarray(table["location/micrograph_shape"], dtype=np.float64)  # rows, columns
        columns["rlnCoordinateX"] = _float(table, needed[0]) * shape[:, 1]
        columns["rlnCoordinateY"] = _float(table, needed[1]) * shape[:, 0]
    return columns


def _groups(table: NDArray[Any], path: str | Path) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Optics table by column, and the group of each particle: one for each set of values that occurs."""
    identifier = _float(table, "ctf/exp_group_id", 0)
    shape = np.asarray(table["blob/shape"], dtype=np.float64)
    if (shape[:, 0] != shape[:, 1]).any():
        row = int(np.argmax(shape[:, 0] != shape[:, 1]))
        raise InputError("images are not square", file=path, item=f"row {row + 1}, blob/shape",
                         value=table["blob/shape"][row].tolist(), rule="rows = columns",
                         remedy="extract the particles in square boxes")  # fmt: skip
    # rounded as float32 prints: 1.31 is 1.30999994 in the file
    values = np.stack([identifier, shape[:, 0], *(_tidy(table, name) for name in ("blob/psize_A", *OPTICS))], axis=1)
    groups, index = np.unique(values, axis=0, return_inverse=True)
    # two groups of one number differ in something else: their names must, too
    texts = [GROUP_NAME.format(int(number)) for number in groups[:, 0]]
    named = [text if texts.count(text) == 1 else f"{text}_{place}" for place, text in enumerate(texts, start=1)]
    columns: dict[str, Any] = {
        "rlnOpticsGroup": np.arange(1, len(groups) + 1), "rlnOpticsGroupName": named,
        "rlnImageSize": groups[:, 1].astype(np.int64), "rlnImageDimensionality": np.full(len(groups), 2),
        "rlnImagePixelSize": groups[:, 2], "rlnVoltage": groups[:, 3], "rlnSphericalAberration": groups[:, 4],
        "rlnAmplitudeContrast": groups[:, 5],
    }  # fmt: skip
    return columns, np.asarray(index).reshape(-1)


def _tidy(table: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Values as decimal numbers of 7 digits, which single precision holds."""
    unique, place = np.unique(table[name], return_inverse=True)
    return np.array([float(f"{value:.7g}") for value in unique.tolist()])[place.reshape(-1)]


def _lost(table: NDArray[Any], path: str | Path) -> list[str]:
    names = _names(table)
    active = [name for name, nothing in UNCARRIED.items()
              if name in names and np.any(np.asarray(table[name]) != nothing)]  # fmt: skip
    notes = []
    if active:
        notes.append(f"{path}: not carried over, and so ignored: {', '.join(active)}")
    if not all(name in names for name in POSE):
        notes.append(f"{path}: the particles have no poses (alignments3D)")
    if "alignments3D/split" not in names:
        notes.append(f"{path}: the particles have no half sets (alignments3D/split)")
    if any(not name.endswith((".mrcs", ".st")) for name in np.unique([_text(one) for one in table["blob/path"]])):
        notes.append(f"{path}: RELION takes stacks for stacks only if they end in .mrcs: link those that end in .mrc")
    return notes


# --------------------------------------------------------------------------------------------------- STAR file to .cs
def cs_of_star(path: str | Path, original: NDArray[Any] | None = None) -> tuple[NDArray[Any], list[str]]:
    """The ``.cs`` table of a particle STAR file.

    Parameters
    ----------
    path
        STAR file of RELION 3.0, 3.1 or 5; its stacks are not looked for.
    original
        The table that the particles came from: every field of it is kept but poses, half sets and CTFs, and the rows
        are found by ``csUid``, or by number and name of the stack.

    Returns
    -------
    table, notes
        Rows in the order of the STAR file, and sentences on what it does not hold.

    Raises
    ------
    InputError
        A STAR file that is wrong, or particles that the original lacks.
    """
    table = ParticleTable.read(path, check_images=False, independent_halves=False)
    source = table.star.table(table.table_name)
    names, name_index, numbers = split_image_names(source)
    notes = list(table.warnings)
    if original is None:
        found = _new_table(table, source, [names[k] for k in name_index], numbers)
    else:
        found = original[_rows_in(original, source, [names[k] for k in name_index], numbers, path)]
        wanted = (*NEW, *(ALIGNMENT if table.has_poses else ()))
        added = [(entry[0], np.dtype(entry[1:]) if len(entry) > 2 else np.dtype(entry[1]), _start(entry[0]))
                 for entry in wanted if entry[0] not in _names(found)]  # fmt: skip
        found = _with_fields(found, added)
    _fill(found, table)
    unusual = sorted({name for group in table.optics for name in group.unusual()})
    if unusual:
        notes.append(f"{path}: not carried over: {', '.join(unusual)}")
    if not table.has_poses:
        notes.append(f"{path}: the particles have no poses: no alignments3D")
    elif not table.halves.any():
        notes.append(f"{path}: the particles have no half sets: all are in split 0")
    return found, notes


def write_cs(path: str | Path, table: NDArray[Any]) -> None:
    """Write a ``.cs`` table, atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        np.save(out, table, allow_pickle=False)


def _start(name: str) -> float:
    return 1.0 if name in ONE else 0.0


def _new_table(table: ParticleTable, source: Any, stacks: list[str], numbers: NDArray[Any]) -> NDArray[Any]:
    paths = [name.encode() for name in stacks]
    longest = max(map(len, paths))
    fields = [*NEW[:1], ("blob/path", f"S{longest}"), *NEW[1:], *(ALIGNMENT if table.has_poses else ())]
    found = np.zeros(len(table), dtype=fields)
    for name in _names(found):
        if name in ONE:
            found[name] = 1
    found["blob/path"], found["blob/idx"] = paths, numbers
    found["ctf/type"] = b"imported"
    found["uid"] = _uids(source, stacks, numbers)
    boxes = np.array([group.box for group in table.optics])[table.optics_index]
    if not boxes.all():
        raise InputError("the images' size is not given", file=table.path, item="rlnImageSize",
                         rule="an optics table that has it", remedy="import the file into RELION 3.1 or later")
    found["blob/shape"] = boxes[:, None]
    return found


def _uids(source: Any, stacks: list[str], numbers: NDArray[Any]) -> NDArray[np.uint64]:
    """cryoSPARC's own where the file has them, else a digest of the image's name: the same each time."""
    if UID in source:
        return np.array([_uid(text) for text in source.strings(UID)], dtype=np.uint64)
    names = (f"{number}@{stack}".encode() for number, stack in zip(numbers.tolist(), stacks, strict=True))
    return np.array([int.from_bytes(hashlib.sha256(name).digest()[:8], "little") for name in names], dtype=np.uint64)


def _uid(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**64:
        raise InputError("is no uid", item=UID, value=text, rule="a whole number below 2^64")
    return int(text)


def _rows_in(original: NDArray[Any], source: Any, stacks: list[str], numbers: NDArray[Any],
             path: str | Path) -> NDArray[np.int64]:  # fmt: skip
    if UID in source:
        known: dict[Any, int] = {uid: row for row, uid in enumerate(original["uid"].tolist())}
        keys: list[Any] = [_uid(text) for text in source.strings(UID)]
    else:
        if "blob/path" not in _names(original) or "blob/idx" not in _names(original):
            raise InputError("the original has no images (blob/path, blob/idx)", item="original",
                             remedy="give its passthrough file with --passthrough")
        of = zip(original["blob/path"], original["blob/idx"].tolist(), strict=True)
        known = {(number, _stem(_text(stack))): row for row, (stack, number) in enumerate(of)}
        keys = [(number, _stem(stack)) for number, stack in zip(numbers.tolist(), stacks, strict=True)]
    missing = [row for row, key in enumerate(keys) if key not in known]
    if missing:
        raise InputError(f"{len(missing)} of {len(keys)} particles are not in the original .cs file", file=path,
                         item=f"row {missing[0] + 1}", value=keys[missing[0]],
                         rule="the file that these particles came from")
    return np.array([known[key] for key in keys], dtype=np.int64)


def _stem(stack: str) -> str:
    """Name of a stack without folders and without the ending that a link may have changed."""
    return os.path.splitext(os.path.basename(stack.removeprefix(">")))[0]


def _fill(found: NDArray[Any], table: ParticleTable) -> None:
    """Set what a STAR file knows."""
    optics = [table.optics[k] for k in table.optics_index]
    groups = [_group_number(group.name, group.number) for group in table.optics]
    found["blob/psize_A"] = [group.pixel_size for group in optics]
    found["ctf/exp_group_id"] = np.array(groups)[table.optics_index]
    found["ctf/accel_kv"] = [group.voltage_kv for group in optics]
    found["ctf/cs_mm"] = [group.cs_mm for group in optics]
    found["ctf/amp_contrast"] = [group.amplitude_contrast for group in optics]
    found["ctf/df1_A"], found["ctf/df2_A"] = table.defocus_u, table.defocus_v
    found["ctf/df_angle_rad"] = np.deg2rad(table.defocus_angle)
    found["ctf/phase_shift_rad"] = np.deg2rad(table.phase_shift)
    found["ctf/bfactor"] = table.ctf_bfactor
    found["ctf/scale"] = np.abs(table.ctf_scale)
    found["blob/sign"] = np.where(table.ctf_scale < 0, -1, 1)
    if table.has_poses:
        back = np.swapaxes(euler_to_matrix(*table.angles.T), 1, 2)  # type: ignore[union-attr]
        found["alignments3D/pose"] = Rotation.from_matrix(back).as_rotvec()
        pixel = found["blob/psize_A"].astype(np.float64)
        found["alignments3D/psize_A"] = pixel
        found["alignments3D/shift"] = table.image_shifts / pixel[:, None]
        found["alignments3D/split"] = np.maximum(table.halves.astype(np.int64) - 1, 0)


def _group_number(name: str, number: int) -> int:
    """cryoSPARC's number where the name tells it, as :func:`star_of_cs` writes it."""
    start, _, rest = name.partition(GROUP_NAME.format(""))
    return int(rest) if start == "" and rest.isdigit() else number - 1
