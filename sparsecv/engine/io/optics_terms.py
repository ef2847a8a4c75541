# SPDX-License-Identifier: GPL-3.0-or-later
"""Columns of an optics table beside those of the CTF: aberrations, magnification, and what was done to the images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.io.star import StarTable
from sparsecv.engine.physics.aberrations import LARGEST_ORDER, even_order, odd_order

BEAM_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
ODD, EVEN = "rlnOddZernike", "rlnEvenZernike"
FLIPPED, PREMULTIPLIED = "rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"
MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
IDENTITY = (1.0, 0.0, 0.0, 1.0)
LARGEST_DISTORTION = 0.2  # of an element from that of the identity; real ones are a few per cent
LARGEST_TILT = 100.0  # mrad
LARGEST_COEFFICIENT = 1e9  # rad A^n: beyond it a phase is no longer exact in double precision
REMEDY = "correct the STAR file"


def read_terms(table: StarTable) -> list[dict[str, Any]]:
    """Return, for each row of an optics table, the fields of an `OpticsGroup` beside its CTF's; checked."""
    count = len(table)
    tilts = beam_tilts(table)
    odd, even = (_vectors(table, name, order) for name, order in ((ODD, odd_order), (EVEN, even_order)))
    matrices = _magnifications(table)
    flipped, premultiplied = (_flags(table, name) for name in (FLIPPED, PREMULTIPLIED))
    both = flipped & premultiplied
    if both.any():
        raise table.error("images that are both phase-flipped and premultiplied by their CTF", PREMULTIPLIED,
                          int(np.argmax(both)), rule="one of the two", remedy="extract the particles again")
    return [
        {"beam_tilt": (float(tilts[row, 0]), float(tilts[row, 1])), "odd": odd[row], "even": even[row],
         "magnification": matrices[row],
         "is_flipped": bool(flipped[row]), "is_premultiplied": bool(premultiplied[row])}
        for row in range(count)
    ]  # fmt: skip


def _magnifications(table: StarTable) -> list[tuple[float, ...]]:
    """Return the matrix of each row, row by row; the identity where its elements are not all given, or nearly so."""
    if not all(column in table for column in MAGNIFICATION):
        return [IDENTITY] * len(table)
    matrices = np.stack([table.floats(column) for column in MAGNIFICATION], axis=1)
    wrong = np.abs(matrices - IDENTITY) > LARGEST_DISTORTION
    if wrong.any():
        row, element = (int(place[0]) for place in np.nonzero(wrong))
        raise table.error("no anisotropic magnification", MAGNIFICATION[element], row, remedy=REMEDY,
                          rule=f"within {LARGEST_DISTORTION:g} of the identity")
    matrices[np.abs(matrices - IDENTITY).max(axis=1) <= 1e-5] = IDENTITY
    return [tuple(row) for row in matrices.tolist()]


def _flags(table: StarTable, column: str) -> NDArray[np.bool_]:
    return table.integers(column) != 0 if column in table else np.zeros(len(table), dtype=bool)


def beam_tilts(table: StarTable) -> NDArray[np.float64]:
    """Return the beam tilt (x, y) in mrad of every row, (rows, 2); 0 where there are no columns."""
    values = np.zeros((len(table), 2))
    for axis, column in enumerate(BEAM_TILT):
        if column in table:
            values[:, axis] = table.floats(column)
            wrong = np.abs(values[:, axis]) > LARGEST_TILT
            if wrong.any():
                raise table.error("out of range", column, int(np.argmax(wrong)), rule="mrad, at most 100",
                                  remedy=REMEDY)  # fmt: skip
    return values


def _vectors(table: StarTable, column: str, order: Any) -> list[tuple[float, ...]]:
    """Return the Zernike coefficients of every row, written as ``[a,b,c]``; without zeros at the end."""
    if column not in table:
        return [()] * len(table)
    found = []
    for row, text in enumerate(table.strings(column)):
        parts = text.strip().removeprefix("[").removesuffix("]").split(",")
        try:
            values = [float(part) for part in parts if part.strip()]
        except ValueError:
            values = [np.nan]
        if not all(abs(value) <= LARGEST_COEFFICIENT for value in values) or "_" in text:
            raise table.error("not a vector of numbers", column, row, remedy=REMEDY,
                              rule="Zernike coefficients as RELION writes them, [a,b,c], of at most 1e9")
        while values and values[-1] == 0:
            values.pop()
        if values and order(len(values) - 1)[0] > LARGEST_ORDER:
            raise table.error("too many Zernike coefficients", column, row, value=len(values),
                              rule=f"up to order {LARGEST_ORDER}", remedy=REMEDY)
        found.append(tuple(values))
    return found
