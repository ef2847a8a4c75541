# SPDX-License-Identifier: GPL-3.0-or-later
"""Priors on maps, one module each, behind the seam of :mod:`.base`."""

from .base import Evidence, Regularised, Regulariser
from .wiener import Wiener

__all__ = ["Evidence", "Regularised", "Regulariser", "Wiener"]
