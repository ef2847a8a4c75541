# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam between the refinement loop and the priors on a map.

After backprojection only the sums B and N of a half's two quarters are needed, whatever the prior. A regulariser turns
them into the next reference of *that* half. It never sees the other half; the FSC between the halves is the one thing
that crosses, as in every gold-standard refinement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sparsecv.engine.refine.volumes import Accumulator


@dataclass
class Evidence:
    """What a regulariser may use, for one half.

    Attributes
    ----------
    quarters
        Accumulators of the half's odd and even particles.
    previous
        (box, box, box) float32 reference of the iteration before, on the device.
    fsc
        (shells,) FSC between the unregularised halves.
    support
        (box, box, box) float32 soft mask, on the device: the sphere of the particle's diameter, or the user's mask.
    box, pixel_size
        Pixels, and A.
    """

    quarters: tuple[Accumulator, Accumulator]
    previous: Any
    fsc: np.ndarray
    support: Any
    box: int
    pixel_size: float


@dataclass
class Regularised:
    """The next reference of a half, and what its regulariser wants to show.

    Attributes
    ----------
    reference
        (box, box, box) float32 on the device: aligned against, never reported as a result.
    band
        Highest shell that the reference supports for alignment, or None to leave it to the FSC.
    shown
        Named numbers, curves and maps for the report.
    """

    reference: Any
    band: int | None = None
    shown: dict[str, Any] = field(default_factory=dict)


class Regulariser(Protocol):
    """A prior on maps."""

    @property
    def name(self) -> str:
        """What ``--regulariser`` calls it."""
        ...

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        """The next reference from the sums of one half."""
        ...
