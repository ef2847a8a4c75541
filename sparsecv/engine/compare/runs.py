# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a finished refinement, of sparsecv or RELION: what it holds, checked before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.paths import split_image_names
from sparsecv.engine.io.results import files_of_run, read_json
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.symmetry import parse_symmetry
from sparsecv.engine.settings import read_toml

# Names that RELION gives to the results of a refinement, and sparsecv as well.
HALF_MAPS = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
PARTICLES = "run_data.star"
SHOWN_MAPS = ("run_class001_regularised.mrc", "run_class001.mrc")  # to look at, the first that is there
MASK = "postprocess_mask.mrc"
SETTINGS, STATUS, SAMPLING = "run.toml", "status.json", "run_sampling.star"
ID = "rlnImageId"
LONGEST_SECONDS = 1e12  # beyond it a time is none


@dataclass(frozen=True)
class Particles:
    """Particles of a run; every array has one entry per particle.

    Attributes
    ----------
    rotations, shifts
        RELION's A, (n, 3, 3), and origins (x, y) in A, (n, 2).
    halves
        Half set, 1 or 2, (n,); 0 where not given.
    stacks, stack_index, image_index
        Names of the stacks as written, which of them, (n,), and the number of the image in it from 0, (n,).
    identifiers
        rlnImageId, (n,), or None where the file has none.
    """

    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]
    halves: NDArray[np.int8]
    stacks: tuple[str, ...]
    stack_index: NDArray[np.int32]
    image_index: NDArray[np.int64]
    identifiers: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rotations)


@dataclass(frozen=True)
class Run:
    """A finished refinement.

    Attributes
    ----------
    folder, label
        Where it is; the shortest end of that path which no other run has.
    prior
        Name of the regulariser, "RELION" for RELION's folders, "-" where nothing says it.
    symmetry
        Point group.
    particles
        As they were left.
    half_maps, shown_map
        Files of the unregularised half maps, and of the map to look at, where there is one.
    wall_seconds, cpu_seconds
        Of the process that finished the run; None where nothing says it.
    warnings
        Sentences about what is odd.
    """

    folder: Path
    label: str
    prior: str
    symmetry: str
    particles: Particles
    half_maps: tuple[Path, Path]
    shown_map: Path | None
    wall_seconds: float | None
    cpu_seconds: float | None
    warnings: tuple[str, ...]


def read_run(folder: Path, label: str, symmetry: str | None = None) -> Run:
    """Read what a refinement has left, but for its maps.

    Parameters
    ----------
    folder
        Of ``sparsecv refine``, or of a job of RELION's Refine3D.
    label
        What to call it.
    symmetry
        Point group, instead of what the folder says.

    Raises
    ------
    InputError
        No folder, without half maps or particles, or particles without orientations.
    """
    rule = f"{', '.join(HALF_MAPS)} and {PARTICLES}"
    half1, half2, data = files_of_run(folder, (*HALF_MAPS, PARTICLES), rule)
    warnings: list[str] = []
    status = _status(folder, warnings)
    settings = _settings(folder, warnings)
    group = symmetry or settings.get("symmetry") or _relion_symmetry(folder)
    if group is None:
        group = "C1"
        warnings.append(f"{folder}: nothing says which symmetry it was refined with: C1 is assumed; say --symmetry")
    try:
        point_group = parse_symmetry(str(group))[0]
    except InputError as error:
        raise error.about(folder) from error
    shown = next((folder / name for name in SHOWN_MAPS if (folder / name).is_file()), None)
    prior = settings.get("regulariser") or ("RELION" if _is_relion(folder) else "-")
    particles, said = _particles(data)
    return Run(folder, label, str(prior), point_group, particles, (half1, half2), shown,
               _number(status, "wall_seconds"), _number(status, "cpu_seconds"), (*warnings, *said))


def labels(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that no other one has: its name, if that will do."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [str(folder) for folder in folders]


def _particles(path: Path) -> tuple[Particles, list[str]]:
    table = ParticleTable.read(path, check_images=False, independent_halves=False)
    star = table.star.table(table.table_name)
    names, stack_index, image_index = split_image_names(star)
    identifiers = star.integers(ID) if ID in star else None
    found = Particles(table.rotations, table.shifts, table.halves, tuple(names), stack_index, image_index, identifiers)
    unassigned = [] if table.halves.all() else [f"{path}: not all particles are in a half set"]
    return found, [*table.star.warnings, *unassigned]


def _status(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """What status.json says; what makes the run doubtful goes to the warnings."""
    path = folder / STATUS
    if not path.is_file():
        return {}
    try:
        status = read_json(path)
    except InputError as error:
        warnings.append(f"{path}: {error.problem}: it is passed over")
        return {}
    if status.get("state") != "finished":
        warnings.append(f"{folder}: the run is not finished (state {status.get('state')!r}): its maps and poses may be "
                        "of different iterations")  # fmt: skip
    if status.get("masked_resolution_is_shared") or status.get("resolution_is_shared"):
        warnings.append(f"{folder}: its halves correlate no further than what they had in common explains: the "
                        "resolutions below are not to be claimed")  # fmt: skip
    return status


def _settings(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """The table [refine] of run.toml, of whatever version."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        content = read_toml(path)
    except InputError as error:
        warnings.append(str(error))
        return {}
    table = content.get("refine", content)
    return table if isinstance(table, dict) else {}


def _relion_symmetry(folder: Path) -> str | None:
    path = folder / SAMPLING
    if not path.is_file():
        return None
    star = StarFile.read(path)
    name, column = "sampling_general", "rlnSymmetryGroup"
    found = star.table(name).strings(column) if name in star and column in star.table(name) else []
    return found[0] if len(found) else None


def _is_relion(folder: Path) -> bool:
    return (folder / SAMPLING).is_file() or (folder / "run_optimiser.star").is_file()


def _number(status: dict[str, Any], key: str) -> float | None:
    value = status.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LONGEST_SECONDS else None  # which NaN is not, either


def warn_of_symmetries(runs: Iterable[Run]) -> list[str]:
    """A warning where runs were refined with different symmetries."""
    by_group: dict[str, list[str]] = {}
    for run in runs:
        by_group.setdefault(run.symmetry, []).append(run.label)
    if len(by_group) == 1:
        return []
    said = "; ".join(f"{group}: {', '.join(names)}" for group, names in by_group.items())
    return [f"the runs differ in symmetry ({said}): a higher one averages more noise away, so that curves do not tell "
            "priors apart; poses are compared up to the larger group"]  # fmt: skip
