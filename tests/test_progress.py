# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress: what stands on the screen or in the log, with a clock of our own."""

from __future__ import annotations

import io
import math

import pytest

from sparsecv.engine.report.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen(text: str) -> list[str]:
    """What a terminal shows of a text with carriage returns."""
    lines = []
    for raw in text.split("\n"):
        line = ""
        for part in raw.split("\r"):
            line = part + line[len(part) :]
        lines.append(line.rstrip())
    return lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (math.nan, "?"),
        (-1, "?"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, clock=clock)
    for iteration in (1, 2, 3):
        progress.iteration_started(iteration, 3)
        for step in range(5):
            clock.now += 2
            progress.advance(step + 1, 5, "expectation")
        progress.iteration_finished(f"{20 - iteration} A")
    assert stream.getvalue().splitlines() == [
        "iteration 1 of about 3: 19 A; 10 s, about 20 s left",
        "iteration 2 of about 3: 18 A; 10 s, about 10 s left",
        "iteration 3 of about 3: 17 A; 10 s",
    ]


def test_time_left_follows_the_iteration_and_the_last_three():
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    progress.iteration_started(1, 5)
    assert math.isnan(progress.seconds_left())
    clock.now += 3
    progress.advance(25, 100)
    assert progress.seconds_left() == pytest.approx(9 + 4 * 12)
    for iteration, seconds in enumerate((12, 20, 20, 20), start=1):
        progress.iteration_started(iteration, 5)
        clock.now += seconds
        progress.iteration_finished("")
    assert progress.seconds_left() == pytest.approx(20)
    progress.iteration_started(5, 5)
    assert progress.seconds_left() == pytest.approx(20)
    clock.now += 30
    assert progress.seconds_left() == 0  # longer than expected, and nothing reported yet


def test_more_iterations_than_expected():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, clock=clock)
    progress.iteration_started(4, 3)
    progress.iteration_finished("done")
    assert stream.getvalue() == "iteration 4 of about 4: done; 0 s\n"


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, interactive=True, clock=clock)
    progress.iteration_started(1, 2)
    clock.now += 5
    progress.advance(1, 2, "expectation")
    shown = screen(stream.getvalue())[-1]
    assert shown.startswith("iteration 1/2 [#") and "50 %" in shown and "expectation, 15 s left" in shown
    assert shown.count("#") == pytest.approx(shown.count("."), abs=1) and len(shown) < 80
    progress.iteration_finished("12 A")
    assert screen(stream.getvalue()) == ["iteration 1 of about 2: 12 A; 5 s, about 5 s left", ""]


def test_bar_is_not_redrawn_for_every_step():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, interactive=True, clock=clock)
    progress.iteration_started(1, 1)
    for step in range(10_000):
        clock.now += 0.001
        progress.advance(step, 10_000)
    assert 50 < stream.getvalue().count("\r") < 120


@pytest.mark.parametrize("columns", [10, 25, 40])
def test_narrow_terminals(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    progress = Progress(stream, interactive=True, clock=Clock())
    progress.iteration_started(12, 30)
    progress.advance(1, 1, "back-projection of the second half")
    assert all(len(part) < columns for part in stream.getvalue().split("\r"))
    progress.close()
    assert screen(stream.getvalue()) == [""]


def test_nothing_to_do_is_no_division_by_zero():
    progress = Progress(io.StringIO(), interactive=True, clock=Clock())
    progress.iteration_started(1, 1)
    progress.advance(0, 0)
    progress.iteration_finished("nothing")
