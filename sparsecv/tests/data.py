# SPDX-License-Identifier: GPL-3.0-or-later
"""Data for the plugin's tests, made by the engine's simulator and kept for the session."""

import os
import subprocess

from sparsecv import Plugin
from sparsecv.settings_file import write_settings

BOX, PIXEL_SIZE, PARTICLES = 48, 4.0, 240
# files of real projects; tests of them are skipped where they are absent
SHARED = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "data"))


def engine(folder, command, settings):
    """Run the engine as the protocols do."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, command + ".settings.toml")
    write_settings(path, command, settings)
    program = "%s %s --config '%s'" % (Plugin.getProgram(), command, path)
    done = subprocess.run(program, shell=True, env=Plugin.getEnviron(), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout.decode("utf-8", "replace"))


def simulated(folder, **more):
    """Make a small data set, once, in a folder; returns the folder."""
    if not os.path.exists(os.path.join(folder, "simulate.json")):
        settings = {"output": folder, "particles": PARTICLES, "box": BOX, "pixel_size": PIXEL_SIZE, "snr": 0.3,
                    "seed": 3, "threads": 2}  # fmt: skip
        settings.update(more)
        engine(folder, "simulate", settings)
    return folder


def particle_set(path, star, pixel_size=PIXEL_SIZE, alignment=True, half_sets=True, more=None):
    """Make a SetOfParticles in an sqlite file from a STAR file of the simulator; returns the set, still open.

    ``more(particle, row)`` may change each particle before it is added.
    """
    from pwem.objects import Acquisition, CTFModel, Particle, SetOfParticles, Transform
    from pyworkflow.object import Integer

    from sparsecv import convert
    from sparsecv.star import read_star

    if os.path.exists(path):
        os.remove(path)
    found = SetOfParticles(filename=path)
    found.setSamplingRate(pixel_size)
    found.setAcquisition(Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000))
    found.setHasCTF(True)
    if alignment:
        found.setAlignmentProj()
    rows = read_star(star)["particles"]
    matrices = convert.poses_of(rows, pixel_size) if alignment else [None] * len(rows)
    for number, (row, matrix) in enumerate(zip(rows, matrices)):
        index, _, name = row["rlnImageName"].partition("@")
        particle = Particle()
        particle.setLocation(int(index), os.path.join(os.path.dirname(star), os.path.basename(name)))
        particle.setCTF(CTFModel(**{"defocus" + axis: float(row["rlnDefocus" + axis])
                                    for axis in ("U", "V", "Angle")}))  # fmt: skip
        if "rlnPhaseShift" in row:
            particle.getCTF().setPhaseShift(float(row["rlnPhaseShift"]))
        particle.setAcquisition(found.getAcquisition())
        if matrix is not None:
            particle.setTransform(Transform(matrix))
        if half_sets:
            particle._rlnRandomSubset = Integer(1 + number % 2)
        if more is not None:
            more(particle, row)
        found.append(particle)
    found.write()
    return found


def empty_stacks(folder, names, box=8):
    """Make files of zeros where images (``3@stack.mrcs``) should be, below a folder: importers look for them."""
    import mrcfile
    import numpy as np

    sizes = {}
    for name in names:
        index, _, stack = name.partition("@")
        sizes[stack] = max(int(index), sizes.get(stack, 0))
    for stack, count in sizes.items():
        path = os.path.join(folder, stack)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with mrcfile.new(path, overwrite=True) as out:
            out.set_data(np.zeros((count, box, box), dtype=np.float32))
            out.set_image_stack()
