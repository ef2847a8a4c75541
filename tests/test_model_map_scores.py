# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores of a model in a map, against closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from models import atoms_of, centred_grid, clean_transform, protein
from scipy import ndimage

from sparsecv.engine.model_map.correlations import (
    correlations,
    cut_off,
    group_correlations,
    included,
    level_of_volume,
    molecule_voxels,
    pearson,
    radius_of,
    seen_to,
)
from sparsecv.engine.model_map.density import to_map, to_transform
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.model_map.qscore import SIGMA, q_scores, spiral
from sparsecv.engine.model_map.scores import assess
from sparsecv.engine.physics.fourier import shell_counts, shell_indices

BOX, PIXEL = 64, 2.2
RNG = np.random.default_rng(11)


# ----------------------------------------------------------------------------------------------------------- Q-score
def gaussian_map(grid: Grid, centre: np.ndarray, sigma: float) -> np.ndarray:
    axes = [np.arange(grid.box) * grid.pixel_size + origin - c for origin, c in zip(grid.origin, centre, strict=True)]
    x, y, z = (np.exp(-(axis**2) / (2 * sigma**2)) for axis in axes)
    return (z[:, None, None] * y[:, None] * x).astype(np.float32)


def test_an_atom_with_the_profile_itself_has_a_q_score_of_1() -> None:
    grid = Grid(60, 0.12, np.array([1.0, 2.0, 3.0]))
    atom = grid.origin + 3.5
    density = gaussian_map(grid, atom, SIGMA)
    assert q_scores(density, grid, atom[None])[0] == pytest.approx(1, abs=2e-3)
    assert q_scores(5 - 3 * density, grid, atom[None])[0] == pytest.approx(-1, abs=2e-3)
    assert q_scores(density, grid, atom[None], sigma=0.8)[0] < 0.95
    assert q_scores(np.ones_like(density), grid, atom[None])[0] == 0


def test_q_scores_are_those_of_a_plain_loop() -> None:
    """The definition in words, one atom and one point at a time."""
    grid = Grid(24, 0.7, np.zeros(3))
    density = ndimage.gaussian_filter(RNG.normal(size=(24,) * 3), 1.2).astype(np.float32)
    atoms = RNG.uniform(4, 12, size=(12, 3))
    expected = []
    for k, atom in enumerate(atoms):
        others = np.delete(atoms, k, axis=0)
        values, profile = 8 * [atom], 8 * [1.0]
        for radius in np.arange(1, 21) * 0.1:
            for attempt in range(51):
                points = [atom + radius * u for u in spiral(8 + 2 * attempt)]
                free = [p for p in points if np.linalg.norm(others - p, axis=1).min() >= 0.9 * radius]
                if len(free) >= (8 if attempt < 50 else 1):
                    values = [*values, *free]
                    profile += len(free) * [float(np.exp(-0.5 * (radius / 0.4) ** 2))]
                    break
        read = ndimage.map_coordinates(density.astype(np.float64), (np.array(values)[:, ::-1] / 0.7).T, order=1)
        expected.append(np.corrcoef(read, profile)[0, 1])
    assert np.allclose(q_scores(density, grid, atoms), expected, atol=1e-6)


def test_atoms_at_the_face_of_the_box_have_no_q_score() -> None:
    grid = Grid(16, 1.0, np.zeros(3))
    density = RNG.normal(size=(16,) * 3).astype(np.float32)
    scores = q_scores(density, grid, np.array([[8.0, 8, 8], [1.0, 8, 8], [8, 14.5, 8]]))
    assert np.isfinite(scores).tolist() == [True, False, False]


@pytest.mark.parametrize("count", [8, 33, 108])
def test_points_of_the_spiral_are_even(count) -> None:
    points = spiral(count)
    assert np.allclose(np.linalg.norm(points, axis=1), 1)
    assert np.linalg.norm(points.mean(axis=0)) < 0.07
    nearest = np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)[:, 1]
    assert nearest.min() > 0.55 * np.sqrt(4 * np.pi / count)


# ------------------------------------------------------------------------------------------------------- correlations
def test_correlations_of_a_map_with_itself_and_with_noise() -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    model = to_map(clean_transform("AB", BOX, PIXEL))
    molecule = molecule_voxels(atoms, grid)
    same = correlations(model * 3 + 7, model, molecule)
    assert [same.box, same.mask, same.volume, same.peaks] == pytest.approx([1] * 4, abs=1e-5)
    noise = correlations(RNG.normal(size=model.shape).astype(np.float32), model, molecule)
    assert max(abs(noise.box), abs(noise.mask), abs(noise.volume)) < 0.05
    assert noise.peaks < 0  # the union of two sets is where one of them is high and the other is not
    # 17.2 A^3 for each of 2943 atoms, and crevices that hold no water
    assert same.mask_voxels * PIXEL**3 == pytest.approx(1.15 * 2943 * 17.2, rel=0.2)


