# SPDX-License-Identifier: GPL-3.0-or-later
"""STAR files for the Scipion wing: every value is text, so that no type is guessed from the first row.

(Scipion's own reader takes a column for whole numbers when its first value is 0, and fails at the first 0.5.)
"""

import os
import shlex
from collections import OrderedDict


class StarError(ValueError):
    """A STAR file that cannot be read or written; the message is for the user."""


def read_star(path):
    """Return the tables of a STAR file by name: lists of rows, each an OrderedDict of texts by column.

    A table of single values has one row.

    Raises
    ------
    StarError
        A row with too few or too many values.
    OSError
        The file cannot be opened.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        return parse_star(lines, path)


def parse_star(lines, path="text"):
    """Return the tables of an iterable of lines, as :func:`read_star`."""
    tables, columns, rows, is_loop = OrderedDict(), [], [], False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("data_"):
            columns, rows, is_loop = [], [], False
            tables[text[5:]] = rows
        elif text == "loop_":
            columns, is_loop = [], True
        elif text.startswith("_") and is_loop and not rows:
            columns.append(text.split()[0][1:])
        elif text.startswith("_"):
            words = _split(text)
            if len(words) < 2:
                raise StarError("%s: line %d has a name without a value" % (path, number))
            if not rows:
                rows.append(OrderedDict())
            rows[0][words[0][1:]] = words[1]
        else:
            words = _split(text)
            if len(words) != len(columns):
                raise StarError("%s: line %d has %d values for %d columns" % (path, number, len(words), len(columns)))
            rows.append(OrderedDict(zip(columns, words)))
    return tables


def _split(text):
    if "'" not in text and '"' not in text:
        return text.split()
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.commenters, words.escape = True, "", ""
    return list(words)


def write_star(path, tables):
    """Write tables (name, rows), as a whole or not at all; all rows of a table have the columns of its first.

    Raises
    ------
    StarError
        A value that a STAR file cannot hold.
    """
    with open(path + ".part", "w", encoding="utf-8") as out:
        for name, rows in tables:
            out.writelines(star_lines(name, rows))
    os.replace(path + ".part", path)


def star_lines(name, rows):
    """Yield the lines of a table; :func:`write_star` says what its rows have to be."""
    columns = list(rows[0]) if rows else []
    yield "\n# version 30001\n\ndata_%s\n\nloop_\n" % name
    for number, column in enumerate(columns, 1):
        yield "_%s #%d\n" % (column, number)
    for row in rows:
        yield " ".join(_token(row[column]) for column in columns) + "\n"
    yield "\n"


def _token(value):
    text = str(value)
    if not text.isascii() or any(ord(character) < 32 for character in text):
        raise StarError("a name that a STAR file cannot hold: %r" % text)
    if text and not any(c.isspace() or c in "'\"" for c in text) and text[0] not in "#_$;":
        return text
    for quote in ('"', "'"):
        if quote not in text:
            return quote + text + quote
    raise StarError("a name with both kinds of quotes: %r" % text)
