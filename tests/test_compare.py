# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinements side by side: planted motions of frames and changes of poses come back, and what is odd is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from halfmaps import half_maps

from sparsecv.cli import main
from sparsecv.engine.compare.comparison import compare
from sparsecv.engine.compare.files import numbers
from sparsecv.engine.compare.frame import Frame, changes, fit_frame, seen_from
from sparsecv.engine.compare.poses import pair
from sparsecv.engine.compare.runs import Particles, labels, read_run
from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.fourier import low_pass, resample
from sparsecv.engine.physics.geometry import angular_distance, matrix_to_euler, random_rotation, rotvec_to_matrix
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.report.compare import distributions, guinier_points

BOX, PIXEL_SIZE, COUNT = 32, 3.0, 60
TURN = Frame(rotvec_to_matrix(np.deg2rad([[5.0, -7.0, 4.0]]))[0], np.array([3.0, -2.0, 1.5]))


def poses(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.stack([random_rotation(rng) for _ in range(count)]), rng.normal(0, 4, (count, 2))


def in_frame(rotations: np.ndarray, shifts: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The same images in another frame: A' = A Q^T, o' = o + (A' t)_xy."""
    turned = rotations @ frame.rotation.T
    return turned, shifts + turned[:, :2] @ frame.shift


def perturbed(rotations: np.ndarray, degrees: float, seed: int = 2) -> np.ndarray:
    """Each turned by the same angle about an axis of its own."""
    axes = np.random.default_rng(seed).normal(size=(len(rotations), 3))
    axes *= np.deg2rad(degrees) / np.linalg.norm(axes, axis=1, keepdims=True)
    return rotvec_to_matrix(axes) @ rotations


def mates(rotations: np.ndarray, group: np.ndarray, seed: int = 3) -> np.ndarray:
    return rotations @ group[np.random.default_rng(seed).integers(len(group), size=len(rotations))]


# ---------------------------------------------------------------------------------------------- poses and frames
def test_a_planted_motion_of_the_frame_is_found_exactly() -> None:
    first = poses(COUNT)
    other = in_frame(*first, TURN)
    group = symmetry_matrices("C1")
    found = fit_frame(*first, *other, group)
    np.testing.assert_allclose(found.rotation, TURN.rotation, atol=1e-12)
    np.testing.assert_allclose(found.shift, TURN.shift, atol=1e-12)
    assert found.degrees == pytest.approx(np.sqrt(90))
    left = changes(*first, *other, group, found)
    assert left.turned.max() < 1e-5 and left.moved.max() < 1e-9
    before = changes(*first, *other, group, Frame.same())
    np.testing.assert_allclose(before.turned, np.sqrt(90), atol=1e-6)


def test_an_image_shows_a_point_where_it_was() -> None:
    """The motion taken from poses is that of the map: p moves to Q p + t, and its place in each image stays."""
    (rotations, shifts), point = poses(5), np.array([10.0, -4.0, 7.0])
    turned, moved = in_frame(rotations, shifts, TURN)
    there = TURN.rotation @ point + TURN.shift
    np.testing.assert_allclose(rotations[:, :2] @ point - shifts, turned[:, :2] @ there - moved, atol=1e-12)
    back = TURN.inverse()
    np.testing.assert_allclose(back.rotation @ there + back.shift, point, atol=1e-12)


def test_changes_of_known_angle_and_length_stay_behind_the_motion() -> None:
    first = poses(2000)
    rotations, shifts = in_frame(*first, TURN)
    angles = np.random.default_rng(4).uniform(0, 2 * np.pi, len(shifts))
    shifts = shifts + 0.7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    other = perturbed(rotations, 2.0), shifts
    group = symmetry_matrices("C1")
    found = fit_frame(*first, *other, group)
    assert angular_distance(found.rotation[None], TURN.rotation[None])[0] < 3 * 2.0 / np.sqrt(2000)
    left = changes(*first, *other, group, found)
    np.testing.assert_allclose(left.turned, 2.0, atol=0.15)
    assert np.median(left.moved) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("name", ["D2", "D7", "O"])
@pytest.mark.parametrize("other_has_it", [False, True])
def test_symmetry_mates_change_nothing(name: str, other_has_it: bool) -> None:
    group = symmetry_matrices(name)
    first = poses(200)
    other = mates(perturbed(first[0], 1.5), group), first[1]
    found = fit_frame(*first, *other, group, other_has_it=other_has_it)
    assert found.degrees < 1e-5 and found.angstrom < 1e-9, "no motion leaves the axes of such a group in place"
    for frame in (found, Frame.same()):
        left = changes(*first, *other, group, frame, other_has_it=other_has_it)
        np.testing.assert_allclose(left.turned, 1.5, atol=1e-4)


def test_cyclic_symmetry_leaves_a_turn_about_its_axis_and_a_shift_along_it() -> None:
    group = symmetry_matrices("C3")
    planted = Frame(rotvec_to_matrix(np.deg2rad([[0.0, 0.0, 20.0]]))[0], np.array([0.0, 0.0, 5.0]))
    first = poses(500)
    rotations, shifts = in_frame(*first, planted)
    found = fit_frame(*first, mates(perturbed(rotations, 1.0), group), shifts, group)
    np.testing.assert_allclose(found.rotation[2], [0, 0, 1], atol=1e-12)
    assert found.degrees == pytest.approx(20.0, abs=0.2)
    np.testing.assert_allclose(found.shift, planted.shift, atol=0.1)


def test_the_other_setting_of_a_dihedral_group_is_found() -> None:
    """D7 turned by half of its own angle has its 2-fold axes elsewhere: the smallest such turn is 360 / 28 degrees."""
    group = symmetry_matrices("D7")
    planted = Frame(rotvec_to_matrix(np.deg2rad([[0.0, 0.0, 180 / 7]]))[0], np.zeros(3))
    first = poses(200)
    rotations, shifts = in_frame(*first, planted)
    other = mates(rotations, group), shifts
    found = fit_frame(*first, *other, group)
    assert changes(*first, *other, group, found).turned.max() < 1e-5
    assert found.degrees == pytest.approx(180 / 7)


def test_a_symmetry_of_one_run_alone_is_taken_into_account() -> None:
    """The first run in C1 has found the particle turned and off centre; the other one has it on the axes of D2."""
    group = symmetry_matrices("D2")
    other = poses(300)
    first = in_frame(*other, TURN.inverse())
    other = mates(other[0], group), other[1]
    for case in ((first, other, True, TURN), (other, first, False, TURN.inverse())):
        found = fit_frame(*case[0], *case[1], group, other_has_it=case[2], is_shared=False)
        left = changes(*case[0], *case[1], group, found, other_has_it=case[2])
        assert left.turned.max() < 1e-5 and left.moved.max() < 1e-9
        assert found.angstrom == pytest.approx(case[3].angstrom)


def test_lost_particles_do_not_turn_the_frame() -> None:
    first = poses(400)
    rotations, shifts = in_frame(*first, TURN)
    rotations[:160], shifts[:160] = poses(160, seed=9)
    found = fit_frame(*first, rotations, shifts, symmetry_matrices("C1"))
    np.testing.assert_allclose(found.rotation, TURN.rotation, atol=1e-3)
    np.testing.assert_allclose(found.shift, TURN.shift, atol=1e-2)


def blob(centre: np.ndarray) -> np.ndarray:
    """A Gaussian of 2 voxels at a place (x, y, z) in voxels from the centre, float32."""
    axis = np.arange(BOX) - BOX // 2
    z, y, x = (axis - centre[k] for k in (2, 1, 0))
    return np.exp(-(x**2 + y[:, None] ** 2 + z[:, None, None] ** 2) / 8).astype(np.float32)


def test_a_map_is_moved_without_interpolation_error() -> None:
    place = np.array([4.0, -2.0, 3.0])
    there = TURN.rotation @ place + TURN.shift / PIXEL_SIZE
    np.testing.assert_allclose(seen_from(blob(there), TURN, PIXEL_SIZE), blob(place), atol=2e-4)


# ----------------------------------------------------------------------------------------------------- particles
def particles(stacks: tuple[str, ...], images: list[int], ids: list[int] | None = None) -> Particles:
    count = len(images)
    index = np.arange(count, dtype=np.int32) % len(stacks)
    return Particles(np.tile(np.eye(3), (count, 1, 1)), np.zeros((count, 2)), np.ones(count, np.int8), stacks, index,
                     np.array(images), None if ids is None else np.array(ids))


def test_particles_are_found_again_by_name_then_file_then_identifier() -> None:
    first = particles(("job1/a.mrcs", "job1/b.mrcs"), [0, 0, 1, 1], [11, 12, 13, 14])
    found = pair(first, particles(("./job1/b.mrcs", "job1/a.mrcs"), [1, 0, 5], [90, 91, 92]))
    assert found.found_by == "rlnImageName" and (found.first.tolist(), found.other.tolist()) == ([0, 3], [1, 0])
    found = pair(first, particles(("job2/a.mrcs", "job2/b.mrcs"), [1, 1], [11, 12]))
    assert found.found_by == "the file names in rlnImageName" and found.first.tolist() == [2, 3]
    found = pair(first, particles(("x/a.mrcs", "y/a.mrcs"), [1, 1], [14, 11]))
    assert found.found_by == "rlnImageId" and (found.first.tolist(), found.other.tolist()) == ([0, 3], [1, 0])
    assert len(pair(first, replace(first, stacks=("c", "d"), identifiers=None)).first) == 0


def test_runs_of_one_name_are_told_apart() -> None:
    assert labels([Path("a/run"), Path("b/other")]) == ["run", "other"]
    assert labels([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]


# -------------------------------------------------------------------------------------------------- distributions
def test_shares_of_particles_add_up() -> None:
    values = {"a": np.arange(1000) / 100.0, "b": np.zeros(10)}
    found = distributions(values | {"c": None}, 0.1)
    assert found.pop("c") is None
    assert found["a"].edges[-1] == pytest.approx(np.quantile(values["a"], 0.98))
    for one in found.values():
        assert one.shares.sum() + one.beyond == pytest.approx(100)
        assert one.cumulative[-1] == pytest.approx(100 - one.beyond)
    assert distributions({"b": values["b"]}, 0.1)["b"].edges[-1] == 0.1


def test_guinier_points_leave_out_empty_shells() -> None:
    k2 = np.linspace(0, 0.1, 11)
    logs = 3 - 25 * k2
    logs[8:] = -99
    x, y = guinier_points(k2, logs, 10.0)
    np.testing.assert_allclose(x, k2[1:8])
    np.testing.assert_allclose(y, -25 * (x - 0.01), atol=1e-12)


# ---------------------------------------------------------------------------------------------------- the command
def write_run(
    folder: Path, halves: tuple[np.ndarray, np.ndarray], rotations: np.ndarray, shifts: np.ndarray, *,
    pixel_size: float = PIXEL_SIZE, symmetry: str = "C1", state: str = "finished", stack: str = "particles.mrcs",
) -> Path:  # fmt: skip
    """The results of a refinement that a comparison reads."""
    folder.mkdir(parents=True)
    for number, half in enumerate(halves):
        write_map(folder / f"run_half{number + 1}_class001_unfil.mrc", half, pixel_size)
    shown = low_pass((halves[0] + halves[1]) / 2, pixel_size, 10.0)
    write_map(folder / "run_class001.mrc", shown, pixel_size)
    star = StarFile.new()
    star.add_loop("optics", {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0],
                             "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1],
                             "rlnImagePixelSize": [PIXEL_SIZE], "rlnImageSize": [BOX], "rlnImageDimensionality": [2]})
    angles, count = matrix_to_euler(rotations), len(rotations)
    star.add_loop("particles", {
        "rlnImageName": [f"{n + 1:06d}@{stack}" for n in range(count)], "rlnOpticsGroup": [1] * count,
        "rlnDefocusU": [15000.0] * count, "rlnDefocusV": [15000.0] * count, "rlnDefocusAngle": [0.0] * count,
        "rlnAngleRot": angles[:, 0], "rlnAngleTilt": angles[:, 1], "rlnAnglePsi": angles[:, 2],
        "rlnOriginXAngst": shifts[:, 0], "rlnOriginYAngst": shifts[:, 1],
        "rlnRandomSubset": [n % 2 + 1 for n in range(count)],
    })  # fmt: skip
    star.write(folder / "run_data.star")
    (folder / "run.toml").write_text(f'[refine]\nregulariser = "wiener"\nsymmetry = "{symmetry}"\n')
    (folder / "status.json").write_text(json.dumps({"state": state, "wall_seconds": 120.0, "cpu_seconds": 90}))
    return folder


@pytest.fixture(scope="module")
def halves() -> tuple[np.ndarray, np.ndarray]:
    """Without the corners, and the frequencies there, that no other frame has."""
    return tuple(low_pass(half, PIXEL_SIZE, 6.5) for half in half_maps(BOX, PIXEL_SIZE, bfactor=150, noise=0.06))


@pytest.fixture(scope="module")
def first(halves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first", halves, *poses(COUNT))


def run(*words: object) -> int:
    return main(["compare", *map(str, words), "--threads", "1"])


def compared(*folders: Path, mask: Path | None = None) -> dict:
    """What compare.json would say."""
    runs = [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    return numbers(compare(runs, mask=mask))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("sparsecv: error: ") and said.count("\n") == 1, said
    return said.removeprefix("sparsecv: error: ").rstrip()


def test_a_run_and_its_copy_are_the_same(first, tmp_path, capsys) -> None:
    copy = shutil.copytree(first, tmp_path / "_copy$\\frac$ <b>&")
    out = tmp_path / "out"
    assert run(first, copy, "--output", out) == 0
    found = json.loads((out / "compare.json").read_text())
    shown = capsys.readouterr()
    assert "first" in shown.out and copy.name in shown.out and "compare.html" in shown.out
    one, two = found["runs"].values()
    assert two["maps"]["fsc"] == pytest.approx([1.0] * (BOX // 2 + 1)) and two["maps"]["difference"] < 1e-5
    assert two["poses"]["turned_deg"]["quantiles"]["0.95"] < 1e-4
    assert two["poses"]["moved_A"]["quantiles"]["0.95"] < 1e-4
    assert not two["maps"]["moved"] and two["poses"]["in_another_half_set"] == 0
    for key in ("resolution_0143", "bfactor", "bfactor_common_range", "fsc", "guinier"):
        assert one[key] == two[key], key
    assert (one["cpu_s"], one["prior"], one["particles"], one["symmetry"]) == (90, "wiener", COUNT, "C1")
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert "Half maps" in page and "<link" not in page and 'src="http' not in page
    assert "_copy$\\frac$ &lt;b&gt;&amp;" in page and "<b>" not in page
    pictures = {"compare_fsc.png", "compare_map_fsc.png", "compare_poses.png", "compare_guinier.png",
                "compare_average.png", "compare_shown.png", "compare_difference.png"}
    assert {path.name for path in out.iterdir()} == {"compare.html", "compare.json", "compare.toml", *pictures}
    assert main(["compare", "--config", str(out / "compare.toml"), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "compare.json").read_bytes() == (out / "compare.json").read_bytes()


def test_runs_in_another_frame_are_superposed(first, halves, tmp_path) -> None:
    """Half maps of the other run are judged where they are, in the mask brought to them; averages are brought back."""
    moved = tuple(seen_from(half, TURN.inverse(), PIXEL_SIZE) for half in halves)
    other = write_run(tmp_path / "moved", moved, *in_frame(*poses(COUNT), TURN))
    found = compared(first, other)
    one, two = found["runs"].values()
    frame = two["poses"]["frame"]
    assert frame["degrees"] == pytest.approx(TURN.degrees, abs=1e-4)
    np.testing.assert_allclose(frame["shift_A"], TURN.shift, atol=1e-4)
    assert two["maps"]["moved"]
    shells = slice(1, 12)
    assert min(two["maps"]["fsc"][shells]) > 0.98 and min(two["maps"]["fsc_as_they_are"][shells]) < 0.5
    np.testing.assert_allclose(one["fsc"]["masked"][shells], two["fsc"]["masked"][shells], atol=0.05)
    assert two["poses"]["turned_as_they_are_deg"]["quantiles"]["0.5"] == pytest.approx(TURN.degrees, abs=1e-3)
    assert two["poses"]["turned_deg"]["quantiles"]["0.5"] < 1e-4
    said = "moved: the particle is turned by 9.49 degrees and moved by 3.91 A against first; this motion is taken out"
    assert [text.startswith(said) for text in found["warnings"]] == [True]


def test_the_coarsest_grid_is_common(first, halves, tmp_path) -> None:
    coarse = tuple(resample(half, PIXEL_SIZE, 24, 4.0) for half in halves)
    other = write_run(tmp_path / "coarse", coarse, *poses(COUNT), pixel_size=4.0)
    for words in ((first, other), (other, first)):
        found = compared(*words)
        assert found["grid"] == {"box": 24, "pixel_size_A": 4.0}
        assert found["notes"] == ["first: maps brought from voxels of 3 A to 4 A in Fourier space"]
        second = found["runs"][words[1].name]
        np.testing.assert_allclose(second["maps"]["fsc"][:11], 1, atol=0.01)
    smaller = tuple(half[2:30, 2:30, 2:30] for half in halves)
    other = write_run(tmp_path / "smaller", smaller, *poses(COUNT))
    found = compared(first, other)
    assert found["grid"] == {"box": 28, "pixel_size_A": PIXEL_SIZE}
    assert any(text.startswith(f"{first}: its box of 96.0 A is larger") for text in found["warnings"])


def test_what_is_doubtful_is_said(first, halves, tmp_path) -> None:
    rotations, shifts = poses(COUNT)
    other = write_run(tmp_path / "other", halves, rotations[10:], shifts[10:], symmetry="C3", state="running")
    names = StarFile.read(other / "run_data.star")
    table = names.table("particles")
    table.set("rlnImageName", [f"{n + 11:06d}@elsewhere/particles.mrcs" for n in range(COUNT - 10)])
    table.set("rlnRandomSubset", [1, 2] * 15 + [2, 1] * 10)
    names.write(other / "run_data.star")
    (other / "run_class001.mrc").unlink()
    found = compared(first, other)
    for text in (
        "the run is not finished (state 'running')", "differ in symmetry (C1: first; C3: other)",
        "0 particles that first has not, 10 are missing", "20 of 50 particles are in another half set",
    ):  # fmt: skip
        assert any(text in warning for warning in found["warnings"]), text
    second = found["runs"]["other"]["poses"]
    assert second["found_by"] == "the file names in rlnImageName" and second["common"] == 50
    shutil.copytree(first, tmp_path / "bare")
    for name in ("run.toml", "status.json"):
        (tmp_path / "bare" / name).unlink()
    star = StarFile.read(tmp_path / "bare" / "run_data.star")
    star.table("particles").set("rlnImageName", [f"{n + 1}@others.mrcs" for n in range(COUNT)])
    star.write(tmp_path / "bare" / "run_data.star")
    found = compared(first, tmp_path / "bare")
    bare, said = found["runs"]["bare"], "\n".join(found["warnings"])
    assert bare["poses"] is None and bare["prior"] == "-" and bare["cpu_s"] is None
    assert "C1 is assumed" in said and "too few particles in common" in said


def test_unrelated_poses_leave_the_maps_where_they_are(first, halves, tmp_path) -> None:
    other = write_run(tmp_path / "lost", halves, *poses(COUNT, seed=8))
    found = compared(first, other)
    lost = found["runs"]["lost"]
    assert not lost["poses"]["frame"]["is_known"] and not lost["maps"]["moved"]
    assert lost["maps"]["fsc"] == pytest.approx([1.0] * (BOX // 2 + 1))
    assert any("no common motion can be told" in text for text in found["warnings"])


def test_relion_folders_say_their_symmetry(first, halves, tmp_path) -> None:
    other = write_run(tmp_path / "relion", halves, *poses(COUNT))
    for name in ("run.toml", "status.json"):
        (other / name).unlink()
    star = StarFile.new()
    star.add_pairs("sampling_general", {"rlnSymmetryGroup": "c1"})
    star.write(other / "run_sampling.star")
    found = compared(first, other)
    assert (found["runs"]["relion"]["symmetry"], found["runs"]["relion"]["prior"]) == ("C1", "RELION")
    assert found["warnings"] == []


def test_the_mask_given_is_used(first, tmp_path) -> None:
    copy = shutil.copytree(first, tmp_path / "copy")
    mask = np.clip(2 * blob(np.zeros(3)), 0, 1)
    write_map(tmp_path / "mask.mrc", mask, PIXEL_SIZE)
    found = compared(first, copy, mask=tmp_path / "mask.mrc")["mask"]
    assert found == {"source": str(tmp_path / "mask.mrc"), "fraction": pytest.approx(np.mean(mask > 0.5))}
    shutil.copy(tmp_path / "mask.mrc", copy / "postprocess_mask.mrc")
    assert compared(copy, first)["mask"]["source"] == "postprocess_mask.mrc of copy"


def test_wrong_runs_are_named_before_anything_is_written(first, halves, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert refused(capsys, "--output", out).startswith("RUNS missing; remedy: give it on the command line")
    assert refused(capsys, first, "--output", out).startswith("RUNS: a single run (value 1); rule: two or more")
    again = first / ".." / first.name
    assert refused(capsys, first, again, "--output", out).startswith(f"{again}: the same folder as {first}")
    gone = tmp_path / "gone"
    assert refused(capsys, first, gone, "--output", out).startswith(f"{gone}: no such folder")
    bad = shutil.copytree(first, tmp_path / "bad")
    words = (first, bad, "--output", out)
    half = bad / "run_half2_class001_unfil.mrc"
    write_map(half, halves[0], PIXEL_SIZE)
    assert refused(capsys, *words).startswith(f"{half}: the two half maps are identical")
    write_map(half, np.zeros_like(halves[0]), PIXEL_SIZE)
    assert refused(capsys, *words).startswith(f"{half}: the map is flat")
    write_map(half, halves[1], 2 * PIXEL_SIZE)
    assert refused(capsys, *words).startswith(f"{half}: box or pixel size differs")
    half.unlink()
    assert refused(capsys, *words).startswith(f"{bad}: no {half.name} in it")
    write_map(half, halves[1], PIXEL_SIZE)
    (bad / "run_data.star").unlink()
    assert refused(capsys, *words).startswith(f"{bad}: no run_data.star in it")
    assert refused(capsys, *words, "--symmetry", "C3v").startswith("symmetry: point groups with mirrors")
    assert not out.exists()


def test_wrong_masks_and_places_are_refused(first, halves, tmp_path, capsys) -> None:
    other = shutil.copytree(first, tmp_path / "other")
    out = tmp_path / "out"
    write_map(tmp_path / "mask.mrc", np.ones((BOX + 2,) * 3), PIXEL_SIZE)
    assert str(tmp_path / "mask.mrc") in refused(capsys, first, other, "--output", out, "--mask", tmp_path / "mask.mrc")
    assert not out.exists()
    place = tmp_path / "mask.mrc"
    assert refused(capsys, first, other, "--output", place).startswith(f"{place}: is no folder")
    mask = out / "compare_average.png"  # an odd name for one, but an input is never overwritten
    out.mkdir()
    write_map(mask, np.clip(2 * blob(np.zeros(3)), 0, 1), PIXEL_SIZE)
    assert refused(capsys, first, other, "--output", out, "--mask", mask).startswith(f"{mask}: would be overwritten")
