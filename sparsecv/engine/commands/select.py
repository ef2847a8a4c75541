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
    from sparsecv.engine.errors import tell
    from sparsecv.engine.io.particles import ParticleTable
    from sparsecv.engine.io.results import refuse_to_replace
    from sparsecv.engine.subset.files import old_parts, results, summary, write_selection
    from sparsecv.engine.subset.selection import select

    made = [*results(settings.output, settings.split or 0), settings.output.with_suffix(".toml")]
    refuse_to_replace(made, (settings.particles, settings.micrographs))
    refuse_to_replace(old_parts(settings.output), (settings.micrographs,))
    record = settings_beside(settings.output, "select")
    table = ParticleTable.read(settings.particles, check_images=False, independent_halves=False)
    warn(table.warnings)
    found = select(settings, table)
    warn(found.notes)
    written = write_selection(settings.output, found)
    save(record)
    tell(*summary(found))
    tell(f"written: {', '.join(str(path) for path in written)}")
    return 0
