# SPDX-License-Identifier: GPL-3.0-or-later
"""Finished refinements of the same particles side by side: poses, maps and curves in one frame, mask and grid."""
