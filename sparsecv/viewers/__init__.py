# SPDX-License-Identifier: GPL-3.0-or-later
"""Viewers that Scipion offers for the results of the protocols; it looks for them by name in this module."""
