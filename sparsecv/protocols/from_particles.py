# SPDX-License-Identifier: GPL-3.0-or-later
"""What protocols share that give the engine a set of particles: how it is written, and what importers have dropped."""

import os

import pyworkflow.protocol.params as params

from sparsecv import convert
from sparsecv.protocols.base import EngineProtocol

PARTICLES, SAID = "input_particles.star", "conversion.txt"


class ParticleProtocol(EngineProtocol):
    """Mixed into protocols whose ``inputParticles`` become a STAR file."""

    def _defineOriginal(self, form):
        form.addParam("originalFile", params.FileParam, default="", expertLevel=params.LEVEL_ADVANCED,
                      label="Original STAR or .cs file",
                      help="The file that the particles were imported from. Scipion's importers drop half sets "
                           "(cryoSPARC) and optics groups (RELION); with this file they are recovered. The particles "
                           "are found again by the name of their stack and their number in it.")  # fmt: skip
        form.addParam("invertContrast", params.BooleanParam, default=False, expertLevel=params.LEVEL_ADVANCED,
                      label="Particles are black?",
                      help="Yes, if the particles are darker than their surroundings.")  # fmt: skip

    def _convertSettings(self):
        return self.originalFile.get(""), self.invertContrast.get()

    def convertInputStep(self, mark):
        """Write the particles as a STAR file, and say what was lost on the way to here."""
        said = convert.write_particles(self.inputParticles.get(), self._getExtraPath(PARTICLES),
                                       self.originalFile.get("") or None, self.invertContrast.get())  # fmt: skip
        for text in said:
            self.warning(text)
        with open(self._getExtraPath(SAID), "w") as out:
            out.write("\n".join(said))
        return [self._getExtraPath(PARTICLES)]

    def _outputSet(self, update, path):
        """A set of the input's particles, each changed by a function of it, with the optics groups of a STAR file."""
        particles = self.inputParticles.get()
        found = self._createSetOfParticles()
        found.copyInfo(particles)
        found.setAlignmentProj()
        convert.set_optics(found, path)
        found.copyItems(particles, updateItemCallback=update, doClone=False)
        return found

    def _conversionLines(self):
        return [text for text in self._readText(SAID).splitlines() if text]

    def _originalErrors(self):
        original = self.originalFile.get("")
        if original and not os.path.isfile(original):
            return ["The original file does not exist: %s" % original]
        if original and not original.endswith((".star", ".cs")):
            return ["The original file must be a .star or a .cs file: %s" % original]
        return []

    def _hasHalfSets(self):
        """Whether the particles have half sets, or the original file may give them back."""
        particles = self.inputParticles.get()
        return bool(self.originalFile.get("")) or particles.getFirstItem().hasAttribute("_rlnRandomSubset")

    def _firstAlignments(self):
        """Those of the first particles: enough to see that there are none, and read in no time."""
        return [convert.matrix_of(particle) for particle in self.inputParticles.get().iterItems(limit=20)]
