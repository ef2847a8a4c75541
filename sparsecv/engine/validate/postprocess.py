# SPDX-License-Identifier: GPL-3.0-or-later
"""Post-processing of two half maps: FSC, MTF, FSC weighting, B-factor and low-pass filter, in RELION's order.

The average of the halves is divided by the detector's MTF, weighted by sqrt(2 FSC / (1 + FSC)), sharpened by
exp(-B k^2 / 4) with B from its Guinier plot, and low-pass filtered at the resolution   [Rosenthal & Henderson 2003].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mtf import MtfCurve
from sparsecv.engine.physics.masks import check_mask, solvent_mask
from sparsecv.engine.validate.claims import Common
from sparsecv.engine.validate.fsc import (
    GOLD_STANDARD,
    HALF,
    FscCurves,
    Resolution,
    check_same_box,
    last_shell_above,
    mask_corrected_fsc,
    resolution,
)
from sparsecv.engine.validate.sharpen import Guinier, Sharpening, sharpen

DOUBTFUL_FSC = 0.9  # a curve that never falls below it is of halves that share their noise, or of coarse pixels
HIGHEST_MASK_FSC = 0.1  # of randomised phases at the resolution, above which the mask is too tight


def doubtful_independence(curve: np.ndarray) -> list[str]:
    """A warning where two half maps agree as far as the pixels go, as maps do that were made of the same particles."""
    if len(curve) < 3 or not curve[1:].min() > DOUBTFUL_FSC:
        return []
    return [f"the FSC is above {DOUBTFUL_FSC:g} up to Nyquist: unless the pixels are too coarse for what the images "
            "show, the half maps are not independent, as where both were made of the same particles"]


@dataclass(frozen=True)
class PostprocessResult:
    """Outcome of :func:`postprocess`.

    Attributes
    ----------
    pixel_size
        A.
    curves
        All FSC curves.
    fsc
        The one that was used: ``curves.corrected``, or ``curves.unmasked`` where the mask made things worse.
    resolution_0143, resolution_05
        Crossings of ``fsc``, interpolated.
    final_resolution
        A; last shell before ``fsc`` falls below 0.143: RELION's rule, never finer than the interpolated crossing.
    randomised_from
        A; None if phases were not randomised.
    guinier, bfactor
        A^2, negative sharpens; None if it could not be fitted, and then the map is not sharpened.
    filter_resolution
        A; of the final low-pass filter.
    steps
        How the map was sharpened.
    mask, map, masked_map
        float32, (box, box, box); the last is ``map * mask``.
    mask_fraction
        Of voxels with a mask above 1/2.
    warnings
        What a reader of the result must know.
    """

    pixel_size: float
    curves: FscCurves
    fsc: np.ndarray
    resolution_0143: Resolution
    resolution_05: Resolution
    final_resolution: float
    randomised_from: float | None
    guinier: Guinier
    bfactor: float | None
    filter_resolution: float
    steps: Sharpening
    mask: np.ndarray
    map: np.ndarray
    masked_map: np.ndarray
    mask_fraction: float
    warnings: tuple[str, ...]


def postprocess(
    half1: np.ndarray,
    half2: np.ndarray,
    pixel_size: float,
    *,
    mask: np.ndarray | None = None,
    mtf: MtfCurve | str | Path | None = None,
    mtf_pixel_size: float | None = None,
    bfactor: float | None = None,
    autob_lowres: float = 10.0,
    autob_highres: float = 0.0,
    low_pass: float | None = None,
    fsc_weighting: bool = True,
    force_mask: bool = False,
    sphere_radius_px: float | None = None,
    seed: int = 1,
    workers: int = 1,
    common: Common | None = None,
) -> PostprocessResult:
    """Estimate the resolution of two half maps, and sharpen and filter their average.

    Parameters
    ----------
    half1, half2
        Unfiltered, unmasked, independent; shape (box, box, box).
    pixel_size
        A.
    mask
        In [0, 1], shape of the halves; None makes one of their average (``masks.solvent_mask``). What is odd about a
        given one was said when it was read, and is not said again.
    mtf, mtf_pixel_size, bfactor, autob_lowres, autob_highres, low_pass, fsc_weighting
        As in ``sharpen.Sharpening``; ``mtf`` may be a RELION STAR file.
    force_mask
        Keep the mask also where the unmasked FSC goes further than the corrected one; otherwise, as in RELION, the
        unmasked curve is then used.
    sphere_radius_px
        Of the sphere of the spherical curve, pixels; None: as large as the box allows.
    seed
        Of the random phases.
    common
        What the refinements of the halves shared; a resolution that this could explain is not claimed.

    Returns
    -------
    PostprocessResult

    Raises
    ------
    InputError
        If the halves differ in box, are empty or hold values that are not finite, or the mask or the MTF is unusable.
    """
    check_halves(half1, half2)
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise InputError("pixel size must be positive", value=pixel_size, rule="Angstrom, > 0")
    average = (half1.astype(np.float32) + half2.astype(np.float32)) * np.float32(0.5)
    warnings = []
    if np.array_equal(half1, half2):
        warnings.append("the two half maps are identical: their FSC says nothing about resolution")
    if mask is None:
        mask = solvent_mask(average, pixel_size, workers=workers)
        warnings += check_mask(mask, average.shape, pixel_size, file="the mask made of the map")
    else:
        check_mask(mask, average.shape, pixel_size)
    rng = np.random.default_rng(seed)
    curves = mask_corrected_fsc(half1, half2, mask, rng, sphere_radius_px=sphere_radius_px, workers=workers)
    warnings += doubtful_independence(curves.unmasked)
    curve, said = _curve_to_use(curves, force_mask)
    warnings += [*curves.warnings, *said]
    box = average.shape[0]
    final = box * pixel_size / max(last_shell_above(curve, GOLD_STANDARD), 1)
    found = [resolution(curve, threshold, box, pixel_size) for threshold in (GOLD_STANDARD, HALF)]
    if common is not None and common.explains(found[0]):
        warnings.append(
            f"the halves correlate to {found[0].angstrom:.1f} A only, which noise aligned to one start can reach: "
            f"no resolution beyond {common.resolution:g} A is claimed"
        )
        final = max(final, common.resolution)
        found = [common.claim(one, box * pixel_size) for one in found]
    if not isinstance(mtf, MtfCurve | None):
        mtf = MtfCurve.read(mtf)
    steps = Sharpening(mtf, mtf_pixel_size, bfactor, autob_lowres, autob_highres, low_pass or final, fsc_weighting)
    sharpened, guinier, used, said = sharpen(average, curve, pixel_size, steps, workers=workers)
    start = curves.randomised_from
    return PostprocessResult(
        pixel_size=pixel_size,
        curves=curves,
        fsc=curve,
        resolution_0143=found[0],
        resolution_05=found[1],
        final_resolution=final,
        randomised_from=None if start is None else box * pixel_size / start,
        guinier=guinier,
        bfactor=used,
        filter_resolution=low_pass or final,
        steps=steps,
        mask=mask,
        map=sharpened,
        masked_map=sharpened * mask,
        mask_fraction=float(np.mean(mask > 0.5)),
        warnings=(*warnings, *said),
    )


def check_halves(half1: np.ndarray, half2: np.ndarray) -> None:
    """Refuse half maps of unequal box, without density, or with values that are not finite (InputError)."""
    check_same_box(half1, half2)
    for number, half in ((1, half1), (2, half2)):
        if not np.isfinite(half).all():
            raise InputError("half map holds values that are not finite", item=f"half {number}",
                             remedy="look for a failed reconstruction")
        if half.min() == half.max():
            raise InputError("half map is flat", item=f"half {number}", value=float(half.flat[0]),
                             remedy="look for a failed reconstruction")


def _curve_to_use(curves: FscCurves, force_mask: bool) -> tuple[np.ndarray, list[str]]:
    """The corrected curve unless the unmasked one goes further, and what to say of the mask (RELION's two checks)."""
    corrected = last_shell_above(curves.corrected, GOLD_STANDARD)
    if last_shell_above(curves.unmasked, GOLD_STANDARD) > corrected:
        text = "the unmasked FSC goes further than the mask-corrected one: the mask cuts off density or is off centre"
        if force_mask:
            return curves.corrected, [text]
        return curves.unmasked, [text + "; the unmasked FSC is used"]
    if curves.randomised_from is not None and curves.randomised[corrected] > HIGHEST_MASK_FSC:
        return curves.corrected, [
            f"with random phases the masked FSC is still {curves.randomised[corrected]:.2f} at the resolution: "
            "use a softer mask with fewer features"
        ]
    return curves.corrected, []
