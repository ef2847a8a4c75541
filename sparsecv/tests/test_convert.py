# SPDX-License-Identifier: GPL-3.0-or-later
"""Particles to STAR files and back: against closed forms, against RELION's plugin, and through Scipion's importers."""

import os
import subprocess
import unittest

import numpy as np
from pwem.objects import Acquisition, CTFModel, Particle, SetOfParticles, Transform
from pwem.protocols import ProtImportParticles
from pyworkflow.object import Integer
from pyworkflow.tests import BaseTest, setupTestOutput, setupTestProject
from scipy.spatial.transform import Rotation

from sparsecv import Plugin, convert
from sparsecv.star import StarError, parse_star, read_star, write_star
from sparsecv.tests.data import BOX, PIXEL_SIZE, SHARED, empty_stacks, engine, particle_set, simulated
from sparsecv.tests.golden import make as golden

try:
    from relion import convert as relion_convert
except ImportError:  # the tests that compare with it are skipped
    relion_convert = None

COUNT = 1000
RNG = np.random.RandomState(5)


def random_poses(count=COUNT):
    """Poses over all of the orientations, with both poles and shifts among them."""
    rot, psi = RNG.uniform(-180, 180, size=(2, count))
    tilt = np.degrees(np.arccos(RNG.uniform(-1, 1, count)))
    tilt[:5], tilt[5:10] = 0, 180
    return rot, tilt, psi, RNG.normal(size=count) * 6, RNG.normal(size=count) * 6


def random_set(path, count=COUNT, stack="stack.mrcs"):
    """A set of particles with random poses, CTFs and half sets, in a stack."""
    if os.path.exists(path):
        os.remove(path)
    found = SetOfParticles(filename=path)
    found.setSamplingRate(PIXEL_SIZE)
    found.setAcquisition(Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000))
    found.setHasCTF(True)
    found.setAlignmentProj()
    matrices = convert.to_scipion(*random_poses(count), pixel_size=PIXEL_SIZE)
    for number, matrix in enumerate(matrices):
        particle = Particle()
        particle.setLocation(number + 1, os.path.abspath(stack))
        u, v = sorted(RNG.uniform(5000, 30000, 2), reverse=True)
        particle.setCTF(CTFModel(defocusU=u, defocusV=v, defocusAngle=RNG.uniform(0, 180)))
        particle.getCTF().setPhaseShift(RNG.uniform(1, 120))
        particle.setAcquisition(found.getAcquisition())
        particle.setTransform(Transform(matrix))
        particle._rlnRandomSubset = Integer(1 + number % 2)
        found.append(particle)
    found.write()
    return found


