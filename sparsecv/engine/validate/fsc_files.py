# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a post-processing result, with RELION's names and layout: maps, ``postprocess.star``, EMDB's FSC XML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.star import StarFile, holdable
from sparsecv.engine.validate.postprocess import PostprocessResult

SPHERE_FRACTION = 0.476  # of the box: RELION's reference volume for the fraction that the mask fills


def write_postprocess(
    result: PostprocessResult,
    folder: str | Path,
    prefix: str = "postprocess",
    *,
    half_names: tuple[str, str] = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"),
    mask_name: str | None = None,
) -> dict[str, Path]:
    """Write maps, curves and numbers of a result.

    Parameters
    ----------
    folder
        Exists.
    half_names, mask_name
        File names put into the STAR file. Without ``mask_name`` the mask is written too, as ``<prefix>_mask.mrc``.

    Returns
    -------
    dict
        Path of each file written: ``map``, ``masked``, ``star``, ``xml``, and ``mask`` if it was written.
    """
    folder = Path(folder)
    files = {
        "map": folder / f"{prefix}.mrc",
        "masked": folder / f"{prefix}_masked.mrc",
        "star": folder / f"{prefix}.star",
        "xml": folder / f"{prefix}_fsc.xml",
    }
    if mask_name is None:
        files["mask"] = folder / f"{prefix}_mask.mrc"
        write_map(files["mask"], result.mask, result.pixel_size)
    write_map(files["map"], result.map, result.pixel_size)
    write_map(files["masked"], result.masked_map, result.pixel_size)
    star = StarFile.new()
    star.add_pairs("general", _general(result, half_names, mask_name or str(files["mask"])))
    star.add_loop("fsc", _fsc_table(result))
    star.add_loop("guinier", _guinier_table(result))
    star.write(files["star"])
    box = result.map.shape[0]
    write_fsc_xml(files["xml"], result.fsc, result.pixel_size, box=box, title="Mask-corrected FSC of half maps")
    return files


def _general(result: PostprocessResult, half_names: tuple[str, str], mask_name: str) -> dict[str, object]:
    values: dict[str, object] = {
        "rlnFinalResolution": result.final_resolution,
        "rlnBfactorUsedForSharpening": result.bfactor or 0.0,
        "rlnUnfilteredMapHalf1": holdable(half_names[0]),
        "rlnUnfilteredMapHalf2": holdable(half_names[1]),
        "rlnParticleBoxFractionSolventMask": SPHERE_FRACTION / max(result.mask_fraction, 1e-6),
        "rlnMaskName": holdable(mask_name),
    }
    if result.randomised_from is not None:
        values["rlnRandomiseFrom"] = result.randomised_from
    fit = result.guinier.fit
    if fit is not None:
        values["rlnFittedSlopeGuinierPlot"] = fit.slope
        values["rlnFittedInterceptGuinierPlot"] = fit.intercept
        values["rlnCorrelationFitGuinierPlot"] = fit.correlation**2  # what RELION writes under this name
    return values


def _fsc_table(result: PostprocessResult) -> Mapping[str, np.ndarray]:
    shells = np.arange(len(result.fsc))
    angstrom = _shell_resolution(len(shells), result.map.shape[0], result.pixel_size)
    fraction = SPHERE_FRACTION / max(result.mask_fraction, 1e-6)
    unmasked = result.curves.unmasked
    return {
        "rlnSpectralIndex": shells,
        "rlnResolution": 1 / angstrom,
        "rlnAngstromResolution": angstrom,
        "rlnFourierShellCorrelationCorrected": result.fsc,
        "rlnFourierShellCorrelationParticleMaskFraction": fraction * unmasked / (1 + (fraction - 1) * unmasked),
        "rlnFourierShellCorrelationUnmaskedMaps": unmasked,
        "rlnFourierShellCorrelationMaskedMaps": result.curves.masked,
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": result.curves.randomised,
    }


def _guinier_table(result: PostprocessResult) -> Mapping[str, np.ndarray]:
    guinier = result.guinier
    table = {"rlnResolutionSquared": guinier.k2, "rlnLogAmplitudesOriginal": guinier.original}
    if guinier.inverse_mtf is not None:
        table["rlnLogAmplitudesMTFCorrected"] = guinier.inverse_mtf
    table["rlnLogAmplitudesWeighted"] = guinier.weighted
    table["rlnLogAmplitudesSharpened"] = guinier.sharpened
    if guinier.fit is not None:
        table["rlnLogAmplitudesIntercept"] = np.full_like(guinier.k2, guinier.fit.intercept)
    return table


def _shell_resolution(count: int, box: int, pixel_size: float) -> np.ndarray:
    """Resolution of each shell, A; 999 for shell 0, as RELION writes it."""
    return np.concatenate([[999.0], box * pixel_size / np.arange(1, count)])


def write_fsc_xml(path: str | Path, fsc: np.ndarray, pixel_size: float, *, box: int | None = None, title: str) -> None:
    """Write an FSC curve as the XML that EMDB takes at deposition.

    Parameters
    ----------
    fsc
        Per shell, from shell 0, which is left out: it has no frequency.
    pixel_size, box
        A and pixels; None: an even box, twice the last shell.

    Notes
    -----
    EMDB's schema: ``<fsc title xaxis yaxis>`` of ``<coordinate><x>1/A</x><y>correlation</y></coordinate>``, y within
    -1 and 1.
    """
    box = box or 2 * (len(fsc) - 1)
    head = f'<fsc title={quoteattr(title)} xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">'
    rows = [
        f"  <coordinate>\n    <x>{shell / (box * pixel_size):.6f}</x>\n    <y>{value:.6f}</y>\n  </coordinate>"
        for shell, value in enumerate(np.clip(fsc, -1, 1))
        if shell > 0
    ]
    atomic_text(path, "\n".join([head, *rows, "</fsc>", ""]))
