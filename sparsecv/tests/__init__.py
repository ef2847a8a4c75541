# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the Scipion plugin: by ``make test`` through pytest, or by ``scipion3 tests sparsecv``."""
