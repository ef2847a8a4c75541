# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPU benchmarks where there is no GPU: every script runs to its table, and the formulas of the work are right.

Formulas are compared with a count: the CUDA source runs on the CPU with numbers that count what is done with them.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from cuda_host import fake_cupy, host
from scipy.spatial.transform import Rotation

from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine.volumes import PADDING, half_width
from sparsecv.engine.threads import use_threads
from sparsecv.kernels import cuda, cuda_launch, reference

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = {  # and what is left out to save time
    "gpu_kernels": [], "gpu_priors": [], "gpu_iterations": [], "gpu_refinement": [], "gpu_ranks": ["--ranks", "1"],
    "gpu_all": ["--parts", "gpu_kernels"],
}  # fmt: skip
needs_compiler = pytest.mark.skipif(host.compiler() is None, reason="g++ is not installed")

# A float that counts; it takes the place of the word float in the source, which stands inside a struct.
COUNTED = """
struct Counted {
    float value;
    static inline long flops = 0, adds = 0;
    Counted() = default;
    Counted(float v) : value(v) {}
    Counted(double v) : value((float)v) {}
    Counted(int v) : value((float)v) {}
    explicit operator int() const { return (int)value; }
    explicit operator double() const { return value; }
    static Counted of(float v) { __atomic_fetch_add(&flops, 1, __ATOMIC_RELAXED); return Counted(v); }
    friend Counted operator+(Counted a, Counted b) { return of(a.value + b.value); }
    friend Counted operator-(Counted a, Counted b) { return of(a.value - b.value); }
    friend Counted operator*(Counted a, Counted b) { return of(a.value * b.value); }
    friend Counted operator/(Counted a, Counted b) { return of(a.value / b.value); }
    Counted operator-() const { return Counted(-value); }
    Counted &operator+=(Counted b) { return *this = *this + b; }
    Counted &operator*=(Counted b) { return *this = *this * b; }
    friend bool operator<(Counted a, Counted b) { return a.value < b.value; }
    friend bool operator>(Counted a, Counted b) { return a.value > b.value; }
    friend bool operator==(Counted a, Counted b) { return a.value == b.value; }
    friend bool operator!=(Counted a, Counted b) { return a.value != b.value; }
};
static Counted floorf(Counted a) { return std::floor(a.value); }
static Counted rintf(Counted a) { return std::rint(a.value); }
static Counted expf(Counted a) { return std::exp(a.value); }
static Counted fabsf(Counted a) { return std::fabs(a.value); }
static Counted fmaxf(Counted a, Counted b) { return std::fmax(a.value, b.value); }
static Counted sqrtf(Counted a) { return Counted::of(std::sqrt(a.value)); }
static void sincospif(Counted a, Counted *s, Counted *c) {
    float sine, cosine;
    cuda_host::sincospif(a.value, &sine, &cosine);
    *s = sine, *c = cosine;
}
static void atomicAdd(Counted *address, Counted value) {
    __atomic_fetch_add(&Counted::adds, 1, __ATOMIC_RELAXED);
    cuda_host::atomicAdd(&address->value, value.value);
}
"""
READ = """
KERNEL void read_counts(long long *counts) {
    counts[0] = Counted::flops, counts[1] = Counted::adds;
    Counted::flops = Counted::adds = 0;
}
"""
# numbers that come from outside by value stay plain; so do those that are added up in double precision
PLAIN = r"\bfloat\b(?! (?:padding|box|rho1|rho2|reflect|relaxation|mu|eps|eps_gradient)\b)"


class CountingModule(host.HostModule):
    """A source in which floats count; `found` has what was counted since it was last asked."""

    def __init__(self, source: str, options: tuple[str, ...]) -> None:
        counted = re.sub(PLAIN, "Counted", source)
        counted = counted.replace("double first, double second", "Counted first, Counted second")
        counted = counted.replace("partial[0][thread] = first", "partial[0][thread] = (double)first")
        counted = counted.replace("partial[1][thread] = second", "partial[1][thread] = (double)second")
        super().__init__(COUNTED + counted + READ, options)

    def found(self) -> tuple[int, int]:
        """FLOPs and additions to shared memory."""
        counts = np.zeros(2, np.int64)
        self.get_function("read_counts")((1,), (1,), (counts,))
        return int(counts[0]), int(counts[1])


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    threads = numba.get_num_threads()
    yield
    sys.path.remove(str(BENCHMARKS))
    use_threads(threads)


