# SPDX-License-Identifier: GPL-3.0-or-later
"""RELION STAR files (3.0, 3.1 and 5), parsed by gemmi, with what is not touched kept as it was written.

Column names are used without the leading underscore (``rlnDefocusU``). An unnamed ``data_`` table has the name "".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gemmi import cif
from numpy.typing import ArrayLike, NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_write
from sparsecv.engine.io.regular import read_bytes
from sparsecv.engine.io.starlines import check_lines, version_comments

RELION_VERSION = "# version 30001"  # the comment by which RELION >= 3.1 knows that the optics table counts
UNNAMED = " "  # what gemmi calls a block whose header is a bare "data_"
CHECKSUM = "# sparsecv crc32 "  # beginning of the first line
STAR_RULE = "tables that begin with data_, of one loop_ with as many values in each row as columns, each column once"
STAR_REMEDY = "correct the file there, or export it again"
RESERVED = ("data_", "loop_", "save_", "stop_", "global_")


class StarFile:
    """The tables of one STAR file.

    Parameters
    ----------
    document
        Parsed file; every block is one table.
    path
        Where it came from, for messages.
    comments
        The comment that stands above each table, by table name, as ``"# version 30001"``.

    Examples
    --------
    >>> star = StarFile.new()
    >>> star.add_loop("particles", {"rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnDefocusU": [10000.0, 12000.5]})
    >>> star.table("particles").floats("rlnDefocusU")
    array([10000. , 12000.5])
    """

    def __init__(self, document: cif.Document, path: Path | None, comments: dict[str, str]) -> None:
        self._document, self.path, self._comments = document, path, comments
        self.warnings: tuple[str, ...] = ()

    @classmethod
    def new(cls) -> StarFile:
        """Return a file without tables."""
        return cls(cif.Document(), None, {})

    @classmethod
    def read(cls, path: str | Path) -> StarFile:
        """Read a STAR file.

        Raises
        ------
        InputError
            Not a regular file, binary, not ASCII, a row with too few or too many values, a blank line or comment inside
            a loop (RELION would silently stop there), a table or column twice, loop and single values in one table.
        """
        path = Path(path)
        raw = read_bytes(path)
        lines = check_lines(raw, path)
        try:
            document = cif.read_string(raw)
        except (ValueError, RuntimeError) as error:
            raise InputError("not a STAR file that can be read: " + _without_prefix(error), file=path, rule=STAR_RULE,
                             remedy=STAR_REMEDY) from error
        for block in document:
            loops = sum(item.loop is not None for item in block)
            if loops > 1 or (loops and sum(1 for _ in block) > 1):
                raise InputError(
                    "a table holds more than one loop, or a loop and single values",
                    file=path,
                    item=f"data_{_shown(block.name)}",
                    rule="a table is one loop or a list of single values",
                    remedy="put them into tables of their own",
                )
        if sum(item.loop is not None for block in document for item in block) != len(lines.starting_with(b"loop_")):
            raise InputError("a loop_ that does not begin a line", file=path, rule="loop_ stands alone on its line",
                             remedy="remove what stands before it")
        if len(document) == 0:
            raise InputError("the file holds no table", file=path, rule="a STAR file has at least one data_ header",
                             remedy=STAR_REMEDY)
        star = cls(document, path, version_comments(raw, lines))
        star.warnings = _check_sum(raw, path)
        return star

    @property
    def names(self) -> list[str]:
        """Names of the tables, in the order of the file."""
        return [_shown(block.name) for block in self._document]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def table(self, name: str) -> StarTable:
        """Return a table by name; InputError names the tables there are when it is absent."""
        if name not in self:
            known = ", ".join(f"data_{known}" for known in self.names)
            raise InputError(f"there is no table data_{name}", file=self.path, rule=f"the file holds {known}",
                             remedy="give the file that was meant")
        return StarTable(self, name)

    def add_loop(self, name: str, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> StarTable:
        """Add a table of rows; numbers are written with 9 significant digits, text is quoted where needed."""
        texts = {column: format_values(values) for column, values in columns.items()}
        if len({len(values) for values in texts.values()}) > 1:
            raise ValueError(f"columns of data_{name} differ in length")
        block = self._add_block(name)
        loop = block.init_loop("", ["_" + column for column in texts])
        if texts and len(next(iter(texts.values()))):
            loop.set_all_values(list(texts.values()))
        return StarTable(self, name)

    def add_pairs(self, name: str, values: Mapping[str, Any]) -> StarTable:
        """Add a table of single values."""
        texts = {key: format_values([value])[0] for key, value in values.items()}
        block = self._add_block(name)
        for key, text in texts.items():
            block.set_pair("_" + key, text)
        return StarTable(self, name)

    def rename(self, old: str, new: str) -> None:
        """Give a table another name, with the version comment of RELION 3.1."""
        self.table(old)
        self._block(old).name = new or UNNAMED
        self._comments.pop(old, None)
        self._comments[new] = RELION_VERSION

    def move_first(self, name: str) -> None:
        """Put a table in front of the others, where RELION has its optics table."""
        document = cif.Document()
        for block in sorted(self._document, key=lambda block: _shown(block.name) != name):
            document.add_copied_block(block)
        self._document = document

    def copy(self) -> StarFile:
        """Return a copy that can be changed without changing this one."""
        document = cif.Document()
        for block in self._document:
            document.add_copied_block(block)
        return StarFile(document, self.path, dict(self._comments))

    def write(self, path: str | Path) -> None:
        """Write all tables, atomically. Values that were not set are written as they were read.

        The first line is a comment with a checksum of the rest, by which :meth:`read` notices damage.
        """
        parts = []
        for name in self.names:
            comment = f"\n{self._comments[name]}\n" if name in self._comments else ""
            parts.append(f"{comment}\ndata_{name}\n\n{_body(self._block(name))}\n".encode())
        total = 0
        for part in parts:
            total = zlib.crc32(part, total)
        with atomic_write(path) as temporary, temporary.open("wb") as out:
            out.write(f"{CHECKSUM}{total:08x}\n".encode())
            out.writelines(parts)

    def _block(self, name: str) -> cif.Block:
        # Looked up each time: a Block is a reference into a vector that moves when a table is added.
        return self._document.find_block(name or UNNAMED)

    def _add_block(self, name: str) -> cif.Block:
        if name in self:
            raise ValueError(f"table data_{name} exists already")
        self._comments[name] = RELION_VERSION
        return self._document.add_new_block(name or UNNAMED)


class StarTable:
    """One table of a :class:`StarFile`; a table of single values counts as one row."""

    def __init__(self, star: StarFile, name: str) -> None:
        self.star, self.name = star, name

    @property
    def path(self) -> Path | None:
        """The file that the table was read from."""
        return self.star.path

    @property
    def columns(self) -> list[str]:
        """Column names without the underscore, in order."""
        loop = self._loop()
        return [tag[1:] for tag in loop.tags] if loop else [tag[1:] for tag, _ in _pairs(self._block())]

    def __len__(self) -> int:
        loop = self._loop()
        return loop.length() if loop else int(bool(self.columns))

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def strings(self, column: str) -> list[str]:
        """Texts of a column, without quotes."""
        values = list(self._column(column))
        if any(value[:1] in ("'", '"', ";") for value in values):
            return [cif.as_string(value) if value[:1] in ("'", '"', ";") else value for value in values]
        return values

    def floats(self, column: str, *, finite: bool = True) -> NDArray[np.float64]:
        """Numbers of a column, shape (rows,).

        Raises
        ------
        InputError
            With row, column and value, where a value is no number, or with ``finite`` is nan or infinite.
        """
        texts = self.strings(column)
        values = np.empty(len(texts))
        try:
            values[:] = np.fromiter(map(float, texts), dtype=np.float64, count=len(texts))
        except ValueError:
            values[:] = [self._number(column, row, text) for row, text in enumerate(texts)]
        if "_" in "".join(texts):  # Python reads 1_000 as 1000, no STAR reader does
            row = next(row for row, text in enumerate(texts) if "_" in text)
            self._refuse(column, row, texts[row], "a number")
        if finite and not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            self._refuse(column, row, texts[row], "a finite number")
        return values

    def integers(self, column: str) -> NDArray[np.int64]:
        """Whole numbers of a column, shape (rows,); ``1.000000`` counts as 1."""
        values = self.floats(column)
        wrong = (values != np.rint(values)) | (np.abs(values) >= 2**53)
        if wrong.any():
            row = int(np.argmax(wrong))
            self._refuse(column, row, self.strings(column)[row], "a whole number")
        return values.astype(np.int64)

    def set(self, column: str, values: Sequence[Any] | NDArray[Any], fmt: str | None = None) -> None:
        """Set a column, added at the end when it is new.

        Parameters
        ----------
        column
            Name without underscore.
        values
            One value per row.
        fmt
            printf format such as ``"%.6f"``; default as :func:`format_values`.
        """
        texts = format_values(values, fmt)
        if len(texts) != len(self):
            raise ValueError(f"{len(texts)} values for the {len(self)} rows of data_{self.name}")
        loop = self._loop()
        if loop is None:
            self._block().set_pair("_" + column, texts[0])
            return
        if column not in self:
            loop.add_columns(["_" + column], ".")
        target = self._column(column)
        for row, text in enumerate(texts):
            target[row] = text

    def drop(self, column: str) -> None:
        """Remove a column of a loop when it is there (a loop keeps at least one column)."""
        loop = self._loop()
        if loop is not None and column in self:
            loop.remove_column("_" + column)

    def keep(self, rows: ArrayLike) -> None:
        """Keep only some rows of a loop.

        Parameters
        ----------
        rows
            Boolean mask over the rows, or row numbers from 0, in the order wanted.
        """
        loop = self._loop()
        if loop is None:
            raise ValueError(f"data_{self.name} has no rows")
        index = positions(rows, len(self)).tolist()
        if index == list(range(len(self))):
            return
        kept = []
        for column in self.columns:
            values = list(self._column(column))
            kept.append([values[row] for row in index])
        if index:
            loop.set_all_values(kept)
        else:
            self._block().init_loop("", ["_" + column for column in self.columns])

    def error(self, problem: str, column: str, row: int, **details: Any) -> InputError:
        """Return the InputError for a value, with its file, row (from 1), column and text."""
        details.setdefault("value", self.strings(column)[row] if column in self else None)
        item = f"data_{self.name}, row {row + 1}, column {column}"
        return InputError(problem, file=self.path, item=item, **details)

    def _number(self, column: str, row: int, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            self._refuse(column, row, text, "a number")
            raise

    def _refuse(self, column: str, row: int, text: str, wanted: str) -> None:
        raise self.error(
            f"not {wanted}",
            column,
            row,
            value=text,
            rule=f"{column} holds {wanted} in every row",
            remedy="correct or remove the row",
        )

    def _block(self) -> cif.Block:
        return self.star._block(self.name)

    def _loop(self) -> cif.Loop | None:
        return next((item.loop for item in self._block() if item.loop is not None), None)

    def _column(self, column: str) -> cif.Column:
        if column not in self:
            raise InputError(
                f"column {column} is missing",
                file=self.path,
                item=f"data_{self.name}",
                rule=f"the columns there are: {', '.join(self.columns)}",
                remedy="add the column, or export the file again with it",
            )
        return self._block().find_values("_" + column)


def _check_sum(raw: bytes, path: Path) -> tuple[str, ...]:
    """A warning where the first line has a checksum that is not that of the rest."""
    first, _, rest = raw.partition(b"\n")
    start = CHECKSUM.encode()
    if not first.startswith(start) or first.rstrip() == start + f"{zlib.crc32(rest):08x}".encode():
        return ()
    return (f"{path}: its checksum is wrong: the file is damaged, or was changed after sparsecv wrote it",)


def positions(which: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return the row numbers that a mask over ``count`` rows, or a list of row numbers, stands for."""
    chosen = np.asarray(which)
    rows: NDArray[np.int64] = np.arange(count)[chosen if chosen.size else chosen.astype(np.int64)]
    return rows


