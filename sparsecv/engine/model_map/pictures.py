# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of a validation, and the page that shows them with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.model_map.correlations import cut_off
from sparsecv.engine.model_map.curves import around_mask
from sparsecv.engine.model_map.density import to_transform
from sparsecv.engine.model_map.results import Validation
from sparsecv.engine.model_map.scores import GroupScores
from sparsecv.engine.report.model_map import MOST_LINES, Line, plot_inclusion, plot_model_fsc, plot_residues
from sparsecv.engine.report.page import Page
from sparsecv.engine.report.plots import plot_slices

PICTURES = ("model_fsc.png", "versus_fsc.png", "chains_fsc.png", "residues.png", "inclusion.png", "slices.png")
PAGE, SETTINGS = "validate.html", "validate.toml"
WORST = 10  # residues that are named


def draw_pictures(found: Validation, folder: Path, names: dict[str, str]) -> dict[str, str]:
    """Draw all pictures; returns what each shows, by file name."""
    grid, scores = found.grid, found.scores
    nyquist = 1 / grid.nyquist
    drawn = {PICTURES[0]: "Fourier shell correlation of map and model. Band: 95 % of the curves resampled by "
                          "direction. With random phases there is nothing left but what the mask brings."}  # fmt: skip
    plot_model_fsc(folder / PICTURES[0], _main_lines(found), nyquist, title="Map against model", legend="at 0.5")
    if found.versus is not None:
        plot_model_fsc(folder / PICTURES[1], _versus_lines(found, names), nyquist, legend="at 0.5",
                       title="Two maps against one model, in one mask")  # fmt: skip
        drawn[PICTURES[1]] = "Both maps against the same model, in the same mask."
    if len(found.chains) > 1:
        plot_model_fsc(folder / PICTURES[2], _chain_lines(found), nyquist, legend="at 0.5",
                       title="Chains, each in a mask of its own")  # fmt: skip
        drawn[PICTURES[2]] = "Map against model inside the mask of each chain."
    chains = dict(_residues_of_chains(found, scores.residues))
    if chains:
        plot_residues(folder / PICTURES[3], chains, title="Residues")
        drawn[PICTURES[3]] = (f"Q-score of each residue, and correlation of map and model within {scores.radius:.1f} A "
                              "of its atoms.")  # fmt: skip
    curves = {"all atoms": scores.inclusion_curve}
    if np.isfinite(scores.inclusion_curve_backbone).any():
        curves["backbone"] = scores.inclusion_curve_backbone
    plot_inclusion(folder / PICTURES[4], scores.inclusion_levels, curves, scores.level,
                   title="Atoms inside the surface")  # fmt: skip
    drawn[PICTURES[4]] = "Share of atoms inside the surface of the map, by its level."
    window, _ = around_mask(found.mask, grid)
    smooth = [cut_off(to_transform(volume), found.resolution, grid) for volume in (found.density, found.model)]
    volumes = {"map": smooth[0][window], "model": smooth[1][window], "mask": found.mask[window]}
    scaled = {name: (volume / (volume.std() or 1)).astype(np.float32) for name, volume in volumes.items()}
    plot_slices(folder / PICTURES[5], scaled, grid.pixel_size, title="Slices through the middle of the model")
    drawn[PICTURES[5]] = (f"Map and density of the model, both to {found.resolution:.1f} A, and mask, each in units of "
                          "its spread.")  # fmt: skip
    return drawn


def _main_lines(found: Validation) -> list[Line]:
    length = found.grid.length

    def line(values: NDArray[np.float64], label: str) -> Line:
        return Line(values, length, label)

    band = (found.masked.low, found.masked.high)
    lines = [Line(found.masked.values, length, f"in the mask: {found.masked.at_05}", band),
             line(found.unmasked.values, f"without a mask: {found.unmasked.at_05}"),
             line(found.randomised, "random phases, in the mask"),
             line(found.corrected, f"corrected for the mask: {found.corrected_at_05}")]  # fmt: skip
    if found.halves is not None:
        lines += [line(found.halves.ceiling, "ceiling, from the half maps"),
                  line(found.halves.half1.values, f"half map 1: {found.halves.half1.at_05}"),
                  line(found.halves.half2.values, f"half map 2: {found.halves.half2.at_05}")]  # fmt: skip
    return lines


def _versus_lines(found: Validation, names: dict[str, str]) -> list[Line]:
    assert found.versus is not None
    lines = []
    for name, masked in ((names["map"], found.masked), (names["versus"], found.versus.masked)):
        label = f"{Path(name).name}: {masked.at_05}"
        lines.append(Line(masked.values, found.grid.length, label, (masked.low, masked.high)))
    for name, unmasked in ((names["map"], found.unmasked), (names["versus"], found.versus.unmasked)):
        label = f"{Path(name).name}, no mask: {unmasked.at_05}"
        lines.append(Line(unmasked.values, found.grid.length, label))
    return lines


