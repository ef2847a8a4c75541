# SPDX-License-Identifier: GPL-3.0-or-later
"""Protocols of the Scipion plugin."""

from sparsecv.protocols.protocol_ctf_refine import SparseCvProtCtfRefine
from sparsecv.protocols.protocol_maps import SparseCvProtNuFilter, SparseCvProtPostprocess
from sparsecv.protocols.protocol_model_fsc import SparseCvProtModelFsc
from sparsecv.protocols.protocol_refine import SparseCvProtNonUniform, SparseCvProtRefine

__all__ = [
    "SparseCvProtCtfRefine",
    "SparseCvProtModelFsc",
    "SparseCvProtNonUniform",
    "SparseCvProtNuFilter",
    "SparseCvProtPostprocess",
    "SparseCvProtRefine",
]
