# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a run: whole, self-contained, safe and small; in a browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_run import refine, simulated

from sparsecv import cli
from sparsecv.engine.io.results import write_json
from sparsecv.engine.refine.record import distributions
from sparsecv.engine.refine.state import ParticleState
from sparsecv.engine.report.page import Chart, Line, Page
from sparsecv.engine.report.plots import plot_angles, plot_slices
from sparsecv.engine.report.run_page import MOST_BYTES, RunPage, fitting

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FETCHES = re.compile(r'(src|href|action)\s*=\s*["\'](?!data:|#)|url\(|@import|fetch\(|XMLHttpRequest|https?://(?!www\.w3)')
LARGEST = 5_000_000  # bytes


class Tags(HTMLParser):
    """Counts what opens and what closes."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert (tags.open, tags.problems) == ([], [])
    return tags


def numbers_in(text: str) -> dict:
    """What the page's script reads."""
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text).group(1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder of a refinement with every part of the page: the non-uniform prior shows the most."""
    folder = tmp_path_factory.mktemp("report")
    assert refine(simulated(folder), folder / "run", "nonuniform", "--iterations", 4) == 0
    return folder / "run"


def test_the_page_of_a_run_has_all_its_parts(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    tags, data = parsed(text), numbers_in(text)
    history = json.loads((finished / "status.json").read_text())["history"]
    last = history[-1]["iteration"]
    assert "Finished after" in text
    assert 'http-equiv="refresh"' not in text
    for heading in ("Resolution", "Map", "Local band limits", "View directions", "Progress", "Particles", "Images",
                    "Time and memory", "How it was made"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    assert data["slider"]["positions"] == list(range(1, last + 1))
    assert {int(one["data-frame"]) for one in tags.images if "slices" in one["alt"]} == set(range(1, last + 1))
    assert all(one["alt"] for one in tags.images)
    by_caption = {chart["caption"]: chart for chart in data["charts"]}
    fsc = next(chart for caption, chart in by_caption.items() if "at the iteration" in caption)
    star = json.loads((finished / f"run_it{last:03d}_record.json").read_text())
    assert fsc["lines"][-1]["frame"] == last
    np.testing.assert_allclose(fsc["lines"][-1]["y"], star["fsc"], rtol=1e-4, atol=1e-9)
    resolution = next(chart for caption, chart in by_caption.items() if "iteration by iteration" in caption)
    np.testing.assert_allclose(resolution["lines"][0]["y"], [one["crossing_0143"] for one in history], rtol=1e-4)
    times = next(chart for caption, chart in by_caption.items() if caption.startswith("Wall time"))
    assert {line["label"] for line in times["lines"]} >= {"search and sums", "regularisation", "pictures", "checkpoint"}
    assert "sparsecv refine --particles" in text
    for name in ("NumPy", "device", "processor", "seed", "memory"):
        assert f"<td>{name}</td>" in text


def test_pages_fetch_nothing_and_are_small(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    without_pictures = re.sub(r"data:image/[^\"]*", "data:", text)
    assert not FETCHES.search(without_pictures)
    assert len(text) < LARGEST


def test_the_page_is_made_again_from_the_folder(finished: Path, capsys) -> None:
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    assert cli.main(["report", str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert (finished / "report.html").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "give the output folder of a refinement" in capsys.readouterr().err
    for content in ("[", "[1]", "5"):
        (tmp_path / "status.json").write_text(content)
        assert cli.main(["report", str(tmp_path)]) == 2
    (tmp_path / "status.json").unlink()
    os.mkfifo(tmp_path / "status.json")  # reading it would hang
    assert cli.main(["report", str(tmp_path)]) == 2


def fake_run(folder: Path, *, particles: int, iterations: int, **status: object) -> None:
    """A folder as a run leaves it, with random numbers for results."""
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    box, pixel_size = 256, 1.1
    shells = np.arange(box // 2 + 1)
    state = ParticleState.start(np.linalg.qr(rng.normal(size=(particles, 3, 3)))[0], np.zeros((particles, 2)))
    history = []
    for number in range(1, iterations + 1):
        state.best_probability = rng.beta(1 + number / 4, 4, particles)
        state.spread_deg = rng.gamma(2, 4 / number, particles)
        curve = 1 / (1 + np.exp((shells - 10 - 4 * number) / 4))
        write_json(folder / f"run_it{number:03d}_record.json", {
            "iteration": number, "length_A": box * pixel_size, "fsc": curve.tolist(),
            "noise": [[(1 + rng.random(len(shells)) / 10).tolist() for _ in range(3)] for _ in (1, 2)],
            "optics_groups": ["one", "two", "three"],
            "distributions": distributions(state, np.arange(particles) % 2 + 1),
            "seconds": {"search and sums": 100.0 * number, "pictures": 0.4}, "memory_bytes": 10_000_000_000,
        })  # fmt: skip
        if number == 1:  # slices of noise are as hard to compress as any
            plot_slices(folder / "run_it001_slices.png", rng.normal(size=(64, 64, 64)), pixel_size)
            plot_angles(folder / "run_it001_angles.png", state.rotations[:5000])
        else:
            for name in ("slices", "angles"):
                shutil.copy(folder / f"run_it001_{name}.png", folder / f"run_it{number:03d}_{name}.png")
        history.append({
            "iteration": number, "stage": "global", "is_last": number == iterations, "band": 20,
            "resolution_0143": 281.6 / (10 + 4 * number), "resolution_05": 281.6 / (8 + 4 * number),
            "resolution_is_shared": False, "crossing_0143": 281.6 / (10 + 4 * number),
            "crossing_05": 281.6 / (8 + 4 * number), "step_deg": 1.8, "turned_deg": 3 / number, "moved_A": 0.1,
            "spread_deg": 1.0, "best_probability": 0.5, "significant": 20, "rejected": 0, "prior": "wiener",
        })  # fmt: skip
    write_json(folder / "status.json", {
        "state": "running", "iteration": iterations, "resolution_0143": 3.2, "resolution_05": 4.1,
        "resolution_is_shared": False, "wall_seconds": 3600.0, "cpu_seconds": 7200.0, "updated": "2026-01-01T00:00:00",
        "warnings": [], "particles": particles, **status, "history": history})  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A run of 100,000 particles that has gone on for 30 iterations."""
    folder = tmp_path_factory.mktemp("large")
    fake_run(folder, particles=100_000, iterations=30)
    return RunPage(folder).write()


def test_a_large_run_has_a_small_page(large: Path) -> None:
    text = large.read_text()
    parsed(text)
    assert len(text) < LARGEST
    assert 'http-equiv="refresh"' in text
    assert "100,000" in text


def test_failed_stopped_and_hostile_runs_say_so(tmp_path) -> None:
    for state, words in (("failed", "Failed after"), ("stopped", "Stopped as asked")):
        name = "</script><script>alert(1)</script>"
        fake_run(tmp_path / state, particles=10, iterations=2, state=state, error=name, warnings=[name])
        (tmp_path / state / "run.toml").write_text(f'# {name}\n[provenance]\ncommand = "sparsecv {name}"\n')
        record = tmp_path / state / "run_it002_record.json"
        content = json.loads(record.read_text())
        content["optics_groups"][0] = name
        record.write_text(json.dumps(content))
        (tmp_path / state / "run_it001_record.json").write_text("{")  # damaged, as the picture: left out
        picture = tmp_path / state / "run_it001_slices.png"
        picture.write_bytes(picture.read_bytes()[:2000])
        text = RunPage(tmp_path / state).write().read_text()
        parsed(text)
        assert words in text
        assert "<script>alert" not in text
        assert len(numbers_in(text)["charts"][0]["lines"]) == 1
        assert [one["data-frame"] for one in parsed(text).images if "slices" in one["alt"]] == ["2"]
        assert numbers_in(text)["charts"][-3]["lines"][0]["label"].startswith("</script>")


def test_of_many_pictures_the_ends_are_kept_and_others_evenly() -> None:
    pictures = {"slices": {number: bytes(100) for number in range(1, 42)}, "angles": {41: bytes(10)}}
    assert fitting(pictures, 10_000) == pictures
    kept = fitting(pictures, 1510)
    assert sorted(kept["slices"]) == [1, *range(2, 42, 3)]
    assert kept["angles"] == pictures["angles"]
    assert fitting({}, MOST_BYTES) == {}


def test_charts_keep_what_is_finite() -> None:
    chart = Chart("c", "x", "y", [Line("a", [0, 1, 2], [1.23456789, float("nan"), float("inf")])])
    assert chart.as_dict()["lines"][0]["y"] == [1.2346, None, None]


# ------------------------------------------------------------------------------------------------------- in a browser
PROBE = """
<script>
const noted = [];
addEventListener("error", (event) => noted.push(event.message));
addEventListener("load", () => {
  const slider = document.querySelector(".slider input");
  const visible = () => [...document.querySelectorAll("figure.frames")].map(
    (figure) => figure.querySelectorAll("img:not([hidden])").length);
  const found = { errors: noted, loaded: performance.now(), visible: visible(),
    charts: document.querySelectorAll("figure.chart > svg path").length };
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  found.first = document.querySelector(".slider output").value;
  found.hash = location.hash;
  found.visible_first = visible();
  const svg = document.querySelector("figure.chart > svg");
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
  found.read = document.querySelector("figure.chart .read").textContent;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


def probed(page: Path, folder: Path) -> dict:
    """What a headless browser finds when it has opened a page and moved its slider and a chart's cursor."""
    copy = folder / "probed.html"
    copy.write_text(page.read_text().replace("<body>", "<body>" + PROBE, 1))
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                           f"--user-data-dir={folder / 'profile'}", copy.as_uri()],
                          capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found.group(1))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_works_in_a_browser(finished: Path, tmp_path) -> None:
    found = probed(finished / "report.html", tmp_path)
    assert found["errors"] == []
    assert found["charts"] > 20
    assert set(found["visible"]) == set(found["visible_first"]) == {1}
    assert found["first"].startswith("1, ")
    assert found["hash"] == "#iteration-1"
    assert "half maps, sphere" in found["read"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_large_page_opens_quickly(large: Path, tmp_path) -> None:
    found = probed(large, tmp_path)
    assert found["errors"] == []
    assert found["loaded"] < 2000  # milliseconds


def test_a_page_without_charts_has_no_script(tmp_path) -> None:
    page = Page("plain")
    page.paragraph("words")
    page.write(tmp_path / "page.html")
    assert "<script" not in (tmp_path / "page.html").read_text()
