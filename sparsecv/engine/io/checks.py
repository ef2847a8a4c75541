# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked when a particle STAR file comes in; every refusal names file, row, column, value, rule and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import LARGEST_BOX, ImageStack
from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.io.paths import IMAGE_NAME, index_of_first, name_to_write
from sparsecv.engine.io.star import StarFile, StarTable, broken_rule

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
SHIFTS = ("rlnOriginXAngst", "rlnOriginYAngst")
OLD_SHIFTS = ("rlnOriginX", "rlnOriginY")
HELICAL = "rlnHelicalTubeID"  # RELION writes it for segments alone
LARGEST_DEFOCUS = 1e6  # A
# Beyond these a CTF is no longer of an image, and its squares soon no longer finite.
LARGEST_ANGLE, LARGEST_BFACTOR, LARGEST_SCALE = 1e4, 1e4, 1e3  # degrees, A^2, plain factor
SMALLEST_BOX = 16
PIXEL_SIZE_TOLERANCE = 0.02


def find_particles(star: StarFile, fewest: int) -> StarTable:
    """Return the table of particles of a STAR file; it has at least ``fewest`` rows."""
    name = next((name for name in ("particles", "images", "") if name in star and IMAGE_NAME in star.table(name)), None)
    if name is None:
        raise InputError(
            "no particles",
            file=star.path,
            value=[f"data_{known}" for known in star.names],
            rule="a table data_particles, data_images or data_ with a column rlnImageName",
            remedy="give the STAR file of extracted particles",
        )
    if name != "particles" and "particles" in star:  # which is what we call the table that we write
        raise InputError("a table data_particles without images beside another one with them", file=star.path,
                         item=f"data_{name}", rule=f"particles and their {IMAGE_NAME} in one table",
                         remedy="remove the table that is not meant")  # fmt: skip
    table = star.table(name)
    tomography = [column for column in table.columns if column.startswith("rlnTomo")]
    if tomography:
        raise InputError(
            "tomography particles",
            file=star.path,
            item=f"data_{name}, column {tomography[0]}",
            rule="single-particle images are refined, not subtomograms",
            remedy="give extracted single particles",
        )
    if HELICAL in table and set(table.strings(HELICAL)) - {"0"}:
        raise table.error("segments of a helix", HELICAL, 0, rule="single particles, without helical rise and twist",
                          remedy="refine helices in RELION or cryoSPARC, or drop the column to treat segments as "
                          "single particles")  # fmt: skip
    if len(table) < fewest:
        raise InputError("too few particles", file=star.path, item=f"data_{name}", value=len(table),
                         rule=f"at least {fewest}", remedy="give the STAR file of all particles")  # fmt: skip
    return table


def merge_links(paths: list[Path], index: NDArray[np.int32]) -> tuple[list[Path], NDArray[np.int32]]:
    """Let two names of one file be one stack."""
    names, merged = index_of_first([str(path) for path in paths])
    return [Path(name) for name in names], merged[index]


def open_stacks(stacks: list[Path], stack_index: NDArray[np.int32], table: StarTable) -> list[ImageStack]:
    """Open every stack; an InputError names the first row that needs a stack which cannot be used."""
    readers = []
    for number, path in enumerate(stacks):
        try:
            readers.append(ImageStack(path))
        except InputError as error:
            row = int(np.argmax(stack_index == number))
            value = "" if error.value is None else f" (value {error.value!r})"
            raise table.error(f"image stack cannot be used: {path}: {error.problem}{value}", IMAGE_NAME, row,
                              rule=error.rule, remedy=error.remedy) from error  # fmt: skip
    return readers


