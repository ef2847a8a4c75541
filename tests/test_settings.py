# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings classes as command-line options and as TOML files: one source, the same values on every way."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from sparsecv import __version__
from sparsecv.cli import COMMANDS
from sparsecv.engine.errors import InputError
from sparsecv.engine.settings import (
    add_options,
    build,
    given,
    option,
    read_settings,
    required,
    settings_beside,
    settings_of,
    settings_text,
    toml_value,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Sample:
    """A setting of each kind."""

    first: Path = required("a file", positional=True)
    label: str = option("plain", "a name")
    pixel_size: float | None = option(None, "A")
    number: int = option(3, "how many, 100 %% of them")
    mode: str = option("fast", "how", choices=("fast", "slow"))
    deep: bool = option(False, "whether to dig", expert=True)
    no_ctf: bool = option(False, "ignore the CTF")
    resume: bool = option(False, "go on")
    depth: int | None = option(None, "how deep", only_with="deep")


@dataclass(frozen=True)
class Several:
    """Any number of files."""

    files: tuple[Path, ...] = required("files", positional=True)
    number: int = option(3, "how many")


def parsed(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, Sample)
    return given(parser.parse_args(words), Sample)


def from_toml(tmp_path: Path, text: str) -> dict[str, object]:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, "dig", Sample, ("dig", "rest"))


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        from_toml(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "settings.toml"))
    return message.removeprefix(str(tmp_path / "settings.toml"))


# ------------------------------------------------------------------------------------------------- command line
def test_options_give_values_of_the_right_type() -> None:
    words = ["a b.mrc", "--pixel-size", "1.5", "--number", "7", "--deep", "--mode", "slow"]
    assert parsed(*words) == {"first": Path("a b.mrc"), "pixel_size": 1.5, "number": 7, "deep": True, "mode": "slow"}


def test_what_is_not_given_is_absent() -> None:
    assert parsed() == {}


def test_switches_can_be_taken_back() -> None:
    assert parsed("--no-deep", "--ctf", "--continue") == {"deep": False, "no_ctf": False, "resume": True}
    assert parsed("--no-ctf")["no_ctf"] is True


def test_later_layers_win_and_required_settings_are_asked_for() -> None:
    assert build(Sample, {"first": Path("a"), "number": 1}, {"number": 2}) == Sample(Path("a"), number=2)
    with pytest.raises(InputError, match=r"^FIRST missing; remedy: .*--config"):
        build(Sample, {"number": 1})


def test_a_list_takes_what_stands_in_a_row_and_may_come_from_a_file(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, Several)
    for words in (["a", "b c", "--number", "4"], ["--number", "4", "a", "b c"]):
        assert given(parser.parse_args(words), Several) == {"files": (Path("a"), Path("b c")), "number": 4}
    assert given(parser.parse_args([]), Several) == {}
    with pytest.raises(InputError, match=r"^FILES missing"):
        build(Several, {})
    sample = Several((Path("a"), Path('b"c')), number=4)
    path = tmp_path / "several.toml"
    path.write_text(settings_text("dig", sample, []), encoding="utf-8")
    assert build(Several, read_settings(path, "dig", Several)) == sample
    for text, message in (("files = 'a'", "files: wrong type .*an array"), ("files = ['a', 3]", r"files\[1\]: wrong")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_settings(path, "dig", Several)


UNQUOTED = "; remedy: text stands in quotes, numbers and true or false without"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_every_command_is_explained(command: str) -> None:
    cls = importlib.import_module(COMMANDS[command][0]).SETTINGS
    parser = argparse.ArgumentParser(prog=command)
    add_options(parser, cls)
    shown = parser.format_help()
    described = settings_of(cls)
    assert len(described) == len(fields(cls))
    for setting in described:
        assert setting.shown in shown and setting.help, setting.name
        assert "%%" not in shown


# ---------------------------------------------------------------------------------------------------------- TOML
@for_all(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_survives(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}


@for_all(st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)))
def test_any_number_survives(value: float) -> None:
    found = tomllib.loads(f"x = {toml_value(value)}")["x"]
    assert found == value and type(found) is type(value)


@for_all(
    st.builds(
        Sample,
        first=st.from_regex(r"[ -~]{1,20}", fullmatch=True).map(Path),
        label=st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
        pixel_size=st.none() | st.floats(1e-300, 1e300),
        number=st.integers(-(2**63), 2**63 - 1),
        mode=st.sampled_from(("fast", "slow")),
        deep=st.booleans(),
        no_ctf=st.booleans(),
    )
)
def test_settings_written_are_settings_read(tmp_path_factory: pytest.TempPathFactory, sample: Sample) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(settings_text("dig", sample, ["dig"]), encoding="utf-8", newline="\n")
    assert build(Sample, read_settings(path, "dig", Sample)) == sample


