# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the golden images of unusual optics groups: RELION's predictions of a map given by a formula.

    python tests/golden/optics.py       writes optics.star and optics.npz beside this file

Run once, with RELION 3.1.3 of Debian: relion_refine makes the files of a run, its map is exchanged for ours, and what
relion_particle_subtract takes off the images is its prediction of them, with everything that an optics group can have.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from sparsecv.engine.io.mrc import ImageStack, write_map, write_stack
from sparsecv.engine.io.star import StarFile

BOX, PIXEL_SIZE = 48, 3.0
FOLDER = Path(__file__).resolve().parent
STAR, IMAGES = FOLDER / "optics.star", FOLDER / "optics.npz"
NONE = {"box": BOX, "pixel_size": PIXEL_SIZE, "tilt": (0.0, 0.0), "odd": "[0,0,0,0,0,0]",
        "even": "[0,0,0,0,0,0,0,0,0]", "magnification": (1.0, 0.0, 0.0, 1.0), "premultiplied": 0}  # fmt: skip
# Phases of about 1.5 radians at Nyquist: coefficients of order 2 cancel the squares in those of order 4. The
# magnification is not symmetric, which tells a matrix from its transpose.
ODD, EVEN = "[1.5,-4,250,0,0,-180]", "[0.3,-1475,430,2130,900,-500,150,700,-800]"
GROUPS = {
    "odd": NONE | {"tilt": (4.0, -3.0), "odd": ODD},
    "even": NONE | {"even": EVEN},
    "premultiplied": NONE | {"premultiplied": 1, "tilt": (-2.0, 3.0), "even": EVEN},
    # in a larger box, as RELION's transforms let what leaves an image come in on its other side
    "magnification": NONE | {"box": 64, "magnification": (1.02, 0.025, -0.02, 0.985), "odd": ODD, "even": EVEN},
    "size": NONE | {"box": 40, "pixel_size": 3.9, "tilt": (3.0, 2.0)},
    "finer": NONE | {"box": 60, "pixel_size": 2.5, "premultiplied": 1, "odd": ODD},
}
EACH = 2


def make_map() -> np.ndarray:
    """Blobs without any symmetry, of unlike sizes, off the centre; (z, y, x) float32, 0 near the faces."""
    rng = np.random.default_rng(21)
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    found = np.zeros((BOX, BOX, BOX))
    for _ in range(14):
        centre, width, height = rng.uniform(-6, 6, 3), rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.5)
        square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        found += height * np.exp(-square / (2 * width**2))
    return found.astype(np.float32)


def read_images() -> list[np.ndarray]:
    """The golden images, one stack (EACH, box, box) float32 for each optics group."""
    with np.load(IMAGES) as stored:
        return [stored[name].astype(np.float32) for name in GROUPS]


def write_star() -> None:
    """Optics groups and poses; the stack of each group is called by its name."""
    star, groups = StarFile.new(), list(GROUPS.values())
    numbers = np.arange(1, len(groups) + 1)
    columns = {
        "rlnOpticsGroup": numbers, "rlnOpticsGroupName": list(GROUPS), "rlnVoltage": np.full(len(groups), 300.0),
        "rlnSphericalAberration": np.full(len(groups), 2.7), "rlnAmplitudeContrast": np.full(len(groups), 0.1),
        "rlnImagePixelSize": [group["pixel_size"] for group in groups], "rlnImageSize": [g["box"] for g in groups],
        "rlnImageDimensionality": np.full(len(groups), 2),
        "rlnBeamTiltX": [group["tilt"][0] for group in groups], "rlnBeamTiltY": [g["tilt"][1] for g in groups],
        "rlnOddZernike": [group["odd"] for group in groups], "rlnEvenZernike": [group["even"] for group in groups],
        "rlnCtfDataAreCtfPremultiplied": [group["premultiplied"] for group in groups],
    }  # fmt: skip
    for place, name in enumerate(("00", "01", "10", "11")):
        columns[f"rlnMagMat{name}"] = [group["magnification"][place] for group in groups]
    star.add_loop("optics", columns)
    rng, count = np.random.default_rng(22), EACH * len(groups)
    star.add_loop("particles", {
        "rlnImageName": [f"{image + 1:06d}@{name}.mrcs" for name in GROUPS for image in range(EACH)],
        "rlnMicrographName": ["mic.mrc"] * count, "rlnOpticsGroup": np.repeat(numbers, EACH),
        "rlnDefocusU": rng.uniform(4e3, 8e3, count).round(1), "rlnDefocusV": rng.uniform(4e3, 8e3, count).round(1),
        "rlnDefocusAngle": rng.uniform(0, 180, count).round(2), "rlnPhaseShift": 30.0 * (np.arange(count) % 2),
        "rlnAngleRot": rng.uniform(-180, 180, count).round(3), "rlnAngleTilt": rng.uniform(0, 180, count).round(3),
        "rlnAnglePsi": rng.uniform(-180, 180, count).round(3), "rlnOriginXAngst": rng.normal(0, 6, count).round(3),
        "rlnOriginYAngst": rng.normal(0, 6, count).round(3),
    })  # fmt: skip
    star.write(STAR)


def main() -> None:
    """Make both files."""
    write_star()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_map(folder / "map.mrc", make_map(), PIXEL_SIZE)
        (folder / STAR.name).write_bytes(STAR.read_bytes())
        rng, given = np.random.default_rng(23), {}
        for stack, group in GROUPS.items():
            given[stack] = rng.normal(size=(EACH, group["box"], group["box"])).astype(np.float32)
            write_stack(folder / f"{stack}.mrcs", given[stack], group["pixel_size"])
        refine = (f"relion_refine --i {STAR.name} --o ./run --ref map.mrc --iter 1 --skip_align --ctf --K 1 --pad 3 "
                  "--particle_diameter 120 --dont_check_norm --tau2_fudge 1 --flatten_solvent")  # fmt: skip
        subprocess.run(refine.split(), cwd=folder, check=True)
        model = folder / "run_it001_model.star"
        text = re.sub(r"(_rlnCurrentImageSize\s+)\d+", rf"\g<1>{BOX}", model.read_text())
        model.write_text(text.replace("run_it001_class001.mrc", "map.mrc"))
        subtract = "relion_particle_subtract --i run_it001_optimiser.star --o sub --ignore_class"
        subprocess.run(subtract.split(), cwd=folder, check=True)
        made = {}
        for number, stack in enumerate(GROUPS, 1):
            left = ImageStack(folder / "sub" / "Particles" / f"subtracted_opticsgroup{number}.mrcs").read(range(EACH))
            made[stack] = (given[stack] - left).astype(np.float16)
        np.savez_compressed(IMAGES, **made)


if __name__ == "__main__":
    sys.exit(main())
