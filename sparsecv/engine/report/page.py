# SPDX-License-Identifier: GPL-3.0-or-later
"""A page of results as one HTML file: text, tables and pictures, with nothing to be fetched from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sparsecv.engine.io.atomic import atomic_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; margin: 1rem 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .6rem .8rem; }

figure { margin: 1rem 0; } figcaption { color: #444; font-size: .92rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .95rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
th { font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { border-left: .3rem solid #b35900; background: #fff4e5; padding: .5rem .8rem; margin: .5rem 0; }
.faint { color: #555; font-size: .92rem; }
"""


class Page:
    """A page that is put together from top to bottom; all text is escaped."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, faint: bool = False) -> None:
        """Add running text."""
        kind = ' class="faint"' if faint else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def warnings(self, texts: Iterable[str]) -> None:
        """Add what a reader must not miss."""
        self._parts += [f'<p class="warning" role="note"><strong>Note:</strong> {escape(text)}</p>' for text in texts]

    def items(self, texts: Iterable[str]) -> None:
        """Add a list."""
        self._parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table; numbers are shown with three digits behind the point, absent ones as a dash."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
        body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
        inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        self._parts.append(f'<div class="wide"><table>{inner}</table></div>')

    def picture(self, path: Path, caption: str) -> None:
        """Add a PNG file, inside the page, with words that say what it shows."""
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        text = escape(caption)
        self._parts.append(f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption, quote=True)}">'
                           f"<figcaption>{text}</figcaption></figure>")  # fmt: skip

    def code(self, text: str) -> None:
        """Add lines of settings or commands, as they are."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def write(self, path: str | Path) -> None:
        """Write the page, atomically."""
        head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
                f"<title>{escape(self._title)}</title><style>{STYLE}</style>")  # fmt: skip
        body = "\n".join(self._parts)
        text = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
        atomic_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return '<td class="number">-</td>'
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    return f"<td>{escape(str(value))}</td>"
