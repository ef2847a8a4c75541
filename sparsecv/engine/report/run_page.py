# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a refinement, made of the files in its folder: while it runs, and when it has ended.

It is one file without a server, so that it can be opened over any file share, or be sent to somebody.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.regular import read_bytes
from sparsecv.engine.io.results import read_json
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.report.page import Chart, Line, Page, fsc_chart
from sparsecv.engine.report.progress import duration
from sparsecv.engine.settings import provenance_of
from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF
from sparsecv.engine.validate.guinier import EMPTY_SHELL

PAGE = "report.html"
RELOAD_SECONDS = 30
MOST_BYTES = 3_000_000  # of pictures that the slider moves; a third more inside the page
QUALITY = 82  # of pictures, as WebP counts it: text stays sharp, and a tenth of the PNG is left
# What comes of tables that hold other things than a run has written.
DAMAGED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError)
THRESHOLDS, LOWEST = (GOLD_STANDARD, HALF), -0.1  # of FSC curves
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"
PICTURES = {  # moved by the slider: middle of the file's name, heading and words
    "slices": ("Map", "Central slices of the map; of all but the last iteration, the mean of both halves' references."),
    "bandlimit": ("Local band limits", "Local band limits (theta) of the references: slices coloured by them, and how "
                                       "many voxels have each."),
    "held_out": ("Choice of the strengths", "Held-out scores of the strengths that were tried, in each half set by "
                                            "itself."),
    "angles": ("View directions", "Density of view directions; empty regions mean directions that the map lacks."),
}  # fmt: skip
QUALITIES = {
    "best_probability": ("posterior probability of the best pose",
                         "Sharpness of the posterior: 1 means that a single pose explains the image."),
    "spread_deg": ("spread (degrees)", "Spread of the posterior over rotations about the pose of each particle."),
    "turned_deg": ("turned by (degrees)", "How far the iteration has turned each particle."),
    "norm": ("norm", "Factor by which each image is divided to have the noise of its group."),
    "log_evidence": ("log evidence beyond the median", "How much better the map explains each image than noise alone "
                                                       "does; a long tail to the left are images that fit badly."),
}  # fmt: skip
CURVES = {
    "rlnFourierShellCorrelationCorrected": "corrected for the mask",
    "rlnFourierShellCorrelationMaskedMaps": "masked",
    "rlnFourierShellCorrelationUnmaskedMaps": "unmasked",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "random phases, masked",
}
AMPLITUDES = {
    "rlnLogAmplitudesOriginal": "mean of the half maps",
    "rlnLogAmplitudesWeighted": "weighted by the FSC",
    "rlnLogAmplitudesSharpened": "sharpened",
}


