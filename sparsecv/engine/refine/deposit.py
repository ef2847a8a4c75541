# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes out of a finished refinement: the folder for a deposition in EMDB, and a script for ChimeraX."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sparsecv import __version__
from sparsecv.engine.refine.loop import Iteration, Refinement
from sparsecv.engine.refine.outputs import HALF_MAP, band_limits
from sparsecv.engine.refine.prepare import Warn
from sparsecv.engine.refine.regularisers.nonuniform import mean_band_limit
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.report.band_limit import surface_level
from sparsecv.engine.report.chimerax import BandLimits, write_run_script
from sparsecv.engine.report.deposition import MASK, Reconstruction, Sources, write_deposition
from sparsecv.engine.validate.postprocess import PostprocessResult

SCHERES = "Scheres 2012, J. Struct. Biol. 180, 519-530, doi:10.1016/j.jsb.2012.09.006 (refinement)"
LUO = "Luo 2019, arXiv:1905.13408 (sparse + total-variation prior)"
PUNJANI = ("Punjani, Zhang & Fleet 2020, Nat. Methods 17, 1214-1221, doi:10.1038/s41592-020-00990-8 "
           "(non-uniform filters)")
OF_PRIOR = {"wiener": (SCHERES,), "sparse-tv": (SCHERES, LUO), "nonuniform": (SCHERES, PUNJANI)}
PRIORS = {"wiener": "Wiener filter", "sparse-tv": "sparse + total-variation prior", "nonuniform": "non-uniform filters"}
AT_FIRST = "; a Wiener filter until the halves showed more than they had in common from the start"
STRENGTHS = ("alpha", "beta", "kappa_sparse", "kappa_variation")


def write_what_goes_out(
    refinement: Refinement, iteration: Iteration, settings: RefineSettings, result: PostprocessResult, warn: Warn
) -> None:
    """``emdb/`` and ``run.cxc`` in the folder of a refinement whose other results are written."""
    folder = settings.output
    own_mask = None if settings.mask is not None else folder / "postprocess_mask.mrc"
    half_maps = folder / HALF_MAP.format(1), folder / HALF_MAP.format(2)
    sources = Sources(folder / "postprocess.mrc", folder / "postprocess_fsc.xml", half_maps, True, own_mask)
    made = reconstruction(refinement, settings)
    emdb = write_deposition(folder, result, sources, iteration.half_maps, made, warn)
    mask = own_mask or (None if emdb is None else emdb / MASK)
    shown = band_limits(iteration)
    limits = None
    if shown is not None:
        mean = mean_band_limit(*shown)
        limits = BandLimits("run_bandlimit.mrc", float(mean.min()), float(mean.max()))
    write_run_script(folder / "run.cxc", "postprocess.mrc", surface_level(result.map),
                     (half_maps[0].name, half_maps[1].name), surface_level(iteration.half_maps[0]),
                     None if mask is None else str(mask.relative_to(folder)), limits)  # fmt: skip


def reconstruction(refinement: Refinement, settings: RefineSettings) -> Reconstruction:
    """How the half maps of a finished refinement were made, in the words of a deposition."""
    state, name = refinement.state, refinement.regulariser.name
    kept = ~state.particles.is_rejected
    counts = [int(np.count_nonzero(kept & (refinement.halves == half))) for half in (1, 2)]
    finest = f"finest step {state.history[-1]['step_deg']:.2f} degrees"
    search = "local search around given orientations" if settings.local else "global search, then local"
    shared = f", but for what is coarser than {settings.join_below:g} A, which their references share"
    start = "map given by the user, not low-pass filtered"
    if settings.initial_lowpass > 0:
        start = f"map given by the user, low-pass filtered to {settings.initial_lowpass:g} A"
    return Reconstruction(
        software=("sparsecv", __version__),
        particles=(counts[0], counts[1]),
        set_aside=int(np.count_nonzero(~kept)),
        symmetry=settings.symmetry,
        angles=f"{search}; posterior probabilities of all orientations and shifts, {finest}",
        initial_angles=not settings.local,
        start=start,
        regularised=f"the references of every iteration but the last, each half set by itself: {PRIORS.get(name, name)}"
        f"{_parameters(refinement, settings)}" + ("" if name == "wiener" else AT_FIRST),
        unregularised="the half maps: backprojections of the last iteration, to Nyquist, divided by their weights; the "
        "corners of the box fade beyond the sphere that it just holds",
        half_maps="half sets refined independently" + (shared if settings.join_below > 0 else ""),
        references=OF_PRIOR.get(name, (SCHERES,)),
    )


def _parameters(refinement: Refinement, settings: RefineSettings) -> str:
    """The regulariser's parameters, with those that it chose by itself; empty where it is not known by its name."""
    values: dict[str, Any]
    if settings.regulariser == "wiener":
        values = {"T": 1.0 if settings.tau_factor is None else settings.tau_factor}
    elif settings.regulariser == "nonuniform":
        values = settings.nu_values
    else:
        names = (*STRENGTHS, "gamma", "epsilon", "epsilon_gradient", "preset", "strength", "solver")
        values = {name: value for name, value in asdict(settings).items() if name in names and value is not None}
        values |= _chosen(refinement)
    shown = ", ".join(f"{name.removeprefix('nu_')} {_plain(value)}" for name, value in values.items())
    return f" ({shown})" if shown else ""


def _chosen(refinement: Refinement) -> dict[str, Any]:
    """Strengths of both halves in the last iteration that regularised them."""
    for entry in reversed(refinement.state.history):
        halves = entry.get("regulariser", [])
        if len(halves) == 2:
            first, second = halves
            return {name: (first[name], second[name]) for name in STRENGTHS if name in first and name in second}
    return {}


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " and ".join(_plain(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
