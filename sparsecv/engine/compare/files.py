# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a comparison: all numbers, pictures, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.compare.comparison import Comparison, RunResult
from sparsecv.engine.compare.poses import PoseChanges
from sparsecv.engine.io.results import write_json
from sparsecv.engine.report.compare import distributions, guinier_points, plot_guinier, plot_pose_changes
from sparsecv.engine.report.page import Chart, Line, Page, fsc_chart
from sparsecv.engine.report.plots import literal, plot_fsc, plot_rows_of_slices
from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF, Resolution

PAGE, NUMBERS, RECORD = "compare.html", "compare.json", "compare.toml"
SLICES = {
    "compare_average.png": "Averages of the half maps, low-passed alike",
    "compare_shown.png": "The runs' own maps",
    "compare_difference.png": "Differences of the low-passed averages",
}
WRITTEN = (PAGE, NUMBERS, RECORD, "compare_fsc.png", "compare_map_fsc.png", "compare_poses.png",
           "compare_guinier.png", *SLICES)  # fmt: skip
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SMALLEST_DEG, SMALLEST_A = 0.1, 0.1  # last edge of histograms where hardly anything changed


def write_comparison(found: Comparison, folder: Path) -> list[str]:
    """Write everything but the settings and the page into a folder that exists; names of the pictures."""
    write_json(folder / NUMBERS, numbers(found))
    box, pixel_size = found.grid.box, found.grid.pixel_size
    by_label = {one.run.label: one for one in found.runs}
    first = literal(found.runs[0].run.label)
    plot_fsc(folder / "compare_fsc.png", {label: one.post.curves.corrected for label, one in by_label.items()}, box,
             pixel_size, title="FSC of the half maps, in the common mask, corrected for it")  # fmt: skip
    plot_fsc(folder / "compare_map_fsc.png", _map_curves(found), box, pixel_size, thresholds=(HALF,),
             without_crossing=(found.runs[0].run.label,), legend_at="lower left",
             title=f"FSC of the averages of half maps against {first}")  # fmt: skip
    made = ["compare_fsc.png", "compare_map_fsc.png"]
    if _poses(found):
        plot_pose_changes(folder / "compare_poses.png", *_changes(found), title=f"Change of poses against {first}")
        made.append("compare_poses.png")
    slopes = [None if one.common_fit is None else one.common_fit.slope for one in found.runs]
    plot_guinier(folder / "compare_guinier.png", _guinier(found), slopes, found.fit_range)
    made.append("compare_guinier.png")
    rows = {
        "compare_average.png": {label: one.slices for label, one in by_label.items()},
        "compare_shown.png": {k: one.shown_slices for k, one in by_label.items() if one.shown_slices is not None},
        "compare_difference.png": {
            label: one.difference_slices for label, one in by_label.items() if one.difference_slices is not None
        },
    }
    for name, slices in rows.items():
        if slices:
            is_signed = name == "compare_difference.png"
            title = SLICES[name] + (f", less {first}" if is_signed else "")
            plot_rows_of_slices(folder / name, slices, pixel_size, title=title, unit="standard deviations",
                                is_signed=is_signed)  # fmt: skip
            made.append(name)
    return made


def numbers(found: Comparison) -> dict[str, Any]:
    """All that was found, as plain values; lengths in A, angles in degrees, B-factors in A^2."""
    return {
        "grid": {"box": found.grid.box, "pixel_size_A": found.grid.pixel_size},
        "mask": {"source": found.mask_source, "fraction": found.mask_fraction},
        "common_resolution_A": found.resolution,
        "fit_range_A": list(found.fit_range),
        "runs": {one.run.label: _run_numbers(one) for one in found.runs},
        "notes": list(found.notes),
        "warnings": list(found.warnings),
    }


