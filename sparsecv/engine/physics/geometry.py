# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotations in RELION's convention.

A particle's rotation ``A`` acts on map coordinates (x, y, z) to give image coordinates:
``A = Rz(psi) Ry(tilt) Rz(rot)`` with RELION's passive matrices (``Euler_angles2matrix``), which is the transpose of
scipy's intrinsic ``"ZYZ"`` rotation. The view direction in the map's frame is the third row of ``A``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    a, b, c = (np.deg2rad(np.atleast_1d(np.asarray(angle, dtype=np.float64))) for angle in (rot, tilt, psi))
    return _about_z(c) @ _about_y(b) @ _about_z(a)


def _about_z(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """RELION's passive rotation about z, radians (n,) -> (n, 3, 3)."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, s, zero, -s, c, zero, zero, zero, one], axis=-1).reshape(-1, 3, 3)


def _about_y(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """RELION's passive rotation about y, radians (n,) -> (n, 3, 3)."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, zero, -s, zero, one, zero, s, zero, c], axis=-1).reshape(-1, 3, 3)


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


def rotvec_to_matrix(vectors: Any, xp: Any = np) -> Any:
    """Rotation matrices of rotation vectors in radians, shapes (n, 3) -> (n, 3, 3), by Rodrigues' formula.

    R = 1 + sin(a)/a K + (1 - cos(a))/a^2 K^2 with K v = w x v and a = |w|; sinc keeps it exact for small angles.
    Arrays are those of the module ``xp``.
    """
    w = xp.asarray(vectors, dtype=xp.float64)
    angle = xp.linalg.norm(w, axis=1)[:, None, None]
    zero = xp.zeros(len(w))
    cross = xp.stack([zero, -w[:, 2], w[:, 1], w[:, 2], zero, -w[:, 0], -w[:, 1], w[:, 0], zero], axis=-1)
    cross = cross.reshape(-1, 3, 3)
    half = xp.sinc(angle / (2 * np.pi)) ** 2 / 2  # (1 - cos a) / a^2 = sin^2(a/2) / (a^2 / 2)
    return xp.eye(3) + xp.sinc(angle / np.pi) * cross + half * (cross @ cross)


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """One rotation matrix from the uniform distribution, shape (3, 3): that of a random unit quaternion."""
    quaternion = rng.standard_normal(4)
    w, vector = quaternion[0], quaternion[1:]
    size = np.linalg.norm(vector)
    return rotvec_to_matrix((2 * np.arctan2(size, w) * vector / size)[None])[0]
