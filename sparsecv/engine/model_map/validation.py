# SPDX-License-Identifier: GPL-3.0-or-later
"""Validation of a map against a model, from arrays to numbers: placement, density, mask, curves, scores, warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gemmi
import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import Map
from sparsecv.engine.model_map import curves as c
from sparsecv.engine.model_map.atoms import Motion, model_atoms
from sparsecv.engine.model_map.correlations import cut_off, pearson
from sparsecv.engine.model_map.density import model_transform, to_map, to_transform
from sparsecv.engine.model_map.fit import best_pixel_scale, fit_chains, fit_rigid
from sparsecv.engine.model_map.frame import check_inside, on_cube, origin_in, placed_like, same_grid
from sparsecv.engine.model_map.neighbourhood import around
from sparsecv.engine.model_map.results import Comparison, HalfMaps, Options, Validation
from sparsecv.engine.model_map.scale import FallOff, fall_off, mean_fall_off, refit_b_factors
from sparsecv.engine.model_map.scores import assess, densities_at
from sparsecv.engine.model_map.search import fit_global
from sparsecv.engine.model_map.verdict import verdict
from sparsecv.engine.physics.fourier import shell_counts, shell_sums
from sparsecv.engine.physics.masks import SMALLEST_EDGE_PX, check_mask, soft_edge
from sparsecv.engine.validate.fsc import (
    GOLD_STANDARD,
    HALF,
    fsc,
    mask_corrected_fsc,
    resolution,
)
from sparsecv.engine.validate.fsc_bands import ConeSums, cone_sums, draws_of_cones
from sparsecv.engine.validate.postprocess import check_halves

RADIUS = 3.0  # A, of the model's mask around each atom, at least
FEWEST_ATOMS = 20  # of a chain that gets a curve of its own
LEAST_CONTRAST = 0.3  # mean density at the atoms over that of the box, in its standard deviations
CONTRAST_RESOLUTION = 10.0  # A, at which that is looked at: noise is weaker there
SCALE_TOLERANCE = 0.015  # of the pixel size, before it is said to be wrong
NOISE_SHARE = 0.5  # of the map's power beyond its resolution, before that is said
LEAST_COVERED, MOSTLY_COVERED = 0.1, 0.9  # of the atoms, by a mask that is given
SAME_MAP = 0.9  # least correlation of the map with the mean of its half maps at low resolution


def validate(
    density: Map,
    structure: gemmi.Structure,
    options: Options | None = None,
    *,
    halves: tuple[Map, Map] | None = None,
    mask: Map | None = None,
    versus: Map | None = None,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> Validation:
    """Judge a map and a model by each other.

    Parameters
    ----------
    density
        The map, of any three sides; unmasked.
    structure
        The model, as ``io.models.read_structure`` reads it.
    options
        Defaults need no change.
    halves
        Independent half maps, unfiltered, on the grid of the map.
    mask
        In [0, 1], on the grid of the map; None: one is made around the model.
    versus
        Another map on the same grid.
    progress
        Told what is being done.

    Raises
    ------
    InputError
        Model outside of the map or on no density, maps of different grids, identical, flat or non-finite half maps,
        empty or misfitting masks.

    Examples
    --------
    >>> from sparsecv.engine.io import models, mrc                                            # doctest: +SKIP
    >>> found = validate(mrc.read_map("map.mrc"), models.read_structure("model.cif"))         # doctest: +SKIP
    >>> print(found.masked.at_05, found.scores.q_score)                                       # doctest: +SKIP
    """
    return _Validator(density, structure, options or Options(), workers, progress).run(halves, mask, versus)


class _Validator:
    """One validation; collects what there is to be said on the way."""

    def __init__(
        self, density: Map, structure: gemmi.Structure, options: Options, workers: int, progress: Callable[[str], None]
    ) -> None:
        self.source, self.options, self.workers, self.progress = density, options, workers, progress
        self.notes: list[str] = []
        self.warnings: list[str] = []
        if density.data.min() == density.data.max():
            raise InputError("the map is flat", value=float(density.data.flat[0]), remedy="choose another map")
        self.atoms, said = model_atoms(structure)
        self.warnings += said
        self.density, self.grid, said = on_cube(density, options.frame, options.origin)
        self.notes += said
        origin = ", ".join(f"{value:.2f}" for value in origin_in(options.frame, density, options.origin))
        self.notes.append(f"frame {options.frame}: the first voxel of the map is at {origin} A")
        if density.data.mean() > density.data.std() * 5:
            self.warnings.append("the map's mean is large against its spread: is it a map, not a mask?")
        self.observed = to_transform(self.density, workers=workers)

    def run(self, halves: tuple[Map, Map] | None, mask: Map | None, versus: Map | None) -> Validation:
        half_cubes = None if halves is None else self._halves(*halves)
        other = None if versus is None else self._like_map(versus, "the other map")
        given_mask = None if mask is None else self._given_mask(mask)
        motions = self._place()
        contrast = self._check_contrast()
        pixel_scale = self._check_pixel_size()
        calculated = self._model()
        resolved, source = self._resolution(calculated, half_cubes)
        mask_map = self._mask(resolved) if given_mask is None else self._covering(given_mask)
        b_factors: dict[str, float] = {}
        if self.options.bfactors == "refit":
            b_factors = self._refit(resolved)
            calculated = self._model()
        found_fall_off = fall_off(self.observed, calculated, self.grid)
        if self.options.bfactors == "refit" and found_fall_off is not None:
            self.notes.append(f"scale of the map against the model with them: {found_fall_off.scale:.4g}")
        sharpening = self._sharpening(found_fall_off)
        self.progress("correlating")
        draws = draws_of_cones(self.options.seed)
        sharp_map = c.sharpened(self.observed, sharpening, self.grid, self.workers)
        sharp_model = c.sharpened(calculated, sharpening, self.grid, self.workers)
        under_model = c.masked(sharp_model, mask_map, self.workers)
        masked_sums = cone_sums(c.masked(sharp_map, mask_map, self.workers), under_model)
        masked = c.curve_of(masked_sums, self.grid, draws)
        unmasked = c.curve_of(cone_sums(self.observed, calculated), self.grid, draws)
        randomised, start = c.control(sharp_map, sharp_model, mask_map, masked.values, self.options.seed, self.workers)
        from_halves = None
        if half_cubes is not None:
            from_halves = self._from_halves(half_cubes, mask_map, sharpening, under_model, masked_sums, draws, resolved)
        comparison = None if other is None else self._compare(other, calculated, mask_map, draws)
        chains = {}
        if self.options.chains:
            self.progress("correlating chains")
            chains = self._chains(sharp_map, sharp_model, resolved)
        self.progress("scoring residues")
        self._check_filtered(resolved)
        scores = assess(self.density, calculated, self.atoms, self.grid, resolved, self.options.level,
                        self.options.q_sigma, self.workers)  # fmt: skip
        self.notes += scores.notes
        counts = shell_counts(self.grid.box)
        correct = c.corrected(masked.values, randomised, start)
        found = Validation(
            grid=self.grid, atoms=self.atoms, motions=motions, density=self.density,
            model=to_map(calculated, workers=self.workers), mask=mask_map, unmasked=unmasked, masked=masked,
            randomised=randomised, corrected=correct, corrected_at_05=c.crossing(correct, HALF, self.grid),
            randomised_from=self.grid.length / start, chains=chains, halves=from_halves, versus=comparison,
            resolution=resolved, resolution_source=source, sharpening=sharpening, fall_off=found_fall_off,
            b_factors=b_factors, scores=scores,
            fsc_average=_average(masked.values, counts, round(self.grid.length / resolved)),
            fsc_average_nyquist=_average(masked.values, counts, len(counts) - 1),
            pixel_scale=pixel_scale, contrast=contrast,
        )  # fmt: skip
        return replace(found, notes=tuple(self.notes), warnings=(*self.warnings, *verdict(found)))

    # ------------------------------------------------------------------------------------------------ what is given
    def _like_map(self, other: Map, what: str) -> NDArray[np.float32]:
        """Another map on the cube of the map."""
        if not same_grid(other, self.source):
            sides, pixel = other.data.shape[::-1], other.pixel_size
            raise InputError(f"{what} has another grid than the map", value=f"{sides}, {pixel:g} A",
                             rule=f"{self.source.data.shape[::-1]} voxels of {self.source.pixel_size:g} A",
                             remedy="resample it, or correct its header with --pixel-size")  # fmt: skip
        shift = np.abs(np.array(other.origin) - self.source.origin).max()
        if shift > 0.1 * self.source.pixel_size:
            self.notes.append(f"{what} has another origin in its header; it is taken to stand where the map stands")
        return on_cube(placed_like(other, self.source), self.options.frame, self.options.origin)[0]

    def _halves(self, half1: Map, half2: Map) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        cubes = self._like_map(half1, "half map 1"), self._like_map(half2, "half map 2")
        check_halves(*cubes)
        if _is_same(*cubes):
            raise InputError("the two half maps are identical, but perhaps for their scale",
                             rule="independent half maps",
                             remedy="give the half maps of the refinement")  # fmt: skip
        for number, half in enumerate(cubes, 1):
            if _is_same(half, self.density):
                raise InputError(f"half map {number} is the map itself, but perhaps for its scale",
                                 rule="independent half maps",
                                 remedy="give the half maps of the refinement")  # fmt: skip
        mean = fsc(self.density, (cubes[0] + cubes[1]) / 2, workers=self.workers)
        low = mean[1 : max(3, self.grid.box // 16)]
        if low.mean() < SAME_MAP:
            self.warnings.append(f"the map and the mean of the half maps correlate to only {low.mean():.2f} at low "
                                 "resolution: do they belong together?")  # fmt: skip
        return cubes

    def _given_mask(self, mask: Map) -> NDArray[np.float32]:
        self.warnings += check_mask(mask.data, self.source.data.shape, self.source.pixel_size,
                                    mask_pixel_size=mask.pixel_size, file="mask")  # fmt: skip
        self.notes.append("mask: the one given")
        return np.clip(on_cube(placed_like(mask, self.source), self.options.frame, self.options.origin)[0], 0, 1)

    def _covering(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """A given mask, if it contains the model."""
        share = float((densities_at(mask, self.grid, self.atoms.positions[self._in_box()]) > 0.5).mean())
        if share < LEAST_COVERED:
            raise InputError("the mask does not contain the model", item="mask", value=f"{share:.0%} of the atoms",
                             rule=f"at least {LEAST_COVERED:.0%}", remedy="leave it away: a mask is made of the model")
        if share < MOSTLY_COVERED:
            self.warnings.append(f"the mask contains only {share:.0%} of the atoms")
        return mask

    # ---------------------------------------------------------------------------------------------------- placement
    def _place(self) -> dict[str, Motion]:
        """Move the model as asked; returns what moved each chain."""
        start = self.atoms
        place = (self.source, self.options.frame, self.options.origin)
        if self.options.fit != "global":
            self.warnings += check_inside(start.positions[start.weights > 0], *place)
        motions = {name: Motion.none() for name in start.chains}
        if self.options.fit == "none":
            self.notes.append("the model is judged where it stands")
            return motions
        self.progress("fitting the model")
        search = fit_global if self.options.fit == "global" else fit_rigid
        motion = search(self.observed, self.grid, start, workers=self.workers)
        self.atoms = start.moved(motion)
        motions = dict.fromkeys(motions, motion)
        self.notes.append(f"the model was moved by {motion.angstrom:.2f} A and turned by {motion.degrees:.2f} degrees "
                          f"(fit {self.options.fit})")  # fmt: skip
        if self.options.fit == "chains":
            apart = fit_chains(self.observed, self.grid, self.atoms, workers=self.workers)
            for name, own in apart.items():
                self.atoms = self.atoms.moved(own, self.atoms.chain_of == self.atoms.chains.index(name))
                motions[name] = motion.then(own)
                self.notes.append(f"chain {name} was moved on by {own.angstrom:.2f} A and {own.degrees:.2f} degrees")
        if self.options.fit == "global":
            self.warnings += check_inside(self.atoms.positions[start.weights > 0], *place)
        return motions

    def _check_contrast(self) -> float:
        """Refuse a model that stands on no density."""
        contrast = self._contrast(self.observed)
        if contrast < LEAST_CONTRAST:
            is_dark = contrast < -LEAST_CONTRAST
            raise InputError(
                "model and density do not overlap: at the atoms the map is no brighter than elsewhere", item="frame",
                value=f"{contrast:.2f} standard deviations of the map", rule=f"at least {LEAST_CONTRAST:g}",
                remedy="particles must be white: invert the map, or choose the model's place with --frame or --fit"
                if is_dark else "try another --frame, --fit rigid or --fit global",
            )  # fmt: skip
        return contrast

    def _contrast(self, transform: NDArray[np.complex64]) -> float:
        """Mean density of a map at the atoms over that of the box, in standard deviations, at 10 A."""
        smooth = cut_off(transform, max(CONTRAST_RESOLUTION, self.grid.nyquist), self.grid, self.workers)
        values = densities_at(smooth, self.grid, self.atoms.positions[self.atoms.weights > 0])
        return float((np.nanmean(values) - smooth.mean()) / max(float(smooth.std()), 1e-30))

    def _check_pixel_size(self) -> float | None:
        """Factor of the pixel size with which the model fits best; warns where it is not 1."""
        self.progress("checking the pixel size")
        scale = best_pixel_scale(self.observed, self.grid, self.atoms, self.workers)
        if scale is not None and abs(scale - 1) > SCALE_TOLERANCE:
            self.warnings.append(
                f"the model fits best with a pixel size of {scale * self.grid.pixel_size:.3f} A, "
                f"{'at least ' if abs(scale - 1) > 0.0999 else ''}{abs(scale - 1):.1%} "
                f"{'more' if scale > 1 else 'less'} than the {self.grid.pixel_size:g} A of the map (--pixel-size)"
            )
        elif scale is not None:
            best = scale * self.grid.pixel_size
            used = self.grid.pixel_size
            self.notes.append(f"the model fits best with a pixel size of {best:.4g} A; {used:.4g} A is used")
        return scale

    # ------------------------------------------------------------------------------------------------------ density
    def _model(self) -> NDArray[np.complex64]:
        self.progress("computing the density of the model")
        return model_transform(self.atoms, self.grid, workers=self.workers)

    def _resolution(
        self, calculated: NDArray[np.complex64], halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    ) -> tuple[float, str]:
        """Resolution for mask, model density and correlations: given, of the halves, against the model."""
        asked, nyquist = self.options.resolution, self.grid.nyquist
        if asked is not None:
            if asked < nyquist:
                raise InputError("resolution beyond the map's Nyquist limit", item="resolution", value=asked,
                                 rule=f"at least {nyquist:g} A, two pixels")  # fmt: skip
            return asked, "as given"
        if halves is not None:
            found = resolution(fsc(*halves, workers=self.workers), GOLD_STANDARD, self.grid.box, self.grid.pixel_size)
            return max(found.angstrom, nyquist), "half maps without a mask at FSC 0.143"
        curve = cone_sums(self.observed, calculated).curve
        for threshold in (HALF, GOLD_STANDARD):
            crossed = c.crossing(curve, threshold, self.grid).resolution
            if crossed is not None:
                return max(crossed.angstrom, nyquist), f"map against model without a mask at FSC {threshold:g}"
        self.warnings.append("map and model do not correlate at any resolution")
        return max(10.0, nyquist), "none could be found"

    def _mask(self, resolved: float) -> NDArray[np.float32]:
        self.progress("making the mask")
        mask = self._mask_around(self._in_box(), resolved)
        radius, edge = self._mask_size(resolved)
        self.notes.append(f"mask: within {radius:.2f} A of the atoms, a soft edge of {edge:.2f} A, "
                          f"{float((mask > 0.5).mean()):.1%} of the box")  # fmt: skip
        faces = [mask.take(index, axis=axis).max() for axis in range(3) for index in (0, -1)]
        if max(faces) > 0.5:
            self.warnings.append("the mask around the model reaches the face of the box")
        return mask

    def _mask_size(self, resolved: float) -> tuple[float, float]:
        """Radius about the atoms, and soft edge, A."""
        edge = self.options.mask_edge
        edge = max(SMALLEST_EDGE_PX * self.grid.pixel_size, resolved) if edge is None else edge
        return self.options.mask_radius or max(RADIUS, resolved), edge

    def _mask_around(self, which: NDArray[np.bool_], resolved: float) -> NDArray[np.float32]:
        radius, edge = self._mask_size(resolved)
        core = around(self.atoms.positions[which], radius, self.grid)
        return soft_edge(core, 0.0, edge / self.grid.pixel_size)

    def _in_box(self) -> NDArray[np.bool_]:
        return (self.atoms.weights > 0) & self.grid.is_inside(self.atoms.positions)

    def _chain_mask(self, name: str, resolved: float) -> NDArray[np.float32] | None:
        """As that of the whole model; None for a chain of a few atoms."""
        which = self._in_box() & (self.atoms.chain_of == self.atoms.chains.index(name))
        return None if which.sum() < FEWEST_ATOMS else self._mask_around(which, resolved)

    def _refit(self, resolved: float) -> dict[str, float]:
        """Shift the B-factors of every chain to what its density has."""
        self.progress("refitting B-factors")
        self.atoms, found, said = refit_b_factors(
            self.observed, self.atoms, self.grid, lambda name: self._chain_mask(name, resolved), self.workers
        )
        self.warnings += said
        means = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
        self.notes.append(f"B-factors of each chain shifted to fit the map; their means, A^2: {means}")
        return found

    def _sharpening(self, found: FallOff | None) -> c.Sharpening:
        """What brings the map to point atoms, as far as it says something."""
        if self.options.sharpening is not None:
            self.notes.append(f"sharpened by {self.options.sharpening:g} A^2, as asked, before the mask is applied")
            return c.Sharpening(self.options.sharpening, None)
        if found is None:
            self.notes.append("not sharpened before the mask is applied: the fall-off could not be fitted")
            return c.Sharpening(0.0, None)
        used = self.atoms.weights > 0
        own = mean_fall_off(self.atoms.weights[used], self.atoms.b_factors[used], found.coarsest, found.finest)
        b_factor = max(0.0, found.b_factor + own)
        self.notes.append(f"sharpened by {b_factor:.0f} A^2 to {found.finest:.2f} A before the mask is applied")
        return c.Sharpening(b_factor, found.finest)

    def _check_filtered(self, resolved: float) -> None:
        """Say when real-space scores are those of noise: a raw map, as a reconstruction leaves it."""
        power = shell_sums(self.observed.real**2 + self.observed.imag**2)
        last = min(round(self.grid.length / resolved), len(power) - 1)
        share = float(power[last + 1 :].sum() / max(power[1:].sum(), 1e-30))
        if share > NOISE_SHARE:
            self.warnings.append(f"{share:.0%} of the map's power is finer than {resolved:.2f} A: correlations, "
                                 "Q-scores and atoms inside are those of a noisy map, give a filtered one for them")

    # ------------------------------------------------------------------------------------------------------- curves
    def _from_halves(
        self, halves: tuple[NDArray[np.float32], NDArray[np.float32]], mask: NDArray[np.float32],
        sharpening: c.Sharpening, under_model: NDArray[np.complex64], masked_sums: ConeSums,
        draws: NDArray[np.float64], resolved: float,
    ) -> HalfMaps:  # fmt: skip
        grid, workers = self.grid, self.workers
        curves = mask_corrected_fsc(*halves, mask, np.random.default_rng(self.options.seed), workers=workers)
        self.warnings += curves.warnings
        under = [
            c.masked(c.sharpened(to_transform(half, workers=workers), sharpening, grid, workers), mask, workers)
            for half in halves
        ]
        sums = [cone_sums(half, under_model) for half in under]
        between = cone_sums(*under)
        last = min(max(round(grid.length / resolved), 2), grid.box // 2)
        return HalfMaps(
            half_fsc=curves.corrected, ceiling=c.ceiling(curves.corrected),
            resolution=resolution(curves.corrected, GOLD_STANDARD, grid.box, grid.pixel_size),
            half1=c.curve_of(sums[0], grid, draws), half2=c.curve_of(sums[1], grid, draws),
            over_fit=c.over_fit(sums[0], sums[1], shell_counts(grid.box), last, grid, draws),
            beyond=c.beyond_ceiling(masked_sums, between, draws),
        )  # fmt: skip

    def _compare(
        self, other: NDArray[np.float32], calculated: NDArray[np.complex64], mask: NDArray[np.float32],
        draws: NDArray[np.float64],
    ) -> Comparison:  # fmt: skip
        if np.array_equal(other, self.density):
            self.warnings.append("the other map is the map itself")
        transform = to_transform(other, workers=self.workers)
        if self._contrast(transform) < LEAST_CONTRAST:
            self.warnings.append("at the atoms the other map is no brighter than elsewhere: is it in the same frame, "
                                 "and white?")  # fmt: skip
        self.notes.append("place of the model, mask and resolution are those of the first map")
        self.notes.append("the other map, in the same mask:")
        sharpening = self._sharpening(fall_off(transform, calculated, self.grid))
        under = [c.masked(c.sharpened(volume, sharpening, self.grid, self.workers), mask, self.workers)
                 for volume in (transform, calculated)]  # fmt: skip
        return Comparison(
            c.curve_of(cone_sums(transform, calculated), self.grid, draws),
            c.curve_of(cone_sums(*under), self.grid, draws), sharpening,
        )  # fmt: skip

    def _chains(
        self, density: NDArray[np.float32], model: NDArray[np.float32], resolved: float
    ) -> dict[str, c.ChainCurve]:
        found, small = {}, []
        for name in self.atoms.chains:
            mask = self._chain_mask(name, resolved)
            if mask is None:
                small.append(name)
            else:
                found[name] = c.chain_curve(density, model, mask, self.grid, self.options.seed, self.workers)
        if small:
            self.notes.append(f"chains of fewer than {FEWEST_ATOMS} atoms have no curve: {', '.join(small)}")
        return found


def _is_same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two maps are equal but for scale and offset."""
    return pearson(first.ravel(), second.ravel()) > 1 - 1e-6


def _average(values: NDArray[np.float64], counts: NDArray[np.float64], last: int) -> float:
    """Mean of a curve over the shells 1 to ``last``, weighted by the number of coefficients."""
    part = slice(1, max(min(last, len(values) - 1), 1) + 1)
    return float(np.average(values[part], weights=counts[part]))
