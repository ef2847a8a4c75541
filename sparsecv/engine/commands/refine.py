# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv refine``: gold-standard 3D refinement of particles against a starting map."""

from __future__ import annotations

from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.refine.settings import RefineSettings

SETTINGS = RefineSettings


def run(settings: RefineSettings, save: Save) -> int:
    """Refine, and keep the settings in the output folder once every input has been checked."""
    from sparsecv.engine.ranks.launch import join
    from sparsecv.engine.refine.run import assist, refine
    from sparsecv.engine.report.progress import Progress

    comm = join()
    check_device(settings.device)
    if not comm.is_root:
        assist(settings, comm)
        comm.close()
        return 0
    # launchers give their processes a terminal of their own, whatever the output goes to
    progress = Progress(interactive=None if comm.size == 1 else False)
    try:
        result = refine(settings, progress, lambda: save(settings.output / "run.toml"), comm)
        found = result.postprocess
        bfactor = "not fitted" if found.bfactor is None else f"{found.bfactor:.0f} A^2"
        is_masked = found.fsc is not found.curves.unmasked
        where = "inside the mask, corrected for it" if is_masked else "unmasked"
        progress.line(
            f"finished: {found.resolution_0143} at 0.143 and {found.resolution_05} at 0.5 (FSC of the half maps "
            f"{where}); B-factor {bfactor}"
        )
        progress.line(f"results in {settings.output}: run_class001.mrc, half maps, postprocess.mrc, run_data.star, "
                      "run.cxc, emdb (for a deposition)")
    finally:
        progress.close()
    comm.close()
    return 0
