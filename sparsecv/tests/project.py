# SPDX-License-Identifier: GPL-3.0-or-later
"""A project with everything that the protocols take, for the tests to begin from."""

import os
import subprocess
import time
from contextlib import contextmanager

import numpy as np
from pwem.protocols import ProtImportMask, ProtImportParticles, ProtImportVolumes
from pyworkflow.tests import BaseTest, setupTestProject

from sparsecv import Plugin
from sparsecv.convert import QUALITIES
from sparsecv.plugin import CALLABLE
from sparsecv.protocols import SparseCvProtRefine
from sparsecv.tests.data import BOX, PARTICLES, PIXEL_SIZE, particle_set, simulated


@contextmanager
def plugin_variables(**values):
    """Variables of ``scipion.conf`` for a while: in this process, and in those that Scipion starts."""
    before = {name: os.environ.get(name) for name in values}
    of_plugin, hook = dict(Plugin._vars), Plugin._condaActivationCmd
    os.environ.update(values)
    Plugin._vars.update({name: value for name, value in values.items() if name in of_plugin})
    if "CONDA_ACTIVATION_CMD" in values:
        Plugin._condaActivationCmd = values["CONDA_ACTIVATION_CMD"] and values["CONDA_ACTIVATION_CMD"] + " &&"
    CALLABLE.clear()
    try:
        yield
    finally:
        Plugin._vars.update(of_plugin)
        Plugin._condaActivationCmd = hook
        CALLABLE.clear()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class SparseCvTest(BaseTest):
    """A project with simulated particles, a starting map and a mask."""

    @classmethod
    def setUpClass(cls):
        setupTestProject(cls)
        cls.data = simulated(os.path.abspath("data"))
        particle_set(os.path.abspath("particles.sqlite"), os.path.join(cls.data, "truth.star")).close()
        cls.particles = cls.imported(ProtImportParticles, importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                                     sqliteFile=os.path.abspath("particles.sqlite"), magnification=50000,
                                     samplingRate=PIXEL_SIZE)  # fmt: skip
        cls.reference = cls.imported(ProtImportVolumes, filesPath=os.path.join(cls.data, "reference.mrc"),
                                     samplingRate=PIXEL_SIZE)  # fmt: skip
        cls.mask = cls.imported(ProtImportMask, maskPath=os.path.join(cls.data, "mask_protein.mrc"),
                                samplingRate=PIXEL_SIZE)  # fmt: skip

    @classmethod
    def imported(cls, protocol, **values):
        made = cls.newProtocol(protocol, **values)
        cls.launchProtocol(made)
        return made

    @classmethod
    def refinement(cls, protocol=SparseCvProtRefine, **values):
        """A refinement that is ready to start; local, and of three iterations."""
        settings = {"localSearches": True, "particleDiameter": 150, "initialLowPass": 30, "iterations": 3,
                    "useGpu": False, "numberOfThreads": 2}  # fmt: skip
        settings.update(values)
        made = cls.newProtocol(protocol, **settings)
        for name, source, output in (("inputParticles", cls.particles, "outputParticles"),
                                     ("referenceVolume", cls.reference, "outputVolume")):  # fmt: skip
            getattr(made, name).set(source)
            getattr(made, name).setExtended(output)
        return made

    def check_refinement(self, made):
        self.assertEqual(made.outputVolume.getSamplingRate(), PIXEL_SIZE)
        self.assertEqual(made.outputVolume.getDim(), (BOX, BOX, BOX))
        halves = made.outputVolume.getHalfMaps(asList=True)
        self.assertEqual(len(halves), 2)
        for name in halves:
            self.assertTrue(os.path.exists(name), name)
        self.assertSetSize(made.outputParticles, PARTICLES)
        self.assertTrue(made.outputParticles.hasAlignmentProj())
        self.assertEqual([curve.getObjLabel() for curve in made.outputFSC.iterItems(iterate=False)][0],
                         "half maps, corrected for the mask")  # fmt: skip
        self.assertEqual(hasattr(made, "outputMask"), made.maskVolume.get() is None)
        given = {p.getObjId(): p.clone() for p in self.particles.outputParticles.iterItems()}
        errors = []
        for particle in made.outputParticles.iterItems():
            truth = given[particle.getObjId()]
            self.assertEqual(particle._rlnRandomSubset.get(), truth._rlnRandomSubset.get())
            for name in QUALITIES:  # Scipion's own subsets go by them
                self.assertTrue(np.isfinite(particle.getAttributeValue("_" + name)), name)
            turn = particle.getTransform().getRotationMatrix() @ truth.getTransform().getRotationMatrix().T
            errors.append(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
        self.assertLess(np.median(errors), 8.0)
        summary = "\n".join(made.summary())
        self.assertIn("Resolution at FSC 0.143", summary)
        self.assertIn("Resolution at FSC 0.5", summary)
        self.assertIn("particles were refined", "\n".join(made.methods()))

    def updated(self, protocol):
        self.proj._updateProtocol(protocol)
        return protocol

    def wait_for(self, condition, seconds=120, pause=0.05):
        end = time.time() + seconds
        while not condition():
            self.assertLess(time.time(), end, "waited in vain")
            time.sleep(pause)

    @staticmethod
    def engines(folder):
        """Processes of the engine that work in a folder."""
        done = subprocess.run(["pgrep", "-f", "bin/sparsecv refine --config"], stdout=subprocess.PIPE)
        found = []
        for number in map(int, done.stdout.split()):
            try:
                with open("/proc/%d/cmdline" % number, "rb") as line:
                    words = line.read().decode().split("\0")
                where = os.path.join(os.readlink("/proc/%d/cwd" % number), words[words.index("--config") + 1])
            except (OSError, ValueError, IndexError):
                continue
            if os.path.dirname(where) == folder:
                found.append(number)
        return found
