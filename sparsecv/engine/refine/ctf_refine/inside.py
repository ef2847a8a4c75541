# SPDX-License-Identifier: GPL-3.0-or-later
"""CTF refinement inside of a refinement: what its particles and half maps say of the optics after an iteration.

Every particle is compared with its own half's map at the pose that it has just been given, as in :mod:`.run`. What it
has of its own is a change d of its defocus, of which the likelihood L(d) is looked at as a whole: with a Gaussian prior

    p(d) = exp(L(d) - d^2 / 2 w^2) / Z(w),

of the width w that makes the particles of its half most likely, sum log Z(w) - log Z_0(w), the posterior's mean is the
estimate with the least error. Where there is nothing to be found w is 0, and nothing is changed. Changes are counted
from the table as it was given, so that iterations do not add up noise. Micrographs and optics groups, of which both
halves have particles, are fitted by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from sparsecv.engine.io.optics_terms import BEAM_TILT, ODD
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import defocus_terms, wavelength
from sparsecv.engine.physics.geometry import matrix_to_euler
from sparsecv.engine.ranks import Comm
from sparsecv.engine.ranks.comm import summed
from sparsecv.engine.refine.ctf_refine.aberrations import ODD_TERMS, PhaseSums, fit_odd, has_odd, with_odd, zernike_text
from sparsecv.engine.refine.ctf_refine.defocus import (
    GRID_RADIANS,
    Rings,
    likelihood_of_changes,
    refine_defocus,
    with_changes,
)
from sparsecv.engine.refine.ctf_refine.observations import (
    Observer,
    References,
    amplitudes,
    full_share,
    kappa_of,
    own_excess,
    shared,
    shell_sums,
)
from sparsecv.engine.refine.half import Particles
from sparsecv.engine.refine.state import RefinementState
from sparsecv.engine.validate.fsc import GOLD_STANDARD, last_shell_above, mask_corrected_fsc

FINE = "fine"
LARGEST_CHANGE = 2000.0  # A
LEAST_SHELLS = 5  # that must agree: a CTF of fewer says nothing
LEAST_PARTICLES = 100  # of an optics group
LEAST_UPDATES = 2  # the reference of the last iteration but one has seen the first
FINER = 6  # points of the posterior to one of the likelihood
LOOKED_AT = 1000  # about so many particles tell kappa and amplitudes
WIDTHS = 48  # tried for the prior
WIDTH_PARTICLES = 4000  # about so many of a half tell it


@dataclass(frozen=True)
class InnerCtf:
    """What of the CTF is refined along with the poses.

    Attributes
    ----------
    given
        The particles as they were given.
    defocus, astigmatism, aberrations
        Of each particle and each micrograph, after local and fine iterations; of each optics group (beam tilt and
        trefoil), after fine ones.
    mask
        (box, box, box) float32 on the host: of the references.
    is_masked
        Whether it is a mask and no sphere: then the FSC is that inside it, corrected for it.
    """

    given: ParticleTable
    defocus: bool
    astigmatism: bool
    aberrations: bool
    mask: np.ndarray
    is_masked: bool

    def bring(self, particles: Particles, state: RefinementState) -> None:
        """Let the particles have the optics of a state."""
        table = with_changes(self.given, state.particles.defocus_change)
        if state.odd_change.any():
            table = table.with_optics(tuple(
                with_odd(group, change, is_tilt=True) if change.any() else group
                for group, change in zip(table.optics, state.odd_change, strict=True)))  # fmt: skip
        particles.table, particles.parameters = table, table.ctf_parameters()
        particles.images.show(table)

    def is_settled(self, state: RefinementState) -> bool:
        """Whether enough updates have been made for a last iteration."""
        updates = [entry["stage"] for entry in state.history if "ctf" in entry]
        return (updates.count(FINE) if self.aberrations else len(updates)) >= LEAST_UPDATES

    def update(self, ops: Any, particles: Particles, state: RefinementState, maps: tuple[np.ndarray, np.ndarray],
               curve: np.ndarray, comm: Comm) -> dict[str, Any]:
        """Change the optics in a state by what this iteration's half maps say; returns plain numbers for the history.

        Parameters
        ----------
        maps, curve
            Half maps and their FSC in the sphere, 0 in shells that were not backprojected; of the root.
        """
        box = self.given.box
        maps, curve = comm.at_root(lambda: (maps, self._curve(maps, curve)))
        state.particles = comm.at_root(lambda: state.particles)
        last = min(last_shell_above(curve, GOLD_STANDARD), (box - 1) // 2)
        told: dict[str, Any] = {"shells": last}
        if last < LEAST_SHELLS:
            return told
        references = References.of(ops, maps, self.mask, curve, last, with_moments=False)
        rows = self._rows(state, comm)
        observer = _observer(ops, particles, state, references, rows)
        observer, told["own_part"] = _without_own(observer, rows, len(self.given), comm)
        # of poses that are still far off a tilt could be made up; a prior keeps defoci from that
        asked = self if state.stage == FINE else replace(self, aberrations=False)
        found = _Found.of(asked, observer, rows, state)
        parts = comm.gathered(found)
        return told | comm.at_root(lambda: asked._taken_over(parts, observer, particles, state))

    def columns(self, table: ParticleTable) -> tuple[dict[str, Any], dict[str, Sequence[Any]]]:
        """Columns of the particles and of the optics table that have changed, for a STAR file."""
        own: dict[str, Any] = {}
        optics: dict[str, Sequence[Any]] = {}
        if self.defocus or self.astigmatism:
            own = {"rlnDefocusU": table.defocus_u, "rlnDefocusV": table.defocus_v,
                   "rlnDefocusAngle": table.defocus_angle}  # fmt: skip
        if self.aberrations:
            optics = {name: [group.beam_tilt[axis] for group in table.optics] for axis, name in enumerate(BEAM_TILT)}
            optics[ODD] = [zernike_text(group.odd, ODD_TERMS) for group in table.optics]
        return own, optics

    def _curve(self, maps: tuple[np.ndarray, np.ndarray], curve: np.ndarray) -> np.ndarray:
        if not self.is_masked:
            return curve
        inside = mask_corrected_fsc(*maps, self.mask, np.random.default_rng(1)).corrected
        return np.where(curve == 0, 0, inside)

    def _rows(self, state: RefinementState, comm: Comm) -> np.ndarray:
        """This rank's rows of the table: whole micrographs where these have something in common.

        Not among them are particles set aside and those whose images hold the CTF that they were thought to have.
        """
        held = np.array([group.is_flipped or group.is_premultiplied for group in self.given.optics])
        used = ~state.particles.is_rejected & ~held[self.given.optics_index] & (self.given.ctf_scale != 0)
        rows = np.flatnonzero(used)
        if not self.astigmatism:
            rows = rows[np.argsort(self.given.halves[rows], kind="stable")]
            return np.array_split(rows, comm.size)[comm.rank]
        micrograph = self.given.micrograph_index[rows]
        rows = rows[np.argsort(micrograph, kind="stable")]
        ordered = self.given.micrograph_index[rows]
        first = np.searchsorted(ordered, ordered)  # place of the first particle of the micrograph
        found: np.ndarray = rows[first * comm.size // max(len(rows), 1) == comm.rank]
        return found

    def _taken_over(self, parts: Sequence[_Found], observer: Observer, particles: Particles,
                    state: RefinementState) -> dict[str, Any]:
        """Write what all ranks have found into the state."""
        told: dict[str, Any] = {}
        rows = np.concatenate([part.rows for part in parts])
        before = state.particles.defocus_change[rows]
        if self.defocus or self.astigmatism:
            terms = np.concatenate([part.terms for part in parts])
            if self.defocus:
                own, told["width_A"] = self._by_particle(np.concatenate([part.likelihood for part in parts]),
                                                         parts[0].changes, self.given.halves[rows])
                terms[:, 0] += own
            state.particles.defocus_change[rows] = terms
            told["moved_A"] = float(np.median(np.abs(terms[:, 0] - before[:, 0])))
            told["changed_A"] = float(np.sqrt((terms[:, 0] ** 2).mean()))
        if self.aberrations:
            sums = PhaseSums(*(summed([getattr(part.phases, name) for part in parts])
                               for name in ("odd", "odd_weight", "even", "even_weight")))  # fmt: skip
            told["tilts_mrad"] = self._of_groups(sums, observer, particles, state, rows)
        return told

    def _by_particle(self, likelihood: np.ndarray, changes: np.ndarray,
                     halves: np.ndarray) -> tuple[np.ndarray, list[float]]:  # fmt: skip
        """Change of each particle's defocus, A, and the width of the prior of each half."""
        found, widths = np.zeros(len(halves)), []
        for half in (1, 2):
            own = halves == half
            width = prior_width(likelihood[own], changes)
            found[own] = posterior_mean(likelihood[own], changes, width)
            widths.append(width)
        return found, widths

    def _of_groups(self, sums: PhaseSums, observer: Observer, particles: Particles, state: RefinementState,
                   rows: np.ndarray) -> list[list[float]]:  # fmt: skip
        """Fit the odd phase of every optics group that has enough particles; returns the tilts of all, mrad."""
        table, length = particles.table, self.given.box * self.given.pixel_size
        counts = np.bincount(self.given.optics_index[rows], minlength=len(self.given.optics))
        for number in np.flatnonzero(counts >= LEAST_PARTICLES).tolist():
            fit = fit_odd(sums, number, observer.disc, length, coma=True, trefoil=True)
            if fit.is_for(has_odd(table.optics[number])):
                state.odd_change[number] += np.append([0, 0], fit.polynomial[2:])
                # the linear part is a shift of the images, and poses can have that
                moved = fit.polynomial[:2] / (2 * np.pi * self.given.pixel_size)
                state.particles.shifts_px[table.optics_index == number] += moved
        return [list(with_odd(group, change, is_tilt=True).beam_tilt if change.any() else group.beam_tilt)
                for group, change in zip(self.given.optics, state.odd_change, strict=True)]  # fmt: skip


