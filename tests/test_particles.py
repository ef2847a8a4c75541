# SPDX-License-Identifier: GPL-3.0-or-later
"""The particle table: what it reads, what it refuses and how, what it writes, and RELION as an independent reader."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import ImageStack, write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
BOX, COUNT = 16, 12
relion = pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")


def images(seed=1, count=COUNT // 2):
    return np.random.default_rng(seed).normal(size=(count, BOX, BOX)).astype(np.float32)


def columns():
    """Twelve particles in two stacks, listed alternately and backwards."""
    rng = np.random.default_rng(5)
    names = [f"{COUNT // 2 - row // 2:06d}@{'ab'[row % 2]}.mrcs" for row in range(COUNT)]
    return {
        "rlnImageName": names,
        "rlnMicrographName": [f"mic{row // 4}.mrc" for row in range(COUNT)],
        "rlnDefocusU": rng.uniform(1e4, 2e4, COUNT),
        "rlnDefocusV": rng.uniform(1e4, 2e4, COUNT),
        "rlnDefocusAngle": rng.uniform(-90, 90, COUNT),
        "rlnAngleRot": rng.uniform(-180, 180, COUNT),
        "rlnAngleTilt": rng.uniform(0, 180, COUNT),
        "rlnAnglePsi": rng.uniform(-180, 180, COUNT),
        "rlnOriginXAngst": rng.normal(0, 5, COUNT),
        "rlnOriginYAngst": rng.normal(0, 5, COUNT),
        "rlnRandomSubset": [1 + row % 2 for row in range(COUNT)],
        "rlnOpticsGroup": [7 if row < 5 else 3 for row in range(COUNT)],
    }


def optics():
    return {
        "rlnOpticsGroup": [3, 7],
        "rlnOpticsGroupName": ["late", "early"],
        "rlnVoltage": [300.0, 200.0],
        "rlnSphericalAberration": [2.7, 1.4],
        "rlnAmplitudeContrast": [0.1, 0.07],
        "rlnImagePixelSize": [1.5, 1.5],
        "rlnImageSize": [BOX, BOX],
        "rlnImageDimensionality": [2, 2],
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_stack(tmp_path / "a.mrcs", images(1), 1.5)
    write_stack(tmp_path / "b.mrcs", images(2), 1.5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, particles=None, groups=None):
    star = StarFile.new()
    star.add_loop("optics", groups or optics())
    star.add_loop("particles", particles or columns())
    star.write(path)
    return path


def write_old(path):
    """The same particles as RELION 3.0 had them: no optics table, origins in pixels."""
    old = columns()
    groups = [0 if number == 3 else 1 for number in old.pop("rlnOpticsGroup")]
    for axis in "XY":
        old[f"rlnOrigin{axis}"] = old.pop(f"rlnOrigin{axis}Angst") / 1.5
    old["rlnMagnification"] = np.full(COUNT, 40000.0)
    old["rlnDetectorPixelSize"] = np.full(COUNT, 6.0)
    for column in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        old[column] = np.array(optics()[column])[groups]
    star = StarFile.new()
    star.add_loop("images", old)
    star._comments.clear()
    star.write(path)
    return path


def changed(column, row, value, *, table=None):
    given = table or columns()
    given[column] = [*given[column]] if column in given else [0] * len(next(iter(given.values())))
    given[column][row] = value
    return given


def refused(path, **options):
    with pytest.raises(InputError) as caught:
        ParticleTable.read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_table_holds_what_the_file_says(project):
    table = ParticleTable.read(write(project / "in.star"))
    given = columns()
    assert len(table) == COUNT
    assert (table.box, table.pixel_size) == (BOX, 1.5)
    assert [table.optics[i].name for i in table.optics_index] == ["early"] * 5 + ["late"] * 7
    np.testing.assert_allclose(table.defocus_u, given["rlnDefocusU"], rtol=1e-8)
    np.testing.assert_allclose(table.shifts[:, 1], given["rlnOriginYAngst"], rtol=1e-8)
    np.testing.assert_array_equal(table.phase_shift, 0)
    np.testing.assert_array_equal(table.ctf_scale, 1)
    np.testing.assert_array_equal(table.halves, given["rlnRandomSubset"])
    np.testing.assert_array_equal(table.micrograph_index, np.arange(COUNT) // 4)
    assert table.group_names == ("mic0.mrc", "mic1.mrc", "mic2.mrc")
    euler = np.stack([given[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")], axis=1)
    expected = Rotation.from_euler("ZYZ", euler, degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(table.rotations, expected, atol=1e-7)
    ctf = table.ctf_parameters()
    assert ctf.voltage_kv.tolist() == [200.0] * 5 + [300.0] * 7
    assert table.warnings == ()


def test_images_come_in_the_order_asked(project):
    table = ParticleTable.read(write(project / "in.star"))
    found, good = table.read_images([3, 0, 11, 3])
    expected = [images(2)[4], images(1)[5], images(2)[0], images(2)[4]]
    np.testing.assert_array_equal(found, expected)
    assert good.all()
    part = table.select(table.halves == 2)
    np.testing.assert_array_equal(part.read_images([0])[0][0], images(2)[5])
    assert part.identifiers.tolist() == list(range(1, COUNT, 2))
    assert table.read_images([])[0].shape == (0, BOX, BOX)
    assert len(table.select([])) == 0


def test_bad_images_are_set_aside_not_fatal(project):
    stack = images(1)
    stack[0, 3, 4], stack[1, 0, 0], stack[2], stack[3, 1, 1] = np.nan, -np.inf, 4.0, 1e30
    write_stack(project / "a.mrcs", stack, 1.5)
    table = ParticleTable.read(write(project / "in.star"))
    rows = [10, 8, 6, 4, 2]  # images 1 to 5 of a.mrcs
    found, good = table.read_images(rows)
    assert good.tolist() == [False, False, False, False, True]
    assert not found[:4].any()
    not_finite = "image holds NaN or infinite values"
    assert table.image_faults(rows) == [not_finite, not_finite, "image is constant", "image values beyond 1e15", ""]


@pytest.mark.parametrize("older", [False, True])
def test_versions_give_the_same_table(project, older):
    new = ParticleTable.read(write(project / "new.star"))
    old = ParticleTable.read(write_old(project / "old.star"))
    if older:  # what we write of an old file is a new one
        old.write(project / "upgraded.star")
        assert StarFile.read("upgraded.star").names == ["optics", "particles"]
        assert "rlnOriginX" not in StarFile.read("upgraded.star").table("particles")
        old = ParticleTable.read("upgraded.star")
    for name in ("defocus_u", "defocus_angle", "shifts", "angles", "stack_index", "image_index", "halves"):
        np.testing.assert_allclose(getattr(old, name), getattr(new, name), rtol=1e-6, atol=1e-6)
    assert (old.pixel_size, old.box) == (1.5, BOX)
    for name in ("voltage_kv", "cs_mm", "amplitude_contrast"):
        np.testing.assert_array_equal(getattr(old.ctf_parameters(), name), getattr(new.ctf_parameters(), name))


def test_assumptions_are_said(project):
    groups = optics()
    del groups["rlnAmplitudeContrast"]
    groups["rlnBeamTiltX"], groups["rlnBeamTiltY"] = [0.0, 0.0], [0.0, -0.1]
    groups["rlnOddZernike"], groups["rlnEvenZernike"] = ["[0,0,0]"] * 2, ["[0,1e-3]", "[0,0]"]
    for name, value in (("00", 1.0), ("01", 0.0), ("10", 0.0), ("11", 1.0)):
        groups[f"rlnMagMat{name}"] = [value, value]
    write_stack(project / "b.mrcs", images(2), 1.6)
    table = ParticleTable.read(write(project / "in.star", groups=groups))
    assert table.optics[0].amplitude_contrast == 0.1
    text = " | ".join(table.warnings)
    assert "no rlnAmplitudeContrast; 0.1 is assumed" in text
    assert "1 stacks have another pixel size" in text
    assert len(table.warnings) == 2  # aberrations are modelled, and nothing is said of them


@pytest.mark.parametrize(
    ("column", "row", "value", "parts"),
    [
        ("rlnDefocusU", 4, "nan", ["row 5, column rlnDefocusU", "'nan'", "a finite number"]),
        ("rlnDefocusV", 2, 2e6, ["row 3, column rlnDefocusV", "impossible defocus", "below 1e6 A"]),
        ("rlnAnglePsi", 0, "inf", ["row 1, column rlnAnglePsi"]),
        ("rlnRandomSubset", 1, 3, ["row 2, column rlnRandomSubset", "not a half set", "1 or 2"]),
        ("rlnRandomSubset", 1, 0, ["row 2, column rlnRandomSubset", "not a half set"]),
        ("rlnImageName", 3, "000007@a.mrcs", ["row 4, column rlnImageName", "no such image", "6 images are in it"]),
        ("rlnImageName", 3, "0@a.mrcs", ["row 4", "not an image name"]),
        ("rlnImageName", 3, "x@a.mrcs", ["row 4", "not an image name"]),
        ("rlnImageName", 3, "3@", ["row 4", "not an image name"]),
        ("rlnImageName", 3, "99999999999999999999999@a.mrcs", ["row 4", "not an image name"]),
        ("rlnImageName", 3, "6@a.mrcs", ["row 4, column rlnImageName", "the same image as in row 1"]),
        ("rlnImageName", 3, "6@./a.mrcs", ["the same image as in row 1"]),
        ("rlnImageName", 3, "6@gone.mrcs", ["row 4", "1 of 3 stacks are missing", "tried ", "--data-dir"]),
        ("rlnImageName", 3, "1@/dev/zero", ["row 4", "is a device"]),
        ("rlnImageName", 3, "1@../../../../../../../../../etc/passwd", ["row 4", "cannot be used"]),
        ("rlnOpticsGroup", 3, 5, ["row 4", "no such optics group", "groups are 3, 7"]),
        ("rlnTomoName", 0, 1, ["tomography particles", "column rlnTomoName"]),
        ("rlnHelicalTubeID", 0, 1, ["column rlnHelicalTubeID", "segments of a helix", "drop the column"]),
    ],
)
def test_bad_particles_are_refused_with_their_place(project, column, row, value, parts):
    message = refused(write(project / "in.star", changed(column, row, value)))
    for part in ["in.star", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("column", "value", "parts"),
    [
        ("rlnVoltage", 0.0, ["data_optics, row 2, column rlnVoltage", "10 to 3000 kV"]),
        ("rlnVoltage", 300000.0, ["10 to 3000 kV"]),
        ("rlnSphericalAberration", -1.0, ["0 to 100 mm"]),
        ("rlnAmplitudeContrast", 1.5, ["0 to 1"]),
        ("rlnImagePixelSize", 0.0, ["0 < pixel size"]),
        ("rlnImagePixelSize", 9.0, ["optics groups differ too much in pixel size", "late and early", "factor of 4"]),
        ("rlnImageSize", 32, ["row 1", "images of 16 pixels", "32 pixels by the optics group's rlnImageSize"]),
        ("rlnMagMat00", 2.0, ["row 2, column rlnMagMat00", "no anisotropic magnification", "within 0.2"]),
        ("rlnOpticsGroup", 3, ["row 2", "an optics group occurs twice"]),
        ("rlnImageDimensionality", 3, ["subtomograms"]),
    ],
)
def test_bad_optics_are_refused_with_their_place(project, column, value, parts):
    matrix = {f"rlnMagMat{name}": [float(name in ("00", "11"))] * 2 for name in ("00", "01", "10", "11")}
    message = refused(write(project / "in.star", groups=changed(column, 1, value, table=optics() | matrix)))
    for part in ["in.star", *parts]:
        assert part in message


def test_missing_columns_and_tables(project):
    for column in ("rlnDefocusU", "rlnOpticsGroup"):
        given = columns()
        del given[column]
        assert f"column {column} is missing" in refused(write(project / "in.star", given))
    for column, message in (("rlnVoltage", "column rlnVoltage is missing"), ("rlnImagePixelSize", "no pixel size")):
        groups = optics()
        del groups[column]
        assert message in refused(write(project / "in.star", groups=groups))
    star = StarFile.new()
    star.add_loop("micrographs", {"rlnMicrographName": ["a.mrc"]})
    star.write("mics.star")
    assert "no particles (value ['data_micrographs'])" in refused("mics.star")
    few = {name: values[:1] for name, values in columns().items()}
    assert "too few particles (value 1)" in refused(write(project / "in.star", few))
    assert "too few particles (value 0)" in refused(write(project / "in.star", {name: [] for name in few}))


def test_boxes(project):
    write_stack(project / "b.mrcs", np.zeros((6, 20, 20), dtype=np.float32), 1.5)
    assert "images of 20 pixels" in refused(write(project / "in.star"))
    groups = optics()
    del groups["rlnImageSize"]
    assert "16 pixels by" in refused(write(project / "in.star", groups=groups))
    for name in "ab":
        write_stack(project / f"{name}.mrcs", np.zeros((6, 15, 15), dtype=np.float32), 1.5)
    assert "box too small" in refused(write(project / "in.star", groups=groups))


def test_half_sets_that_are_not_independent(project):
    given = columns()
    given["rlnRandomSubset"] = [2] * COUNT
    path = write(project / "in.star", given)
    assert "all particles are in half set 2" in refused(path)
    assert "half set 2" in ParticleTable.read(path, independent_halves=False).warnings[0]
    path = write(project / "in.star", changed("rlnImageName", 3, "6@a.mrcs"))
    assert "1 images occur more than once" in ParticleTable.read(path, independent_halves=False).warnings[0]


def test_halves_and_quarters(project):
    table = ParticleTable.read(write(project / "in.star"))
    assert table.with_halves(1) is table
    given = columns()
    del given["rlnRandomSubset"]
    table = ParticleTable.read(write(project / "in.star", given))
    assert not table.halves.any()
    drawn = table.with_halves(3)
    np.testing.assert_array_equal(drawn.halves, table.with_halves(3).halves)
    assert (drawn.halves != table.with_halves(4).halves).any()
    assert sorted(np.bincount(drawn.halves).tolist()) == [0, 6, 6]
    for half in (1, 2):
        assert drawn.quarters()[drawn.halves == half].tolist() == [0, 1, 0, 1, 0, 1]
    shuffled = drawn.select(np.random.default_rng(0).permutation(COUNT))
    back = np.argsort(shuffled.identifiers)
    np.testing.assert_array_equal(shuffled.quarters()[back], drawn.quarters())


def test_copies_of_an_image_stay_together(project):
    """Symmetry mates in both half sets would fake resolution, in both quarters the choice of a prior."""
    given = columns()
    del given["rlnRandomSubset"]
    given["rlnImageName"] = [given["rlnImageName"][row // 3] for row in range(COUNT)]
    path = write(project / "in.star", given)
    assert "--symmetry-expanded" in refused(path)
    drawn = ParticleTable.read(path, are_expanded=True).with_halves(3)
    for which in (drawn.halves, drawn.quarters()):
        assert (which.reshape(-1, 3) == which[::3, None]).all()
    assert sorted(zip(drawn.halves[::3].tolist(), drawn.quarters()[::3].tolist(), strict=True)) == [
        (1, 0), (1, 1), (2, 0), (2, 1)]  # fmt: skip
    given["rlnRandomSubset"] = [1, 1, 2] + [1] * 3 + [2] * (COUNT - 6)
    write(path, given)
    with pytest.raises(InputError, match="row 3, column rlnRandomSubset: the same image as in row 1, which is in the"):
        ParticleTable.read(path, are_expanded=True)


def test_micrographs_and_groups_have_fallbacks(project):
    given = columns()
    del given["rlnMicrographName"]
    given["rlnImageName"][0] = "6@./a.mrcs"  # another name of the same file
    table = ParticleTable.read(write(project / "in.star", given))
    assert table.stacks == (project / "a.mrcs", project / "b.mrcs")
    assert table.micrograph_names == (str(project / "a.mrcs"), str(project / "b.mrcs"))
    assert table.micrograph_index.tolist() == [0, 1] * (COUNT // 2)
    given["rlnGroupName"] = ["g"] * COUNT
    table = ParticleTable.read(write(project / "in.star", given))
    assert (table.group_names, table.micrograph_names) == (("g",), ("g",))
    assert not table.group_index.any()


def test_particles_without_poses(project):
    given = columns()
    given["rlnAngleRot"] = given["rlnAngleTilt"] = given["rlnAnglePsi"] = np.zeros(COUNT)
    table = ParticleTable.read(write(project / "in.star", given))
    assert not table.has_poses
    with pytest.raises(InputError, match="no orientations"):
        _ = table.rotations


def test_what_is_written(project):
    given = columns()
    given["rlnNote"] = [f"n {row:03d}" for row in range(COUNT)]
    table = ParticleTable.read(write(project / "in.star", given))
    rotations = Rotation.random(COUNT, random_state=1).as_matrix()
    shifts = np.random.default_rng(1).normal(size=(COUNT, 2))
    keep = np.arange(COUNT) % 3 > 0
    text = [f"t {row}" for row in range(COUNT)]
    table.write(
        "out.star", rotations=rotations, shifts=shifts, columns={"rlnNew": np.arange(COUNT), "rlnText": text}, keep=keep
    )
    again = ParticleTable.read("out.star")
    np.testing.assert_allclose(again.rotations, rotations[keep], atol=1e-7)
    np.testing.assert_allclose(again.shifts, shifts[keep], atol=1e-6)
    rows = again.star.table("particles")
    assert rows.strings("rlnNote") == [note for note, kept in zip(given["rlnNote"], keep, strict=True) if kept]
    assert rows.integers("rlnNew").tolist() == np.flatnonzero(keep).tolist()
    assert rows.strings("rlnText")[1] == "t 2"
    assert rows.strings("rlnImageName")[0] == given["rlnImageName"][1]
    assert table.star.table("particles").columns == list(given)  # the table read is not changed
    with pytest.raises(InputError):
        table.write("out.star", columns={"rlnBad": ["a\nb"] * COUNT})
    assert len(ParticleTable.read("out.star")) == keep.sum()


def test_paths_are_found_and_stay_findable(project, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    star = write(project / "in.star")
    monkeypatch.chdir(elsewhere)
    ParticleTable.read(star).write("out.star")
    assert ParticleTable.read("out.star").stacks == (project / "a.mrcs", project / "b.mrcs")
    shutil.copy(star, elsewhere / "copied.star")
    assert str(elsewhere / "a.mrcs") in refused("copied.star")
    assert ParticleTable.read("copied.star", data_dir=project).stacks[0] == project / "a.mrcs"


@pytest.mark.parametrize(
    "name", ["with blank.mrcs", "per%cent.mrcs", "it's.mrcs", "$(touch x).mrcs", "a;b.mrc", "x.st"]
)
def test_odd_file_names(project, name):
    os.rename("a.mrcs", name)
    given = columns()
    given["rlnImageName"] = [text.replace("a.mrcs", name) for text in given["rlnImageName"]]
    table = ParticleTable.read(write(project / "in.star", given))
    table.write("out.star")
    found, good = ParticleTable.read("out.star").read_images(range(COUNT))
    np.testing.assert_array_equal(found, table.read_images(range(COUNT))[0])
    assert good.all()
    assert sorted(path.name for path in project.iterdir()) == sorted([name, "b.mrcs", "in.star", "out.star"])


@relion
@pytest.mark.relion
@pytest.mark.parametrize("source", ["new", "old", "blank"])
def test_relion_reads_what_we_write(project, source):
    if source == "blank":
        os.rename("a.mrcs", "a b.mrcs")
    given = columns()
    if source == "blank":
        given["rlnImageName"] = [name.replace("a.mrcs", "a b.mrcs") for name in given["rlnImageName"]]
    path = write_old(project / "in.star") if source == "old" else write(project / "in.star", given)
    table = ParticleTable.read(path)
    keep = np.arange(COUNT) != 4
    table.write("out.star", rotations=table.rotations, shifts=table.shifts, keep=keep)
    subprocess.run(["relion_stack_create", "--i", "out.star", "--o", "copy"], check=True, capture_output=True)
    np.testing.assert_array_equal(
        ImageStack("copy.mrcs").read(range(COUNT - 1)), table.select(keep).read_images(range(COUNT - 1))[0]
    )
    again = ParticleTable.read("copy.star")
    expected = table.select(keep)
    np.testing.assert_allclose(again.shifts, expected.shifts, atol=1e-5)
    np.testing.assert_allclose(again.rotations, expected.rotations, atol=1e-6)
    np.testing.assert_array_equal(again.halves, expected.halves)
    assert again.ctf_parameters().voltage_kv.tolist() == expected.ctf_parameters().voltage_kv.tolist()


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")
def test_real_files():
    table = ParticleTable.read(DATA / "relion31.star", independent_halves=False)
    assert (len(table), table.box, table.pixel_size) == (5, 256, 2.806)
    assert table.read_images(range(5))[1].all()
    table = ParticleTable.read(DATA / "sta_testing_bin8.star")
    assert (len(table), table.box, table.optics[0].amplitude_contrast) == (219, 64, 0.07)
    table = ParticleTable.read(DATA / "relion5.star", check_images=False, independent_halves=False)
    assert (table.box, table.optics[0].voltage_kv) == (448, 100.0)
    table = ParticleTable.read(DATA / "FinalRefinement-OriginalParticles-PfCRT.star", check_images=False)
    np.testing.assert_allclose(table.shifts[0], [-0.14063 * 1.035, -0.04688 * 1.035])
