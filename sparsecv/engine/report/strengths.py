# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of the strengths of the sparse + TV prior: their choice by held-out data, and scans of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from sparsecv.engine.report.plots import COLOURS, STYLES, save_figure

KAPPAS = {"variation": "$\\kappa$ of total variation", "sparse": "$\\kappa$ of sparsity"}
UNIT = "units of the noise"
MOST_TICKS = 8

Trials = Sequence[Mapping[str, float]]


def plot_held_out(
    path: str | Path, trials: Mapping[str, Trials], chosen: Mapping[str, Mapping[str, Any]], *, title: str
) -> None:
    """Draw held-out scores against either kappa, the other one held, with the choice marked.

    Parameters
    ----------
    path
        PNG file, written atomically.
    trials
        By label of the half: ``sparse``, ``variation`` and ``score`` of each trial, in the order made.
    chosen
        By the same labels, ``kappa_sparse`` and ``kappa_variation``.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, label) in zip(panels, KAPPAS.items(), strict=True):
        other = "sparse" if name == "variation" else "variation"
        shown = set()
        for number, (half, made) in enumerate(trials.items()):
            scores = {(trial[name], trial[other]): trial["score"] for trial in made}  # the newest of equal ones
            choice = (chosen[half][f"kappa_{name}"], chosen[half][f"kappa_{other}"])
            for style, (held, line) in enumerate(lines_of(scores)):
                axes.plot(*zip(*line, strict=True), color=COLOURS[number], linestyle=STYLES[style % len(STYLES)],
                          marker="o", markersize=4, linewidth=1.5,
                          label=f"{half}, {'TV' if other == 'variation' else 'sparsity'} {held:.3g}")
                shown |= {kappa for kappa, _ in line}
            if choice in scores:
                axes.plot(choice[0], scores[choice], marker="o", markersize=11, fillstyle="none", linestyle="none",
                          color=COLOURS[number], markeredgewidth=1.8, label=f"{half}, chosen: {choice[0]:.3g}")
        _logarithmic(axes, shown)
        axes.set_xlabel(f"{label} ({UNIT})")
        axes.grid(color="0.92", linewidth=0.6)
        if shown:
            axes.legend(fontsize=8, framealpha=0.95)
    panels[0].set_ylabel("held-out score (lower is better)")
    figure.suptitle(title)
    save_figure(figure, path)


def lines_of(scores: Mapping[tuple[float, float], float]) -> list[tuple[float, list[tuple[float, float]]]]:
    """Lines (kappa, score) of trials that share the other kappa, with its value: the longest, and those of three."""
    lines = {held: sorted((kappa, score) for (kappa, beside), score in scores.items() if beside == held)
             for held in sorted({beside for _, beside in scores})}
    longest = max((len(line) for line in lines.values()), default=0)
    return [(held, line) for held, line in lines.items() if len(line) >= min(3, longest)]


def _logarithmic(axes: Axes, values: Iterable[float], which: Literal["x", "y"] = "x") -> None:
    """A logarithmic axis with a tick at each value, where they are few; a linear one where a value is 0."""
    ticks = sorted({float(f"{value:.3g}") for value in values})
    if not ticks or ticks[0] <= 0:
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axis.set_minor_formatter(NullFormatter())
    if len(ticks) <= MOST_TICKS:
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def plot_strengths(path: str | Path, iterations: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the strengths of each iteration of a refinement, and how its problems were solved.

    Parameters
    ----------
    path
        PNG file, written atomically.
    iterations
        By number of the iteration, for each half what the regulariser has shown: ``kappa_sparse`` and
        ``kappa_variation``; ``objective`` and ``gap`` at the checks of the last solution; ``held_out`` where a choice
        was made.
    """
    figure = Figure(figsize=(12.6, 4.0), layout="constrained")
    kappas, objective, gap = figure.subplots(1, 3)
    numbers = sorted(iterations)
    strengths: set[float] = set()
    for half in range(2):
        shown = [iterations[number][half] for number in numbers]
        lines = {"TV": [one["kappa_variation"] for one in shown], "sparsity": [one["kappa_sparse"] for one in shown]}
        for style, (label, values) in enumerate(lines.items()):
            kappas.plot(numbers, values, color=COLOURS[half], linestyle=STYLES[style], marker="os"[style],
                        markersize=7 - 3 * half, label=f"half {half + 1}, {label}")
            strengths.update(values)
    for number in numbers:
        if any(one.get("held_out") for one in iterations[number]):
            kappas.axvline(number, color="0.55", linewidth=1.0, linestyle=":", zorder=0)
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(numbers)))
    for shade, number in zip(shades, numbers, strict=True):
        for half, one in enumerate(iterations[number]):
            look: dict[str, Any] = {"color": shade, "linestyle": STYLES[half], "marker": "o", "markersize": 3}
            end = abs(one["objective"][-1]) or 1.0
            checks = range(1, len(one["objective"]) + 1)
            name = f"iteration {number}" if half == 0 and number in (numbers[0], numbers[-1]) else None
            objective.plot(checks, [(value - one["objective"][-1]) / end for value in one["objective"]], label=name,
                           **look)
            if one["gap"]:
                gap.plot(checks, one["gap"], **look)
    _logarithmic(kappas, strengths, "y")
    kappas.set(xlabel="iteration", ylabel=f"$\\kappa$ ({UNIT})", title="strengths (dotted: chosen anew)")
    kappas.xaxis.set_major_locator(MaxNLocator(integer=True))
    objective.set(xlabel="check of the solver", ylabel="(F - last F) / |last F|", title="objective")
    gap.set(xlabel="check of the solver", ylabel="certified gap, of |F|", title="distance from the minimum, at most")
    if gap.lines:
        gap.set_yscale("log")
    for axes in (objective, gap):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (kappas, objective, gap):
        axes.grid(color="0.92", linewidth=0.6)
    kappas.legend(fontsize=8, framealpha=0.95)
    objective.legend(fontsize=8, framealpha=0.95, title="solid: half 1, dashed: half 2", title_fontsize=8)
    save_figure(figure, path)


