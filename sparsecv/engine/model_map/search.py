# SPDX-License-Identifier: GPL-3.0-or-later
"""Global search for the place of a model in a map: all rotations of a grid, for each of them all translations at once.

For each rotation R the sum of a filtered map over the atoms, sum_j w_j M(R x_j + t), is for all t one correlation of M
with the weights put down on its grid, by fast Fourier transforms. The best places then climb as in ``fit``.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.model_map.atoms import ModelAtoms, Motion
from sparsecv.engine.model_map.fit import (
    STAGES,
    Field,
    filtered,
    gaussian_correlation,
    refine_starts,
    scattering,
    stages,
)
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.physics.sampling import GlobalGrid

ORDER = 2  # of the grid of rotations: 15 degrees
FINEST, COARSEST = 8.0, 25.0  # A: between these the resolution of the search follows from the size of the model
KEPT = 48  # places that climb
PER_ROTATION = 3  # of them, at most
FEWEST_VOXELS = 8  # along a side of the coarse map
POINTS = 800  # atoms put down on the grid
SAMPLES = 2.2  # voxels along the finest wavelength: peaks are much wider
BATCH = 16  # rotations at once


def fit_global(observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, *, workers: int = 1) -> Motion:
    """Find a model's place in a map, wherever it stands and however it is turned.

    Parameters
    ----------
    observed
        Half transform of the map on the grid, phases about voxel (0, 0, 0).
    atoms
        The model; where it stands does not matter.

    Returns
    -------
    Motion
        To be applied to the model.

    Raises
    ------
    InputError
        If the model is larger than the box of the map.
    """
    few = scattering(atoms, POINTS)
    centre = atoms.centre
    arms = few.positions - centre
    radius = float(np.linalg.norm(arms, axis=1).max())
    if 2 * radius > np.sqrt(3) * grid.length:
        raise InputError("the model is larger than the box of the map", value=f"{2 * radius:.0f} A across",
                         rule=f"at most {np.sqrt(3) * grid.length:.0f} A", remedy="check the pixel size")
    gyration = float(np.sqrt(np.square(arms).sum(axis=1).mean()))
    resolution = float(np.clip(2 * gyration * np.deg2rad(15.0), FINEST, COARSEST))
    resolution = min(max(resolution, grid.nyquist), 2 * grid.length / FEWEST_VOXELS)
    finest = max(resolution / 1.5, grid.nyquist)
    field = filtered(observed, grid, gaussian_correlation(grid, resolution), finest, workers, SAMPLES)
    rotations, places = _best_places(field, arms, few.weights / few.weights.sum(), radius, workers)
    starts = [Motion(rotation, place - centre, centre) for rotation, place in zip(rotations, places, strict=True)]
    fine = [field, *stages(observed, grid, workers, [d for d in STAGES if d < resolution])]
    return refine_starts(fine, observed, grid, atoms, starts, workers)


def _best_places(
    field: Field, arms: NDArray[np.float64], weights: NDArray[np.float64], radius: float, workers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations (k, 3, 3) and positions (k, 3) of the model's centre, A, with the highest sums; best first."""
    grid = field.grid
    density = field.density
    # empty space for the atoms that stick out when the centre is inside, so that none comes in again behind
    padded = int(scipy.fft.next_fast_len(grid.box + int(np.ceil(radius / grid.pixel_size)), real=True))
    transform = scipy.fft.rfftn(density, s=(padded,) * 3, workers=workers)
    search = GlobalGrid(ORDER, Rotation.random(random_state=np.random.RandomState(1)).as_matrix(), np.eye(3)[None])
    rotations = search.rotations(search.cells(), 0)
    best: list[tuple[float, int, NDArray[np.float64]]] = []
    for first in range(0, len(rotations), BATCH):
        turned = [arms @ rotation.T / grid.pixel_size for rotation in rotations[first : first + BATCH]]
        points = np.stack([_put_down(voxels, weights, padded) for voxels in turned])
        spectra = np.conj(scipy.fft.rfftn(points, axes=(1, 2, 3), workers=workers)) * transform
        sums = scipy.fft.irfftn(spectra, s=(padded,) * 3, axes=(1, 2, 3), workers=workers)
        for number, found in enumerate(sums[:, : grid.box, : grid.box, : grid.box], first):
            best += [(value, number, grid.origin + place[::-1] * grid.pixel_size) for value, place in _peaks(found)]
    best = sorted(best, key=lambda one: -one[0])[:KEPT]
    return rotations[[number for _, number, _ in best]], np.array([place for _, _, place in best])


def _put_down(voxels: NDArray[np.float64], weights: NDArray[np.float64], box: int) -> NDArray[np.float32]:
    """Weights at fractional places (x, y, z) about index 0, shared among the eight voxels around each, periodic."""
    base = np.floor(voxels).astype(np.int64)
    part = voxels - base
    corners = np.array(list(np.ndindex(2, 2, 2)))
    shares = weights * np.prod(np.where(corners[:, None], part, 1 - part), axis=2)
    x, y, z = np.moveaxis((base + corners[:, None]) % box, 2, 0)
    flat = np.bincount(((z * box + y) * box + x).ravel(), shares.ravel(), minlength=box**3)
    return flat.reshape((box,) * 3).astype(np.float32)


def _peaks(sums: NDArray[np.float32]) -> list[tuple[float, NDArray[np.int64]]]:
    """The highest places, no two of them within two voxels of each other."""
    found = []
    left = sums.copy()
    for _ in range(PER_ROTATION):
        place = np.array(np.unravel_index(int(np.argmax(left)), left.shape))
        found.append((float(left[tuple(place)]), place))
        left[tuple(slice(max(0, p - 2), p + 3) for p in place)] = -np.inf
    return found
