# SPDX-License-Identifier: GPL-3.0-or-later
"""Odd and even aberrations of an optics group, from sums over its images at each Fourier pixel.

Odd ones turn the phase of an image, X = exp(i o(k)) C P: with Q = sum conj(C P) X / sigma^2 the log-likelihood is
Re sum_j exp(-i o_j) Q_j up to a constant. Even ones belong to the CTF, C = E sin(gamma - e(k)): it is linear in the
vector v = (cos e, -sin e), and with the sums of a (sin, cos) and b (sin^2, sin cos, cos^2) of gamma as y and B at each
pixel the log-likelihood is sum_j v.y - v^T B v / 2 [Zivanov2020]. Both are exact: the images are read once, whatever is
fitted, and the fit is one of least squares with as many residuals as there are pixels, over bands that grow, so that no
phase is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import chi2

from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.physics.aberrations import monomials, odd_coefficients, odd_polynomial, split_coma
from sparsecv.engine.physics.ctf import wavelength
from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.refine.ctf_refine.observations import Observed, Observer

ODD_TERMS, EVEN_TERMS = 6, 9  # monomials of degrees 1 and 3; of degrees 0, 2 and 4
PRIOR = 10.0  # radians at the highest frequency: width of a Gaussian on what each term adds there
BANDS = (0.4, 0.55, 0.7, 0.85, 1.0)  # of the highest shell
AMPLITUDES, LEAST_AMPLITUDE = 3, 0.1  # times that amplitudes of shells and phases are fitted in turn
LINEAR = ((1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0))
COMA = ((0, 0, 1, 0, 1, 0), (0, 0, 0, 1, 0, 1))  # x |k|^2 and y |k|^2
TREFOIL = ((0, 0, 1, 0, -3, 0), (0, 0, 0, 3, 0, -1))  # Re and Im (x + iy)^3
FALSE_ALARMS = 0.001  # of groups without an aberration, how many may be given one where poses are known


Residual = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class PhaseSums:
    """Sums over the images of each optics group, at the J pixels of the disc.

    Attributes
    ----------
    odd, odd_weight
        (G, J) complex128: sum of conj(C P) X / sigma^2; float64: sum of |C P|^2 / sigma^2.
    even, even_weight
        (G, 2, J): sums of a sin(gamma), a cos(gamma); (G, 3, J): of b times sin^2, sin cos, cos^2.
    """

    odd: np.ndarray
    odd_weight: np.ndarray
    even: np.ndarray
    even_weight: np.ndarray


    @classmethod
    def empty(cls, groups: int, pixels: int) -> PhaseSums:
        """Sums over nothing yet."""
        return cls(np.zeros((groups, pixels), dtype=complex), np.zeros((groups, pixels)), np.zeros((groups, 2, pixels)),
                   np.zeros((groups, 3, pixels)))  # fmt: skip

    def add(self, observer: Observer, seen: Observed) -> None:
        """Add some images, in any order."""
        ops, xp, index = observer.ops, observer.ops.xp, observer.table.optics_index[seen.rows]
        product, power = seen.products()
        sine, cosine = xp.sin(seen.phase), xp.cos(seen.phase)
        for group in np.unique(index).tolist():
            own = xp.asarray(np.flatnonzero(index == group))
            s, c, p, b = (values[own] for values in (sine, cosine, product, power))
            self.odd[group] += ops.to_host((p * s).sum(axis=0, dtype=xp.complex128))
            for place, value in enumerate((s, c)):
                self.even[group, place] += ops.to_host((p.real * value).sum(axis=0, dtype=xp.float64))
            for place, value in enumerate((s * s, s * c, c * c)):
                self.even_weight[group, place] += ops.to_host((b * value).sum(axis=0, dtype=xp.float64))
            self.odd_weight[group] = self.even_weight[group, 0]


def phase_sums(observer: Observer) -> PhaseSums:
    """Sums over all images of the table."""
    sums = PhaseSums.empty(len(observer.table.optics), len(observer.disc))
    for rows in observer.batches(np.argsort(observer.table.optics_index, kind="stable")):
        sums.add(observer, observer.observe(rows))
    return sums


@dataclass(frozen=True)
class PhaseFit:
    """A phase fitted to the sums of one optics group.

    Attributes
    ----------
    polynomial, covariance
        Coefficients of monomials (M,), and their covariance by the noise (M, M).
    gain
        Of the log-likelihood over the best phase without what was asked for.
    free
        Number of coefficients that were asked for.
    """

    polynomial: np.ndarray
    covariance: np.ndarray
    gain: float
    free: int

    def is_for(self, has_some: bool) -> bool:
        """Whether it is to be taken: noise alone gains so much in `FALSE_ALARMS` of all fits.

        Where a group has some phase of the kind already, any gain will do: it is the better estimate of what is there.
        """
        return self.gain > 0 if has_some else is_beyond_noise(self.gain, self.free)


def is_beyond_noise(gain: float, free: int) -> bool:
    """Whether a gain in log-likelihood by some free numbers is more than noise's: twice of that is a chi-square."""
    return bool(2 * gain > chi2.ppf(1 - FALSE_ALARMS, free))