def test_correlations_are_those_of_the_voxels_they_name() -> None:
    grid = Grid(12, 1.0, np.zeros(3))
    density, model = RNG.normal(size=(2, 12, 12, 12)).astype(np.float32)
    inside = np.zeros((12,) * 3, dtype=bool)
    inside[3:8, 2:9, 4:7] = True
    found = correlations(density, model, inside)
    top = model >= np.sort(model, axis=None)[-int(inside.sum())]
    peaks = top | (density >= np.sort(density, axis=None)[-int(inside.sum())])
    for value, voxels in ((found.box, np.ones_like(inside)), (found.mask, inside), (found.volume, top),
                          (found.peaks, peaks)):  # fmt: skip
        assert value == pytest.approx(np.corrcoef(density[voxels], model[voxels])[0, 1], abs=1e-6)
    assert pearson(np.ones(4), np.arange(4.0)) == 0
    assert grid.box == 12


def test_group_correlations_are_those_of_a_plain_loop() -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    density, model = RNG.normal(size=(2, BOX, BOX, BOX)).astype(np.float32)
    radius = 2.5
    found = group_correlations(density, model, atoms, atoms.residue_of, len(atoms.residues), radius, grid)
    index = np.stack(np.meshgrid(*3 * [np.arange(BOX)], indexing="ij"), axis=-1)[..., ::-1] * PIXEL + grid.origin
    for residue in (0, 57, len(atoms.residues) - 1):
        near = np.zeros((BOX,) * 3, dtype=bool)
        for position in atoms.positions[atoms.residue_of == residue]:
            near |= np.linalg.norm(index - position, axis=-1) <= radius
        assert found[residue] == pytest.approx(np.corrcoef(density[near], model[near])[0, 1], abs=1e-6)


def test_what_can_be_seen_of_a_flat_spectrum() -> None:
    """With equal power per coefficient the correlation is the root of the share of coefficients kept."""
    grid = Grid(32, 1.5, np.zeros(3))
    noise = np.random.default_rng(1).normal(size=(32,) * 3)
    transform = to_transform(noise.astype(np.float32))
    transform /= np.abs(transform)
    counts = shell_counts(32).copy()
    counts[0] = 0
    expected = int(np.argmax(np.sqrt(np.cumsum(counts) / counts.sum()) >= 0.99))
    assert seen_to(transform, grid) == pytest.approx(48 / expected)
    narrow = transform * (shell_indices(32) <= 5)
    assert seen_to(narrow.astype(np.complex64), grid) == pytest.approx(48 / 5)
    assert seen_to(np.zeros_like(transform), grid) == 48


# --------------------------------------------------------------------------------------------------------- everything
def test_scores_of_a_residue_that_is_out_of_place() -> None:
    grid, atoms = centred_grid(BOX, PIXEL), atoms_of(protein())
    clean = clean_transform("AB", BOX, PIXEL)
    positions = atoms.positions.copy()
    wrong = 40
    positions[atoms.residue_of == wrong] += np.array([6.0, 0, 0])
    from dataclasses import replace

    found = assess(to_map(clean), clean, replace(atoms, positions=positions), grid, 5.0)
    assert wrong in found.worst(atoms, 12)
    assert found.residues.q_score[wrong] < np.nanmean(found.residues.q_score) - 0.2
    assert found.chains.atoms.tolist() == [np.sum(atoms.chain_of == 0), np.sum(atoms.chain_of == 1)]
    assert found.inclusion > 0.9
    assert found.inclusion_curve[0] >= found.inclusion >= found.inclusion_curve[-1]
    assert np.all(np.diff(found.inclusion_curve) <= 0)
    assert found.inclusion_backbone == pytest.approx(found.inclusion, abs=0.1)
    assert found.q_score == pytest.approx(np.nanmean(found.atom_q))
    assert any("contour level" in text for text in found.notes)


def test_small_helpers() -> None:
    values = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    assert level_of_volume(values, 5) == (22, True)
    assert level_of_volume(np.maximum(values, 20), 12) == (20, False)  # as outside of a mask
    assert included(np.array([1.0, 2.0, np.nan, 3.0]), 1.5, np.array([True] * 4)) == pytest.approx(2 / 3)
    assert np.isnan(included(np.array([1.0]), 0.5, np.array([False])))
    assert radius_of(1.0) == 1.5
    assert radius_of(5.0) == pytest.approx(3.5)
    grid = Grid(8, 1.0, np.zeros(3))
    density = RNG.normal(size=(8,) * 3).astype(np.float32)
    assert np.allclose(cut_off(to_transform(density), 0.5, grid), density, atol=1e-5)
