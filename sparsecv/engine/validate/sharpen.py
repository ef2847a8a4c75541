# SPDX-License-Identifier: GPL-3.0-or-later
"""Sharpening of a map in RELION's order: detector MTF, FSC weights, B-factor from the Guinier plot, low-pass filter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecv.engine.io.mtf import MtfCurve
from sparsecv.engine.physics.fourier import backward, forward, low_pass_weights, shell_indices
from sparsecv.engine.validate.guinier import GuinierFit, fit_bfactor, log_amplitudes, squared_frequency

SMALLEST_FSC = 1e-4  # beyond the first shell below it nothing is left of the map, as in RELION
FILTER_EDGE_SHELLS = 2.0


@dataclass(frozen=True)
class Guinier:
    """Guinier plot after each step; every array float64, shape (box // 2 + 1,), ln amplitude, -99 in an empty shell.

    Attributes
    ----------
    k2
        1/d^2, A^-2.
    original, inverse_mtf, weighted, sharpened
        The average of the halves; divided by the MTF (None without); FSC-weighted; sharpened.
    fit
        The line through ``weighted``; None if the B-factor was given or could not be fitted.
    """

    k2: np.ndarray
    original: np.ndarray
    inverse_mtf: np.ndarray | None
    weighted: np.ndarray
    sharpened: np.ndarray
    fit: GuinierFit | None


@dataclass(frozen=True)
class Sharpening:
    """How the map is sharpened and filtered.

    Attributes
    ----------
    mtf
        Curve of the detector; None: no correction.
    mtf_pixel_size
        A, of the movie pixels that the curve refers to; None: the map's.
    bfactor
        A^2, negative sharpens; None: from the Guinier plot.
    autob_lowres, autob_highres
        Range of the fit, A; 0 as the second goes to Nyquist.
    low_pass
        A; None: the resolution at FSC = 0.143.
    fsc_weighting
        Whether to weight by sqrt(2 FSC / (1 + FSC)).
    """

    mtf: MtfCurve | None = None
    mtf_pixel_size: float | None = None
    bfactor: float | None = None
    autob_lowres: float = 10.0
    autob_highres: float = 0.0
    low_pass: float | None = None
    fsc_weighting: bool = True


def sharpen(
    average: np.ndarray, fsc: np.ndarray, pixel_size: float, steps: Sharpening, *, workers: int = 1
) -> tuple[np.ndarray, Guinier, float | None, list[str]]:
    """MTF, FSC weights, B-factor and low-pass filter, in this order.

    Parameters
    ----------
    average
        Of the halves, (box, box, box).
    fsc
        Per shell, (box // 2 + 1,).
    steps
        What to do; without ``low_pass`` the map is not filtered.

    Returns
    -------
    map, guinier, bfactor, warnings
        The map float32; the B-factor in A^2 or None if it could not be fitted.
    """
    box = average.shape[0]
    k2 = squared_frequency(box, pixel_size)
    transform = forward(average, workers=workers)
    original = log_amplitudes(transform)
    inverse_mtf = None
    if steps.mtf is not None:
        transform /= steps.mtf.on_shells(box, pixel_size, steps.mtf_pixel_size or pixel_size)
        inverse_mtf = log_amplitudes(transform)
    if steps.fsc_weighting:
        transform *= _fsc_weights(fsc)[np.minimum(shell_indices(box), box // 2 + 1)]
    weighted = log_amplitudes(transform)
    fit, bfactor = None, steps.bfactor
    warnings: list[str] = []
    if bfactor is None:
        fit = fit_bfactor(weighted, k2, steps.autob_lowres, steps.autob_highres)
        bfactor, warnings = _fitted_bfactor(fit, steps.autob_lowres)
    if bfactor:
        transform *= _bfactor_weights(box, pixel_size, bfactor)
    guinier = Guinier(k2, original, inverse_mtf, weighted, log_amplitudes(transform), fit)
    if steps.low_pass is not None:
        transform *= low_pass_weights(box, round(box * pixel_size / steps.low_pass), FILTER_EDGE_SHELLS)
    return backward(transform, workers=workers), guinier, bfactor, warnings


def _fsc_weights(fsc: np.ndarray) -> np.ndarray:
    """sqrt(2 FSC / (1 + FSC)) per shell, 0 from the first below 1e-4 on, and one more 0 for the corners; float32."""
    below = np.flatnonzero(~(fsc >= SMALLEST_FSC))
    end = int(below[0]) if len(below) else len(fsc)
    weights = np.zeros(len(fsc) + 1, dtype=np.float32)
    weights[:end] = np.sqrt(2 * fsc[:end] / (1 + fsc[:end]))
    return weights


def _fitted_bfactor(fit: GuinierFit | None, low_resolution: float) -> tuple[float | None, list[str]]:
    if fit is None:
        return None, [f"no B-factor: fewer than three shells beyond {low_resolution:g} A; the map is not sharpened"]
    if fit.bfactor > 0:
        return fit.bfactor, [f"the fitted B-factor is positive ({fit.bfactor:.0f} A^2) and damps the map"]
    return fit.bfactor, []


def _bfactor_weights(box: int, pixel_size: float, bfactor: float) -> np.ndarray:
    """exp(-B k^2 / 4) up to Nyquist, 0 in the corners; float32, half transform."""
    k2 = np.fft.fftfreq(box) ** 2
    radius2 = k2[:, None, None] + k2[:, None] + np.fft.rfftfreq(box) ** 2
    weights = np.exp(np.minimum(radius2, 0.25) * (-bfactor / 4 / pixel_size**2))
    return np.where(radius2 <= 0.25, weights, 0.0).astype(np.float32)
