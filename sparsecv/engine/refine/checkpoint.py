# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: the state of a refinement as an npz file, whose zip checksums show any damage.

Nothing in it is pickled. Two are kept; a damaged one is passed over for the one before. One that another version of the
program wrote is not damaged: it is refused, as going on from an older one would silently lose an iteration.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv import __version__
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.npz import read_npz, write_npz
from sparsecv.engine.io.regular import open_regular
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState

FORMAT = 4
KEPT = 2
HALF_ARRAYS = [f for f in fields(HalfState) if f.name != "memory"]  # the rest is plain JSON
NAME = re.compile(r"run_it(\d{3,})_checkpoint\.npz")


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """File of the checkpoint after an iteration."""
    return folder / f"run_it{iteration:03d}_checkpoint.npz"


def save_checkpoint(folder: Path, state: RefinementState, identity: dict[str, object]) -> Path:
    """Write the state atomically and remove checkpoints older than the last two.

    Parameters
    ----------
    identity
        Settings and inputs that must be the same when the run goes on.
    """
    arrays: dict[str, np.ndarray] = {"fsc": state.fsc, "odd_change": state.odd_change}
    arrays |= {f"particles.{f.name}": getattr(state.particles, f.name) for f in fields(ParticleState)}
    for number, half in enumerate(state.halves):
        arrays |= {f"half{number + 1}.{f.name}": np.asarray(getattr(half, f.name)) for f in HALF_ARRAYS}
    plain = {
        "format": FORMAT,
        "version": __version__,
        "identity": identity,
        "memories": [half.memory for half in state.halves],
        "band": state.band,
        "stage": state.stage,
        "iteration": state.iteration,
        "history": state.history,
        "rejected": {str(row): reason for row, reason in state.rejected.items()},
    }
    path = checkpoint_path(folder, state.iteration)
    write_npz(path, arrays, plain)
    for old in _all(folder)[KEPT:]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[RefinementState, dict[str, object]] | None:
    """State and identity of the newest undamaged checkpoint of a folder, or None where there is none.

    Raises
    ------
    InputError
        Where it was written in another format, by another version of the program.
    """
    for path in _all(folder):
        try:
            with os.fdopen(open_regular(path), "rb") as stream:
                arrays, plain = read_npz(stream)
            version = plain["format"], plain.get("version", "an early one")
        except Exception as error:  # the readers of zip, npy and JSON each show damage in several ways
            warn(f"{path} is damaged ({error}); the checkpoint before it is used")
            continue
        _check_version(path, *version)
        try:
            found = _state(arrays, plain)
        except Exception as error:
            warn(f"{path} is damaged ({error!r}); the checkpoint before it is used")
            continue
        if path != checkpoint_path(folder, found[0].iteration):
            warn(f"{path} holds iteration {found[0].iteration}: files were renamed; the run goes on after that one")
        return found
    return None


def _all(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("run_it*_checkpoint.npz"))
    found = [(int(match[1]), path) for match, path in matches if match]
    return [path for _, path in sorted(found, reverse=True)]


def _check_version(path: Path, number: object, version: object) -> None:
    """Refuse, with InputError, a checkpoint of another format."""
    if number != FORMAT:
        raise InputError(
            f"was written by another version of sparsecv ({version})", file=path,
            item="format", value=number, rule=f"{FORMAT}, which version {__version__} reads",
            remedy="go on with the version that began the run, or leave --continue away to start again, which removes "
            "the earlier results",
        )  # fmt: skip


def _state(arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> tuple[RefinementState, dict[str, object]]:
    particles = ParticleState(**{f.name: arrays[f"particles.{f.name}"] for f in fields(ParticleState)})
    halves = []
    for number in (1, 2):
        stored_half = ((f.name, arrays[f"half{number}.{f.name}"]) for f in HALF_ARRAYS)
        values: dict[str, Any] = {name: value if value.ndim else float(value) for name, value in stored_half}
        halves.append(HalfState(**values, memory=plain["memories"][number - 1]))
    state = RefinementState(
        particles=particles,
        halves=(halves[0], halves[1]),
        fsc=arrays["fsc"],
        band=plain["band"],
        stage=plain["stage"],
        iteration=plain["iteration"],
        history=plain["history"],
        rejected={int(row): reason for row, reason in plain["rejected"].items()},
        odd_change=arrays["odd_change"],
    )
    return state, plain["identity"]
