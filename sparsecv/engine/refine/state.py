# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that changes from iteration to iteration, as host arrays: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np


@dataclass
class HalfState:
    """What one half set knows; nothing in it may come from the other half.

    Attributes
    ----------
    reference
        (box, box, box) float32, aligned against.
    noise
        (optics groups, shells) sigma^2 per real component.
    scale
        (micrographs,) factor of the signal, mean 1.
    shift_sigma_px
        Width of the Gaussian prior on shifts, pixels.
    reach_px
        Radius of the search for shifts, pixels.
    local_sigma_deg
        Width of the Gaussian prior of a local search on rotations, degrees.
    memory
        What the regulariser keeps from iteration to iteration.
    """

    reference: np.ndarray
    noise: np.ndarray
    scale: np.ndarray
    shift_sigma_px: float
    reach_px: float
    local_sigma_deg: float
    memory: dict[str, float] = field(default_factory=dict)


@dataclass
class ParticleState:
    """What is known of each particle, arrays of shape (n, ...).

    Attributes
    ----------
    rotations, shifts_px
        Pose: A, and RELION's origin in pixels, which brings the particle to the centre of the box.
    norm
        Factor by which the image is divided.
    log_evidence, log_likelihood
        Log of the likelihood, over all poses, relative to that of an image without a particle; and with the image's own
        power and the norm of the noise, as RELION has it.
    best_probability, significant
        Largest posterior probability of one sample, number of samples with weight.
    spread_deg
        Root mean square rotation of the posterior about the pose.
    turned_deg, moved_px
        How far the last iteration took the pose.
    is_rejected
        Set aside: in no sum.
    defocus_change
        (n, 3) A: what the refinement has added to the `defocus_terms` of the table.
    """

    rotations: np.ndarray
    shifts_px: np.ndarray
    norm: np.ndarray
    log_evidence: np.ndarray
    log_likelihood: np.ndarray
    best_probability: np.ndarray
    significant: np.ndarray
    spread_deg: np.ndarray
    turned_deg: np.ndarray
    moved_px: np.ndarray
    is_rejected: np.ndarray
    defocus_change: np.ndarray

    @classmethod
    def start(cls, rotations: np.ndarray, shifts_px: np.ndarray) -> ParticleState:
        """State before the first iteration."""
        n = len(rotations)
        zeros = np.zeros(n)
        return cls(
            rotations.copy(), shifts_px.copy(), np.ones(n), zeros.copy(), zeros.copy(), zeros.copy(),
            np.zeros(n, dtype=np.int64), zeros.copy(), zeros.copy(), zeros.copy(), np.zeros(n, dtype=bool),
            np.zeros((n, 3)),
        )  # fmt: skip

    def of(self, rows: np.ndarray) -> ParticleState:
        """The state of some particles, copied."""
        return ParticleState(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})

    def put(self, rows: np.ndarray, part: ParticleState) -> None:
        """Take over the state of some particles."""
        for entry in fields(self):
            getattr(self, entry.name)[rows] = getattr(part, entry.name)


@dataclass
class RefinementState:
    """The whole state of a refinement.

    Attributes
    ----------
    iteration
        Number of finished iterations.
    particles
        Poses and qualities.
    halves
        Of half set 1 and 2.
    fsc
        (shells,) between the unregularised halves inside the sphere of the particle's diameter.
    band
        Highest shell that the next expectation step compares.
    stage
        Of the next iteration: ``"global"`` (all orientations), ``"local"`` (around the present poses) or ``"fine"``
        (local, with one more level at half the steps).
    history
        One dict of plain numbers per iteration.
    rejected
        Reason for each particle set aside, by row of the table.
    odd_change
        (optics groups, 6) rad: what the refinement has added to the odd phase of each, by monomials.
    """

    particles: ParticleState
    halves: tuple[HalfState, HalfState]
    fsc: np.ndarray
    band: int
    stage: str
    iteration: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    odd_change: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))

    @property
    def is_local(self) -> bool:
        """Whether the next iteration searches around the present poses."""
        return self.stage != "global"
