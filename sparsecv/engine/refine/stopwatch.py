# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the parts of an iteration take, and the memory that they needed."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

KILOBYTE = 1 if sys.platform == "darwin" else 1024  # unit of a process's peak memory


@dataclass
class Stopwatch:
    """Wall time by the name of a part, seconds; parts of one name add up.

    On a GPU work is handed over before it is done: time belongs to the part that has waited for it.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def taken(self) -> dict[str, float]:
        """What has been counted, milliseconds being enough; counting begins again."""
        found = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        self.seconds = {}
        return found


def peak_memory() -> int:
    """Most bytes that this process has had in memory at once so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE
