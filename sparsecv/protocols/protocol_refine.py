# SPDX-License-Identifier: GPL-3.0-or-later
"""3D refinement of particles, with the sparse + total-variation prior or with non-uniform filters."""

import os
from collections import OrderedDict

import pyworkflow.protocol.params as params
from pwem.objects import SetOfFSCs, SetOfParticles, Volume, VolumeMask
from pwem.protocols import ProtRefine3D
from pyworkflow.constants import BETA

from sparsecv import convert
from sparsecv.protocols.base import (
    SAME_PIXEL,
    STATUS,
    absolute,
    check_same_grid,
    check_symmetry,
    engine_value,
)
from sparsecv.protocols.from_particles import PARTICLES, ParticleProtocol

DATA, MAP, HALVES = "run_data.star", "run_class001.mrc", ["run_half%d_class001_unfil.mrc" % k for k in (1, 2)]
POSTPROCESS, MASK = "postprocess.star", "postprocess_mask.mrc"
# the engine's own words
STRENGTHS = ["held-out", "noise", "paper"]
PRESETS = ["beta-galactosidase", "80s-ribosome", "ha-trimer", "hrd1-hrd3", "tmem16a"]
HANDS = ["1", "-1"]
NU_FAMILIES = ["butterworth", "local-wiener", "sparse-tv"]
NU_SELECTIONS = ["like-for-like", "literal"]


