# SPDX-License-Identifier: GPL-3.0-or-later
"""The curvature of the Ewald sphere: exact images of Gaussian blobs, their reconstruction, RELION's, a refinement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curved_images import Blobs, images_of, write_set
from golden import ewald as golden
from tiny import blobs, write_particles

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters, ctf, ctf_parts, frequency_powers, wavelength
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.ewald import coherence, curvature, kept_amplitude
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.half import Particles, Search, expectation_maximisation
from sparsecv.engine.refine.reconstruct import reconstruct
from sparsecv.engine.refine.schedule import Draws, Geometry, search_plan
from sparsecv.engine.refine.settings import ReconstructSettings, RefineSettings
from sparsecv.engine.refine.state import HalfState, ParticleState
from sparsecv.engine.refine.volumes import Accumulator, map_to_volume
from sparsecv.engine.validate.fsc import fsc
from sparsecv.kernels import cpu, cuda

GROUP, DIAMETER = golden.GROUP, golden.DIAMETER
BOX, PIXEL_SIZE = GROUP.box, GROUP.pixel_size
BLOBS = Blobs.within(DIAMETER, 60)
INSIDE = sphere(BOX, DIAMETER / 2 / PIXEL_SIZE + 2, 3)
FINEST = slice(13, 15)  # shells, of 15


def map_of(folder: Path, **options: Any) -> np.ndarray:
    """A reconstruction of the particles in a folder."""
    path = folder / "map.mrc"
    given = {"particle_diameter": DIAMETER} if options.get("ewald") else {}
    reconstruct(ReconstructSettings(particles=folder / "particles.star", output=path, threads=1, device="cpu",
                                    **given | options))  # fmt: skip
    return read_map(path).data


def curve(density: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """FSC around the particle."""
    found: np.ndarray = fsc(density * INSIDE, truth * INSIDE)
    return found


# ------------------------------------------------------------------------------------------------- the formulas
@pytest.mark.parametrize("hand", [1, -1])
def test_layer_has_the_defocus_of_its_height(hand: int) -> None:
    """A blob at the height z is recorded as one in the middle would be at a defocus smaller by hand times z."""
    rotation, place, defocus = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], (0.7, -0.4, 5.0), 60.0
    group = replace(GROUP, hand=hand)
    high, middle = (Blobs(np.array([position]) @ rotation) for position in (place, (*place[:2], 0.0)))  # A^T r
    nothing = np.zeros((1, 2))
    seen = images_of(high, rotation[None], nothing, np.array([defocus]), group)
    expected = images_of(middle, rotation[None], nothing, np.array([defocus - hand * place[2]]), group)
    assert np.abs(seen - expected).max() < 1e-4 * np.abs(expected).max()
    other = images_of(middle, rotation[None], nothing, np.array([defocus + hand * place[2]]), group)
    assert np.abs(seen - other).max() > 0.1 * np.abs(expected).max()


def test_curvature_is_that_of_a_sphere_of_radius_one_over_lambda() -> None:
    voltages, length, k = np.array([100.0, 300.0]), 200.0, 60.0
    radius = 1 / wavelength(voltages)  # 1/A
    depth = radius - np.sqrt(radius**2 - (k / length) ** 2)
    np.testing.assert_allclose(curvature(voltages, 1, length) * k**2 / length, depth, rtol=1e-4)
    np.testing.assert_array_equal(curvature(voltages, -1, length), -curvature(voltages, 1, length))


def test_coherence_is_the_transform_of_a_ball() -> None:
    diameter, distances = 200.0, np.array([0.0, 0.002, 0.005, 0.0072, 0.02])
    x = (np.arange(4000) + 0.5) / 4000 * diameter - diameter / 2
    area = (diameter / 2) ** 2 - x**2  # of a cut across the ball
    expected = np.cos(2 * np.pi * np.outer(distances, x)) @ area / area.sum()
    np.testing.assert_allclose(coherence(distances, diameter), expected, atol=1e-4)
    np.testing.assert_array_equal(coherence(-distances, diameter), coherence(distances, diameter))


def test_amplitude_that_is_kept_falls_with_resolution_size_and_wavelength() -> None:
    """Some 0.7 at the resolution sqrt(lambda t / 1.4) that DeRosier's criterion allows."""
    assert kept_amplitude(3.0, 100, 300) > 0.98 > kept_amplitude(3.0, 150, 100) > kept_amplitude(3.0, 300, 100) > 0.5
    limit = np.sqrt(float(wavelength(np.array(300.0))) * 700 / 1.4)
    assert 0.5 < kept_amplitude(limit, 700.0, 300.0) < 0.75


