# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole refinement: from settings to the files of a finished run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError, Terminated
from sparsecv.engine.io.mtf import curve_of
from sparsecv.engine.io.results import refuse_to_overwrite, remove_leftovers, remove_results, write_checksums
from sparsecv.engine.machine import describe
from sparsecv.engine.physics.ewald import kept_amplitude
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.ranks import ALONE, Comm
from sparsecv.engine.refine.accumulator_files import Origin, write_accumulators
from sparsecv.engine.refine.checkpoint import load_checkpoint, save_checkpoint
from sparsecv.engine.refine.deposit import write_what_goes_out
from sparsecv.engine.refine.final_maps import mask_of_map, sharpened_locally
from sparsecv.engine.refine.loop import Iteration, Refinement
from sparsecv.engine.refine.outputs import (
    HALF_MAP,
    PREFIX,
    REJECTED,
    SETTINGS,
    WRITTEN,
    Status,
    band_limits,
    write_band_limits,
    write_data_star,
    write_iteration_pictures,
    write_maps,
    write_model_star,
    write_rejected,
    write_strengths_picture,
)
from sparsecv.engine.refine.prepare import Warn, check_rejected, prepare
from sparsecv.engine.refine.record import write_record
from sparsecv.engine.refine.regularisers import NonUniform
from sparsecv.engine.refine.regularisers.nonuniform import mean_band_limit
from sparsecv.engine.refine.result import FinishedIteration, OnIteration, RefineResult
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.refine.sidebands import ctf_corrected
from sparsecv.engine.refine.stopping import StopRequest
from sparsecv.engine.refine.stopwatch import peak_memory
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.threads import keep_freed_memory, use_threads
from sparsecv.engine.validate.fsc_files import write_postprocess
from sparsecv.engine.validate.postprocess import PostprocessResult, postprocess
from sparsecv.kernels import gpu_problem, ops

# What may differ between a run and its continuation: where it computes, how long it may go on, what it leaves behind.
FREE_TO_CHANGE = (
    "output", "threads", "device", "resume", "iterations", "memory", "batch_memory", "precision", "data_dir",
    "most_rejected", "keep_accumulators", "ewald", "ewald_hand",
)  # fmt: skip

MUCH_KEPT = 0.9  # of a particle's amplitude: where less is left, its curvature is worth a correction


def refine(
    settings: RefineSettings, progress: Progress | None = None, on_start: Callable[[], None] = lambda: None,
    comm: Comm = ALONE, *, on_iteration: OnIteration = lambda finished: None,
) -> RefineResult:  # fmt: skip
    """Refine particles against a starting map and write the results into ``settings.output``.

    Parameters
    ----------
    progress
        Where lines and the bar go; None: nowhere.
    on_start
        Called when every input has been checked and the results of an earlier run are out of the way.
    comm
        The ranks that share the refinement: this is what the root does; the others :func:`assist`.
    on_iteration
        Called at the end of each iteration, when its checkpoint is written. What it raises ends the run, which can go
        on from there.

    Raises
    ------
    InputError
        When an input breaks a rule, before the first iteration. The output folder is then as it was.
    RuntimeError
        When the device asked for cannot be used.
    """
    progress = progress or Progress(io.StringIO())
    threads, kernels = _resources(settings, comm)
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        progress.line(f"warning: {text}")

    folder = settings.output
    refuse_to_overwrite(folder, (), ())
    folder.mkdir(parents=True, exist_ok=True)
    if settings.device == "auto" or comm.size > 1:
        problem = "as asked" if settings.device == "cpu" else gpu_problem()
        where = f"on the CPU with {threads} threads" if problem else "on the GPU"
        among = f" in each of {comm.size} processes" if comm.size > 1 else ""
        progress.line(f"computing {where}{among}" + (f": {problem}" if problem else ""))
    refinement = prepare(settings, kernels, warn, progress, comm)
    identity = _identity(settings, refinement)
    found = load_checkpoint(folder, warn) if settings.resume else None
    if settings.resume and found is None:
        _check_nothing_to_lose(folder)
    if found is not None:
        _check_same(found[1], identity, folder)
        refinement.state = found[0]
        progress.line(f"going on after iteration {refinement.state.iteration}")
    machine = describe(kernels, threads) | {"processes": str(comm.size)}
    constant = {"particles": len(refinement.particles.table), "seed": settings.seed, "machine": machine}
    status = Status(folder, constant, warnings)
    try:
        remove_leftovers(folder, (*WRITTEN, SETTINGS))
        if found is None:
            remove_results(folder, (settings.particles, settings.reference, settings.mask), WRITTEN)
        on_start()
        status.write("running", refinement.state.history)
        comm.report_to(status.path)
        refinement.state = comm.at_root(lambda: refinement.state)
        with StopRequest(progress.line) as request:
            iteration = _iterate(refinement, settings, identity, status, progress, request, on_iteration)
            # asked in the last iteration, a run ends well: to stop here would lose all of that iteration
            return _finish(refinement, iteration, settings, status, warnings, warn, threads)
    except Terminated as error:
        if error.after is None:
            status.write("failed", refinement.state.history, error=str(error))
        else:
            status.write("stopped", refinement.state.history)
        raise
    except BaseException as error:  # whatever ends the run, a signal included, is on record
        reason = ": ".join(part for part in (type(error).__name__, str(error)) if part)
        with suppress(OSError):  # a full disk must not hide what went wrong first
            status.write("failed", refinement.state.history, error=reason)
        raise


