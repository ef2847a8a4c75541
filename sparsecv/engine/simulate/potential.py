# SPDX-License-Identifier: GPL-3.0-or-later
"""Electrostatic potential of atoms in amorphous ice.

The Fourier transform of the potential is summed over the atoms by a non-uniform FFT, without a fine grid and without
cutting off atoms::

    F(k) = V sum_j f_j(k) exp(-B_j k^2 / 4) exp(-2 pi i k . x_j)
    f(k) = electron scattering factor of the atom and of its hydrogens, minus the ice that it displaces

with V = h^2 / (2 pi m e) = 47.878 V A^2. Displaced ice is a Gaussian of the atom's volume (Fraser, MacRae & Suzuki
1978, J. Appl. Cryst. 11, 693); it takes away most of the contrast at low resolution, as in real images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import finufft
import gemmi
import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.models import read_structure

VOLT = 47.878  # V A^2
ICE = 0.0955  # 1/A^2: scattering-factor density of amorphous ice at 0.94 g/cm^3
ATOM_VOLUME = 17.2  # A^3 that a heavy atom of a protein displaces, hydrogens included
HYDROGENS = {"C": 1.4, "N": 1.2, "O": 0.2, "S": 0.3}  # bonded to an average protein atom
HYDROGEN_B = 30.0  # A^2: spread of the hydrogens about the atom that they stand at
B_STEP = 20.0  # A^2: atoms are summed in classes of B
TOLERANCE = 1e-6  # relative, of the non-uniform FFT


@dataclass(frozen=True)
class Atoms:
    """Atoms of a particle; every array has n rows.

    Attributes
    ----------
    positions
        (x, y, z) in A from the centre of the box, shape (n, 3), float64.
    elements
        Chemical symbols, shape (n,).
    b_factors
        A^2, added to the overall B of the particle.
    occupancies
        Fractions in (0, 1].
    residues
        Residue names, by which the membrane is found.
    residue_ids
        Integers that grow along the chains; atoms of one residue share one.
    chains
        Chain names.
    """

    positions: NDArray[np.float64]
    elements: NDArray[np.str_]
    b_factors: NDArray[np.float64]
    occupancies: NDArray[np.float64]
    residues: NDArray[np.str_]
    residue_ids: NDArray[np.int64]
    chains: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def mass_kda(self) -> float:
        """Mass with hydrogens, kDa."""
        symbols, counts = np.unique(self.elements, return_counts=True)
        masses = [gemmi.Element(s).weight + 1.008 * HYDROGENS.get(s, 0.0) for s in symbols]
        return float(counts @ np.array(masses)) / 1000

    @property
    def radius(self) -> float:
        """Distance of the farthest atom from the centre, A."""
        return float(np.linalg.norm(self.positions, axis=1).max())

    def moved(self, positions: NDArray[np.float64]) -> Atoms:
        """The same atoms elsewhere."""
        return replace(self, positions=np.asarray(positions, dtype=np.float64))


def read_model(path: str | Path, *, assembly: str | None = None, b_range: float = 150.0) -> Atoms:
    """Atoms of a PDB or mmCIF file, moved to their centre of mass.

    Parameters
    ----------
    path
        The file, as gemmi reads it, compressed or not. Its first model is used, without waters and hydrogens.
    assembly
        Name of the biological assembly to build; None takes the chains as they are.
    b_range
        B factors count from the model's 5th percentile, clipped at this many A^2.

    Raises
    ------
    InputError
        Where the file cannot be read or holds no atoms.
    """
    structure = read_structure(path, assembly=assembly)
    structure.remove_waters()
    structure.remove_hydrogens()
    structure.remove_empty_chains()
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError("no atoms but water and hydrogen", file=path, rule="at least one heavy atom")
    rows = [
        (atom.pos.tolist(), atom.element.name, atom.b_iso, atom.occ, residue.name, chain.name)
        for chain in structure[0] for residue in chain for atom in residue
    ]
    sizes = [len(residue) for chain in structure[0] for residue in chain]
    residue_ids = np.repeat(np.arange(len(sizes)), sizes)
    columns = (np.array(column) for column in zip(*rows, strict=True))
    positions, elements, b_factors, occupancies, residues, chains = columns
    masses = np.array([gemmi.Element(symbol).weight for symbol in elements])
    return Atoms(
        positions=positions - masses @ positions / masses.sum(),
        elements=elements,
        b_factors=np.clip(b_factors - np.percentile(b_factors, 5), 0, b_range),
        occupancies=occupancies.astype(np.float64),
        residues=residues,
        residue_ids=residue_ids,
        chains=chains,
    )


def frequency_squared(box: int, pixel_size: float) -> NDArray[np.float64]:
    """k^2 in 1/A^2 on a centred cube (zero at index n//2), shape (n, n, n)."""
    axis = (np.arange(box) - box // 2) / (box * pixel_size)
    return axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2


def potential_map(
    atoms: Atoms, box: int, pixel_size: float, bfactor: float, *, threads: int = 1
) -> NDArray[np.float32]:
    """Potential against ice on a grid, band-limited to it.

    Parameters
    ----------
    atoms
        Positions from the centre of the box, which is voxel n//2.
    box, pixel_size
        Voxels and A.
    bfactor
        Overall B in A^2, added to that of every atom.

    Returns
    -------
    Shape (n, n, n), float32, axes (z, y, x), volts.

    Raises
    ------
    InputError
        Where atoms lie outside the box, or an element has no scattering factor.
    """
    extent = 2 * np.abs(atoms.positions).max()
    if extent >= box * pixel_size:
        raise InputError("the particle does not fit into the box", item="box", value=box,
                         rule=f"more than {extent / pixel_size:.0f} pixels of {pixel_size:g} A")
    k_squared = frequency_squared(box, pixel_size)
    phases = (2 * np.pi / (box * pixel_size) * atoms.positions).astype(np.float64)
    classes = np.round(atoms.b_factors / B_STEP).astype(int)
    transform = np.zeros((box,) * 3, dtype=np.complex128)
    for b_class in np.unique(classes):
        of_class = np.zeros_like(transform)
        for symbol in np.unique(atoms.elements[classes == b_class]):
            chosen = (classes == b_class) & (atoms.elements == symbol)
            x, y, z = np.ascontiguousarray(phases[chosen].T)
            weights = atoms.occupancies[chosen].astype(np.complex128)
            sums = finufft.nufft3d1(z, y, x, weights, (box,) * 3, isign=-1, eps=TOLERANCE, nthreads=threads)
            of_class += sums * _radial(_scattering_factor(symbol), k_squared)
        transform += of_class * np.exp(-(bfactor + b_class * B_STEP) / 4 * k_squared)
    potential = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(transform))).real
    return (potential * (VOLT / pixel_size**3)).astype(np.float32)


