# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole refinement: from settings to the files of a finished run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.fourier import low_pass, resample
from sparsecv.engine.physics.masks import check_mask, solvent_mask, sphere
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine.checkpoint import load_checkpoint, save_checkpoint
from sparsecv.engine.refine.half import Particles
from sparsecv.engine.refine.loop import Iteration, Refinement
from sparsecv.engine.refine.noise import image_power
from sparsecv.engine.refine.outputs import (
    HALF_MAP,
    Status,
    write_data_star,
    write_iteration_pictures,
    write_maps,
    write_model_star,
    write_rejected,
)
from sparsecv.engine.refine.regularisers import Regulariser, Wiener
from sparsecv.engine.refine.schedule import Geometry
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.threads import use_threads
from sparsecv.engine.validate.claims import Common
from sparsecv.engine.validate.fsc_files import write_postprocess
from sparsecv.engine.validate.postprocess import PostprocessResult, postprocess
from sparsecv.kernels import gpu_problem, ops

DIAMETER_OF_BOX = 0.9
START_SHIFT_SIGMA = 10.0  # A: width of the first prior on shifts of a global search
START_REACH_PX = 5.0
# What may differ between a run and its continuation: where it computes and how long it may go on.
FREE_TO_CHANGE = ("output", "threads", "device", "resume", "iterations", "batch_memory", "data_dir", "most_rejected")


@dataclass
class RefineResult:
    """A finished refinement: where its files are, what it reached, and the warnings to be read."""

    output: Path
    history: list[dict[str, Any]]
    postprocess: PostprocessResult
    warnings: list[str]


def refine(settings: RefineSettings, progress: Progress) -> RefineResult:
    """Refine particles against a starting map and write the results into ``settings.output``.

    Raises
    ------
    InputError
        When an input breaks a rule, before the first iteration.
    RuntimeError
        When the device asked for cannot be used.
    """
    threads = use_threads(settings.threads)
    kernels = ops(settings.device)
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        progress.line(f"warning: {text}")

    folder = settings.output
    folder.mkdir(parents=True, exist_ok=True)
    if settings.device == "auto":
        problem = gpu_problem()
        progress.line(f"computing on the CPU with {threads} threads: {problem}" if problem else "computing on the GPU")
    status = Status(folder)
    refinement = _prepare(settings, kernels, warn, progress)
    identity = _identity(settings)
    if settings.resume and (found := load_checkpoint(folder, warn)):
        _check_same(found[1], identity, folder)
        refinement.state = found[0]
        progress.line(f"going on after iteration {refinement.state.iteration}")
    try:
        iteration = _iterate(refinement, settings, identity, status, progress)
        return _finish(refinement, iteration, settings, status, warnings, warn, threads)
    except BaseException as error:
        status.write("failed", refinement.state.history, error=f"{type(error).__name__}: {error}")
        raise


def _prepare(settings: RefineSettings, kernels: Any, warn: Any, progress: Progress) -> Refinement:
    """Read and check every input, and make the state before the first iteration."""
    table = ParticleTable.read(settings.particles, settings.data_dir)
    for text in table.warnings:
        warn(text)
    if settings.local and not table.has_poses:
        raise InputError("a local refinement needs orientations", file=settings.particles,
                         rule="columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi, not all 0",
                         remedy="leave --local away, or give particles from an earlier refinement")
    given = table.halves.any()
    table = table.with_halves(settings.seed)
    geometry = Geometry(table.box, table.pixel_size, _diameter(settings, table))
    matrices = symmetry_matrices(settings.symmetry)
    reference = _read_reference(settings, table, warn)
    round_mask = sphere(table.box, geometry.diameter / 2 / table.pixel_size)
    support = _read_support(settings, table, round_mask, warn)
    if settings.initial_lowpass > 0:
        reference = low_pass(reference, table.pixel_size, settings.initial_lowpass)
    particles = Particles.of(kernels, table, geometry, matrices, settings.batch_memory,
                             intact_first_peak=settings.intact_first_peak, kernel=settings.kernel)
    progress.line(
        f"{len(table)} particles ({np.count_nonzero(table.halves == 1)} + {np.count_nonzero(table.halves == 2)} in the "
        f"half sets {'given' if given else f'drawn with seed {settings.seed}'}), box {table.box} px of "
        f"{table.pixel_size:g} A, diameter {geometry.diameter:.0f} A, symmetry {settings.symmetry}, "
        f"{'local' if settings.local else 'global'} search"
    )
    state = _start(settings, kernels, particles, reference * support)
    return Refinement(
        ops=kernels,
        particles=particles,
        regulariser=_regulariser(settings),
        state=state,
        support=kernels.xp.asarray(support),
        sphere=round_mask,
        halves=table.halves,
        quarters=table.quarters(),
        seed=settings.seed,
        join_below=settings.join_below,
        scale_is_known=False,
        frame_is_free=settings.mask is None and not settings.local,
        common=_common(settings, geometry),
    )


