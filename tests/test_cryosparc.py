# SPDX-License-Identifier: GPL-3.0-or-later
"""cryoSPARC's tables: conventions against scipy, real files there and back, and what is refused."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sparsecv.cli import main
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.cryosparc import UID, cs_of_star, read_cs, star_of_cs, write_cs
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile

SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL = ["cryosparc_P12_J24_001_particles.cs", "t20s_J209_000.cs"]
COUNT = 1000


def random_star(path, seed=1, **more):
    """A STAR file with poses and CTFs at random, both poles among them; returns its columns."""
    rng = np.random.default_rng(seed)
    tilt = np.degrees(np.arccos(rng.uniform(-1, 1, COUNT)))
    tilt[:3], tilt[3:6] = 0, 180
    columns = {
        "rlnImageName": [f"{k + 1:06d}@far/stack_{k % 3}.mrcs" for k in range(COUNT)],
        "rlnDefocusU": rng.uniform(5000, 30000, COUNT), "rlnDefocusV": rng.uniform(5000, 30000, COUNT),
        "rlnDefocusAngle": rng.uniform(0, 180, COUNT), "rlnPhaseShift": rng.uniform(0, 120, COUNT),
        "rlnCtfBfactor": rng.uniform(0, 50, COUNT), "rlnCtfScalefactor": rng.uniform(0.5, 2, COUNT),
        "rlnAngleRot": rng.uniform(-180, 180, COUNT), "rlnAngleTilt": tilt,
        "rlnAnglePsi": rng.uniform(-180, 180, COUNT),
        "rlnOriginXAngst": rng.normal(size=COUNT) * 8, "rlnOriginYAngst": rng.normal(size=COUNT) * 8,
        "rlnRandomSubset": 1 + np.arange(COUNT) % 2, "rlnOpticsGroup": 1 + np.arange(COUNT) % 2,
    } | more  # fmt: skip
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["one", "two"], "rlnImagePixelSize": [1.31, 1.31],
        "rlnImageSize": [64, 64], "rlnImageDimensionality": [2, 2], "rlnVoltage": [300.0, 200.0],
        "rlnSphericalAberration": [2.7, 2.6], "rlnAmplitudeContrast": [0.1, 0.07]})  # fmt: skip
    star.add_loop("particles", columns)
    star.write(path)
    return columns


def there_and_back(path, folder):
    """A STAR file through a .cs file."""
    table, notes = cs_of_star(path)
    write_cs(folder / "there.cs", table)
    star, lost = star_of_cs(read_cs(folder / "there.cs"), folder / "there.cs")
    star.write(folder / "back.star")
    return folder / "back.star", notes, lost


def test_pose_and_shift_are_those_of_the_papers_conventions(tmp_path):
    columns = random_star(tmp_path / "a.star")
    table, notes = cs_of_star(tmp_path / "a.star")
    assert notes == []
    angles = np.stack([columns[f"rlnAngle{one}"] for one in ("Rot", "Tilt", "Psi")], axis=1)
    # exp([pose]) = A^T, and A is the transpose of scipy's ZYZ
    expected = Rotation.from_euler("ZYZ", angles, degrees=True)
    turned = Rotation.from_rotvec(table["alignments3D/pose"]) * expected.inv()
    assert np.abs(turned.magnitude()).max() < 1e-5
    np.testing.assert_allclose(table["alignments3D/shift"][:, 1] * 1.31, columns["rlnOriginYAngst"], atol=1e-5)
    np.testing.assert_array_equal(table["alignments3D/split"], np.arange(COUNT) % 2)
    np.testing.assert_allclose(table["ctf/df_angle_rad"], np.deg2rad(columns["rlnDefocusAngle"]), rtol=1e-6)
    np.testing.assert_array_equal(table["ctf/accel_kv"][:4], [300, 200, 300, 200])
    np.testing.assert_array_equal(table["blob/idx"], np.arange(COUNT))
    assert table["blob/path"][4] == b"far/stack_1.mrcs" and len(np.unique(table["uid"])) == COUNT


def test_poses_and_ctfs_survive(tmp_path):
    random_star(tmp_path / "a.star")
    back, _, lost = there_and_back(tmp_path / "a.star", tmp_path)
    assert lost == []
    first, second = (ParticleTable.read(path, check_images=False) for path in (tmp_path / "a.star", back))
    np.testing.assert_allclose(second.rotations, first.rotations, atol=1e-6)
    for name in ("shifts", "defocus_u", "defocus_v", "defocus_angle", "phase_shift", "ctf_bfactor", "ctf_scale"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), rtol=2e-7, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(second.halves, first.halves)
    optics = [[(g.pixel_size, g.box, g.voltage_kv, g.cs_mm, g.amplitude_contrast) for g in table.optics]
              for table in (first, second)]  # fmt: skip
    np.testing.assert_allclose(np.array(optics[1])[second.optics_index], np.array(optics[0])[first.optics_index])


def test_contrast_travels_in_the_sign(tmp_path):
    random_star(tmp_path / "a.star", rlnCtfScalefactor=np.where(np.arange(COUNT) % 2, -1.5, 1.5))
    table, _ = cs_of_star(tmp_path / "a.star")
    np.testing.assert_array_equal(table["blob/sign"], np.where(np.arange(COUNT) % 2, -1, 1))
    assert (table["ctf/scale"] == 1.5).all()
    back, _, _ = there_and_back(tmp_path / "a.star", tmp_path)
    np.testing.assert_array_equal(ParticleTable.read(back, check_images=False).ctf_scale,
                                  np.where(np.arange(COUNT) % 2, -1.5, 1.5))  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
@pytest.mark.parametrize("name", REAL)
def test_real_tables_come_back_without_loss(tmp_path, name):
    before = read_cs(SHARED / name)
    star, lost = star_of_cs(before, name)
    assert [note for note in lost if "not carried" in note] == []
    star.write(tmp_path / "a.star")
    after, _ = cs_of_star(tmp_path / "a.star", before)
    for field in before.dtype.names:
        if field == "alignments3D/pose":  # turns by more than 180 degrees are other vectors of the same rotation
            continue
        if before.dtype[field].base.kind == "f":
            np.testing.assert_allclose(after[field], before[field], rtol=3e-7, atol=2e-6, err_msg=field)
        else:
            np.testing.assert_array_equal(after[field], before[field], err_msg=field)
    alone, _ = cs_of_star(tmp_path / "a.star")  # without the original: all that a STAR file can hold
    for field in ("uid", "blob/path", "blob/idx", "blob/shape", "blob/sign", "ctf/exp_group_id", "alignments3D/split"):
        np.testing.assert_array_equal(alone[field], before[field], err_msg=field)
    rotations = Rotation.from_rotvec(before["alignments3D/pose"])
    for table in (after, alone):
        assert (Rotation.from_rotvec(table["alignments3D/pose"]) * rotations.inv()).magnitude().max() < 1e-5


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_sign_of_a_real_import_is_that_of_its_images():
    """EMPIAR-10076: the particles are darker than their surroundings, and blob/sign is -1."""
    from sparsecv.engine.io.mrc import ImageStack

    table = read_cs(SHARED / "empiar_10076_7.cs")
    star, _ = star_of_cs(table, "empiar_10076_7.cs")
    sign = np.sign(star.table("particles").floats("rlnCtfScalefactor"))
    images = ImageStack(SHARED / "empiar_10076_7.mrc").read(table["blob/idx"].astype(np.int64))
    y, x = np.indices(images.shape[1:]) - images.shape[1] // 2
    radius = np.hypot(x, y)
    contrast = images[:, radius < 60].mean(axis=1) - images[:, (radius > 120) & (radius < 150)].mean(axis=1)
    np.testing.assert_array_equal(np.sign(contrast), sign)


def test_passthrough_rows_are_found_by_uid(tmp_path):
    random_star(tmp_path / "a.star")
    table, _ = cs_of_star(tmp_path / "a.star")
    poses = [name for name in table.dtype.names if name == "uid" or name.startswith("alignments3D")]
    rest = [name for name in table.dtype.names if not name.startswith("alignments3D")]
    write_cs(tmp_path / "poses.cs", table[poses])
    write_cs(tmp_path / "rest.cs", table[rest][np.random.default_rng(2).permutation(COUNT)])
    joined = read_cs(tmp_path / "poses.cs", [tmp_path / "rest.cs"])
    for name in table.dtype.names:
        np.testing.assert_array_equal(joined[name], table[name], err_msg=name)
    write_cs(tmp_path / "short.cs", table[rest][1:])
    with pytest.raises(InputError, match="1 of 1000 particles are not in it"):
        read_cs(tmp_path / "poses.cs", [tmp_path / "short.cs"])
    with pytest.raises(InputError, match="passthrough"):
        star_of_cs(read_cs(tmp_path / "poses.cs"), "poses.cs")


def test_particles_are_found_in_the_original_by_image_too(tmp_path):
    """Poses refined by RELION, which has dropped the uid, go back into cryoSPARC's own table."""
    random_star(tmp_path / "a.star")
    original, _ = cs_of_star(tmp_path / "a.star")
    original["blob/path"] = [path.replace(b"far/", b">J1/")[:-1] for path in original["blob/path"]]  # .mrc
    random_star(tmp_path / "b.star", seed=7)
    after, _ = cs_of_star(tmp_path / "b.star", original[::-1])
    expected, _ = cs_of_star(tmp_path / "b.star")
    np.testing.assert_array_equal(after["uid"], original["uid"])
    np.testing.assert_array_equal(after["blob/path"], original["blob/path"])
    np.testing.assert_array_equal(after["alignments3D/pose"], expected["alignments3D/pose"])
    with pytest.raises(InputError, match="not in the original"):
        cs_of_star(tmp_path / "b.star", original[:10])


