# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv ctf-refine``: defocus, astigmatism, aberrations and magnification of particles with known poses."""

from __future__ import annotations

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import tell
from sparsecv.engine.refine.ctf_refine.settings import CtfRefineSettings

SETTINGS = CtfRefineSettings


def run(settings: CtfRefineSettings, save: Save) -> int:
    """Refine, and write the particles, numbers, pictures and the settings into the output folder."""
    from sparsecv.engine.commands.maps import read_halves, warn
    from sparsecv.engine.io.results import refuse_to_overwrite, remove_results, write_checksums
    from sparsecv.engine.refine.ctf_refine.files import RECORD, WRITTEN, summary, write_results
    from sparsecv.engine.refine.ctf_refine.run import ctf_refine
    from sparsecv.engine.report.progress import Progress
    from sparsecv.engine.threads import keep_freed_memory, use_threads

    workers = use_threads(settings.threads)
    keep_freed_memory()
    particles, first, second, folder = settings.files
    inputs = (particles, first, second, settings.mask)
    refuse_to_overwrite(folder, WRITTEN, inputs)
    half1, half2 = read_halves(first, second, settings.pixel_size)
    progress = Progress()
    try:
        found = ctf_refine(settings, half1, half2, progress.line, lambda text: warn([text]), workers)
    finally:
        progress.close()
    folder.mkdir(parents=True, exist_ok=True)
    remove_results(folder, inputs, WRITTEN)
    written = write_results(folder, settings, found)
    save(folder / RECORD)
    write_checksums(folder, WRITTEN)
    tell(*summary(settings, found))
    tell(f"results in {folder}: {', '.join(written)}")
    return 0
