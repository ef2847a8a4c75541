# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be asked of a validation, and all that it finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.model_map.atoms import ModelAtoms, Motion
from sparsecv.engine.model_map.curves import ChainCurve, Crossing, Curve, OverFit, Sharpening
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.model_map.scale import FallOff
from sparsecv.engine.model_map.scores import Scores
from sparsecv.engine.validate.fsc import Resolution


@dataclass(frozen=True)
class Options:
    """How to validate; what a command's settings and the library's arguments have in common. Lengths in A.

    Attributes are those of ``settings.ValidateSettings``; ``origin`` is the position (x, y, z) of the first voxel.
    """

    fit: str = "none"
    frame: str = "header"
    origin: tuple[float, float, float] | None = None
    resolution: float | None = None
    level: float | None = None
    bfactors: str = "model"
    mask_radius: float | None = None
    mask_edge: float | None = None
    sharpening: float | None = None
    q_sigma: float = 0.4
    chains: bool = True
    seed: int = 1


@dataclass(frozen=True)
class HalfMaps:
    """What half maps add: their own FSC inside the mask, the ceiling, the model against each, over-fitting.

    Attributes
    ----------
    half_fsc, ceiling
        Corrected for the mask; sqrt(2 FSC / (1 + FSC)); per shell.
    resolution
        Of the half maps at 0.143.
    half1, half2
        Masked curves of the model against each.
    over_fit
        Their difference.
    beyond
        Shells at which the model agrees better with the map than the half maps allow.
    """

    half_fsc: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    resolution: Resolution
    half1: Curve
    half2: Curve
    over_fit: OverFit
    beyond: NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Curves of another map against the same model in the same mask, and what sharpened it before the mask."""

    unmasked: Curve
    masked: Curve
    sharpening: Sharpening


@dataclass(frozen=True)
class Validation:
    """Everything that was found.

    Attributes
    ----------
    grid
        Cubic, of all volumes.
    atoms, motions
        The model where it was judged, and what moved each chain there.
    density, model, mask
        Map, model density on its grid (in arbitrary units), and mask, (box, box, box) float32.
    unmasked, masked
        Curves of map against model.
    randomised, corrected
        The masked curve of the map with random phases, and the masked one without what that shows.
    corrected_at_05
        Where that one crosses.
    randomised_from
        A; Nyquist's if nothing could be randomised.
    chains
        Curves of chains in masks of their own.
    halves, versus
        None without half maps, without another map.
    resolution, resolution_source
        Used for mask, model density and correlations, A; and where it comes from.
    sharpening
        Before the mask is applied.
    fall_off
        Of the map against the model; None where it could not be fitted.
    b_factors
        Refitted, of each chain, A^2; empty where those of the model were used.
    scores
        Of atoms, residues, chains and the whole.
    fsc_average, fsc_average_nyquist
        Of the masked curve, weighted by the number of coefficients, to ``resolution`` and to Nyquist.
    pixel_scale
        Factor of the pixel size with which the model fits best; None where nothing correlates.
    contrast
        Mean density at the atoms over that of the box, in standard deviations.
    notes, warnings
        What was done, and what a reader must know.
    """

    grid: Grid
    atoms: ModelAtoms
    motions: dict[str, Motion]
    density: NDArray[np.float32]
    model: NDArray[np.float32]
    mask: NDArray[np.float32]
    unmasked: Curve
    masked: Curve
    randomised: NDArray[np.float64]
    corrected: NDArray[np.float64]
    corrected_at_05: Crossing
    randomised_from: float
    chains: dict[str, ChainCurve]
    halves: HalfMaps | None
    versus: Comparison | None
    resolution: float
    resolution_source: str
    sharpening: Sharpening
    fall_off: FallOff | None
    b_factors: dict[str, float]
    scores: Scores
    fsc_average: float
    fsc_average_nyquist: float
    pixel_scale: float | None
    contrast: float
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