def test_terms_that_are_not_carried_are_named(tmp_path):
    random_star(tmp_path / "a.star")
    table, _ = cs_of_star(tmp_path / "a.star")
    table["ctf/tilt_A"][3] = 1e-3
    assert any("ctf/tilt_A" in note and "ctf/trefoil_A" not in note for note in star_of_cs(table, "a.cs")[1])


def _spoiled(table, field, row, value):
    spoiled = table.copy()
    spoiled[field][row] = value
    return spoiled


def test_bad_tables_are_refused(tmp_path):
    random_star(tmp_path / "a.star")
    table, _ = cs_of_star(tmp_path / "a.star")
    for field, value, message in (
        ("alignments3D/pose", np.nan, "row 6, alignments3D/pose: not a finite number"),
        ("ctf/df1_A", np.inf, "row 6, ctf/df1_A"),
        ("blob/shape", (64, 32), "not square"),
    ):
        with pytest.raises(InputError, match=message):
            star_of_cs(_spoiled(table, field, 5, value), "a.cs")
    write_cs(tmp_path / "twice.cs", _spoiled(table, "uid", 1, table["uid"][0]))
    write_cs(tmp_path / "plain.cs", np.zeros(3))
    write_cs(tmp_path / "nouid.cs", table[["blob/idx"]])
    (tmp_path / "text.cs").write_text("data_particles")
    with (tmp_path / "pickle.cs").open("wb") as out:
        np.save(out, np.array([{"uid": 1}], dtype=object), allow_pickle=True)
    whole = (tmp_path / "twice.cs").read_bytes()
    (tmp_path / "cut.cs").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.cs").write_bytes(whole[:300])
    for name, message in (("twice", "a uid occurs twice"), ("plain", "no table of named fields"),
                          ("nouid", "no field uid"), ("text", "is no .cs file"), ("pickle", "holds pickled objects"),
                          ("cut", "cannot be read"), ("header", "cannot be read"),
                          ("absent", "cannot be opened")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_cs(tmp_path / f"{name}.cs")
    with pytest.raises(InputError, match="no particles"):
        star_of_cs(table[:0], "a.cs")


def test_command(tmp_path, capsys):
    random_star(tmp_path / "a.star")
    first, second = str(tmp_path / "a.cs"), str(tmp_path / "b.star")
    assert main(["convert", str(tmp_path / "a.star"), first]) == 0
    assert main(["convert", first, second]) == 0
    assert f"written: {second}, 1000 particles" in capsys.readouterr().out
    assert (tmp_path / "b.toml").is_file() and UID in StarFile.read(second).table("particles")
    for arguments, message in (
        ([first, str(tmp_path / "c.cs")], "rule: .cs to .star, or .star to .cs"),
        ([second, first, "--original", first], "would be overwritten"),
        ([second, str(tmp_path / "c.cs"), "--passthrough", first], "give that file with --original"),
        ([first, str(tmp_path / "c.star"), "--original", first], "is kept only in a .cs file"),
    ):
        assert main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="RELION is not installed")
