# SPDX-License-Identifier: GPL-3.0-or-later
"""Rigid-body fit of a model, or of each of its chains, into a map.

The correlation of a map with the density of a model, weighted by shell, is a sum over the atoms of a filtered map::

    sum_k W(k) Re F_o(k) F_c*(k)  ~  sum_j w_j M(x_j),      M = transform of W F_o a

with w_j what atom j scatters and a the common shape of the atoms. Its gradient is that of M at the atoms, so that a
search costs no density calculation. The weights make it the mutual information of map and model, -1/2 sum n ln(1 - m^2)
with m the FSC: its derivative by m is n m / (1 - m^2), and F_o a / (|F_o| |F_c|) is the whitened map. The fit begins at
a coarse resolution, where m is a Gaussian of s, and ends with the FSC that was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import NdBSpline
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from sparsecv.engine.model_map.atoms import ModelAtoms, Motion
from sparsecv.engine.model_map.density import model_transform, to_map
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.physics.fourier import resize_transform, shell_counts, shell_indices, shell_sums
from sparsecv.engine.validate.fsc import correlate

STAGES = (15.0, 10.0, 7.0, 5.0)  # A: from coarse to fine
SAMPLES = 3.0  # voxels along the finest wavelength of a filtered map
LARGEST_CORRELATION = 0.95  # that a weight is made of
MOST_ATOMS = 6000  # of the whole model in a fit; of a larger one every second, third ... is used
FEW_ATOMS = 1500  # while there are several starts
STARTS_DEGREES, STARTS_ANGSTROM = 12.0, 5.0  # about the pose given, at the coarsest stage
FINEST_FSC_RESOLUTION = 4.0  # A: shells beyond this add nothing to where a rigid body stands
CHAIN_ROUNDS = 2
FEWEST_CHAIN_ATOMS = 20  # of a chain that moves on its own
SCALE_ROUNDS = ((0.1, 0.02), (0.01, 0.01))  # half widths and steps of the search for the pixel size
FEWEST_SCALE_ATOMS = 100


class Field:
    """A filtered map as a smooth function of position, 0 outside of its box.

    Attributes
    ----------
    grid
        Of the filtered map.
    scale
        Its largest absolute value.
    density
        In units of that, (box, box, box).
    """

    def __init__(self, transform: NDArray[np.complex64], grid: Grid, workers: int = 1) -> None:
        density = to_map(transform, workers=workers)
        self.grid = grid
        self.scale = float(np.abs(density).max()) or 1.0
        self.density = density / np.float32(self.scale)
        coefficients = ndimage.spline_filter(self.density, order=3, mode="mirror")
        knots = np.arange(-2.0, grid.box + 2.0)  # the cubic B-spline of voxel i spans i - 2 to i + 2
        self._spline = NdBSpline((knots,) * 3, coefficients, 3, extrapolate=False)

    def values(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """At positions (x, y, z), A, shape (n,)."""
        found: NDArray[np.float64] = np.nan_to_num(self._spline(self._index(positions)))
        return found

    def gradients(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Per A along x, y, z, shape (n, 3)."""
        index = self._index(positions)
        parts = [self._spline(index, nu=nu) for nu in ((0, 0, 1), (0, 1, 0), (1, 0, 0))]
        return np.nan_to_num(np.stack(parts, axis=1)) / self.grid.pixel_size

    def _index(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.grid.voxels(positions)[:, ::-1]


def filtered(
    observed: NDArray[np.complex64], grid: Grid, correlation: NDArray[np.float64], finest: float, workers: int = 1,
    samples: float = SAMPLES,
) -> Field:  # fmt: skip
    """The map whose sum over atoms is the mutual information of map and model, up to a constant.

    Parameters
    ----------
    observed
        Half transform of the map.
    correlation
        m of each shell; negative ones count as 0.
    finest
        Resolution from which on nothing is used, A.
    samples
        Voxels in that length, at least 2.
    """
    coarser = grid.coarser(finest, samples)
    box = coarser.box
    part = resize_transform(observed, box)
    power = shell_sums(part.real**2 + part.imag**2) / shell_counts(box)
    m = np.clip(correlation[: box // 2 + 1], 0, LARGEST_CORRELATION)
    m = m * (np.arange(box // 2 + 1) <= grid.length / finest)
    m[0] = 0.0  # the mean of the map says nothing about places
    weight = np.divide(m, (1 - m**2) * np.sqrt(power), out=np.zeros_like(m), where=power > 0)
    return Field(_scaled(part, weight), coarser, workers)


def gaussian_correlation(grid: Grid, resolution: float) -> NDArray[np.float64]:
    """m of each shell where nothing is known yet: 0.9 at low frequencies, down to a third of that at a resolution."""
    s = np.arange(grid.box // 2 + 1) / grid.length
    return 0.9 * np.exp(-((s * resolution) ** 2))


def fit_rigid(observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, *, workers: int = 1) -> Motion:
    """Move a whole model from where it stands to where it fits best.

    Parameters
    ----------
    observed
        Half transform of the map on the grid, phases about voxel (0, 0, 0).
    atoms
        The model, within some 10 A and 20 degrees of its place.

    Returns
    -------
    Motion
        To be applied to the model.
    """
    fields = stages(observed, grid, workers)
    starts = [Motion(np.eye(3), np.zeros(3), atoms.centre)]
    for axis in np.vstack([np.eye(3), -np.eye(3)]):
        turn = Rotation.from_rotvec(np.deg2rad(STARTS_DEGREES) * axis).as_matrix()
        starts.append(Motion(turn, np.zeros(3), atoms.centre))
        starts.append(Motion(np.eye(3), STARTS_ANGSTROM * axis, atoms.centre))
    return refine_starts(fields, observed, grid, atoms, starts, workers)


def refine_starts(
    fields: list[Field], observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, starts: list[Motion],
    workers: int = 1,
) -> Motion:  # fmt: skip
    """Climb from several starts through fields from coarse to fine, fewer at each; finish on the field of the FSC."""
    few = scattering(atoms, FEW_ATOMS)
    candidates = starts
    for field in fields:
        climbed = [climb(field, few, start) for start in candidates]
        climbed.sort(key=lambda found: -found[0])
        candidates = [motion for _, motion in climbed[: max(1, len(climbed) // 4)]]
    return polish(observed, grid, atoms, candidates[0], workers)


def polish(observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, start: Motion, workers: int = 1) -> Motion:
    """Climb on the field whose weights are the FSC of map and model at the start, twice."""
    motion, few = start, scattering(atoms)
    for _ in range(2):
        field = fsc_weighted(observed, grid, atoms.moved(motion), workers)
        if field is None:
            return motion
        motion = climb(field, few, motion)[1]
    return motion


def coarse_fsc(
    observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, workers: int = 1
) -> tuple[NDArray[np.float64], Grid]:
    """FSC of map and model as they stand, as far as it matters to a rigid body, and the coarser grid that it is of."""
    coarse = _coarse(grid)
    return correlate(resize_transform(observed, coarse.box), model_transform(atoms, coarse, workers=workers)), coarse


def fsc_weighted(observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, workers: int = 1) -> Field | None:
    """The field with the FSC of map and model as they stand; None where they do not correlate at all."""
    return _field_of(observed, grid, coarse_fsc(observed, grid, atoms, workers)[0], workers)


def _field_of(
    observed: NDArray[np.complex64], grid: Grid, correlation: NDArray[np.float64], workers: int
) -> Field | None:
    """The field with a correlation on the coarse grid, smoothed over three shells."""
    smooth = ndimage.uniform_filter1d(correlation, 3, mode="nearest")
    if not (smooth[1:] > 0.05).any():
        return None
    return filtered(observed, grid, np.pad(smooth, (0, grid.box)), _coarse(grid).nyquist, workers)


def _coarse(grid: Grid) -> Grid:
    """The grid that holds what matters to a rigid body and no more."""
    return grid.coarser(max(grid.nyquist, FINEST_FSC_RESOLUTION))


def climb(field: Field, atoms: ModelAtoms, start: Motion) -> tuple[float, Motion]:
    """The nearest maximum of the mean of a field over the atoms, and its value."""
    local = start.apply(atoms.positions)
    weights = atoms.weights / atoms.weights.sum()
    middle = weights @ local
    arms = local - middle
    size = float(np.sqrt(weights @ np.square(arms).sum(axis=1))) or 1.0

    def cost(step: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        vector = step[:3] / size  # so that all six are lengths
        turned = arms @ Rotation.from_rotvec(vector).as_matrix().T
        positions = turned + middle + step[3:]
        slopes = field.gradients(positions) * weights[:, None]
        torque = np.cross(turned, slopes).sum(axis=0)
        gradient = np.concatenate([_left_jacobian(vector).T @ torque / size, slopes.sum(axis=0)])
        return -float(weights @ field.values(positions)), -gradient

    found = minimize(cost, np.zeros(6), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    turn = Rotation.from_rotvec(found.x[:3] / size).as_matrix()
    return -float(found.fun) * field.scale, start.then(Motion(turn, found.x[3:], middle))


def fit_chains(
    observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, *, workers: int = 1
) -> dict[str, Motion]:
    """Move each chain on its own, from where it stands, against the map without the others.

    Returns
    -------
    dict
        Motion of each chain that has one, by name. Waters, ligands and chains of fewer than 20 scattering atoms follow
        the polymer nearest to them.
    """
    bodies = _bodies(atoms)
    if len(bodies) < 2:
        return {}
    motions: dict[str, Motion] = {}
    coarse, present = _coarse(grid), atoms
    part = resize_transform(observed, coarse.box)
    chains = {name: atoms.chain_of == number for number, name in enumerate(atoms.chains)}
    own = {name: model_transform(_only(atoms, which), coarse, workers=workers) for name, which in chains.items()}
    whole = np.sum(list(own.values()), axis=0)
    for _ in range(CHAIN_ROUNDS):
        for name, which in chains.items():
            if name not in bodies:
                continue
            rest = part - _scaled(whole - own[name], _scale(part, whole))
            field = _field_of(rest, grid, correlate(rest, own[name]), workers)
            if field is None:
                continue
            chain = _subset(present, which)
            motion = climb(field, scattering(chain), Motion(np.eye(3), np.zeros(3), chain.centre))[1]
            motions[name] = motions[name].then(motion) if name in motions else motion
            present = present.moved(motion, which)
            moved = model_transform(_only(present, which), coarse, workers=workers)
            whole, own[name] = whole - own[name] + moved, moved
    for name, which in chains.items():
        if name not in bodies:
            nearest = min(bodies, key=lambda body: _distance(atoms.positions[which], atoms.positions[chains[body]]))
            if nearest in motions:
                motions[name] = motions[nearest]
    return motions


def _bodies(atoms: ModelAtoms) -> list[str]:
    """Chains that move on their own: polymers of enough atoms, or all of that size in a model without polymers."""
    is_polymer = np.array([residue.is_polymer for residue in atoms.residues])[atoms.residue_of]
    for usable in ((atoms.weights > 0) & is_polymer, atoms.weights > 0):
        counts = np.bincount(atoms.chain_of[usable], minlength=len(atoms.chains))
        found = [name for name, count in zip(atoms.chains, counts, strict=True) if count >= FEWEST_CHAIN_ATOMS]
        if found:
            return found
    return []


def _distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Of the two nearest of some of their points."""
    return float(cKDTree(second).query(first[:: max(1, len(first) // 200)])[0].min())


def _scale(observed: NDArray[np.complex64], calculated: NDArray[np.complex64]) -> NDArray[np.float64]:
    """D of each shell, at least 0: how much of the model is in the map."""
    cross = shell_sums(observed.real * calculated.real + observed.imag * calculated.imag)
    power = shell_sums(calculated.real**2 + calculated.imag**2)
    scale: NDArray[np.float64] = np.divide(np.maximum(cross, 0), power, out=np.zeros_like(cross), where=power > 0)
    return scale


def _scaled(transform: NDArray[np.complex64], factors: NDArray[np.float64]) -> NDArray[np.complex64]:
    """A half transform times a factor for each shell; 0 in the corners."""
    box = transform.shape[0]
    shells = np.minimum(shell_indices(box), box // 2 + 1)
    product: NDArray[np.complex64] = transform * np.append(factors, 0.0).astype(np.float32)[shells]
    return product


def best_pixel_scale(
    observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, workers: int = 1
) -> float | None:
    """Factor by which the pixel size of the map should be multiplied for the model to fit best, 0.9 to 1.1.

    Returns
    -------
    None where map and model do not correlate, or the model is too small to tell; 0.9 or 1.1: it is that, or more.

    Notes
    -----
    Models of different sizes climb from where the model stands, and the one with the highest mutual information wins;
    if that is enlarged by f, the pixel is f times too large. The sum over atoms that a fit climbs cannot decide this:
    it is not divided by the power of the model, which grows when a model shrinks.
    """
    few = scattering(atoms)
    if len(few) < FEWEST_SCALE_ATOMS:
        return None
    middle, best = few.centre, 1.0
    present = atoms
    for half_width, step in SCALE_ROUNDS:
        field = fsc_weighted(observed, grid, present, workers)
        if field is None:
            return None
        scales = best + np.arange(-half_width, half_width + step / 2, step)
        tried = []
        for scale in scales:
            motion = climb(field, _enlarged(few, scale, middle), Motion(np.eye(3), np.zeros(3), middle))[1]
            placed = _enlarged(atoms, scale, middle)
            tried.append(replace(placed, positions=motion.apply(placed.positions)))
        values = [mutual_information(observed, grid, one, workers) for one in tried]
        top = int(np.argmax(values))
        best, present = float(scales[top]), tried[top]
        if step == SCALE_ROUNDS[0][1] and top in (0, len(scales) - 1):
            return float(np.clip(1 / best, 0.9, 1.1))
        if 0 < top < len(scales) - 1:  # of the parabola through three points
            left, centre, right = values[top - 1 : top + 2]
            best += float(0.5 * (left - right) / (left - 2 * centre + right) * step)
    return float(np.clip(1 / best, 0.9, 1.1))


def mutual_information(observed: NDArray[np.complex64], grid: Grid, atoms: ModelAtoms, workers: int = 1) -> float:
    """-1/2 sum n ln(1 - m^2) over the shells of ``coarse_fsc`` in which map and model correlate."""
    correlation, coarse = coarse_fsc(observed, grid, atoms, workers)
    m = np.clip(correlation[1:], 0, 0.9999)
    return float(-0.5 * (shell_counts(coarse.box)[1:] * np.log1p(-(m**2))).sum())


def _enlarged(atoms: ModelAtoms, scale: float, middle: NDArray[np.float64]) -> ModelAtoms:
    return replace(atoms, positions=(atoms.positions - middle) * scale + middle)


def stages(
    observed: NDArray[np.complex64], grid: Grid, workers: int, resolutions: Sequence[float] = STAGES
) -> list[Field]:
    """Fields from coarse to fine, A, as far as the grid goes; at least one."""
    usable = [d for d in resolutions if d >= grid.nyquist] or [grid.nyquist]
    return [
        filtered(observed, grid, gaussian_correlation(grid, d), max(d / 1.5, grid.nyquist), workers) for d in usable
    ]


def scattering(atoms: ModelAtoms, most: int = MOST_ATOMS) -> ModelAtoms:
    """Enough of the atoms that scatter, without hydrogens where there are others: every second, third ..."""
    chosen = np.flatnonzero((atoms.weights > 0) & atoms.is_heavy)
    if not len(chosen):
        chosen = np.flatnonzero(atoms.weights > 0)
    which = np.zeros(len(atoms), dtype=bool)
    which[chosen[:: -(-len(chosen) // most)]] = True
    return _subset(atoms, which)


def _subset(atoms: ModelAtoms, which: NDArray[np.bool_]) -> ModelAtoms:
    """Arrays of some atoms; the structure stays whole, and is not used."""
    names = ("positions", "weights", "b_factors", "is_heavy", "is_backbone", "residue_of", "chain_of")
    parts: dict[str, Any] = {name: getattr(atoms, name)[which] for name in names}
    return replace(atoms, **parts)


def _only(atoms: ModelAtoms, which: NDArray[np.bool_]) -> ModelAtoms:
    """The model in which only some atoms scatter."""
    return replace(atoms, weights=np.where(which, atoms.weights, 0.0))


def _left_jacobian(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """J with exp(v + dv) = exp(J dv) exp(v), for a rotation vector v."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    if angle < 1e-6:
        return np.eye(3) + cross / 2
    return (np.eye(3) + (1 - np.cos(angle)) / angle**2 * cross
            + (angle - np.sin(angle)) / angle**3 * cross @ cross)  # fmt: skip
