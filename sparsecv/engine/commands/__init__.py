# SPDX-License-Identifier: GPL-3.0-or-later
"""One module per command, each with ``SETTINGS``, a dataclass, and ``run``, which imports what is slow to import.

``run(settings, save)`` does the work and returns the exit status; ``save(path)`` writes the settings it ran with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Save = Callable[[Path], None]


class DeviceError(RuntimeError):
    """The device that was asked for cannot be used; the message says why."""


def check_device(device: str) -> None:
    """Refuse, with DeviceError, a GPU that is asked for by name and cannot be used."""
    if device == "gpu":
        from sparsecv.kernels import gpu_problem

        problem = gpu_problem()
        if problem is not None:
            raise DeviceError(f"no GPU can be used: {problem}; remedy: --device cpu")
