# SPDX-License-Identifier: GPL-3.0-or-later
"""What a case is, and how modules of the corpus list theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inputs import BOX, Inputs

REFUSED, ASIDE, ACCEPTED = "refused", "set aside", "accepted"
KINDS = ("images", "metadata", "maps", "numerics", "security")
CANARY = "canary"
TOUCH = f"touch {CANARY}"
Make = Callable[[Inputs], Sequence[object]]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes
    ----------
    name, kind
        Of the case; one of ``KINDS``.
    make
        Changes the inputs and returns the command line.
    outcome, words
        What must happen, see above.
    file
        Name of the file that a refusal names; "" where an option is at fault.
    row
        Of the particle that is set aside, from 1.
    is_heavy
        Takes seconds: with ``make reliability`` only.
    has_remedy
        A user can do something about it.
    base
        Box of the images.
    """

    name: str
    kind: str
    make: Make
    outcome: str
    words: tuple[str, ...] = ()
    file: str = "particles.star"
    row: int = 0
    is_heavy: bool = False
    has_remedy: bool = True
    base: int = BOX


class Cases(list[Case]):
    """The cases of one module, in its order."""

    def refused(self, kind: str, name: str, make: Make, *words: str, **more: Any) -> None:
        """Add a case that must be refused."""
        self.append(Case(name, kind, make, REFUSED, words, **more))

    def aside(self, kind: str, name: str, make: Make, *words: str, row: int, **more: Any) -> None:
        """Add a case of which a particle must be set aside."""
        self.append(Case(name, kind, make, ASIDE, words, row=row, **more))

    def accepted(self, kind: str, name: str, make: Make, *words: str, **more: Any) -> None:
        """Add a case that must work, with a note where there are words."""
        self.append(Case(name, kind, make, ACCEPTED, words, **more))
