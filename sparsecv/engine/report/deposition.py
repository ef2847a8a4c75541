# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder ``emdb/``: what EMDB takes at deposition (OneDep), ready to be uploaded, with the fields it asks for.

Mandatory there are the primary map, two raw half maps and a picture of 500 x 500 pixels; the FSC as XML and the mask
are welcome. Names of items and allowed values are those of the PDBx/mmCIF dictionary, which EMDB's header is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import gemmi
import matplotlib.image
import numpy as np

from sparsecv import __version__
from sparsecv.engine.errors import printable
from sparsecv.engine.io.atomic import atomic_copy, atomic_link, atomic_text, atomic_write
from sparsecv.engine.io.mrc import unlike_written, write_map
from sparsecv.engine.report.band_limit import surface_level
from sparsecv.engine.report.surface import surface_picture, widest_axis
from sparsecv.engine.validate.postprocess import PostprocessResult

FOLDER = "emdb"
MAP, HALF_MAP, MASK = "emd_map.mrc", "emd_half_map_{}.mrc", "emd_mask.mrc"
FSC, IMAGE, SUMMARY, ITEMS = "emd_fsc.xml", "emd_image.png", "emd_summary.txt", "emd_summary.cif"
NAMES = (MAP, HALF_MAP.format(1), HALF_MAP.format(2), MASK, FSC, IMAGE, SUMMARY, ITEMS)
WRITTEN = tuple(f"{FOLDER}/{name}" for name in NAMES)
"""Patterns of what is written, for :func:`.remove_results`; anything else in a folder of that name is the user's."""

