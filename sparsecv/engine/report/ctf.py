# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of a CTF refinement: changes of defocus, and phases of aberrations as measured and as fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sparsecv.engine.report.plots import COLOURS, SIGNED, literal, save_figure

BINS = 40


def plot_defocus_changes(path: str | Path, change: np.ndarray, micrograph: np.ndarray) -> None:
    """Draw the histogram of changes of defocus, and of each micrograph the median and the quartiles.

    Parameters
    ----------
    path
        PNG file, written atomically.
    change, micrograph
        (n,) A, and the micrograph of each particle from 0.
    """
    figure = Figure(figsize=(9.6, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.13, "top": 0.86,
                                                     "wspace": 0.24})  # fmt: skip
    reach = max(1.0, float(np.abs(change).max(initial=0)))
    left.hist(change, bins=BINS, range=(-reach, reach), color=COLOURS[0])
    left.set(xlabel="change of defocus (Å)", ylabel="particles", title="all particles")
    order = np.argsort(micrograph, kind="stable")
    parts = np.split(change[order], np.flatnonzero(np.diff(micrograph[order])) + 1)
    low, middle, high = np.array([np.percentile(part, (25, 50, 75)) for part in parts]).T
    place = np.arange(len(parts))
    right.vlines(place, low, high, color=COLOURS[4], linewidth=max(0.5, min(4.0, 200 / len(parts))))
    right.plot(place, middle, linestyle="", marker=".", color=COLOURS[0])
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set(xlabel="micrograph", ylabel="change of defocus (Å)", title="median and quartiles of each micrograph")
    figure.suptitle(f"Changes of defocus, rms {np.sqrt(np.mean(change**2)):.0f} Å", y=0.98, va="top")
    save_figure(figure, path)


def plot_phases(
    path: str | Path, rows: Mapping[str, tuple[np.ndarray, np.ndarray]], highest: float, *, title: str
) -> None:
    """Draw phases over Fourier space, as measured and as fitted, side by side.

    Parameters
    ----------
    path
        PNG file, written atomically.
    rows
        By name, two images (m, m) of phases in radians, (y, x), frequency 0 in the middle; nan where there is none.
    highest
        Frequency at the edge, 1/A.
    """
    height = 0.7 + 3.6 * len(rows)  # inches
    figure = Figure(figsize=(8.6, height))
    panels = figure.subplots(len(rows), 2, squeeze=False, gridspec_kw={
        "left": 0.1, "right": 0.86, "bottom": 0.5 / height, "top": 1 - 0.85 / height, "wspace": 0.3, "hspace": 0.4})
    for number, (name, (measured, fitted)) in enumerate(rows.items()):
        # the scale is that of the fit: noise of single pixels would make it that of all phases there are
        reach = float(np.clip(1.5 * np.nanmax(np.abs(fitted)), 0.1, np.pi))
        for axes, (what, image) in zip(panels[number], (("measured", measured), ("fitted", fitted)), strict=True):
            shown = axes.imshow(image, cmap=SIGNED, vmin=-reach, vmax=reach, origin="lower",
                                extent=(-highest, highest, -highest, highest))  # fmt: skip
            axes.set(xlabel="k_x (1/Å)", ylabel="k_y (1/Å)")
            axes.set_title(f"{name}, {what}", fontsize=10)
        box = panels[number][1].get_position()
        figure.colorbar(shown, cax=figure.add_axes((0.885, box.y0, 0.016, box.height)), label="phase (rad)")
    figure.suptitle(literal(title), y=1 - 0.12 / height, va="top")
    save_figure(figure, path)
