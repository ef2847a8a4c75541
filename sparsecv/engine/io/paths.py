# SPDX-License-Identifier: GPL-3.0-or-later
"""Where particle images are: RELION's ``000001@stack.mrcs`` names, and the folders that their paths may start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.io.star import StarTable

IMAGE_NAME = "rlnImageName"
LONGEST_NUMBER = 100  # digits, zeros in front included


def index_of_first(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    """Return the different names in order of appearance, and for each name which of them it is."""
    known: dict[str, int] = {}
    index = np.fromiter((known.setdefault(name, len(known)) for name in names), dtype=np.int32, count=len(names))
    return list(known), index


def split_image_names(table: StarTable) -> tuple[list[str], NDArray[np.int32], NDArray[np.int64]]:
    """Split the image names of a particle table.

    Returns
    -------
    stacks, stack_index, image_index
        Different stack names as written; for every row which of them, and the image number from 0. A name without
        ``@`` means the first image of its file.

    Raises
    ------
    InputError
        With the row, where the number is none or below 1, or the stack's name is empty.
    """
    stacks, numbers = [], []
    for row, name in enumerate(table.strings(IMAGE_NAME)):
        number, at, stack = name.partition("@")
        if not at:
            number, stack = "1", name
        is_number = number.isdecimal() and len(number) < LONGEST_NUMBER and 0 < int(number) < 2**31
        if not is_number or not stack:
            raise table.error("not an image name", IMAGE_NAME, row, rule="number from 1, @, stack: 000001@stack.mrcs",
                              remedy="correct or remove the row")
        stacks.append(stack)
        numbers.append(int(number))
    names, stack_index = index_of_first(stacks)
    return names, stack_index, np.array(numbers, dtype=np.int64) - 1


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the first existing ``folder / name`` without links, or None; an absolute name ignores the folders."""
    for folder in folders:
        path = folder / name
        if os.path.exists(path):
            return Path(os.path.realpath(path))
    return None


def name_to_write(name: str, target: str) -> str:
    """The name of a stack in a file that we write: as it was read where it leads to the same file, else absolute."""
    return name if os.path.realpath(name) == target else target


def resolve_stacks(
    names: Sequence[str], stack_index: NDArray[np.int32], table: StarTable, data_dir: str | Path | None
) -> list[Path]:
    """Find every stack from the working directory, the STAR file's folder or ``data_dir``, in this order.

    Raises
    ------
    InputError
        Naming the first row whose stack is absent, how many stacks are, and what was tried.
    """
    folders = [Path.cwd()]
    if table.path is not None:
        folders.append(table.path.absolute().parent)
    if data_dir is not None:
        folders.append(Path(data_dir).absolute())
    found = [find_file(name, folders) for name in names]
    missing = [number for number, path in enumerate(found) if path is None]
    if missing:
        row = int(np.argmax(stack_index == missing[0]))
        tried = ", ".join(dict.fromkeys(str(folder / names[missing[0]]) for folder in folders))
        raise table.error(
            f"image stack not found ({len(missing)} of {len(names)} stacks are missing)",
            IMAGE_NAME,
            row,
            rule=f"tried {tried}",
            remedy="start in the project's folder, or give --data-dir",
        )
    return [path for path in found if path is not None]
