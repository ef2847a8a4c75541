# SPDX-License-Identifier: GPL-3.0-or-later
"""Each input of the corpus through the real command line: the right message, set aside with a reason, or it works."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus import CASES
from corpus.case import KINDS, Case
from inputs import Inputs
from judge import faults, run

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Inputs]:
    """Valid inputs by the box of their images."""
    folder = tmp_path_factory.mktemp("bases")
    return {box: Inputs.made(folder / str(box), box) for box in sorted({case.base for case in CASES})}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", [
    pytest.param(case, id=f"{case.kind}: {case.name}".encode("unicode_escape").decode(),
                 marks=[pytest.mark.reliability] if case.is_heavy else [])
    for case in CASES
])  # fmt: skip
def test_case(case: Case, bases: dict[int, Inputs], tmp_path: Path) -> None:
    found = faults(case, run(case, bases[case.base].copy(tmp_path / "inputs")))
    assert not found, "\n".join(found)


def test_names_tell_cases_apart() -> None:
    names = [(case.kind, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.kind for case in CASES} == set(KINDS)
