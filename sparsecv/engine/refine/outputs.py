# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a refinement, under RELION's names and in RELION's layout."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.results import write_json
from sparsecv.engine.io.star import StarFile, holdable
from sparsecv.engine.refine.loop import Iteration, Refinement
from sparsecv.engine.refine.noise import signal_to_noise
from sparsecv.engine.refine.regularisers.nonuniform import BAND_LIMIT, mean_band_limit
from sparsecv.engine.report import deposition
from sparsecv.engine.report.band_limit import plot_band_limit, surface_level
from sparsecv.engine.report.chimerax import BandLimits, write_band_limit_script
from sparsecv.engine.report.plots import plot_angles, plot_fsc, plot_slices
from sparsecv.engine.report.run_page import PAGE, RunPage
from sparsecv.engine.report.strengths import plot_held_out, plot_strengths

PREFIX = "run"
HALF_MAP = "run_half{}_class001_unfil.mrc"
MAP = "run_class001.mrc"
REGULARISED_MAP = "run_class001_regularised.mrc"
REJECTED = "rejected.star"
SETTINGS = "run.toml"  # written by the command, when the inputs have been checked
STRENGTHS = "run_sparse_tv.png"
WRITTEN = (  # patterns of all that a refinement writes, but for its settings
    "run_it[0-9]*_*.png", "run_it[0-9]*_record.json", "run_it[0-9]*_checkpoint.npz", PAGE,
    HALF_MAP.format("[12]"), MAP, REGULARISED_MAP, "run_data.star",
    "run_model.star", REJECTED, "postprocess.mrc", "postprocess_masked.mrc", "postprocess_mask.mrc",
    "postprocess.star", "postprocess_fsc.xml", "status.json",
    "run_half[12]_quarter[12]_accumulator.npz", STRENGTHS,
    "run_bandlimit.mrc", "run_half[12]_bandlimit.mrc", "run_bandlimit.png", "run_bandlimit.cxc",
    "run_locally_filtered.mrc", "run.cxc", *deposition.WRITTEN,
)  # fmt: skip


def write_iteration_pictures(folder: Path, refinement: Refinement, iteration: Iteration, regulariser: str) -> None:
    """PNGs of the FSC, the central slices, the view directions, and the held-out scores where strengths were chosen."""
    state, geometry = refinement.state, refinement.particles.geometry
    prefix = f"run_it{state.iteration:03d}"
    title = f"iteration {state.iteration}"
    plot_fsc(folder / f"{prefix}_fsc.png", {"half maps, sphere": iteration.fsc}, geometry.box, geometry.pixel_size,
             title=f"FSC, {title}")
    average = (state.halves[0].reference + state.halves[1].reference) / 2
    prior, density = state.history[-1].get("prior", regulariser), average
    if iteration.joined is not None:
        prior, density = "wiener", iteration.joined
    if iteration.joined_regularised is not None:
        prior, density = regulariser, iteration.joined_regularised
    plot_slices(folder / f"{prefix}_slices.png", density, geometry.pixel_size, title=f"Map ({prior}), {title}")
    kept = ~state.particles.is_rejected
    halves = state.history[-1].get("regulariser", [])
    chosen = {f"half {half}": shown for half, shown in enumerate(halves, start=1) if shown.get("held_out")}
    if chosen:
        trials = {label: shown["held_out"] for label, shown in chosen.items()}
        plot_held_out(folder / f"{prefix}_held_out.png", trials, chosen, title=f"Held-out scores, {title}")
    limits = band_limits(iteration)
    if limits is not None and iteration.joined is None:  # the last iteration has a picture of its own
        plot_band_limit(folder / f"{prefix}_bandlimit.png", average, mean_band_limit(*limits), shares(iteration),
                        geometry.pixel_size, title=f"Band limits of the references, {title}")
    plot_angles(folder / f"{prefix}_angles.png", state.particles.rotations[kept],
                operators=refinement.particles.matrices, title=f"View directions, {title}")


def band_limits(iteration: Iteration) -> tuple[np.ndarray, np.ndarray] | None:
    """Maps of band limits of both halves, A, where the regulariser made them."""
    found = [one.volumes[BAND_LIMIT] for one in iteration.regularised if BAND_LIMIT in one.volumes]
    return (found[0], found[1]) if len(found) == 2 else None


def shares(iteration: Iteration) -> dict[str, tuple[list[float], list[float]]]:
    """By half, the band limits of its bank, A, and the share of voxels that uses each."""
    return {f"half {half}": (one.shown["band_limits"], one.shown["share"])
            for half, one in enumerate(iteration.regularised, start=1)}  # fmt: skip


