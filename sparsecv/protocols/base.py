# SPDX-License-Identifier: GPL-3.0-or-later
"""What all protocols share: how they start the engine, resume it, and tell what it does."""

import json
import os
import re
import shutil

import pyworkflow.protocol.params as params
from pwem.emlib.image import ImageHandler
from pwem.objects import FSC, Volume, VolumeMask

from sparsecv import Plugin
from sparsecv.settings_file import digest, write_settings
from sparsecv.star import read_star

SETTINGS, DIGEST, LAUNCHER, FINISHED = "params.toml", "params.digest", "engine.sh", "engine.finished"
STATUS = "status.json"  # of a refinement
SYMMETRY = re.compile(r"^([Cc]\d{1,3}|[Dd]\d{1,3}[XxYy]?|[TtOo]|[Ii][1-4]?)\Z")
GPUS = re.compile(r"^[\d\s,-]*\Z")
SAME_PIXEL = 0.01  # relative difference up to which pixel sizes count as equal
FSC_COLUMNS = (
    ("rlnFourierShellCorrelationCorrected", "half maps, corrected for the mask"),
    ("rlnFourierShellCorrelationMaskedMaps", "half maps, masked"),
    ("rlnFourierShellCorrelationUnmaskedMaps", "half maps, unmasked"),
    ("rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps", "random phases, masked"),
)


class EngineProtocol:
    """Mixed into protocols: they have ``_command``, ``_engineSettings``, ``_inputObjects`` and ``_createOutputs``."""

    _command = None
    _needsGpu = True
    _inProcesses = False
    _resumable = False

    # ------------------------------------------------------------------------------------------------------ the form
    def _defineGpu(self, form):
        form.addHidden(params.USE_GPU, params.BooleanParam, default=True, label="Use GPU if there is one",
                       help="Yes: on an NVIDIA GPU where one is found, else on the processor. No: on the processor.")
        form.addHidden(params.GPU_LIST, params.StringParam, default="0", label="Choose GPU",
                       help="Number of the GPU to be used, from 0. Of several the first one is used, or one by each of "
                            "the processes (MPI) of a refinement.")

    # ----------------------------------------------------------------------------------------------------- the steps
    def _insertAllSteps(self):
        mark = self._mark()
        self._insertFunctionStep(self.convertInputStep, mark, needsGPU=False)
        self._insertFunctionStep(self.runEngineStep, mark, needsGPU=self._needsGpu)
        self._insertFunctionStep(self.createOutputStep, mark, needsGPU=False)

    def _mark(self):
        """A hash of everything that decides the result: Scipion repeats a step whose arguments have changed."""
        described = []
        for item in self._inputObjects():
            if item is not None:
                size = item.getSize() if hasattr(item, "getSize") else 0
                described.append((item.getObjId(), str(item.getFileName()), size))
        return digest(self._command, self._engineSettings(), self._convertSettings(), described)

    def _convertSettings(self):
        """What decides how the input is converted, and is no setting of the engine."""
        return ()

    def convertInputStep(self, mark):
        """Nothing, where the engine reads what Scipion has."""

    def runEngineStep(self, mark):
        """Run the engine; go on from its checkpoint if this protocol was stopped in the middle of the same run."""
        write_settings(self._getExtraPath(SETTINGS), self._command, self._engineSettings())
        arguments = "%s --config %s" % (self._command, self._getExtraPath(SETTINGS))
        if self._resumable and self._checkpoints() and self._readText(DIGEST) == mark:
            arguments += " --continue"
        with open(self._getExtraPath(DIGEST), "w") as out:
            out.write(mark)
        picks_gpu = self._needsGpu and self.useGpu.get() and self.gpuList.get().strip()
        if self._processes() > 1:
            program, arguments = self._launcher(picks_gpu), ('"%(GPU)s" ' if picks_gpu else "") + arguments
        else:
            program = Plugin.getProgram("CUDA_VISIBLE_DEVICES=%(GPU)s" if picks_gpu else "")
        finished = self._getExtraPath(FINISHED)
        if os.path.exists(finished):
            os.remove(finished)
        # where each program is a job of its own, Scipion does not learn its exit status
        arguments += ' && touch "%s"' % finished
        self.runJob(program, arguments, env=Plugin.getEnviron(), numberOfMpi=self._processes())
        return [self._getExtraPath(SETTINGS)]

    def _processes(self):
        """How many processes of the engine share the work."""
        return max(1, self.numberOfMpi.get()) if self._inProcesses else 1

    def _launcher(self, picks_gpu):
        """Write the program that each process runs: Scipion puts mpirun before a program, not before an activation.

        With GPUs chosen, their numbers are its first argument; each process takes the next of them.
        """
        path = self._getExtraPath(LAUNCHER)
        gpus = 'CUDA_VISIBLE_DEVICES=$(echo $1 | tr " " ","); export CUDA_VISIBLE_DEVICES; shift\n'
        with open(path, "w") as out:
            out.write("#!/bin/bash\n%s%s \"$@\"\n" % (gpus if picks_gpu else "", Plugin.getProgram()))
        os.chmod(path, 0o755)
        return path

    def createOutputStep(self, mark):
        """Register what the engine has made; an earlier run's results are not taken for those of one that failed."""
        if not os.path.exists(self._getExtraPath(FINISHED)):
            reason = self._readJson(STATUS).get("error")
            raise RuntimeError("The engine has not finished%s. The output of its job says why; mend it and press "
                               "Continue." % (": %s" % reason if reason else ""))  # fmt: skip
        self._createOutputs()

    def _checkpoints(self):
        folder = self._getExtraPath()
        return [name for name in os.listdir(folder) if name.endswith("_checkpoint.npz")]

    def _device(self):
        return "auto" if self.useGpu.get() else "cpu"

    def _threads(self):
        return max(1, self.numberOfThreads.get())

    # ------------------------------------------------------------------------------------------------------- outputs
    def _volume(self, name, sampling_rate, halves=None, mask=False):
        volume = VolumeMask() if mask else Volume()
        volume.setFileName(self._getExtraPath(name))
        volume.setSamplingRate(sampling_rate)
        if halves is not None:
            volume.setHalfMaps([self._getExtraPath(half) for half in halves])
        return volume

    def _fscSet(self, path, table="fsc", columns=FSC_COLUMNS):
        """A SetOfFSCs of the columns that a STAR file has."""
        found = self._createSetOfFSCs()
        rows = read_star(path)[table]
        for column, label in columns:
            if rows and column in rows[0]:
                curve = FSC(objLabel=label)
                curve.setData([float(row["rlnResolution"]) for row in rows[1:]],
                              [float(row[column]) for row in rows[1:]])  # fmt: skip
                found.append(curve)
        found.write()
        return found

    # ------------------------------------------------------------------------------------------------------ messages
    def _readText(self, name):
        try:
            with open(self._getExtraPath(name)) as text:
                return text.read()
        except OSError:
            return ""

    def _readJson(self, name):
        """Numbers that the engine wrote, {} where it has not: the summary is drawn while it runs."""
        try:
            return json.loads(self._readText(name) or "{}")
        except ValueError:
            return {}

    def _gpuErrors(self):
        """Scipion reads the list as numbers, and stops with a traceback where it holds anything else."""
        if self.useGpu.get() and not GPUS.match(self.gpuList.get("")):
            return ["The GPUs are %r, which are no numbers, such as 0 or 0 1." % self.gpuList.get("")]
        return []

    def _gpuWarnings(self):
        if not self.useGpu.get() or self.useQueue() or shutil.which("nvidia-smi"):
            return []
        return ["No NVIDIA GPU is seen on this machine: the engine will run on the processor."]


