# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps: references, masks, half maps, and their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from inputs import BOX, MAP_BOX, PIXEL_SIZE, Inputs

from corpus.case import Cases, Make
from sparsecv.engine.io.mrc import write_map

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


def _reference(box: int, pixel_size: float, *words: object, **more: Any) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        from tiny import blobs

        p.map("start.mrc", blobs(box), pixel_size, **more)
        return p.refine(*words)

    return make


START = {"file": "start.mrc"}
accepted("maps", "reference of another box", _reference(20, PIXEL_SIZE * BOX / 20), "resampled")
accepted("maps", "reference of another pixel size", _reference(BOX, 1.05 * PIXEL_SIZE), "resampled")
accepted("maps", "reference of 1 A", _reference(BOX, 1.0), "has a pixel size of 1 A")
refused("maps", "reference of another box and 1 A", _reference(20, 1.0), "1 A", "--reference-pixel-size", **START)
accepted("maps", "reference of another origin", _reference(BOX, PIXEL_SIZE, origin=(-100.0, 3.0, 7.0)))
refused("maps", "reference that is missing", lambda p: (p.start.unlink(), p.refine())[1], "No such file", **START)
refused(
    "maps",
    "reference that is not cubic",
    lambda p: (p.map("start.mrc", np.ones((16, 16, 18))), p.refine())[1],
    "not a cubic map",
    **START,
)
refused(
    "maps", "reference with NaN", lambda p: p.word(p.start, 300, np.nan, "<f4").refine(), "not finite", "voxel", **START
)
refused(
    "maps", "reference without pixel size", lambda p: p.word(p.start, 11, 0.0, "<f4").refine(), "no pixel size", **START
)
refused(
    "maps", "reference of zeros", lambda p: (p.map("start.mrc", np.zeros((16,) * 3)), p.refine())[1], "flat", **START
)
refused(
    "maps",
    "constant reference",
    lambda p: (p.map("start.mrc", np.full((16,) * 3, 2.0)), p.refine())[1],
    "flat",
    **START,
)
refused("maps", "reference with axes of one name", lambda p: p.word(p.start, 18, 1).refine(), "axis order", **START)
refused("maps", "stack of volumes", lambda p: p.word(p.start, 23, 401).refine(), "stack of volumes", **START)
refused(
    "maps",
    "sparse file of a huge map",
    lambda p: p.stretched(p.start, (15_000,) * 3).refine(),
    "larger than the memory",
    **START,
)


def _mask(change: Callable[[np.ndarray], np.ndarray], pixel_size: float = PIXEL_SIZE) -> Make:
    return lambda p: p.refine("--mask", p.map("mask.mrc", change(p.mask()), pixel_size))


MASK = {"file": "mask.mrc"}
refused("maps", "empty mask", _mask(lambda m: 0 * m), "mask is empty", **MASK)
refused("maps", "mask beyond 1", _mask(lambda m: 3 * m), "outside [0, 1]", **MASK)
refused("maps", "mask below 0", _mask(lambda m: m - 0.5), "outside [0, 1]", **MASK)
refused("maps", "mask of another box", _mask(lambda m: m[1:-1, 1:-1, 1:-1]), "differ in box", **MASK)
refused("maps", "mask of another pixel size", _mask(lambda m: m, 1.1 * PIXEL_SIZE), "differ in pixel size", **MASK)
accepted("maps", "mask of ones", _mask(np.ones_like), "covers the whole box")
accepted("maps", "hard mask", _mask(np.round), "hard edge")
accepted("maps", "mask at the face of the box", _mask(lambda m: np.roll(m, 6, 0)), "face of the box")


def _pair(command: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray], pixel_size: float = PIXEL_SIZE,
          *words: object) -> Make:  # fmt: skip
    """Two half maps, the second one made of both."""

    def make(p: Inputs) -> Sequence[object]:
        from halfmaps import half_maps

        first, second = half_maps(MAP_BOX, PIXEL_SIZE, noise=0.05)
        p.map("half2.mrc", change(first, second), pixel_size)
        return p.halves(command, *words)

    return make


