# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinements of a small simulated protein through the program: accuracy, files, repeatability and wrong input.

The images come from exact projections of atoms, not from the interpolation that the refinement uses. Most tests stop
after few iterations, as they compare runs with each other and not with the truth.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mrcfile
import numpy as np
import pytest
from tiny import PIXEL_SIZE as TINY_PIXEL_SIZE
from tiny import blobs, write_particles

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.geometry import angular_distance, matrix_to_euler, rotvec_to_matrix
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.expectation import Posterior, find_posterior
from sparsecv.engine.refine.images import ImageBatch
from sparsecv.engine.refine.outputs import WRITTEN, own_scales
from sparsecv.engine.refine.prepare import check_rejected
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.report import deposition
from sparsecv.engine.simulate import SimulatedFiles, SimulateSettings, simulate
from sparsecv.engine.validate.fsc import HALF, fsc, resolution

PARTICLES, BOX, PIXEL_SIZE = 200, 32, 5.0
# Measured with seed 1: 4.1 degrees, 1.14 A, FSC with the truth above 0.5 to Nyquist (10 A); bounds are 1.3 times that.
POSE_BOUND, SHIFT_BOUND, TRUTH_BOUND = 5.3, 1.5, 11.0
SHORT = ("--iterations", 3)
RESULTS = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_class001.mrc", "run_data.star",
           "run_model.star", "postprocess.mrc", "postprocess_fsc.xml", "rejected.star")


pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    """Simulated particles with known poses, and a starting map of 40 A."""
    folder = tmp_path_factory.mktemp("small") / "data"
    return simulate(SimulateSettings(output=folder, particles=PARTICLES, box=BOX, pixel_size=PIXEL_SIZE, snr=0.5))


def refine(data: SimulatedFiles, output: Path, *words: object, particles: Path | None = None) -> int:
    given = ("refine", "--particles", particles or data.particles, "--reference", data.reference, "--output", output)
    return cli.main([str(word) for word in (*given, "--threads", 1, *words)])


@pytest.fixture(scope="module")
def finished(data: SimulatedFiles) -> Path:
    """Folder of a refinement that went on until it converged."""
    folder = data.stack.parent.parent / "finished"
    assert refine(data, folder) == 0
    return folder


@pytest.fixture(scope="module")
def short(data: SimulatedFiles) -> Path:
    """Folder of a refinement of three iterations."""
    folder = data.stack.parent.parent / "short"
    assert refine(data, folder, *SHORT) == 0
    return folder


def pose_errors(found: Path, truth: Path) -> tuple[float, float]:
    """Median errors of orientations, degrees, and of shifts, A."""
    first, second = ParticleTable.read(found), ParticleTable.read(truth)
    turned = angular_distance(first.rotations, second.rotations)
    return float(np.median(turned)), float(np.median(np.linalg.norm(first.shifts - second.shifts, axis=1)))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_results(first: Path, second: Path) -> None:
    for name in RESULTS:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


# --------------------------------------------------------------------------------------------- a whole refinement
def test_poses_and_map_are_near_the_truth(data: SimulatedFiles, finished: Path) -> None:
    turned, moved = pose_errors(finished / "run_data.star", data.truth)
    assert turned < POSE_BOUND
    assert moved < SHIFT_BOUND
    found = read_map(finished / "run_class001.mrc")
    curve = fsc(found.data, read_map(data.truth_map).data, read_map(data.mask).data)
    assert resolution(curve, HALF, BOX, PIXEL_SIZE).angstrom < TRUTH_BOUND


