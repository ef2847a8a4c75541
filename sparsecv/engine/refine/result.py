# SPDX-License-Identifier: GPL-3.0-or-later
"""What a refinement hands to a program that called it: each iteration as it ends, and the results as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.refine.loop import Iteration, Refinement
from sparsecv.engine.refine.outputs import HALF_MAP, MAP, REGULARISED_MAP, REJECTED
from sparsecv.engine.validate.fsc import Resolution
from sparsecv.engine.validate.postprocess import PostprocessResult


@dataclass(frozen=True)
class FinishedIteration:
    """An iteration that has just ended; arrays are the refinement's own, and cannot be written to.

    Attributes
    ----------
    number
        From 1.
    is_last
        Whether it was the joined last one.
    entry
        Its numbers, as in the history of ``status.json``.
    half_maps
        (box, box, box) float32, unregularised.
    references
        (box, box, box) float32, regularised: what the next search of each half compares with. No result.
    fsc
        (shells,) between the half maps inside the particle's sphere.
    joined
        (box, box, box) float32, the Wiener-filtered map of all particles; of the last iteration only.
    """

    number: int
    is_last: bool
    entry: Mapping[str, Any]
    half_maps: tuple[NDArray[np.float32], NDArray[np.float32]]
    references: tuple[NDArray[np.float32], NDArray[np.float32]]
    fsc: NDArray[np.float64]
    joined: NDArray[np.float32] | None

    @classmethod
    def of(cls, refinement: Refinement, iteration: Iteration) -> FinishedIteration:
        """What is shown of the iteration that a refinement has just ended."""
        state = refinement.state
        entry = state.history[-1]
        first, second = (_read_only(half.reference) for half in state.halves)
        return cls(
            state.iteration, entry["is_last"], MappingProxyType(entry),
            (_read_only(iteration.half_maps[0]), _read_only(iteration.half_maps[1])), (first, second),
            _read_only(iteration.fsc), None if iteration.joined is None else _read_only(iteration.joined),
        )  # fmt: skip


OnIteration = Callable[[FinishedIteration], object]


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    seen = array.view()
    seen.flags.writeable = False
    return seen


@dataclass
class RefineResult:
    """A finished refinement: where its files are, what it reached, the warnings to be read, and results as arrays.

    Arrays are read from the files of the run when they are first asked for.
    """

    output: Path
    history: list[dict[str, Any]]
    postprocess: PostprocessResult
    warnings: list[str]

    @property
    def map(self) -> NDArray[np.float32]:
        """(box, box, box): the average of the half maps, sharpened and filtered; not masked."""
        return self.postprocess.map

    @property
    def mask(self) -> NDArray[np.float32]:
        """(box, box, box) in [0, 1]: of the FSC."""
        return self.postprocess.mask

    @property
    def pixel_size(self) -> float:
        """A."""
        return self.postprocess.pixel_size

    @property
    def fsc(self) -> NDArray[np.float64]:
        """(shells,): of the half maps, from which the resolution is read."""
        return self.postprocess.fsc

    @property
    def resolution(self) -> Resolution:
        """What may be claimed, at 0.143."""
        return self.postprocess.resolution_0143

    @cached_property
    def half_maps(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(box, box, box) each: unregularised, unfiltered, unmasked."""
        first, second = (read_map(self.output / HALF_MAP.format(half)).data for half in (1, 2))
        return first, second

    @cached_property
    def joined(self) -> NDArray[np.float32]:
        """(box, box, box): the map of all particles, Wiener-filtered, inside the mask of the refinement."""
        return read_map(self.output / MAP).data

    @cached_property
    def regularised(self) -> NDArray[np.float32]:
        """(box, box, box): the map of all particles by the regulariser, to look at; ``joined`` by the Wiener filter."""
        path = self.output / REGULARISED_MAP
        return read_map(path).data if path.is_file() else self.joined

    @cached_property
    def particles(self) -> ParticleTable:
        """The kept particles, with ``rotations`` (n, 3, 3), map to image, ``shifts`` (n, 2), A, and ``halves`` (n,)."""
        return ParticleTable.read(self.output / "run_data.star", check_images=False)

    @cached_property
    def set_aside(self) -> dict[int, str]:
        """Reason for each particle that was set aside, by row of the input from 0."""
        table = StarFile.read(self.output / REJECTED).table("rejected")
        if len(table) == 0:
            return {}
        return {row - 1: reason for row, reason in zip(table.integers("sparsecvRow").tolist(),
                                                       table.strings("sparsecvReason"), strict=True)}  # fmt: skip

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Rows of the input, from 0, of ``particles``."""
        rows = np.arange(len(self.particles) + len(self.set_aside))
        return rows[~np.isin(rows, list(self.set_aside))]
