# SPDX-License-Identifier: GPL-3.0-or-later
"""Expectation and maximisation of one half set, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import CtfParameters
from sparsecv.engine.physics.disc import Disc, make_disc
from sparsecv.engine.physics.masks import image_circle
from sparsecv.engine.physics.symmetry import symmetric_distance
from sparsecv.engine.ranks.comm import summed
from sparsecv.engine.refine.expectation import GridBank, Posterior, SearchPlan, find_posterior
from sparsecv.engine.refine.image_store import ImageStore
from sparsecv.engine.refine.images import (
    ImageBatch,
    ctf_images,
    image_power,
    noise_norms,
    shell_table,
    transform_images,
)
from sparsecv.engine.refine.maximisation import (
    PoseEstimates,
    SampleStatistics,
    accumulate,
    accumulate_sidebands,
    estimate_poses,
    sample_statistics,
    thinned,
)
from sparsecv.engine.refine.precision import FULL, Precision, choose_precision
from sparsecv.engine.refine.schedule import Draws, Geometry
from sparsecv.engine.refine.sidebands import SIDEBAND_BYTES, EwaldSlices
from sparsecv.engine.refine.state import HalfState, ParticleState
from sparsecv.engine.refine.volumes import PADDING, Accumulator

MODE_STEPS, MODE_DEG = 2.5, 3.0  # samples within 2.5 steps + 3 degrees of the best belong to the same mode
SMALLEST_BATCH = 16  # images; fewer only where memory has run out
# A GPU is given some 400 pieces of work for a batch, a few ms in all: it must have more than that to do.
MOST_IMAGES, MOST_IMAGES_ON_GPU = 1024, 8192  # of a batch


@dataclass
class Particles:
    """The particles and all that stays the same during a refinement, for one device.

    Attributes
    ----------
    table, parameters
        The table and its CTF terms.
    geometry, disc, circle
        Sizes; all Fourier pixels of an image; (box, box) soft circular mask on the device.
    masked_power
        Mean square of the circular mask: the part of the noise power that a masked image keeps.
    matrices
        Point group, (G, 3, 3).
    batch_bytes
        Memory that one batch may take.
    images
        Where images come from.
    intact_first_peak
        No CTF correction up to the first peak.
    kernel
        Of backprojection.
    largest_batch
        Images of the largest batch that memory has been enough for, as far as is known.
    precision
        ``"auto"`` or ``"fp32"``, see `choose_precision`.
    parks_sums
        Whether sums that are not in use wait on the host: see `MemoryPlan`.
    tell
        Takes what is to be said about how a pass is made; each text once.
    """

    table: ParticleTable
    parameters: CtfParameters
    geometry: Geometry
    disc: Disc
    circle: Any
    masked_power: float
    matrices: np.ndarray
    batch_bytes: float
    images: ImageStore
    intact_first_peak: bool = False
    kernel: str = "trilinear"
    largest_batch: int = MOST_IMAGES
    precision: str = "auto"
    parks_sums: bool = False
    tell: Callable[[str], None] = lambda text: None
    told: set[str] = field(default_factory=set)

    def kept(self, ops: Any, quarter: Accumulator) -> Accumulator:
        """A quarter where those that are not in use are kept."""
        return quarter.parked(ops) if self.parks_sums else quarter

    def tell_once(self, text: str) -> None:
        """Tell something, unless it is empty or has been told."""
        if text and text not in self.told:
            self.told.add(text)
            self.tell(text)

    @classmethod
    def of(cls, ops: Any, table: ParticleTable, geometry: Geometry, matrices: np.ndarray, batch_mb: float,
           **options: Any) -> Particles:
        """Particles with a circular mask of the particle's diameter.

        Raises
        ------
        InputError
            Where CTFs are to be left alone up to the first peak, but images were multiplied by them.
        """
        if options.get("intact_first_peak") and any(group.is_premultiplied for group in table.optics):
            raise InputError("images premultiplied by their CTF cannot be refined with an intact first peak",
                             file=table.path, item="rlnCtfDataAreCtfPremultiplied",
                             rule="images that were not corrected below the first peak",
                             remedy="leave --intact-first-peak away")
        circle = image_circle(geometry.box, geometry.diameter / 2 / geometry.pixel_size)
        return cls(table, table.ctf_parameters(), geometry, make_disc(geometry.box), ops.xp.asarray(circle),
                   float((circle**2).mean()), matrices, batch_mb * 1e6, ImageStore(ops, table),
                   largest_batch=MOST_IMAGES_ON_GPU if ops.name == "cuda" else MOST_IMAGES, **options)

    def batch(self, ops: Any, index: np.ndarray, shifts_px: np.ndarray, norm: np.ndarray, scale: np.ndarray,
              noise: np.ndarray, images: Any = None) -> ImageBatch:
        """Images of some rows, moved by whole pixels, with their CTF and noise.

        Parameters
        ----------
        index
            (I,) rows of the table.
        shifts_px, norm, scale
            (I, 2), (I,), (I,): present shifts, image factors, signal factors.
        noise
            (optics groups, shells) sigma^2.
        images
            (I, box, box) float32 on the device, where the store has given them already.
        """
        images = self.images.get(index) if images is None else images
        centre = np.rint(shifts_px).astype(np.int64)
        scaled = images / ops.xp.asarray(norm.astype(np.float32))[:, None, None]
        masked, unmasked = transform_images(ops, scaled, centre, self.circle, self.disc)
        ctf = ctf_images(ops, self.parameters[index], scale, self.disc, self.geometry.pixel_size,
                         intact_first_peak=self.intact_first_peak)
        inverse = shell_table(ops, 1 / self.known(noise), self.table.optics_index[index], self.disc)
        return ImageBatch(index, centre, masked, unmasked, ctf, inverse)

    def ewald_slices(self, ops: Any, last_shell: int, hand: int) -> EwaldSlices:
        """Where the sidebands of the images go, up to a shell; they are refocused within the circular mask."""
        return EwaldSlices.of(ops, self.table, self.parameters, self.disc.crop(last_shell), self.circle,
                              self.geometry.diameter, hand)

    def known(self, noise: np.ndarray) -> np.ndarray:
        """Noise spectra (optics groups, shells), infinite where the images of a group hold nothing."""
        shells = self.table.known_shells
        if shells.min() >= self.disc.last:
            return noise
        return np.where(np.arange(noise.shape[1]) > shells[:, None], np.inf, noise)

    def batch_size(self, plan: SearchPlan | None, orientations: int, *, has_sidebands: bool = False) -> int:
        """Images per batch for the memory allowed."""
        shifts = 1 if plan is None else max(len(plan.shifts), 4 * max(level.keep_shifts for level in plan.levels))
        per_image = 8 * len(self.disc) * (2 * shifts + 6) + 4 * orientations * shifts
        if has_sidebands:
            per_image += SIDEBAND_BYTES * self.geometry.box**2 + 16 * len(self.disc) * shifts
        return min(self.largest_batch, max(int(self.batch_bytes / per_image), SMALLEST_BATCH))

    def pixels_per_shell(self) -> np.ndarray:
        """Number of the disc's pixels in each shell, at least 1."""
        return np.maximum(np.diff(self.disc.offsets), 1)


