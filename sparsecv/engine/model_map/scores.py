# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores of a model in a map: of the whole, of chains, residues and atoms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sparsecv.engine.model_map.atoms import ModelAtoms
from sparsecv.engine.model_map.correlations import (
    Correlations,
    correlations,
    cut_off,
    group_correlations,
    included,
    level_of_volume,
    molecule_voxels,
    radius_of,
    seen_to,
)
from sparsecv.engine.model_map.density import to_transform
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.model_map.qscore import q_scores

LEVELS = 60  # of the curve of inclusion


@dataclass(frozen=True)
class GroupScores:
    """Scores of residues or chains, one row each: float64 (n,), NaN where there is none.

    Attributes
    ----------
    correlation
        Of map and model density near the atoms.
    q_score
        Mean over the atoms but hydrogens.
    inclusion
        Share of those atoms above the level.
    atoms
        How many of them.
    """

    correlation: NDArray[np.float64]
    q_score: NDArray[np.float64]
    inclusion: NDArray[np.float64]
    atoms: NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """All scores.

    Attributes
    ----------
    whole
        CC_box, CC_mask, CC_volume, CC_peaks.
    radius
        About an atom, for the correlations of residues and chains, A.
    atom_q, atom_density
        Of every atom in the order of the model, (n,): Q-score (NaN: hydrogens, and atoms at the face of the box), and
        density of the map (NaN: outside of it).
    residues, chains
        In the order of the model.
    q_score
        Mean over the atoms.
    level
        Of the contour.
    inclusion, inclusion_backbone
        Shares of atoms but hydrogens above it.
    inclusion_levels, inclusion_curve, inclusion_curve_backbone
        The same against the level, from the map's mean to its highest value.
    map_seen_to, model_seen_to
        Resolution beyond which nothing can be seen, A (``correlations.seen_to``); the model's with its B-factors.
    notes
        What was done.
    """

    whole: Correlations
    radius: float
    atom_q: NDArray[np.float64]
    atom_density: NDArray[np.float64]
    residues: GroupScores
    chains: GroupScores
    q_score: float
    level: float
    inclusion: float
    inclusion_backbone: float
    inclusion_levels: NDArray[np.float64]
    inclusion_curve: NDArray[np.float64]
    inclusion_curve_backbone: NDArray[np.float64]
    map_seen_to: float
    model_seen_to: float
    notes: tuple[str, ...]

    def worst(self, atoms: ModelAtoms, count: int) -> list[int]:
        """Numbers of the polymer's residues with the lowest Q-scores, the lowest first."""
        order = np.argsort(np.where(np.isfinite(self.residues.q_score), self.residues.q_score, np.inf))
        polymer = [int(k) for k in order if atoms.residues[k].is_polymer and np.isfinite(self.residues.q_score[k])]
        return polymer[:count]


def assess(
    density: NDArray[np.float32], calculated: NDArray[np.complex64], atoms: ModelAtoms, grid: Grid, resolution: float,
    level: float | None = None, q_sigma: float = 0.4, workers: int = 1,
) -> Scores:  # fmt: skip
    """Score a model in a map.

    Parameters
    ----------
    density
        The map, (box, box, box).
    calculated
        Half transform of the model's density.
    resolution
        At which the model's density is cut off for correlations, A.
    level
        Of the contour; None: the surface that encloses as many voxels as the molecule has.
    q_sigma
        Of the profile of Q-scores, A.
    """
    model = cut_off(calculated, resolution, grid, workers)
    molecule = molecule_voxels(atoms, grid)
    notes = [f"correlations: the model's density to {resolution:.2f} A against the map as it is"]
    radius = radius_of(resolution)
    notes.append(f"residues and chains: voxels within {radius:.2f} A of their atoms")
    if level is None:
        level, is_clear = level_of_volume(density, int(molecule.sum()))
        text = f"its surface encloses as much volume as the model, {int(molecule.sum())} voxels"
        if not is_clear:
            text = "the map is flat outside of less volume than the model has; inside is what is above that plateau"
        notes.append(f"contour level {level:.4g}: {text}")
    heavy = atoms.is_heavy
    atom_q = np.full(len(atoms), np.nan)
    atom_q[heavy] = q_scores(density, grid, atoms.positions[heavy], sigma=q_sigma)
    values = densities_at(density, grid, atoms.positions)
    groups = [
        _group(group, count, density, model, atoms, grid, radius, atom_q, values, level)
        for group, count in ((atoms.residue_of, len(atoms.residues)), (atoms.chain_of, len(atoms.chains)))
    ]
    levels = np.linspace(float(density.mean()), float(density.max()), LEVELS)
    backbone = heavy & atoms.is_backbone
    return Scores(
        whole=correlations(density, model, molecule), radius=radius, atom_q=atom_q, atom_density=values,
        residues=groups[0], chains=groups[1], q_score=_mean(atom_q), level=level,
        inclusion=included(values, level, heavy), inclusion_backbone=included(values, level, backbone),
        inclusion_levels=levels, inclusion_curve=np.array([included(values, one, heavy) for one in levels]),
        inclusion_curve_backbone=np.array([included(values, one, backbone) for one in levels]),
        map_seen_to=seen_to(to_transform(density, workers=workers), grid), model_seen_to=seen_to(calculated, grid),
        notes=tuple(notes),
    )  # fmt: skip


def densities_at(density: NDArray[np.float32], grid: Grid, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density at positions (n, 3), A, trilinear; NaN outside of the box."""
    index = grid.voxels(positions)
    values: NDArray[np.float64] = ndimage.map_coordinates(density, index[:, ::-1].T, output=np.float64, order=1)
    return np.where(grid.is_inside(positions), values, np.nan)


def _group(
    group: NDArray[np.int64], count: int, density: NDArray[np.float32], model: NDArray[np.float32], atoms: ModelAtoms,
    grid: Grid, radius: float, atom_q: NDArray[np.float64], values: NDArray[np.float64], level: float,
) -> GroupScores:  # fmt: skip
    heavy = atoms.is_heavy
    above = np.where(np.isfinite(values), values > level, np.nan)
    return GroupScores(
        group_correlations(density, model, atoms, group, count, radius, grid),
        _means(atom_q, group, count), _means(np.where(heavy, above, np.nan), group, count),
        np.bincount(group[heavy], minlength=count),
    )  # fmt: skip


def _means(values: NDArray[np.float64], group: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Mean of each group without its NaN."""
    known = np.isfinite(values)
    total = np.bincount(group[known], values[known], minlength=count)
    number = np.bincount(group[known], minlength=count)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


