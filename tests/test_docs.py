# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents: paths, functions, commands, options, links and messages that they name are there."""

from __future__ import annotations

import argparse
import ast
import fnmatch
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest

from sparsecv import cli
from sparsecv.engine.settings import add_options

PROJECT = Path(__file__).resolve().parents[1]
ROOTS = ("sparsecv", "tests", "benchmarks", "docs", "tools", ".ci")
PAGES = sorted((PROJECT / "docs").glob("*.md"))
DOCUMENTS = [PROJECT / "README.md", PROJECT / "ARCHITECTURE.md", *PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r"([\w.*/-]+\.(?:py|cu|cuh|md|h))(?::(\w+))?")
COMMAND = re.compile(r"(?:^|[\s/`])sparsecv ([a-z][a-z-]*)((?:[^`\n|;&]|\|(?=[\w-]))*)", re.MULTILINE)
MADE_BY_BENCHMARKS = "benchmarks/results/"


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _fences(path: Path) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    return FENCE.findall(_text(path))


def _spans(text: str) -> list[str]:
    """Code in running text, of one line or broken between two."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


@cache
def _files() -> list[str]:
    found = [_name(path) for root in ROOTS for path in (PROJECT / root).rglob("*") if "__pycache__" not in path.parts]
    return [path.name for path in PROJECT.iterdir() if path.is_file()] + found


def _matching(named: str) -> list[str]:
    """Files whose path ends with the one named, which may hold ``*``."""
    return [name for name in _files() if fnmatch.fnmatch("/" + name, "*/" + named)]


@cache
def _defined(name: str) -> set[str]:
    """Functions, classes, methods and constants of a source file."""
    text = _text(PROJECT / name)
    if not name.endswith(".py"):
        return set(re.findall(r"\b(\w+)\s*\(", text))
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@cache
def _options(command: str) -> frozenset[str]:
    parser = argparse.ArgumentParser(prog=command)
    add_options(parser, importlib.import_module(cli.COMMANDS[command][0]).SETTINGS)
    return frozenset(parser._option_string_actions)


def _unknown(words: str, is_block: bool) -> list[str]:
    """Commands and options of sparsecv in a text that it does not have; outside of blocks only options."""
    wrong = []
    for command, rest in COMMAND.findall(words):
        if command in cli.COMMANDS:
            given = re.findall(r"(?<![\w-])(--[a-z][\w-]*)", rest)
            wrong += [f"{command} {flag}" for flag in given if flag not in _options(command)]
        elif is_block:
            wrong.append(command)
    return wrong


def _joined(block: str) -> str:
    """A code block with continued lines in one, without comments: behind a backslash, or indented as in a synopsis."""
    text = re.sub(r"\\\n", " ", block)
    return re.sub(r"\n[ \t]+(?=\[|--)", " ", re.sub(r"(^|\s)#.*", "", text))


# ------------------------------------------------------------------------------------------------ paths and functions
@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_files_and_functions_that_are_named_exist(document: Path) -> None:
    named = [span for span in _spans(_text(document)) if SOURCE.fullmatch(span)]
    for language, block in _fences(document):
        if not language:  # trees and pictures of the source; the commands of users name their own files
            named += re.findall(r"(?<![\w.*/-])[\w*/]+\.(?:py|cu|cuh)\b", block)
    wrong = []
    for name in named:
        match = SOURCE.fullmatch(name)
        assert match
        path, item = match.groups()
        if path.startswith(("../", MADE_BY_BENCHMARKS)):
            continue
        files = _matching(path)
        if not files or (item and not any(item in _defined(file) for file in files)):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_folders_that_are_named_exist(document: Path) -> None:
    folders = re.compile(rf"(?:{'|'.join(ROOTS)})/[\w/]+")
    named = {span for span in _spans(_text(document)) if folders.fullmatch(span)}
    missing = {span for span in named if not (PROJECT / span).exists()}
    assert missing <= {MADE_BY_BENCHMARKS}


def test_equations_stand_where_algorithms_says() -> None:
    """Each row has a place, relative to the engine or to the kernels; so have all kernels of the definition's file."""
    text = _text(PROJECT / "docs" / "algorithms.md")
    tables = text[text.index("## Model") : text.index("## References")]
    rows = [line for line in tables.splitlines() if line.startswith("|") and not line.startswith(("| what", "|--"))]
    assert len(rows) > 90
    for row in rows:
        places = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", re.split(r"(?<!\\)\|", row)[3])
        assert places, row
        for path, item in places:
            file = f"sparsecv/{path}" if path.startswith("kernels/") else f"sparsecv/engine/{path}"
            assert (PROJECT / file).is_file(), row
            assert not item or item in _defined(file), f"{path}:{item}"


