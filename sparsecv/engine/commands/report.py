# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv report``: the page of a refinement, made again from the files in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import tell
from sparsecv.engine.settings import required


@dataclass(frozen=True)
class ReportSettings:
    """Whose page is to be made."""

    run: Path = required("output folder of a refinement", positional=True)


SETTINGS = ReportSettings


def run(settings: ReportSettings, save: Save) -> int:
    """Write ``report.html``, as after a copy of the folder without it, and print where it is."""
    from sparsecv.engine.io.results import refuse_to_replace
    from sparsecv.engine.report.run_page import PAGE, RunPage

    refuse_to_replace([settings.run / PAGE], ())
    tell(str(RunPage(settings.run).write()))
    return 0
