# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole small refinement with the sparse + TV prior, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_run
from small_run import BOX, PIXEL_SIZE, history, simulated

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.refine.checkpoint import checkpoint_path, load_checkpoint
from sparsecv.engine.simulate import SimulatedFiles
from sparsecv.engine.validate.fsc import HALF, fsc, resolution

RESULTS = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_class001.mrc",
           "run_class001_regularised.mrc", "run_data.star")  # fmt: skip

pytestmark = pytest.mark.usefixtures("threads_as_before")


def refine(data: SimulatedFiles, output: Path, *words: object) -> int:
    return small_run.refine(data, output, "sparse-tv", *words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    return simulated(tmp_path_factory.mktemp("sparse_tv"))


@pytest.fixture(scope="module")
def finished(data: SimulatedFiles) -> Path:
    folder = data.stack.parent.parent / "finished"
    assert refine(data, folder, "--iterations", 6) == 0
    return folder


def test_the_map_is_near_the_truth(data: SimulatedFiles, finished: Path) -> None:
    """Measured: above 0.5 to Nyquist, 10 A."""
    truth = read_map(data.truth_map).data
    halves = [read_map(finished / name).data for name in RESULTS[:2]]
    found = resolution(fsc((halves[0] + halves[1]) / 2, truth), HALF, BOX, PIXEL_SIZE)
    assert found.angstrom < 13


def test_every_iteration_tells_its_strengths(finished: Path) -> None:
    entries = history(finished)
    assert [entry.get("prior") for entry in entries[:-1]] == ["sparse-tv"] * (len(entries) - 1)
    assert [bool(entry["regulariser"][0].get("held_out")) for entry in entries[:-1]][:5] == [
        False, True, False, False, True,
    ]  # fmt: skip
    for entry in entries[:-1]:
        assert all(shown["gap"][-1] < 0.01 or shown["iterations"] >= 60 for shown in entry["regulariser"])
        assert entry["regulariser_cpu_s"] > 0


def test_half_maps_are_not_regularised(finished: Path) -> None:
    """The prior's zeros are in the map to look at, never in what an FSC is computed from."""
    regularised = read_map(finished / "run_class001_regularised.mrc").data
    centre = (slice(BOX // 4, 3 * BOX // 4),) * 3
    assert (regularised == 0).mean() > 0.5
    for name in RESULTS[:2]:
        assert np.count_nonzero(read_map(finished / name).data[centre] == 0) == 0


def test_a_run_goes_on_with_the_strengths_that_it_had(data: SimulatedFiles, finished: Path, tmp_path: Path) -> None:
    assert refine(data, tmp_path, "--iterations", 4) == 0
    found = load_checkpoint(tmp_path, lambda text: None)
    assert found is not None and checkpoint_path(tmp_path, found[0].iteration).is_file()
    assert all(set(half.memory) == {"kappa_sparse", "kappa_variation"} for half in found[0].halves)
    assert refine(data, tmp_path, "--iterations", 6, "--continue") == 0
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize("options", [
    ("--preset", "beta-galactosidase", "--epsilon", 0.5, "--epsilon-gradient", 0.2, "--solver", "paper"),
    ("--strength", "noise", "--kappa-sparse", 0.5, "--kappa-variation", 2, "--positivity"),
])  # fmt: skip
def test_other_strengths_run(data: SimulatedFiles, tmp_path: Path, options: tuple[object, ...]) -> None:
    assert refine(data, tmp_path, "--iterations", 3, *options) == 0
    entry = history(tmp_path)[1]
    assert entry["prior"] == "sparse-tv" and "held_out" not in entry["regulariser"][0]
    assert read_map(tmp_path / "run_class001_regularised.mrc").data.any()


def test_a_wrong_combination_is_one_line(data: SimulatedFiles, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert refine(data, tmp_path, "--alpha", 0.5) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "alpha" in said and "--strength paper" in said
