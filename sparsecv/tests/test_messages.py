# SPDX-License-Identifier: GPL-3.0-or-later
"""What protocols refuse before anything starts, what they warn of, and that nothing a user types is executed."""

import json
import os

from pwem.objects import Volume
from pyworkflow.protocol.params import Group, Line, Section

from sparsecv import convert, protocols
from sparsecv.protocols import SparseCvProtModelFsc, SparseCvProtNuFilter, SparseCvProtPostprocess
from sparsecv.tests.data import PIXEL_SIZE, engine, particle_set, simulated
from sparsecv.tests.project import SparseCvTest, plugin_variables


class TestSparseCvMessages(SparseCvTest):
    """One clear sentence before anything starts, and nothing a user types is executed."""

    def errors(self, made):
        return "\n".join(made.validate())

    def test_alignments_that_cannot_be_used(self):
        star = os.path.join(self.data, "truth.star")
        flat = particle_set(os.path.abspath("flat.sqlite"), star, alignment=False)
        flat.setAlignment2D()
        flat.write()
        made = self.refinement(inputParticles=flat)
        made.inputParticles.set(flat)
        made.inputParticles.setExtended("")
        self.assertIn("Local searches start from 3D alignments, and these particles have 2D", self.errors(made))
        made.localSearches.set(False)
        self.assertEqual(self.errors(made), "")
        self.assertIn("aligned in 2D; these alignments are not used", "\n".join(made._warnings()))

    def test_mismatched_pixel_sizes_and_boxes(self):
        mask = Volume(location=os.path.join(self.data, "mask_protein.mrc"))
        mask.setSamplingRate(2 * PIXEL_SIZE)
        made = self.refinement(maskVolume=mask)
        self.assertIn("The mask has pixels of 8 A, where 4 A are needed", self.errors(made))
        reference = Volume(location=os.path.join(self.data, "reference.mrc"))
        reference.setSamplingRate(5.0)
        made = self.refinement()
        made.referenceVolume.set(reference)
        made.referenceVolume.setExtended("")
        self.assertIn("it is brought to theirs", "\n".join(made._warnings()))

    def test_missing_half_maps(self):
        for protocol in (SparseCvProtPostprocess, SparseCvProtNuFilter):
            made = self.newProtocol(protocol, inputVolume=self.reference.outputVolume)
            self.assertIn("The volume has no half maps", self.errors(made))
        made = self.newProtocol(SparseCvProtModelFsc, inputVolume=self.reference.outputVolume)
        self.assertIn("has no half maps", "\n".join(made._warnings()))

    def test_an_absent_engine_and_an_absent_gpu(self):
        made = self.refinement(useGpu=True)
        self.assertIn("No NVIDIA GPU is seen", "\n".join(made._warnings()))
        with plugin_variables(SPARSECV_HOME=os.path.abspath("nowhere")):
            self.assertIn("The sparsecv engine is not installed", self.errors(made))
            self.assertIn("scipion3 installb", self.errors(made))

    def test_wrong_words(self):
        self.assertIn("The symmetry 'C1; rm'", self.errors(self.refinement(symmetry="C1; rm")))
        self.assertIn("does not exist", self.errors(self.refinement(originalFile="/absent.star")))
        made = self.refinement(particleDiameter=1000)
        self.assertIn("larger than the box of 192 A", self.errors(made))
        made = self.refinement(strength=2, preset=0)
        self.assertIn("need epsilon", self.errors(made))

    def test_every_parameter_explains_itself(self):
        """Scipion shows labels and helps as they are: there is one of each, and nothing is left of a formatting."""
        for name in protocols.__all__:
            for parameter, definition in getattr(protocols, name)()._definition.iterAllParams():
                if isinstance(definition, (Group, Line, Section)) or definition.condition.get() == "False":
                    continue  # what is around parameters, or hidden
                for said in (definition.getLabel(), definition.getHelp()):
                    self.assertTrue(said and said.strip(), "%s.%s" % (name, parameter))
                    self.assertNotIn("%%", said, "%s.%s" % (name, parameter))

    def test_hand_of_the_ewald_sphere(self):
        """A hand is told to the engine only with the correction, which does not know it otherwise."""
        for given, wanted in (({}, (False, None)), ({"ewaldHand": 1}, (False, None)), ({"ewald": True}, (True, 1)),
                              ({"ewald": True, "ewaldHand": 1}, (True, -1))):
            settings = self.refinement(**given)._engineSettings()
            self.assertEqual((settings["ewald"], settings["ewald_hand"]), wanted)

    def test_names_are_never_executed(self):
        """A folder whose name is a program, and the same words in every text parameter."""
        odd = os.path.abspath("a 'b' $(touch canary1) `touch canary2`; touch canary3 #")
        data = simulated(self.data)
        os.makedirs(odd, exist_ok=True)
        for name in ("particles.mrcs", "truth.star", "reference.mrc"):
            with open(os.path.join(data, name), "rb") as source, open(os.path.join(odd, name), "wb") as target:
                target.write(source.read())
        reference = Volume(location=os.path.join(odd, "reference.mrc"))
        reference.setSamplingRate(PIXEL_SIZE)
        made = self.refinement(iterations=1, symmetry="C1")
        made.referenceVolume.set(reference)
        made.referenceVolume.setExtended("")
        settings = made._engineSettings()
        self.assertEqual(settings["reference"], os.path.join(odd, "reference.mrc"))
        settings.update(output=os.path.join(odd, "out"), particles=os.path.join(odd, "truth.star"))
        engine(os.path.abspath("quoted"), "refine", settings)
        self.assertTrue(os.path.exists(os.path.join(odd, "out", "run_class001.mrc")))
        left = [name for name in os.listdir(".") + os.listdir(odd) if name.startswith("canary")]
        self.assertEqual(left, [])

    def test_a_name_that_no_star_file_holds_is_refused(self):
        odd = os.path.abspath("a 'b' \"c\"")
        os.makedirs(odd, exist_ok=True)
        for name in ("particles.mrcs", "truth.star"):
            with open(os.path.join(self.data, name), "rb") as source, open(os.path.join(odd, name), "wb") as target:
                target.write(source.read())
        found = particle_set(os.path.abspath("odd.sqlite"), os.path.join(odd, "truth.star"))
        with self.assertRaises(convert.ConversionError) as caught:
            convert.write_particles(found, os.path.abspath("odd.star"))
        self.assertIn("both kinds of quotes", str(caught.exception))

    def test_what_was_lost_is_said(self):
        star = os.path.join(self.data, "truth.star")
        bare = particle_set(os.path.abspath("bare.sqlite"), star, half_sets=False)
        said = convert.write_particles(bare, os.path.abspath("bare.star"))
        self.assertIn("no half sets in Scipion", said[0])
        self.assertNotIn("rlnRandomSubset", open("bare.star").read())

    def test_steps_are_repeated_when_a_parameter_changes(self):
        first, second = self.refinement(), self.refinement(randomSeed=2)
        self.assertNotEqual(first._mark(), second._mark())
        self.assertEqual(first._mark(), self.refinement()._mark())
        third = self.refinement(invertContrast=True)
        self.assertNotEqual(first._mark(), third._mark())
        self.assertEqual(json.dumps(first._engineSettings()), json.dumps(third._engineSettings()))
