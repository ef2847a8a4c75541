# SPDX-License-Identifier: GPL-3.0-or-later
"""Before the first iteration: every input is read and checked, and the first state is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.checks import unique_images
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.mtf import curve_of
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.fourier import low_pass, resample
from sparsecv.engine.physics.masks import check_mask, sphere
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.ranks import ALONE, Comm
from sparsecv.engine.ranks.comm import summed
from sparsecv.engine.refine.ctf_refine.aberrations import ODD_TERMS
from sparsecv.engine.refine.ctf_refine.inside import InnerCtf
from sparsecv.engine.refine.half import Particles
from sparsecv.engine.refine.loop import Refinement
from sparsecv.engine.refine.memory_plan import MemoryPlan, plan_memory
from sparsecv.engine.refine.noise import grey_scale_at_poses, image_power
from sparsecv.engine.refine.regularisers import make_regulariser
from sparsecv.engine.refine.schedule import LEAST_BAND, Geometry
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.refine.sidebands import check_ewald
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState
from sparsecv.engine.refine.volumes import map_to_volume
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.validate.claims import Common
from sparsecv.kernels.host_memory import free_memory

DIAMETER_OF_BOX = 0.9
START_SHIFT_SIGMA = 10.0  # A: width of the first prior on shifts of a global search
START_REACH_PX = 5.0
UNSET_TOLERANCE = 1e-3  # A: a header that says 1 A may say nothing
UNUSUAL_DEVIATION = 20.0  # an image's standard deviation this far from the median, either way, is not of a particle

Warn = Callable[[str], None]


def prepare(settings: RefineSettings, kernels: Any, warn: Warn, progress: Progress, comm: Comm = ALONE) -> Refinement:
    """Read and check every input, and make the state before the first iteration; nothing is written.

    Every rank reads the tables and maps; the images are read, once, by all of them together.

    Raises
    ------
    InputError
        For the first thing that is wrong.
    """
    table = ParticleTable.read(settings.particles, settings.data_dir, are_expanded=settings.symmetry_expanded)
    for text in table.warnings:
        warn(text)
    if settings.local and not table.has_poses:
        raise InputError("a local refinement needs orientations", file=settings.particles,
                         rule="columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi, not all 0",
                         remedy="leave --local away, or give particles from an earlier refinement")
    if settings.ewald:
        check_ewald(table)
    given = table.halves.any()
    if settings.local and not given:
        warn("half sets are drawn anew, but the given poses may come from a refinement of all particles together: the "
             "halves are then not independent up to its resolution")
    if settings.initial_lowpass <= 0:
        warn("the starting map is not low-pass filtered: both halves share all that it shows")
    table = table.with_halves(settings.seed)
    if 2 * comm.size > len(table):
        raise InputError("there are more processes than work for them", file=settings.particles, value=comm.size,
                         rule=f"at most half of the {len(table)} particles", remedy="start fewer with mpirun -n")
    diameter = particle_diameter(settings.particle_diameter, table.smallest_side)
    geometry = Geometry(table.box, table.pixel_size, diameter)
    matrices = symmetry_matrices(settings.symmetry)
    reference = _read_reference(settings, table, warn)
    round_mask = sphere(table.box, geometry.diameter / 2 / table.pixel_size)
    support = read_support(settings.mask, table.box, table.pixel_size, round_mask, warn)
    if settings.initial_lowpass > 0:
        reference = low_pass(reference, table.pixel_size, settings.initial_lowpass)
    plan = memory_plan_of(settings, kernels, geometry, -(-len(table) // comm.size), comm)
    particles = Particles.of(kernels, table, geometry, matrices, plan.batch_bytes / 1e6,
                             intact_first_peak=settings.intact_first_peak, kernel=settings.scatter_kernel,
                             precision=settings.precision, parks_sums=plan.parks_sums, tell=progress.line)
    progress.line(
        f"{len(table)} particles ({np.count_nonzero(table.halves == 1)} + {np.count_nonzero(table.halves == 2)} in the "
        f"half sets {'given' if given else f'drawn with seed {settings.seed}'}), box {table.box} px of "
        f"{table.pixel_size:g} A, diameter {geometry.diameter:.0f} A, symmetry {settings.symmetry}, "
        f"{'local' if settings.local else 'global'} search"
    )
    for text in plan.lines:
        progress.line(text)
    if plan.warning:
        warn(plan.warning)
    particles.images.reserve(plan.resident, plan.kind)
    check_mtf(table, warn)
    state = _start(settings, kernels, particles, reference * support, comm)
    # A global search finds the grey scale together with the poses, in its first iteration.
    grey_scales: dict[int, float] = {}
    if settings.local:
        grey_scales = comm.at_root(lambda: _fit_grey_scales(kernels, particles, state, settings.reference))
    for number, factor in grey_scales.items():
        state.halves[number].reference *= np.float32(factor)
    return Refinement(
        ops=kernels,
        particles=particles,
        regulariser=make_regulariser(settings),
        state=state,
        support=kernels.xp.asarray(support),
        sphere=round_mask,
        halves=table.halves,
        quarters=table.quarters(),
        seed=settings.seed,
        join_below=settings.join_below,
        frame_is_free=settings.mask is None and not settings.local,
        common=_common(settings, geometry),
        grey_scales=grey_scales,
        keeps_accumulators=settings.keep_accumulators,
        ewald_hand=settings.hand if settings.ewald else 0,
        comm=comm,
        ctf=_inner_ctf(settings, table, support),
    )


def _inner_ctf(settings: RefineSettings, table: ParticleTable, support: np.ndarray) -> InnerCtf | None:
    """What of the CTF is refined along with the poses."""
    asked = settings.refine_defocus, settings.refine_astigmatism, settings.refine_aberrations
    return InnerCtf(table, *asked, support, is_masked=settings.mask is not None) if any(asked) else None


def memory_plan_of(
    settings: RefineSettings, kernels: Any, geometry: Geometry, images: int, comm: Comm = ALONE
) -> MemoryPlan:
    """The plan for what was asked, and what is free now, shared alike with other ranks on this machine or GPU.

    A limit that was asked for is of each rank, and is set.
    """
    free, total = kernels.free_memory()
    free //= -(-comm.local_size // kernels.devices())
    host = free_memory()[0] // comm.local_size
    asked = None if settings.memory is None else settings.memory * 1e9
    asked_batch = None if settings.batch_memory is None else settings.batch_memory * 1e6
    if asked is not None:
        kernels.limit_memory(int(asked))
    return plan_memory(geometry, images, is_gpu=kernels.name == "cuda", free=free, total=total, host=host,
                       asked=asked, asked_batch=asked_batch)


def check_mtf(table: ParticleTable, warn: Warn) -> None:
    """Read the detectors' MTFs before the first iteration, and say which of them are not there."""
    common = table.optics[table.common]
    used = [table.optics[number] for number in np.unique(table.optics_index).tolist()]
    if common.mtf and curve_of(common.mtf) is None:
        warn(f"{common.mtf} (rlnMtfFileName) is not there: post-processing goes without an MTF correction")
        return
    unlike = [group for group in used if group.mtf != common.mtf]
    lacking = [group.name for group in unlike if not (common.mtf and curve_of(group.mtf))]
    if lacking:
        warn(f"optics groups differ in rlnMtfFileName, and not all of the files are there: images of {lacking[0]} "
             f"{'and other groups ' * (len(lacking) > 1)}are taken as if they had the MTF of {common.name}")


