# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of refinements side by side: how far poses changed, and how amplitudes fall off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecv.engine.report.plots import COLOURS, STYLES, literal, save_figure
from sparsecv.engine.validate.guinier import EMPTY_SHELL

BINS = 50
SHOWN_SHARE = 0.98  # of the particles of each run, at least: what is far off would make all else one bin


@dataclass(frozen=True)
class Distribution:
    """How a quantity is distributed over particles.

    Attributes
    ----------
    edges
        Of the bins, from 0, (bins + 1,).
    shares
        Per cent of the particles in each bin, (bins,).
    cumulative
        Per cent of the particles below each edge, (bins + 1,).
    beyond
        Per cent beyond the last edge.
    """

    edges: np.ndarray
    shares: np.ndarray
    cumulative: np.ndarray
    beyond: float


def distributions(values: Mapping[str, np.ndarray | None], smallest: float) -> dict[str, Distribution | None]:
    """Distributions over common bins of values from 0 on, by the label of each run.

    Parameters
    ----------
    values
        One value per particle, (n,), n > 0; None of a run without any, which keeps its place and so its colour.
    smallest
        Last edge where all values are smaller.
    """
    last = max([smallest, *(float(np.quantile(one, SHOWN_SHARE)) for one in values.values() if one is not None)])
    edges = np.linspace(0, last, BINS + 1)
    return {label: None if one is None else _distribution(one, edges) for label, one in values.items()}


def _distribution(one: np.ndarray, edges: np.ndarray) -> Distribution:
    shares = 100 * np.histogram(one, edges)[0] / len(one)
    cumulative = np.concatenate([[0.0], np.cumsum(shares)])
    return Distribution(edges, shares, cumulative, max(0.0, float(100 - cumulative[-1])))


def plot_pose_changes(
    path: str | Path, turned: Mapping[str, np.ndarray | None], moved: Mapping[str, np.ndarray | None], *, title: str
) -> None:
    """Draw histograms and cumulative distributions of the changes of poses.

    Parameters
    ----------
    path
        PNG file, written atomically.
    turned, moved
        Degrees and A, (n,) each, by the label of the run, or None (:func:`distributions`).
    """
    figure = Figure(figsize=(9.6, 6.8), layout="constrained")
    panels = figure.subplots(2, 2)
    for line, values, axis, smallest in (
        (panels[0], turned, "rotation (degrees)", 0.1), (panels[1], moved, "shift in the image (Å)", 0.1),
    ):  # fmt: skip
        for number, (label, found) in enumerate(distributions(values, smallest).items()):
            own = values[label]
            if found is None or own is None:
                continue
            look = _look(number)
            text = f"{literal(label)}: median {np.median(own):.3g}"
            line[0].stairs(found.shares, found.edges, label=text, linewidth=1.5, **look)
            line[1].plot(found.edges, found.cumulative, label=text, linewidth=1.5, **look)
        for axes, name in zip(line, ("particles per bin (%)", "particles below (%)"), strict=True):
            axes.set(xlabel=axis, ylabel=name, xlim=(0, None), ylim=(0, None))
            axes.grid(color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.legend(fontsize=9, framealpha=0.95)
        line[1].set_ylim(0, 100)
    figure.suptitle(title)
    save_figure(figure, path)


def guinier_points(k2: np.ndarray, log_amplitude: np.ndarray, low_resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of a Guinier plot that is 0 at a resolution (A), without shell 0 and what is beyond the first empty one.

    Grey scales of programs differ: only the fall-off can be compared.
    """
    empty = np.flatnonzero(log_amplitude[1:] <= EMPTY_SHELL)
    end = int(empty[0]) + 1 if len(empty) else len(k2)
    x, y = k2[1:end], log_amplitude[1:end]
    return x, y - np.interp(low_resolution**-2, x, y) if len(x) else y


def plot_guinier(
    path: str | Path,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    slopes: Sequence[float | None],
    fit_range: tuple[float, float],
) -> None:
    """Draw Guinier plots, the range of the fits in grey, and the fitted slopes as thin lines.

    Parameters
    ----------
    path
        PNG file, written atomically.
    lines
        :func:`guinier_points` by the label of the run.
    slopes
        A^2, of each; None where there is no fit.
    fit_range
        A, coarse end first.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    start, end = (resolution**-2 for resolution in fit_range)
    for number, ((label, (x, y)), slope) in enumerate(zip(lines.items(), slopes, strict=True)):
        look = _look(number)
        text = literal(label) if slope is None else f"{literal(label)}: B = {4 * slope:.0f} Å²"
        axes.plot(x, y, label=text, linewidth=2.4 if number == 0 else 1.5, **look)
        used = (x >= start) & (x <= end)
        if slope is not None and used.any():
            level = float(np.mean(y[used] - slope * x[used]))
            axes.plot([start, end], [level + slope * start, level + slope * end], linewidth=0.8, color=look["color"])
    if end > start:
        axes.axvspan(start, end, color="0.95", zorder=0)
    axes.set(xlabel="1/d² (1/Å²)", ylabel=f"ln F, 0 at {fit_range[0]:g} Å", xlim=(0, None))
    axes.grid(color="0.92", linewidth=0.6)
    is_fitted = any(slope is not None for slope in slopes)
    axes.set_title("Guinier plot" + (f"; B-factors from {fit_range[0]:g} to {fit_range[1]:.2f} Å" if is_fitted else ""))
    axes.legend(fontsize=9, framealpha=0.95)
    save_figure(figure, path)


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