def _chain_lines(found: Validation) -> list[Line]:
    """Few chains by name; of many the worst ones by name and the others faint."""
    def worst_first(item: tuple[str, Any]) -> float:
        at = item[1].curve.at_05.resolution
        return -(at.angstrom if at is not None else np.inf)

    ordered = sorted(found.chains.items(), key=worst_first)
    named = ordered if len(ordered) <= MOST_LINES else ordered[:5]
    lines = [Line(chain.curve.values, chain.grid.length, f"{name}: {chain.curve.at_05}") for name, chain in named]
    others = [Line(chain.curve.values, chain.grid.length, "", is_faint=True) for _, chain in ordered[len(named) :]]
    return lines + others


def _residues_of_chains(
    found: Validation, scores: GroupScores
) -> Iterator[tuple[str, tuple[list[str], NDArray[np.float64], NDArray[np.float64]]]]:
    """Polymer residues of each chain: numbers, Q-scores, correlations."""
    by_chain: dict[str, list[int]] = {}
    for number, residue in enumerate(found.atoms.residues):
        if residue.is_polymer:
            by_chain.setdefault(residue.chain, []).append(number)
    for name, numbers in by_chain.items():
        if np.isfinite(scores.q_score[numbers]).any():
            shown = [found.atoms.residues[number].number for number in numbers]
            yield name, (shown, scores.q_score[numbers], scores.correlation[numbers])


def write_page(found: Validation, folder: Path, pictures: dict[str, str], names: dict[str, str]) -> None:
    scores, whole = found.scores, found.scores.whole
    page = Page("Map against model")
    page.paragraph(f"Map {names['map']}, model {names['model']}: {len(found.atoms)} atoms, "
                   f"{len(found.atoms.residues)} residues, {len(found.atoms.chains)} chains.")  # fmt: skip
    page.warnings(found.warnings)
    page.heading("Results")
    rows: list[tuple[str, object]] = [
        ("FSC 0.5 in the mask", found.masked.at_05), ("FSC 0.143 in the mask", found.masked.at_0143),
        ("FSC 0.5, corrected for the mask", found.corrected_at_05), ("FSC 0.5 without a mask", found.unmasked.at_05),
        ("FSC 0.143 without a mask", found.unmasked.at_0143),
    ]  # fmt: skip
    if found.halves is not None:
        over = found.halves.over_fit
        rows += [("half maps at FSC 0.143, in the mask", found.halves.resolution),
                 ("against half map 1, FSC 0.5", found.halves.half1.at_05),
                 ("against half map 2, FSC 0.5", found.halves.half2.at_05),
                 ("half map 1 less half map 2", f"{over.difference:.4f} +- {over.error:.4f}")]  # fmt: skip
    if found.versus is not None:
        rows += [(f"{Path(names['versus']).name}, FSC 0.5 in the mask", found.versus.masked.at_05),
                 (f"{Path(names['versus']).name}, FSC 0.143 in the mask", found.versus.masked.at_0143)]  # fmt: skip
    rows += [
        (f"mean FSC to {found.resolution:.2f} A", f"{found.fsc_average:.3f}"),
        ("mean FSC to Nyquist", f"{found.fsc_average_nyquist:.3f}"),
        ("CC_mask", f"{whole.mask:.3f}"), ("CC_volume", f"{whole.volume:.3f}"), ("CC_peaks", f"{whole.peaks:.3f}"),
        ("CC_box", f"{whole.box:.3f}"), ("Q-score", f"{scores.q_score:.3f}"),
        (f"atoms inside, level {scores.level:.4g}", f"{scores.inclusion:.1%}"),
        ("backbone atoms inside", f"{scores.inclusion_backbone:.1%}"),
        ("nothing is seen beyond (d99), map", f"{scores.map_seen_to:.2f} A"),
        ("nothing is seen beyond (d99), model", f"{scores.model_seen_to:.2f} A"),
    ]  # fmt: skip
    page.table(("measure", "value"), rows)
    page.paragraph("In brackets: 95 % of the curves resampled by direction.", faint=True)
    for name in PICTURES:
        if name in pictures:
            page.picture(folder / name, pictures[name])
    if len(found.atoms.chains) > 1:
        page.heading("Chains")
        page.table(("chain", "atoms", "FSC 0.5", "correlation", "Q-score", "atoms inside"), [
            (name, int(scores.chains.atoms[k]), found.chains[name].curve.at_05 if name in found.chains else "-",
             float(scores.chains.correlation[k]), float(scores.chains.q_score[k]), float(scores.chains.inclusion[k]))
            for k, name in enumerate(found.atoms.chains)
        ])  # fmt: skip
    page.heading("Residues with the lowest Q-scores")
    page.table(("residue", "Q-score", "correlation", "atoms inside"), [
        (str(found.atoms.residues[k]), float(scores.residues.q_score[k]), float(scores.residues.correlation[k]),
         float(scores.residues.inclusion[k]))
        for k in scores.worst(found.atoms, WORST)
    ])  # fmt: skip
    page.heading("What was done")
    page.items(found.notes)
    page.paragraph(f"Resolution for mask, model density and correlations: {found.resolution:.2f} A, "
                   f"{found.resolution_source}.")  # fmt: skip
    if (folder / SETTINGS).is_file():
        page.code((folder / SETTINGS).read_text(encoding="utf-8"))
    page.write(folder / PAGE)
