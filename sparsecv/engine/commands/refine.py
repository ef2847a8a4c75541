# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv refine``: gold-standard 3D refinement of particles against a starting map."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.refine.settings import RefineSettings

SETTINGS = RefineSettings


def run(settings: RefineSettings, save: Save) -> int:
    """Refine, and keep the settings in the output folder from the start on."""
    from sparsecv.engine.refine.run import refine
    from sparsecv.engine.report.progress import Progress

    check_device(settings.device)
    settings.output.mkdir(parents=True, exist_ok=True)
    save(settings.output / "run.toml")
    progress = Progress()
    try:
        refine(settings, progress)
    finally:
        progress.close()
    return 0
