# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv compare``: finished refinements side by side, in one frame, in one mask, on one grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparsecv.engine.commands import Save
from sparsecv.engine.compare.settings import CompareSettings
from sparsecv.engine.errors import printable, tell

if TYPE_CHECKING:
    from sparsecv.engine.compare.comparison import RunResult

SETTINGS = CompareSettings
COLUMNS = ("run", "prior", "particles", "0.143 (A)", "0.5 (A)", "B (A^2)", "turned (deg)", "moved (A)")


def run(settings: CompareSettings, save: Save) -> int:
    """Write the page, the numbers and the pictures of a comparison; print the table."""
    from sparsecv.engine.commands.maps import warn
    from sparsecv.engine.compare.comparison import compare
    from sparsecv.engine.compare.files import NUMBERS, PAGE, RECORD, WRITTEN, write_comparison, write_page
    from sparsecv.engine.compare.runs import labels, read_run
    from sparsecv.engine.io.results import refuse_to_overwrite, remove_results
    from sparsecv.engine.report.progress import Progress
    from sparsecv.engine.threads import use_threads

    workers = use_threads(settings.threads)
    folder = settings.output
    refuse_to_overwrite(folder, WRITTEN, (settings.mask,))
    runs = [read_run(path, label, settings.symmetry)
            for path, label in zip(settings.runs, labels(settings.runs), strict=True)]  # fmt: skip
    progress = Progress()
    try:
        found = compare(runs, mask=settings.mask, seed=settings.seed, workers=workers, progress=progress.line)
    finally:
        progress.close()
    warn(found.warnings)
    folder.mkdir(parents=True, exist_ok=True)
    remove_results(folder, (settings.mask,), WRITTEN)
    save(folder / RECORD)
    pictures = write_comparison(found, folder)
    write_page(found, folder, pictures)
    tell(*_table(found.runs))
    tell(f"results in {folder}: {PAGE}, {NUMBERS}, pictures")
    return 0


def _table(runs: Iterable[RunResult]) -> list[str]:
    """One line per run, columns one below the other."""
    import numpy as np

    rows: list[tuple[str, ...]] = [COLUMNS]
    for one in runs:
        post, poses = one.post, one.poses
        found = [f"{at.angstrom:.2f}" + ("" if at.crossed else " (Nyquist)")
                 for at in (post.resolution_0143, post.resolution_05)]  # fmt: skip
        found.append("-" if post.bfactor is None else f"{post.bfactor:.0f}")
        found += ["-", "-"] if poses is None else [f"{np.median(values):.2f}"
                                                   for values in (poses.change.turned, poses.change.moved)]  # fmt: skip
        rows.append((printable(one.run.label), printable(one.run.prior), str(len(one.run.particles)), *found))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
