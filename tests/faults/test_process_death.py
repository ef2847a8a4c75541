# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinements that are killed or stopped at random moments, and go on to the same bits."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tally import record, times
from toy import Server, content, kill, refine_words, toy_data

from sparsecv import cli
from sparsecv.engine.simulate import SimulatedFiles

FINISHED = re.compile(r"^iteration (\d+) of about", re.MULTILINE)
RESUMED = re.compile(r"^going on after iteration (\d+)$", re.MULTILINE)
# a kill that leaves nothing to be resumed from is no test of resuming: most come after the first checkpoint
REACH = 1.1  # of the time that a whole run takes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def server(data: SimulatedFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(refine_words(data, tmp_path_factory.mktemp("first")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(
    data: SimulatedFiles, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[bytes], float]:
    """Results of a run that nothing happens to, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert server.run(refine_words(data, folder / "run"), folder / "log") == 0
    return content(folder / "run"), time.monotonic() - started


def iterations(log: Path) -> tuple[int, int]:
    """The last iteration that was reported as finished, and the one that was last gone on from."""
    text = log.read_text() if log.exists() else ""
    last, resumed = FINISHED.findall(text), RESUMED.findall(text)
    return int(last[-1]) if last else 0, int(resumed[-1]) if resumed else 0


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("sign", "full", "short"), [(signal.SIGKILL, 200, 4), (signal.SIGTERM, 50, 2)],
                         ids=["SIGKILL", "SIGTERM"])
def test_runs_go_on_to_the_same_result(
    sign: signal.Signals, full: int, short: int, data: SimulatedFiles, server: Server,
    undisturbed: tuple[list[bytes], float], tmp_path: Path,
) -> None:  # fmt: skip
    """At most one iteration is done twice; a run that was asked to stop has lost none."""
    rng = np.random.default_rng(17)
    expected, seconds = undisturbed
    wanted, hit, runs, lost = times(full, short), 0, 0, 0
    while hit < wanted:
        runs += 1
        folder, log = tmp_path / f"run{runs}", tmp_path / f"log{runs}"
        is_done = False
        while not is_done:
            log.unlink(missing_ok=True)
            number = server.start([*refine_words(data, folder), "--continue"], log)
            if hit < wanted:
                time.sleep(rng.uniform(0, REACH * seconds))
                kill(number, sign)
            status = server.wait()
            is_done = status == 0
            if not is_done:
                hit += 1
                assert status == (cli.TERMINATED if sign == signal.SIGTERM else -sign), log.read_text()
                last, _ = iterations(log)
                lost += check_resumes(server, data, folder, tmp_path / "check", last, sign)
        assert content(folder) == expected
        assert not list(folder.glob(".*"))  # what a killed run was writing is cleared away
    record("process death", f"{sign.name} at random moments", hit, hit, f"{runs} runs, {lost} iterations done twice")


def check_resumes(server: Server, data: SimulatedFiles, folder: Path, copy: Path, last: int, sign: int) -> int:
    """Iterations to be done again after the one that was reported last: at most one, and none after SIGTERM."""
    if last == 0:
        return 0
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    saved = max((int(path.name[6:9]) for path in copy.glob("run_it*_checkpoint.npz")), default=0)
    assert saved >= last - (sign == signal.SIGKILL), "more than one iteration is lost"
    return last - saved if last > saved else 0


def test_a_second_sigterm_stops_at_once(data: SimulatedFiles, server: Server, tmp_path: Path) -> None:
    number = server.start(refine_words(data, tmp_path / "run", "--iterations", 30), tmp_path / "log")
    while not (tmp_path / "run" / "run_it001_checkpoint.npz").exists():
        time.sleep(0.01)
    kill(number, signal.SIGUSR1)
    kill(number, signal.SIGTERM)
    kill(number, signal.SIGTERM)
    started = time.monotonic()
    assert server.wait() == cli.TERMINATED
    assert time.monotonic() - started < 5
    assert "stopped by SIG" in (tmp_path / "log").read_text()


def test_sigusr1_is_the_early_warning_of_batch_systems(data: SimulatedFiles, server: Server, tmp_path: Path) -> None:
    """Slurm's --signal: the run says what it does, finishes the iteration and ends with 143."""
    number = server.start(refine_words(data, tmp_path / "run", "--iterations", 30), tmp_path / "log")
    while not (tmp_path / "run" / "run_it001_checkpoint.npz").exists():
        time.sleep(0.01)
    kill(number, signal.SIGUSR1)
    assert server.wait() == cli.TERMINATED
    text = (tmp_path / "log").read_text()
    assert "SIGUSR1: this iteration is finished, then the run stops" in text
    last, _ = iterations(tmp_path / "log")
    assert f"stopped by SIGUSR1 after iteration {last}; remedy: go on with --continue" in text
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["iteration"]) == ("stopped", last)


def test_a_run_whose_parent_dies_goes_on(data: SimulatedFiles, undisturbed: tuple[list[bytes], float],
                                         tmp_path: Path) -> None:
    """A closed terminal, a dead script: the output has nowhere to go, but the results have."""
    words = [sys.executable, "-m", "sparsecv.cli", *refine_words(data, tmp_path / "run")]
    script = f"import subprocess; subprocess.Popen({words!r}, stdout=subprocess.DEVNULL, start_new_session=True)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    give_up = time.monotonic() + 100
    while time.monotonic() < give_up:
        try:
            if json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished":
                break
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    assert content(tmp_path / "run") == undisturbed[0]
    record("process death", "parent dies", 1, 1)
