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
from sparsecv.engine.io.cryosparc import UID, cs_of_star, star_of_cs
from sparsecv.engine.io.cs_table import read_cs, write_cs
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
    star.write(tmp_path / "a.star")
    after, notes = cs_of_star(tmp_path / "a.star", before)
    assert notes == []
    for field in before.dtype.names:
        assert after[field].tobytes() == before[field].tobytes(), field
    alone, _ = cs_of_star(tmp_path / "a.star")  # without the original: what a STAR file can hold, and the rest named
    said = next(note for note in lost if "in the .cs file alone" in note)
    for field in set(before.dtype.names) - {"ctf/type", "alignments3D/pose"}:
        same = np.array_equal if before[field].dtype.kind == "S" else lambda a, b: a.tobytes() == b.tobytes()
        if field in alone.dtype.names and same(alone[field], before[field]):
            continue
        assert field in said or not before[field].any(), field
    # a turn by more than 180 degrees becomes the other vector of the same rotation
    rotations = Rotation.from_rotvec(before["alignments3D/pose"])
    assert (Rotation.from_rotvec(alone["alignments3D/pose"]) * rotations.inv()).magnitude().max() < 1e-6


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
    # fields spread over several files, more rows in one of them, and an older value in the last, which is not taken
    images = [name for name in rest if name == "uid" or name.startswith("blob")]
    optics = [name for name in rest if name == "uid" or name.startswith("ctf")]
    write_cs(tmp_path / "short.cs", table[poses][10:40])
    write_cs(tmp_path / "images.cs", table[images][::-1])
    older = table[[*optics, "alignments3D/split"]].copy()
    older["alignments3D/split"] = 1 - older["alignments3D/split"]
    write_cs(tmp_path / "optics.cs", older)
    joined = read_cs(tmp_path / "short.cs", [tmp_path / "images.cs", tmp_path / "optics.cs"])
    for name in table.dtype.names:
        np.testing.assert_array_equal(joined[name], table[name][10:40], err_msg=name)
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


