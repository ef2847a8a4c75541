# SPDX-License-Identifier: GPL-3.0-or-later
"""From a frozen dataclass of settings to command-line options and TOML files, and back.

The dataclass is the only place that knows a setting: its name, type, default, help text and range. ``pixel_size`` is
``--pixel-size`` on the command line and ``pixel_size`` (or ``pixel-size``) in a TOML file.
"""

from __future__ import annotations

import argparse
import difflib
import math
import shlex
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from sparsecv import __version__
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.regular import read_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RENAMED = {"resume": "continue"}  # a keyword of Python cannot name a field
UNSAVED = ("resume",)  # says how a run was started, not what it computed
PROVENANCE = "provenance"  # table that is written for the reader, and skipped when a file is read back
PLACEHOLDERS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
TOML_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a string"}

T = TypeVar("T")


def option(
    default: Any, text: str, *, choices: tuple[str, ...] = (), expert: bool = False, positional: bool = False,
    only_with: str = "",
) -> Any:  # fmt: skip
    """A dataclass field with what the command line says about it; ``%`` is doubled in the text, as for argparse.

    ``only_with`` is the switch without which it has no meaning: what takes that back takes this back, too.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "expert": expert,
                                            "positional": positional, "only_with": only_with})  # fmt: skip


def required(text: str, *, positional: bool = False) -> Any:
    """A dataclass field that must be given; a positional one needs no option name on the command line."""
    return field(metadata={"help": text, "positional": positional})


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number outside [low, high] (InputError); None stands for an automatic value."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InputError("out of range", item=name, value=value, rule=f"{low:g} to {high:g}")


@dataclass(frozen=True)
class Setting:
    """One field of a settings class, as a user meets it.

    Attributes
    ----------
    name, key
        Of the field, and of the TOML entry; the command line has ``key`` with hyphens.
    kind
        bool, int, float, str or Path.
    default
        ``dataclasses.MISSING`` where the setting must be given.
    is_list
        Whether it is a tuple of any number of such values: the last positional one, or an option that may be given
        again; in TOML an array.
    """

    name: str
    key: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...]
    is_expert: bool
    is_positional: bool
    is_list: bool = False

    @property
    def flag(self) -> str:
        """Option name on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def shown(self) -> str:
        """What error messages call it."""
        return self.key.upper() if self.is_positional else self.flag


def settings_of(cls: type) -> list[Setting]:
    """The fields of a settings class, in order; TypeError for a type that has no option."""
    hints = get_type_hints(cls)
    kinds = {entry.name: _plain_type(hints[entry.name], entry.name) for entry in fields(cls)}
    return [
        Setting(
            name=entry.name,
            key=RENAMED.get(entry.name, entry.name),
            kind=kinds[entry.name][0],
            default=entry.default,
            help=entry.metadata.get("help", ""),
            choices=tuple(entry.metadata.get("choices", ())),
            is_expert=bool(entry.metadata.get("expert", False)),
            is_positional=bool(entry.metadata.get("positional", False)),
            is_list=kinds[entry.name][1],
        )
        for entry in fields(cls)
    ]


def _plain_type(hint: Any, name: str) -> tuple[type, bool]:
    """The type without ``| None`` or of a tuple's members, and whether it is such a tuple."""
    parts, is_list = [hint], False
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
    elif get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        parts, is_list = [get_args(hint)[0]], True
    if len(parts) != 1 or parts[0] not in TOML_NAMES:
        raise TypeError(f"{name}: a setting is bool, int, float, str or Path, one of them or None, or a tuple of any "
                        f"number of them, not {hint}")
    kind: type = parts[0]
    return kind, is_list


