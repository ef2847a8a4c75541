# SPDX-License-Identifier: GPL-3.0-or-later
"""How precisely the first level of a global search is scored.

Tensor cores multiply numbers of 8 (bfloat16) or 11 (TF32) significant bits many times faster than float32. Rounding
both factors of Re <x, p>, where x = p + noise of variance 1, changes each product by a relative error of standard
deviation e sqrt(2), and so the sum, a log-likelihood, by

    e sqrt(2 (sum p^2 + sum p^4)),    sum p^4 = 3/4 sum_j |p_j|^4

of which the second term is what an image has beside its noise: it rules where single pixels show a signal above the
noise. Sums are in float32 always. e is measured against float64, see tests/test_precision.py.

The first level only decides which cells are looked at again, in float32; its margin is widened by more than that error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ERRORS = {"bf16": 1.8e-3, "tf32": 2.3e-4}  # e of each precision, fastest first
IN_WORDS = {"bf16": "bfloat16", "tf32": "TF32"}
WIDENING = 2.0  # nats
# A cell at the margin and the best one both err: four standard deviations of their difference are to be covered.
LARGEST_ERROR = WIDENING / (4 * 2**0.5)


@dataclass(frozen=True)
class Precision:
    """Precision of the matrix products of the first level, and what it asks for.

    Attributes
    ----------
    cross, norm
        Of the cross terms, which are nearly all of the work, and of the norm terms: names in `.contract.PRECISIONS`.
    widening
        Nats that the margin of the first level is widened by.
    reason
        What is told about it; empty where there was no choice.
    """

    cross: str = "fp32"
    norm: str = "fp32"
    widening: float = 0.0
    reason: str = ""


FULL = Precision()


class SignalPower(NamedTuple):
    """Largest sums over the pixels of a slice, whitened: sum_j |p_j|^2, and sum_j |p_j|^4."""

    second: float
    fourth: float

    def error(self, precision: str) -> float:
        """Standard deviation of a log-likelihood scored in a precision, nats; NaN where the sums are."""
        return ERRORS[precision] * float(np.sqrt(2 * (self.second + 0.75 * self.fourth)))


def choose_precision(ops: Any, asked: str, power: SignalPower) -> Precision:
    """The fastest precision of a search whose error the wider margin covers.

    Parameters
    ----------
    ops
        Kernels.
    asked
        ``"auto"`` or ``"fp32"``.
    power
        Of the references, see `.GridBank.signal_power`.
    """
    if asked == "fp32" or "bf16" not in ops.product_precisions():
        return FULL
    for precision, words in IN_WORDS.items():
        if power.error(precision) <= LARGEST_ERROR:  # so written that NaN is refused
            return Precision(precision, "tf32", WIDENING, f"the first level of the search is scored in {words}, its "
                             f"margin {WIDENING:g} nats wider, as scores err by up to {LARGEST_ERROR:.2g}")  # fmt: skip
    return Precision(reason="the first level of the search is scored in float32: the signal is too strong for less")