def _common(settings: RefineSettings, geometry: Geometry) -> Common | None:
    """What both halves know: the starting map, and what is averaged. None where the starting map was not filtered."""
    if settings.initial_lowpass <= 0:
        return None
    finest = min(settings.initial_lowpass, settings.join_below or settings.initial_lowpass)
    return Common(finest, geometry.diameter)


def particle_diameter(given: float | None, length: float) -> float:
    """Diameter of the particle, A: the one given, or 90 % of the box, whose side is ``length`` A."""
    if given is None:
        return DIAMETER_OF_BOX * length
    if given > length:
        raise InputError("the particle is larger than its image", item="particle_diameter",
                         value=given, rule=f"at most the box, {length:g} A")
    return given


def _read_reference(settings: RefineSettings, table: ParticleTable, warn: Warn) -> np.ndarray:
    """The starting map on the particles' grid; another grid is resampled, with a note."""
    given = read_map(settings.reference, pixel_size=settings.reference_pixel_size)
    for text in given.warnings:
        warn(text)
    level = float(given.data.flat[0])
    if (given.data == level).all():
        raise InputError("the starting map is flat", file=settings.reference, value=level,
                         rule="roughly the shape of the particle", remedy="give a map")
    size, box = given.pixel_size, given.data.shape[0]
    if box == table.box and _is_alike(size, table.pixel_size):
        return given.data
    if settings.reference_pixel_size is None and abs(size - 1) < UNSET_TOLERANCE:
        if box == table.box:
            warn(f"{settings.reference} has a pixel size of 1 A, which programs write when they do not know it; "
                 f"taken as {table.pixel_size:g} A")
            return given.data
        # 1 A is believed where it makes sense: the images' own pixel size, or a map of the same extent. Anything else
        # could be of any size, and a reference of the wrong size spoils a whole run: a user would rather be asked.
        if not _is_alike(size, table.pixel_size) and not _is_alike(box * size, table.box * table.pixel_size):
            raise InputError("the pixel size in the header is 1 A, which programs write when they do not know it, and "
                             f"the box is not the images' ({table.box} px of {table.pixel_size:g} A)",
                             file=settings.reference, value=f"{box} px", rule="a pixel size that is known",
                             remedy="give the true one with --reference-pixel-size, be it 1")
    warn(f"{settings.reference}: {box} px of {size:g} A resampled to {table.box} px of {table.pixel_size:g} A")
    return resample(given.data, size, table.box, table.pixel_size)