def test_parts_of_a_ctf() -> None:
    disc, one = make_disc(40), np.ones(2)
    parameters = CtfParameters(15000 * one, 12000 * one, 30 * one, 20 * one, np.array([0, 50.0]), np.array([1, 0.8]),
                               300 * one, 2.7 * one, 0.1 * one, even=np.array([[0.3, 5, -2, 7], [0, 0, 0, 0]]),
                               limit=np.array([0.2, 0.1]))  # fmt: skip
    envelope, gamma = ctf_parts(parameters, frequency_powers(disc.kx, disc.ky, 40, 2.0, even=4))
    np.testing.assert_allclose(envelope * np.sin(gamma), ctf(parameters, disc.kx, disc.ky, 40, 2.0), atol=1e-6)
    assert envelope[0].max() == 1 and not envelope[1][disc.shell > 9].any()


# -------------------------------------------------------------------------------------------------- sums of images
@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Particles without noise, and the truth."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, write_set(folder, 160, (GROUP,), blobs=BLOBS)


def particles_of(folder: Path, ops: Any = cpu) -> Particles:
    table = ParticleTable.read(folder / "particles.star", independent_halves=False)
    return Particles.of(ops, table, Geometry(BOX, PIXEL_SIZE, DIAMETER), np.eye(3)[None], 64.0)


def test_sidebands_together_are_the_image_where_nothing_curves(plain: tuple[Path, np.ndarray]) -> None:
    """Without a mask, and for two slices that are one: B = C X / sigma^2 and N = C^2 / sigma^2."""
    particles, index = particles_of(plain[0]), np.arange(7)
    slices, disc = particles.ewald_slices(cpu, 14, 1), particles.disc.crop(14)
    slices = replace(slices, rho=np.ones_like(slices.rho), mask=np.ones((BOX, BOX), np.float32))
    images, precision = particles.images.get(index), 1 + np.arange(7, dtype=np.float32)[:, None]
    parameters, groups = particles.parameters[index], np.zeros(7, dtype=np.int64)
    data, weight = slices.sums(cpu, images, np.zeros((7, 2), dtype=np.int64), parameters, groups, precision)
    chosen = slices.chosen
    contrast = ctf(parameters, disc.kx[chosen], disc.ky[chosen], BOX, PIXEL_SIZE)
    transforms = np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2))).reshape(7, -1)[:, disc.flat[chosen]] / BOX
    np.testing.assert_allclose(data[:7] + data[7:], precision * contrast * transforms, atol=2e-5 * np.abs(data).max())
    np.testing.assert_allclose(weight[:7] + weight[7:], precision * contrast**2, atol=1e-5)


def test_weights_are_of_the_distance_between_the_slices(plain: tuple[Path, np.ndarray]) -> None:
    """lambda k^2 apart, each lambda k^2 / 2 from the plane."""
    slices = particles_of(plain[0]).ewald_slices(cpu, 14, -1)
    k = np.hypot(slices.kx, slices.ky) / (BOX * PIXEL_SIZE)
    wanted = coherence(wavelength(np.array(GROUP.voltage)) * k**2, DIAMETER)
    np.testing.assert_allclose(slices.rho, wanted[None], rtol=1e-5, atol=1e-6)
    assert wanted.max() > 0.99 and wanted.min() < 0.1