@dataclass
class RunPage:
    """``report.html`` of a folder; pictures are read and compressed once, as long as their files stay the same."""

    folder: Path
    _frames: dict[Path, tuple[float, bytes]] = field(default_factory=dict)

    def write(self, status: Mapping[str, Any] | None = None) -> Path:
        """Write the page, atomically, and return its path.

        Parameters
        ----------
        status
            What ``status.json`` holds; None: it is read.

        Raises
        ------
        InputError
            Without a ``status.json`` that can be read, or with files that hold something else than a run has written.
        """
        if status is not None:
            return self._written(status)
        status = self._status()
        try:
            return self._written(status)
        except InputError:
            raise
        except DAMAGED as error:
            raise InputError(f"its files are damaged ({type(error).__name__}: {str(error)[:200]})", file=self.folder,
                             item="status.json, run_it*_record.json, postprocess.star, rejected.star",
                             rule="what sparsecv refine writes",
                             remedy="give the output folder of a refinement, or copy it again") from error

    def _written(self, status: Mapping[str, Any]) -> Path:
        history: list[dict[str, Any]] = status.get("history", [])
        records = {number: record for number, record in self._records() if number <= len(history)}
        is_running = status.get("state") == RUNNING
        page = Page(f"Refinement {self.folder.resolve().name}", RELOAD_SECONDS if is_running else 0)
        page.paragraph(_state(status))
        page.warnings(_warnings(status))
        page.table(("", ""), _summary(status))
        if history:
            page.slider("Iteration", {entry["iteration"]: _position(entry) for entry in history})
            self._add_resolution(page, history, records)
            self._add_frames(page)
            self._add_progress(page, history)
            self._add_particles(page, records)
            self._add_images(page, records)
            _add_cost(page, history, records)
        self._add_provenance(page, status)
        page.write(self.folder / PAGE)
        return self.folder / PAGE

    # ------------------------------------------------------------------------------------------------- what is there
    def _status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        try:
            return read_json(path)
        except (OSError, InputError) as error:
            raise InputError("cannot be read", file=path, rule="what sparsecv refine writes",
                             remedy="give the output folder of a refinement") from error

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and content of what is known of each iteration; what cannot be read is left out."""
        for path in sorted(self.folder.glob("run_it[0-9]*_record.json")):
            try:
                record = read_json(path)
                number = int(record["iteration"])
            except (OSError, ValueError, KeyError, TypeError, OverflowError):
                continue
            yield number, record

    def _pictures(self, name: str) -> dict[int, Path]:
        """Files of a kind of picture by iteration."""
        found = {}
        for path in self.folder.glob(f"run_it[0-9]*_{name}.png"):
            number = path.name.removeprefix("run_it").removesuffix(f"_{name}.png")
            if number.isdecimal():
                found[int(number)] = path
        return found

    def _compressed(self, paths: Mapping[int, Path]) -> Iterator[tuple[int, bytes]]:
        """Pictures as WebP by iteration; what is no picture any more is left out."""
        for number, path in sorted(paths.items()):
            try:
                written = path.stat().st_mtime
                if path not in self._frames or self._frames[path][0] != written:
                    out = io.BytesIO()
                    with Image.open(io.BytesIO(read_bytes(path))) as image:
                        image.convert("RGB").save(out, "WEBP", quality=QUALITY, method=2)
                    self._frames[path] = written, out.getvalue()
            except (OSError, SyntaxError, ValueError):  # as Pillow says that a PNG is damaged
                continue
            yield number, self._frames[path][1]

    # ------------------------------------------------------------------------------------------------------ sections
    def _add_resolution(self, page: Page, history: list[dict[str, Any]], records: Mapping[int, dict[str, Any]]) -> None:
        page.heading("Resolution")
        lines = [Line("half maps, sphere", np.arange(len(one["fsc"])) / one["length_A"], one["fsc"], number)
                 for number, one in records.items()]  # fmt: skip
        numbers = [entry["iteration"] for entry in history]
        at = {level: [_number(entry[f"crossing_{name}"]) for entry in history]
              for level, name in ((GOLD_STANDARD, "0143"), (HALF, "05"))}  # fmt: skip
        charts = [Chart("Resolution of the unregularised half maps inside the sphere, iteration by iteration.",
                        "iteration", "resolution (Å)", [Line(f"FSC {level:g}", numbers, values)
                                                        for level, values in at.items()], "iteration")]  # fmt: skip
        if lines:
            words = ("Fourier shell correlation of the unregularised half maps, at the iteration of the slider; grey: "
                     "the others.")  # fmt: skip
            charts.insert(0, fsc_chart(words, lines, THRESHOLDS, lowest=LOWEST))
        charts += self._final_curves()
        page.charts(charts)

    def _final_curves(self) -> list[Chart]:
        """FSC and Guinier plot of the post-processing, where there is one."""
        path = self.folder / "postprocess.star"
        if not path.is_file():
            return []
        star = StarFile.read(path)
        found = []
        table = star.table("fsc")
        x = table.floats("rlnResolution")
        lines = [Line(label, x, table.floats(name)) for name, label in CURVES.items() if name in table]
        found.append(fsc_chart("Post-processing of the last half maps.", lines, THRESHOLDS, lowest=LOWEST))
        if "guinier" in star:
            table = star.table("guinier")
            x = table.floats("rlnResolutionSquared")
            lines = [Line(label, x, _amplitudes(table.floats(name)))
                     for name, label in AMPLITUDES.items() if name in table]  # fmt: skip
            found.append(Chart("Guinier plot: logarithm of the amplitudes.", "1 / resolution² (1/Å²)", "ln(amplitude)",
                               lines))  # fmt: skip
        return found

    def _add_frames(self, page: Page) -> None:
        found = {name: dict(self._compressed(self._pictures(name))) for name in PICTURES}
        for name, pictures in fitting({name: kind for name, kind in found.items() if kind}, MOST_BYTES).items():
            heading, words = PICTURES[name]
            page.heading(heading)
            page.frames(pictures, words)
        final = self.folder / "run_bandlimit.png"
        if final.is_file():
            page.heading("Local band limits of the result")
            page.picture(final, "Mean band limits of the halves, and the map coloured by them.")

    def _add_progress(self, page: Page, history: list[dict[str, Any]]) -> None:
        page.heading("Progress")
        numbers = [entry["iteration"] for entry in history]

        def lines(**columns: str) -> list[Line]:
            return [Line(label.replace("_", " "), numbers, [_number(entry.get(name)) for entry in history])
                    for label, name in columns.items()]  # fmt: skip

        charts = [
            Chart("Median change of the particles' poses.", "iteration", "degrees",
                  lines(change="turned_deg", step_of_the_grid="step_deg", spread_of_the_posterior="spread_deg"),
                  "iteration", is_logarithmic=True),
            Chart("Median change of the particles' positions.", "iteration", "Å", lines(change="moved_A"), "iteration"),
        ]  # fmt: skip
        page.charts(charts + list(_ctf_charts(history)) + list(_strength_charts(history)))

    def _add_particles(self, page: Page, records: Mapping[int, dict[str, Any]]) -> None:
        if not records:
            return
        page.heading("Particles")
        charts = []
        for name, (label, words) in QUALITIES.items():
            lines = []
            for number, record in records.items():
                one = record.get("distributions", {}).get(name)
                if one is not None:
                    middle = (np.array(one["edges"][1:]) + np.array(one["edges"][:-1])) / 2
                    lines += [Line(half, middle, 100 * np.array(one[half]), number) for half in ("half 1", "half 2")]
            if lines:
                charts.append(Chart(words, label, "particles (%)", lines, has_others=False))
        page.charts(charts)
        rejected = self.folder / "rejected.star"
        if rejected.is_file():
            table = StarFile.read(rejected).table("rejected")
            reasons = table.strings("sparsecvReason") if "sparsecvReason" in table else []
            if len(reasons):
                names, counts = np.unique(np.asarray(reasons, dtype=str), return_counts=True)
                page.paragraph("Set aside (rejected.star):")
                page.table(("reason", "particles"), zip(names.tolist(), counts.tolist(), strict=True))

    def _add_images(self, page: Page, records: Mapping[int, dict[str, Any]]) -> None:
        """Noise spectra of the optics groups in the records."""
        lines = []
        for number, record in records.items():
            for half, groups in enumerate(record.get("noise", []), start=1):
                for name, spectrum in zip(record["optics_groups"], groups, strict=True):
                    x = np.arange(1, len(spectrum)) / record["length_A"]
                    lines.append(Line(f"{name}, half {half}", x, spectrum[1:], number))
        if lines:
            page.heading("Images")
            page.charts([Chart("Noise power per shell, as each half set has estimated it.", "resolution (Å)",
                               "noise variance", lines, "frequency", is_logarithmic=True)])  # fmt: skip

    def _add_provenance(self, page: Page, status: Mapping[str, Any]) -> None:
        page.heading("How it was made")
        path = self.folder / "run.toml"
        try:
            text = read_bytes(path).decode("utf-8")
        except (OSError, ValueError):
            text = ""
        provenance = provenance_of(text)
        if "command" in provenance:
            page.code(str(provenance["command"]))
        rows = [("in folder", provenance.get("working_directory")), ("begun", provenance.get("written")),
                ("seed", status.get("seed")), *status.get("machine", {}).items()]  # fmt: skip
        page.table(("", ""), [row for row in rows if row[1] is not None])
        if text:
            page.paragraph("All settings (run.toml), with which --config repeats the run:")
            page.code(text)


def fitting(pictures: Mapping[str, Mapping[int, bytes]], most: int) -> dict[str, dict[int, bytes]]:
    """The first and the newest picture of each kind and as many of those between as fit, evenly spaced.

    Parameters
    ----------
    pictures
        By kind, by iteration.
    most
        Bytes in all; not kept where the first and the newest are larger already.
    """
    longest = max((len(kind) for kind in pictures.values()), default=0)
    for step in range(1, longest + 2):
        kept = {}
        for name, kind in pictures.items():
            numbers = sorted(kind)
            chosen = {numbers[0], *numbers[::-1][::step]}
            kept[name] = {number: kind[number] for number in numbers if number in chosen}
        if sum(len(data) for kind in kept.values() for data in kind.values()) <= most:
            break
    return kept if longest else {}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _amplitudes(values: np.ndarray) -> np.ndarray:
    """Without what stands for the logarithm of 0 in RELION's tables."""
    return np.where(values > EMPTY_SHELL, values, np.nan)


