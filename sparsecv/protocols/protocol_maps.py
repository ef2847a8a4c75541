# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be done with the half maps of any program: post-processing, and non-uniform filters."""

import os
from collections import OrderedDict

import pyworkflow.protocol.params as params
from pwem.objects import SetOfFSCs, Volume, VolumeMask
from pwem.protocols import ProtAnalysis3D
from pyworkflow.constants import BETA

from sparsecv.protocols.base import EngineProtocol, absolute, check_same_grid, engine_value, half_maps


class HalfMapProtocol(EngineProtocol, ProtAnalysis3D):
    """What works on a volume with half maps."""

    _devStatus = BETA

    def _defineInput(self, form):
        form.addSection(label="Input")
        if self._needsGpu:
            self._defineGpu(form)
        form.addParam("inputVolume", params.PointerParam, pointerClass="Volume", important=True,
                      label="Volume with half maps",
                      help="Output of any refinement, with its two half maps, unfiltered and unmasked.")  # fmt: skip
        form.addParam("maskVolume", params.PointerParam, pointerClass="VolumeMask", allowsNull=True,
                      label="Mask (optional)",
                      help="Soft, values from 0 to 1. Without one, a mask is made from the map.")  # fmt: skip
        form.addParam("mtf", params.FileParam, default="", expertLevel=params.LEVEL_ADVANCED,
                      label="MTF of the detector",
                      help="STAR file with the modulation transfer function, as RELION reads it.")  # fmt: skip
        form.addParam("bfactor", params.FloatParam, allowsNull=True, expertLevel=params.LEVEL_ADVANCED,
                      label="B-factor (A^2)", help="Negative sharpens. Empty: from the Guinier plot.")  # fmt: skip
        form.addParam("randomSeed", params.IntParam, default=1, expertLevel=params.LEVEL_ADVANCED, label="Random seed",
                      help="Of the random phases behind the mask correction.")  # fmt: skip

    def _inputObjects(self):
        return self.inputVolume.get(), self.maskVolume.get()

    def _mapSettings(self):
        volume, mask = self.inputVolume.get(), self.maskVolume.get()
        halves = half_maps(volume) or (None, None)
        return OrderedDict([
            ("half1", halves[0]), ("half2", halves[1]), ("output", os.path.abspath(self._getExtraPath())),
            ("mask", None if mask is None else absolute(mask.getFileName())),
            ("pixel_size", float(volume.getSamplingRate())),
            ("mtf", os.path.abspath(self.mtf.get()) if self.mtf.get("") else None),
            ("bfactor", self.bfactor.get()), ("seed", self.randomSeed.get()), ("threads", self._threads()),
        ])  # fmt: skip

    def _validate(self):
        volume, mask = self.inputVolume.get(), self.maskVolume.get()
        if volume is None:
            return []
        errors = self._gpuErrors() if self._needsGpu else []
        halves = half_maps(volume)
        if halves is None:
            errors.append("The volume has no half maps: choose one that a refinement has made, or import it with them.")
        else:
            errors += ["The half map does not exist: %s" % name for name in halves if not os.path.exists(name)]
        if mask is not None and volume.getDim():
            errors += check_same_grid("The mask", mask, volume.getDim()[0], volume.getSamplingRate())
        if self.mtf.get("") and not os.path.isfile(self.mtf.get()):
            errors.append("The file with the MTF does not exist: %s" % self.mtf.get())
        return errors

    def _relate(self, outputs):
        self._defineOutputs(**outputs)
        for output in outputs.values():
            self._defineSourceRelation(self.inputVolume, output)


