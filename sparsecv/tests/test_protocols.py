# SPDX-License-Identifier: GPL-3.0-or-later
"""Protocols from end to end on tiny data, and what they refuse before anything starts."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
from pwem.objects import Volume
from pwem.protocols import ProtImportMask, ProtImportParticles, ProtImportPdb, ProtImportVolumes
from pyworkflow.tests import BaseTest, setupTestProject

from sparsecv import Plugin, convert
from sparsecv.protocols import (
    SparseCvProtModelFsc,
    SparseCvProtNonUniform,
    SparseCvProtNuFilter,
    SparseCvProtPostprocess,
    SparseCvProtRefine,
)
from sparsecv.tests.data import BOX, PARTICLES, PIXEL_SIZE, particle_set, simulated


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

    def refinement(self, protocol=SparseCvProtRefine, **values):
        """A refinement that is ready to start; local, and of three iterations."""
        settings = {"localSearches": True, "particleDiameter": 150, "initialLowPass": 30, "iterations": 3,
                    "useGpu": False, "numberOfThreads": 2}  # fmt: skip
        settings.update(values)
        made = self.newProtocol(protocol, **settings)
        for name, source, output in (("inputParticles", self.particles, "outputParticles"),
                                     ("referenceVolume", self.reference, "outputVolume")):  # fmt: skip
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


class TestSparseCvRefine(SparseCvTest):
    """Both refinements, what follows them, and going on after a kill."""

    def test_refine_and_what_follows(self):
        made = self.refinement(maskVolume=self.mask.outputMask)
        self.launchProtocol(made)
        self.check_refinement(made)
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
        self.assertTrue({"doShowBandLimit", "doShowHistogram"} <= set(self.check_viewers(filtered)))
        self.assertTrue({"doShowHistory", "doShowPrior", "doShowFsc", "doShowAngles", "doShowLastFsc", "doShowSlices"}
                        <= set(self.check_viewers(made)))
        self.check_validation(processed)

    def check_viewers(self, made):
        """Every button of Analyze Results draws something, or says why it does not."""
        from sparsecv import viewers

        kinds = [getattr(viewers, name) for name in viewers.__all__]
        kind = next(one for one in kinds if type(made) in one._targets)
        viewer = kind(project=self.proj, protocol=made)
        viewer.setProtocol(made)
        drawn, folder = [], os.path.abspath("pictures")
        os.makedirs(folder, exist_ok=True)
        for name, show in viewer._getVisualizeDict().items():
            if name == "doShowPage":
                continue
            for view in show(None):
                if hasattr(view, "savefig"):
                    path = os.path.join(folder, "%s_%s.png" % (type(made).__name__, name))
                    view.savefig(path)
                    self.assertGreater(os.path.getsize(path), 5000, path)
                    drawn.append(name)
        return drawn

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
        self.assertTrue({"doShowFsc", "doShowResidues", "doShowSlices"} <= set(self.check_viewers(validated)))
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
        self.assertTrue({"doShowBandLimit", "doShowHistogram", "doShowDifference", "doShowPrior"}
                        <= set(self.check_viewers(made)))

    def test_a_killed_refinement_goes_on(self):
        """SIGKILL in the middle, then Continue: the same result as without."""
        whole = self.refinement(objLabel="undisturbed", iterations=5)
        self.launchProtocol(whole)
        killed = self.refinement(objLabel="killed", iterations=5)
        self.proj.launchProtocol(killed)
        folder = os.path.abspath(killed._getExtraPath())
        self.wait_for(lambda: os.path.exists(os.path.join(folder, "run_it002_checkpoint.npz")))
        for number in self.engines(folder):
            os.kill(number, signal.SIGKILL)
        self.wait_for(lambda: self.updated(killed).isFailed())
        self.assertEqual(self.engines(folder), [])
        from pyworkflow.protocol import MODE_RESUME

        killed.runMode.set(MODE_RESUME)
        self.launchProtocol(killed)
        self.assertIn("going on after iteration", "\n".join(killed.getLogsLastLines(200, logFile=0)))
        for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"):
            with open(whole._getExtraPath(name), "rb") as first, open(killed._getExtraPath(name), "rb") as second:
                self.assertEqual(first.read(), second.read(), name)


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
        before = dict(Plugin._vars), os.environ.get("SPARSECV_HOME")
        made = self.refinement(useGpu=True)
        self.assertIn("No NVIDIA GPU is seen", "\n".join(made._warnings()))
        try:
            os.environ["SPARSECV_HOME"] = Plugin._vars["SPARSECV_HOME"] = os.path.abspath("nowhere")
            self.assertIn("The sparsecv engine is not installed", self.errors(made))
            self.assertIn("scipion3 installb", self.errors(made))
        finally:
            Plugin._vars.update(before[0])
            os.environ.pop("SPARSECV_HOME")
            if before[1] is not None:
                os.environ["SPARSECV_HOME"] = before[1]

    def test_the_install_command_follows_driver_and_settings(self):
        for asked, driver, extra in (("auto", 0, "12"), ("auto", 470, "none"), ("auto", 550, "12"), ("13", 470, "13")):
            self.assertEqual(Plugin._cudaGeneration(asked, driver), extra)
        command = Plugin._getInstallCommand()
        self.assertIn("-m sparsecv.environment . --extras engine,cuda12 --source", command)

    def test_wrong_words(self):
        self.assertIn("The symmetry 'C1; rm'", self.errors(self.refinement(symmetry="C1; rm")))
        self.assertIn("does not exist", self.errors(self.refinement(originalFile="/absent.star")))
        made = self.refinement(particleDiameter=1000)
        self.assertIn("larger than the box of 192 A", self.errors(made))
        made = self.refinement(strength=2, preset=0)
        self.assertIn("need epsilon", self.errors(made))

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
        from sparsecv.tests.data import engine

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
                               ("sparsecv_cryosparc.json.template", "cryosparcFile")):  # fmt: skip
            with open(self.filled(name)) as made:
                workflow = json.load(made)
            kinds = [part["object.className"] for part in workflow]
            self.assertEqual(kinds.count("SparseCvProtPostprocess"), 2)
            self.assertIn("SparseCvProtModelFsc", kinds)
            self.assertIn(importer, workflow[0])
            loaded = self.proj.loadProtocols(self.filled(name))
            self.assertEqual(len(loaded), len(workflow))
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


class TestSparseCvWithOthers(SparseCvTest):
    """Our results in other plugins' protocols, queues, and Stop."""

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

    def queue(self, mode):
        """A batch system of two shell scripts: what is submitted runs at once, in the background."""
        from pyworkflow.config import Config

        submit = os.path.abspath("submit.sh")
        with open(submit, "w") as out:
            out.write("#!/bin/sh\nnohup sh \"$1\" > \"$1.log\" 2>&1 &\necho \"Submitted batch job $!\"\n")
        os.chmod(submit, 0o755)
        with open(Config.SCIPION_HOSTS, "w") as out:
            out.write(HOSTS % {"submit": submit})
        made = self.refinement(iterations=2, objLabel="queue, %s" % mode)
        made._useQueue.set(True)
        made.setQueueParams(["main", {"JOB_TIME": "1", "QUEUE_FOR_JOBS": mode}])
        return made

    def test_queues(self):
        """The whole protocol as a job, and each program as a job."""
        import pyworkflow as pw
        from pyworkflow.protocol import HostConfig

        before = open(pw.Config.SCIPION_HOSTS).read()
        try:
            for mode in ("N", "Y"):
                made = self.queue(mode)
                self.proj._hosts = HostConfig.load(pw.Config.SCIPION_HOSTS)
                self.proj.launchProtocol(made, wait=False)
                log = os.path.join(made.getWorkingDir(), "logs", "run.stdout")

                def is_over(path=log):
                    text = open(path, errors="replace").read() if os.path.exists(path) else ""
                    self.assertNotIn("PROTOCOL FAILED", text)
                    return "PROTOCOL FINISHED" in text

                self.wait_for(is_over, 150, 0.5)
                self.assertTrue(os.path.exists(made._getExtraPath("run_class001.mrc")), mode)
        finally:
            with open(pw.Config.SCIPION_HOSTS, "w") as out:
                out.write(before)

    def test_stop_leaves_no_process(self):
        made = self.refinement(iterations=20)
        self.proj.launchProtocol(made)
        folder = os.path.abspath(made._getExtraPath())
        self.wait_for(lambda: self.engines(folder))
        self.proj.stopProtocol(made)
        self.wait_for(lambda: not self.engines(folder), 30)
        time.sleep(1)
        self.assertEqual(self.engines(folder), [])


HOSTS = """[localhost]
PARALLEL_COMMAND = mpirun -np %%_(JOB_NODES)d %%_(COMMAND)s
NAME = FAKE
MANDATORY = False
SUBMIT_COMMAND = %(submit)s %%_(JOB_SCRIPT)s
SUBMIT_TEMPLATE = #!/bin/sh
    %%_(JOB_COMMAND)s
CANCEL_COMMAND = kill %%_(JOB_ID)s
CHECK_COMMAND = ps -p %%_(JOB_ID)s || echo NOTHERE
JOB_DONE_REGEX = NOTHERE
QUEUES = {"main": [["JOB_TIME", "1", "Time", "hours"]]}
"""
