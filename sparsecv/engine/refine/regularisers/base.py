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
        Accumulators of the half's odd and even particles, wherever they are kept: `Accumulator.on_device` brings one.
    previous
        (box, box, box) float32 reference of the iteration before, on the device, in the frame of the quarters.
    fsc
        (shells,) FSC between the unregularised halves.
    support
        (box, box, box) float32 soft mask, on the device: the sphere of the particle's diameter, or the user's mask.
    sphere
        (box, box, box) float32, on the device: that sphere in any case; images show nothing beyond it.
    box, pixel_size
        Pixels, and A.
    iteration
        Number of this iteration, from 1.
    band
        Highest shell that the expectation step of this iteration compared.
    memory
        What the regulariser returned as ``Regularised.memory`` for this half in the iteration before.
    """

    quarters: tuple[Accumulator, Accumulator]
    previous: Any
    fsc: np.ndarray
    support: Any
    sphere: Any
    box: int
    pixel_size: float
    iteration: int = 1
    band: int = 0
    memory: dict[str, float] = field(default_factory=dict)

    def total(self, ops: Any) -> Accumulator:
        """Sums of both quarters, on the device."""
        return (self.quarters[0] + self.quarters[1]).on_device(ops)


@dataclass
class Regularised:
    """The next reference of a half, and what its regulariser wants to keep and to show.

    Attributes
    ----------
    reference
        (box, box, box) float32 on the device: aligned against, never reported as a result.
    memory
        Numbers that the regulariser of this half needs in the next iteration; they are part of a checkpoint.
    shown
        Plain numbers and lists of this iteration, for ``status.json`` and the report.
    volumes
        Maps to be shown by name, (box, box, box) float32 on the host: ``bandlimit``, A.
    """

    reference: Any
    memory: dict[str, float] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    volumes: dict[str, np.ndarray] = field(default_factory=dict)


class Regulariser(Protocol):
    """A prior on maps."""

    @property
    def name(self) -> str:
        """What ``--regulariser`` calls it."""
        ...

    @property
    def confidence(self) -> float:
        """Factor of the log-likelihood in local searches against its references: see ``SearchPlan``."""
        ...

    @property
    def shows_halves(self) -> bool:
        """Whether the last iteration, too, is to regularise each half, for what is shown of it."""
        ...

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        """The next reference from the sums of one half."""
        ...

    def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
        """Highest shell that the references of the halves support, or None to leave it to the FSC.

        It limits what the next search compares, and is no resolution.
        """
        ...
