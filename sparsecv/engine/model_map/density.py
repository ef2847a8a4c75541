# SPDX-License-Identifier: GPL-3.0-or-later
"""The density of a model on the grid of a map: electron scattering of its atoms by gemmi, band-limited to the grid.

gemmi puts the atoms on a grid fine enough for them, of the same extent; its transform is cropped to the map's band and
freed of the blur that gemmi was asked for. Cell and box are the same, so Miller indices are those of the transform.
"""

from __future__ import annotations

import gemmi
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sparsecv.engine.model_map.atoms import ModelAtoms
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.physics.fourier import resize_transform

LARGEST_EXPONENT = 40.0  # of exp, so that float32 does not overflow
OVERSAMPLING = 1.5  # of the grid that gemmi fills: spacing = resolution / 3


def model_transform(atoms: ModelAtoms, grid: Grid, *, workers: int = 1) -> NDArray[np.complex64]:
    """Half transform of a model's density on a grid, phases about voxel (0, 0, 0).

    Parameters
    ----------
    atoms
        Those without weight are left out, and those outside the box, which would come in again on its other side.
    grid
        Where.

    Returns
    -------
    numpy.ndarray
        complex64, shape (box, box, box // 2 + 1); 0 on the Nyquist planes of an even box. The inverse transform is the
        density with the form factors of gemmi's ``DensityCalculatorE`` (C4322), up to a constant factor.
    """
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min = grid.nyquist
    calculator.rate = OVERSAMPLING
    fine = scipy.fft.next_fast_len(int(np.ceil(OVERSAMPLING * grid.box)), real=True)
    calculator.grid.set_size(fine, fine, fine)
    calculator.grid.set_unit_cell(cell_of(grid))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    model = in_box(atoms, grid)
    calculator.set_refmac_compatible_blur(model)
    calculator.add_model_density_to_grid(model)
    # gemmi's grid is (x, y, z) in Fortran order: its transpose is (z, y, x) as our maps
    transform = scipy.fft.rfftn(calculator.grid.array.T, workers=workers)
    blur = calculator.blur
    del calculator
    transform = resize_transform(transform, grid.box) * np.float32((grid.box / fine) ** 3)
    if blur:
        transform *= debye_waller(grid, -blur)
    return transform


def in_box(atoms: ModelAtoms, grid: Grid) -> gemmi.Model:
    """The atoms with weight that lie inside the box, in its frame: voxel (0, 0, 0) is at 0."""
    usable = grid.is_inside(atoms.positions) & (atoms.weights > 0)
    model = gemmi.Model(1)
    residue = model.add_chain(gemmi.Chain("A")).add_residue(gemmi.Residue())
    for found, position, is_used in zip(atoms.structure[0].all(), atoms.positions - grid.origin, usable, strict=True):
        if is_used:
            residue.add_atom(found.atom)
            residue[-1].pos = gemmi.Position(*position)
    return model


def cell_of(grid: Grid) -> gemmi.UnitCell:
    """The box as a cell without symmetry."""
    return gemmi.UnitCell(grid.length, grid.length, grid.length, 90, 90, 90)


def debye_waller(grid: Grid, b_factor: float) -> NDArray[np.float32]:
    """exp(-B s^2 / 4) on the half transform of a grid; a negative B sharpens."""
    axis = (-b_factor / 4 * np.fft.fftfreq(grid.box, grid.pixel_size) ** 2).astype(np.float32)
    last = (-b_factor / 4 * (np.arange(grid.box // 2 + 1) / grid.length) ** 2).astype(np.float32)
    exponent: NDArray[np.float32] = axis[:, None, None] + axis[:, None] + last
    np.clip(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT, out=exponent)
    np.exp(exponent, out=exponent)
    return exponent


def to_map(transform: NDArray[np.complex64], *, workers: int = 1) -> NDArray[np.float32]:
    """Inverse of a half transform whose phases refer to voxel (0, 0, 0), (box, box, box)."""
    box = transform.shape[0]
    density: NDArray[np.float32] = scipy.fft.irfftn(transform, s=(box,) * 3, workers=workers)
    return density


def to_transform(density: NDArray[np.float32], *, workers: int = 1) -> NDArray[np.complex64]:
    """Half transform of a map, phases about voxel (0, 0, 0)."""
    transform: NDArray[np.complex64] = scipy.fft.rfftn(density, workers=workers)
    return transform
