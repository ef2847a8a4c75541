# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files so that a reader, or a crash, only ever sees the old or the new content, never half of it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that replaces it when the block ends well.

    Parameters
    ----------
    path
        The file to make or replace; its folder must exist.

    Yields
    ------
    Path
        An empty temporary file in the same folder, to be filled (or replaced) by the block.

    Raises
    ------
    OSError
        Whatever the storage says (full, read-only, gone). The old content of ``path`` is then untouched and the
        temporary file removed.

    Notes
    -----
    The content reaches the disk before the name does (fsync, rename, fsync of the folder), so this also holds when
    the machine loses power.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_usual_mode(target))
        _fsync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(target.parent)


def atomic_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` by :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def atomic_link(source: str | Path, path: str | Path) -> None:
    """Give a file a second name, atomically: no space is taken. Where the file system cannot, a copy.

    Parameters
    ----------
    source
        A file that is only ever replaced as a whole, as by :func:`atomic_write`: what is written into it in place shows
        under both names.
    path
        The second name; what had it before keeps its other names.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        os.link(Path(source).resolve(), temporary)
        temporary.replace(target)
    except OSError:  # another file system, one without links, or too many of them
        atomic_copy(source, target)
        return
    finally:
        temporary.unlink(missing_ok=True)  # renaming does nothing where both are names of one file already
    _fsync(target.parent)


def atomic_copy(source: str | Path, path: str | Path) -> None:
    """Copy the content of a file to ``path`` by :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)


def _usual_mode(target: Path) -> int:
    """Permissions of the file that is replaced, else those of a plain new file (mkstemp gives 0600)."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    # The umask can only be read by setting it, which would race with other threads; Linux shows it in /proc.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
