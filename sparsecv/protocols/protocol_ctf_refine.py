# SPDX-License-Identifier: GPL-3.0-or-later
"""Defocus, astigmatism, aberrations and magnification of particles at the poses of a refinement, of any program."""

import os
from collections import OrderedDict

import pyworkflow.protocol.params as params
from pwem.objects import SetOfParticles
from pwem.protocols import ProtParticles
from pyworkflow.constants import BETA

from sparsecv import convert
from sparsecv.protocols.base import absolute, check_same_grid, engine_value, half_maps
from sparsecv.protocols.from_particles import PARTICLES, ParticleProtocol

REFINED, NUMBERS, DEFOCUS_PICTURE = "particles_ctf_refined.star", "ctf_refine.json", "defocus_changes.png"
ASTIGMATISM = ["no", "micrograph", "particle"]  # the last two in the engine's own words
MOST_GROUPS = 5  # in the summary
OF_GROUPS = (
    ("beamTilt", "beam_tilt", "beam tilt"),
    ("trefoil", "trefoil", "trefoil"),
    ("evenAberrations", "even_aberrations", "even aberrations"),
    ("magnification", "magnification", "anisotropic magnification"),
)  # of the form, of the engine, in words


class SparseCvProtCtfRefine(ParticleProtocol, ProtParticles):
    """CTF refinement at known poses: defocus, astigmatism, beam tilt, aberrations, anisotropic magnification.

    Each particle is compared with the map of its own half set, out of which it is taken itself, so that its noise does
    not hold it to the CTF that it was thought to have. The result is a set of particles to be refined again, by this
    plugin or by RELION's: the optics groups keep what was found of them.
    """

    _label = "CTF refinement"
    _devStatus = BETA
    _command = "ctf-refine"
    _needsGpu = False
    _possibleOutputs = {"outputParticles": SetOfParticles}

    # ------------------------------------------------------------------------------------------------------ the form
    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("inputParticles", params.PointerParam, pointerClass="SetOfParticles", important=True,
                      pointerCondition="hasAlignmentProj", label="Input particles",
                      help="As a refinement has left them, of any program: with alignments, CTFs and half sets. "
                           "cryoSPARC's importer drops the half sets; the original file gives them back.")  # fmt: skip
        form.addParam("inputVolume", params.PointerParam, pointerClass="Volume", important=True,
                      label="Volume with half maps",
                      help="Of the same refinement, with its two half maps, unfiltered and unmasked.")  # fmt: skip
        form.addParam("maskVolume", params.PointerParam, pointerClass="VolumeMask", allowsNull=True,
                      label="Mask (optional)",
                      help="Around what is well resolved, values from 0 to 1. Worth giving: the FSC in it says how far "
                           "images are compared, and high frequencies tell most. Without one: a sphere.")  # fmt: skip
        self._defineOriginal(form)
        form.addSection(label="What to refine")
        form.addParam("defocus", params.BooleanParam, default=True, label="Defocus of each particle?",
                      help="Particles are at different heights in the ice, and in tilted specimens far more so. The "
                           "summary says how much of the changes is beyond noise.")  # fmt: skip
        form.addParam("astigmatism", params.EnumParam, choices=ASTIGMATISM, default=0, label="Astigmatism",
                      display=params.EnumParam.DISPLAY_HLIST,
                      help="Of each micrograph (without the defocus of each particle its mean defocus, too), or of "
                           "each particle, which asks for much signal.")  # fmt: skip
        form.addParam("beamTilt", params.BooleanParam, default=True, label="Beam tilt of each optics group?",
                      help="Worth it beyond 4.5 A.")  # fmt: skip
        form.addParam("trefoil", params.BooleanParam, default=False, label="Trefoil of each optics group?",
                      help="Worth it beyond 3.5 A.")  # fmt: skip
        form.addParam("evenAberrations", params.BooleanParam, default=False, label="Even aberrations of each group?",
                      help="To the fourth order: spherical aberration, tetrafoil ... Worth it beyond 3 A.")  # fmt: skip
        form.addParam("magnification", params.BooleanParam, default=False,
                      label="Anisotropic magnification of each group?",
                      help="Where the microscope stretches images along one axis, by a few parts in a hundred.")
        form.addParam("defocusRange", params.FloatParam, default=2000.0, validators=[params.GE(1)],
                      label="Largest change of a defocus (A)",
                      help="From the one that there is, up or down. More where specimens are tilted; the summary "
                           "says how many particles have come to the bound.")  # fmt: skip
        form.addParam("defocusPrior", params.FloatParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Width of a prior on changes (A)",
                      help="Where the noise of a particle is as large as what is to be found, the part of the "
                           "changes beyond noise, which the summary shows, is a good one. 0: the range.")  # fmt: skip
        form.addParam("resolution", params.FloatParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Finest resolution compared (A)",
                      help="0: where the FSC of the half maps falls below 0.143.")  # fmt: skip
        form.addParam("particleDiameter", params.FloatParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Particle diameter (A)",
                      help="Of the sphere that takes the place of a mask. 0: 90 % of the box.")
        form.addParam("rounds", params.IntParam, default=0, validators=[params.GE(0)],
                      expertLevel=params.LEVEL_ADVANCED, label="Rounds",
                      help="0: two where different things are refined, each of which is seen through the others, else "
                           "one.")  # fmt: skip
        form.addParam("leastParticles", params.IntParam, default=100, validators=[params.GE(1)],
                      expertLevel=params.LEVEL_ADVANCED, label="Fewest particles of a group",
                      help="Optics groups with fewer keep their aberrations and magnification.")  # fmt: skip
        form.addParallelSection(threads=4, mpi=0)

    # ----------------------------------------------------------------------------------------------------- settings
    def _inputObjects(self):
        return self.inputParticles.get(), self.inputVolume.get(), self.maskVolume.get()

    def _engineSettings(self):
        volume, mask = self.inputVolume.get(), self.maskVolume.get()
        halves = half_maps(volume) or (None, None)
        astigmatism = ASTIGMATISM[self.astigmatism.get()]
        return OrderedDict([
            ("particles", os.path.abspath(self._getExtraPath(PARTICLES))), ("half1", halves[0]), ("half2", halves[1]),
            ("output", os.path.abspath(self._getExtraPath())),
            ("mask", None if mask is None else absolute(mask.getFileName())),
            ("pixel_size", float(volume.getSamplingRate())),
            ("defocus", self.defocus.get()), ("astigmatism", None if astigmatism == "no" else astigmatism),
        ] + [(setting, self.getAttributeValue(name)) for name, setting, _ in OF_GROUPS] + [
            ("defocus_range", self.defocusRange.get()), ("defocus_prior", engine_value(self.defocusPrior.get())),
            ("resolution", self.resolution.get()), ("particle_diameter", engine_value(self.particleDiameter.get())),
            ("rounds", engine_value(self.rounds.get())), ("least_particles", self.leastParticles.get()),
            ("threads", self._threads()),
        ])  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- steps
    def _createOutputs(self):
        path = self._getExtraPath(REFINED)
        rows = convert.read_results(path)
        refined = self._outputSet(lambda particle, row: convert.update_ctf(particle, rows[particle.getObjId()]), path)
        self._defineOutputs(outputParticles=refined)
        self._defineTransformRelation(self.inputParticles, refined)
        self._defineSourceRelation(self.inputVolume, refined)

    # ----------------------------------------------------------------------------------------------------- messages
    def _asked(self):
        """What is to be refined, in words."""
        found = ["the defocus of each particle"] if self.defocus.get() else []
        if self.astigmatism.get():
            found.append("the astigmatism of each %s" % ASTIGMATISM[self.astigmatism.get()])
        return found + [words for name, _, words in OF_GROUPS if self.getAttributeValue(name)]

    def _validate(self):
        particles, volume, mask = self.inputParticles.get(), self.inputVolume.get(), self.maskVolume.get()
        errors = self._originalErrors()
        if not self._asked():
            errors.append("Nothing is to be refined: say Yes to the defocus, or to anything below it.")
        box, pixel_size = 0, 0.0
        if particles is not None:
            errors += self._particleErrors(particles)
            box, pixel_size = particles.getDim()[0] if particles.getDim() else 0, particles.getSamplingRate()
        if box and self.particleDiameter.get() > box * pixel_size:
            errors.append("The particle diameter is larger than the box of %.0f A." % (box * pixel_size))
        if volume is not None:
            halves = half_maps(volume)
            if halves is None:
                errors.append("The volume has no half maps: choose one that a refinement has made, or import it with "
                              "them.")  # fmt: skip
            else:
                errors += ["The half map does not exist: %s" % name for name in halves if not os.path.exists(name)]
        if box:
            for what, other in (("The volume", volume), ("The mask", mask)):
                errors += check_same_grid(what, other, box, pixel_size) if other is not None else []
        return errors

    def _particleErrors(self, particles):
        errors = []
        if not particles.hasCTF():
            errors.append("The particles have no CTF that could be refined.")
        if not particles.hasAlignmentProj() or convert.are_alike(self._firstAlignments()):
            errors.append("CTFs are refined at the 3D alignments of a refinement, and these particles have none.")
        if not self._hasHalfSets():
            errors.append("The particles have no half sets in Scipion, and each is compared with the map of its own "
                          "half set. Give the original STAR or .cs file, or the particles of a refinement that keeps "
                          "them.")  # fmt: skip
        if particles.isPhaseFlipped():
            errors.append("The images are phase-flipped: a CTF that was applied to images cannot be refined. Extract "
                          "them without it.")  # fmt: skip
        return errors

    def _summary(self):
        lines, numbers = self._conversionLines(), self._readJson(NUMBERS)
        if not numbers:
            return lines + ["Not finished yet."]
        lines.append("%d particles were compared to %.2f A." % (numbers["particles"], numbers["resolution"]))
        found = numbers.get("defocus")
        if found:
            lines.append("Defocus: changed by %.0f A rms, of which %.0f A are beyond noise; %d at the bound."
                         % (found["rms_change"], found["spread"], found["at_bound"]))  # fmt: skip
            if found["median_error"] is not None:
                lines.append("By noise a defocus is uncertain by %.0f A." % found["median_error"])
                if found["spread"] < 0.3 * found["median_error"]:
                    lines.append("Next to nothing of that is beyond noise: the defoci that there were are as good.")
        groups = numbers["optics_groups"]
        for group in groups[:MOST_GROUPS]:
            lines += self._groupLines(group)
        if len(groups) > MOST_GROUPS:
            lines.append("... and %d more optics groups, in extra/%s." % (len(groups) - MOST_GROUPS, NUMBERS))
        return lines

    def _groupLines(self, group):
        if not group["refined"] and any(self.getAttributeValue(name) for name, _, _ in OF_GROUPS):
            return ["%s: too few particles (%d) for its aberrations." % (group["name"], group["particles"])]
        parts = []
        if "beam_tilt" in group:
            error = group["beam_tilt"]["error"]
            parts.append("beam tilt (%.3f, %.3f) mrad" % tuple(group["beam_tilt"]["refined"])
                         + (", uncertain by (%.3f, %.3f)" % tuple(error) if error else ""))  # fmt: skip
        for name, words in (("odd_zernike", "odd aberrations"), ("even_zernike", "even aberrations")):
            if name in group and (name == "even_zernike" or self.trefoil.get()):
                parts.append("%s: %s" % (words, " ".join("%.3g" % value for value in group[name]["refined"])))
        if "magnification" in group:
            parts.append("anisotropy %.2f %%" % group["magnification"]["anisotropy_percent"])
        return ["%s: %s." % (group["name"], ", ".join(parts))] if parts else []

    def _methods(self):
        numbers = self._readJson(NUMBERS)
        if not hasattr(self, "outputParticles") or not numbers:
            return []
        asked = self._asked()
        words = ", ".join(asked[:-1]) + " and " + asked[-1] if len(asked) > 1 else asked[0]
        return ["For %d particles %s were refined [Zivanov2018][Zivanov2020] at fixed poses with sparsecv, each "
                "particle against the map of its own half set without its own contribution, to %.2f A."
                % (numbers["particles"], words, numbers["resolution"])]  # fmt: skip

    def _citations(self):
        return ["Zivanov2018", "Zivanov2020"]
