# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening only what is a regular file: a STAR file may name a pipe or a device, and reading those can hang for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sparsecv.engine.errors import InputError

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises
    ------
    InputError
        When it is absent, unreadable or anything but a regular file. Links are followed.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be opened: {cause}", file=path, rule="a file that can be read",
                         remedy="check its name, and the folder that it is looked for in") from error
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise InputError(f"is {KINDS.get(kind, 'special')}", file=path, rule="a regular file is needed",
                         remedy="give a file, or a link to one")
    return handle


def read_bytes(path: str | Path) -> bytes:
    """Return the whole content of a regular file."""
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            return file.read()
        except OSError as error:  # which names no file by itself
            raise OSError(error.errno, error.strerror, str(path)) from error
