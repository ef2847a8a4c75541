# SPDX-License-Identifier: GPL-3.0-or-later
"""Models and maps of them for tests: the simulator's protein as a structure, and a map with a known FSC against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import gemmi
import numpy as np
import scipy.fft

from sparsecv.engine.io.mrc import Map
from sparsecv.engine.model_map.atoms import ModelAtoms, model_atoms
from sparsecv.engine.model_map.density import model_transform, to_map
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.physics.fourier import shell_counts, shell_indices, shell_sums
from sparsecv.engine.simulate.phantom import membrane_protein
from sparsecv.engine.simulate.potential import Atoms

NAMES = ("N", "CA", "C", "O", "CB", "CG", "CD", "CE", "CZ", "CH", "CK", "CL", "CM", "CN", "CP")


def structure_of(atoms: Atoms, chains: Iterable[str]) -> gemmi.Structure:
    """Some chains of the simulator's atoms as a structure, centred on their mean."""
    names = list(chains)
    structure = gemmi.Structure()
    structure.name = "test"
    model = structure.add_model(gemmi.Model(1))
    centre = atoms.positions[np.isin(atoms.chains, names)].mean(axis=0)
    for name in names:
        chain = gemmi.Chain(name)
        rows_of: dict[int, list[int]] = {}
        for row in np.flatnonzero(atoms.chains == name).tolist():
            rows_of.setdefault(int(atoms.residue_ids[row]), []).append(row)
        for number, rows in enumerate(rows_of.values(), 1):
            residue = gemmi.Residue()
            residue.name = str(atoms.residues[rows[0]])
            residue.seqid = gemmi.SeqId(number, " ")
            for atom_name, row in zip(NAMES, rows, strict=False):
                atom = gemmi.Atom()
                atom.name, atom.element = atom_name, gemmi.Element(str(atoms.elements[row]))
                atom.pos = gemmi.Position(*(atoms.positions[row] - centre))
                atom.b_iso, atom.occ = float(20 + atoms.b_factors[row] / 2), 1.0
                residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
    structure.setup_entities()
    return structure


@lru_cache(maxsize=4)
def protein(chains: str = "AB") -> gemmi.Structure:
    """Chains of the built-in protein, centred; treat as read-only."""
    return structure_of(membrane_protein(1, "C1")[0], chains)


def atoms_of(structure: gemmi.Structure) -> ModelAtoms:
    return model_atoms(structure)[0]


def centred_grid(box: int, pixel_size: float) -> Grid:
    return Grid(box, pixel_size, np.full(3, -(box // 2) * pixel_size))


def noisy(
    transform: np.ndarray, correlation: Callable[[np.ndarray], np.ndarray], grid: Grid, seed: int
) -> np.ndarray:
    """A map whose expected FSC against a noise-free transform is given, as a function of frequency in 1/A."""
    box = grid.box
    shells = np.minimum(shell_indices(box), box // 2 + 1)
    power = shell_sums(np.abs(transform) ** 2) / shell_counts(box)
    m = np.clip(correlation(np.arange(box // 2 + 1) / grid.length), 1e-3, 1)
    deviation = np.append(np.sqrt(power * (1 / m**2 - 1)), 0.0)
    noise = np.random.default_rng(seed).normal(size=(box,) * 3) / box**1.5
    return to_map((transform + scipy.fft.rfftn(noise) * deviation[shells]).astype(np.complex64))


def half(angstrom: float, sharpness: float = 4.0) -> Callable[[np.ndarray], np.ndarray]:
    """A curve that falls through 0.5 at a resolution."""
    return lambda s: 1 / (1 + (s * angstrom) ** (2 * sharpness))


def map_of(density: np.ndarray, grid: Grid) -> Map:
    return Map(density.astype(np.float32), grid.pixel_size, tuple(float(value) for value in grid.origin))


@lru_cache(maxsize=4)
def clean_transform(chains: str, box: int, pixel_size: float) -> np.ndarray:
    return model_transform(atoms_of(protein(chains)), centred_grid(box, pixel_size))
