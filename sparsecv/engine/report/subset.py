# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of a selection: what was kept of each half set, and of each micrograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sparsecv.engine.report.plots import COLOURS, STYLES, save_figure

BINS, OUTLIERS = 60, 1.0  # percent at either end that stand in the last bins


def plot_selection(
    path: str | Path, values: np.ndarray, kept: np.ndarray, halves: np.ndarray, micrograph: np.ndarray, *, label: str
) -> None:
    """Draw the histogram of what particles were judged by, and the share kept of each micrograph.

    Parameters
    ----------
    path
        PNG file, written atomically.
    values, kept, halves, micrograph
        (n,) what they were judged by, whether each was kept, half set, and micrograph from 0.
    label
        Of the values.
    """
    figure = Figure(figsize=(9.6, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.13, "top": 0.9,
                                                     "wspace": 0.2})  # fmt: skip
    low, high = np.percentile(values, (OUTLIERS, 100 - OUTLIERS))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shown = np.clip(values, edges[0], edges[-1])
    for number, half in enumerate(np.unique(halves).tolist()):
        name = f"half set {half}" if half else "all"
        for which, colour, words in ((kept, COLOURS[0], "kept"), (~kept, COLOURS[1], "removed")):
            left.hist(shown[which & (halves == half)], edges, histtype="step", color=colour, linestyle=STYLES[number],
                      linewidth=1.5, label=f"{words}, {name}")  # fmt: skip
    left.set(xlabel=label, ylabel="particles")
    left.legend(fontsize=8, framealpha=0.9)
    total, left_over = np.bincount(micrograph), np.bincount(micrograph[kept], minlength=int(micrograph.max()) + 1)
    right.plot(100 * left_over / np.maximum(total, 1), linestyle="", marker=".", color=COLOURS[0])
    right.axhline(100 * kept.mean(), color="0.5", linewidth=0.8)
    right.set(xlabel="micrograph", ylabel="kept (%)", ylim=(-3, 103))
    save_figure(figure, path)