def format_values(values: Iterable[Any] | NDArray[Any], fmt: str | None = None) -> list[str]:
    """Return values as STAR tokens: numbers by ``fmt`` or with 9 significant digits, text quoted where needed."""
    array = np.asarray(values)
    if array.dtype.kind in "fiub" and array.ndim == 1:
        form = fmt or ("%.9g" if array.dtype.kind == "f" else "%d")
        numbers = array.tolist()
        texts = ((form + "\n") * len(numbers) % tuple(numbers)).split()
        return [_as_float(text) for text in texts] if array.dtype.kind == "f" and fmt is None else texts
    return [fmt % value if fmt else _token(value) for value in values]


def _as_float(text: str) -> str:
    """A whole number with a point: readers that guess a column's type from its first row must not take it for whole."""
    return text + ".0" if text.lstrip("-").isdigit() else text


def _token(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return _as_float(f"{value:.9g}")
    text = str(value)
    rule = broken_rule(text)
    if rule:
        raise InputError("text that a STAR file cannot hold", value=text, rule=rule)
    if _is_word(text):
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def broken_rule(text: str) -> str:
    """The rule of STAR files by which a text cannot stand in one; empty where it can."""
    if not text.isascii() or any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in text):
        return "ASCII without line breaks"
    return "" if _is_word(text) or not ("'" in text and '"' in text) else "not both kinds of quotes beside blanks"