def _run_numbers(one: RunResult) -> dict[str, Any]:
    post, run = one.post, one.run
    curves = post.curves
    return {
        "folder": str(run.folder), "prior": run.prior, "symmetry": run.symmetry, "particles": len(run.particles),
        "box": one.box, "pixel_size_A": one.pixel_size, "wall_s": run.wall_seconds, "cpu_s": run.cpu_seconds,
        "resolution_0143": _resolution(post.resolution_0143), "resolution_05": _resolution(post.resolution_05),
        "unmasked_0143": _resolution(one.unmasked), "bfactor": post.bfactor,
        "bfactor_common_range": None if one.common_fit is None else one.common_fit.bfactor,
        "fsc": {"corrected": curves.corrected.tolist(), "masked": curves.masked.tolist(),
                "randomised": curves.randomised.tolist(), "unmasked": curves.unmasked.tolist()},
        "guinier": {"k2": post.guinier.k2.tolist(), "ln_F": post.guinier.original.tolist(),
                    "ln_F_weighted": post.guinier.weighted.tolist()},
        "poses": None if one.poses is None else _pose_numbers(one.poses),
        "maps": None if one.maps is None else {
            "fsc": one.maps.superposed.tolist(), "fsc_as_they_are": one.maps.as_they_are.tolist(),
            "resolution_05": _resolution(one.maps.resolution), "moved": one.maps.is_moved,
            "difference": one.maps.difference,
        },
    }  # fmt: skip


def _resolution(one: Resolution) -> dict[str, Any]:
    return {"angstrom": one.angstrom, "crossed": one.crossed}


def _pose_numbers(poses: PoseChanges) -> dict[str, Any]:
    frame = poses.frame

    def spread(values: np.ndarray, smallest: float) -> dict[str, Any]:
        shape = distributions({"": values}, smallest)[""]
        assert shape is not None
        return {"mean": float(values.mean()), "rms": float(np.sqrt(np.mean(values**2))),
                "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
                "bin_edges": shape.edges.tolist(), "percent": shape.shares.tolist()}  # fmt: skip

    return {
        "common": poses.common, "only_first": poses.only_first, "only_this": poses.only_other,
        "found_by": poses.found_by, "in_another_half_set": poses.other_half, "half_sets_exchanged": poses.is_swapped,
        "frame": {"rotation": frame.rotation.tolist(), "shift_A": frame.shift.tolist(), "degrees": frame.degrees,
                  "angstrom": frame.angstrom, "is_known": poses.is_related},
        "turned_deg": spread(poses.change.turned, SMALLEST_DEG), "moved_A": spread(poses.change.moved, SMALLEST_A),
        "turned_as_they_are_deg": spread(poses.as_they_are.turned, SMALLEST_DEG),
        "moved_as_they_are_A": spread(poses.as_they_are.moved, SMALLEST_A), "lost": poses.lost,
    }  # fmt: skip


def _poses(found: Comparison) -> dict[str, PoseChanges]:
    return {one.run.label: one.poses for one in found.runs if one.poses is not None}


def _changes(found: Comparison) -> tuple[dict[str, np.ndarray | None], dict[str, np.ndarray | None]]:
    """Degrees and A of each particle, by the label of the run; None where there is nothing to compare with."""
    changes = {one.run.label: None if one.poses is None else one.poses.change for one in found.runs}
    return ({label: None if one is None else one.turned for label, one in changes.items()},
            {label: None if one is None else one.moved for label, one in changes.items()})  # fmt: skip


def _map_curves(found: Comparison) -> dict[str, np.ndarray]:
    """FSC of each run's average against that of the first; of the first, which keeps its colour, with itself."""
    shells = found.grid.box // 2 + 1
    return {one.run.label: np.ones(shells) if one.maps is None else one.maps.superposed for one in found.runs}


def _guinier(found: Comparison) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {one.run.label: guinier_points(one.post.guinier.k2, one.post.guinier.weighted, found.fit_range[0])
            for one in found.runs}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the page
RUN_COLUMNS = ("run", "prior", "particles", "symmetry", "box", "pixel (Å)", "CPU (min)", "wall (min)")
RESULT_COLUMNS = ("run", "FSC 0.143 (Å)", "FSC 0.5 (Å)", "unmasked 0.143 (Å)", "B (Å²)", "B, common range (Å²)",
                  "turned (°)", "moved (Å)")  # fmt: skip
