# SPDX-License-Identifier: GPL-3.0-or-later
"""Viewers of the Scipion plugin."""

from sparsecv.viewers.viewers import SparseCvMapViewer, SparseCvModelViewer, SparseCvRefineViewer

__all__ = ["SparseCvMapViewer", "SparseCvModelViewer", "SparseCvRefineViewer"]