def _scattering_factor(symbol: str) -> list[tuple[float, float]]:
    """Gaussians (a, b) of the sum a exp(-b k^2 / 4) of an atom in ice, A."""
    element = gemmi.Element(symbol)
    factors = element.c4322
    if factors is None or element.atomic_number == 0:  # gemmi has a stand-in for the unknown element X
        raise InputError("no electron scattering factor is known for the element", item="model", value=symbol,
                         remedy="remove or rename these atoms")
    hydrogen = gemmi.Element("H").c4322
    terms = list(zip(factors.a, factors.b, strict=True))
    terms += [(HYDROGENS.get(symbol, 0.0) * a, b + HYDROGEN_B) for a, b in zip(hydrogen.a, hydrogen.b, strict=True)]
    return [*terms, (-ICE * ATOM_VOLUME, 4 * np.pi * ATOM_VOLUME ** (2 / 3))]


def _radial(terms: list[tuple[float, float]], k_squared: NDArray[np.float64]) -> NDArray[np.float64]:
    # A table in k^2 is exact to 1e-7 and saves an exponential of the whole cube per term.
    table = np.linspace(0, k_squared.max(), 20001)
    values = sum(a * np.exp(-b / 4 * table) for a, b in terms)
    return np.interp(k_squared, table, values)
