# SPDX-License-Identifier: GPL-3.0-or-later
"""Model and map: atoms, frames, density, masks, fits, each against a closed form or another program's sums."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from models import atoms_of, centred_grid, clean_transform, half, map_of, noisy, protein
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.models import read_structure, write_structure
from sparsecv.engine.io.mrc import Map
from sparsecv.engine.model_map import fit
from sparsecv.engine.model_map.atoms import Motion
from sparsecv.engine.model_map.correlations import cut_off
from sparsecv.engine.model_map.density import debye_waller, model_transform, to_map, to_transform
from sparsecv.engine.model_map.frame import Grid, check_inside, on_cube, origin_in
from sparsecv.engine.model_map.neighbourhood import around, near_voxels
from sparsecv.engine.model_map.scale import fall_off, mean_fall_off
from sparsecv.engine.model_map.search import fit_global
from sparsecv.engine.physics.fourier import forward
from sparsecv.engine.simulate.potential import Atoms, potential_map
from sparsecv.engine.validate.fsc import correlate

BOX, PIXEL = 64, 2.2
RNG = np.random.default_rng(7)


def one_atom(position: tuple[float, float, float], *, element: str = "C", b_factor: float = 30.0) -> gemmi.Structure:
    structure = gemmi.Structure()
    residue = gemmi.Residue()
    residue.name, residue.seqid = "ALA", gemmi.SeqId(1, " ")
    atom = gemmi.Atom()
    atom.name, atom.element, atom.b_iso, atom.occ = "CA", gemmi.Element(element), b_factor, 1.0
    atom.pos = gemmi.Position(*position)
    residue.add_atom(atom)
    structure.add_model(gemmi.Model(1)).add_chain(gemmi.Chain("A")).add_residue(residue)
    structure.setup_entities()
    return structure


def rmsd(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.square(first - second).sum(axis=1).mean()))


# ------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("suffix", ["cif", "pdb"])
def test_a_model_survives_being_written_and_read(tmp_path, suffix) -> None:
    path = tmp_path / f"model.{suffix}"
    structure = protein()
    if suffix == "cif":
        write_structure(path, structure, columns={"Q-score": np.linspace(0, 1, 2943)})
    else:
        path.write_text(structure.make_pdb_string())
    back = atoms_of(read_structure(path))
    assert rmsd(back.positions, atoms_of(structure).positions) < 1e-3
    assert back.chains == ("A", "B")
    assert [str(residue) for residue in back.residues[:2]] == ["A/VAL 1", "A/ALA 2"]
    assert back.is_backbone.sum() == 4 * len(back.residues)
    if suffix == "cif":
        column = gemmi.cif.read(str(path)).sole_block().find_values("_atom_site.Q-score")
        assert len(column) == 2943
        assert float(column[2942]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("HEADER\nEND\n", "holds no atoms"),
        ("data_x\n_a 1\nloop_\n_b\n_c\n1\n", "not a usable atomic model"),
        ("ATOM      1  CA  ALA A   1         nan   0.000   0.000  1.00 20.00           C\nEND\n", "not finite"),
        ("ATOM      1  CA  ALA A   1       1.000   0.000   0.000  1.00   nan           C\nEND\n", "not finite"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / ("model.cif" if content.startswith("data_") else "model.pdb")
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_structure(path)
    assert str(path) in str(caught.value)


def test_a_model_that_is_no_file_is_refused(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "absent.pdb"):
        with pytest.raises(InputError):
            read_structure(path)


def test_an_unknown_assembly_is_refused(tmp_path) -> None:
    path = tmp_path / "model.cif"
    write_structure(path, protein())
    with pytest.raises(InputError, match="not a usable"):
        read_structure(path, assembly="7")


def test_atoms_that_scatter_nothing_are_named() -> None:
    from sparsecv.engine.model_map.atoms import model_atoms

    structure = protein().clone()
    structure[0][0][0][0].occ = 0.0
    structure[0][0][0][1].element = gemmi.Element("X")
    atoms, said = model_atoms(structure)
    assert (atoms.weights == 0).sum() == 2
    assert any("X" in text for text in said)
    assert any("1 atoms without occupancy" in text for text in said)
    with pytest.raises(InputError, match="no atom of the model scatters"):
        model_atoms(one_atom((0, 0, 0), element="X"))


# ------------------------------------------------------------------------------------------------------------ frames
def test_frames_place_the_first_voxel() -> None:
    density = Map(np.zeros((20, 24, 31), dtype=np.float32), 2.0, (5.0, 6.0, 7.0))
    assert origin_in("header", density).tolist() == [5, 6, 7]
    assert origin_in("centred", density).tolist() == [-30, -24, -20]  # voxel 15, 12, 10 at 0
    assert origin_in("scipion", density).tolist() == [-31, -24, -20]  # the middle of the box at 0
    assert origin_in("scipion", density, (1.0, 2.0, 3.0)).tolist() == [1, 2, 3]


def test_a_cut_out_map_becomes_a_cube_without_moving() -> None:
    density = Map(RNG.normal(size=(20, 24, 30)).astype(np.float32), 1.5, (10.0, 20.0, 30.0))
    cube, grid, said = on_cube(density, "header")
    assert cube.shape == (grid.box,) * 3
    assert grid.box % 2 == 0
    assert f"cube of {grid.box}" in said[0]
    x, y, z = np.rint(grid.voxels(np.array([[10.0 + 1.5 * 7, 20.0 + 1.5 * 3, 30.0 + 1.5 * 11]]))[0]).astype(int)
    assert cube[z, y, x] == density.data[11, 3, 7]
    faces = np.concatenate([density.data.take(k, axis=axis).ravel() for axis in range(3) for k in (0, -1)])
    assert (cube == np.median(faces).astype(np.float32)).sum() >= cube.size - density.data.size
    edge = np.array([[10.0, 20.0, 30.0], [10 + 1.5 * 29, 20 + 1.5 * 23, 30 + 1.5 * 19]])
    assert grid.is_inside(edge).all()
    assert not grid.is_inside(edge + np.array([[-0.1, 0, 0], [0, 0, 0.1]])).any()  # of the source, not of the cube
    assert not grid.is_inside(edge, 1.0).any()
    assert on_cube(Map(cube, 1.5, (0.0, 0.0, 0.0)), "header")[2] == []


def test_a_model_outside_of_the_map_is_refused_and_the_right_frame_named() -> None:
    atoms = atoms_of(protein())
    grid = centred_grid(BOX, PIXEL)
    density = Map(np.zeros((BOX,) * 3, dtype=np.float32), PIXEL, (0.0, 0.0, 0.0))
    assert check_inside(atoms.positions, density, "centred") == []
    with pytest.raises(InputError, match=r"--frame scipion|--frame centred"):
        check_inside(atoms.positions, density, "header")
    with pytest.raises(InputError, match="--fit global"):
        check_inside(atoms.positions + 500, density, "header")
    some_outside = atoms.positions + np.array([0.45 * grid.length, 0, 0])
    assert "atoms lie outside" in check_inside(some_outside, density, "centred")[0]


# ----------------------------------------------------------------------------------------------------------- density
@pytest.mark.parametrize(("element", "b_factor"), [("C", 0.0), ("C", 40.0), ("S", 5.0), ("P", 120.0)])
def test_density_of_an_atom_is_its_form_factor(element, b_factor) -> None:
    """Closed form: f(s) exp(-B s^2 / 4) with a phase factor, up to one constant."""
    grid = Grid(36, 1.1, np.array([3.0, -5.0, 8.0]))
    position = grid.origin + np.array([17.3, 20.1, 15.7])
    found = model_transform(atoms_of(one_atom(tuple(position), element=element, b_factor=b_factor)), grid)
    k = np.fft.fftfreq(36, 1.1)
    kz, ky, kx = np.meshgrid(k, k, np.fft.rfftfreq(36, 1.1), indexing="ij")
    s2 = kx**2 + ky**2 + kz**2
    factors = gemmi.Element(element).c4322
    form = sum(a * np.exp(-b / 4 * s2) for a, b in zip(factors.a, factors.b, strict=True))
    x, y, z = position - grid.origin
    expected = form * np.exp(-b_factor / 4 * s2 - 2j * np.pi * (kx * x + ky * y + kz * z))
    inside = s2 < (0.95 / 2.2) ** 2
    constant = (found[inside] * expected[inside].conj()).sum() / (np.abs(expected[inside]) ** 2).sum()
    assert constant.imag == pytest.approx(0, abs=1e-3 * constant.real)
    error = np.abs(found / constant - expected)[inside].max() / np.abs(expected).max()
    assert error < 5e-3


def test_density_agrees_with_the_simulators_sum_over_atoms() -> None:
    """Another program: a non-uniform FFT of the same scattering factors, in ice, which matters at low resolution."""
    atoms = atoms_of(protein())
    columns = [(str(found.atom.element.name), found.residue.name, found.chain.name)
               for found in atoms.structure[0].all()]  # fmt: skip
    elements, residues, chains = (np.array(part) for part in zip(*columns, strict=True))
    rows = Atoms(atoms.positions, elements, atoms.b_factors, np.ones(len(atoms)), residues, atoms.residue_of, chains)
    potential = potential_map(rows, BOX, PIXEL, 0.0)
    curve = correlate(to_transform(potential), clean_transform("AB", BOX, PIXEL))
    assert curve[round(BOX * PIXEL / 7.0) : -2].min() > 0.98


def test_atoms_outside_of_the_box_do_not_come_in_again() -> None:
    grid = centred_grid(24, 2.0)
    inside = model_transform(atoms_of(one_atom((0, 0, 0))), grid)
    both = one_atom((0, 0, 0))
    far = both[0][0][0][0].clone()
    far.pos = gemmi.Position(26, 0, 0)
    both[0][0][0].add_atom(far)
    assert np.array_equal(model_transform(atoms_of(both), grid), inside)


def test_anisotropic_b_factors_turn_with_the_model() -> None:
    structure = one_atom((0, 0, 0))
    structure[0][0][0][0].aniso = gemmi.SMat33f(1.5, 0.2, 0.2, 0, 0, 0)
    atoms = atoms_of(structure)
    turned = atoms.moved(Motion(Rotation.from_euler("z", 90, degrees=True).as_matrix(), np.zeros(3), np.zeros(3)))
    grid = centred_grid(24, 2.0)
    first, second = (to_map(model_transform(one, grid)) for one in (atoms, turned))
    # a quarter turn about z maps x to y; index 0 of an even box has no partner
    expected = np.transpose(first, (0, 2, 1))[:, :, ::-1]
    assert np.corrcoef(second[:, :, 1:].ravel(), np.roll(expected, 1, axis=2)[:, :, 1:].ravel())[0, 1] > 0.999
    assert np.corrcoef(second.ravel(), first.ravel())[0, 1] < 0.98


def test_debye_waller_sharpens_and_blurs() -> None:
    grid = Grid(16, 2.0, np.zeros(3))
    weights = debye_waller(grid, 50.0)
    assert weights[0, 0, 4] == pytest.approx(np.exp(-50 / 4 * (4 / 32) ** 2), rel=1e-5)
    assert weights[3, -2, 4] == pytest.approx(np.exp(-50 / 4 * (9 + 4 + 16) / 32**2), rel=1e-5)
    assert np.allclose(weights * debye_waller(grid, -50.0), 1, rtol=1e-5)


# -------------------------------------------------------------------------------------------------- neighbours, scale
def test_voxels_near_atoms_are_those_of_brute_force() -> None:
    grid = Grid(20, 1.3, np.array([-2.0, 4.0, 1.0]))
    positions = grid.origin + RNG.uniform(-2, 27, size=(15, 3))
    index = np.stack(np.meshgrid(*3 * [np.arange(20)], indexing="ij"), axis=-1)[..., ::-1] * 1.3 + grid.origin
    distance = np.linalg.norm(index[..., None, :] - positions, axis=-1)
    found = np.zeros((20, 20, 20, 15), dtype=bool)
    for atom, voxel in near_voxels(positions, 3.1, grid):
        found.reshape(-1, 15)[voxel, atom] = True
    assert np.array_equal(found, distance <= 3.1)
    assert np.array_equal(around(positions, 3.1, grid), (distance <= 3.1).any(axis=-1))


def test_fall_off_finds_scale_and_b_factor() -> None:
    grid = centred_grid(BOX, PIXEL)
    clean = clean_transform("AB", BOX, PIXEL)
    observed = to_transform(noisy(clean * debye_waller(grid, 63.0) * np.float32(2.5), half(5.5), grid, 3))
    found = fall_off(observed, clean, grid)
    assert found is not None
    assert found.b_factor == pytest.approx(63, abs=6)
    assert found.scale == pytest.approx(2.5, rel=0.1)
    assert found.coarsest < 8
    noise = to_transform(RNG.normal(size=(BOX,) * 3).astype(np.float32))
    assert fall_off(noise, clean, grid) is None


def test_mean_fall_off_of_equal_atoms_is_theirs() -> None:
    assert mean_fall_off(np.ones(5), np.full(5, 80.0), 8.0, 3.0) == pytest.approx(80)
    mixed = mean_fall_off(np.ones(2), np.array([20.0, 120.0]), 8.0, 3.0)
    assert 20 < mixed < 70  # what is blurred counts less


# --------------------------------------------------------------------------------------------------------------- fits
def test_gradients_of_a_field_are_its_slopes() -> None:
    grid = centred_grid(BOX, PIXEL)
    field = fit.filtered(clean_transform("AB", BOX, PIXEL), grid, fit.gaussian_correlation(grid, 8.0), 6.0)
    places = RNG.uniform(-30, 30, size=(20, 3))
    slopes = field.gradients(places)
    for axis in range(3):
        step = 1e-3 * np.eye(3)[axis]
        measured = (field.values(places + step) - field.values(places - step)) / 2e-3
        assert np.allclose(slopes[:, axis], measured, atol=1e-5)
    assert field.values(np.full((1, 3), 1e4)) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_displaced_model_is_brought_back(seed) -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    rng = np.random.default_rng(seed)
    axis, shift = rng.normal(size=(2, 3))
    turn = Rotation.from_rotvec(np.deg2rad(15) * axis / np.linalg.norm(axis)).as_matrix()
    moved = atoms.moved(Motion(turn, 8 * shift / np.linalg.norm(shift), atoms.centre))
    density = noisy(clean_transform("AB", BOX, PIXEL), half(6.0), grid, seed)
    back = fit.fit_rigid(to_transform(density), grid, moved)
    assert rmsd(moved.moved(back).positions, atoms.positions) < 0.2
    assert back.degrees == pytest.approx(15, abs=0.5)
    assert back.angstrom == pytest.approx(8, abs=0.2)


def test_a_model_from_anywhere_is_found() -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    turn = Rotation.random(rng=np.random.default_rng(4)).as_matrix()
    moved = atoms.moved(Motion(turn, np.array([300.0, -50, 20]), atoms.centre))
    observed = to_transform(noisy(clean_transform("AB", BOX, PIXEL), half(7.0), grid, 4))
    back = fit_global(observed, grid, moved, workers=2)
    assert rmsd(moved.moved(back).positions, atoms.positions) < 0.3


def test_a_model_larger_than_the_map_is_refused() -> None:
    grid = centred_grid(16, 2.0)
    with pytest.raises(InputError, match="larger than the box"):
        fit_global(to_transform(RNG.normal(size=(16,) * 3).astype(np.float32)), grid, atoms_of(protein()))


def test_chains_are_moved_one_by_one() -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    observed = to_transform(noisy(clean_transform("AB", BOX, PIXEL), half(6.0), grid, 5))
    which = atoms.chain_of == 1
    chain_centre = atoms.positions[which].mean(axis=0)
    turn = Rotation.from_rotvec([0.05, -0.04, 0.03]).as_matrix()
    displaced = atoms.moved(Motion(turn, np.array([1.5, -1.0, 1.0]), chain_centre), which)
    motions = fit.fit_chains(observed, grid, displaced)
    found = displaced
    for number, name in enumerate(atoms.chains):
        found = found.moved(motions[name], found.chain_of == number)
    assert rmsd(found.positions[which], atoms.positions[which]) < 0.3
    assert rmsd(found.positions[~which], atoms.positions[~which]) < 0.3
    assert rmsd(displaced.positions[which], atoms.positions[which]) > 1.5


@pytest.mark.parametrize("error", [0.96, 1.0, 1.03])
def test_a_wrong_pixel_size_is_measured(error) -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    observed = to_transform(noisy(clean_transform("AB", BOX, PIXEL), half(6.0), grid, 6))
    claimed = Grid(BOX, PIXEL * error, grid.origin * error)
    assert fit.best_pixel_scale(observed, claimed, atoms) == pytest.approx(1 / error, abs=0.003)
    noise = to_transform(RNG.normal(size=(BOX,) * 3).astype(np.float32))
    scale = fit.best_pixel_scale(noise, grid, atoms)
    assert scale is None or 0.85 < scale < 1.2


def test_motions_can_follow_each_other() -> None:
    first, second = (Motion(Rotation.random(rng=np.random.default_rng(k)).as_matrix(), RNG.normal(size=3),
                            RNG.normal(size=3)) for k in (1, 2))  # fmt: skip
    points = RNG.normal(size=(7, 3))
    assert np.allclose(first.then(second).apply(points), second.apply(first.apply(points)))
    assert Motion.none().degrees == 0


def test_a_sharp_cut_off_keeps_what_is_coarser() -> None:
    grid = Grid(16, 2.0, np.zeros(3))
    density = RNG.normal(size=(16,) * 3).astype(np.float32)
    kept = np.abs(to_transform(cut_off(to_transform(density), 8.0, grid)))
    assert kept[0, 0, 4] == pytest.approx(abs(to_transform(density)[0, 0, 4]), rel=1e-4)  # 8 A exactly
    assert kept[0, 0, 5] < 1e-3
    assert forward(density).shape == kept.shape
    assert map_of(density, grid).origin == (0.0, 0.0, 0.0)
