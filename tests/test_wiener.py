# SPDX-License-Identifier: GPL-3.0-or-later
"""The Wiener prior against its closed form, and the seam: a regulariser sees one half only."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares
from tiny import PIXEL_SIZE, blobs, random_rotations, write_particles

from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.physics.masks import fade_corners, sphere
from sparsecv.engine.physics.symmetry import symmetry_matrices, unique_directions
from sparsecv.engine.refine import loop
from sparsecv.engine.refine.joining import (
    frame_shift,
    joined_map,
    low_resolution,
    share_low_resolution,
)
from sparsecv.engine.refine.loop import Iteration
from sparsecv.engine.refine.prepare import prepare
from sparsecv.engine.refine.regularisers import Evidence, Regularised, Wiener
from sparsecv.engine.refine.regularisers.wiener import prior_precision
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.refine.volumes import Accumulator, half_width, map_to_volume, move_map, radial
from sparsecv.engine.report.progress import Progress
from sparsecv.kernels import cpu

BOX, LAST, WEIGHT = 24, 11, 7.0
SUPPORT = sphere(BOX, 10, 2)


def even_evidence(curve: np.ndarray, density: np.ndarray | None = None, kernel: str = "trilinear") -> Evidence:
    """Quarters in which every direction has the same weight: B = N F with N constant."""
    volume = map_to_volume(cpu, blobs(BOX) if density is None else density, LAST)
    c = half_width(LAST)
    weight = np.full((2 * c + 1, 2 * c + 1, c + 1), WEIGHT / 2, dtype=np.float32)
    quarters = [Accumulator(volume * np.float32(WEIGHT / 2), weight, BOX, LAST, kernel) for _ in "12"]
    empty = np.zeros((BOX,) * 3, np.float32)
    return Evidence((quarters[0], quarters[1]), empty, curve, SUPPORT, SUPPORT, BOX, PIXEL_SIZE)


def filtered(evidence: Evidence, factors: np.ndarray) -> np.ndarray:
    """The unregularised map with each shell multiplied by a factor, inside the support."""
    total = evidence.quarters[0] + evidence.quarters[1]
    damping = radial(cpu, factors, total.weight.shape)
    return Accumulator(total.data * damping, total.weight, BOX, LAST).solve(cpu) * SUPPORT


@pytest.mark.parametrize("tau_factor", [1.0, 4.0])
def test_with_even_weights_each_shell_is_multiplied_by_its_wiener_factor(tau_factor: float) -> None:
    curve = np.linspace(0.95, 0.05, LAST + 1)
    evidence = even_evidence(curve)
    found = Wiener(tau_factor).regularise(cpu, evidence)
    # V = B / (N + N (1 - FSC) / (T FSC)): for T = 1 the factor is the FSC itself
    wanted = filtered(evidence, tau_factor * curve / (tau_factor * curve + 1 - curve))
    np.testing.assert_allclose(found.reference, wanted, atol=1e-4 * np.abs(wanted).max())
    prior = prior_precision(cpu, evidence.quarters[0] + evidence.quarters[1], curve, tau_factor)
    np.testing.assert_allclose(prior, WEIGHT * (1 - curve) / (tau_factor * curve), rtol=1e-5)


def test_a_perfect_correlation_leaves_the_map_as_it_is() -> None:
    evidence = even_evidence(np.ones(LAST + 1))
    plain = (evidence.quarters[0] + evidence.quarters[1]).solve(cpu) * SUPPORT
    found = Wiener().regularise(cpu, evidence).reference
    np.testing.assert_allclose(found, plain, atol=2e-3 * np.abs(plain).max())


def test_no_correlation_leaves_almost_nothing() -> None:
    evidence = even_evidence(np.zeros(LAST + 1))
    plain = (evidence.quarters[0] + evidence.quarters[1]).solve(cpu) * SUPPORT
    assert np.linalg.norm(Wiener().regularise(cpu, evidence).reference) < 0.002 * np.linalg.norm(plain)


def test_a_short_curve_is_no_information_beyond_its_end() -> None:
    short, padded = np.full(6, 0.9), np.zeros(LAST + 1)
    padded[:6] = 0.9
    one, two = (Wiener().regularise(cpu, even_evidence(curve)).reference for curve in (short, padded))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("tau_factor", [1.0, 4.0])
def test_the_joined_map_knows_twice_as_much(tau_factor: float) -> None:
    curve = np.linspace(0.9, 0.1, LAST + 1)
    evidence = even_evidence(curve)
    found = joined_map(cpu, evidence.quarters[0] + evidence.quarters[1], curve, SUPPORT, tau_factor)
    # for T = 1 the FSC of the whole, 2 FSC / (1 + FSC)
    wanted = filtered(evidence, 2 * tau_factor * curve / (2 * tau_factor * curve + 1 - curve))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_shared_low_resolution_is_the_mean_of_both() -> None:
    first = even_evidence(np.ones(LAST + 1)).quarters[0]
    second = even_evidence(np.ones(LAST + 1), blobs(BOX, seed=2)).quarters[0]
    low = low_resolution(cpu, first, 4), low_resolution(cpu, second, 4)
    one, two = (replace(own, data=own.data.copy(), weight=own.weight.copy()) for own in (first, second))
    for own in (one, two):
        share_low_resolution(cpu, own, low, 4)
    low = radial(cpu, np.arange(LAST + 1) <= 4, first.weight.shape) > 0
    for shared, own in ((one, first), (two, second)):
        np.testing.assert_allclose(shared.data[low], (first.data[low] + second.data[low]) / 2)
        np.testing.assert_array_equal(shared.data[~low], own.data[~low])
    assert low.any() and not low.all()


def test_a_frame_that_is_off_is_found() -> None:
    rng = np.random.default_rng(1)
    rotations = np.linalg.qr(rng.normal(size=(200, 3, 3)))[0]
    point = np.array([2.0, -1.0, 3.0])
    shifts = rotations[:, :2] @ point + rng.normal(0, 0.3, (200, 2))
    np.testing.assert_allclose(frame_shift(rotations, shifts, np.eye(3)[None]), point, atol=0.1)
    half_turn = np.stack([np.eye(3), np.diag([-1.0, -1.0, 1.0])])  # leaves only its axis free
    np.testing.assert_allclose(frame_shift(rotations, shifts, half_turn), [0, 0, 3], atol=0.1)


@pytest.mark.parametrize("name", ["C1", "C4", "C7", "D2", "D7", "I2"])
def test_a_frame_moves_only_where_the_point_group_lets_it(name: str) -> None:
    """The least-squares shift along the axis, from views of one asymmetric unit, in which no direction stands alone."""
    rotations = random_rotations(400, seed=3)
    matrices = symmetry_matrices(name)
    rotations = rotations[unique_directions(rotations[:, 2], matrices)]
    shifts = np.random.default_rng(4).normal(1.0, 2.0, (len(rotations), 2))
    found = frame_shift(rotations, shifts, matrices)
    free = {"C": np.eye(3)[2:], "D": np.empty((0, 3)), "I": np.empty((0, 3))}[name[0]] if name != "C1" else np.eye(3)

    def misfit(along: np.ndarray) -> np.ndarray:
        return (shifts - rotations[:, :2] @ (along @ free)).ravel()

    wanted = least_squares(misfit, np.zeros(len(free))).x @ free if len(free) else np.zeros(3)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- the seam
class Witness:
    """A regulariser that remembers what it was shown."""

    name = "witness"
    confidence = 1.0

    def __init__(self) -> None:
        self.seen: list[Evidence] = []

    def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
        self.seen.append(evidence)
        found = Wiener().regularise(ops, evidence)
        return replace(found, memory={"iteration": float(evidence.iteration)}, shown={"band": evidence.band})

    def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
        return 17


def one_iteration(folder: Path) -> tuple[Witness, Iteration]:
    settings = RefineSettings(particles=folder / "particles.star", reference=folder / "reference.mrc", output=folder,
                              local=True, initial_lowpass=0, join_below=0, threads=1, device="cpu")
    refinement = prepare(settings, cpu, lambda text: None, Progress(io.StringIO()))
    witness = Witness()
    refinement.regulariser = witness
    return witness, refinement.iterate()


def test_the_last_map_has_the_strength_of_the_others(tmp_path: Path) -> None:
    write_particles(tmp_path, 40, BOX, density=blobs(BOX), noise=5.0)
    write_map(tmp_path / "reference.mrc", blobs(BOX), PIXEL_SIZE)
    settings = RefineSettings(particles=tmp_path / "particles.star", reference=tmp_path / "reference.mrc",
                              output=tmp_path, local=True, threads=1, device="cpu")
    plain, strong = (
        prepare(replace(settings, tau_factor=tau_factor), cpu, lambda text: None, Progress(io.StringIO())).iterate(
            is_last=True
        )
        for tau_factor in (1.0, 4.0)
    )
    np.testing.assert_array_equal(plain.fsc, strong.fsc)  # nothing else has changed
    assert plain.joined is not None and strong.joined is not None
    assert np.linalg.norm(strong.joined) > 1.02 * np.linalg.norm(plain.joined)


def test_what_a_regulariser_returns_is_kept_and_told(tmp_path: Path) -> None:
    write_particles(tmp_path, 40, BOX, density=blobs(BOX), noise=5.0)
    write_map(tmp_path / "reference.mrc", blobs(BOX), PIXEL_SIZE)
    settings = RefineSettings(particles=tmp_path / "particles.star", reference=tmp_path / "reference.mrc",
                              output=tmp_path, local=True, initial_lowpass=0, threads=1, device="cpu")
    refinement = prepare(settings, cpu, lambda text: None, Progress(io.StringIO()))
    witness = Witness()
    refinement.regulariser = witness
    refinement.iterate()
    assert refinement.state.band == min(17, (BOX - 1) // 2)  # the witness's, not the FSC's
    refinement.iterate()
    assert [evidence.iteration for evidence in witness.seen] == [1, 1, 2, 2]
    assert [evidence.memory for evidence in witness.seen[2:]] == [{"iteration": 1.0}] * 2
    entry = refinement.state.history[-1]
    assert entry["prior"] == "witness"
    assert [shown["band"] for shown in entry["regulariser"]] == [witness.seen[2].band] * 2


def test_references_move_with_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A global search centres the frame: the previous reference that a regulariser sees is in that of the sums."""
    write_particles(tmp_path, 40, BOX, density=blobs(BOX), noise=1.0)
    write_map(tmp_path / "reference.mrc", blobs(BOX), PIXEL_SIZE)
    settings = RefineSettings(particles=tmp_path / "particles.star", reference=tmp_path / "reference.mrc",
                              output=tmp_path, initial_lowpass=0, join_below=0, threads=1, device="cpu")
    refinement = prepare(settings, cpu, lambda text: None, Progress(io.StringIO()))
    start = refinement.state.halves[0].reference.copy()
    witness = Witness()
    refinement.regulariser = witness
    monkeypatch.setattr(loop, "frame_shift", lambda *arguments: np.array([1.0, -2.0, 0.5]))
    refinement.iterate()
    factor = np.float32(refinement.grey_scales[0])
    wanted = move_map(cpu, start * factor, np.array([-1.0, 2.0, -0.5]))
    np.testing.assert_allclose(witness.seen[0].previous, wanted, atol=1e-5 * np.abs(wanted).max())


