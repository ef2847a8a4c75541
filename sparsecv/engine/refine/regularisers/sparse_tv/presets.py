# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters published for the five data sets of [Luo2019], section 3, by name.

alpha is in units of rms(A^H D y) eps, beta of rms(A^H D y) eps', gamma of mean N; eps and eps' are densities of a map
whose projections have the grey scale of normalised images. The data sets themselves are in the comments.
"""

from __future__ import annotations

from sparsecv.engine.refine.regularisers.sparse_tv.strengths import PaperUnits

PRESETS: dict[str, PaperUnits] = {
    # D2, from 50 A [Vinothkumar2014]
    "beta-galactosidase": PaperUnits(alpha=0.5, beta=1.8, gamma=0.05, epsilon=0.1, epsilon_gradient=0.1 / 3),
    # C1, from 70 A, EMPIAR-10002 [Bai2013]
    "80s-ribosome": PaperUnits(alpha=0.4, beta=1.6, gamma=0.05, epsilon=0.1, epsilon_gradient=0.1 / 3),
    # C3, from 40 A, EMPIAR-10097; beta 2.4 in the text's summary, 2.6 in its scan
    "ha-trimer": PaperUnits(alpha=0.4, beta=2.4, gamma=0.2, epsilon=0.015, epsilon_gradient=0.005),
    # from 20 A, EMPIAR-10099
    "hrd1-hrd3": PaperUnits(alpha=0.4, beta=1.2, gamma=0.1, epsilon=0.01, epsilon_gradient=0.005),
    # C2, from 40 A, EMPIAR-10123
    "tmem16a": PaperUnits(alpha=0.5, beta=2.0, gamma=0.1, epsilon=0.01, epsilon_gradient=0.01),
}
