# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading maps that belong together, for the commands that compare them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sparsecv.engine.errors import InputError, printable
from sparsecv.engine.io.mrc import Map, read_map
from sparsecv.engine.physics.masks import check_mask

SAME_PIXEL = 0.01  # relative difference up to which pixel sizes count as equal


def read_pair(first: Path, second: Path, pixel_size: float | None) -> tuple[Map, Map]:
    """Read two maps of the same box and pixel size.

    Raises
    ------
    InputError
        Where they differ: names both files and what each has.
    """
    map1, map2 = (read_map(path, pixel_size=pixel_size) for path in (first, second))
    warn((*map1.warnings, *map2.warnings))
    if map1.data.shape != map2.data.shape:
        raise InputError(f"box differs from that of {first}", file=second, value=map2.data.shape[0],
                         rule=f"{map1.data.shape[0]} pixels", remedy="compare maps of the same box")
    if abs(map2.pixel_size / map1.pixel_size - 1) > SAME_PIXEL:
        raise InputError(f"pixel size differs from that of {first}", file=second, value=map2.pixel_size,
                         rule=f"{map1.pixel_size:g} A within 1 %", remedy="give the true one with --pixel-size")
    return map1, map2


def read_halves(first: Path, second: Path, pixel_size: float | None) -> tuple[Map, Map]:
    """Read two half maps that can say something about each other.

    Raises
    ------
    InputError
        Where they differ in box or pixel size, are identical, or one of them is flat.
    """
    half1, half2 = read_pair(first, second, pixel_size)
    for path, half in ((first, half1), (second, half2)):
        refuse_flat(path, half)
    if np.array_equal(half1.data, half2.data):
        raise InputError(f"the two half maps are identical: {first} holds the same", file=second,
                         rule="independent half maps", remedy="give the maps of both halves")  # fmt: skip
    return half1, half2


def refuse_flat(path: Path, density: Map) -> None:
    """Refuse, with InputError, a map of one value: it correlates with nothing."""
    level = float(density.data.flat[0])
    if (density.data == level).all():
        raise InputError("the map is flat", file=path, value=level, rule="a map with a particle",
                         remedy="look for a failed reconstruction")


def read_mask(path: Path | None, like: Map, pixel_size: float | None) -> np.ndarray | None:
    """Read a mask that fits a map and show warnings about it; None without a path."""
    if path is None:
        return None
    mask = read_map(path, pixel_size=pixel_size)
    warn(mask.warnings)
    warn(check_mask(mask.data, like.data.shape, like.pixel_size, mask_pixel_size=mask.pixel_size, file=str(path)))
    return mask.data


def warn(warnings: Iterable[str]) -> None:
    """Show each warning as a line on standard error."""
    for text in warnings:
        print(f"sparsecv: warning: {printable(text)}", file=sys.stderr)
