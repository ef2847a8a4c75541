# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the golden projections: of a map given by a formula, by relion_project, with CTF, at poses of all kinds.

    python sparsecv/tests/golden/make.py        writes poses.star and relion_project.npz beside this file

Run once, with RELION 3.1.3 of Debian; needs NumPy and mrcfile only, so that it runs in either environment.
"""

import os
import shutil
import subprocess
import sys
import tempfile

import mrcfile
import numpy as np

BOX, PIXEL_SIZE, COUNT = 48, 3.0, 12
FOLDER = os.path.dirname(os.path.abspath(__file__))
POSES, IMAGES = (os.path.join(FOLDER, name) for name in ("poses.star", "relion_project.npz"))
OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnAmplitudeContrast #3
_rlnSphericalAberration #4
_rlnVoltage #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 one 0.1 2.7 300.0 %f %d 2

# version 30001

data_particles

loop_
"""
COLUMNS = ("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnOpticsGroup",
           "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")  # fmt: skip

# Our projections, made in the engine's environment: python -c PROJECT MAP POSES IMAGES.npy
PROJECT = """
import sys
import numpy as np

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.simulate.project import project

density = read_map(sys.argv[1]).data
table = ParticleTable.read(sys.argv[2], check_images=False)
box = len(density)
ky, kx = np.meshgrid(np.fft.fftfreq(box, 1 / box), np.fft.rfftfreq(box, 1 / box), indexing="ij")
factor = ctf(table.ctf_parameters(), kx.ravel(), ky.ravel(), box, table.pixel_size).reshape(len(table), *kx.shape)
images = project(density, table.rotations, table.shifts / table.pixel_size)
np.save(sys.argv[3], np.fft.irfft2(np.fft.rfft2(images) * factor, s=(box, box)).astype(np.float32))
"""


def make_map():
    """Blobs without any symmetry, of unlike sizes, off the centre; (z, y, x) float32, 0 near the faces."""
    rng = np.random.RandomState(11)
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    found = np.zeros((BOX, BOX, BOX))
    for _ in range(14):
        centre, width, height = rng.uniform(-9, 9, 3), rng.uniform(1.0, 2.2), rng.uniform(0.5, 1.5)
        square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        found += height * np.exp(-square / (2 * width**2))
    return found.astype(np.float32)


def write_map(path):
    """The map with its pixel size."""
    with mrcfile.new(path, overwrite=True) as out:
        out.set_data(make_map())
        out.voxel_size = PIXEL_SIZE


def read_images():
    """The golden projections, (COUNT, BOX, BOX) float32."""
    return np.load(IMAGES)["images"].astype(np.float32)


def write_particles(folder):
    """The golden projections as a data set: ``poses.star`` and the stack that it names."""
    os.makedirs(folder, exist_ok=True)
    shutil.copy(POSES, folder)
    with mrcfile.new(os.path.join(folder, "particles.mrcs"), overwrite=True) as out:
        out.set_data(read_images())
        out.set_image_stack()
        out.voxel_size = PIXEL_SIZE


def _write_poses():
    rng = np.random.RandomState(12)
    tilt = np.degrees(np.arccos(rng.uniform(-1, 1, COUNT)))
    tilt[:2] = 0, 180
    lines = [OPTICS % (PIXEL_SIZE, BOX)] + ["_%s #%d\n" % pair for pair in zip(COLUMNS, range(1, 99))]
    for number in range(COUNT):
        u, v = rng.uniform(8000, 15000), rng.uniform(8000, 15000)
        values = (u, v, rng.uniform(0, 180), 90.0 * (number % 2), 1, rng.uniform(-180, 180), tilt[number],
                  rng.uniform(-180, 180), rng.normal() * 8, rng.normal() * 8)  # fmt: skip
        lines.append("%06d@particles.mrcs " % (number + 1) + " ".join("%.6f" % value for value in values) + "\n")
    with open(POSES, "w") as out:
        out.write("".join(lines))


def main():
    """Make both files."""
    _write_poses()
    with tempfile.TemporaryDirectory() as folder:
        write_map(os.path.join(folder, "map.mrc"))
        subprocess.run(["relion_project", "--i", "map.mrc", "--ang", POSES, "--o", "images", "--ctf", "--angpix",
                        str(PIXEL_SIZE), "--pad", "3"], cwd=folder, check=True)  # fmt: skip
        with mrcfile.open(os.path.join(folder, "images.mrcs"), permissive=True) as made:
            np.savez_compressed(IMAGES, images=made.data.astype(np.float16))


if __name__ == "__main__":
    sys.exit(main())
