# SPDX-License-Identifier: GPL-3.0-or-later
"""cryoSPARC's particle tables (``.cs``) as RELION's STAR files, and back.

Conventions, with A of RELION's angles (:mod:`..physics.geometry`):

    exp([pose]x) = A^T,    shift psize_A = (rlnOriginXAngst, rlnOriginYAngst),    split + 1 = rlnRandomSubset

``blob/sign`` is -1 where particles are dark in the file, and ``alignments3D/alpha`` is the factor by which a slice is
multiplied to fit the particle best. RELION has neither column: both go into rlnCtfScalefactor, by which the CTF is
multiplied. Aberrations have a module of their own, :mod:`.cs_aberrations`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.checks import (
    ANGLES,
    LARGEST_ANGLE,
    LARGEST_BFACTOR,
    LARGEST_DEFOCUS,
    LARGEST_SCALE,
    OLD_SHIFTS,
    SHIFTS,
    floats_or,
)
from sparsecv.engine.io.cs_aberrations import (
    ANISOMAG,
    LARGEST,
    NONE,
    SPECTER,
    TERMS,
    CsTerms,
    cs_terms,
    relion_columns,
    sizes,
)
from sparsecv.engine.io.cs_table import ALIGNMENT, NEW, ONE, REMEDY, names_of, text_of, with_fields
from sparsecv.engine.io.optics import OLD_COLUMNS, OpticsGroup
from sparsecv.engine.io.optics_terms import FLIPPED, PREMULTIPLIED
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.paths import IMAGE_NAME, split_image_names
from sparsecv.engine.io.star import StarFile, StarTable, broken_rule
from sparsecv.engine.physics.ctf import defocus_of_terms, defocus_terms
from sparsecv.engine.physics.geometry import matrix_to_euler

UID, ALPHA = "csUid", "csAlpha"  # no columns of RELION's, which keeps columns that it does not know
IMAGES = ("blob/path", "blob/idx", "blob/shape", "blob/psize_A")
OPTICS = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
DEFOCUS = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")
POSE = ("alignments3D/pose", "alignments3D/shift")
PLACE = ("location/micrograph_path", "location/center_x_frac", "location/center_y_frac")
PLACE_COLUMNS = ("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")
SIGN, SCALE, SCALE_3D = "blob/sign", "ctf/scale", "alignments3D/alpha"
GROUP, PHASE, BFACTOR = "ctf/exp_group_id", "ctf/phase_shift_rad", "ctf/bfactor"
SPLIT, PIXEL = "alignments3D/split", "alignments3D/psize_A"
GROUP_NAME = "exp_group_{}"
LARGEST_RAD = float(np.deg2rad(LARGEST_ANGLE))
LARGEST_CS_MM, LARGEST_TURN = 1e4, 1e3  # mm, fitted to any value; rad, of a vector that may turn more than once
DROP_UIDS = f"drop column {UID}, so that new ones are made"
SAME_TURN = 1e-6  # rad: what single precision leaves of a pose
# What a STAR file says of a .cs table, and a .cs table of a STAR file.
TOLD = {"uid", *IMAGES, *OPTICS, *DEFOCUS, *POSE, *PLACE, *TERMS, SIGN, SCALE, SCALE_3D, GROUP, PHASE, BFACTOR, SPLIT}
TOLD_COLUMNS = {
    IMAGE_NAME, *ANGLES, *SHIFTS, *OLD_SHIFTS, *OLD_COLUMNS, UID, ALPHA, "rlnDefocusU", "rlnDefocusV",
    "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor", "rlnRandomSubset", "rlnOpticsGroup",
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- .cs to STAR file
def star_of_cs(
    table: NDArray[Any], path: str | Path, aberrations: str = SPECTER
) -> tuple[StarFile, list[str]]:
    """The STAR file, RELION 3.1 and later, of a ``.cs`` table.

    Parameters
    ----------
    table
        As :func:`read_cs` returns it: with images and CTF; poses are optional.
    path
        Of the table, for messages.
    aberrations
        Whose convention of the aberrations is taken, one of `cs_aberrations.CONVENTIONS`.

    Returns
    -------
    star, notes
        The file, and sentences on what it does not hold, and on what it is not certain to hold rightly.

    Raises
    ------
    InputError
        Where a field is missing, or a number is not finite.
    """
    names = names_of(table)
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
    groups, index, told = _groups(table, path, aberrations)
    columns: dict[str, Any] = {IMAGE_NAME: _image_names(table)}
    columns |= _micrographs(table)
    columns |= {
        "rlnDefocusU": _float(table, "ctf/df1_A"), "rlnDefocusV": _float(table, "ctf/df2_A"),
        "rlnDefocusAngle": np.rad2deg(_float(table, "ctf/df_angle_rad")),
        "rlnPhaseShift": np.rad2deg(_float(table, PHASE, 0)),
        "rlnCtfBfactor": _float(table, BFACTOR, 0),
        "rlnCtfScalefactor": _float(table, SCALE, 1) * np.sign(_float(table, SIGN, 1)) * _float(table, SCALE_3D, 1),
        "rlnOpticsGroup": index + 1,
    }  # fmt: skip
    if all(name in names for name in POSE):
        matrices = Rotation.from_rotvec(np.asarray(table["alignments3D/pose"], dtype=np.float64)).as_matrix()
        columns |= dict(zip(ANGLES, matrix_to_euler(np.swapaxes(matrices, 1, 2)).T, strict=True))
        pixel = _float(table, PIXEL if PIXEL in names else "blob/psize_A")
        shifts = np.asarray(table["alignments3D/shift"], dtype=np.float64) * pixel[:, None]
        columns |= dict(zip(SHIFTS, shifts.T, strict=True))
    if SPLIT in names:
        columns["rlnRandomSubset"] = table[SPLIT].astype(np.int64) + 1
    if SCALE_3D in names and (table[SCALE_3D] != 1).any():
        columns[ALPHA] = _float(table, SCALE_3D)
    columns[UID] = [str(uid) for uid in table["uid"].tolist()]
    star = StarFile.new()
    star.add_loop("optics", groups)
    star.add_loop("particles", columns)
    return star, told + _lost(table, path)


def _check_values(table: NDArray[Any], path: str | Path) -> None:
    """Refuse, with InputError, values that no STAR file of particles can have, or no particle has."""
    ranges = {
        "blob/idx": (0, 2**31 - 2, "0 or more, below 2^31"), "blob/shape": (1, 2**20, "1 or more pixels"),
        "blob/psize_A": (1e-6, 1000, "0 < pixel size < 1000 A"), SPLIT: (0, 1, "0 or 1"),
        PIXEL: (1e-6, 1000, "0 < pixel size < 1000 A"), "ctf/accel_kv": (10, 3000, "10 to 3000 kV"),
        **dict.fromkeys(("ctf/df1_A", "ctf/df2_A"), (-LARGEST_DEFOCUS, LARGEST_DEFOCUS, "at most 1e6 A")),
        **dict.fromkeys(("ctf/df_angle_rad", PHASE), (-LARGEST_RAD, LARGEST_RAD, "at most 1e4 degrees")),
        "ctf/cs_mm": (-LARGEST_CS_MM, LARGEST_CS_MM, "at most 1e4 mm"), "ctf/amp_contrast": (0, 1, "0 to 1"),
        BFACTOR: (-LARGEST_BFACTOR, LARGEST_BFACTOR, "at most 1e4 A^2"),
        POSE[0]: (-LARGEST_TURN, LARGEST_TURN, "a rotation vector, at most 1e3 rad"),
        POSE[1]: (-(2**20), 2**20, "at most 2^20 pixels"),
        **dict.fromkeys((SCALE, SCALE_3D), (-LARGEST_SCALE, LARGEST_SCALE, "at most 1e3")),
        **{name: (-largest, largest, f"at most {largest:g}{'' if name == ANISOMAG else ' A'}")
           for name, largest in LARGEST.items()},
    }  # fmt: skip
    for name, (low, high, rule) in ranges.items():
        if name in names_of(table):
            good = ((table[name] >= low) & (table[name] <= high)).reshape(len(table), -1).all(axis=1)
            if not good.all():
                row = int(np.argmin(good))
                raise InputError("out of range", file=path, item=f"row {row + 1}, {name}", rule=rule,
                                 value=table[name][row].tolist(), remedy=REMEDY)  # fmt: skip
    if SIGN in names_of(table) and not table[SIGN].all():
        raise InputError("a contrast of no sign", file=path, item=f"row {int(np.argmin(table[SIGN] != 0)) + 1}, {SIGN}",
                         value=0, rule="-1 where particles are dark, else 1", remedy=REMEDY)  # fmt: skip
    for name in ("blob/path", "location/micrograph_path"):
        if name in names_of(table):
            values, first = np.unique(table[name], return_index=True)
            for value, row in zip(values, first.tolist(), strict=True):
                text = text_of(value).removeprefix(">")
                rule = broken_rule(f"000001@{text}") or ("" if text or name != "blob/path" else "the name of a file")
                if rule:
                    raise InputError("a name that a STAR file cannot hold", file=path, item=f"row {row + 1}, {name}",
                                     value=text, rule=rule, remedy="rename the file, or link to it under a plain name")


_USED = {*IMAGES, *OPTICS, *DEFOCUS, *POSE, *TERMS, PHASE, BFACTOR, SCALE, SIGN, SCALE_3D, PIXEL}


def _float(table: NDArray[Any], name: str, default: float | None = None) -> NDArray[np.float64]:
    if name not in names_of(table) and default is not None:
        return np.full(len(table), float(default))
    return np.asarray(table[name], dtype=np.float64)


def _image_names(table: NDArray[Any]) -> list[str]:
    """``number@stack``; the > that stands before the paths of imported stacks is cryoSPARC's own mark."""
    paths = [text_of(path).removeprefix(">") for path in table["blob/path"]]
    return [f"{number + 1:06d}@{path}" for number, path in zip(table["blob/idx"].tolist(), paths, strict=True)]


