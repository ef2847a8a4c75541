# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress on the terminal: a bar that redraws itself on a terminal, one plain line per iteration anywhere else."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from sparsecv.engine.errors import printable

REDRAW_SECONDS = 0.1  # of the bar
STEADY = 3  # newest iterations on which the time left is based: they become slower as resolution grows


def duration(seconds: float) -> str:
    """A length of time as ``45 s``, ``3 min 05 s`` or ``2 h 10 min``; ``?`` if unknown (not finite or negative)."""
    if not (math.isfinite(seconds) and seconds >= 0):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    whole = round(seconds / 60)
    return f"{whole // 60} h {whole % 60:02d} min"


class Progress:
    """Shows how far a run is and how long it will still take.

    Parameters
    ----------
    stream
        Where to write; None: standard output at the time of the call.
    interactive
        Whether to draw a bar; None: if the stream is a terminal.
    clock
        Seconds, monotonic.

    Notes
    -----
    No threads: it draws when told to. An iteration's time left is linear in its own progress. The run's adds, for each
    of the iterations that remain, the mean of the last three; their number is a guess, as a refinement ends when it
    converges.

    Examples
    --------
    >>> progress = Progress(interactive=False)
    >>> progress.iteration_started(1, 2)
    >>> progress.advance(500, 1000)
    >>> progress.iteration_finished("12.1 A")            # doctest: +SKIP
    iteration 1 of about 2: 12.1 A; 8 s, about 8 s left
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._interactive = self._stream.isatty() if interactive is None else interactive
        self._clock = clock
        self._times: list[float] = []
        self._iteration, self._of = 0, 0
        self._started = self._drawn = clock()
        self._fraction = 0.0
        self._label = ""
        self._width = 0  # of the bar on the screen now

    def iteration_started(self, iteration: int, of: int) -> None:
        """Begin iteration ``iteration`` (from 1) of an expected ``of``."""
        self._iteration, self._of = iteration, max(of, iteration)
        self._started = self._clock()
        self._fraction, self._label = 0.0, ""
        self._draw(force=True)

    def advance(self, done: float, total: float, label: str = "") -> None:
        """Say that ``done`` of ``total`` units of the current iteration are done, and what is being done."""
        fraction = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        self._fraction = fraction
        changed, self._label = label != self._label, label
        self._draw(force=changed or fraction == 1.0)

    def iteration_finished(self, summary: str) -> None:
        """End the iteration and write its line: number, summary, its time, time left."""
        self._times.append(self._clock() - self._started)
        self._fraction = 1.0
        left = self.seconds_left()
        tail = f", about {duration(left)} left" if self._iteration < self._of else ""
        head = f"iteration {self._iteration} of about {self._of}" if self._of > 1 else f"iteration {self._iteration}"
        self.line(f"{head}: {summary}; {duration(self._times[-1])}{tail}")

    def line(self, text: str) -> None:
        """Write a line of its own, above the bar if there is one; it stays one line whatever names are in it."""
        self._clear()
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Remove the bar, as before an error message."""
        self._clear()
        self._stream.flush()

    def seconds_left(self) -> float:
        """Expected time to the end of the run, seconds; not a number before anything is known."""
        recent = self._times[-STEADY:]
        if self._fraction == 1.0 and recent:
            return (self._of - self._iteration) * sum(recent) / len(recent)
        elapsed = self._clock() - self._started
        if self._fraction > 0:
            this = elapsed / self._fraction
        elif recent:
            this = max(sum(recent) / len(recent), elapsed)
        else:
            return math.nan
        typical = sum(recent) / len(recent) if recent else this
        return this - elapsed + (self._of - self._iteration) * typical

    def _draw(self, *, force: bool) -> None:
        now = self._clock()
        if not self._interactive or (not force and now - self._drawn < REDRAW_SECONDS):
            return
        self._drawn = now
        room = shutil.get_terminal_size().columns - 1
        head = f"iteration {self._iteration}/{self._of} "
        tail = f" {100 * self._fraction:3.0f} % {self._label}".rstrip()
        left = self.seconds_left()
        if math.isfinite(left):
            tail += f", {duration(left)} left"
        cells = min(40, room - len(head) - len(tail) - 2)
        filled = round(max(cells, 0) * self._fraction)
        bar = f"[{'#' * filled}{'.' * (cells - filled)}]" if cells >= 5 else ""
        text = (head + bar + tail)[:room]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def _clear(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
