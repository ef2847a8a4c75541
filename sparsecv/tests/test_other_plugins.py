# SPDX-License-Identifier: GPL-3.0-or-later
"""Our results in the protocols of other plugins."""

import os
import shutil

from sparsecv.tests.data import BOX
from sparsecv.tests.project import SparseCvTest


class TestSparseCvInRelion(SparseCvTest):
    """In scipion-em-relion, with RELION's programs where they are installed."""

    def test_relions_post_processing_takes_our_refinement(self):
        """The protocol of scipion-em-relion, with its program where that is installed."""
        try:
            from relion.protocols import ProtRelionPostprocess
        except ImportError:
            self.skipTest("scipion-em-relion is not installed")
        program = shutil.which("relion_postprocess")
        if program is None:
            self.skipTest("RELION is not installed")
        home = os.path.abspath("relion-5.0")  # its plugin wants a folder of that name, and its programs in bin
        os.makedirs(os.path.join(home, "bin"), exist_ok=True)
        for name in ("relion_postprocess", "relion_refine"):
            link = os.path.join(home, "bin", name)
            if not os.path.lexists(link):
                os.symlink(shutil.which(name), link)
        made = self.refinement()
        self.launchProtocol(made)
        from relion import Plugin as RelionPlugin

        before = RelionPlugin._vars.get("RELION_HOME")
        os.environ["RELION_HOME"] = RelionPlugin._vars["RELION_HOME"] = home
        try:
            processed = self.newProtocol(ProtRelionPostprocess, relionInput=True, protRefine=made,
                                         solventMask=self.mask.outputMask, doAutoBfactor=False,
                                         bfactor=-50)  # fmt: skip
            self.launchProtocol(processed)
        finally:
            RelionPlugin._vars["RELION_HOME"] = before
            os.environ.pop("RELION_HOME")
        self.assertEqual(processed.outputVolume.getDim(), (BOX, BOX, BOX))
