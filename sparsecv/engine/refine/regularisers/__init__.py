# SPDX-License-Identifier: GPL-3.0-or-later
"""Priors on maps, one module each, behind the seam of :mod:`.base`."""

from sparsecv.engine.refine.regularisers.base import Evidence, Regularised, Regulariser
from sparsecv.engine.refine.regularisers.wiener import Wiener

__all__ = ["Evidence", "Regularised", "Regulariser", "Wiener"]