def _is_alike(first: float, second: float) -> bool:
    """Whether two lengths are equal within 1 %."""
    return abs(first / second - 1) < 0.01


def read_support(path: Path | None, box: int, pixel_size: float, round_mask: np.ndarray, warn: Warn) -> np.ndarray:
    """The mask on references: the one given, checked, or the sphere."""
    if path is None:
        return round_mask
    mask = read_map(path)
    for text in mask.warnings:
        warn(text)
    known = mask.pixel_size if abs(mask.pixel_size - 1) > UNSET_TOLERANCE else None
    for text in check_mask(mask.data, (box,) * 3, pixel_size, mask_pixel_size=known, file=str(path)):
        warn(text)
    return np.clip(mask.data, 0, 1)


def _start(
    settings: RefineSettings, kernels: Any, particles: Particles, reference: np.ndarray, comm: Comm
) -> RefinementState:
    """State before the first iteration; images that cannot be used are set aside here."""
    table, geometry = particles.table, particles.geometry
    n = len(table)
    rotations = table.rotations if settings.local else np.tile(np.eye(3), (n, 1, 1))
    shifts = table.shifts / table.pixel_size if table.has_poses else np.zeros((n, 2))
    state = ParticleState.start(rotations, shifts)
    rejected = _unusable(table, comm)
    state.is_rejected[list(rejected)] = True
    check_rejected(settings, rejected, n)
    for number in (1, 2):
        if not np.any((table.halves == number) & ~state.is_rejected):
            raise InputError(f"half set {number} has no usable particle", file=settings.particles,
                             rule="at least one in each half set", remedy="see which images are at fault")
    halves = []
    for number in (1, 2):
        members = np.flatnonzero((table.halves == number) & ~state.is_rejected)
        if settings.local:
            sigma = 4.0 / geometry.pixel_size
        else:
            sigma = START_SHIFT_SIGMA / geometry.pixel_size
        reach = START_REACH_PX if settings.offset_range is None else settings.offset_range / geometry.pixel_size
        halves.append(
            HalfState(
                reference=reference.astype(np.float32),
                noise=image_power(kernels, particles, members, shifts, comm),
                scale=np.ones(len(table.group_names)),
                shift_sigma_px=sigma,
                reach_px=reach,
                local_sigma_deg=settings.local_sigma,
            )
        )
    band = geometry.nyquist_shell
    if settings.initial_lowpass > 0:
        band = min(band, max(geometry.shell_of(settings.initial_lowpass) + 2, LEAST_BAND))
    curve = np.zeros(geometry.nyquist_shell + 1)
    stage = "local" if settings.local else "global"
    return RefinementState(state, (halves[0], halves[1]), curve, band, stage, rejected=rejected,
                           odd_change=np.zeros((len(table.optics), ODD_TERMS)))  # fmt: skip


def _fit_grey_scales(ops: Any, particles: Particles, state: RefinementState, path: Path) -> dict[int, float]:
    """Factors that bring the halves' references to the grey scale of the images at the poses given."""
    factors = {}
    for number, half in enumerate(state.halves):
        members = np.flatnonzero((particles.table.halves == number + 1) & ~state.particles.is_rejected)
        spared = min(state.band, particles.geometry.shell_of_step(2 * half.local_sigma_deg))
        volume = map_to_volume(ops, ops.xp.asarray(half.reference), spared)
        factor = grey_scale_at_poses(ops, particles, state.particles, half, members, volume, spared)
        if factor <= 0:
            raise InputError("the reference does not fit the images at their poses", file=path, value=round(factor, 4),
                             item="scale of the reference", rule="positive", remedy="invert the contrast of the images "
                             "or of the reference (particles are white), or check the hand and the poses")
        factors[number] = factor
    return factors


