# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a symmetric model into RELION's frame of its point group.

Rotations between equal chains are found by superposition; two of them that fit two generators of the group give the
frame.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.simulate.fold import perpendicular
from sparsecv.engine.simulate.potential import Atoms

LARGEST_RMS = 3.0  # A, between superposed chains
ANGLE_TOLERANCE = 2.0  # degrees, between the model's rotations and the group's


def turned_to_symmetry(atoms: Atoms, symmetry: str) -> Atoms:
    """The atoms with the symmetry centre at the origin and the axes where the group has them.

    Parameters
    ----------
    atoms
        All chains of the assembly.
    symmetry
        The point group that the assembly has.

    Raises
    ------
    InputError
        Where the chains do not show the symmetry.
    """
    group = symmetry_matrices(symmetry)
    rotations, centre = _chain_rotations(atoms)
    frame, error = _frame(rotations, group)
    if error > ANGLE_TOLERANCE:
        raise InputError("the model does not have the symmetry", item="symmetry", value=symmetry,
                         rule=f"{len(group)} copies of its chains, related by the group's rotations",
                         remedy="give the whole biological assembly, or symmetry C1")
    return atoms.moved((atoms.positions - centre) @ frame.T)


def _chain_rotations(atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations from one chain to its copies, the identity first, and the point that all of them fix."""
    names, first = np.unique(atoms.chains, return_index=True)
    members = [np.flatnonzero(atoms.chains == name) for name in names[np.argsort(first)]]
    kinds: dict[bytes, list[NDArray[np.int64]]] = {}
    for chain in members:
        kinds.setdefault("".join(atoms.residues[chain]).encode(), []).append(chain)
    copies = max(kinds.values(), key=lambda chains: (len(chains), len(chains[0])))
    start = atoms.positions[copies[0]]
    rotations, left, right = [np.eye(3)], [np.zeros((3, 3))], [np.zeros(3)]
    for chain in copies[1:]:
        end = atoms.positions[chain]
        fit, rssd = Rotation.align_vectors(end - end.mean(axis=0), start - start.mean(axis=0))
        if rssd / np.sqrt(len(start)) < LARGEST_RMS:
            rotations.append(fit.as_matrix())
            left.append(np.eye(3) - rotations[-1])
            right.append(end.mean(axis=0) - rotations[-1] @ start.mean(axis=0))
    # (1 - R) centre = translation for every copy; along a lone axis the centre of mass (the origin) stays.
    centre = np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=1e-3)[0]
    return np.stack(rotations), centre


def _frame(rotations: NDArray[np.float64], group: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Rotation F with F Q F^T in the group for the model's rotations Q, and its largest error in degrees."""
    wanted = _two_axes(group)
    choices = [_axes_with_angle(rotations, angle) for _, angle in wanted]
    targets = np.stack([axis for axis, _ in wanted])
    best_frame, best_error = np.eye(3), np.inf
    for found in product(*choices):
        if len(found) == 2 and abs(found[0] @ found[1] - targets[0] @ targets[1]) > 0.1:
            continue
        frame = _onto(np.stack(found), targets)
        turned = frame @ rotations @ frame.T
        traces = np.einsum("gij,qij->gq", group, turned).max(axis=1)
        error = float(np.rad2deg(np.arccos(np.clip((traces.min() - 1) / 2, -1, 1))))
        if error < best_error:
            best_frame, best_error = frame, error
    return best_frame, best_error


def _two_axes(group: NDArray[np.float64]) -> list[tuple[NDArray[np.float64], float]]:
    """Axis and angle of one or two rotations that fix the frame: the smallest angle, and one about another axis."""
    vectors = Rotation.from_matrix(group[1:]).as_rotvec()
    angles = np.linalg.norm(vectors, axis=1)
    axes = vectors / angles[:, None]
    first = int(np.argmin(angles.round(6)))
    others = np.flatnonzero(np.abs(axes @ axes[first]) < 0.99)
    chosen = [first] if not len(others) else [first, int(others[0])]
    return [(axes[i], float(angles[i])) for i in chosen]


def _axes_with_angle(rotations: NDArray[np.float64], angle: float) -> list[NDArray[np.float64]]:
    vectors = Rotation.from_matrix(rotations[1:]).as_rotvec()
    lengths = np.linalg.norm(vectors, axis=1)
    fitting = vectors[np.abs(lengths - angle) < np.deg2rad(ANGLE_TOLERANCE)]
    axes = list(fitting / np.linalg.norm(fitting, axis=1, keepdims=True))
    return axes + [-axis for axis in axes] if angle > np.pi - 1e-6 else axes


def _onto(axes: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation that best brings unit vectors onto others; of one vector, the shortest one."""
    if len(axes) == 1 and axes[0] @ targets[0] < -1 + 1e-12:
        return Rotation.from_rotvec(np.pi * perpendicular(axes[0])).as_matrix()
    return Rotation.align_vectors(targets, axes)[0].as_matrix()
