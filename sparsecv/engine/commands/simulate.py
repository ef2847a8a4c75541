# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv simulate``: particles with known truth, from a model or from the built-in protein."""

from __future__ import annotations

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import tell
from sparsecv.engine.simulate.settings import SimulateSettings

SETTINGS = SimulateSettings


def run(settings: SimulateSettings, save: Save) -> int:
    """Write a data set and the settings it was made with."""
    from sparsecv.engine.io.results import refuse_to_overwrite
    from sparsecv.engine.simulate import simulate

    refuse_to_overwrite(settings.output, (), ())
    files = simulate(settings)
    save(settings.output / "simulate.toml")
    tell(f"{settings.particles} particles in {settings.output}: "
         f"{files.particles.name}, the starting map {files.reference.name}; "
         f"truth: {files.truth.name}, {files.truth_map.name}, {files.mask.name}")
    return 0