def test_weights_are_of_each_group_s_own_curvature(tmp_path: Path) -> None:
    write_set(tmp_path, 4, (GROUP, replace(GROUP, voltage=30 * GROUP.voltage)), blobs=BLOBS)
    particles, index = particles_of(tmp_path), np.arange(4)
    slices, table = particles.ewald_slices(cpu, 14, 1), particles.table
    weight = slices.sums(cpu, particles.images.get(index), np.zeros((4, 2), np.int64), particles.parameters[index],
                         table.optics_index[index])[1]  # fmt: skip
    k = np.hypot(slices.kx, slices.ky) / (BOX * PIXEL_SIZE)
    voltage = np.array([group.voltage_kv for group in table.optics])[table.optics_index[index]]
    powers = frequency_powers(slices.kx, slices.ky, BOX, PIXEL_SIZE)
    envelope, gamma = ctf_parts(particles.parameters[index], powers)
    rho = coherence(wavelength(voltage)[:, None] * k**2, DIAMETER)
    wanted = envelope**2 / 4 * (1 - rho * np.cos(2 * gamma))
    np.testing.assert_allclose(weight, np.concatenate([wanted, wanted]), atol=1e-4)


def test_flat_slices_without_a_mask_are_the_usual_sums_of_a_refinement(tmp_path: Path) -> None:
    """Images by their norms, CTFs by the scale of their group, noise by shell: as in sums without the correction."""
    box, count, last = 24, 12, 10
    density, rng = blobs(box), np.random.default_rng(8)
    table = write_particles(tmp_path, count, box, density=density, noise=30.0)
    geometry, draws = Geometry(box, table.pixel_size, 80.0), Draws.of(1, 1, count)
    particles = Particles.of(cpu, table, geometry, np.eye(3)[None], 100.0)
    half = HalfState(density, 450 * rng.uniform(0.5, 2, (1, particles.disc.last + 1)), np.array([1.3]), 3.0, 3.0, 5.0)
    plan = search_plan(geometry, 6, half, np.eye(3)[None], draws, "local")
    slices = particles.ewald_slices(cpu, last, 1)
    assert len(slices.chosen) == particles.disc.size(last)
    slices = replace(slices, bends=0 * slices.bends, rho=np.ones_like(slices.rho), mask=np.ones_like(slices.mask))
    found = []
    for own in (None, slices):
        state = ParticleState.start(table.rotations, np.zeros((count, 2)))
        state.norm[:] = np.linspace(0.5, 2, count)
        search = Search(plan, map_to_volume(cpu, density, last), None, draws, last, 8, own)
        found.append(expectation_maximisation(cpu, particles, state, half, np.arange(count), np.arange(count) % 2,
                                              search, lambda done: None))  # fmt: skip
    for flat, both in zip(found[0].quarters, found[1].quarters, strict=True):
        for name in ("data", "weight"):
            ours, theirs = getattr(both, name), getattr(flat, name)
            assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_grey_of_the_background_is_no_signal(plain: tuple[Path, np.ndarray]) -> None:
    """Images are masked: a constant would become the transform of the mask."""
    particles, index = particles_of(plain[0]), np.arange(5)
    slices, images = particles.ewald_slices(cpu, 14, 1), particles.images.get(index)
    terms = np.zeros((5, 2), dtype=np.int64), particles.parameters[index], np.zeros(5, dtype=np.int64)
    found, wanted = (slices.sums(cpu, given, *terms)[0] for given in (images + np.float32(50 * images.std()), images))
    assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_images_are_refocused_within_the_mask(tmp_path: Path) -> None:
    """A small particle, of which the other sideband is so far out of focus that the mask takes most of it away.

    What is left of an image is a quarter of either slice; without a mask the other sideband is as strong.
    """
    small = Blobs.within(1.0, 8)
    write_set(tmp_path, 20, (GROUP,), blobs=small, defocus_range=(10, 12))
    table, index = ParticleTable.read(tmp_path / "particles.star", independent_halves=False), np.arange(20)
    particles = Particles.of(cpu, table, Geometry(BOX, PIXEL_SIZE, 1.6), np.eye(3)[None], 64.0)
    slices, shifts = particles.ewald_slices(cpu, 14, 1), table.shifts / PIXEL_SIZE
    whole = np.rint(shifts).astype(np.int64)
    rest = np.tile((shifts - whole)[:, None], (2, 1, 1)).astype(np.float32)
    k = np.stack([slices.kx, slices.ky]) / (BOX * PIXEL_SIZE)
    height = float(wavelength(np.array(GROUP.voltage))) / 2 * (k * k).sum(axis=0)
    fine = np.hypot(slices.kx, slices.ky) > 12.5
    for mask, least, most in ((slices.mask, 0.0, 0.25), (np.ones_like(slices.mask), 0.9, 1.1)):
        own, groups = replace(slices, mask=mask), np.zeros(20, dtype=np.int64)
        sums = own.sums(cpu, particles.images.get(index), whole, particles.parameters, groups)
        data = cpu.shift_images(sums[0], rest, slices.kx, slices.ky, BOX)[:, 0]
        for part, side in ((data[:20], 1), (data[20:], -1)):
            true = np.array([small.transform(np.stack([*k, side * height], axis=1) @ turn) for turn in table.rotations])
            wanted = true[:, fine] / (4 * PIXEL_SIZE**3 * BOX)
            assert least <= np.linalg.norm(part[:, fine] - wanted) / np.linalg.norm(wanted) < most


