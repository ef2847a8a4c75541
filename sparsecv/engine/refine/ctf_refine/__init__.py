# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinement of what the CTF and the optics are thought to be, from particles whose poses are known."""