# ------------------------------------------------------------------------------------------------- command line
def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Give a parser the options of a settings class.

    What the user leaves out is absent from the parsed namespace, so that a TOML file can fill it in.
    """
    ordinary, expert = parser, parser.add_argument_group("expert options")
    for setting in settings_of(cls):
        group = expert if setting.is_expert else ordinary
        if setting.is_positional:
            _add_positional(parser, setting)
        elif setting.kind is bool:
            _add_switch(group, setting)
        else:
            choices = setting.choices or None
            metavar = None if choices else PLACEHOLDERS[setting.kind]
            action = "append" if setting.is_list else "store"
            group.add_argument(setting.flag, dest=setting.name, type=setting.kind, choices=choices, metavar=metavar,
                               action=action,
                               default=argparse.SUPPRESS, help=_help_text(setting))
    ordinary.add_argument("--config", type=Path, metavar="FILE", default=None,
                          help="TOML file with any of these settings; the command line wins")


def _add_positional(parser: argparse.ArgumentParser, setting: Setting) -> None:
    """May be absent, as it can stand in a TOML file; argparse cannot suppress such a default, so it is None."""
    parser.add_argument(setting.name, nargs="*" if setting.is_list else "?", type=setting.kind, metavar=setting.shown,
                        help=_help_text(setting))


def _add_switch(group: argparse._ActionsContainer, setting: Setting) -> None:
    """``--name`` and, to overrule a TOML file, ``--no-name`` (``--name`` where the setting is itself ``no_name``)."""
    positive = setting.key.removeprefix("no_")
    opposite = positive if positive != setting.key else f"no_{setting.key}"
    pairs = ((setting.flag, True), ("--" + opposite.replace("_", "-"), False))
    for flag, value in pairs:
        is_default = value == setting.default
        group.add_argument(flag, dest=setting.name, action="store_const", const=value, default=argparse.SUPPRESS,
                           help=argparse.SUPPRESS if is_default else _help_text(setting))


def _help_text(setting: Setting) -> str:
    is_told = setting.default in (None, MISSING, ()) or setting.kind is bool or "default" in setting.help
    if is_told:
        return setting.help + (" (required)" if setting.default is MISSING else "")
    shown = f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)
    return f"{setting.help} (default: {shown.replace('%', '%%')})"


def given(namespace: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The settings that the command line gave, by field name."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(namespace).items()}
    names = (setting.name for setting in settings_of(cls))
    return {name: values[name] for name in names if values.get(name) not in (None, ())}


def build(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Make the settings from layers of values by field name; later layers win.

    Raises
    ------
    InputError
        When a required setting is missing, or the class refuses a value.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for entry in fields(cls):  # type: ignore[arg-type]  # a dataclass
            if layer.get(entry.metadata.get("only_with", "")) is False:
                values.pop(entry.name, None)
        values.update(layer)
    missing = [entry.shown for entry in settings_of(cls) if entry.default is MISSING and entry.name not in values]
    if missing:
        raise InputError(f"{', '.join(missing)} missing", remedy="give it on the command line or in the --config file")
    return cls(**values)


# --------------------------------------------------------------------------------------------------------- TOML
def read_settings(path: str | Path, command: str, cls: type, commands: Sequence[str] = ()) -> dict[str, Any]:
    """Read settings from a TOML file: a flat table, or the table named after the command.

    Parameters
    ----------
    command
        Whose settings are wanted.
    commands
        Names of all commands: their tables may stand in the same file.

    Returns
    -------
    dict
        Values by field name, of the types of ``cls``.

    Raises
    ------
    InputError
        Not a readable TOML file, unknown key, wrong type; names file, key and the nearest known key.
    """
    path = Path(path)
    content = read_toml(path)
    tables = {name for name, value in content.items() if isinstance(value, dict)}
    known = {command, *commands, PROVENANCE}
    for name in sorted(tables - known):
        raise _unknown("table", name, known - {PROVENANCE}, path)
    if command in tables:
        loose = sorted(set(content) - tables)
        if loose:
            raise InputError("key outside the tables", file=path, item=loose[0], remedy=f"move it under [{command}]")
        content, prefix = content[command], f"[{command}] "
    elif tables & set(commands):
        raise InputError(f"no table [{command}]", file=path, value=sorted(tables),
                         rule="settings of the command that runs",
                         remedy=f"add a table [{command}], or choose another file")
    else:
        content, prefix = {key: value for key, value in content.items() if key not in tables}, ""
    return dict(_typed(content, cls, path, prefix))


def read_toml(path: Path) -> dict[str, Any]:
    """Everything in a TOML file; InputError where it is none."""
    try:
        return tomllib.loads(read_bytes(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not valid TOML: {error}", file=path, rule="lines of: key = value, in UTF-8",
                         remedy="begin with the TOML file of an earlier run") from error


def _typed(content: Mapping[str, Any], cls: type, path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    by_key = {setting.key: setting for setting in settings_of(cls)}
    seen: set[str] = set()
    for key, value in content.items():
        plain = key.replace("-", "_")
        if plain not in by_key:
            raise _unknown("key", key, by_key, path, prefix)
        if plain in seen:
            raise InputError("given twice", file=path, item=prefix + plain)
        seen.add(plain)
        setting = by_key[plain]
        yield setting.name, _converted(value, setting, path, prefix + key)


def _unknown(what: str, name: str, known: Iterator[str] | set[str] | Mapping[str, Any], path: Path,
             prefix: str = "") -> InputError:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
    return InputError(f"unknown {what}", file=path, item=prefix + name, rule="names of options", remedy=remedy)


def _converted(value: Any, setting: Setting, path: Path, item: str) -> Any:
    if setting.is_list:
        if not isinstance(value, list):
            raise InputError("wrong type", file=path, item=item, value=value,
                             rule=f"an array, each of it {TOML_NAMES[setting.kind]}",
                             remedy="put it in square brackets")
        one = replace(setting, is_list=False)
        return tuple(_converted(part, one, path, f"{item}[{number}]") for number, part in enumerate(value))
    accepted = {float: (int, float), Path: (str,)}.get(setting.kind, (setting.kind,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and setting.kind is not bool):
        raise InputError("wrong type", file=path, item=item, value=value, rule=TOML_NAMES[setting.kind],
                         remedy="text stands in quotes, numbers and true or false without")
    if setting.choices and value not in setting.choices:
        raise InputError("unknown", file=path, item=item, value=value, rule=f"one of {', '.join(setting.choices)}")
    return setting.kind(value)


def settings_text(command: str, settings: Any, arguments: Sequence[str]) -> str:
    """The TOML text of a full set of settings, with where it came from.

    Parameters
    ----------
    command
        Name of the command, which is the name of the table.
    settings
        Instance of a settings class. What is None is left out: it is the default.
    arguments
        The command line after the program's name.
    """
    lines = [f"[{command}]"]
    for setting in settings_of(type(settings)):
        value = getattr(settings, setting.name)
        if value is not None and setting.name not in UNSAVED:
            lines.append(f"{setting.key} = {toml_value(value)}")
    # a command line is for reading: bytes that are no text are shown, not refused
    call = shlex.join(["sparsecv", *arguments]).encode("utf-8", "backslashreplace").decode("utf-8")
    here = str(Path.cwd()).encode("utf-8", "backslashreplace").decode("utf-8")
    provenance = {
        "version": __version__,
        "command": call,
        "working_directory": here,
        "written": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    lines += ["", f"[{PROVENANCE}]", *(f"{key} = {toml_value(value)}" for key, value in provenance.items()), ""]
    return "\n".join(lines)


def provenance_of(text: str) -> dict[str, Any]:
    """Where :func:`settings_text` came from: version, command, working directory, time; empty for any other text."""
    try:
        found = tomllib.loads(text).get(PROVENANCE, {})
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_settings(path: str | Path, command: str, settings: Any, arguments: Sequence[str]) -> None:
    """Write :func:`settings_text` to a file, atomically."""
    atomic_text(path, settings_text(command, settings, arguments))


def settings_beside(output: Path, command: str) -> Path:
    """The file for the settings behind one output file, OUTPUT.toml for OUTPUT.star.

    Raises
    ------
    InputError
        Where such a file holds anything else, as a refinement's ``run.toml``, without which it cannot be continued.
    """
    path = output.with_suffix(".toml")
    try:
        is_other = path.exists() and not set(read_toml(path)) <= {command, PROVENANCE}
    except InputError:
        is_other = True
    if is_other:
        raise InputError(f"would be overwritten by the settings of {command}", file=path,
                         rule="no such file beside the output, or one of the same command",
                         remedy="choose another name for the output")
    return path


def toml_value(value: Any) -> str:
    """A bool, int, float, str, Path or tuple of them as TOML; InputError for text that is not Unicode."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("a name that is not UTF-8 cannot be recorded", value=text,
                         rule="UTF-8, as settings files have it",
                         remedy="rename the file, or link to it under a plain name") from error
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    escaped = (escapes.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c) for c in text)
    return f'"{"".join(escaped)}"'
