# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of a map against a model: curves with their bands, chains, residues, atoms inside a surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsecv.engine.report.plots import COLOURS, STYLES, frame_of_fsc, save_figure
from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF

MOST_LINES = 10  # curves of chains that are told apart by colour
MOST_PANELS = 8  # chains that get a panel of their own
SCORE_MAP = "cividis"


@dataclass(frozen=True)
class Line:
    """A curve to be drawn: values per shell, side of the box that they come from in A, label, band, whether faint."""

    values: np.ndarray
    length: float
    label: str
    band: tuple[np.ndarray, np.ndarray] | None = None
    is_faint: bool = False


def plot_model_fsc(path: str | Path, lines: Sequence[Line], nyquist: float, *, title: str, legend: str = "") -> None:
    """Draw curves of map against model against frequency.

    Parameters
    ----------
    path
        PNG file, written atomically.
    lines
        The first one is drawn thickest.
    nyquist
        1/A.
    title, legend
        Of the picture, and of its legend.
    """
    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(lines):
        frequency = np.arange(len(line.values)) / line.length
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
        if line.is_faint:
            look = {"color": "0.6", "linestyle": "-"}
        width = 2.4 if number == 0 else 0.7 if line.is_faint else 1.5
        axes.plot(frequency, line.values, linewidth=width, label=line.label.replace(" A", " Å") or None,
                  zorder=4 if number == 0 else 3, **look)  # fmt: skip
        if line.band is not None:
            axes.fill_between(frequency, *line.band, color=look["color"], alpha=0.22, linewidth=0, zorder=2)
    frame_of_fsc(axes, nyquist, (GOLD_STANDARD, HALF), min(float(np.nanmin(line.values)) for line in lines))
    axes.set_title(title)
    # curves begin near 1: the lower left corner is empty
    axes.legend(title=legend or None, loc="lower left", fontsize=8.5, framealpha=0.9)
    save_figure(figure, path)


def plot_residues(
    path: str | Path, chains: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray]], *, title: str
) -> None:
    """Draw Q-score and correlation along each chain; of many chains the Q-scores as bands of colour.

    Parameters
    ----------
    path
        PNG file, written atomically.
    chains
        By name: numbers of its residues as they are shown, their Q-scores and their correlations, NaN where there is
        none.
    """
    if len(chains) > MOST_PANELS:
        _plot_bands(path, {name: values for name, (_, values, _) in chains.items()}, title)
        return
    figure = Figure(figsize=(10.4, 0.6 + 2.3 * len(chains)), layout="constrained")
    panels = figure.subplots(len(chains), 1, squeeze=False)[:, 0]
    for axes, (name, (numbers, scores, correlation)) in zip(panels, chains.items(), strict=True):
        places = np.arange(len(numbers))
        axes.plot(places, correlation, color=COLOURS[1], linewidth=1.0, linestyle="--", label="correlation")
        axes.plot(places, scores, color=COLOURS[0], linewidth=1.4, label="Q-score")
        ticks = places[:: max(1, len(places) // 14)]
        axes.set_xticks(ticks, [numbers[tick] for tick in ticks])
        lowest = float(np.nanmin(np.concatenate([scores, correlation, [0.0]])))
        axes.set(xlim=(-0.5, len(places) - 0.5), ylim=(min(-0.05, lowest - 0.05), 1.02), ylabel=f"chain {name}")
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.grid(color="0.92", linewidth=0.6)
    panels[0].legend(fontsize=9, framealpha=0.95, ncols=2, loc="lower right")
    panels[-1].set_xlabel("residue")
    figure.suptitle(title)
    save_figure(figure, path)


def _plot_bands(path: str | Path, chains: Mapping[str, np.ndarray], title: str) -> None:
    longest = max(len(values) for values in chains.values())
    image = np.full((len(chains), longest), np.nan)
    for row, values in zip(image, chains.values(), strict=True):
        row[: len(values)] = values
    figure = Figure(figsize=(10.4, 1.6 + 0.22 * len(chains)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(image, aspect="auto", interpolation="nearest", cmap=SCORE_MAP, vmin=0, vmax=1)
    axes.set_yticks(np.arange(len(chains)), list(chains), fontsize=8)
    axes.set(xlabel="residue, counted along the chain", ylabel="chain")
    figure.colorbar(shown, ax=axes, label="Q-score", pad=0.01)
    figure.suptitle(title)
    save_figure(figure, path)


def plot_inclusion(
    path: str | Path, levels: np.ndarray, curves: Mapping[str, np.ndarray], level: float, *, title: str
) -> None:
    """Draw the share of atoms inside the surface against its level, and mark the level that is reported.

    Parameters
    ----------
    path
        PNG file, written atomically.
    levels
        Density, (n,).
    curves
        Share by label, each (n,).
    level
        Reported.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (label, curve) in enumerate(curves.items()):
        axes.plot(levels, 100 * curve, color=COLOURS[number], linestyle=STYLES[number], label=label)
    axes.axvline(level, color="0.35", linewidth=0.9, linestyle=(0, (4, 3)), label=f"level {level:.4g}")
    axes.set(xlim=(levels[0], levels[-1]), ylim=(0, 102), xlabel="contour level (density)", ylabel="atoms inside (%)")
    axes.grid(color="0.92", linewidth=0.6)
    axes.legend(fontsize=9, framealpha=0.95)
    axes.set_title(title)
    save_figure(figure, path)
