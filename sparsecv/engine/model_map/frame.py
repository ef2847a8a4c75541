# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a map stands in the frame of a model: its cubic grid, its origin, and whether the model is inside."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import Map

FRAMES = ("header", "scipion", "centred")
MARGIN = 6.0  # A of empty space that a map cut out of a larger one gets, so that masks keep their edges
LEAST_INSIDE = 0.5  # of the atoms; fewer inside the box: map and model do not belong together as they stand


@dataclass(frozen=True)
class Grid:
    """A cubic grid in the frame of the model.

    Attributes
    ----------
    box
        Voxels along a side.
    pixel_size
        A.
    origin
        Position (x, y, z) of voxel (0, 0, 0), A.
    bounds
        Lowest and highest corner of what was measured, A, each (x, y, z): smaller than the cube where that was made of
        a cut-out; None: all of it.
    """

    box: int
    pixel_size: float
    origin: NDArray[np.float64]
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def length(self) -> float:
        """Side of the box, A."""
        return self.box * self.pixel_size

    @property
    def nyquist(self) -> float:
        """Finest resolution that the grid can hold, A."""
        return 2 * self.pixel_size

    def voxels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions (x, y, z) in A as fractional indices (x, y, z), shape (n, 3)."""
        return (positions - self.origin) / self.pixel_size

    def sampled(self, box: int) -> Grid:
        """The same cube with other voxels."""
        return replace(self, box=box, pixel_size=self.length / box)

    def coarser(self, finest: float, samples: float = 2.0) -> Grid:
        """The same cube with that many voxels in the finest resolution (A) at least, and no more than it has."""
        box = int(scipy.fft.next_fast_len(int(np.ceil(samples * self.length / finest)), real=True))
        return self.sampled(min(self.box, box))

    def is_inside(self, positions: NDArray[np.float64], reach: float = 0.0) -> NDArray[np.bool_]:
        """Which positions lie, with a sphere of a radius (A) about them, within the outermost measured voxels, (n,)."""
        low, high = self.bounds or (self.origin, self.origin + (self.box - 1) * self.pixel_size)
        return np.asarray(((positions - reach >= low) & (positions + reach <= high)).all(axis=1))


def origin_in(frame: str, density: Map, given: tuple[float, float, float] | None = None) -> NDArray[np.float64]:
    """Position (x, y, z) of voxel (0, 0, 0) in a frame, A.

    Parameters
    ----------
    frame
        "header": what the MRC header says, ORIGIN or else NSTART. "scipion": ``given``, and without one Scipion's
        default, -n/2 voxels on each axis. "centred": voxel n // 2 is at 0, as in this program's own maps.
    given
        Origin of a Scipion volume (``Volume.getShiftsFromOrigin``), A.
    """
    sides = np.array(density.data.shape[::-1])
    if frame == "header":
        return np.array(density.origin)
    if frame == "centred":
        return -(sides // 2) * density.pixel_size
    return np.array(given) if given is not None else -sides / 2 * density.pixel_size


def on_cube(
    density: Map, frame: str, given: tuple[float, float, float] | None = None
) -> tuple[NDArray[np.float32], Grid, list[str]]:
    """A map on a cubic grid, placed in a frame, and sentences about what was done to it.

    Notes
    -----
    A map whose sides differ was cut out of a larger one: it is surrounded by its solvent, the median of its faces, at
    least ``MARGIN`` on every side, to a cube that transforms fast. Voxels keep their values and places.
    """
    sides = np.array(density.data.shape[::-1])
    origin = origin_in(frame, density, given)
    if len(set(sides.tolist())) == 1:
        return density.data, Grid(int(sides[0]), density.pixel_size, origin), []
    margin = int(np.ceil(MARGIN / density.pixel_size))
    box = int(scipy.fft.next_fast_len(int(sides.max()) + 2 * margin, real=True))
    box += box % 2
    before = (box - sides) // 2
    faces = [density.data.take(index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
    solvent = float(np.median(np.concatenate(faces)))
    cube = np.full((box,) * 3, solvent, dtype=np.float32)
    z, y, x = (slice(start, start + side) for start, side in zip(before[::-1], sides[::-1], strict=True))
    cube[z, y, x] = density.data
    said = [f"the map of {' x '.join(map(str, sides.tolist()))} voxels is surrounded by the median of its faces, "
            f"{solvent:.4g}, to a cube of {box}"]  # fmt: skip
    bounds = origin, origin + (sides - 1) * density.pixel_size
    return cube, Grid(box, density.pixel_size, origin - before * density.pixel_size, bounds), said


def check_inside(positions: NDArray[np.float64], density: Map, frame: str,
                 given: tuple[float, float, float] | None = None) -> list[str]:  # fmt: skip
    """Refuse a model of which less than half lies inside the box of a map; say when some of it does not.

    Raises
    ------
    InputError
        Names the frame in which the model would be inside, where there is one.
    """
    shares = {name: _share_inside(positions, density, name, given) for name in FRAMES}
    if shares[frame] >= LEAST_INSIDE:
        outside = round((1 - shares[frame]) * len(positions))
        return [f"{outside} atoms lie outside the box of the map: they are left out, and not scored"] if outside else []
    low, high = (np.round(edge, 1).tolist() for edge in (positions.min(axis=0), positions.max(axis=0)))
    start = origin_in(frame, density, given)
    end = start + (np.array(density.data.shape[::-1]) - 1) * density.pixel_size
    better = [name for name in FRAMES if shares[name] >= LEAST_INSIDE]
    remedy = f"--frame {better[0]}: there {shares[better[0]]:.0%} of the atoms are inside" if better else "--fit global"
    raise InputError(
        f"the model does not overlap with the map: {shares[frame]:.0%} of its atoms are inside the box", item="frame",
        value=frame, remedy=f"{remedy}, or check origin and pixel size of the map",
        rule=f"map from {np.round(start, 1).tolist()} to {np.round(end, 1).tolist()} A, model from {low} to {high} A",
    )


def _share_inside(positions: NDArray[np.float64], density: Map, frame: str,
                  given: tuple[float, float, float] | None) -> float:  # fmt: skip
    index = (positions - origin_in(frame, density, given)) / density.pixel_size
    return float(((index >= 0) & (index <= np.array(density.data.shape[::-1]) - 1)).all(axis=1).mean())


def same_grid(density: Map, like: Map) -> bool:
    """Whether two maps have the same sides and (to 1 %) the same pixel size."""
    return density.data.shape == like.data.shape and abs(density.pixel_size / like.pixel_size - 1) <= 0.01


def placed_like(density: Map, like: Map) -> Map:
    """A map of the same grid, with the origin and pixel size of another one."""
    return replace(density, pixel_size=like.pixel_size, origin=like.origin)
