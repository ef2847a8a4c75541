# SPDX-License-Identifier: GPL-3.0-or-later
"""Detergent belts: the membrane of a model, and a disordered belt about it that differs from particle to particle.

A belt has an alkyl core and a denser shell of head groups. Its radius, height, ellipticity, undulation, place, tilt,
density and texture are drawn anew for every particle, so that belts blur when particles are averaged, as real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from sparsecv.engine.errors import InputError
from sparsecv.engine.simulate.potential import Atoms

# Free energies of transfer from the membrane to water, kcal/mol (Engelman, Steitz & Goldman 1986, table 1).
TRANSFER_ENERGY = {
    "PHE": 3.7, "MET": 3.4, "ILE": 3.1, "LEU": 2.8, "VAL": 2.6, "CYS": 2.0, "TRP": 1.9, "ALA": 1.6, "THR": 1.2,
    "GLY": 1.0, "SER": 0.6, "PRO": -0.2, "TYR": -0.7, "HIS": -3.0, "GLN": -4.1, "ASN": -4.8, "GLU": -8.2, "LYS": -8.8,
    "ASP": -9.2, "ARG": -12.3,
}
HALF_THICKNESS = 15.0  # A, of the hydrophobic slab
CORE, HEAD = 1.4, 2.3  # V against ice: alkyl chains; hydrated sugar head groups
HEAD_THICKNESS = 6.0  # A
SOFTNESS = 1.2  # A, of the belt's surfaces
TEXTURE_LENGTH, TEXTURE_AMPLITUDE = 8.0, 0.25  # A, and relative to the density
FINEST_PIXEL = 4.0  # A: a belt has no detail that would need a finer grid
WIDEST = 42.0  # A from the protein to the edge of the widest belt


@dataclass(frozen=True)
class Membrane:
    """A hydrophobic slab: its centre (A), its unit normal, and the radius of the protein in it (A)."""

    centre: NDArray[np.float64]
    normal: NDArray[np.float64]
    radius: float


def find_membrane(atoms: Atoms, *, directions: int = 1500, step: float = 1.5) -> Membrane:
    """The slab that has the most hydrophobic and the fewest polar residues exposed to it.

    Parameters
    ----------
    atoms
        The particle.
    directions, step
        Normals that are tried, and the step between trial slabs in A.

    Raises
    ------
    InputError
        Where fewer than 20 amino acids are found.
    """
    is_amino_acid = np.isin(atoms.residues, list(TRANSFER_ENERGY))
    ids, last = np.unique(atoms.residue_ids[is_amino_acid][::-1], return_index=True)
    if len(ids) < 20:
        raise InputError("too few amino acids to find a membrane", item="belt", value=len(ids), rule="20 or more",
                         remedy="simulate without a belt")
    # The last atom of a residue, the tip of its side chain, stands for it.
    tips = np.flatnonzero(is_amino_acid)[::-1][last]
    points = atoms.positions[tips]
    energies = np.array([TRANSFER_ENERGY[name] for name in atoms.residues[tips]])
    neighbours = cKDTree(atoms.positions[is_amino_acid]).query_ball_point(points, 10.0, return_length=True)
    exposure = np.clip(1.3 - neighbours / np.percentile(neighbours, 90), 0, 1)
    weights = exposure * energies
    best_score, normal, height = -np.inf, np.array([0.0, 0.0, 1.0]), 0.0
    for direction in _half_sphere(directions):
        heights = points @ direction
        order = np.argsort(heights)
        sums = np.concatenate([[0.0], np.cumsum(weights[order])])
        centres = np.arange(heights.min(), heights.max() + step, step)
        first = np.searchsorted(heights[order], centres - HALF_THICKNESS)
        end = np.searchsorted(heights[order], centres + HALF_THICKNESS)
        inside = sums[end] - sums[first]
        scores = 1.5 * inside - 0.5 * sums[-1]  # inside minus half of what is outside
        if scores.max() > best_score:
            best_score, normal, height = float(scores.max()), direction, float(centres[scores.argmax()])
    return membrane_at(atoms, normal, height)


def membrane_at(atoms: Atoms, normal: NDArray[np.float64], height: float) -> Membrane:
    """The slab across ``normal`` (a unit vector) at ``height`` A from the origin, about the amino acids in it."""
    in_slab = np.abs(atoms.positions @ normal - height) < HALF_THICKNESS
    slab = atoms.positions[in_slab & np.isin(atoms.residues, list(TRANSFER_ENERGY))]
    centre = slab.mean(axis=0)
    centre = centre + normal * (height - centre @ normal)
    from_axis = slab - centre - np.outer((slab - centre) @ normal, normal)
    return Membrane(centre, normal, float(np.percentile(np.linalg.norm(from_axis, axis=1), 90)))


def _half_sphere(count: int) -> NDArray[np.float64]:
    """Directions spread evenly over a half sphere along a spiral, shape (count, 3)."""
    number = np.arange(count) + 0.5
    z, azimuth = 1 - number / count, np.pi * (1 + 5**0.5) * number
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z], axis=1)


class BeltModel:
    """Draws belts around one protein.

    Parameters
    ----------
    protein
        Where the protein is, 0 to 1, shape (n, n, n), axes (z, y, x), centre at n//2: belts keep out of it.
    pixel_size
        A.
    membrane
        Where the belt runs.

    Attributes
    ----------
    box, pixel_size
        Of the grid that belts are made on: 4 A, or the map's pixel size where that is larger.
    centre
        Place of the grid's centre, voxel box//2, in the frame of the map, A.
    """

    def __init__(self, protein: NDArray[np.float32], pixel_size: float, membrane: Membrane) -> None:
        self.pixel_size, self.centre = max(FINEST_PIXEL, pixel_size), membrane.centre
        self.box = 2 * int(np.ceil(1.2 * (membrane.radius + WIDEST) / self.pixel_size))
        axis = ((np.arange(self.box) - self.box // 2) * self.pixel_size).astype(np.float32)
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        self._grid = np.stack([x, y, z]).reshape(3, -1)
        in_map = (self._grid[::-1] + self.centre[::-1, None]) / pixel_size + protein.shape[0] // 2
        self._outside = 1 - map_coordinates(protein, in_map, order=1).reshape((self.box,) * 3)
        self._membrane = membrane
        k, k_last = np.fft.fftfreq(self.box, self.pixel_size), np.fft.rfftfreq(self.box, self.pixel_size)
        k_squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k_last[None, None, :] ** 2
        self._texture_filter = np.exp(-1.2 * TEXTURE_LENGTH**2 * k_squared).astype(np.float32)

    def volume(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One belt, axes as the map's, volts against ice, shape (box, box, box)."""
        axes, centre = self._frame(rng)
        u, v, w = axes.astype(np.float32) @ self._grid - (axes @ centre).astype(np.float32)[:, None]
        thickness, half_height = rng.normal(20, 2.5), rng.normal(14, 1.2)
        ellipticity, long_axis = rng.uniform(0, 0.2), rng.uniform(0, np.pi)
        azimuth = np.arctan2(v, u)
        radius = (self._membrane.radius + thickness) * (1 + ellipticity * np.cos(2 * (azimuth - long_axis)))
        for wave in (3, 4, 5):
            radius *= 1 + rng.normal(0, 0.03) * np.cos(wave * azimuth + rng.uniform(0, 2 * np.pi))
        height = np.abs(w - rng.normal(0, 1.5) * np.cos(azimuth - rng.uniform(0, 2 * np.pi)))
        from_axis = np.hypot(u, v)
        core = _soft_inside(from_axis, height, radius, half_height)
        shell = _soft_inside(from_axis, height, radius + HEAD_THICKNESS, half_height + HEAD_THICKNESS) - core
        density = (CORE * core + HEAD * np.clip(shell, 0, 1)) * rng.normal(1, 0.1)
        belt = density.reshape((self.box,) * 3) * (1 + self._texture(rng)) * self._outside
        return belt.astype(np.float32)

    def _frame(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows (u, v, normal) and centre (A, on the grid) of a belt that is slightly tilted and moved."""
        normal = self._membrane.normal
        u = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
        u /= np.linalg.norm(u)
        tilts = rng.normal(0, np.deg2rad(4), 2)
        w = normal + tilts[0] * u + tilts[1] * np.cross(normal, u)
        w /= np.linalg.norm(w)
        u = u - (u @ w) * w
        u /= np.linalg.norm(u)
        return np.stack([u, np.cross(w, u), w]), rng.normal(0, 2, 3)

    def _texture(self, rng: np.random.Generator) -> NDArray[np.float32]:
        noise = scipy.fft.rfftn(rng.standard_normal((self.box,) * 3, dtype=np.float32))
        texture = scipy.fft.irfftn(noise * self._texture_filter, s=(self.box,) * 3)
        return texture * (TEXTURE_AMPLITUDE / texture.std())


def _soft_inside(from_axis: NDArray, height: NDArray, radius: NDArray, half_height: float) -> NDArray:
    """1 inside a rounded disc, 0 outside of it, with a soft surface."""
    form = ((from_axis / radius) ** 2.6 + (height / half_height) ** 2.6) ** (1 / 2.6)
    return 1 / (1 + np.exp(np.clip((form - 1) * half_height / SOFTNESS, -30, 30)))
