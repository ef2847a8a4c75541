# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator: projections and potentials against closed forms, data sets against RELION's programs."""

from __future__ import annotations

import json
import subprocess

import gemmi
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import ImageStack, read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.masks import image_circle
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.simulate import SimulateSettings, simulate
from sparsecv.engine.simulate.belt import BeltModel, Membrane, find_membrane
from sparsecv.engine.simulate.frame import turned_to_symmetry
from sparsecv.engine.simulate.phantom import membrane_protein
from sparsecv.engine.simulate.potential import (
    ATOM_VOLUME,
    HYDROGEN_B,
    HYDROGENS,
    ICE,
    VOLT,
    Atoms,
    potential_map,
    read_model,
)
from sparsecv.engine.simulate.project import project
from sparsecv.engine.validate.fsc import fsc

BLOBS = np.array([[9.0, -4.0, 6.5], [-7.0, 8.0, 2.0], [0.5, 3.0, -11.0]])  # pixels from the centre
HEIGHTS, WIDTH = np.array([1.0, 0.6, 1.7]), 1.7


def gaussian_blobs(box):
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return sum(
        h * np.exp(-((x - p[0]) ** 2 + (y - p[1]) ** 2 + (z - p[2]) ** 2) / (2 * WIDTH**2))
        for h, p in zip(HEIGHTS, BLOBS, strict=True)
    ).astype(np.float32)


def settings(folder, **changes):
    return SimulateSettings(output=folder, **{"particles": 24, "box": 48, "pixel_size": 4.0, "shift": 8.0} | changes)


def some_atoms(positions, element="C", b_factor=0.0):
    n = len(positions)
    return Atoms(np.asarray(positions, dtype=float), np.full(n, element), np.full(n, b_factor), np.ones(n),
                 np.full(n, "ALA"), np.arange(n), np.full(n, "A"))


@pytest.mark.parametrize("box", [48, 49])
def test_projection_of_gaussians_is_gaussians(box):
    rotations = Rotation.random(6, rng=np.random.default_rng(1)).as_matrix()
    origins = np.random.default_rng(2).uniform(-4, 4, (6, 2))
    images = project(gaussian_blobs(box), rotations, origins)
    y, x = np.meshgrid(np.arange(box) - box // 2, np.arange(box) - box // 2, indexing="ij")
    for image, matrix, origin in zip(images, rotations, origins, strict=True):
        centres = (matrix @ BLOBS.T)[:2] - origin[:, None]
        expected = sum(
            h * np.sqrt(2 * np.pi) * WIDTH * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * WIDTH**2))
            for h, cx, cy in zip(HEIGHTS, *centres, strict=True)
        )
        assert np.abs(image - expected).max() < 2e-4 * expected.max()


