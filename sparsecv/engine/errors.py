# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that a user can act on: they name the file, the item, the value, the rule and the remedy."""

from __future__ import annotations

import sys
from pathlib import Path


class InputError(ValueError):
    """Something that the user gave breaks a rule.

    Parameters
    ----------
    problem
        What is wrong, in the words of the field.
    file
        The file that holds it.
    item
        Where in the file: row, column, image number, option.
    value
        The offending value, shown with ``repr``.
    rule
        What would be right.
    remedy
        What the user can do about it.

    Notes
    -----
    The message is one line, so that it survives logs and job tables unbroken. File and item stand there letter by
    letter; what cannot be shown in them, such as a line break or a terminal's escape codes, as ``\\n`` or ``\\x1b``.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        item: str | None = None,
        value: object = None,
        rule: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.file, self.item = problem, None if file is None else str(file), item
        self.value, self.rule, self.remedy = value, rule, remedy
        place = ", ".join(printable(part) for part in (self.file, item) if part)
        text = problem
        if value is not None:
            text += f" (value {value!r})"
        if rule:
            text += f"; rule: {rule}"
        if remedy:
            text += f"; remedy: {remedy}"
        text = printable(" ".join(text.split()))
        super().__init__(f"{place}: {text}" if place else text)

    def about(self, file: str | Path) -> InputError:
        """The same error, of a file: where what finds it knows maps or models but not where they come from."""
        return InputError(self.problem, file=self.file or file, item=self.item, value=self.value, rule=self.rule,
                          remedy=self.remedy)


def printable(text: str) -> str:
    """The text with what a terminal, a log or a reader could take for anything else written as a Python escape.

    Names of files may hold anything but ``/`` and NUL: line breaks, which would make two entries of one in a log,
    escape codes, which a terminal obeys, and marks that turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


class Terminated(BaseException):
    """SIGTERM or SIGUSR1 came; like KeyboardInterrupt it is no Exception, so that nothing on the way swallows it.

    Parameters
    ----------
    name
        Of the signal.
    after
        The iteration that was finished before, and whose checkpoint was written; None where something was cut short.
    """

    def __init__(self, name: str = "SIGTERM", after: int | None = None) -> None:
        self.name, self.after = name, after
        done = "" if after is None else f" after iteration {after}; remedy: go on with --continue"
        super().__init__(f"stopped by {name}{done}")


def tell(*lines: str) -> None:
    """Print lines on standard output; names in them may hold anything, and none makes two lines of one."""
    for line in lines:
        print(printable(line), flush=True)


def complain(text: str) -> None:
    """Print an error as one line on standard error, whatever is in it."""
    line = printable(" ".join(text.splitlines()))
    print(f"sparsecv: error: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
