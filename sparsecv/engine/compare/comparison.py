# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinements side by side: everything that is measured of maps and poses, in the frame of the first run.

All runs are judged inside one mask, on one grid. Half maps are never interpolated: where a run stands in another frame,
the mask is brought to them. Only averages of half maps are moved, to be compared with that of the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparsecv.engine.compare.frame import seen_from
from sparsecv.engine.compare.poses import PoseChanges, pose_changes
from sparsecv.engine.compare.runs import HALF_MAPS, MASK, Run, warn_of_symmetries
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.physics.fourier import crop_or_pad, low_pass, resample
from sparsecv.engine.physics.masks import check_mask, solvent_mask
from sparsecv.engine.report.plots import Slices, central_slices
from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF, Resolution, fsc, resolution
from sparsecv.engine.validate.guinier import GuinierFit, fit_bfactor
from sparsecv.engine.validate.postprocess import PostprocessResult, postprocess

SAME_PIXEL = 0.01  # relative difference up to which pixel sizes count as equal
LOW_END = 10.0  # A, of the fit of B-factors, as in post-processing
STAYS = 0.02  # voxels: a motion that moves no voxel of the particle further is left in, and maps as they are
TOLD_DEG, TOLD_PX = 1.0, 1.0  # motion of the frame that a reader must know of


@dataclass(frozen=True)
class Grid:
    """The grid that all maps are brought to: voxels a side, and A."""

    box: int
    pixel_size: float

    @property
    def length(self) -> float:
        """Side of the box, A."""
        return self.box * self.pixel_size


@dataclass(frozen=True)
class MapAgainstFirst:
    """The average of a run's half maps against that of the first run.

    Attributes
    ----------
    as_they_are, superposed
        FSC in the common mask, before and after the motion of the frame is taken out, (box // 2 + 1,).
    resolution
        Where ``superposed`` falls through 0.5.
    is_moved
        Whether there was any motion to take out.
    difference
        Rms of the difference in the mask, over the standard deviation of the first map there; both low-passed, the
        run's on the scale of the first.
    """

    as_they_are: np.ndarray
    superposed: np.ndarray
    resolution: Resolution
    is_moved: bool
    difference: float


