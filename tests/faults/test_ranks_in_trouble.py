# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks that raise, are slow, or are asked to stop; ranks that are killed are in ``tests/test_ranks.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi_launcher import AS_ROOT, LAUNCHER, needs_mpi
from tally import record
from toy import content, refine_words, toy_data

from sparsecv import cli
from sparsecv.engine.simulate import SimulatedFiles

pytestmark = [needs_mpi, pytest.mark.usefixtures("threads_as_before")]

# raises in one rank, in the second iteration, where no other rank will
RAISING = """
import os, sys
from sparsecv import cli
from sparsecv.engine.refine import loop
whole = loop.expectation_maximisation

def raising(ops, particles, state, half, *rest):
    if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1" and half.local_sigma_deg and COUNT:
        raise {error}
    COUNT.append(1)
    return whole(ops, particles, state, half, *rest)

COUNT = []
loop.expectation_maximisation = raising
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def undisturbed(data: SimulatedFiles, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(refine_words(data, folder / "run")) == 0
    return content(folder / "run")


@pytest.mark.parametrize(("error", "status", "words"), [
    ("MemoryError('rank 1 has none left')", cli.FAILED, "rank 1: out of memory (rank 1 has none left)"),
    ("OSError(5, 'Input/output error', 'stack.mrcs')", cli.DISK, "rank 1: stack.mrcs: Input/output error"),
])
def test_a_rank_that_raises_ends_all(
    error: str, status: int, words: str, data: SimulatedFiles, undisturbed: list[bytes], tmp_path: Path
) -> None:
    assert LAUNCHER is not None
    folder, started = tmp_path / "run", time.monotonic()
    done = subprocess.run([LAUNCHER, "-n", "2", sys.executable, "-c", RAISING.format(error=error),
                           *refine_words(data, folder)], capture_output=True, text=True, timeout=60,
                          env=os.environ | AS_ROOT, check=False)  # fmt: skip
    assert done.returncode != 0 and time.monotonic() - started < 50
    said = [line for line in done.stderr.splitlines() if line.startswith("sparsecv: error")]
    assert len(said) == 1 and words in said[0], done.stderr
    assert cli.main([*refine_words(data, folder), "--continue"]) == 0
    assert content(folder) == undisturbed
    record("MPI", f"a rank raises {error.partition('(')[0]}", 1, 1, "all ended, one line, went on to the same result")


def ranks_of(folder: Path) -> list[int]:
    """Processes of the ranks that work on a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if str(folder) in words and "sparsecv.cli" in words and words[0] == sys.executable:
            found.append(int(entry.name))
    return sorted(found)


def started(data: SimulatedFiles, folder: Path, *more: object) -> subprocess.Popen[bytes]:
    """A run of two ranks that has finished its first iteration."""
    assert LAUNCHER is not None
    with folder.with_name("log").open("w") as log:
        run = subprocess.Popen([LAUNCHER, "-n", "2", sys.executable, "-m", "sparsecv.cli",
                                *refine_words(data, folder, *more)], stdout=log, stderr=log,
                               env=os.environ | AS_ROOT)  # fmt: skip
    while not (folder / "run_it001_checkpoint.npz").exists():
        assert run.poll() is None, folder.with_name("log").read_text()
        time.sleep(0.01)
    return run


def test_a_slow_rank_is_waited_for(data: SimulatedFiles, undisturbed: list[bytes], tmp_path: Path) -> None:
    """Stopped for some seconds, as by a machine that swaps: nobody takes it for dead."""
    run = started(data, tmp_path / "run")
    victim = ranks_of(tmp_path / "run")[-1]
    os.kill(victim, signal.SIGSTOP)
    time.sleep(3)
    os.kill(victim, signal.SIGCONT)
    assert run.wait(60) == 0
    assert content(tmp_path / "run") == undisturbed
    record("MPI", "a rank stands still for 3 s", 1, 1)


def test_a_signal_to_one_rank_stops_all_after_the_iteration(data: SimulatedFiles, undisturbed: list[bytes],
                                                            tmp_path: Path) -> None:
    run = started(data, tmp_path / "run", "--iterations", 30)
    os.kill(ranks_of(tmp_path / "run")[-1], signal.SIGUSR1)
    assert run.wait(60) != 0
    assert "stopped by SIGUSR1 after iteration" in (tmp_path / "log").read_text()
    assert cli.main([*refine_words(data, tmp_path / "run"), "--continue"]) == 0
    assert content(tmp_path / "run") == undisturbed
    record("MPI", "SIGUSR1 to one rank", 1, 1, "all stop after the iteration, resumable")
