# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole validations: what they find and write, and what they refuse or say about odd input."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import gemmi
import numpy as np
import pytest
from models import atoms_of, centred_grid, clean_transform, half, map_of, noisy, protein
from scipy.spatial.transform import Rotation

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.models import write_structure
from sparsecv.engine.io.mrc import Map, read_map, write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.model_map.atoms import Motion
from sparsecv.engine.model_map.density import debye_waller, to_map
from sparsecv.engine.model_map.results import Options
from sparsecv.engine.model_map.settings import ValidateSettings
from sparsecv.engine.model_map.validation import validate
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.report.page import Page

BOX, PIXEL = 64, 2.2
GRID = centred_grid(BOX, PIXEL)
TRUTH = 7.0
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def of_a_half(s: np.ndarray) -> np.ndarray:
    """The curve of one of two halves whose mean has a curve that falls through 0.5 at 7 A."""
    whole = half(TRUTH)(s)
    return whole / np.sqrt(2 - whole**2)


@pytest.fixture(scope="module")
def maps() -> dict[str, Map]:
    clean = clean_transform("AB", BOX, PIXEL)
    first, second = (noisy(clean, of_a_half, GRID, seed) for seed in (1, 2))
    return {"half1": map_of(first, GRID), "half2": map_of(second, GRID), "map": map_of((first + second) / 2, GRID)}


