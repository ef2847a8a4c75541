# SPDX-License-Identifier: GPL-3.0-or-later
"""What regularisers work on, without a refinement: from kept accumulators, or from half maps of any program."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.fourier import shell_sums
from sparsecv.engine.physics.gridding import gridding_profile
from sparsecv.engine.refine.accumulator_files import WHOLE, StoredAccumulators
from sparsecv.engine.refine.regularisers.base import Evidence
from sparsecv.engine.refine.schedule import band_of
from sparsecv.engine.refine.volumes import PADDING, Accumulator, map_to_volume, radial
from sparsecv.engine.validate.fsc import fsc
from sparsecv.engine.validate.postprocess import check_halves

CHOOSING = 2  # an iteration in which strengths are chosen: the first one is left to the start
NOTHING = 1e-8  # of the noisiest shell's power: a filter has removed what was there, and left rounding errors
LEAST_NOISE = 0.01  # of the median of the shells


def fsc_of_sum(curve: np.ndarray) -> np.ndarray:
    """FSC that the sum of two maps would have with another such sum, 2 f / (1 + f), from that between the two."""
    positive = np.maximum(curve, 0)
    found: np.ndarray = 2 * positive / (1 + positive)
    return found


def evidence_of_accumulators(ops: Any, stored: StoredAccumulators, support: np.ndarray,
                             sphere: np.ndarray) -> dict[int, Evidence]:
    """Evidence by half, each from its own quarters; that of all particles where they are not in halves.

    Parameters
    ----------
    support, sphere
        (box, box, box) soft masks on the host: of the result, and that in which the FSC is measured.

    Returns
    -------
    Evidence by number of the half, 1 and 2 or ``WHOLE``. The FSC is that between the halves; of all particles, where
    only quarters can be compared, what follows from theirs. The previous reference is empty.
    """
    parts = [first + second for first, second in stored.quarters.values()]
    if WHOLE in stored.quarters:
        parts = list(stored.quarters[WHOLE])
    one, two = (ops.to_host(part.solve(ops)) * sphere for part in parts)
    curve = fsc(one, two)
    curve[parts[0].last_shell + 1 :] = 0
    own = fsc_of_sum(curve) if WHOLE in stored.quarters else curve
    empty = ops.xp.zeros(support.shape, dtype=ops.xp.float32)
    mask, ball = (ops.xp.asarray(one) for one in (support, sphere))
    return {
        half: Evidence(quarters, empty, own, mask, ball, stored.box, stored.origin.pixel_size, CHOOSING,
                       min(band_of(curve), quarters[0].last_shell))
        for half, quarters in stored.quarters.items()
    }  # fmt: skip


def evidence_of_half_maps(
    ops: Any, half1: np.ndarray, half2: np.ndarray, pixel_size: float, support: np.ndarray, sphere: np.ndarray,
    previous: np.ndarray | None = None,
) -> Evidence:
    """Two half maps as the quarters of one map, which is then regularised as a half of a refinement is.

    N(s) = 1 / (noise power of a half map per coefficient), from the difference of the two inside the support, and
    B = N F. Strengths are so chosen by what one half map says about the other: what comes out has seen both.

    Parameters
    ----------
    half1, half2
        (box, box, box) on the host, unfiltered and unmasked.
    support, sphere
        As in :func:`evidence_of_accumulators`.
    previous
        (box, box, box) map to which some regularisers pull, on the scale of the half maps; None: an empty one.

    Raises
    ------
    InputError
        Half maps that are equal, flat, not finite or of different box.
    """
    check_independent(half1, half2)
    box = half1.shape[0]
    weight = weight_per_shell(half1, half2, support)
    last = int(np.flatnonzero(weight)[-1])
    quarters = [_quarter(ops, half, weight, last) for half in (half1, half2)]
    curve = fsc(half1 * sphere, half2 * sphere)
    curve[last + 1 :] = 0
    known = np.zeros_like(half1) if previous is None else previous
    return Evidence((quarters[0], quarters[1]), ops.xp.asarray(known.astype(np.float32)), fsc_of_sum(curve),
                    ops.xp.asarray(support), ops.xp.asarray(sphere), box, pixel_size, CHOOSING,
                    min(band_of(curve), last))


def check_independent(half1: np.ndarray, half2: np.ndarray) -> None:
    """Refuse, with InputError, half maps that are equal, flat, not finite or of different box."""
    check_halves(half1, half2)
    if np.array_equal(half1, half2):
        raise InputError("the two half maps are identical", rule="independent half maps",
                         remedy="give the maps of both halves")


def weight_per_shell(half1: np.ndarray, half2: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Weight N of each half map per shell, 1 / noise power per coefficient, float64 up to the last whole shell.

    The noise is half of the power of the difference inside the support. It counts as no less than a hundredth of the
    median of the shells, as those that the halves share show none; where a filter has removed everything, the weight
    is 0.
    """
    box = half1.shape[0]
    shells = (box - 1) // 2 + 1
    counts = shell_sums(np.ones((box, box, box // 2 + 1)))[:shells]
    # per coefficient of fftn(map) / box of a map that fills the box
    scale = 1 / (box**2 * counts * (np.mean(support**2, dtype=np.float64) or 1.0))

    def power(density: np.ndarray) -> np.ndarray:
        transform = np.fft.rfftn(density.astype(np.float64) * support)
        found: np.ndarray = shell_sums(transform.real**2 + transform.imag**2)[:shells] * scale
        return found

    noise = power(half1 - half2) / 2
    is_there = power(half1) + power(half2) > NOTHING * noise.max()
    noise = np.maximum(noise, LEAST_NOISE * np.median(noise[is_there]))
    found: np.ndarray = np.where(is_there, 1 / np.where(is_there, noise, 1), 0.0)
    return found


def _quarter(ops: Any, half: np.ndarray, weight: np.ndarray, last: int) -> Accumulator:
    """B = N F and N of one half map; solving them gives the half map back."""
    profile = gridding_profile(half.shape[0], PADDING, "trilinear").astype(np.float32) ** 2
    # undoes both corrections for interpolation, of the way to the volume and of the way back: there was none
    plain = half * profile[:, None, None] * profile[None, :, None] * profile[None, None, :]
    volume = map_to_volume(ops, ops.xp.asarray(plain.astype(np.float32)), last)
    weights = radial(ops, weight[: last + 1], volume.shape)
    volume *= weights
    return Accumulator(volume, weights, half.shape[0], last)
