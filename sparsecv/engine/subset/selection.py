# SPDX-License-Identifier: GPL-3.0-or-later
"""Which particles stay: every rule acts on each half set by itself, so that halves keep their proportion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.checks import unique_images
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.regular import read_bytes
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.subset.qualities import FEWEST, Quality, goodness, of_like_defocus, quality_of, values_of
from sparsecv.engine.subset.settings import SelectSettings

MICROGRAPH = "rlnMicrographName"
SPLIT = 1  # added to the seed of what is drawn after the random subset

Bool = NDArray[np.bool_]


@dataclass
class Selection:
    """What was selected; arrays have one entry per particle of the file.

    Attributes
    ----------
    table
        The particles.
    kept
        Whether each stays.
    part
        Random subset that each is in, from 0; -1 for those removed, and for all where none were asked for.
    quality, values
        What they were judged by; None where they were not.
    relative_to
        What values are relative to.
    removed_by
        Rule, and number of particles that it has taken.
    notes
        What a user should know.
    """

    table: ParticleTable
    kept: Bool
    part: NDArray[np.int64]
    quality: Quality | None = None
    values: NDArray[np.float64] | None = None
    relative_to: str = "none"
    removed_by: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep(self, rule: str, those: Bool) -> None:
        """Keep only those, of the ones that are left.

        Raises
        ------
        InputError
            Where a half set would be empty.
        """
        left = self.kept & those
        for half in np.unique(self.table.halves).tolist():
            if not left[self.table.halves == half].any():
                raise InputError("no particle is left" + (f" in half set {half}" if half else ""), file=self.table.path,
                                 item=rule, rule="every half set keeps particles", remedy="choose a milder rule")
        self.removed_by[rule] = int(self.kept.sum() - left.sum())
        self.kept = left


def select(settings: SelectSettings, table: ParticleTable) -> Selection:
    """Apply the rules of the settings, in their order.

    Raises
    ------
    InputError
        Groups or columns that the file does not have, or where nothing would be left.
    """
    found = Selection(table, np.ones(len(table), dtype=bool), np.full(len(table), -1))
    if settings.optics_groups is not None:
        found.keep(f"optics groups {settings.optics_groups}", _of_optics(table, settings.optics_groups))
    if settings.micrographs is not None:
        found.keep(f"micrographs of {settings.micrographs}", _of_micrographs(table, settings.micrographs, found.notes))
    if settings.judges:
        _judge(settings, found)
    if settings.random is not None:
        found.keep(f"{settings.random} at random", _at_random(found, settings.random, settings.seed))
    if settings.split is not None:
        _split(found, settings.split, settings.seed)
    return found


def _judge(settings: SelectSettings, found: Selection) -> None:
    """Thresholds on the values, then the best fraction of each half set."""
    table = found.table
    star = table.star.table(table.table_name)
    quality = quality_of(settings.by, star)
    found.quality, found.relative_to = quality, settings.relative_to or quality.relative_to
    prefer = settings.prefer or quality.prefer
    if settings.keep is not None and prefer is None:
        raise InputError("no values are the best", file=table.path, item=f"--by {settings.by} --keep",
                         value=settings.keep, rule="--least or --most, or --keep with --prefer high, low or middle",
                         remedy="say which values are the best")  # fmt: skip
    like = of_like_defocus(table.optics_index, table.halves, (table.defocus_u + table.defocus_v) / 2)
    groups: dict[str, NDArray[np.integer[Any]]] = {
        "optics": table.optics_index, "defocus": like, "micrograph": table.micrograph_index,
    }  # fmt: skip
    group = groups.get(found.relative_to)
    if group is not None:
        _tell_small_groups(found, group)
    values = found.values = values_of(settings.by, quality, star, table.halves, group)
    if settings.least is not None:
        found.keep(f"{settings.by} of {settings.least:g} or more", values >= settings.least)
    if settings.most is not None:
        found.keep(f"{settings.by} of {settings.most:g} or less", values <= settings.most)
    if settings.keep is not None and prefer is not None:
        fraction, good = settings.keep, goodness(values, prefer, table.halves)

        def best(own: NDArray[np.int64]) -> NDArray[np.int64]:
            count = round(fraction * len(own))
            if 0 < count < len(own) and good[own].min() == good[own].max():
                raise InputError("all values are the same", file=table.path, item=f"--by {settings.by} --keep",
                                 value=float(values[own[0]]), rule="values that tell the best from others",
                                 remedy="judge by something else with --by, or draw with --random")  # fmt: skip
            return own[np.argsort(-good[own], kind="stable")][:count]

        found.keep(f"{settings.by}: the best {fraction:g} of each half set", _in_each_half(found, best))


def _tell_small_groups(found: Selection, group: NDArray[np.integer[Any]]) -> None:
    """Say where groups are too small to be compared within."""
    counts = np.stack([np.bincount(group[found.table.halves == half], minlength=int(group.max()) + 1)
                       for half in np.unique(found.table.halves).tolist()])  # fmt: skip
    small = int(((counts > 0) & (counts < FEWEST)).any(axis=0).sum())
    if small:
        found.notes.append(f"{small} of {int(counts.any(axis=0).sum())} groups have fewer than {FEWEST} particles in a "
                           "half set, which are compared with the whole half set")  # fmt: skip


def _in_each_half(found: Selection, choose: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Bool:
    """Mask of what ``choose`` takes of the rows that are left in each half set."""
    chosen = np.zeros(len(found.table), dtype=bool)
    for half in np.unique(found.table.halves).tolist():
        chosen[choose(np.flatnonzero(found.kept & (found.table.halves == half)))] = True
    return chosen


def _at_random(found: Selection, count: int, seed: int) -> Bool:
    """So many rows, of the half sets in proportion; copies of an image stay together."""
    left = int(found.kept.sum())
    if count > left:
        raise InputError("more than there are", file=found.table.path, item="--random", value=count,
                         rule=f"at most the {left} particles that are left", remedy="ask for fewer")
    halves = np.unique(found.table.halves).tolist()
    if count < len(halves):
        raise InputError("fewer than half sets", file=found.table.path, item="--random", value=count,
                         rule=f"at least {len(halves)}, one of each half set", remedy="ask for more")
    in_first = round(count * int((found.kept & (found.table.halves == halves[0])).sum()) / left)
    if len(halves) > 1:
        in_first = min(max(in_first, 1), count - 1)
    numbers = {half: in_first if half == halves[0] else count - in_first for half in halves}
    rng = np.random.default_rng(seed)

    def draw(own: NDArray[np.int64]) -> NDArray[np.int64]:
        ordered = _shuffled(found.table, own, rng)
        return np.concatenate([own[:0], *_whole_images(ordered, numbers[int(found.table.halves[own[0]])])])

    return _in_each_half(found, draw)


def _split(found: Selection, parts: int, seed: int) -> None:
    """Deal the images that are left of each half set out to the parts, in a random order."""
    rng = np.random.default_rng([seed, SPLIT])
    images = unique_images(found.table.stack_index, found.table.image_index)

    def deal(own: NDArray[np.int64]) -> NDArray[np.int64]:
        different = np.unique(images[own])
        if len(different) < parts:
            raise InputError("more subsets than images", file=found.table.path, item="--split", value=parts,
                             rule=f"at most {len(different)}, the images left in a half set", remedy="ask for fewer")
        place = np.empty(len(different), dtype=np.int64)
        place[rng.permutation(len(different))] = np.arange(len(different)) % parts
        found.part[own] = place[np.searchsorted(different, images[own])]
        return own

    _in_each_half(found, deal)


def _of_optics(table: ParticleTable, text: str) -> Bool:
    """Particles of the optics groups that a text names, by name or number."""
    names = [one.name for one in table.optics]
    by_name = {one.name: index for index, one in enumerate(table.optics)}
    by_name |= {str(one.number): index for index, one in enumerate(table.optics) if str(one.number) not in by_name}
    wanted = [text] if text in by_name else [name.strip() for name in text.split(",")]
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise InputError("no such optics group", file=table.path, item="--optics-groups", value=unknown[0],
                         rule=f"the file has {', '.join(names)}", remedy="correct the name, or give its number")
    return np.isin(table.optics_index, [by_name[name] for name in wanted])


def _of_micrographs(table: ParticleTable, path: Path, notes: list[str]) -> Bool:
    """Particles of the micrographs that a file names."""
    if MICROGRAPH not in table.star.table(table.table_name):
        raise InputError(f"column {MICROGRAPH} is missing", file=table.path, item="--micrographs", value=str(path),
                         rule="particles name their micrographs", remedy="give particles with that column")
    if path.suffix == ".star":
        star = StarFile.read(path)
        holder = next((name for name in star.names if MICROGRAPH in star.table(name)), None)
        if holder is None:
            raise InputError(f"column {MICROGRAPH} is missing", file=path, rule="a STAR file of micrographs",
                             remedy="give the one that a selection or CTF estimation has written")
        listed = set(star.table(holder).strings(MICROGRAPH))
    else:
        listed = {line.strip() for line in read_bytes(path).decode("utf-8", "replace").splitlines() if line.strip()}
    known = set(table.micrograph_names)
    if not listed & known:
        raise InputError("none of the particles is of a micrograph in it", file=path,
                         value=next(iter(sorted(listed)), ""), rule=f"names such as {table.micrograph_names[0]}",
                         remedy="write the names as rlnMicrographName of the particles has them")
    if listed - known:
        notes.append(f"{path}: {len(listed - known)} of {len(listed)} micrographs have no particles in {table.path}")
    return np.array([name in listed for name in table.micrograph_names])[table.micrograph_index]


def _shuffled(
    table: ParticleTable, own: NDArray[np.int64], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Rows of the images of some rows, image by image, in a random order."""
    images = unique_images(table.stack_index[own], table.image_index[own])
    order = np.argsort(images, kind="stable")
    by_image = np.split(own[order], np.flatnonzero(np.diff(images[order])) + 1)
    return [by_image[place] for place in rng.permutation(len(by_image)).tolist()]


def _whole_images(ordered: list[NDArray[np.int64]], count: int) -> list[NDArray[np.int64]]:
    """The first images that have ``count`` rows together, or the most below that."""
    ends = np.cumsum([len(rows) for rows in ordered])
    return ordered[: int(np.searchsorted(ends, count, side="right"))]
