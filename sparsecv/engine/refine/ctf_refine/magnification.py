# SPDX-License-Identifier: GPL-3.0-or-later
"""Anisotropic magnification of an optics group: frequency k of its images is M k of the particle.

    X(k) = C(k) P(M k),   dP/dM_ab = k_b dP/dq_a,   dP/dq_a = -2 pi i / box sum_c A_ac slice(r_c V)

with exact gradients, as slices of the maps x V, y V and z V. Gauss-Newton in the four elements of M. The CTF stays what
it is in the image, where it was measured: defoci are brought to the new coordinates with M, k^T Q k = (M k)^T Q' (M k).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsecv.engine.physics.ctf import defocus_of_terms, defocus_terms
from sparsecv.engine.refine.ctf_refine.aberrations import is_beyond_noise
from sparsecv.engine.refine.ctf_refine.observations import Observer

STEPS = 3
LARGEST = 0.05  # of an element of M - 1 in one step
LEAST_GAIN = 2.0  # nats, of a further step
ISOTROPIC = np.array([[1, 0, 0, 1], [0, 1, -1, 0]])  # a scale and a turn, of the elements of M


@dataclass(frozen=True)
class MagnificationFit:
    """The observer with M, and of each optics group its standard errors, (G, 2, 2), and the gain in nats, (G,)."""

    observer: Observer
    error: np.ndarray
    gain: np.ndarray


def fit_magnification(observer: Observer, groups: np.ndarray, begun: np.ndarray) -> MagnificationFit:
    """M of some optics groups, (G,) bool, of which some have one already, ``begun`` (G,) bool.

    Images are read anew at every step, as their new M has it.

    The gain of a step is the integral of the gradient along it, by the trapezoidal rule. The first must gain more than
    noise does by its two numbers of anisotropy: what a scale and a turn gain, which are the map's and the poses', is
    taken off. A further one must gain half a nat for each of the four numbers. A step that does not is taken back, and
    ends it for that group.
    """
    rows = np.flatnonzero(groups[observer.table.optics_index])
    rows = rows[np.argsort(observer.table.optics_index[rows], kind="stable")]
    gradient, hessian = _sums(observer, rows)
    gain, active = np.zeros(len(groups)), groups.copy()
    error = np.stack([np.sqrt(np.maximum(np.diagonal(np.linalg.pinv(one)), 0)) for one in hessian]).reshape(-1, 2, 2)
    for number in range(STEPS):
        step = np.stack([np.linalg.lstsq(h, g, rcond=None)[0] for g, h in zip(gradient, hessian, strict=True)])
        step = np.where(active[:, None], np.clip(step, -LARGEST, LARGEST), 0)
        new_gradient, new_hessian = _sums(with_magnification(observer, step.reshape(-1, 2, 2)), rows)
        gained = ((gradient + new_gradient) * step).sum(axis=1) / 2
        if number:
            active = active & (gained > LEAST_GAIN)
        else:
            anisotropic = gained - _isotropic_gain(gradient, hessian)
            beyond = np.array([is_beyond_noise(one, 2) for one in anisotropic.tolist()])
            active = active & (beyond | (begun & (gained > LEAST_GAIN)))
        if not active.any():
            break
        observer = with_magnification(observer, np.where(active[:, None], step, 0).reshape(-1, 2, 2))
        gain += np.where(active, gained, 0)
        gradient, hessian = new_gradient, new_hessian
    return MagnificationFit(observer, error, gain)


def _isotropic_gain(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """What a scale and a turn alone would gain of the log-likelihood, (G,), by gradient and information."""
    found = []
    for pull, stiff in zip(gradient @ ISOTROPIC.T, ISOTROPIC @ hessian @ ISOTROPIC.T, strict=True):
        found.append(pull @ np.linalg.lstsq(stiff, pull, rcond=None)[0] / 2)
    return np.array(found)


def _sums(observer: Observer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (G, 4) of the log-likelihood of each optics group in the elements of M, and information (G, 4, 4).

    References P = W (P_0 + e) have noise, and the filter's slope makes one that is stretched seem to fit better: with
    W = P_0^2 / (P_0^2 + e^2), E Re conj(dP/dq) C (X - C P) = C^2 |P|^2 W' / 2W along q. It is taken off.
    """
    disc, index, count = observer.disc, observer.table.optics_index, len(observer.table.optics)
    k = np.stack([disc.kx, disc.ky]).astype(np.float64)
    weights = np.maximum(observer.references.weights, 1e-3)
    fall = (np.gradient(np.log(weights)) / 2)[disc.shell]
    along = k[:, None] * k[None] * (fall / np.hypot(*k))  # (2, 2, J)
    gradient, hessian = np.zeros((count, 4)), np.zeros((count, 4, 4))
    for part in observer.batches(rows):
        seen, rotations = observer.observe(part), observer.rotations(part)
        values = seen.envelope * np.sin(seen.phase)
        expected = seen.slices * values
        scaled = values * observer.factors(part) * np.any(seen.slices, axis=1, keepdims=True)
        moments = [observer.slices_of((first, second), part, rotations)
                   for first, second in zip(*observer.references.moments, strict=True)]  # fmt: skip
        factor = np.complex64(-2j * np.pi / observer.table.box)
        slopes = [np.sum([rotations[:, a, c, None].astype(np.float32) * moment for c, moment in enumerate(moments)],
                         axis=0) * factor for a in (0, 1)]  # fmt: skip
        if seen.own is not None:
            slopes = [slope - own for slope, own in zip(slopes, observer.gradients(seen.own), strict=True)]
        slopes = [slope * scaled for slope in slopes]
        residual = (seen.images - expected) * seen.inverse
        power = (expected.real**2 + expected.imag**2) * seen.inverse
        for group in np.unique(index[part]).tolist():
            own = index[part] == group
            pull = [(np.conj(slope[own]) * residual[own]).real.sum(axis=0, dtype=np.float64) for slope in slopes]
            gradient[group] += np.array([[pull[a] @ k[b] for b in (0, 1)] for a in (0, 1)]).ravel()
            gradient[group] -= (along @ power[own].sum(axis=0, dtype=np.float64)).ravel()
            stiff = {(a, c): ((np.conj(slopes[a][own]) * slopes[c][own]).real * seen.inverse[own])
                     .sum(axis=0, dtype=np.float64) for a, c in ((0, 0), (0, 1), (1, 1))}  # fmt: skip
            for first in range(4):
                for second in range(4):
                    (a, b), (c, d) = divmod(first, 2), divmod(second, 2)
                    hessian[group, first, second] += (stiff[min(a, c), max(a, c)] * k[b]) @ k[d]
    return gradient, hessian


