# SPDX-License-Identifier: GPL-3.0-or-later
"""Particles through the importer of scipion-em-cryosparc2, and what a refinement makes of them.

The importer starts pyem in another environment. Where ``SPARSECV_TEST_PYEM`` holds a command that activates one, that
is used; else ``cs_to_star.py`` stands in for it.
"""

import os
import shutil
import sys
import unittest

import mrcfile
import numpy as np
from pwem.protocols import ProtImportParticles, ProtImportVolumes
from pyworkflow.tests import BaseTest, setupTestProject
from scipy.spatial.transform import Rotation

from sparsecv import convert
from sparsecv.protocols import SparseCvProtCtfRefine, SparseCvProtRefine
from sparsecv.star import read_star
from sparsecv.tests.data import PARTICLES, PIXEL_SIZE, SHARED, empty_stacks, simulated

try:
    import cryosparc2  # noqa: F401
except ImportError:
    raise unittest.SkipTest("scipion-em-cryosparc2 is not installed")

STAND_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cs_to_star.py")
FIELDS = [("uid", "u8"), ("blob/path", "S80"), ("blob/idx", "u4"), ("blob/shape", "u4", (2,)), ("blob/psize_A", "f4"),
          ("blob/sign", "f4"), ("ctf/type", "S9"), ("ctf/exp_group_id", "u4"), ("ctf/accel_kv", "f4"),
          ("ctf/cs_mm", "f4"), ("ctf/amp_contrast", "f4"), ("ctf/df1_A", "f4"), ("ctf/df2_A", "f4"),
          ("ctf/df_angle_rad", "f4"), ("ctf/phase_shift_rad", "f4"), ("ctf/bfactor", "f4"),
          ("alignments3D/split", "u4"), ("alignments3D/shift", "f4", (2,)), ("alignments3D/pose", "f4", (3,)),
          ("alignments3D/psize_A", "f4"), ("alignments3D/class_posterior", "f4"), ("alignments3D/class", "u4")]


def turns_of(rows):
    """Return the rotations A^T of rows of a STAR file, by scipy."""
    angles = np.array([[float(row["rlnAngle" + name]) for name in ("Rot", "Tilt", "Psi")] for row in rows])
    return Rotation.from_euler("ZYZ", angles, degrees=True)


def shifts_of(rows):
    """Return the shifts (n, 2) in A of rows of a STAR file."""
    return np.array([[float(row["rlnOrigin%sAngst" % axis]) for axis in "XY"] for row in rows])


def cryosparc_project(folder, star):
    """Write what cryoSPARC would have of a STAR file of the simulator; returns the .cs file.

    The stack lies in two halves of the same name, in the folders of two jobs: only the folders tell them apart.
    """
    rows = read_star(star)["particles"]
    middle = len(rows) // 2
    with mrcfile.open(os.path.join(os.path.dirname(star), "particles.mrcs"), permissive=True) as opened:
        images = np.array(opened.data)
    table = np.zeros(len(rows), dtype=FIELDS)
    for number, row in enumerate(rows):
        table[number]["blob/path"] = b"J%d/extract/stack_particles.mrc" % (3 if number < middle else 4)
        table[number]["blob/idx"] = number % middle
        for name, column in (("ctf/df1_A", "DefocusU"), ("ctf/df2_A", "DefocusV")):
            table[number][name] = float(row["rln" + column])
        table[number]["ctf/df_angle_rad"] = np.deg2rad(float(row["rlnDefocusAngle"]))
    order = [int(row["rlnImageName"].partition("@")[0]) - 1 for row in rows]
    for job, part in ((3, order[:middle]), (4, order[middle:])):
        os.makedirs(os.path.join(folder, "J%d" % job, "extract"), exist_ok=True)
        with mrcfile.new(os.path.join(folder, "J%d" % job, "extract", "stack_particles.mrc"), overwrite=True) as out:
            out.set_data(images[part])
            out.voxel_size = PIXEL_SIZE
    table["uid"] = np.random.RandomState(1).permutation(len(rows)) + 10**15
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = images.shape[1:], PIXEL_SIZE, 1
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, 2.7, 0.1
    table["alignments3D/psize_A"], table["alignments3D/class_posterior"] = PIXEL_SIZE, 1
    table["alignments3D/pose"] = turns_of(rows).as_rotvec()
    table["alignments3D/shift"] = shifts_of(rows) / PIXEL_SIZE
    # neither by turns nor the same in both stacks: halves that went astray are seen
    table["alignments3D/split"] = np.random.RandomState(2).permutation(len(rows)) % 2
    path = os.path.join(folder, "J9", "J9_particles.cs")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        np.save(out, table)
    return path