ENTRY = "sparsecv"  # in the place of an identifier, which EMDB gives
IMAGE_SIZE = 500  # pixels, as EMDB asks for
WIDTH = 120  # of the lines for people
TO_FILL_IN = "[to be filled in]"
POSTPROCESSING = (
    "Chen et al. 2013, Ultramicroscopy 135, 24-35, doi:10.1016/j.ultramic.2013.06.004 (FSC corrected for the mask)",
    "Rosenthal & Henderson 2003, J. Mol. Biol. 333, 721-745, doi:10.1016/j.jmb.2003.07.013 (0.143, sharpening)",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Reconstruction:
    """How the half maps were made, as far as it is known; what is None or empty is left for the depositor to fill in.

    Attributes
    ----------
    software
        Name and version.
    particles
        Number of particles in each half set.
    set_aside
        Number of particles that are in no map.
    symmetry
        Point group, RELION's name.
    angles
        How orientations were assigned.
    initial_angles
        Whether the same program found them from nothing.
    start
        What the refinement started from.
    regularised, unregularised
        What was regularised, how and with which parameters; and that the half maps are not.
    half_maps
        How the halves were kept apart.
    references
        To be cited.
    """

    software: tuple[str, str] | None = None
    particles: tuple[int, int] | None = None
    set_aside: int = 0
    symmetry: str | None = None
    angles: str = ""
    initial_angles: bool = False
    start: str = ""
    regularised: str = ""
    unregularised: str = ""
    half_maps: str = ""
    references: Sequence[str] = ()

    @property
    def point_symmetry(self) -> str | None:
        """The point group without the name of its frame, as EMDB has it: D7Y is D7, I2 is I."""
        if self.symmetry is None:
            return None
        return self.symmetry[0] if self.symmetry[0] in "TOI" else self.symmetry.rstrip("XY")


@dataclass(frozen=True)
class Sources:
    """The files that are deposited.

    Attributes
    ----------
    map, fsc
        The post-processed map and the curve, of the program's own.
    half_maps
        Raw half maps.
    are_own
        Whether the half maps were written by the program; a user's are never linked, as other programs write into files
        in place.
    mask
        The mask where the program has written it; None: it is written.
    """

    map: Path
    fsc: Path
    half_maps: tuple[Path, Path]
    are_own: bool
    mask: Path | None = None


@dataclass(frozen=True)
class _Maps:
    """What the maps are like: recommended contour levels, box in voxels, A per voxel, and what had to be rewritten."""

    level: float
    half_level: float
    box: int
    pixel_size: float
    changed: list[str]


def write_deposition(
    folder: Path, result: PostprocessResult, sources: Sources, half_maps: tuple[np.ndarray, np.ndarray],
    made: Reconstruction, warn: Say = lambda text: None,
) -> Path | None:  # fmt: skip
    """Fill ``emdb/`` in a folder of results; returns it, or None where something else has that name.

    Maps are linked where the file system allows it and the program wrote them, else copied. All come out with the same
    box and pixel size, origin 0 and mode 2, so that they superpose; where a half map of another program has to be
    rewritten for it, the summary says so.

    Parameters
    ----------
    half_maps
        What is in the files of ``sources``, (box, box, box).
    warn
        Told when nothing can be prepared.
    """
    target = folder / FOLDER
    if target.exists() and not target.is_dir():
        warn(f"{target} is no folder: nothing is prepared for a deposition")
        return None
    target.mkdir(exist_ok=True)
    atomic_link(sources.map, target / MAP)
    atomic_link(sources.fsc, target / FSC)
    changed: list[str] = []
    for number, (path, values) in enumerate(zip(sources.half_maps, half_maps, strict=True), start=1):
        half_map = target / HALF_MAP.format(number)
        if sources.are_own:
            atomic_link(path, half_map)
        else:
            changed += _copy_map(path, values, half_map, result.pixel_size)
    if sources.mask is None:
        write_map(target / MASK, result.mask, result.pixel_size, label="sparsecv mask of the FSC")
    else:
        atomic_link(sources.mask, target / MASK)
    maps = _Maps(surface_level(result.map), surface_level(half_maps[0]), len(result.map), result.pixel_size, changed)
    _draw(target / IMAGE, result.map, maps.level)
    atomic_text(target / SUMMARY, _summary(result, made, maps))
    atomic_text(target / ITEMS, _items(result, made, maps))
    return target


def _copy_map(source: Path, values: np.ndarray, target: Path, pixel_size: float) -> list[str]:
    """Copy a map of any program; rewrite one that would not superpose on the others, and say what was different."""
    found = unlike_written(source, pixel_size)
    if not found:
        atomic_copy(source, target)
        return []
    write_map(target, values, pixel_size, label="half map, values as they were")
    return [f"{target.name}: written anew, as {source} has {', '.join(found)}; its values are the same"]


def _draw(path: Path, density: np.ndarray, level: float) -> None:
    picture = surface_picture(density, level, widest_axis(density, level), IMAGE_SIZE)
    with atomic_write(path) as temporary:
        matplotlib.image.imsave(temporary, picture[::-1], format="png", metadata={"Software": "sparsecv"})


# -------------------------------------------------------------------------------------------------------------- words
def _method(result: PostprocessResult) -> str:
    """How the resolution was determined, in EMDB's words."""
    found = result.resolution_0143
    return "FSC 0.143 CUT-OFF" if found.crossed and not found.is_shared else "OTHER"


def _resolution_details(result: PostprocessResult) -> str:
    found = result.resolution_0143
    text = "FSC of the half maps, unmasked"
    if result.fsc is not result.curves.unmasked:
        text = "FSC of the half maps inside the mask"
        if result.randomised_from is not None:
            text += f", corrected for it by phases randomised from {result.randomised_from:.2f} A on"
    if found.is_shared:
        text += "; it falls through 0.143 where what the halves share could have carried it: no more is claimed"
    elif not found.crossed:
        text += "; it does not fall below 0.143 before Nyquist, which is the resolution given"
    return text


def _of_half_maps(made: Reconstruction) -> str:
    """What may be said of the half maps: those that a user gives can be anything."""
    if made.software is None:
        return "half map as it was given; EMDB takes only those that are not sharpened, filtered or masked"
    return "half map, not sharpened, filtered, regularised or masked"


def _sharpening(result: PostprocessResult) -> dict[str, str]:
    """What was done to the primary map."""
    steps = result.steps
    return {
        "B-factor applied": "none" if result.bfactor is None else f"{result.bfactor:.1f} A^2",
        "FSC weighting": "sqrt(2 FSC / (1 + FSC))" if steps.fsc_weighting else "none",
        "MTF": "divided out" if steps.mtf is not None else "not corrected",
        "low-pass filter": f"{result.filter_resolution:.2f} A",
    }


def _summary(result: PostprocessResult, made: Reconstruction, maps: _Maps) -> str:
    """The fields of the forms, for people."""
    halves = made.particles
    count = TO_FILL_IN if halves is None else f"{sum(halves)} ({halves[0]} and {halves[1]} in the half sets)"
    if made.set_aside:
        count += f"; {made.set_aside} set aside, in no map"
    made_by = TO_FILL_IN if made.software is None else " ".join(made.software)
    side = maps.box * maps.pixel_size
    sections: dict[str, Mapping[str, str]] = {
        "Entry": {
            "title": TO_FILL_IN, "authors, sample, microscope": TO_FILL_IN,
            "method": "EM, single particle", "aggregation state": "particle",
        },
        "Files": {
            MAP: "primary map: average of the half maps, sharpened and filtered; not masked",
            HALF_MAP.format(1): _of_half_maps(made), HALF_MAP.format(2): "the other one",
            MASK: "mask of the FSC; not applied to any map here",
            FSC: "the FSC curve of the resolution, EMDB's XML",
            IMAGE: f"picture of the map, {IMAGE_SIZE} x {IMAGE_SIZE} pixels",
            ITEMS: "these fields as mmCIF items",
        },
        "Map": {
            "box": f"{maps.box} x {maps.box} x {maps.box} voxels, {side:.2f} A a side",
            "pixel size": f"{maps.pixel_size:.5g} A", "origin": "0, 0, 0; mode 2 (32-bit real)",
            "recommended contour level": f"{maps.level:.4g} (half maps {maps.half_level:.4g})",
        },
        "Resolution": {
            "resolution": f"{result.resolution_0143.angstrom:.2f} A", "method": _method(result),
            "details": _resolution_details(result),
            "at FSC 0.5": str(result.resolution_05),
        },
        "Processing": {
            "software of the reconstruction": made_by,
            "software of the final angles": made_by,
            "software of the post-processing": f"sparsecv {__version__}",
            "particles": count,
            "point symmetry": made.point_symmetry or TO_FILL_IN,
            "starting model": made.start or TO_FILL_IN,
            "final angle assignment": made.angles or TO_FILL_IN,
            "half maps": made.half_maps or TO_FILL_IN,
            "regularised": made.regularised or TO_FILL_IN,
            "not regularised": made.unregularised or TO_FILL_IN,
            **_sharpening(result),
        },
        "To be cited": {str(number): text for number, text in enumerate((*made.references, *POSTPROCESSING), start=1)},
    }
    notes = [*maps.changed, *result.warnings]
    if notes:
        sections["To be noted"] = {str(number): text for number, text in enumerate(notes, start=1)}
    lines = [f"For a deposition in EMDB, by sparsecv {__version__}. {TO_FILL_IN} is what the program cannot know."]
    for title, entries in sections.items():
        width = max(len(name) for name in entries) + 2
        lines += ["", title]
        for name, text in entries.items():
            lines += wrap(printable(text), WIDTH, break_long_words=False, break_on_hyphens=False,
                          initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2))  # fmt: skip
    return "\n".join([*lines, ""])


