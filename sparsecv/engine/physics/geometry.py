# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotations in RELION's convention.

A particle's rotation ``A`` acts on map coordinates (x, y, z) to give image coordinates:
``A = Rz(psi) Ry(tilt) Rz(rot)`` with RELION's passive matrices (``Euler_angles2matrix``), which is the transpose of
scipy's intrinsic ``"ZYZ"`` rotation. The view direction in the map's frame is the third row of ``A``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation


def euler_to_matrix(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices of RELION's Euler angles.

    Parameters
    ----------
    rot, tilt, psi
        Degrees, each of shape (n,).

    Returns
    -------
    Shape (n, 3, 3), float64: map coordinates to image coordinates.

    Examples
    --------
    >>> euler_to_matrix([0.0], [0.0], [90.0])[0].round(6) @ [1, 0, 0]
    array([ 0., -1.,  0.])
    """
    angles = np.stack([np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (rot, tilt, psi)], axis=1)
    return Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)


def matrix_to_euler(matrices: ArrayLike) -> NDArray[np.float64]:
    """RELION's (rot, tilt, psi) of rotation matrices, in degrees, shape (n, 3).

    Where tilt is 0 or 180 degrees only rot + psi (or their difference) is defined; rot is then 0.
    """
    a = np.asarray(matrices, dtype=np.float64)
    tilt = np.arctan2(np.hypot(a[:, 2, 0], a[:, 2, 1]), a[:, 2, 2])
    is_polar = np.sin(tilt) < 1e-7
    rot = np.where(is_polar, 0.0, np.arctan2(a[:, 2, 1], a[:, 2, 0]))
    polar_psi = np.where(a[:, 2, 2] > 0, np.arctan2(a[:, 0, 1], a[:, 0, 0]), np.arctan2(a[:, 0, 1], -a[:, 0, 0]))
    psi = np.where(is_polar, polar_psi, np.arctan2(a[:, 1, 2], -a[:, 0, 2]))
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))


def angular_distance(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Angle in degrees of the rotation that leads from one matrix to the other, shapes (n, 3, 3) -> (n,)."""
    trace = np.einsum("nij,nij->n", np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def rotvec_to_matrix(vectors: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices of rotation vectors in radians, shapes (n, 3) -> (n, 3, 3)."""
    return Rotation.from_rotvec(np.asarray(vectors, dtype=np.float64)).as_matrix()


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """One rotation matrix from the uniform distribution, shape (3, 3)."""
    quaternion = rng.standard_normal(4)
    return Rotation.from_quat(quaternion / np.linalg.norm(quaternion)).as_matrix()
