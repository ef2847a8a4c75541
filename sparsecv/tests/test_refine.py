# SPDX-License-Identifier: GPL-3.0-or-later
"""Protocols from end to end on tiny data: both refinements, what follows them, and every button of their viewers."""

import os
from unittest import mock

import numpy as np
from pwem.objects import Volume
from pwem.protocols import ProtImportPdb, ProtSetFilter

from sparsecv.protocols import (
    SparseCvProtModelFsc,
    SparseCvProtNonUniform,
    SparseCvProtNuFilter,
    SparseCvProtPostprocess,
)
from sparsecv.tests.project import SparseCvTest


class TestSparseCvRefine(SparseCvTest):
    """Both refinements, and what follows them."""

    def test_refine_and_what_follows(self):
        made = self.refinement(maskVolume=self.mask.outputMask)
        self.launchProtocol(made)
        self.check_refinement(made)
        self.check_best(made)
        processed = self.newProtocol(SparseCvProtPostprocess, inputVolume=made.outputVolume, numberOfThreads=2)
        self.launchProtocol(processed)
        self.assertIn("Resolution at FSC 0.143", "\n".join(processed.summary()))
        self.assertEqual(len(processed.outputVolume.getHalfMaps(asList=True)), 2)
        filtered = self.newProtocol(SparseCvProtNuFilter, inputVolume=made.outputVolume, useGpu=False,
                                    numberOfThreads=2)  # fmt: skip
        self.launchProtocol(filtered)
        self.assertIsInstance(filtered.outputBandLimit, Volume)
        self.assertIn("Band limits: median", "\n".join(filtered.summary()))
        self.assertTrue({"doShowFsc", "doShowSlices"} <= set(self.check_viewers(processed)))
        self.assertTrue({"doShowBandLimit", "doShowHistogram", "doShowChimera"} <= set(self.check_viewers(filtered)))
        self.assertTrue({"doShowHistory", "doShowPrior", "doShowFsc", "doShowAngles", "doShowLastFsc", "doShowSlices",
                         "doShowPage", "doShowMaps"}
                        <= set(self.check_viewers(made)))
        self.check_validation(processed)

    def check_best(self, made):
        """Scipion's own subsets go by the qualities of a refinement."""
        ranked = self.newProtocol(ProtSetFilter, operation=ProtSetFilter.CHOICE_RANKED, threshold="0.75",
                                  rankingField="_sparsecvLogEvidence")  # fmt: skip
        ranked.inputSet.set(made)
        ranked.inputSet.setExtended("outputParticles")
        self.launchProtocol(ranked)
        values = sorted(particle._sparsecvLogEvidence.get() for particle in made.outputParticles.iterItems())
        kept = [particle._sparsecvLogEvidence.get() for particle in ranked.outputParticles.iterItems()]
        self.assertEqual(sorted(kept), values[len(values) // 4 :])

    def check_viewers(self, made):
        """Every button of Analyze Results draws something, or says why it does not."""
        from sparsecv import viewers

        kinds = [getattr(viewers, name) for name in viewers.__all__]
        kind = next(one for one in kinds if type(made) in one._targets)
        viewer = kind(project=self.proj, protocol=made)
        viewer.setProtocol(made)
        drawn, folder = [], os.path.abspath("pictures")
        os.makedirs(folder, exist_ok=True)
        notes = self.chimerax(folder)
        opened = []
        for name, show in viewer._getVisualizeDict().items():
            if not hasattr(viewer, name):  # of another protocol with the same viewer
                continue
            with mock.patch("webbrowser.open", opened.append):
                views = show(None)
            if name == "doShowPage":
                self.assertEqual(views, [])
                self.assertTrue(os.path.getsize(opened[0][len("file://") :]) > 50000)
                drawn.append(name)
            for view in views:
                if hasattr(view, "savefig"):
                    path = os.path.join(folder, "%s_%s.png" % (type(made).__name__, name))
                    view.savefig(path)
                    self.assertGreater(os.path.getsize(path), 5000, path)
                    drawn.append(name)
                elif name in ("doShowChimera", "doShowMaps"):
                    self.check_chimerax(made, view, notes)
                    drawn.append(name)
        return drawn

    @staticmethod
    def chimerax(folder):
        """Put a program in the place of ChimeraX that notes what it is given; returns the file of its notes."""
        from pwem.viewers.viewer_chimera import Chimera

        program, notes = os.path.join(folder, "ChimeraX"), os.path.join(folder, "chimerax.txt")
        with open(program, "w") as out:
            out.write("#!/bin/sh\nprintf '%%s\\n' \"$@\" > '%s.part' && mv '%s.part' '%s'\n" % (notes, notes, notes))
        os.chmod(program, 0o755)
        Chimera._program = program
        return notes

    def check_chimerax(self, made, view, notes):
        """One script of the protocol is handed over, and what it opens lies beside it."""
        if os.path.exists(notes):
            os.remove(notes)
        view.show()
        self.wait_for(lambda: os.path.exists(notes), 20)
        with open(notes) as text:
            (path,) = text.read().splitlines()
        self.assertEqual(os.path.dirname(path), os.path.abspath(made._getExtraPath()))
        with open(path) as text:
            opened = [line.split(None, 1)[1].strip().strip('"') for line in text if line.startswith("open ")]
        self.assertGreater(len(opened), 1)
        for name in opened:
            self.assertTrue(os.path.exists(os.path.join(os.path.dirname(path), name)), name)

    def check_validation(self, processed):
        """A model that has nothing to do with the map is found wherever it is, and judged."""
        model = os.path.abspath("model.pdb")
        rng = np.random.RandomState(1)
        with open(model, "w") as out:
            for number, (x, y, z) in enumerate(rng.normal(size=(300, 3)) * 14, 1):
                out.write("ATOM  %5d  CA  ALA A%4d    %8.3f%8.3f%8.3f  1.00 30.00           C\n"
                          % (number, number, x, y, z))  # fmt: skip
            out.write("END\n")
        imported = self.imported(ProtImportPdb, inputPdbData=1, pdbFile=model)
        validated = self.newProtocol(SparseCvProtModelFsc, inputVolume=processed.outputVolume,
                                     atomStruct=imported.outputPdb, frame=2, fit=1, numberOfThreads=2)  # fmt: skip
        self.launchProtocol(validated)
        self.assertTrue(validated.outputAtomStruct.getFileName().endswith("fitted.cif"))
        self.assertGreater(validated.outputFSC.getSize(), 4)
        self.assertIn("CC_mask", "\n".join(validated.summary()))
        self.assertTrue({"doShowFsc", "doShowResidues", "doShowSlices", "doShowChimera"}
                        <= set(self.check_viewers(validated)))
        self.assertTrue(-1 <= validated.outputAtomStruct._sparsecvQScore.get() <= 1)
        wrong = self.newProtocol(SparseCvProtModelFsc, inputVolume=processed.outputVolume,
                                 atomStruct=imported.outputPdb, frame=0, numberOfThreads=2)  # fmt: skip
        self.proj.launchProtocol(wrong, wait=True)
        self.assertTrue(wrong.isFailed())
        said = "\n".join(wrong.getLogsLastLines(50, logFile=0) + wrong.getLogsLastLines(50, logFile=1))
        self.assertIn("does not overlap with the map", said)
        self.assertIn("--frame", said)

    def test_non_uniform(self):
        made = self.refinement(SparseCvProtNonUniform)
        self.launchProtocol(made)
        self.check_refinement(made)
        self.assertTrue(os.path.exists(made.outputBandLimit.getFileName()))
        self.assertTrue({"doShowBandLimit", "doShowHistogram", "doShowDifference", "doShowPrior", "doShowChimera"}
                        <= set(self.check_viewers(made)))
