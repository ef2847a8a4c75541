# SPDX-License-Identifier: GPL-3.0-or-later
"""What the curves of a validation may not be read to say, in words."""

from __future__ import annotations

import numpy as np

from sparsecv.engine.model_map.results import Validation
from sparsecv.engine.validate.fsc import GUARD_SHELLS, HALF

HIGHEST_CONTROL = 0.2  # of the curve with random phases, where the true one is above 0.5


def verdict(found: Validation) -> list[str]:
    """Say in words what the curves may not be read to say."""
    said: list[str] = []
    at_05 = found.masked.at_05
    if at_05.resolution is None:
        said.append("the masked curve is never above 0.5: this model does not explain this map")
    elif not at_05.resolution.crossed:
        said.append(f"the curve is above 0.5 to Nyquist, {found.grid.nyquist:g} A: the map is sampled too "
                    "coarsely to show where it ends, and no finer resolution is claimed")  # fmt: skip
    if at_05.rises_from is not None:
        said.append(f"the masked curve is below 0.5 at resolutions coarser than {at_05.rises_from:.1f} A, "
                    "where solvent and disordered parts are that no model holds")  # fmt: skip
    if at_05.above_again_to is not None:
        said.append("the masked curve comes back above 0.5 behind its crossing, to "
                    f"{at_05.above_again_to:.2f} A: the first crossing is reported")  # fmt: skip
    behind = round(found.grid.length / found.randomised_from) + GUARD_SHELLS
    control = found.randomised[behind:][found.masked.values[behind:] >= HALF]
    if len(control) and control.max() > HIGHEST_CONTROL:
        said.append(f"with random phases the masked curve still reaches {control.max():.2f}: the mask "
                    "contributes to it")  # fmt: skip
    if behind >= found.grid.box // 2 and at_05.resolution is not None:
        said.append("the masked curve stays above 0.8 nearly to Nyquist: what the mask brings cannot be shown")
    more = {}
    if len(found.chains) > 1:
        more = {f"chain {name}": chain.curve for name, chain in found.chains.items()}
    if found.versus is not None:
        more["the other map"] = found.versus.masked
    for name, curve in more.items():
        at = curve.at_05.resolution
        if at is not None and not at.crossed and at_05.resolution is not None and at_05.resolution.crossed:
            said.append(f"the curve of {name} is above 0.5 to Nyquist: no finer resolution is claimed")
    if found.halves is None:
        return said
    if found.halves.beyond.any():
        shells = np.flatnonzero(found.halves.beyond)
        low, high = found.grid.length / shells[0], found.grid.length / shells[-1]
        said.append(
            f"between {low:.2f} and {high:.2f} A the model agrees better with the map than the half maps allow: "
            "it may be fitted to noise, or the map is not the mean of these halves"
        )
    of_halves = found.halves.resolution
    if at_05.resolution is not None and at_05.resolution.angstrom < of_halves.angstrom * 0.98:
        said.append(f"FSC 0.5 against the model lies at {at_05.resolution.angstrom:.2f} A, beyond the "
                    f"{of_halves.angstrom:.2f} A of the half maps: it is no resolution of the map")
    over = found.halves.over_fit
    if over.is_significant:
        better = 1 if over.difference > 0 else 2
        said.append(
            f"the model agrees better with half map {better} than with the other by {abs(over.difference):.3f} +- "
            f"{over.error:.3f}, averaged to {over.finest:.2f} A: was it refined against that half? Then it is "
            "fitted to its noise"
        )
    return said