POSE_COLUMNS = ("run", "in common", "not in the first", "missing", "in another half set", "frame turned (°)",
                "frame moved (Å)", "median turn, as they are (°)", "median turn (°)", "turned > 30° (%)",
                "median shift, as they are (Å)", "median shift (Å)")  # fmt: skip
MAP_COLUMNS = ("run", "FSC 0.5 (Å)", "moved", "difference in the mask (% of the standard deviation)")


def write_page(found: Comparison, folder: Path, pictures: list[str]) -> None:
    """Write compare.html: tables, charts, pictures, what was done; the pictures stand in the folder already."""
    first = found.runs[0].run.label
    page = Page("Refinements side by side")
    page.paragraph(f"Every run against {first}, in one mask ({found.mask_source}; {found.mask_fraction:.1%} of the "
                   f"box), on one grid of {found.grid.box} voxels of {found.grid.pixel_size:.4g} Å.")  # fmt: skip
    page.warnings(found.warnings)
    page.table(RESULT_COLUMNS, map(_result_row, found.runs))
    page.paragraph(
        "Resolutions: FSC of the half maps in the common mask, corrected for it by random phases; unmasked: without "
        "it. B: as post-processing fits it, to the end of the map's own FSC; in the common range, "
        f"{found.fit_range[0]:g} to {found.fit_range[1]:.2f} Å, only fall-offs differ. Turned and moved: medians "
        f"against {first}, without the motion of the frame. Times are of the process that wrote a run's results: where "
        "there were several, or it was continued, more was spent.",
        faint=True,
    )
    page.table(RUN_COLUMNS, map(_run_row, found.runs))
    page.heading("Half maps")
    page.charts(_half_map_charts(found))
    page.heading(f"Maps against {first}")
    page.charts([_map_chart(found), _guinier_chart(found)])
    page.table(MAP_COLUMNS, ((one.run.label, _shown(one.maps.resolution), "yes" if one.maps.is_moved else "no",
                              round(100 * one.maps.difference)) for one in found.runs if one.maps is not None))
    page.paragraph("Maps of the same images share their noise: this FSC says how far two maps are the same, not how "
                   "far they are right. Where half sets differ, half maps of different runs are not independent of "
                   "each other. Moved: the average was brought into the frame of the first run.", faint=True)
    poses = _poses(found)
    if poses:
        page.heading(f"Poses against {first}")
        page.table(POSE_COLUMNS, (_pose_row(label, one) for label, one in poses.items()))
        page.charts(_pose_charts(found))
        ways = sorted({one.found_by for one in poses.values()})
        page.paragraph(f"Particles were found again by {', '.join(ways)}. Angles are the smallest over symmetry mates. "
                       "The motion of the frame, which refinements are free to make, is fitted to the poses and taken "
                       "out; as they are: before that.", faint=True)  # fmt: skip
    page.heading("Slices")
    captions = {
        "compare_average.png": f"{SLICES['compare_average.png']}, to {found.resolution:.2f} Å, which all runs reach; "
                               f"in the frame and on the grey scale of {first}.",
        "compare_shown.png": f"{SLICES['compare_shown.png']}: regularised, where there is such a map; on the same grey "
                             "scale.",
        "compare_difference.png": f"{SLICES['compare_difference.png']}, less that of {first}, in the mask.",
    }  # fmt: skip
    for name, caption in captions.items():
        if name in pictures:
            page.picture(folder / name, caption)
    page.heading("What was done")
    if found.notes:
        page.items(found.notes)
    if (folder / RECORD).is_file():
        page.code((folder / RECORD).read_text(encoding="utf-8"))
    page.write(folder / PAGE)


def _run_row(one: RunResult) -> tuple[object, ...]:
    """What RUN_COLUMNS name."""
    run = one.run
    times = (None if seconds is None else seconds / 60 for seconds in (run.cpu_seconds, run.wall_seconds))
    return (run.label, run.prior, len(run.particles), run.symmetry, one.box, one.pixel_size, *times)


