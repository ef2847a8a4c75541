# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts for ChimeraX (``.cxc``), which looks for the files that they name in the folder of the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from sparsecv.engine.io.atomic import atomic_text

MAP = "viridis_r"  # of band limits; fine: light, coarse: dark; can be told apart with any colour vision
SCRIPT_COLOURS = 5
HALF_COLOURS = ("#56b4e9", "#e69f00")
LOOK = ("set bgColor white", "lighting soft")
FIRST_LINE = "Open it in a new session of ChimeraX."


@dataclass(frozen=True)
class BandLimits:
    """A map of band limits by which a surface is coloured: its file, and the limits at the ends of the colours, A."""

    name: str
    low: float
    high: float


def quoted(name: str) -> str:
    """The name of a file as a command takes it, whatever is in it."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def colour_key(shades: Sequence[str], labels: Sequence[str]) -> str:
    """The command for a key of colours at the lower edge."""
    entries = " ".join(f"{shade}:{label}" for shade, label in zip(shades, labels, strict=True))
    return f"key {entries} pos 0.35,0.05 size 0.3,0.03"


def coloured_by(limits: BandLimits, surface: int, number: int) -> list[str]:
    """Commands that open band limits as model ``number``, hidden, and colour the surface of another model by them."""
    values = np.linspace(limits.low, limits.high if limits.high > limits.low else limits.low + 1, SCRIPT_COLOURS)
    shades = [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps[MAP](np.linspace(0, 1, len(values)))]
    palette = ":".join(f"{value:.2f},{shade}" for value, shade in zip(values, shades, strict=True))
    return [f"open {quoted(limits.name)}", f"hide #{number} models",
            f"color sample #{surface} map #{number} palette {palette}",
            colour_key(shades, [f"{value:.1f}" for value in values])]  # fmt: skip


def surface_of(name: str, level: float, number: int) -> list[str]:
    """Commands that open a map as model ``number`` and show its surface at a level."""
    return [f"open {quoted(name)}", f"volume #{number} style surface step 1 level {level:.6g}"]


def write_band_limit_script(path: Path, map_name: str, level: float, limits: BandLimits) -> None:
    """A script that opens a map and colours its surface by band limits, with a key.

    Parameters
    ----------
    path
        ``.cxc``.
    map_name
        File in the folder of the script.
    level
        Of the surface, density.
    limits
        Its file is in that folder, too.
    """
    lines = [f"# Colours a map by its local band limits (A). {FIRST_LINE}", *surface_of(map_name, level, 1),
             *coloured_by(limits, 1, 2), *LOOK, "view", ""]  # fmt: skip
    atomic_text(path, "\n".join(lines))


def write_run_script(
    path: Path, map_name: str, level: float, half_maps: tuple[str, str], half_level: float, mask_name: str | None,
    limits: BandLimits | None = None,
) -> None:  # fmt: skip
    """A script that opens what a refinement has found: its map, and hidden the half maps, the mask and band limits.

    Parameters
    ----------
    path
        ``.cxc``.
    map_name, half_maps, mask_name
        Files, relative to the folder of the script; without a mask none is opened.
    level, half_level
        Of the surfaces, density.
    limits
        Colour the surface of the map; None: it has one colour.
    """
    lines = [f"# The map of a refinement; half maps and mask are hidden: show #2,3 models. {FIRST_LINE}",
             *surface_of(map_name, level, 1), 'rename #1 "map, sharpened"', "color #1 #8cb8e6"]  # fmt: skip
    hidden = []
    for number, (name, colour) in enumerate(zip(half_maps, HALF_COLOURS, strict=True), start=2):
        lines += [*surface_of(name, half_level, number), f'rename #{number} "half map {number - 1}"',
                  f"color #{number} {colour}"]  # fmt: skip
        hidden.append(number)
    if mask_name is not None:
        lines += [*surface_of(mask_name, 0.5, 4), 'rename #4 "mask"', "color #4 #999999", "transparency #4 70 surfaces"]
        hidden.append(4)
    lines += [f"hide #{number} models" for number in hidden]
    if limits is not None:
        lines += coloured_by(limits, 1, hidden[-1] + 1)
    atomic_text(path, "\n".join([*lines, *LOOK, "view #1", ""]))
