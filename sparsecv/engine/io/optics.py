# SPDX-License-Identifier: GPL-3.0-or-later
"""Optics groups of a particle STAR file: RELION 3.1's table, or made from the columns of a RELION 3.0 file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.optics_terms import (
    BEAM_TILT,
    EVEN,
    FLIPPED,
    IDENTITY,
    MAGNIFICATION,
    ODD,
    PREMULTIPLIED,
    beam_tilts,
    read_terms,
)
from sparsecv.engine.io.star import StarFile, StarTable
from sparsecv.engine.physics.aberrations import even_polynomial, odd_polynomial
from sparsecv.engine.physics.ctf import wavelength

USUAL_AMPLITUDE_CONTRAST = 0.1
LARGEST_RATIO = 4.0  # of pixel sizes: coarser images would have next to nothing to say
OLD_COLUMNS = (
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "rlnPixelSize",
    "rlnImagePixelSize",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    *BEAM_TILT,
)

DETECTOR_PIXEL = "rlnMicrographOriginalPixelSize"


@dataclass(frozen=True)
class OpticsGroup:
    """What the images of one group have in common.

    Attributes
    ----------
    name, number
        As the STAR file has them.
    pixel_size
        A.
    box
        Side of the images in pixels; 0 where the STAR file does not say.
    voltage_kv, cs_mm
        Acceleration voltage in kV and spherical aberration in mm.
    amplitude_contrast
        Fraction, 0 to 1.
    mtf
        File of the detector's modulation transfer function, as written, or None.
    beam_tilt
        (x, y), mrad.
    odd, even
        RELION's Zernike coefficients of the odd and even aberrations, without zeros at the end.
    magnification
        RELION's matrix of anisotropic magnification M, row by row: frequency k of an image is M k of the particle.
    is_flipped, is_premultiplied
        Whether phases of the images were flipped, or images were multiplied by their CTF.
    detector_pixel_size
        A, of the micrographs before any binning, to which the MTF refers; 0 where the STAR file does not say.
    """

    name: str
    number: int
    pixel_size: float
    box: int
    voltage_kv: float
    cs_mm: float
    amplitude_contrast: float
    mtf: str | None = None
    beam_tilt: tuple[float, float] = (0.0, 0.0)
    odd: tuple[float, ...] = ()
    even: tuple[float, ...] = ()
    magnification: tuple[float, ...] = IDENTITY
    is_flipped: bool = False
    is_premultiplied: bool = False
    detector_pixel_size: float = 0.0

    @property
    def is_distorted(self) -> bool:
        """Whether the magnification is anisotropic."""
        return self.magnification != IDENTITY

    @property
    def mtf_pixel_size(self) -> float:
        """A, of the pixels to which the MTF refers: those of the micrographs before any binning, as far as is known."""
        return self.detector_pixel_size or self.pixel_size

    @property
    def matrix(self) -> NDArray[np.float64]:
        """M, (2, 2)."""
        return np.reshape(np.array(self.magnification), (2, 2))

    def unusual(self) -> list[str]:
        """Columns by which its images differ from those of one CTF each, recorded by an ideal lens."""
        terms = {"rlnBeamTiltX, rlnBeamTiltY": any(self.beam_tilt), ODD: bool(self.odd), EVEN: bool(self.even),
                 "rlnMagMat": self.is_distorted, FLIPPED: self.is_flipped, PREMULTIPLIED: self.is_premultiplied}
        return [name for name, is_there in terms.items() if is_there]

    def is_alike(self, other: OpticsGroup) -> bool:
        """Whether both have one pixel size and box."""
        return self.box == other.box and abs(self.pixel_size / other.pixel_size - 1) <= 1e-4

    def odd_polynomial(self) -> NDArray[np.float64]:
        """Phase of the images by odd aberrations and beam tilt, (O,), empty for none: :mod:`..physics.aberrations`."""
        return odd_polynomial(self.odd, self.beam_tilt, self.cs_mm, float(wavelength(np.array(self.voltage_kv))))

    def even_polynomial(self) -> NDArray[np.float64]:
        """Phase of the CTF by even aberrations, (E,), empty for none."""
        return _even_polynomial(self.even)


_even_polynomial = lru_cache(maxsize=4096)(even_polynomial)  # asked for with every batch
Membership = tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]  # groups, and which one each particle belongs to


def read_optics(star: StarFile, particles: StarTable, notes: list[str]) -> Membership:
    """Return the optics groups and which of them each particle belongs to, (n,).

    Parameters
    ----------
    star
        The file.
    particles
        Its table of particles.
    notes
        Sentences on what is assumed or ignored are appended here.

    Raises
    ------
    InputError
        A column is missing or out of range, a particle names a group that does not exist, images are three-dimensional,
        or both phase-flipped and multiplied by their CTF.
    """
    if "optics" in star:
        groups, index = _optics_table(star.table("optics"), particles, notes)
    else:
        groups, index = _optics_of_old_file(particles, notes)
    _note_ignored(particles, notes)
    return groups, index


def common_group(
    groups: tuple[OpticsGroup, ...], index: NDArray[np.int32], particles: StarTable, notes: list[str]
) -> int:
    """Return the group whose pixel size and box all images are brought to: the first of those that most particles have.

    Raises
    ------
    InputError
        Where pixel sizes differ by more than a factor of 4.
    """
    counts = np.bincount(index, minlength=len(groups))
    alike = [[group.is_alike(other) for other in groups] for group in groups]
    chosen = int(np.argmax(np.array(alike) @ counts))
    common = groups[chosen]
    others = [number for number, group in enumerate(groups) if counts[number] and not group.is_alike(common)]
    for number in others:
        ratio = groups[number].pixel_size / common.pixel_size
        if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
            raise InputError("optics groups differ too much in pixel size", file=particles.path,
                             item=f"{common.name} and {groups[number].name}",
                             value=(common.pixel_size, groups[number].pixel_size),
                             rule=f"within a factor of {LARGEST_RATIO:g}", remedy="correct the optics table, or refine "
                             "the groups separately")  # fmt: skip
    if others:
        names = ", ".join(groups[number].name for number in others[:3]) + (" ..." if len(others) > 3 else "")
        notes.append(
            f"{particles.path}: {counts[others].sum()} particles of other optics groups ({names}) are brought to "
            f"{common.box} px of {common.pixel_size:g} A, which most have"
        )
    return chosen


def add_optics_table(
    star: StarFile, particles: StarTable, groups: tuple[OpticsGroup, ...], index: NDArray[np.int32]
) -> None:
    """Turn a RELION 3.0 file into a 3.1 one: optics table first, group numbers in the particles, old columns gone."""
    columns: dict[str, list[Any]] = {
        "rlnOpticsGroup": [group.number for group in groups],
        "rlnOpticsGroupName": [group.name for group in groups],
        "rlnAmplitudeContrast": [group.amplitude_contrast for group in groups],
        "rlnSphericalAberration": [group.cs_mm for group in groups],
        "rlnVoltage": [group.voltage_kv for group in groups],
        "rlnImagePixelSize": [group.pixel_size for group in groups],
        "rlnImageDimensionality": [2 for _ in groups],
    }
    if any(any(group.beam_tilt) for group in groups):
        columns |= {name: [group.beam_tilt[axis] for group in groups] for axis, name in enumerate(BEAM_TILT)}
    if all(group.box for group in groups):
        columns["rlnImageSize"] = [group.box for group in groups]
    particles.set("rlnOpticsGroup", np.array([group.number for group in groups])[index])
    for column in OLD_COLUMNS:
        particles.drop(column)
    star.add_loop("optics", columns)


def _optics_table(table: StarTable, particles: StarTable, notes: list[str]) -> Membership:
    if "rlnImageDimensionality" in table and (table.integers("rlnImageDimensionality") != 2).any():
        row = int(np.argmax(table.integers("rlnImageDimensionality") != 2))
        rule = "2: subtomograms are not refined"
        raise table.error("not two-dimensional images", "rlnImageDimensionality", row, rule=rule,
                          remedy="give extracted single particles")
    numbers = table.integers("rlnOpticsGroup") if "rlnOpticsGroup" in table else np.arange(1, len(table) + 1)
    if len(numbers) == 0:
        raise InputError("the optics table is empty", file=particles.path, item="data_optics",
                         rule="at least one optics group", remedy="export the particles again")
    if len(np.unique(numbers)) < len(numbers):
        row = int(np.setdiff1d(np.arange(len(numbers)), np.unique(numbers, return_index=True)[1])[0])
        raise table.error("an optics group occurs twice", "rlnOpticsGroup", row, rule="every group has its own number",
                          remedy="number the groups anew")
    fields = _common_fields(table, _pixel_sizes(table, particles), notes)
    count = len(numbers)
    named = "rlnOpticsGroupName" in table
    names = table.strings("rlnOpticsGroupName") if named else [f"opticsGroup{number}" for number in numbers]
    boxes = table.integers("rlnImageSize") if "rlnImageSize" in table else np.zeros(count, dtype=np.int64)
    mtfs = table.strings("rlnMtfFileName") if "rlnMtfFileName" in table else [""] * count
    detector = np.zeros(count)
    if DETECTOR_PIXEL in table:
        detector = _checked(table, DETECTOR_PIXEL, lambda x: (x > 0) & (x < 1000), "0 < pixel size < 1000 A")
    values = (field.tolist() for field in (*fields, detector))
    columns = zip(names, numbers.tolist(), boxes.tolist(), mtfs, read_terms(table), *values, strict=True)
    groups = tuple(
        OpticsGroup(name, number, pixel, box, voltage, cs, contrast, mtf or None, **terms, detector_pixel_size=unbinned)
        for name, number, box, mtf, terms, pixel, voltage, cs, contrast, unbinned in columns
    )
    return groups, _membership(numbers, particles)


def _membership(numbers: NDArray[np.int64], particles: StarTable) -> NDArray[np.int32]:
    if "rlnOpticsGroup" not in particles:
        if len(numbers) == 1:
            return np.zeros(len(particles), dtype=np.int32)
        raise InputError(
            "column rlnOpticsGroup is missing",
            file=particles.path,
            item=f"data_{particles.name}",
            rule="with several optics groups every particle names its own",
            remedy="add the column, or export the particles again",
        )
    asked = particles.integers("rlnOpticsGroup")
    order = np.argsort(numbers)
    place = np.minimum(np.searchsorted(numbers, asked, sorter=order), len(numbers) - 1)
    index = order[place]
    wrong = numbers[index] != asked
    if wrong.any():
        rule = f"groups are {', '.join(str(number) for number in numbers)}"
        raise particles.error("no such optics group", "rlnOpticsGroup", int(np.argmax(wrong)), rule=rule,
                              remedy="correct the row, or add the group to data_optics")
    return index.astype(np.int32)


def _optics_of_old_file(particles: StarTable, notes: list[str]) -> Membership:
    common = _common_fields(particles, _pixel_sizes(particles, particles), notes)
    fields = np.column_stack([*common, beam_tilts(particles)])
    unique, first, index = np.unique(fields, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups in the order in which the file names them
    rank = np.argsort(order)
    groups = tuple(
        OpticsGroup(f"opticsGroup{number}", number, pixel, 0, voltage, cs, contrast, beam_tilt=(tilt_x, tilt_y))
        for number, (pixel, voltage, cs, contrast, tilt_x, tilt_y) in enumerate(unique[order].tolist(), 1)
    )
    return groups, rank[index.reshape(-1)].astype(np.int32)


def _pixel_sizes(table: StarTable, particles: StarTable) -> NDArray[np.float64]:
    for column in ("rlnImagePixelSize", "rlnPixelSize"):
        if column in table:
            return _checked(table, column, lambda x: (x > 0) & (x < 1000), "0 < pixel size < 1000 A")
    if "rlnDetectorPixelSize" in table and "rlnMagnification" in table:
        magnification = _checked(table, "rlnMagnification", lambda x: x > 0, "above 0")
        detector = _checked(table, "rlnDetectorPixelSize", lambda x: x > 0, "above 0 um")
        sizes = np.round(1e4 * detector / magnification, 9)
        wrong = ~((sizes > 0) & (sizes < 1000))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise table.error(f"a pixel size of {sizes[row]:g} A from rlnDetectorPixelSize and rlnMagnification",
                              "rlnMagnification", row, rule="0 < pixel size < 1000 A", remedy="correct the STAR file")
        return sizes
    raise InputError(
        "no pixel size",
        file=particles.path,
        item=f"data_{table.name}",
        rule="a column rlnImagePixelSize (A), or in RELION 3.0 rlnDetectorPixelSize (um) and rlnMagnification",
        remedy="add the column, or the optics table, or export the particles again",
    )


def _common_fields(table: StarTable, pixel_sizes: NDArray[np.float64], notes: list[str]) -> list[NDArray[np.float64]]:
    """Return pixel size, voltage, Cs and amplitude contrast of every row, checked."""
    voltage = _checked(table, "rlnVoltage", lambda x: (x >= 10) & (x <= 3000), "10 to 3000 kV")
    cs = _checked(table, "rlnSphericalAberration", lambda x: (x >= 0) & (x < 100), "0 to 100 mm")
    if "rlnAmplitudeContrast" in table:
        contrast = _checked(table, "rlnAmplitudeContrast", lambda x: (x >= 0) & (x <= 1), "0 to 1")
    else:
        contrast = np.full(len(table), USUAL_AMPLITUDE_CONTRAST)
        notes.append(f"{table.path}: no rlnAmplitudeContrast; {USUAL_AMPLITUDE_CONTRAST} is assumed")
    return [pixel_sizes, voltage, cs, contrast]


def _checked(
    table: StarTable, column: str, test: Callable[[NDArray[np.float64]], NDArray[np.bool_]], rule: str
) -> NDArray[np.float64]:
    values = table.floats(column)
    good = test(values)
    if not good.all():
        raise table.error("out of range", column, int(np.argmin(good)), rule=rule, remedy="correct the STAR file")
    return values


def _note_ignored(particles: StarTable, notes: list[str]) -> None:
    """Name what RELION 3.1 and later read from the optics table alone, where it is in the particles; it is kept."""
    terms = (ODD, EVEN, FLIPPED, PREMULTIPLIED, *(BEAM_TILT if "optics" in particles.star else ()))
    given = [name for name in terms if name in particles]
    ignored = [name for name in given if any(_has_nonzero(text) for text in set(particles.strings(name)))]
    if all(name in particles for name in MAGNIFICATION):
        matrices = np.stack([particles.floats(name) for name in MAGNIFICATION], axis=1)
        ignored += ["rlnMagMat"] * int(np.abs(matrices - IDENTITY).max(initial=0) > 1e-5)
    if ignored:
        notes.append(f"{particles.path}: not in the optics table and therefore ignored: {', '.join(sorted(ignored))}")


def _has_nonzero(text: str) -> bool:
    mantissas = [number.lower().split("e")[0] for number in text.strip("[]").split(",")]
    return any(digit in mantissa for mantissa in mantissas for digit in "123456789")
