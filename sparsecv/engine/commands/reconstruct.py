# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv reconstruct``: a map from particles with known poses."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.refine.settings import ReconstructSettings

SETTINGS = ReconstructSettings


def run(settings: ReconstructSettings, save: Save) -> int:
    """Reconstruct, and write the settings beside the map."""
    from sparsecv.engine.refine.reconstruct import reconstruct

    check_device(settings.device)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    written = reconstruct(settings)
    save(settings.output.with_suffix(".toml"))
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0