@dataclass
class _Found:
    """What a rank has learnt of its rows.

    Attributes
    ----------
    rows
        (m,) of the table.
    terms
        (m, 3) A: changes of the `defocus_terms` from the table as it was given, but for the particle's own.
    changes, likelihood
        (G,) changes of a particle's own, A, and the log-likelihood of each, (m, G).
    phases
        Sums for the optics groups.
    """

    rows: np.ndarray
    terms: np.ndarray
    changes: np.ndarray
    likelihood: np.ndarray
    phases: PhaseSums

    @classmethod
    def of(cls, asked: InnerCtf, observer: Observer, rows: np.ndarray, state: RefinementState) -> _Found:
        """Compare all rows of an observer, which are those of the table, with their references."""
        table, disc = observer.table, observer.disc
        rings = Rings.of(disc, table.box * table.pixel_size)
        start = state.particles.defocus_change[rows]
        given = np.stack(defocus_terms(table.defocus_u, table.defocus_v, table.defocus_angle), axis=1) - start
        rate = np.pi * float(wavelength(np.array([group.voltage_kv for group in table.optics])).max())
        step = GRID_RADIANS / (rate * rings.square[-1])
        count = int(np.ceil(LARGEST_CHANGE / step))
        changes = np.arange(-count, count + 1) * step
        terms, found = start.copy(), np.zeros((len(rows), len(changes) if asked.defocus else 0))
        phases = PhaseSums.empty(len(table.optics), len(disc))
        for part in observer.micrographs() if asked.astigmatism else observer.batches(np.arange(len(rows))):
            if not len(part):
                continue
            seen = observer.observe(part)
            if asked.aberrations:
                phases.add(observer, seen)
            if asked.astigmatism:
                terms[part] += refine_defocus(observer, given, rings, part, defocus=False, astigmatism="micrograph",
                                              limit=LARGEST_CHANGE, width=LARGEST_CHANGE, seen=seen).terms  # fmt: skip
            if asked.defocus:  # counted from what the micrograph's particles share
                terms[part, 0] = _means(terms[part, 0], table.micrograph_index[part]) if asked.astigmatism else 0.0
                found[part] = likelihood_of_changes(observer, seen, rings, terms[part] - start[part], changes)
        return cls(rows, terms, changes, found, phases)


