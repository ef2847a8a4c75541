# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine as a library: what a program of one's own needs, in one place.

Nothing is imported before it is used, and nothing is printed; what a user can put right is an :class:`InputError`, with
file, rule and remedy. Settings have the names, defaults and checks of the command line; arrays are NumPy's, maps are
(z, y, x), lengths in A. Whoever refines or filters sets the threads of the whole process.

Examples
--------
>>> from sparsecv.engine.api import RefineSettings, refine
>>> settings = RefineSettings(particles="particles.star", reference="start.mrc", output="run")   # doctest: +SKIP
>>> found = refine(settings, on_iteration=lambda one: print(one.number, one.entry["resolution_0143"]))  # doctest: +SKIP
>>> print(found.resolution, found.particles.rotations.shape)                                     # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsecv.engine.errors import InputError
    from sparsecv.engine.io.models import read_structure
    from sparsecv.engine.io.mrc import Map, read_map, write_map
    from sparsecv.engine.io.particles import ParticleTable
    from sparsecv.engine.model_map.results import Options, Validation
    from sparsecv.engine.model_map.validation import validate
    from sparsecv.engine.refine.arrays import FilteredMap, RegularisedMap, nu_filter, regularise
    from sparsecv.engine.refine.result import FinishedIteration, RefineResult
    from sparsecv.engine.refine.run import refine
    from sparsecv.engine.refine.settings import NonUniformSettings, RefineSettings, RegulariserSettings
    from sparsecv.engine.report.progress import Progress
    from sparsecv.engine.simulate.dataset import SimulatedFiles, simulate
    from sparsecv.engine.simulate.settings import SimulateSettings
    from sparsecv.engine.validate.fsc import Resolution, fsc, resolution
    from sparsecv.engine.validate.postprocess import PostprocessResult, postprocess

__all__ = [
    "FilteredMap", "FinishedIteration", "InputError", "Map", "NonUniformSettings", "Options", "ParticleTable",
    "PostprocessResult", "Progress", "RefineResult", "RefineSettings", "RegularisedMap", "RegulariserSettings",
    "Resolution", "SimulateSettings", "SimulatedFiles", "Validation", "fsc", "nu_filter", "postprocess", "read_map",
    "read_structure", "refine", "regularise", "resolution", "simulate", "validate", "write_map",
]  # fmt: skip

_HOMES = {
    "errors": ("InputError",),
    "io.models": ("read_structure",),
    "io.mrc": ("Map", "read_map", "write_map"),
    "io.particles": ("ParticleTable",),
    "model_map.results": ("Options", "Validation"),
    "model_map.validation": ("validate",),
    "refine.arrays": ("FilteredMap", "RegularisedMap", "nu_filter", "regularise"),
    "refine.result": ("FinishedIteration", "RefineResult"),
    "refine.run": ("refine",),
    "refine.settings": ("NonUniformSettings", "RefineSettings", "RegulariserSettings"),
    "report.progress": ("Progress",),
    "simulate.dataset": ("SimulatedFiles", "simulate"),
    "simulate.settings": ("SimulateSettings",),
    "validate.fsc": ("Resolution", "fsc", "resolution"),
    "validate.postprocess": ("PostprocessResult", "postprocess"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562): all of it together takes a second."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"sparsecv.engine.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