def test_pixels_that_curve_out_of_the_volume_are_left_away(plain: tuple[Path, np.ndarray]) -> None:
    particles = particles_of(plain[0])
    slices, disc = particles.ewald_slices(cpu, 13, 1), particles.disc.crop(13)
    left = np.setdiff1d(np.arange(len(disc)), slices.chosen)
    assert 0 < len(left) < 0.1 * len(disc)
    assert disc.shell[left].min() == 13
    radius = np.hypot(disc.kx, disc.ky)
    reach = radius * np.sqrt(1 + (slices.bends[0] * radius) ** 2)
    assert reach[left].min() > 13.5 >= reach[slices.chosen].max()


def test_sums_on_a_gpu(plain: tuple[Path, np.ndarray], imitation: None) -> None:
    found = []
    for ops in (cpu, cuda):
        particles, index = particles_of(plain[0], ops), np.arange(5)
        table, slices = particles.table, particles.ewald_slices(ops, 14, -1)
        total, groups = Accumulator.empty(ops, BOX, 14), np.zeros(5, dtype=np.int64)
        sums = slices.sums(ops, particles.images.get(index), np.ones((5, 2), dtype=np.int64),
                           particles.parameters[index], groups)  # fmt: skip
        rotations, shifts = table.rotations[index].astype(np.float32), np.full((5, 2, 2), 0.3, np.float32)
        places = (np.full((5, 2), 0.5, np.float32), rotations, np.arange(5, dtype=np.int32))
        with total.adding(ops) as add:
            slices.deposit(ops, add, sums, groups, *map(ops.xp.asarray, (shifts, *places)))
        found.append([ops.to_host(array) for array in (total.data, total.weight)])
    for ours, theirs in zip(*found, strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(ours)


# ------------------------------------------------------------------------------------------------- reconstructions
def test_corrected_map_is_the_truth_where_a_flat_one_is_nothing(plain: tuple[Path, np.ndarray]) -> None:
    folder, truth = plain
    flat, right, wrong = (curve(map_of(folder, **options), truth) for options in (
        {}, {"ewald": True}, {"ewald": True, "ewald_hand": -1}))  # fmt: skip
    assert right[1:15].min() > 0.96
    assert flat[FINEST].max() < 0.7
    assert wrong[8:].max() < flat[8]
    assert (wrong[6:12] < flat[6:12]).all() and (right[9:15] > flat[9:15]).all()
    found = map_of(folder, ewald=True)
    assert np.sum(found * truth * INSIDE) / np.sum(truth**2 * INSIDE) == pytest.approx(1, abs=0.03)


def test_flat_map_loses_the_amplitude_that_is_told(plain: tuple[Path, np.ndarray]) -> None:
    """Shell by shell, from nearly all of it to a tenth."""
    folder, truth = plain
    k = np.fft.fftfreq(BOX, 1 / BOX)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))
    found, true = (np.fft.fftn(density * INSIDE) for density in (map_of(folder), truth))
    for number in range(4, 15):
        here = shell == number
        kept = np.vdot(true[here], found[here]).real / np.vdot(true[here], true[here]).real
        assert kept == pytest.approx(kept_amplitude(BOX * PIXEL_SIZE / number, DIAMETER, GROUP.voltage), abs=0.04)


