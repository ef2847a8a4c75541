# SPDX-License-Identifier: GPL-3.0-or-later
"""Atomic models in PDB and mmCIF files, through gemmi."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.regular import open_regular

LARGEST_MODEL = 2_000_000_000  # bytes: twice the text of the largest entry of the PDB


def read_structure(
    path: str | Path, *, assembly: str | None = None, said: list[str] | None = None
) -> gemmi.Structure:
    """Read the first model of a PDB or mmCIF file, compressed or not.

    Parameters
    ----------
    path
        The file.
    assembly
        Name of the biological assembly to build; None takes the chains as they are.
    said
        Gets a sentence about models that were left away.

    Returns
    -------
    gemmi.Structure
        With one model of at least one atom; entities are set up.

    Raises
    ------
    InputError
        Not a regular file, unreadable, without atoms, no such assembly, or a coordinate, B-factor or occupancy that is
        not finite.
    """
    _check_size(open_regular(path), path)
    try:
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        if assembly is not None:
            structure.transform_to_assembly(assembly, gemmi.HowToNameCopiedChain.AddNumber)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"not a usable atomic model: {error}", file=path, rule="PDB or mmCIF",
                         remedy="give the model as PDB or mmCIF") from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError("holds no atoms", file=path, rule="PDB or mmCIF with at least one atom",
                         remedy="give the model as PDB or mmCIF")
    if len(structure) > 1 and said is not None:
        said.append(f"the file holds {len(structure)} models: only the first is used")
    for number in range(len(structure) - 1, 0, -1):
        del structure[number]
    for found in structure[0].all():
        numbers = [*found.atom.pos.tolist(), found.atom.b_iso, found.atom.occ]
        if not np.isfinite(numbers).all():
            raise InputError("coordinates, B-factor or occupancy are not finite", file=path, item=f"atom {found}",
                             value=numbers, rule="finite numbers", remedy="correct or remove the atom")
    return structure


def _plain_subchains(structure: gemmi.Structure) -> None:
    """Letters and digits as names of subchains: gemmi makes them of those of chains, and writes them without quotes.

    A chain may be called anything that a quoted text can hold; with a blank in it, a row would have one column more.
    """
    names = sorted({residue.subchain for model in structure for chain in model for residue in chain})
    taken = {name for name in names if name.isascii() and name.isalnum()}
    plain: dict[str, str] = {}
    for name in names:
        if name not in taken:
            number = len(plain) + 1
            while f"x{number}" in taken:
                number += 1
            plain[name] = f"x{number}"
            taken.add(plain[name])
    for model in structure:
        for chain in model:
            for residue in chain:
                residue.subchain = plain.get(residue.subchain, residue.subchain)
    for entity in structure.entities:
        entity.subchains = [plain.get(name, name) for name in entity.subchains]


def _check_size(handle: int, path: str | Path) -> None:
    """Refuse, with InputError, a compressed file that unpacks to more than any model has."""
    with os.fdopen(handle, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return
        stream.seek(0)
        unpacked = 0
        try:
            with gzip.open(stream) as content:
                while unpacked <= LARGEST_MODEL and (part := content.read(1 << 24)):
                    unpacked += len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"damaged: {error}", file=path, rule="a whole gzip file",
                             remedy="fetch it again, or unpack it") from error
        if unpacked > LARGEST_MODEL:
            raise InputError("unpacks to more than any atomic model", file=path,
                             rule=f"at most {LARGEST_MODEL / 1e9:.0f} GB", remedy="give the model that was meant")


def write_structure(
    path: str | Path,
    structure: gemmi.Structure,
    *,
    columns: Mapping[str, Sequence[float] | NDArray[np.floating]] | None = None,
) -> None:
    """Write a model as mmCIF, atomically.

    Parameters
    ----------
    path
        The file to write.
    structure
        Of one model.
    columns
        More columns of the table ``_atom_site``, by name without the category: a number per atom in the order of the
        structure, NaN where there is none.
    """
    complete = structure.clone()
    complete.setup_entities()
    complete.assign_label_seq_id()
    _plain_subchains(complete)
    document = complete.make_mmcif_document()
    loop = document.sole_block().find_loop("_atom_site.id").get_loop()
    for name, values in (columns or {}).items():
        texts = ["?" if np.isnan(value) else f"{value:.4f}" for value in values]
        if len(texts) != loop.length():
            raise ValueError(f"{len(texts)} values of {name} for {loop.length()} atoms")
        tag = f"_atom_site.{name}"
        loop.add_columns([tag], "?")
        column = document.sole_block().find_values(tag)
        for row, text in enumerate(texts):
            column[row] = text
    atomic_text(path, document.as_string())
