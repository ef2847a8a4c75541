# SPDX-License-Identifier: GPL-3.0-or-later
"""Atomic models: where they are, what is in them, and the names of files and chains."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from inputs import MAP_BOX, PIXEL_SIZE, Inputs

from corpus.case import TOUCH, Cases, Make

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


def _model(folder: Path, name: str = "model.pdb", shift: float = 0.0) -> Path:
    rng = np.random.default_rng(4)
    rows = [f"ATOM  {k:5d}  CA  ALA A{k:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 30.00           C\n"
            for k, (x, y, z) in enumerate(rng.normal(size=(60, 3)) * 12 + 64 + shift, 1)]  # fmt: skip
    (folder / name).write_text("".join(rows))
    return folder / name


def _validate(name: str = "map.mrc", model: str = "model.pdb", shift: float = 0.0) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        from halfmaps import half_maps

        written = p.map(name, half_maps(MAP_BOX, PIXEL_SIZE, noise=0.002)[0])
        return [
            "validate",
            "--model",
            _model(p.folder, model, shift),
            "--map",
            written,
            "--output",
            p.out,
            "--threads",
            1,
        ]

    return make


refused("maps", "model outside the box", _validate(shift=2000.0), "does not overlap", file="model.pdb")
refused("maps", "model without atoms", lambda p: [
    "validate", "--model", p.raw("model.pdb", b"HEADER\nEND\n"), "--map", p.start, "--output", p.out], "no atoms",
    file="model.pdb")  # fmt: skip
refused("maps", "model that is a picture", lambda p: [
    "validate", "--model", p.raw("model.cif", b"\x89PNG\r\n\x1a\n" + bytes(99)), "--map", p.start, "--output", p.out],
    "model", file="model.cif")  # fmt: skip


def _gz_bomb(p: Inputs) -> Sequence[object]:
    with gzip.open(p.folder / "model.pdb.gz", "wb", compresslevel=1) as out:
        for _ in range(210):
            out.write(b"REMARK  \n" * (10**7 // 9))
    return ["validate", "--model", p.folder / "model.pdb.gz", "--map", p.start, "--output", p.out]


refused("security", "model that unpacks to 2 GB", _gz_bomb, "unpacks to more", file="model.pdb.gz", is_heavy=True)
EVIL = f"<img src=x onerror=alert(1)>'\"$({TOUCH}) & `{TOUCH}`"
accepted(
    "security",
    "names of files that are HTML",
    _validate(f"{EVIL.replace('/', '')}.mrc", "<script>alert(2)<\u2215script>.pdb"),
)
accepted(
    "security",
    "names of files that are commands of ChimeraX",
    _validate("a.mrc\nrunscript evil.py\n.mrc", "m;open evil.cxc;.pdb"),
    is_heavy=True,
)


def _hostile_chains(p: Inputs) -> Sequence[object]:
    """Names of chains go into pictures, where $ begins a formula, into tables, a page and a script."""
    import gemmi

    from sparsecv.engine.io.models import write_structure

    command = _validate()(p)
    structure = gemmi.read_structure(str(p.folder / "model.pdb"))
    residues = list(structure[0][0])
    for name in ("$\\frac{", "<script>alert(3)</script>", "A;open evil.cxc", "it's", "=cmd|' /C calc'!A0"):
        chain = gemmi.Chain(name)
        for residue in residues[:12]:
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    write_structure(p.folder / "model.cif", structure)
    command[command.index("--model") + 1] = p.folder / "model.cif"
    return command


accepted("security", "names of chains that are formulas, HTML and commands", _hostile_chains)