class TestSparseCvConvert(BaseTest):
    """Geometry and files."""

    @classmethod
    def setUpClass(cls):
        setupTestOutput(cls)
        os.chdir(cls.outputPath)
        simulated(os.path.abspath("data"), particles=8)
        if not os.path.exists("stack.mrcs"):
            os.symlink(os.path.abspath("data/particles.mrcs"), "stack.mrcs")

    def test_euler_angles_are_relions(self):
        rot, tilt, psi, _, _ = random_poses()
        expected = Rotation.from_euler("ZYZ", np.stack([rot, tilt, psi], axis=1), degrees=True).as_matrix()
        matrices = convert.euler_matrix(rot, tilt, psi)
        np.testing.assert_allclose(matrices, np.swapaxes(expected, 1, 2), atol=1e-12)
        np.testing.assert_allclose(convert.euler_matrix(*convert.euler_angles(matrices)), matrices, atol=1e-9)

    def test_poses_survive_scipion(self):
        poses = random_poses()
        matrices = convert.to_scipion(*poses, pixel_size=1.7)
        back = convert.from_scipion(matrices, 1.7)
        np.testing.assert_allclose(convert.euler_matrix(*back[:3]), convert.euler_matrix(*poses[:3]), atol=1e-6)
        np.testing.assert_allclose(back[3:], poses[3:], atol=1e-9)

    def test_poses_survive_cryosparc(self):
        rot, tilt, psi, _, _ = random_poses()
        matrices = convert.euler_matrix(rot, tilt, psi)
        half_turns = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()
        for one in (matrices, half_turns, np.eye(3)[None]):
            vectors = convert.rotation_vectors(one)
            expected = Rotation.from_matrix(np.swapaxes(one, 1, 2)).as_matrix()
            np.testing.assert_allclose(Rotation.from_rotvec(vectors).as_matrix(), expected, atol=1e-7)
            np.testing.assert_allclose(convert.matrices_of_vectors(vectors), one, atol=1e-7)
            self.assertLess(np.linalg.norm(vectors, axis=1).max(), np.pi + 1e-9)

    def test_mirrored_alignments_are_refused(self):
        mirrored = np.eye(4)
        mirrored[0, 0] = -1
        with self.assertRaises(convert.ConversionError):
            convert.from_scipion(mirrored[None], 1.0)

    def check_same(self, first, second):
        self.assertEqual(first.getSize(), second.getSize())
        for one, other in zip([p.clone() for p in first.iterItems()], [p.clone() for p in second.iterItems()]):
            np.testing.assert_allclose(one.getTransform().getMatrix(), other.getTransform().getMatrix(), atol=1e-4)
            for name in ("getDefocusU", "getDefocusV"):
                self.assertAlmostEqual(getattr(one.getCTF(), name)(), getattr(other.getCTF(), name)(), delta=0.01)
            turn = one.getCTF().getDefocusAngle() - other.getCTF().getDefocusAngle()
            self.assertLess(abs((turn + 90) % 180 - 90), 1e-3)
            self.assertAlmostEqual(one.getCTF().getPhaseShift(), other.getCTF().getPhaseShift(), delta=1e-4)

    @unittest.skipUnless(relion_convert, "scipion-em-relion is not installed")
    def test_relions_plugin_reads_what_we_write(self):
        ours = random_set("ours.sqlite")
        self.assertEqual(convert.write_particles(ours, "ours.star"), [])
        theirs = SetOfParticles(filename="theirs.sqlite")
        theirs.setSamplingRate(PIXEL_SIZE)
        relion_convert.readSetOfParticles("ours.star", theirs, alignType="Projection")
        theirs.write()
        self.check_same(ours, theirs)
        self.assertEqual([p._rlnRandomSubset.get() for p in theirs.iterItems()],
                         [p._rlnRandomSubset.get() for p in ours.iterItems()])  # fmt: skip

    @unittest.skipUnless(relion_convert, "scipion-em-relion is not installed")
    def test_we_write_what_relions_plugin_writes(self):
        ours = random_set("both.sqlite")
        convert.write_particles(ours, "both_ours.star")
        relion_convert.writeSetOfParticles(ours, "both_theirs.star", outputDir=".", alignType="Projection")
        first, second = (read_star(name)["particles"] for name in ("both_ours.star", "both_theirs.star"))
        self.assertEqual([row["rlnImageId"] for row in first], [row["rlnImageId"] for row in second])
        tables = [np.array([[float(row[name]) for name in convert.POSE] for row in rows]) for rows in (first, second)]
        turns = [convert.euler_matrix(*table[:, :3].T) for table in tables]
        np.testing.assert_allclose(turns[0], turns[1], atol=1e-4)
        np.testing.assert_allclose(tables[0][:, 3:], tables[1][:, 3:], atol=1e-4)
        for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
            np.testing.assert_allclose([float(row[name]) for row in first], [float(row[name]) for row in second],
                                       atol=1e-2)  # fmt: skip

    def through_cryosparc(self, star):
        """A STAR file as a .cs file and back, by the engine; returns the name of the new STAR file."""
        base = os.path.abspath(os.path.splitext(star)[0])
        folder = os.path.dirname(base)
        engine(folder, "convert", {"particles": os.path.abspath(star), "output": base + ".cs"})
        engine(folder, "convert", {"particles": base + ".cs", "output": base + "_back.star"})
        return base + "_back.star"

    @unittest.skipUnless(relion_convert, "scipion-em-relion is not installed")
    def test_particles_survive_star_and_cryosparc_files(self):
        """Scipion -> STAR -> .cs -> STAR -> Scipion: written by us, and by RELION's plugin; read by RELION's."""
        ours = random_set("trip.sqlite")
        convert.write_particles(ours, "trip_ours.star")
        relion_convert.writeSetOfParticles(ours, "trip_theirs.star", outputDir=".", alignType="Projection")
        for name in ("trip_ours", "trip_theirs"):
            back = SetOfParticles(filename=name + ".sqlite")
            back.setSamplingRate(PIXEL_SIZE)
            relion_convert.readSetOfParticles(self.through_cryosparc(name + ".star"), back, alignType="Projection")
            back.write()
            self.check_same(ours, back)
            self.assertEqual([p._rlnRandomSubset.get() for p in back.iterItems()],
                             [p._rlnRandomSubset.get() for p in ours.iterItems()])  # fmt: skip

    def test_projections_of_relion_after_the_trip(self):
        """Images by relion_project at known poses and CTFs; ours at what Scipion, STAR and .cs files made of these."""
        golden.write_map("golden.mrc")
        golden.write_particles("golden")
        particles = particle_set("golden.sqlite", "golden/poses.star", golden.PIXEL_SIZE)
        convert.write_particles(particles, "golden.star")
        found = self.through_cryosparc("golden.star")
        python = os.path.join(Plugin.getHome(), "bin", "python")
        subprocess.run([python, "-c", golden.PROJECT, "golden.mrc", found, "golden.npy"],
                       check=True, env=Plugin.getEnviron())  # fmt: skip
        ours, theirs = np.load("golden.npy"), golden.read_images()
        correlations = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(ours, theirs)]
        self.assertEqual(len(correlations), golden.COUNT)
        self.assertGreater(min(correlations), 0.9995)
        # the comparison sees each of the terms: no other image of the set is alike
        others = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(ours[1:], theirs)]
        self.assertLess(max(others), 0.9)

    def test_results_come_back_by_id(self):
        """Rows in another order, and one that was set aside."""
        ours = random_set("back.sqlite", 20)
        convert.write_particles(ours, "back.star")
        tables = read_star("back.star")
        rows = tables["particles"][::-1][:-1]
        write_star("run_data.star", (("optics", tables["optics"]), ("particles", rows)))
        results = convert.read_results("run_data.star")
        matrices = dict(zip(results, convert.poses_of(list(results.values()), PIXEL_SIZE)))
        for particle in ours.iterItems():
            number, before = particle.getObjId(), np.array(particle.getTransform().getMatrix())
            convert.update_particle(particle, results.get(number), matrices.get(number))
            self.assertEqual(particle._appendItem, number != 1)
            np.testing.assert_allclose(particle.getTransform().getMatrix(), before, atol=1e-5)

    def test_phase_flipped_particles_and_groups_of_other_boxes(self):
        particles = particle_set("flipped.sqlite", "data/particles.star", alignment=False)
        particles.setIsPhaseFlipped(True)
        convert.write_particles(particles, "flipped.star")
        self.assertEqual([row["rlnCtfDataArePhaseFlipped"] for row in read_star("flipped.star")["optics"]], ["1"])
        for sizes, expected in ((("64", "64"), [str(BOX)] * 2), (("48", "64"), ["48", "64"])):
            columns = "".join("_%s\n" % name for name in ("rlnOpticsGroup", "rlnImageSize"))
            text = "data_optics\n\nloop_\n%s1 %s\n2 %s\n" % ((columns,) + sizes)
            particles.getAcquisition().opticsGroupInfo.set(text)
            convert.write_particles(particles, "boxes.star")
            self.assertEqual([row["rlnImageSize"] for row in read_star("boxes.star")["optics"]], expected)

    def test_black_particles_get_a_negative_ctf(self):
        ours = random_set("black.sqlite", 5)
        convert.write_particles(ours, "black.star", invert=True)
        self.assertEqual([row["rlnCtfScalefactor"] for row in read_star("black.star")["particles"]], ["-1.000000"] * 5)

    def test_what_importers_drop_is_recovered(self):
        """Half sets and optics groups from a STAR file, half sets from a .cs file, in any order of rows."""
        bare = random_set("bare.sqlite", 12)
        for particle in bare.iterItems():
            particle._rlnRandomSubset.set(None)
        rows = [{"rlnImageName": "%d@far/away/stack.mrcs" % k, "rlnRandomSubset": str(1 + k % 2),
                 "rlnOpticsGroup": str(1 + k % 3)} for k in range(12, 0, -1)]  # fmt: skip
        optics = [{"rlnOpticsGroup": str(k), "rlnOpticsGroupName": "g%d" % k, "rlnVoltage": "300",
                   "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1"} for k in (1, 2, 3)]  # fmt: skip
        write_star("original.star", (("optics", optics), ("particles", rows)))
        self.assertEqual(convert.write_particles(bare, "recovered.star", "original.star"), [])
        tables = read_star("recovered.star")
        for name, count in (("rlnOpticsGroup", 3), ("rlnRandomSubset", 2)):
            self.assertEqual([row[name] for row in tables["particles"]], [str(1 + k % count) for k in range(1, 13)])
        self.assertEqual(len(tables["optics"]), 3)
        table = np.zeros(12, dtype=[("blob/path", "S40"), ("blob/idx", "u4"), ("alignments3D/split", "u4")])
        table["blob/path"], table["blob/idx"] = b"J1/stack.mrc", np.arange(11, -1, -1)
        table["alignments3D/split"] = table["blob/idx"] % 2
        with open("original.cs", "wb") as out:
            np.save(out, table)
        convert.write_particles(bare, "recovered.star", "original.cs")
        self.assertEqual([row["rlnRandomSubset"] for row in read_star("recovered.star")["particles"]],
                         [str(1 + k % 2) for k in range(12)])  # fmt: skip

    def test_stacks_of_one_name_are_told_apart(self):
        """By their folders, and behind the links that importers make; where neither helps, nothing is guessed."""
        os.makedirs("far/J7", exist_ok=True)
        for name in ("far/J7/stack.mrcs", "J7_stack.mrcs"):
            if not os.path.lexists(name):
                os.symlink(os.path.abspath("stack.mrcs" if "far" in name else "far/J7/stack.mrcs"), name)
        linked = random_set("linked.sqlite", 6, os.path.abspath("J7_stack.mrcs"))
        rows = [{"rlnImageName": "%d@%s/stack.mrcs" % (k, folder),
                 "rlnRandomSubset": str(1 + (k + (folder == "J8")) % 2)}
                for folder in ("J8", "J7") for k in range(1, 7)]  # fmt: skip
        write_star("twice.star", (("particles", rows),))
        convert.write_particles(linked, "told_apart.star", "twice.star")
        self.assertEqual([row["rlnRandomSubset"] for row in read_star("told_apart.star")["particles"]],
                         [str(1 + k % 2) for k in range(1, 7)])  # fmt: skip
        elsewhere = random_set("elsewhere.sqlite", 6)
        with self.assertRaises(convert.ConversionError) as caught:
            convert.write_particles(elsewhere, "guessed.star", "twice.star")
        self.assertIn("says different things about image 1 of", str(caught.exception))

    def test_original_files_that_do_not_fit_are_refused(self):
        ours = random_set("fit.sqlite", 5)
        write_star("other.star", (("particles", [{"rlnImageName": "1@other.mrcs"}]),))
        with open("pickle.cs", "wb") as out:
            np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with open("broken.star", "w") as out:
            out.write("data_particles\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n1@a\n")
        for name, message in (("other.star", "none of the particles"), ("pickle.cs", "cannot be read"),
                              ("broken.star", "has 1 values for 2 columns"), ("absent.star", "cannot be read"),
                              ("odd.txt", "must end in .star or .cs")):  # fmt: skip
            with self.assertRaises(convert.ConversionError, msg=name) as caught:
                convert.write_particles(ours, "fit.star", name)
            self.assertIn(message, str(caught.exception))

    def test_star_files(self):
        text = "data_\n\nloop_\n_a #1\n_b #2\n 1 'x y'\n 0.5 \"q'q\"\n\ndata_general\n_n 3 # no\n_m 'a b'\n"
        tables = parse_star(text.splitlines())
        self.assertEqual([list(row.values()) for row in tables[""]], [["1", "x y"], ["0.5", "q'q"]])
        self.assertEqual(tables["general"][0]["m"], "a b")
        write_star("own.star", (("t", [{"a": "x y", "b": "it's"}, {"a": "", "b": "#1"}]),))
        self.assertEqual([list(row.values()) for row in read_star("own.star")["t"]], [["x y", "it's"], ["", "#1"]])
        for bad in ("a\nb", "\u00e9", "'\""):
            with self.assertRaises(StarError):
                write_star("own.star", (("t", [{"a": bad}]),))


