# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole small refinement with the non-uniform regulariser, and the one-shot filter, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_run
from halfmaps import half_maps
from small_run import BOX, PIXEL_SIZE, history, simulated

from sparsecv import cli
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.simulate import SimulatedFiles
from sparsecv.engine.validate.fsc import HALF, fsc, resolution

RESULTS = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_class001.mrc",
           "run_class001_regularised.mrc", "run_bandlimit.mrc", "run_half1_bandlimit.mrc", "run_half2_bandlimit.mrc",
           "run_locally_filtered.mrc", "run_data.star")  # fmt: skip

pytestmark = pytest.mark.usefixtures("threads_as_before")


def refine(data: SimulatedFiles, output: Path, *words: object) -> int:
    return small_run.refine(data, output, "nonuniform", *words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    return simulated(tmp_path_factory.mktemp("nonuniform"))


@pytest.fixture(scope="module")
def finished(data: SimulatedFiles) -> Path:
    folder = data.stack.parent.parent / "finished"
    assert refine(data, folder, "--iterations", 4) == 0
    return folder


def test_the_map_is_near_the_truth(data: SimulatedFiles, finished: Path) -> None:
    """Measured: above 0.5 to Nyquist, 10 A."""
    truth = read_map(data.truth_map).data
    halves = [read_map(finished / name).data for name in RESULTS[:2]]
    found = resolution(fsc((halves[0] + halves[1]) / 2, truth), HALF, BOX, PIXEL_SIZE)
    assert found.angstrom < 13


def test_maps_of_band_limits(data: SimulatedFiles, finished: Path) -> None:
    """In A at every voxel, finer in the protein than in the solvent; the mean is that of the frequencies."""
    one, two, mean = (read_map(finished / name) for name in (RESULTS[5], RESULTS[6], RESULTS[4]))
    assert mean.pixel_size == pytest.approx(PIXEL_SIZE)
    np.testing.assert_allclose(mean.data, 2 / (1 / one.data + 1 / two.data), rtol=1e-5)
    assert mean.data.min() >= 2 * PIXEL_SIZE and mean.data.max() <= 25.001
    protein = read_map(data.mask).data > 0.9
    assert np.median(mean.data[protein]) < np.median(mean.data[~protein])


def test_every_iteration_tells_its_band_limits(finished: Path) -> None:
    entries = history(finished)
    for entry in entries[:-1]:
        assert entry["prior"] == "nonuniform" and entry["regulariser_cpu_s"] > 0
        for shown in entry["regulariser"]:
            assert sum(shown["share"]) == pytest.approx(1)
            assert shown["band_limits"] == sorted(shown["band_limits"], reverse=True)
    assert entries[-2]["band_limit_disagreement"] < 1.5
    assert "band_limit_disagreement" in entries[-1] and len(entries[-1]["regulariser"]) == 2
    for number in range(1, len(entries)):
        assert (finished / f"run_it{number:03d}_bandlimit.png").read_bytes()[:4] == b"\x89PNG"
    assert (finished / "run_bandlimit.png").is_file()


@pytest.mark.parametrize(("name", "number"), [("run_bandlimit.cxc", 2), ("run.cxc", 5)])
def test_scripts_for_chimerax_colour_by_band_limits(name: str, number: int, finished: Path) -> None:
    lines = (finished / name).read_text().splitlines()
    opened = [line.removeprefix("open ") for line in lines if line.startswith("open ")]
    assert len(opened) == number and opened[-1] == '"run_bandlimit.mrc"'
    opened = [name.strip('"') for name in opened]
    assert all((finished / name).is_file() for name in opened)
    assert any(line.startswith(f"color sample #1 map #{number} palette ") for line in lines)


def test_half_maps_are_not_filtered(finished: Path) -> None:
    """Their noise goes to Nyquist; the map to look at has none outside of the particle."""
    filtered, half = (read_map(finished / name).data for name in (RESULTS[3], RESULTS[0]))
    power = [np.abs(np.fft.rfftn(one)[12:15, 0, 0]).mean() for one in (half, filtered)]
    assert power[1] < power[0]
    assert np.count_nonzero(half[8:24, 8:24, 8:24] == 0) == 0


@pytest.mark.reliability  # test_refine_small.py and test_refine_sparse_tv.py do the same with other priors
def test_a_run_goes_on_as_if_it_had_not_stopped(data: SimulatedFiles, finished: Path, tmp_path: Path) -> None:
    assert refine(data, tmp_path, "--iterations", 2) == 0
    assert refine(data, tmp_path, "--iterations", 4, "--continue") == 0
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize("options", [
    ("--nu-preset", "paper"),
    ("--nu-family", "local-wiener", "--nu-filters", 6),
    ("--nu-family", "sparse-tv"),
])  # fmt: skip
def test_other_choices_run(data: SimulatedFiles, tmp_path: Path, options: tuple[object, ...]) -> None:
    assert refine(data, tmp_path, "--iterations", 2, *options) == 0
    shown = history(tmp_path)[0]["regulariser"][0]
    assert len(shown["share"]) == {"paper": 50, "local-wiener": 6, "sparse-tv": 6}[str(options[1])]
    assert (tmp_path / "run_bandlimit.mrc").is_file() == (options[1] != "sparse-tv")
    assert read_map(tmp_path / "run_class001_regularised.mrc").data.any()


def test_a_new_run_removes_what_the_old_one_has_left(data: SimulatedFiles, tmp_path: Path) -> None:
    (tmp_path / "run_bandlimit.mrc").write_bytes(b"old")
    assert refine(data, tmp_path, "--iterations", 1, "--nu-family", "sparse-tv") == 0
    assert not (tmp_path / "run_bandlimit.mrc").exists()


def test_kept_sums_can_be_filtered_without_refining(data: SimulatedFiles, tmp_path: Path) -> None:
    assert refine(data, tmp_path / "run", "--iterations", 2, "--keep-accumulators") == 0
    words = ["regularise", "--accumulators", tmp_path / "run", "--output", tmp_path / "out", "--regulariser",
             "nonuniform", "--nu-filters", 5, "--threads", 1]  # fmt: skip
    assert cli.main([str(word) for word in words]) == 0
    told = json.loads((tmp_path / "out" / "regularise.json").read_text())
    assert [len(one["share"]) for one in told["maps"]] == [5, 5]
    assert cli.main([*(str(word) for word in words), "--nu-share", "2"]) == 2  # there is no search to limit
    for half, one in enumerate(told["maps"], start=1):
        limits = read_map(tmp_path / "out" / f"regularised_half{half}_bandlimit.mrc").data
        assert all(np.isclose(limit, one["band_limits"]).any() for limit in np.unique(limits))
        assert limits.max() == pytest.approx(one["band_limits"][0])


# ------------------------------------------------------------------------------------------------------ nu-filter
@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("halves")
    paths = folder / "one.mrc", folder / "two.mrc"
    for path, half in zip(paths, half_maps(48, 2.0, noise=0.02), strict=True):
        write_map(path, half, 2.0)
    return paths


def nu_filter(*words: object) -> int:
    return cli.main([str(word) for word in ("nu-filter", *words, "--threads", 1)])


def test_half_maps_are_filtered_once(halves: tuple[Path, Path], tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert nu_filter(*halves, "--output", tmp_path) == 0
    said = capsys.readouterr().out
    assert "band limits inside the mask" in said and "no resolution" in said
    told = json.loads((tmp_path / "nu_filter.json").read_text())
    limits, estimate = (read_map(tmp_path / name).data for name in ("bandlimit.mrc", "local_resolution.mrc"))
    assert sum(told["share"]) == pytest.approx(1) and told["nu_filters"] == 12
    inner = np.abs(np.indices((48,) * 3) - 24).max(axis=0) < 5
    assert np.median(limits[inner]) < np.median(limits[limits < 25.1])
    assert told["rank_correlation"] > 0.3 and estimate.min() >= 4
    for name in ("filtered.mrc", "sharpened.mrc", "bandlimit.png", "local_resolution.png", "bandlimit.cxc",
                 "nu_filter.toml"):  # fmt: skip
        assert (tmp_path / name).is_file(), name
    raw = sum(read_map(path).data for path in halves) / 2
    truth = sum(half_maps(48, 2.0, noise=0.0)) / 2
    errors = [np.linalg.norm(one - truth * (limits > 0)) for one in (read_map(tmp_path / "filtered.mrc").data, raw)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("options", [
    ("--nu-family", "local-wiener", "--no-local-resolution"),
    ("--nu-family", "sparse-tv"),
    ("--nu-preset", "paper", "--nu-filters", 9, "--no-local-resolution"),
])  # fmt: skip
def test_other_filters(halves: tuple[Path, Path], tmp_path: Path, options: tuple[object, ...]) -> None:
    assert nu_filter(*halves, "--output", tmp_path, *options) == 0
    assert read_map(tmp_path / "filtered.mrc").data.any()
    assert (tmp_path / "strength.mrc").is_file() == ("sparse-tv" in options)
    assert not (tmp_path / "local_resolution.mrc").exists()


def test_half_maps_that_cannot_be_filtered(halves: tuple[Path, Path], tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    flat = tmp_path / "flat.mrc"
    write_map(flat, np.zeros((48,) * 3, np.float32), 2.0)
    small = tmp_path / "small.mrc"
    write_map(small, read_map(halves[0]).data[:40, :40, :40], 2.0)
    for pair, message in (((halves[0], halves[0]), "identical"), ((halves[0], flat), "flat"),
                          ((halves[0], small), "box differs"), ((halves[0], tmp_path / "none.mrc"), "none.mrc")):
        assert nu_filter(*pair, "--output", tmp_path / "out") != 0
        said = capsys.readouterr().err.strip()
        assert message in said and said.count("\n") == 0
    assert not (tmp_path / "out").exists()
    for options, message in (
        (("--local-window", 7), "even number"), (("--mtf-pixel-size", 1), "no meaning"),
        (("--nu-family", "sparse-tv", "--bfactor", -50), "no meaning"),
        (("--mtf", tmp_path / "none.star"), "none.star"),
    ):  # fmt: skip
        assert nu_filter(*halves, "--output", tmp_path / "out", *options) in (2, 74)
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_noise_is_filtered_inside_a_sphere_and_the_origin_stays(tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    paths = tmp_path / "one.mrc", tmp_path / "two.mrc"
    for path in paths:
        write_map(path, rng.normal(size=(32,) * 3).astype(np.float32), 3.0, (10.0, -20.0, 30.0))
    assert nu_filter(*paths, "--output", tmp_path / "out") == 0
    for name in ("filtered.mrc", "sharpened.mrc", "bandlimit.mrc", "local_resolution.mrc"):
        assert read_map(tmp_path / "out" / name).origin == pytest.approx((10.0, -20.0, 30.0)), name
    limits = read_map(tmp_path / "out" / "bandlimit.mrc").data
    assert (limits > 24.9).mean() > 0.9


def test_a_mask_is_used_for_the_sharpening_too(halves: tuple[Path, Path], tmp_path: Path) -> None:
    mask = tmp_path / "mask.mrc"
    write_map(mask, sphere(48, 14, 5), 2.0)
    told = []
    for name, options in (("plain", ()), ("masked", ("--mask", mask))):
        assert nu_filter(*halves, "--output", tmp_path / name, "--no-local-resolution", *options) == 0
        told.append(json.loads((tmp_path / name / "nu_filter.json").read_text())["bfactor"])
    assert told[0] != told[1]
