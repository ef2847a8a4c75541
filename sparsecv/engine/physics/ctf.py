# SPDX-License-Identifier: GPL-3.0-or-later
"""The contrast transfer function, as RELION's ``ctf.cpp`` defines it.

With k in 1/A, lambda in A, defocus dz > 0 for underfocus (A) and Cs in A::

    gamma(k) = pi lambda dz(phi) k^2 - pi/2 Cs lambda^3 k^4 + phase shift + atan(Q / sqrt(1 - Q^2)) - even(k)
    dz(phi)  = (u + v)/2 + (u - v)/2 cos 2(phi - angle)
    CTF(k)   = sin(gamma) * exp(-B k^2 / 4) * scale

Positive at low frequency: particles are white. ``even`` are even aberrations (:mod:`.aberrations`), none by default.

Images whose phases were flipped have |CTF| for CTF, but for the sign of the scale. Images that were multiplied by their
CTF, X = C (C P + n), are divided by it as they are read, `unmultiplied`; near zeros of the CTF, where what was cut off
with the box would be blown up, by no less than `LEAST_DIVISOR`::

    X sign(C) / max(|C|, d) = C min(1, |C| / d) P + min(1, |C| / d) sign(C) n

so that the CTF which is left has a factor min(1, |C| / d), and the noise power is that of all images but near zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.physics.aberrations import monomials

SMALLEST_CTF = 1e-8  # RELION's floor of |CTF|: keeps the sign defined
LEAST_DIVISOR = 0.1  # d above: of all the weight 0.02 % is lost, of the noise power 4 %


@dataclass(frozen=True)
class CtfParameters:
    """Terms of the CTF of n particles; every array has shape (n,).

    Attributes
    ----------
    defocus_u, defocus_v
        Largest and smallest defocus, A, underfocus positive.
    defocus_angle
        Degrees, of ``defocus_u`` from the x axis.
    phase_shift
        Degrees.
    bfactor, scale
        A^2 and a plain factor of the envelope.
    voltage_kv, cs_mm, amplitude_contrast
        kV, mm, and a fraction in [0, 1].
    even
        Even aberrations: coefficients of monomials of the frequency, radians, shape (n, E); None where there are none.
    is_flipped, is_premultiplied
        Whether phases of the images were flipped, or images were multiplied by their CTF; None where none were.
    limit
        Frequency in 1/A beyond which images hold nothing: the CTF is 0 there. None where all reach as far as they do.
    """

    defocus_u: np.ndarray
    defocus_v: np.ndarray
    defocus_angle: np.ndarray
    phase_shift: np.ndarray
    bfactor: np.ndarray
    scale: np.ndarray
    voltage_kv: np.ndarray
    cs_mm: np.ndarray
    amplitude_contrast: np.ndarray
    even: np.ndarray | None = None
    is_flipped: np.ndarray | None = None
    is_premultiplied: np.ndarray | None = None
    limit: np.ndarray | None = None

    def __getitem__(self, index: Any) -> CtfParameters:
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        chosen: dict[str, Any] = {name: None if value is None else value[index] for name, value in values}
        return CtfParameters(**chosen)

    def __len__(self) -> int:
        return len(self.defocus_u)


def wavelength(voltage_kv: np.ndarray) -> np.ndarray:
    """Relativistic electron wavelength in A."""
    volts = np.asarray(voltage_kv, dtype=np.float64) * 1e3
    return 12.2643247 / np.sqrt(volts * (1 + volts * 0.978466e-6))


def frequency_powers(kx: Any, ky: Any, box: int, pixel_size: float, xp: Any = np, even: int = 0) -> Any:
    """k_x^2, k_x k_y, k_y^2, k^4 and 1 at J pixels, then ``even`` monomials, float64 (5 + even, J), with k in 1/A."""
    x, y = np.asarray(kx) / (box * pixel_size), np.asarray(ky) / (box * pixel_size)
    square = x * x + y * y
    powers = np.stack([x * x, x * y, y * y, square * square, np.ones_like(square)])
    return xp.asarray(np.concatenate([powers, monomials(x, y, even)]) if even else powers)


def phase_terms(parameters: CtfParameters) -> np.ndarray:
    """Coefficients (n, 5 + E) of gamma as a polynomial in `frequency_powers`, float64."""
    p = parameters
    lam = wavelength(p.voltage_kv)
    mean, along, across = defocus_terms(p.defocus_u, p.defocus_v, p.defocus_angle)
    quadratic = np.pi * lam * np.stack([mean + along, 2 * across, mean - along])
    quartic = -0.5 * np.pi * p.cs_mm * 1e7 * lam**3
    contrast = np.asarray(p.amplitude_contrast, dtype=np.float64)
    constant = np.deg2rad(p.phase_shift) + np.arctan2(contrast, np.sqrt(np.maximum(1 - contrast**2, 0)))
    terms = np.stack([quadratic[0], quadratic[1], quadratic[2], quartic, constant], axis=1)
    return terms if p.even is None else np.concatenate([terms, -p.even], axis=1)


def defocus_terms(u: np.ndarray, v: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean m, along a and across c of defoci in A, (n,) each: dz |k|^2 = m |k|^2 + a (k_x^2 - k_y^2) + 2 c k_x k_y."""
    half_difference, twice = (u - v) / 2, 2 * np.deg2rad(angle)
    return (u + v) / 2, half_difference * np.cos(twice), half_difference * np.sin(twice)


