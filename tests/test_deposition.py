# SPDX-License-Identifier: GPL-3.0-or-later
"""What is prepared for EMDB: maps that superpose, the picture, the fields; and what becomes of an earlier one."""

from __future__ import annotations

import os
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
from halfmaps import half_maps
from PIL import Image

from sparsecv import __version__
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_link, atomic_text
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.results import refuse_to_overwrite, remove_leftovers, remove_results
from sparsecv.engine.report.chimerax import BandLimits, quoted, write_run_script
from sparsecv.engine.report.deposition import (
    NAMES,
    WRITTEN,
    Reconstruction,
    Sources,
    write_deposition,
)
from sparsecv.engine.report.surface import surface_picture, view
from sparsecv.engine.validate.fsc_files import write_postprocess
from sparsecv.engine.validate.postprocess import PostprocessResult, postprocess

BOX, PIXEL_SIZE = 32, 3.0
MADE = Reconstruction(software=("sparsecv", __version__), particles=(50, 49), set_aside=1, symmetry="D7Y",
                      angles="global search", initial_angles=True, start="a map", regularised="references: Wiener",
                      unregularised="the half maps", half_maps="apart", references=("A 2000", "B 2001"))  # fmt: skip
ALLOWED = {  # of the dictionary, where values are not free
    "_em_3d_reconstruction.resolution_method": {"FSC 0.143 CUT-OFF", "OTHER"},
    "_em_3d_reconstruction.symmetry_type": {"POINT"},
    "_em_3d_reconstruction.algorithm": {"FOURIER SPACE", "?"},
    "_em_3d_reconstruction.refinement_type": {"HALF-MAPS REFINED INDEPENDENTLY", "?"},
    "_em_experiment.reconstruction_method": {"SINGLE PARTICLE"},
    "_em_experiment.aggregation_state": {"PARTICLE"},
}


@pytest.fixture(scope="module")
def halves() -> tuple[np.ndarray, np.ndarray]:
    return half_maps(BOX, PIXEL_SIZE, bfactor=150, noise=0.3)


@pytest.fixture(scope="module")
def result(halves: tuple[np.ndarray, np.ndarray]) -> PostprocessResult:
    return postprocess(*halves, PIXEL_SIZE)


def deposit(
    folder: Path, halves: tuple[np.ndarray, np.ndarray], result: PostprocessResult, made: Reconstruction = MADE,
    *, are_own: bool = True,
) -> Path | None:  # fmt: skip
    """A folder as a command leaves it, with half maps in it."""
    paths = folder / "half1.mrc", folder / "half2.mrc"
    for path, values in zip(paths, halves, strict=True):
        if not path.exists():
            write_map(path, values, PIXEL_SIZE)
    files = write_postprocess(result, folder)
    sources = Sources(files["map"], files["xml"], paths, are_own, files["mask"] if are_own else None)
    return write_deposition(folder, result, sources, halves, made)


def values_of(folder: Path) -> gemmi.cif.Block:
    return gemmi.cif.read(str(folder / "emd_summary.cif")).sole_block()


# --------------------------------------------------------------------------------------------------------- the folder
def test_maps_are_valid_and_superpose(tmp_path: Path, halves, result) -> None:
    folder = deposit(tmp_path, halves, result)
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    for name in NAMES[:4]:
        assert mrcfile.validate(str(folder / name)), name
        with mrcfile.open(folder / name, header_only=True) as mrc:
            assert int(mrc.header.mode) == 2 and not any(mrc.header.origin.item())
            assert not any(int(mrc.header[axis]) for axis in ("nxstart", "nystart", "nzstart"))
        found = read_map(folder / name)
        assert found.data.shape == (BOX,) * 3 and found.pixel_size == PIXEL_SIZE
    for number, values in enumerate(halves, start=1):
        np.testing.assert_array_equal(read_map(folder / f"emd_half_map_{number}.mrc").data, values.astype(np.float32))
    assert (folder / "emd_fsc.xml").read_text() == (tmp_path / "postprocess_fsc.xml").read_text()


def test_own_files_are_linked_and_those_of_a_user_copied(tmp_path: Path, halves, result) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "given").mkdir()
    own = deposit(tmp_path / "own", halves, result)
    for name, source in (("emd_map.mrc", "postprocess.mrc"), ("emd_half_map_1.mrc", "half1.mrc"),
                         ("emd_mask.mrc", "postprocess_mask.mrc")):  # fmt: skip
        assert (own / name).samefile(tmp_path / "own" / source)
    given = deposit(tmp_path / "given", halves, result, Reconstruction(), are_own=False)
    assert not (given / "emd_half_map_1.mrc").samefile(tmp_path / "given" / "half1.mrc")
    assert (given / "emd_half_map_1.mrc").read_bytes() == (tmp_path / "given" / "half1.mrc").read_bytes()


