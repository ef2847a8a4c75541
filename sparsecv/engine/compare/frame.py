# SPDX-License-Identifier: GPL-3.0-or-later
"""Where two refinements put the same particle: a rigid motion, fitted to their poses, and maps brought together by it.

A refinement may turn and move the whole particle. Where the map v of the first run becomes v'(x) = v(Q^T (x - t)) in
another one, its poses are A' = A Q^T, and its origins o' = o + (A' t)_xy, as an image shows the map at x + origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sparsecv.engine.physics.geometry import angular_distance
from sparsecv.engine.physics.symmetry import nearest_equivalents

TRIM = 3.0  # particles that are off by more than this many medians take no part in a fit
LEAST_TRIM_DEG, LEAST_TRIM_A = 1.0, 0.1
ROUNDS = 10
SEEDS, SAMPLE = 40, 1000  # particles whose own turn is tried as that of all, and particles that judge it
LOST_DEG = 30.0  # beyond it a pose says nothing about another one
AXES_DEG = 5.0  # a fitted turn that moves the axes of the symmetry by less moves them by its error
POINTS = 1 << 22  # voxels sampled at once
ACCURACY = 1e-5  # relative, of the sampled trigonometric polynomial


@dataclass(frozen=True)
class Frame:
    """x -> Q x + t: where another run has what the first has at x.

    Attributes
    ----------
    rotation
        Q, (3, 3).
    shift
        t, (3,), A.
    """

    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def same(cls) -> Frame:
        """Nothing turned or moved."""
        return cls(np.eye(3), np.zeros(3))

    @property
    def degrees(self) -> float:
        """Angle of the turn; from its sine as well, which is exact where it is small."""
        q = self.rotation
        sine = np.linalg.norm([q[2, 1] - q[1, 2], q[0, 2] - q[2, 0], q[1, 0] - q[0, 1]])
        return float(np.rad2deg(np.arctan2(sine, np.trace(q) - 1)))

    @property
    def angstrom(self) -> float:
        """Length of the displacement of the map's centre."""
        return float(np.linalg.norm(self.shift))

    def inverse(self) -> Frame:
        """Where the first run has what the other has at x."""
        return Frame(self.rotation.T, -self.rotation.T @ self.shift)

    def largest_displacement(self, radius: float) -> float:
        """How far it moves a point within a sphere about the origin at most, A; ``radius`` in A."""
        return float(2 * np.sin(np.deg2rad(self.degrees) / 2) * radius + self.angstrom)


@dataclass(frozen=True)
class Change:
    """How far the poses of paired particles differ; (n,) each, degrees and A (in the image plane)."""

    turned: NDArray[np.float64]
    moved: NDArray[np.float64]


def fit_frame(
    rotations: NDArray[np.float64],
    shifts: NDArray[np.float64],
    others: NDArray[np.float64],
    other_shifts: NDArray[np.float64],
    group: NDArray[np.float64],
    *,
    other_has_it: bool = False,
    is_shared: bool = True,
) -> Frame:
    """The rigid motion from the frame of the first run to that of another one.

    Parameters
    ----------
    rotations, shifts
        Poses in the first run, (n, 3, 3) and (n, 2) in A.
    others, other_shifts
        Of the same particles in the other run.
    group
        Point group, (g, 3, 3), identity first: poses are known up to its elements.
    other_has_it
        Whether the group stands in the frame of the other run, not of the first.
    is_shared
        Whether both maps have this symmetry: only a motion that leaves its axes where they are is then possible, such
        as a turn about the axis of Cn and a displacement along it, or none at all.

    Notes
    -----
    Each particle alone gives a Q, up to the group; the best of a few is taken to all, and improved by least squares
    over the particles that are not far off, of their equivalents the nearest. Of equivalent Q it is the smallest.
    """
    relative = np.einsum("nji,njk->nik", others, rotations)  # A'^T A = Q, times an element of the group
    if other_has_it:
        relative = relative.transpose(0, 2, 1)
    q = _common_rotation(relative, group)
    q = _smallest(_keeping_axes(q, group) if is_shared else q, group)
    seen = others
    if other_has_it:
        q = q.T
        seen = nearest_equivalents(others, rotations @ q.T, group)
    angles = _angles(rotations, others, q, group, other_has_it)
    oriented = angles < max(TRIM * np.median(angles), LEAST_TRIM_DEG)
    shift = _common_shift(seen[:, :2], other_shifts - shifts, oriented)
    return Frame(q, group.mean(axis=0) @ shift if is_shared else shift)


def changes(
    rotations: NDArray[np.float64],
    shifts: NDArray[np.float64],
    others: NDArray[np.float64],
    other_shifts: NDArray[np.float64],
    group: NDArray[np.float64],
    frame: Frame,
    *,
    other_has_it: bool = False,
) -> Change:
    """How far poses differ once a motion is taken out; parameters as in :func:`fit_frame`."""
    turned = _angles(rotations, others, frame.rotation, group, other_has_it)
    seen = nearest_equivalents(others, rotations @ frame.rotation.T, group) if other_has_it else others
    moved = other_shifts - shifts - seen[:, :2] @ frame.shift
    return Change(turned, np.linalg.norm(moved, axis=1))


