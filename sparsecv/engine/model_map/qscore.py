# SPDX-License-Identifier: GPL-3.0-or-later
"""Q-score: how well density around an atom follows the profile of a well-resolved one [Pintilie2020].

Density is read on spheres of growing radius about an atom, at points to which no other atom is near, and correlated
with exp(-r^2 / 2 sigma^2). The correlation does not see height and offset of the profile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from sparsecv.engine.model_map.frame import Grid

SIGMA = 0.4  # A, of the profile; EMDB's convention
STEP, REACH = 0.1, 2.0  # A, of the radii
POINTS = 8  # on each sphere, at least
CLEARANCE = 0.9  # of the radius: no other atom may be nearer to a point
ATTEMPTS = 50  # with two points more each time, until enough of them are free
CHUNK = 2000  # atoms handled at once


def q_scores(
    density: NDArray[np.float32], grid: Grid, positions: NDArray[np.float64], *, sigma: float = SIGMA
) -> NDArray[np.float64]:
    """Q-score of every atom.

    Parameters
    ----------
    density
        Map, (box, box, box).
    positions
        Of all atoms but hydrogens, A, shape (n, 3).
    sigma
        Of the profile, A: 0.4 as in EMDB's reports, 0.6 in reports before 2022.

    Returns
    -------
    numpy.ndarray
        In [-1, 1], shape (n,); NaN for atoms closer to the face of the box than the outermost sphere.
    """
    radii = np.linspace(STEP, REACH, round(REACH / STEP), dtype=np.float64)
    tree = cKDTree(positions)
    usable = grid.is_inside(positions, REACH)
    scores = np.full(len(positions), np.nan)
    chosen = np.flatnonzero(usable)
    for start in range(0, len(chosen), CHUNK):
        atoms = chosen[start : start + CHUNK]
        scores[atoms] = _scores(density, grid, positions, tree, atoms, radii, sigma)
    return scores


def spiral(count: int) -> NDArray[np.float64]:
    """Points spread evenly over the unit sphere, from pole to pole [Saff1997], shape (count, 3)."""
    heights = np.linspace(-1, 1, count)
    turns = np.zeros(count)
    for k in range(1, count - 1):
        turns[k] = (turns[k - 1] + 3.6 / np.sqrt(count * (1 - heights[k] ** 2))) % (2 * np.pi)
    flat = np.sqrt(np.maximum(1 - heights**2, 0))
    return np.column_stack([flat * np.cos(turns), flat * np.sin(turns), heights])


def _scores(
    density: NDArray[np.float32], grid: Grid, positions: NDArray[np.float64], tree: cKDTree,
    atoms: NDArray[np.int64], radii: NDArray[np.float64], sigma: float,
) -> NDArray[np.float64]:  # fmt: skip
    """Of some atoms, by running sums over the points of all spheres."""
    neighbours = _neighbours(positions, tree, atoms)
    centre = _read(density, grid, positions[atoms])
    sums = _RunningCorrelation(len(atoms))
    sums.add(np.arange(len(atoms)), np.repeat(centre[:, None], POINTS, axis=1), 1.0, np.ones((len(atoms), POINTS)))
    for radius in radii:
        expected = float(np.exp(-(radius**2) / (2 * sigma**2)))
        waiting = np.arange(len(atoms))
        for attempt in range(ATTEMPTS + 1):
            directions = spiral(POINTS + 2 * attempt)
            free = _is_free(directions, neighbours[waiting], radius)
            # the last attempt counts as it is, unless nothing at all is free
            enough = free.sum(axis=1) >= (POINTS if attempt < ATTEMPTS else 1)
            done = waiting[enough]
            if len(done):
                points = positions[atoms[done], None] + radius * directions
                sums.add(done, _read(density, grid, points), expected, free[enough])
            waiting = waiting[~enough]
            if not len(waiting):
                break
    return sums.correlation()


def _neighbours(positions: NDArray[np.float64], tree: cKDTree, atoms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Vectors to the other atoms that can be near to a point on any sphere, (atoms, most neighbours, 3); inf: none."""
    found = tree.query_ball_point(positions[atoms], (1 + CLEARANCE) * REACH)
    vectors = np.full((len(atoms), max(1, max(map(len, found)) - 1), 3), np.inf)
    for row, (atom, near) in enumerate(zip(atoms, found, strict=True)):
        others = [other for other in near if other != atom]
        vectors[row, : len(others)] = positions[others] - positions[atom]
    return vectors


def _is_free(directions: NDArray[np.float64], neighbours: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """Which points r u have no other atom v within 0.9 r, (atoms, points): u.v > (0.19 r^2 + v^2) / 2r is too near."""
    is_there = np.isfinite(neighbours[..., 0])
    vectors = np.where(is_there[..., None], neighbours, 0.0)
    limit = ((1 - CLEARANCE**2) * radius**2 + np.square(vectors).sum(axis=2)) / (2 * radius)
    limit[~is_there] = np.inf
    along = vectors @ directions.T
    free: NDArray[np.bool_] = ~(along > limit[..., None]).any(axis=1)
    return free


def _read(density: NDArray[np.float32], grid: Grid, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density at positions (..., 3), trilinear."""
    index = grid.voxels(positions.reshape(-1, 3))[:, ::-1]
    values: NDArray[np.float64] = ndimage.map_coordinates(density, index.T, output=np.float64, order=1, mode="nearest")
    return values.reshape(positions.shape[:-1])


class _RunningCorrelation:
    """Pearson's correlation of density and profile for many atoms, point by point."""

    def __init__(self, count: int) -> None:
        self._sums = np.zeros((6, count))

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float64], expected: float, free: NDArray) -> None:
        """Take in the free points of one sphere for some of the atoms."""
        number, total = free.sum(axis=1), (values * free).sum(axis=1)
        new = (number, total, (values**2 * free).sum(axis=1), expected * number, expected**2 * number, expected * total)
        for sums, part in zip(self._sums, new, strict=True):
            sums[rows] += part

    def correlation(self) -> NDArray[np.float64]:
        """0 where the density is constant."""
        n, x, xx, y, yy, xy = self._sums
        spread = np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0)
        found: NDArray[np.float64] = np.divide(xy - x * y / n, np.sqrt(spread), out=np.zeros_like(n), where=spread > 0)
        return np.clip(found, -1, 1)