def assist(settings: RefineSettings, comm: Comm) -> None:
    """Do a rank's share of a refinement whose root runs :func:`refine` with the same settings; nothing is written."""
    _, kernels = _resources(settings, comm)
    refinement = prepare(settings, kernels, lambda text: None, Progress(io.StringIO()), comm)
    refinement.state = comm.at_root(lambda: refinement.state)
    is_last = False
    with StopRequest(lambda line: None) as request:
        while not is_last:
            is_last = _is_last(refinement, settings)
            refinement.iterate(is_last=is_last)
            if not is_last and (stopped_by := _asked_to_stop(refinement, request)):
                raise Terminated(stopped_by, after=refinement.state.iteration)


def _resources(settings: RefineSettings, comm: Comm) -> tuple[int, Any]:
    """Threads and kernels of this rank, each on a GPU of its own as far as there are."""
    threads = use_threads(settings.threads, comm.core_sharers)
    keep_freed_memory()
    return threads, ops(settings.device, comm.local_rank)


def _is_last(refinement: Refinement, settings: RefineSettings) -> bool:
    """Whether the next iteration is the joined last one; all ranks come to the same answer."""
    return refinement.is_ready_to_finish or refinement.state.iteration + 1 >= settings.iterations


def _check_nothing_to_lose(folder: Path) -> None:
    """Refuse, with InputError, to start again where a run was to go on and something of it is left."""
    left = [*folder.glob("run_it*_checkpoint.npz"), *folder.glob("run_data.star")]
    if left:
        raise InputError("the run cannot go on: no checkpoint can be read", file=left[0],
                         rule="an undamaged run_it*_checkpoint.npz",
                         remedy="leave --continue away to start again, which removes the earlier results")


def _identity(settings: RefineSettings, refinement: Refinement) -> dict[str, object]:
    """What a continuation must share, as a checkpoint keeps it: the settings, the particles row by row, the mask.

    Not what the starting map holds: a checkpoint has the references that were made of it, and it is not used again.
    """
    table = refinement.particles.table
    names = table.star.table(table.table_name).strings("rlnImageName")
    digest = hashlib.sha256("\n".join(names[row] for row in table.identifiers).encode())
    digest.update(table.halves.tobytes())
    values = _plain_settings(settings) | {"particles and half sets, digest": digest.hexdigest()}
    if settings.mask is not None:  # a sphere is made of the settings
        values["mask, digest"] = hashlib.sha256(refinement.ops.to_host(refinement.support).tobytes()).hexdigest()
    return values