def _common(settings: RefineSettings, geometry: Geometry) -> Common | None:
    """What both halves know: the starting map, and what is averaged. None where the starting map was not filtered."""
    if settings.initial_lowpass <= 0:
        return None
    finest = min(settings.initial_lowpass, settings.join_below or settings.initial_lowpass)
    return Common(finest, geometry.diameter)


def _diameter(settings: RefineSettings, table: ParticleTable) -> float:
    length = table.box * table.pixel_size
    if settings.particle_diameter is None:
        return DIAMETER_OF_BOX * length
    if settings.particle_diameter > length:
        raise InputError("the particle is larger than its image", item="particle_diameter",
                         value=settings.particle_diameter, rule=f"at most the box, {length:g} A")
    return settings.particle_diameter


def _read_reference(settings: RefineSettings, table: ParticleTable, warn: Any) -> np.ndarray:
    """The starting map on the particles' grid; another grid is resampled, with a note."""
    given = read_map(settings.reference)
    size = given.pixel_size if given.pixel_size > 0 else table.pixel_size
    if given.data.shape[0] == table.box and abs(size / table.pixel_size - 1) < 0.01:
        return given.data
    if given.data.shape[0] == table.box and abs(given.pixel_size - 1) < 1e-3:
        warn(f"{settings.reference} has a pixel size of 1 A, which programs write when they do not know it; "
             f"taken as {table.pixel_size:g} A")
        return given.data
    warn(f"{settings.reference}: {given.data.shape[0]} px of {size:g} A resampled to {table.box} px of "
         f"{table.pixel_size:g} A")
    return resample(given.data, size, table.box, table.pixel_size)


def _read_support(settings: RefineSettings, table: ParticleTable, round_mask: np.ndarray, warn: Any) -> np.ndarray:
    if settings.mask is None:
        return round_mask
    mask = read_map(settings.mask)
    known = mask.pixel_size if mask.pixel_size > 0 and abs(mask.pixel_size - 1) > 1e-3 else None
    for text in check_mask(mask.data, (table.box,) * 3, table.pixel_size, mask_pixel_size=known, file=str(settings.mask)):
        warn(text)
    return np.clip(mask.data, 0, 1)


def _regulariser(settings: RefineSettings) -> Regulariser:
    return Wiener(settings.tau_factor)


def _start(settings: RefineSettings, kernels: Any, particles: Particles, reference: np.ndarray) -> RefinementState:
    """State before the first iteration; images that cannot be used are set aside here."""
    table, geometry = particles.table, particles.geometry
    n = len(table)
    rotations = table.rotations if settings.local else np.tile(np.eye(3), (n, 1, 1))
    shifts = table.shifts / table.pixel_size if table.has_poses else np.zeros((n, 2))
    state = ParticleState.start(rotations, shifts)
    rejected = _unusable(table)
    state.is_rejected[list(rejected)] = True
    _check_rejected(settings, rejected, n)
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
                noise=image_power(kernels, particles, members, shifts),
                scale=np.ones(len(table.group_names)),
                shift_sigma_px=sigma,
                reach_px=reach,
                local_sigma_deg=settings.local_sigma,
            )
        )
    band = geometry.nyquist_shell
    if settings.initial_lowpass > 0:
        band = min(band, geometry.shell_of(settings.initial_lowpass) + 2)
    curve = np.zeros(geometry.nyquist_shell + 1)
    stage = "local" if settings.local else "global"
    return RefinementState(state, (halves[0], halves[1]), curve, band, stage, rejected=rejected)


def _unusable(table: ParticleTable, block: int = 1024) -> dict[int, str]:
    """Reason for each image that holds no usable numbers, by row."""
    found: dict[int, str] = {}
    for start in range(0, len(table), block):
        index = np.arange(start, min(start + block, len(table)))
        _, good = table.read_images(index)
        bad = index[~good]
        if len(bad):
            found |= dict(zip(bad.tolist(), table.image_faults(bad), strict=True))
    return found


