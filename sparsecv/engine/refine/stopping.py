# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end a refinement after the iteration that it is in, so that nothing of it is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from sparsecv.engine.errors import Terminated

# SIGTERM comes from batch systems some seconds or minutes before SIGKILL; SIGUSR1 is what they can be asked to send
# earlier (Slurm: --signal=USR1@600).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Within the block a first signal is a request, and a second SIGTERM raises :class:`.Terminated`.

    Outside of the main thread, where no handler can be set, nothing changes.

    Parameters
    ----------
    say
        Called once with a line that tells the user what will happen.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._before: dict[int, Any] = {}
        self.name = ""  # of the signal that came

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._came) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.name:
            if number == signal.SIGTERM:
                raise Terminated(name)
            return
        self.name = name
        self._say(f"{name}: this iteration is finished, then the run stops; a SIGTERM from now on stops it at once")