class TestSparseCvImports(BaseTest):
    """Particles through Scipion's own import protocols."""

    @classmethod
    def setUpClass(cls):
        setupTestProject(cls)
        cls.data = simulated(os.path.abspath("data"))

    def imported(self, star, **values):
        settings = {"importFrom": ProtImportParticles.IMPORT_FROM_RELION, "starFile": star, "samplingRate": PIXEL_SIZE,
                    "voltage": 300, "sphericalAberration": 2.7, "amplitudeContrast": 0.1, "magnification": 10000}
        settings.update(values)
        made = self.newProtocol(ProtImportParticles, **settings)
        self.launchProtocol(made)
        return made.outputParticles

    @unittest.skipUnless(relion_convert, "scipion-em-relion is not installed")
    def test_simulated_particles_refine_after_relions_import(self):
        particles = self.imported(os.path.join(self.data, "truth.star"))
        self.assertTrue(particles.hasAlignmentProj())
        convert.write_particles(particles, "imported.star")
        truth = os.path.join(self.data, "truth.star")
        first, second = (read_star(name)["particles"] for name in ("imported.star", truth))
        tables = [np.array([[float(row[name]) for name in convert.POSE] for row in rows]) for rows in (first, second)]
        np.testing.assert_allclose(convert.euler_matrix(*tables[0][:, :3].T), convert.euler_matrix(*tables[1][:, :3].T),
                                   atol=1e-4)  # fmt: skip
        np.testing.assert_allclose(tables[0][:, 3:], tables[1][:, 3:], atol=1e-4)
        engine(os.path.abspath("map"), "reconstruct",
               {"particles": os.path.abspath("imported.star"), "output": os.path.abspath("map.mrc"), "threads": 2})
        self.assertTrue(os.path.exists("map.mrc"))

    @unittest.skipUnless(relion_convert and os.path.isdir(SHARED), "needs scipion-em-relion and the shared data")
    def test_real_metadata_of_three_versions(self):
        """RELION 3.0, 3.1 and 5: what can be written is the same set, and what was lost is said."""
        for name in ("FinalRefinement-OriginalParticles-PfCRT.star", "relion31.star", "relion5.star"):
            folder = os.path.abspath("of_" + name)
            os.makedirs(folder, exist_ok=True)
            original = os.path.join(folder, name)
            with open(os.path.join(SHARED, name), "rb") as source, open(original, "wb") as target:
                target.write(source.read())
            tables = read_star(original)
            rows = tables.get("particles") or next(iter(tables.values()))
            empty_stacks(folder, [row["rlnImageName"] for row in rows])
            particles = self.imported(original, samplingRate=1.24)
            self.assertEqual(particles.getSize(), len(rows))
            said = convert.write_particles(particles, name)
            written = read_star(name)["particles"]
            self.assertEqual(len(written), len(rows))
            halves = [row.get("rlnRandomSubset") for row in rows]
            is_kept = hasattr(particles.getFirstItem(), "_rlnRandomSubset") and len(set(halves)) == 2
            if is_kept:
                self.assertEqual([row["rlnRandomSubset"] for row in written], halves)
            else:  # of 3.0 files the importer drops them
                self.assertTrue(any("half sets" in text.lower() for text in said), said)
            recovered = convert.write_particles(particles, name, original)
            self.assertFalse(any("optics groups" in text for text in recovered), recovered)
            again = read_star(name)["particles"]
            if len(set(halves)) == 2:
                self.assertEqual([row["rlnRandomSubset"] for row in again], halves)
            groups = [row["rlnOpticsGroup"] for row in again]
            self.assertEqual(groups, [row.get("rlnOpticsGroup", "1") for row in rows])  # 3.0 has none
