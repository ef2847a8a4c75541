# SPDX-License-Identifier: GPL-3.0-or-later
"""Physics of image formation: CTF, rotations, symmetry, sampling, masks, Fourier transforms."""