def with_magnification(observer: Observer, change: np.ndarray) -> Observer:
    """The observer with M multiplied by 1 + change (G, 2, 2), and defoci brought to the new coordinates."""
    table = observer.table
    matrices = np.eye(2) + change
    optics = tuple(replace(group, magnification=tuple((matrix @ group.matrix).ravel().tolist()))
                   for group, matrix in zip(table.optics, matrices, strict=True))  # fmt: skip
    mean, along, across = defocus_terms(table.defocus_u, table.defocus_v, table.defocus_angle)
    forms = np.stack([np.stack([mean + along, across], axis=1), np.stack([across, mean - along], axis=1)], axis=1)
    inverse = np.linalg.inv(matrices)[table.optics_index]
    forms = np.swapaxes(inverse, 1, 2) @ forms @ inverse
    u, v, angle = defocus_of_terms((forms[:, 0, 0] + forms[:, 1, 1]) / 2, (forms[:, 0, 0] - forms[:, 1, 1]) / 2,
                                   forms[:, 0, 1])  # fmt: skip
    moved = (np.abs(change).max(axis=(1, 2)) > 0)[table.optics_index]  # others stay what they are to the last digit
    table = replace(table.with_optics(optics), defocus_u=np.where(moved, u, table.defocus_u),
                    defocus_v=np.where(moved, v, table.defocus_v),
                    defocus_angle=np.where(moved, angle, table.defocus_angle))  # fmt: skip
    return replace(observer, table=table)
