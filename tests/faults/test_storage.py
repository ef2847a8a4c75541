# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that are full, read-only, slow or gone: old results stay whole, one line says why, exit status 74."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tally import record, times
from toy import RESULTS, content, refine_words, toy_data

from sparsecv import cli
from sparsecv.engine.io import atomic
from sparsecv.engine.refine.checkpoint import load_checkpoint
from sparsecv.engine.simulate import SimulatedFiles

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def finished(data: SimulatedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has happened to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(refine_words(data, folder)) == 0
    return folder


@pytest.fixture
def half_done(data: SimulatedFiles, tmp_path: Path) -> Path:
    """A run that was limited to two iterations: its checkpoint can be gone on from."""
    folder = tmp_path / "run"
    assert cli.main([*refine_words(data, folder), "--iterations", "2"]) == 0
    return folder


def one_line(text: str) -> str:
    """The error, which is one line."""
    lines = [line for line in text.splitlines() if line.startswith("sparsecv: error:")]
    assert len(lines) == 1, text
    return lines[0]


class Disk:
    """A disk that fails at the k-th file that is put in place."""

    def __init__(self, fails_at: int, number: int) -> None:
        self.left, self.number = fails_at, number

    def fsync(self, path: Path) -> None:
        """What ``atomic`` calls before a file takes its place, and for the folder after it."""
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number), str(path))


@pytest.mark.parametrize("number", [28, 5, 122], ids=["full", "input-output error", "quota"])
def test_a_disk_that_fails_at_any_file(
    number: int, data: SimulatedFiles, half_done: Path, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """At every file in turn: the checkpoints before stay whole, and the run goes on to the same result."""
    backup = tmp_path / "backup"
    shutil.copytree(half_done, backup)
    words = [*refine_words(data, half_done), "--continue"]
    total = count_files(words, monkeypatch)
    places = sorted({round(step * total / times(30, 3)) for step in range(times(30, 3))})
    for place in places:
        shutil.rmtree(half_done)
        shutil.copytree(backup, half_done)
        monkeypatch.setattr(atomic, "_fsync", Disk(place, number).fsync)
        capsys.readouterr()
        assert cli.main(words) == cli.DISK
        assert os.strerror(number) in one_line(capsys.readouterr().err)
        monkeypatch.undo()
        assert load_checkpoint(half_done, pytest.fail) is not None
        assert not list(half_done.glob(".*.part"))
    assert cli.main(words) == 0
    assert content(half_done) == content(finished)
    record("storage", f"{os.strerror(number)} at any file of a run", len(places), len(places))


def count_files(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a run syncs."""
    disk = Disk(10**9, 0)
    monkeypatch.setattr(atomic, "_fsync", disk.fsync)
    assert cli.main(words) == 0
    monkeypatch.undo()
    return 10**9 - disk.left


def test_a_limit_of_file_sizes(data: SimulatedFiles, half_done: Path, finished: Path) -> None:
    """A real ENOSPC's relative that needs no other user: RLIMIT_FSIZE, below the size of a checkpoint."""
    before = load_checkpoint(half_done, pytest.fail)
    assert before is not None

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-m", "sparsecv.cli", *refine_words(data, half_done), "--continue"],
                          capture_output=True, text=True, preexec_fn=limit, timeout=100, check=False)
    assert done.returncode == cli.DISK, done.stderr
    assert "File too large" in one_line(done.stderr)
    after = load_checkpoint(half_done, pytest.fail)
    assert after is not None and after[0].iteration == before[0].iteration
    assert cli.main([*refine_words(data, half_done), "--continue"]) == 0
    assert content(half_done) == content(finished)
    record("storage", "limit of file sizes in the middle of a run", 1, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") is not None and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system(data: SimulatedFiles, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(refine_words(data, small_disk / "run")) == cli.DISK
    assert "No space left on device" in one_line(capsys.readouterr().err)
    assert not list((small_disk / "run").glob(".*.part"))
    for path in (small_disk / "run").glob("*_checkpoint.npz"):
        assert load_checkpoint(path.parent, pytest.fail) is not None
    record("storage", "full file system", 1, 1)


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be written, by root neither, where this machine lets us make one."""
    folder = tmp_path / "frozen"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True,
                      check=False).returncode:  # fmt: skip
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_is_read_only(data: SimulatedFiles, frozen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(refine_words(data, frozen / "run")) == cli.DISK
    line = one_line(capsys.readouterr().err)
    assert str(frozen / "run") in line and ("Read-only file system" in line or "Permission denied" in line)
    record("storage", "read-only folder", 1, 1)


def test_a_folder_that_is_removed(data: SimulatedFiles, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([sys.executable, "-m", "sparsecv.cli", *refine_words(data, folder, "--iterations", 30)],
                               stdout=log, stderr=log)
    while not (folder / "run_it001_checkpoint.npz").exists():
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    folder.rename(tmp_path / "away")
    assert run.wait(60) == cli.DISK
    assert "No such file or directory" in one_line((tmp_path / "log").read_text())
    assert load_checkpoint(tmp_path / "away", pytest.fail) is not None
    record("storage", "output folder removed", 1, 1)


def test_slow_renames_change_nothing(
    data: SimulatedFiles, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system: a reader sees old or new content, never half of it."""
    whole = Path.replace
    seen: list[bool] = []

    def slow(self: Path, target: str | Path) -> Path:
        time.sleep(0.02)
        seen.append(not Path(target).exists() or Path(target).stat().st_size > 0)
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", slow)
    assert cli.main(refine_words(data, tmp_path / "run")) == 0
    assert all(seen) and len(seen) > 20
    assert content(tmp_path / "run") == content(finished)
    assert set(RESULTS) <= {path.name for path in (tmp_path / "run").iterdir()}
    record("storage", "slow renames", len(seen), len(seen))
