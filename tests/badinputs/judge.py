# SPDX-License-Identifier: GPL-3.0-or-later
"""Running one case of the corpus through the real command line, and judging what came of it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from corpus.case import ACCEPTED, ASIDE, CANARY, REFUSED, Case
from inputs import Inputs

from sparsecv import cli
from sparsecv.engine.io.models import read_structure
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.star import StarFile

# the one program of a page, behind all that could hold a name; names in its numbers have no "<"
OWN_SCRIPT = re.compile(r'<script id="data" type="application/json">[^<]*</script>\n<script>\n'
                        r"// Charts drawn .*?</script>(?=\n</body></html>\n\Z)", re.DOTALL)  # fmt: skip
PREFIX = "sparsecv: error: "


@dataclass
class Outcome:
    """What a command line did: its status, what it said, where its results are, files made or changed elsewhere.

    ``given`` are files that stood among the results before.
    """

    status: int
    said: str
    complained: str
    folder: Path
    strays: list[str] = field(default_factory=list)
    given: frozenset[Path] = frozenset()


class Stream(io.TextIOWrapper):
    """A terminal's stream, kept in memory."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        """What was written."""
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode("utf-8")


def seen(folder: Path, out: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and inode of everything in a folder but the results."""
    found = {}
    for path, folders, files in os.walk(folder):
        if Path(path) == out:
            folders.clear()
            continue
        for name in files:
            about = os.lstat(os.path.join(path, name))
            found[os.path.join(path, name)] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def run(case: Case, inputs: Inputs) -> Outcome:
    """Make the case of its inputs, which stand in a folder of their own, and run it from there."""
    here = Path.cwd()
    root = inputs.folder.parent  # a canary, or a traversal, would land here as well
    os.chdir(inputs.folder)
    try:
        words = [str(word) for word in case.make(inputs)]
        before, given = seen(root, inputs.out), frozenset(inputs.out.glob("*"))
        said, complained = Stream(), Stream()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            status = cli.main(words)
        after = seen(root, inputs.out)
    finally:
        os.chdir(here)
    strays = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Outcome(status, said.text(), complained.text(), inputs.out, strays, given)


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome; empty where it is what must happen."""
    found = [f"made or changed outside of the results: {name!r}" for name in outcome.strays]
    if any(CANARY in name for name in outcome.strays):
        found.append("the canary was executed")
    found += [f"a control character reached the terminal: {line!r}"
              for line in (outcome.said + outcome.complained).split("\n") if not line.isprintable()]  # fmt: skip
    judges = {REFUSED: _refusal, ASIDE: _rejection, ACCEPTED: _acceptance}
    return found + judges[case.outcome](case, outcome)


def _refusal(case: Case, outcome: Outcome) -> list[str]:
    errors = [line for line in outcome.complained.splitlines() if not line.startswith("sparsecv: warning: ")]
    found = []
    if outcome.status != cli.WRONG_INPUT:
        found.append(f"status {outcome.status}: {(outcome.said + outcome.complained)[-1500:]}")
    if len(errors) != 1 or not errors[0].startswith(PREFIX):
        return [*found, f"not one line that is an error: {errors}"]
    needed = [*case.words, case.file, "rule: ", *(["remedy: "] if case.has_remedy else [])]
    found += [f"{word!r} is not in: {errors[0]}" for word in needed if word not in errors[0]]
    if any(line.startswith("iteration 1") for line in outcome.said.splitlines()):
        found.append("something was iterated")
    found += [f"made although it was refused: {path.name!r}" for path in {*outcome.folder.glob("*")} - outcome.given]
    return found


def _rejection(case: Case, outcome: Outcome) -> list[str]:
    found = _acceptance(case, outcome, words=())
    if outcome.status:
        return found
    table = StarFile.read(outcome.folder / "rejected.star").table("rejected")
    reasons = dict(zip(table.integers("sparsecvRow").tolist(), table.strings("sparsecvReason"), strict=True))
    if list(reasons) != [case.row]:
        return [*found, f"set aside: {reasons}"]
    return found + [f"{word!r} is not in: {reasons[case.row]}" for word in case.words if word not in reasons[case.row]]


def _acceptance(case: Case, outcome: Outcome, words: tuple[str, ...] | None = None) -> list[str]:
    said = outcome.said + outcome.complained
    if outcome.status:
        return [f"status {outcome.status}: {said[-1500:]}"]
    found = [f"{word!r} is not in: {said}" for word in (case.words if words is None else words) if word not in said]
    for path in outcome.folder.glob("*.mrc"):
        if not np.isfinite(read_map(path, cubic=False).data).all():  # read_map refuses others
            found.append(f"{path.name} is not finite")
    for path in outcome.folder.glob("*.star"):
        star = StarFile.read(path)
        if any("evil" in name.lower() for name in star.names):
            found.append(f"{path.name} has a table that a name has made")
    for path in outcome.folder.glob("*.cif"):
        read_structure(path)  # which refuses what a name has broken
    for path in outcome.folder.glob("*.html"):
        text = OWN_SCRIPT.sub("", path.read_text(encoding="utf-8"), count=1)
        found += [f"{path.name} has {tag}" for tag in ("<script", "<img src=x") if tag in text]
    for path in outcome.folder.glob("*.cxc"):
        found += [f"{path.name}: {line}" for line in path.read_text().splitlines() if "evil" in line]
    for path in {*outcome.folder.glob("*.json")} - outcome.given:
        found += [f"{path.name}: {place} is not finite" for place in _wild(json.loads(path.read_text()), "")]
    return found


def _wild(value: Any, place: str) -> list[str]:
    if isinstance(value, dict):
        return [one for key, part in value.items() for one in _wild(part, f"{place}.{key}")]
    if isinstance(value, list):
        return [one for part in value for one in _wild(part, place)]
    return [place] if isinstance(value, float) and not math.isfinite(value) else []
