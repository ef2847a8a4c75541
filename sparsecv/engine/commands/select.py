# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv select``: a subset of particles by quality, group or at random, with half sets as balanced as before."""

from __future__ import annotations

from sparsecv.engine.commands import Save
from sparsecv.engine.settings import settings_beside
from sparsecv.engine.subset.settings import SelectSettings

SETTINGS = SelectSettings


def run(settings: SelectSettings, save: Save) -> int:
    """Write the particles kept and those removed, numbers, a picture and the settings; say what was kept."""
    from sparsecv.engine.commands.maps import warn
    from sparsecv.engine.errors import InputError
    from sparsecv.engine.io.particles import ParticleTable
    from sparsecv.engine.subset.files import results, summary, write_selection
    from sparsecv.engine.subset.selection import select

    inputs = [path.resolve() for path in (settings.particles, settings.micrographs) if path is not None]
    for path in results(settings.output, settings.split or 0):
        if path.resolve() in inputs:
            raise InputError("would be overwritten", file=path, rule="inputs are kept",
                             remedy="choose another name with --output")  # fmt: skip
    record = settings_beside(settings.output, "select")
    table = ParticleTable.read(settings.particles, check_images=False, independent_halves=False)
    warn(table.warnings)
    found = select(settings, table)
    warn(found.notes)
    written = write_selection(settings.output, found)
    save(record)
    for line in summary(found):
        print(line)
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0