# ------------------------------------------------------------------------------------------------- commands and links
@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_commands_and_options_exist(document: Path) -> None:
    wrong = [item for language, block in _fences(document) if language != "python"
             for item in _unknown(_joined(block), is_block=True)]  # fmt: skip
    wrong += [item for span in _spans(_text(document)) for item in _unknown(span, is_block=False)]
    assert wrong == []


def test_wrong_options_are_found() -> None:
    block = "mpirun -n 4 sparsecv refine --threads 2 \\\n    --local --bogus 3\nsparsecv refin\n# sparsecv none --x\n"
    assert _unknown(_joined(block), is_block=True) == ["refine --bogus", "refin"]
    assert _unknown(_joined("sparsecv fsc A B [--mask M]\n    [--moose a|b]\n"), is_block=True) == ["fsc --moose"]


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", _text(PROJECT / "Makefile"), re.MULTILINE))
    for document in DOCUMENTS:
        code = _spans(_text(document)) + [block for _, block in _fences(document)]
        asked = {word for part in code for word in re.findall(r"\bmake ([a-z-]+)", part)}
        assert asked <= targets, _name(document)


def _anchors(path: Path) -> set[str]:
    """Names of the headings as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", _text(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*PROJECT.glob("*.md"), *PAGES], ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", _text(document))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = document.parent / path if path else document
        assert page.exists(), target
        if document in PAGES and not path.startswith("http"):
            assert page.parent == document.parent, f"{target}: links of the pages stay in docs/, for the site"
        if anchor:
            assert anchor in _anchors(page), target


def test_index_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", _text(PROJECT / "docs" / "index.md")))
    assert linked == {page.name for page in PAGES} - {"index.md"}


# --------------------------------------------------------------------------------------------- messages and protocols
@cache
def _literals() -> str:
    """Every text that the sources hold, one a line, in the pieces that values stand between."""
    found = []
    for path in sorted((PROJECT / "sparsecv").rglob("*.py")):
        for node in ast.walk(ast.parse(_text(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(" ".join(node.value.split()))
    return "\n".join(found)


OF_OTHERS = (  # of argparse and of the system
    "unrecognized arguments", "No space left on device", "Read-only file system", "Disk quota exceeded",
)  # fmt: skip


def test_messages_of_the_faq_are_the_program_s() -> None:
    text = _text(PROJECT / "docs" / "faq.md")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 120
    wrong = []
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row.split("|")[1]):
            pieces = [piece for part in message.split("...") for piece in re.split(r"%s|; rule: ", part)]
            wrong += [f"{message}: {piece.strip()}" for piece in pieces
                      if piece.strip() and piece.strip() not in _literals() and message not in OF_OTHERS]  # fmt: skip
    assert wrong == []


def test_names_of_scipion_are_the_plugin_s() -> None:
    classes = set(re.findall(r"^class (SparseCvProt\w+)", "\n".join(
        _text(path) for path in (PROJECT / "sparsecv" / "protocols").glob("*.py")), re.MULTILINE))  # fmt: skip
    for document in DOCUMENTS:
        assert set(re.findall(r"SparseCvProt\w+", _text(document))) <= classes, _name(document)


def test_the_template_of_the_tutorial_is_filled_in_completely() -> None:
    """Scipion opens a window for a field without a value."""
    blocks = [_joined(block) for _, block in _fences(PROJECT / "docs" / "tutorial.md") if "scipion3 template" in block]
    (line,) = blocks
    given = dict(word.split("=") for word in line.split() if "=" in word)
    template = _text(PROJECT / "sparsecv" / "templates" / "sparsecv_relion.json.template")
    wanted = {field.split("|")[3] for field in template.split("~")[1::2]}
    assert set(given) - {"project_name"} == wanted
    json.loads(re.sub(r"~[^~]*~", "0", template[template.index("\n[") :]))


def test_presets_of_the_tutorial_are_the_papers() -> None:
    """Strengths and levels in the table of the recipes are those of the presets, which the lines below it name."""
    from sparsecv.engine.refine.regularisers.sparse_tv import PRESETS

    text = _text(PROJECT / "docs" / "tutorial.md")
    presets = re.findall(r"^NAME=.* PRESET=(\S+)", text, re.MULTILINE)
    assert set(presets) == set(PRESETS)
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
            for line in text.splitlines() if len(cells := line.split("|")) == len(presets) + 3}  # fmt: skip
    parts = {"a third": 3.0, "half": 2.0, "the same": 1.0}
    levels = rows["epsilon, epsilon'"]
    for name, strengths, level in zip(presets, rows["alpha, beta, gamma"], levels, strict=True):
        found = PRESETS[name]
        assert [float(number) for number in strengths.split(",")] == [found.alpha, found.beta, found.gamma], name
        number, part = level.split(", ")
        assert float(number) == found.epsilon, name
        assert found.epsilon_gradient == pytest.approx(found.epsilon / parts[part]), name