def test_files_are_there_and_valid(finished: Path) -> None:
    maps = (*RESULTS[:3], "postprocess.mrc", "postprocess_masked.mrc", "postprocess_mask.mrc")
    assert all(mrcfile.validate(str(finished / name)) for name in maps)
    for name in maps:
        found = read_map(finished / name)
        assert found.data.shape == (BOX,) * 3 and found.pixel_size == PIXEL_SIZE
    status = json.loads((finished / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["iteration"] == len(status["history"])
    for number in range(1, status["iteration"] + 1):
        for what in ("fsc", "slices", "angles"):
            assert (finished / f"run_it{number:03d}_{what}.png").read_bytes().startswith(b"\x89PNG")
    assert len(StarFile.read(finished / "rejected.star").table("rejected")) == 0
    assert not list(finished.glob(".*.part"))


def test_a_deposition_and_a_script_are_ready(finished: Path) -> None:
    folder = finished / "emdb"
    assert {path.name for path in folder.iterdir()} == set(deposition.NAMES)
    assert set(deposition.WRITTEN) < set(WRITTEN)
    for name in deposition.NAMES[:4]:
        assert mrcfile.validate(str(folder / name))
    for number in (1, 2):
        assert (folder / f"emd_half_map_{number}.mrc").samefile(finished / RESULTS[number - 1])
    text = " ".join((folder / "emd_summary.txt").read_text().split())
    assert re.search(rf"{PARTICLES} \(\d+ and \d+ in the half sets\)", text) and "Wiener filter (T 1)" in text
    lines = (finished / "run.cxc").read_text().splitlines()
    opened = [line.removeprefix("open ").strip('"') for line in lines if line.startswith("open ")]
    assert opened == ["postprocess.mrc", *RESULTS[:2], "postprocess_mask.mrc"]
    assert all((finished / name).is_file() for name in opened)


def test_particles_keep_their_columns_and_gain_halves(data: SimulatedFiles, finished: Path) -> None:
    before = StarFile.read(data.particles).table("particles")
    after = StarFile.read(finished / "run_data.star").table("particles")
    assert len(after) == PARTICLES
    for column in ("rlnMicrographName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        assert after.strings(column) == before.strings(column)
    assert np.bincount(after.integers("rlnRandomSubset")).tolist() == [0, PARTICLES // 2, PARTICLES // 2]


def test_particles_have_their_qualities(finished: Path) -> None:
    """Columns of RELION's names and our own; no scale comes from the other half set."""
    found = StarFile.read(finished / "run_data.star").table("particles")
    evidence, likelihood = found.floats("sparsecvLogEvidence"), found.floats("rlnLogLikeliContribution")
    probability, samples = found.floats("rlnMaxValueProbDistribution"), found.integers("rlnNrOfSignificantSamples")
    assert np.all((probability > 0) & (probability <= 1)) and samples.min() >= 1
    # more samples that share the probability, less for the best of them
    assert np.all(samples * probability > 0.9)
    assert np.all(found.floats("sparsecvPoseSpread") >= 0)
    assert np.median(evidence) > 10
    # beside the evidence RELION's has the power of the image, 1 a pixel but for the mask and the signal, and the norm
    power = (evidence - likelihood) / (np.pi / 8 * BOX**2) - np.log(2 * np.pi * found_noise(finished))
    assert 0.5 < np.median(power) < 2.5  # the signal is as strong as the noise at low frequency
    groups, halves = found.strings("rlnMicrographName"), found.integers("rlnRandomSubset")
    scales = found.floats("rlnGroupScaleCorrection")
    by_half: dict[tuple[str, int], set[float]] = {}
    for group, half, scale in zip(groups, halves.tolist(), scales.tolist(), strict=True):
        by_half.setdefault((group, half), set()).add(scale)
    assert all(len(one) == 1 for one in by_half.values())
    assert by_half[groups[0], 1] != by_half[groups[0], 2]


def test_scales_are_those_of_the_particle_s_own_half() -> None:
    table = SimpleNamespace(group_index=np.array([0, 1, 0, 1]))
    state = SimpleNamespace(halves=[SimpleNamespace(scale=np.array(scale)) for scale in ([1.0, 2.0], [3.0, 4.0])])
    refinement = SimpleNamespace(particles=SimpleNamespace(table=table), state=state, halves=np.array([1, 1, 2, 2]))
    np.testing.assert_array_equal(own_scales(cast(Any, refinement)), [1, 2, 3, 4])


def found_noise(folder: Path) -> float:
    """Median variance per real component as ``run_model.star`` has it, of transforms divided by box^2."""
    table = StarFile.read(folder / "run_model.star").table("model_optics_group_1")
    return float(np.median(table.floats("rlnSigma2Noise")[1:]))


@pytest.mark.relion
@pytest.mark.parametrize(
    ("name", "table", "column"),
    [
        ("run_data.star", "data_particles", "rlnAngleRot"),
        ("run_model.star", "data_model_class_1", "rlnGoldStandardFsc"),
        ("postprocess.star", "data_fsc", "rlnFourierShellCorrelationCorrected"),
    ],
)
def test_relion_reads_the_tables(finished: Path, name: str, table: str, column: str) -> None:
    command = ["relion_star_printtable", str(finished / name), table, column]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    ours = StarFile.read(finished / name).table(table.removeprefix("data_")).floats(column)
    np.testing.assert_allclose([float(line) for line in printed.split()], ours, atol=1e-5)


@pytest.mark.relion
def test_relion_reconstructs_our_map_from_our_poses(finished: Path, tmp_path: Path) -> None:
    star = finished / "run_data.star"
    command = ["relion_reconstruct", "--i", str(star), "--o", str(tmp_path / "theirs.mrc"), "--ctf", "--sym", "C1"]
    # image names in the file are relative to where the particles were, so RELION is started there
    subprocess.run(command, check=True, capture_output=True, cwd=finished.parent / "data", stdin=subprocess.DEVNULL)
    out = tmp_path / "ours.mrc"
    assert cli.main(["reconstruct", "--particles", str(star), "--output", str(out), "--threads", "1",
                     "--data-dir", str(finished.parent / "data")]) == 0
    # inside the mask only: RELION treats the corners of the box otherwise
    mask = read_map(finished.parent / "data" / "mask_protein.mrc").data
    curve = fsc(read_map(out).data, read_map(tmp_path / "theirs.mrc").data, mask)
    assert curve[:11].min() > 0.99


def test_noise_is_said_to_show_only_what_the_halves_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_particles(tmp_path, 60, BOX, noise=1.0)
    start = tmp_path / "start.mrc"
    write_map(start, blobs(BOX), TINY_PIXEL_SIZE)
    given = ("refine", "--particles", tmp_path / "particles.star", "--reference", start, "--output", tmp_path / "out",
             "--threads", "1", "--iterations", 1)
    assert cli.main([str(word) for word in given]) == 0
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    reached = status["history"][0]["crossing_0143"]
    assert 2 * TINY_PIXEL_SIZE < reached < 40  # further than the start, by noise alone
    assert status["resolution_0143"] == 40 and status["resolution_is_shared"]
    said = capsys.readouterr().out
    assert f"no resolution beyond the 40.00 A that the halves share (FSC 0.143 at {reached:.2f} A" in said
    assert "finished: 40.00 A (shared by the halves; none beyond is claimed) at 0.143" in said


# ------------------------------------------------------------------------------------------------- repeatability
def test_settings_repeat_a_run_to_the_last_bit(short: Path, tmp_path: Path) -> None:
    assert cli.main(["refine", "--config", str(short / "run.toml"), "--output", str(tmp_path)]) == 0
    assert_same_results(short, tmp_path)


def test_a_run_that_was_limited_goes_on_as_if_it_had_not_been(data: SimulatedFiles, short: Path,
                                                              tmp_path: Path) -> None:
    assert refine(data, tmp_path, "--iterations", 2) == 0
    # without particles, the settings are those in the output folder
    assert cli.main(["refine", "--output", str(tmp_path), "--continue", *map(str, SHORT)]) == 0
    assert_same_results(short, tmp_path)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(data: SimulatedFiles, short: Path,
                                                             tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--particles", data.particles, "--reference", data.reference, "--output", out, "--threads", 1, *SHORT]
    command = [sys.executable, "-m", "sparsecv.cli", "refine", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 120
    while not (out / "run_it001_checkpoint.npz").exists() and time.monotonic() < give_up and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the first one lets it finish the iteration
    _, said = process.communicate(timeout=60)
    assert process.returncode == cli.TERMINATED, said
    assert not (out / "run_class001.mrc").exists() and not list(out.glob(".*.part"))
    assert json.loads((out / "status.json").read_text())["state"] in ("failed", "stopped")
    assert refine(data, out, *SHORT, "--continue") == 0
    assert_same_results(short, out)


@pytest.mark.reliability  # tests/faults/test_honesty.py does the same with other words
def test_threads_and_batches_change_nothing(data: SimulatedFiles, short: Path, tmp_path: Path) -> None:
    """Sums of many images are made in double precision: the order of their parts does not show."""
    assert refine(data, tmp_path, *SHORT, "--threads", 2, "--batch-memory", 60) == 0
    assert_same_results(short, tmp_path)


def test_a_new_run_leaves_nothing_of_the_one_before(data: SimulatedFiles, short: Path, tmp_path: Path) -> None:
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.txt").write_text("not ours")
    for name in ("run.toml", "run_class001.mrc", "checksums.sha256"):  # what a killed run was writing
        (tmp_path / f".{name}.abcdefgh.part").write_text("piece")
    assert refine(data, tmp_path, "--iterations", 1) == 0
    assert not list(tmp_path.glob(".*"))
    assert sorted(path.name for path in tmp_path.glob("run_it*")) == [
        "run_it001_angles.png", "run_it001_fsc.png", "run_it001_record.json", "run_it001_slices.png"
    ]
    assert (tmp_path / "notes.txt").exists()
    assert "iterations = 1\n" in (tmp_path / "run.toml").read_text()


def test_results_of_a_run_can_be_the_input_of_the_next(data: SimulatedFiles, short: Path, tmp_path: Path) -> None:
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    words = ("--local", "--iterations", 1, "--data-dir", data.stack.parent)
    before = ("--reference", tmp_path / "run_class001.mrc")
    assert refine(data, tmp_path, *words, *before, particles=tmp_path / "run_data.star") == 0
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_a_run_that_fails_says_so(data: SimulatedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsecv.engine.refine.run.save_checkpoint", fail)
    assert refine(data, tmp_path) == cli.DISK
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "No space left" in status["error"]
    assert status["iteration"] == len(status["history"]) == 1


# --------------------------------------------------------------------------------------------------- other modes
def test_local_refinement_improves_given_poses(data: SimulatedFiles, tmp_path: Path) -> None:
    truth = ParticleTable.read(data.truth)
    turns = rotvec_to_matrix(np.deg2rad(np.random.default_rng(3).normal(0, 6, (PARTICLES, 3))))
    start = tmp_path / "start.star"
    star = StarFile.read(data.truth)
    table = star.table("particles")
    for column, values in zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"),
                              matrix_to_euler(turns @ truth.rotations).T, strict=True):
        table.set(column, values)
    star.write(start)
    shutil.copy(data.stack, tmp_path)
    before, _ = pose_errors(start, data.truth)
    assert refine(data, tmp_path / "out", "--local", "--local-sigma", 6, "--iterations", 4, particles=start) == 0
    after, _ = pose_errors(tmp_path / "out" / "run_data.star", data.truth)
    assert before > 8
    assert after < POSE_BOUND


def test_a_damaged_image_is_set_aside(data: SimulatedFiles, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in (data.stack, data.particles):
        shutil.copy(path, tmp_path)
    broken = 17
    with open(tmp_path / data.stack.name, "r+b") as stack:
        stack.seek(1024 + 4 * BOX * BOX * broken)
        stack.write(np.full(BOX * BOX, np.nan, dtype="<f4").tobytes())
    assert refine(data, tmp_path / "out", "--iterations", 1, particles=tmp_path / data.particles.name) == 0
    rejected = StarFile.read(tmp_path / "out" / "rejected.star").table("rejected")
    assert rejected.strings("rlnImageName") == [f"{broken + 1:06d}@particles.mrcs"]
    assert rejected.integers("sparsecvRow").tolist() == [broken + 1]
    assert "finite" in rejected.strings("sparsecvReason")[0]
    kept = StarFile.read(tmp_path / "out" / "run_data.star").table("particles").strings("rlnImageName")
    assert len(kept) == PARTICLES - 1 and f"{broken + 1:06d}" not in {name.split("@")[0] for name in kept}
    assert "1 set aside" in capfd.readouterr().out


def test_an_image_of_another_grey_scale_is_set_aside(data: SimulatedFiles, tmp_path: Path) -> None:
    for path in (data.stack, data.particles):
        shutil.copy(path, tmp_path)
    loud = 5
    with open(tmp_path / data.stack.name, "r+b") as stack:
        stack.seek(1024 + 4 * BOX * BOX * loud)
        image = np.frombuffer(stack.read(4 * BOX * BOX), dtype="<f4")
        stack.seek(1024 + 4 * BOX * BOX * loud)
        stack.write((1e4 * image).astype("<f4").tobytes())
    assert refine(data, tmp_path / "out", "--iterations", 1, particles=tmp_path / data.particles.name) == 0
    rejected = StarFile.read(tmp_path / "out" / "rejected.star").table("rejected")
    assert rejected.integers("sparsecvRow").tolist() == [loud + 1]
    assert "standard deviation" in rejected.strings("sparsecvReason")[0]


def lose_posteriors(monkeypatch: pytest.MonkeyPatch, lost: range) -> None:
    """Make the images of some rows come out of the search without a posterior."""

    def find_without(ops: Any, volume: Any, batch: ImageBatch, *rest: Any) -> Posterior:
        found = find_posterior(ops, volume, batch, *rest)
        found.log_evidence[np.isin(batch.index, lost)] = np.nan
        return found

    monkeypatch.setattr("sparsecv.engine.refine.half.find_posterior", find_without)


def test_too_many_images_set_aside_on_the_way_are_listed(data: SimulatedFiles, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    lose_posteriors(monkeypatch, range(10, 13))
    assert refine(data, tmp_path) == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert "3 of 200 images cannot be used" in said and f"listed in {tmp_path / 'rejected.star'}" in said
    rejected = StarFile.read(tmp_path / "rejected.star").table("rejected")
    assert rejected.integers("sparsecvRow").tolist() == [11, 12, 13]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("most", "particles", "allowed"),
    [(0, 200, 0), (0, 10**6, 0), (1, 50, 1), (1, 200, 2), (0.5, 1000, 5), (29, 100, 29)],
)
def test_as_many_images_are_set_aside_as_was_said(most: float, particles: int, allowed: int) -> None:
    """One is always allowed, lest a single bad image stop a small set, but not where none is asked for."""
    settings = RefineSettings(particles="in.star", reference="start.mrc", output="out", most_rejected=most)
    check_rejected(settings, dict.fromkeys(range(allowed), "bad"), particles)
    with pytest.raises(InputError, match=f"{allowed + 1} of {particles} images cannot be used"):
        check_rejected(settings, dict.fromkeys(range(allowed + 1), "bad"), particles)


# --------------------------------------------------------------------------------------------------- wrong input
def refusal(capsys: pytest.CaptureFixture[str], data: SimulatedFiles, output: Path, *words: object,
            particles: Path | None = None) -> str:
    """The one line with which a refinement refuses its input; nothing has been iterated."""
    assert refine(data, output, *words, particles=particles) == cli.WRONG_INPUT
    said = capsys.readouterr()
    assert said.err.startswith("sparsecv: error: ") and said.err.count("\n") == 1, said.err
    assert "iteration" not in said.out and not list(output.glob("run_it*"))
    return said.err.removeprefix("sparsecv: error: ").rstrip()


def test_wrong_inputs_are_named_before_the_first_iteration(data: SimulatedFiles, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    wild, small = tmp_path / "wild.mrc", tmp_path / "small.mrc"
    write_map(wild, 3 * sphere(BOX, 12, 4), PIXEL_SIZE)
    write_map(small, sphere(BOX - 2, 12, 4), PIXEL_SIZE)
    assert refusal(capsys, data, out, particles=tmp_path / "absent.star") == (
        f"{tmp_path / 'absent.star'}: cannot be opened: No such file or directory; rule: a file that can be read; "
        "remedy: check its name, and the folder that it is looked for in"
    )
    assert refusal(capsys, data, out, "--reference", tmp_path / "absent.mrc") == (
        f"{tmp_path / 'absent.mrc'}: cannot be opened: No such file or directory; rule: a file that can be read; "
        "remedy: check its name, and the folder that it is looked for in"
    )
    assert refusal(capsys, data, out, "--mask", wild) == (
        f"{wild}: mask values outside [0, 1] (value (0.0, 3.0)); rule: 0 = solvent, 1 = particle; remedy: make a mask "
        "of the map; a density map is not a mask"
    )
    assert refusal(capsys, data, out, "--mask", small) == (
        f"{small}: mask and map differ in box size (value (30, 30, 30)); rule: shape (32, 32, 32); remedy: resample "
        "the mask to the map's box"
    )
    assert refusal(capsys, data, out, "--particle-diameter", 200) == (
        "particle_diameter: the particle is larger than its image (value 200.0); rule: at most the box, 160 A"
    )
    assert "one of Cn and Dn" in refusal(capsys, data, out, "--symmetry", "Q3")
    assert "orientations" in refusal(capsys, data, out, "--local")


def test_a_refused_command_leaves_an_earlier_run_alone(data: SimulatedFiles, short: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    assert refine(data, tmp_path, "--mask", tmp_path / "absent.mrc") == cli.WRONG_INPUT
    assert refine(data, tmp_path, *SHORT, "--continue", "--seed", 2) == cli.WRONG_INPUT
    assert "absent.mrc" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_reference_of_the_wrong_contrast_leaves_an_earlier_run_alone(data: SimulatedFiles, short: Path,
                                                                       tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    out = shutil.copytree(short, tmp_path / "out")
    inverted = tmp_path / "inverted.mrc"
    write_map(inverted, -read_map(data.reference).data, PIXEL_SIZE)
    before = contents(out)
    words = ("--local", "--reference", inverted)
    assert refine(data, out, *words, particles=data.truth) == cli.WRONG_INPUT
    assert "does not fit the images at their poses" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize("words", [["--halves"], ["--subset", "2"]])
def test_half_sets_that_are_not_there_are_not_reconstructed(data: SimulatedFiles, tmp_path: Path, words: list[str],
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.mrc"
    given = ["reconstruct", "--particles", str(data.truth), "--output", str(out), "--threads", "1", *words]
    assert cli.main(given) == cli.WRONG_INPUT
    number = 1 if words == ["--halves"] else 2
    assert f"{data.truth}: no particle is in half set {number}; rule: column rlnRandomSubset" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_reference_of_another_box_is_resampled_with_a_note(data: SimulatedFiles, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    big = tmp_path / "big.mrc"
    write_map(big, sphere(40, 12, 4), 4.0)
    assert refine(data, tmp_path, "--reference", big, "--mask", tmp_path / "absent.mrc") == cli.WRONG_INPUT
    assert f"warning: {big}: 40 px of 4 A resampled to 32 px of 5 A\n" in capsys.readouterr().out


def test_a_reference_whose_header_says_nothing_is_not_guessed_at(data: SimulatedFiles, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    unset = tmp_path / "unset.mrc"
    absent = ("--reference", unset, "--mask", tmp_path / "absent.mrc")  # ends the run once the reference is read
    write_map(unset, sphere(40, 12, 4), 1.0)
    said = refusal(capsys, data, tmp_path, *absent)
    assert said.startswith(f"{unset}: the pixel size in the header is 1 A") and "the images' (32 px of 5 A)" in said
    assert said.endswith("(value '40 px'); rule: a pixel size that is known; remedy: give the true one with "
                         "--reference-pixel-size, be it 1")
    for size in (4, 1):
        assert refine(data, tmp_path, *absent, "--reference-pixel-size", size) == cli.WRONG_INPUT
        assert f"warning: {unset}: 40 px of {size} A resampled to 32 px of 5 A\n" in capsys.readouterr().out
    write_map(unset, sphere(160, 12, 4), 1.0)  # 160 A, as the images: it must be true
    assert refine(data, tmp_path, *absent) == cli.WRONG_INPUT
    assert f"warning: {unset}: 160 px of 1 A resampled to 32 px of 5 A\n" in capsys.readouterr().out
    write_map(unset, sphere(BOX, 12, 4), 1.0)
    assert refine(data, tmp_path, *absent) == cli.WRONG_INPUT
    assert f"warning: {unset} has a pixel size of 1 A, which programs write" in capsys.readouterr().out


def test_a_run_goes_on_only_as_it_began(data: SimulatedFiles, short: Path, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    capsys.readouterr()
    assert refine(data, tmp_path, *SHORT, "--continue", "--seed", 2) == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said.startswith(f"sparsecv: error: {tmp_path}: the run that is to go on had seed = 1 (value 2)")


def test_a_run_goes_on_only_with_its_mask(data: SimulatedFiles, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    mask = tmp_path / "mask.mrc"
    write_map(mask, sphere(BOX, 10, 4), PIXEL_SIZE)
    words = ("--mask", mask, "--continue")
    assert refine(data, tmp_path / "out", *words, "--iterations", 2) == 0
    assert refine(data, tmp_path / "out", *words, "--iterations", 2) == 0
    write_map(mask, sphere(BOX, 12, 4), PIXEL_SIZE)  # another one under the same name
    capsys.readouterr()
    assert refine(data, tmp_path / "out", *words, "--iterations", 2) == cli.WRONG_INPUT
    assert "the run that is to go on had mask, digest = " in capsys.readouterr().err


def test_a_hard_mask_is_warned_of_once(data: SimulatedFiles, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    mask = tmp_path / "mask.mrc"
    write_map(mask, (sphere(BOX, 10, 4) > 0.5).astype(np.float32), PIXEL_SIZE)
    assert refine(data, tmp_path / "out", "--mask", mask, "--iterations", 1) == 0
    assert capsys.readouterr().out.count("has a hard edge") == 1
    warnings = json.loads((tmp_path / "out" / "status.json").read_text())["warnings"]
    assert [text.startswith(f"{mask}: has a hard edge") for text in warnings].count(True) == 1


def test_nothing_is_lost_when_a_run_cannot_go_on(data: SimulatedFiles, short: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    out = shutil.copytree(short, tmp_path / "out")
    for checkpoint in out.glob("run_it*_checkpoint.npz"):
        checkpoint.write_bytes(b"damaged")
    before = contents(out)
    assert refine(data, out, "--continue") == cli.WRONG_INPUT
    assert "no checkpoint can be read" in capsys.readouterr().err
    assert contents(out) == before


# --------------------------------------------------------------------------------------------------- symmetry expansion
def test_symmetry_expanded_particles_bring_no_evidence_but_their_own(
    data: SimulatedFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each image twice, as of two mates that happen to be alike: the resolution is that of the images once."""
    star = StarFile.read(data.truth)
    table = star.table("particles")
    names = [name.replace("@", f"@{data.truth.parent}/") for name in table.strings("rlnImageName")]
    table.set("rlnImageName", names)
    halves = np.random.default_rng(1).permutation(np.arange(len(names)) % 2) + 1
    table.set("rlnRandomSubset", halves)
    star.write(tmp_path / "once.star")
    table.keep(np.repeat(np.arange(len(names)), 2))
    star.write(tmp_path / "twice.star")
    assert refine(data, tmp_path / "run", "--local", particles=tmp_path / "twice.star") == 2
    assert "say --symmetry-expanded" in capsys.readouterr().err
    found = {}
    for name, words in (("once", ()), ("twice", ("--symmetry-expanded",))):
        words = ("--local", *SHORT, *words)
        assert refine(data, tmp_path / name, *words, particles=tmp_path / f"{name}.star") == 0
        found[name] = json.loads((tmp_path / name / "status.json").read_text())["history"][-1]
    shells = [BOX * PIXEL_SIZE / found[name]["crossing_05"] for name in ("once", "twice")]
    assert abs(shells[0] - shells[1]) < 1
    with pytest.raises(InputError, match="refined locally and in C1"):
        RefineSettings(particles=data.truth, reference=data.reference, output=tmp_path, symmetry_expanded=True)
