# SPDX-License-Identifier: GPL-3.0-or-later
"""A CTF refinement from its inputs to what was found; files are written by :mod:`.files`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.checks import floats_or
from sparsecv.engine.io.mrc import Map
from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.aberrations import even_coefficients, split_coma
from sparsecv.engine.physics.ctf import defocus_terms, wavelength
from sparsecv.engine.refine.ctf_refine.aberrations import (
    PhaseFit,
    PhaseSums,
    added,
    fit_even,
    fit_odd,
    has_odd,
    phase_sums,
    with_odd,
)
from sparsecv.engine.refine.ctf_refine.defocus import Rings, refine_defocus, with_changes
from sparsecv.engine.refine.ctf_refine.magnification import fit_magnification
from sparsecv.engine.refine.ctf_refine.observations import Observer, References, measured, without_own
from sparsecv.engine.refine.ctf_refine.settings import CtfRefineSettings
from sparsecv.engine.refine.regularise import masks
from sparsecv.engine.validate.fsc import GOLD_STANDARD, fsc, last_shell_above, mask_corrected_fsc
from sparsecv.kernels import ops

LEAST_SHELLS = 5  # that must agree: a CTF of fewer says nothing
SAME_PIXEL, UNSET = 0.01, 1e-3  # relative difference of pixel sizes; A, of a header that says 1 A and means nothing
LARGEST_NORM = 1e3
MAGNIFIED = 0.97  # part of the shells that is used where M changes

Say = Callable[[str], None]


@dataclass
class GroupResult:
    """What became of one optics group.

    Attributes
    ----------
    given, group
        As they were, and are.
    particles
        Number of them.
    is_refined
        Whether there are enough particles for anything of the group.
    tilt_error, magnification_error
        Standard errors by the noise: (2,) mrad; (2, 2). None where not refined.
    odd_gain, even_gain, magnification_gain
        Gains in log-likelihood, all rounds together.
    """

    given: OpticsGroup
    group: OpticsGroup
    particles: int
    is_refined: bool
    tilt_error: np.ndarray | None = None
    magnification_error: np.ndarray | None = None
    odd_gain: float = 0.0
    even_gain: float = 0.0
    magnification_gain: float = 0.0


@dataclass
class CtfRefineResult:
    """What a CTF refinement has found; arrays have one entry per particle of the STAR file.

    Attributes
    ----------
    table
        The particles as they were given.
    defocus_u, defocus_v, defocus_angle
        Refined, A, A, degrees.
    change, error
        Change of the mean defocus, A, and its standard error by the noise, nan where there is none.
    gain
        Of the log-likelihood, by defocus and astigmatism.
    is_at_bound
        Changes as large as the range allows.
    groups
        Of the optics table, in its order.
    resolution, shells, kappa
        A, the highest shell compared, and how much of the particles was in their own half map.
    phases
        Sums of the first round over the images as they were given, by which pictures are made; None without.
    """

    table: ParticleTable
    defocus_u: np.ndarray
    defocus_v: np.ndarray
    defocus_angle: np.ndarray
    change: np.ndarray
    error: np.ndarray
    gain: np.ndarray
    is_at_bound: np.ndarray
    groups: list[GroupResult]
    resolution: float
    shells: int
    kappa: float
    phases: PhaseSums | None = None


def ctf_refine(settings: CtfRefineSettings, half1: Map, half2: Map, say: Say, warn: Say,
               workers: int = 1) -> CtfRefineResult:
    """Refine what is asked for.

    Parameters
    ----------
    half1, half2
        Unregularised maps of the half sets, of which each particle is compared with its own.

    Raises
    ------
    InputError
        Without poses or half sets, maps of another box or pixel size, or half maps that agree on nothing.
    """
    table = _read(settings, half1, half2, warn)
    usable = _usable(table, warn)
    own = table.select(usable)
    references, resolution = _references(settings, own, half1, half2, warn, workers)
    norm = floats_or(own.star.table(own.table_name), "rlnNormCorrection", 1.0, LARGEST_NORM, "at most 1e3")
    norm = np.where(norm > 0, norm, 1.0)[own.identifiers]
    maps = settings.files[1:3]
    observer, kappa = without_own(measured(Observer.of(ops("cpu"), own, references, norm), maps))
    say(f"{len(own)} particles, compared to {resolution:.2f} A (shell {references.last_shell} of box {own.box} px); "
        f"{100 * kappa:.0f} % of what each should have left in its own half map are there, and are taken out")
    state = _State(settings, measured(observer, maps), say, warn, kappa)
    for number in range(1, settings.times + 1):
        if number > 1:
            state.measure()
        state.round(number)
    return state.result(table, np.flatnonzero(usable), resolution)


class _State:
    """What is known after each step; changes are counted from the table as it was given."""

    def __init__(self, settings: CtfRefineSettings, observer: Observer, say: Say, warn: Say, kappa: float) -> None:
        self.settings, self.observer, self.say, self.kappa = settings, observer, say, kappa
        table = observer.table
        self.rings = Rings.of(observer.disc, table.box * table.pixel_size)
        self.first = _terms(table)
        self.error, self.gain = np.full(len(table), np.nan), np.zeros(len(table))
        counts = np.bincount(table.optics_index, minlength=len(table.optics))
        self.enough = counts >= settings.least_particles
        few = np.flatnonzero(~self.enough & (counts > 0))
        if settings.of_groups and len(few):
            names = ", ".join(table.optics[k].name for k in few[:3].tolist()) + (" ..." if len(few) > 3 else "")
            warn(f"{len(few)} optics groups of fewer than {settings.least_particles} particles keep their aberrations "
                 f"and magnification: {names}")
        self.groups = [GroupResult(group, group, int(count), bool(is_enough))
                       for group, count, is_enough in zip(table.optics, counts, self.enough, strict=True)]  # fmt: skip
        self.phases: PhaseSums | None = None

    def round(self, number: int) -> None:
        """Refine everything once."""
        s, gains = self.settings, {}
        if s.magnification and self.enough.any():
            gains["magnification"] = self._magnification()
        if (s.beam_tilt or s.trefoil or s.even_aberrations) and self.enough.any():
            gains["aberrations"] = self._aberrations()
        if s.of_defocus:
            gains["defocus"] = self._defocus()
        told = ", ".join(f"{name} {max(gain, 0):.0f}" for name, gain in gains.items())
        self.say(f"round {number}: log-likelihood gained by {told or 'nothing'}")

    def measure(self) -> None:
        """Scales and noise anew."""
        self.observer = measured(self.observer, self.settings.files[1:3])

    def _magnification(self) -> float:
        begun = np.array([group.is_distorted for group in self.observer.table.optics])
        fit = fit_magnification(self.observer, self.enough, begun)
        before, self.observer = _terms(self.observer.table), fit.observer
        self.first += _terms(self.observer.table) - before  # new coordinates are no change
        for found, gain, error in zip(self.groups, fit.gain, fit.error, strict=True):
            found.magnification_gain += float(gain)
            found.magnification_error = error if found.is_refined else None
        return float(fit.gain.sum())

    def _aberrations(self) -> float:
        s, table, disc = self.settings, self.observer.table, self.observer.disc
        sums, length, total = phase_sums(self.observer), table.box * table.pixel_size, 0.0
        self.phases = sums if self.phases is None else self.phases
        optics = list(table.optics)
        for number in np.flatnonzero(self.enough).tolist():
            found = self.groups[number]
            if s.beam_tilt or s.trefoil:
                fit = fit_odd(sums, number, disc, length, coma=s.beam_tilt, trefoil=s.trefoil)
                found.tilt_error = _tilt_error(optics[number], fit) if s.beam_tilt else None
                if fit.is_for(has_odd(optics[number])):
                    optics[number] = with_odd(optics[number], fit.polynomial, is_tilt=s.beam_tilt)
                    found.odd_gain, total = found.odd_gain + fit.gain, total + fit.gain
            if s.even_aberrations:
                fit = fit_even(sums, number, disc, length)
                if fit.is_for(any(optics[number].even)):
                    even = even_coefficients(added(optics[number].even_polynomial(), fit.polynomial))
                    optics[number] = replace(optics[number], even=tuple(even.tolist()))
                    found.even_gain, total = found.even_gain + fit.gain, total + fit.gain
        self.observer = replace(self.observer, table=table.with_optics(tuple(optics)))
        return total

    def _defocus(self) -> float:
        s, table = self.settings, self.observer.table
        terms, gained = np.zeros((len(table), 3)), 0.0
        for rows in self.observer.micrographs():
            found = refine_defocus(self.observer, self.first, self.rings, rows, defocus=s.defocus,
                                   astigmatism=s.astigmatism, limit=s.defocus_range,
                                   width=s.defocus_prior or s.defocus_range)  # fmt: skip
            terms[rows], self.error[rows] = found.terms, found.error
            self.gain[rows] += found.gain
            gained += float(found.gain.sum())
        self.observer = replace(self.observer, table=with_changes(table, terms))
        return gained

    def result(self, table: ParticleTable, rows: np.ndarray, resolution: float) -> CtfRefineResult:
        """What was found, for all particles of the file, of which ``rows`` took part."""
        now, n = self.observer.table, len(table)
        change, error, gain = np.zeros(n), np.full(n, np.nan), np.zeros(n)
        change[rows] = (_terms(now) - self.first)[:, 0]
        error[rows], gain[rows] = self.error, self.gain
        u, v, angle = (values.copy() for values in (table.defocus_u, table.defocus_v, table.defocus_angle))
        u[rows], v[rows], angle[rows] = now.defocus_u, now.defocus_v, now.defocus_angle
        for group, optics in zip(self.groups, now.optics, strict=True):
            group.group = optics
        at_bound = np.abs(change) >= 0.999 * self.settings.defocus_range
        return CtfRefineResult(table, u, v, angle, change, error, gain, at_bound, self.groups, resolution,
                               self.observer.disc.last, self.kappa, self.phases)  # fmt: skip


def _terms(table: ParticleTable) -> np.ndarray:
    """`defocus_terms` of a table, (n, 3)."""
    return np.stack(defocus_terms(table.defocus_u, table.defocus_v, table.defocus_angle), axis=1)


def _tilt_error(group: OpticsGroup, fit: PhaseFit) -> np.ndarray | None:
    """Standard errors of the beam tilt, (2,) mrad; None where none makes a phase."""
    if group.cs_mm == 0:
        return None
    columns = np.stack([split_coma(one, group.cs_mm, float(wavelength(np.array(group.voltage_kv))))[0]
                        for one in np.eye(len(fit.polynomial))], axis=1)  # fmt: skip
    return np.sqrt(np.diagonal(columns @ fit.covariance @ columns.T))


def _read(settings: CtfRefineSettings, half1: Map, half2: Map, warn: Say) -> ParticleTable:
    """The particles, checked, and that the maps are theirs."""
    path = settings.files[0]
    table = ParticleTable.read(path, settings.data_dir)
    for text in table.warnings:
        warn(text)
    if not table.has_poses:
        raise InputError("a CTF refinement needs orientations", file=path,
                         rule="columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi, not all 0",
                         remedy="give particles from an earlier refinement")  # fmt: skip
    if not table.halves.any():
        raise InputError("the particles have no half sets", file=path, rule="column rlnRandomSubset, 1 or 2",
                         remedy="give particles from an earlier refinement: each is compared with its own half map")
    for name, density in zip(settings.files[1:3], (half1, half2), strict=True):
        if len(density.data) != table.box:
            raise InputError("box differs from that of the images", file=name, value=len(density.data),
                             rule=f"{table.box} pixels", remedy="give the half maps of these particles")  # fmt: skip
        size = density.pixel_size
        if abs(size / table.pixel_size - 1) > SAME_PIXEL and abs(size - 1) > UNSET:
            raise InputError("pixel size differs from that of the images", file=name, value=size,
                             rule=f"{table.pixel_size:g} A within 1 %", remedy="give the true one with --pixel-size")
    return table


def _usable(table: ParticleTable, warn: Say) -> np.ndarray:
    """Which particles take part, (n,) bool: not those whose images hold the CTF that they are thought to have."""
    held = np.array([group.is_flipped or group.is_premultiplied for group in table.optics])[table.optics_index]
    if held.any():
        if held.all():
            raise InputError("all images are phase-flipped or premultiplied by their CTF", file=table.path,
                             rule="images that no CTF has been applied to",
                             remedy="extract the particles again without it")  # fmt: skip
        warn(f"{int(held.sum())} particles of phase-flipped or premultiplied optics groups are left as they are: what "
             "was done to their images would no longer be what the file says")
    kept = ~held & (table.ctf_scale != 0)
    for half in (1, 2):
        if not (kept & (table.halves == half)).any():
            raise InputError(f"half set {half} has no usable particle", file=table.path,
                             rule="at least one in each half set", remedy="see which images are at fault")  # fmt: skip
    return kept


def _references(settings: CtfRefineSettings, table: ParticleTable, half1: Map, half2: Map, warn: Say,
                workers: int) -> tuple[References, float]:
    """References as far as the half maps agree, and that resolution in A."""
    box, length = table.box, table.box * table.pixel_size
    support, _ = masks(settings.particle_diameter, settings.mask, box, table.pixel_size, warn)
    if settings.mask is None:
        curve = fsc(half1.data, half2.data, support, workers=workers)
    else:
        found = mask_corrected_fsc(half1.data, half2.data, support, np.random.default_rng(1), workers=workers)
        curve = found.corrected
    last = min(last_shell_above(curve, GOLD_STANDARD), (box - 1) // 2)
    if settings.magnification:  # images at M k know nothing beyond their own Nyquist frequency
        last = min(last, int(MAGNIFIED * ((box - 1) // 2)))
    if settings.resolution > 0:
        if int(length / settings.resolution) < LEAST_SHELLS:
            raise InputError("too coarse", item="resolution", value=settings.resolution,
                             rule=f"{length / LEAST_SHELLS:.4g} A or finer: {LEAST_SHELLS} shells of box {box} px",
                             remedy="leave --resolution away")  # fmt: skip
        last = min(last, int(length / settings.resolution))
    if last < LEAST_SHELLS:
        raise InputError("the half maps agree on too little", file=settings.files[1], value=f"{last} shells",
                         rule=f"an FSC above {GOLD_STANDARD} in the first {LEAST_SHELLS} shells",
                         remedy="refine further before, or give the half maps of one refinement")  # fmt: skip
    maps = half1.data, half2.data
    references = References.of(ops("cpu"), maps, support, curve, last, with_moments=settings.magnification)
    return references, length / last