for _command in ("postprocess", "regularise", "nu-filter"):
    refused("maps", f"identical half maps: {_command}", _pair(_command, lambda a, b: a), "identical", file="half2.mrc")
accepted("maps", "identical maps: fsc", _pair("fsc", lambda a, b: a), "identical")
for _command in ("postprocess", "fsc"):
    accepted(
        "maps",
        f"half maps of one set: {_command}",
        _pair(_command, lambda a, b: 0.98 * a + 0.02 * b),
        "not independent",
        "same particles",
    )
refused(
    "maps", "half maps of different box", _pair("fsc", lambda a, b: b[:-2, :-2, :-2]), "box differs", file="half2.mrc"
)
refused(
    "maps",
    "half maps of different pixel size",
    _pair("fsc", lambda a, b: b, 1.1 * PIXEL_SIZE),
    "pixel size differs",
    file="half2.mrc",
)
for _command in ("postprocess", "regularise", "nu-filter", "fsc"):
    refused("maps", f"empty half map: {_command}", _pair(_command, lambda a, b: 0 * b), "flat", file="half2.mrc")
accepted("numerics", "FSC that never crosses", _pair("fsc", lambda a, b: a + 1e-3 * b), "up to Nyquist")
accepted("numerics", "half maps that do not correlate", _pair(
    "postprocess", lambda a, b: np.random.default_rng(1).normal(size=a.shape).astype(np.float32)))  # fmt: skip
accepted("numerics", "half maps of opposite sign", _pair("postprocess", lambda a, b: -b))


def _hostile_mask(p: Inputs) -> Sequence[object]:
    """A name that would begin a new table, were it written as it is."""
    mask = p.map("mask.mrc\n\ndata_evil\n\n_rlnEvil 'x'\n\u00e9.mrc", p.mask(MAP_BOX))
    return p.halves("postprocess", "--mask", mask)


def _hostile_half(p: Inputs) -> Sequence[object]:
    p.halves("postprocess")
    name = p.folder / "half1'\"\x1b[31m 1\n.mrc"
    (p.folder / "half1.mrc").rename(name)
    return ["postprocess", name, p.folder / "half2.mrc", "--output", p.out, "--threads", 1]


accepted("security", "mask whose name is STAR text", _hostile_mask)
accepted("security", "half map whose name has escape codes", _hostile_half)
accepted(
    "security",
    "mask of a refinement with an accent and quotes",
    lambda p: p.refine("--mask", p.map('m\u00e2sk it\'s "a b".mrc', p.mask())),
)
refused(
    "security",
    "file that is not there, with escape codes in its name",
    lambda p: p.refine("--mask", p.folder / "\x1b]0;evil\x07\u202e\n.mrc"),
    "\\x1b]0;evil\\x07\\u202e\\n.mrc",
    file=".mrc",
)
refused("security", "output that is an input",
        lambda p: (write_map(p.folder / "postprocess.mrc", np.ones((8,) * 3), 1.0),
                   ["postprocess", p.folder / "postprocess.mrc", p.start, "--output", p.folder])[1],
        "would be overwritten", file="postprocess.mrc")  # fmt: skip
for _command in ("fsc", "postprocess", "regularise", "nu-filter"):
    refused("security", f"{_command}: output that is a file",
            lambda p, command=_command: [*p.halves(command), "--output", p.start], "is no folder", file="start.mrc")
    refused("security", f"{_command}: output folder of a name too long",
            lambda p, command=_command: [*p.halves(command), "--output", p.out / ("o" * 300)], "too long", file="ooo")
accepted("security", "fsc: output folder with line breaks and escape codes",
         lambda p: [*p.halves("fsc"), "--output", p.out / "a\n\x1b[31m"], "a\\n\\x1b[31m")  # fmt: skip
refused("security", "simulate: output that is a file", lambda p: ["simulate", "--output", p.start], "is no folder",
        file="start.mrc")  # fmt: skip
