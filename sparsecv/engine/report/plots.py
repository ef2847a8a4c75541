# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of a run as PNG files: FSC curves, central slices, view directions.

Drawn by matplotlib's object interface, so that no global state or display is touched; the same input gives the same
bytes. Colours are those of Okabe & Ito and the map cividis: both can be told apart with any colour vision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from sparsecv.engine.errors import InputError, printable
from sparsecv.engine.io.atomic import atomic_write
from sparsecv.engine.physics.fourier import check_cubic
from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF, resolution

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), "-")  # print in grey as well
ROUND_RESOLUTIONS = (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.7, 2.4, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1)
DOTS_PER_INCH = 120
LONGEST_LABEL = 24  # letters of a map's name above a slice
SIGNED = "PuOr_r"  # values about 0, told apart with any colour vision

Slices = dict[tuple[str, str], np.ndarray]  # the three central ones of a map, by the names of their axes


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes."""
    with atomic_write(path) as temporary:
        # No creation date and version. Compression is half of the time of saving, and level 2 does most of it.
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None},
                       pil_kwargs={"compress_level": 2})  # fmt: skip


def literal(text: str) -> str:
    """A name, of a file or a run, as matplotlib draws it letter by letter: no formula, and not left out of legends."""
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def plot_fsc(
    path: str | Path,
    curves: Mapping[str, np.ndarray],
    box: int,
    pixel_size: float,
    *,
    thresholds: Sequence[float] = (GOLD_STANDARD, HALF),
    without_crossing: Collection[str] = (),
    title: str = "Fourier shell correlation",
    legend_at: Literal["upper right", "lower left"] = "upper right",
) -> None:
    """Draw FSC curves against frequency, with the crossing of each at the first threshold in the legend.

    Parameters
    ----------
    path
        PNG file, written atomically.
    curves
        Label to values per shell from shell 0; drawn in this order, the first one thickest.
    box, pixel_size
        Pixels and A.
    thresholds
        Drawn as horizontal lines.
    without_crossing
        Labels of curves whose crossing means nothing, such as that of random phases.
    legend_at
        Corner of the legend, "lower left" for curves that stay high.
    """
    # Margins that are given, here and below: a layout that is searched for draws everything twice.
    figure = Figure(figsize=(7.2, 4.8))
    axes = figure.add_axes((0.095, 0.11, 0.885, 0.735))
    for number, (label, curve) in enumerate(curves.items()):
        text = literal(label)
        if thresholds and label not in without_crossing:
            text += f": {resolution(curve, thresholds[0], box, pixel_size)}".replace(" A", " Å")
        frequency = np.arange(len(curve)) / (box * pixel_size)
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
        axes.plot(frequency, curve, linewidth=2.4 if number == 0 else 1.5, label=text, zorder=3, **look)
    lowest = min((float(np.nanmin(curve)) for curve in curves.values()), default=0.0)
    frame_of_fsc(axes, 1 / (2 * pixel_size), thresholds, lowest)
    axes.set_title(title)
    if curves:
        where = f"at {thresholds[0]:g}" if thresholds else None
        axes.legend(title=where, loc=legend_at, fontsize=9, framealpha=0.95)
    save_figure(figure, path)


def frame_of_fsc(axes: Axes, nyquist: float, thresholds: Sequence[float], lowest: float = 0.0) -> None:
    """What surrounds FSC curves: thresholds, both axes, a range that shows the lowest value; ``nyquist`` in 1/A."""
    for threshold in thresholds:
        axes.axhline(threshold, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(nyquist, threshold + 0.01, f"{threshold:g} ", ha="right", va="bottom", fontsize=8, color="0.35")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlim=(0, nyquist), ylim=(max(-1.05, min(-0.1, lowest - 0.05)), 1.05))
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="correlation")
    axes.grid(color="0.92", linewidth=0.6)
    _resolution_axis(axes, nyquist)


def _resolution_axis(axes: Axes, nyquist: float) -> None:
    """A second axis on top with resolutions in A at round values, far enough apart to be read."""
    ticks: list[float] = []
    for angstrom in ROUND_RESOLUTIONS:
        far = not ticks or 1 / angstrom - 1 / ticks[-1] > 0.06 * nyquist
        if far and 0.04 * nyquist < 1 / angstrom <= nyquist * 1.0001:
            ticks.append(angstrom)
    top = axes.secondary_xaxis("top")
    top.set_xticks([1 / angstrom for angstrom in ticks], [f"{angstrom:g}" for angstrom in ticks])
    top.set_xlabel("resolution (Å)")


def plot_slices(
    path: str | Path, volume: np.ndarray | Mapping[str, np.ndarray], pixel_size: float, *, title: str = "Central slices"
) -> None:
    """Draw the three central slices of a map side by side, with a scale bar; of several maps below one another.

    Parameters
    ----------
    path
        PNG file, written atomically.
    volume
        Shape (box, box, box), (z, y, x), or such maps by label, in one grey scale. Drawn with the first index upwards.
    pixel_size
        A.
    """
    maps = volume if isinstance(volume, Mapping) else {"": volume}
    rows = {label: central_slices(density) for label, density in maps.items()}
    plot_rows_of_slices(path, rows, pixel_size, title=title)


def plot_rows_of_slices(
    path: str | Path,
    rows: Mapping[str, Slices],
    pixel_size: float,
    *,
    title: str,
    unit: str = "density",
    is_signed: bool = False,
) -> None:
    """Draw central slices of several maps below one another, in one grey scale, or in colours about 0.

    Parameters
    ----------
    rows
        :func:`central_slices` by the label of each map.
    pixel_size
        A.
    unit
        What the values are.
    is_signed
        Whether 0 is the middle of the scale.
    """
    values = np.concatenate([image.ravel() for slices in rows.values() for image in slices.values()])
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.8)))
    if is_signed:
        high = max(-low, high)
        low = -high
    if not high > low:
        low, high = (-1.0, 1.0) if is_signed else (low, low + 1.0)
    height = 0.4 + 3.1 * len(rows)  # inches
    figure = Figure(figsize=(9.6, height))
    panels = figure.subplots(len(rows), 3, squeeze=False, gridspec_kw={
        "left": 0.07, "right": 0.885, "bottom": 0.5 / height, "top": 1 - 0.75 / height, "wspace": 0.36, "hspace": 0.35})
    for line, (name, slices) in zip(panels, rows.items(), strict=True):
        short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL // 2]}…{name[-LONGEST_LABEL // 2 :]}"
        label = literal(short)
        for axes, ((across, up), image) in zip(line, slices.items(), strict=True):
            side = image.shape[0] * pixel_size
            shown = axes.imshow(image, cmap=SIGNED if is_signed else "gray", vmin=low, vmax=high, origin="lower",
                                extent=(0, side, 0, side))  # fmt: skip
            axes.set(xlabel=f"{across} (Å)", ylabel=f"{up} (Å)")
            axes.set_title(f"{label}, {up} against {across}" if label else f"{up} against {across}", fontsize=10)
            _scale_bar(axes, side)
    figure.colorbar(shown, cax=figure.add_axes((0.9, 0.5 / height, 0.014, 1 - 1.25 / height)), label=unit)
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    save_figure(figure, path)


def central_slices(volume: np.ndarray) -> Slices:
    """The three central slices of a map, by the names of their axes."""
    middle = check_cubic(volume) // 2
    return {("x", "y"): volume[middle], ("x", "z"): volume[:, middle], ("y", "z"): volume[:, :, middle]}


def _scale_bar(axes: Axes, side: float) -> None:
    """A bar of a round length, a sixth to a third of the picture."""
    power = 10 ** np.floor(np.log10(side / 4))
    length = max((m for m in (1, 2, 5) if m * power <= side / 3), default=1) * power
    start, height = 0.05 * side, 0.05 * side
    bar: dict[str, Any] = {"solid_capstyle": "butt", "zorder": 4}
    axes.plot([start, start + length], [height, height], color="black", linewidth=5, **bar)
    axes.plot([start, start + length], [height, height], color="white", linewidth=3, **bar)
    label = axes.text(start + length / 2, height + 0.02 * side, f"{length:g} Å", ha="center", va="bottom", fontsize=9)
    label.set(color="white", bbox={"facecolor": "black", "alpha": 0.55, "linewidth": 0, "pad": 1.5})


def view_directions(rotations: np.ndarray, operators: np.ndarray | None = None) -> np.ndarray:
    """Unit vectors, in the map's frame, along which particles are seen.

    Parameters
    ----------
    rotations
        A, map to image, shape (n, 3, 3): its third row is the beam.
    operators
        Point group, shape (g, 3, 3): adds every symmetry mate A S.

    Returns
    -------
    numpy.ndarray
        (x, y, z), shape (n g, 3).
    """
    beams = rotations[:, 2, :]
    if operators is None:
        return np.asarray(beams)
    return np.asarray(np.einsum("nj,gjk->ngk", beams, operators)).reshape(-1, 3)


def direction_density(directions: np.ndarray, rows: int) -> np.ndarray:
    """Density of directions over that of uniform ones, in 2 rows x rows cells of equal area.

    Parameters
    ----------
    directions
        Unit vectors, shape (n, 3).
    rows
        Cells between the poles, equispaced in z; twice as many around, equispaced in longitude from -pi.

    Returns
    -------
    numpy.ndarray
        Shape (rows, 2 rows), mean 1.
    """
    longitude = np.arctan2(directions[:, 1], directions[:, 0])
    counts, _, _ = np.histogram2d(
        np.clip(directions[:, 2], -1, 1), longitude, bins=(rows, 2 * rows), range=((-1, 1), (-np.pi, np.pi))
    )
    return np.asarray(counts / counts.mean())


def plot_angles(
    path: str | Path,
    rotations: np.ndarray,
    *,
    operators: np.ndarray | None = None,
    title: str = "View directions",
) -> None:
    """Draw the density of view directions on the sphere (Mollweide, equal area), uniform coverage being 1.

    Parameters
    ----------
    path
        PNG file, written atomically.
    rotations, operators
        As in :func:`view_directions`.

    Raises
    ------
    InputError
        Without any rotation.
    """
    if len(rotations) == 0:
        raise InputError("no view directions to draw", value=0, rule="at least one particle")
    directions = view_directions(rotations, operators)
    rows = int(np.clip(np.sqrt(len(directions) / 40), 6, 30))  # some 20 per cell on the average
    density = direction_density(directions, rows)
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.add_axes((0.08, 0.03, 0.78, 0.80), projection="mollweide")
    parts = 8  # of each cell, so that its sides follow the meridians
    longitudes = np.linspace(-np.pi, np.pi, 2 * rows + 1)
    latitudes = np.arcsin(np.linspace(-1, 1, rows * parts + 1))
    scale = PowerNorm(0.5, vmin=0, vmax=max(2.0, float(density.max())))  # sparse views stay visible beside a peak
    shown = axes.pcolormesh(longitudes, latitudes, np.repeat(density, parts, axis=0), cmap="cividis", norm=scale)
    axes.grid(color="white", linewidth=0.4, alpha=0.6)
    axes.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), ["-120°", "-60°", "rot 0°", "60°", "120°"], color="white")
    axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), ["tilt 150°", "120°", "90°", "60°", "30°"])
    figure.colorbar(shown, cax=figure.add_axes((0.895, 0.13, 0.022, 0.6)), label="density over uniform")
    empty = float((density == 0).mean())
    number = f"{len(rotations):,} particle{'s' * (len(rotations) != 1)}"
    axes.set_title(f"{title}\n{number}, {100 * empty:.0f} % of the sphere empty", fontsize=11, pad=12)
    save_figure(figure, path)