def _plain_settings(settings: RefineSettings) -> dict[str, object]:
    """Settings that may not change, as JSON holds them."""
    values = {name: value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _check_same(stored: dict[str, object], asked: dict[str, object], folder: Path) -> None:
    """Refuse, with InputError, to go on with other settings."""
    for name, value in asked.items():
        if stored.get(name) != value:
            raise InputError(f"the run that is to go on had {name} = {stored.get(name)!r}", file=folder, value=value,
                             rule="a run goes on with the settings that it was started with",
                             remedy="give the same value, or another --output")


def _iterate(
    refinement: Refinement, settings: RefineSettings, identity: dict[str, object], status: Status, progress: Progress,
    request: StopRequest, on_iteration: OnIteration,
) -> Iteration:
    """Iterate to convergence; returns the joined last iteration.

    Raises
    ------
    Terminated
        After an iteration in which a signal has asked for it.
    """
    folder = settings.output
    while True:
        is_last = _is_last(refinement, settings)
        number = refinement.state.iteration + 1
        progress.iteration_started(number, number if is_last else max(number + 2, 9))
        refinement.on_batch = progress.advance
        iteration = refinement.iterate(is_last=is_last)
        state = refinement.state
        if state.rejected:  # written at once: if they are too many, they are what the user has to look at
            write_rejected(folder / REJECTED, refinement.particles.table, state.rejected)
        check_rejected(settings, state.rejected, len(refinement.halves), folder / REJECTED)
        if number == 1:
            factors = " and ".join(f"{factor:.3g}" for factor in refinement.grey_scales.values())
            progress.line(f"the starting map was multiplied by {factors} (half 1 and 2) to fit the images' grey scale")
        last = state.history[-1]
        with refinement.watch.part("pictures"):
            write_iteration_pictures(folder, refinement, iteration, settings.regulariser)
        if not is_last:
            with refinement.watch.part("checkpoint"):
                save_checkpoint(folder, state, identity)
        write_record(folder, refinement, iteration, refinement.watch.taken(), peak_memory())
        progress.iteration_finished(_line(last))
        status.write("running", state.history)
        on_iteration(FinishedIteration.of(refinement, iteration))
        if is_last:
            return iteration
        stopped_by = _asked_to_stop(refinement, request)
        if stopped_by:
            raise Terminated(stopped_by, after=number)


def _asked_to_stop(refinement: Refinement, request: StopRequest) -> str:
    """Name of the signal that has come to any of the ranks; empty if none has."""
    names = refinement.comm.gathered(request.name)
    return refinement.comm.at_root(lambda: next(filter(None, names), ""))


def _line(entry: dict[str, Any]) -> str:
    """One line on an iteration."""
    kind = "last, joined" if entry["is_last"] else entry["stage"]
    rejected = f", {entry['rejected']} set aside" if entry["rejected"] else ""
    fsc = f"FSC 0.143 at {entry['crossing_0143']:.2f} A, 0.5 at {entry['crossing_05']:.2f} A"
    if entry["resolution_is_shared"]:
        fsc = f"no resolution beyond the {entry['resolution_0143']:.2f} A that the halves share ({fsc})"
    return (
        f"{kind}, {fsc}, step "
        f"{entry['step_deg']:.1f} deg, poses changed by {entry['turned_deg']:.1f} deg and {entry['moved_A']:.2f} A"
        f"{rejected}"
    )


def _final_mask(
    refinement: Refinement, settings: RefineSettings, iteration: Iteration, radius_px: float, threads: int, warn: Warn
) -> np.ndarray:
    """The mask given, or one made from the map; the particle's sphere where the map shows no particle."""
    if settings.mask is not None:
        return np.asarray(refinement.ops.to_host(refinement.support))
    first, second = iteration.half_maps
    return mask_of_map((first + second) / 2, refinement.particles.geometry.pixel_size, sphere(len(first), radius_px),
                       threads, warn)


def _finish(
    refinement: Refinement, iteration: Iteration, settings: RefineSettings, status: Status, warnings: list[str],
    warn: Warn, threads: int,
) -> RefineResult:
    """Write the results of the last iteration."""
    folder, table = settings.output, refinement.particles.table
    geometry = refinement.particles.geometry
    origin = Origin(table.pixel_size, settings.symmetry, geometry.diameter)
    for half, quarters in enumerate(iteration.quarters, start=1):
        write_accumulators(refinement.ops, folder / PREFIX, half, quarters, origin)
    iteration.quarters = ()  # gigabytes, at the largest boxes
    write_maps(folder, iteration, table.pixel_size, settings.regulariser)
    write_data_star(folder / "run_data.star", refinement)
    write_rejected(folder / REJECTED, table, refinement.state.rejected)
    write_model_star(folder / "run_model.star", refinement, iteration)
    write_strengths_picture(folder, refinement.state.history)
    radius_px = geometry.diameter / 2 / table.pixel_size
    common = table.optics[table.common]
    result = postprocess(*iteration.half_maps, table.pixel_size,
                         mask=_final_mask(refinement, settings, iteration, radius_px, threads, warn),
                         mtf=curve_of(common.mtf), mtf_pixel_size=common.mtf_pixel_size,
                         sphere_radius_px=radius_px,
                         seed=settings.seed, workers=threads, common=refinement.common)  # fmt: skip
    write_postprocess(result, folder, half_names=(HALF_MAP.format(1), HALF_MAP.format(2)),
                      mask_name=None if settings.mask is None else str(settings.mask))
    if isinstance(refinement.regulariser, NonUniform) and band_limits(iteration) is not None:
        _write_band_limits(refinement, iteration, settings, result, threads)
    write_what_goes_out(refinement, iteration, settings, result, warn)
    for text in (*result.warnings, *_curvature_hint(refinement, result)):
        warn(text)
    status.write("finished", refinement.state.history,
                 masked_resolution_0143=result.resolution_0143.angstrom,
                 masked_resolution_05=result.resolution_05.angstrom,
                 masked_resolution_is_shared=result.resolution_0143.is_shared, bfactor=result.bfactor)
    write_checksums(folder, (*WRITTEN, SETTINGS))
    return RefineResult(folder, refinement.state.history, result, warnings)


def _curvature_hint(refinement: Refinement, result: PostprocessResult) -> list[str]:
    """One sentence where the curvature of the Ewald sphere takes much of what the maps might show, else none."""
    table, found = refinement.particles.table, result.resolution_0143
    diameter = refinement.particles.geometry.diameter
    kept = kept_amplitude(found.angstrom, diameter, table.optics[table.common].voltage_kv)
    if refinement.ewald_hand or found.is_shared or kept > MUCH_KEPT or ctf_corrected(table):
        return []
    return [f"at {found.angstrom:.2f} A the curvature of the Ewald sphere takes {100 * (1 - kept):.0f} % of the "
            f"amplitude of a particle of {diameter:.0f} A: sparsecv reconstruct --ewald gives it back"]


def _write_band_limits(
    refinement: Refinement, iteration: Iteration, settings: RefineSettings, result: PostprocessResult, threads: int
) -> None:
    """Band limits, and the average of the halves, sharpened as in post-processing, through the filters they name."""
    assert isinstance(refinement.regulariser, NonUniform)
    limits, table = band_limits(iteration), refinement.particles.table
    assert limits is not None
    bank = refinement.particles.geometry.length / np.array(iteration.regularised[0].shown["band_limits"])
    between = np.unique(np.concatenate([bank, (bank[1:] + bank[:-1]) / 2]))  # means of halves lie between the filters
    filtered = sharpened_locally(refinement.ops, (iteration.half_maps[0] + iteration.half_maps[1]) / 2, result,
                                 mean_band_limit(*limits), refinement.regulariser.bank.order, between, threads)
    write_band_limits(settings.output, iteration, filtered, table.pixel_size)