def _means(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Mean of values (I,) over all that have the same owner, (I,)."""
    place = np.unique(owner, return_inverse=True)[1]
    mean: np.ndarray = (np.bincount(place, values) / np.bincount(place))[place]
    return mean


def prior_width(likelihood: np.ndarray, changes: np.ndarray) -> float:
    """The width w, A, of the Gaussian prior that makes particles with log-likelihoods (I, G) most likely; may be 0."""
    few = max(1, len(likelihood) // WIDTH_PARTICLES)
    values, fine = _finer(likelihood[::few], changes)
    highest = values.max(axis=1, keepdims=True)
    weight = np.exp(values - highest)
    at_zero = (values[:, len(fine) // 2] - highest[:, 0]).sum()
    best, width = at_zero, 0.0
    for tried in np.geomspace(fine[1] - fine[0], changes[-1], WIDTHS).tolist():
        prior = np.exp(-(fine**2) / (2 * tried**2))
        score = np.log(weight @ prior / prior.sum()).sum()
        if score > best:
            best, width = score, tried
    return float(width)


def posterior_mean(likelihood: np.ndarray, changes: np.ndarray, width: float) -> np.ndarray:
    """Mean change, A, of each particle with the log-likelihood (I, G) at changes (G,) and a prior of a width."""
    found = np.zeros(len(likelihood))
    for start in range(0, len(likelihood) if width > 0 else 0, WIDTH_PARTICLES):
        part = slice(start, start + WIDTH_PARTICLES)
        values, fine = _finer(likelihood[part], changes)
        values = values - fine**2 / (2 * width**2)
        weight = np.exp(values - values.max(axis=1, keepdims=True))
        found[part] = weight @ fine / weight.sum(axis=1)
    return found


def _finer(likelihood: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods at `FINER` times as many changes, and these; a spline, as they are sampled well."""
    fine = np.linspace(changes[0], changes[-1], FINER * (len(changes) - 1) + 1)
    return np.asarray(CubicSpline(changes, likelihood, axis=1)(fine)), fine


def _observer(ops: Any, particles: Particles, state: RefinementState, references: References,
              rows: np.ndarray) -> Observer:  # fmt: skip
    """Of some rows of the table at the poses of a state, with the state's scales and noise."""
    poses, table = state.particles, particles.table
    table = replace(table, angles=matrix_to_euler(poses.rotations), shifts=poses.shifts_px * table.pixel_size)
    half = table.halves - 1
    scale = np.stack([one.scale for one in state.halves])[half, table.group_index]
    observer = Observer.of(ops, table.select(rows), references, poses.norm[rows])
    noise = np.concatenate([particles.known(one.noise) for one in state.halves])[:, : observer.disc.last + 1]
    return replace(observer, scale=scale[rows], noise=noise,
                   store=lambda index: particles.images.get(rows[index]))  # fmt: skip


def _without_own(observer: Observer, rows: np.ndarray, particles: int, comm: Comm) -> tuple[Observer, float]:
    """The observer with its amplitudes, which takes particles out of their maps, and kappa; by some of all rows."""
    few = np.flatnonzero(rows % max(1, particles // LOOKED_AT) == 0)
    table, shells = observer.table, observer.disc.last + 1
    half, offsets = table.halves - 1, observer.disc.on(observer.ops.xp).offsets
    power, counts = np.zeros((2, shells)), np.zeros((2, 2))
    for part in observer.batches(few):
        phase, envelope = observer.optics_of(table, part)
        values = (envelope * observer.ops.xp.sin(phase)) ** 2
        np.add.at(power, half[part], observer.ops.to_host(observer.ops.sum_disc_shells(values, offsets)))
    np.add.at(counts[0], half, 1)
    np.add.at(counts[1], half[few], 1)
    power, counts = _of_all(comm, power, counts)
    share = full_share(observer, power * (counts[0] / np.maximum(counts[1], 1))[:, None])
    excess, expected = _of_all(comm, *map(np.array, own_excess(replace(observer, share=share), few)))
    kappa = kappa_of(float(excess), float(expected))
    observer = replace(observer, share=shared(share, kappa))
    sums = np.zeros((2, 2, shells))
    for part in observer.batches(few):
        for total, values in zip(sums, shell_sums(observer, observer.observe(part))[1:3], strict=True):
            np.add.at(total, half[part], values)
    cross, signal = _of_all(comm, *sums)
    return replace(observer, amplitude=amplitudes(cross, signal, np.arange(2))), kappa


def _of_all(comm: Comm, *arrays: np.ndarray) -> list[np.ndarray]:
    """Sums of arrays over all ranks, at all ranks."""
    parts = comm.gathered(arrays)
    return comm.at_root(lambda: [summed(values) for values in zip(*parts, strict=True)])
