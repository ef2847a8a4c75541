# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts of what became of the corpus, by kind of input, as JSON: what docs/reliability.md is made of.

    python tests/badinputs/report.py --output reliability-badinputs.json [--fuzz FUZZ.json] [--quick]

runs every case once more, each by itself, and adds what the fuzzer has found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
# before anything of them is imported
sys.path[:0] = [str(TESTS), str(TESTS / "badinputs")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from corpus import CASES  # noqa: E402
from corpus.case import ACCEPTED, ASIDE, KINDS, REFUSED, Case  # noqa: E402
from inputs import Inputs  # noqa: E402
from judge import Outcome, faults, run  # noqa: E402

from sparsecv import cli  # noqa: E402

EXPECTED = (0, cli.WRONG_INPUT)


def verdict(case: Case, outcome: Outcome | None) -> str:
    """``refused``, ``set aside``, ``accepted`` or ``accepted with a note`` where it is as it must be; else how not."""
    if outcome is None or outcome.status not in EXPECTED:
        return "crashed"
    if faults(case, outcome):
        return "otherwise than it must be"
    return "accepted with a note" if case.outcome == ACCEPTED and case.words else case.outcome


def counted(cases: list[Case], folder: Path) -> dict[str, Any]:
    """Run cases and count verdicts, files made outside of the results, and names of cases that went wrong."""
    bases = {box: Inputs.made(folder / f"box{box}", box) for box in sorted({case.base for case in cases})}
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    strays, wrong = 0, []
    for number, case in enumerate(cases):
        inputs = bases[case.base].copy(folder / f"case{number}" / "inputs")
        try:
            outcome: Outcome | None = run(case, inputs)
        except Exception:
            outcome = None
        found = verdict(case, outcome)
        counts[case.kind]["tried"] += 1
        counts[case.kind][found] += 1
        strays += len(outcome.strays) if outcome is not None else 0
        if found in ("crashed", "otherwise than it must be"):
            wrong.append(f"{case.kind}: {case.name}: {found}")
    order = ("tried", REFUSED, ASIDE, "accepted with a note", ACCEPTED, "otherwise than it must be", "crashed")
    return {
        "by_kind": {kind: {name: counts[kind][name] for name in order} for kind in KINDS},
        "all": {name: sum(counts[kind][name] for kind in KINDS) for name in order},
        "files_outside_of_the_results": strays,
        "date": time.strftime("%d %B %Y"),
        "wrong": wrong,
    }


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fuzz", type=Path, help="what fuzz.py has written")
    parser.add_argument("--quick", action="store_true", help="without the cases that take seconds")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    cases = [case for case in CASES if not (given.quick and case.is_heavy)]
    with tempfile.TemporaryDirectory(prefix="sparsecv-badinputs-") as folder:
        found = counted(cases, Path(folder))
    found["seconds"] = round(time.monotonic() - started, 1)
    if given.fuzz is not None and given.fuzz.is_file():
        found |= json.loads(given.fuzz.read_text())
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["all"]))
    return int(bool(found["wrong"] or found["files_outside_of_the_results"]))


if __name__ == "__main__":
    sys.exit(main())
