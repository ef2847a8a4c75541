# SPDX-License-Identifier: GPL-3.0-or-later
"""Fourier shell correlation of half maps, with and without masks, and the resolution read from it.

    FSC(s) = Re sum X1 X2* / sqrt(sum |X1|^2  sum |X2|^2)      over the shell round(|k|) = s   [Harauz & van Heel 1986]
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.fft

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.fourier import check_cubic, shell_sums
from sparsecv.engine.physics.masks import SMALLEST_EDGE_PX, sphere

GOLD_STANDARD = 0.143  # of independent halves [Rosenthal & Henderson 2003]
HALF = 0.5
RANDOMISE_BELOW = 0.8  # unmasked FSC from which RELION randomises phases
DRAWS = 4  # of random phases
GUARD_SHELLS = 2  # from the first randomised shell to the first corrected one, as in RELION: the mask mixes neighbours


@dataclass(frozen=True)
class Resolution:
    """Where an FSC curve falls through a threshold.

    Attributes
    ----------
    angstrom
        Resolution, A; Nyquist's if the curve never falls through.
    crossed
        False if the curve stays above the threshold to Nyquist, so that the true resolution may be better.
    threshold
        Of the correlation.
    shell
        Crossing in shells, interpolated.
    is_shared
        Not a crossing: what the halves had in common, where noise could have carried their FSC from there to its
        crossing (``claims.Common``).
    """

    angstrom: float
    crossed: bool
    threshold: float
    shell: float
    is_shared: bool = False

    def __str__(self) -> str:
        if self.is_shared:
            return f"{self.angstrom:.2f} A (shared by the halves; none beyond is claimed)"
        return f"{self.angstrom:.2f} A" if self.crossed else f"{self.angstrom:.2f} A (Nyquist; no crossing)"


@dataclass(frozen=True)
class FscCurves:
    """The curves of one pair of half maps; each float64, shape (box // 2 + 1,), one value per shell.

    Attributes
    ----------
    unmasked, spherical, masked
        Of the maps as they are, inside a soft sphere, inside the mask.
    randomised
        Of the maps with phases randomised from ``randomised_from`` on, inside the mask: what the mask alone gives.
    corrected
        (masked - randomised) / (1 - randomised), from two shells beyond ``randomised_from``; masked before that.
    randomised_from
        First shell with random phases; None if the unmasked curve never falls below 0.8, so that nothing was corrected.
    warnings
        What the reader of the curves must know.
    """

    unmasked: np.ndarray
    spherical: np.ndarray
    masked: np.ndarray
    randomised: np.ndarray
    corrected: np.ndarray
    randomised_from: int | None
    warnings: tuple[str, ...] = field(default=())


def fsc(map1: np.ndarray, map2: np.ndarray, mask: np.ndarray | None = None, *, workers: int = 1) -> np.ndarray:
    """Fourier shell correlation of two maps.

    Parameters
    ----------
    map1, map2
        Shape (box, box, box), same box and pixel size.
    mask
        Multiplies both; shape (box, box, box); None: no mask.

    Returns
    -------
    numpy.ndarray
        float64, shape (box // 2 + 1,). Shell 0 is set to 1; a shell in which a map has no power is 0.

    Raises
    ------
    InputError
        If the shapes differ or are not cubes.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.random.default_rng(1).normal(size=(8, 8, 8))
    >>> fsc(volume, -volume).round(6).tolist()
    [1.0, -1.0, -1.0, -1.0, -1.0]
    """
    check_same_box(map1, map2)
    return correlate(_transform(map1, mask, workers), _transform(map2, mask, workers))


def check_same_box(map1: np.ndarray, map2: np.ndarray) -> int:
    """Box size of two cubic maps; InputError if they differ."""
    box = check_cubic(map1)
    if map1.shape != map2.shape:
        raise InputError("the two maps differ in box size", value=(map1.shape, map2.shape), rule="equal boxes")
    return box


def _transform(volume: np.ndarray, mask: np.ndarray | None, workers: int) -> np.ndarray:
    """Half transform of a masked map; phases about index 0, which both maps of a correlation share."""
    transform: np.ndarray = scipy.fft.rfftn(volume if mask is None else volume * mask, workers=workers)
    return transform


def correlate(transform1: np.ndarray, transform2: np.ndarray) -> np.ndarray:
    """:func:`fsc` of two half transforms, shape (box, box, box // 2 + 1), with phases about the same point."""
    cross = shell_sums(transform1.real * transform2.real + transform1.imag * transform2.imag)
    power = shell_sums(_power(transform1)) * shell_sums(_power(transform2))
    curve: np.ndarray = np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)
    curve[0] = 1.0
    return curve


def _power(transform: np.ndarray) -> np.ndarray:
    power: np.ndarray = transform.real**2 + transform.imag**2
    return power


def resolution(curve: np.ndarray, threshold: float, box: int, pixel_size: float) -> Resolution:
    """First crossing of a threshold, interpolated linearly in frequency, never beyond Nyquist.

    Parameters
    ----------
    curve
        FSC per shell from shell 0, shape (n,). Shell 0 counts as 1.
    threshold
        0.143 for independent halves, 0.5 against a reference.
    box, pixel_size
        Of the maps, pixels and A.

    Returns
    -------
    Resolution
        A value that is not a number counts as below the threshold.
    """
    below = np.flatnonzero(~(curve[1:] >= threshold)) + 1
    nyquist = box / 2
    if len(below) == 0 or below[0] > nyquist:
        return Resolution(2 * pixel_size, False, threshold, nyquist)
    first = int(below[0])
    before = 1.0 if first == 1 else float(curve[first - 1])
    after = float(curve[first]) if np.isfinite(curve[first]) else 0.0
    shell = first - 1 + (before - threshold) / (before - after)
    shell = max(shell, 0.5)  # half a shell: the coarsest that a box can show
    return Resolution(box * pixel_size / shell, True, threshold, shell)


def last_shell_above(curve: np.ndarray, threshold: float) -> int:
    """Last shell before the curve first falls below the threshold (RELION's rule for its final resolution)."""
    below = np.flatnonzero(~(curve[1:] >= threshold)) + 1
    return int(below[0]) - 1 if len(below) else len(curve) - 1


def phase_randomise(
    volume: np.ndarray, from_shell: int, rng: np.random.Generator, *, workers: int = 1
) -> np.ndarray:
    """Replace the phases of all coefficients with |k| >= ``from_shell`` by random ones; amplitudes stay.

    Parameters
    ----------
    volume
        Shape (box, box, box).
    rng
        Different states give independent phases, which the two halves need.

    Returns
    -------
    numpy.ndarray
        float32, shape of ``volume``.

    Notes
    -----
    The limit is on the exact radius, not on the rounded one, as in RELION: half of the first shell keeps its phases.
    The phases are those of white real noise, so they are uniform and obey Friedel's law on every plane.
    """
    box = check_cubic(volume)
    transform = scipy.fft.rfftn(volume.astype(np.float32, copy=False), workers=workers)
    noise = scipy.fft.rfftn(rng.standard_normal(volume.shape, dtype=np.float32), workers=workers)
    k2 = np.fft.fftfreq(box, 1 / box) ** 2
    beyond = k2[:, None, None] + k2[:, None] + np.arange(box // 2 + 1) ** 2 >= from_shell**2
    size = np.abs(noise)
    np.divide(noise, size, out=noise, where=size > 0)
    transform[beyond] = np.abs(transform[beyond]) * noise[beyond]
    randomised: np.ndarray = scipy.fft.irfftn(transform, s=volume.shape, workers=workers)
    return randomised


def correct_for_mask(masked: np.ndarray, randomised: np.ndarray, from_shell: int) -> np.ndarray:
    """FSC of a masked pair without what the mask contributes: (t - n) / (1 - n)   [Chen et al. 2013, eq. 4].

    Parameters
    ----------
    masked, randomised
        t and n, per shell.
    from_shell
        First shell with random phases; the correction starts two shells beyond.
    """
    corrected = masked.copy()
    start = from_shell + GUARD_SHELLS
    noise = np.minimum(randomised[start:], 1 - 1e-6)
    corrected[start:] = (masked[start:] - noise) / (1 - noise)
    return corrected


def mask_corrected_fsc(
    half1: np.ndarray,
    half2: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    sphere_radius_px: float | None = None,
    workers: int = 1,
) -> FscCurves:
    """All FSC curves of a pair of half maps, with RELION's correction for the mask.

    Parameters
    ----------
    half1, half2
        Independent, unfiltered and unmasked, shape (box, box, box).
    mask
        Shape (box, box, box), in [0, 1].
    rng
        For the random phases.
    sphere_radius_px
        Of the soft sphere, pixels; None: as large as the box allows.

    Returns
    -------
    FscCurves

    Notes
    -----
    Phases are randomised, independently in each half, from the first shell whose unmasked FSC is below 0.8. The
    randomised curve is the mean of four draws: RELION takes one, whose scatter alone moves a fitted B-factor by tens
    of percent.
    """
    box = check_same_box(half1, half2)
    unmasked = fsc(half1, half2, workers=workers)
    radius = sphere_radius_px or max(box / 2 - SMALLEST_EDGE_PX, box / 4)
    spherical = fsc(half1, half2, sphere(box, radius, SMALLEST_EDGE_PX), workers=workers)
    masked = fsc(half1, half2, mask, workers=workers)
    below = np.flatnonzero(unmasked < RANDOMISE_BELOW)
    if len(below) == 0:
        warning = f"unmasked FSC stays above {RANDOMISE_BELOW:g} to Nyquist: the mask's share cannot be measured"
        return FscCurves(unmasked, spherical, masked, np.zeros_like(masked), masked.copy(), None, (warning,))
    start = int(below[0])
    randomised = np.zeros_like(masked)
    for _ in range(DRAWS):
        first, second = (phase_randomise(half, start, rng, workers=workers) for half in (half1, half2))
        randomised += fsc(first, second, mask, workers=workers) / DRAWS
    corrected = correct_for_mask(masked, randomised, start)
    return FscCurves(unmasked, spherical, masked, randomised, corrected, start)
