# SPDX-License-Identifier: GPL-3.0-or-later
"""Projections that relion_project has made, and how."""