@pytest.fixture
def results(benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that tables and figures go to: the results of tiny runs have one of their own."""
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    monkeypatch.setenv("SPARSECV_RESULTS", str(tmp_path))
    return tmp_path / "tiny"


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs_to_its_table(script: str, results: Path, tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--work", str(tmp_path / "made"), *SCRIPTS[script]]
    importlib.import_module(script).main(words)
    lines = (results / f"{script}.md").read_text().splitlines()
    assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1
    kept = json.loads((results / f"{script}.json").read_text())
    assert kept["machine"]["processor"] and kept["device"]


def test_every_kernel_is_measured(results: Path) -> None:
    script = importlib.import_module("gpu_kernels")
    script.main(["--device", "cpu", "--tiny"])
    measured = {row[0] for row in json.loads((results / "gpu_kernels.json").read_text())["rows"]}
    offered = {name for name, value in vars(reference).items() if callable(value) and not name.startswith("_")
               and getattr(value, "__module__", "").startswith("sparsecv.kernels.reference")}
    assert measured == offered - script.NOT_TIMED


@needs_compiler
@pytest.mark.parametrize(("script", "words"), [("gpu_kernels", []), ("gpu_iterations", ["--stages", "global"])])
def test_script_runs_on_a_stand_in_for_a_gpu(
    script: str, words: list[str], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = importlib.import_module("device")
    with fake_cupy.installed():
        monkeypatch.setattr("sparsecv.kernels.gpu_problem", lambda: None)
        monkeypatch.setattr(device.Device, "between", lambda self, first, last: 1e-3)  # the stand-in has no clock
        monkeypatch.setattr(device.Device, "name", "stand-in")
        importlib.import_module(script).main(["--device", "gpu", "--tiny", "--work", str(tmp_path / "made"), *words])
    cuda_launch.compiled.cache_clear()
    assert (results / f"{script}.md").is_file()


# ------------------------------------------------------------------------------------------------------------ formulas
class Counting:
    """The CUDA back end over counting sources."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modules: list[CountingModule] = []

        def compiled(device: int, family: str, flags: tuple[str, ...]) -> Any:
            module = CountingModule(cuda_launch.source(family), flags)
            self.modules.append(module)
            return fake_cupy_module(module)

        monkeypatch.setattr(cuda_launch, "compiled", compiled)

    def counts(self) -> tuple[int, int]:
        """FLOPs and additions since they were last asked for."""
        found = [module.found() for module in self.modules]
        self.modules.clear()
        return sum(one[0] for one in found), sum(one[1] for one in found)


def fake_cupy_module(module: CountingModule) -> Any:
    """What `launch` takes for a RawModule."""
    raw = fake_cupy.RawModule(code="", options=())
    raw.__dict__["_module"] = module
    return raw


@pytest.fixture
def counting(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counting, ModuleType, ModuleType]]:
    with fake_cupy.installed() as cupy:
        yield Counting(monkeypatch), cupy, importlib.import_module("work")


def problem(cupy: Any, images: int = 3, each: int = 4, shifts: int = 5, box: int = 24) -> dict[str, Any]:
    """Arguments of scores and backprojection, on the device."""
    rng, disc = np.random.default_rng(1), make_disc(box)
    c, count = half_width(disc.last), images * each
    noise = rng.standard_normal((images, shifts, len(disc), 2), dtype=np.float32).view(np.complex64)[..., 0]
    volume = rng.standard_normal((2 * c + 1, 2 * c + 1, c + 1, 2), dtype=np.float32).view(np.complex64)[..., 0]
    arrays = {
        "volume": volume, "rotations": Rotation.random(count, random_state=1).as_matrix().astype(np.float32),
        "owner": np.repeat(np.arange(images, dtype=np.int32), each), "images": noise,
        "ctf2": rng.random((images, len(disc)), dtype=np.float32), "kx": disc.kx.astype(np.float32),
        "ky": disc.ky.astype(np.float32),
    }  # fmt: skip
    return {name: cupy.asarray(value) for name, value in arrays.items()}


@needs_compiler
def test_scores_cost_what_the_formula_says(counting: tuple[Counting, ModuleType, ModuleType]) -> None:
    counter, cupy, work = counting
    given = problem(cupy)
    cuda.score_candidates(**given, padding=PADDING)
    flops, adds = counter.counts()
    pixels = len(given["kx"])
    expected = work.score_candidates(12, 3, 5, pixels, 1)
    summing = 12 * (8 + 1) * 127  # partial sums of the block's threads: of the tile, and the norm
    assert flops - summing == expected.flops and adds == 0
    # the least that is moved: all arguments once, but for the corners of the volume that no slice reaches
    moved = sum(given[name].nbytes for name in ("rotations", "owner", "images", "ctf2", "kx", "ky")) + 12 * 4 * (5 + 1)
    assert work.score_candidates(12, 3, 5, pixels, 0).bytes == moved


@needs_compiler
@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
def test_backprojection_costs_what_the_formula_says(
    kernel: str, counting: tuple[Counting, ModuleType, ModuleType]
) -> None:
    counter, cupy, work = counting
    given = problem(cupy)
    volume = given.pop("volume")
    data, weight = cupy.zeros_like(volume), cupy.zeros(volume.shape, dtype=np.float32)
    weights = np.zeros((12, 5), np.float32)
    weights[:, 1:3] = 0.5  # two of five shifts have any
    cuda.backproject(given["images"], given["ctf2"], cupy.asarray(weights), given["rotations"], given["owner"],
                     given["kx"], given["ky"], PADDING, data, weight, kernel)  # fmt: skip
    expected = work.backproject(12, 3, 2, len(given["kx"]), 1, kernel)
    assert counter.counts() == (expected.flops, expected.adds)


