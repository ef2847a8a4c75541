# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation of a map against an atomic model."""

import os
from collections import OrderedDict

import pyworkflow.protocol.params as params
from pwem.objects import AtomStruct, SetOfFSCs, VolumeMask
from pwem.protocols import ProtAnalysis3D
from pyworkflow.constants import BETA
from pyworkflow.object import Float

from sparsecv.protocols.base import SAME_PIXEL, EngineProtocol, absolute, engine_value, half_maps

FRAMES = ["header", "scipion", "centred"]
FITS = ["none", "rigid", "chains", "global"]
B_FACTORS = ["model", "refit"]
FSC_COLUMNS = (
    ("fscModelMasked", "map against model, masked"),
    ("fscModelUnmasked", "map against model, unmasked"),
    ("fscModelMaskedRandomPhases", "random phases, masked"),
    ("fscHalfMaps", "half maps, corrected for the mask"),
    ("fscCeiling", "ceiling from the half maps"),
    ("fscModelHalf1", "model against half map 1"),
    ("fscModelHalf2", "model against half map 2"),
    ("fscVersusMasked", "other map against model, masked"),
)


class SparseCvProtModelFsc(EngineProtocol, ProtAnalysis3D):
    """A map against an atomic model: fit, Fourier shell correlation, scores of residues."""

    _label = "model-map FSC validation"
    _devStatus = BETA
    _command = "validate"
    _needsGpu = False
    _possibleOutputs = {"outputAtomStruct": AtomStruct, "outputFSC": SetOfFSCs, "outputMask": VolumeMask}

    # ------------------------------------------------------------------------------------------------------ the form
    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("inputVolume", params.PointerParam, pointerClass="Volume", important=True, label="Map",
                      help="As it is to be judged: sharpened and filtered for scores in real space. Its half maps, "
                           "where it has them, show what a model can reach and whether it follows noise.")  # fmt: skip
        form.addParam("atomStruct", params.PointerParam, pointerClass="AtomStruct", important=True,
                      label="Atomic model",
                      help="PDB or mmCIF.")  # fmt: skip
        form.addParam("frame", params.EnumParam, choices=FRAMES, default=0, label="Where the map stands",
                      help="*header*: at the origin in the header of its file, as deposited maps. *scipion*: at the "
                           "origin that Scipion has for it, by default the middle of the box at 0. *centred*: the "
                           "central voxel at 0, as maps of sparsecv. A model that is outside is refused, and the right "
                           "choice named.")  # fmt: skip
        form.addParam("fit", params.EnumParam, choices=FITS, default=0, label="Fit the model first?",
                      help="*none*: judge it where it stands. *rigid*: as a whole, from where it is. *chains*: then "
                           "each chain. *global*: wherever it is and however it is turned.")  # fmt: skip
        form.addParam("useHalves", params.BooleanParam, default=True, label="Use the half maps?",
                      help="Where the map has them.")  # fmt: skip
        form.addParam("versusVolume", params.PointerParam, pointerClass="Volume", allowsNull=True,
                      label="Other map (optional)",
                      help="On the same grid, to be compared with the same model in the same mask.")  # fmt: skip
        form.addParam("maskVolume", params.PointerParam, pointerClass="VolumeMask", allowsNull=True,
                      label="Mask (optional)", help="Without one, a mask is made around the model.")  # fmt: skip
        form.addParam("resolution", params.FloatParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Resolution (A)",
                      help="Of the map, for the mask and for correlations. 0: of the half maps, or against the model.")
        form.addParam("level", params.FloatParam, allowsNull=True, expertLevel=params.LEVEL_ADVANCED,
                      label="Contour level", help="At which atoms count as inside. Empty: the surface that encloses as "
                      "much volume as the model.")  # fmt: skip
        form.addParam("bFactors", params.EnumParam, choices=B_FACTORS, default=0, expertLevel=params.LEVEL_ADVANCED,
                      label="B-factors",
                      help="*model*: as they are. *refit*: those of each chain shifted to fit the map.")
        form.addParallelSection(threads=2, mpi=0)

    # ----------------------------------------------------------------------------------------------------- settings
    def _inputObjects(self):
        return self.inputVolume.get(), self.atomStruct.get(), self.maskVolume.get(), self.versusVolume.get()

    def _engineSettings(self):
        volume, mask, versus = self.inputVolume.get(), self.maskVolume.get(), self.versusVolume.get()
        halves = (half_maps(volume) if self.useHalves.get() else None) or (None, None)
        frame = FRAMES[self.frame.get()]
        origin = None
        if frame == "scipion":
            origin = ",".join("%.6f" % value for value in volume.getShiftsFromOrigin())
        return OrderedDict([
            ("model", os.path.abspath(self.atomStruct.get().getFileName())), ("map", absolute(volume.getFileName())),
            ("output", os.path.abspath(self._getExtraPath())), ("half1", halves[0]), ("half2", halves[1]),
            ("mask", None if mask is None else absolute(mask.getFileName())),
            ("versus", None if versus is None else absolute(versus.getFileName())),
            ("frame", frame), ("origin", origin), ("fit", FITS[self.fit.get()]),
            ("pixel_size", float(volume.getSamplingRate())), ("resolution", engine_value(self.resolution.get())),
            ("level", self.level.get()), ("bfactors", B_FACTORS[self.bFactors.get()]), ("threads", self._threads()),
        ])  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- steps
    def _createOutputs(self):
        numbers, volume = self._readJson("summary.json"), self.inputVolume.get()
        fitted = AtomStruct(filename=self._getExtraPath("fitted.cif"))
        fitted.setVolume(volume)
        fitted._sparsecvQScore = Float(numbers.get("q_score"))
        fitted._sparsecvCcMask = Float(numbers.get("cc_mask"))
        fitted._sparsecvFscAverage = Float(numbers.get("fsc_average"))
        fitted._sparsecvAtomsInside = Float(numbers.get("atoms_inside"))
        at = (numbers.get("fsc_masked") or {}).get("0.5")
        fitted._sparsecvFsc05 = Float(at["angstrom"] if at else None)
        outputs = {
            "outputAtomStruct": fitted,
            "outputFSC": self._fscSet(self._getExtraPath("model_fsc.star"), "model_fsc", FSC_COLUMNS),
            "outputMask": self._volume("validate_mask.mrc", volume.getSamplingRate(), mask=True),
        }
        self._defineOutputs(**outputs)
        for output in outputs.values():
            self._defineSourceRelation(self.inputVolume, output)
            self._defineSourceRelation(self.atomStruct, output)

    # ----------------------------------------------------------------------------------------------------- messages
    def _validate(self):
        volume, model = self.inputVolume.get(), self.atomStruct.get()
        errors = []
        if model is not None and not os.path.isfile(model.getFileName()):
            errors.append("The file of the model does not exist: %s" % model.getFileName())
        if volume is None:
            return errors
        for what, other in (("The mask", self.maskVolume.get()), ("The other map", self.versusVolume.get())):
            if other is None:
                continue
            if abs(other.getSamplingRate() / volume.getSamplingRate() - 1) > SAME_PIXEL:
                errors.append("%s has pixels of %.4g A, the map of %.4g A." % (what, other.getSamplingRate(),
                                                                             volume.getSamplingRate()))  # fmt: skip
            elif other.getDim() != volume.getDim():
                errors.append("%s has %s voxels, the map %s." % (what, other.getDim(), volume.getDim()))
        return errors

    def _warnings(self):
        volume = self.inputVolume.get()
        if volume is not None and self.useHalves.get() and half_maps(volume) is None:
            return ["The map has no half maps: what a model can reach, and whether it follows noise, is not shown."]
        return []

    def _summary(self):
        numbers = self._readJson("summary.json")
        if not numbers:
            return ["Not finished yet."]
        lines = []
        for threshold in ("0.5", "0.143"):
            found = []
            for name, label in (("fsc_masked", "in the mask"), ("fsc_unmasked", "without a mask")):
                at = (numbers.get(name) or {}).get(threshold)
                found.append("%s %s" % ("%.2f A" % at["angstrom"] if at else "never above it", label))
            lines.append("FSC %s: %s." % (threshold, ", ".join(found)))
        lines.append("CC_mask %.3f, Q-score %.3f." % (numbers["cc_mask"] or 0, numbers["q_score"] or 0))
        lines.append("Lowest Q-scores: %s." % ", ".join(numbers.get("worst_residues", [])[:5]))
        return lines + ["Note: %s" % text for text in numbers.get("warnings", [])]

    def _methods(self):
        if not hasattr(self, "outputFSC"):
            return []
        return ["Map and model were compared by Fourier shell correlation, real-space correlation and Q-scores "
                "[Pintilie2020] with sparsecv."]  # fmt: skip

    def _citations(self):
        return ["Pintilie2020"]