def _micrographs(table: NDArray[Any]) -> dict[str, Any]:
    names = names_of(table)
    if "location/micrograph_path" not in names:
        return {}
    columns: dict[str, Any] = {
        "rlnMicrographName": [text_of(path).removeprefix(">") for path in table["location/micrograph_path"]]
    }
    needed = ("location/center_x_frac", "location/center_y_frac", "location/micrograph_shape")
    if all(name in names for name in needed) and not _unplaced(table):
        shape = np.asarray(table["location/micrograph_shape"], dtype=np.float64)  # rows, columns
        columns["rlnCoordinateX"] = _float(table, needed[0]) * shape[:, 1]
        columns["rlnCoordinateY"] = _float(table, needed[1]) * shape[:, 0]
    return columns


def _unplaced(table: NDArray[Any]) -> bool:
    """Whether particles have no finite place in their micrograph; what a picker has left out is NaN."""
    names = [name for name in PLACE[1:] if name in names_of(table)]
    return not all(np.isfinite(table[name]).all() for name in names)


def _groups(
    table: NDArray[Any], path: str | Path, aberrations: str
) -> tuple[dict[str, Any], NDArray[np.int64], list[str]]:
    """Optics table by column, the group of each particle, one for each set of values that occurs, and notes."""
    shape = np.asarray(table["blob/shape"], dtype=np.float64)
    if (shape[:, 0] != shape[:, 1]).any():
        row = int(np.argmax(shape[:, 0] != shape[:, 1]))
        raise InputError("images are not square", file=path, item=f"row {row + 1}, blob/shape",
                         value=table["blob/shape"][row].tolist(), rule="rows = columns",
                         remedy="extract the particles in square boxes")  # fmt: skip
    given = [name for name in TERMS if name in names_of(table) and np.any(table[name])]
    fixed = [_float(table, GROUP, 0), shape[:, 0], *(_shortest(table, name) for name in ("blob/psize_A", *OPTICS))]
    rows = np.column_stack([*fixed, *(np.asarray(table[name], dtype=np.float64) for name in given)])
    groups, index = np.unique(rows, axis=0, return_inverse=True)
    # two groups of one number differ in something else: their names must, too
    texts = [GROUP_NAME.format(int(number)) for number in groups[:, 0]]
    named = [text if texts.count(text) == 1 else f"{text}_{place}" for place, text in enumerate(texts, start=1)]
    ends = np.cumsum([len(fixed), *(TERMS[name] for name in given)]).tolist()
    values = {name: groups[:, start:end] for name, start, end in zip(given, ends, ends[1:], strict=False)}
    columns: dict[str, Any] = {
        "rlnOpticsGroup": np.arange(1, len(groups) + 1), "rlnOpticsGroupName": named,
        "rlnImageSize": groups[:, 1].astype(np.int64), "rlnImageDimensionality": np.full(len(groups), 2),
        "rlnImagePixelSize": groups[:, 2], "rlnVoltage": groups[:, 3], "rlnAmplitudeContrast": groups[:, 5],
    }  # fmt: skip
    columns |= relion_columns(values, groups[:, 4], groups[:, 3], aberrations)
    found: list[dict[str, float]] = [
        sizes({name: rows[k] for name, rows in values.items()}, groups[k, 3], groups[k, 2]) for k in range(len(groups))
    ]
    return columns, np.asarray(index).reshape(-1), _told(found, path, aberrations)