def check_stacks(
    readers: list[ImageStack],
    stack_index: NDArray[np.int32],
    image_index: NDArray[np.int64],
    table: StarTable,
    optics: tuple[OpticsGroup, ...],
    optics_index: NDArray[np.int32],
    notes: list[str],
) -> tuple[OpticsGroup, ...]:
    """Compare headers with the table; return the optics groups with their boxes filled in."""
    counts = np.array([reader.count for reader in readers])
    beyond = image_index >= counts[stack_index]
    if beyond.any():
        row = int(np.argmax(beyond))
        count = counts[stack_index[row]]
        raise table.error("the stack has no such image", IMAGE_NAME, row, rule=f"{count} images are in it",
                          remedy="give the stack that the particles were extracted to")
    of_stack = np.array([reader.box for reader in readers])
    used, first_row = np.unique(optics_index, return_index=True)
    boxes = np.array([group.box for group in optics])
    source = np.array(["the optics group's rlnImageSize"] * len(optics), dtype=object)
    for number, row in zip(used.tolist(), first_row.tolist(), strict=True):
        if not boxes[number]:
            boxes[number], source[number] = of_stack[stack_index[row]], str(readers[stack_index[row]].path)
    wrong = of_stack[stack_index] != boxes[optics_index]
    if wrong.any():
        row = int(np.argmax(wrong))
        raise table.error(
            f"images of {of_stack[stack_index[row]]} pixels",
            IMAGE_NAME,
            row,
            rule=f"the box is {boxes[optics_index[row]]} pixels by {source[optics_index[row]]}",
            remedy="extract all particles of an optics group with one box",
        )
    if boxes[used].min() < SMALLEST_BOX:
        raise InputError("box too small", file=table.path, value=int(boxes[used].min()),
                         rule=f"at least {SMALLEST_BOX} pixels",
                         remedy="extract the particles in a larger box, or binned less")  # fmt: skip
    sizes = np.array([reader.pixel_size for reader in readers])
    first_in_stack = np.unique(stack_index, return_index=True)[1]
    expected = np.array([group.pixel_size for group in optics])[optics_index[first_in_stack]]
    # 1.0 is what RELION and others write when they mean nothing by it
    odd = (sizes > 0) & (sizes != 1.0) & (np.abs(sizes - expected) > PIXEL_SIZE_TOLERANCE * expected)
    if odd.any():
        first = int(np.argmax(odd))
        notes.append(
            f"{table.path}: {int(odd.sum())} stacks have another pixel size in their header (first: "
            f"{readers[first].path}, {sizes[first]:.4g} A) than the STAR file ({expected[first]:.4g} A), which is used"
        )
    notes.extend(warning for reader in readers for warning in reader.warnings)
    return tuple(replace(group, box=int(box) or int(boxes[used[0]])) for group, box in zip(optics, boxes, strict=True))


