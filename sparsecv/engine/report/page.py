# SPDX-License-Identifier: GPL-3.0-or-later
"""A page of results as one HTML file: text, tables, pictures and charts, with nothing to be fetched from elsewhere."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from sparsecv.engine.io.atomic import atomic_text

Values = Sequence[float] | NDArray[Any]
TYPES = {".png": "image/png", ".webp": "image/webp"}


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes
    ----------
    label
        Its name in the legend.
    x, y
        Values; what is not finite is left out.
    frame
        Position of the slider at which it is shown in colour; None: always.
    """

    label: str
    x: Values
    y: Values
    frame: int | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over one axis, drawn by the browser, with values that are read by the mouse or by arrow keys.

    Attributes
    ----------
    caption
        What is shown, in words.
    lines
        Told apart by colour and by dashes.
    x_axis
        ``"frequency"`` is in 1/A and marked in A; ``"iteration"`` has whole numbers.
    thresholds
        Values of y drawn as horizontal lines.
    y_range
        Lowest and highest value shown, more only downwards; None: what the values need.
    has_others
        Whether lines of other positions of the slider are shown, in grey; else the axes follow those that are shown.
    """

    caption: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_axis: Literal["plain", "frequency", "iteration"] = "plain"
    is_logarithmic: bool = False
    thresholds: Sequence[float] = ()
    y_range: tuple[float, float] | None = None
    has_others: bool = True

    def as_dict(self) -> dict[str, Any]:
        """What the page's script reads."""
        lines = [{"label": one.label, "x": _rounded(one.x), "y": _rounded(one.y)}
                 | ({} if one.frame is None else {"frame": one.frame}) for one in self.lines]  # fmt: skip
        return {"caption": self.caption, "x_label": self.x_label, "y_label": self.y_label, "lines": lines,
                "x_axis": self.x_axis, "logarithmic": self.is_logarithmic, "thresholds": list(self.thresholds),
                "y_range": self.y_range, "others": self.has_others}  # fmt: skip


def fsc_chart(caption: str, lines: Sequence[Line], thresholds: Sequence[float], *, lowest: float = 0.0) -> Chart:
    """Curves of correlation against spatial frequency, from ``lowest`` (more only downwards) to 1."""
    return Chart(caption, "resolution (Å)", "correlation", lines, "frequency", thresholds=thresholds,
                 y_range=(lowest, 1.0))  # fmt: skip


@dataclass
class Page:
    """A page that is put together from top to bottom; all text is escaped.

    Attributes
    ----------
    title
        Heading, and name of the window.
    reloads_after
        Seconds after which a browser reads the page again; 0: never.
    """

    title: str
    reloads_after: int = 0
    _parts: list[str] = field(default_factory=list)
    _charts: list[Chart] = field(default_factory=list)
    _positions: Mapping[int, str] = field(default_factory=dict)

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
        """Add a PNG or WebP file, inside the page, with words that say what it shows."""
        image = _image(path.read_bytes(), path.suffix, caption)
        self._parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")

    def code(self, text: str) -> None:
        """Add lines of settings or commands, as they are."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def slider(self, label: str, positions: Mapping[int, str]) -> None:
        """Add the slider, once, that moves frames and charts: number of each position, and its words."""
        self._positions = dict(sorted(positions.items()))
        last = len(self._positions) - 1
        self._parts.append(f'<div class="slider"><label for="slider">{escape(label)}</label><input id="slider" type='
                           f'"range" min="0" max="{last}" value="{last}" step="1"><output for="slider"></output></div>')

    def frames(self, pictures: Mapping[int, bytes], caption: str, *, suffix: str = ".webp") -> None:
        """Add pictures of which the slider shows one: the file's bytes, by the number of the position."""
        newest = max(pictures, default=0)
        images = "".join(_image(data, suffix, f"{caption} Iteration {number}.", number, is_hidden=number != newest)
                         for number, data in sorted(pictures.items()))  # fmt: skip
        self._parts.append(f'<figure class="frames">{images}<figcaption>{escape(caption)}</figcaption></figure>')

    def charts(self, charts: Iterable[Chart]) -> None:
        """Add charts side by side, as many as the window holds."""
        self._parts.append('<div class="charts">')
        for chart in charts:
            self._parts.append(f'<figure class="chart" data-chart="{len(self._charts)}"><figcaption>'
                               f"{escape(chart.caption)}</figcaption></figure>")  # fmt: skip
            self._charts.append(chart)
        self._parts.append("</div>")

    def write(self, path: str | Path) -> None:
        """Write the page, atomically."""
        head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
                f"<title>{escape(self.title)}</title><style>\n{_part('page.css')}</style>")  # fmt: skip
        if self.reloads_after:
            head += f'<meta http-equiv="refresh" content="{self.reloads_after}">'
        body = "\n".join([f"<h1>{escape(self.title)}</h1>", *self._parts])
        if self._charts or self._positions or self.reloads_after:
            body += "\n" + self._script()
        text = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
        atomic_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))

    def _script(self) -> str:
        """The numbers of the charts, and the program that draws them."""
        data = {"charts": [chart.as_dict() for chart in self._charts],
                "slider": {"positions": list(self._positions), "labels": list(self._positions.values())},
                "written": time.time() if self.reloads_after else None}  # fmt: skip
        # Nothing in it can end the element, whatever names it holds.
        text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        return (f'<noscript><p class="warning">Charts and the slider need JavaScript.</p></noscript>\n'
                f'<script id="data" type="application/json">{text}</script>\n<script>\n{_part("page.js")}</script>')


def _part(name: str) -> str:
    """Text of a file beside this module."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _image(data: bytes, suffix: str, caption: str, frame: int | None = None, *, is_hidden: bool = False) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    place = "" if frame is None else f' data-frame="{frame}"' + (" hidden" if is_hidden else "")
    return f'<img src="data:{TYPES[suffix]};base64,{encoded}" alt="{escape(caption, quote=True)}"{place}>'


def _rounded(values: Iterable[float]) -> list[float | None]:
    """Numbers with five digits, which is more than can be seen; None for what is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(float, values)]


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return '<td class="number">-</td>'
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    return f"<td>{escape(str(value))}</td>"
