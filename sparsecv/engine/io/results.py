# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a command's results: what an earlier run left there, checksums of what is there, numbers as JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.regular import KINDS, read_bytes

CHECKSUMS = "checksums.sha256"
READ_BYTES = 1 << 22  # at once
LONGEST_NAME = 255  # bytes, of a file or folder, on all file systems that are in use


def write_checksums(folder: Path, patterns: Iterable[str]) -> None:
    """Write ``checksums.sha256`` of the results in a folder: ``sha256sum -c checksums.sha256`` names what has changed.

    Parameters
    ----------
    patterns
        Of the files that such a run writes; what is not there is left out.

    Notes
    -----
    Maps, STAR files, checkpoints and accumulators say by themselves that they are damaged, when they are read; this is
    for all others, too, and for archives.
    """
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    digests: dict[tuple[int, int], str] = {}  # by file: a deposition has links to maps of gigabytes
    for path in paths:
        if (file := _file_of(path)) not in digests:
            digests[file] = _sha256(path)
    lines = (f"{digests[_file_of(path)]}  {path.relative_to(folder)}\n" for path in paths)
    atomic_text(folder / CHECKSUMS, "".join(lines))


def _file_of(path: Path) -> tuple[int, int]:
    """What all hard links of a file have in common."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def files_of_run(folder: Path, names: Sequence[str], rule: str) -> tuple[Path, ...]:
    """Files that a finished refinement has left in a folder; InputError with the ``rule`` where one is not there."""
    if not folder.is_dir():
        raise InputError("no such folder", file=folder, rule="the folder of a finished refinement",
                         remedy="give what refine --output was, or a RELION Refine3D job")
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"no {name} in it", file=folder, rule=rule,
                             remedy="let the refinement finish, or choose another folder")
    return tuple(folder / name for name in names)


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
    for pattern in (*patterns, CHECKSUMS):
        for path in folder.glob(pattern):
            if path.resolve() not in inputs:
                path.unlink()
                emptied.add(path.parent)
    for inner in emptied - {folder}:
        with suppress(OSError):  # something of the user's is in it, or it is a link
            inner.rmdir()


def remove_leftovers(folder: Path, patterns: Iterable[str]) -> None:
    """Remove what a killed run was in the middle of writing (see :func:`.atomic_write`): it can be gigabytes."""
    for pattern in map(PurePath, (*patterns, CHECKSUMS)):
        for path in folder.glob(str(pattern.with_name(f".{pattern.name}.*.part"))):
            path.unlink()


def refuse_to_overwrite(folder: Path, patterns: Iterable[str], inputs: Iterable[Path | None]) -> None:
    """Refuse, with InputError, a folder that is none, or in which results would take the place of an input.

    An input that is a link is looked for where it stands, and where the file stands.
    """
    found = _what_is_there(folder)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise InputError("is no folder", file=folder, rule="a folder for the results",
                         remedy="choose another output folder")
    places = [((folder / pattern).parent.resolve(), PurePath(pattern).name) for pattern in patterns]
    for path in inputs:
        names = () if path is None else (path.resolve(), path.parent.resolve() / path.name)
        if any(one.parent == inner and fnmatch(one.name, name) for one in names for inner, name in places):
            raise InputError("would be overwritten by the results", file=path,
                             rule="inputs are kept", remedy="choose another output folder")


def refuse_to_replace(outputs: Sequence[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse, with InputError, names of results under which no file can be written, or which an input has.

    Parameters
    ----------
    outputs
        All files that are to be written; two of one name are refused, too.
    inputs
        Files that are read, which a result might have another name of: links are followed.
    """
    remedy = "choose another name with --output"
    given = [path for path in inputs if path is not None and os.path.exists(path)]
    for number, path in enumerate(outputs):
        found = _what_is_there(path)
        if path in outputs[:number]:
            raise InputError("two results would have this name", file=path, rule="a name for each", remedy=remedy)
        if found is None:
            continue
        if any(path.samefile(one) for one in given):
            raise InputError("would be overwritten", file=path, rule="inputs are kept", remedy=remedy)
        if not stat.S_ISREG(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "special")
            raise InputError(f"is {kind}", file=path, rule="results are regular files", remedy=remedy)


def _what_is_there(path: Path) -> os.stat_result | None:
    """What stands under the name of a result; None where nothing does, InputError where nothing can."""
    try:
        if max((len(os.fsencode(part)) for part in path.parts), default=0) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be written: {cause}", file=path, rule="a name that the file system takes",
                         remedy="choose another name with --output") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """A table of names and values in a JSON file; InputError where there is none."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # brackets by the thousand
        if isinstance(error, InputError):
            raise
        raise InputError("is no JSON", file=path, rule="a JSON table of names and values",
                         remedy="make it again with the program that wrote it") from error
    if not isinstance(content, dict):
        raise InputError("is no JSON table", file=path, rule="a JSON table of names and values",
                         remedy="make it again with the program that wrote it")
    return content


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write numbers and text as JSON, atomically; numbers that JSON cannot hold become null."""
    atomic_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
