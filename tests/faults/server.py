# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs command lines in forked children that are ready at once, so that hundreds of them can be killed.

Reads lines of JSON, ``{"arguments": [...], "log": path}``, and answers each with the child's process number, and with
its exit status when it has ended (negative: the signal). The kernels are loaded once, before.
"""

from __future__ import annotations

import json
import os
import sys

# the one layer of Numba's that survives a fork; children have one thread
os.environ |= {"NUMBA_THREADING_LAYER": "workqueue", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
               "MPLBACKEND": "Agg"}  # fmt: skip


def run(arguments: list[str], log: str) -> int:
    """Process number of a child that runs a command line."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from sparsecv import cli

        status = cli.main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def main() -> None:
    """Load what is slow to load by a first run, in this process; then serve."""
    from sparsecv import cli

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if cli.main(json.loads(sys.argv[1])) != 0:
        raise SystemExit("the first run failed")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        number = run(asked["arguments"], asked["log"])
        print(number, file=answers, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