def write_band_limits(folder: Path, iteration: Iteration, filtered: np.ndarray, pixel_size: float) -> None:
    """Maps of band limits of the halves and their mean, the map filtered by it, a picture and a ChimeraX script.

    Values are in A at every voxel, as in RELION's maps of local resolution; where nothing finer predicts the other
    quarter better, that of the coarsest filter.

    Parameters
    ----------
    filtered
        (box, box, box) float32: sharpened, and filtered by the mean band limit.
    """
    limits = band_limits(iteration)
    assert limits is not None, "asked for where the regulariser shows band limits"
    for half, limit in enumerate(limits, start=1):
        write_map(folder / f"run_half{half}_bandlimit.mrc", limit, pixel_size, label="sparsecv local band limit, A")
    mean = mean_band_limit(*limits)
    write_map(folder / "run_bandlimit.mrc", mean, pixel_size, label="sparsecv local band limit, A, mean of the halves")
    label = "sparsecv map, sharpened and filtered locally: to look at, not for an FSC"
    write_map(folder / "run_locally_filtered.mrc", filtered, pixel_size, label=label)
    plot_band_limit(folder / "run_bandlimit.png", filtered, mean, shares(iteration), pixel_size,
                    title="Band limits, mean of the halves", with_surface=True)
    write_band_limit_script(folder / "run_bandlimit.cxc", "run_locally_filtered.mrc", surface_level(filtered),
                            BandLimits("run_bandlimit.mrc", float(mean.min()), float(mean.max())))


