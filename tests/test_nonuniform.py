# SPDX-License-Identifier: GPL-3.0-or-later
"""Non-uniform filtering: the equations on a float64 twin, what is chosen where, its place in a refinement."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
from backends import opened
from halfmaps import filtered
from scipy import ndimage
from test_sparse_tv import backprojected
from tiny import PIXEL_SIZE, blobs, write_particles

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.prepare import prepare
from sparsecv.engine.refine.regularisers import Evidence, NonUniform, Regularised, make_regulariser
from sparsecv.engine.refine.regularisers.nonuniform import (
    BAND_LIMIT,
    Bank,
    Butterworth,
    LocalWiener,
    Rule,
    SparseTvStrength,
    disagreement,
    filter_locally,
    mean_band_limit,
)
from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps, resampled, smallest_side
from sparsecv.engine.refine.regularisers.nonuniform.score import held_out_score
from sparsecv.engine.refine.regularisers.nonuniform.selection import BIN, SIGMAS, Candidate, select, window_taps
from sparsecv.engine.refine.regularisers.sparse_tv import NoiseUnits
from sparsecv.engine.refine.settings import RefineSettings, RegulariserSettings
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.validate.fsc import fsc
from sparsecv.kernels import cpu

SIDE, PIXEL = 48, 2.0
LENGTH = SIDE * PIXEL
BALL = sphere(SIDE, 0.42 * SIDE) > 0.5

pytestmark = pytest.mark.usefixtures("threads_as_before")


def texture(seed: int, cutoff_shell: float) -> np.ndarray:
    """White noise with a sharp band limit, standard deviation 1."""
    white = np.random.default_rng(seed).normal(size=(SIDE,) * 3)
    values = filtered(white, lambda k: k * SIDE <= cutoff_shell)
    return values / values.std()


def raw_maps(signal: np.ndarray, noise: float, seed: int = 1, inside: np.ndarray = BALL, **options: Any) -> RawMaps:
    rng = np.random.default_rng([seed, 1])  # not the numbers that textures are made of
    first, second = (signal + noise * rng.normal(size=signal.shape) for _ in "12")
    maps = [(one * inside).astype(np.float32) for one in (first, second)]
    return RawMaps.of_maps(cpu, *maps, inside, LENGTH, SIDE // 2 - 1, **options)


def band_limits(maps: RawMaps, bank: Bank, rule: Rule | None = None) -> np.ndarray:
    """theta at each voxel, A."""
    found = Butterworth(bank).apply(cpu, maps, None, rule or Rule())
    return (LENGTH / found.values)[found.selection.chosen]


# ------------------------------------------------------------------------------------------ the equations, in float64
def twin(maps: RawMaps, bank: Bank, factor: float, *, is_literal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers chosen and the filtered mean, by plain NumPy and SciPy in double precision: equations 1 to 6."""
    m1, m2, weight = (np.asarray(one, np.float64) for one in (maps.first, maps.second, maps.weight))
    cutoffs = np.linspace(LENGTH / bank.coarsest, maps.last_shell, bank.filters)
    k = np.fft.fftfreq(SIDE, 1 / SIDE)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)

    def binned(values: np.ndarray) -> np.ndarray:
        return values.reshape((SIDE // BIN, BIN) * 3).sum(axis=(1, 3, 5))

    def windowed(values: np.ndarray, cutoff: float) -> np.ndarray:
        taps = window_taps(factor * LENGTH / cutoff / SIGMAS / (PIXEL * BIN)).astype(np.float64)
        for axis in range(3):
            values = ndimage.correlate1d(values, taps, axis=axis, mode="constant")
        return values

    chosen, best, kept = np.zeros((SIDE,) * 3, int), np.zeros((SIDE,) * 3), np.zeros((SIDE // BIN,) * 3)
    for number, cutoff in enumerate(cutoffs):
        gain = 1 / np.sqrt(1 + (radius / cutoff) ** (2 * bank.order))
        f1, f2 = (np.fft.ifftn(np.fft.fftn(m) * gain).real for m in (m1, m2))  # equation 2, one theta
        error = (f1 - m2) ** 2 + (f2 - m1) ** 2  # equation 4
        if is_literal:
            share = windowed(binned(weight), cutoff)
            mean = windowed(binned(weight * error), cutoff) / np.maximum(share, 1e-12)
            new = np.where(share > 1e-4 * BIN**3, mean, 0)
            advantage = new - kept  # equation 6
        else:
            new = binned(weight * (error - 0.75 * (f1 - f2) ** 2 / 2))
            advantage = windowed(new - kept, cutoff)
        if number == 0:
            best, kept = (f1 + f2) / 2, new
            continue
        kept = np.where(advantage < 0, new, kept)
        at_voxels = ndimage.zoom(advantage, BIN, order=1, grid_mode=True, mode="nearest")
        better = (at_voxels < 0) & (weight > 0)
        chosen[better], best[better] = number, ((f1 + f2) / 2)[better]
    return chosen, best


@pytest.mark.parametrize("is_literal", [False, True], ids=["like for like", "literal"])
@pytest.mark.parametrize(("order", "factor"), [(8, 2.5), (2, 2.0)])
def test_equations_on_a_twin(is_literal: bool, order: int, factor: float) -> None:
    core = sphere(SIDE, 9, 2)
    maps = raw_maps(core * texture(1, 20) + (1 - core) * texture(2, 6), 1.0, whitened=not is_literal)
    bank = Bank(7, order, 24.0)
    chosen, best = twin(maps, bank, factor, is_literal=is_literal)
    found = Butterworth(bank).apply(cpu, maps, None, Rule(factor, is_literal=is_literal))
    assert len(np.unique(chosen)) >= 5
    # rounding decides where two filters are as good
    assert (found.selection.chosen != chosen).mean() < 2e-4
    same = found.selection.chosen == chosen
    np.testing.assert_allclose(found.selection.whole[same], best[same], atol=1e-5)


def test_one_theta_for_all_is_equation_1() -> None:
    """A window without end: the choice is that of the total error, for every voxel the same."""
    maps = raw_maps(texture(1, 12), 0.8, whitened=False)
    bank = Bank(8, 8, 24.0)
    found = Butterworth(bank).apply(cpu, maps, None, Rule(100.0, is_literal=True))
    numbers, counts = np.unique(found.selection.chosen[BALL], return_counts=True)
    candidates = Butterworth(bank).candidates(cpu, maps, found.values)
    totals = [float(maps.weight.ravel() @ ((c.first - maps.second) ** 2 + (c.second - maps.first) ** 2).ravel())
              for c in candidates]  # fmt: skip
    assert numbers[counts.argmax()] == int(np.argmin(totals))
    assert counts.max() > 0.97 * counts.sum()


# ------------------------------------------------------------------------------------------------ what is chosen where
@pytest.mark.parametrize("shell", [8, 12, 17])
def test_theta_is_constant_and_right_on_a_known_band_limit(shell: int) -> None:
    """White signal up to a shell in noise a third as strong: the cut-off is the filter's nearest above it."""
    bank = Bank(12, 8, 25.0)
    theta = band_limits(raw_maps(texture(1, shell), 0.3), bank)
    inner = sphere(SIDE, 0.3 * SIDE) > 0.99  # windows of voxels near the rim see less
    found = LENGTH / theta[inner]
    step = np.diff(bank.cutoffs(LENGTH, SIDE // 2 - 1))[0]
    assert np.median(found) == pytest.approx(shell + step / 2, abs=step)
    assert (np.abs(found - np.median(found)) < 1.01 * step).mean() > 0.95


def core_in_a_belt(noise: float, seed: int = 1) -> tuple[RawMaps, np.ndarray, np.ndarray]:
    """A rigid core, detailed to shell 20, and about it a ring with nothing beyond shell 5, in noise."""
    axis = np.arange(SIDE) - SIDE // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    ring = np.hypot(x, y)
    core = sphere(SIDE, 8, 2)
    belt = ndimage.gaussian_filter(((ring > 11) & (ring < 18) & (np.abs(z) < 8)).astype(float), 2)
    return raw_maps(core * texture(1, 20) + belt * texture(2, 5), noise, seed), core > 0.9, belt > 0.5


def test_a_rigid_core_keeps_its_detail_and_the_belt_loses_it() -> None:
    maps, core, belt = core_in_a_belt(0.5)
    theta = band_limits(maps, Bank())
    assert np.median(theta[core]) < 5.5
    assert np.median(theta[belt]) > 2 * np.median(theta[core])
    found = Butterworth(Bank()).apply(cpu, maps, None, Rule()).selection.whole
    k = np.fft.rfftfreq(SIDE) * SIDE

    def fine_power(values: np.ndarray, where: np.ndarray) -> float:
        detail = filtered(values.astype(np.float64), lambda q: (q * SIDE > 8) & (q * SIDE < 19))
        return float((detail[where] ** 2).mean())

    assert len(k) == SIDE // 2 + 1
    truth = core_in_a_belt(0.0)[0].first
    assert fine_power(found, core) == pytest.approx(fine_power(truth, core), rel=0.35)
    raw = (maps.first + maps.second) / 2
    assert fine_power(found, belt) < 0.25 * fine_power(raw, belt)


def test_noise_is_left_to_the_coarsest_filter() -> None:
    shares = []
    for seed in range(6):
        theta = band_limits(raw_maps(np.zeros((SIDE,) * 3), 1.0, seed), Bank())
        shares.append((theta[BALL] == theta.max()).mean())
    assert np.mean(shares) > 0.95 and min(shares) > 0.9


def test_the_literal_equation_dilutes_a_core_and_the_default_does_not() -> None:
    """With wide windows the core's loss is spread over solvent: small in coarse windows, large in fine ones."""
    core = sphere(SIDE, 5, 2)
    maps = raw_maps(core * texture(1, 14) * 1.5, 1.0)
    inner, wide = core > 0.9, 8.0
    literal = band_limits(maps, Bank(12, 8, 25.0), Rule(wide, is_literal=True))
    default = band_limits(maps, Bank(12, 8, 25.0), Rule(wide))
    assert np.median(literal[inner]) == pytest.approx(25.0)
    assert np.median(default[inner]) < 10


def test_noise_wins_narrow_windows_of_the_literal_equation_and_not_of_the_default() -> None:
    """Islands of fine filters in pure noise."""
    maps = raw_maps(np.zeros((SIDE,) * 3), 1.0)
    shares = [(band_limits(maps, Bank(12, 8, 25.0), Rule(1.5, is_literal=literal))[BALL] < 10).mean()
              for literal in (True, False)]  # fmt: skip
    assert shares[0] > 0.05
    assert shares[1] < 0.4 * shares[0]


def test_a_bank_of_one_filter_is_the_uniform_filter() -> None:
    maps = raw_maps(texture(1, 12), 0.5)
    found = Butterworth(Bank(1, 4)).apply(cpu, maps, None, Rule())
    mean = (maps.first + maps.second).astype(np.float64) / 2
    expected = filtered(mean, lambda k: 1 / np.sqrt(1 + (k * SIDE / maps.last_shell) ** 8))
    np.testing.assert_allclose(found.selection.whole, expected, atol=1e-5)
    assert not found.selection.chosen.any()


def test_candidates_skipped_by_one_may_be_taken_by_the_next() -> None:
    """What is compared is the filter kept so far, not the one tried before."""
    signal = np.ones((SIDE,) * 3, np.float32)
    maps = RawMaps.of_maps(cpu, signal, signal.copy(), BALL, LENGTH, 20, whitened=False)

    def candidates() -> Iterator[Candidate]:
        for level in (0.5, 0.2, 0.9):
            half = np.full((SIDE,) * 3, level, np.float32)
            yield Candidate(10.0, half, half.copy(), half.copy())

    found = select(cpu, maps, candidates(), Rule(), keep_predictions=True)
    assert (found.chosen[BALL] == 2).all() and not found.chosen[~BALL].any()
    assert found.predictions is not None
    assert np.allclose(found.predictions[0][BALL], 0.9)


# --------------------------------------------------------------------------------------------- the parts of it
def test_cutoffs_are_equispaced_in_frequency() -> None:
    cutoffs = Bank(50, 2, 25.0).cutoffs(200.0, 48)
    assert len(cutoffs) == 50 and cutoffs[0] == pytest.approx(8) and cutoffs[-1] == 48
    np.testing.assert_allclose(np.diff(cutoffs), 40 / 49)
    assert Bank(12).cutoffs(200.0, 6).tolist() == [6.0]  # no data as fine as the coarsest filter
    assert Bank(1).cutoffs(200.0, 48).tolist() == [48.0]


@pytest.mark.parametrize("order", [2, 8])
def test_the_reach_of_a_filter(order: int) -> None:
    shell = Bank(order=order).reach(20.0)
    gains = [1 / np.sqrt(1 + (s / 20) ** (2 * order)) for s in (shell, shell + 1)]
    assert gains[0] >= 0.1 > gains[1]


def test_windows_are_normal_and_as_wide_as_they_should_be() -> None:
    taps = window_taps(3.0)
    place = np.arange(len(taps)) - len(taps) // 2
    assert taps.sum() == pytest.approx(1) and (taps == taps[::-1]).all()
    assert float(taps @ place**2) == pytest.approx(9, rel=0.12)  # it ends at 2.5 standard deviations
    assert window_taps(0.01).tolist() == [1.0]


def test_sides_are_even_and_hold_the_data() -> None:
    assert smallest_side(96, 47) == 96 and smallest_side(95, 10) == 95
    for last in (5, 11, 22, 30):
        side = smallest_side(96, last)
        assert side % 2 == 0 and 2 * (last + 1) <= side <= 96


def test_a_map_is_resampled_by_its_transform() -> None:
    signal = texture(3, 9)
    coarse = scipy.fft.rfftn(signal)
    small = np.zeros((24, 24, 13), complex)
    for zs, zt in ((slice(0, 12), slice(0, 12)), (slice(-11, None), slice(-11, None))):
        for ys, yt in ((slice(0, 12), slice(0, 12)), (slice(-11, None), slice(-11, None))):
            small[zt, yt, :12] = coarse[zs, ys, :12]
    low = scipy.fft.irfftn(small, s=(24,) * 3) / 8
    np.testing.assert_allclose(low, signal[::2, ::2, ::2], atol=1e-6)
    np.testing.assert_allclose(resampled(cpu, low.astype(np.float32), SIDE), signal, atol=2e-5)


def test_errors_are_weighted_by_the_noise_at_their_distance() -> None:
    axis = np.arange(SIDE) - SIDE // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    rng = np.random.default_rng(1)
    rising = 1 + radius / 10
    first, second = (rising * rng.normal(size=(SIDE,) * 3) for _ in "12")
    maps = RawMaps.of_maps(cpu, first.astype(np.float32), second.astype(np.float32), BALL, LENGTH, 23)
    inner, outer = maps.weight[(radius < 6)].mean(), maps.weight[(radius > 14) & (radius < 18)].mean()
    assert inner / outer == pytest.approx((2.6 / 1.45) ** 2, rel=0.25)
    assert not maps.weight[~BALL].any()


def test_a_mask_of_any_shape_leaves_white_noise_white() -> None:
    """Noise is measured where the mask is, not where it could be."""
    slab = (np.abs(np.arange(SIDE) - SIDE // 2) < 5)[:, None, None] & BALL
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=(SIDE,) * 3).astype(np.float32) for _ in "12")
    weight = RawMaps.of_maps(cpu, first, second, slab, LENGTH, 23).weight
    assert weight[slab].mean() == pytest.approx(1, abs=0.03)
    assert np.abs(weight[slab] - 1).max() < 0.4


def test_maps_of_quarters_have_the_half_s_as_their_mean() -> None:
    """On the coarse grid, too, and with the densities that they have on the box's own."""
    box = 24
    truth = blobs(box, count=12)
    quarters = backprojected(truth, 4.0, 1), backprojected(truth, 4.0, 2)
    support = sphere(box, 9)
    evidence = Evidence(quarters, np.zeros_like(truth), np.ones(12), support, support, box, PIXEL_SIZE)
    maps = RawMaps.of(cpu, evidence, full=True)
    whole = (quarters[0] + quarters[1]).solve(cpu) * (support > 0.5)
    mean = (maps.first + maps.second) / 2
    assert np.linalg.norm(mean - whole) < 0.03 * np.linalg.norm(whole)  # the floor of the weights differs
    low = tuple(replace(quarter, last_shell=6) for quarter in quarters)
    coarse = RawMaps.of(cpu, replace(evidence, quarters=low))
    assert coarse.side == smallest_side(box, 6) < box and coarse.length == maps.length
    fine = RawMaps.of(cpu, replace(evidence, quarters=low), full=True)
    up = resampled(cpu, coarse.first, box)
    inner = sphere(box, 6) > 0.99  # the edge of the support is coarser there
    assert np.corrcoef(up[inner], fine.first[inner])[0, 1] > 0.995
    assert np.polyfit(fine.first[inner], up[inner], 1)[0] == pytest.approx(1, abs=0.05)


# ----------------------------------------------------------------------------------------------------- the families
def test_local_wiener_weighs_each_band_by_its_signal() -> None:
    """White signal as strong as the noise of a map, in its band: c = 1/2, and 2 c / (1 + c) = 2/3 for the mean."""
    signal, band = texture(1, 24), np.pi / 6  # the share of all coefficients that a sphere holds
    maps = raw_maps(signal, band**-0.5)
    found = LocalWiener(Bank()).apply(cpu, maps, None, Rule(6.0)).selection
    inner = sphere(SIDE, 0.3 * SIDE) > 0.99
    mean = (maps.first + maps.second) / 2
    fine = [filtered(one.astype(np.float64), lambda k: (k * SIDE > 8) & (k * SIDE < 20))
            for one in (found.whole, mean)]  # fmt: skip
    gain = float((fine[0] * fine[1])[inner].sum() / (fine[1] ** 2)[inner].sum())
    assert gain == pytest.approx(2 / 3, abs=0.06)
    noise = raw_maps(np.zeros((SIDE,) * 3), 1.0)
    left = LocalWiener(Bank()).apply(cpu, noise, None, Rule()).selection
    beyond = filtered((noise.first + noise.second) / 2, lambda k: k * SIDE > 8)
    passed = filtered(left.whole.astype(np.float64), lambda k: k * SIDE > 8)
    assert np.linalg.norm(passed) < 0.35 * np.linalg.norm(beyond)
    assert (left.chosen[BALL] == 0).mean() > 0.9


def test_the_strength_of_sparse_tv_as_theta() -> None:
    box = 24
    truth = blobs(box, count=12)
    quarters = backprojected(truth, 60.0, 1), backprojected(truth, 60.0, 2)
    ball = sphere(box, 9)
    evidence = Evidence(quarters, np.zeros_like(truth), np.ones(12), ball, ball, box, PIXEL_SIZE, 2, 10)
    regulariser = NonUniform(family=SparseTvStrength(NoiseUnits(0.05)))
    found = regulariser.regularise(cpu, evidence)
    assert BAND_LIMIT not in found.volumes and found.shown["strengths"][0] == 8.0
    assert sum(found.shown["share"]) == pytest.approx(1)
    raw = (quarters[0] + quarters[1]).solve(cpu) * evidence.support
    curves = [fsc(one, truth * evidence.support) for one in (found.reference, raw)]
    assert curves[0][4:11].mean() > curves[1][4:11].mean()
    assert regulariser.alignment_band(cpu, found, found) == box // 2 + 3


def test_the_held_out_score_prefers_what_is_nearer_to_the_truth() -> None:
    signal = texture(1, 12).astype(np.float32)
    maps = raw_maps(signal, 1.0)
    truth, empty = signal * BALL, np.zeros_like(signal)
    filter_family = Butterworth(Bank()).apply(cpu, maps, None, Rule(), keep_predictions=True).selection.predictions
    assert filter_family is not None
    scores = {name: held_out_score(cpu, maps, pair, 20) for name, pair in {
        "truth": (truth, truth), "filtered": filter_family, "raw": (maps.first, maps.second), "empty": (empty, empty),
    }.items()}  # fmt: skip
    assert scores["truth"] < scores["filtered"] < scores["raw"]
    assert scores["empty"] == 0 > scores["filtered"]


# ----------------------------------------------------------------------------------------- maps of band limits
def test_the_mean_of_band_limits_is_that_of_their_frequencies() -> None:
    first, second = np.full((2, 2, 2), 4.0), np.full((2, 2, 2), 12.0)
    np.testing.assert_allclose(mean_band_limit(first, second), 6.0)


def test_disagreement_is_over_what_is_used() -> None:
    first = np.full((4, 4, 4), 20.0)
    second = first.copy()
    assert disagreement(first, second) is None
    first[0], second[0] = 5.0, 10.0
    first[1], second[1] = 8.0, 8.0
    assert disagreement(first, second) == pytest.approx(0.5**0.5)  # log2 of 1/2 in half of the voxels used


def test_filtering_by_a_map_of_band_limits() -> None:
    signal = texture(1, 23)
    limits = np.full((SIDE,) * 3, 8.0)
    limits[:, :, : SIDE // 2] = 24.0
    found = filter_locally(cpu, signal, limits, PIXEL, 8, np.array([4.0, 6.0, 12.0]))
    for where, limit in ((np.s_[:, :, : SIDE // 2], 24.0), (np.s_[:, :, SIDE // 2 :], 8.0)):
        uniform = filtered(signal, lambda k, limit=limit: 1 / np.sqrt(1 + (k * SIDE / (LENGTH / limit)) ** 16))
        np.testing.assert_allclose(found[where], uniform[where], atol=1e-4)


@pytest.mark.parametrize("family", ["butterworth", "local-wiener", "sparse-tv"])
def test_the_device_gives_what_the_processor_gives(family: str) -> None:
    """The CUDA sources and CuPy's rules, imitated where there is no GPU."""
    box, regulariser = 24, make_regulariser(RegulariserSettings(regulariser="nonuniform", nu_family=family))
    truth = blobs(box, count=12)
    quarters = [replace(backprojected(truth, 20.0, seed), last_shell=9) for seed in (1, 2)]
    ball, found = sphere(box, 9), []
    for name in ("cpu", "cuda-host"):
        with opened(name) as backend:
            up, down = backend.up, backend.ops.to_host
            own = [replace(one, data=up(one.data), weight=up(one.weight)) for one in quarters]
            evidence = Evidence((own[0], own[1]), up(np.zeros_like(truth)), np.ones(12), up(ball), up(ball), box,
                                PIXEL_SIZE, 2, 9)
            result = regulariser.regularise(backend.ops, evidence)
            found.append((down(result.reference), result.shown["share"]))
    scale = np.abs(found[0][0]).max()
    assert np.quantile(np.abs(found[1][0] - found[0][0]), 0.995) < 1e-3 * scale  # rounding chooses at a few voxels
    np.testing.assert_allclose(found[1][1], found[0][1], atol=0.01)


@pytest.mark.parametrize("family", ["butterworth", "local-wiener", "sparse-tv"])
def test_outside_of_a_mask_the_coarsest_filter_holds(family: str) -> None:
    """Density that the images show is not cut off, only smoothed."""
    box, truth = 24, blobs(24, count=12)
    quarters = backprojected(truth, 4.0, 1), backprojected(truth, 4.0, 2)
    ball, mask = sphere(box, 10), sphere(box, 3, 2)
    plain = Evidence(quarters, np.zeros_like(truth), np.ones(12), ball, ball, box, PIXEL_SIZE)
    options = {} if family == "sparse-tv" else {"nu_filters": 6}
    regulariser = make_regulariser(RegulariserSettings(regulariser="nonuniform", nu_family=family, **options))
    masked, whole = (regulariser.regularise(cpu, one) for one in (replace(plain, support=mask), plain))
    coarse = regulariser.regularise(cpu, replace(plain, support=0 * mask))
    outside, inner = (mask == 0) & (ball == 1), sphere(box, 1) > 0.99
    np.testing.assert_allclose(masked.reference[outside], coarse.reference[outside], atol=1e-5)
    assert np.abs(masked.reference[outside]).max() > 0.1 * np.abs(masked.reference).max()
    assert np.corrcoef(masked.reference[inner], whole.reference[inner])[0, 1] > 0.98
    if family != "sparse-tv":
        assert (masked.volumes[BAND_LIMIT][outside] == masked.volumes[BAND_LIMIT].max()).all()


# -------------------------------------------------------------------------------------------------------- the settings
def test_the_paper_s_preset() -> None:
    regulariser = make_regulariser(RegulariserSettings(regulariser="nonuniform", nu_preset="paper"))
    assert isinstance(regulariser, NonUniform)
    assert (regulariser.bank.filters, regulariser.bank.order) == (50, 2)
    assert regulariser.rule == Rule(2.0, is_literal=True) and not regulariser.is_whitened
    changed = make_regulariser(RegulariserSettings(regulariser="nonuniform", nu_preset="paper", nu_order=4,
                                                   nu_selection="like-for-like"))
    assert isinstance(changed, NonUniform)
    assert changed.bank.order == 4 and changed.rule == Rule(2.0)


def test_at_most_forty_transforms_at_the_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forth, two back for each filter, and two that bring the reference to the box's grid."""
    counts = {"rfftn": 0, "irfftn": 0}
    for name in counts:
        original = getattr(cpu, name)

        def counted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(cpu, name, counted)
    box = 24
    truth = blobs(box, count=12)
    quarters = tuple(replace(backprojected(truth, 4.0, seed), last_shell=9) for seed in (1, 2))
    regulariser = make_regulariser(RegulariserSettings(regulariser="nonuniform"))
    ball = sphere(box, 9)
    regulariser.regularise(cpu, Evidence(quarters, truth, np.ones(12), ball, ball, box, PIXEL_SIZE))
    raw = 2  # back from the padded sums, axis by axis
    assert 20 < sum(counts.values()) + raw <= 40


@pytest.mark.parametrize("wrong", [
    {"regulariser": "wiener", "nu_order": 4},
    {"regulariser": "sparse-tv", "nu_share": 1.0},
    {"regulariser": "nonuniform", "tau_factor": 2.0},
    {"regulariser": "nonuniform", "kappa_sparse": 1.0},
    {"regulariser": "nonuniform", "nu_filters": 0},
    {"regulariser": "nonuniform", "nu_filters": 256},
    {"regulariser": "nonuniform", "nu_awf": 0.0},
    {"regulariser": "nonuniform", "nu_family": "gaussian"},
    {"regulariser": "nonuniform", "nu_selection": "best"},
    {"regulariser": "nonuniform", "nu_family": "sparse-tv", "nu_order": 4},
    {"regulariser": "nonuniform", "nu_family": "local-wiener", "nu_selection": "literal"},
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    given = {"particles": tmp_path / "p.star", "reference": tmp_path / "r.mrc", "output": tmp_path}
    with pytest.raises(InputError):
        RefineSettings(**given, **wrong)


# ----------------------------------------------------------------------------------------------------- in a refinement
def chosen_by(counts: list[int], share: float = 0.01) -> int | None:
    cutoffs = np.array([5.0, 10.0, 15.0])
    shown = {"band": NonUniform(Bank(3, 8), share=share)._band(np.array(counts), cutoffs)}
    found = Regularised(np.zeros(1), shown=shown)
    return NonUniform(Bank(3, 8), share=share).alignment_band(cpu, found, found)


def test_a_lone_voxel_does_not_widen_the_band() -> None:
    reach = {5: 6, 10: 13, 15: 19}  # a tenth of the amplitude is left at 1.33 times the cut-off
    assert chosen_by([1000, 990, 10]) == reach[15] + 2
    assert chosen_by([1000, 999, 1]) == reach[10] + 2
    assert chosen_by([1000, 999, 1], share=0.001) == reach[15] + 2
    assert chosen_by([1000, 999, 0], share=0.0) == reach[10] + 2  # what nobody uses does not count
    assert chosen_by([1000, 0, 0]) == reach[5] + 2  # no signal: as far as the coarsest filter


def one_iteration(folder: Path, **options: Any) -> Any:
    settings = RefineSettings(particles=folder / "particles.star", reference=folder / "reference.mrc", output=folder,
                              local=True, threads=1, device="cpu",
                              **{"initial_lowpass": 0, "regulariser": "nonuniform", **options})
    refinement = prepare(settings, cpu, lambda text: None, Progress(io.StringIO()))
    return refinement, refinement.iterate()


def test_the_halves_choose_for_themselves(tmp_path: Path) -> None:
    """Other images in half 2 change nothing in the reference of half 1 where nothing is joined."""
    truth, maps, limits = blobs(24, count=12), [], []
    for name, seed in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        table = write_particles(folder, 60, 24, density=truth, noise=2.0)
        images, _ = table.read_images(np.arange(60))
        images = images.copy()
        images[1::2] += np.random.default_rng(seed).normal(size=images[1::2].shape)  # half 2
        write_stack(folder / "particles.mrcs", images.astype(np.float32), PIXEL_SIZE)
        write_map(folder / "reference.mrc", truth, PIXEL_SIZE)
        refinement, iteration = one_iteration(folder, join_below=0)
        maps.append([half.reference.copy() for half in refinement.state.halves])
        limits.append([one.volumes[BAND_LIMIT] for one in iteration.regularised])
    np.testing.assert_array_equal(maps[0][0], maps[1][0])
    np.testing.assert_array_equal(limits[0][0], limits[1][0])
    assert not np.array_equal(maps[0][1], maps[1][1])


def test_references_are_filtered_and_half_maps_are_not(tmp_path: Path) -> None:
    truth = blobs(24, count=12)
    write_particles(tmp_path, 60, 24, density=truth, noise=2.0)
    write_map(tmp_path / "reference.mrc", truth, PIXEL_SIZE)
    refinement, iteration = one_iteration(tmp_path)
    again = one_iteration(tmp_path, regulariser="wiener")[1]
    for half, other in zip(iteration.half_maps, again.half_maps, strict=True):
        # the same poses up to the confidence of the search: no filter has touched them
        assert np.corrcoef(half.ravel(), other.ravel())[0, 1] > 0.95
    entry = refinement.state.history[-1]
    assert entry["prior"] == "nonuniform" and entry["band_limit_disagreement"] >= 0
    for shown in entry["regulariser"]:
        assert sum(shown["share"]) == pytest.approx(1) and len(shown["share"]) == len(shown["band_limits"])
    assert all(half.memory == {} for half in refinement.state.halves)
