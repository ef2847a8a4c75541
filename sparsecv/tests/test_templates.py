# SPDX-License-Identifier: GPL-3.0-or-later
"""The workflow templates: that they fill in what the importers ask for, and that a facility can run them."""

import json
import os

import numpy as np

from sparsecv.star import read_star
from sparsecv.tests.data import PIXEL_SIZE
from sparsecv.tests.project import SparseCvTest


class TestSparseCvTemplates(SparseCvTest):
    """The workflow templates, filled in and run as a facility does."""

    def filled(self, name, **values):
        """The JSON of a template with values by alias."""
        from pyworkflow.template import LocalTemplate

        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "templates", name)
        template = LocalTemplate("sparsecv", path)
        template.replaceEnvVariables()
        template.parseContent()
        titles = [field.split("|")[0] for field in template.getContent()[1::2]]
        self.assertEqual(len(titles), len(set(titles)))  # of two fields with one title Scipion fills one
        for alias, value in values.items():
            self.assertTrue(template.setParamValue(alias, str(value)), alias)
        return template.createTemplateFile()

    def check_workflow(self, name, importer):
        """Fill a template in, and load it; returns the classes of its protocols."""
        with open(self.filled(name)) as made:
            workflow = json.load(made)
        self.assertIn(importer, workflow[0])
        loaded = self.proj.loadProtocols(self.filled(name))
        self.assertEqual(len(loaded), len(workflow))
        for part, protocol in zip(workflow, loaded.values()):
            for attribute in part:
                if not attribute.startswith("object."):
                    self.assertTrue(hasattr(protocol, attribute), attribute)  # Scipion skips names it has not
        for protocol in [one for one in loaded.values() if one.getClassName().startswith("SparseCv")]:
            for attribute, pointer in protocol.iterInputPointers():
                if attribute in ("inputParticles", "referenceVolume", "inputVolume", "atomStruct"):
                    self.assertTrue(pointer.hasValue(), attribute)
        importing = next(one for one in loaded.values() if one.getClassName() == "ProtImportParticles")
        self.assertEqual(getattr(importing, importer).get(), workflow[0][importer])
        return [part["object.className"] for part in workflow]

    def test_all_templates_make_workflows(self):
        for program, importer in (("relion", "starFile"), ("cryosparc", "csFile")):
            kinds = self.check_workflow("sparsecv_%s.json.template" % program, importer)
            self.assertEqual(kinds.count("SparseCvProtPostprocess"), 2)
            self.assertIn("SparseCvProtModelFsc", kinds)
            kinds = self.check_workflow("sparsecv_%s_ctf.json.template" % program, importer)
            first = kinds.index("SparseCvProtCtfRefine")
            self.assertEqual(kinds[first - 1 : first + 2 : 2], ["SparseCvProtRefine"] * 2)

    def run_template(self, name, **values):
        """Fill a template in and run it; returns its protocols. Particles come from Scipion's own import here."""
        path = self.filled(name, reference=os.path.join(self.data, "reference.mrc"), sampling=PIXEL_SIZE,
                           refsampling=PIXEL_SIZE, local="True", gpu="False", diameter=150, lowpass=30, threads=2,
                           **values)  # fmt: skip
        with open(path) as made:
            workflow = json.load(made)
        workflow[0] = {"object.className": "ProtImportParticles", "object.id": "2", "importFrom": 4, "filesPath": "",
                       "sqliteFile": os.path.abspath("particles.sqlite"), "magnification": 50000,
                       "samplingRate": PIXEL_SIZE}  # fmt: skip
        with open("workflow.json", "w") as out:
            json.dump(workflow, out)
        loaded = list(self.proj.loadProtocols(os.path.abspath("workflow.json")).values())
        for protocol in loaded:
            self.launchProtocol(protocol)
        return loaded

    def test_a_facility_runs_the_template(self):
        """Project and workflow: nothing is clicked."""
        model = os.path.abspath("ball.pdb")
        rng = np.random.RandomState(2)
        with open(model, "w") as out:
            for number, (x, y, z) in enumerate(rng.normal(size=(400, 3)) * 13, 1):
                out.write("ATOM  %5d  CA  ALA A%4d    %8.3f%8.3f%8.3f  1.00 30.00           C\n"
                          % (number, number, x, y, z))  # fmt: skip
        last = self.run_template("sparsecv_relion.json.template", model=model, fit=1, iterations=2)[-1]
        self.assertEqual(last.getClassName(), "SparseCvProtModelFsc")
        self.assertTrue(os.path.exists(last._getExtraPath("versus_fsc.png")))

    def test_a_facility_refines_ctfs(self):
        """The second refinement has the refined CTFs, the poses and the half sets of the first one."""
        made = self.run_template("sparsecv_relion_ctf.json.template", iterations=1)
        first, ctf, again, before, after = made[2:]
        self.assertEqual(ctf.getClassName(), "SparseCvProtCtfRefine")
        given = read_star(again._getExtraPath("input_particles.star"))["particles"]
        refined = read_star(ctf._getExtraPath("particles_ctf_refined.star"))["particles"]
        original = read_star(first._getExtraPath("input_particles.star"))["particles"]
        columns = ("rlnDefocusU", "rlnAngleRot", "rlnAngleTilt", "rlnRandomSubset")
        for row, expected in zip(given, refined):
            for name in columns:
                self.assertAlmostEqual(float(row[name]), float(expected[name]), 1, name)
        self.assertEqual([row["rlnRandomSubset"] for row in given], [row["rlnRandomSubset"] for row in original])
        changes = [float(row["rlnDefocusU"]) - float(old["rlnDefocusU"]) for row, old in zip(given, original)]
        self.assertGreater(np.std(changes), 1.0)
        self.assertIs(again.localSearches.get(), True)
        masks = [one.maskVolume.get().getFileName() for one in (before, after)]
        self.assertEqual(masks[0], masks[1])
        self.assertNotEqual(before.inputVolume.get().getFileName(), after.inputVolume.get().getFileName())
        self.assertTrue(all(hasattr(one, "outputFSC") for one in (before, after)))
