# SPDX-License-Identifier: GPL-3.0-or-later
"""Accumulators as files: what is written is read back, belongs together, and gives the maps of the run."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import PIXEL_SIZE, blobs, write_particles

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.physics.masks import fade_corners
from sparsecv.engine.refine import accumulator_files
from sparsecv.engine.refine.accumulator_files import (
    WHOLE,
    Origin,
    accumulator_path,
    read_accumulators,
    write_accumulators,
)
from sparsecv.engine.refine.volumes import Accumulator, half_width
from sparsecv.kernels import cpu

BOX, LAST = 16, 6
ORIGIN = Origin(PIXEL_SIZE, "C1", 50.0)

pytestmark = pytest.mark.usefixtures("threads_as_before")


def accumulator(seed: int, box: int = BOX, last: int = LAST) -> Accumulator:
    rng = np.random.default_rng(seed)
    c = half_width(last)
    shape = (2 * c + 1, 2 * c + 1, c + 1)
    data = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    return Accumulator(data, rng.uniform(1, 2, shape).astype(np.float32), box, last, "gaussian")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder with the accumulators of both halves of a run."""
    for half in (1, 2):
        write_accumulators(cpu, tmp_path / "run", half, (accumulator(10 * half), accumulator(10 * half + 1)), ORIGIN)
    return tmp_path


def refusal(where: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_accumulators(cpu, where)
    return str(caught.value)


@pytest.mark.parametrize("name", [".", "run_half2_quarter1_accumulator.npz"], ids=["folder", "file"])
def test_what_is_written_is_read(run: Path, name: str) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        f"run_half{half}_quarter{quarter}_accumulator.npz" for half in (1, 2) for quarter in (1, 2)
    ]
    found = read_accumulators(cpu, run / name)
    assert (found.origin, found.box, sorted(found.quarters)) == (ORIGIN, BOX, [1, 2])
    for half, pair in found.quarters.items():
        for quarter, own in enumerate(pair):
            wanted = accumulator(10 * half + quarter)
            np.testing.assert_array_equal(own.data, wanted.data)
            np.testing.assert_array_equal(own.weight, wanted.weight)
            assert (own.box, own.last_shell, own.kernel) == (BOX, LAST, "gaussian")


def test_quarters_of_all_particles_are_a_run_of_their_own(run: Path) -> None:
    write_accumulators(cpu, run / "map", WHOLE, (accumulator(1), accumulator(2)), ORIGIN)
    assert list(read_accumulators(cpu, run / "map_quarter2_accumulator.npz").quarters) == [WHOLE]
    assert list(read_accumulators(cpu, run / "run_half1_quarter1_accumulator.npz").quarters) == [1, 2]
    assert refusal(run).startswith(f"{run}: holds the accumulators of several runs")
    assert refusal(run).endswith("remedy: name one file of the run that is meant")


def test_absent_files_are_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"{tmp_path / 'empty'}: holds no accumulators; rule: files *_accumulator.npz; remedy: refine or reconstruct "
        "with --keep-accumulators"
    )
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: cannot be opened: No such file")
    (tmp_path / "other.npz").write_bytes(b"")
    assert refusal(tmp_path / "other.npz").startswith(f"{tmp_path / 'other.npz'}: not the name of an accumulator")
    accumulator_path(run / "run", 2, 1).unlink()
    assert refusal(run) == (
        f"{run / 'run_half2_quarter2_accumulator.npz'}: cannot be opened: No such file or directory; rule: two "
        "quarters of each of both halves, or of all particles; remedy: copy all files of the run, or write them "
        "again with --keep-accumulators"
    )
    accumulator_path(run / "run", 2, 0).unlink()
    assert refusal(run).startswith(f"{run / 'run_half2_quarter1_accumulator.npz'}: cannot be opened")