# --------------------------------------------------------------------------------------------------------- mmCIF items
Items = Mapping[str, object]


def _items(result: PostprocessResult, made: Reconstruction, maps: _Maps) -> str:
    """The same as mmCIF; ``?`` is what the program does not know."""
    document = gemmi.cif.Document()
    block = document.add_new_block(ENTRY)
    _add(block, "entry", {"id": ENTRY})
    _add(block, "em_admin", {"entry_id": ENTRY, "title": None})
    _add(block, "em_experiment", {"entry_id": ENTRY, "id": 1, "entity_assembly_id": 1,
                                  "aggregation_state": "PARTICLE", "reconstruction_method": "SINGLE PARTICLE"})
    _add(block, "em_single_particle_entity", {"entry_id": ENTRY, "id": 1, "image_processing_id": 1,
                                              "point_symmetry": made.point_symmetry})
    told = {"half maps": made.half_maps, "regularised": made.regularised, "not regularised": made.unregularised}
    details = ". ".join(f"{name}: {text}" for name, text in told.items() if text)
    _add(block, "em_image_processing", {"id": 1, "image_recording_id": 1, "details": details or None})
    count = None if made.particles is None else sum(made.particles)
    _add(block, "em_particle_selection", {
        "id": 1, "image_processing_id": 1,
        "num_particles_selected": None if count is None else count + made.set_aside, "details": None,
    })
    if made.software is not None:
        _add(block, "em_ctf_correction", {"id": 1, "em_image_processing_id": 1, "details": "during reconstruction",
                                          "type": "PHASE FLIPPING AND AMPLITUDE CORRECTION"})
        orders = (["INITIAL"] if made.initial_angles else []) + ["FINAL"]
        _add_loop(block, "em_euler_angle_assignment", [
            {"id": number, "image_processing_id": 1, "order": order, "type": "MAXIMUM LIKELIHOOD",
             "details": made.angles or None} for number, order in enumerate(orders, start=1)
        ])
    sharpening = ", ".join(f"{name}: {text}" for name, text in _sharpening(result).items())
    _add(block, "em_3d_reconstruction", {
        "entry_id": ENTRY, "id": 1, "image_processing_id": 1, "num_particles": count, "num_class_averages": 1,
        "symmetry_type": "POINT", "nominal_pixel_size": f"{maps.pixel_size:.6g}",
        "algorithm": None if made.software is None else "FOURIER SPACE",
        "refinement_type": None if made.software is None else "HALF-MAPS REFINED INDEPENDENTLY",
        "resolution": f"{result.resolution_0143.angstrom:.2f}", "resolution_method": _method(result),
        "details": f"{_resolution_details(result)}. Primary map: {sharpening}; not masked",
    })
    _add_loop(block, "em_software", _software(made))
    _add_loop(block, "em_map", _maps(maps, made))
    _add(block, "em_fsc_curve", {"id": 1, "file": FSC, "details": _resolution_details(result)})
    text: str = document.as_string()
    return f"# For a deposition in EMDB, written by sparsecv {__version__}; ? is what the program cannot know.\n{text}"