def _unusable(table: ParticleTable, comm: Comm, block: int = 1024) -> dict[int, str]:
    """Reason for each image that cannot be used, by row: no usable numbers, or far from the others' grey scale."""
    own = _examined(table, range(comm.rank * block, len(table), comm.size * block), block)
    parts = comm.gathered(own)
    return comm.at_root(lambda: _judged(table, summed([part[0] for part in parts]),
                                        {row: text for part in parts for row, text in part[1].items()}))


def _judged(table: ParticleTable, deviation: np.ndarray, found: dict[int, str]) -> dict[int, str]:
    """Reason for each image that is set aside, by row, once none is known to occur twice."""
    check_copies(table, deviation)
    return _outliers(table, deviation, found)


def check_copies(table: ParticleTable, deviation: np.ndarray) -> None:
    """Refuse, with InputError, one image under two names, as where particles were joined with a copy of themselves.

    Half sets that hold the same images agree on their noise: their FSC would be no evidence of anything.

    Parameters
    ----------
    deviation
        Standard deviation of each image (n,), 0 for those without usable numbers: only images in which it is the same
        to the last bit are compared.
    """
    again = np.ones(len(table), dtype=bool)  # symmetry mates are one image under one name
    again[np.unique(unique_images(table.stack_index, table.image_index), return_index=True)[1]] = False
    deviation = np.where(again, 0, deviation)
    order = np.argsort(deviation, kind="stable")
    same = np.flatnonzero((np.diff(deviation[order]) == 0) & (deviation[order[1:]] > 0))
    for place in same.tolist():
        first, second = sorted((int(order[place]), int(order[place + 1])))
        images, _ = table.read_images([first, second])
        if np.array_equal(images[0], images[1]):
            where = "both half sets" if table.halves[first] != table.halves[second] else "one half set"
            row = int(table.identifiers[first]) + 1
            raise table.star.table(table.table_name).error(
                f"the same image, to the last bit, as in row {row}, under another name and in {where}", "rlnImageName",
                int(table.identifiers[second]), rule="every image occurs once: in both half sets it would fake "
                "resolution", remedy="remove the copies")  # fmt: skip


def _examined(table: ParticleTable, starts: range, block: int) -> tuple[np.ndarray, dict[int, str]]:
    """Standard deviation of the images of some blocks (n,), 0 for others; and what is wrong with some, by row."""
    found: dict[int, str] = {}
    deviation = np.zeros(len(table))
    for start in starts:
        index = np.arange(start, min(start + block, len(table)))
        images, good = table.read_images(index)
        deviation[index] = images.std(axis=(1, 2), dtype=np.float64)
        bad = index[~good]
        if len(bad):
            found |= dict(zip(bad.tolist(), table.image_faults(bad), strict=True))
    return deviation, found


def _outliers(table: ParticleTable, deviation: np.ndarray, found: dict[int, str]) -> dict[int, str]:
    """What was found, in the order of the rows, and images far from the others' grey scale."""
    for row in np.flatnonzero(table.ctf_scale == 0).tolist():
        found.setdefault(row, "its CTF has the weight 0 (rlnCtfScalefactor)")
    found = dict(sorted(found.items()))
    for number in range(len(table.optics)):
        known = np.flatnonzero((table.optics_index == number) & (deviation > 0))
        usual = np.median(deviation[known]) if len(known) else 1.0
        ratio = deviation[known] / usual
        for row in known[(ratio > UNUSUAL_DEVIATION) | (ratio < 1 / UNUSUAL_DEVIATION)].tolist():
            found[row] = f"standard deviation {deviation[row]:.3g}, usual in its optics group is {usual:.3g}"
    return found


def check_rejected(
    settings: RefineSettings, rejected: dict[int, str], particles: int, listed: Path | None = None
) -> None:
    """Refuse, with InputError, to go on when more than the allowed part of the particles is set aside.

    A single one is always allowed, however few the particles are, unless none at all is to be set aside.

    Parameters
    ----------
    rejected
        Reason for each particle set aside, by row of the table.
    particles
        Number of all.
    listed
        File that names all of them; None before anything is written.
    """
    allowed = settings.most_rejected * particles / 100
    if len(rejected) > (max(1.0, allowed) if allowed > 0 else 0):
        row = min(rejected)
        where = "" if listed is None else f", listed in {listed},"
        raise InputError(
            f"{len(rejected)} of {particles} images cannot be used; the first: {rejected[row]}",
            file=settings.particles, item=f"row {row + 1}", rule=f"at most {settings.most_rejected:g} %",
            remedy=f"remove them{where} from the STAR file, or raise --most-rejected",
        )  # fmt: skip
