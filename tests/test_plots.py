# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures: files that are pictures, the same every time, and the geometry behind them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from halfmaps import particle
from scipy.spatial.transform import Rotation

from sparsecv.engine.errors import InputError
from sparsecv.engine.report import plots, strengths

TRIALS = [{"sparse": s, "variation": v, "score": (s - 1) ** 2 + (v - 2) ** 2}
          for s, v in ((1, 1), (1, 0.5), (1, 2), (1 / 3, 2), (3, 2))]


def size_of_png(path) -> tuple[int, int]:
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")


def rotations(count: int, seed: int = 1) -> np.ndarray:
    return Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix()


def draw_all(folder) -> None:
    shells = np.arange(33)
    curves = {f"curve {n}": 1 / (1 + (shells / (8 + n)) ** 4) for n in range(9)}
    curves["bad"] = np.where(shells > 20, np.nan, 0.9)
    plots.plot_fsc(folder / "fsc.png", curves, 64, 2.0, without_crossing=("bad",))
    plots.plot_slices(folder / "slices.png", particle(32, 2.0), 2.0)
    plots.plot_slices(folder / "rows.png", {"before": particle(32, 2.0), "after": particle(32, 2.0)}, 2.0)
    plots.plot_angles(folder / "angles.png", rotations(500))
    chosen = {half: {"kappa_sparse": 1.0, "kappa_variation": 2.0} for half in ("half 1", "half 2")}
    strengths.plot_held_out(folder / "held_out.png", dict.fromkeys(chosen, TRIALS), chosen, title="Held-out scores")
    shown = {"kappa_sparse": 0.1 / (0.3 * 0.5), "kappa_variation": 0.2 / (0.3 * 0.25),
             "objective": [-1.0, -2.0, -2.1], "gap": [0.5, 0.1, 0.01], "held_out": TRIALS}
    strengths.plot_strengths(folder / "strengths.png", {number: [shown, shown] for number in (1, 2, 3)})
    rows = [{"alpha": a, "beta": b, "score": a * b} for a in (0.4, 0.5) for b in (1.2, 1.6, 2.0)]
    strengths.plot_scan(folder / "scan.png", rows, ("alpha", "beta"), {"score": "score", "beta": "another"})


def test_figures_are_pictures_and_the_same_every_time(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        draw_all(tmp_path / name)
    drawn = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(drawn) == 7
    for name in drawn:
        width, height = size_of_png(tmp_path / "first" / name)
        assert 600 < width < 1600 and 300 < height < 1000
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_no_global_state_of_matplotlib():
    code = "import sys; import sparsecv.engine.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_odd_content_is_drawn(tmp_path):
    plots.plot_fsc(tmp_path / "flat.png", {"constant": np.ones(2)}, 2, 1.0, thresholds=())
    plots.plot_fsc(tmp_path / "none.png", {}, 64, 2.0)
    plots.plot_slices(tmp_path / "zero.png", np.zeros((5, 5, 5), dtype=np.float32), 1.3)
    plots.plot_angles(tmp_path / "one.png", rotations(1))
    with pytest.raises(InputError, match="no view directions"):
        plots.plot_angles(tmp_path / "no.png", rotations(1)[:0])
    with pytest.raises(InputError, match="cube"):
        plots.plot_slices(tmp_path / "no.png", np.zeros((5, 5, 6)), 1.3)


def test_odd_strengths_are_drawn(tmp_path):
    """Nothing tried, a strength of 0, and a solver without certificate."""
    none = {"kappa_sparse": 0.0, "kappa_variation": 0.0}
    strengths.plot_held_out(tmp_path / "none.png", {"half 1": []}, {"half 1": none}, title="none")
    shown = none | {"objective": [0.0], "gap": []}
    strengths.plot_strengths(tmp_path / "zero.png", {1: [shown, shown]})
    rows = [{"kappa_sparse": 0.0, "kappa_variation": 0.0, "score": 1.0}]
    strengths.plot_scan(tmp_path / "one.png", rows, ("kappa_sparse", "kappa_variation"), {"score": "score"})
    assert all(size_of_png(path)[0] > 400 for path in tmp_path.iterdir())


def test_lines_hold_the_other_strength():
    """Through the start along one strength, and through the best of those along the other."""
    scores = {(trial["variation"], trial["sparse"]): trial["score"] for trial in TRIALS}
    ((held, line),) = strengths.lines_of(scores)
    assert held == 1 and line == [(0.5, 2.25), (1, 1.0), (2, 0.0)]
    ((held, line),) = strengths.lines_of({(s, v): score for (v, s), score in scores.items()})
    assert held == 2 and [kappa for kappa, _ in line] == [1 / 3, 1, 3]


def test_view_direction_is_that_of_rot_and_tilt():
    """(sin tilt cos rot, sin tilt sin rot, cos tilt), whatever psi."""
    rot, tilt, psi = np.array([[30.0, 70.0, 11.0], [-100.0, 5.0, 200.0]]).T
    angles = np.stack([rot, tilt, psi], axis=1)
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    r, t = np.deg2rad(rot), np.deg2rad(tilt)
    expected = np.stack([np.sin(t) * np.cos(r), np.sin(t) * np.sin(r), np.cos(t)], axis=1)
    np.testing.assert_allclose(plots.view_directions(matrices), expected, atol=1e-12)


def test_symmetry_mates_are_counted():
    twofold = np.stack([np.eye(3), np.diag([-1.0, -1.0, 1.0])])
    found = plots.view_directions(rotations(7), twofold)
    assert found.shape == (14, 3)
    np.testing.assert_allclose(found[1::2], found[::2] * [-1, -1, 1], atol=1e-12)


def test_cells_of_uniform_directions_are_equally_full():
    density = plots.direction_density(plots.view_directions(rotations(200_000)), 6)
    assert density.shape == (6, 12) and density.mean() == pytest.approx(1)
    assert np.abs(density - 1).max() < 5 / np.sqrt(200_000 / 72)
    pole = plots.direction_density(np.array([[0.0, 0.0, 1.0]]), 6)
    assert pole[-1].sum() == pole.sum() == 72