def _result_row(one: RunResult) -> tuple[object, ...]:
    """What RESULT_COLUMNS name."""
    post, poses = one.post, one.poses
    bfactors = post.bfactor, None if one.common_fit is None else one.common_fit.bfactor
    changes = (None, None) if poses is None else (poses.change.turned, poses.change.moved)
    return (one.run.label, *map(_shown, (post.resolution_0143, post.resolution_05, one.unmasked)),
            *(None if bfactor is None else round(bfactor) for bfactor in bfactors),
            *(None if values is None else float(np.median(values)) for values in changes))  # fmt: skip


def _shown(found: Resolution) -> object:
    return found.angstrom if found.crossed else f"{found.angstrom:.3f} (Nyquist)"


def _pose_row(label: str, one: PoseChanges) -> tuple[object, ...]:
    medians = [float(np.median(values)) for values in (one.as_they_are.turned, one.change.turned, one.as_they_are.moved,
                                                       one.change.moved)]  # fmt: skip
    frame = (one.frame.degrees, one.frame.angstrom) if one.is_related else (None, None)
    return (label, one.common, one.only_other, one.only_first, one.other_half, *frame, medians[0], medians[1],
            100 * one.lost, medians[2], medians[3])


def _fsc_chart(
    caption: str, curves: Mapping[str, np.ndarray], found: Comparison, thresholds: tuple[float, ...]
) -> Chart:
    lines = [Line(label, (np.arange(len(curve)) / found.grid.length).tolist(), curve.tolist())
             for label, curve in curves.items()]  # fmt: skip
    return fsc_chart(caption, lines, thresholds)


def _half_map_charts(found: Comparison) -> list[Chart]:
    both = GOLD_STANDARD, HALF
    corrected = {one.run.label: one.post.curves.corrected for one in found.runs}
    unmasked = {one.run.label: one.post.curves.unmasked for one in found.runs}
    return [_fsc_chart("FSC of the half maps in the common mask, corrected for it.", corrected, found, both),
            _fsc_chart("FSC of the half maps without a mask.", unmasked, found, both)]  # fmt: skip


def _map_chart(found: Comparison) -> Chart:
    caption = f"FSC of the averages of half maps against {found.runs[0].run.label}, in the common mask."
    return _fsc_chart(caption, _map_curves(found), found, (HALF,))


def _guinier_chart(found: Comparison) -> Chart:
    lines = [Line(label, x.tolist(), y.tolist()) for label, (x, y) in _guinier(found).items()]
    return Chart(f"Guinier plot of the averages of half maps, weighted by their FSC; 0 at {found.fit_range[0]:g} Å.",
                 "1/d² (1/Å²)", "ln F", lines)  # fmt: skip


def _pose_charts(found: Comparison) -> list[Chart]:
    turned, moved = _changes(found)
    charts = []
    for name, unit, values, smallest in (
        ("Rotation", "degrees", turned, SMALLEST_DEG), ("Shift in the image", "Å", moved, SMALLEST_A),
    ):  # fmt: skip
        shapes = distributions(values, smallest)
        edges = next(shape.edges for shape in shapes.values() if shape is not None)
        beyond = ", ".join(f"{label} {shape.beyond:.1f} %" for label, shape in shapes.items() if shape is not None)
        nothing = [float("nan")] * len(edges)  # keeps the place of a run, and so its colour
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        shares = [Line(label, middles, nothing[1:] if one is None else one.shares.tolist())
                  for label, one in shapes.items()]  # fmt: skip
        below = [Line(label, edges.tolist(), nothing if one is None else one.cumulative.tolist())
                 for label, one in shapes.items()]  # fmt: skip
        axis = f"{name.lower()} ({unit})"
        charts += [
            Chart(f"{name} of each particle, in {len(edges) - 1} bins. Not shown, beyond: {beyond}.", axis,
                  "particles per bin (%)", shares),
            Chart(f"{name}: share of the particles below.", axis, "particles below (%)", below, y_range=(0, 100)),
        ]  # fmt: skip
    return charts
