# SPDX-License-Identifier: GPL-3.0-or-later
"""Regularisation without refinement: half maps as sums, and the command on half maps and on accumulators."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
from tiny import PIXEL_SIZE, blobs, write_particles

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.accumulator_files import WHOLE, Origin, read_accumulators, write_accumulators
from sparsecv.engine.refine.evidence import (
    evidence_of_accumulators,
    evidence_of_half_maps,
    fsc_of_sum,
    weight_per_shell,
)
from sparsecv.engine.refine.regularise import MOST_ROUNDS, settled
from sparsecv.engine.refine.regularisers import Evidence, Regularised, Wiener
from sparsecv.engine.refine.settings import RegulariseSettings
from sparsecv.engine.refine.volumes import PADDING, shell_means
from sparsecv.engine.validate.fsc import fsc
from sparsecv.kernels import cpu

BOX = 24
SPHERE = sphere(BOX, 10, 2)
SPARSE_TV = ("--regulariser", "sparse-tv")

pytestmark = pytest.mark.usefixtures("threads_as_before")


def noisy(deviation: float, seed: int) -> np.ndarray:
    return blobs(BOX) + np.random.default_rng(seed).normal(0, deviation, (BOX,) * 3).astype(np.float32)


# ----------------------------------------------------------------------------------------------- half maps as sums
@pytest.mark.parametrize("deviation", [0.2, 0.6])
def test_the_weight_is_one_over_the_noise_power(deviation: float) -> None:
    """White noise of variance v has the power v box^3 / box^2 in every coefficient of fftn / box."""
    found = weight_per_shell(noisy(deviation, 1), noisy(deviation, 2), SPHERE)
    assert len(found) == (BOX - 1) // 2 + 1
    # some shells' worth of coefficients: the mean scatters by a few per cent
    assert 1 / found[5:].mean() == pytest.approx(deviation**2 * BOX, rel=0.05)


def test_shells_without_noise_or_without_anything_have_a_finite_weight() -> None:
    first, second = noisy(0.3, 1), noisy(0.3, 2)
    shared = filtered_by_shell(first - second, np.ones(4))
    weight = weight_per_shell(first, second + shared, np.ones_like(SPHERE))
    assert np.isfinite(weight).all()
    np.testing.assert_allclose(weight[:2], 100 / np.median(1 / weight[4:]), rtol=0.3)  # a hundredth of the median noise
    filtered = [filtered_by_shell(half, np.ones(8)) for half in (first, second)]
    everywhere = np.ones_like(SPHERE)
    assert not weight_per_shell(*filtered, everywhere)[8:].any()
    assert evidence_of_half_maps(cpu, *filtered, PIXEL_SIZE, everywhere, SPHERE).quarters[0].last_shell == 7


def shells_of_box() -> np.ndarray:
    k = np.fft.fftfreq(BOX, 1 / BOX)
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.fft.rfftfreq(BOX, 1 / BOX) ** 2)).astype(int)


def filtered_by_shell(density: np.ndarray, factors: np.ndarray) -> np.ndarray:
    table = np.zeros(BOX)
    table[: len(factors)] = factors
    return scipy.fft.irfftn(scipy.fft.rfftn(density) * table[shells_of_box()], s=density.shape).astype(np.float32)


def test_sums_of_half_maps_give_them_back() -> None:
    halves = noisy(0.3, 1), noisy(0.3, 2)
    smooth = [low_pass(half, 1.0, 3.0, 1.0) for half in halves]  # Nyquist and the corners are not kept
    evidence = evidence_of_half_maps(cpu, *smooth, PIXEL_SIZE, SPHERE, SPHERE)
    for half, quarter in zip(smooth, evidence.quarters, strict=True):
        np.testing.assert_allclose(quarter.solve(cpu) * SPHERE, half * SPHERE, atol=0.005 * np.abs(half).max())
    weight = weight_per_shell(*smooth, SPHERE)
    found = shell_means(cpu, evidence.quarters[0].weight, len(weight))
    np.testing.assert_allclose(found, weight, rtol=1e-5)
    assert (evidence.box, evidence.pixel_size) == (BOX, PIXEL_SIZE) and PADDING == 2
    assert not evidence.previous.any()


def test_the_wiener_map_of_half_maps_knows_what_both_know() -> None:
    """White noise: each shell of the mean is multiplied by F = 2 f / (1 + f)."""
    first, second = noisy(0.5, 1), noisy(0.5, 2)
    evidence = evidence_of_half_maps(cpu, first, second, PIXEL_SIZE, np.ones_like(SPHERE), SPHERE)
    curve = fsc(first * SPHERE, second * SPHERE)
    np.testing.assert_allclose(evidence.fsc[:12], fsc_of_sum(curve)[:12])
    found = Wiener().regularise(cpu, evidence).reference
    factor = np.clip(fsc_of_sum(curve), 0.001, 0.999)
    wanted = filtered_by_shell((first + second) / 2, factor[:12])
    error = np.linalg.norm((found - wanted) * SPHERE) / np.linalg.norm(wanted * SPHERE)
    assert error < 0.03  # shells of the padded grid are finer than those of the box


def test_a_choice_is_repeated_until_it_rests() -> None:
    class Walker:
        """Goes from 1 to 8 by factors of two, and tells what it has tried."""

        name, confidence = "walker", 1.0
        calls = 0

        def regularise(self, ops: Any, evidence: Evidence) -> Regularised:
            self.calls += 1
            here = evidence.memory.get("kappa", 1.0)
            there = min(2 * here, self.end)
            return Regularised(SPHERE, {"kappa": there}, {"held_out": [{"kappa": there}]})

        def alignment_band(self, ops: Any, first: Regularised, second: Regularised) -> int | None:
            return None

    evidence = evidence_of_half_maps(cpu, noisy(0.5, 1), noisy(0.5, 2), PIXEL_SIZE, SPHERE, SPHERE)
    walker = Walker()
    walker.end = 8.0
    found = settled(cpu, walker, evidence)
    assert found.memory == {"kappa": 8.0} and len(found.shown["held_out"]) == walker.calls == 4
    walker.calls, walker.end = 0, 1e9
    settled(cpu, walker, evidence)
    assert walker.calls == MOST_ROUNDS


# ----------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half maps and accumulators of 300 noisy particles, and the truth."""
    out = tmp_path_factory.mktemp("maps")
    write_particles(out, 300, BOX, density=molecule(), noise=8.0)
    write_map(out / "truth.mrc", molecule(), PIXEL_SIZE)
    given = ["reconstruct", "--particles", str(out / "particles.star"), "--output", str(out / "map.mrc"), "--halves",
             "--keep-accumulators", "--threads", "1"]
    assert cli.main(given) == 0
    return out


