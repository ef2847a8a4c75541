# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a CTF refinement: a STAR file as RELION writes it, numbers, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from sparsecv.engine.io.optics_terms import BEAM_TILT, EVEN, MAGNIFICATION, ODD
from sparsecv.engine.io.results import write_json
from sparsecv.engine.physics.aberrations import monomials
from sparsecv.engine.physics.disc import Disc, make_disc
from sparsecv.engine.refine.ctf_refine.aberrations import EVEN_TERMS, ODD_TERMS, PhaseSums, zernike_text
from sparsecv.engine.refine.ctf_refine.run import CtfRefineResult, GroupResult
from sparsecv.engine.refine.ctf_refine.settings import CtfRefineSettings
from sparsecv.engine.report.ctf import plot_defocus_changes, plot_phases

PARTICLES, NUMBERS, RECORD = "particles_ctf_refined.star", "ctf_refine.json", "ctf_refine.toml"
DEFOCUS_PICTURE, PHASE_PICTURE = "defocus_changes.png", "aberrations_optics{}.png"
WRITTEN = (PARTICLES, NUMBERS, RECORD, DEFOCUS_PICTURE, PHASE_PICTURE.format("[0-9]*"))
SMOOTHING = 1.5  # pixels: single ones are mostly noise
MOST_PICTURES = 12  # of optics groups: there can be hundreds


def write_results(folder: Path, settings: CtfRefineSettings, found: CtfRefineResult) -> list[str]:
    """Write everything but the settings into a folder that is there; returns the names."""
    columns: dict[str, Any] = {}
    if settings.of_defocus or settings.magnification:
        columns = {"rlnDefocusU": found.defocus_u, "rlnDefocusV": found.defocus_v,
                   "rlnDefocusAngle": found.defocus_angle}  # fmt: skip
    found.table.write(folder / PARTICLES, columns=columns, optics=_optics(settings, found.groups))
    write_json(folder / NUMBERS, numbers(settings, found))
    written = [PARTICLES, NUMBERS]
    if settings.of_defocus:
        plot_defocus_changes(folder / DEFOCUS_PICTURE, found.change, found.table.micrograph_index)
        written.append(DEFOCUS_PICTURE)
    return written + _phase_pictures(folder, settings, found)


def _optics(settings: CtfRefineSettings, groups: list[GroupResult]) -> dict[str, list[Any]]:
    """Columns of the optics table that were refined."""
    columns: dict[str, list[Any]] = {}
    own = [one.group for one in groups]
    if settings.beam_tilt:
        columns |= {name: [group.beam_tilt[axis] for group in own] for axis, name in enumerate(BEAM_TILT)}
    if settings.beam_tilt or settings.trefoil:
        columns[ODD] = [zernike_text(group.odd, ODD_TERMS) for group in own]
    if settings.even_aberrations:
        columns[EVEN] = [zernike_text(group.even, EVEN_TERMS) for group in own]
    if settings.magnification:
        columns |= {name: [group.magnification[place] for group in own] for place, name in enumerate(MAGNIFICATION)}
    return columns


def numbers(settings: CtfRefineSettings, found: CtfRefineResult) -> dict[str, Any]:
    """What ``ctf_refine.json`` holds."""
    content: dict[str, Any] = {"particles": len(found.change), "resolution": found.resolution, "shells": found.shells,
                               "own_part": found.kappa}  # fmt: skip
    if settings.of_defocus:
        known = np.isfinite(found.error)
        beyond = np.mean(found.change[known] ** 2) - np.mean(found.error[known] ** 2) if known.any() else 0.0
        content["defocus"] = {
            "spread": float(np.sqrt(max(beyond, 0))),
            "rms_change": float(np.sqrt(np.mean(found.change**2))),
            "mean_change": float(found.change.mean()),
            "median_error": float(np.median(found.error[known])) if known.any() else None,
            "at_bound": int(found.is_at_bound.sum()),
            "without_signal": int((~known).sum()),
            "gain": float(found.gain.sum()),
        }
    content["optics_groups"] = [_group_numbers(settings, one) for one in found.groups]
    return content


def _group_numbers(settings: CtfRefineSettings, one: GroupResult) -> dict[str, Any]:
    group, given = one.group, one.given
    content: dict[str, Any] = {"name": group.name, "number": group.number, "particles": one.particles,
                               "refined": one.is_refined}  # fmt: skip
    if settings.beam_tilt:
        error = None if one.tilt_error is None else one.tilt_error.tolist()
        content["beam_tilt"] = {"given": list(given.beam_tilt), "refined": list(group.beam_tilt), "error": error}
    if settings.beam_tilt or settings.trefoil:
        content["odd_zernike"] = {"given": list(given.odd), "refined": list(group.odd), "gain": one.odd_gain}
    if settings.even_aberrations:
        content["even_zernike"] = {"given": list(given.even), "refined": list(group.even), "gain": one.even_gain}
    if settings.magnification:
        error = None if one.magnification_error is None else one.magnification_error.ravel().tolist()
        content["magnification"] = {
            "given": list(given.magnification), "refined": list(group.magnification), "error": error,
            "anisotropy_percent": anisotropy(group.matrix), "gain": one.magnification_gain,
        }  # fmt: skip
    return content


