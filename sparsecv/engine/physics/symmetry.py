# SPDX-License-Identifier: GPL-3.0-or-later
"""Point groups Cn, Dn, T, O and I1 to I4, in RELION's frames.

A group is a list of rotation matrices ``R_g`` that leave the map unchanged. They act on a pose from the right,

    A' = A R_g,

and ``A'`` gives the same image as ``A``. The view direction of a pose in the map's frame is the third row of ``A``
(``d = A^T z``), so the equivalent view directions are ``d R_g``.

Frames: Cn and Dn have the n-fold axis along z, and Dn a 2-fold axis along x; DnY has it along y, where cryoSPARC has it
(for even n that is the same group). T has a 3-fold axis along z and a 2-fold
axis in the yz plane. O has its 4-fold axes along x, y and z. I (the same as I2) and I1 have 2-fold axes along x, y and
z; the 5-fold axes next to z lie in the xz plane for I2 and in the yz plane for I1. I3 and I4 have a 5-fold axis along
z and differ by half a turn about it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.geometry import rotvec_to_matrix

RULE = "one of Cn and Dn (n from 1; DnY with a 2-fold axis along y), T, O, I, I1, I2, I3, I4"
LARGEST_ORDER = 999  # of an axis: RELION reads at most three digits
GOLDEN = (1 + 5**0.5) / 2
TIE = 1e-9  # cosines of two equally near directions differ by rounding only

# (order, axis) of two rotations that generate the group.
_GENERATORS: dict[str, list[tuple[int, tuple[float, float, float]]]] = {
    "T": [(3, (0, 0, 1)), (2, (0, 2**0.5, 1))],
    "O": [(3, (1, 1, 1)), (4, (0, 0, 1))],
    "I1": [(2, (1, 0, 0)), (5, (GOLDEN, 0, -1))],
    "I2": [(2, (0, 0, 1)), (5, (1, 0, GOLDEN))],
    "I3": [(5, (0, 0, 1)), (2, (-1, 0, GOLDEN))],
    "I4": [(5, (0, 0, 1)), (2, (1, 0, GOLDEN))],
}

# Far from the axes of all the groups, relative to their spacing: asymmetric units around it are compact.
_REFERENCE_DIRECTION = np.array([0.66, 0.26, 0.70]) / np.linalg.norm([0.66, 0.26, 0.70])


def parse_symmetry(name: str) -> tuple[str, int]:
    """Canonical name and order of a point group.

    Parameters
    ----------
    name
        As on RELION's command line, in either case: ``C4``, ``d7``, ``T``, ``I`` (which is ``I2``); and ``D7Y``.

    Returns
    -------
    The canonical name (upper case, ``I`` as ``I2``) and the number of elements of the group.

    Raises
    ------
    InputError
        Where the name is none of the groups, or is one with mirrors (``C3v``, ``Oh``), which no protein can have.

    Examples
    --------
    >>> parse_symmetry("d7"), parse_symmetry("I")
    (('D7', 14), ('I2', 60))
    """
    canonical = str(name).strip().upper()
    if re.fullmatch(r"([CSD]\d+|[TOI]\d?)[VH]|CI|CS|S\d+|TD", canonical):
        raise InputError("point groups with mirrors, inversion or rotary reflection do not exist for proteins",
                         item="symmetry", value=name, rule=RULE, remedy="give the rotations only, such as C3 for C3v")
    cyclic = re.fullmatch(r"([CD])(\d+)([XY]?)", canonical)
    if cyclic and not (cyclic[1] == "C" and cyclic[3]):
        order = int(cyclic[2])
        if not 1 <= order <= LARGEST_ORDER:
            raise InputError("the order of the axis is out of range", item="symmetry", value=name,
                             rule=f"{cyclic[1]}1 to {cyclic[1]}{LARGEST_ORDER}")
        turned = "Y" if cyclic[3] == "Y" and order % 2 else ""  # for even orders x and y are alike
        return f"{cyclic[1]}{order}{turned}", order * (2 if cyclic[1] == "D" else 1)
    canonical = "I2" if canonical == "I" else canonical
    if canonical not in _GENERATORS:
        raise InputError("unknown point group", item="symmetry", value=name, rule=RULE)
    return canonical, {"T": 12, "O": 24}.get(canonical, 60)


def symmetry_matrices(name: str) -> NDArray[np.float64]:
    """Rotations of a point group, identity first.

    Parameters
    ----------
    name
        See `parse_symmetry`.

    Returns
    -------
    Shape (G, 3, 3), float64. Poses ``A`` and ``A @ R`` are equivalent for every ``R`` of it.

    Raises
    ------
    InputError
        Where the name is no point group of rotations.

    Examples
    --------
    >>> symmetry_matrices("D2").diagonal(axis1=1, axis2=2).round().astype(int).tolist()
    [[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]]
    """
    return _group(*parse_symmetry(name)).copy()


@lru_cache(maxsize=32)
def _group(canonical: str, size: int) -> NDArray[np.float64]:
    if canonical[0] in "CD":
        order = int(canonical[1:].removesuffix("Y"))
        turns = 2 * np.pi / order * np.arange(order)
        group = rotvec_to_matrix(np.outer(turns, (0, 0, 1)))
        if canonical[0] == "D":
            half_turn = np.diag([-1.0, 1.0, -1.0] if canonical.endswith("Y") else [1.0, -1.0, -1.0])
            group = np.concatenate([group, group @ half_turn])
    else:
        group = _closure([_axis_rotation(order, axis) for order, axis in _GENERATORS[canonical]], size)
    group[np.abs(group) < 1e-15] = 0
    return group


def _axis_rotation(order: int, axis: tuple[float, float, float]) -> NDArray[np.float64]:
    unit = np.array(axis) / np.linalg.norm(axis)
    return rotvec_to_matrix(2 * np.pi / order * unit[None])[0]


def _closure(generators: list[NDArray[np.float64]], size: int) -> NDArray[np.float64]:
    """All products of the generators, identity first, in the order of the number of factors."""
    group = [np.eye(3)]
    for element in group:  # grows while it is walked through: every new element meets every generator
        for generator in generators:
            product = element @ generator
            if not any(np.allclose(product, known, atol=1e-6) for known in group):
                group.append(product)
        if len(group) > size:
            raise RuntimeError(f"generators give more than the {size} elements of their group")
    # The nearest rotations (polar decomposition): takes out the rounding of up to ten factors.
    u, _, v = np.linalg.svd(np.stack(group))
    return u @ v


def unique_directions(directions: ArrayLike, matrices: ArrayLike) -> NDArray[np.bool_]:
    """Pick one asymmetric unit from any set of view directions.

    Kept is a direction that is the nearest of its equivalents to one fixed direction in general position. The kept
    region is the Voronoi cell of that direction, of solid angle 4 pi / G; directions on its border are all kept.

    Parameters
    ----------
    directions
        Unit vectors in the map's frame, (x, y, z), shape (n, 3): third rows of ``A``.
    matrices
        The point group, shape (G, 3, 3), of `symmetry_matrices`.

    Returns
    -------
    Shape (n,), bool.
    """
    # d R_g . u = d . (R_g u): one small matrix product in place of G rotated copies of all directions.
    equivalents = np.asarray(matrices, dtype=np.float64) @ _REFERENCE_DIRECTION
    nearness = np.asarray(directions, dtype=np.float64) @ equivalents.T
    own = np.asarray(directions, dtype=np.float64) @ _REFERENCE_DIRECTION
    return own >= nearness.max(axis=1) - TIE


def symmetric_distance(first: ArrayLike, second: ArrayLike, matrices: ArrayLike) -> NDArray[np.float64]:
    """Smallest angle between two poses over their equivalents.

    Parameters
    ----------
    first, second
        Rotations ``A``, shape (n, 3, 3).
    matrices
        The point group, shape (G, 3, 3).

    Returns
    -------
    Degrees, shape (n,).
    """
    trace = _traces(first, second, matrices).max(axis=1)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def nearest_equivalents(poses: Any, centres: Any, matrices: ArrayLike, xp: Any = np) -> Any:
    """The equivalent A R_g of each pose that is nearest to another pose.

    Parameters
    ----------
    poses, centres
        Rotations ``A``, shape (n, 3, 3), and those that they are to be brought near to; arrays of the module ``xp``.
    matrices
        The point group, shape (G, 3, 3), identity first; on the host.

    Returns
    -------
    Shape (n, 3, 3); without symmetry ``poses`` themselves.
    """
    group = xp.asarray(np.asarray(matrices, dtype=np.float64))
    if len(group) == 1:
        return poses
    return poses @ group[_traces(poses, centres, group, xp).argmax(axis=1)]


def _traces(first: Any, second: Any, matrices: Any, xp: Any = np) -> Any:
    """Trace of A R_g B^T for each pair of poses and each element of the group, (n, G): 1 + 2 cos of their angle."""
    a, b, group = (xp.asarray(array, dtype=xp.float64) for array in (first, second, matrices))
    relative = xp.einsum("nki,nkj->nij", a, b)  # A^T B; the trace of A R B^T is that of R (A^T B)^T
    return xp.einsum("gij,nij->ng", group, relative)
