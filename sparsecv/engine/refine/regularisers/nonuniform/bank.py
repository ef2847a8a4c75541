# SPDX-License-Identifier: GPL-3.0-or-later
"""The bank of low-pass filters: how many, how steep, from where to where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LAST_GAIN = 0.1  # of the finest filter in use, at the last shell that is compared


@dataclass(frozen=True)
class Bank:
    """Butterworth filters with cut-offs equispaced in frequency [Punjani2020, section 5].

    Attributes
    ----------
    filters
        How many, at least 1.
    order
        Of the filters.
    coarsest
        Wavelength of the first, A: what is kept wherever nothing else predicts better.
    """

    filters: int = 12
    order: int = 8
    coarsest: float = 25.0

    def cutoffs(self, length: float, last_shell: int) -> np.ndarray:
        """Cut-offs in shells, ascending, float64: from the coarsest to the last shell with data.

        Parameters
        ----------
        length
            Side of the box, A: shell s has the wavelength length / s.
        """
        first = min(length / self.coarsest, float(last_shell))
        if self.filters == 1 or last_shell - first < 1:
            return np.array([first if self.filters > 1 else float(last_shell)])
        return np.linspace(first, float(last_shell), self.filters)

    def reach(self, cutoff: float) -> int:
        """Last shell of which a filter leaves a tenth of the amplitude."""
        return int(cutoff * (1 / LAST_GAIN**2 - 1) ** (0.5 / self.order))
