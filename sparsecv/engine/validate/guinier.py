# SPDX-License-Identifier: GPL-3.0-or-later
"""Guinier plots: logarithm of the mean amplitude against squared frequency, and the B-factor from its slope.

    ln <|F|>(k) = constant - B/4 k^2        [Rosenthal & Henderson 2003]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecv.engine.physics.fourier import shell_counts, shell_sums

EMPTY_SHELL = -99.0  # RELION's ln amplitude of a shell without power


@dataclass(frozen=True)
class GuinierFit:
    """Straight line through a Guinier plot: slope (A^2), intercept, correlation, and the number of shells used."""

    slope: float
    intercept: float
    correlation: float
    points: int

    @property
    def bfactor(self) -> float:
        """B-factor that makes the plot flat, A^2; negative sharpens (RELION's sign)."""
        return 4 * self.slope


def log_amplitudes(transform: np.ndarray) -> np.ndarray:
    """ln of the mean amplitude per shell.

    Parameters
    ----------
    transform
        Half transform, shape (box, box, box // 2 + 1), not normalised.

    Returns
    -------
    numpy.ndarray
        float64, shape (box // 2 + 1,), of the transform divided by box^3, as in RELION; -99 in an empty shell.
    """
    box = transform.shape[0]
    mean = shell_sums(np.abs(transform)) / shell_counts(box) / float(box) ** 3
    logs: np.ndarray = np.log(mean, out=np.full_like(mean, EMPTY_SHELL), where=mean > 0)
    return logs


def squared_frequency(box: int, pixel_size: float) -> np.ndarray:
    """1/d^2 of each shell, A^-2, shape (box // 2 + 1,)."""
    return np.square(np.arange(box // 2 + 1) / (box * pixel_size))


def fit_bfactor(
    log_amplitude: np.ndarray, k2: np.ndarray, low_resolution: float, high_resolution: float = 0.0
) -> GuinierFit | None:
    """Least-squares line through a Guinier plot.

    Parameters
    ----------
    log_amplitude, k2
        :func:`log_amplitudes` and :func:`squared_frequency`, same shape.
    low_resolution, high_resolution
        Range of the fit, A; 0 as ``high_resolution`` goes to Nyquist.

    Returns
    -------
    GuinierFit or None
        None with fewer than three shells in range.
    """
    used = (k2 >= low_resolution**-2 * (1 - 1e-9)) & (log_amplitude > EMPTY_SHELL)
    if high_resolution > 0:
        used &= k2 <= high_resolution**-2 * (1 + 1e-9)
    x, y = k2[used], log_amplitude[used]
    if len(x) < 3:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    scatter = float(np.sqrt((dx @ dx) * (dy @ dy)))
    correlation = float(dx @ dy) / scatter if scatter > 0 else 0.0
    return GuinierFit(slope, float(y.mean() - slope * x.mean()), correlation, len(x))
