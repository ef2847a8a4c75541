# SPDX-License-Identifier: GPL-3.0-or-later
"""Regularisation without refinement: priors on kept accumulators, or on the half maps of any program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.io.mrc import Map, write_map
from sparsecv.engine.io.results import remove_results, write_json
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.accumulator_files import WHOLE, read_accumulators
from sparsecv.engine.refine.evidence import evidence_of_accumulators, evidence_of_half_maps
from sparsecv.engine.refine.prepare import particle_diameter, read_support
from sparsecv.engine.refine.regularisers import Evidence, Regularised, Regulariser, make_regulariser
from sparsecv.engine.refine.settings import RegulariseSettings
from sparsecv.engine.report.plots import plot_slices
from sparsecv.engine.report.strengths import plot_held_out

MOST_ROUNDS = 6  # of choosing strengths, each from where the one before ended
WRITTEN = ("regularised*.mrc", "regularised*_slices.png", "regularised_held_out.png", "regularise.json")

Say = Callable[[str], None]


@dataclass(frozen=True)
class HalfMaps:
    """Half maps of any program, and the map to which a regulariser may pull; all of one box."""

    half1: Map
    half2: Map
    previous: Map | None = None


def regularise(settings: RegulariseSettings, ops: Any, maps: HalfMaps | None, warn: Say) -> list[Path]:
    """Regularise and write maps, numbers and pictures; returns the maps.

    Parameters
    ----------
    ops
        Kernels of the device.
    maps
        What to regularise, or None for the settings' accumulators.
    warn
        Called with what is odd about the input.

    Raises
    ------
    InputError
        When an input breaks a rule; nothing has then been written.
    """
    evidence = _evidence(settings, ops, maps, warn)
    regulariser = make_regulariser(settings)
    folder = settings.output
    folder.mkdir(parents=True, exist_ok=True)
    remove_results(folder, (settings.half1, settings.half2, settings.previous, settings.mask), WRITTEN)
    written, shown = [], {}
    for half, own in evidence.items():
        name = "regularised" if half == WHOLE else f"regularised_half{half}"
        found = settled(ops, regulariser, own)
        density = ops.to_host(found.reference)
        before = ops.to_host((own.quarters[0] + own.quarters[1]).solve(ops) * own.support)
        path = folder / f"{name}.mrc"
        write_map(path, density, own.pixel_size, label=f"sparsecv regularised map, {regulariser.name}")
        for kind, volume in found.volumes.items():
            write_map(folder / f"{name}_{kind}.mrc", volume, own.pixel_size, label=f"sparsecv {kind}, A")
        plot_slices(folder / f"{name}_slices.png", {"unregularised": before, regulariser.name: density},
                    own.pixel_size, title=f"{path.name}, {regulariser.name}")
        written.append(path)
        shown[_label(half)] = {"map": path.name} | found.shown
    trials = {label: entry["held_out"] for label, entry in shown.items() if entry.get("held_out")}
    if trials:
        chosen = {label: shown[label] for label in trials}
        plot_held_out(folder / "regularised_held_out.png", trials, chosen, title="Held-out scores")
    first = next(iter(evidence.values()))
    content = {"regulariser": regulariser.name, "box": first.box, "pixel_size": first.pixel_size, "band": first.band,
               "maps": list(shown.values())}
    write_json(folder / "regularise.json", content)
    return written


def _label(half: int) -> str:
    return "all" if half == WHOLE else f"half {half}"


def settled(ops: Any, regulariser: Regulariser, evidence: Evidence) -> Regularised:
    """Regularise again and again until the choice of strengths stays where it is.

    In a refinement a choice goes one step from where the iteration before has left it; here all steps are made at once.
    """
    found = regulariser.regularise(ops, evidence)
    trials = list(found.shown.get("held_out", []))
    for _ in range(MOST_ROUNDS - 1):
        if not found.shown.get("held_out") or found.memory == evidence.memory:
            break
        evidence = replace(evidence, memory=found.memory)
        found = regulariser.regularise(ops, evidence)
        trials += found.shown.get("held_out", [])
    return replace(found, shown=found.shown | {"held_out": trials}) if trials else found


def _evidence(settings: RegulariseSettings, ops: Any, maps: HalfMaps | None, warn: Say) -> dict[int, Evidence]:
    """What is regularised, by half; half maps are the quarters of one map of all particles."""
    if maps is None:
        assert settings.accumulators is not None, "settings are checked when they are made"
        stored = read_accumulators(ops, settings.accumulators)
        box, pixel_size, known = stored.box, stored.origin.pixel_size, stored.origin.diameter
    else:
        box, pixel_size, known = maps.half1.data.shape[0], maps.half1.pixel_size, None
    support, round_mask = masks(settings.particle_diameter or known, settings.mask, box, pixel_size, warn)
    if maps is None:
        return evidence_of_accumulators(ops, stored, support, round_mask)
    previous = None if maps.previous is None else maps.previous.data
    return {WHOLE: evidence_of_half_maps(ops, maps.half1.data, maps.half2.data, pixel_size, support, round_mask,
                                         previous)}


def masks(diameter: float | None, mask: Path | None, box: int, pixel_size: float,
          warn: Say) -> tuple[np.ndarray, np.ndarray]:
    """The support of the result, a mask or the particle's sphere, and that sphere, (box, box, box) each."""
    round_mask = sphere(box, particle_diameter(diameter, box * pixel_size) / 2 / pixel_size)
    return read_support(mask, box, pixel_size, round_mask, warn), round_mask