def _angles(
    rotations: NDArray[np.float64], others: NDArray[np.float64], q: NDArray[np.float64], group: NDArray[np.float64],
    other_has_it: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """Degrees between A' and A Q^T, up to the group, (n,)."""
    if other_has_it:
        expected = rotations @ q.T
        return angular_distance(nearest_equivalents(others, expected, group), expected)
    wanted = others @ q
    return angular_distance(nearest_equivalents(rotations, wanted, group), wanted)


def _common_rotation(relative: NDArray[np.float64], group: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation that most of ``relative`` are, up to an element of the group from the right; (n, 3, 3) -> (3, 3)."""
    some = relative[np.linspace(0, len(relative) - 1, min(SAMPLE, len(relative))).astype(int)]
    seeds = [np.eye(3), *some[np.linspace(0, len(some) - 1, min(SEEDS, len(some))).astype(int)]]
    costs = [np.minimum(_from_one(some, seed, group)[1], LOST_DEG).mean() for seed in seeds]
    q = seeds[int(np.argmin(costs))]
    for _ in range(ROUNDS):
        nearest, angles = _from_one(relative, q, group)
        near = angles < max(TRIM * np.median(angles), LEAST_TRIM_DEG)
        q = _mean_rotation(nearest[near])
    return q


def _mean_rotation(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation nearest to the mean, (n, 3, 3) -> (3, 3): its polar factor."""
    u, _, vt = np.linalg.svd(rotations.sum(axis=0))
    return np.asarray(u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt)


def _keeping_axes(q: NDArray[np.float64], group: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn nearest to Q that brings the axes of a group to its axes: what is left of R Q S, averaged over R.

    A Q that is far from all of them, as where one run has found another frame for its symmetry, stays.
    """
    alike, angles = _from_one(group @ q, q, group)
    return _mean_rotation(alike) if angles.max() < AXES_DEG else q


def _from_one(
    rotations: NDArray[np.float64], one: NDArray[np.float64], group: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The equivalents R S nearest to one rotation, (n, 3, 3), and how far they are from it, degrees, (n,)."""
    centres = np.broadcast_to(one, rotations.shape)
    nearest = nearest_equivalents(rotations, centres, group)
    return nearest, angular_distance(nearest, centres)


def _smallest(q: NDArray[np.float64], group: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the equivalents Q S the one that turns least."""
    equivalents = q @ group
    return np.asarray(equivalents[np.trace(equivalents, axis1=1, axis2=2).argmax()])


def _common_shift(
    views: NDArray[np.float64], moved: NDArray[np.float64], oriented: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Least-squares t of ``moved`` = views t over the particles that are not far off; (n, 2, 3), (n, 2) -> (3,)."""
    near: NDArray[np.bool_] = oriented
    shift: NDArray[np.float64] = np.zeros(3)
    for _ in range(ROUNDS):
        shift = np.linalg.lstsq(views[near].reshape(-1, 3), moved[near].ravel(), rcond=None)[0].astype(np.float64)
        distances = np.linalg.norm(moved - views @ shift, axis=1)
        near = oriented & (distances <= max(TRIM * np.median(distances[oriented]), LEAST_TRIM_A))
    return shift


def seen_from(
    volume: NDArray[np.floating], frame: Frame, pixel_size: float, *, threads: int = 1
) -> NDArray[np.float32]:
    """u(x) = v(Q x + t) of a map: what another run has, in the frame of the first.

    Parameters
    ----------
    volume
        v, (box, box, box) as (z, y, x), centre at index box // 2.
    pixel_size
        A.

    Returns
    -------
    numpy.ndarray
        float32, same shape: the map's trigonometric polynomial between its voxels, so that nothing is blurred; 0 where
        it comes from outside of the box.
    """
    import finufft

    box = volume.shape[0]
    transform = scipy.fft.fftn(np.fft.ifftshift(volume).astype(np.float32), workers=threads, norm="forward")
    transform = np.fft.fftshift(transform)
    axis = np.arange(box) - box // 2
    moved = np.zeros(volume.shape, dtype=np.float32)
    planes = max(1, POINTS // box**2)
    for start in range(0, box, planes):
        slab = axis[start : start + planes]
        z, y, x = (part.ravel() for part in np.meshgrid(slab, axis, axis, indexing="ij"))
        source = frame.rotation @ np.stack([x, y, z]) + frame.shift[:, None] / pixel_size
        inside = (np.abs(source) <= box / 2).all(axis=0)
        points = [np.ascontiguousarray(part, dtype=np.float32) for part in source[::-1, inside] * (2 * np.pi / box)]
        values = np.zeros(len(inside), dtype=np.float32)
        values[inside] = finufft.nufft3d2(*points, transform, isign=1, eps=ACCURACY, nthreads=threads).real
        moved[start : start + planes] = values.reshape(len(slab), box, box)
    return moved
