# SPDX-License-Identifier: GPL-3.0-or-later
"""The non-uniform regulariser: the half's map, filtered as finely at each place as its own quarters allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.base import Evidence, Regularised
from sparsecv.engine.refine.regularisers.nonuniform.bank import Bank
from sparsecv.engine.refine.regularisers.nonuniform.families import Butterworth, Family, Filtered
from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps, on_grid, resampled
from sparsecv.engine.refine.regularisers.nonuniform.selection import Rule
from sparsecv.engine.refine.schedule import BAND_MARGIN, band_of
from sparsecv.engine.validate.fsc import fsc

BAND_LIMIT = "bandlimit"  # name of theta among the maps that are shown


@dataclass(frozen=True)
class NonUniform:
    """Cross-validated local filters [Punjani2020].

    Attributes
    ----------
    bank
        Of the low-pass filters.
    family
        What is chosen from; None: the bank's filters.
    rule
        How candidates are compared.
    share
        Part of the signal's voxels (those that are not left to the coarsest filter) that must use a filter for it to
        count in the band of the alignment: a lone voxel must not widen it.
    whitened
        Whether errors are weighted by the noise at their distance from the centre.
    confidence
        Of the log-likelihood in local searches: references have little noise where there is little signal.
    """

    bank: Bank = field(default_factory=Bank)
    family: Family | None = None
    rule: Rule = field(default_factory=Rule)
    share: float = 0.01
    whitened: bool = True
    name: str = "nonuniform"
    confidence: float = 1.0

    @property
    def shows_halves(self) -> bool:
        """Whether there are maps of band limits to be shown."""
        return self.shows_band_limits

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        """The half's map through the filters that its own quarters have chosen, inside the particle's sphere.

        Outside of a mask the coarsest candidate holds.
        """
        maps, found = self.filtered(ops, evidence)
        selection, box = found.selection, evidence.box
        reference = resampled(ops, selection.whole, box) * evidence.sphere
        chosen = ops.to_host(selection.chosen)
        inside = ops.to_host(maps.weight) > 0
        counts = np.bincount(chosen[inside], minlength=len(found.values))
        shown: dict[str, Any] = {"share": (counts / max(counts.sum(), 1)).tolist()}
        volumes = {}
        if self.chosen_family.is_band_limit:
            theta = maps.length / found.values
            shown |= {"band_limits": theta.tolist(), "band": self._band(counts, found.values)}
            volumes[BAND_LIMIT] = on_grid(np, theta.astype(np.float32)[chosen], box)
        else:
            shown["strengths"] = found.values.tolist()
        return Regularised(reference.astype(np.float32), evidence.memory, shown, volumes)

    def filtered(
        self, ops: Any, evidence: Evidence, *, keep_predictions: bool = False
    ) -> tuple[RawMaps, Filtered]:  # fmt: skip
        """The raw maps of a half's quarters, and what the family has chosen of them."""
        maps = RawMaps.of(ops, evidence, whitened=self.is_whitened, full=self.chosen_family.is_full)
        return maps, self.chosen_family.apply(ops, maps, evidence, self.rule, keep_predictions=keep_predictions)

    @property
    def chosen_family(self) -> Family:
        """The family given, or the bank's filters."""
        return self.family or Butterworth(self.bank)

    @property
    def shows_band_limits(self) -> bool:
        """Whether theta is a wavelength."""
        return self.chosen_family.is_band_limit

    @property
    def is_whitened(self) -> bool:
        """Whether errors are weighted by the noise; equation 6 as it stands does not."""
        return self.whitened and not self.rule.is_literal

    def _band(self, counts: np.ndarray, cutoffs: np.ndarray) -> int:
        """Last shell of the finest filter that a share of the signal's voxels uses."""
        at_least = np.cumsum(counts[::-1])[::-1]
        used = np.flatnonzero(at_least >= max(self.share * int(counts[1:].sum()), 1))
        return self.bank.reach(float(cutoffs[used[-1]] if len(used) else cutoffs[0]))

    def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
        """Two shells beyond what the finest filter in use passes in both halves; by their FSC for other families."""
        if self.chosen_family.is_band_limit:
            return min(int(one.shown["band"]) for one in (first, second)) + BAND_MARGIN
        references = [ops.to_host(one.reference) for one in (first, second)]
        return band_of(fsc(*references)) if all(reference.any() for reference in references) else None