@needs_compiler
def test_slices_shifts_and_symmetry_cost_what_the_formulas_say(
    counting: tuple[Counting, ModuleType, ModuleType]
) -> None:
    counter, cupy, work = counting
    given = problem(cupy)
    pixels = len(given["kx"])
    cuda.extract_slices(given["volume"], given["rotations"], given["kx"], given["ky"], PADDING)
    assert counter.counts()[0] == work.extract_slices(12, pixels, 1).flops
    shifts = cupy.asarray(np.ones((3, 5, 2), np.float32))
    cuda.shift_images(given["images"][:, 0], shifts, given["kx"], given["ky"], 24)
    assert counter.counts()[0] == work.shift_images(3, 5, pixels).flops
    matrices = cupy.asarray(symmetry_matrices("C3").astype(np.float32))
    cuda.symmetrise(given["volume"], cupy.zeros(given["volume"].shape, dtype=np.float32), matrices)
    # voxels of a ball of 23 are not quite its volume
    assert counter.counts()[0] == pytest.approx(work.symmetrise(half_width(11), 3).flops, rel=0.05)


@needs_compiler
def test_steps_of_the_priors_cost_what_the_formulas_say(
    counting: tuple[Counting, ModuleType, ModuleType]
) -> None:
    counter, cupy, _ = counting
    side, rng = 32, np.random.default_rng(1)
    x, b, w1, a, c = (cupy.asarray(rng.standard_normal((side,) * 3, dtype=np.float32)) for _ in range(5))
    a, c = cupy.abs(a), cupy.abs(c)
    w2 = cupy.asarray(rng.standard_normal((3, side, side, side), dtype=np.float32))
    found = {}
    for name, call in {
        "split_step": lambda: cuda.split_step(b, w1, w2, a, c, 1.0, 1.0, 2.0),
        "relax_step": lambda: cuda.relax_step(x, w1, w2, a, c, 1.0, 1.0, 0.5),
        "sparse_prox": lambda: cuda.sparse_prox(w1, a, 1.0),
        "penalties": lambda: cuda.penalties(x, a, c),
        "penalty_weights": lambda: cuda.penalty_weights(x, 1.0, 1.0),
        "smoothed_variation_gradient": lambda: cuda.smoothed_variation_gradient(x, c, 1.0),
    }.items():
        call()
        found[name] = counter.counts()[0] / side**3
    kernels = importlib.import_module("gpu_kernels")
    assert found == pytest.approx(kernels.PRIOR_FLOPS, rel=0.05)


# --------------------------------------------------------------------------------------------------------------- model
def test_scaling_model_counts_what_an_iteration_does(results: Path) -> None:
    scaling, stages = importlib.import_module("scaling"), importlib.import_module("stages")
    synthetic, device = importlib.import_module("synthetic"), importlib.import_module("device").Device("cpu")
    specimen = synthetic.Specimen.of(device.ops, 48, 16)
    for stage, band in (("global", 9), ("fine", 16)):
        refinement, stack, _ = stages.refinement_of(device, specimen, 30, stage, band)
        spent = stages.iterate(device, refinement, stack)
        problem = scaling.Problem(30, 48, band, stage)
        found = scaling.terms(problem, scaling.occupancy_of([(problem, spent)]))
        for name in ("gathered", "scored", "samples", "moved"):
            assert found["candidates"][name] == pytest.approx(spent.counts[name], rel=1e-6)
        assert found["deposit"]["deposited"] == pytest.approx(spent.counts["deposits"], rel=1e-6)
        assert found["deposit"]["moved"] == pytest.approx(spent.counts["moved_deposits"], rel=1e-6)
        assert all(seconds >= 0 for seconds in spent.seconds.values())


def test_scaling_model_is_printed_from_the_rates(results: Path) -> None:
    scaling = importlib.import_module("scaling")
    scaling.main(["--device", "cpu", "--tiny"])
    names = ("occupancy", "memory", "cpu", "gpu", "whole", "crossings")
    assert all((results / f"scaling_{name}.md").is_file() for name in names)


def test_a_million_particles_have_noise_of_their_own(results: Path) -> None:
    synthetic = importlib.import_module("synthetic")
    device = importlib.import_module("device").Device("cpu")
    specimen = synthetic.Specimen.of(device.ops, 48, 8)
    stack = synthetic.SyntheticStack(specimen.views)
    table = synthetic.table_of(specimen, 1_000_000, stack)
    rows = np.array([0, 8, 999_999])
    images, good = table.read_images(rows)
    assert good.all() and images.shape == (3, 48, 48)
    noise = images - specimen.views[rows % 8]
    assert np.abs(noise.std(axis=(1, 2)) - 1).max() < 0.1
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1  # the same view, other noise