def test_particles_that_may_be_several_are_refused(tmp_path):
    """Stacks of one name in two folders, copies of an image: nothing is taken for what it may not be."""
    random_star(tmp_path / "a.star")
    original, _ = cs_of_star(tmp_path / "a.star")
    double = np.concatenate([original, original[:1]])
    double["uid"][-1], double["blob/path"][-1] = 1, double["blob/path"][0].replace(b"far/", b"no/")
    with pytest.raises(InputError, match=r"row 1: several particles of the original may be meant.*csUid"):
        cs_of_star(tmp_path / "a.star", double)
    star, _ = star_of_cs(original, "a.cs")
    star.write(tmp_path / "uid.star")
    cs_of_star(tmp_path / "uid.star", double)  # csUid says which
    names = StarFile.read(tmp_path / "a.star").table("particles").strings("rlnImageName")
    random_star(tmp_path / "copies.star", rlnImageName=[*names[:1], *names[:-1]])
    with pytest.raises(InputError, match="row 2, column rlnImageName: the same particle as in row 1"):
        cs_of_star(tmp_path / "copies.star", original)
    copies, _ = cs_of_star(tmp_path / "copies.star")
    assert len(np.unique(copies["uid"])) == len(names)  # each its own, as after symmetry expansion


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
        ("ctf/tilt_A", np.nan, "row 6, ctf/tilt_A: not a finite number"),
        ("ctf/trefoil_A", -1e9, "row 6, ctf/trefoil_A: out of range"),
        ("ctf/accel_kv", 0, "10 to 3000 kV"), ("ctf/amp_contrast", 1.5, "row 6, ctf/amp_contrast: out of range"),
        ("blob/sign", 0, "row 6, blob/sign: a contrast of no sign"),
    ):
        with pytest.raises(InputError, match=message):
            star_of_cs(_spoiled(table, field, 5, value), "a.cs")
    write_cs(tmp_path / "twice.cs", _spoiled(table, "uid", 1, table["uid"][0]))
    write_cs(tmp_path / "plain.cs", np.zeros(3))
    write_cs(tmp_path / "nouid.cs", table[["blob/idx"]])
    (tmp_path / "text.cs").write_text("data_particles")
    (tmp_path / "packed.cs").write_bytes(b"\x95CSDAT\x12\x04\x00\x00{")  # as cryosparc-tools 5 begins it
    with (tmp_path / "pickle.cs").open("wb") as out:
        np.save(out, np.array([{"uid": 1}], dtype=object), allow_pickle=True)
    whole = (tmp_path / "twice.cs").read_bytes()
    (tmp_path / "cut.cs").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.cs").write_bytes(whole[:300])
    for name, message in (("twice", "a uid occurs twice"), ("plain", "no table of named fields"),
                          ("nouid", "no field uid"), ("text", "is no .cs file"),
                          ("packed", r"CSDAT.*Dataset.load\(OLD\).save\(NEW\)"),
                          ("pickle", "holds pickled objects"),
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
    assert main(["convert", first, str(tmp_path / "new" / "b.star")]) == 0
    assert (tmp_path / "b.toml").is_file() and UID in StarFile.read(second).table("particles")
    table = read_cs(first)
    for part in ("blob", "ctf"):
        write_cs(tmp_path / f"{part}.cs", table[[name for name in table.dtype.names if name.startswith(("uid", part))]])
    write_cs(tmp_path / "alone.cs", table[["uid", "alignments3D/shift", "alignments3D/pose"]])
    passed = ["--passthrough", str(tmp_path / "blob.cs"), "--passthrough", str(tmp_path / "ctf.cs")]
    assert main(["convert", str(tmp_path / "alone.cs"), str(tmp_path / "d.star"), *passed]) == 0
    assert main(["convert", "--config", str(tmp_path / "d.toml"), str(tmp_path / "alone.cs"),
                 str(tmp_path / "e.star")]) == 0  # fmt: skip
    assert (tmp_path / "d.star").read_bytes() == (tmp_path / "e.star").read_bytes()
    capsys.readouterr()
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


def test_what_a_cs_file_has_no_place_for_is_said(tmp_path):
    random_star(tmp_path / "a.star", rlnMicrographName=["m.mrc"] * COUNT, rlnNormCorrection=[1.0] * COUNT)
    star = StarFile.read(tmp_path / "a.star")
    star.table("optics").set("rlnCtfDataArePhaseFlipped", [1, 0])
    star.write(tmp_path / "a.star")
    _, notes = cs_of_star(tmp_path / "a.star")
    path = tmp_path / "a.star"
    assert notes == [f"{path}: not carried over: rlnCtfDataArePhaseFlipped",
                     f"{path}: a .cs file has no place for rlnMicrographName, rlnNormCorrection"]  # fmt: skip


def test_scale_of_each_particle_is_part_of_its_ctf_and_comes_back(tmp_path):
    """alignments3D/alpha multiplies the slice; blob/sign and ctf/scale are told from it on the way back."""
    random_star(tmp_path / "a.star", rlnCtfScalefactor=np.where(np.arange(COUNT) % 3, -1.5, 0.7))
    table, _ = cs_of_star(tmp_path / "a.star")
    table["alignments3D/alpha"] = np.random.default_rng(5).uniform(0.3, 3, COUNT)
    table["alignments3D/alpha"][:2] = 0, -0.5
    star, _ = star_of_cs(table, "a.cs")
    star.write(tmp_path / "b.star")
    scale = ParticleTable.read(tmp_path / "b.star", check_images=False).ctf_scale
    expected = table["blob/sign"].astype(float) * table["ctf/scale"] * table["alignments3D/alpha"]
    np.testing.assert_allclose(scale, expected, rtol=1e-8)
    for original in (None, table):
        back, _ = cs_of_star(tmp_path / "b.star", original)
        rows = slice(1 if original is None else 0, None)  # of a scale of 0 only the original knows more
        for field in ("alignments3D/alpha", "ctf/scale", "blob/sign"):
            assert back[field][rows].tobytes() == table[field][rows].tobytes(), field


def test_shifts_are_in_pixels_of_the_refinement(tmp_path):
    """A refinement of binned images: alignments3D/psize_A is not blob/psize_A."""
    random_star(tmp_path / "a.star")
    table, _ = cs_of_star(tmp_path / "a.star")
    table["alignments3D/psize_A"] *= 2
    star, notes = star_of_cs(table, "a.cs")
    assert notes == ["a.cs: in the .cs file alone, to which --original goes back: alignments3D/psize_A"]
    np.testing.assert_allclose(star.table("particles").floats("rlnOriginYAngst"),
                               table["alignments3D/shift"][:, 1] * 2.62, rtol=1e-6)  # fmt: skip
    star.write(tmp_path / "b.star")
    back, _ = cs_of_star(tmp_path / "b.star", table)
    assert back.tobytes() == table.tobytes()
    alone, _ = cs_of_star(tmp_path / "b.star")
    np.testing.assert_allclose(alone["alignments3D/shift"], 2 * table["alignments3D/shift"], rtol=1e-6)


def test_pixel_sizes_come_back_to_the_last_bit(tmp_path):
    """1.02734375, the pixel size of a crop in Fourier space, has more digits than six."""
    random_star(tmp_path / "a.star")
    table, _ = cs_of_star(tmp_path / "a.star")
    for value in (1.02734375, 1.31, 0.8285):
        for field in ("blob/psize_A", "alignments3D/psize_A"):
            table[field] = value
        star, _ = star_of_cs(table, "a.cs")
        star.write(tmp_path / "b.star")
        back, _ = cs_of_star(tmp_path / "b.star")
        assert back["blob/psize_A"].tobytes() == table["blob/psize_A"].tobytes()
        assert back["alignments3D/shift"].tobytes() == table["alignments3D/shift"].tobytes()


def test_sizes_of_images_come_from_stacks_where_a_file_of_relion_3_0_has_none(tmp_path, monkeypatch):
    from sparsecv.engine.io.mrc import write_stack

    monkeypatch.chdir(tmp_path)
    names = ("ImageName", "Voltage", "SphericalAberration", "AmplitudeContrast", "DefocusU", "DetectorPixelSize",
             "Magnification", "OriginX", "OriginY", "AngleRot", "AngleTilt", "AnglePsi")  # fmt: skip
    rows = "".join(f"{k}@a.mrcs 300 2.7 0.1 1e4 5 50000 1 -2 10 20 30\n" for k in (1, 2))
    (tmp_path / "old.star").write_text("data_\nloop_\n" + "".join(f"_rln{name}\n" for name in names) + rows)
    with pytest.raises(InputError, match="the stacks do not tell it"):
        cs_of_star("old.star")
    write_stack("a.mrcs", np.random.default_rng(1).normal(size=(2, 20, 20)).astype(np.float32), 1.0)
    table, _ = cs_of_star("old.star")
    np.testing.assert_array_equal(table["blob/shape"], [[20, 20], [20, 20]])
    np.testing.assert_array_equal(table["alignments3D/shift"], [[1, -2], [1, -2]])


def test_half_sets_of_the_original_are_kept_where_the_star_file_has_none(tmp_path):
    random_star(tmp_path / "a.star")
    original, _ = cs_of_star(tmp_path / "a.star")
    star = StarFile.read(tmp_path / "a.star")
    star.table("particles").drop("rlnRandomSubset")
    star.write(tmp_path / "b.star")
    after, notes = cs_of_star(tmp_path / "b.star", original)
    np.testing.assert_array_equal(after["alignments3D/split"], original["alignments3D/split"])
    assert notes == [f"{tmp_path / 'b.star'}: the particles have no half sets: those of the original are kept"]
    alone, notes = cs_of_star(tmp_path / "b.star")
    assert not alone["alignments3D/split"].any() and "all are in split 0" in notes[0]