class TestSparseCvFromCryosparc(BaseTest):
    """The real importer, and a real pyem where there is one."""

    @classmethod
    def setUpClass(cls):
        setupTestProject(cls)
        cls.data = simulated(os.path.abspath("data"))
        cls.before = {name: os.environ.get(name) for name in ("CONDA_ACTIVATION_CMD", "PYEM_ENV_ACTIVATION")}
        activation = os.environ.get("SPARSECV_TEST_PYEM", "")
        if not activation:
            folder = os.path.abspath("stand-in")
            os.makedirs(folder, exist_ok=True)
            program = os.path.join(folder, "python3")
            with open(program, "w") as out:
                out.write('#!/bin/sh\nexec "%s" "%s" "$@"\n' % (sys.executable, STAND_IN))
            os.chmod(program, 0o755)
            activation = 'export PATH="%s:$PATH"' % folder
        # the import runs in a process of its own, which reads them
        os.environ.update(CONDA_ACTIVATION_CMD=":", PYEM_ENV_ACTIVATION=activation)

    @classmethod
    def tearDownClass(cls):
        for name, value in cls.before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        super().tearDownClass()

    def imported(self, path, pixel_size, **values):
        settings = {"importFrom": ProtImportParticles.IMPORT_FROM_CRYOSPARC, "csFile": path, "voltage": 300,
                    "samplingRate": pixel_size, "sphericalAberration": 2.7, "amplitudeContrast": 0.1,
                    "magnification": 50000}  # fmt: skip
        settings.update(values)
        made = self.newProtocol(ProtImportParticles, **settings)
        self.launchProtocol(made)
        return made

    def check_written(self, path, rows, pixel_size):
        """Rows of a STAR file have the poses, CTFs and half sets of a .cs file, image by image."""
        table = np.load(path)
        self.assertEqual(len(rows), len(table))
        names = [stack.decode().replace("/", "_")[: -len(".mrc")] for stack in table["blob/path"].tolist()]
        places = {(name, int(k) + 1): number for number, (name, k) in enumerate(zip(names, table["blob/idx"]))}
        self.assertEqual(len(places), len(table))
        order = []
        for row in rows:
            index, _, stack = row["rlnImageName"].partition("@")
            order.append(places[os.path.splitext(os.path.basename(stack))[0], int(index)])
        self.assertEqual(len(set(order)), len(table))
        table = table[order]
        turned = (turns_of(rows).inv() * Rotation.from_rotvec(table["alignments3D/pose"].astype(float))).magnitude()
        self.assertLess(np.degrees(turned.max()), 1e-3)
        np.testing.assert_allclose(shifts_of(rows), table["alignments3D/shift"] * pixel_size, atol=1e-3)
        for column, name in (("rlnDefocusU", "ctf/df1_A"), ("rlnDefocusV", "ctf/df2_A")):
            np.testing.assert_allclose([float(row[column]) for row in rows], table[name], atol=0.01)
        angles = np.array([float(row["rlnDefocusAngle"]) for row in rows]) - np.rad2deg(table["ctf/df_angle_rad"])
        self.assertLess(np.abs((angles + 90) % 180 - 90).max(), 1e-3)
        self.assertEqual([row["rlnRandomSubset"] for row in rows], [str(k + 1) for k in table["alignments3D/split"]])

    def test_imported_particles_refine(self):
        """Poses, CTFs and half sets of the .cs file reach the engine, and the half sets the result."""
        path = cryosparc_project(os.path.abspath("project"), os.path.join(self.data, "truth.star"))
        imported = self.imported(path, PIXEL_SIZE)
        particles = imported.outputParticles
        self.assertTrue(particles.hasAlignmentProj() and particles.hasCTF())
        said = convert.write_particles(particles, "bare.star")  # the importer drops the half sets
        self.assertIn("no half sets in Scipion", "\n".join(said))
        self.assertEqual(convert.write_particles(particles, "whole.star", path), [])
        self.check_written(path, read_star("whole.star")["particles"], PIXEL_SIZE)
        reference = self.newProtocol(ProtImportVolumes, filesPath=os.path.join(self.data, "reference.mrc"),
                                     samplingRate=PIXEL_SIZE)  # fmt: skip
        self.launchProtocol(reference)
        made = self.newProtocol(SparseCvProtRefine, inputParticles=particles, referenceVolume=reference.outputVolume,
                                originalFile=path, localSearches=True, particleDiameter=150, initialLowPass=30,
                                iterations=2, useGpu=False, numberOfThreads=2)  # fmt: skip
        self.assertEqual([text for text in made._warnings() if "half sets" in text], [])
        self.launchProtocol(made)
        self.assertNotIn("half sets", "\n".join(made.summary()))
        self.assertSetSize(made.outputParticles, PARTICLES)
        given = {int(row["rlnImageId"]): row for row in read_star("whole.star")["particles"]}
        errors = []
        for particle in made.outputParticles.iterItems():
            row = given[particle.getObjId()]
            self.assertEqual(str(particle._rlnRandomSubset.get()), row["rlnRandomSubset"])
            back = Rotation.from_matrix(particle.getTransform().getRotationMatrix())
            errors.append(np.degrees((turns_of([row])[0].inv() * back).magnitude()))
        self.assertLess(np.median(errors), 8.0)
        self.check_ctf_refinement(particles, made, path, given)

    def check_ctf_refinement(self, particles, refined, path, given):
        """cryoSPARC's own particles need their file, which has the half sets; those of a refinement do not."""
        settings = {"inputVolume": refined.outputVolume, "beamTilt": False, "numberOfThreads": 2}
        bare = self.newProtocol(SparseCvProtCtfRefine, inputParticles=particles, **settings)
        self.assertIn("The particles have no half sets in Scipion", "\n".join(bare.validate()))
        after = self.newProtocol(SparseCvProtCtfRefine, inputParticles=refined.outputParticles, **settings)
        self.assertEqual(after.validate(), [])
        made = self.newProtocol(SparseCvProtCtfRefine, inputParticles=particles, originalFile=path, **settings)
        self.launchProtocol(made)
        self.assertSetSize(made.outputParticles, PARTICLES)
        changes = []
        for particle in made.outputParticles.iterItems():
            row = given[particle.getObjId()]
            self.assertEqual(str(particle._rlnRandomSubset.get()), row["rlnRandomSubset"])
            changes.append(particle.getCTF().getDefocusU() - float(row["rlnDefocusU"]))
        self.assertTrue(0 < np.median(np.abs(changes)) < 1000)  # they were right, and noise moves them

    @unittest.skipUnless(os.path.isdir(SHARED), "needs the shared data")
    def test_files_of_real_projects(self):
        """Two refinements of cryoSPARC: what is written has the poses, CTFs and half sets of the files."""
        for name, pixel_size in (("cryosparc_P12_J24_001_particles.cs", 2.95), ("t20s_J209_000.cs", 1.0273438)):
            project = os.path.abspath("real")
            path = os.path.join(project, "J9", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copyfile(os.path.join(SHARED, name), path)
            table = np.load(path)
            empty_stacks(project, ["%d@%s" % (k + 1, stack.decode())
                                   for k, stack in zip(table["blob/idx"], table["blob/path"].tolist())])  # fmt: skip
            imported = self.imported(path, pixel_size)
            self.assertEqual(convert.write_particles(imported.outputParticles, "real.star", path), [])
            self.check_written(path, read_star("real.star")["particles"], pixel_size)

    @unittest.skipUnless(os.path.isdir(SHARED), "needs the shared data")
    def test_particles_without_alignments_are_not_taken_for_aligned(self):
        """The importer says that they are: they are written without poses, and local searches are refused."""
        folder = os.path.abspath("extracted")
        os.makedirs(os.path.join(folder, "J9"), exist_ok=True)
        path = os.path.join(folder, "J9", "empiar_10076_7.cs")
        shutil.copyfile(os.path.join(SHARED, "empiar_10076_7.cs"), path)
        # a stack named without a folder is found beside the .cs file, too, but linked from where it is not
        stack = os.path.join(SHARED, "empiar_10076_7.mrc")
        for place, is_found in (("J9", False), ("", True)):
            os.symlink(stack, os.path.join(folder, place, "empiar_10076_7.mrc"))
            particles = self.imported(path, 1.31).outputParticles
            if not is_found:
                with self.assertRaises(convert.ConversionError) as caught:
                    convert.write_particles(particles, "unaligned.star")
                self.assertIn("the images of the particles cannot be read", str(caught.exception))
        self.assertTrue(particles.hasAlignmentProj())
        said = convert.write_particles(particles, "unaligned.star")
        self.assertIn("All particles have the same alignment", "\n".join(said))
        rows = read_star("unaligned.star")["particles"]
        self.assertEqual(len(rows), 7)
        self.assertNotIn("rlnAngleRot", rows[0])
        made = self.newProtocol(SparseCvProtRefine, localSearches=True)
        made.inputParticles.set(particles)
        made.referenceVolume.set(particles)  # is looked at by nothing here
        self.assertIn("have all the same alignment", "\n".join(made._validate()))
