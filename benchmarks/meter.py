# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command and write what it used: ``meter.py OUT.json COMMAND ...``.

A process of its own, because Linux counts the memory of whoever starts a program as that program's peak until it runs;
this one is small. In an MPI run ``{rank}`` in OUT.json becomes the rank, so that ``mpirun -n 3 meter.py 'r{rank}.json'
COMMAND`` measures every rank apart. With SPARSECV_NICE_LEADER set, rank 0 runs at the lowest priority: RELION's leader
spins while it waits.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> int:
    """Run the command; the exit status is the command's."""
    out, command = sys.argv[1], sys.argv[2:]
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
    if rank == "0" and os.environ.get("SPARSECV_NICE_LEADER"):
        os.nice(19)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    figures = {
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.monotonic() - started,
        "peak_mb": used.ru_maxrss / 1024,
        "returncode": code,
    }
    with open(out.replace("{rank}", rank), "w", encoding="utf-8") as file:
        json.dump(figures, file)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
