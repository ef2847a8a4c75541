# SPDX-License-Identifier: GPL-3.0-or-later
"""What a refinement costs, by formulas: time and memory against particles, box, resolution and GPUs.

    python benchmarks/scaling.py --measure     fits the rates of one CPU thread, and checks them at other sizes
    python benchmarks/scaling.py --far         checks them once more, at 256 px
    python benchmarks/scaling.py --refit       fits them anew to the measurements that are kept with them
    python benchmarks/scaling.py               prints the model from benchmarks/rates_cpu.json and the data sheets

The counts of an iteration (`Counts`) come from the engine's own schedule and memory plan; how many cells survive a
level, and how many orientations are backprojected, depend on the data and are measured. A stage's time on the CPU is a
sum of counts times rates, fitted to three sizes for the check, and to all that was measured for what follows. On a GPU
there are only floors yet: what each kernel must do at least (`work.py`) over the ceilings of a data sheet.
docs/scaling.md says what follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import work
from common import HERE, machine, save, table
from device import parse
from scipy.optimize import nnls
from stages import NAMES, SHIFT_SIGMA, Spent, iterate, refinement_of
from synthetic import DIAMETER, LENGTH, Specimen

from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine.memory_plan import plan_memory, volume_bytes
from sparsecv.engine.refine.schedule import CELLS_KEPT, Draws, Geometry, search_plan
from sparsecv.engine.refine.state import HalfState
from sparsecv.engine.refine.volumes import PADDING, half_width

RATES = HERE / "rates_cpu.json"
FITTED = ((500, 64), (1000, 96), (2000, 128))  # particles, box
CHECKED = ((900, 88), (1200, 104), (600, 160))
FAR = ((200, 256),)  # far beyond what was fitted
STAGES = ("global", "fine")
PARTS = {"global": 0.35, "fine": 0.8}  # band over Nyquist of the measurements
LOCAL_SIGMA = 1.2  # degrees
WORDS = 19 * 8  # bytes of a particle's state, which the root sends to all
NOT_RUN = "not yet run on a GPU"
MPI_BANDWIDTH = 5e9  # bytes per s between hosts' memories: an assumption


@dataclass(frozen=True)
class Problem:
    """One iteration: particles, box, sizes in A, the highest shell compared, the stage, and the point group."""

    particles: int
    box: int
    band: int
    stage: str
    length: float = LENGTH
    diameter: float = DIAMETER
    symmetry: str = "C1"

    @property
    def geometry(self) -> Geometry:
        """Sizes as the engine has them."""
        return Geometry(self.box, self.length / self.box, self.diameter)


@dataclass(frozen=True)
class Occupancy:
    """What the data decide.

    Attributes
    ----------
    kept
        Cells that survive each level, of those that may (`CELLS_KEPT`); the last holds for all that follow.
    slices
        Orientations of an image that are backprojected.
    """

    kept: tuple[float, ...] = (1.0,)
    slices: float = 8.0


@dataclass(frozen=True)
class LevelCounts:
    """Of one image at one level after the exhaustive one: candidates, shifts, pixels compared."""

    candidates: float
    shifts: int
    pixels: int


@dataclass(frozen=True)
class Counts:
    """What an iteration of both halves consists of.

    Attributes
    ----------
    orientations, first_shifts, first_pixels
        Of the exhaustive level; 0 orientations in local searches.
    levels
        The others.
    pixels, deposited
        Of the whole disc, and up to the last shell that is backprojected.
    voxels
        Of one half volume of the sums.
    cube, coset
        Voxels of the padded map; operations of the point group that need interpolation.
    """

    orientations: int
    first_shifts: int
    first_pixels: int
    levels: tuple[LevelCounts, ...]
    pixels: int
    deposited: int
    voxels: float
    cube: float
    coset: int

    @classmethod
    def of(cls, problem: Problem, occupancy: Occupancy) -> Counts:
        """By the engine's schedule."""
        geometry, disc = problem.geometry, make_disc(problem.box)
        pixel = geometry.pixel_size
        matrices = symmetry_matrices(problem.symmetry)
        sigma = SHIFT_SIGMA / pixel
        half = HalfState(np.zeros(0), np.zeros(0), np.ones(1), sigma, 1.5 * sigma, LOCAL_SIGMA)
        plan = search_plan(geometry, problem.band, half, matrices, Draws.of(1, 2, 1), problem.stage)
        is_global = problem.stage == "global"
        cells, shifts = len(plan.grid.cells()), len(plan.shifts)
        levels = []
        candidates = float(cells)
        for number, level in enumerate(plan.levels):
            if number:
                before = plan.levels[number - 1]
                kept = occupancy.kept[min(number - 1, len(occupancy.kept) - 1)]
                candidates = min(candidates, CELLS_KEPT * kept) * (8 if level.depth > before.depth else 1)
                is_finer = level.shift_step < before.shift_step
                most = before.keep_shifts if is_finer else 4 * before.keep_shifts
                shifts = min(most, shifts) * (4 if is_finer else 1)
            if number or not is_global:
                levels.append(LevelCounts(candidates, shifts, disc.size(level.shell)))
        last = geometry.accumulated_shell(problem.band)
        diagonal = sum(bool(np.allclose(np.abs(one), np.eye(3), atol=1e-6)) for one in matrices)
        return cls(cells if is_global else 0, len(plan.shifts) if is_global else 0,
                   disc.size(plan.levels[0].shell) if is_global else 0, tuple(levels), len(disc), disc.size(last),
                   work.half_volume(half_width(last)), float((PADDING * problem.box) ** 3), len(matrices) // diagonal)


def terms(problem: Problem, occupancy: Occupancy) -> dict[str, dict[str, float]]:
    """Counts that each stage's time is a sum of, times rates: of both halves."""
    counts, n, box = Counts.of(problem, occupancy), float(problem.particles), problem.box
    first = n * counts.first_shifts * counts.orientations
    transform = counts.cube * np.log2(PADDING * box)
    last = counts.levels[-1]
    deposited = n * occupancy.slices * counts.deposited
    gathered = n * sum(level.candidates * level.pixels for level in counts.levels)
    return {
        "references": {"transform": 2 * transform, "slices": 2.0 * counts.orientations * counts.first_pixels,
                       "voxels": 2 * counts.voxels},
        "images": {"FFT": n * box**2 * np.log2(box), "pixels": n * counts.pixels},
        "grid": {"products": first * counts.first_pixels, "scores": first},
        # the larger a volume, the farther it is from the processor's caches
        "candidates": {
            "gathered": gathered,
            "far": gathered * np.cbrt(counts.voxels),
            "scored": n * sum(level.candidates * level.pixels * level.shifts for level in counts.levels),
            "samples": n * sum(level.candidates * level.shifts for level in counts.levels),
            "moved": n * sum(level.shifts * level.pixels for level in counts.levels),
        },
        "poses": {"candidates": n * last.candidates, "images": n},
        "statistics": {"pixels": n * counts.pixels, "slices": n * counts.deposited},
        "deposit": {"deposited": deposited, "far": deposited * np.cbrt(counts.voxels), "voxels": 4 * counts.voxels,
                    "moved": n * last.shifts * counts.deposited},
        "sums": {"voxels": 4 * counts.voxels * counts.coset},
        "maps": {"transform": 2 * transform, "voxels": 4 * counts.voxels},
        "prior": {"transform": 2 * transform, "voxels": 4 * counts.voxels},
        "state": {"images": n},
        "rest": {"voxels": 4 * counts.voxels, "images": n, "candidates": n * last.candidates},
    }  # fmt: skip


@dataclass
class Rates:
    """Seconds per count, by stage and term, of a device; and what the data decided in the measurements."""

    device: str
    seconds: dict[str, dict[str, float]]
    occupancy: dict[str, Occupancy] = field(default_factory=dict)

    def predict(self, problem: Problem) -> dict[str, float]:
        """Seconds by stage of one iteration."""
        of_stage = self.occupancy[problem.stage if problem.stage in self.occupancy else "fine"]
        found = terms(problem, of_stage)
        return {stage: sum(self.seconds[stage][name] * count for name, count in parts.items())
                for stage, parts in found.items()}  # fmt: skip


def occupancy_of(cases: Sequence[tuple[Problem, Spent]]) -> Occupancy:
    """What the data decided, the mean over measurements of one stage."""
    kept: list[list[float]] = []
    slices = []
    for problem, spent in cases:
        images = spent.counts["images"]
        slices.append(spent.counts["slices"] / images)
        plain = Counts.of(problem, Occupancy())
        # the first candidates of a local search are the lattice's, whatever the data say
        start = 0 if problem.stage == "global" else 1
        full = [level.candidates for level in plain.levels]
        kept.append([spent.counts[f"candidates {number}"] / images / full[number]
                     for number in range(start, len(full))])  # fmt: skip
    length = min(map(len, kept))
    return Occupancy(tuple(np.mean([one[:length] for one in kept], axis=0).tolist()) or (1.0,), float(np.mean(slices)))


def fit(cases: Sequence[tuple[Problem, Spent]], device: str) -> Rates:
    """Rates that are not negative, by least squares of relative errors."""
    occupancy = {stage: occupancy_of([case for case in cases if case[0].stage == stage]) for stage in STAGES}
    found = [(terms(problem, occupancy[problem.stage]), spent) for problem, spent in cases]
    seconds: dict[str, dict[str, float]] = {}
    for stage in (*NAMES, "rest"):
        used = [(parts[stage], spent.seconds[stage]) for parts, spent in found if spent.seconds[stage] > 0]
        names = list(found[0][0][stage])
        matrix = np.array([[parts[name] / taken for name in names] for parts, taken in used])
        # columns of one size, or the solver takes small counts for zeros
        size = np.maximum(matrix.max(axis=0), 1e-300)
        rates, _ = nnls(matrix / size, np.ones(len(used)))
        seconds[stage] = dict(zip(names, (rates / size).tolist(), strict=True))
    return Rates(device, seconds, occupancy)


def measure(device: Any, sizes: Sequence[tuple[int, int]], repeats: int) -> list[tuple[Problem, Spent]]:
    """One iteration of each stage at each size; each of its parts in the least time of several runs."""
    found = []
    for particles, box in sizes:
        specimen = Specimen.of(device.ops, box, min(particles, 512))
        for stage in STAGES:
            band = max(5, int(PARTS[stage] * specimen.geometry.nyquist_shell))
            runs = []
            for _ in range(repeats):
                refinement, stack, _ = refinement_of(device, specimen, particles, stage, band)
                runs.append(iterate(device, refinement, stack))
            # other work on the machine only ever adds
            least = {name: min(run.seconds[name] for run in runs) for name in runs[0].seconds}
            spent = replace(runs[0], seconds=least, total=min(run.total for run in runs))
            # local searches begin about a degree off the truth: the poses must move by as much
            print(f"{particles} x {box}, {stage}: {spent.total:.2f} s CPU, poses turned by "
                  f"{np.median(refinement.state.particles.turned_deg):.2f} deg", flush=True)  # fmt: skip
            found.append((Problem(particles, box, band, stage), spent))
    return found


def case_of(kept: dict[str, Any]) -> tuple[Problem, Spent]:
    """A measurement as it was kept."""
    return Problem(**kept["problem"]), Spent(**kept["spent"])


def checked(rates: Rates, cases: Sequence[tuple[Problem, Spent]], kind: str) -> list[list[object]]:
    """Rows: measured over predicted, of all and of the three largest stages."""
    rows = []
    for problem, spent in cases:
        predicted, measured = rates.predict(problem), sum(spent.seconds.values())
        total = sum(predicted.values())
        largest = sorted(spent.seconds, key=lambda name: -spent.seconds[name])[:3]
        ratios = ", ".join(f"{name} {spent.seconds[name] / max(predicted[name], 1e-12):.2f}" for name in largest)
        rows.append([kind, problem.particles, problem.box, problem.stage, problem.band, measured, total,
                     f"{measured / total:.2f}", ratios])  # fmt: skip
    return rows


# ----------------------------------------------------------------------------------------------------- floors of GPUs
@dataclass(frozen=True)
class Sheet:
    """Ceilings of a data sheet: bytes and FLOPs per s, bytes, bytes per s to other GPUs and from the host."""

    name: str
    bandwidth: float
    flops: dict[str, float]
    memory: float
    between: float
    link: float


SHEETS = (
    Sheet("A100 80 GB", 2.04e12, {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12}, 80e9, 300e9, 32e9),
    Sheet("H100 80 GB", 3.35e12, {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12}, 80e9, 450e9, 64e9),
    Sheet("H200 141 GB", 4.8e12, {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12}, 141e9, 450e9, 64e9),
)
# Bytes that an addition to 8 voxels moves where no part of the sums stays in cache: 4 pairs of voxels along x, two
# arrays, sectors of 32 bytes, read and written. No data sheet says how many additions per s there are.
SCATTERED = 4 * 2 * 32 * 2
TAPS = 24  # floats added per pixel


def floors(problem: Problem, sheet: Sheet, occupancy: Occupancy, *, streamed: float = 0.0) -> dict[str, float]:
    """Least seconds of an iteration on a GPU by stage, and ``additions``, those of backprojection out of cache.

    No kernel can be faster than its bytes and FLOPs allow, and real ones are slower. The additions are no floor but a
    guess: they take less where the caches help, and more where they collide.

    Parameters
    ----------
    streamed
        Part of the images that come from the host.
    """
    counts, n = Counts.of(problem, occupancy), float(problem.particles)
    last, reach = counts.levels[-1], work.reachable(problem.geometry.accumulated_shell(problem.band))

    def least(*works: work.Work) -> float:
        return sum(max(one.times(sheet.bandwidth, sheet.flops, np.inf, sheet.link).values()) for one in works)

    rows = n * counts.first_shifts
    grid = [work.shift_images(n, counts.first_shifts, counts.first_pixels),
            work.product(rows, counts.orientations, 2 * counts.first_pixels, "bf16"),
            work.product(n, counts.orientations, counts.first_pixels, "tf32"),
            work.grid_maxima(n, counts.first_shifts, counts.orientations)] if counts.orientations else []  # fmt: skip
    candidates = [one for level in counts.levels for one in (
        work.shift_images(n, level.shifts, level.pixels),
        work.score_candidates(n * level.candidates, n, level.shifts, level.pixels, reach),
    )]  # fmt: skip
    plane = n * problem.box**2
    # read, moved, masked, two transforms; then two lists of pixels, CTF and noise
    images = work.Work(4 * plane * (2 + 2 + 4) + n * counts.pixels * (2 * 8 * 2 + 2 * 4), 2 * 2.5 * plane
                       * np.log2(problem.box**2), link_bytes=4 * plane * streamed)  # fmt: skip
    statistics = [work.extract_slices(n, counts.deposited, reach), work.shift_images(n, 1, counts.pixels),
                  *[work.sum_disc_shells(n, counts.pixels, problem.box // 2)] * 3]  # fmt: skip
    deposit = [work.shift_images(n, last.shifts, counts.deposited),
               work.backproject(n * occupancy.slices, n, 1, counts.deposited, reach)]  # fmt: skip
    half = counts.cube / 2
    transform = work.fft(counts.cube, counts.cube, 4 * counts.cube, 8 * half)
    volumes = [transform] * 6 + [work.Work(24 * counts.voxels * counts.coset)] * 4
    return {"images": least(images), "grid": least(*grid), "candidates": least(*candidates),
            "statistics": least(*statistics), "deposit": least(*deposit), "volumes": least(*volumes),
            "additions": deposit[1].adds / TAPS * SCATTERED / sheet.bandwidth}  # fmt: skip


PER_IMAGE = ("images", "grid", "candidates", "statistics", "deposit", "additions")  # what ranks share


def communication(problem: Problem, sheet: Sheet) -> float:
    """Seconds per iteration that ranks add: sums of the quarters to their owner, state and references to all."""
    voxels = work.half_volume(half_width(problem.geometry.accumulated_shell(problem.band)))
    sent = 2 * 12 * voxels / sheet.between
    return sent + (WORDS * problem.particles + 2 * 4 * problem.box**3) / MPI_BANDWIDTH


# ------------------------------------------------------------------------------------------------------- what follows
def course(problem: Problem, entries: Sequence[tuple[str, float]]) -> list[Problem]:
    """The iterations of a whole refinement: stage, and band over the final one."""
    return [replace(problem, stage=stage, band=max(5, round(part * problem.band))) for stage, part in entries]


# Stages, and bands over the final one, of `gpu_refinement.py --device cpu --box 64 --particles 1000`, with one global
# and one local iteration more, as the final band of larger boxes lies farther from the start.
COURSE = (("global", 0.1), ("global", 0.3), ("global", 0.5), ("local", 0.7), ("local", 0.9), ("local", 1.0),
          ("fine", 1.0), ("fine", 1.0), ("fine", 1.0))  # fmt: skip


def crossing(low: float, high: float, is_beyond: Callable[[float], bool]) -> float | None:
    """Least value for which something holds that holds for all larger ones; None where it does not hold at ``high``."""
    if not is_beyond(high):
        return None
    if is_beyond(low):
        return low
    while high / low > 1.01:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return high


def shells_of(bands: Sequence[int]) -> str:
    """Ranges of bands in words."""
    starts = [band for band in bands if band - 1 not in bands]
    ends = [band for band in bands if band + 1 not in bands]
    pairs = [f"{start} to {end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True)]
    return f"bands of {', '.join(pairs)} shells" if pairs else "at no band of 5 to 126 shells"


def load() -> tuple[Rates, dict[str, Any]]:
    """The rates that were measured, and all that stands beside them."""
    kept = json.loads(RATES.read_text())
    occupancy = {stage: Occupancy(tuple(one["kept"]), one["slices"]) for stage, one in kept["occupancy"].items()}
    return Rates(kept["device"], kept["seconds"], occupancy), kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure if asked, and print the model."""
    given = parse(__doc__, arguments, ("--measure", {"action": "store_true", "help": "fit the rates anew, on the CPU"}),
                  ("--far", {"action": "store_true", "help": "check them far beyond the sizes fitted, at 256 px"}),
                  ("--refit", {"action": "store_true", "help": "fit them anew to the measurements kept"}),
                  ("--repeats", {"type": int, "default": 4}), is_of_gpu=False)  # fmt: skip
    if given.measure:
        device = given.device
        fitted, others = (((40, 48),), ((50, 56),)) if given.tiny else (FITTED, CHECKED)
        repeats = 1 if given.tiny else given.repeats
        name, cases = device.name, measure(device, fitted, repeats)
        more, far = measure(device, others, repeats), []
    elif given.refit or given.far:
        kept = json.loads(RATES.read_text())
        name, whole = kept["device"], [case_of(one) for one in kept["measured"]]
        ends = 2 * len(FITTED), 2 * (len(FITTED) + len(CHECKED))
        cases, more, far = whole[: ends[0]], whole[ends[0] : ends[1]], whole[ends[1] :]
        if given.far:
            far = measure(given.device, FAR, given.repeats)
    if given.measure or given.refit or given.far:
        rates = fit(cases, name)
        rows = [row for kind, some in (("fitted", cases), ("predicted", more), ("far", far))
                for row in checked(rates, some, kind)]  # fmt: skip
        rates = fit([*cases, *more, *far], name)  # what is predicted rests on all
        rows += checked(rates, far, "all fitted")
        header = ("", "particles", "box", "stage", "band", "measured s", "model s", "ratio", "of the largest stages")
        table("scaling_check", header, rows)
        raw = [{"problem": asdict(problem), "spent": asdict(spent)} for problem, spent in (*cases, *more, *far)]
        kept = asdict(rates) | {"machine": machine(), "check": rows, "measured": raw}
        save("scaling_check", kept)
        if not given.tiny:
            RATES.write_text(json.dumps(kept, indent=1) + "\n")
    if RATES.is_file():
        show(*load())


def show(rates: Rates, _: dict[str, Any]) -> None:
    """Print what follows from the rates."""
    print(rates.device)
    occupancy = rates.occupancy
    table("scaling_occupancy", ("stage", "cells kept, of 24", "slices backprojected"),
          [[stage, ", ".join(f"{CELLS_KEPT * part:.1f}" for part in one.kept), one.slices]
           for stage, one in occupancy.items()])  # fmt: skip
    memory_table()
    stages_table(rates)
    predictions(occupancy)
    crossings(rates)


def memory_table() -> None:
    """Volumes of the last iteration, images, and what becomes of them on two GPUs."""
    rows = []
    for particles, box in ((100_000, 256), (100_000, 360), (1_000_000, 256), (1_000_000, 360), (100_000, 512),
                           (100_000, 800)):  # fmt: skip
        geometry = Geometry(box, 1.0, 0.7 * box)
        places = []
        for sheet in SHEETS[1:]:
            free = int(0.97 * sheet.memory)
            plan = plan_memory(geometry, particles, is_gpu=True, free=free, total=int(sheet.memory))
            here = f"all, {plan.kind}" if plan.resident == particles else f"{100 * plan.resident / particles:.0f} %"
            sums = "does not fit: " if plan.warning else "sums parked: " if plan.parks_sums else ""
            places.append(sums + (here if plan.resident else "streamed"))
        volumes = (volume_bytes(geometry, is_gpu=True, parks_sums=parks_sums) / 1e9 for parks_sums in (False, True))
        rows.append([particles, box, *volumes, 4e-9 * particles * box**2, *places])
    header = ("particles", "box", "volumes GB", "parked GB", "images GB", *(f"on {one.name}" for one in SHEETS[1:]))
    table("scaling_memory", header, rows)


def stages_table(rates: Rates) -> None:
    """CPU seconds by stage of one iteration."""
    cases = [Problem(10_000, 128, 50, "fine"), Problem(10_000, 128, 25, "global"), Problem(10_000, 256, 100, "fine"),
             Problem(100_000, 256, 100, "fine"), Problem(100_000, 256, 25, "global")]  # fmt: skip
    names = ("images", "grid", "candidates", "poses", "statistics", "deposit")
    rows = []
    for case in cases:
        found = rates.predict(case)
        others = sum(value for name, value in found.items() if name not in names)
        rows.append([case.particles, case.box, case.stage, case.band, sum(found.values()),
                     *(found[name] for name in names), others])  # fmt: skip
    table("scaling_cpu", ("particles", "box", "stage", "band", "CPU s", *names, "others"), rows)


def predictions(occupancy: dict[str, Occupancy]) -> None:
    """Floors of iterations and whole refinements on GPUs."""
    cases = [(100_000, 256, 0.8), (1_000_000, 360, 0.8), (100_000, 800, 0.8)]
    rows, whole = [], []
    for particles, box, part in cases:
        problem = Problem(particles, box, int(part * ((box - 1) // 2)), "fine", length=1.0 * box, diameter=0.6 * box)
        for sheet in SHEETS[1:]:
            plan = plan_memory(problem.geometry, particles, is_gpu=True, free=int(0.97 * sheet.memory), total=0)
            streamed = 1 - plan.resident / particles
            found = floors(problem, sheet, occupancy["fine"], streamed=streamed)
            names = ("images", "candidates", "statistics", "deposit", "volumes", "additions")
            floor = sum(found.values()) - found["additions"]
            fits = "" if not plan.warning else " (does not fit)"
            rows.append([particles, box, sheet.name + fits, f"{100 * streamed:.0f} %", *(found[name] for name in names),
                         floor, NOT_RUN])  # fmt: skip
            steps = [floors(step, sheet, occupancy["global" if step.stage == "global" else "fine"], streamed=streamed)
                     for step in course(problem, COURSE)]  # fmt: skip
            additions = sum(step["additions"] for step in steps)
            total = sum(sum(step.values()) for step in steps)
            whole.append([particles, box, sheet.name + fits, len(steps), total - additions, additions, NOT_RUN])
    table("scaling_gpu", ("particles", "box", "GPU", "streamed", "images", "candidates", "statistics", "deposit",
                          "volumes", "additions", "floor s", "measured"), rows)  # fmt: skip
    table("scaling_whole", ("particles", "box", "GPU", "iterations", "floor s", "additions s", "measured"), whole)


def crossings(rates: Rates) -> None:
    """Where one part of the cost overtakes another."""
    rows: list[list[object]] = []
    base, sheet = Problem(100_000, 256, 100, "fine", length=256.0, diameter=154.0), SHEETS[2]

    for stage in STAGES:
        places: dict[str, Callable[[Problem], dict[str, float]]] = {
            "CPU, measured rates": rates.predict,
            f"{sheet.name}, floors and additions": lambda one: floors(one, sheet, rates.occupancy[one.stage]),
        }
        for where, times in places.items():
            beyond = []
            for band in range(5, 127):
                found = times(replace(base, stage=stage, band=band))
                deposit = max(found["deposit"], found.get("additions", 0.0))
                if deposit > found["grid"] + found["candidates"]:
                    beyond.append(band)
            rows.append([f"backprojection costs more than scoring, {stage}, box 256", where, shells_of(beyond)])
    for one in SHEETS[1:]:
        for box in (128, 256, 360, 512):
            geometry = Geometry(box, 1.0, 0.6 * box)

            def is_full(count: float, kind: str, geometry: Geometry = geometry, one: Sheet = one) -> bool:
                plan = plan_memory(geometry, int(count), is_gpu=True, free=int(0.97 * one.memory), total=0)
                return plan.resident < int(count) or (kind == "float32" and plan.kind != kind)

            points = (crossing(1e3, 1e8, lambda count, kind=kind: is_full(count, kind))
                      for kind in ("float32", "float16"))  # fmt: skip
            texts = ("none" if point is None or point <= 1e3 else f"{float(f'{point:.2g}'):,.0f}"
                     for point in points)  # fmt: skip
            rows.append([f"images of {box} px no longer fit", f"{one.name}, memory plan",
                         "float32 above {}, float16 above {}".format(*texts)])  # fmt: skip
    for one in SHEETS:
        def is_too_large(box: float, one: Sheet = one) -> bool:
            geometry = Geometry(2 * int(box / 2), 1.0, 0.6 * box)
            free = int(0.97 * one.memory)
            return bool(plan_memory(geometry, 1000, is_gpu=True, free=free, total=free).warning)

        largest = crossing(64, 2000, is_too_large) or 0
        rows.append(["volumes of the last iteration no longer fit", f"{one.name}, memory plan",
                     f"above a box of about {10 * int(largest / 10):.0f} px"])  # fmt: skip
    for problem in (base, Problem(1_000_000, 360, 143, "fine", length=360.0, diameter=216.0)):
        found = floors(problem, sheet, rates.occupancy["fine"])
        shared, serial = sum(found[name] for name in PER_IMAGE), found["volumes"] / 2  # each owner has its half
        spoken = communication(problem, sheet)
        ranks = crossing(1, 1e6, lambda count, a=shared, b=serial + spoken: a / count < b)
        rows.append([f"communication and volumes overtake the images, {problem.particles} x {problem.box}, fine",
                     f"{sheet.name}, floors", f"above {ranks or 0:.0f} GPUs ({spoken:.2f} s of communication)"])
    table("scaling_crossings", ("what", "where", "point"), rows)


if __name__ == "__main__":
    main()