def plot_scan(
    path: str | Path, rows: Sequence[Mapping[str, Any]], names: tuple[str, str], columns: Mapping[str, str]
) -> None:
    """Draw columns of a scan against the strength of total variation, one line per strength of sparsity.

    Parameters
    ----------
    path
        PNG file, written atomically.
    rows
        Points of the grid: column to value.
    names
        Columns of the strengths of sparsity and of total variation.
    columns
        Column to the label of its panel; lower values are better, and drawn lower.
    """
    across = 2 if len(columns) == 4 else len(columns)
    down = -(-len(columns) // across)
    figure = Figure(figsize=(4.6 * across, 0.4 + 3.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    sparse, variation = names
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for number, strength in enumerate(sorted({row[sparse] for row in rows})):
            line = sorted((row[variation], row[column]) for row in rows if row[sparse] == strength)
            axes.plot(*zip(*line, strict=True), color=COLOURS[number % len(COLOURS)], marker="o", markersize=5,
                      linestyle=STYLES[number % len(STYLES)], label=f"{_symbol(sparse)} = {strength:g}")
        axes.set_xlabel(_symbol(variation) + (f" ({UNIT})" if variation.startswith("kappa") else ""))
        axes.set_ylabel(label)
        axes.ticklabel_format(useOffset=False)
        if variation.startswith("kappa"):  # tried by factors
            _logarithmic(axes, {row[variation] for row in rows})
        axes.grid(color="0.92", linewidth=0.6)
    panels[0].legend(fontsize=9, framealpha=0.95)
    figure.suptitle("Scan of the strengths of the sparse + TV prior")
    save_figure(figure, path)


def _symbol(name: str) -> str:
    """A strength as it is written in formulas."""
    greek = {"alpha": "$\\alpha$", "beta": "$\\beta$"}
    return greek.get(name) or KAPPAS[name.removeprefix("kappa_")]
