# SPDX-License-Identifier: GPL-3.0-or-later
"""One held-out score for all families: what regularised maps of either quarter say about the other raw map.

    E = sum of both orders of sum_s w_s sum_k (|R_k - M_k|^2 - |M_k|^2) / sum_s w_s sum_k |M_k|^2,  w_s = s^2 / P_s

R is the regularised map of one quarter, M the raw map of the other, P_s the noise power in shell s from the difference
of the raw maps. Lower is better, 0 is that of an empty map. The weight s^2 counts what a rotation of the map changes in
the likelihood, as in the choice of the strengths of the sparse + TV prior.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.physics.fourier import shell_sums
from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps


def held_out_score(ops: Any, maps: RawMaps, predictions: tuple[Any, Any], band: int) -> float:
    """E of two predictions (side, side, side), up to a band."""
    raw, made = ([ops.to_host(ops.rfftn(one)) for one in pair] for pair in ((maps.first, maps.second), predictions))
    noise = _power(raw[0] - raw[1])
    last = min(band, maps.last_shell, len(noise) - 1)
    shells = np.arange(1, last + 1)
    weight = shells**2 / np.maximum(noise[1 : last + 1], 1e-30 + 1e-6 * noise[1 : last + 1].max())
    gain = power = 0.0
    for number in (0, 1):
        other = raw[1 - number]
        own = _power(other)[1 : last + 1]
        gain += float(weight @ (_power(made[number] - other)[1 : last + 1] - own))
        power += float(weight @ own)
    return gain / max(power, 1e-30)


def _power(transform: np.ndarray) -> np.ndarray:
    """Power per shell of a half transform."""
    return shell_sums(transform.real.astype(np.float64) ** 2 + transform.imag.astype(np.float64) ** 2)
