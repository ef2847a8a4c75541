# SPDX-License-Identifier: GPL-3.0-or-later
"""How many faults were injected, and what became of them: counted by the tests, read by ``tools/reliability.py``.

``make reliability`` sets SPARSECV_RELIABILITY to a folder: tests then inject as many faults as docs/reliability.md
tells of, and what they count goes into files there. Without it they inject a few.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

FOLDER = os.environ.get("SPARSECV_RELIABILITY")
IS_FULL = bool(FOLDER)


def times(full: int, short: int) -> int:
    """How many faults to inject."""
    return full if IS_FULL else short


def record(row: str, case: str, injected: int, survived: int, note: str = "") -> None:
    """Keep a figure for a row of the table; ``survived`` counts what ended as it must."""
    if FOLDER is None:
        return
    path = Path(FOLDER) / "faults.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"row": row, "case": case, "injected": injected, "survived": survived, "note": note,
            "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
