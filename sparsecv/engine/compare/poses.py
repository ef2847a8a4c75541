# SPDX-License-Identifier: GPL-3.0-or-later
"""The same particles in two refinements: how they are found again, and how far their poses changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.compare.frame import LOST_DEG, Change, Frame, changes, fit_frame
from sparsecv.engine.compare.runs import ID, Particles, Run
from sparsecv.engine.physics.symmetry import symmetry_matrices

FEWEST = 10  # particles in common from which a motion is fitted
UNRELATED = 0.25  # of the median change between poses of different particles: beyond it there is no common motion
RELATED_DEG = 1.0  # a median change below it is small, however alike all views are
IMAGE = 1 << 32  # more images than a stack holds


@dataclass(frozen=True)
class Pairs:
    """The particles that two runs have in common, as rows of either, (m,) each, and what they were found by."""

    first: NDArray[np.int64]
    other: NDArray[np.int64]
    found_by: str


@dataclass(frozen=True)
class PoseChanges:
    """Poses of a run against those of the first.

    Attributes
    ----------
    common, only_first, only_other
        Particles in both runs, and in one only.
    found_by
        What tells that two particles are the same.
    other_half
        Particles of those in common that are in another half set; as numbered, or with the numbers 1 and 2 exchanged,
        whichever are fewer.
    is_swapped
        Whether they are exchanged.
    frame
        The rigid motion taken out; none where ``is_related`` is false.
    is_related
        Whether most poses agree well enough for a motion to be told.
    as_they_are, change
        Changes before and after it is taken out.
    """

    common: int
    only_first: int
    only_other: int
    found_by: str
    other_half: int
    is_swapped: bool
    frame: Frame
    is_related: bool
    as_they_are: Change
    change: Change

    @property
    def lost(self) -> float:
        """Share of particles that are turned by more than 30 degrees."""
        return float(np.mean(self.change.turned > LOST_DEG))


def pose_changes(first: Run, other: Run) -> PoseChanges | None:
    """How far poses changed from one run to another; None where they have too few particles in common."""
    one, two = first.particles, other.particles
    pairs = pair(one, two)
    if len(pairs.first) < FEWEST:
        return None
    poses = one.rotations[pairs.first], one.shifts[pairs.first], two.rotations[pairs.other], two.shifts[pairs.other]
    groups = [symmetry_matrices(run.symmetry) for run in (first, other)]
    other_has_it = len(groups[1]) > len(groups[0])
    group = groups[int(other_has_it)]
    before = changes(*poses, group, Frame.same(), other_has_it=other_has_it)
    frame = fit_frame(*poses, group, other_has_it=other_has_it, is_shared=first.symmetry == other.symmetry)
    after = changes(*poses, group, frame, other_has_it=other_has_it)
    strangers = np.roll(poses[2], 1 + len(pairs.first) // 2, axis=0), poses[3]
    by_chance = changes(*poses[:2], *strangers, group, frame, other_has_it=other_has_it)
    is_related = bool(np.median(after.turned) <= max(UNRELATED * np.median(by_chance.turned), RELATED_DEG))
    halves = one.halves[pairs.first], two.halves[pairs.other]
    known = (halves[0] > 0) & (halves[1] > 0)
    differ = int(np.count_nonzero(known & (halves[0] != halves[1])))
    agree = int(np.count_nonzero(known)) - differ
    common = len(pairs.first)
    return PoseChanges(
        common=common,
        only_first=len(one) - common,
        only_other=len(two) - common,
        found_by=pairs.found_by,
        other_half=min(differ, agree),
        is_swapped=differ > agree,
        frame=frame if is_related else Frame.same(),
        is_related=is_related,
        as_they_are=before,
        change=after if is_related else before,
    )


def pair(first: Particles, other: Particles) -> Pairs:
    """Find the particles of one run in another: by image name, by its last part, or by rlnImageId.

    The first of these by which most particles of the smaller run are found is taken, else the one that finds most: an
    identifier may be that of another image, where the runs are of different imports. Of images that a run has twice
    the first one counts.
    """
    enough = min(len(first), len(other)) / 2
    best: Pairs | None = None
    for found_by, keys in (("rlnImageName", _whole_names), ("the file names in rlnImageName", _last_names), (ID, _ids)):
        both = keys(first, other)
        if both is None:
            continue
        _, rows, other_rows = np.intersect1d(*both, return_indices=True)
        if best is None or len(rows) > len(best.first):
            best = Pairs(rows, other_rows, found_by)
        if len(best.first) > enough:
            break
    assert best is not None  # whole names are always there
    return best


Keys = tuple[NDArray[np.int64], NDArray[np.int64]]


def _whole_names(first: Particles, other: Particles) -> Keys:
    keys = _numbered(first, other, os.path.normpath)
    assert keys is not None
    return keys


def _last_names(first: Particles, other: Particles) -> Keys | None:
    """Without folders, where these are not needed to tell the stacks of a run apart."""
    return _numbered(first, other, lambda name: PurePath(name).name, must_differ=True)


def _ids(first: Particles, other: Particles) -> Keys | None:
    if first.identifiers is None or other.identifiers is None:
        return None
    return first.identifiers, other.identifiers


def _numbered(
    first: Particles, other: Particles, name_of: Callable[[str], str], *, must_differ: bool = False
) -> Keys | None:
    """A number for each image, the same for the same image in both runs; None where names of a run coincide."""
    names: list[Sequence[str]] = [[name_of(stack) for stack in run.stacks] for run in (first, other)]
    if must_differ and any(len(set(own)) < len(own) for own in names):
        return None
    numbers: dict[str, int] = {}
    for name in (*names[0], *names[1]):
        numbers.setdefault(name, len(numbers))
    stacks = [np.array([numbers[name] for name in own], dtype=np.int64) for own in names]
    keys = [stacks[k][run.stack_index] * IMAGE + run.image_index for k, run in enumerate((first, other))]
    return keys[0], keys[1]