def _position(entry: Mapping[str, Any]) -> str:
    kind = "last" if entry["is_last"] else entry["stage"]
    return f"{entry['iteration']}, {kind}: {_number(entry['crossing_0143']):.2f} Å"


def _state(status: Mapping[str, Any]) -> str:
    """Where the run stands, in a sentence."""
    number, when = status.get("iteration", 0), status.get("updated", "?")
    spent = duration(_number(status.get("wall_seconds")))
    done = f"{number} iteration{'s' * (number != 1)}"
    state = status.get("state")
    if state == RUNNING:
        return (f"Running: {done} done, at {when}. This page reads itself again every {RELOAD_SECONDS} s as long as it "
                "runs.")  # fmt: skip
    if state == FINISHED:
        return f"Finished after {done} and {spent}, at {when}."
    if state == STOPPED:
        return f"Stopped as asked after {done}, at {when}; sparsecv refine --continue goes on."
    return f"Failed after {done}, at {when}; sparsecv refine --continue goes on once the cause is mended."


def _warnings(status: Mapping[str, Any]) -> list[str]:
    error = [f"The run failed: {status['error']}"] if status.get("error") else []
    shared = [f"Nothing is claimed beyond the {status['resolution_0143']:.2f} A that the halves share."
              for _ in range(bool(status.get("resolution_is_shared")))]  # fmt: skip
    return [*error, *shared, *status.get("warnings", [])]