def anisotropy(matrix: np.ndarray) -> float:
    """By how many per cent the largest magnification of M exceeds the smallest."""
    sizes = np.linalg.svd(matrix, compute_uv=False)
    return float(100 * (sizes[0] / sizes[-1] - 1))


def summary(settings: CtfRefineSettings, found: CtfRefineResult) -> list[str]:
    """Lines to print."""
    lines, content = [], numbers(settings, found)
    if settings.of_defocus:
        told = content["defocus"]
        error = "unknown" if told["median_error"] is None else f"{told['median_error']:.0f} A"
        lines.append(f"defocus: rms change {told['rms_change']:.0f} A, of which {told['spread']:.0f} A beyond noise; "
                     f"mean {told['mean_change']:+.0f} A, median error by noise {error}; {told['at_bound']} of "
                     f"{len(found.change)} at the bound of {settings.defocus_range:g} A")  # fmt: skip
    for one in [one for one in found.groups if one.is_refined][:MOST_PICTURES]:
        group, parts = one.group, []
        if settings.beam_tilt:
            error = "" if one.tilt_error is None else f" +- {one.tilt_error[0]:.3f}, {one.tilt_error[1]:.3f}"
            parts.append(f"beam tilt {group.beam_tilt[0]:.3f}, {group.beam_tilt[1]:.3f}{error} mrad")
        if settings.trefoil:
            trefoil = [*group.odd, *[0.0] * 6]
            parts.append(f"trefoil {trefoil[5]:.1f}, {trefoil[2]:.1f} A^3")
        if settings.even_aberrations:
            parts.append(f"even aberrations {zernike_text(group.even, EVEN_TERMS)}")
        if settings.magnification:
            parts.append(f"anisotropy {anisotropy(group.matrix):.2f} %")
        if parts:
            lines.append(f"{group.name}: {'; '.join(parts)}")
    return lines


def _phase_pictures(folder: Path, settings: CtfRefineSettings, found: CtfRefineResult) -> list[str]:
    """Measured and fitted phases of the optics groups that were refined."""
    if found.phases is None:
        return []
    disc, written = make_disc(found.table.box, found.shells), []
    length = found.table.box * found.table.pixel_size
    for index in [index for index, one in enumerate(found.groups) if one.is_refined][:MOST_PICTURES]:
        one, rows = found.groups[index], {}
        if settings.beam_tilt or settings.trefoil:
            given, refined = (group.odd_polynomial() for group in (one.given, one.group))
            total = found.phases.odd[index] * np.exp(1j * _phase(disc, length, given, odd=True))
            rows["odd"] = _picture(disc, total, odd=True), _picture(disc, _turn(disc, length, refined, odd=True),
                                                                    odd=True, width=0)  # fmt: skip
        if settings.even_aberrations:
            given, refined = (group.even_polynomial() for group in (one.given, one.group))
            total = _even_vector(found.phases, index) * np.exp(1j * _phase(disc, length, given, odd=False))
            rows["even"] = _picture(disc, total, odd=False), _picture(disc, _turn(disc, length, refined, odd=False),
                                                                      odd=False, width=0)  # fmt: skip
        name = PHASE_PICTURE.format(one.group.number)
        plot_phases(folder / name, rows, (disc.last + 0.5) / length,
                    title=f"Aberrations of {one.group.name}, {one.particles} particles")
        written.append(name)
    return written


def _phase(disc: Disc, length: float, polynomial: np.ndarray, *, odd: bool) -> np.ndarray:
    """Phase of monomials at the disc's pixels, (J,) rad."""
    return np.asarray(polynomial @ monomials(disc.kx / length, disc.ky / length, len(polynomial), odd=odd))


def _turn(disc: Disc, length: float, polynomial: np.ndarray, *, odd: bool) -> np.ndarray:
    """exp(i phase) of monomials at the disc's pixels, (J,)."""
    return np.exp(1j * _phase(disc, length, polynomial, odd=odd))


def _even_vector(sums: PhaseSums, group: int) -> np.ndarray:
    """cos e + i sin e by the equations of each pixel alone, B v = y, times the weight there, (J,)."""
    (y_0, y_1), (b_ss, b_sc, b_cc) = sums.even[group], sums.even_weight[group]
    determinant = np.maximum(b_ss * b_cc - b_sc**2, 1e-12)
    cosine, minus_sine = (b_cc * y_0 - b_sc * y_1) / determinant, (b_ss * y_1 - b_sc * y_0) / determinant
    return (cosine - 1j * minus_sine) * (b_ss + b_cc)


def _picture(disc: Disc, values: np.ndarray, *, odd: bool, width: float = SMOOTHING) -> np.ndarray:
    """Phases of complex values (J,) of the disc over the whole plane, (2 last + 1,) squared, after a Gaussian blur."""
    size = 2 * disc.last + 1
    plane, known = np.zeros((size, size), dtype=complex), np.zeros((size, size), dtype=bool)
    for sign, part in ((1, values), (-1, np.conj(values) if odd else values)):
        place = disc.last + sign * disc.ky, disc.last + sign * disc.kx
        plane[place], known[place] = part, True
    smooth = plane if width == 0 else gaussian_filter(plane.real, width) + 1j * gaussian_filter(plane.imag, width)
    return np.where(known, np.angle(smooth), np.nan)
