# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv reconstruct``: a map from particles with known poses."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.errors import tell
from sparsecv.engine.refine.settings import ReconstructSettings
from sparsecv.engine.settings import settings_beside

SETTINGS = ReconstructSettings


def run(settings: ReconstructSettings, save: Save) -> int:
    """Reconstruct, and write the settings beside the map."""
    from sparsecv.engine.refine.reconstruct import reconstruct

    check_device(settings.device)
    record = settings_beside(settings.output, "reconstruct")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    written = reconstruct(settings)
    save(record)
    tell(f"written: {', '.join(str(path) for path in written)}")
    return 0