def _summary(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a user looks for first."""
    def angstrom(value: Any) -> str:
        return "-" if value is None else f"{value:.2f} Å"

    def at_both(prefix: str) -> str:
        return " and ".join(f"{angstrom(status.get(f'{prefix}resolution_{name}'))} at {level:g}"
                            for name, level in (("0143", GOLD_STANDARD), ("05", HALF)))  # fmt: skip

    if "masked_resolution_0143" in status:
        yield "Resolution inside the mask, corrected for it", at_both("masked_")
        if status.get("bfactor") is not None:
            yield "B-factor", f"{status['bfactor']:.0f} Å²"
    yield "Resolution inside the sphere of the particle", at_both("")
    history = status.get("history", [])
    if history:
        last = history[-1]
        priors = [entry["prior"] for entry in history if "prior" in entry]
        if priors:
            yield "Prior of the references", priors[-1]
        if "particles" in status:
            yield "Particles", f"{status['particles']:,}, {last['rejected']:,} of them set aside"
        yield "Step of the search", f"{last['step_deg']:.2f}° ({last['stage']})"
        yield "Poses changed by", f"{last['turned_deg']:.2f}° and {last['moved_A']:.2f} Å (median)"


def _ctf_charts(history: list[dict[str, Any]]) -> Iterator[Chart]:
    """Changes of the optics, where they were refined along with the poses."""
    updates = {entry["iteration"]: entry["ctf"] for entry in history if "ctf" in entry}

    def lines(**columns: str) -> list[Line]:
        return [Line(label.replace("_", " "), list(updates), [_number(one.get(name)) for one in updates.values()])
                for label, name in columns.items()]  # fmt: skip

    if any("moved_A" in one for one in updates.values()):
        found = lines(median_change_in_the_iteration="moved_A", rms_change_since_the_start="changed_A")
        widths = [one.get("width_A", [math.nan] * 2) for one in updates.values()]
        found += [Line(f"width of the prior, half {half + 1}", list(updates), [width[half] for width in widths])
                  for half in (0, 1)]  # fmt: skip
        yield Chart("Changes of defocus.", "iteration", "Å", found, "iteration")
    if any("tilts_mrad" in one for one in updates.values()):
        sizes = [max(math.hypot(*tilt) for tilt in one["tilts_mrad"]) if "tilts_mrad" in one else math.nan
                 for one in updates.values()]  # fmt: skip
        yield Chart("Largest beam tilt of an optics group.", "iteration", "mrad",
                    [Line("tilt", list(updates), sizes)], "iteration")  # fmt: skip


def _strength_charts(history: list[dict[str, Any]]) -> Iterator[Chart]:
    """Strengths of the sparse + TV prior, where it was used."""
    used = [entry for entry in history if all("kappa_sparse" in one for one in entry.get("regulariser", [{}]))]
    if used:
        names = {"kappa_variation": "total variation", "kappa_sparse": "sparsity"}
        lines = [Line(f"{label}, half {half + 1}", [entry["iteration"] for entry in used],
                      [entry["regulariser"][half][name] for entry in used])
                 for name, label in names.items() for half in (0, 1)]  # fmt: skip
        yield Chart("Strengths (kappa) of the sparse + TV prior, in units of the noise.", "iteration", "kappa", lines,
                    "iteration", is_logarithmic=min(min(line.y) for line in lines) > 0)  # fmt: skip
    apart = [entry for entry in history if "band_limit_disagreement" in entry]
    if apart:
        yield Chart("Difference of the band limits that both halves have chosen.", "iteration", "disagreement",
                    [Line("disagreement", [entry["iteration"] for entry in apart],
                          [_number(entry["band_limit_disagreement"]) for entry in apart])], "iteration")  # fmt: skip


def _add_cost(page: Page, history: list[dict[str, Any]], records: Mapping[int, dict[str, Any]]) -> None:
    """Time and memory by iteration and part."""
    timed = {number: record["seconds"] for number, record in records.items() if record.get("seconds")}
    if not timed:
        return
    page.heading("Time and memory")
    parts = list(dict.fromkeys(name for seconds in timed.values() for name in seconds))
    numbers = list(timed)
    charts = [Chart("Wall time of the parts of each iteration.", "iteration", "seconds",
                    [Line(name, numbers, [timed[number].get(name, math.nan) for number in numbers]) for name in parts],
                    "iteration", is_logarithmic=True),
              Chart("Most memory in use so far (first process).", "iteration", "GB",
                    [Line("host", numbers, [_number(records[number].get("memory_bytes")) / 1e9 for number in numbers])],
                    "iteration")]  # fmt: skip
    page.charts(charts)
    rows = [(name, sum(seconds.get(name, 0.0) for seconds in timed.values())) for name in parts]
    page.table(("part", "seconds in all"), rows)