def unique_images(stack_index: NDArray[np.int32], image_index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which image each row has, (n,): numbers from 0 in the order in which images come first."""
    if not len(stack_index):
        return np.zeros(0, dtype=np.int64)
    keys = stack_index.astype(np.int64) * (int(image_index.max()) + 1) + image_index
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse.reshape(-1)]


def check_duplicates(images: NDArray[np.int64], table: StarTable, notes: list[str] | None) -> None:
    """Refuse an image that occurs twice, or say so in ``notes``; ``images`` are those of :func:`unique_images`."""
    count = int(images.max()) + 1
    if count == len(images):
        return
    if notes is not None:
        notes.append(f"{table.path}: {len(images) - count} images occur more than once")
        return
    again = int(np.argmax(images != np.arange(len(images))))
    raise table.error(
        f"the same image as in row {int(np.argmax(images == images[again])) + 1}",
        IMAGE_NAME,
        again,
        rule="every image occurs once: in both half sets it would fake resolution",
        remedy="remove the duplicates, or say --symmetry-expanded where they are symmetry mates",
    )


def check_expanded(images: NDArray[np.int64], halves: NDArray[np.int8], table: StarTable) -> None:
    """Refuse copies of an image in both half sets; ``images`` are those of :func:`unique_images`."""
    _, first = np.unique(images, return_index=True)
    wrong = halves != halves[first][images]
    if wrong.any():
        row = int(np.argmax(wrong))
        raise table.error(f"the same image as in row {int(first[images[row]]) + 1}, which is in the other half set",
                          "rlnRandomSubset", row, rule="all copies of an image are in one half set: in both they would "
                          "fake resolution", remedy="expand particles that have their half sets, or leave the column "
                          "away to have them drawn")  # fmt: skip


def check_names(
    names: list[str], name_index: NDArray[np.int32], stacks: list[Path], stack_index: NDArray[np.int32],
    table: StarTable,
) -> None:  # fmt: skip
    """Refuse what the results could not name: before the first iteration, not when run_data.star is written.

    Parameters
    ----------
    names, name_index
        Stacks as the file names them, and which of them each particle has.
    stacks, stack_index
        The files that they lead to, likewise.
    """
    rows = np.unique(name_index, return_index=True)[1]
    for name, row in zip(names, rows.tolist(), strict=True):
        written = name_to_write(name, str(stacks[stack_index[row]]))
        rule = broken_rule(f"000001@{written}")
        if rule:
            raise table.error("the stack has a name that a STAR file cannot hold", IMAGE_NAME, row, value=written,
                              rule=rule, remedy="rename the file or folder, or start where the STAR file's own names "
                              "lead to the stacks")  # fmt: skip


def name_groups(
    table: StarTable, choices: Sequence[str], stacks: list[str], stack_index: NDArray[np.int32]
) -> tuple[list[str], NDArray[np.int32]]:
    """Return names and membership by the first of the columns that there is, else by the stack."""
    column = next((column for column in choices if column in table), None)
    if column is None:
        return stacks, stack_index
    return index_of_first(table.strings(column))


def floats_or(
    table: StarTable, column: str, default: float, largest: float = LARGEST_ANGLE, rule: str = "degrees, at most 1e4"
) -> NDArray[np.float64]:
    """Return a column, or the default in every row where there is none; larger absolute values are refused."""
    if column not in table:
        return np.full(len(table), default)
    return _within(table, column, table.floats(column), largest, rule)


def _within(
    table: StarTable, column: str, values: NDArray[np.float64], largest: float, rule: str
) -> NDArray[np.float64]:
    wrong = np.abs(values) > largest
    if wrong.any():
        raise table.error("out of range", column, int(np.argmax(wrong)), rule=rule, remedy="correct or remove the row")
    return values


def read_defocus(table: StarTable, notes: list[str]) -> dict[str, NDArray[np.float64]]:
    """Return defocus_u, defocus_v (A; default defocus_u) and defocus_angle (degrees; default 0)."""
    values = {"defocus_u": table.floats("rlnDefocusU")}
    values["defocus_v"] = table.floats("rlnDefocusV") if "rlnDefocusV" in table else values["defocus_u"]
    for column, name in (("rlnDefocusU", "defocus_u"), ("rlnDefocusV", "defocus_v")):
        wrong = np.abs(values[name]) >= LARGEST_DEFOCUS
        if wrong.any():
            raise table.error("impossible defocus", column, int(np.argmax(wrong)), rule="below 1e6 A",
                              remedy="correct or remove the row")  # fmt: skip
    over = int(np.count_nonzero((values["defocus_u"] < 0) | (values["defocus_v"] < 0)))
    if over:
        notes.append(f"{table.path}: {over} particles have a negative defocus: they are taken to be overfocused")
    return {**values, "defocus_angle": floats_or(table, "rlnDefocusAngle", 0.0)}


def read_angles(table: StarTable) -> NDArray[np.float64] | None:
    """Return (rot, tilt, psi) in degrees, (n, 3), or None where they are not all given or all 0."""
    if not all(column in table for column in ANGLES):
        return None  # extraction and 2D classification write some of the angles only
    rule = "degrees, at most 1e4"
    angles = np.stack([_within(table, name, table.floats(name), LARGEST_ANGLE, rule) for name in ANGLES], axis=1)
    return angles if angles.any() else None


def read_shifts(
    table: StarTable, groups: tuple[OpticsGroup, ...], index: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the origins (x, y) in A, (n, 2), from those in A or RELION 3.0's in pixels; 0 where there are none.

    One that is larger than the box, of which a particle's group of optics tells pixel size and side, leads out of the
    image.
    """
    pixel_size = np.array([group.pixel_size for group in groups])[index]
    side = np.array([(group.box or LARGEST_BOX) * group.pixel_size for group in groups])[index]
    for columns, factor, unit in ((SHIFTS, np.ones_like(side), "A"), (OLD_SHIFTS, pixel_size, "pixels")):
        if all(column in table for column in columns):
            shifts = np.stack([table.floats(name) * factor for name in columns], axis=1)
            wrong = np.abs(shifts) > side[:, None]
            if wrong.any():
                column, row = (int(place[0]) for place in np.nonzero(wrong.T))
                raise table.error("out of range", columns[column], row, remedy="correct or remove the row",
                                  rule=f"within the box, {side[row] / factor[row]:g} {unit}")
            return shifts
    return np.zeros((len(table), 2))


def read_halves(table: StarTable, notes: list[str] | None) -> NDArray[np.int8]:
    """Return the half sets, 1 or 2, or all 0 where not given; all particles in one are refused or said in ``notes``."""
    column = "rlnRandomSubset"
    if column not in table:
        return np.zeros(len(table), dtype=np.int8)
    halves = table.integers(column)
    if not halves.any():
        return halves.astype(np.int8)
    wrong = (halves != 1) & (halves != 2)
    if wrong.any():
        raise table.error("not a half set", column, int(np.argmax(wrong)), rule="1 or 2 in every row, or 0 in all",
                          remedy="remove the column to have half sets drawn")
    if halves.min() == halves.max():
        if notes is not None:
            notes.append(f"{table.path}: all particles are in half set {halves[0]}")
            return halves.astype(np.int8)
        raise InputError(
            f"all particles are in half set {halves[0]}",
            file=table.path,
            item=f"column {column}",
            rule="both half sets hold particles",
            remedy="remove the column to have half sets drawn",
        )
    return halves.astype(np.int8)