def test_the_other_hand(tmp_path: Path) -> None:
    truth = write_set(tmp_path, 120, (replace(GROUP, hand=-1),), blobs=BLOBS)
    assert curve(map_of(tmp_path, ewald=True, ewald_hand=-1), truth)[1:15].min() > 0.95
    assert curve(map_of(tmp_path, ewald=True), truth)[FINEST].max() < 0.3


def test_kernel_halves_and_accumulators(plain: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """The Gaussian kernel, and half maps by themselves."""
    folder, truth = plain
    words = ("reconstruct", "--particles", folder / "particles.star", "--output", tmp_path / "map.mrc", "--halves",
             "--kernel", "gaussian", "--ewald", "--particle-diameter", DIAMETER, "--threads", 1, "--device", "cpu")
    assert cli.main([str(word) for word in words]) == 0
    for name in ("map", "map_half1", "map_half2"):
        assert curve(read_map(tmp_path / f"{name}.mrc").data, truth)[1:15].min() > 0.9, name
    assert "ewald = true" in (tmp_path / "map.toml").read_text()


def test_unlike_optics_groups_together(tmp_path: Path) -> None:
    """Aberrations, anisotropic magnification, another voltage, another pixel size and box, each in its own group."""
    groups = (
        GROUP,
        replace(GROUP, odd=(0.4, -0.3, 0.05, 0.2, 0.1, -0.1), even=(0.3, 0.2, -0.4, 0.1, 0.05, 0.1, -0.05, 0.02, 0.1)),
        replace(GROUP, box=40, magnification=(1.02, 0.025, -0.02, 0.985)),
        replace(GROUP, voltage=16.0),
        replace(GROUP, box=40, pixel_size=0.27),
    )
    truth = write_set(tmp_path, 300, groups, blobs=BLOBS)
    assert curve(map_of(tmp_path, ewald=True), truth)[1:15].min() > 0.95
    assert curve(map_of(tmp_path), truth)[FINEST].max() < 0.8
    table = ParticleTable.read(tmp_path / "particles.star", independent_halves=False)
    particles = Particles.of(cpu, table, Geometry(BOX, PIXEL_SIZE, DIAMETER), np.eye(3)[None], 64.0)
    bends = particles.ewald_slices(cpu, 15, 1).bends
    ratio = wavelength(np.array(16.0)) / wavelength(np.array(GROUP.voltage))
    np.testing.assert_allclose(bends / bends[0], [1, 1, 1, ratio, 1], rtol=1e-12)


def test_symmetry(tmp_path: Path) -> None:
    """A third of the views of a C3 particle, and their mates, which have curvatures of their own."""
    one = Blobs.within(DIAMETER, 20).positions
    turns = [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
             for a in np.deg2rad([0, 120, 240])]  # fmt: skip
    blobs = Blobs(np.stack([one @ turn.T for turn in turns], axis=1).reshape(-1, 3))
    blobs.heights = np.repeat(1 + np.arange(20) % 3, 3).astype(np.float32)
    truth = write_set(tmp_path, 60, (GROUP,), blobs=blobs)
    symmetric = curve(map_of(tmp_path, ewald=True, symmetry="C3"), truth)
    assert symmetric[1:15].min() > 0.95
    assert symmetric[FINEST].mean() > curve(map_of(tmp_path, ewald=True), truth)[FINEST].mean() + 0.02
    assert curve(map_of(tmp_path, symmetry="C3"), truth)[FINEST].max() < 0.8


def test_map_is_that_of_relion(tmp_path: Path) -> None:
    """Of noisy images: as close to RELION's as to itself, no worse than it in any shell, and with the same hand."""
    truth = golden.make_set(tmp_path)
    with np.load(golden.MAPS) as stored:
        theirs = {hand: stored[str(hand)].astype(np.float32) for hand in (1, -1)}
    for hand in (1, -1):
        found = map_of(tmp_path, ewald=True, ewald_hand=hand)
        assert curve(found, theirs[hand])[1:15].min() > 0.9, hand
        assert curve(found, theirs[-hand])[FINEST].max() < 0.6, hand
        if hand == 1:
            gain = curve(found, truth) - curve(theirs[hand], truth)
            assert gain[1:15].min() > -0.01 and gain[1:15].mean() > 0
            grey = [float(np.sum(one * truth * INSIDE)) for one in (found, theirs[1])]
            assert grey[0] / grey[1] == pytest.approx(1, abs=0.05)


# ----------------------------------------------------------------------------------------------------- a refinement
def test_last_iteration_of_a_refinement(plain: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """Both half maps and the joined one see what is beyond flat ones; poses stay as they are.

    The correction is asked for when the run is finished already: its last iteration alone is made again.
    """
    folder, truth = plain
    words = ("refine", "--particles", folder / "particles.star", "--reference", folder / "truth.mrc", "--local",
             "--local-sigma", 0.5, "--offset-range", 0.3, "--initial-lowpass", 0, "--particle-diameter", DIAMETER,
             "--join-below", 0, "--threads", 1, "--device", "cpu", "--iterations", 2, "--output", tmp_path)  # fmt: skip
    curves, poses, hints = {}, [], {}
    for name, more in (("flat", ()), ("curved", ("--continue", "--ewald"))):
        assert cli.main([str(word) for word in (*words, *more)]) == 0
        parts = ("half1_class001_unfil", "half2_class001_unfil", "class001")
        curves[name] = np.array([curve(read_map(tmp_path / f"run_{part}.mrc").data, truth) for part in parts])
        poses.append(StarFile.read(tmp_path / "run_data.star").table("particles"))
        status = json.loads((tmp_path / "status.json").read_text())
        hints[name] = [text for text in status["warnings"] if "curvature of the Ewald sphere" in text]
        assert [entry["iteration"] for entry in status["history"]] == [1, 2]
    assert curves["curved"][:, 1:15].min() > 0.85
    assert curves["flat"][:, FINEST].max() < 0.75
    for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        np.testing.assert_array_equal(*(table.floats(column) for table in poses))
    assert len(hints["flat"]) == 1 and "--ewald" in hints["flat"][0] and not hints["curved"]


def test_iterations_before_the_last_are_flat(
    plain: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curved, flat = [], Search.__init__

    def made(search: Search, *given: Any) -> None:
        flat(search, *given)
        curved.append(search.slices is not None)

    monkeypatch.setattr(Search, "__init__", made)
    words = ("refine", "--particles", plain[0] / "particles.star", "--reference", plain[0] / "truth.mrc", "--local",
             "--particle-diameter", DIAMETER, "--initial-lowpass", 0, "--threads", 1, "--device", "cpu",
             "--local-sigma", 0.5, "--offset-range", 0.3, "--iterations", 2, "--output", tmp_path, "--ewald")
    assert cli.main([str(word) for word in words]) == 0
    assert curved == [False, False, True, True]  # each half


# -------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("column", ["rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"])
def test_images_corrected_for_their_ctf_are_refused(column: str, tmp_path: Path) -> None:
    write_set(tmp_path, 8, (GROUP, GROUP), blobs=BLOBS, **{column: [0, 1]})
    with pytest.raises(InputError, match="corrected for their CTF") as caught:
        map_of(tmp_path, ewald=True)
    assert f"{column} of group1" in str(caught.value)
    map_of(tmp_path)
    words = ("refine", "--particles", tmp_path / "particles.star", "--reference", tmp_path / "truth.mrc", "--output",
             tmp_path / "run", "--ewald")  # fmt: skip
    assert cli.main([str(word) for word in words]) != 0


@pytest.mark.parametrize(("options", "words"), [
    ({"ewald_hand": 1}, "--ewald"), ({"ewald": True, "ewald_hand": 2}, "one of 1, -1"),
    ({"ewald": True, "intact_first_peak": True}, "sidebands"), ({"ewald": True, "no_ctf": True}, "sidebands"),
    ({"particle_diameter": 5.0}, "--ewald"),
])  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        ReconstructSettings(particles=tmp_path / "p.star", output=tmp_path / "map.mrc", **options)
    if not {"no_ctf", "particle_diameter"} & set(options):
        with pytest.raises(InputError, match=words):
            RefineSettings(particles=tmp_path / "p.star", reference=tmp_path / "r.mrc", output=tmp_path, **options)
