# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/reliability.md from what the tests have counted: ``make reliability``.

    python tools/reliability.py FOLDER

FOLDER has ``faults.jsonl`` (tests/faults) and ``badinputs.json`` (tests/badinputs). A row of the table that
nothing was counted for says so.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
ROWS = {
    "process death": "resumed to the same bits; at most one iteration done twice, none after SIGTERM",
    "storage": "checkpoints whole, one line that says why, exit status 74, gone on to the same bits",
    "damage at rest": "noticed, or without effect",
    "memory": "smaller batches, the same result",
    "MPI": "all ranks gone within 30 s, one line, gone on to the same bits",
    "determinism": "bit-identical",
    "honesty": "nothing claimed that is not there",
}
INTRO = """# Reliability

What happens when things go wrong, counted by tests that make them go wrong. Every figure is written here by `make
reliability`, from what `tests/faults` and `tests/badinputs` have counted; `make test` runs a short version of each. The
last time was {date}, on {cores} cores, Python {python}.

**Faults injected: {injected}, survived: {survived}.**
**Bad inputs tried: {tried}, answered as they should be: {answered}.**

## Faults

| class | what is done | injected | survived | |
|---|---|---|---|---|
"""
MIDDLE = """
*Survived* means, for each class:

{meanings}

## Bad inputs

Refused before the first iteration with one line that names the file, the item and the rule, or set aside in
`rejected.star` with the reason, or accepted, where they are odd but good: then all outputs are finite (*numerics*: zero
weights, no noise, curves that never cross, absurd strengths, small boxes).

| class | tried | refused | set aside | accepted with a note | accepted | otherwise than it must be | crashed |
|---|---|---|---|---|---|---|---|
"""
ANSWERS = ("refused", "set aside", "accepted with a note", "accepted")
FAULTY = ("otherwise than it must be", "crashed")
END = """
Faults on a GPU (memory, drivers, cards that fall off the bus) are injected into a CuPy made of NumPy only; none of this
was run on a GPU yet.
"""


def faults(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Cases of each row; of a case that was counted twice, the last."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    path = folder / "faults.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        one = json.loads(line)
        found[one["row"]][one["case"]] = one
    return {row: list(cases.values()) for row, cases in found.items()}


def bad_inputs(folder: Path) -> dict[str, Any]:
    """What ``tests/badinputs/report.py`` has counted; empty where it has not."""
    path = folder / "badinputs.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def page(folder: Path) -> str:
    """The whole page."""
    cases, counted = faults(folder), bad_inputs(folder)
    inputs: dict[str, dict[str, int]] = counted.get("by_kind", {})
    every = [one for row in cases.values() for one in row]
    answered = sum(one[kind] for one in inputs.values() for kind in ANSWERS)
    text = INTRO.format(
        date=time.strftime("%d %B %Y"), cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(), injected=sum(one["injected"] for one in every),
        survived=sum(one["survived"] for one in every), tried=sum(one["tried"] for one in inputs.values()),
        answered=answered,
    )  # fmt: skip
    for row in ROWS:
        for one in cases.get(row, [{"case": "not counted", "injected": "-", "survived": "-", "note": ""}]):
            text += f"| {row} | {one['case']} | {one['injected']} | {one['survived']} | {one['note']} |\n"
    text += MIDDLE.format(meanings="\n".join(f"* {row}: {meaning};" for row, meaning in ROWS.items()))
    for name, one in inputs.items():
        text += f"| {name} | {one['tried']} | " + " | ".join(str(one[kind]) for kind in (*ANSWERS, *FAULTY)) + " |\n"
    if not inputs:
        text += "| not counted | - | - | - | - | - | - | - |\n"
    strays = counted.get("files_outside_of_the_results", "not counted")
    text += f"\nFiles made outside of the results by all of these together: {strays}."
    text += f" Counted on {counted['date']}.\n" if "date" in counted else "\n"
    readers = counted.get("fuzz", {})
    if readers:
        text += "\nReaders under a fuzzer (atheris), with valid files to begin from:\n\n"
    for name, one in readers.items():
        text += f"* {name}: {one['executions']:,} inputs in {one['seconds']} s, {one['crashes']} crashes\n"
    return text + END


def main() -> None:
    """Write the page, and fail where a fault was not survived."""
    folder = Path(sys.argv[1])
    PAGE.write_text(page(folder), encoding="utf-8")
    lost = [one for row in faults(folder).values() for one in row if one["survived"] < one["injected"]]
    crashed = bad_inputs(folder).get("wrong", [])
    print(f"written: {PAGE}")
    if lost or crashed:
        raise SystemExit(f"not survived: {[one['case'] for one in lost] + crashed}")


if __name__ == "__main__":
    main()