def _software(made: Reconstruction) -> list[Items]:
    """One row per purpose; CTFs are corrected where they are used, but were estimated by another program."""
    own = "sparsecv", __version__
    categories = [*(["INITIAL EULER ASSIGNMENT"] if made.initial_angles else []), "FINAL EULER ASSIGNMENT",
                  "RECONSTRUCTION"]
    rows: list[tuple[str, tuple[str | None, str | None], str | None]] = [
        *((category, made.software or (None, None), None) for category in categories),
        ("MASKING", own, "mask of the FSC"),
        ("OTHER", own, "FSC, sharpening and filtering of the primary map"),
    ]
    return [{"id": number, "category": category, "name": name, "version": version, "details": details,
             "image_processing_id": 1, "fitting_id": None, "imaging_id": None}
            for number, (category, (name, version), details) in enumerate(rows, start=1)]


def _maps(maps: _Maps, made: Reconstruction) -> list[Items]:
    """One row per file of density."""
    kinds = [
        (MAP, "primary map", 1, maps.level, "average of the half maps, sharpened and filtered, not masked"),
        (HALF_MAP.format(1), "half map", 1, maps.half_level, _of_half_maps(made)),
        (HALF_MAP.format(2), "half map", 2, maps.half_level, _of_half_maps(made)),
        (MASK, "mask", 1, 0.5, "of the FSC"),
    ]
    rows: list[Items] = []
    for number, (file, kind, partition, level, details) in enumerate(kinds, start=1):
        values: dict[str, object] = {
            "entry_id": ENTRY, "id": number, "type": kind, "partition": partition, "file": file, "format": "CCP4",
            "data_type": "Image stored as floating point number (4 bytes)", "contour_level": f"{level:.5g}",
            "contour_level_source": "SOFTWARE", "annotation_details": details,
        }
        values |= {f"pixel_spacing_{axis}": f"{maps.pixel_size:.6g}" for axis in "xyz"}
        for name, value in (("dimensions", maps.box), ("origin", 0)):
            values |= {f"{name}_{axis}": value for axis in ("col", "row", "sec")}
        rows.append(values)
    return rows


def _quoted(value: object) -> str:
    """A value as mmCIF has it; ``?`` for None."""
    if value is None:
        return "?"
    text: str = gemmi.cif.quote(printable(str(value)))
    return text


def _add(block: gemmi.cif.Block, category: str, items: Items) -> None:
    for name, value in items.items():
        block.set_pair(f"_{category}.{name}", _quoted(value))


def _add_loop(block: gemmi.cif.Block, category: str, rows: Sequence[Items]) -> None:
    loop = block.init_loop(f"_{category}.", list(rows[0]))
    for row in rows:
        loop.add_row([_quoted(value) for value in row.values()])
