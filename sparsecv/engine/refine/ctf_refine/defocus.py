# SPDX-License-Identifier: GPL-3.0-or-later
"""Defocus of each particle, and astigmatism of each micrograph or particle, by maximum likelihood.

A change of defocus d changes the phase of the CTF by d g, g = pi lambda |k|^2, which is the same on a whole ring of
pixels of one |k|. With a = E Re(conj(s P) X) / sigma^2 and b = E^2 |s P|^2 / sigma^2, the log-likelihood is up to a
constant

    L(d) = sum_rings A cos(d g) + B sin(d g) + 1/4 (C cos(2 d g) - D sin(2 d g)),
    A, B = sum over the ring of a sin(gamma), a cos(gamma),   C, D = sum of b cos(2 gamma), b sin(2 gamma)

exactly: the images are summed over rings once, a grid of changes is one matrix product, and Newton's method ends it.
Astigmatism is not the same along a ring. gamma is linear in the `defocus_terms`, so that Gauss-Newton steps in these,

    H = sum b cos^2(gamma) u u^T,   gradient = sum (a - b sin(gamma)) cos(gamma) u,
    u = pi lambda (|k|^2, x^2 - y^2, 2 x y)

need no derivative beyond u. Steps that lower the likelihood are halved, and then left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import defocus_of_terms, defocus_terms, wavelength
from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.refine.ctf_refine.observations import Observed, Observer

GRID_RADIANS = 0.5  # of the phase at the highest frequency, between neighbours of the grid
GRID_BLOCK = 64  # changes
NEWTON_STEPS, GAUSS_NEWTON_STEPS, HALVINGS = 6, 4, 3
ALTERNATIONS = 2  # of defocus by particle and astigmatism by micrograph


@dataclass(frozen=True)
class Rings:
    """The disc's pixels by |k|^2: the order that sorts them, where rings begin and end, and |k|^2 of each in 1/A^2."""

    order: np.ndarray
    offsets: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, disc: Disc, length: float) -> Rings:
        """Rings of a disc; ``length`` is the side of the box, A."""
        square = disc.kx.astype(np.int64) ** 2 + disc.ky.astype(np.int64) ** 2
        order = np.argsort(square, kind="stable")
        values, starts = np.unique(square[order], return_index=True)
        return cls(order, np.append(starts, len(order)).astype(np.int32), values / length**2)

    def sums(self, ops: Any, values: Any) -> np.ndarray:
        """Sums over the rings, float64 (I, Q) on the host, of values (I, J)."""
        order, offsets = ops.xp.asarray(self.order), ops.xp.asarray(self.offsets)
        found: np.ndarray = ops.to_host(ops.sum_disc_shells(values.take(order, axis=1), offsets))
        return found


@dataclass(frozen=True)
class Profile:
    """The log-likelihood of changes of defocus, of images of one wavelength.

    Attributes
    ----------
    terms
        A, B, C, D of the equation above, (4, I, Q).
    rate
        (Q,) g, rad / A.
    precision
        1 / width^2 of a Gaussian prior on changes, 1/A^2.
    start
        (I,) changes made before: what the prior and the range are counted from.
    """

    terms: np.ndarray
    rate: np.ndarray
    precision: float
    start: np.ndarray

    def on_grid(self, changes: np.ndarray) -> np.ndarray:
        """L (I, G) at changes (G,), A."""
        a, b, c, d = self.terms
        found = np.empty((a.shape[0], len(changes)))
        for start in range(0, len(changes), GRID_BLOCK):  # a table for all at once could be of gigabytes
            part = slice(start, start + GRID_BLOCK)
            angle = self.rate[:, None] * changes[part]
            found[:, part] = a @ np.cos(angle) + b @ np.sin(angle)
            found[:, part] += (c @ np.cos(2 * angle) - d @ np.sin(2 * angle)) / 4
        return found - self.precision / 2 * (self.start[:, None] + changes) ** 2

    def at(self, change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """L and its first and second derivatives (I,), each image at its own change (I,)."""
        angle = change[:, None] * self.rate
        a, b, c, d = self.terms
        cosine, sine, cosine2, sine2 = np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)
        total = self.start + change
        value = a * cosine + b * sine + (c * cosine2 - d * sine2) / 4
        slope = (b * cosine - a * sine - (c * sine2 + d * cosine2) / 2) @ self.rate
        bend = (-a * cosine - b * sine - c * cosine2 + d * sine2) @ self.rate**2
        return (value.sum(axis=1) - self.precision / 2 * total**2, slope - self.precision * total,
                bend - self.precision)  # fmt: skip


