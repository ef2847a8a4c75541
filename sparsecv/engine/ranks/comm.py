# SPDX-License-Identifier: GPL-3.0-or-later
"""What ranks do together; here for a single one, to which everything belongs.

The list of all particles, half set 1 before half set 2, is cut into pieces of equal length, one for each rank: with two
ranks each has a half set of its own, and no rank but one in the middle has particles of both. Sums of a half set end at
its *owner*, the first rank for half set 1 and the last for half set 2; there the map is solved and regularised. All
that is decided is decided by the first rank, the *root*, which alone writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
SNAP = 0.05  # of a piece: a boundary this close to the border of the half sets is moved there


@dataclass(frozen=True)
class Shares:
    """Which particles of the two half sets each rank has.

    Attributes
    ----------
    sizes
        Particles of half set 1 and 2.
    bounds
        (ranks + 1,) ascending: rank r has the places bounds[r] to bounds[r + 1] of the list of both half sets.
    """

    sizes: tuple[int, int]
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, first: int, second: int, ranks: int) -> Shares:
        """Equal pieces, but that a border between the half sets that is nearly met is met."""
        total = first + second
        bounds = [rank * total // ranks for rank in range(ranks + 1)]
        slack = SNAP * total / ranks
        for rank in range(1, ranks):
            if abs(bounds[rank] - first) <= slack:
                bounds[rank] = first
        return cls((first, second), tuple(bounds))

    def piece(self, rank: int, number: int) -> slice:
        """Places in half set ``number``, 0 or 1, that a rank has; may be empty."""
        start, size = number * self.sizes[0], self.sizes[number]
        low, high = (min(max(self.bounds[rank + side] - start, 0), size) for side in (0, 1))
        return slice(low, high)

    def sharers(self, number: int) -> list[int]:
        """Ranks that have particles of half set ``number``; its owner is always among them."""
        found = []
        for rank in range(len(self.bounds) - 1):
            piece = self.piece(rank, number)
            if piece.stop > piece.start:
                found.append(rank)
        return found


class Comm:
    """What ranks do together: all of them call the same methods in the same order. This one is alone.

    Attributes
    ----------
    rank, size
        Number of this rank from 0, and of how many.
    local_rank, local_size
        The same among the ranks on this machine.
    core_sharers
        How many of these may use the same cores as this one.
    """

    rank, size = 0, 1
    local_rank, local_size = 0, 1
    core_sharers = 1

    @property
    def is_root(self) -> bool:
        """Whether this rank decides and writes."""
        return self.rank == 0

    def owner(self, number: int) -> int:
        """Rank at which half set ``number``, 0 or 1, is solved and regularised."""
        return 0 if number == 0 else self.size - 1

    def owns(self, number: int) -> bool:
        """Whether this rank is the owner of half set ``number``."""
        return self.rank == self.owner(number)

    def at_root(self, make: Callable[[], T]) -> T:
        """What ``make`` returns at the root, at every rank; it is called at the root only."""
        return make()

    def of_halves(self, make: Callable[[int], T]) -> tuple[T, T]:
        """``(make(0), make(1))`` at the root, each made by the owner of that half set; undefined at other ranks."""
        return make(0), make(1)

    def from_owner(self, number: int, sharers: Sequence[int], make: Callable[[], T]) -> T:
        """What ``make`` returns at the owner of a half set, at its sharers, which alone call this."""
        return make()

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in their order, at the root; an empty list elsewhere."""
        return [value]

    def add_up(self, number: int, sharers: Sequence[int], arrays: Sequence[Any]) -> None:
        """Sum arrays over the sharers of half set ``number`` in place at its owner; elsewhere they are spoilt.

        Parameters
        ----------
        arrays
            Of the kernels' ``SUMS``, contiguous, on the host or on the device; none for ranks that are no sharers.
        """

    def at_root_from_owner(self, number: int, arrays: Sequence[Any]) -> Sequence[Any]:
        """Arrays of the owner of a half set at the root: on the host, or the same ones if the root is the owner."""
        return arrays

    def report_to(self, status_file: Path) -> None:
        """Where the reason is written, should the root be killed, or end because another rank was."""

    def fail(self, status: int, line: str) -> None:
        """End all ranks with an exit status and one line, because this one has failed; returns if it is alone."""

    def close(self) -> None:
        """Wait for all ranks and part in peace: from here on, the end of another rank is no failure."""


ALONE = Comm()


def summed(values: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of arrays in their order, so that the result does not depend on which of them comes first."""
    total = values[0].copy()
    for value in values[1:]:
        total += value
    return total
