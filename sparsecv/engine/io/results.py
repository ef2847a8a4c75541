# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a command's results: what an earlier run left there, and numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsecv.engine.io.atomic import atomic_text


def remove_results(folder: Path, keep: Iterable[Path | None], patterns: Iterable[str]) -> None:
    """Remove what an earlier run has left in a folder, so that files of two runs never stand side by side.

    Parameters
    ----------
    keep
        Inputs of the new run, which may be results of the old one.
    patterns
        Of the files that such a run writes.
    """
    inputs = {path.resolve() for path in keep if path is not None}
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.resolve() not in inputs:
                path.unlink()


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write numbers and text as JSON, atomically; numbers that JSON cannot hold become null."""
    atomic_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