def test_relion_keeps_the_uid(tmp_path):
    random_star(tmp_path / "a.star")
    back, _, _ = there_and_back(tmp_path / "a.star", tmp_path)
    subprocess.run(["relion_star_handler", "--i", back, "--o", tmp_path / "selected.star", "--select",
                    "rlnDefocusU", "--minval", "15000"], check=True, capture_output=True)  # fmt: skip
    kept = StarFile.read(tmp_path / "selected.star").table("particles")
    table, _ = cs_of_star(tmp_path / "a.star")
    expected = [str(uid) for uid in table["uid"][table["ctf/df1_A"] >= 15000].tolist()]
    assert kept.strings(UID) == expected


def test_what_a_star_file_knows_of_optics_and_a_cs_file_does_not_is_said(tmp_path):
    random_star(tmp_path / "a.star")
    star = StarFile.read(tmp_path / "a.star")
    star.table("optics").set("rlnBeamTiltX", [0.0, 0.1])
    star.table("optics").set("rlnEvenZernike", ["[0,0,1]", "[0,0,0]"])
    star.write(tmp_path / "a.star")
    _, notes = cs_of_star(tmp_path / "a.star")
    assert notes == [f"{tmp_path / 'a.star'}: not carried over: rlnBeamTiltX, rlnBeamTiltY, rlnEvenZernike"]
