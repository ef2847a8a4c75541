# SPDX-License-Identifier: GPL-3.0-or-later
"""Non-uniform filtering of two half maps, once, with an estimate of local resolution beside the band limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sparsecv.engine.io.mrc import Map, write_map
from sparsecv.engine.io.results import remove_results, write_json
from sparsecv.engine.refine.evidence import check_independent, evidence_of_half_maps
from sparsecv.engine.refine.final_maps import mask_of_map, sharpened_locally
from sparsecv.engine.refine.regularise import masks
from sparsecv.engine.refine.regularisers import NonUniform, make_nonuniform
from sparsecv.engine.refine.regularisers.nonuniform import RawMaps
from sparsecv.engine.refine.settings import NuFilterSettings
from sparsecv.engine.report.band_limit import plot_band_limit, plot_local_resolution, surface_level
from sparsecv.engine.report.chimerax import BandLimits, write_band_limit_script
from sparsecv.engine.validate.local_resolution import local_resolution
from sparsecv.engine.validate.postprocess import PostprocessResult, postprocess

FILTERED, SHARPENED, BAND_LIMITS, STRENGTHS = "filtered.mrc", "sharpened.mrc", "bandlimit.mrc", "strength.mrc"
LOCAL_RESOLUTION, SCRIPT = "local_resolution.mrc", "bandlimit.cxc"
PICTURES = ("bandlimit.png", "local_resolution.png")
NUMBERS = "nu_filter.json"
WRITTEN = (FILTERED, SHARPENED, BAND_LIMITS, STRENGTHS, LOCAL_RESOLUTION, SCRIPT, *PICTURES, NUMBERS, "nu_filter.toml")

Say = Callable[[str], None]


@dataclass(frozen=True)
class NuFilterResult:
    """What was made.

    Attributes
    ----------
    written
        File names.
    is_band_limit
        Whether the quartiles are band limits, A; else factors of a strength.
    quartiles
        Of what was chosen inside the mask.
    resolution_quartiles, rank_correlation
        Of the local resolution there, A, and its correlation with the band limits; None where it was left out, or
        where one of the two is constant.
    """

    written: list[str]
    is_band_limit: bool
    quartiles: list[float]
    resolution_quartiles: list[float] | None = None
    rank_correlation: float | None = None


def nu_filter(
    settings: NuFilterSettings, ops: Any, half1: Map, half2: Map, warn: Say, workers: int = 1
) -> NuFilterResult:
    """Filter the mean of two half maps by what they say about each other, and write everything.

    Raises
    ------
    InputError
        Half maps that are equal, flat or not finite, a mask or an MTF that cannot be used; nothing has then been
        written.
    """
    first, second, pixel_size = half1.data, half2.data, half1.pixel_size
    check_independent(first, second)
    support, round_mask = masks(settings.particle_diameter, settings.mask, len(first), pixel_size, warn)
    regulariser = make_nonuniform(settings)
    chosen = choose_filters(ops, regulariser, half1, half2, support, round_mask)
    inside = support > 0.5
    quartiles = np.percentile(chosen.theta[inside], (25, 50, 75)).tolist()
    content: dict[str, Any] = {"box": len(first), "pixel_size": pixel_size, **settings.nu_values}
    content["quartiles"] = quartiles
    if not regulariser.shows_band_limits:
        folder = _emptied(settings)
        write_map(folder / FILTERED, chosen.filtered, pixel_size, half1.origin, "sparsecv map, not for an FSC")
        write_map(folder / STRENGTHS, chosen.theta, pixel_size, half1.origin, "sparsecv local factor of both kappas")
        _write_numbers(folder, content)
        return NuFilterResult([FILTERED, STRENGTHS, NUMBERS], False, quartiles)
    processed = _postprocessed(settings, half1, half2, support, round_mask, workers, warn)
    sharpened = sharpened_locally(ops, (first + second) / 2, processed, chosen.theta, regulariser.bank.order,
                                  chosen.cutoffs, workers)
    estimate = None
    if not settings.no_local_resolution:
        size = settings.local_window
        estimate = local_resolution(first, second, pixel_size, mask=support, size=size, workers=workers)
    folder = _emptied(settings)
    for name, density, label in (
        (FILTERED, chosen.filtered, "sparsecv map, filtered locally: not for an FSC"),
        (SHARPENED, sharpened, "sparsecv map, sharpened and filtered locally"),
        (BAND_LIMITS, chosen.theta, "sparsecv local band limit, A"),
        (LOCAL_RESOLUTION, estimate, "sparsecv local resolution, FSC 0.5, A"),
    ):
        if density is not None:
            write_map(folder / name, density, pixel_size, half1.origin, label)
    limits, counts = np.unique(chosen.theta[inside], return_counts=True)
    share = (limits[::-1].tolist(), (counts[::-1] / counts.sum()).tolist())
    plot_band_limit(folder / PICTURES[0], sharpened, chosen.theta, {"both half maps": share}, pixel_size,
                    title="Band limits", with_surface=True)
    limits_shown = BandLimits(BAND_LIMITS, float(chosen.theta.min()), float(chosen.theta.max()))
    write_band_limit_script(folder / SCRIPT, SHARPENED, surface_level(sharpened), limits_shown)
    content |= {"band_limits": share[0], "share": share[1], "bfactor": processed.bfactor,
                "resolution_0143": processed.resolution_0143.angstrom,
                "resolution_05": processed.resolution_05.angstrom}  # fmt: skip
    written = [FILTERED, SHARPENED, BAND_LIMITS, SCRIPT, PICTURES[0], NUMBERS]
    found = NuFilterResult(written, True, quartiles)
    if estimate is not None:
        plot_local_resolution(folder / PICTURES[1], estimate, chosen.theta, inside, pixel_size)
        found = replace(found, written=[*written, LOCAL_RESOLUTION, PICTURES[1]],
                        resolution_quartiles=np.percentile(estimate[inside], (25, 50, 75)).tolist(),
                        rank_correlation=_rank_correlation(estimate[inside], chosen.theta[inside]))
        content |= {"local_resolution_quartiles": found.resolution_quartiles,
                    "rank_correlation": found.rank_correlation}
    _write_numbers(folder, content)
    return found


@dataclass(frozen=True)
class Chosen:
    """theta at each voxel (A, or a factor of the strength), the mean of the halves by it, the cut-offs in shells."""

    theta: np.ndarray
    filtered: np.ndarray
    cutoffs: np.ndarray


def choose_filters(
    ops: Any, regulariser: NonUniform, half1: Map, half2: Map, support: np.ndarray, round_mask: np.ndarray
) -> Chosen:
    """Choose on the device."""
    first, second, pixel_size = half1.data, half2.data, half1.pixel_size
    if regulariser.shows_band_limits:
        up, length = ops.xp.asarray, len(first) * pixel_size
        maps = RawMaps.of_maps(
            ops, up(first.astype(np.float32)), up(second.astype(np.float32)), up(support > 0.5), length,
            (len(first) - 1) // 2, whitened=regulariser.is_whitened,
        )  # fmt: skip
        found = regulariser.chosen_family.apply(ops, maps, None, regulariser.rule, keep_predictions=False)
        table = length / found.values
    else:
        evidence = evidence_of_half_maps(ops, first, second, pixel_size, support, round_mask)
        found = regulariser.filtered(ops, evidence)[1]
        table = found.values
    chosen = ops.to_host(found.selection.chosen)
    return Chosen(table.astype(np.float32)[chosen], ops.to_host(found.selection.whole), found.values)


def _postprocessed(
    settings: NuFilterSettings, half1: Map, half2: Map, support: np.ndarray, round_mask: np.ndarray, workers: int,
    warn: Say,
) -> PostprocessResult:  # fmt: skip
    """Post-processing inside the mask given, else inside one made of the map, else inside the sphere."""
    mask = support
    if settings.mask is None:
        mask = mask_of_map((half1.data + half2.data) / 2, half1.pixel_size, round_mask, workers, warn)
    found = postprocess(half1.data, half2.data, half1.pixel_size, mask=mask, mtf=settings.mtf,
                        mtf_pixel_size=settings.mtf_pixel_size, bfactor=settings.bfactor, seed=settings.seed,
                        workers=workers)  # fmt: skip
    for text in found.warnings:
        warn(text)
    return found


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's; None where one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def _emptied(settings: NuFilterSettings) -> Path:
    """The output folder without what an earlier run has left."""
    settings.output.mkdir(parents=True, exist_ok=True)
    remove_results(settings.output, (settings.half1, settings.half2, settings.mask), WRITTEN)
    return settings.output


def _write_numbers(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / NUMBERS, content)
