# SPDX-License-Identifier: GPL-3.0-or-later
"""Our results in the protocols of other plugins."""

import os
import shutil
import unittest

import mrcfile
import numpy as np

from sparsecv.protocols import SparseCvProtNuFilter
from sparsecv.tests.data import BOX, PIXEL_SIZE
from sparsecv.tests.project import SparseCvTest

try:
    from relion import Plugin as RelionPlugin
    from relion.protocols import ProtRelionLocalRes, ProtRelionPostprocess
except ImportError:  # the tests are skipped
    RelionPlugin = None


@unittest.skipUnless(RelionPlugin, "scipion-em-relion is not installed")
@unittest.skipUnless(shutil.which("relion_postprocess"), "RELION is not installed")
class TestSparseCvInRelion(SparseCvTest):
    """In scipion-em-relion, which asks for RELION 4 or 5 and is given what is there."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        home = os.path.abspath("relion-5.0")  # the plugin wants a folder of that name, and its programs in bin
        os.makedirs(os.path.join(home, "bin"), exist_ok=True)
        for name in ("relion_postprocess", "relion_refine"):
            link = os.path.join(home, "bin", name)
            if not os.path.lexists(link):
                os.symlink(shutil.which(name), link)
        cls.before = RelionPlugin._vars.get("RELION_HOME")
        os.environ["RELION_HOME"] = RelionPlugin._vars["RELION_HOME"] = home
        cls.refined = cls.refinement()
        cls.launchProtocol(cls.refined)

    @classmethod
    def tearDownClass(cls):
        RelionPlugin._vars["RELION_HOME"] = cls.before
        os.environ.pop("RELION_HOME")
        super().tearDownClass()

    @staticmethod
    def density(path):
        with mrcfile.open(path, permissive=True) as opened:
            return np.array(opened.data)

    def test_post_processing(self):
        made = self.newProtocol(ProtRelionPostprocess, relionInput=True, protRefine=self.refined,
                                solventMask=self.mask.outputMask, doAutoBfactor=False, bfactor=-50)  # fmt: skip
        self.launchProtocol(made)
        self.assertEqual(made.outputVolume.getDim(), (BOX, BOX, BOX))
        self.assertEqual(made.outputVolume.getSamplingRate(), PIXEL_SIZE)

    def test_local_resolution(self):
        """Of our half maps: better inside the protein than in the solvent, and where ours is better, too."""
        made = self.newProtocol(ProtRelionLocalRes, protRefine=self.refined, solventMask=self.refined.outputMask,
                                bfactor=-50, locResSamp=16, locResMaskRad=24, locResEdgeWidth=16,
                                locResRand=30.0)  # fmt: skip
        self.launchProtocol(made)
        filtered = self.density(made.outputVolume.getFileName())
        self.assertEqual(filtered.shape, (BOX, BOX, BOX))
        self.assertEqual(made.outputVolume.getSamplingRate(), PIXEL_SIZE)
        resolution = self.density(made._getExtraPath("relion_locres.mrc"))
        inside = self.density(self.refined.outputMask.getFileName()) > 0.9
        outside = self.density(os.path.join(self.data, "mask_protein.mrc")) == 0
        self.assertGreaterEqual(resolution[inside].min(), 2 * PIXEL_SIZE - 1e-3)
        self.assertLess(np.median(resolution[inside]), np.median(resolution[outside]) - 2)
        ours = self.newProtocol(SparseCvProtNuFilter, inputVolume=self.refined.outputVolume, useGpu=False,
                                numberOfThreads=2)  # fmt: skip
        self.launchProtocol(ours)
        other = self.density(ours.outputLocalResolution.getFileName())
        self.assertGreater(np.corrcoef(other[inside], resolution[inside])[0, 1], 0.7)