def test_potential_of_atoms_in_ice():
    """The sum over an atom's Gaussians a exp(-b k^2/4) is a sum of Gaussians in space too."""
    box, pixel, overall = 40, 1.5, 300.0
    positions = np.array([[3.3, -7.1, 2.0], [-8.0, 4.4, -5.0]])
    potential = potential_map(some_atoms(positions, b_factor=40.0), box, pixel, overall)
    carbon, hydrogen = gemmi.Element("C").c4322, gemmi.Element("H").c4322
    terms = list(zip(carbon.a, carbon.b, strict=True))
    terms += [(HYDROGENS["C"] * a, b + HYDROGEN_B) for a, b in zip(hydrogen.a, hydrogen.b, strict=True)]
    terms += [(-ICE * ATOM_VOLUME, 4 * np.pi * ATOM_VOLUME ** (2 / 3))]
    axis = (np.arange(box) - box // 2) * pixel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    expected = np.zeros((box,) * 3)
    for place in positions:
        squared = (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
        for a, b in terms:
            width = b + overall + 40.0
            expected += VOLT * a * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * squared / width)
    assert np.abs(potential - expected).max() < 1e-3 * expected.max()


def test_particle_must_fit_into_the_box():
    with pytest.raises(InputError, match="does not fit"):
        potential_map(some_atoms([[0, 0, 30.0]]), 16, 2.0, 80.0)
    with pytest.raises(InputError, match="no electron scattering factor"):
        potential_map(some_atoms([[0, 0, 3.0]], element="X"), 16, 2.0, 80.0)


def test_phantom_is_a_protein_without_symmetry():
    atoms, membrane = membrane_protein()
    assert 80 < atoms.mass_kda < 110 and atoms.radius < 75
    assert 3 < len(atoms) / len(np.unique(atoms.residue_ids)) < 9
    # No two domains run through each other.
    close = cKDTree(atoms.positions).query(atoms.positions, k=2)[0][:, 1]
    assert np.mean(close < 1.0) < 0.05
    assert np.array_equal(membrane.normal, [0, 0, 1]) and 15 < membrane.radius < 35
    # Neither a mirror image nor a turn looks like it at 20 A.
    smooth = low_pass(potential_map(atoms, 48, 4.0, 80.0), 4.0, 20.0)[1:, 1:, 1:]
    smooth = smooth - smooth.mean()
    for changed in (smooth[::-1], smooth[:, ::-1], smooth[..., ::-1], smooth[::-1, ::-1], smooth[:, ::-1, ::-1],
                    smooth[::-1, :, ::-1], smooth[::-1, ::-1, ::-1], smooth.transpose(0, 2, 1)[:, ::-1]):
        assert np.sum(changed * smooth) / np.sum(smooth**2) < 0.75


def test_seed_of_the_phantom_changes_details_only():
    (first, _), (second, _) = membrane_protein(1), membrane_protein(2)
    one, two = (low_pass(potential_map(a, 48, 4.0, 80.0), 4.0, 20.0) for a in (first, second))
    assert not np.array_equal(first.positions[:50], second.positions[:50])
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.85


@pytest.mark.parametrize("symmetry", ["C3", "D2", "T"])
def test_symmetric_phantom(symmetry):
    atoms, membrane = membrane_protein(1, symmetry)
    assert (membrane is None) == (symmetry[0] != "C")
    tree = cKDTree(atoms.positions)
    for element in symmetry_matrices(symmetry)[1:]:
        assert tree.query(atoms.positions[:500] @ element.T)[0].max() < 1e-6
    size = len(atoms) // len(symmetry_matrices(symmetry))
    gap = cKDTree(atoms.positions[:size]).query(atoms.positions[size:])[0].min()
    assert 4 < gap < 6, "copies touch and do not overlap"


@pytest.mark.parametrize("symmetry", ["C3", "D2", "D3", "O", "I1"])
def test_a_model_is_turned_into_the_frame_of_its_group(symmetry):
    group = symmetry_matrices(symmetry)
    rng = np.random.default_rng(5)
    protomer = rng.normal(0, 6, (40, 3)) + np.array([30.0, 12.0, 17.0])
    turn = Rotation.random(rng=rng).as_matrix()
    positions = np.concatenate([protomer @ g.T for g in group]) @ turn.T + [4.0, -3.0, 8.0]
    n = len(positions)
    atoms = Atoms(positions - positions.mean(axis=0), np.full(n, "C"), np.zeros(n), np.ones(n), np.full(n, "ALA"),
                  np.arange(n), np.repeat([f"c{i}" for i in range(len(group))], 40))
    turned = turned_to_symmetry(atoms, symmetry)
    tree = cKDTree(turned.positions)
    for element in group[1:]:
        assert tree.query(turned.positions[:40] @ element.T)[0].max() < 1e-3
    with pytest.raises(InputError, match="does not have the symmetry"):
        turned_to_symmetry(atoms, "C11")


def test_model_file(tmp_path):
    """Heavy atoms about their centre of mass, without water; B from the 5th percentile."""
    structure, model, chain = gemmi.Structure(), gemmi.Model(1), gemmi.Chain("A")
    for number, (name, element, b) in enumerate([("ALA", "C", 20.0), ("LEU", "N", 45.0), ("HOH", "O", 80.0)]):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(str(number + 1))
        for symbol, shift in ((element, 0.0), ("H", 1.0)):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.b_iso = symbol, gemmi.Element(symbol), b
            atom.pos = gemmi.Position(10.0 * number + shift, 5, -3)
            residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.write_pdb(str(tmp_path / "model.pdb"))
    atoms = read_model(tmp_path / "model.pdb")
    assert list(atoms.elements) == ["C", "N"] and list(atoms.residues) == ["ALA", "LEU"]
    carbon, nitrogen = gemmi.Element("C").weight, gemmi.Element("N").weight
    expected = np.array([-nitrogen, carbon]) * 10 / (carbon + nitrogen)
    np.testing.assert_allclose(atoms.positions[:, 0], expected, atol=1e-3)
    np.testing.assert_allclose(atoms.b_factors, [0, 23.75], atol=1e-3)
    (tmp_path / "bad.pdb").write_text("nothing here\n")
    with pytest.raises(InputError, match=r"bad\.pdb"):
        read_model(tmp_path / "bad.pdb")
    with pytest.raises(InputError, match="gone"):
        read_model(tmp_path / "gone.cif")


def test_membrane_is_found_by_its_hydrophobic_residues():
    rng = np.random.default_rng(6)
    positions = rng.uniform(-1, 1, (1500, 3)) * [14, 14, 45]
    names = np.where(np.abs(positions[:, 2] - 6) < 15, "LEU", rng.choice(["LYS", "ASP", "SER"], 1500))
    turn = Rotation.from_euler("ZY", [40, 65], degrees=True).as_matrix()
    atoms = Atoms(positions @ turn.T, np.full(1500, "C"), np.zeros(1500), np.ones(1500), names, np.arange(1500),
                  np.full(1500, "A"))
    membrane = find_membrane(atoms)
    assert abs(membrane.normal @ turn[:, 2]) > np.cos(np.deg2rad(6))
    assert membrane.centre @ turn[:, 2] == pytest.approx(6, abs=2.5)
    assert membrane.radius == pytest.approx(17, abs=4)
    with pytest.raises(InputError, match="too few amino acids"):
        find_membrane(some_atoms(positions[:10]))


def test_belts_differ_and_keep_out_of_the_protein():
    box, pixel = 48, 4.0
    axis = (np.arange(box) - box // 2) * pixel
    _, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    protein = (np.hypot(x - 8, y) < 20).astype(np.float32)
    belts = BeltModel(protein, pixel, Membrane(np.array([8.0, 0, 12.0]), np.array([0.0, 0, 1]), 20.0))
    first, again, other = (belts.volume(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.corrcoef(first.ravel(), other.ravel())[0, 1] < 0.95
    middle = belts.box // 2
    assert np.abs(first[middle, middle, middle - 3 : middle + 4]).max() < 1e-3, "the protein's place"
    assert 0.5 < first[middle, middle, middle + 8] < 3.5, "detergent beside it, volts"
    faces = [np.take(first, i, axis=a) for a in range(3) for i in (0, -1)]
    assert max(np.abs(face).max() for face in faces) < 0.02, "the belt fits on its grid"


def test_data_set_files(tmp_path):
    files = simulate(settings(tmp_path / "set"))
    particles, truth = ParticleTable.read(files.particles), ParticleTable.read(files.truth)
    assert len(particles) == len(truth) == 24
    assert truth.has_poses and not particles.has_poses
    assert (particles.box, particles.pixel_size) == (48, 4.0)
    assert np.abs(truth.shifts).max() <= 8.0
    for path in (files.truth_map, files.mask, files.reference):
        volume = read_map(path)
        assert volume.data.shape == (48, 48, 48) and volume.pixel_size == pytest.approx(4.0)
    mask, density = read_map(files.mask).data, read_map(files.truth_map).data
    assert mask.min() == 0 and mask.max() == 1 and 0.02 < mask.mean() < 0.3
    assert np.sum(density[mask > 0.5] ** 2) > 0.95 * np.sum(density**2)
    description = json.loads(files.description.read_text())
    assert description["seed"] == 1 and description["model"] is None and 100 < description["particle_diameter"] < 190


def test_noise_is_white_with_variance_one_and_signal_has_the_ratio(tmp_path):
    with_signal = simulate(settings(tmp_path / "a", snr=0.2, particles=150))
    without = simulate(settings(tmp_path / "b", snr=0.2, particles=150, noise_only=True))
    noise = ImageStack(without.stack).read(np.arange(150))
    signal = ImageStack(with_signal.stack).read(np.arange(150)) - noise
    assert noise.std() == pytest.approx(1, abs=0.005) and abs(noise.mean()) < 0.005
    power = np.mean(np.abs(np.fft.rfft2(noise)) ** 2, axis=0) / 48**2
    assert abs(power[1:24, 1:24].mean() - 1) < 0.02 and power[1:24, 1:24].std() < 0.15
    diameter = json.loads(with_signal.description.read_text())["particle_diameter"]
    circle = image_circle(48, diameter / 2 / 4.0, 0) > 0
    assert signal[:, circle].var(axis=1).mean() == pytest.approx(0.2, rel=0.05)


def test_images_depend_on_the_seed_only(tmp_path):
    stacks = [
        ImageStack(simulate(settings(tmp_path / str(i), particles=6, **changes)).stack).read(np.arange(6))
        for i, changes in enumerate(({"belt": True}, {"belt": True, "threads": 2}, {"belt": True, "seed": 2}, {}))
    ]
    np.testing.assert_allclose(stacks[0], stacks[1], atol=1e-4)
    assert np.abs(stacks[0] - stacks[2]).max() > 1
    assert 1e-3 < np.std(stacks[0] - stacks[3]) < 1, "the belt is there"


def test_preferred_views(tmp_path):
    table = ParticleTable.read(simulate(settings(tmp_path, particles=300, preference=20.0)).truth)
    assert table.rotations[:, 2, 2].mean() == pytest.approx(1 / np.tanh(20) - 1 / 20, abs=0.01)


@pytest.mark.parametrize(("change", "words"), [
    ({"box": 8}, "box"), ({"snr": 0.0}, "snr"), ({"pixel_size": float("nan")}, "pixel_size"),
    ({"particles": 1.5}, "whole"), ({"defocus_min": 3e4}, "defocus"),
    ({"shift": 100.0}, "leave the box"), ({"symmetry": "Q2"}, "point group"),
])
def test_settings_are_checked(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        settings(tmp_path, **change)


def test_a_belt_needs_a_membrane(tmp_path):
    with pytest.raises(InputError, match="spans no membrane"):
        simulate(settings(tmp_path, symmetry="D2", belt=True))


@pytest.mark.relion
def test_projections_as_relion(tmp_path):
    """RELION interpolates in a padded transform, so it agrees only to its own accuracy."""
    files = simulate(settings(tmp_path, particles=8))
    command = "relion_project --i truth.mrc --ang truth.star --o relion --angpix 4 --pad 3"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    theirs = ImageStack(tmp_path / "relion.mrcs").read(np.arange(8))
    truth = ParticleTable.read(files.truth)
    ours = project(read_map(files.truth_map).data, truth.rotations, truth.shifts / 4.0)
    for one, other in zip(ours, theirs, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999
    assert np.vdot(ours, theirs) / np.vdot(ours, ours) == pytest.approx(1, abs=0.02), "sums of voxels, as RELION's"


@pytest.mark.relion
def test_relion_reconstructs_the_truth_from_the_true_poses(tmp_path):
    """Signs of angles, origins and CTF, and the grey scale, against a program that shares no code."""
    files = simulate(settings(tmp_path, particles=600, snr=5.0, box=48, pixel_size=4.0))
    subprocess.run(["relion_reconstruct", "--i", "truth.star", "--o", "map.mrc", "--ctf", "--angpix", "4"],
                   cwd=tmp_path, check=True, capture_output=True)
    theirs, truth, mask = (read_map(p).data for p in (tmp_path / "map.mrc", files.truth_map, files.mask))
    curve = fsc(theirs * mask, truth * mask)
    assert curve[2:20].min() > 0.9
    inside = mask > 0.5
    slope = np.sum(theirs[inside] * truth[inside]) / np.sum(truth[inside] ** 2)
    assert slope == pytest.approx(1, abs=0.1)


def test_images_are_ctf_times_projection_at_the_pose_of_the_star_file(tmp_path):
    files = simulate(settings(tmp_path, particles=6, snr=1000.0, defocus_max=12000.0, box=64))
    table = ParticleTable.read(files.truth)
    volume = read_map(files.truth_map).data
    ky, kx = np.meshgrid(np.fft.fftfreq(64, 1 / 64), np.fft.rfftfreq(64, 1 / 64), indexing="ij")
    # Beyond 12 A some signal is delocalised out of the box; the comparison has no CTF padding.
    band = np.hypot(kx, ky) < 64 * 4.0 / 12
    modulation = ctf(table.ctf_parameters(), kx.ravel(), ky.ravel(), 64, 4.0).reshape(6, 64, 33) * band
    images = np.fft.irfft2(np.fft.rfft2(ImageStack(files.stack).read(np.arange(6))) * band, s=(64, 64))

    def agreement(rotations, shifts):
        expected = np.fft.irfft2(np.fft.rfft2(project(volume, rotations, shifts / 4.0)) * modulation, s=(64, 64))
        return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(expected, images, strict=True)])

    assert agreement(table.rotations, table.shifts).min() > 0.99
    assert np.all(agreement(table.rotations, -table.shifts) < agreement(table.rotations, table.shifts) - 0.1)
    assert agreement(table.rotations.transpose(0, 2, 1), table.shifts).max() < 0.9