@dataclass(frozen=True)
class Search:
    """What the images of one half are compared with in one iteration, and what is made of it.

    Attributes
    ----------
    plan
        Orientations and shifts, coarse to fine.
    volume
        Fourier volume of the half's reference, with shells up to ``last_shell``.
    bank
        Slices of the shared grid for a global search; None for a local one.
    draws
        Random numbers of the iteration.
    last_shell
        Highest shell to backproject.
    most_slices
        Orientations of one image that are backprojected.
    slices
        Where sidebands go, for sums with the curvature of the Ewald sphere; None for flat slices.
    """

    plan: SearchPlan
    volume: Any
    bank: GridBank | None
    draws: Draws
    last_shell: int
    most_slices: int
    slices: EwaldSlices | None = None

    @property
    def finest_deg(self) -> float:
        """Angular step of the last level."""
        return self.plan.grid.step(self.plan.levels[-1].depth)


@dataclass
class Residuals:
    """Sums over the images of a half, for noise spectra, scales and norms.

    Attributes
    ----------
    residual, counts
        (optics groups, shells) and (groups,): for the noise spectra.
    cross, signal
        (scale groups, shells): for the scale correction.
    factors
        (m,) residual power of each image over that expected: for the norm correction.
    """

    residual: np.ndarray
    counts: np.ndarray
    cross: np.ndarray
    signal: np.ndarray
    factors: np.ndarray

    @classmethod
    def empty(cls, half: HalfState, members: int) -> Residuals:
        """Sums over nothing yet."""
        (groups, shells), scales = half.noise.shape, len(half.scale)
        return cls(np.zeros((groups, shells)), np.zeros(groups), np.zeros((scales, shells)), np.zeros((scales, shells)),
                   np.ones(members))

    @classmethod
    def of_ranks(cls, parts: Sequence[Residuals]) -> Residuals:
        """Those of all ranks, each of which has had the next piece of the half's members."""
        named = {name: summed([getattr(part, name) for part in parts])
                 for name in ("residual", "counts", "cross", "signal")}
        return cls(**named, factors=np.concatenate([part.factors for part in parts]))

    def add(self, table: ParticleTable, index: np.ndarray, statistics: SampleStatistics, good: np.ndarray) -> None:
        """Add the images ``index`` (rows of the table) that are good (I,)."""
        optics, group = table.optics_index[index[good]], table.group_index[index[good]]
        np.add.at(self.residual, optics, statistics.residual[good])
        np.add.at(self.counts, optics, 1)
        np.add.at(self.cross, group, statistics.cross[good])
        np.add.at(self.signal, group, statistics.signal[good])


