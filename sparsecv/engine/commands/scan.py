# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv scan``: the strengths of the sparse + TV prior on a grid, over accumulators or whole refinements."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.errors import tell
from sparsecv.engine.refine.settings import ScanSettings

SETTINGS = ScanSettings


def run(settings: ScanSettings, save: Save) -> int:
    """Scan, print the table, and write it with a picture and the settings into the output folder."""
    from sparsecv.engine.commands.maps import warn
    from sparsecv.engine.refine.scan import scan, table
    from sparsecv.engine.report.progress import Progress
    from sparsecv.engine.threads import keep_freed_memory, use_threads
    from sparsecv.kernels import ops

    check_device(settings.device)
    use_threads(settings.threads)
    keep_freed_memory()
    progress = Progress()
    try:
        rows = scan(settings, ops(settings.device), progress, lambda text: warn([text]))
    finally:
        progress.close()
    save(settings.output / "scan.toml")
    tell(*table(rows).splitlines())
    if settings.refine is None:
        tell("references_fsc05_A is the FSC 0.5 of regularised halves: of references, no resolution")
    tell(f"results in {settings.output}: scan.csv, scan.json, scan.png")
    return 0
