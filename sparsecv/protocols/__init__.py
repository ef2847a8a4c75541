# SPDX-License-Identifier: GPL-3.0-or-later
"""Protocols that Scipion offers; it looks for them by name in this module."""