@dataclass
class HalfResult:
    """What one half has made of an iteration.

    Attributes
    ----------
    members
        (m,) rows of the particles that took part.
    finest_deg
        Angular step of the last level of the search.
    quarters
        Accumulators: as backprojection leaves them, and completed when the ranks have added theirs up, which then stand
        at the half's owner alone. On the device, or on the host where they are parked.
    residuals
        Sums for noise, scales and norms.
    """

    members: np.ndarray
    finest_deg: float
    quarters: tuple[Accumulator, ...]
    residuals: Residuals

    @property
    def total(self) -> Accumulator:
        """Sums of both quarters."""
        return self.quarters[0] + self.quarters[1]


def expectation_maximisation(
    ops: Any,
    particles: Particles,
    state: ParticleState,
    half: HalfState,
    members: np.ndarray,
    quarters: np.ndarray,
    search: Search,
    advance: Callable[[int], None],
) -> HalfResult:
    """One pass over the members of a half: posteriors, sums, and their new poses (written into ``state``).

    Parameters
    ----------
    members, quarters
        (m,) rows of the half's particles, and their quarter, 0 or 1.
    advance
        Called with the number of images done so far, after each batch.
    """
    residuals = Residuals.empty(half, len(members))
    size = particles.batch_size(search.plan, 0 if search.bank is None else len(search.bank.cells),
                                has_sidebands=search.slices is not None)
    precision = FULL
    if search.bank is not None:
        largest = np.abs(particles.parameters.scale).max()
        power = search.bank.signal_power(ops, particles.known(half.noise), half.scale * largest)
        precision = choose_precision(ops, particles.precision, power)
        particles.tell_once(precision.reason)
    sums, done = [], 0
    for quarter in (0, 1):
        accumulator = Accumulator.empty(ops, particles.geometry.box, search.last_shell, particles.kernel)
        with accumulator.adding(ops) as add:
            rows = np.flatnonzero(quarters == quarter)
            before = done

            def work(part: slice, images: Any, rows: np.ndarray = rows, add: Any = add, before: int = before) -> None:
                own = rows[part]
                _add_batch(ops, particles, state, half, members[own], own, images, search, precision, add, residuals)
                advance(before + part.stop)

            in_batches(ops, particles, members[rows], size, work)
            done += len(rows)
        sums.append(particles.kept(ops, accumulator))
        del accumulator, add, work  # where it is parked, nothing may hold what was on the device
    return HalfResult(members, search.finest_deg, (sums[0], sums[1]), residuals)


def _add_batch(
    ops: Any,
    particles: Particles,
    state: ParticleState,
    half: HalfState,
    index: np.ndarray,
    rows: np.ndarray,
    images: Any,
    search: Search,
    precision: Precision,
    add: Callable[..., None],
    residuals: Residuals,
) -> None:
    """Posteriors of the images ``index`` of the table, which are ``rows`` of the members; all sums and new poses.

    Nothing is changed before `accumulate`, which is the last that needs memory on the device (see `in_batches`).
    """
    table = particles.table
    scale, uniform = half.scale[table.group_index[index]], ops.xp.asarray(search.draws.uniform[index])
    batch = particles.batch(ops, index, state.shifts_px[index], state.norm[index], scale, half.noise, images)
    start = state.shifts_px[index] - batch.centre_px
    posterior = find_posterior(ops, search.volume, batch, search.plan, particles.disc, PADDING, state.rotations[index],
                               start, search.bank, precision)
    estimate = estimate_poses(ops, posterior, MODE_STEPS * search.finest_deg + MODE_DEG, particles.matrices)
    statistics = sample_statistics(ops, search.volume, batch, posterior, uniform, particles.disc, search.last_shell)
    bring = Learnt.packed(ops, posterior, image_power(ops, batch), estimate, statistics)
    few = thinned(ops, posterior, uniform, search.most_slices)
    if search.slices is None:
        accumulate(ops, batch, few, particles.disc.crop(search.last_shell), add)
    else:
        parameters = particles.parameters[index]
        parameters = replace(parameters, scale=parameters.scale * scale)
        scaled = images / ops.xp.asarray(state.norm[index].astype(np.float32))[:, None, None]
        accumulate_sidebands(ops, batch, scaled, parameters, table.optics_index[index], few, search.slices, add)
    found = bring()  # only now, so that the device has something to do while the host waits
    residuals.factors[rows] = _residual_factors(particles, found.statistics, half.noise[table.optics_index[index]])
    residuals.add(table, index, found.statistics, np.isfinite(found.log_evidence))
    norm = noise_norms(half.noise, particles.disc, table.known_shells)[table.optics_index[index]]
    _store_poses(state, batch, found, norm, particles.matrices)


