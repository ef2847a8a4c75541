# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing that a user types, or a file is called, is executed: canaries in every text parameter of every protocol."""

import os

import pyworkflow.protocol.params as params
from pwem.objects import AtomStruct
from pwem.protocols import ProtImportVolumes

import sparsecv.protocols as protocols
from sparsecv import convert
from sparsecv.tests.data import PIXEL_SIZE, engine, simulated
from sparsecv.tests.project import SparseCvTest

try:
    import tomllib
except ImportError:  # Python 3.8 to 3.10
    tomllib = None

TOUCH = "touch canary"
PAYLOADS = ("$(%s)" % TOUCH, "`%s`" % TOUCH, "; %s" % TOUCH, "| %s" % TOUCH, "&& %s" % TOUCH, "' ; %s ; '" % TOUCH,
            '" ; %s ; "' % TOUCH, "a\n%s\n" % TOUCH, "a\r\n%s" % TOUCH, "%%(GPU)s; %s" % TOUCH, "${IFS}%s" % TOUCH,
            "\\\"; %s" % TOUCH, "{%s}" % TOUCH, "x\"\n[refine]\nseed = 7\n#", "> canary", "< canary")  # fmt: skip


def all_protocols():
    """The classes that the plugin offers."""
    found = [getattr(protocols, name) for name in dir(protocols) if name.startswith("SparseCvProt")]
    return [one for one in found if getattr(one, "_command", None)]


def text_parameters(protocol):
    """Names of the parameters of a form into which anything can be typed."""
    return [name for name, param in protocol._definition.iterAllParams() if isinstance(param, params.StringParam)
            and not isinstance(param, (params.EnumParam, params.PointerParam))]  # fmt: skip


class TestSparseCvSecurity(SparseCvTest):
    """A file that is called canary appears where any of it has been executed."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = simulated(os.path.abspath("data"))
        halves = [os.path.join(folder, name) for name in ("truth.mrc", "reference.mrc")]
        cls.halves = cls.imported(ProtImportVolumes, filesPath=halves[1], samplingRate=PIXEL_SIZE, setHalfMaps=True,
                                  half1map=halves[0], half2map=halves[1])  # fmt: skip

    def canaries(self):
        """Files that commands have made, in the project and beside it."""
        return [os.path.join(where, name) for where, _, names in os.walk(os.path.dirname(os.getcwd()))
                for name in names if name == "canary"]  # fmt: skip

    def made(self, protocol):
        """A protocol with its inputs, ready to be started."""
        if issubclass(protocol, protocols.SparseCvProtRefine) or hasattr(protocol, "_regulariser"):
            return self.refinement(protocol, iterations=1, useGpu=True)
        made = self.newProtocol(protocol)
        made.inputVolume.set(self.halves)
        made.inputVolume.setExtended("outputVolume")
        if hasattr(made, "atomStruct"):
            made.atomStruct.set(AtomStruct(filename=os.path.abspath("model.pdb")))
        return made

    def commands(self, made):
        """The command lines that a protocol would give to a shell."""
        os.makedirs(made._getExtraPath(), exist_ok=True)
        said = []
        made.runJob = lambda program, arguments, **more: said.append("%s %s" % (program, arguments))
        made.runEngineStep("mark")
        return said

    def test_every_text_parameter(self):
        """What is typed reaches the engine as it is, in the settings file, and the shell not at all."""
        seen = set()
        for protocol in all_protocols():
            for name in text_parameters(self.newProtocol(protocol)):
                for payload in PAYLOADS:
                    made = self.made(protocol)
                    getattr(made, name).set(payload)
                    made.validate()
                    made._warnings()
                    made.summary()
                    for command in self.commands(made):
                        self.assertNotIn("canary", command, (protocol, name))
                        self.assertNotIn("\n", command.strip(), (protocol, name))
                    path = made._getExtraPath("params.toml")
                    if tomllib is not None:
                        with open(path, "rb") as settings:
                            content = tomllib.load(settings)
                        self.assertEqual(list(content), [protocol._command])
                        self.assertEqual(content[protocol._command].get("seed", 1), 1)
                    seen.add((protocol.__name__, name))
        self.assertEqual(self.canaries(), [])
        self.assertGreaterEqual({name for _, name in seen}, {"symmetry", "originalFile", "mtf", "gpuList"})
        self.assertEqual({name for name, _ in seen} | {"SparseCvProtModelFsc"},
                         {one.__name__ for one in all_protocols()})  # fmt: skip

    def test_symmetry_and_absent_files_are_refused(self):
        for payload in PAYLOADS:
            self.assertIn("The symmetry", "\n".join(self.refinement(symmetry=payload).validate()))
            self.assertIn("does not exist", "\n".join(self.refinement(originalFile=payload).validate()))
            self.assertIn("The GPUs are", "\n".join(self.refinement(gpuList=payload, useGpu=True).validate()))
            made = self.made(protocols.SparseCvProtPostprocess)
            made.mtf.set(payload)
            self.assertIn("does not exist", "\n".join(made.validate()))
        self.assertEqual(self.canaries(), [])

    def test_a_run_with_hostile_words(self):
        """Started for real, through Scipion's shell: label, comment, GPU and a file whose name is a program."""
        name = os.path.abspath("mtf $(touch canary) `touch canary` ; touch canary ; ' \" .star")
        with open(name, "w") as out:
            out.write("data_\nloop_\n_rlnResolutionInversePixel\n_rlnMtfValue\n0 1\n0.5 0.5\n")
        for protocol, words in ((protocols.SparseCvProtPostprocess, {"mtf": name}),
                                (protocols.SparseCvProtNuFilter, {"gpuList": "0; touch canary"}),
                                (protocols.SparseCvProtNuFilter, {"gpuList": "$(touch canary)"})):  # fmt: skip
            made = self.made(protocol)
            made.setObjLabel("$(touch canary); `touch canary`")
            made.setObjComment("\"; touch canary; '\n touch canary")
            for parameter, value in words.items():
                getattr(made, parameter).set(value)
            try:
                self.launchProtocol(made)
            except Exception as error:  # a number that is none may be refused; it must not be run
                self.assertIn("gpuList", words, error)
        self.assertEqual(self.canaries(), [])

    def test_an_image_name_that_is_a_command(self):
        """In the STAR file of particles, as an importer leaves it."""
        star = os.path.abspath("hostile.star")
        with open(os.path.join(self.data, "truth.star")) as source, open(star, "w") as out:
            out.write(source.read().replace("@particles.mrcs", "@|touch$IFS`touch`canary;$(touch$IFS/canary)"))
        with self.assertRaises(Exception) as caught:
            engine(os.path.abspath("hostile"), "refine",
                   {"particles": star, "reference": os.path.join(self.data, "reference.mrc"),
                    "output": os.path.abspath("hostile_out"), "device": "cpu"})  # fmt: skip
        self.assertNotIsInstance(caught.exception, AssertionError)
        self.assertTrue(hasattr(convert, "ConversionError"))
        self.assertEqual(self.canaries(), [])
