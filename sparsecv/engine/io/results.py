# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a command's results: what an earlier run left there, and numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text


def remove_results(folder: Path, keep: Iterable[Path | None], patterns: Iterable[str]) -> None:
    """Remove what an earlier run has left in a folder, so that files of two runs never stand side by side.

    Parameters
    ----------
    keep
        Inputs of the new run, which may be results of the old one.
    patterns
        Of the files that such a run writes, relative to the folder; a folder in it that is empty afterwards goes, too.
    """
    inputs = {path.resolve() for path in keep if path is not None}
    emptied = set()
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.resolve() not in inputs:
                path.unlink()
                emptied.add(path.parent)
    for inner in emptied - {folder}:
        with suppress(OSError):  # something of the user's is in it, or it is a link
            inner.rmdir()


def remove_leftovers(folder: Path, patterns: Iterable[str]) -> None:
    """Remove what a killed run was in the middle of writing (see :func:`.atomic_write`): it can be gigabytes."""
    for pattern in map(PurePath, patterns):
        for path in folder.glob(str(pattern.with_name(f".{pattern.name}.*.part"))):
            path.unlink()


def refuse_to_overwrite(folder: Path, patterns: Iterable[str], inputs: Iterable[Path | None]) -> None:
    """Refuse, with InputError, a folder that is none, or in which results would take the place of an input."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is no folder", file=folder, rule="a folder for the results",
                         remedy="choose another output folder")
    places = [((folder / pattern).parent.resolve(), PurePath(pattern).name) for pattern in patterns]
    for path in inputs:
        if path is not None and any(path.resolve().parent == inner and fnmatch(path.name, name)
                                    for inner, name in places):  # fmt: skip
            raise InputError("would be overwritten by the results", file=path,
                             rule="inputs are kept", remedy="choose another output folder")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write numbers and text as JSON, atomically; numbers that JSON cannot hold become null."""
    atomic_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