def molecule() -> np.ndarray:
    """Two blocks of even density in an empty box: what sparsity and total variation are made for."""
    density = np.zeros((BOX,) * 3, dtype=np.float32)
    density[8:16, 9:13, 7:17] = 1
    density[12:17, 11:18, 10:14] = 1.5
    return density


def regularise(*words: object) -> int:
    return cli.main([str(word) for word in ("regularise", *words, "--threads", 1, "--device", "cpu")])


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """Relative distance inside the sphere at the best grey scale."""
    one, two = (found * SPHERE).ravel().astype(float), (truth * SPHERE).ravel().astype(float)
    return float(1 - (one @ two) ** 2 / ((one @ one) * (two @ two)))


def test_half_maps_become_one_map_nearer_to_the_truth(folder: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    halves = (folder / "map_half1.mrc", folder / "map_half2.mrc")
    truth = molecule()
    errors = {"none": error(read_map(folder / "map.mrc").data, truth)}
    for name in ("wiener", "sparse-tv"):
        out = tmp_path / name
        assert regularise(*halves, "--output", out, "--regulariser", name) == 0
        errors[name] = error(read_map(out / "regularised.mrc").data, truth)
        names = {"regularised.mrc", "regularised_slices.png", "regularise.json", "regularise.toml",
                 "checksums.sha256"}  # fmt: skip
        names |= {"regularised_held_out.png"} if name == "sparse-tv" else set()
        assert {path.name for path in out.iterdir()} == names
    assert errors["sparse-tv"] < errors["wiener"] < errors["none"]
    assert "their FSC is no resolution" in capsys.readouterr().out
    (shown,) = json.loads((out / "regularise.json").read_text())["maps"]
    assert shown["gap"][-1] < 0.1 and {"kappa_sparse", "objective", "noise"} <= set(shown)
    tried = {(trial["sparse"], trial["variation"]) for trial in shown["held_out"]}
    assert len(tried) >= 5 and (shown["kappa_sparse"], shown["kappa_variation"]) in tried
    assert regularise("--config", out / "regularise.toml", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "regularised.mrc").read_bytes() == (out / "regularised.mrc").read_bytes()


def test_each_half_of_a_run_is_regularised_by_itself(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert regularise("--accumulators", folder, "--output", out, *SPARSE_TV) == 0
    maps = [read_map(out / f"regularised_half{half}.mrc").data for half in (1, 2)]
    unregularised = [read_map(folder / f"map_half{half}.mrc").data for half in (1, 2)]
    truth = molecule()
    for found, before in zip(maps, unregularised, strict=True):
        assert error(found, truth) < error(before, truth)
    # the other half may change as it likes: a half with strengths of its own is the same to the last bit
    for quarter in (1, 2):
        shutil.copy(folder / f"map_half1_quarter{quarter}_accumulator.npz", tmp_path)
    spoilt = read_accumulators(cpu, folder).quarters[2]
    for quarter in spoilt:
        quarter.data[...] *= -1
    write_accumulators(cpu, tmp_path / "map", 2, spoilt, Origin(PIXEL_SIZE, "C1"))
    fixed = ("--strength", "noise")  # the band of held-out scores follows from the FSC, which both halves make
    for name, source in (("one", folder), ("two", tmp_path)):
        assert regularise("--accumulators", source, "--output", tmp_path / name, *SPARSE_TV, *fixed) == 0
    same = [(tmp_path / name / "regularised_half1.mrc").read_bytes() for name in ("one", "two")]
    assert same[0] == same[1]


def test_quarters_of_all_particles_become_one_map(folder: Path, tmp_path: Path) -> None:
    given = ["reconstruct", "--particles", str(folder / "particles.star"), "--output", str(tmp_path / "all.mrc"),
             "--keep-accumulators", "--threads", "1"]
    assert cli.main(given) == 0
    stored = read_accumulators(cpu, tmp_path)
    evidence = evidence_of_accumulators(cpu, stored, SPHERE, SPHERE)
    assert list(evidence) == [WHOLE]
    one, two = (quarter.solve(cpu) * SPHERE for quarter in stored.quarters[WHOLE])
    np.testing.assert_allclose(evidence[WHOLE].fsc[:12], fsc_of_sum(fsc(one, two))[:12])
    assert regularise("--accumulators", tmp_path, "--output", tmp_path / "out") == 0
    found = read_map(tmp_path / "out" / "regularised.mrc").data
    assert error(found, molecule()) < error(read_map(tmp_path / "all.mrc").data, molecule())


def test_an_earlier_result_is_removed_but_never_an_input(folder: Path, tmp_path: Path) -> None:
    assert regularise("--accumulators", folder, "--output", tmp_path, *SPARSE_TV, "--strength", "noise") == 0
    halves = (folder / "map_half1.mrc", folder / "map_half2.mrc")
    before = tmp_path / "regularised_half1.mrc"
    assert regularise(*halves, "--output", tmp_path, *SPARSE_TV, "--previous", before, "--strength", "noise") == 0
    assert sorted(path.name for path in tmp_path.glob("*.mrc")) == ["regularised.mrc", "regularised_half1.mrc"]


# ----------------------------------------------------------------------------------------------------- wrong input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to regularise; rule: HALF1 and HALF2, or --accumulators"),
        ({"half1": "a.mrc"}, "nothing to regularise"),
        ({"half1": "a.mrc", "half2": "b.mrc", "accumulators": "run"}, "half1: has no meaning here (value 'a.mrc'); "
                                                                      "rule: accumulators or half maps, not both"),
        ({"accumulators": "run", "previous": "p.mrc"}, "previous: has no meaning here (value 'p.mrc'); rule: a map "
                                                       "that both halves are pulled to would make them correlate"),
        ({"accumulators": "run", "pixel_size": 2.0}, "pixel_size: has no meaning here"),
        ({"accumulators": "run", "kappa_sparse": 2.0}, "kappa_sparse: has no meaning here (value 2.0); rule: of "
                                                       "sparse-tv alone"),
        ({"half1": "a", "half2": "b", "previous": "p.mrc"}, "previous: has no meaning here (value 'p.mrc'); rule: of "
                                                            "sparse-tv alone"),
        ({"accumulators": "run", "regulariser": "sparse-tv", "tau_factor": 2.0}, "tau_factor: has no meaning here"),
        ({"accumulators": "run", "regulariser": "sparse-tv", "beta": -1.0}, "beta: out of range (value -1.0)"),
    ],
)  # fmt: skip
def test_settings_that_contradict_one_another_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RegulariseSettings(output=Path("out"), **given)
    assert str(caught.value).startswith(message)


def test_maps_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half1, half2, other = folder / "map_half1.mrc", folder / "map_half2.mrc", tmp_path / "other.mrc"
    write_map(other, molecule()[:-2, :-2, :-2], PIXEL_SIZE)
    out = tmp_path / "out"
    for words, message in [
        ((half1, other), f"{other}: box differs from that of {half1}"),
        ((half1, half1), f"{half1}: the two half maps are identical"),
        ((half1, tmp_path / "absent.mrc"), f"{tmp_path / 'absent.mrc'}: cannot be opened"),
        ((half1, half2, *SPARSE_TV, "--previous", other), f"{other}: box differs from that of {half1}"),
        ((half1, half2, "--mask", other), f"{other}: mask"),
        ((half1, half2, "--particle-diameter", 500), "particle_diameter: the particle is larger than its image"),
        (("--accumulators", tmp_path), f"{tmp_path}: holds no accumulators"),
    ]:
        assert regularise(*words, "--output", out) == cli.WRONG_INPUT
        assert capsys.readouterr().err.startswith(f"sparsecv: error: {message}")
        assert not out.exists()