@dataclass(frozen=True)
class RunResult:
    """What is found of one run.

    Attributes
    ----------
    run, box, pixel_size
        What it is, and its own grid.
    post
        Post-processing of its half maps in the common mask, on the common grid, without the maps.
    unmasked
        Resolution at FSC 0.143 without a mask.
    common_fit
        Line through its Guinier plot over the range that all runs share, or None.
    poses, maps
        Against the first run; None of the first run itself, and of poses without particles in common.
    slices, shown_slices, difference_slices
        Central slices in the frame of the first run: average of the half maps, low-passed; the run's own map; average
        less that of the first run, in the mask. All on the scale of the first run's average, in its standard deviations
        in the mask from its mean there. None where there is no such map.
    """

    run: Run
    box: int
    pixel_size: float
    post: PostprocessResult
    unmasked: Resolution
    common_fit: GuinierFit | None
    poses: PoseChanges | None
    maps: MapAgainstFirst | None
    slices: Slices
    shown_slices: Slices | None
    difference_slices: Slices | None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes
    ----------
    runs
        In the order given.
    grid, mask_source, mask_fraction
        What they were judged on and in: the grid, where the mask came from, and its share of the box.
    resolution
        That all runs reach at FSC 0.143 in the mask, A: averages are low-passed to it.
    fit_range
        Of the common fit of B-factors, A.
    notes, warnings
        What was done, and what a reader must know.
    """

    runs: tuple[RunResult, ...]
    grid: Grid
    mask_source: str
    mask_fraction: float
    resolution: float
    fit_range: tuple[float, float]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def compare(
    runs: Sequence[Run], *, mask: Path | None = None, seed: int = 1, workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:  # fmt: skip
    """Compare refinements with the first of them.

    Parameters
    ----------
    runs
        As :func:`.read_run` gives them, two or more.
    mask
        On the grid of the first run's maps, and in its frame; None: that of its post-processing, else one of its map.
    seed
        Of the random phases behind the mask correction.
    progress
        Told what is being done.

    Raises
    ------
    InputError
        Maps that cannot be read, are flat or identical, halves of different grids, or a mask that does not fit.
    """
    return _Comparer(runs, seed, workers, progress).compare(mask)


@dataclass(frozen=True)
class _Judged:
    """A run whose half maps have been judged, and the average of these on the common grid."""

    box: int
    pixel_size: float
    post: PostprocessResult
    average: np.ndarray
    poses: PoseChanges | None
    is_moved: bool


class _Comparer:
    def __init__(self, runs: Sequence[Run], seed: int, workers: int, progress: Callable[[str], None]) -> None:
        self.runs, self.seed, self.workers, self.progress = runs, seed, workers, progress
        self.notes: list[str] = []
        self.warnings: list[str] = [text for run in runs for text in run.warnings] + warn_of_symmetries(runs)

    def compare(self, mask: Path | None) -> Comparison:
        self.grid = self._common_grid()
        self.mask, source = self._common_mask(mask)
        judged = [self._judge(run) for run in self.runs]
        reached = max(one.post.resolution_0143.angstrom for one in judged)
        fit_range = LOW_END, max(reached, 2 * self.grid.pixel_size)
        reference = self._low_passed(judged[0].average, reached)
        mean, spread = self._moments(reference)
        reference = (reference - np.float32(mean)) / np.float32(spread)
        results = [self._result(run, one, judged[0].average, reference, reached, fit_range)
                   for run, one in zip(self.runs, judged, strict=True)]  # fmt: skip
        fraction = float(np.mean(self.mask > 0.5))
        return Comparison(tuple(results), self.grid, source, fraction, reached, fit_range, tuple(self.notes),
                          tuple(dict.fromkeys(self.warnings)))

    # --------------------------------------------------------------------------------------------- grid and mask
    def _common_grid(self) -> Grid:
        """Coarsest pixel and smallest extent of all; the first run's pixel where they are the same within 1 %."""
        grids = []
        for run in self.runs:
            maps = [read_map(path) for path in run.half_maps]
            sizes = {density.data.shape[0] for density in maps}
            if len(sizes) > 1 or abs(maps[0].pixel_size / maps[1].pixel_size - 1) > SAME_PIXEL:
                raise InputError(f"box or pixel size differs from that of {HALF_MAPS[0]}", file=run.half_maps[1],
                                 value=(maps[1].data.shape[0], maps[1].pixel_size),
                                 rule=f"{maps[0].data.shape[0]} voxels of {maps[0].pixel_size:g} A",
                                 remedy="choose the folder of one finished run")  # fmt: skip
            for path, density in zip(run.half_maps, maps, strict=True):
                if density.data.min() == density.data.max():
                    raise InputError("the map is flat", file=path, value=float(density.data.flat[0]),
                                     rule="a map with a particle", remedy="look for a failed reconstruction")
            if np.array_equal(maps[0].data, maps[1].data):
                raise InputError("the two half maps are identical", file=run.half_maps[1], rule="independent half maps",
                                 remedy="choose the folder of a finished run")
            self.warnings += [text for density in maps for text in density.warnings]
            grids.append(Grid(maps[0].data.shape[0], maps[0].pixel_size))
        first = grids[0]
        coarsest = max(grids, key=lambda grid: grid.pixel_size).pixel_size
        pixel_size = first.pixel_size if coarsest / first.pixel_size - 1 <= SAME_PIXEL else coarsest
        box = min(self._voxels(grid, pixel_size) for grid in grids)
        self.own = {run.folder: grid for run, grid in zip(self.runs, grids, strict=True)}
        common = Grid(box, pixel_size)
        self._say_what_differs(common)
        return common

    @staticmethod
    def _voxels(grid: Grid, pixel_size: float) -> int:
        """Voxels of a size that the grid holds: its own number where they are the same, else an even one."""
        if abs(grid.pixel_size / pixel_size - 1) <= SAME_PIXEL:
            return grid.box
        return 2 * int(grid.length / pixel_size / 2 + SAME_PIXEL)

    def _say_what_differs(self, common: Grid) -> None:
        for run in self.runs:
            own = self.own[run.folder]
            if self._voxels(own, common.pixel_size) > common.box:
                self.warnings.append(f"{run.folder}: its box of {own.length:.1f} A is larger than that of another run: "
                                     f"its maps are cut to {common.length:.1f} A about their centre")  # fmt: skip
            if abs(own.pixel_size / common.pixel_size - 1) > SAME_PIXEL:
                self.notes.append(f"{run.label}: maps brought from voxels of {own.pixel_size:g} A to "
                                  f"{common.pixel_size:g} A in Fourier space")  # fmt: skip
            elif own.pixel_size != common.pixel_size:
                self.notes.append(f"{run.label}: its pixel size of {own.pixel_size:g} A is taken as "
                                  f"{common.pixel_size:g} A")  # fmt: skip

    def _on_grid(self, data: np.ndarray, own: Grid) -> np.ndarray:
        """A map of a run on the common grid."""
        if abs(own.pixel_size / self.grid.pixel_size - 1) <= SAME_PIXEL:
            return data if own.box == self.grid.box else crop_or_pad(data, self.grid.box)
        return resample(data, own.pixel_size, self.grid.box, self.grid.pixel_size, workers=self.workers)

    def _common_mask(self, given: Path | None) -> tuple[np.ndarray, str]:
        """The mask in the frame of the first run, (box, box, box) of the common grid, and words for its source."""
        first = self.runs[0]
        own = self.own[first.folder]
        path = given if given is not None else first.folder / MASK
        if given is not None or path.is_file():
            mask = read_map(path)
            self.warnings += [*mask.warnings, *check_mask(mask.data, (own.box,) * 3, own.pixel_size,
                                                          mask_pixel_size=mask.pixel_size, file=str(path))]
            source = str(given) if given is not None else f"{MASK} of {first.label}"
            return np.clip(self._on_grid(mask.data, own), 0, 1), source
        halves = [self._on_grid(read_map(half).data, own) for half in first.half_maps]
        made = solvent_mask((halves[0] + halves[1]) / 2, self.grid.pixel_size, workers=self.workers)
        self.warnings += check_mask(made, made.shape, self.grid.pixel_size, file=f"the mask made of {first.label}")
        return made, f"made of the half maps of {first.label}"

    # ------------------------------------------------------------------------------------------------- one run
    def _judge(self, run: Run) -> _Judged:
        self.progress(f"{run.label}: poses and half maps")
        own = self.own[run.folder]
        poses = None if run is self.runs[0] else self._poses(run)
        halves = [self._on_grid(read_map(path).data, own) for path in run.half_maps]
        moved_by = 0.0 if poses is None else poses.frame.largest_displacement(self._reach())
        is_moved = moved_by > STAYS * self.grid.pixel_size
        mask = self.mask
        if poses is not None and is_moved:
            mask = np.clip(seen_from(mask, poses.frame.inverse(), self.grid.pixel_size, threads=self.workers), 0, 1)
        post = postprocess(halves[0], halves[1], self.grid.pixel_size, mask=mask, autob_lowres=LOW_END, seed=self.seed,
                           workers=self.workers)
        self.warnings += [f"{run.label}: {text}" for text in post.warnings]
        average = (halves[0] + halves[1]) * np.float32(0.5)
        nothing = np.empty(0, dtype=np.float32)  # maps of many runs need not be held
        post = replace(post, mask=nothing, map=nothing, masked_map=nothing)
        return _Judged(own.box, own.pixel_size, post, average, poses, is_moved)

    def _reach(self) -> float:
        """How far from the centre the mask reaches at most, A: the corner of the box around it."""
        inside = self.mask > 0.5
        ends = [np.flatnonzero(inside.any(axis=axes)) - self.grid.box // 2 for axes in ((1, 2), (0, 2), (0, 1))]
        return float(np.linalg.norm([np.abs(end).max(initial=0) for end in ends])) * self.grid.pixel_size

    def _poses(self, run: Run) -> PoseChanges | None:
        """Changes of poses against the first run, and what must be said of them."""
        first = self.runs[0]
        found = pose_changes(first, run)
        if found is None:
            self.warnings.append(f"{run.folder}: too few particles in common with {first.folder}: poses are not "
                                 "compared, and its maps are not superposed")  # fmt: skip
            return None
        if not found.is_related:
            self.warnings.append(
                f"{run.label}: half of the particles are turned by more than "
                f"{np.median(found.as_they_are.turned):.0f} degrees against {first.label}: no common motion can be "
                "told, and the maps are not superposed; are images of the same name the same images?"
            )
        if found.only_first or found.only_other:
            self.warnings.append(f"{run.label}: {found.only_other} particles that {first.label} has not, "
                                 f"{found.only_first} are missing")  # fmt: skip
        if found.other_half:
            self.warnings.append(
                f"{run.label}: {found.other_half} of {found.common} particles are in another half set than in "
                f"{first.label}: half maps of these two runs are not independent of each other, and each FSC of "
                "halves has its own noise"
            )
        elif found.is_swapped:
            self.notes.append(f"{run.label}: half sets 1 and 2 are those that {first.label} calls 2 and 1")
        frame = found.frame
        if frame.degrees > TOLD_DEG or frame.angstrom > TOLD_PX * self.grid.pixel_size:
            self.warnings.append(
                f"{run.label}: the particle is turned by {frame.degrees:.2f} degrees and moved by "
                f"{frame.angstrom:.2f} A against {first.label}; this motion is taken out of poses and maps"
            )
        return found

    def _result(
        self, run: Run, judged: _Judged, first: np.ndarray, reference: np.ndarray, reached: float,
        fit_range: tuple[float, float],
    ) -> RunResult:  # fmt: skip
        guinier, poses = judged.post.guinier, judged.poses
        average, maps, difference = judged.average, None, None
        if run is not self.runs[0]:
            self.progress(f"{run.label}: maps against {self.runs[0].label}")
            plain = superposed = fsc(average, first, self.mask, workers=self.workers)
            if poses is not None and judged.is_moved:
                average = seen_from(average, poses.frame, self.grid.pixel_size, threads=self.workers)
                superposed = fsc(average, first, self.mask, workers=self.workers)
            crossing = resolution(superposed, HALF, self.grid.box, self.grid.pixel_size)
            filtered = self._scaled(self._low_passed(average, reached), reference)
            difference = (filtered - reference) * self.mask
            maps = MapAgainstFirst(plain, superposed, crossing, judged.is_moved, self._moments(difference)[1])
        else:
            filtered = reference
        shown = self._shown(run, judged, reference)
        unmasked = judged.post.curves.unmasked
        return RunResult(
            run=run,
            box=judged.box,
            pixel_size=judged.pixel_size,
            post=judged.post,
            unmasked=resolution(unmasked, GOLD_STANDARD, self.grid.box, self.grid.pixel_size),
            common_fit=fit_bfactor(guinier.weighted, guinier.k2, *fit_range),
            poses=poses,
            maps=maps,
            slices=_slices(filtered),
            shown_slices=None if shown is None else _slices(shown),
            difference_slices=None if difference is None else _slices(difference),
        )

    def _shown(self, run: Run, judged: _Judged, reference: np.ndarray) -> np.ndarray | None:
        """The run's own map in the frame of the first run, on the scale of its average; None where there is none."""
        if run.shown_map is None:
            return None
        own = self.own[run.folder]
        density = read_map(run.shown_map)
        if density.data.shape[0] != own.box:
            self.warnings.append(f"{run.shown_map}: another box than the half maps: it is not shown")
            return None
        data = self._on_grid(density.data, own)
        if judged.poses is not None and judged.is_moved:
            data = seen_from(data, judged.poses.frame, self.grid.pixel_size, threads=self.workers)
        return self._scaled(data, reference)

    def _low_passed(self, data: np.ndarray, reached: float) -> np.ndarray:
        return low_pass(data, self.grid.pixel_size, reached, workers=self.workers)

    def _scaled(self, data: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """a v + b, as near as possible to the reference in the mask: programs differ in grey scale."""
        (mean, spread), (wanted, _) = self._moments(data), self._moments(reference)
        covariance = self._mean((data - np.float32(mean)) * (reference - np.float32(wanted)))
        factor = covariance / spread**2 if covariance > 0 else 1.0
        return np.asarray((data - np.float32(mean)) * np.float32(factor) + np.float32(wanted))

    def _moments(self, data: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation in the mask."""
        mean = self._mean(data)
        return mean, float(np.sqrt(self._mean((data - np.float32(mean)) ** 2)))

    def _mean(self, data: np.ndarray) -> float:
        return float((self.mask * data).sum(dtype=np.float64) / self.mask.sum(dtype=np.float64))


def _slices(density: np.ndarray) -> Slices:
    """Copies of the central slices, so that the map itself can be let go."""
    return {axes: image.copy() for axes, image in central_slices(density).items()}
