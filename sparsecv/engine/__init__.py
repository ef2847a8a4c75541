# SPDX-License-Identifier: GPL-3.0-or-later
"""The refinement engine: everything that runs outside Scipion, in Python >= 3.10."""