def write_strengths_picture(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """``run_sparse_tv.png``: strengths and solutions of all iterations; nothing where another prior was used."""
    regularised = {entry["iteration"]: entry["regulariser"] for entry in history if "regulariser" in entry}
    solved = {number: halves for number, halves in regularised.items() if all("objective" in one for one in halves)}
    if solved:
        plot_strengths(folder / STRENGTHS, solved)


def write_data_star(path: Path, refinement: Refinement) -> None:
    """``run_data.star``: the kept particles with their poses, half sets and qualities."""
    state, table = refinement.state, refinement.particles.table
    particles = state.particles
    own, optics = ({}, {}) if refinement.ctf is None else refinement.ctf.columns(table)
    table.write(
        path,
        rotations=particles.rotations,
        shifts=particles.shifts_px * table.pixel_size,
        halves=refinement.halves,
        columns={
            "rlnClassNumber": np.ones(len(table), dtype=np.int64),
            "rlnNormCorrection": particles.norm,
            "rlnLogLikeliContribution": particles.log_likelihood,
            "rlnMaxValueProbDistribution": particles.best_probability,
            "rlnNrOfSignificantSamples": particles.significant,
            "rlnGroupScaleCorrection": own_scales(refinement),
            "sparsecvLogEvidence": particles.log_evidence,
            "sparsecvPoseSpread": particles.spread_deg,
            **own,
        },
        keep=~particles.is_rejected,
        optics=optics,
    )


def own_scales(refinement: Refinement) -> np.ndarray:
    """Scale of each particle's group as its own half set has it, (n,)."""
    group = refinement.particles.table.group_index
    first, second = (half.scale for half in refinement.state.halves)
    return np.where(refinement.halves == 1, first[group], second[group])


def write_rejected(path: Path, table: ParticleTable, rejected: Mapping[int, str]) -> None:
    """``rejected.star``: the particles set aside, with the reason of each; written even when there are none."""
    rows = sorted(rejected)
    names = table.star.table(table.table_name).strings("rlnImageName")
    star = StarFile.new()
    star.add_loop("rejected", {
        "rlnImageName": [names[table.identifiers[row]] for row in rows],
        "sparsecvRow": [int(table.identifiers[row]) + 1 for row in rows],
        "sparsecvReason": [rejected[row] for row in rows],
    })  # fmt: skip
    star.write(path)


def write_model_star(path: Path, refinement: Refinement, iteration: Iteration) -> None:
    """``run_model.star``: resolution, spectra and scales as RELION's model file has them."""
    state, geometry = refinement.state, refinement.particles.geometry
    table, last = refinement.particles.table, state.history[-1]
    star = StarFile.new()
    star.add_pairs("model_general", {
        "rlnReferenceDimensionality": 3,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": geometry.box,
        "rlnCurrentResolution": last["resolution_0143"],
        "rlnCurrentImageSize": geometry.box,
        "rlnPaddingFactor": 2.0,
        "rlnPixelSize": geometry.pixel_size,
        "rlnNrClasses": 1,
        "rlnNrBodies": 1,
        "rlnNrGroups": len(table.group_names),
        "rlnTau2FudgeFactor": getattr(refinement.regulariser, "tau_factor", 1.0),
        "rlnNormCorrectionAverage": float(state.particles.norm.mean()),
        "rlnSigmaOffsetsAngst": float(np.mean([h.shift_sigma_px for h in state.halves]) * geometry.pixel_size),
        "rlnLogLikelihood": float(state.particles.log_likelihood.sum()),
        "rlnAveragePmax": last["best_probability"],
    })  # fmt: skip
    star.add_loop("model_classes", {
        "rlnReferenceImage": [MAP],
        "rlnClassDistribution": [1.0],
        "rlnEstimatedResolution": [last["resolution_0143"]],
    })  # fmt: skip
    shells = np.arange(len(iteration.fsc))
    star.add_loop("model_class_1", {
        "rlnSpectralIndex": shells,
        "rlnResolution": shells / geometry.length,
        "rlnAngstromResolution": [999.0 if s == 0 else geometry.length / s for s in shells.tolist()],
        "rlnSsnrMap": signal_to_noise(iteration.fsc),
        "rlnGoldStandardFsc": iteration.fsc,
        "rlnReferenceSigma2": _inverse(iteration.noise_gain, len(shells)),
    })  # fmt: skip
    in_group = _counts(refinement, table.group_index, len(table.group_names))
    star.add_loop("model_groups", {
        "rlnGroupNumber": np.arange(1, len(table.group_names) + 1),
        "rlnGroupName": [holdable(name) for name in table.group_names],
        "rlnGroupNrParticles": np.bincount(table.group_index, minlength=len(table.group_names)),
        "rlnGroupScaleCorrection": mean_of_halves([half.scale for half in state.halves], in_group),
    })  # fmt: skip
    in_optics = _counts(refinement, table.optics_index, len(table.optics))
    for number, spectrum in enumerate(mean_of_halves([half.noise for half in state.halves], in_optics)):
        star.add_loop(f"model_optics_group_{number + 1}", {
            "rlnSpectralIndex": np.arange(len(spectrum)),
            "rlnResolution": np.arange(len(spectrum)) / geometry.length,
            # RELION's transforms are divided by box^2 where ours are divided by box.
            "rlnSigma2Noise": spectrum / geometry.box**2,
        })  # fmt: skip
    star.write(path)


def _inverse(gain: np.ndarray, shells: int) -> np.ndarray:
    padded = np.pad(gain, (0, max(0, shells - len(gain))))[:shells]
    return np.where(padded > 0, 1 / np.maximum(padded, 1e-30), 0)


def _counts(refinement: Refinement, group: np.ndarray, groups: int) -> np.ndarray:
    """Particles of each half in each group that are not set aside, (2, groups); ``group``: (n,) of each particle."""
    kept = ~refinement.state.particles.is_rejected
    return np.stack([np.bincount(group[kept & (refinement.halves == half)], minlength=groups) for half in (1, 2)])


def mean_of_halves(values: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Mean of what the halves know of each group, by their particles in it.

    A half without particles of a group knows nothing of it: its value is the one that it began with.

    Parameters
    ----------
    values
        Of the two halves, (groups, ...) each.
    counts
        (2, groups) particles; where both are 0, the halves count alike.
    """
    weights = np.where(counts.sum(axis=0) > 0, counts, 1).astype(np.float64)
    weights /= weights.sum(axis=0)
    mean: np.ndarray = np.einsum("hg,hg...->g...", weights, np.stack(values))
    return mean


def write_maps(folder: Path, iteration: Iteration, pixel_size: float, regulariser: str) -> None:
    """The unregularised half maps and the joined maps."""
    for number, half_map in enumerate(iteration.half_maps):
        write_map(folder / HALF_MAP.format(number + 1), half_map, pixel_size, label="sparsecv unregularised half map")
    if iteration.joined is not None:
        write_map(folder / MAP, iteration.joined, pixel_size, label="sparsecv map, Wiener-filtered")
    if iteration.joined_regularised is not None:
        label = f"sparsecv map, regulariser {regulariser}: to look at, not for an FSC"
        write_map(folder / REGULARISED_MAP, iteration.joined_regularised, pixel_size, label=label)


class Status:
    """``status.json`` and ``report.html``: where a run stands, for scripts and for people; rewritten atomically.

    Parameters
    ----------
    folder
        Of the run.
    constant
        What stays the same throughout, such as the number of particles.
    warnings
        Grows while the run goes on.
    """

    def __init__(self, folder: Path, constant: Mapping[str, Any], warnings: Sequence[str]) -> None:
        self.path = folder / "status.json"
        self.started = time.time()
        self._constant, self._warnings = constant, warnings
        self._page = RunPage(folder)

    def write(self, state: str, history: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write a state (``running``, ``finished``, ``stopped``, ``failed``) with the history so far."""
        content = {
            "state": state,
            "iteration": history[-1]["iteration"] if history else 0,
            "resolution_0143": history[-1]["resolution_0143"] if history else None,
            "resolution_05": history[-1]["resolution_05"] if history else None,
            "resolution_is_shared": history[-1]["resolution_is_shared"] if history else None,
            "wall_seconds": round(time.time() - self.started, 3),
            "cpu_seconds": round(time.process_time(), 3),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "warnings": list(self._warnings),
            **self._constant,
            **more,
            "history": list(history),
        }
        write_json(self.path, content)
        self._page.write(content)