@dataclass(frozen=True)
class Learnt:
    """What leaves the device of each image of a batch: float64 on the host, as in `Posterior` and `PoseEstimates`.

    ``power`` is that of `image_power`.
    """

    log_evidence: np.ndarray
    power: np.ndarray
    best_probability: np.ndarray
    significant: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    spread: np.ndarray
    statistics: SampleStatistics

    @classmethod
    def packed(
        cls, ops: Any, posterior: Posterior, power: Any, estimate: PoseEstimates, statistics: SampleStatistics
    ) -> Callable[[], Learnt]:
        """Put everything into one array on the device; returns what brings it to the host, where the host waits."""
        pose = (estimate.rotations, estimate.shifts, estimate.spread)
        sums = (statistics.residual, statistics.cross, statistics.signal)
        parts = [posterior.log_evidence, power, posterior.best_probability, posterior.significant, *pose, *sums]
        flat = [part.reshape(len(part), -1).astype(ops.xp.float64) for part in parts]
        together = ops.xp.concatenate(flat, axis=1)
        shapes, ends = [part.shape for part in parts], np.cumsum([part.shape[1] for part in flat])

        def bring() -> Learnt:
            columns = np.split(ops.to_host(together), ends[:-1], axis=1)
            values = [column.reshape(shape) for column, shape in zip(columns, shapes, strict=True)]
            evidence, energy, best, significant, rotations, shifts, spread = values[:7]
            return cls(evidence, energy, best, significant, rotations, shifts, spread, SampleStatistics(*values[7:]))

        return bring


def in_batches(
    ops: Any,
    particles: Particles,
    index: np.ndarray,
    size: int,
    work: Callable[[slice, Any], None],
    *,
    keeps: bool = True,
) -> None:
    """Work on the images ``index`` of the table in batches of ``size``, and of fewer where memory runs out.

    Parameters
    ----------
    work
        Called as work(part, images) with a part of ``index`` and its images. It must have changed nothing when it runs
        out of memory: it is called again then, with half as many.
    keeps
        Whether images that are read may stay on the device.

    Raises
    ------
    MemoryError
        When there is not enough memory for a single image; the message says what to do.
    """
    done = 0
    while done < len(index):
        size = min(size, len(index) - done)
        problem = ""
        try:
            batches = [index[start : start + size] for start in range(done, len(index), size)]
            for rows, images in particles.images.batches(batches, keeps=keeps):
                work(slice(done, done + len(rows)), images)
                done += len(rows)
        except Exception as error:
            if not ops.is_out_of_memory(error):
                raise
            problem = str(error) or "out of memory"
        if problem:  # out here the exception, and with it the arrays that it held on to, is gone
            images = None
            ops.release_memory()
            if size == 1:
                raise MemoryError(f"{problem}: not enough for one image beside the volumes; end other programs on the "
                                  "device, raise --memory where it was given, or crop or bin the images")  # fmt: skip
            size = particles.largest_batch = size // 2
            particles.tell(f"out of memory: batches of at most {size} images from now on")


def _residual_factors(particles: Particles, statistics: SampleStatistics, noise: np.ndarray) -> np.ndarray:
    """Residual power of each image over the power expected from the noise spectrum, (I,)."""
    expected = 2 * particles.masked_power * (noise * particles.pixels_per_shell())[:, 1:].sum(axis=1)
    return statistics.residual[:, 1:].sum(axis=1) / expected


def _store_poses(
    state: ParticleState, batch: ImageBatch, found: Learnt, norm: np.ndarray, matrices: np.ndarray
) -> None:
    """Write the new poses and qualities; an image without a posterior keeps its pose and is set aside.

    Parameters
    ----------
    norm
        (I,) that of `noise_norms` of each image.
    """
    index, good = batch.index, np.isfinite(found.log_evidence)
    rows = index[good]
    shifts = batch.centre_px[good] + found.shifts[good]
    state.turned_deg[rows] = symmetric_distance(found.rotations[good], state.rotations[rows], matrices)
    state.moved_px[rows] = np.linalg.norm(shifts - state.shifts_px[rows], axis=1)
    state.rotations[rows], state.shifts_px[rows] = found.rotations[good], shifts
    state.spread_deg[rows] = found.spread[good]
    state.log_evidence[rows] = found.log_evidence[good]
    state.log_likelihood[rows] = (found.log_evidence - found.power - norm)[good]
    state.best_probability[rows] = found.best_probability[good]
    state.significant[rows] = found.significant[good]
    state.is_rejected[index[~good]] = True