class SparseCvProtPostprocess(HalfMapProtocol):
    """Masked and mask-corrected FSC of two half maps, sharpening and filtering, as RELION does it."""

    _label = "post-processing"
    _command = "postprocess"
    _needsGpu = False
    _possibleOutputs = {"outputVolume": Volume, "outputFSC": SetOfFSCs, "outputMask": VolumeMask}

    def _defineParams(self, form):
        self._defineInput(form)
        form.addParam("lowPass", params.FloatParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Low-pass filter (A)",
                      help="0: at the resolution where the FSC falls below 0.143.")  # fmt: skip
        form.addParam("fscWeighting", params.BooleanParam, default=True, expertLevel=params.LEVEL_ADVANCED,
                      label="Weight by the FSC?", help="By sqrt(2 FSC / (1 + FSC)).")  # fmt: skip
        form.addParallelSection(threads=2, mpi=0)

    def _engineSettings(self):
        settings = self._mapSettings()
        settings["low_pass"] = engine_value(self.lowPass.get())
        settings["no_fsc_weighting"] = not self.fscWeighting.get()
        return settings

    def _createOutputs(self):
        volume, halves = self.inputVolume.get(), half_maps(self.inputVolume.get())
        sharpened = self._volume("postprocess.mrc", volume.getSamplingRate())
        sharpened.setHalfMaps([os.path.relpath(name) for name in halves])
        sharpened.setOrigin(volume.getOrigin(force=True))
        outputs = {"outputVolume": sharpened, "outputFSC": self._fscSet(self._getExtraPath("postprocess.star"))}
        if os.path.exists(self._getExtraPath("postprocess_mask.mrc")):
            outputs["outputMask"] = self._volume("postprocess_mask.mrc", volume.getSamplingRate(), mask=True)
        self._relate(outputs)

    def _summary(self):
        if not hasattr(self, "outputFSC"):
            return ["Not finished yet."]
        return self._readStarNumbers()

    def _readStarNumbers(self):
        """Resolution and B-factor, as the engine wrote them."""
        labels = {"_rlnFinalResolution": "Resolution at FSC 0.143: %.2f A, the last shell above it.",
                  "_rlnBfactorUsedForSharpening": "B-factor: %.0f A^2."}  # fmt: skip
        lines = []
        for line in self._readText("postprocess.star").splitlines():
            words = line.split()
            if len(words) == 2 and words[0] in labels:
                lines.append(labels[words[0]] % float(words[1]))
        return lines

    def _methods(self):
        if not hasattr(self, "outputVolume"):
            return []
        return ["The map was sharpened and its resolution estimated with sparsecv."]


class SparseCvProtNuFilter(HalfMapProtocol):
    """A low-pass filter for each place of a map, as fine as its half maps predict each other there."""

    _label = "non-uniform filter"
    _command = "nu-filter"
    _possibleOutputs = {"outputVolume": Volume, "outputBandLimit": Volume, "outputLocalResolution": Volume}

    def _defineParams(self, form):
        self._defineInput(form)
        form.addParam("localResolution", params.BooleanParam, default=True, label="Estimate the local resolution, too?",
                      help="By the FSC in small spheres, for comparison with the band limits.")  # fmt: skip
        form.addParam("nuAwf", params.FloatParam, default=0, expertLevel=params.LEVEL_ADVANCED,
                      validators=[params.GE(0)], label="Adaptive window factor",
                      help="Width of a window in wavelengths of its filter. 0: 2.5.")  # fmt: skip
        form.addParam("nuFilters", params.IntParam, default=0, expertLevel=params.LEVEL_ADVANCED,
                      validators=[params.GE(0)], label="Number of filters",
                      help="Equispaced in frequency. 0: 12.")  # fmt: skip
        form.addParallelSection(threads=2, mpi=0)

    def _engineSettings(self):
        settings = self._mapSettings()
        settings.update([
            ("nu_awf", engine_value(self.nuAwf.get())), ("nu_filters", engine_value(self.nuFilters.get())),
            ("no_local_resolution", not self.localResolution.get()), ("device", self._device()),
        ])  # fmt: skip
        return settings

    def _createOutputs(self):
        volume, halves = self.inputVolume.get(), half_maps(self.inputVolume.get())
        rate = volume.getSamplingRate()
        names = {"outputVolume": "sharpened.mrc", "outputBandLimit": "bandlimit.mrc",
                 "outputLocalResolution": "local_resolution.mrc"}  # fmt: skip
        outputs = {}
        for output, name in names.items():
            if os.path.exists(self._getExtraPath(name)):
                outputs[output] = self._volume(name, rate)
                outputs[output].setOrigin(volume.getOrigin(force=True))
        outputs["outputVolume"].setHalfMaps([os.path.relpath(name) for name in halves])
        self._relate(outputs)

    def _warnings(self):
        return self._gpuWarnings()

    def _summary(self):
        numbers = self._readJson("nu_filter.json")
        if not numbers.get("quartiles"):
            return ["Not finished yet."]
        low, middle, high = numbers["quartiles"]
        lines = ["Band limits: median %.2f A, quartiles %.2f and %.2f A." % (middle, low, high)]
        if numbers.get("resolution_0143"):
            lines.append("Resolution at FSC 0.143: %.2f A; at 0.5: %.2f A." % (numbers["resolution_0143"],
                                                                              numbers["resolution_05"]))  # fmt: skip
        return lines + ["The filtered map is for looking at: both half maps have chosen its filters."]

    def _methods(self):
        return ["The map was filtered locally by cross-validation of its half maps [Punjani2020]."] if hasattr(
            self, "outputVolume") else []  # fmt: skip

    def _citations(self):
        return ["Punjani2020"]