@pytest.fixture(scope="module")
def files(maps, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pair")
    paths = {name: folder / f"{name}.mrc" for name in maps}
    for name, density in maps.items():
        write_map(paths[name], density.data, PIXEL, density.origin)
    paths["model"] = folder / "model.cif"
    write_structure(paths["model"], protein())
    return paths


def run(*words: object) -> int:
    return cli.main(["validate", *(str(word) for word in words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(*words) == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said.startswith("sparsecv: error: ") and said.count("\n") == 1, said
    return said


# ------------------------------------------------------------------------------------------------------------ numbers
@pytest.fixture(scope="module")
def found(maps):
    return validate(maps["map"], protein(), halves=(maps["half1"], maps["half2"]), versus=maps["half1"])


def test_curves_of_a_map_with_a_known_resolution(found) -> None:
    assert len(found.warnings) == 1
    assert "of a noisy map" in found.warnings[0]  # the mean of raw half maps
    at = found.unmasked.at_05.resolution
    assert abs(at.shell - GRID.length / TRUTH) < 1
    assert found.masked.at_05.resolution.angstrom < at.angstrom  # the mask takes noise away
    assert np.all(found.masked.low <= found.masked.values + 1e-9)
    assert np.all(found.masked.values <= found.masked.high + 1e-9)
    behind = round(GRID.length / found.randomised_from) + 2
    assert np.abs(found.randomised[behind:]).max() < 0.15
    # inside the mask, too, a perfect model reaches the ceiling of the half maps
    usable = found.halves.half_fsc > 0.3
    assert np.abs(found.halves.ceiling - found.masked.values)[usable].max() < 0.06
    assert not found.halves.beyond.any()
    assert not found.halves.over_fit.is_significant
    assert found.versus.masked.at_05.resolution.angstrom > found.masked.at_05.resolution.angstrom
    assert found.pixel_scale == pytest.approx(1, abs=0.005)
    assert found.resolution_source.startswith("half maps")
    assert set(found.chains) == {"A", "B"}


def test_what_was_done_is_said(found) -> None:
    notes = "\n".join(found.notes)
    for text in ("frame header", "judged where it stands", r"mask: within [\d.]+ A", r"sharpened by \d+ A\^2",
                 "correlations: the model's density to", "contour level"):  # fmt: skip
        assert re.search(text, notes), text


def test_refitted_b_factors_follow_the_map(maps) -> None:
    clean = clean_transform("AB", BOX, PIXEL) * debye_waller(GRID, 80.0)
    density = map_of(noisy(clean, half(6.0), GRID, 3), GRID)
    own = float(atoms_of(protein()).b_factors.mean())
    found = validate(density, protein(), Options(bfactors="refit"))
    assert found.b_factors["A"] == pytest.approx(own + 80, abs=15)
    assert found.fall_off.b_factor == pytest.approx(0, abs=8)
    assert any("B-factors of each chain shifted" in text for text in found.notes)
    kept = validate(density, protein())
    assert kept.b_factors == {}
    assert kept.fall_off.b_factor == pytest.approx(80, abs=8)


def test_a_given_mask_level_and_resolution_are_used(maps) -> None:
    mask = Map(sphere(BOX, 20, 6), PIXEL, maps["map"].origin)
    found = validate(maps["map"], protein(), Options(resolution=9.0, level=0.01, sharpening=0.0), mask=mask)
    assert np.array_equal(found.mask, mask.data)
    assert found.resolution == 9.0
    assert found.scores.level == 0.01
    assert found.sharpening.b_factor == 0
    assert "mask: the one given" in found.notes


# ------------------------------------------------------------------------------------------- what is refused or said
def test_identical_half_maps_are_refused(maps) -> None:
    with pytest.raises(InputError, match="identical"):
        validate(maps["map"], protein(), halves=(maps["half1"], maps["half1"]))
    with pytest.raises(InputError, match="half map 2 is the map itself"):
        validate(maps["map"], protein(), halves=(maps["half1"], maps["map"]))
    twice = Map(2 * maps["half1"].data, PIXEL, maps["half1"].origin)
    with pytest.raises(InputError, match="identical, but perhaps for their scale"):
        validate(maps["map"], protein(), halves=(maps["half1"], twice))
    flat = Map(np.ones((BOX,) * 3, dtype=np.float32), PIXEL, GRID.origin)
    with pytest.raises(InputError, match="flat"):
        validate(maps["map"], protein(), halves=(maps["half1"], flat))
    with pytest.raises(InputError, match="flat"):
        validate(flat, protein())


def test_half_maps_of_something_else_are_noticed(maps) -> None:
    rng = np.random.default_rng(5)
    noise = tuple(map_of(rng.normal(size=(BOX,) * 3), GRID) for _ in "12")
    found = validate(maps["map"], protein(), Options(resolution=7.0), halves=noise)
    assert any("do they belong together" in text for text in found.warnings)


def test_maps_of_another_grid_are_refused(maps) -> None:
    for other in (Map(maps["map"].data[:-2, :-2, :-2], PIXEL, GRID.origin), Map(maps["map"].data, 2.5, GRID.origin)):
        for words in ({"versus": other}, {"halves": (other, maps["half2"])}):
            with pytest.raises(InputError, match="has another grid"):
                validate(maps["map"], protein(), **words)


def test_unusable_masks_are_refused(maps) -> None:
    for data, message in ((np.zeros((BOX,) * 3), "mask is empty"), (3 * sphere(BOX, 20), "outside"),
                          (sphere(32, 10), "box size")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            validate(maps["map"], protein(), mask=Map(data.astype(np.float32), PIXEL, GRID.origin))


def test_a_mask_without_the_model_is_refused(maps) -> None:
    corner = np.roll(sphere(BOX, 8, 4), BOX // 2, axis=(0, 1, 2))
    with pytest.raises(InputError, match="the mask does not contain the model"):
        validate(maps["map"], protein(), mask=Map(corner, PIXEL, GRID.origin))
    part = Map(sphere(BOX, 12, 4), PIXEL, GRID.origin)
    found = validate(maps["map"], protein(), mask=part)
    assert any("the mask contains only" in text for text in found.warnings)


def test_a_cut_out_of_a_raw_map_is_judged_like_the_whole(maps) -> None:
    """Its solvent is not 0, and what is outside of it is not scored."""
    raised = maps["map"].data + np.float32(0.5)
    cut = Map(raised[8:56, 6:58, 10:60].copy(), PIXEL, tuple(GRID.origin + PIXEL * np.array([10, 6, 8])))
    found, whole = validate(cut, protein()), validate(maps["map"], protein())
    assert found.masked.at_05.resolution.angstrom == pytest.approx(whole.masked.at_05.resolution.angstrom, rel=0.03)
    small = Map(raised[:, :, :36].copy(), PIXEL, maps["map"].origin)
    scored = validate(small, protein())
    outside = scored.atoms.positions[:, 0] > GRID.origin[0] + 35 * PIXEL
    assert outside.any()
    assert np.isnan(scored.scores.atom_q[outside]).all()
    assert np.isnan(scored.scores.atom_density[outside]).all()
    assert f"{outside.sum()} atoms lie outside the box" in scored.warnings[0]


def test_perfect_models_are_not_said_to_follow_noise() -> None:
    """With a tight mask, too: pairs of halves at two resolutions."""
    clean = clean_transform("AB", BOX, PIXEL)
    for seed in range(2):
        for resolution in (6.0, 9.0):
            def of_one(s, resolution=resolution):
                whole = half(resolution)(s)
                return whole / np.sqrt(2 - whole**2)

            first, second = (noisy(clean, of_one, GRID, 10 * seed + k) for k in (1, 2))
            found = validate(map_of((first + second) / 2, GRID), protein(),
                             Options(mask_radius=3.0, mask_edge=3.0, chains=False),
                             halves=(map_of(first, GRID), map_of(second, GRID)))  # fmt: skip
            assert not found.halves.beyond.any()
            assert not found.halves.over_fit.is_significant


def test_waters_follow_the_chain_that_is_nearest() -> None:
    """They are no body of their own, however many they are."""
    structure = protein().clone()
    chain = gemmi.Chain("W")
    anchor = atoms_of(structure).positions[atoms_of(structure).chain_of == 1]
    for number in range(40):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "HOH", gemmi.SeqId(number + 1, " ")
        atom = gemmi.Atom()
        atom.name, atom.element, atom.b_iso, atom.occ = "O", gemmi.Element("O"), 60.0, 1.0
        atom.pos = gemmi.Position(*(anchor[20 * number] + [0, 0, 2.8]))
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure[0].add_chain(chain)
    structure.setup_entities()
    atoms = atoms_of(structure)
    displaced = atoms.moved(Motion(np.eye(3), np.array([1.5, -1.0, 1.0]), np.zeros(3)), atoms.chain_of > 0)
    density = map_of(noisy(clean_transform("AB", BOX, PIXEL), half(6.0), GRID, 4), GRID)
    found = validate(density, displaced.structure, Options(fit="chains", chains=False))
    water = atoms.chain_of == 2
    assert np.linalg.norm(found.atoms.positions[water] - atoms.positions[water], axis=1).max() < 0.6
    assert found.motions["W"].degrees == pytest.approx(found.motions["B"].degrees)


def test_a_model_outside_of_the_box_or_on_no_density_is_refused(maps) -> None:
    atoms = atoms_of(protein())
    far = atoms.moved(Motion(np.eye(3), np.array([400.0, 0, 0]), atoms.centre)).structure
    with pytest.raises(InputError, match="does not overlap with the map: 0% of its atoms"):
        validate(maps["map"], far)
    with pytest.raises(InputError, match=r"--frame (centred|scipion)"):
        validate(Map(maps["map"].data, PIXEL, (0.0, 0.0, 0.0)), protein())
    empty = map_of(np.random.default_rng(6).normal(size=(BOX,) * 3), GRID)
    with pytest.raises(InputError, match="model and density do not overlap"):
        validate(empty, protein())
    with pytest.raises(InputError, match="particles must be white"):
        validate(Map(-maps["map"].data, PIXEL, maps["map"].origin), protein())


def test_a_wrong_pixel_size_is_told(maps) -> None:
    wrong = Map(maps["map"].data, PIXEL * 1.04, tuple(1.04 * value for value in maps["map"].origin))
    found = validate(wrong, protein())
    assert any("fits best with a pixel size of 2.2" in text for text in found.warnings)
    assert found.pixel_scale == pytest.approx(1 / 1.04, abs=0.005)


def test_resolution_beyond_nyquist_is_not_claimed(maps) -> None:
    with pytest.raises(InputError, match="beyond the map's Nyquist"):
        validate(maps["map"], protein(), Options(resolution=4.0))
    found = validate(map_of(to_map(clean_transform("AB", BOX, PIXEL)), GRID), protein())
    assert found.masked.at_05.resolution.angstrom == 2 * PIXEL
    assert any("above 0.5 to Nyquist" in text for text in found.warnings)


def test_a_map_made_of_the_model_is_beyond_what_its_half_maps_allow(maps) -> None:
    clean = to_map(clean_transform("AB", BOX, PIXEL))
    flattered = map_of(maps["map"].data * 0.4 + 0.6 * clean, GRID)
    found = validate(flattered, protein(), halves=(maps["half1"], maps["half2"]))
    assert found.halves.beyond.any()
    assert any("better with the map than the half maps allow" in text for text in found.warnings)
    assert any("beyond the" in text and "it is no resolution of the map" in text for text in found.warnings)


def test_the_same_map_twice_is_noticed(maps) -> None:
    found = validate(maps["map"], protein(), versus=maps["map"])
    assert "the other map is the map itself" in found.warnings
    assert np.array_equal(found.versus.masked.values, found.masked.values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"half1": Path("a")}, "only one half map"),
        ({"half1": Path("a"), "half2": Path("a")}, "the same file"),
        ({"origin": "1,2,3"}, "--frame scipion"),
        ({"origin": "1,2", "frame": "scipion"}, "not a position"),
        ({"origin": "1,2,nan", "frame": "scipion"}, "not a position"),
        ({"pixel_size": -1.0}, "out of range"),
        ({"level": float("nan")}, "not a number"),
    ],
)
def test_settings_that_contradict_each_other(words, message) -> None:
    with pytest.raises(InputError, match=message):
        ValidateSettings(Path("m"), Path("x"), Path("o"), **words)


# ---------------------------------------------------------------------------------------------------------- the command
def test_the_command_writes_what_it_promises(files, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    words = ("--model", files["model"], "--map", files["map"], "--half1", files["half1"], "--half2", files["half2"],
             "--versus", files["half1"], "--output", output, "--threads", 1)  # fmt: skip
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "FSC 0.5: " in said
    assert "lowest Q-scores" in said
    written = {path.name for path in output.iterdir()}
    assert written == {
        "model_fsc.star", "residues.csv", "summary.json", "fitted.cif", "scored.cif", "validate_map.mrc",
        "validate_mask.mrc", "validate_model.mrc", "scores.cxc", "validate.html", "validate.toml",
        "checksums.sha256", "model_fsc.png",
        "versus_fsc.png",
        "chains_fsc.png", "residues.png", "inclusion.png", "slices.png",
    }  # fmt: skip
    star = StarFile.read(output / "model_fsc.star")
    curves = star.table("model_fsc")
    assert len(curves) == BOX // 2 + 1
    for column in ("fscModelMasked", "fscModelMaskedLow", "fscModelUnmasked", "fscModelMaskedRandomPhases",
                   "fscModelMaskCorrected", "fscHalfMaps", "fscCeiling", "fscModelHalf1", "fscModelHalf2",
                   "fscVersusMasked", "fscVersusUnmasked"):  # fmt: skip
        assert np.abs(curves.floats(column)).max() <= 1 + 1e-6
    assert set(star.table("chains_fsc").strings("chainName")) == {"A", "B"}
    numbers = json.loads((output / "summary.json").read_text())
    assert numbers["fsc_masked"]["0.5"]["interval_95"][0] >= numbers["fsc_masked"]["0.5"]["interval_95"][1]
    assert len(numbers["worst_residues"]) == 10
    rows = list(csv.DictReader((output / "residues.csv").read_text().splitlines()))
    assert len(rows) == numbers["residues"] == len(atoms_of(protein()).residues)
    assert float(rows[0]["q_score"]) <= 1
    scored = gemmi.read_structure(str(output / "scored.cif"))
    fitted = gemmi.cif.read(str(output / "fitted.cif")).sole_block()
    scores = [float(text) for text in fitted.find_values("_atom_site.Q-score")]
    assert [cra.atom.b_iso for cra in scored[0].all()] == pytest.approx(scores, abs=6e-3)
    mask = read_map(output / "validate_mask.mrc")
    assert mask.origin == pytest.approx(tuple(GRID.origin), abs=1e-3)
    page = (output / "validate.html").read_text()
    assert page.count("<img") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert "half map 1 less half map 2" in page
    assert "[validate]" in page
    before = (output / "model_fsc.star").read_bytes()
    assert run(*words) == 0
    assert (output / "model_fsc.star").read_bytes() == before


def test_the_command_moves_the_model_and_says_so(files, tmp_path, capsys) -> None:
    atoms = atoms_of(protein())
    turn = Rotation.from_rotvec([0.1, -0.15, 0.1]).as_matrix()
    moved = tmp_path / "moved.pdb"
    moved.write_text(atoms.moved(Motion(turn, np.array([3.0, 4.0, -2.0]), atoms.centre)).structure.make_pdb_string())
    assert run("--model", moved, "--map", files["map"], "--output", tmp_path, "--fit", "rigid", "--no-chains") == 0
    assert "the model was moved by 5.3" in capsys.readouterr().out
    back = gemmi.read_structure(str(tmp_path / "fitted.cif"))
    positions = np.array([cra.atom.pos.tolist() for cra in back[0].all()])
    assert np.sqrt(np.square(positions - atoms.positions).sum(axis=1).mean()) < 0.2
    motion = json.loads((tmp_path / "summary.json").read_text())["motions"]["A"]
    assert motion["degrees"] == pytest.approx(np.rad2deg(np.linalg.norm([0.1, -0.15, 0.1])), abs=0.3)


def test_frames_on_the_command_line(files, tmp_path, capsys) -> None:
    bare = tmp_path / "bare.mrc"
    write_map(bare, read_map(files["map"]).data, PIXEL)
    words = ("--model", files["model"], "--map", bare, "--output", tmp_path / "out", "--no-chains")
    assert "--frame" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()
    origin = ",".join(f"{value:.3f}" for value in GRID.origin)
    curves = []
    for more in (("--frame", "centred"), ("--frame", "scipion", f"--origin={origin}")):
        assert run(*words, *more) == 0
        table = StarFile.read(tmp_path / "out" / "model_fsc.star").table("model_fsc")
        curves.append(table.floats("fscModelMasked"))
    assert np.allclose(curves[0], curves[1], atol=1e-3)


def test_wrong_files_are_named(files, tmp_path, capsys) -> None:
    words = ("--output", tmp_path / "out")
    absent = tmp_path / "absent.cif"
    assert str(absent) in refused(capsys, "--model", absent, "--map", files["map"], *words)
    assert str(files["model"]) in refused(capsys, "--model", files["model"], "--map", files["model"], *words)
    assert str(files["map"]) in refused(capsys, "--model", files["map"], "--map", files["map"], *words)
    assert "--map missing" in refused(capsys, "--model", files["model"], *words)


def test_results_never_take_the_place_of_an_input(files, tmp_path, capsys) -> None:
    own = tmp_path / "validate_map.mrc"
    own.write_bytes(files["map"].read_bytes())
    said = refused(capsys, "--model", files["model"], "--map", own, "--output", tmp_path)
    assert "would be overwritten by the results" in said
    assert own.read_bytes() == files["map"].read_bytes()
    assert "is no folder" in refused(capsys, "--model", files["model"], "--map", own, "--output", own)


def test_names_cannot_write_into_the_page(tmp_path) -> None:
    page = Page("<script>alert(1)</script>")
    page.paragraph("a & b <img src=x onerror=alert(1)>")
    page.warnings(["</p><script>alert(2)</script>"])
    page.table(("<b>",), [("<i>",), (1.5,), (float("nan"),)])
    page.items(["<u>"])
    page.code("$(touch x) <x>")
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;i&gt;" in text
    assert '<td class="number">1.500</td>' in text
    assert '<td class="number">-</td>' in text


def test_chain_names_cannot_write_into_the_script(maps, tmp_path) -> None:
    from sparsecv.engine.model_map.files import write_validation

    structure = protein().clone()
    structure[0][0].name = "A;\nexit"
    found = validate(maps["map"], structure, Options(chains=False))
    write_validation(found, tmp_path, names={"model": "m", "map": "x"})
    script = (tmp_path / "scores.cxc").read_text()
    assert "exit" not in script


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("model", "density", "coarsest"),
    [("7cec_A.cif", "emd_30342_A_z4.mrc", 4.3), ("3J6B_9.pdb", "emd_2566_3J6B_9.mrc", 3.75)],
)
def test_real_pairs_agree_and_are_found_again(model, density, coarsest, tmp_path) -> None:
    from sparsecv.engine.io.models import read_structure

    atoms = atoms_of(read_structure(DATA / model))
    turn = Rotation.from_rotvec(np.deg2rad(15) * np.array([0.0, 0.6, 0.8])).as_matrix()
    away = atoms.moved(Motion(turn, np.array([8.0, 0, 0]), atoms.centre)).structure
    found = validate(read_map(DATA / density, cubic=False), away, Options(fit="rigid"), workers=2)
    assert found.masked.at_05.resolution.angstrom < coarsest
    assert np.sqrt(np.square(found.atoms.positions - atoms.positions).sum(axis=1).mean()) < 0.3
