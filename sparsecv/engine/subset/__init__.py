# SPDX-License-Identifier: GPL-3.0-or-later
"""Subsets of particles by what their STAR file says of them, chosen in each half set by itself."""