def _told(found: list[dict[str, float]], path: str | Path, aberrations: str) -> list[str]:
    """What became of terms of these sizes in some groups, in a sentence."""
    largest = {name: max(one.get(name, 0.0) for one in found) for name in TERMS}
    parts = [f"{name} (up to {100 * size:.2g} %)" if name == ANISOMAG else f"{name} (up to {size:.2g} rad at Nyquist)"
             for name, size in largest.items() if size]  # fmt: skip
    if not parts:
        return []
    start = "not carried over, and so ignored" if aberrations == NONE else f"in the convention of {aberrations}"
    return [f"{path}: {start} (--aberrations): {', '.join(parts)}"]


def _shortest(table: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Values as the shortest decimal numbers that are the same in the table's precision: 1.31, not 1.30999994."""
    unique, place = np.unique(table[name], return_inverse=True)
    return np.array([float(str(value)) for value in unique])[place.reshape(-1)]


def _lost(table: NDArray[Any], path: str | Path) -> list[str]:
    names = names_of(table)
    notes = []
    if not all(name in names for name in POSE):
        notes.append(f"{path}: the particles have no poses (alignments3D)")
    if SPLIT not in names:
        notes.append(f"{path}: the particles have no half sets ({SPLIT})")
    if _unplaced(table):
        notes.append(f"{path}: particles without a finite place in their micrograph: no coordinates are written")
    untold = [name for name in names if name not in TOLD and _says_something(table, name)]
    if untold:
        notes.append(f"{path}: in the .cs file alone, to which --original goes back: {', '.join(untold)}")
    if any(not name.endswith((".mrcs", ".st")) for name in np.unique([text_of(one) for one in table["blob/path"]])):
        notes.append(f"{path}: RELION takes stacks for stacks only if they end in .mrcs: link those that end in .mrc")
    return notes


def _says_something(table: NDArray[Any], name: str) -> bool:
    """Whether a field holds more than a new table would have in it."""
    if name == PIXEL:
        return bool((table[name] != table["blob/psize_A"]).any())
    kind = table.dtype[name].base.kind
    if kind in "fiub":
        return bool((table[name] != _start(name)).any())
    return name != "ctf/type" and (kind not in "SU" or bool((table[name] != np.zeros((), table.dtype[name])).any()))


# --------------------------------------------------------------------------------------------------- STAR file to .cs
def cs_of_star(
    path: str | Path, original: NDArray[Any] | None = None, aberrations: str = SPECTER
) -> tuple[NDArray[Any], list[str]]:
    """The ``.cs`` table of a particle STAR file.

    Parameters
    ----------
    path
        STAR file of RELION 3.0, 3.1 or 5; its stacks are looked for only where it does not give the images' size.
    original
        The table that the particles came from: every field of it is kept but poses, half sets and CTFs, and the rows
        are found by ``csUid``, or by number and name of the stack. What the STAR file has as it was is the same to the
        last bit.
    aberrations
        Whose convention of the aberrations is taken, one of `cs_aberrations.CONVENTIONS`; with none they are 0, or what
        they are in the original.

    Returns
    -------
    table, notes
        Rows in the order of the STAR file, and sentences on what it does not hold, or not for certain rightly.

    Raises
    ------
    InputError
        A STAR file that is wrong, or particles that the original lacks.
    """
    table = _read_star(path, needs_boxes=original is None)
    source = table.star.table(table.table_name)
    names, name_index, numbers = split_image_names(source)
    notes = list(table.warnings)
    if original is None:
        found = _new_table(table, source, [names[k] for k in name_index], numbers)
    else:
        found = original[_rows_in(original, source, [names[k] for k in name_index], numbers, path)]
        wanted = (*NEW, *(ALIGNMENT if table.has_poses else ()))
        added = [(entry[0], np.dtype(entry[1:]) if len(entry) > 2 else np.dtype(entry[1]), _start(entry[0]))
                 for entry in wanted if entry[0] not in names_of(found)]  # fmt: skip
        found = with_fields(found, added)
    terms = [cs_terms(group, aberrations) for group in table.optics]
    kept = () if original is None else names_of(original)
    _fill(found, table, terms, kept, keep_terms=aberrations == NONE)
    notes += _told_of_star(table, terms, aberrations)
    columns = {name for name in source.columns if name not in TOLD_COLUMNS}
    columns -= set(PLACE_COLUMNS) if all(name in kept for name in PLACE) else set()
    if columns:
        notes.append(f"{path}: a .cs file has no place for {', '.join(sorted(columns))}")
    if not table.has_poses:
        notes.append(f"{path}: the particles have no poses: no alignments3D")
    elif not table.halves.any():
        notes.append(f"{path}: the particles have no half sets: "
                     + ("those of the original are kept" if SPLIT in kept else "all are in split 0"))  # fmt: skip
    _check_uids(found["uid"], source)
    return found, notes


def _read_star(path: str | Path, *, needs_boxes: bool) -> ParticleTable:
    table = ParticleTable.read(path, check_images=False, independent_halves=False)
    if not needs_boxes or all(group.box for group in table.optics):
        return table
    try:
        return ParticleTable.read(path, independent_halves=False)
    except InputError as error:
        raise InputError("the images' size is not given, and the stacks do not tell it", file=path, item="rlnImageSize",
                         value=str(error)[:200], rule="an optics table that has it, or stacks that are found",
                         remedy="start where the stacks are found, or import the file into RELION 3.1 or later"
                         ) from error  # fmt: skip


def _told_of_star(table: ParticleTable, terms: list[CsTerms], aberrations: str) -> list[str]:
    """What became of the terms of the optics groups, in sentences."""
    shown = [cs_terms(group, SPECTER) for group in table.optics] if aberrations == NONE else terms
    of = zip(shown, table.optics, strict=True)
    found = [sizes({name: np.array(numbers) for name, numbers in one.values.items()}, group.voltage_kv,
                   group.pixel_size) for one, group in of]  # fmt: skip
    notes = _told(found, table.path, aberrations)
    if any(one.phase_shift or any(one.defocus) or one.cs_mm != group.cs_mm
           for one, group in zip(terms, table.optics, strict=True)):  # fmt: skip
        same = "" if aberrations == NONE else ": the same CTFs"
        notes.append(f"{table.path}: rlnEvenZernike is in part in defocus, phase shift and Cs now{same}")
    lost = max((one.lost for one in terms), default=0.0)
    if lost:
        notes.append(f"{table.path}: not carried over: Zernike coefficients beyond the fourth order ({lost:.2g} rad at "
                     "Nyquist)")  # fmt: skip
    made = sorted({name for group in table.optics for name in group.unusual() if name in (FLIPPED, PREMULTIPLIED)})
    if made:
        notes.append(f"{table.path}: not carried over: {', '.join(made)}")
    return notes


def _start(name: str) -> float:
    return 1.0 if name in ONE else 0.0


def _new_table(table: ParticleTable, source: Any, stacks: list[str], numbers: NDArray[Any]) -> NDArray[Any]:
    paths = [name.encode() for name in stacks]
    longest = max(map(len, paths))
    fields = [*NEW[:1], ("blob/path", f"S{longest}"), *NEW[1:], *(ALIGNMENT if table.has_poses else ())]
    found = np.zeros(len(table), dtype=fields)
    for name in names_of(found):
        if name in ONE:
            found[name] = 1
    found["blob/path"], found["blob/idx"] = paths, numbers
    found["ctf/type"] = b"imported"
    found["uid"] = _uids(source, stacks, numbers)
    found["blob/shape"] = np.array([group.box for group in table.optics])[table.optics_index][:, None]
    return found


def _uids(source: Any, stacks: list[str], numbers: NDArray[Any]) -> NDArray[np.uint64]:
    """cryoSPARC's own where the file has them, else a digest of the image's name and copy: the same each time."""
    if UID in source:
        return np.array(_own_uids(source), dtype=np.uint64)
    copies: Counter[str] = Counter()  # symmetry mates share an image
    found = []
    for number, stack in zip(numbers.tolist(), stacks, strict=True):
        name = f"{number}@{stack}"
        text = f"{name}#{copies[name]}" if copies[name] else name
        copies[name] += 1
        found.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
    return np.array(found, dtype=np.uint64)


def _own_uids(source: StarTable) -> list[int]:
    """What the column of uids holds; InputError where it is none."""
    texts = source.strings(UID)
    for row, text in enumerate(texts):
        if not (text.isdecimal() and len(text) <= 20 and int(text) < 2**64):
            raise source.error("is no uid", UID, row, rule="a whole number below 2^64", remedy=DROP_UIDS)
    return [int(text) for text in texts]


def _check_uids(uids: NDArray[Any], source: StarTable) -> None:
    """Refuse, with InputError, two particles of one uid, which no ``.cs`` file may hold."""
    values, first, counts = np.unique(uids, return_index=True, return_counts=True)
    if (counts > 1).any():
        row = int(np.flatnonzero(uids == values[np.argmax(counts > 1)])[1])
        column = UID if UID in source else IMAGE_NAME
        raise source.error(f"the same particle as in row {int(first[np.argmax(counts > 1)]) + 1}", column, row,
                           rule="each row of a .cs file is one particle, with a uid of its own",
                           remedy="remove copies of particles" + (f", or {DROP_UIDS}" if UID in source else ""))


def _rows_in(original: NDArray[Any], source: Any, stacks: list[str], numbers: NDArray[Any],
             path: str | Path) -> NDArray[np.int64]:  # fmt: skip
    if UID in source:
        known: dict[Any, int] = {uid: row for row, uid in enumerate(original["uid"].tolist())}
        keys: list[Any] = _own_uids(source)
    else:
        if "blob/path" not in names_of(original) or "blob/idx" not in names_of(original):
            raise InputError("the original has no images (blob/path, blob/idx)", item="original",
                             remedy="give its passthrough file with --passthrough")
        of = zip(original["blob/path"], original["blob/idx"].tolist(), strict=True)
        held = [(number, _stem(text_of(stack))) for stack, number in of]
        known = {key: row for row, key in enumerate(held)}
        keys = [(number, _stem(stack)) for number, stack in zip(numbers.tolist(), stacks, strict=True)]
    missing = [row for row, key in enumerate(keys) if key not in known]
    if missing:
        raise InputError(f"{len(missing)} of {len(keys)} particles are not in the original .cs file", file=path,
                         item=f"row {missing[0] + 1}", value=keys[missing[0]],
                         rule="the file that these particles came from", remedy="give that with --original")
    if UID not in source and len(known) < len(held):
        counts = Counter(held)
        shared = [row for row, key in enumerate(keys) if counts[key] > 1]
        if shared:
            raise InputError("several particles of the original may be meant", file=path, item=f"row {shared[0] + 1}",
                             value=keys[shared[0]], rule="one image of this number and name of the stack",
                             remedy=f"keep the column {UID} that convert has written")
    return np.array([known[key] for key in keys], dtype=np.int64)


def _stem(stack: str) -> str:
    """Name of a stack without folders and without the ending that a link may have changed."""
    return os.path.splitext(os.path.basename(stack.removeprefix(">")))[0]


def _fill(
    found: NDArray[Any], table: ParticleTable, terms: list[CsTerms], kept: tuple[str, ...], *, keep_terms: bool
) -> None:
    """Set what a STAR file knows; ``kept`` are the fields that the original has."""
    index = table.optics_index
    optics = [table.optics[k] for k in index]
    found[GROUP] = np.array([_group_number(group) for group in table.optics])[index]
    found["blob/psize_A"] = [group.pixel_size for group in optics]
    found["ctf/accel_kv"] = [group.voltage_kv for group in optics]
    found["ctf/cs_mm"] = np.array([one.cs_mm for one in terms])[index]
    found["ctf/amp_contrast"] = [group.amplitude_contrast for group in optics]
    for name in () if keep_terms else TERMS:
        found[name] = np.array([one.values[name] for one in terms])[index]
    defocus = np.stack([table.defocus_u, table.defocus_v, table.defocus_angle])
    for number, one in enumerate(terms):
        if any(one.defocus):
            own = np.array(defocus_terms(*defocus[:, index == number])) + np.array(one.defocus)[:, None]
            defocus[:, index == number] = defocus_of_terms(*own)
    found["ctf/df1_A"], found["ctf/df2_A"] = defocus[:2]
    found["ctf/df_angle_rad"] = np.deg2rad(defocus[2])
    found[PHASE] = np.deg2rad(table.phase_shift) + np.array([one.phase_shift for one in terms])[index]
    found[BFACTOR] = table.ctf_bfactor
    _fill_scales(found, table)
    if table.has_poses:
        _fill_poses(found, table, kept)


def _fill_scales(found: NDArray[Any], table: ParticleTable) -> None:
    """Take rlnCtfScalefactor apart into sign, scale of the CTF and, where the STAR file tells it, alpha."""
    source, scale = table.star.table(table.table_name), table.ctf_scale
    if ALPHA in source and SCALE_3D in names_of(found):
        alpha = floats_or(source, ALPHA, 1.0, LARGEST_SCALE, "at most 1e3")
        found[SCALE_3D] = alpha
        before = found[SCALE].astype(np.float64) * found[SIGN]
        scale = np.divide(scale, alpha, out=before, where=alpha != 0)  # of a particle of no weight nothing is known
    found[SCALE] = np.abs(scale)
    found[SIGN] = np.where(scale < 0, -1, 1)


def _fill_poses(found: NDArray[Any], table: ParticleTable, kept: tuple[str, ...]) -> None:
    """Set pose, shift and split; a vector that turns as the original's did stays that, also beyond half a turn."""
    back = Rotation.from_matrix(np.swapaxes(table.rotations, 1, 2))
    vectors = back.as_rotvec()
    if POSE[0] in kept:
        before = np.asarray(found[POSE[0]], dtype=np.float64)
        before[~np.isfinite(before).all(axis=1)] = 0
        same = (Rotation.from_rotvec(before).inv() * back).magnitude() < SAME_TURN
        vectors[same] = before[same]
    found[POSE[0]] = vectors
    pixel = found["blob/psize_A"].astype(np.float64)
    if PIXEL in kept:
        pixel = np.where(found[PIXEL] > 0, found[PIXEL].astype(np.float64), pixel)
    found[PIXEL] = pixel
    found[POSE[1]] = table.image_shifts / pixel[:, None]
    if table.halves.any() or SPLIT not in kept:
        found[SPLIT] = np.maximum(table.halves.astype(np.int64) - 1, 0)


def _group_number(group: OpticsGroup) -> int:
    """cryoSPARC's number where the name tells it, as :func:`star_of_cs` writes it."""
    start, _, rest = group.name.partition(GROUP_NAME.format(""))
    number = rest.partition("_")[0]
    return int(number) if start == "" and number.isdigit() else group.number - 1