def check_symmetry(text):
    """Return what is wrong with the name of a point group; empty if nothing is."""
    if SYMMETRY.match(text.strip()):
        return []
    return ["The symmetry %r is none of Cn, Dn (DnY with a 2-fold axis along y, as in cryoSPARC), T, O, I, I1, I2, I3, "
            "I4." % text]  # fmt: skip


def check_same_grid(what, volume, box, pixel_size):
    """Return what is wrong with a volume that has to have a box and a pixel size; empty if nothing is."""
    dim = volume.getDim()
    found = []
    if abs(volume.getSamplingRate() / pixel_size - 1) > SAME_PIXEL:
        found.append("%s has pixels of %.4g A, where %.4g A are needed." % (what, volume.getSamplingRate(), pixel_size))
    elif dim is not None and dim[0] != box:
        found.append("%s has a box of %d pixels, where %d are needed." % (what, dim[0], box))
    return found


def half_maps(volume):
    """Return the two half maps of a volume as absolute paths, or None."""
    names = volume.getHalfMaps(asList=True) if volume.hasHalfMaps() else []
    names = [name for name in names if name]
    if len(names) != 2:
        return None
    return [absolute(name) for name in names]


def absolute(name):
    """Return the path of a file as Scipion names it, without the type that may stand behind a colon."""
    return os.path.abspath(ImageHandler.removeFileType(name))


def engine_value(value):
    """Return a number of the form as the engine's setting: None (its default) where it is 0 or empty."""
    return value if value else None
