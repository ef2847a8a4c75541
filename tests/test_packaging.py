# SPDX-License-Identifier: GPL-3.0-or-later
"""The distribution: what is in the wheel and the source archive, and the making of the engine's environment."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from sparsecv import __version__, environment

PROJECT = Path(__file__).resolve().parents[1]
# the back end changes sys.argv, so the folder is read once
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the wheel and the source archive from a copy, which leaves the checkout clean."""
    pytest.importorskip("setuptools", minversion="70.1", reason="older ones need the package wheel as well")
    copy = tmp_path_factory.mktemp("source") / "scipion-em-sparsecv"
    rubbish = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc", "*.nb?", "results")
    for name in ("sparsecv", "tests", "docs", "tools", "benchmarks", ".ci"):
        if (PROJECT / name).exists():
            shutil.copytree(PROJECT / name, copy / name, ignore=rubbish)
    for path in PROJECT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy / path.name)
    out = copy.parent / "dist"
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def _package_files(*patterns: str) -> set[str]:
    return {str(path.relative_to(PROJECT)) for pattern in patterns for path in (PROJECT / "sparsecv").rglob(pattern)}


def test_wheel_holds_every_source_and_data_file(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    wanted = _package_files("*.py", "*.cu", "*.cuh", "*.png", "*.conf", "constraints.txt", "*.json.template")
    assert wanted - names == set()
    assert {name for name in names if not name.startswith(("sparsecv/", "scipion_em_sparsecv-"))} == set()


def test_wheel_asks_nothing_of_scipion(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        info = f"scipion_em_sparsecv-{__version__}.dist-info"
        metadata = message_from_string(wheel.read(f"{info}/METADATA").decode())
        entry_points = configparser.ConfigParser()
        entry_points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.8"
    required = metadata.get_all("Requires-Dist", [])
    assert [line for line in required if "extra ==" not in line] == []
    assert {"engine", "cuda12", "cuda13", "mpi", "dev", "docs"} == set(metadata.get_all("Provides-Extra", []))
    assert entry_points["console_scripts"]["sparsecv"] == "sparsecv.cli:main"
    # Scipion takes the name of the entry point as the name of the module
    assert dict(entry_points["pyworkflow.plugin"]) == {"sparsecv": "sparsecv"}


def test_archive_holds_tests_documents_and_licence(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "Makefile", "README.md", "ARCHITECTURE.md", "CHANGES.txt", "CITATION.cff", ".ci/run"}
    wanted |= {"tests/conftest.py", "docs/conventions.md", "sparsecv/constraints.txt"}
    assert wanted - names == set()


def test_version_is_the_same_everywhere() -> None:
    citation = (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r'^version: "?([\d.]+)"?$', citation, re.M).group(1) == __version__
    assert re.search(r"^V([\d.]+)", (PROJECT / "CHANGES.txt").read_text(encoding="utf-8"), re.M).group(1) == __version__


def test_constraints_pin_everything_that_is_required() -> None:
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==", (PROJECT / "sparsecv" / "constraints.txt").read_text(), re.M)
    pinned = {name.lower().replace("_", "-") for name in pins}
    setup = (PROJECT / "setup.py").read_text(encoding="utf-8")
    required = set()
    for block in re.findall(r"^(?:ENGINE|DEV) = \[(.*?)^\]", setup, re.M | re.S):
        required |= {name.lower() for name in re.findall(r"""^ +["']([A-Za-z0-9-]+)""", block, re.M)}
    assert len(required) > 10
    assert required - pinned == set()


class TestEnvironment:
    """``sparsecv.environment``, without the network: pip is replaced by a recorder."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        calls: list[list[str]] = []
        monkeypatch.setattr(environment, "_run", lambda command, **variables: calls.append(command))
        return calls

    def test_takes_a_python_that_is_new_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fake(name: str, version: str) -> str:
            (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
            (tmp_path / name).chmod(0o755)
            return str(tmp_path / name)

        monkeypatch.setattr(sys, "executable", fake("python3", "3 9"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(environment.EnvironmentProblem, match=r"no Python >= 3\.10.*remedy"):
            environment.find_python()
        fake("python3.11", "3 11")
        assert environment.find_python() == "python3.11"
        newer = fake("python-next", "3 14")
        assert environment.find_python(newer) == newer
        with pytest.raises(environment.EnvironmentProblem, match="tried no-such-python"):
            environment.find_python("no-such-python")

    def test_a_second_run_does_nothing(self, tmp_path: Path, calls: list[list[str]]) -> None:
        folder = tmp_path / "env"
        folder.mkdir()
        assert environment.ensure(folder, ["engine"], str(PROJECT))
        assert any("venv" in command for command in calls)
        assert calls[-1][-1] == f"{PROJECT}[engine]"
        assert calls[-1][-4:-2] == ["--constraint", str(environment.CONSTRAINTS)]
        del calls[:]
        assert not environment.ensure(folder, ["engine"], str(PROJECT))
        assert calls == []
        assert environment.ensure(folder, ["engine", "dev"], str(PROJECT))
        assert not environment.ensure(folder, ["engine"], str(PROJECT))

    def test_cuda_follows_the_driver(self) -> None:
        """A machine without a card may be the head of a cluster; an old driver can run nothing that is installed."""
        for asked, driver, extras in (
            ("auto", 0, {"cuda12"}),
            ("auto", 470, set()),
            ("auto", 550, {"cuda12"}),
            ("13", 470, {"cuda13"}),
            ("none", 550, set()),
        ):
            assert environment.cuda_extras(asked, driver) == extras

    def test_what_conda_has_made_is_not_made_again(self, tmp_path: Path, calls: list[list[str]]) -> None:
        """A folder without pip, and one of an old Python: making them here would destroy them."""
        with pytest.raises(environment.EnvironmentProblem, match="has no Python with pip; remedy"):
            environment.ensure(tmp_path, ["engine"], existing=True)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho 3 9\n")
        (tmp_path / "bin" / "python").chmod(0o755)
        with pytest.raises(environment.EnvironmentProblem, match=r"has Python 3\.9; remedy"):
            environment.ensure(tmp_path, ["engine"], existing=True)
        assert calls == []
        (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho 3 11\n")
        assert environment.ensure(tmp_path, ["engine"], existing=True)
        assert [command[1:4] for command in calls] == [["-m", "pip", "install"]]

    def test_an_interrupted_run_is_repeated(self, tmp_path: Path, calls: list[list[str]]) -> None:
        folder = tmp_path / "env"
        folder.mkdir()
        environment.ensure(folder, ["engine"], str(PROJECT))
        (folder / environment.STAMP).write_text("{")
        assert environment.ensure(folder, ["engine"], str(PROJECT))

    def test_installs_the_release_without_a_checkout(self, tmp_path: Path, calls: list[list[str]]) -> None:
        environment.install(tmp_path, {"engine", "cuda12"})
        assert calls[-1][-1] == f"scipion-em-sparsecv[cuda12,engine]=={__version__}"

    def test_hides_the_packages_of_the_python_that_starts_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "elsewhere")
        monkeypatch.setenv("PYTHONUSERBASE", "elsewhere")
        assert {"PYTHONPATH", "PYTHONUSERBASE", "PYTHONHOME"} & set(environment._clean_environ()) == set()
        assert environment._clean_environ()["PATH"] == os.environ["PATH"]

    def test_failure_is_one_line_and_an_exit_status(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SPARSECV_PYTHON", raising=False)
        status = environment.main([str(tmp_path / "env"), "--python", "no-such-python"])
        assert status == 1
        assert "no-such-python" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "env" / environment.STAMP).exists()

    def test_makes_an_environment_without_ensurepip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Debian splits ensurepip off; pip then comes from elsewhere, and the environment is made all the same."""
        commands: list[list[str]] = []

        def succeeds(command: list[str], cwd: Path | None = None) -> bool:
            commands.append(command)
            return "import ensurepip" not in command

        monkeypatch.setattr(environment, "_succeeds", succeeds)
        environment.make_environment(tmp_path / "env", sys.executable)
        assert (tmp_path / "env" / "bin" / "python").exists()
        assert commands[-1][1:4] == ["-m", "pip", "--python"]

    def test_stamp_is_readable(self, tmp_path: Path, calls: list[list[str]]) -> None:
        (tmp_path / "env").mkdir()
        environment.ensure(tmp_path / "env", ["engine"], str(PROJECT))
        stamp = json.loads((tmp_path / "env" / environment.STAMP).read_text())
        assert stamp["extras"] == ["engine"]
        assert len(stamp["digest"]) == 64
