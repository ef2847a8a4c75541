# SPDX-License-Identifier: GPL-3.0-or-later
"""Scans of the two strengths of the sparse + TV prior on a grid [Luo2019, figures 1 to 3].

Over kept accumulators a point of the grid costs one M-step: it shows the held-out score inside each half, and the FSC
of the regularised halves, which are references and no result. Over whole refinements it shows the resolution that the
paper plots, from unregularised half maps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.results import write_json
from sparsecv.engine.refine.accumulator_files import WHOLE, read_accumulators
from sparsecv.engine.refine.evidence import evidence_of_accumulators
from sparsecv.engine.refine.regularise import masks
from sparsecv.engine.refine.regularisers import SparseTv, make_regulariser
from sparsecv.engine.refine.regularisers.sparse_tv import Kappas, NoiseUnits
from sparsecv.engine.refine.regularisers.sparse_tv.half_problem import HalfProblem
from sparsecv.engine.refine.regularisers.sparse_tv.held_out import HeldOut
from sparsecv.engine.refine.run import refine
from sparsecv.engine.refine.settings import NU_OPTIONS, RefineSettings, ScanSettings
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.report.strengths import plot_scan
from sparsecv.engine.settings import build, read_settings, write_settings
from sparsecv.engine.validate.fsc import HALF, fsc, resolution

# Columns that are drawn, in either kind of scan.
SCORES = {
    "held_out_half1": "held-out score, half 1 (lower is better)",
    "held_out_half2": "held-out score, half 2 (lower is better)",
    "references_fsc05_A": "FSC 0.5 of the references (Å; no resolution)",
}
RESOLUTIONS = {
    "resolution_0143_A": "FSC 0.143, in the sphere (Å)",
    "masked_resolution_0143_A": "FSC 0.143, masked (Å)",
    "resolution_05_A": "FSC 0.5, in the sphere (Å)",
    "masked_resolution_05_A": "FSC 0.5, masked (Å)",
}
FROM_STATUS = {  # column -> entry of status.json
    "resolution_0143_A": "resolution_0143",
    "resolution_05_A": "resolution_05",
    "masked_resolution_0143_A": "masked_resolution_0143",
    "masked_resolution_05_A": "masked_resolution_05",
}
# What may differ between a finished refinement and the one that is asked for: neither changes what it finds.
MAY_DIFFER = ("output", "threads", "device", "resume", "memory", "batch_memory", "precision", "data_dir",
              "keep_accumulators")

Row = dict[str, float | str]
Say = Callable[[str], None]


def scan(settings: ScanSettings, ops: Any, progress: Progress, warn: Say) -> list[Row]:
    """Run a scan; table, numbers and picture are written anew after each point.

    Parameters
    ----------
    ops
        Kernels of the device.
    progress
        Shows how far each refinement is.
    warn
        Called with what is odd about the input.

    Returns
    -------
    One row per point of the grid: column to value.
    """
    is_refined = settings.refine is not None
    rows = _over_refinements(settings, progress) if is_refined else _over_accumulators(settings, ops, warn)
    made: list[Row] = []
    for row in rows:
        made.append(row)
        _write(settings, made, RESOLUTIONS if is_refined else SCORES)
    return made


def _write(settings: ScanSettings, rows: list[Row], columns: dict[str, str]) -> None:
    folder = settings.output
    lines = [",".join(rows[0]), *(",".join(_text(value) for value in row.values()) for row in rows)]
    atomic_text(folder / "scan.csv", "\n".join([*lines, ""]))
    content = {"over": "accumulators" if settings.refine is None else "refinements", "strengths": settings.names,
               "points": rows}
    write_json(folder / "scan.json", content)
    plot_scan(folder / "scan.png", rows, settings.names, columns)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def table(rows: list[Row]) -> str:
    """Rows as text, columns one below the other."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


# -------------------------------------------------------------------------------------------------- accumulators
def _over_accumulators(settings: ScanSettings, ops: Any, warn: Say) -> Iterator[Row]:
    """One row per point, each half regularised by itself."""
    assert settings.accumulators is not None, "settings are checked when they are made"
    stored = read_accumulators(ops, settings.accumulators)
    if WHOLE in stored.quarters:
        raise InputError("holds the accumulators of all particles together", file=settings.accumulators,
                         rule="those of two half sets", remedy="reconstruct with --halves --keep-accumulators")
    pixel_size = stored.origin.pixel_size
    support, sphere = masks(settings.particle_diameter or stored.origin.diameter, settings.mask, stored.box, pixel_size,
                            warn)
    evidence = evidence_of_accumulators(ops, stored, support, sphere)
    problems = {half: HalfProblem.of(ops, own) for half, own in evidence.items()}
    settings.output.mkdir(parents=True, exist_ok=True)
    for point in settings.points():
        regulariser = make_regulariser(settings.at(point))
        assert isinstance(regulariser, SparseTv)
        row: Row = dict(zip(settings.names, point, strict=True))
        in_noise: Row = {}
        maps = []
        for half, problem in problems.items():
            units, kappas = in_noise_units(regulariser, problem)
            # Anew for each point: scores that start from the maps of the point before would depend on the grid.
            held_out = HeldOut.of(ops, problem, units, evidence[half].band, positive=regulariser.is_positive)
            row[f"held_out_half{half}"] = held_out.score(ops, kappas).score
            maps.append(ops.to_host(regulariser.solve(ops, problem, units.strengths(problem, kappas)).x))
            if settings.is_in_paper_units:
                in_noise |= {f"kappa_sparse_half{half}": kappas.sparse, f"kappa_variation_half{half}": kappas.variation}
        row["references_fsc05_A"] = resolution(fsc(*maps), HALF, stored.box, pixel_size).angstrom
        yield row | in_noise


