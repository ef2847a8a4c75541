# SPDX-License-Identifier: GPL-3.0-or-later
"""Voxels near atoms: masks around a model or a chain, and the voxels of each residue."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.physics.masks import soft_edge

CHUNK = 2_000_000  # voxels handled at once
LARGEST_STENCIL = 6.0  # voxels


def near_voxels(
    positions: NDArray[np.float64], radius: float, grid: Grid
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of an atom and a voxel not farther than a radius from it.

    Parameters
    ----------
    positions
        A, shape (n, 3).
    radius
        A.

    Yields
    ------
    tuple of numpy.ndarray
        Numbers of atoms, and flat indices (C order) of voxels of the grid, some millions at a time; voxels outside of
        the box are left out.
    """
    index = grid.voxels(positions)[:, ::-1]
    base = np.rint(index).astype(np.int64)
    reach = int(np.ceil(radius / grid.pixel_size + 0.5))
    line = np.arange(-reach, reach + 1)
    stencil = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    # a voxel half a diagonal farther may still be near an atom that is off the centre of its voxel
    stencil = stencil[np.linalg.norm(stencil, axis=1) <= radius / grid.pixel_size + np.sqrt(3) / 2]
    per_chunk = max(1, CHUNK // len(stencil))
    for start in range(0, len(index), per_chunk):
        part = slice(start, start + per_chunk)
        voxel = base[part, None] + stencil
        distance2 = np.square(voxel - index[part, None]).sum(axis=2)
        is_near = (distance2 <= (radius / grid.pixel_size) ** 2) & ((voxel >= 0) & (voxel < grid.box)).all(axis=2)
        atom, place = np.nonzero(is_near)
        chosen = voxel[atom, place]
        yield atom + start, (chosen[:, 0] * grid.box + chosen[:, 1]) * grid.box + chosen[:, 2]


def around(positions: NDArray[np.float64], radius: float, grid: Grid) -> NDArray[np.bool_]:
    """Voxels not farther than a radius (A) from any position, shape (box, box, box).

    Beyond six voxels the radius is counted from the voxel nearest to each position, by a distance transform.
    """
    if radius > LARGEST_STENCIL * grid.pixel_size:
        index = np.rint(grid.voxels(positions)[:, ::-1]).astype(np.int64)
        seeds = np.zeros((grid.box,) * 3, dtype=bool)
        seeds[tuple(index[((index >= 0) & (index < grid.box)).all(axis=1)].T)] = True
        return soft_edge(seeds, radius / grid.pixel_size, 0.0) > 0 if seeds.any() else seeds
    core = np.zeros(grid.box**3, dtype=bool)
    for _, voxels in near_voxels(positions, radius, grid):
        core[voxels] = True
    return core.reshape((grid.box,) * 3)
