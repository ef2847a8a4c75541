# SPDX-License-Identifier: GPL-3.0-or-later
"""Non-uniform filtering [Punjani2020]: local filters, chosen by what one quarter of a half says about the other."""

from sparsecv.engine.refine.regularisers.nonuniform.bank import Bank
from sparsecv.engine.refine.regularisers.nonuniform.families import Butterworth, LocalWiener, SparseTvStrength
from sparsecv.engine.refine.regularisers.nonuniform.local_filter import disagreement, filter_locally, mean_band_limit
from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps
from sparsecv.engine.refine.regularisers.nonuniform.regulariser import BAND_LIMIT, NonUniform
from sparsecv.engine.refine.regularisers.nonuniform.selection import Rule

__all__ = ["BAND_LIMIT", "Bank", "Butterworth", "LocalWiener", "NonUniform", "RawMaps", "Rule", "SparseTvStrength",
           "disagreement", "filter_locally", "mean_band_limit"]  # fmt: skip
