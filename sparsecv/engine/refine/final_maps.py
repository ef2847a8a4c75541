# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of two final half maps to be looked at: the mask of the post-processing, a map sharpened locally."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.masks import check_mask, solvent_mask
from sparsecv.engine.refine.regularisers.nonuniform import filter_locally
from sparsecv.engine.validate.postprocess import PostprocessResult
from sparsecv.engine.validate.sharpen import sharpen


def mask_of_map(
    average: np.ndarray, pixel_size: float, round_mask: np.ndarray, workers: int, warn: Callable[[str], None]
) -> np.ndarray:
    """A mask made from a map; the particle's sphere where the map shows no particle."""
    try:
        mask = solvent_mask(average, pixel_size, workers=workers)
    except InputError as problem:
        warn(f"no mask can be made from the map, a sphere is used instead: {problem}")
        return round_mask
    for text in check_mask(mask, mask.shape, pixel_size, file="the mask made of the map"):
        warn(text)
    return mask


def sharpened_locally(
    ops: Any, average: np.ndarray, processed: PostprocessResult, band_limit: np.ndarray, order: int,
    cutoffs: np.ndarray, workers: int,
) -> np.ndarray:  # fmt: skip
    """The average of the halves, sharpened as in its post-processing, but filtered locally; float32 on the host.

    Parameters
    ----------
    band_limit, order, cutoffs
        As in :func:`.filter_locally`.
    """
    steps = replace(processed.steps, bfactor=processed.bfactor or 0.0, low_pass=None)
    sharpened = sharpen(average, processed.fsc, processed.pixel_size, steps, workers=workers)[0]
    return filter_locally(ops, sharpened, band_limit, processed.pixel_size, order, cutoffs)
