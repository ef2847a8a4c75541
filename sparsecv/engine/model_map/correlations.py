# SPDX-License-Identifier: GPL-3.0-or-later
"""Real-space correlation of a map and a model's density: of the whole, of chains and of residues [Afonine2018].

Also the resolution beyond which a map holds nothing that could be seen, and the share of atoms inside a surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.model_map.atoms import ModelAtoms
from sparsecv.engine.model_map.density import cell_of, in_box, to_map
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.model_map.neighbourhood import near_voxels
from sparsecv.engine.physics.fourier import shell_sums

# about an atom, for residues and chains: of the resolution, and A
RADIUS_OF_RESOLUTION, SMALLEST_RADIUS, LARGEST_RADIUS = 0.7, 1.5, 5.0
SAME = 0.99  # correlation at which a low-passed map counts as the map itself


@dataclass(frozen=True)
class Correlations:
    """Pearson correlations of a map and a model's density.

    Attributes
    ----------
    box
        Over all voxels.
    mask
        Inside the molecule, as crystallographers separate it from bulk solvent (gemmi's SolventMasker).
    volume
        Over the voxels of highest model density, as many as the mask has.
    peaks
        Over the union of those and of as many voxels of highest map density.
    mask_voxels
        How many.
    """

    box: float
    mask: float
    volume: float
    peaks: float
    mask_voxels: int


def correlations(density: NDArray[np.float32], model: NDArray[np.float32], molecule: NDArray[np.bool_]) -> Correlations:
    """The four correlations of a map and a model's density, each (box, box, box), given the voxels of the molecule."""
    flat, calculated = density.ravel(), model.ravel()
    count = int(molecule.sum())
    high = _highest(calculated, count)
    peaks = high | _highest(flat, count)
    inside = molecule.ravel()
    return Correlations(
        pearson(flat, calculated), pearson(flat[inside], calculated[inside]), pearson(flat[high], calculated[high]),
        pearson(flat[peaks], calculated[peaks]), count,
    )  # fmt: skip


def pearson(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Correlation of two samples; 0 where one of them is constant or empty."""
    if first.size < 2:
        return 0.0
    x, y = (values - values.mean(dtype=np.float64) for values in (first, second))
    spread = float(np.sqrt(np.dot(x, x) * np.dot(y, y)))
    return float(np.dot(x, y) / spread) if spread > 0 else 0.0


def molecule_voxels(atoms: ModelAtoms, grid: Grid) -> NDArray[np.bool_]:
    """Voxels of the molecule rather than of bulk solvent: van der Waals radii, a probe rolled over them."""
    solvent = gemmi.Int8Grid(grid.box, grid.box, grid.box)
    solvent.set_unit_cell(cell_of(grid))
    solvent.spacegroup = gemmi.SpaceGroup("P 1")
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_int8_grid(solvent, in_box(atoms, grid))
    molecule: NDArray[np.bool_] = np.ascontiguousarray(solvent.array.T) == 0
    return molecule


def radius_of(resolution: float) -> float:
    """Distance from an atom up to which voxels count as its residue's, A."""
    return min(max(SMALLEST_RADIUS, RADIUS_OF_RESOLUTION * resolution), LARGEST_RADIUS)


def group_correlations(
    density: NDArray[np.float32], model: NDArray[np.float32], atoms: ModelAtoms, group: NDArray[np.int64],
    count: int, radius: float, grid: Grid,
) -> NDArray[np.float64]:  # fmt: skip
    """Correlation of map and model over the voxels near to each group of atoms.

    Parameters
    ----------
    density, model
        (box, box, box).
    group
        Of each atom, 0 ... count - 1, (n,).
    radius
        A.

    Returns
    -------
    numpy.ndarray
        (count,), NaN for a group without voxels. A voxel near to several atoms of a group counts once.
    """
    size = grid.box**3
    flat, calculated = density.ravel(), model.ravel()
    pairs = np.unique(np.concatenate([
        np.unique(group[atom] * size + voxel) for atom, voxel in near_voxels(atoms.positions, radius, grid)
    ]))  # fmt: skip
    which, voxel = pairs // size, pairs % size
    x, y = (values[voxel].astype(np.float64) for values in (flat, calculated))
    # about the mean of each group, so that nothing is lost to cancellation
    number = np.bincount(which, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        for values in (x, y):
            values -= (np.bincount(which, values, minlength=count) / number)[which]
        spread = np.bincount(which, x * x, minlength=count) * np.bincount(which, y * y, minlength=count)
        found: NDArray[np.float64] = np.bincount(which, x * y, minlength=count) / np.sqrt(spread)
    return found


def seen_to(transform: NDArray[np.complex64], grid: Grid) -> float:
    """Resolution d at which the map, cut off there, still correlates with itself to 0.99, A: phenix's d99.

    What is finer hardly changes how the map looks. Nyquist's where that much power lies in the last shell.
    """
    power = shell_sums(transform.real**2 + transform.imag**2)
    power[0] = 0.0
    if not power.any():
        return grid.length
    kept = np.sqrt(np.cumsum(power) / power.sum())
    last = int(np.argmax(kept >= SAME))
    return max(grid.length / max(last, 1), grid.nyquist)


def cut_off(transform: NDArray[np.complex64], resolution: float, grid: Grid, workers: int = 1) -> NDArray[np.float32]:
    """The map of a half transform without what is finer than a resolution (A), sharply cut off."""
    k2 = (np.fft.fftfreq(grid.box, grid.pixel_size) ** 2).astype(np.float32)
    kx2 = ((np.arange(grid.box // 2 + 1) / grid.length) ** 2).astype(np.float32)
    kept = k2[:, None, None] + k2[:, None] + kx2 <= 1 / resolution**2
    return to_map(transform * kept, workers=workers)


def included(values: NDArray[np.float64], level: float, which: NDArray[np.bool_]) -> float:
    """Share of some atoms, of all whose density is known, that lie above a level; NaN without any."""
    counted = which & np.isfinite(values)
    return float((values[counted] > level).mean()) if counted.any() else float("nan")


def level_of_volume(density: NDArray[np.float32], voxels: int) -> tuple[float, bool]:
    """Level whose surface encloses a number of voxels, and whether there is one.

    There is none on a plateau, as outside of a mask that a map was multiplied by: the level is then that of the
    plateau.
    """
    values = density.ravel()
    level = _level_of(values, voxels)
    above, with_level = int((values > level).sum()), int((values >= level).sum())
    return level, with_level - above <= max(1, voxels // 100)


def _highest(values: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """The voxels of the highest values, exactly so many of them; ties are broken by their order."""
    chosen = np.zeros(values.size, dtype=bool)
    count = min(max(count, 1), values.size)
    chosen[np.argpartition(values, values.size - count)[values.size - count :]] = True
    return chosen


def _level_of(values: NDArray[np.float32], count: int) -> float:
    """The count-th highest value."""
    count = min(max(count, 1), values.size)
    return float(np.partition(values, values.size - count)[values.size - count])
