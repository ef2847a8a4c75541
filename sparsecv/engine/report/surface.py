# SPDX-License-Identifier: GPL-3.0-or-later
"""Views of a map's surface, drawn without a 3D program: what is seen along an axis, lit from the viewer's side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecv.engine.physics.masks import large_components

LIGHT = np.array([0.35, 0.45, 0.82])  # from the right, from above, from the viewer; of length 1
AMBIENT = 0.35
COLOUR = (0.55, 0.72, 0.90)  # of a surface that nothing colours
MOST_HAZE = 0.45  # part of white in what is farthest away
MARGIN = 3  # voxels around the particle, at least
MOST_VOXELS = 256  # a side: a picture shows no more
STEPS = 2  # layers per voxel of depth


@dataclass(frozen=True)
class View:
    """A surface seen along an axis; every array (box, box), first index upwards.

    Attributes
    ----------
    hit
        Where there is a surface.
    shade
        Brightness in [0, 1].
    values
        Of the volume that colours it, at the surface.
    """

    hit: np.ndarray
    shade: np.ndarray
    values: np.ndarray


def view(density: np.ndarray, level: float, colouring: np.ndarray, axis: int) -> View:
    """The surface where a density rises through a level, seen along an axis.

    Parameters
    ----------
    density, colouring
        (box, box, box), (z, y, x).
    axis
        Of the array: 0 looks down from +z, 1 from -y, 2 from +x, so that x, x and y grow to the right and nothing is
        mirrored.
    """
    seen, colours = (_seen(volume, axis) for volume in (density, colouring))
    above = seen > level
    hit, first = np.asarray(above.any(axis=0)), above.argmax(axis=0)
    index = np.indices(first.shape)
    slopes = [np.take_along_axis(part, first[None], axis=0)[0] for part in np.gradient(seen)]
    # density falls outwards: the normal points against its gradient; depth grows away from the viewer
    normal = np.stack([-slopes[2], -slopes[1], slopes[0]])
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
    shade = AMBIENT + (1 - AMBIENT) * np.clip(np.tensordot(LIGHT, normal, axes=1), 0, 1)
    return View(hit, shade, colours[first, index[0], index[1]])


def surface_picture(density: np.ndarray, level: float, axis: int, size: int) -> np.ndarray:
    """The surface of a map as a picture for people: fine, cut to the particle, lit, what is far away paler.

    Parameters
    ----------
    density
        (box, box, box), (z, y, x).
    level, axis
        As in :func:`view`.
    size
        Of the picture, pixels.

    Returns
    -------
    numpy.ndarray
        float32 in [0, 1], (size, size, 3), first index upwards; white where there is nothing.
    """
    picture = np.ones((size, size, 3), dtype=np.float32)
    part = _cut_to_particle(density, level)
    if part is None:
        return picture
    hit, depth, shade = _first_crossing(_seen(part, axis), level, size)
    if hit.any():
        near, far = float(depth[hit].min()), float(depth[hit].max())
        haze = MOST_HAZE * (depth - near) / max(far - near, 1e-6)
        lit = np.asarray(COLOUR, dtype=np.float32) * shade[:, :, None]
        picture[hit] = (lit + (1 - lit) * haze[:, :, None])[hit]
    return picture


def widest_axis(density: np.ndarray, level: float) -> int:
    """The axis of the array along which most of the surface is seen."""
    return int(np.argmax([np.count_nonzero((density > level).any(axis=axis)) for axis in range(3)]))


def _seen(density: np.ndarray, axis: int) -> np.ndarray:
    """The map as the viewer has it: (depth, up, right), depth growing away from the viewer; see :func:`view`."""
    order = (axis, *(other for other in range(3) if other != axis))
    turned: np.ndarray = np.transpose(density, order)[:: 1 if axis == 1 else -1]
    return turned


def _cut_to_particle(density: np.ndarray, level: float) -> np.ndarray | None:
    """The cube around what is above the level, with a margin, without specks, at most ``MOST_VOXELS`` a side."""
    solid = large_components(density > level)
    if not solid.any():
        return None
    ends = [np.flatnonzero(solid.any(axis=tuple(o for o in range(3) if o != axis)))[[0, -1]] for axis in range(3)]
    margin = MARGIN + max(int(last - first) for first, last in ends) // 20
    side = max(int(last - first) for first, last in ends) + 1 + 2 * margin
    outside = float(np.min(density))
    clean = np.where(solid, density, np.minimum(density, level))
    cube = np.full((side,) * 3, min(outside, level), dtype=np.float32)
    whole, piece = [], []
    for (first, last), length in zip(ends, density.shape, strict=True):
        start = (int(first) + int(last) + 1 - side) // 2  # of the cube in the map; may lie outside of it
        low, high = max(start, 0), min(start + side, length)
        whole.append(slice(low, high))
        piece.append(slice(low - start, high - start))
    cube[tuple(piece)] = clean[tuple(whole)]
    step = -(-side // MOST_VOXELS)
    if step > 1:
        even = side - side % step
        cube = cube[:even, :even, :even].reshape(even // step, step, even // step, step, even // step, step)
        cube = cube.mean(axis=(1, 3, 5))
    return cube


def _first_crossing(seen: np.ndarray, level: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each ray first meets the level: whether at all, depth in voxels, brightness; each (size, size).

    The map is interpolated by cubic splines through its voxels' values smoothed by them, half a voxel of depth after
    another, so that no more than two layers are held at the size of the picture.
    """
    count = len(seen)
    along, across = _spline(count, STEPS * count), _spline(count, size).astype(np.float32)
    hit = np.zeros((size, size), dtype=bool)
    depth, shade = np.zeros((size, size), dtype=np.float32), np.zeros((size, size), dtype=np.float32)
    before = np.full((size, size), -np.inf, dtype=np.float32)
    for number, weights in enumerate(along):
        used = np.flatnonzero(weights)
        layer = across @ np.tensordot(weights[used].astype(np.float32), seen[used], axes=1) @ across.T
        new = (layer > level) & ~hit
        rows, columns = np.nonzero(new)
        if len(rows):
            up = (np.clip(rows - 1, 0, None), np.clip(rows + 1, None, size - 1))
            right = (np.clip(columns - 1, 0, None), np.clip(columns + 1, None, size - 1))
            there = layer[rows, columns]
            back = np.where(np.isfinite(before[rows, columns]), before[rows, columns], level)
            rise = there - back
            per_pixel = size / count / 2  # from differences over two pixels to those per voxel
            normal = np.stack([(layer[rows, right[0]] - layer[rows, right[1]]) * per_pixel,
                               (layer[up[0], columns] - layer[up[1], columns]) * per_pixel, rise * STEPS])
            normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
            shade[rows, columns] = AMBIENT + (1 - AMBIENT) * np.clip(np.tensordot(LIGHT, normal, axes=1), 0, 1)
            part = np.clip((level - back) / np.maximum(rise, 1e-12), 0, 1)
            depth[rows, columns] = (number - 1 + part) / STEPS
            hit |= new
        before = layer
    return hit, depth, shade


def _spline(count: int, points: int) -> np.ndarray:
    """Weights of ``count`` values at ``points`` places that span them, (points, count): cubic B-splines, sum 1."""
    place = (np.arange(points) + 0.5) * count / points - 0.5
    away = np.abs(place[:, None] - np.arange(count))
    weights = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6)
    found: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return found
