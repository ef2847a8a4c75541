# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a map is: Fourier shell correlation, post-processing, and the files that carry them."""
