# SPDX-License-Identifier: GPL-3.0-or-later
"""Non-uniform filtering of two half maps, once, with an estimate of local resolution beside the band limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.mrc import Map, write_map
from sparsecv.engine.refine.evidence import evidence_of_half_maps
from sparsecv.engine.refine.outputs import plain_numbers, remove_results
from sparsecv.engine.refine.regularise import masks
from sparsecv.engine.refine.regularisers import NonUniform, make_nonuniform
from sparsecv.engine.refine.regularisers.nonuniform import RawMaps, filter_locally
from sparsecv.engine.refine.settings import NuFilterSettings
from sparsecv.engine.report.band_limit import (
    plot_band_limit,
    plot_local_resolution,
    surface_level,
    write_chimerax_script,
)
from sparsecv.engine.validate.local_resolution import local_resolution
from sparsecv.engine.validate.postprocess import PostprocessResult, check_halves, postprocess
from sparsecv.engine.validate.sharpen import Sharpening, sharpen

FILTERED, SHARPENED, BAND_LIMITS, STRENGTHS = "filtered.mrc", "sharpened.mrc", "bandlimit.mrc", "strength.mrc"
LOCAL_RESOLUTION, SCRIPT = "local_resolution.mrc", "bandlimit.cxc"
PICTURES = ("bandlimit.png", "local_resolution.png")
NUMBERS = "nu_filter.json"
WRITTEN = (FILTERED, SHARPENED, BAND_LIMITS, STRENGTHS, LOCAL_RESOLUTION, SCRIPT, *PICTURES, NUMBERS)

Say = Callable[[str], None]


@dataclass(frozen=True)
class NuFilterResult:
    """What was made: file names, and quartiles inside the mask (A, or factors of the strength)."""

    written: list[str]
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
        Half maps that are equal, flat or not finite, or a mask that does not fit; nothing has then been written.
    """
    first, second, pixel_size = half1.data, half2.data, half1.pixel_size
    check_halves(first, second)
    if np.array_equal(first, second):
        raise InputError("the two half maps are identical", rule="independent half maps",
                         remedy="give the maps of both halves")
    support, round_mask = masks(settings.particle_diameter, settings.mask, len(first), pixel_size, warn)
    regulariser = make_nonuniform(settings)
    values, filtered = _filtered(ops, regulariser, half1, half2, support, round_mask)
    folder, inside = settings.output, support > 0.5
    folder.mkdir(parents=True, exist_ok=True)
    remove_results(folder, (settings.half1, settings.half2, settings.mask), WRITTEN)
    write_map(folder / FILTERED, filtered, pixel_size, label="sparsecv map, filtered locally: not for an FSC")
    content: dict[str, Any] = {"box": len(first), "pixel_size": pixel_size, **settings.nu_values,
                               "quartiles": np.percentile(values[inside], (25, 50, 75)).tolist()}
    if not regulariser.shows_band_limits:
        write_map(folder / STRENGTHS, values, pixel_size, label="sparsecv local factor of both kappas")
        _write_numbers(folder, content)
        return NuFilterResult([FILTERED, STRENGTHS, NUMBERS], content["quartiles"])
    write_map(folder / BAND_LIMITS, values, pixel_size, label="sparsecv local band limit, A")
    sharpened, processed = _sharpened(settings, ops, half1, half2, values, regulariser, workers, warn)
    write_map(folder / SHARPENED, sharpened, pixel_size, label="sparsecv map, sharpened and filtered locally")
    limits, counts = np.unique(values[inside], return_counts=True)
    order = np.argsort(-limits)
    share = (limits[order].tolist(), (counts[order] / counts.sum()).tolist())
    plot_band_limit(folder / PICTURES[0], sharpened, values, {"both half maps": share}, pixel_size,
                    title="Band limits", with_surface=True)
    write_chimerax_script(folder / SCRIPT, SHARPENED, BAND_LIMITS, surface_level(sharpened), float(values.min()),
                          float(values.max()))
    content |= {"band_limits": share[0], "share": share[1], "bfactor": processed.bfactor,
                "resolution_0143": processed.resolution_0143.angstrom,
                "resolution_05": processed.resolution_05.angstrom}  # fmt: skip
    written = [FILTERED, SHARPENED, BAND_LIMITS, SCRIPT, PICTURES[0], NUMBERS]
    found = NuFilterResult(written, content["quartiles"])
    if not settings.no_local_resolution:
        estimate = local_resolution(first, second, pixel_size, mask=support, size=settings.local_window,
                                    workers=workers)
        write_map(folder / LOCAL_RESOLUTION, estimate, pixel_size, label="sparsecv local resolution, FSC 0.5, A")
        plot_local_resolution(folder / PICTURES[1], estimate, values, inside, pixel_size)
        correlation = float(spearmanr(estimate[inside], values[inside]).statistic)
        quartiles = np.percentile(estimate[inside], (25, 50, 75)).tolist()
        content |= {"local_resolution_quartiles": quartiles, "rank_correlation": correlation}
        found = NuFilterResult([*written, LOCAL_RESOLUTION, PICTURES[1]], content["quartiles"], quartiles, correlation)
    _write_numbers(folder, content)
    return found


def _filtered(
    ops: Any, regulariser: NonUniform, half1: Map, half2: Map, support: np.ndarray, round_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """theta at each voxel (A, or a factor of the strength), and the mean of the halves filtered by it; on the host."""
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
    return table.astype(np.float32)[chosen], ops.to_host(found.selection.whole)


def _sharpened(
    settings: NuFilterSettings, ops: Any, half1: Map, half2: Map, values: np.ndarray, regulariser: NonUniform,
    workers: int, warn: Say,
) -> tuple[np.ndarray, PostprocessResult]:  # fmt: skip
    """The average of the halves, sharpened as in post-processing, through the filters that were chosen."""
    pixel_size = half1.pixel_size
    processed = postprocess(half1.data, half2.data, pixel_size, mtf=settings.mtf,
                            mtf_pixel_size=settings.mtf_pixel_size, bfactor=settings.bfactor, seed=settings.seed,
                            workers=workers)  # fmt: skip
    for text in processed.warnings:
        warn(text)
    steps = Sharpening(processed.steps.mtf, settings.mtf_pixel_size, processed.bfactor or 0.0)
    average = (half1.data + half2.data) / 2
    sharpened = sharpen(average, processed.fsc, pixel_size, steps, workers=workers)[0]
    return filter_locally(ops, sharpened, values, pixel_size, regulariser.bank), processed


def _write_numbers(folder: Path, content: dict[str, Any]) -> None:
    atomic_text(folder / NUMBERS, json.dumps(plain_numbers(content), indent=1, allow_nan=False) + "\n")
