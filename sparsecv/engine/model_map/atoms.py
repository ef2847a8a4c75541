# SPDX-License-Identifier: GPL-3.0-or-later
"""The atoms of a model as arrays, beside the structure that they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError

BACKBONE = {"N", "CA", "C", "O", "P", "OP1", "OP2", "O5'", "C5'", "C4'", "C3'", "O3'"}


@dataclass(frozen=True)
class Residue:
    """One residue of a model: chain, number with insertion code, name; whether it belongs to a polymer."""

    chain: str
    number: str
    name: str
    is_polymer: bool

    def __str__(self) -> str:
        return f"{self.chain}/{self.name} {self.number}"


@dataclass(frozen=True)
class ModelAtoms:
    """Atoms of a model, n rows, in the order of the structure.

    Attributes
    ----------
    structure
        What gemmi has read, one model; its positions are those of ``positions``.
    positions
        (x, y, z), A, shape (n, 3), float64.
    weights
        Occupancy times atomic number, (n,): how much an atom scatters; 0 for those that are left out of the density.
    b_factors
        Isotropic, or the mean of an anisotropic one, A^2, (n,).
    is_heavy, is_backbone
        Not hydrogen; of the main chain of a protein or nucleic acid. bool, (n,).
    residue_of, chain_of
        Index of each atom into ``residues`` and ``chains``, (n,).
    residues, chains
        In the order of the structure; names of chains are unique.
    """

    structure: gemmi.Structure
    positions: NDArray[np.float64]
    weights: NDArray[np.float64]
    b_factors: NDArray[np.float64]
    is_heavy: NDArray[np.bool_]
    is_backbone: NDArray[np.bool_]
    residue_of: NDArray[np.int64]
    chain_of: NDArray[np.int64]
    residues: tuple[Residue, ...]
    chains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def centre(self) -> NDArray[np.float64]:
        """Mean position of the atoms by what they scatter, A."""
        return self.weights @ self.positions / self.weights.sum()

    def moved(self, motion: Motion, which: NDArray[np.bool_] | None = None) -> ModelAtoms:
        """The model, or some of its atoms (a mask), after a motion; anisotropic B-factors turn, too."""
        structure = self.structure.clone()
        positions = self.positions.copy()
        chosen = np.ones(len(self), dtype=bool) if which is None else which
        positions[chosen] = motion.apply(positions[chosen])
        turn = gemmi.Mat33(motion.rotation.tolist())
        for atom, position, is_moved in zip(_atoms(structure), positions, chosen, strict=True):
            if is_moved:
                atom.pos = gemmi.Position(*position)
                if atom.aniso.nonzero():
                    atom.aniso = atom.aniso.transformed_by(turn)
        return replace(self, structure=structure, positions=positions)

    def with_b_factors(self, b_factors: NDArray[np.float64]) -> ModelAtoms:
        """The model with other, isotropic B-factors, A^2."""
        structure = self.structure.clone()
        for atom, value in zip(_atoms(structure), b_factors, strict=True):
            atom.b_iso, atom.aniso = float(value), gemmi.SMat33f(0, 0, 0, 0, 0, 0)
        return replace(self, structure=structure, b_factors=np.asarray(b_factors, dtype=np.float64))

    def shifted_b_factors(self, shifts: NDArray[np.float64]) -> ModelAtoms:
        """The model with B-factors that are larger by so much, A^2; none below 0; anisotropic ones keep their shape."""
        structure, values = self.structure.clone(), np.maximum(self.b_factors + shifts, 0.0)
        for atom, value, shift in zip(_atoms(structure), values, values - self.b_factors, strict=True):
            atom.b_iso = float(value)
            if atom.aniso.nonzero():
                added, u = float(shift) / (8 * np.pi**2), atom.aniso
                atom.aniso = gemmi.SMat33f(u.u11 + added, u.u22 + added, u.u33 + added, u.u12, u.u13, u.u23)
        return replace(self, structure=structure, b_factors=values)


@dataclass(frozen=True)
class Motion:
    """x -> R (x - c) + c + t: a turn R about c, then a displacement t, A."""

    rotation: NDArray[np.float64]
    displacement: NDArray[np.float64]
    centre: NDArray[np.float64]

    @classmethod
    def none(cls) -> Motion:
        """Everything stays."""
        return cls(np.eye(3), np.zeros(3), np.zeros(3))

    @property
    def degrees(self) -> float:
        """Angle of the turn."""
        return float(np.rad2deg(Rotation.from_matrix(self.rotation).magnitude()))

    @property
    def angstrom(self) -> float:
        """Length of the displacement of the centre."""
        return float(np.linalg.norm(self.displacement))

    def apply(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions, shape (n, 3), after the motion."""
        return (positions - self.centre) @ self.rotation.T + self.centre + self.displacement

    def then(self, other: Motion) -> Motion:
        """This motion followed by another one, about the centre of this one."""
        rotation = other.rotation @ self.rotation
        landing = other.apply((self.centre + self.displacement)[None])[0]
        return Motion(rotation, landing - self.centre, self.centre)


def model_atoms(structure: gemmi.Structure) -> tuple[ModelAtoms, list[str]]:
    """Arrays of a structure, and sentences about atoms that scatter nothing.

    Raises
    ------
    InputError
        If none scatters.
    """
    rows: list[tuple[float, ...]] = []
    residues: list[Residue] = []
    chains: dict[str, int] = {}
    for chain in structure[0]:
        number = chains.setdefault(chain.name, len(chains))
        for residue in chain:
            is_polymer = residue.entity_type == gemmi.EntityType.Polymer
            for atom in residue:
                b_factor = atom.b_eq() if atom.aniso.nonzero() else atom.b_iso
                charge = atom.element.atomic_number if _is_known(atom.element) else 0
                rows.append((*atom.pos.tolist(), atom.occ * charge, b_factor, not atom.is_hydrogen(),
                             is_polymer and atom.name in BACKBONE, len(residues), number))  # fmt: skip
            residues.append(Residue(chain.name, str(residue.seqid), residue.name, is_polymer))
    table = np.array(rows, dtype=np.float64)
    atoms = ModelAtoms(
        structure, table[:, :3].copy(), np.maximum(table[:, 3], 0), table[:, 4], table[:, 5] > 0, table[:, 6] > 0,
        table[:, 7].astype(np.int64), table[:, 8].astype(np.int64), tuple(residues), tuple(chains),
    )  # fmt: skip
    if not atoms.weights.any():
        raise InputError("no atom of the model scatters", remedy="look for occupancies of 0 and unknown elements")
    return atoms, _what_is_left_out(structure)


def _atoms(structure: gemmi.Structure) -> list[gemmi.Atom]:
    return [atom for chain in structure[0] for residue in chain for atom in residue]


def _is_known(element: gemmi.Element) -> bool:
    """Whether there is a scattering factor; gemmi has a stand-in for the unknown element X."""
    return element.c4322 is not None and element.atomic_number > 0


def _what_is_left_out(structure: gemmi.Structure) -> list[str]:
    atoms = _atoms(structure)
    unknown = sorted({atom.element.name for atom in atoms if not _is_known(atom.element)})
    absent = sum(not atom.occ > 0 for atom in atoms)
    said = []
    if unknown:
        said.append(f"elements without an electron scattering factor are left out of the density: {', '.join(unknown)}")
    if absent:
        said.append(f"{absent} atoms without occupancy are left out of the density")
    return said