def test_half_maps_that_would_not_superpose_are_written_anew(tmp_path: Path, halves, result) -> None:
    with mrcfile.new(tmp_path / "half1.mrc") as mrc:
        mrc.set_data(halves[0].astype(np.float32))
        mrc.voxel_size = 1.0
        mrc.header.origin = (5.0, 0.0, 0.0)
    folder = deposit(tmp_path, halves, result, Reconstruction(), are_own=False)
    found = read_map(folder / "emd_half_map_1.mrc")
    assert found.origin == (0, 0, 0) and found.pixel_size == PIXEL_SIZE
    np.testing.assert_array_equal(found.data, halves[0].astype(np.float32))
    said = " ".join((folder / "emd_summary.txt").read_text().split())  # long names wrap its lines
    assert "emd_half_map_1.mrc: written anew" in said and "pixel size 1 A" in said and "origin [5.0, 0.0, 0.0]" in said
    assert "emd_half_map_2.mrc: written anew" not in said


def test_what_the_program_knows_is_filled_in(tmp_path: Path, halves, result) -> None:
    folder = deposit(tmp_path, halves, result)
    text = (folder / "emd_summary.txt").read_text()
    for words in ("99 (50 and 49 in the half sets); 1 set aside", "FSC 0.143 CUT-OFF", f"sparsecv {__version__}",
                  f"{result.resolution_0143.angstrom:.2f} A", "D7\n", "A 2000", f"{result.bfactor:.1f} A^2",
                  "not masked"):
        assert words in text, words
    assert text.count("[to be filled in]") == 3  # where it is explained, the title, and what was looked at
    block = values_of(folder)
    for item, allowed in ALLOWED.items():
        assert block.find_value(item).strip("'") in allowed
    assert block.find_value("_em_3d_reconstruction.num_particles") == "99"
    assert float(block.find_value("_em_3d_reconstruction.resolution")) == pytest.approx(result.resolution_0143.angstrom,
                                                                                        abs=0.006)  # fmt: skip
    assert block.find_value("_em_single_particle_entity.point_symmetry") == "D7"
    maps = block.find("_em_map.", ["file", "type", "contour_level", "pixel_spacing_x", "dimensions_col"])
    assert [(row.str(0), row.str(1)) for row in maps] == [
        ("emd_map.mrc", "primary map"), ("emd_half_map_1.mrc", "half map"), ("emd_half_map_2.mrc", "half map"),
        ("emd_mask.mrc", "mask")]  # fmt: skip
    assert all((folder / row.str(0)).is_file() and float(row.str(3)) == PIXEL_SIZE and row.str(4) == str(BOX)
               for row in maps)  # fmt: skip
    categories = [row.str(0) for row in block.find("_em_software.", ["category"])]
    assert categories == ["INITIAL EULER ASSIGNMENT", "FINAL EULER ASSIGNMENT", "RECONSTRUCTION", "MASKING", "OTHER"]


def test_a_curve_that_does_not_fall_is_no_cut_off(tmp_path: Path) -> None:
    halves = half_maps(BOX, PIXEL_SIZE, bfactor=20, noise=0.001)
    folder = deposit(tmp_path, halves, postprocess(*halves, PIXEL_SIZE))
    assert values_of(folder).find_value("_em_3d_reconstruction.resolution_method") == "OTHER"
    assert "does not fall below 0.143 before Nyquist" in (folder / "emd_summary.txt").read_text()


def test_what_is_not_known_is_left_open(tmp_path: Path, halves, result) -> None:
    folder = deposit(tmp_path, halves, result, Reconstruction(), are_own=False)
    block = values_of(folder)
    for item in ("_em_3d_reconstruction.num_particles", "_em_single_particle_entity.point_symmetry",
                 "_em_3d_reconstruction.refinement_type"):
        assert block.find_value(item) == "?"
    software = block.find("_em_software.", ["category", "name"])
    assert {row.str(0): row[1] for row in software}["RECONSTRUCTION"] == "?"


@pytest.mark.parametrize(("symmetry", "group"), [("C1", "C1"), ("D2Y", "D2"), ("I2", "I"), ("O", "O"), (None, None)])
def test_point_groups_have_no_frames(symmetry: str | None, group: str | None) -> None:
    assert Reconstruction(symmetry=symmetry).point_symmetry == group


def test_a_file_in_the_place_of_the_folder_ends_no_run(tmp_path: Path, halves, result) -> None:
    (tmp_path / "emdb").write_text("mine")
    said: list[str] = []
    files = write_postprocess(result, tmp_path)
    sources = Sources(files["map"], files["xml"], (files["map"], files["map"]), True, files["mask"])
    assert write_deposition(tmp_path, result, sources, halves, MADE, said.append) is None
    assert len(said) == 1 and "is no folder" in said[0] and (tmp_path / "emdb").read_text() == "mine"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, halves, result) -> None:
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folders.append(deposit(tmp_path / name, halves, result))
    for name in NAMES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


