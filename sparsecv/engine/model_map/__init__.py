# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation of a map against an atomic model: placement, Fourier shell correlation, scores of residues and atoms."""
