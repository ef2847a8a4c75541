# SPDX-License-Identifier: GPL-3.0-or-later
"""Scans of strengths: over accumulators against single regularisations, over refinements against their folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import PIXEL_SIZE, blobs, write_particles

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.refine.scan import table
from sparsecv.engine.refine.settings import ScanSettings, parse_strengths
from sparsecv.engine.validate.fsc import HALF, fsc, resolution

BOX = 24

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles, a starting map, and accumulators of both halves."""
    out = tmp_path_factory.mktemp("scan")
    write_particles(out, 120, BOX, density=blobs(BOX), noise=15.0)
    write_map(out / "start.mrc", blobs(BOX), PIXEL_SIZE)
    assert run("reconstruct", "--particles", out / "particles.star", "--output", out / "map.mrc", "--halves",
               "--keep-accumulators") == 0
    return out


def run(command: str, *words: object) -> int:
    return cli.main([str(word) for word in (command, *words, "--threads", 1, "--device", "cpu")])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "scan.csv", newline="") as file:
        return list(csv.DictReader(file))


PAPER = ("--epsilon", 1.5, "--epsilon-gradient", 0.5)


@pytest.mark.parametrize(
    ("grid", "one", "names"),
    [
        (("--alphas", "0.5,0.4", "--betas", "1.2, 2", *PAPER),
         ("--strength", "paper", "--alpha", 0.4, "--beta", 2, *PAPER), ("alpha", "beta")),
        (("--kappas-sparse", "0.5,1", "--kappas-variation", "1,2"),
         ("--strength", "noise", "--kappa-sparse", 0.5, "--kappa-variation", 2), ("kappa_sparse", "kappa_variation")),
    ],
    ids=["paper", "noise"],
)  # fmt: skip
def test_a_point_is_what_regularise_makes_of_it(folder: Path, tmp_path: Path, grid: tuple[object, ...],
                                                one: tuple[object, ...], names: tuple[str, str],
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scan", "--accumulators", folder, "--output", tmp_path, *grid) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"scan.csv", "scan.json", "scan.png", "scan.toml"}
    said = capsys.readouterr().out
    assert "of references, no resolution" in said and said.split()[:2] == list(names)
    rows = rows_of(tmp_path)
    assert len(rows) == 4 and [float(rows[1][name]) for name in names] == [0.4 if names[0] == "alpha" else 0.5, 2.0]
    assert json.loads((tmp_path / "scan.json").read_text())["strengths"] == list(names)
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "one"
    assert run("regularise", "--accumulators", folder, "--output", out, "--regulariser", "sparse-tv", *one) == 0
    maps = [read_map(out / f"regularised_half{half}.mrc").data for half in (1, 2)]
    wanted = resolution(fsc(*maps), HALF, BOX, PIXEL_SIZE).angstrom
    assert float(rows[1]["references_fsc05_A"]) == pytest.approx(wanted, rel=1e-4)
    scores = np.array([[float(row[f"held_out_half{half}"]) for half in (1, 2)] for row in rows])
    assert (scores < 0).all() and len(np.unique(scores)) == scores.size, "better than an empty map, and they differ"
    if names[0] == "alpha":  # one strength, two units: alpha rms(b) eps = kappa sigma_b eps
        shown = json.loads((out / "regularise.json").read_text())["maps"][0]
        kappa = shown["beta"] / (shown["noise"] * shown["epsilon_gradient"])
        assert float(rows[1]["kappa_variation_half1"]) == pytest.approx(kappa, rel=1e-4)


def test_a_point_does_not_depend_on_its_grid(folder: Path, tmp_path: Path) -> None:
    for name, kappas in (("alone", "1"), ("between", "0.25,1,4")):
        assert run("scan", "--accumulators", folder, "--output", tmp_path / name, "--kappas-sparse", kappas,
                   "--kappas-variation", kappas) == 0
    assert rows_of(tmp_path / "alone")[0] == rows_of(tmp_path / "between")[4]


@pytest.fixture
def refinement(folder: Path, tmp_path: Path) -> Path:
    """Settings file of a short local refinement."""
    path = tmp_path / "settings.toml"
    path.write_text(
        f"[refine]\nparticles = '{folder / 'particles.star'}'\nreference = '{folder / 'start.mrc'}'\n"
        "output = 'unused'\nlocal = true\ninitial_lowpass = 0.0\niterations = 2\n"
        "regulariser = 'wiener'\ntau_factor = 2.0\n"
    )
    return path


def test_refinements_are_made_once_and_kept(refinement: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ("--refine", refinement, "--output", out, "--kappas-variation", "1", "--kappas-sparse")
    assert run("scan", *given, "0.5") == 0
    first = out / "kappa_sparse0.5_kappa_variation1"
    before = (first / "run_class001.mrc").stat().st_mtime_ns
    said = capsys.readouterr().out
    assert "kappa_sparse 0.5, kappa_variation 1 (1 of 1)\n" in said and "iteration 2" in said
    assert run("scan", *given, "0.5,1") == 0
    said = capsys.readouterr().out
    assert "(1 of 2): finished before\n" in said and "(2 of 2)\n" in said
    assert (first / "run_class001.mrc").stat().st_mtime_ns == before
    rows = rows_of(out)
    assert [row["folder"] for row in rows] == [first.name, "kappa_sparse1_kappa_variation1"]
    for row in rows:
        status = json.loads((out / row["folder"] / "status.json").read_text())
        assert float(row["masked_resolution_05_A"]) == pytest.approx(status["masked_resolution_05"], rel=1e-5)
        assert float(row["resolution_0143_A"]) == pytest.approx(status["resolution_0143"], rel=1e-5)
        folder = out / row["folder"]
        assert (folder / "run_sparse_tv.png").is_file() and not list(folder.glob("*_held_out.png"))
        settings = (folder / "run.toml").read_text()
        assert 'regulariser = "sparse-tv"' in settings and f"kappa_sparse = {row['kappa_sparse']}" in settings
    refinement.write_text(refinement.read_text() + "seed = 2\n")
    assert run("scan", *given, "0.5,1") == cli.WRONG_INPUT
    assert capsys.readouterr().err == (
        f"sparsecv: error: {first}: the refinement there had seed = 1 (value '2'); rule: a scan goes on with the "
        "settings that it was started with; remedy: give another --output\n"
    )


def test_a_choice_of_strengths_is_drawn(folder: Path, tmp_path: Path) -> None:
    given = ("--particles", folder / "particles.star", "--reference", folder / "start.mrc", "--output", tmp_path,
             "--local", "--initial-lowpass", 0, "--iterations", 3)
    assert run("refine", *given, "--regulariser", "sparse-tv") == 0
    assert [path.name for path in tmp_path.glob("*_held_out.png")] == ["run_it002_held_out.png"]
    for path in (tmp_path / "run_it002_held_out.png", tmp_path / "run_sparse_tv.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert run("refine", *given) == 0
    assert not [*tmp_path.glob("*_held_out.png"), *tmp_path.glob("run_sparse_tv.png")]


def test_a_refinement_that_was_stopped_goes_on(refinement: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ("--refine", refinement, "--output", out, "--kappas-variation", "1", "--kappas-sparse", "0.5")
    assert run("scan", *given) == 0
    status = out / "kappa_sparse0.5_kappa_variation1" / "status.json"
    status.write_text(status.read_text().replace('"finished"', '"failed"'))
    assert run("scan", *given) == 0
    assert "going on after iteration 1" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- wrong input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "alphas: no strength is given (value '')"),
        (" , ", "alphas: no strength is given"),
        ("0.4,", "alphas: not a list of numbers (value '0.4,'); rule: numbers with commas between them"),
        ("0.4;0.5", "alphas: not a list of numbers"),
        ("0.4,-0.5", "alphas: out of range (value -0.5); rule: 0 to 100"),
        ("nan", "alphas: out of range"),
        ("1,1.0", "alphas: a strength is given twice"),
    ],
)
def test_lists_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_strengths("alphas", text)
    assert str(caught.value).startswith(message)


def test_lists_are_put_in_order() -> None:
    assert parse_strengths("alphas", " 2.4, 0.4,1") == (0.4, 1.0, 2.4)


GRID = {"alphas": "0.4", "betas": "1.2", "epsilon": 1.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (GRID, "a scan needs something to regularise; rule: one of --accumulators and --refine"),
        (GRID | {"accumulators": "run", "refine": "run.toml"}, "a scan needs something to regularise"),
        ({"accumulators": "run"}, "a scan needs a grid of strengths"),
        ({"accumulators": "run", "betas": "1"}, "betas: a scan needs alphas as well"),
        ({"accumulators": "run", "kappas_sparse": "1"}, "kappas_sparse: a scan needs kappas_variation as well"),
        (GRID | {"accumulators": "run", "kappas_sparse": "1", "kappas_variation": "1"}, "a scan needs a grid"),
        (GRID | {"accumulators": "run", "betas": "-1"}, "betas: out of range (value -1.0); rule: 0 to 100"),
        (GRID | {"accumulators": "run", "epsilon": None}, "strength: strengths in the paper's units need alpha, beta"),
        ({"accumulators": "run", "kappas_sparse": "1", "kappas_variation": "1", "preset": "tmem16a"},
         "preset: has no meaning here (value 'tmem16a'); rule: in the paper's units"),
        (GRID | {"refine": "run.toml", "mask": "m.mrc"}, "mask: has no meaning here; rule: with --refine"),
    ],
)  # fmt: skip
def test_settings_that_contradict_one_another_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ScanSettings(output=Path("out"), **given)
    assert str(caught.value).startswith(message)


def test_files_that_cannot_be_scanned_are_refused(folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = ("--kappas-sparse", "1", "--kappas-variation", "1"), tmp_path / "out"
    assert run("reconstruct", "--particles", folder / "particles.star", "--output", tmp_path / "all.mrc",
               "--keep-accumulators") == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[refine]\nparticle = 'a.star'\n")
    for words, message in [
        (("--accumulators", tmp_path / "absent"), f"{tmp_path / 'absent'}: cannot be opened"),
        (("--accumulators", tmp_path), f"{tmp_path}: holds the accumulators of all particles together"),
        (("--refine", tmp_path / "absent.toml"), f"{tmp_path / 'absent.toml'}: cannot be opened"),
        (("--refine", wrong), f"{wrong}, [refine] particle: unknown key"),
    ]:
        assert run("scan", *words, *grid, "--output", out) == cli.WRONG_INPUT
        assert f"sparsecv: error: {message}" in capsys.readouterr().err
        assert not out.exists()


def test_tables_are_aligned() -> None:
    assert table([{"a": 0.5, "long": 2.0, "b": "x"}, {"a": 10.25, "long": 1e-7, "b": "yy"}]) == (
        "    a   long   b\n  0.5      2   x\n10.25  1e-07  yy"
    )