# -------------------------------------------------------------------------------------------------------- the picture
def test_the_picture_is_what_emdb_asks_for(tmp_path: Path, halves, result) -> None:
    with Image.open(deposit(tmp_path, halves, result) / "emd_image.png") as image:
        assert image.size == (500, 500)
        shown = np.asarray(image.convert("RGB"))
    is_drawn = (shown < 250).any(axis=2)
    assert 0.1 < is_drawn.mean() < 0.9 and not is_drawn[:10].any() and not is_drawn[:, -10:].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_picture_shows_what_the_view_shows(axis: int) -> None:
    """Three balls of different size: the fine picture has them where the coarse view has them, not mirrored."""
    z, y, x = np.indices((24, 24, 24))
    places = (((6, 6, 6), 3), ((12, 17, 12), 2), ((17, 9, 18), 4))
    density = sum(np.exp(-((z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2) / r**2) for c, r in places)
    coarse = view(density.astype(np.float32), 0.4, density, axis).hit
    fine = (surface_picture(density.astype(np.float32), 0.4, axis, 96) < 0.99).any(axis=2)
    rows, columns = (np.flatnonzero(coarse.any(axis=1 - k))[[0, -1]] for k in (0, 1))
    wide, tall = (np.flatnonzero(fine.any(axis=1 - k))[[0, -1]] for k in (0, 1))
    cut = coarse[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
    big = fine[wide[0] : wide[1] + 1, tall[0] : tall[1] + 1]
    at = [np.minimum((np.arange(n) + 0.5) * big.shape[k] / n, big.shape[k] - 1).astype(int)
          for k, n in enumerate(cut.shape)]  # fmt: skip
    assert np.mean(big[np.ix_(*at)] == cut) > 0.85


def test_an_empty_map_is_a_white_picture() -> None:
    assert surface_picture(np.zeros((16,) * 3, dtype=np.float32), 1.0, 0, 20).min() == 1


# --------------------------------------------------------------------------------------- links, and earlier files
def test_links_are_atomic_and_fall_back_on_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    atomic_link(source, target)
    atomic_link(source, target)  # both are names of one file already
    assert target.samefile(source) and {path.name for path in tmp_path.iterdir()} == {"source", "target"}
    atomic_text(source, "newer")
    assert target.read_text() == "new", "files are replaced, so that the other name keeps its content"

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    atomic_link(source, target)
    assert target.read_text() == "newer" and not target.samefile(source)
    with pytest.raises(FileNotFoundError):
        atomic_link(tmp_path / "absent", target)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_an_earlier_deposition_goes_and_the_users_files_stay(tmp_path: Path, halves, result) -> None:
    folder = deposit(tmp_path, halves, result)
    (folder / ".emd_map.mrc.abcdefgh.part").write_text("piece")
    remove_leftovers(tmp_path, WRITTEN)
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    (folder / "notes.txt").write_text("mine")
    remove_results(tmp_path, (), WRITTEN)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    deposit(tmp_path, halves, result)
    remove_results(tmp_path, (folder / "emd_mask.mrc",), WRITTEN)
    assert [path.name for path in folder.iterdir()] == ["emd_mask.mrc"], "an input stays"
    remove_results(tmp_path, (), WRITTEN)
    assert not folder.exists() and (tmp_path / "half1.mrc").is_file()


def test_a_deposited_map_is_no_input_of_its_own_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be overwritten"):
        refuse_to_overwrite(tmp_path, WRITTEN, (tmp_path / "emdb" / "emd_half_map_1.mrc",))
    refuse_to_overwrite(tmp_path, WRITTEN, (tmp_path / "emd_half_map_1.mrc", tmp_path / "emdb" / "other.mrc"))


# --------------------------------------------------------------------------------------------------------- ChimeraX
def test_names_are_quoted_whatever_is_in_them() -> None:
    assert quoted('a "b"\\c; exit') == '"a \\"b\\"\\\\c; exit"'


@pytest.mark.parametrize("mask", [None, "mask of run.mrc"])
def test_a_script_opens_everything_and_shows_the_map(tmp_path: Path, mask: str | None) -> None:
    limits = BandLimits("limits.mrc", 4.0, 24.0)
    write_run_script(tmp_path / "run.cxc", "map.mrc", 0.25, ("half1.mrc", "half2.mrc"), 0.125, mask, limits)
    lines = (tmp_path / "run.cxc").read_text().splitlines()
    opened = [line.removeprefix("open ") for line in lines if line.startswith("open ")]
    assert opened == ['"map.mrc"', '"half1.mrc"', '"half2.mrc"', *([f'"{mask}"'] if mask else []), '"limits.mrc"']
    hidden = [line for line in lines if line.startswith("hide ")]
    assert hidden == [f"hide #{number} models" for number in range(2, len(opened) + 1)]
    assert "volume #1 style surface step 1 level 0.25" in lines
    assert f"color sample #1 map #{len(opened)} palette" in " ".join(lines)
