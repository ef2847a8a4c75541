# SPDX-License-Identifier: GPL-3.0-or-later
"""Views of a map's surface, drawn without a 3D program: what is seen along an axis, lit from the viewer's side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LIGHT = np.array([0.35, 0.45, 0.82])  # from the right, from above, from the viewer; of length 1
AMBIENT = 0.35


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
    order = (axis, *(other for other in range(3) if other != axis))
    sense = 1 if axis == 1 else -1
    seen, colours = (np.transpose(volume, order)[::sense] for volume in (density, colouring))
    above = seen > level
    hit, first = np.asarray(above.any(axis=0)), above.argmax(axis=0)
    index = np.indices(first.shape)
    slopes = [np.take_along_axis(part, first[None], axis=0)[0] for part in np.gradient(seen)]
    # density falls outwards: the normal points against its gradient; depth grows away from the viewer
    normal = np.stack([-slopes[2], -slopes[1], slopes[0]])
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
    shade = AMBIENT + (1 - AMBIENT) * np.clip(np.tensordot(LIGHT, normal, axes=1), 0, 1)
    return View(hit, shade, colours[first, index[0], index[1]])
