# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripts in examples/ run as they stand, print what they promise, and leave nothing behind."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PRINTED = {
    "compare_maps": r"unmasked, 0\.143: [\d.]+ A\ncorrected for the mask, 0\.143: [\d.]+ A; B-factor: -[\d.]+",
    "local_filter": r"fine side: median band limit [\d.]+ A\ncoarse side: .*\nmean .*\nfiltered: .* 0\.9\d+",
    "own_regulariser": r"cutoff: .* 0\.[89]\d+\nwiener: .* 0\.9\d+\nsparse-tv: .* 0\.9\d+",
    "refine_with_callback": r"iteration 1: .*\niteration 2: .*\niteration 3: .*\nresolution: [\d.]+ A.*\n"
    r"100 particles kept, median error \d\.\d degrees\ncorrelation of the map with the truth: 0\.[789]\d",
}

pytestmark = pytest.mark.usefixtures("threads_as_before")


def test_every_example_is_run() -> None:
    """half_maps.py makes what the others need."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PRINTED, "half_maps"}
    named = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in named for name in PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr()
    assert re.fullmatch(PRINTED[name], shown.out.strip()), shown.out
    assert shown.err == "" and list(tmp_path.iterdir()) == []
