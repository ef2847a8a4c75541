# SPDX-License-Identifier: GPL-3.0-or-later
"""The workflow templates: that they fill in what the importers ask for, and that a facility can run them."""

import json
import os

import numpy as np

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

    def test_both_templates_make_workflows(self):
        for name, importer in (("sparsecv_relion.json.template", "starFile"),
                               ("sparsecv_cryosparc.json.template", "csFile")):  # fmt: skip
            with open(self.filled(name)) as made:
                workflow = json.load(made)
            kinds = [part["object.className"] for part in workflow]
            self.assertEqual(kinds.count("SparseCvProtPostprocess"), 2)
            self.assertIn("SparseCvProtModelFsc", kinds)
            self.assertIn(importer, workflow[0])
            loaded = self.proj.loadProtocols(self.filled(name))
            self.assertEqual(len(loaded), len(workflow))
            first = next(one for one in loaded.values() if one.getClassName() == "ProtImportParticles")
            self.assertEqual(getattr(first, importer).get(), workflow[0][importer])  # Scipion skips names it has not
            for protocol in [one for one in loaded.values() if one.getClassName().startswith("SparseCv")]:
                for attribute, pointer in protocol.iterInputPointers():
                    if attribute in ("inputParticles", "referenceVolume", "inputVolume", "atomStruct"):
                        self.assertTrue(pointer.hasValue(), attribute)

    def test_a_facility_runs_the_template(self):
        """Project and workflow: nothing is clicked. Particles come from Scipion's own import here."""
        model = os.path.abspath("ball.pdb")
        rng = np.random.RandomState(2)
        with open(model, "w") as out:
            for number, (x, y, z) in enumerate(rng.normal(size=(400, 3)) * 13, 1):
                out.write("ATOM  %5d  CA  ALA A%4d    %8.3f%8.3f%8.3f  1.00 30.00           C\n"
                          % (number, number, x, y, z))  # fmt: skip
        path = self.filled("sparsecv_relion.json.template", reference=os.path.join(self.data, "reference.mrc"),
                           model=model, sampling=PIXEL_SIZE, refsampling=PIXEL_SIZE, local="True", gpu="False",
                           iterations=2, diameter=150, lowpass=30, threads=2, fit=1)  # fmt: skip
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
        self.assertEqual(loaded[-1].getClassName(), "SparseCvProtModelFsc")
        self.assertTrue(os.path.exists(loaded[-1]._getExtraPath("versus_fsc.png")))
