# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of local band limits: slices and surfaces coloured by them, and their histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sparsecv.engine.physics.masks import large_components, solvent_threshold
from sparsecv.engine.report.chimerax import MAP
from sparsecv.engine.report.plots import COLOURS, central_slices, save_figure
from sparsecv.engine.report.surface import view

FAINT = 0.35  # brightness of empty space, so that its band limit can still be read
VIEWS = {0: ("seen from +z", "x", "y"), 1: ("seen from -y", "x", "z"), 2: ("seen from +x", "y", "z")}


def plot_band_limit(
    path: str | Path,
    density: np.ndarray,
    band_limit: np.ndarray,
    shares: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    pixel_size: float,
    *,
    title: str,
    with_surface: bool = False,
) -> None:
    """Draw central slices coloured by band limits, as bright as the density, and the histogram of the band limits.

    Parameters
    ----------
    path
        PNG file, written atomically.
    density, band_limit
        (box, box, box); A.
    shares
        By label of the half: band limits of the bank, A, and the share of voxels that uses each.
    pixel_size
        A.
    with_surface
        Whether to draw the surface from three sides, too.
    """
    low, high = (float(v) for v in np.quantile(band_limit, (0, 1)))
    scale = Normalize(low, high if high > low else low + 1)
    colours = matplotlib.colormaps[MAP]
    rows = 3 if with_surface else 2
    figure = Figure(figsize=(10.4, 3.4 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 3)
    bottom, top = (float(v) for v in np.percentile(density, (50, 99.8)))
    side = len(density) * pixel_size
    limits = central_slices(band_limit)
    for column, ((across, up), image) in enumerate(central_slices(density).items()):
        axes = figure.add_subplot(grid[0, column])
        light = FAINT + (1 - FAINT) * np.clip((image - bottom) / max(top - bottom, 1e-12), 0, 1)
        axes.imshow(colours(scale(limits[across, up]))[:, :, :3] * light[:, :, None], origin="lower",
                    extent=(0, side, 0, side))  # fmt: skip
        axes.set(xlabel=f"{across} (Å)", ylabel=f"{up} (Å)")
    if with_surface:
        level = surface_level(density)
        solid = np.where(large_components(density > level), density, np.minimum(density, level))  # no specks of noise
        for axis, (name, across, up) in VIEWS.items():
            axes = figure.add_subplot(grid[1, axis])
            _draw_surface(axes, view(solid, level, band_limit, axis), scale, colours, side)
            axes.set(title=name, xlabel=f"{across} (Å)", ylabel=f"{up} (Å)")
    axes = figure.add_subplot(grid[rows - 1, :])
    _draw_histogram(axes, shares)
    shown = matplotlib.cm.ScalarMappable(scale, colours)
    figure.colorbar(shown, ax=figure.axes[:-1], label="band limit (Å)", shrink=0.85, pad=0.01)
    figure.suptitle(title)
    save_figure(figure, path)


def surface_level(density: np.ndarray) -> float:
    """Density at which a surface is drawn: where particle begins within the sphere that the box holds."""
    axis = np.arange(len(density)) - len(density) // 2
    inside = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < (0.45 * len(density)) ** 2
    values = density[inside]
    return float(solvent_threshold(values)[0]) if values.max() > values.min() else float(values.max())


def _draw_surface(axes: Axes, seen: Any, scale: Normalize, colours: Any, side: float) -> None:
    image = np.ones((*seen.hit.shape, 3))
    image[seen.hit] = (colours(scale(seen.values))[:, :, :3] * seen.shade[:, :, None])[seen.hit]
    axes.imshow(image, origin="lower", extent=(0, side, 0, side))


def _draw_histogram(axes: Axes, shares: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Share of voxels by band limit, a bar for each half beside the other's."""
    width = 0.8 / max(len(shares), 1)
    names: list[str] = []
    for number, (label, (limits, part)) in enumerate(shares.items()):
        places = np.arange(len(limits)) + (number - (len(shares) - 1) / 2) * width
        axes.bar(places, np.asarray(part) * 100, width=width, color=COLOURS[number % len(COLOURS)], label=label)
        names = names if len(names) > len(limits) else [f"{limit:.3g}" for limit in limits]
    step = max(1, len(names) // 25)
    axes.set_xticks(np.arange(0, len(names), step), names[::step])
    axes.set(xlabel="band limit (Å)", ylabel="voxels inside the mask (%)")
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=9, framealpha=0.95)


def plot_local_resolution(
    path: str | Path, estimate: np.ndarray, band_limit: np.ndarray, inside: np.ndarray, pixel_size: float
) -> None:
    """Draw central slices of local resolution and of band limits in one scale, and the one against the other.

    Parameters
    ----------
    path
        PNG file, written atomically.
    estimate, band_limit
        (box, box, box), A.
    inside
        (box, box, box) bool: what is drawn.
    pixel_size
        A.
    """
    values = np.concatenate([estimate[inside], band_limit[inside]])
    scale = Normalize(float(values.min()), max(float(np.percentile(values, 99.5)), float(values.min()) + 1e-3))
    figure = Figure(figsize=(11.2, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    side, middle = len(estimate) * pixel_size, len(estimate) // 2
    named = {"local resolution, FSC 0.5": estimate, "band limit": band_limit}
    for axes, (title, volume) in zip(panels, named.items(), strict=False):
        image = np.where(inside[:, middle], volume[:, middle], np.nan)
        shown = axes.imshow(image, origin="lower", extent=(0, side, 0, side), cmap=MAP, norm=scale)
        axes.set(title=title, xlabel="x (Å)", ylabel="z (Å)")
    figure.colorbar(shown, ax=panels[:2], label="Å", shrink=0.85)
    panels[2].hist2d(estimate[inside], band_limit[inside], bins=40, cmap="Greys", norm="log")
    ends = (scale.vmin, scale.vmax)
    panels[2].plot(ends, ends, color=COLOURS[1], linewidth=1.2, label="equal")
    panels[2].set(xlabel="local resolution (Å)", ylabel="band limit (Å)", title="voxels inside the mask")
    panels[2].legend(fontsize=9)
    save_figure(figure, path)
