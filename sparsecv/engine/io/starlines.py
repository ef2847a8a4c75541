# SPDX-License-Identifier: GPL-3.0-or-later
"""Line rules of RELION's STAR files that a CIF parser does not know: a row is a line, a blank line ends a loop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError

CHUNK = 1 << 24  # bytes looked at together; bounds the memory beside a file of any size
TOKEN = re.compile(rb"'.*?'(?=\s|$)|\".*?\"(?=\s|$)|\S+")


@dataclass(frozen=True)
class Lines:
    """Where the lines of a file are: byte offsets (n + 1,) and numbers of blank-separated words (n,)."""

    raw: bytes
    starts: NDArray[np.int64]
    words: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.words)

    def text(self, line: int) -> bytes:
        """Return line ``line`` (from 0) without surrounding blanks."""
        return self.raw[self.starts[line] : self.starts[line + 1]].strip()

    def starting_with(self, word: bytes) -> NDArray[np.int64]:
        """Line numbers (from 0) of the lines that start with ``word``, without indentation."""
        buffer = np.frombuffer(self.raw, dtype=np.uint8)
        starts = self.starts[:-1]
        found = np.flatnonzero(starts + len(word) <= len(buffer))
        for offset, code in enumerate(word):
            found = found[buffer[starts[found] + offset] == code]
        return found


def split_lines(raw: bytes) -> Lines:
    """Find the lines of a file and count their words, vectorised: 500,000 rows take about half a second."""
    starts, words = [np.zeros(1, dtype=np.int64)], []
    begin = 0
    while begin < len(raw):
        end = raw.find(b"\n", begin + CHUNK) + 1 or len(raw)
        buffer = np.frombuffer(raw, dtype=np.uint8, count=end - begin, offset=begin)
        ends = np.flatnonzero(buffer == ord("\n")) + 1
        if len(ends) == 0 or ends[-1] != len(buffer):
            ends = np.append(ends, len(buffer))
        dark = buffer > ord(" ")
        first_of_word = dark.copy()
        first_of_word[1:] &= ~dark[:-1]
        words.append(np.add.reduceat(first_of_word, np.append(0, ends[:-1]), dtype=np.int32))
        starts.append(ends + begin)
        begin = end
    return Lines(raw, np.concatenate(starts), np.concatenate(words) if words else np.zeros(0, dtype=np.int32))


def check_lines(raw: bytes, path: Path) -> Lines:
    """Refuse what RELION would read otherwise than meant.

    Raises
    ------
    InputError
        Binary or non-ASCII content, a row whose number of values is not the number of columns, a blank line or a
        comment inside a loop; with file and line.
    """
    if b"\0" in raw[:CHUNK] or raw[:2] in (b"\x1f\x8b", b"BZ"):
        raise InputError("binary or compressed", file=path, rule="a STAR file is plain text",
                         remedy="unpack it, or export it as STAR")
    lines = split_lines(raw)
    if not raw.isascii() or b"\0" in raw:
        bad = next(i for i in range(len(lines)) if not lines.text(i).isascii() or b"\0" in lines.text(i))
        raise InputError(
            "a character outside ASCII",
            file=path,
            item=f"line {bad + 1}",
            value=lines.text(bad)[:80],
            rule="STAR files are ASCII",
            remedy="rename the file that it names, or link to it under a plain name",
        )
    several = lines.starting_with(b";")
    if len(several):
        raise InputError("a text of several lines", file=path, item=f"line {several[0] + 1}",
                         value=lines.text(int(several[0]))[:80].decode("ascii"),
                         rule="every value is one word, or quoted on one line; no line begins with ;",
                         remedy="remove the table or column that has it")
    blank = np.flatnonzero(lines.words == 0)
    headers = np.union1d(lines.starting_with(b"data_"), lines.starting_with(b"loop_"))
    comments = lines.starting_with(b"#")
    for loop in lines.starting_with(b"loop_"):
        words = lines.text(int(loop)).split()
        if words[0] != b"loop_" or (words[1:] and not words[1].startswith(b"#")):
            raise InputError("loop_ and more on one line", file=path, item=f"line {loop + 1}",
                             value=lines.text(int(loop))[:80].decode("ascii"), rule="loop_ stands alone on its line",
                             remedy="put what follows it on the next line")
        _check_loop(lines, int(loop), (blank, headers, comments), path)
    return lines


def version_comments(raw: bytes, lines: Lines) -> dict[str, str]:
    """Return the comment just above each table, by table name ("" for a bare ``data_``)."""
    comments = {}
    for line in lines.starting_with(b"data_").tolist():
        above = line - 1
        while above >= 0 and lines.words[above] == 0:
            above -= 1
        text = lines.text(above) if above >= 0 else b""
        if text.startswith(b"#") and len(text) > 1:
            comments[lines.text(line).split()[0][5:].decode("ascii")] = text.decode("ascii")
    return comments


def _next_in(numbers: NDArray[np.int64], start: int, default: int) -> int:
    place = int(np.searchsorted(numbers, start))
    return int(numbers[place]) if place < len(numbers) else default


def _check_loop(lines: Lines, loop: int, special: tuple[NDArray[np.int64], ...], path: Path) -> None:
    blank, headers, comments = special
    first, columns = loop + 1, 0
    while first < len(lines) and (lines.words[first] == 0 or lines.text(first)[:1] in (b"_", b"#")):
        text = lines.text(first)
        columns += text.startswith(b"_")
        words = text.split(None, 2)[:2]
        if len(words) == 2 and text.startswith(b"_") and not words[1].startswith(b"#"):
            raise InputError("more than the name of a column", file=path, item=f"line {first + 1}",
                             value=text[:80].decode("ascii"), rule="each column of a loop has a line of its own",
                             remedy="put what follows it on the next line")
        first += 1
    if first == len(lines) or lines.text(first).startswith((b"data_", b"loop_")):
        return
    if lines.words[first - 1] == 0:
        raise _blank_line(path, first - 1)
    end = min(_next_in(blank, first, len(lines)), _next_in(headers, first, len(lines)))
    odd = first + np.flatnonzero(lines.words[first:end] != columns)
    inside = comments[np.searchsorted(comments, first) : np.searchsorted(comments, end)]
    for line in np.union1d(odd, inside).tolist():
        text = lines.text(line)
        if text.startswith((b"#", b"_")):
            if text.startswith(b"#") and all(lines.text(later).startswith(b"#") for later in range(line, end)):
                break
            problem = "a comment inside a loop" if text.startswith(b"#") else "a single value inside a loop"
            raise InputError(problem, file=path, item=f"line {line + 1}", rule="rows follow each other without a break",
                             remedy="remove the line, or put a blank line and a new table before it")
        count = len(TOKEN.findall(text))
        if count != columns:
            raise InputError(
                f"a row with {count} values for {columns} columns",
                file=path,
                item=f"line {line + 1} (row {line - first + 1} of its loop)",
                value=text[:80].decode("ascii"),
                rule="every row of a loop is one line with one value per column; values with blanks are quoted",
                remedy="correct or remove the row",
            )
    _check_after(lines, end, path)


def _check_after(lines: Lines, end: int, path: Path) -> None:
    """After the blank line that ends a loop there must not be another row."""
    following = end
    while following < len(lines) and (lines.words[following] == 0 or lines.text(following).startswith(b"#")):
        following += 1
    if following < len(lines) and not lines.text(following).startswith((b"data_", b"loop_", b"_")):
        raise _blank_line(path, end)


def _blank_line(path: Path, line: int) -> InputError:
    return InputError(
        "a blank line inside a loop",
        file=path,
        item=f"line {line + 1}",
        rule="a loop ends at its first blank line, rows after it would be lost",
        remedy="remove the blank line",
    )
