# SPDX-License-Identifier: GPL-3.0-or-later
"""A refinement of a second or two, whole, and what of it can be compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sparsecv.engine.simulate import SimulatedFiles, SimulateSettings, simulate

ITERATIONS = 5
RESULTS = ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_data.star")


def toy_data(folder: Path, **more: object) -> SimulatedFiles:
    """A few particles of the built-in protein."""
    values = {"particles": 60, "box": 24, "pixel_size": 7.0, "snr": 0.5} | more
    return simulate(SimulateSettings(output=folder / "data", **values))  # type: ignore[arg-type]


def refine_words(data: SimulatedFiles, output: Path, *more: object) -> list[str]:
    """The command line of a toy refinement."""
    words = ("refine", "--particles", data.particles, "--reference", data.reference, "--output", output,
             "--iterations", ITERATIONS, "--threads", 1, "--device", "cpu", *more)  # fmt: skip
    return [str(word) for word in words]


def content(folder: Path) -> list[bytes]:
    """The results of a run as bytes."""
    return [(folder / name).read_bytes() for name in RESULTS]


class Server:
    """A process that starts command lines quickly: see server.py."""

    def __init__(self, first: list[str]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("server.py")), json.dumps(first)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        assert self._line() == "ready"

    def start(self, arguments: list[str], log: Path) -> int:
        """Start a command line; returns its process number."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """Exit status of what was started last; negative: the signal that ended it."""
        return int(self._line())

    def run(self, arguments: list[str], log: Path) -> int:
        """Exit status of a command line."""
        self.start(arguments, log)
        return self.wait()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the server has gone"
        return line


def kill(number: int, sign: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(number, sign)
    except ProcessLookupError:
        pass