def _check_rejected(settings: RefineSettings, rejected: dict[int, str], particles: int) -> None:
    if len(rejected) > max(1.0, settings.most_rejected / 100 * particles):
        row = min(rejected)
        raise InputError(
            f"{len(rejected)} of {particles} images cannot be used; the first: {rejected[row]}",
            file=settings.particles, item=f"row {row + 1}", rule=f"at most {settings.most_rejected:g} %",
            remedy="remove them from the STAR file, or raise --most-rejected",
        )  # fmt: skip


def _identity(settings: RefineSettings) -> dict[str, object]:
    values = {name: value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _check_same(stored: dict[str, object], asked: dict[str, object], folder: Path) -> None:
    for name, value in asked.items():
        if stored.get(name) != value:
            raise InputError(f"the run that is to go on had {name} = {stored.get(name)!r}", file=folder, value=value,
                             rule="a run goes on with the settings that it was started with",
                             remedy="give the same value, or another --output")


def _iterate(
    refinement: Refinement, settings: RefineSettings, identity: dict[str, object], status: Status, progress: Progress
) -> Iteration:
    """Iterate to convergence; returns the joined last iteration."""
    folder = settings.output
    while True:
        state = refinement.state
        is_last = refinement.is_ready_to_finish or state.iteration + 1 >= settings.iterations
        number = state.iteration + 1
        progress.iteration_started(number, number if is_last else max(number + 2, 9))
        refinement.on_batch = progress.advance
        iteration = refinement.iterate(is_last=is_last)
        _check_rejected(settings, state.rejected, len(refinement.halves))
        last = state.history[-1]
        write_iteration_pictures(folder, refinement, iteration, settings.regulariser)
        progress.iteration_finished(_line(last))
        status.write("running", state.history)
        if is_last:
            return iteration
        save_checkpoint(folder, state, identity)


def _line(entry: dict[str, Any]) -> str:
    """One line on an iteration."""
    kind = "last, joined" if entry["is_last"] else entry["stage"]
    rejected = f", {entry['rejected']} set aside" if entry["rejected"] else ""
    return (
        f"{kind}, FSC 0.143 at {entry['resolution_0143']:.2f} A, 0.5 at {entry['resolution_05']:.2f} A, step "
        f"{entry['step_deg']:.1f} deg, poses changed by {entry['turned_deg']:.1f} deg and {entry['moved_A']:.2f} A{rejected}"
    )


def _final_mask(
    settings: RefineSettings, iteration: Iteration, pixel_size: float, radius_px: float, threads: int, warn: Any
) -> np.ndarray:
    """The mask given, or one made from the map; the particle's sphere where the map shows no particle."""
    if settings.mask is not None:
        return np.clip(read_map(settings.mask).data, 0, 1)
    first, second = iteration.half_maps
    try:
        return solvent_mask((first + second) / 2, pixel_size, workers=threads)
    except InputError as problem:
        warn(f"no mask can be made from the map, a sphere is used instead: {problem}")
        return sphere(len(first), radius_px)


def _finish(
    refinement: Refinement, iteration: Iteration, settings: RefineSettings, status: Status, warnings: list[str],
    warn: Any, threads: int,
) -> RefineResult:
    """Write the results of the last iteration."""
    folder, table = settings.output, refinement.particles.table
    write_maps(folder, iteration, table.pixel_size, settings.regulariser)
    write_data_star(folder / "run_data.star", refinement)
    write_rejected(folder / "rejected.star", table, refinement.state.rejected)
    write_model_star(folder / "run_model.star", refinement, iteration)
    radius_px = refinement.particles.geometry.diameter / 2 / table.pixel_size
    mtf = table.optics[0].mtf
    result = postprocess(*iteration.half_maps, table.pixel_size,
                         mask=_final_mask(settings, iteration, table.pixel_size, radius_px, threads, warn),
                         mtf=mtf if mtf and Path(mtf).is_file() else None, sphere_radius_px=radius_px,
                         seed=settings.seed, workers=threads, common=refinement.common)  # fmt: skip
    write_postprocess(result, folder, half_names=(HALF_MAP.format(1), HALF_MAP.format(2)),
                      mask_name=None if settings.mask is None else str(settings.mask))
    for text in result.warnings:
        warn(text)
    status.write("finished", refinement.state.history, warnings=warnings,
                 masked_resolution_0143=result.resolution_0143.angstrom, bfactor=result.bfactor)
    return RefineResult(folder, refinement.state.history, result, warnings)
