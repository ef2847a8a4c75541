# SPDX-License-Identifier: GPL-3.0-or-later
"""Wizards that help to fill the protocols' forms; Scipion looks for them by name in this module."""