def test_nothing_of_the_other_half_reaches_a_regulariser(tmp_path: Path) -> None:
    count = 40
    table = write_particles(tmp_path, count, BOX, density=blobs(BOX), noise=5.0)
    write_map(tmp_path / "reference.mrc", blobs(BOX), PIXEL_SIZE)
    before, iteration = one_iteration(tmp_path)
    for evidence, half_map in zip(before.seen, iteration.half_maps, strict=True):
        total = evidence.quarters[0] + evidence.quarters[1]
        np.testing.assert_array_equal(fade_corners(total.solve(cpu)), half_map)
        np.testing.assert_array_equal(evidence.fsc, iteration.fsc)
    # other images in half set 2: half 1 must not change by a bit, but for the FSC
    images, _ = table.read_images(np.arange(count))
    images[1::2] += np.random.default_rng(5).normal(0, 5, images[1::2].shape).astype(np.float32)
    write_stack(tmp_path / "particles.mrcs", images, PIXEL_SIZE)
    after, _ = one_iteration(tmp_path)
    for old, new in zip(before.seen[0].quarters, after.seen[0].quarters, strict=True):
        np.testing.assert_array_equal(old.data, new.data)
        np.testing.assert_array_equal(old.weight, new.weight)
    np.testing.assert_array_equal(before.seen[0].previous, after.seen[0].previous)
    assert not np.array_equal(before.seen[1].quarters[0].data, after.seen[1].quarters[0].data)
    assert not np.array_equal(before.seen[0].fsc, after.seen[0].fsc)
