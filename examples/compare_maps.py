# SPDX-License-Identifier: GPL-3.0-or-later
"""FSC and resolution of two half maps in files, then mask, sharpening and filter of a post-processing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from half_maps import PIXEL_SIZE, made

from sparsecv.engine.api import fsc, postprocess, read_map, resolution, write_map


def main() -> None:
    """Everything happens in a folder that goes away at the end."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"half{number}.mrc" for number in (1, 2)]
        for path, density in zip(paths, made()[:2], strict=True):
            write_map(path, density, PIXEL_SIZE)
        first, second = (read_map(path) for path in paths)
    curve = fsc(first.data, second.data)
    print(f"unmasked, 0.143: {resolution(curve, 0.143, len(first.data), first.pixel_size)}")
    found = postprocess(first.data, second.data, first.pixel_size)
    print(f"corrected for the mask, 0.143: {found.resolution_0143}; B-factor: {found.bfactor}")
    for text in found.warnings:
        print(f"warning: {text}")


if __name__ == "__main__":
    main()
