# SPDX-License-Identifier: GPL-3.0-or-later
"""Wizards of the Scipion plugin."""

from sparsecv.wizards.wizards import (
    SparseCvColourWizard,
    SparseCvDiameterWizard,
    SparseCvLowPassWizard,
    SparseCvSymmetryWizard,
)

__all__ = ["SparseCvColourWizard", "SparseCvDiameterWizard", "SparseCvLowPassWizard", "SparseCvSymmetryWizard"]
