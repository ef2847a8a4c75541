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
    The message is one line, so that it survives logs and job tables unbroken.
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
        place = ", ".join(part for part in (self.file, item) if part)
        text = f"{place}: {problem}" if place else problem
        if value is not None:
            text += f" (value {value!r})"
        if rule:
            text += f"; rule: {rule}"
        if remedy:
            text += f"; remedy: {remedy}"
        super().__init__(" ".join(text.split()))


def complain(text: str) -> None:
    """Print an error as one line on standard error, whatever is in it."""
    line = " ".join(text.split())
    print(f"sparsecv: error: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
