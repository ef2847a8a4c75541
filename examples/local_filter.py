# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters two half maps that are arrays: each place as finely as the two predict each other there."""

from __future__ import annotations

import numpy as np
from half_maps import BOX, PIXEL_SIZE, made

from sparsecv.engine.api import nu_filter


def main() -> None:
    """Half of the body is fine-grained: filters find out which."""
    first, second, truth = made()
    found = nu_filter(first, second, PIXEL_SIZE, threads=2)
    inside = truth > 0
    right = np.arange(BOX) > BOX // 2
    for side, where in (("fine", right), ("coarse", ~right)):
        print(f"{side} side: median band limit {np.median(found.chosen[inside & where]):.1f} A")
    for label, density in (("mean of the half maps", (first + second) / 2), ("filtered", found.map)):
        print(f"{label}: correlation with the truth {np.corrcoef(density.ravel(), truth.ravel())[0, 1]:.3f}")


if __name__ == "__main__":
    main()
