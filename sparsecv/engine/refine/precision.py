# SPDX-License-Identifier: GPL-3.0-or-later
"""How precisely the first level of a global search is scored.

Tensor cores multiply numbers of 8 significant bits (bfloat16) many times faster than float32. Rounding both factors of
Re <x, p> to b bits, where x = p + noise of variance 1, changes a log-likelihood by about 2^-b ||p|| (noise times the
rounding of p) and, where the image agrees with the reference, by 2^-b ||p||^2 / sqrt(J) on top. Measured against
float64 over J = 1e3 to 3e4 pixels: 3.5e-3 ||p|| with bfloat16 and 4e-4 ||p|| with TF32. Sums are in float32 always.

The first level only decides which cells are looked at again, in float32; its margin is widened by more than that error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_POWER = 1e4  # ||p||^2 up to which the widening covers the error: its standard deviation is then 0.35 nats
WIDENING = 2.0  # nats


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


def choose_precision(ops: Any, asked: str, power: float) -> Precision:
    """Precision of a search.

    Parameters
    ----------
    ops
        Kernels.
    asked
        ``"auto"`` or ``"fp32"``.
    power
        Largest whitened signal power ||p||^2 of the references, see `.GridBank.signal_power`.
    """
    if asked == "fp32" or "bf16" not in ops.product_precisions():
        return FULL
    if not power <= MOST_POWER:  # so written that NaN is refused
        why = f"the references' signal power is above {MOST_POWER:g}"
        return Precision(reason=f"the first level of the search is scored in float32: {why}")
    why = f"the references' signal power is at most {MOST_POWER:g}"
    return Precision("bf16", "tf32", WIDENING, "the first level of the search is scored in bfloat16, its margin "
                     f"{WIDENING:g} nats wider: {why}")  # fmt: skip
