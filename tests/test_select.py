# SPDX-License-Identifier: GPL-3.0-or-later
"""Subsets of particles: what is kept, that nothing crosses the half sets, and that rows stay as they were."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from sparsecv import cli
from sparsecv.engine.io.star import StarFile, StarTable
from sparsecv.engine.subset.qualities import FEWEST, goodness, of_like_defocus, standardised

COUNT, MICROGRAPHS = 400, 8
OPTICS = {
    "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["quiet", "noisy"], "rlnVoltage": [300.0, 300.0],
    "rlnSphericalAberration": [2.7, 2.7], "rlnAmplitudeContrast": [0.1, 0.1], "rlnImagePixelSize": [1.5, 1.5],
    "rlnImageSize": [64, 64],
}  # fmt: skip


def columns(count: int = COUNT, seed: int = 1) -> dict[str, list[object]]:
    """Particles of two optics groups, of which the second holds a quarter of the signal; micrographs in turns."""
    rng = np.random.default_rng(seed)
    micrograph = np.arange(count) % MICROGRAPHS
    group = 1 + micrograph % 2
    evidence = np.where(group == 1, 40.0, 10.0) + np.where(group == 1, 8.0, 4.0) * rng.standard_normal(count)
    return {name: list(values) for name, values in {
        "rlnImageName": [f"{number + 1:06d}@images.mrcs" for number in range(count)],
        "rlnMicrographName": [f"mic{number}.mrc" for number in micrograph.tolist()],
        "rlnOpticsGroup": group.tolist(),
        "rlnDefocusU": (12000 + 100 * micrograph + rng.uniform(0, 50, count)).tolist(),
        "rlnDefocusV": (11900 + 100 * micrograph).tolist(),
        "rlnDefocusAngle": [10.0] * count,
        "rlnRandomSubset": (1 + rng.permutation(count) % 2).tolist(),
        "rlnNormCorrection": (1 + 0.05 * rng.standard_normal(count)).tolist(),
        "rlnMaxValueProbDistribution": rng.uniform(0, 1, count).tolist(),
        "sparsecvLogEvidence": evidence.tolist(),
        "rlnSomethingOfOthers": [f"word {number}" for number in range(count)],
    }.items()}  # fmt: skip


def written(path: Path, given: dict[str, list[object]]) -> Path:
    """A STAR file of RELION 3.1."""
    star = StarFile.new()
    star.add_loop("optics", OPTICS)
    star.add_loop("particles", given)
    star.write(path)
    return path


def chosen(path: Path, *words: object) -> int:
    """Status of ``sparsecv select`` into ``kept.star`` beside the file."""
    given = ("select", "--particles", path, "--output", path.with_name("kept.star"), *words)
    return cli.main([str(word) for word in given])


def rows(path: Path) -> set[int]:
    """Numbers of the images in a STAR file, from 0."""
    table = StarFile.read(path).table("particles")
    return {int(name.partition("@")[0]) - 1 for name in table.strings("rlnImageName")} if len(table) else set()


def texts(table: StarTable) -> list[tuple[str, ...]]:
    """Rows as texts."""
    return list(zip(*(table.strings(name) for name in table.columns), strict=True))


# ------------------------------------------------------------------------------------------------------ arithmetic
def test_values_are_told_from_the_group_s_median_in_each_half() -> None:
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1], 2000).astype(np.int32)
    halves = np.tile([1, 2], 2000).astype(np.int8)
    centre, width = np.array([5.0, -100.0])[group] + 3 * halves, np.array([2.0, 30.0])[group]
    drawn = rng.standard_normal(4000)
    found = standardised(centre + width * drawn, halves, group)
    for number in (0, 1):
        for half in (1, 2):
            own = (group == number) & (halves == half)
            assert np.median(found[own]) == pytest.approx(0, abs=1e-12)
            # 1.4826 times the median absolute deviation is the standard deviation of a normal distribution
            assert found[own].std() == pytest.approx(1, abs=0.07)
            assert np.corrcoef(found[own], drawn[own])[0, 1] == pytest.approx(1)
    assert norm.ppf(0.75) == pytest.approx(1 / 1.4826, rel=1e-4)


def test_few_are_compared_with_the_half_set_and_equals_are_equal() -> None:
    values = np.concatenate([np.arange(100.0), 1000 + np.arange(FEWEST - 1.0)])
    group = np.repeat([0, 1], [100, FEWEST - 1]).astype(np.int32)
    found = standardised(values, np.ones(len(values), dtype=np.int8), group)
    assert np.all(found[group == 1] > 15)  # not about 0: the group is too small to have a median of its own
    alike = standardised(np.ones(30), np.ones(30, dtype=np.int8), None)
    assert np.all(alike == 0)
    mostly = standardised(np.r_[np.ones(29), 5.0], np.ones(30, dtype=np.int8), None)
    assert np.isfinite(mostly).all() and mostly[-1] > 3


def test_the_best_are_high_low_or_in_the_middle() -> None:
    values, halves = np.array([1.0, 2.0, 3.0, 4.0, 50.0]), np.ones(5, dtype=np.int8)
    assert [int(np.argmax(goodness(values, prefer, halves))) for prefer in ("high", "low", "middle")] == [4, 0, 2]


def test_classes_of_defocus_are_of_one_group_and_half_and_alike() -> None:
    rng = np.random.default_rng(6)
    group, halves = np.repeat([0, 1, 2], [5000, 450, 30]), rng.integers(1, 3, 5480)
    defocus = rng.uniform(8000, 25000, 5480)
    found = of_like_defocus(group, halves.astype(np.int8), defocus)
    for number, counts in ((0, (20, 20)), (1, (2, 2)), (2, (1, 1))):
        for half, count in zip((1, 2), counts, strict=True):
            own = (group == number) & (halves == half)
            classes = np.unique(found[own])
            assert len(classes) == count and not np.isin(classes, found[group != number]).any()
            parts = sorted((defocus[own & (found == one)] for one in classes), key=np.min)
            assert all(low.max() <= high.min() for low, high in itertools.pairwise(parts))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ------------------------------------------------------------------------------------------------------- selections
def test_the_best_are_kept_in_each_half_and_the_rest_is_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                               ) -> None:
    given = columns()
    evidence, norms = np.array(given["sparsecvLogEvidence"]), np.array(given["rlnNormCorrection"])
    halves = np.array(given["rlnRandomSubset"])
    planted = np.concatenate([np.flatnonzero(halves == half)[:20] for half in (1, 2)])
    evidence[planted[::2]] = -12.0  # nothing is there
    norms[planted[1::2]] = 3.0  # the edge of a carbon film
    given["sparsecvLogEvidence"], given["rlnNormCorrection"] = evidence.tolist(), norms.tolist()
    path = written(tmp_path / "run_data.star", given)
    assert chosen(path, "--keep", 0.9) == 0
    kept, removed = rows(tmp_path / "kept.star"), rows(tmp_path / "kept_removed.star")
    assert kept | removed == set(range(COUNT)) and not kept & removed
    # all that was planted goes, whatever group it is of; a noisy group's own particles have low evidence and stay
    assert removed == set(planted.tolist())
    said = json.loads((tmp_path / "kept.json").read_text())
    for half in (1, 2):
        size = int((halves == half).sum())
        assert said["half_sets"][str(half)] == {"particles": size, "kept": round(0.9 * size)}
    before, after = (StarFile.read(one) for one in (path, tmp_path / "kept.star"))
    assert after.table("particles").columns == before.table("particles").columns
    assert set(texts(after.table("particles"))) <= set(texts(before.table("particles")))
    assert texts(after.table("optics")) == texts(before.table("optics"))
    assert (tmp_path / "kept.png").stat().st_size > 5000
    assert "half set 1: " in capsys.readouterr().out
    assert cli.main(["select", "--config", str(tmp_path / "kept.toml"), "--output", str(tmp_path / "again.star")]) == 0
    assert (tmp_path / "again.star").read_bytes() == (tmp_path / "kept.star").read_bytes()


@pytest.mark.parametrize("words", [["--keep", 0.7], ["--by", "probability", "--keep", 0.5], ["--least", -0.5],
                                   ["--by", "norm", "--keep", 0.8, "--relative-to", "micrograph"]])  # fmt: skip
def test_nothing_crosses_the_half_sets(tmp_path: Path, words: list[object]) -> None:
    """Whatever the values of one half are, the other keeps what it keeps."""
    given = columns()
    assert chosen(written(tmp_path / "a.star", given), *words) == 0
    first = rows(tmp_path / "kept.star")
    halves, rng = np.array(given["rlnRandomSubset"]), np.random.default_rng(3)
    for name in ("sparsecvLogEvidence", "rlnNormCorrection", "rlnMaxValueProbDistribution"):
        values = np.array(given[name])
        values[halves == 2] = rng.uniform(5, 9, int((halves == 2).sum()))
        given[name] = values.tolist()
    assert chosen(written(tmp_path / "b.star", given), *words) == 0
    second = rows(tmp_path / "kept.star")
    ones = set(np.flatnonzero(halves == 1).tolist())
    assert first & ones == second & ones and first != second


def test_low_defocus_is_no_junk(tmp_path: Path) -> None:
    """Log evidence falls with the defocus, as low frequencies do; what is removed is of every defocus alike."""
    given, count = columns(2000, seed=3), 2000
    rng = np.random.default_rng(4)
    defocus = rng.uniform(8000, 25000, count)
    evidence = 40 * defocus / 16000 + 5 * rng.standard_normal(count)
    halves, planted = np.array(given["rlnRandomSubset"]), rng.permutation(count)[:100]
    evidence[planted] = 2 * rng.standard_normal(100) - 5  # at any defocus
    given |= {"rlnDefocusU": defocus.tolist(), "rlnDefocusV": defocus.tolist(),
              "rlnOpticsGroup": [1] * count, "sparsecvLogEvidence": evidence.tolist()}  # fmt: skip
    path = written(tmp_path / "a.star", given)
    shares = {}
    for words in ((), ("--relative-to", "optics")):
        assert chosen(path, "--by", "evidence", "--keep", 0.8, *words) == 0
        kept = np.isin(np.arange(count), list(rows(tmp_path / "kept.star")))
        real = ~np.isin(np.arange(count), planted)
        fifths = np.searchsorted(np.quantile(defocus, [0.2, 0.4, 0.6, 0.8]), defocus)
        shares[words] = [kept[real & (fifths == part)].mean() for part in range(5)]
        assert [int(kept[halves == half].sum()) for half in (1, 2)] == [800, 800]
        assert not words or kept[planted].sum() == 0
        assert words or kept[planted].sum() <= 3
    assert max(shares[()]) - min(shares[()]) < 0.1
    assert min(shares["--relative-to", "optics"]) < 0.5


def test_groups_micrographs_and_thresholds(tmp_path: Path) -> None:
    given = columns()
    path = written(tmp_path / "a.star", given)
    group, micrograph = np.array(given["rlnOpticsGroup"]), np.array(given["rlnMicrographName"])
    probability = np.array(given["rlnMaxValueProbDistribution"])
    mean = (np.array(given["rlnDefocusU"]) + np.array(given["rlnDefocusV"])) / 2
    for words, mask in (
        (["--optics-groups", "noisy"], group == 2), (["--optics-groups", "1,noisy"], group > 0),
        (["--by", "rlnMaxValueProbDistribution", "--least", 0.25, "--most", 0.5],
         (probability >= 0.25) & (probability <= 0.5)),
        (["--by", "defocus", "--least", 12200, "--optics-groups", "1"], (mean >= 12200) & (group == 1)),
        (["--by", "astigmatism", "--most", 120],
         np.array(given["rlnDefocusU"]) - np.array(given["rlnDefocusV"]) <= 120),
    ):  # fmt: skip
        assert chosen(path, *words) == 0
        assert rows(tmp_path / "kept.star") == set(np.flatnonzero(mask).tolist()), words
    (tmp_path / "list.txt").write_text("mic1.mrc\n\nmic5.mrc\nmic77.mrc\n")
    star = StarFile.new()
    star.add_loop("micrographs", {"rlnMicrographName": ["mic1.mrc", "mic5.mrc"]})
    star.write(tmp_path / "list.star")
    for name in ("list.txt", "list.star"):
        assert chosen(path, "--micrographs", tmp_path / name) == 0
        assert rows(tmp_path / "kept.star") == set(np.flatnonzero(np.isin(micrograph, ["mic1.mrc", "mic5.mrc"])))


def test_what_is_not_printed_of_many_groups_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star, given = StarFile.new(), columns()
    star.add_loop("optics", {name: [*values, *values[:1] * 5] for name, values in OPTICS.items()} | {
        "rlnOpticsGroup": list(range(1, 8)), "rlnOpticsGroupName": list("abcdefg")})  # fmt: skip
    star.add_loop("particles", given | {"rlnOpticsGroup": [1 + row % 7 for row in range(COUNT)]})
    star.write(tmp_path / "a.star")
    assert chosen(tmp_path / "a.star", "--random", 100) == 0
    printed = capsys.readouterr().out
    assert printed.count("optics group ") == 5 and "... and 2 more optics groups" in printed


def test_random_subsets_are_of_both_halves_and_copies_stay_together(tmp_path: Path) -> None:
    given = columns()
    names = list(given["rlnImageName"])
    for number in range(0, COUNT, 2):  # two copies of each image, in one half set
        names[number + 1] = names[number]
        given["rlnRandomSubset"][number + 1] = given["rlnRandomSubset"][number]
    given["rlnImageName"] = names
    path = written(tmp_path / "a.star", given)
    halves = np.array(given["rlnRandomSubset"])
    assert chosen(path, "--random", 100, "--split", 3, "--seed", 5) == 0
    kept = StarFile.read(tmp_path / "kept.star").table("particles")
    in_first = int((kept.integers("rlnRandomSubset") == 1).sum())
    assert abs(len(kept) - 100) <= 2 and abs(in_first - 100 * (halves == 1).mean()) <= 2
    parts = [rows(tmp_path / f"kept_part{number}.star") for number in (1, 2, 3)]
    images = rows(tmp_path / "kept.star")
    assert set.union(*parts) == images and sum(map(len, parts)) == len(images)  # a copy in two parts counts twice
    for half in (1, 2):
        sizes = [len(part & set(np.flatnonzero(halves == half).tolist())) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert chosen(path, "--random", 100, "--seed", 5) == 0
    assert rows(tmp_path / "kept.star") == images
    assert not (tmp_path / "kept_part1.star").exists()  # of the selection before
    assert chosen(path, "--random", 100, "--seed", 6) == 0
    assert rows(tmp_path / "kept.star") != images


def test_a_file_of_relion_3_0_stays_one(tmp_path: Path) -> None:
    given = columns(60)
    old = {name: given[name] for name in ("rlnImageName", "rlnMicrographName", "rlnDefocusU", "rlnDefocusV",
                                          "rlnDefocusAngle", "rlnMaxValueProbDistribution")}  # fmt: skip
    old |= {"rlnOriginX": [0.5] * 60, "rlnOriginY": [-2.25] * 60, "rlnVoltage": [300.0] * 60,
            "rlnSphericalAberration": [2.7] * 60, "rlnAmplitudeContrast": [0.1] * 60,
            "rlnMagnification": [50000.0] * 60, "rlnDetectorPixelSize": [7.0] * 60}  # fmt: skip
    star = StarFile.new()
    star.add_loop("", old)
    star.write(tmp_path / "a.star")
    assert chosen(tmp_path / "a.star", "--by", "probability", "--keep", 0.5) == 0
    found = StarFile.read(tmp_path / "kept.star")
    assert found.names == [""] and found.table("").columns == list(old)
    values = np.array(old["rlnMaxValueProbDistribution"])
    np.testing.assert_allclose(np.sort(found.table("").floats("rlnMaxValueProbDistribution")), np.sort(values)[30:],
                               rtol=1e-8)  # fmt: skip


def test_images_beside_the_file_are_found_from_elsewhere(tmp_path: Path) -> None:
    path = written(tmp_path / "a.star", columns())
    (tmp_path / "images.mrcs").write_bytes(b"")  # they are not read
    other = tmp_path / "other" / "kept.star"
    assert cli.main(["select", "--particles", str(path), "--output", str(other), "--random", "10"]) == 0
    (name,) = {name.partition("@")[2] for name in StarFile.read(other).table("particles").strings("rlnImageName")}
    assert Path(name) == (tmp_path / "images.mrcs").resolve()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing says which particles to keep"),
        (["--keep", 1.5], "keep: out of range (value 1.5); rule: above 0 and below 1"),
        (["--by", "beauty", "--keep", 0.5], "--by: neither a quality nor a column (value 'beauty'); rule: one of fit, "
                                            "evidence"),
        (["--by", "spread", "--keep", 0.5], "--by spread: column sparsecvPoseSpread is missing"),
        (["--by", "defocus", "--keep", 0.5], "--by defocus --keep: no values are the best"),
        (["--by", "rlnSomethingOfOthers", "--least", 1], "row 1, column rlnSomethingOfOthers: not a number"),
        (["--by", "defocus", "--least", 1e6], "defocus of 1e+06 or more: no particle is left in half set 1"),
        (["--optics-groups", "loud"], "--optics-groups: no such optics group (value 'loud'); rule: the file has quiet, "
                                      "noisy"),
        (["--random", 1000], "--random: more than there are (value 1000); rule: at most the 400"),
        (["--random", 10, "--relative-to", "optics"], "relative_to: has no meaning here (value 'optics')"),
        (["--least", 1, "--prefer", "low"], "prefer: has no meaning here (value 'low'); rule: with --keep,"),
        (["--random", 1], "--random: fewer than half sets (value 1)"),
        (["--random", 20, "--split", 15], "--split: more subsets than images (value 15)"),
        (["--least", 2, "--most", 1], "least: nothing can be kept (value 2.0); rule: at most 1"),
        (["--micrographs", "LIST"], "none of the particles is of a micrograph in it (value 'mic99.mrc')"),
    ],
)  # fmt: skip
def test_wrong_selections_are_refused(tmp_path: Path, words: list[object], message: str,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("mic99.mrc\n")
    path = written(tmp_path / "a.star", columns())
    given = [tmp_path / "list.txt" if word == "LIST" else word for word in words]
    assert chosen(path, *given) == cli.WRONG_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "kept.star").exists()


def test_inputs_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "kept_removed.star", columns())
    before = path.read_bytes()
    assert chosen(path, "--keep", 0.5) == cli.WRONG_INPUT
    assert "would be overwritten" in capsys.readouterr().err and path.read_bytes() == before
    path = path.rename(tmp_path / "particles.star")
    for number in (1, 2):  # what a selection removes is as lost as what it overwrites
        listed = written(tmp_path / f"kept_part{number}.star", columns())
        assert chosen(path, "--keep", 0.5, "--micrographs", listed) == cli.WRONG_INPUT
        assert "would be overwritten" in capsys.readouterr().err and listed.is_file()
    assert chosen(path, "--keep", 0.5) == 0
    assert not list(tmp_path.glob("kept_part*"))
    (tmp_path / "kept.toml").write_text("[refine]\n")
    before = (tmp_path / "kept.star").read_bytes()
    assert chosen(path, "--keep", 0.2) == cli.WRONG_INPUT
    assert "overwritten by the settings of select" in capsys.readouterr().err
    assert (tmp_path / "kept.star").read_bytes() == before