def best_change(profile: Profile, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The change of defocus of each image with the highest likelihood.

    Parameters
    ----------
    limit
        Largest change, counted from the start, A.

    Returns
    -------
    change, gain, curvature
        (I,) A; L there less L at 0, never negative; -L'' there, 1/A^2.
    """
    step = GRID_RADIANS / profile.rate[-1]
    reach = limit + float(np.abs(profile.start).max(initial=0))
    count = int(np.ceil(reach / step))
    changes = np.arange(-count, count + 1) * step
    score = profile.on_grid(changes)
    score[np.abs(profile.start[:, None] + changes) > limit + 1e-6] = -np.inf
    score[:, count] = profile.at(np.zeros(len(profile.start)))[0]  # what it was is always allowed
    best = changes[np.argmax(score, axis=1)]
    lowest, highest = -limit - profile.start, limit - profile.start
    value, slope, bend = profile.at(best)
    for _ in range(NEWTON_STEPS):
        wanted = np.where(bend < 0, -slope / np.minimum(bend, -1e-30), np.sign(slope) * step / 4)
        tried = np.clip(best + np.clip(wanted, -step, step), np.minimum(lowest, best), np.maximum(highest, best))
        new = profile.at(tried)
        better = new[0] > value
        best = np.where(better, tried, best)
        value, slope, bend = (np.where(better, *pair) for pair in zip(new, (value, slope, bend), strict=True))
    gain = value - score[:, count]
    best = np.where(gain > 0, best, 0.0)
    return best, np.maximum(gain, 0), -np.where(gain > 0, bend, profile.at(np.zeros_like(best))[2])


@dataclass
class Changes:
    """Changes of the `defocus_terms` of some rows, and what is known of them.

    Attributes
    ----------
    terms
        (I, 3) A: mean, along, across.
    error
        (I,) standard error of the mean, A, of noise alone; nan where images say nothing.
    gain
        (I,) gain in log-likelihood.
    """

    terms: np.ndarray
    error: np.ndarray
    gain: np.ndarray


def refine_defocus(observer: Observer, first: np.ndarray, rings: Rings, rows: np.ndarray, *, defocus: bool,
                   astigmatism: str | None, limit: float, width: float, seen: Observed | None = None) -> Changes:
    """Changes of defocus and astigmatism of particles of whole micrographs.

    Parameters
    ----------
    first
        (n, 3) `defocus_terms` of the table as it was given: changes are counted from there.
    rows
        (I,) of the observer's table.
    defocus, astigmatism
        Whether each particle has a change of its own; ``"micrograph"``, ``"particle"`` or None.
    limit, width
        Largest change of any term, and width of the Gaussian prior on them, A.
    seen
        Of these rows, where they have been observed already.
    """
    seen = observer.observe(rows) if seen is None else seen
    product, power = seen.products()
    pixels = _Pixels.of(observer, seen, product.real, power)
    before = pixels.likelihood(pixels.phase)
    table = observer.table
    now = np.stack(defocus_terms(table.defocus_u[rows], table.defocus_v[rows], table.defocus_angle[rows]), axis=1)
    start = now - first[rows]
    changes = np.zeros((len(rows), 3))
    error = np.full(len(rows), np.nan)
    by_particle = astigmatism == "particle"
    owner = np.arange(len(rows)) if by_particle else np.unique(table.micrograph_index[rows], return_inverse=True)[1]
    for _ in range(ALTERNATIONS if defocus and astigmatism else 1):
        if defocus:
            change, curvature = pixels.shifted(rings, start[:, 0] + changes[:, 0], limit, width)
            changes[:, 0] += change
            error = np.sqrt(1 / np.maximum(curvature, 1e-30))
            error[curvature <= 1.01 / width**2] = np.nan  # no more is known than the prior says
        if astigmatism:
            used = slice(1 if defocus and not by_particle else 0, 3)
            found, information = pixels.fitted(owner, used, start + changes, limit, width)
            changes[:, used] += found
            if not defocus:
                error = np.sqrt(1 / np.maximum(information[:, 0], 1e-30))
    return Changes(changes, error, pixels.likelihood(pixels.phase) - before)


def likelihood_of_changes(observer: Observer, seen: Observed, rings: Rings, moved: np.ndarray,
                          changes: np.ndarray) -> np.ndarray:  # fmt: skip
    """Log-likelihood of changes of defocus (G,), A, of each image seen, (I, G), up to a constant of each.

    Parameters
    ----------
    moved
        (I, 3) added to the `defocus_terms` of the table before changes are made.
    """
    product, power = seen.products()
    pixels = _Pixels.of(observer, seen, product.real, power)
    pixels.phase = pixels.moved(moved)
    terms, found = pixels.terms(rings), np.empty((len(moved), len(changes)))
    for rate in np.unique(pixels.rate):
        own = pixels.rate == rate
        found[own] = Profile(terms[:, own], rate * rings.square, 0.0, np.zeros(int(own.sum()))).on_grid(changes)
    return found


@dataclass
class _Pixels:
    """Of some images a, b and gamma at all pixels, (I, J), u / (pi lambda), (3, J) float64, and pi lambda, (I,) A.

    All but the last are on the device.
    """

    ops: Any
    cross: Any
    power: Any
    phase: Any
    directions: Any
    rate: np.ndarray

    @classmethod
    def of(cls, observer: Observer, seen: Observed, cross: Any, power: Any) -> _Pixels:
        x, y = observer.frequency
        voltage = np.array([group.voltage_kv for group in observer.table.optics])
        rate = np.pi * wavelength(voltage)[observer.table.optics_index[seen.rows]]
        directions = observer.ops.xp.asarray(np.stack([x * x + y * y, x * x - y * y, 2 * x * y]))
        return cls(observer.ops, cross, power, seen.phase.copy(), directions, rate)

    def likelihood(self, phase: Any) -> np.ndarray:
        """sum a sin(gamma) - b sin^2(gamma) / 2 of each image, (I,) on the host."""
        xp = self.ops.xp
        sine = xp.sin(phase)
        values = (self.cross - self.power * sine / 2) * sine
        found: np.ndarray = self.ops.to_host(values.sum(axis=1, dtype=xp.float64))
        return found

    def moved(self, terms: np.ndarray) -> Any:
        """gamma with (I, 3) added to the `defocus_terms`; in float64, so that neighbours in a batch do not show."""
        xp = self.ops.xp
        return (self.phase + xp.asarray(self.rate[:, None] * terms) @ self.directions).astype(xp.float32)

    def terms(self, rings: Rings) -> np.ndarray:
        """A, B, C and D of a `Profile`, (4, I, Q)."""
        sine, cosine = self.ops.xp.sin(self.phase), self.ops.xp.cos(self.phase)
        parts = (self.cross * sine, self.cross * cosine, self.power * (1 - 2 * sine * sine),
                 2 * self.power * sine * cosine)  # fmt: skip
        return np.stack([rings.sums(self.ops, part) for part in parts])

    def shifted(self, rings: Rings, start: np.ndarray, limit: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        """The best change of each image's mean defocus, which is made, and -L'' there, (I,) each."""
        terms = self.terms(rings)
        change, curvature = np.zeros(len(start)), np.zeros(len(start))
        for rate in np.unique(self.rate):
            own = self.rate == rate
            profile = Profile(terms[:, own], rate * rings.square, 1 / width**2, start[own])
            change[own], _, curvature[own] = best_change(profile, limit)
        self.phase = self.moved(np.stack([change, *np.zeros((2, len(change)))], axis=1))
        return change, curvature

    def fitted(self, owner: np.ndarray, used: slice, start: np.ndarray, limit: float,
               width: float) -> tuple[np.ndarray, np.ndarray]:
        """The best changes of some terms that images of one owner share, which are made.

        Returns
        -------
        changes, information
            (I, p) A, and the diagonal of H of each image's owner, (I, p) 1/A^2.
        """
        xp, to_host = self.ops.xp, self.ops.to_host
        count, p = int(owner.max()) + 1, len(range(*used.indices(3)))
        directions, found = self.directions[used], np.zeros((count, p))
        pairs = (directions[:, None] * directions[None]).reshape(p * p, -1)
        # earlier changes, which the prior counts in: images that share now have shared before
        total = [np.bincount(owner, column, count) for column in start[:, used].T]
        mean = np.stack(total, axis=1) / np.bincount(owner, minlength=count)[:, None]
        information = np.zeros((count, p))
        for _ in range(GAUSS_NEWTON_STEPS):
            sine, cosine = xp.sin(self.phase), xp.cos(self.phase)
            slope = to_host(((self.cross - self.power * sine) * cosine).astype(xp.float64) @ directions.T)
            weight = to_host((self.power * cosine * cosine).astype(xp.float64) @ pairs.T) * self.rate[:, None] ** 2
            gradient, hessian = np.zeros((count, p)), np.zeros((count, p * p))
            np.add.at(gradient, owner, slope * self.rate[:, None])
            np.add.at(hessian, owner, weight)
            gradient -= (mean + found) / width**2
            matrices = hessian.reshape(count, p, p) + np.eye(p) / width**2
            information = np.diagonal(matrices, axis1=1, axis2=2)
            step = np.linalg.solve(matrices, gradient[:, :, None])[:, :, 0]
            step = self._accepted(owner, used, step, mean + found, limit, width)
            if not step.any():
                break
            found += step
            self.phase = self.moved(self._spread(step[owner], used))
        return found[owner], information[owner]

    def _accepted(self, owner: np.ndarray, used: slice, step: np.ndarray, at: np.ndarray, limit: float,
                  width: float) -> np.ndarray:
        """Steps (owners, p), halved until they raise the likelihood; 0 where none does or the range would be left."""
        count = len(step)

        def score(tried: np.ndarray) -> np.ndarray:
            total = np.bincount(owner, self.likelihood(self.moved(self._spread(tried[owner], used))), count)
            return np.asarray(total - ((at + tried) ** 2).sum(axis=1) / (2 * width**2))

        before, left = score(np.zeros_like(step)), np.ones(count, dtype=bool)
        tried = step.copy()
        for _ in range(HALVINGS + 1):
            good = (score(tried) > before) & (np.abs(at + tried).max(axis=1) <= limit)
            left = ~good
            if not left.any():
                break
            tried[left] /= 2
        tried[left] = 0
        return tried

    @staticmethod
    def _spread(values: np.ndarray, used: slice) -> np.ndarray:
        """Values (I, p) of some terms as (I, 3)."""
        terms = np.zeros((len(values), 3))
        terms[:, used] = values
        return terms


def with_changes(table: ParticleTable, terms: np.ndarray) -> ParticleTable:
    """The table with changes (n, 3) of its `defocus_terms`."""
    u, v, angle = table.defocus_u, table.defocus_v, table.defocus_angle
    if not terms[:, 1:].any():  # astigmatism stays as it was written
        return replace(table, defocus_u=u + terms[:, 0], defocus_v=v + terms[:, 0])
    new = [value + change for value, change in zip(defocus_terms(u, v, angle), terms.T, strict=True)]
    u, v, angle = defocus_of_terms(*new)
    return replace(table, defocus_u=u, defocus_v=v, defocus_angle=angle)
