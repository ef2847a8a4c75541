# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that hold the two wings apart, and the promises of the README to someone with a fresh checkout."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "sparsecv"
LICENCE = "SPDX-License-Identifier: GPL-3.0-or-later"
SCIPION = ("pyworkflow", "pwem", "scipion", "xmippLib")
ENGINE = ("sparsecv.engine", "sparsecv.kernels", "sparsecv.cli", "cupy")
FOLDERS = ("sparsecv", "tests", "benchmarks", "docs", "examples", "tools", ".ci")
CACHES = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache", "results"}
TEXT = {".py", ".md", ".txt", ".toml", ".cff", ".cfg", ".conf", ".cu", ".cuh", ".h", ".cpp", ".sh", ".in", ""}


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _is_engine(path: Path) -> bool:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] in ("engine", "kernels") or parts in (("cli.py",), ("__main__.py",))


ENGINE_FILES = [path for path in _sources() if _is_engine(path)]
WING_FILES = [path for path in _sources() if not _is_engine(path)]


def _text_files() -> list[Path]:
    files = [path for path in PROJECT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += [path for path in (PROJECT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in files if path.suffix in TEXT and not CACHES & set(path.parts))


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Yield every module that a source text imports, by statement or by name; relative ones resolved in a package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).rpartition(".")[2]
            if function in ("import_module", "__import__", "importorskip") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _forbidden(path: Path, names: tuple[str, ...]) -> list[str]:
    package = ".".join(path.relative_to(PROJECT).parent.parts)
    modules = imported_modules(path.read_text(encoding="utf-8"), package)
    return [module for module in modules if any(module == name or module.startswith(name + ".") for name in names)]


def test_imports_are_found_in_every_form() -> None:
    lines = ["import a.b", "from c import d", "from . import e", "from ..f import g", "__import__('h')"]
    lines += ["importlib.import_module('i')"]
    found = set(imported_modules("\n".join(lines), "top.sub"))
    assert {"a.b", "c", "c.d", "top.sub.e", "top.f", "top.f.g", "h", "i"} <= found


@pytest.mark.parametrize("path", ENGINE_FILES, ids=_name)
def test_engine_never_imports_scipion(path: Path) -> None:
    assert _forbidden(path, SCIPION) == []


@pytest.mark.parametrize("path", WING_FILES, ids=_name)
def test_scipion_wing_never_imports_the_engine(path: Path) -> None:
    assert _forbidden(path, ENGINE) == []


IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
count = 0
for top in ("sparsecv.engine", "sparsecv.kernels"):
    package = importlib.import_module(top)
    for found in pkgutil.walk_packages(package.__path__, top + "."):
        importlib.import_module(found.name)
        count += 1
if importlib.util.find_spec("sparsecv.cli"):
    importlib.import_module("sparsecv.cli")
print(count)
"""


def test_engine_loads_where_scipion_and_cupy_are_absent() -> None:
    program = IMPORT_ALL.format(blocked=(*SCIPION, "cupy", "cupyx", "mpi4py"))
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = [path for path in ENGINE_FILES if path.parent != PACKAGE]
    packages = [path for path in modules if path.name == "__init__.py"]
    assert int(done.stdout) >= len(modules) - len(packages)


def test_package_imports_nothing() -> None:
    program = "import sys; before = set(sys.modules); import sparsecv; print(*(set(sys.modules) - before))"
    out = subprocess.check_output([sys.executable, "-c", program], cwd=PROJECT, text=True)
    assert out.split() == ["sparsecv"]


def test_package_says_what_it_lacks() -> None:
    import sparsecv

    with pytest.raises(AttributeError, match="no attribute 'Plug'"):
        _ = sparsecv.Plug


@pytest.mark.parametrize("path", WING_FILES, ids=_name)
def test_scipion_wing_is_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 8))


def _python_3_8() -> str | None:
    candidates = [shutil.which("python3.8")]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.8*/bin/python3.8"))]
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    return None


def test_scipion_wing_compiles_and_starts_under_python_3_8() -> None:
    python = _python_3_8()
    if python is None:
        pytest.skip("there is no Python 3.8 here")
    program = "import sys\nfor name in sys.argv[1:]: compile(open(name, encoding='utf-8').read(), name, 'exec')\n"
    program += "import sparsecv, sparsecv.environment, sparsecv.bibtex\n"
    command = [python, "-B", "-c", program, *map(str, WING_FILES)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", [".", "sparsecv", "tests", "benchmarks", "examples", "tools"])
def test_sources_start_with_the_licence_and_a_docstring(folder: str) -> None:
    files = (PROJECT / folder).glob("*.py") if folder == "." else (PROJECT / folder).rglob("*.py")
    wrong = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        first = next((line for line in text.splitlines() if not line.startswith("#!")), "")
        if first != f"# {LICENCE}" or not ast.get_docstring(ast.parse(text)):
            wrong.append(_name(path))
    assert wrong == []


def test_cuda_sources_start_with_the_licence() -> None:
    files = [*PACKAGE.rglob("*.cu"), *PACKAGE.rglob("*.cuh")]
    assert [_name(path) for path in files if not path.read_text(encoding="utf-8").startswith(f"// {LICENCE}\n")] == []


def test_no_file_names_a_place_on_one_machine() -> None:
    # put together here, so that this file does not find itself
    places = re.compile("|".join("/" + place for place in ("work/", "root/", r"home/\w", r"tmp/\w")))
    found = [_name(path) for path in _text_files() if places.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_commands_of_the_readme_exist() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.M))
    asked = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"```.*?```|`[^`\n]+`", readme, re.S))))
    assert {"demo", "test"} <= asked <= targets


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = PROJECT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.search(r"^make test$", script.read_text(encoding="utf-8"), re.M)
    assert re.search(r"^ *make docs$", script.read_text(encoding="utf-8"), re.M)
