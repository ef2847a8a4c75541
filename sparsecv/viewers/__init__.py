# SPDX-License-Identifier: GPL-3.0-or-later
"""Viewers of the Scipion plugin."""

from sparsecv.viewers.viewers import SparseCvCtfViewer, SparseCvMapViewer, SparseCvModelViewer, SparseCvRefineViewer

__all__ = ["SparseCvCtfViewer", "SparseCvMapViewer", "SparseCvModelViewer", "SparseCvRefineViewer"]
