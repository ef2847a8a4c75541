# SPDX-License-Identifier: GPL-3.0-or-later
"""CTF refinement from end to end: planted defoci, optics groups that stay, and what RELION's plugin makes of them."""

import os

import numpy as np
from pwem.objects import Coordinate
from pwem.protocols import ProtImportParticles, ProtImportVolumes

from sparsecv import convert
from sparsecv.protocols import SparseCvProtCtfRefine
from sparsecv.star import read_star, write_star
from sparsecv.tests.data import PIXEL_SIZE, engine, particle_set
from sparsecv.tests.project import SparseCvTest

try:
    from relion.convert import writeSetOfParticles
except ImportError:  # a part of the test is left out
    writeSetOfParticles = None

ERROR = 2500.0  # A, of each planted defocus, up or down


class TestSparseCvCtfRefine(SparseCvTest):
    """On the particles at their true poses, each with a defocus that is wrong."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tables = read_star(os.path.join(cls.data, "truth.star"))
        cls.true = np.array([float(row["rlnDefocusU"]) for row in tables["particles"]])
        for number, row in enumerate(tables["particles"]):
            row["rlnRandomSubset"] = str(1 + number % 2)
        halves = os.path.join(cls.data, "halves.star")
        write_star(halves, tables.items())
        density = os.path.join(cls.data, "map.mrc")
        engine(cls.data, "reconstruct", {"particles": halves, "output": density, "halves": True, "threads": 2})
        signs = np.random.RandomState(4).choice((-1, 1), len(cls.true))
        for row, sign in zip(tables["particles"], signs):
            for axis in "UV":
                row["rlnDefocus" + axis] = "%.2f" % (float(row["rlnDefocus" + axis]) + sign * ERROR)
        wrong = os.path.join(cls.data, "wrong.star")
        write_star(wrong, tables.items())
        path = os.path.abspath("wrong.sqlite")
        particle_set(path, wrong, more=cls.placed).close()
        cls.wrong = cls.imported(ProtImportParticles, importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                                 sqliteFile=path, magnification=50000, samplingRate=PIXEL_SIZE)  # fmt: skip
        cls.volume = cls.imported(ProtImportVolumes, filesPath=density, samplingRate=PIXEL_SIZE, setHalfMaps=True,
                                  half1map=os.path.join(cls.data, "map_half1.mrc"),
                                  half2map=os.path.join(cls.data, "map_half2.mrc"))  # fmt: skip
        cls.original = cls.two_groups(wrong)

    @staticmethod
    def placed(particle, row):
        """A particle at a place of its micrograph."""
        number = int(row["rlnImageName"].partition("@")[0])
        coordinate = Coordinate(x=37 * number % 4000, y=91 * number % 4000)
        coordinate.setMicName(row["rlnMicrographName"])
        particle.setCoordinate(coordinate)

    @staticmethod
    def two_groups(path):
        """The file that the particles came from: every third is of a second optics group, with another voltage."""
        tables = read_star(path)
        (first,) = tables["optics"]
        tables["optics"] = [dict(first, rlnBeamTiltX="0.00", rlnBeamTiltY="0.00"),
                            dict(first, rlnOpticsGroup="2", rlnOpticsGroupName="second", rlnVoltage="300.5",
                                 rlnBeamTiltX="0.25", rlnBeamTiltY="-0.50")]  # fmt: skip
        for number, row in enumerate(tables["particles"]):
            row["rlnOpticsGroup"] = str(1 + (number % 3 == 0))
        original = path.replace("wrong", "original")
        write_star(original, tables.items())
        return original

    def refinement_of(self, **values):
        settings = {"numberOfThreads": 2, "defocusRange": 6000.0, "maskVolume": self.mask.outputMask,
                    "originalFile": self.original}  # fmt: skip
        settings.update(values)
        return self.newProtocol(SparseCvProtCtfRefine, inputParticles=self.wrong.outputParticles,
                                inputVolume=self.volume.outputVolume, **settings)  # fmt: skip

    def test_defoci_come_back_and_optics_groups_stay(self):
        made = self.refinement_of()
        self.assertEqual(made.validate(), [])
        self.launchProtocol(made)
        found = made.outputParticles
        self.assertSetSize(found, len(self.true))
        self.assertTrue(found.hasAlignmentProj() and found.hasCTF())
        given = {p.getObjId(): p.clone() for p in self.wrong.outputParticles.iterItems()}
        left = []
        for particle, true in zip(found.iterItems(), self.true):
            before = given[particle.getObjId()]
            left.append(particle.getCTF().getDefocusU() - true)
            for name in ("getDefocusU", "getDefocusV"):
                change = getattr(particle.getCTF(), name)() - getattr(before.getCTF(), name)()
                self.assertLessEqual(abs(change), 6000.0 + 1e-2)
            np.testing.assert_array_equal(particle.getTransform().getMatrix(), before.getTransform().getMatrix())
            self.assertEqual(particle.getLocation(), before.getLocation())
        # to 8 A the defocus of a particle is known to several hundred angstroms
        self.assertLess(np.median(np.abs(left)), 0.4 * ERROR)
        self.assertLess(np.sqrt(np.mean(np.square(left))), 0.8 * ERROR)
        self.check_round_trips(made)
        summary = "\n".join(made.summary())
        for words in ("Defocus: changed by", "beam tilt (", "second: too few particles"):
            self.assertIn(words, summary)
        self.assertIn("the defocus of each particle and beam tilt were refined", "\n".join(made.methods()))
        self.check_viewer(made)

    def check_round_trips(self, made):
        """A following refinement of ours, or a protocol of RELION's plugin, gets all that was refined."""
        refined = read_star(made._getExtraPath("particles_ctf_refined.star"))
        again = os.path.abspath("again.star")
        convert.write_particles(made.outputParticles, again)
        files = [again]
        if writeSetOfParticles is not None:
            os.makedirs("relion", exist_ok=True)
            files.append(os.path.abspath("relion.star"))
            writeSetOfParticles(made.outputParticles, files[-1], outputDir=os.path.abspath("relion"))
        for path in files:
            tables = read_star(path)
            self.assertEqual(len(tables["optics"]), 2)
            for row, expected in zip(tables["optics"], refined["optics"]):
                self.assertEqual(row["rlnOpticsGroupName"], expected["rlnOpticsGroupName"])
                for name in ("rlnBeamTiltX", "rlnBeamTiltY", "rlnVoltage", "rlnImagePixelSize"):
                    self.assertAlmostEqual(float(row[name]), float(expected[name]), 5, name)
                self.assertEqual([float(value) for value in row["rlnOddZernike"].strip("[]").split(",")],
                                 [float(value) for value in expected["rlnOddZernike"].strip("[]").split(",")])
            for row, expected in zip(tables["particles"], refined["particles"]):
                self.assertEqual([row[name] for name in ("rlnOpticsGroup", "rlnRandomSubset")],
                                 [expected[name] for name in ("rlnOpticsGroup", "rlnRandomSubset")])
                for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
                    self.assertAlmostEqual(float(row[name]), float(expected[name]), 1, name)
        first, second = refined["optics"]
        self.assertEqual(float(first["rlnBeamTiltX"]), 0)  # the images have none, and none is found
        self.assertEqual(float(second["rlnBeamTiltY"]), -0.5)  # of too few particles: as it was given
        # the set that it came from has not changed
        self.assertNotIn("rlnBeamTiltX", self.wrong.outputParticles.getAcquisition().opticsGroupInfo.get("") or "")

    def check_viewer(self, made):
        """Every button draws something."""
        from sparsecv.viewers import SparseCvCtfViewer

        viewer = SparseCvCtfViewer(project=self.proj, protocol=made)
        viewer.setProtocol(made)
        for name, show in viewer._getVisualizeDict().items():
            self.assertTrue(hasattr(viewer, name), name)
            (view,) = show(None)
            path = os.path.abspath(name + ".png")
            view.savefig(path)
            self.assertGreater(os.path.getsize(path), 5000, name)

    def test_what_cannot_be_refined_is_said_before_the_start(self):
        def errors(made):
            return "\n".join(made.validate())

        self.assertIn("Nothing is to be refined", errors(self.refinement_of(defocus=False, beamTilt=False)))
        self.assertIn("original file does not exist", errors(self.refinement_of(originalFile="/nowhere.star")))
        made = self.refinement_of()
        made.inputVolume.set(self.reference.outputVolume)
        made.inputVolume.setExtended("")
        self.assertIn("The volume has no half maps", errors(made))
        star = os.path.join(self.data, "truth.star")
        for words, more in (("these particles have none", {"alignment": False}),
                            ("The particles have no half sets in Scipion", {"half_sets": False})):  # fmt: skip
            made = self.refinement_of(originalFile="")
            made.inputParticles.set(particle_set(os.path.abspath("odd.sqlite"), star, **more))
            made.inputParticles.setExtended("")
            self.assertIn(words, errors(made))
        flipped = particle_set(os.path.abspath("odd.sqlite"), star)
        flipped.setIsPhaseFlipped(True)
        made = self.refinement_of()
        made.inputParticles.set(flipped)
        made.inputParticles.setExtended("")
        self.assertIn("The images are phase-flipped", errors(made))
