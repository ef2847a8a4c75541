# SPDX-License-Identifier: GPL-3.0-or-later
"""Wizards: the particle's diameter and the low-pass filter by eye, the symmetry from a list, the colour scale."""

from pwem import constants
from pwem.wizards import (
    BandPassFilterDialog,
    ColorScaleWizardBase,
    EmWizard,
    FilterVolumesWizard,
    ParticleMaskRadiusWizard,
)
from pyworkflow.gui import dialog
from pyworkflow.gui.tree import ListTreeProviderString
from pyworkflow.object import String

from sparsecv.protocols import SparseCvProtCtfRefine, SparseCvProtNonUniform, SparseCvProtRefine
from sparsecv.viewers import SparseCvMapViewer, SparseCvRefineViewer

REFINEMENTS = (SparseCvProtRefine, SparseCvProtNonUniform)
GROUPS = (
    ["C1"] + ["C%d" % n for n in range(2, 13)] + ["D%d" % n for n in range(2, 9)]
    + ["D%dY" % n for n in (3, 5, 7)] + ["T", "O", "I1", "I2", "I3", "I4"]
)  # fmt: skip


class SparseCvDiameterWizard(ParticleMaskRadiusWizard):
    """A circle on the particles."""

    _targets = [(protocol, ["particleDiameter"]) for protocol in REFINEMENTS + (SparseCvProtCtfRefine,)]

    def _getProvider(self, protocol):
        return ParticleMaskRadiusWizard._getListProvider(self, protocol.inputParticles)

    def show(self, form, *args):
        particles = form.protocol.inputParticles.get()
        if particles is None:
            dialog.showWarning("No particles", "Choose the particles first.", form.root)
            return
        radius = form.protocol.particleDiameter.get() / 2 or 0.45 * particles.getDim()[0] * particles.getSamplingRate()
        ParticleMaskRadiusWizard.show(self, form, radius, "particleDiameter", units=constants.UNIT_ANGSTROM)

    def setVar(self, form, label, value):
        form.setVar(label, 2 * value)


class LowPassDialog(BandPassFilterDialog):
    """The middle slice, through the filter alone: Scipion's own takes the lowest frequencies away, too."""

    def getLowFreq(self):
        return 0.0


class SparseCvLowPassWizard(FilterVolumesWizard):
    """The starting map through the filter."""

    _targets = [(protocol, ["initialLowPass"]) for protocol in REFINEMENTS]

    def _getProvider(self, protocol):
        return FilterVolumesWizard._getListProvider(self, protocol.referenceVolume)

    def show(self, form, *args):
        provider = self._getProvider(form.protocol)
        if provider is None:
            dialog.showWarning("No starting map", "Choose the starting map first.", form.root)
            return
        chosen = LowPassDialog(form.root, provider, showLowFreq=False, showDecay=False, unit=constants.UNIT_ANGSTROM,
                               highFreq=form.protocol.initialLowPass.get() or 40.0)  # fmt: skip
        if chosen.resultYes():
            form.setVar("initialLowPass", round(chosen.samplingRate / chosen.getHighFreq(), 1))


class SparseCvSymmetryWizard(EmWizard):
    """Point groups to choose from."""

    _targets = [(protocol, ["symmetry"]) for protocol in REFINEMENTS]

    def show(self, form, *args):
        provider = ListTreeProviderString([String(name) for name in GROUPS])
        chosen = dialog.ListDialog(form.root, "Point group", provider,
                                   "RELION's frames; DnY has a 2-fold axis along y, as cryoSPARC's Dn.")  # fmt: skip
        if chosen.values:
            form.setVar("symmetry", chosen.values[0].get())


class SparseCvColourWizard(ColorScaleWizardBase):
    """Colours of band limits."""

    _targets = ColorScaleWizardBase.defineTargets(SparseCvRefineViewer, SparseCvMapViewer)
