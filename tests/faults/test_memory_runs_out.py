# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole refinements in which memory runs out at some step: smaller batches, the same bits.

Single passes, on a GPU's back end and allocation by allocation, are in ``tests/test_memory.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tally import record, times
from toy import content, refine_words, toy_data

from sparsecv import cli
from sparsecv.engine.refine import half as half_module

pytestmark = [pytest.mark.usefixtures("threads_as_before"), pytest.mark.timeout(3000)]
STEPS = ("find_posterior", "thinned", "accumulate", "sample_statistics", "estimate_poses")  # of each batch, in order


def counted(monkeypatch: pytest.MonkeyPatch, fails_at: int) -> list[str]:
    """Let the k-th step of a run find no memory; returns the list of steps that is filled by the run."""
    seen: list[str] = []

    def wrapped(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            if len(seen) == fails_at:
                raise MemoryError
            return whole(*arguments, **options)

        return step

    for name in STEPS:
        monkeypatch.setattr(half_module, name, wrapped(name, getattr(half_module, name)))
    return seen


def test_memory_that_runs_out_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    """At each step of each batch of a run."""
    data = toy_data(tmp_path)
    with monkeypatch.context() as patch:
        steps = counted(patch, 0)
        assert cli.main(refine_words(data, tmp_path / "run", "--iterations", 4)) == 0
    expected = content(tmp_path / "run")
    places = np.unique(np.linspace(1, len(steps), min(times(len(steps), 3), len(steps))).astype(int))
    for place in places:
        with monkeypatch.context() as patch:
            counted(patch, int(place))
            capsys.readouterr()
            assert cli.main(refine_words(data, tmp_path / "again", "--iterations", 4)) == 0
        assert "batches of at most" in capsys.readouterr().out
        assert content(tmp_path / "again") == expected, steps[place - 1]
    record("memory", "no memory at any step of any batch of a refinement", len(places), len(places),
           "smaller batches, bit-identical")
