# SPDX-License-Identifier: GPL-3.0-or-later
"""All benchmarks of a GPU by one call: each part within a time limit, one table at the end.

    python benchmarks/gpu_all.py                          on any machine with a CUDA device
    python benchmarks/gpu_all.py --device cpu --tiny      does every script run?

Each part is a program of its own, so that one which fails, or is ended by its limit, costs only its own rows; what it
had found until then it has written. The iterations are told to begin no row after half of their limit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from common import HERE, ROOT, clean_environment, save, table
from device import parse

PARTS = {  # seconds that each may take on a GPU
    "gpu_kernels": 300.0,
    "gpu_priors": 600.0,
    "gpu_refinement": 1200.0,
    "gpu_iterations": 3600.0,
    "gpu_ranks": 1800.0,
}
TINY_SECONDS = 120.0
GRACE = 10.0  # s, between the request to end and its enforcement
BEGIN_PART = 0.5  # of the limit, after which gpu_iterations begins no row
HEADER = ("part", "what", "figure", "state")


def run_part(name: str, words: Sequence[str], limit: float, results: Path) -> tuple[str, float]:
    """Run a part to its end or its limit; how it ended, and the seconds that it took."""
    log = results / f"{name}.log"
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(HERE / f"{name}.py"), *words], stdout=file, stderr=file, start_new_session=True,
            env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            status = process.wait(limit)
            state = "finished" if status == 0 else f"failed ({status}), see {log.name}"
        except subprocess.TimeoutExpired:
            state = f"ended after {limit:.0f} s"
            for sign in (signal.SIGTERM, signal.SIGKILL):  # the whole group: a part may have started others
                try:
                    os.killpg(process.pid, sign)
                    process.wait(GRACE)
                    break
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
    return state, time.perf_counter() - started


def figures(name: str, found: dict[str, Any]) -> list[tuple[str, str]]:
    """The few figures of a part that the common table shows: what, and the figure."""
    rows = found.get("rows", [found["row"]] if "row" in found else [])
    if name == "gpu_kernels":
        worst = sorted(rows, key=lambda row: -row[8])[:3]
        return [(f"{row[0]}, {row[1]}", f"{row[8]:.3g} x floor ({row[7]})") for row in worst]
    if name == "gpu_priors":
        return [(f"{row[1]} at {row[0]}^3", f"{row[2]:.3g} s, {row[7]:.3g} x floor, {row[8]:.3g} GB") for row in rows]
    if name == "gpu_refinement":
        return [(f"{row[1]} x {row[0]} px, whole", f"{row[3]:.0f} s, {row[5]:.3g} GB, {row[6]:.2f} A {row[8]}")
                for row in rows]  # fmt: skip
    if name == "gpu_iterations":
        return [(f"{row['particles']} x {row['box']} px, {row['stage']}",
                 f"{row['total']:.3g} s, {row['peak_bytes'] / 1e9:.3g} GB") for row in rows]  # fmt: skip
    return [(f"{row[2]} process(es)", f"{row[3]:.0f} s, {row[5]:.2f} times faster") for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts, and print."""
    given = parse(__doc__, arguments, ("--parts", {"nargs": "+", "default": list(PARTS), "choices": list(PARTS)}),
                  ("--limit-factor", {"type": float, "default": 1.0, "help": "of all time limits"}))  # fmt: skip
    device = given.device
    name, is_gpu = device.name, device.is_gpu
    results = common.RESULTS
    results.mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = []
    for part in given.parts:
        limit = (TINY_SECONDS if given.tiny else PARTS[part]) * given.limit_factor
        work = given.work if is_gpu and not given.tiny else given.work.parent  # parts have a folder apart as we have
        words = ["--device", "gpu" if is_gpu else "cpu", "--threads", str(given.threads), "--work", str(work)]
        words += ["--tiny"] if given.tiny else []
        words += ["--limit", str(BEGIN_PART * limit)] if part == "gpu_iterations" else []
        kept = results / f"{part}.json"
        kept.unlink(missing_ok=True)  # of an earlier run
        print(f"{part}, at most {limit:.0f} s ...", flush=True)
        state, spent = run_part(part, words, limit, results)
        rows.append([part, "all of it", f"{spent:.0f} s", state])
        if kept.is_file():
            rows += [[part, what, figure, ""] for what, figure in figures(part, json.loads(kept.read_text()))]
    print(name)
    table("gpu_all", HEADER, rows)
    save("gpu_all", {"device": name, "rows": rows})
    if any(not str(row[3]).startswith("finished") for row in rows if row[3]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