def fit_odd(sums: PhaseSums, group: int, disc: Disc, length: float, *, coma: bool, trefoil: bool) -> PhaseFit:
    """Odd phase of a group's images beyond what was taken out of them: linear, and what is asked for.

    The linear part, a shift of all images, is always free: coma has one, and the poses were found with it in place. It
    is no aberration, and no gain by it counts: the lattice on which a refinement has searched for shifts lies alike
    about all particles, and moves them all alike by some hundredths of a pixel.
    """
    asked = (*(COMA if coma else ()), *(TREFOIL if trefoil else ()))
    basis = np.array([*LINEAR, *asked], dtype=np.float64)
    data, weight = sums.odd[group], np.maximum(sums.odd_weight[group], 1e-12)
    root = np.sqrt(weight)

    def residual(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turned = np.exp(1j * phase)
        value, slope = root * turned - data / root, 1j * root * turned
        return np.stack([value.real, value.imag]), np.stack([slope.real, slope.imag])

    powers = monomials(disc.kx / length, disc.ky / length, ODD_TERMS, odd=True)
    whole, shift = (_fit(residual, powers, used, disc) for used in (basis, basis[: len(LINEAR)]))
    return replace(whole, gain=whole.gain - shift.gain, free=len(asked))


def fit_even(sums: PhaseSums, group: int, disc: Disc, length: float) -> PhaseFit:
    """Even phase of a group's CTFs beyond what they have: all terms up to the 4th order.

    Each shell has an amplitude of its own, the best one: phases would make up for signal that references lack, or have
    too much of.
    """
    y, b = sums.even[group], sums.even_weight[group]
    powers = monomials(disc.kx / length, disc.ky / length, EVEN_TERMS)
    amplitude, fit = np.ones(len(disc)), None
    none = _profile(y, b, np.zeros(len(disc)), disc)
    for _ in range(AMPLITUDES):
        phase = np.zeros(len(disc)) if fit is None else fit.polynomial @ powers
        above, below = _profile(y, b, phase, disc)
        amplitude = np.maximum(above / np.maximum(below, 1e-12), LEAST_AMPLITUDE)[disc.shell]
        fit = _fit(_residual_of(amplitude * y, amplitude**2 * b), powers, np.eye(EVEN_TERMS), disc)
    assert fit is not None, "fitted at least once"
    best = _profile(y, b, fit.polynomial @ powers, disc)
    gain = sum(sign * float((above**2 / np.maximum(below, 1e-12))[1:].sum()) / 2
               for sign, (above, below) in ((1, best), (-1, none)))  # fmt: skip
    return replace(fit, gain=gain)


def _profile(y: np.ndarray, b: np.ndarray, phase: np.ndarray, disc: Disc) -> tuple[np.ndarray, np.ndarray]:
    """v.y and v^T B v summed over each shell, (shells,), of v = (cos e, -sin e)."""
    cosine, sine = np.cos(phase), np.sin(phase)
    above, below = cosine * y[0] - sine * y[1], cosine**2 * b[0] - 2 * sine * cosine * b[1] + sine**2 * b[2]
    return tuple(np.bincount(disc.shell, part, disc.last + 1) for part in (above, below))  # type: ignore[return-value]


def _residual_of(y: np.ndarray, b: np.ndarray) -> Residual:
    """What is left of the even phase's equations, whitened: L^T v - L^-1 y with B = L L^T; and its slope."""
    b_ss, b_sc, b_cc = b
    least = 1e-12 + 1e-6 * b_ss.mean()  # the weight of cos^2 and sin^2 is there everywhere but for few images
    l_00 = np.sqrt(b_ss + least)
    l_10 = b_sc / l_00
    l_11 = np.sqrt(np.maximum(b_cc + least - l_10**2, least))
    first = y[0] / l_00
    second = (y[1] - l_10 * first) / l_11

    def residual(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def upper(v_0: np.ndarray, v_1: np.ndarray) -> np.ndarray:
            return np.stack([l_00 * v_0 + l_10 * v_1, l_11 * v_1])  # L^T v

        cosine, sine = np.cos(phase), np.sin(phase)
        return upper(cosine, -sine) - np.stack([first, second]), upper(-sine, -cosine)

    return residual


def _fit(residual: Residual, powers: np.ndarray, basis: np.ndarray, disc: Disc) -> PhaseFit:
    """Least squares in the coefficients of a basis of monomials (p, M), from no phase at all, over growing bands."""
    columns = basis @ powers  # (p, J)
    size = np.abs(columns).max(axis=1)
    columns = columns / size[:, None]
    found = np.zeros(len(basis))
    jacobian = np.zeros((0, len(basis)))
    for band in BANDS:
        pixels = slice(0, disc.size(max(2, round(band * disc.last))))

        def values(x: np.ndarray, used: slice = pixels) -> np.ndarray:
            return np.append(residual(x @ columns)[0][:, used].ravel(), x / PRIOR)

        def slopes(x: np.ndarray, used: slice = pixels) -> np.ndarray:
            slope = residual(x @ columns)[1][:, used]
            rows = (slope[:, None] * columns[None, :, used]).transpose(0, 2, 1).reshape(-1, len(columns))
            return np.concatenate([rows, np.eye(len(columns)) / PRIOR])

        found = least_squares(values, found, slopes, method="lm", x_scale=1.0).x
        jacobian = slopes(found)
    gain = (np.sum(residual(0 * columns[0])[0] ** 2) - np.sum(residual(found @ columns)[0] ** 2)) / 2
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    turn = basis.T / size  # (M, p): from scaled coefficients to monomials
    return PhaseFit(turn @ found, turn @ covariance @ turn.T, float(gain), len(basis))


def with_odd(group: OpticsGroup, polynomial: np.ndarray, *, is_tilt: bool) -> OpticsGroup:
    """A group with an odd phase added: coma as a beam tilt where one is refined and makes any, the rest as Zernike."""
    lam = float(wavelength(np.array(group.voltage_kv)))
    total = added(group.odd_polynomial(), polynomial)
    if is_tilt and group.cs_mm > 0:
        tilt, rest = split_coma(total, group.cs_mm, lam)
    else:
        tilt, rest = group.beam_tilt, added(total, -odd_polynomial((), group.beam_tilt, group.cs_mm, lam))
    odd = odd_coefficients(rest)
    odd[np.abs(odd) < 1e-9 * np.abs(total).max(initial=0)] = 0  # what rounding has left
    return replace(group, beam_tilt=tilt, odd=tuple(odd.tolist()))


def has_odd(group: OpticsGroup) -> bool:
    """Whether a group has odd aberrations."""
    return any(group.beam_tilt) or any(group.odd)


def added(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sum of two polynomials of any lengths."""
    size = max(len(first), len(second))
    return np.pad(first, (0, size - len(first))) + np.pad(second, (0, size - len(second)))


def zernike_text(values: Sequence[float], least: int) -> str:
    """Coefficients as RELION writes them, with zeros to a length."""
    padded = [*values, *[0.0] * (least - len(values))]
    return f"[{','.join(f'{value:.9g}' for value in padded)}]"