def defocus_of_terms(
    mean: np.ndarray, along: np.ndarray, across: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Defocus u >= v in A and the angle in degrees, [0, 180), that have these `defocus_terms`."""
    half_difference = np.hypot(along, across)
    angle = np.rad2deg(np.arctan2(across, along)) / 2 % 180
    return mean + half_difference, mean - half_difference, angle


def ctf(
    parameters: CtfParameters,
    kx: Any,
    ky: Any,
    box: int,
    pixel_size: float,
    *,
    intact_first_peak: bool = False,
    xp: Any = np,
    powers: Any = None,
) -> Any:
    """CTF of n particles at J Fourier pixels.

    Parameters
    ----------
    parameters
        The terms of the n particles (host arrays).
    kx, ky
        Integer frequencies of the J pixels (cycles per box), on the host.
    box, pixel_size
        Box in pixels and pixel size in A, which turn them into 1/A.
    intact_first_peak
        1 instead of sin(gamma) up to the first peak (|gamma| < pi/2), RELION's ``--ctf_intact_first_peak``.
    xp
        Array module of the result (numpy or cupy).
    powers
        What `frequency_powers` gives for these pixels and as many even monomials as the parameters have, where it is
        there already.

    Returns
    -------
    Shape (n, J), float32.

    Notes
    -----
    gamma = a k_x^2 + 2 b k_x k_y + c k_y^2 + d k^4 + e, and monomials of even aberrations: the coefficients are
    computed in float64 on the host and only the polynomial is evaluated for every pixel.
    """
    p, terms = parameters, phase_terms(parameters)
    powers = frequency_powers(kx, ky, box, pixel_size, xp, terms.shape[1] - 5) if powers is None else powers
    gamma = _phase(terms, powers, xp)
    value = xp.sin(gamma)
    if intact_first_peak:
        value = xp.where(xp.abs(gamma) < np.float32(np.pi / 2), xp.float32(1), value)
    if p.is_flipped is not None:
        value = xp.where(xp.asarray(p.is_flipped)[:, None], xp.abs(value), value)
    if np.any(p.bfactor != 0) or np.any(p.scale != 1):
        value = value * _envelope(parameters, powers, xp)
    smallest = xp.where(value < 0, xp.float32(-SMALLEST_CTF), xp.float32(SMALLEST_CTF))
    value = xp.where(xp.abs(value) < SMALLEST_CTF, smallest, value)
    if p.is_premultiplied is not None:
        left = value * xp.minimum(xp.abs(value) / xp.float32(LEAST_DIVISOR), xp.float32(1))
        value = xp.where(xp.asarray(p.is_premultiplied)[:, None], left, value)
    if p.limit is not None:
        value = value * _within_limit(p.limit, powers, xp)
    return value


def ctf_parts(parameters: CtfParameters, powers: Any, xp: Any = np) -> tuple[Any, Any]:
    """Envelope E and phase gamma of CTFs E sin(gamma), (n, J) float32 each.

    What was done to the images, flipped phases or a multiplication by the CTF, is not looked at.

    Parameters
    ----------
    powers
        `frequency_powers` of the pixels, with as many even monomials as the parameters have.
    """
    gamma = _phase(phase_terms(parameters), powers, xp)
    envelope = _envelope(parameters, powers, xp)
    if parameters.limit is not None:
        envelope = envelope * _within_limit(parameters.limit, powers, xp)
    return envelope, gamma


def _phase(terms: np.ndarray, powers: Any, xp: Any) -> Any:
    """gamma (n, J), float32, of `phase_terms`."""
    # Phases reach hundreds of radians: the sum is done in float64, and 2e-5 rad of rounding afterwards is harmless.
    return (xp.asarray(terms) @ powers).astype(xp.float32)


def _envelope(parameters: CtfParameters, powers: Any, xp: Any) -> Any:
    """exp(-B k^2 / 4) times the scale, (n, J), float32."""
    bfactor = xp.asarray((parameters.bfactor / 4).astype(np.float32))[:, None]
    scale = xp.asarray(parameters.scale.astype(np.float32))[:, None]
    square = (powers[0] + powers[2]).astype(xp.float32)
    return xp.exp(-bfactor * square[None, :]) * scale


def _within_limit(limit: np.ndarray, powers: Any, xp: Any) -> Any:
    """Whether pixels lie within the limit of each image, (n, J)."""
    return powers[0] + powers[2] <= xp.asarray(limit**2)[:, None]


def unmultiplied(transforms: Any, values: Any, xp: Any = np) -> Any:
    """Transforms of images that were multiplied by their CTF, without it but near its zeros.

    Parameters
    ----------
    transforms, values
        Fourier pixels and the CTF there, of one shape.
    """
    return transforms * (xp.sign(values) / xp.maximum(xp.abs(values), xp.float32(LEAST_DIVISOR)))
