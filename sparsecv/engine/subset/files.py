# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a selection: STAR files with all columns as they were, numbers, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.paths import IMAGE_NAME, split_image_names
from sparsecv.engine.io.results import write_json
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.report.subset import plot_selection
from sparsecv.engine.subset.selection import Selection

MOST_SHOWN = 5  # optics groups and micrographs that are printed


def beside(output: Path, end: str) -> Path:
    """The file of a selection that stands beside its STAR file: ``OUTPUT`` without .star, and an end."""
    return output.with_name(output.stem + end)


def results(output: Path, parts: int) -> list[Path]:
    """All files that a selection into so many parts can write, but for its settings."""
    ends = ["_removed.star", ".json", ".png", *(f"_part{number}.star" for number in range(1, parts + 1))]
    return [output, *(beside(output, end) for end in ends)]


def old_parts(output: Path) -> list[Path]:
    """Random subsets that an earlier selection of the same name has left, which are removed."""
    found: list[Path] = []
    while (part := beside(output, f"_part{len(found) + 1}.star")).is_file():
        found.append(part)
    return found


def write_selection(output: Path, found: Selection) -> list[Path]:
    """Write what a selection has found, in place of what an earlier one has left; return the files.

    Parameters
    ----------
    output
        STAR file of those kept; the others stand beside it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    beside(output, ".png").unlink(missing_ok=True)
    for part in old_parts(output):
        if part.resolve() == found.table.path.resolve():
            break
        part.unlink()
    star = _with_names_that_lead(found.table, output)
    stars = {output: found.kept, beside(output, "_removed.star"): ~found.kept}
    for number in range(int(found.part.max(initial=-1)) + 1):
        stars[beside(output, f"_part{number + 1}.star")] = found.part == number
    for path, rows in stars.items():
        chosen = star.copy()
        chosen.table(found.table.table_name).keep(found.table.identifiers[rows])
        chosen.write(path)
    written = [*stars, beside(output, ".json")]
    write_json(written[-1], numbers(found))
    if found.quality is not None and found.values is not None:
        written.append(beside(output, ".png"))
        plot_selection(written[-1], found.values, found.kept, found.table.halves, found.table.micrograph_index,
                       label=described(found))  # fmt: skip
    return written


def described(found: Selection) -> str:
    """What particles were judged by, and relative to what."""
    assert found.quality is not None, "asked for where particles were judged"
    within = {"none": "", "optics": ", in sigma of the optics group", "defocus": ", in sigma of those of like defocus",
              "micrograph": ", in sigma of the micrograph"}
    return found.quality.words + within[found.relative_to]


def _with_names_that_lead(table: ParticleTable, output: Path) -> StarFile:
    """The file, with absolute names of the stacks that are found from its own folder only, where that is another."""
    own, new = table.path.resolve().parent, output.resolve().parent
    star = table.star.copy()
    particles = star.table(table.table_name)
    names, name_index, image = split_image_names(particles)
    leads = [not Path(name).exists() and (own / name).exists() for name in names]
    if own != new and any(leads):
        targets = [str((own / name).resolve()) if lost else name for name, lost in zip(names, leads, strict=True)]
        rows = zip(image.tolist(), name_index.tolist(), strict=True)
        particles.set(IMAGE_NAME, [f"{number + 1:06d}@{targets[stack]}" for number, stack in rows])
    return star


def numbers(found: Selection) -> dict[str, Any]:
    """What the JSON file holds: particles before and after, by half set, optics group, micrograph and rule."""
    table = found.table
    content: dict[str, Any] = {
        "particles": len(table), "kept": int(found.kept.sum()), "removed_by": found.removed_by,
        "half_sets": {str(half): _counts(found, table.halves == half) for half in np.unique(table.halves).tolist()},
        "optics_groups": {one.name: _counts(found, table.optics_index == index)
                          for index, one in enumerate(table.optics)},
        "micrographs": dict(zip(table.micrograph_names, _by_micrograph(found).tolist(), strict=True)),
        "notes": found.notes,
    }  # fmt: skip
    if found.quality is not None and found.values is not None:
        kept = found.values[found.kept]
        content["judged_by"] = {"columns": list(found.quality.columns), "relative_to": found.relative_to,
                                "least_kept": float(kept.min()), "most_kept": float(kept.max())}  # fmt: skip
    if found.part.max(initial=-1) >= 0:
        content["parts"] = np.bincount(found.part[found.part >= 0]).tolist()
    return content


def _counts(found: Selection, those: NDArray[np.bool_]) -> dict[str, int]:
    return {"particles": int(those.sum()), "kept": int((those & found.kept).sum())}


def _by_micrograph(found: Selection) -> NDArray[np.int64]:
    """Particles and those kept of each micrograph, (micrographs, 2)."""
    index, count = found.table.micrograph_index, len(found.table.micrograph_names)
    return np.stack([np.bincount(index, minlength=count), np.bincount(index[found.kept], minlength=count)], axis=1)


def summary(found: Selection) -> list[str]:
    """Lines to print."""
    table, content = found.table, numbers(found)
    lines = [f"kept {content['kept']} of {content['particles']} particles"]
    lines += [f"  {rule}: {count} removed" for rule, count in found.removed_by.items()]
    if table.halves.any():
        lines += [f"half set {half}: {_share(one)}" for half, one in content["half_sets"].items()]
    groups = [f"optics group {name}: {_share(one)}" for name, one in content["optics_groups"].items()
              if one["particles"]]  # fmt: skip
    lines += groups[:MOST_SHOWN]
    if len(groups) > MOST_SHOWN:
        lines.append(f"... and {len(groups) - MOST_SHOWN} more optics groups, in the .json file")
    counts = _by_micrograph(found)
    lost = 1 - counts[:, 1] / counts[:, 0]
    worst = [row for row in np.argsort(-lost, kind="stable")[:MOST_SHOWN].tolist() if lost[row] > lost.mean()]
    if worst and len(counts) > 1:
        told = ", ".join(f"{table.micrograph_names[row]} {counts[row, 1]} of {counts[row, 0]}" for row in worst)
        lines.append(f"micrographs that keep least: {told}")
    return lines


def _share(one: dict[str, int]) -> str:
    return f"{one['kept']} of {one['particles']} ({100 * one['kept'] / max(one['particles'], 1):.1f} %)"
