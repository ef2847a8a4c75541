# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a validation: curves, tables, the model with its scores, maps, pictures, one page with all of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.models import write_structure
from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.results import write_json
from sparsecv.engine.io.star import StarFile, holdable
from sparsecv.engine.model_map.curves import Crossing, Curve
from sparsecv.engine.model_map.pictures import PAGE, PICTURES, SETTINGS, WORST, draw_pictures, write_page
from sparsecv.engine.model_map.results import Validation
from sparsecv.engine.report.chimerax import FIRST_LINE, LOOK, colour_key, quoted, surface_of
from sparsecv.engine.report.model_map import SCORE_MAP

CURVES, RESIDUES, SUMMARY, FITTED, SCORED = "model_fsc.star", "residues.csv", "summary.json", "fitted.cif", "scored.cif"
PLACED, MASK, MODEL, SCRIPT = "validate_map.mrc", "validate_mask.mrc", "validate_model.mrc", "scores.cxc"
WRITTEN = (CURVES, RESIDUES, SUMMARY, FITTED, SCORED, PLACED, MASK, MODEL, SCRIPT, PAGE, SETTINGS, *PICTURES)
KEY_SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the colours


def write_validation(found: Validation, folder: Path, *, names: dict[str, str]) -> list[str]:
    """Write everything into a folder that exists, and has the settings already.

    Parameters
    ----------
    names
        What the user called the inputs: "model", "map", "versus".

    Returns
    -------
    list of str
        Names of the files.
    """
    grid = found.grid
    origin = (float(grid.origin[0]), float(grid.origin[1]), float(grid.origin[2]))
    write_map(folder / PLACED, found.density, grid.pixel_size, origin, "sparsecv: the map in the frame of the model")
    write_map(folder / MASK, found.mask, grid.pixel_size, origin, "sparsecv: mask around the model")
    write_map(folder / MODEL, found.model, grid.pixel_size, origin, "sparsecv: density of the model")
    _write_curves(found, folder / CURVES)
    atomic_text(folder / RESIDUES, _residue_table(found))
    write_json(folder / SUMMARY, summary(found, names))
    scores = found.scores.atom_q
    write_structure(folder / FITTED, found.atoms.structure, columns={"Q-score": scores})
    # what has no score of its own, such as hydrogens, is coloured like its residue
    shown = np.where(np.isfinite(scores), scores, found.scores.residues.q_score[found.atoms.residue_of])
    shown = np.where(np.isfinite(shown), shown, 0.0)
    write_structure(folder / SCORED, found.atoms.with_b_factors(shown).structure)
    atomic_text(folder / SCRIPT, _script(found))
    pictures = draw_pictures(found, folder, names)
    write_page(found, folder, pictures, names)
    return [CURVES, RESIDUES, SUMMARY, FITTED, SCORED, PLACED, MASK, MODEL, SCRIPT, *pictures, PAGE]


# ------------------------------------------------------------------------------------------------------------- tables
def _write_curves(found: Validation, path: Path) -> None:
    """Tables ``model_fsc``, one row per shell, and ``chains_fsc``, in shells of each chain's own cube."""
    star = StarFile.new()
    columns: dict[str, NDArray[Any]] = _shells(len(found.masked.values), found.grid.length)
    columns |= {"fscModelUnmasked": found.unmasked.values} | _banded("fscModelMasked", found.masked)
    columns |= {"fscModelMaskedRandomPhases": found.randomised, "fscModelMaskCorrected": found.corrected}
    if found.halves is not None:
        halves = found.halves
        columns |= {"fscHalfMaps": halves.half_fsc, "fscCeiling": halves.ceiling}
        columns |= _banded("fscModelHalf1", halves.half1) | _banded("fscModelHalf2", halves.half2)
    if found.versus is not None:
        columns |= {"fscVersusUnmasked": found.versus.unmasked.values}
        columns |= _banded("fscVersusMasked", found.versus.masked)
    star.add_loop("model_fsc", columns)
    rows: dict[str, list[Any]] = {}
    for name, chain in found.chains.items():
        part = _shells(len(chain.curve.values), chain.grid.length) | _banded("fscModelMasked", chain.curve)
        rows.setdefault("chainName", []).extend([holdable(name)] * len(chain.curve.values))
        for column, values in part.items():
            rows.setdefault(column, []).extend(values.tolist())
    if rows:
        star.add_loop("chains_fsc", rows)
    star.write(path)


def _shells(count: int, length: float) -> dict[str, NDArray[Any]]:
    shells = np.arange(count)
    angstrom = np.concatenate([[999.0], length / shells[1:]])  # RELION's value for shell 0
    return {"rlnSpectralIndex": shells, "rlnResolution": 1 / angstrom, "rlnAngstromResolution": angstrom}


def _banded(name: str, curve: Curve) -> dict[str, NDArray[np.float64]]:
    return {name: curve.values, f"{name}Low": curve.low, f"{name}High": curve.high}


def _residue_table(found: Validation) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["chain", "residue", "name", "polymer", "atoms", "q_score", "cc", "atoms_inside"])
    scores = found.scores.residues
    for number, residue in enumerate(found.atoms.residues):
        values = (scores.q_score[number], scores.correlation[number], scores.inclusion[number])
        table.writerow([residue.chain, residue.number, residue.name, int(residue.is_polymer), scores.atoms[number],
                        *("" if np.isnan(value) else f"{value:.4f}" for value in values)])  # fmt: skip
    return text.getvalue()