class RefineProtocol(ParticleProtocol, ProtRefine3D):
    """What both refinements share; the regulariser is ``_regulariser``."""

    _devStatus = BETA
    _command = "refine"
    _resumable = True
    _inProcesses = True
    _regulariser = "wiener"
    _possibleOutputs = {
        "outputVolume": Volume, "outputParticles": SetOfParticles, "outputFSC": SetOfFSCs, "outputMask": VolumeMask,
    }  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ the form
    def _defineParams(self, form):
        form.addSection(label="Input")
        self._defineGpu(form)
        form.addParam("inputParticles", params.PointerParam, pointerClass="SetOfParticles", important=True,
                      pointerCondition="hasCTF", label="Input particles",
                      help="Extracted particles with a CTF for each, white on black. Alignments are only used for "
                           "local searches; half sets are kept where the particles have them.")  # fmt: skip
        form.addParam("referenceVolume", params.PointerParam, pointerClass="Volume", important=True,
                      label="Starting map",
                      help="Roughly the right shape is enough, on any grey scale, with the particle white. It is "
                           "low-pass filtered before it is used, and both half sets start from it.")  # fmt: skip
        form.addParam("maskVolume", params.PointerParam, pointerClass="VolumeMask", allowsNull=True,
                      label="Mask (optional)",
                      help="Not needed: both priors were made to do without one. Values from 0 to 1, in the box of "
                           "the particles. Do not mask away what the images contain.")  # fmt: skip
        form.addParam("symmetry", params.StringParam, default="C1", label="Symmetry",
                      help="Point group: Cn, Dn, T, O, I or I1 to I4, in RELION's frames. Write DnY (such as D7Y) for "
                           "a map of cryoSPARC, which has a 2-fold axis along y.")  # fmt: skip
        form.addParam("initialLowPass", params.FloatParam, default=40.0, validators=[params.GE(0)],
                      label="Initial low-pass filter (A)",
                      help="Resolution to which the starting map is filtered. No resolution is claimed that the map "
                           "brought with it. 0 leaves it as it is.")  # fmt: skip
        form.addParam("particleDiameter", params.FloatParam, default=0, validators=[params.GE(0)],
                      label="Particle diameter (A)",
                      help="Of a circle around the whole particle, with detergent or nucleic acid. 0: 90 % of the "
                           "box.")  # fmt: skip
        form.addParam("localSearches", params.BooleanParam, default=False, label="Local searches only?",
                      help="Yes: refine around the alignments that the particles have, which must be good to a few "
                           "degrees. No: search all orientations.")  # fmt: skip
        form.addParam("localSigma", params.FloatParam, default=5.0, condition="localSearches",
                      validators=[params.GT(0)], expertLevel=params.LEVEL_ADVANCED,
                      label="Expected error of the alignments (degrees)",
                      help="The search goes to three times as far.")  # fmt: skip
        self._defineOriginal(form)
        form.addParam("iterations", params.IntParam, default=30, validators=[params.GT(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Most iterations",
                      help="The refinement ends by itself, usually after 8 to 15.")  # fmt: skip
        form.addParam("offsetRange", params.FloatParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Largest shift (A)",
                      help="That is searched at first. 0: 5 pixels.")  # fmt: skip
        form.addParam("joinBelow", params.FloatParam, default=40.0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Halves are averaged below (A)",
                      help="At lower resolution than this the half maps are averaged in each iteration, which keeps "
                           "them in one frame. 0: never.")  # fmt: skip
        form.addParam("refineDefocus", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="Refine the defocus of each particle?",
                      help="After local iterations, against the map of its own half set. Give a mask: the FSC in it "
                           "says how far images are compared. Where nothing is wrong, nothing is changed.")  # fmt: skip
        form.addParam("refineAstigmatism", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="Refine the astigmatism of each micrograph?",
                      help="Likewise, and the defocus that its particles share.")  # fmt: skip
        form.addParam("refineAberrations", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="Refine beam tilt and trefoil of each optics group?",
                      help="After fine iterations. They go with the output's particles, to refinements of this plugin "
                           "and of RELION's.")  # fmt: skip
        form.addParam("randomSeed", params.IntParam, default=1, expertLevel=params.LEVEL_ADVANCED, label="Random seed",
                      help="The same seed gives the same result.")  # fmt: skip
        form.addParam("keepAccumulators", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="Keep the sums of the last iteration?",
                      help="So that other priors can be tried without refining again (sparsecv regularise). Takes 50 "
                           "bytes for each voxel, four times.")  # fmt: skip
        form.addParam("ewald", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="Correct for the Ewald sphere?",
                      help="Yes: the maps of the last iteration are made with the curvature of the Ewald sphere. "
                           "Without it a tenth of the amplitude is lost, with 300 kV, at 2.1 A by a particle of 150 A, "
                           "at 3.0 A by one of 300 A, at 4.9 A by one of 800 A. Not for particles that were "
                           "phase-flipped or multiplied by their CTF.")  # fmt: skip
        form.addParam("ewaldHand", params.EnumParam, choices=HANDS, default=0, condition="ewald",
                      display=params.EnumParam.DISPLAY_HLIST, expertLevel=params.LEVEL_ADVANCED,
                      label="Hand of the curvature",
                      help="To which side the sphere curves. It is the same for all data of a microscope that are "
                           "processed alike, and turns round with the hand of the map. Try both: the right one gives "
                           "the higher resolution, the wrong one a lower one than none.")  # fmt: skip
        form.addParam("mostRejected", params.FloatParam, default=5.0, expertLevel=params.LEVEL_ADVANCED,
                      label="Unusable particles that stop the run (%)",
                      help="Images without usable numbers are set aside and listed; more than this stop the run.")
        self._definePrior(form)
        form.addParallelSection(threads=4, mpi=1)

    def _definePrior(self, form):
        """The section of the regulariser."""

    # ----------------------------------------------------------------------------------------------------- settings
    def _inputObjects(self):
        return self.inputParticles.get(), self.referenceVolume.get(), self.maskVolume.get()

    def _engineSettings(self):
        reference, mask = self.referenceVolume.get(), self.maskVolume.get()
        return OrderedDict([
            ("particles", os.path.abspath(self._getExtraPath(PARTICLES))),
            ("reference", absolute(reference.getFileName())),
            ("reference_pixel_size", float(reference.getSamplingRate())),
            ("output", os.path.abspath(self._getExtraPath())),
            ("regulariser", self._regulariser),
            ("symmetry", self.symmetry.get().strip()),
            ("initial_lowpass", self.initialLowPass.get()),
            ("particle_diameter", engine_value(self.particleDiameter.get())),
            ("local", self.localSearches.get()),
            ("local_sigma", self.localSigma.get()),
            ("mask", None if mask is None else absolute(mask.getFileName())),
            ("iterations", self.iterations.get()),
            ("offset_range", engine_value(self.offsetRange.get())),
            ("join_below", self.joinBelow.get()),
            ("refine_defocus", self.refineDefocus.get()),
            ("refine_astigmatism", self.refineAstigmatism.get()),
            ("refine_aberrations", self.refineAberrations.get()),
            ("keep_accumulators", self.keepAccumulators.get()),
            ("ewald", self.ewald.get()),
            ("ewald_hand", int(HANDS[self.ewaldHand.get()]) if self.ewald.get() else None),
            ("most_rejected", self.mostRejected.get()),
            ("seed", self.randomSeed.get()),
            ("threads", self._threads()),
            ("device", self._device()),
        ] + list(self._priorSettings().items()))  # fmt: skip

    def _priorSettings(self):
        return OrderedDict()

    # -------------------------------------------------------------------------------------------------------- steps
    def _createOutputs(self):
        pixel_size = self.inputParticles.get().getSamplingRate()
        volume = self._volume(MAP, pixel_size, HALVES)
        data = self._getExtraPath(DATA)
        with_ctf = self.refineDefocus.get() or self.refineAstigmatism.get()
        aligned = self._outputSet(self._Updater(data, pixel_size, with_ctf), data)
        outputs = {"outputVolume": volume, "outputParticles": aligned,
                   "outputFSC": self._fscSet(self._getExtraPath(POSTPROCESS))}  # fmt: skip
        if os.path.exists(self._getExtraPath(MASK)):
            outputs["outputMask"] = self._volume(MASK, pixel_size, mask=True)
        outputs.update(self._moreOutputs(pixel_size))
        self._defineOutputs(**outputs)
        for output in outputs.values():
            self._defineSourceRelation(self.inputParticles, output)
        self._defineSourceRelation(self.referenceVolume, volume)
        self._defineTransformRelation(self.inputParticles, aligned)

    def _moreOutputs(self, pixel_size):
        return {}

    class _Updater:
        """Gives each particle its result, found by Scipion's id."""

        def __init__(self, path, pixel_size, with_ctf):
            self._with_ctf = with_ctf
            self._rows = convert.read_results(path)
            names = list(self._rows)
            matrices = convert.poses_of([self._rows[name] for name in names], pixel_size) if names else ()
            self._matrices = dict(zip(names, matrices))

        def __call__(self, particle, row):
            number = particle.getObjId()
            convert.update_particle(particle, self._rows.get(number), self._matrices.get(number), self._with_ctf)

    def _cleanExtraFiles(self):
        """Called at the end: what only a continuation needs, and the pictures of all iterations but the last."""
        names = [name for name in os.listdir(self._getExtraPath()) if name.startswith("run_it")]
        last = max((name[:9] for name in names if name.endswith(".png")), default="")
        for name in names:
            if name.endswith("_checkpoint.npz") or not name.startswith(last):
                os.remove(self._getExtraPath(name))

    # ----------------------------------------------------------------------------------------------------- messages
    def _validate(self):
        particles, mask = self.inputParticles.get(), self.maskVolume.get()
        errors = check_symmetry(self.symmetry.get("")) + self._gpuErrors()
        if particles is None or self.referenceVolume.get() is None:
            return errors
        if not particles.hasCTF():
            errors.append("The particles have no CTF: refinement needs one for each.")
        if self.localSearches.get() and not particles.hasAlignmentProj():
            kind = "2D alignments" if particles.hasAlignment2D() else "no alignments"
            errors.append("Local searches start from 3D alignments, and these particles have %s. Search all "
                          "orientations instead." % kind)  # fmt: skip
        elif self.localSearches.get() and convert.are_alike(self._firstAlignments()):
            errors.append("Local searches start from 3D alignments, and these particles have all the same alignment, "
                          "which means that they have none. Search all orientations instead.")  # fmt: skip
        box = particles.getDim()[0] if particles.getDim() else 0
        if mask is not None and box:
            errors += check_same_grid("The mask", mask, box, particles.getSamplingRate())
        if box and self.particleDiameter.get() > box * particles.getSamplingRate():
            length = box * particles.getSamplingRate()
            errors.append("The particle diameter is larger than the box of %.0f A." % length)
        return errors + self._originalErrors() + self._validatePrior()

    def _validatePrior(self):
        return []

    def _warnings(self):
        particles, reference = self.inputParticles.get(), self.referenceVolume.get()
        found = self._gpuWarnings()
        if particles is None or reference is None:
            return found
        if particles.hasAlignment2D():
            found.append("The particles are aligned in 2D; these alignments are not used.")
        if abs(reference.getSamplingRate() / particles.getSamplingRate() - 1) > SAME_PIXEL:
            found.append("The starting map has pixels of %.4g A, the particles of %.4g A: it is brought to theirs."
                         % (reference.getSamplingRate(), particles.getSamplingRate()))  # fmt: skip
        if not self._hasHalfSets():
            found.append(convert.NO_HALF_SETS)
        return found

    def _summary(self):
        status = self._readJson(STATUS)
        history = status.get("history", [])
        lines = self._conversionLines()
        if not history:
            return lines + ["The refinement has not finished an iteration yet."]
        last = history[-1]
        if status.get("state") == "finished":
            lines.append("Finished after %d iterations." % last["iteration"])
            for name, label in (("masked_resolution_0143", "0.143"), ("masked_resolution_05", "0.5")):
                if status.get(name):
                    lines.append("Resolution at FSC %s: %.2f A, inside the mask." % (label, status[name]))
            if status.get("bfactor") is not None:
                lines.append("B-factor of the sharpened map: %.0f A^2." % status["bfactor"])
        else:
            lines.append("Iteration %d is done." % last["iteration"])
            lines += ["  %d: %.2f A" % (row["iteration"], row["resolution_0143"]) for row in history[-6:]]
        if status.get("resolution_is_shared"):
            lines.append("No more resolution is claimed than what both half sets started from.")
        lines += ["Note: %s" % text for text in status.get("warnings", [])]
        return lines

    def _methods(self):
        if not hasattr(self, "outputVolume"):
            return []
        particles, status = self.inputParticles.get(), self._readJson(STATUS)
        text = ("%d particles were refined in two independent half sets with sparsecv [Scheres2012], %s, symmetry %s"
                % (particles.getSize(), self._priorMethods(), self.symmetry.get()))  # fmt: skip
        if status.get("masked_resolution_0143"):
            text += ", to %.2f A by the FSC of the half maps at 0.143" % status["masked_resolution_0143"]
        return [text + "."]

    def _priorMethods(self):
        return ""


class SparseCvProtRefine(RefineProtocol):
    """3D refinement with a sparse + total-variation prior.

    The strengths of the prior are measured in units of the noise and chosen by cross-validation inside each half set,
    so that nothing has to be tuned and the two half maps stay independent. Needs no mask.
    """

    _label = "3D refinement (sparse + TV)"
    _regulariser = "sparse-tv"

    def _definePrior(self, form):
        form.addSection(label="Sparse + TV prior")
        form.addParam("strength", params.EnumParam, choices=STRENGTHS, default=0, label="Strengths",
                      help="*held-out*: chosen by cross-validation inside each half set. *noise*: the kappas below, in "
                           "units of the noise. *paper*: in the units of Luo 2019, which have to be tuned for each "
                           "data set.")  # fmt: skip
        fixed = "strength==1"
        form.addParam("kappaSparse", params.FloatParam, default=1.0, condition=fixed, label="Kappa of sparsity",
                      validators=[params.GE(0)], help="In units of the noise. 1 is where held-out begins.")  # fmt: skip
        form.addParam("kappaVariation", params.FloatParam, default=1.0, condition=fixed, validators=[params.GE(0)],
                      label="Kappa of total variation", help="In units of the noise. 1 is where held-out begins.")
        paper = "strength==2"
        form.addParam("preset", params.EnumParam, choices=["none"] + PRESETS, default=1, condition=paper,
                      label="Published preset", help="Parameters that were published for a data set; none: the ones "
                      "below.")  # fmt: skip
        own = paper + " and preset==0"
        form.addParam("alpha", params.FloatParam, default=0.5, condition=own, validators=[params.GE(0)], label="Alpha",
                      help="Strength of sparsity, in the units of the paper.")  # fmt: skip
        form.addParam("beta", params.FloatParam, default=1.6, condition=own, validators=[params.GE(0)], label="Beta",
                      help="Strength of total variation, in the units of the paper.")  # fmt: skip
        form.addParam("epsilon", params.FloatParam, default=0, condition=own, validators=[params.GE(0)],
                      label="Epsilon", help="Density level of the molecule, on the grey scale of the map.")
        form.addParam("positivity", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="No negative densities?", help="Keeps the references positive.")  # fmt: skip

    def _priorSettings(self):
        strength = STRENGTHS[self.strength.get()]
        found = OrderedDict([("positivity", self.positivity.get())])
        if strength == "paper" and self.preset.get():
            found["preset"] = PRESETS[self.preset.get() - 1]
            return found
        found["strength"] = strength
        if strength == "noise":
            found["kappa_sparse"], found["kappa_variation"] = self.kappaSparse.get(), self.kappaVariation.get()
        elif strength == "paper":
            found["alpha"], found["beta"], found["epsilon"] = self.alpha.get(), self.beta.get(), self.epsilon.get()
        return found

    def _validatePrior(self):
        if STRENGTHS[self.strength.get()] == "paper" and not self.preset.get() and not self.epsilon.get() > 0:
            return ["Strengths in the units of the paper need epsilon, the density level of the molecule, or a preset."]
        return []

    def _priorMethods(self):
        return "regularised by sparsity and total variation [Luo2019] with strengths chosen by cross-validation"

    def _citations(self):
        return ["Luo2019", "Luo2021", "Scheres2012"]


class SparseCvProtNonUniform(RefineProtocol):
    """Non-uniform refinement by cross-validation.

    Each place of the map is filtered as finely as the two quarters of a half set predict each other there. Made for
    membrane proteins and particles with flexible parts; needs no mask.
    """

    _label = "non-uniform refinement (CV)"
    _regulariser = "nonuniform"
    _possibleOutputs = dict(RefineProtocol._possibleOutputs, outputBandLimit=Volume)

    def _definePrior(self, form):
        form.addSection(label="Non-uniform filters")
        form.addParam("nuPaper", params.BooleanParam, default=False, label="As published?",
                      help="Yes: filters, windows and selection of Punjani, Zhang & Fleet 2020. No: what was measured "
                           "to align better here, which is the default.")  # fmt: skip
        own = "not nuPaper"
        form.addParam("nuFamily", params.EnumParam, choices=NU_FAMILIES, default=0, condition=own,
                      expertLevel=params.LEVEL_ADVANCED, label="What is chosen locally",
                      help="Low-pass filters, Wiener weights of bands, or the strength of the sparse + TV prior.")
        filters = own + " and nuFamily==0"
        form.addParam("nuAwf", params.FloatParam, default=0, condition=filters, expertLevel=params.LEVEL_ADVANCED,
                      validators=[params.GE(0)], label="Adaptive window factor",
                      help="Width of a window in wavelengths of its filter. 0: 2.5.")  # fmt: skip
        form.addParam("nuFilters", params.IntParam, default=0, condition=filters, expertLevel=params.LEVEL_ADVANCED,
                      validators=[params.GE(0)], label="Number of filters",
                      help="Equispaced in frequency. 0: 12.")  # fmt: skip
        form.addParam("nuOrder", params.IntParam, default=0, condition=filters, expertLevel=params.LEVEL_ADVANCED,
                      validators=[params.GE(0)], label="Order of the filters", help="Of Butterworth filters. 0: 8.")
        form.addParam("nuSelection", params.EnumParam, choices=NU_SELECTIONS, default=0, condition=filters,
                      expertLevel=params.LEVEL_ADVANCED, label="Selection",
                      help="*like*: filters are compared within equal windows, coarse to fine. *literal*: equation 6 "
                           "of the paper.")  # fmt: skip

    def _priorSettings(self):
        if self.nuPaper.get():
            return OrderedDict([("nu_preset", "paper")])
        family = NU_FAMILIES[self.nuFamily.get()]
        if family != "butterworth":
            return OrderedDict([("nu_family", family)])
        return OrderedDict([
            ("nu_awf", engine_value(self.nuAwf.get())), ("nu_filters", engine_value(self.nuFilters.get())),
            ("nu_order", engine_value(self.nuOrder.get())),
            ("nu_selection", None if not self.nuSelection.get() else NU_SELECTIONS[self.nuSelection.get()]),
        ])  # fmt: skip

    def _moreOutputs(self, pixel_size):
        name = "run_bandlimit.mrc"
        if not os.path.exists(self._getExtraPath(name)):
            return {}
        return {"outputBandLimit": self._volume(name, pixel_size)}

    def _priorMethods(self):
        return "with non-uniform regularisation by cross-validation inside each half set [Punjani2020]"

    def _citations(self):
        return ["Punjani2020", "Scheres2012"]


