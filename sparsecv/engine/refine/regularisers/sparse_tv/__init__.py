# SPDX-License-Identifier: GPL-3.0-or-later
"""The sparse + total-variation prior [Luo2019], its strengths chosen by held-out data inside each half set."""

from sparsecv.engine.refine.regularisers.sparse_tv.presets import PRESETS
from sparsecv.engine.refine.regularisers.sparse_tv.regulariser import SparseTv
from sparsecv.engine.refine.regularisers.sparse_tv.strengths import Kappas, NoiseUnits, PaperUnits

__all__ = ["PRESETS", "Kappas", "NoiseUnits", "PaperUnits", "SparseTv"]
