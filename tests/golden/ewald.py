# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the golden map of particles that show the curvature of the Ewald sphere: RELION's reconstruction of them.

    PYTHONPATH=tests python tests/golden/ewald.py       writes ewald.npz beside this file

Run once, with RELION 3.1.3 of Debian. The images are those of curved_images.py, which tests make again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from curved_images import Blobs, Group, write_set

from sparsecv.engine.io.mrc import read_map

MAPS = Path(__file__).resolve().with_name("ewald.npz")
GROUP = Group(box=32, pixel_size=0.24)
DIAMETER = 23 * GROUP.pixel_size
COUNT, NOISE = 200, 2.0


def make_set(folder: Path) -> np.ndarray:
    """Write the particles; returns the truth."""
    return write_set(folder, COUNT, (GROUP,), blobs=Blobs.within(DIAMETER, 60), noise=NOISE, seed=5)


def main() -> None:
    """Make the maps: with RELION's own hand, and with the other one."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        make_set(folder)
        for hand, words in ((1, ""), (-1, "--reverse_curvature")):
            # --skip_weighting: RELION's weights double the grey scale where the sidebands part
            command = (f"relion_reconstruct --i particles.star --o map.mrc --angpix {GROUP.pixel_size} --ewald "
                       f"--mask_diameter {DIAMETER} --width_mask_edge 5 --skip_weighting {words}")  # fmt: skip
            subprocess.run(command.split(), cwd=folder, check=True)
            found[str(hand)] = read_map(folder / "map.mrc").data.astype(np.float16)
        np.savez_compressed(MAPS, **found)


if __name__ == "__main__":
    sys.exit(main())
