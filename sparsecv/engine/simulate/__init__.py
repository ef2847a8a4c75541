# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated data sets: atoms, potential, detergent belts, exact projections, CTF and noise."""

from __future__ import annotations

from sparsecv.engine.simulate.dataset import SimulatedFiles, simulate
from sparsecv.engine.simulate.settings import SimulateSettings

__all__ = ["SimulateSettings", "SimulatedFiles", "simulate"]