@pytest.mark.parametrize("damage", ["truncated", "changed", "text"])
def test_damaged_files_are_refused(run: Path, damage: str) -> None:
    path = accumulator_path(run / "run", 1, 1)
    raw = bytearray(path.read_bytes())
    if damage == "changed":
        raw[len(raw) // 2] ^= 1
    path.write_bytes(b"not an npz" if damage == "text" else raw[: len(raw) // 2] if damage == "truncated" else raw)
    said = refusal(run)
    assert said.startswith(f"{path}: damaged or no accumulator (") and "remedy: copy it again" in said


def test_another_version_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulator_files, "FORMAT", 2)
    assert re.search(r"was written by another version of sparsecv \(.*\) \(value 1\); rule: 2,", refusal(run))


def test_files_must_belong_together(run: Path) -> None:
    first = accumulator_path(run / "run", 1, 0)
    write_accumulators(cpu, run / "run", 2, (accumulator(1, box=18), accumulator(2, box=18)), ORIGIN)
    path = accumulator_path(run / "run", 2, 0)
    assert refusal(run) == (
        f"{path}: box differs from that of {first} (value 18); rule: 16, as all accumulators of a run; remedy: take "
        "the files of one run"
    )
    write_accumulators(cpu, run / "run", 2, (accumulator(1), accumulator(2)), replace(ORIGIN, pixel_size=1.5))
    assert "pixel size differs" in refusal(run)
    shutil.copy(first, path)
    said = refusal(run)
    assert said.startswith(f"{path}: holds another quarter than its name says") and "'half 1, quarter 1'" in said


def test_sums_that_are_none_are_refused(run: Path) -> None:
    broken = accumulator(20)
    broken.weight[3, 3, 3] = np.nan
    write_accumulators(cpu, run / "run", 2, (broken, accumulator(21)), ORIGIN)
    assert "holds no usable sums" in refusal(run)


# ---------------------------------------------------------------------------------------------------- who writes them
@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STAR file of 40 noise-free particles with half sets."""
    folder = tmp_path_factory.mktemp("particles")
    write_particles(folder, 40, BOX, density=blobs(BOX))
    return folder / "particles.star"


@pytest.mark.parametrize("symmetry", ["C1", "C2"])
@pytest.mark.parametrize("halves", [[], ["--halves"]], ids=["whole", "halves"])
def test_a_reconstruction_keeps_the_sums_of_its_maps(particles: Path, tmp_path: Path, halves: list[str],
                                                     symmetry: str) -> None:
    given = ["reconstruct", "--particles", str(particles), "--symmetry", symmetry, "--threads", "1", *halves]
    for name, more in (("plain.mrc", []), ("kept.mrc", ["--keep-accumulators"])):
        assert cli.main([*given, "--output", str(tmp_path / name), *more]) == 0
    found = read_accumulators(cpu, tmp_path)
    assert (found.origin.pixel_size, found.origin.symmetry, found.box) == (PIXEL_SIZE, symmetry, BOX)
    assert list(found.quarters) == ([1, 2] if halves else [WHOLE])
    for half, (first, second) in found.quarters.items():
        name = f"plain_half{half}.mrc" if halves else "plain.mrc"
        plain = read_map(tmp_path / name).data
        kept = read_map(tmp_path / name.replace("plain", "kept")).data
        np.testing.assert_allclose(kept, plain, atol=1e-4 * np.abs(plain).max())
        again = fade_corners((first + second).solve(cpu))
        np.testing.assert_allclose(again, kept, atol=1e-4 * np.abs(plain).max())
        # 20 or 40 images: either quarter has half of them
        assert first.mean_weight(cpu)[2] == pytest.approx(second.mean_weight(cpu)[2], rel=0.2)
        assert not np.array_equal(first.data, second.data)


def test_a_refinement_keeps_the_sums_of_its_half_maps(particles: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.mrc"
    assert cli.main(["reconstruct", "--particles", str(particles), "--output", str(start), "--threads", "1"]) == 0
    out = tmp_path / "out"
    given = ["refine", "--particles", str(particles), "--reference", str(start), "--output", str(out), "--local",
             "--iterations", "1", "--threads", "1", "--initial-lowpass", "20"]
    assert cli.main([*given, "--keep-accumulators"]) == 0
    found = read_accumulators(cpu, out)
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "finished" and found.origin.diameter == pytest.approx(0.9 * BOX * PIXEL_SIZE)
    for half, (first, second) in found.quarters.items():
        wanted = read_map(out / f"run_half{half}_class001_unfil.mrc").data
        again = fade_corners((first + second).solve(cpu))
        np.testing.assert_allclose(again, wanted, atol=1e-5 * np.abs(wanted).max())
    assert cli.main(given) == 0
    assert not list(out.glob("*_accumulator.npz")), "a run that keeps none leaves none of an earlier one"
