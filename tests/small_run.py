# SPDX-License-Identifier: GPL-3.0-or-later
"""A small simulated data set and its refinement on the command line, for tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsecv import cli
from sparsecv.engine.simulate import SimulatedFiles, SimulateSettings, simulate

PARTICLES, BOX, PIXEL_SIZE = 160, 32, 5.0


def simulated(folder: Path) -> SimulatedFiles:
    """Images of the built-in protein, in ``folder / "data"``."""
    return simulate(SimulateSettings(output=folder / "data", particles=PARTICLES, box=BOX, pixel_size=PIXEL_SIZE,
                                     snr=0.5))


def refine(data: SimulatedFiles, output: Path, regulariser: str, *words: object) -> int:
    """Status of ``sparsecv refine`` with a regulariser and further options."""
    given = ("refine", "--particles", data.particles, "--reference", data.reference, "--output", output)
    return cli.main([str(word) for word in (*given, "--regulariser", regulariser, "--threads", 1, *words)])


def history(folder: Path) -> list[dict[str, Any]]:
    """What ``status.json`` says of each iteration."""
    found: list[dict[str, Any]] = json.loads((folder / "status.json").read_text())["history"]
    return found