def test_what_is_written_says_where_it_came_from() -> None:
    sample = Sample(Path("map.mrc"), resume=True)
    content = tomllib.loads(settings_text("dig", sample, ["dig", "a file.mrc", "caf\udce9"]))
    assert content["provenance"]["version"] == __version__
    assert content["provenance"]["command"].startswith("sparsecv dig 'a file.mrc'")
    assert content["provenance"]["working_directory"] == str(Path.cwd())
    assert "pixel_size" not in content["dig"], "None is left out"
    assert "continue" not in content["dig"], "how a run was started is no setting of the run"
    assert content["dig"]["first"] == "map.mrc"


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        settings_text("dig", Sample(Path("caf\udce9.mrc")), [])


@pytest.mark.parametrize(
    "text",
    [
        "number = 5\npixel-size = 2",
        "[dig]\nnumber = 5\npixel_size = 2.0\n[rest]\nwhatever = 1\n[provenance]\nversion = ''",
    ],
    ids=["flat", "tables"],
)
def test_flat_files_and_tables_are_read(tmp_path: Path, text: str) -> None:
    found = from_toml(tmp_path, text)
    assert found == {"number": 5, "pixel_size": 2.0}
    assert isinstance(found["pixel_size"], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nunber = 5", ", nunber: unknown key; rule: names of options; remedy: did you mean number?"),
        ("[dig]\npixelsize = 5", ", [dig] pixelsize: unknown key; rule: names of options; remedy: did you "
                                  "mean pixel_size?"),
        ("[digg]\nnumber = 5", ", digg: unknown table; rule: names of options; remedy: did you mean dig?"),
        ("number = 5.5", ", number: wrong type (value 5.5); rule: a whole number" + UNQUOTED),
        ("number = true", ", number: wrong type (value True); rule: a whole number" + UNQUOTED),
        ("pixel_size = '2'", ", pixel_size: wrong type (value '2'); rule: a number" + UNQUOTED),
        ("deep = 1", ", deep: wrong type (value 1); rule: true or false" + UNQUOTED),
        ("first = 3", ", first: wrong type (value 3); rule: a string" + UNQUOTED),
        ("mode = 'lazy'", ", mode: unknown (value 'lazy'); rule: one of fast, slow"),
        ("pixel_size = 1\npixel-size = 1", ", pixel_size: given twice"),
        ("number = 5\n[dig]\ndeep = true", ", number: key outside the tables; remedy: move it under [dig]"),
        ("[rest]\nnumber = 5", ": no table [dig] (value ['rest']); rule: settings of the command that runs; "
                                    "remedy: add a table [dig], or choose another file"),
    ],
)
def test_wrong_files_are_refused_with_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


def test_files_that_are_no_toml_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "number = ").startswith(": not valid TOML: ")
    (tmp_path / "settings.toml").write_bytes(b"label = '\xff'")
    with pytest.raises(InputError, match="not valid TOML"):
        read_settings(tmp_path / "settings.toml", "dig", Sample)
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        read_settings(tmp_path / "absent.toml", "dig", Sample)
    with pytest.raises(InputError, match="regular file is needed"):
        read_settings(tmp_path, "dig", Sample)


def test_infinity_is_a_number_of_toml(tmp_path: Path) -> None:
    assert math.isinf(from_toml(tmp_path, f"pixel_size = {toml_value(math.inf)}")["pixel_size"])


def test_settings_beside_an_output_take_the_place_of_their_like_only(tmp_path: Path) -> None:
    """``select --output run/run.star`` must not take the run.toml of a refinement, which it is continued by."""
    for text, is_other in (("[dig]\ndepth = 1\n[provenance]\n", False), ("[refine]\n", True), ("no TOML", True),
                           ("[dig]\n[refine]\n", True), ("depth = 1\n", True)):  # fmt: skip
        (tmp_path / "run.toml").write_text(text)
        if is_other:
            with pytest.raises(InputError, match=r"run\.toml: would be overwritten by the settings of dig"):
                settings_beside(tmp_path / "run.star", "dig")
        else:
            assert settings_beside(tmp_path / "run.star", "dig") == tmp_path / "run.toml"
    assert settings_beside(tmp_path / "new.star", "dig") == tmp_path / "new.toml"


def test_a_switch_that_is_taken_back_takes_what_belongs_to_it_along() -> None:
    """As --no-ewald does with the hand that run.toml has; what is said beside it stays, to be refused."""
    recorded = {"first": Path("a"), "deep": True, "depth": 7}
    assert build(Sample, recorded, {"number": 4}).depth == 7
    assert build(Sample, recorded, {"deep": False}).depth is None
    assert build(Sample, recorded, {"deep": False, "depth": 3}).depth == 3