def holdable(text: str) -> str:
    """The text as a STAR file can hold it, for names that are there to be read by people.

    What it cannot hold stands there as a Python escape (``\\xe9``), and double quotes as single ones where there are
    both beside blanks.
    """
    plain = "".join(c if 32 <= ord(c) < 127 else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return plain.replace('"', "'") if broken_rule(plain) else plain


def _is_word(text: str) -> bool:
    """Whether a text can stand in a row without quotes."""
    if text == "" or any(character.isspace() for character in text):
        return False
    return text[0] not in "'\"#_$;" and not text.lower().startswith(RESERVED)


def _pairs(block: cif.Block) -> list[tuple[str, str]]:
    pairs: list[Any] = [item.pair for item in block if item.pair is not None]
    return [(tag, value) for tag, value in pairs]


def _body(block: cif.Block) -> str:
    """Return what stands under the header of a table, with RELION's numbered columns."""
    loop = next((item.loop for item in block if item.loop is not None), None)
    if loop is None:
        return "".join(f"{tag:<40} {value}\n" for tag, value in _pairs(block))
    tags = loop.tags
    head = "loop_\n" + "".join(f"{tag} #{number}\n" for number, tag in enumerate(tags, 1))
    # gemmi writes the rows (250 ms for 500,000) below a header line, "loop_" and the names; it omits empty loops.
    return head + (block.as_string().split("\n", 2 + len(tags))[-1] if loop.length() else "")


def _shown(name: str) -> str:
    return "" if name == UNNAMED else name


def _without_prefix(error: Exception) -> str:
    """gemmi's message with its made-up source name replaced by the word line."""
    text = str(error)
    return re.sub(r"^data:\s*", "", re.sub(r"^data:(?=\d)", "line ", text))
