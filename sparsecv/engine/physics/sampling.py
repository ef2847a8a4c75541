# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of orientations and shifts that can be searched from coarse to fine.

Two kinds of orientation grid share one interface (cells, their rotations, their eight children):

* :class:`GlobalGrid`: HEALPix directions x in-plane angles [Gorski2005], one asymmetric unit of the point group, the
  whole grid turned by one random rotation per iteration. All images share it, so its slices are cut once.
* :class:`LocalGrid`: a cubic lattice of small rotation vectors around each particle's own prior rotation.

The cells of the coarsest level are listed on the host; everything else also works on a device's arrays, where ``xp`` is
its array module.

The angular step of order o is 60/2^o degrees (15, 7.5, 3.75 for o = 2, 3, 4), as in RELION.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import healpix
import numpy as np

from sparsecv.engine.physics.geometry import euler_to_matrix, rotvec_to_matrix
from sparsecv.engine.physics.symmetry import unique_directions


def angular_step(order: int) -> float:
    """Degrees between neighbours of a grid of this order."""
    return 60.0 / 2**order


@lru_cache(maxsize=16)
def _all_directions(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the nested HEALPix pixels of an order as rot and tilt in degrees, each (12 * 4^order,)."""
    nside = 2**order
    theta, phi = healpix.pix2ang(nside, np.arange(12 * nside * nside), nest=True)
    return np.rad2deg(phi), np.rad2deg(theta)


@dataclass(frozen=True)
class GlobalGrid:
    """HEALPix x in-plane grid shared by all images.

    Attributes
    ----------
    order
        Order of the coarsest level.
    turn
        (3, 3) random rotation of the whole grid: A = A_grid @ turn.
    matrices
        (G, 3, 3) point group.
    """

    order: int
    turn: np.ndarray
    matrices: np.ndarray

    def cells(self) -> np.ndarray:
        """Cells of the coarsest level, int64 (R, 2): nested HEALPix pixel and in-plane index."""
        rot, tilt = _all_directions(self.order)
        matrices = euler_to_matrix(rot, tilt, np.zeros_like(rot))
        kept = np.flatnonzero(unique_directions(matrices[:, 2, :] @ self.turn, self.matrices))
        turns = np.arange(6 * 2**self.order)
        return np.stack(np.broadcast_arrays(kept[:, None], turns[None, :]), axis=-1).reshape(-1, 2)

    def rotations(self, cells: Any, level: int, xp: Any = np) -> Any:
        """Rotations of the centres of cells, float64 (n, 3, 3); level 0 is the coarsest."""
        order = self.order + level
        psi = (cells[:, 1] + 0.5) * angular_step(order)
        # Rz(psi) @ (Ry(tilt) Rz(rot) turn): the direction part is looked up, as cells repeat directions many times.
        directions = _uploaded_directions(order, xp)[cells[:, 0]] @ xp.asarray(self.turn)
        c, s = xp.cos(xp.deg2rad(psi)), xp.sin(xp.deg2rad(psi))
        out = xp.empty_like(directions)
        out[:, 0] = c[:, None] * directions[:, 0] + s[:, None] * directions[:, 1]
        out[:, 1] = c[:, None] * directions[:, 1] - s[:, None] * directions[:, 0]
        out[:, 2] = directions[:, 2]
        return out

    def children(self, cells: Any, level: int, xp: Any = np) -> Any:
        """The eight cells of the next level inside each cell, (n, 8, 2)."""
        pixel = 4 * cells[:, None, 0] + xp.repeat(xp.arange(4), 2)[None, :]
        turn = 2 * cells[:, None, 1] + xp.tile(xp.arange(2), 4)[None, :]
        return xp.stack([pixel, turn], axis=-1)

    def log_prior(self, cells: Any, level: int, xp: Any = np) -> Any:
        """All orientations are equally likely: zeros (n,)."""
        return xp.zeros(len(cells))

    def step(self, level: int) -> float:
        """Degrees between neighbouring cells of a level."""
        return angular_step(self.order + level)


@lru_cache(maxsize=8)
def _direction_matrices(order: int) -> np.ndarray:
    rot, tilt = _all_directions(order)
    return euler_to_matrix(rot, tilt, np.zeros_like(rot))


@lru_cache(maxsize=8)
def _uploaded_directions(order: int, xp: Any) -> Any:
    return xp.asarray(_direction_matrices(order))


@dataclass(frozen=True)
class LocalGrid:
    """Lattice of small rotations around a prior rotation for each image.

    A cell is a rotation vector w in the image's frame (degrees): A = exp(w) A_prior, with the Gaussian prior
    exp(-|w|^2 / (2 sigma^2)) and nothing beyond 3 sigma.

    Attributes
    ----------
    spacing
        Degrees between neighbours at level 0.
    sigma
        Width of the prior, degrees.
    offset
        (3,) random offset of the lattice as a fraction of its spacing.
    """

    spacing: float
    sigma: float
    offset: np.ndarray

    def cells(self) -> np.ndarray:
        """Cells of level 0, float64 (R, 3), the same for every image."""
        reach = 3 * self.sigma
        count = int(np.ceil(reach / self.spacing)) + 1
        axis = np.arange(-count, count + 1)
        lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        vectors = (lattice + self.offset) * self.spacing
        # A cell belongs to the search when any part of it may lie within reach; there is always the nearest one.
        length = np.linalg.norm(vectors, axis=1)
        within = length <= reach + self.spacing / 2
        return vectors[within] if within.any() else vectors[[length.argmin()]]

    def rotations(self, cells: Any, level: int, xp: Any = np) -> Any:
        """Small rotations exp(w), (n, 3, 3), to be multiplied from the left to the prior rotation."""
        return rotvec_to_matrix(xp.deg2rad(cells), xp)

    def children(self, cells: Any, level: int, xp: Any = np) -> Any:
        """The eight cells of the next level inside each cell, (n, 8, 3)."""
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        return cells[:, None, :] + xp.asarray(corners[None] * (self.step(level) / 4))

    def log_prior(self, cells: Any, level: int, xp: Any = np) -> Any:
        """Gaussian log prior up to a constant, (n,)."""
        return -0.5 * (cells**2).sum(axis=1) / self.sigma**2

    def step(self, level: int) -> float:
        """Degrees between neighbouring cells of a level."""
        return self.spacing / 2**level


def shift_lattice(reach: float, step: float, offset: np.ndarray) -> np.ndarray:
    """Square lattice of shifts inside a circle.

    Parameters
    ----------
    reach, step
        Radius of the circle and spacing, pixels.
    offset
        (2,) offset of the lattice as a fraction of the step: it changes from iteration to iteration.

    Returns
    -------
    (T, 2) float64 (x, y) in pixels, at least one shift.
    """
    count = int(np.ceil(reach / step)) + 1
    axis = np.arange(-count, count + 1)
    lattice = (np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2) + offset) * step
    radius = np.hypot(lattice[:, 0], lattice[:, 1])
    kept = lattice[radius <= reach + step / 4]
    return kept if len(kept) else lattice[[radius.argmin()]]