def summary(found: Validation, names: dict[str, str]) -> dict[str, Any]:
    """All numbers of a validation, for JSON; lengths in A, angles in degrees."""
    grid, scores, whole = found.grid, found.scores, found.scores.whole
    content: dict[str, Any] = {
        **names, "box": grid.box, "pixel_size": grid.pixel_size, "origin": grid.origin.tolist(),
        "atoms": len(found.atoms), "residues": len(found.atoms.residues), "chains": len(found.atoms.chains),
        "resolution_used": found.resolution, "resolution_source": found.resolution_source,
        "fsc_masked": _crossings(found.masked), "fsc_unmasked": _crossings(found.unmasked),
        "fsc_average": found.fsc_average, "fsc_average_nyquist": found.fsc_average_nyquist,
        "fsc_mask_corrected_05": _crossing(found.corrected_at_05), "random_phases_from": found.randomised_from,
        "cc_box": whole.box, "cc_mask": whole.mask, "cc_volume": whole.volume, "cc_peaks": whole.peaks,
        "q_score": scores.q_score, "level": scores.level, "atoms_inside": scores.inclusion,
        "backbone_inside": scores.inclusion_backbone, "d99_map": scores.map_seen_to, "d99_model": scores.model_seen_to,
        "contrast_at_atoms": found.contrast, "sharpening_before_mask": found.sharpening.b_factor,
        "sharpening_to": found.sharpening.finest, "mask_fraction": float((found.mask > 0.5).mean()),
        "pixel_size_that_fits": None if found.pixel_scale is None else found.pixel_scale * grid.pixel_size,
        "motions": {name: {"angstrom": motion.angstrom, "degrees": motion.degrees, "rotation": motion.rotation.tolist(),
                           "centre": motion.centre.tolist(), "displacement": motion.displacement.tolist()}
                    for name, motion in found.motions.items()},
        "chain_scores": {name: _chain_row(found, number) for number, name in enumerate(found.atoms.chains)},
        "worst_residues": [str(found.atoms.residues[k]) for k in scores.worst(found.atoms, WORST)],
    }  # fmt: skip
    if found.fall_off is not None:
        content["fall_off"] = {"scale": found.fall_off.scale, "b_factor": found.fall_off.b_factor,
                               "from": found.fall_off.coarsest, "to": found.fall_off.finest}  # fmt: skip
    if found.b_factors:
        content["refitted_b_factors"] = found.b_factors
    if found.halves is not None:
        over, beyond = found.halves.over_fit, np.flatnonzero(found.halves.beyond)
        content["half_maps"] = {
            "resolution_0143": found.halves.resolution.angstrom, "model_half1": _crossings(found.halves.half1),
            "model_half2": _crossings(found.halves.half2), "half1_less_half2": over.difference,
            "half1_less_half2_error": over.error, "is_over_fitted": over.is_significant,
            "beyond_ceiling": [grid.length / beyond[0], grid.length / beyond[-1]] if len(beyond) else None,
        }  # fmt: skip
    if found.versus is not None:
        content["versus_fsc_masked"] = _crossings(found.versus.masked)
        content["versus_fsc_unmasked"] = _crossings(found.versus.unmasked)
    content |= {"notes": list(found.notes), "warnings": list(found.warnings)}
    return content


def _crossings(curve: Curve) -> dict[str, Any]:
    return {"0.5": _crossing(curve.at_05), "0.143": _crossing(curve.at_0143)}


def _crossing(at: Crossing) -> dict[str, Any] | None:
    if at.resolution is None:
        return None
    return {"angstrom": at.resolution.angstrom, "is_crossing": at.resolution.crossed, "interval_95": at.interval,
            "rises_from": at.rises_from, "above_again_to": at.above_again_to}  # fmt: skip


def _chain_row(found: Validation, number: int) -> dict[str, Any]:
    scores, name = found.scores.chains, found.atoms.chains[number]
    curve = found.chains.get(name)
    return {"cc": float(scores.correlation[number]), "q_score": float(scores.q_score[number]),
            "atoms_inside": float(scores.inclusion[number]), "atoms": int(scores.atoms[number]),
            "fsc_masked": None if curve is None else _crossings(curve.curve)}  # fmt: skip


def _script(found: Validation) -> str:
    """For ChimeraX: the map as a faint surface, the model coloured by its Q-scores, the worst residues as sticks."""
    colours = matplotlib.colormaps[SCORE_MAP]
    shades = [matplotlib.colors.to_hex(colours(score)) for score in KEY_SCORES]
    palette = ":".join(f"{score:g},{shade}" for score, shade in zip(KEY_SCORES, shades, strict=True))
    lines = [
        f"# Colours the model by Q-score (its B-factor column in this file). {FIRST_LINE}",
        *surface_of(PLACED, found.scores.level, 1), f"open {quoted(SCORED)}",
        "transparency #1 60", "hide #2 atoms", "cartoon #2", "show #2 & ligand atoms",
        f"color byattribute a:bfactor #2 target acs palette {palette}", *LOOK,
        colour_key(shades, [f"{score:g}" for score in KEY_SCORES]),
    ]  # fmt: skip
    for k in found.scores.worst(found.atoms, WORST):
        residue = found.atoms.residues[k]
        if residue.chain.isalnum() and residue.number.lstrip("-").isalnum():  # nothing else is a specifier
            lines.append(f"show #2/{residue.chain}:{residue.number} atoms")
    return "\n".join([*lines, "view", ""])