def in_noise_units(regulariser: SparseTv, problem: HalfProblem) -> tuple[NoiseUnits, Kappas]:
    """Strengths in units of the noise, whichever they were given in: alpha rms(b) eps = kappa sigma_b eps."""
    units = regulariser.units
    if isinstance(units, NoiseUnits):
        return units, regulariser.kappas
    kappas = units.strengths(problem).in_units_of(problem.noise)
    return NoiseUnits(units.gamma, units.epsilon, units.epsilon_gradient), kappas


# --------------------------------------------------------------------------------------------------- refinements
def _over_refinements(settings: ScanSettings, progress: Progress) -> Iterator[Row]:
    """One row per point, each a refinement in a folder of its own; finished ones are kept, others go on."""
    asked = {point: refine_settings(settings, point) for point in settings.points()}
    are_done = {point: is_finished(one) for point, one in asked.items()}  # all, before the first one starts
    for number, (point, one) in enumerate(asked.items(), start=1):
        strengths = ", ".join(f"{name} {value:g}" for name, value in zip(settings.names, point, strict=True))
        progress.line(f"{strengths} ({number} of {len(asked)}){': finished before' if are_done[point] else ''}")
        if not are_done[point]:
            one.output.mkdir(parents=True, exist_ok=True)

            def save(one: RefineSettings = one) -> None:
                write_settings(one.output / "run.toml", "refine", one, ["scan", "--output", str(settings.output)])

            refine(one, progress, on_start=save)
        status = json.loads((one.output / "status.json").read_text(encoding="utf-8"))
        row: Row = dict(zip(settings.names, point, strict=True))
        row |= {column: float(status[entry]) for column, entry in FROM_STATUS.items()}
        yield row | {"iterations": float(status["iteration"]), "folder": one.output.name}


def refine_settings(settings: ScanSettings, point: tuple[float, float]) -> RefineSettings:
    """Settings of the refinement at a point: those of the TOML file, with the regulariser's and where to compute.

    Raises
    ------
    InputError
        When they lack something, or contradict one another.
    """
    assert settings.refine is not None, "settings are checked when they are made"
    given = read_settings(settings.refine, "refine", RefineSettings, ("refine", "scan"))
    others = ("tau_factor", *NU_OPTIONS, "nu_share")  # of other regularisers
    for name in (*others, "alpha", "beta", "kappa_sparse", "kappa_variation", "resume"):
        given.pop(name, None)
    if not settings.is_in_paper_units:
        given.pop("preset", None)
    changes = {name: value for name, value in settings.changes(point).items() if value is not None}
    if not settings.positivity:  # a switch that is not given leaves the file as it is
        del changes["positivity"]
    name = "_".join(f"{name}{value:g}" for name, value in zip(settings.names, point, strict=True))
    folder = settings.output / name
    where = {"output": folder, "resume": any(folder.glob("run_it*_checkpoint.npz"))}
    where |= {name: getattr(settings, name) for name in ("threads",) if settings.threads}
    where |= {name: getattr(settings, name) for name in ("device",) if settings.device != "auto"}
    return build(RefineSettings, given, changes, where)


def is_finished(asked: RefineSettings) -> bool:
    """Whether a refinement with these settings is there and finished.

    Raises
    ------
    InputError
        When the folder holds a run with other settings, which would be lost.
    """
    settings_file, status = asked.output / "run.toml", asked.output / "status.json"
    if not settings_file.is_file():
        return False
    stored = build(RefineSettings, read_settings(settings_file, "refine", RefineSettings))
    for name, value in asdict(asked).items():
        if name not in MAY_DIFFER and getattr(stored, name) != value:
            raise InputError(f"the refinement there had {name} = {getattr(stored, name)}", file=asked.output,
                             value=str(value), rule="a scan goes on with the settings that it was started with",
                             remedy="give another --output")
    return status.is_file() and json.loads(status.read_text(encoding="utf-8")).get("state") == "finished"
