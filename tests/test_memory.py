# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory plan, what the host has free, and passes in which memory runs out: they give the same result."""

from __future__ import annotations

import gc
import io
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_host import fake_cupy, host
from cuda_host.fake_cupy import Allocations
from tiny import PADDING, PIXEL_SIZE, blobs, write_particles

from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.ranks import ALONE, Comm
from sparsecv.engine.refine import half as half_module
from sparsecv.engine.refine import memory_plan, volumes
from sparsecv.engine.refine.expectation import GridBank
from sparsecv.engine.refine.half import HalfResult, Particles, Search, expectation_maximisation
from sparsecv.engine.refine.memory_plan import plan_memory, volume_bytes
from sparsecv.engine.refine.noise import image_power
from sparsecv.engine.refine.prepare import memory_plan_of, prepare
from sparsecv.engine.refine.schedule import Draws, Geometry, search_plan
from sparsecv.engine.refine.settings import RefineSettings
from sparsecv.engine.refine.state import HalfState, ParticleState
from sparsecv.engine.refine.volumes import Accumulator, map_to_volume
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.threads import use_threads
from sparsecv.kernels import cpu, cuda
from sparsecv.kernels.host_memory import free_memory

BOX, COUNT, GB = 24, 12, 10**9
GEOMETRY = Geometry(BOX, PIXEL_SIZE, 80.0)
LARGE = Geometry(256, 1.0, 200.0)


# ----------------------------------------------------------------------------------------------------------- the plan
def test_volumes_are_those_that_are_made() -> None:
    """The sums alone are as large as the arrays that an accumulator really has; the rest of the plan comes on top."""
    empty = Accumulator.empty(cpu, BOX, GEOMETRY.nyquist_shell)
    done = empty.completed(cpu, np.eye(3)[None])
    adding, added = (one.data.nbytes + one.weight.nbytes for one in (empty, done))
    assert volume_bytes(GEOMETRY, is_gpu=False) > 2 * added + 3 * adding
    whole, parked = (volume_bytes(GEOMETRY, is_gpu=True, parks_sums=parks_sums) for parks_sums in (False, True))
    assert whole - parked == 4 * added
    assert 5 * GB < volume_bytes(LARGE, is_gpu=True) <= volume_bytes(LARGE, is_gpu=False) < 8 * GB


@pytest.mark.parametrize(("images", "resident", "kind", "words"), [
    (10_000, 10_000, "float32", "float32"),
    (200_000, 200_000, "float16", "float16"),
    (800_000, None, "float16", "the others are streamed"),
    (10**8, 0, "float32", "streamed, as"),
])  # fmt: skip
def test_images_stay_as_far_as_they_fit(images: int, resident: int | None, kind: str, words: str) -> None:
    plan = plan_memory(LARGE, images, is_gpu=True, free=60 * GB, total=80 * GB)
    size = {"float32": 4, "float16": 2}[plan.kind]
    assert plan.kind == kind and words in plan.lines[1]
    assert plan.resident == (plan.resident if resident is None else resident) <= images
    used = volume_bytes(LARGE, is_gpu=True) + plan.batch_bytes + size * 256**2 * plan.resident
    assert used < 0.9 * 60 * GB
    if resident is None:  # no room is left unused
        assert used > 0.9 * 60 * GB - 1e6
    assert not plan.warning
    assert "60.0 GB free of 80.0 GB" in plan.lines[0]


def test_what_was_asked_wins_and_is_told() -> None:
    plan = plan_memory(LARGE, 10**5, is_gpu=True, free=60 * GB, total=80 * GB, asked=12 * GB, asked_batch=3e8)
    assert plan.batch_bytes == 3e8 and "300 MB asked for (--batch-memory)" in plan.lines[1]
    assert "12.0 GB asked for (--memory)" in plan.lines[0]
    assert plan.resident * 2 * 256**2 < 12 * GB - volume_bytes(LARGE, is_gpu=True)
    # more than there is cannot be had
    greedy = plan_memory(LARGE, 10**5, is_gpu=True, free=60 * GB, total=80 * GB, asked=500 * GB)
    assert greedy.resident == plan_memory(LARGE, 10**5, is_gpu=True, free=60 * GB, total=80 * GB).resident


def test_a_last_iteration_that_may_not_fit_is_told_before_the_first() -> None:
    for is_gpu in (False, True):
        assert "may not finish" in plan_memory(LARGE, 100, is_gpu=is_gpu, free=2 * GB, total=8 * GB).warning
        assert not plan_memory(GEOMETRY, 100, is_gpu=is_gpu, free=4 * GB, total=8 * GB).warning
    assert not plan_memory(LARGE, 100, is_gpu=False, free=0, total=0).warning  # nothing is known


def test_sums_wait_on_the_host_where_all_would_not_fit() -> None:
    needed = volume_bytes(LARGE, is_gpu=True) + 256e6
    roomy = plan_memory(LARGE, 100, is_gpu=True, free=int(1.12 * needed), total=80 * GB)
    assert not roomy.parks_sums and "host" not in roomy.lines[0]
    tight = plan_memory(LARGE, 100, is_gpu=True, free=int(1.1 * needed), total=80 * GB, host=30 * GB)
    assert tight.parks_sums and not tight.warning and tight.resident == 100
    assert "wait on the host (4.1 GB): with them it would be 5.6 GB" in tight.lines[0]
    crowded = plan_memory(LARGE, 100, is_gpu=True, free=4 * GB, total=80 * GB, host=4 * GB)
    assert "may need 4.1 GB of memory on the host and 3.6 GB can be used" in crowded.warning
    assert not plan_memory(LARGE, 100, is_gpu=False, free=4 * GB, total=8 * GB).parks_sums
    # the boxes that the plan was made for
    for box, total in ((512, 80 * GB), (800, 141 * GB)):
        assert not plan_memory(Geometry(box, 1.0, 0.7 * box), 10**5, is_gpu=True, free=int(0.97 * total), total=total,
                               host=256 * GB).warning


def test_on_the_cpu_files_are_read_ahead() -> None:
    plan = plan_memory(LARGE, 100, is_gpu=False, free=60 * GB, total=64 * GB)
    assert (plan.resident, plan.batch_bytes) == (0, 256e6)


# --------------------------------------------------------------------------------------------- what is really allocated
class Run:
    """Usual iterations and a last one on the imitation of a GPU, backprojected to Nyquist all of them."""

    def __init__(
        self, folder: Path, regulariser: str, symmetry: str, usual: int, *, parks_sums: bool, comm: Comm = ALONE
    ) -> None:
        settings = RefineSettings(particles=folder / "particles.star", reference=folder / "reference.mrc",
                                  output=folder, initial_lowpass=0, join_below=20 * PIXEL_SIZE, local=True,
                                  batch_memory=1, regulariser=regulariser, symmetry=symmetry, keep_accumulators=True)
        gc.collect()  # what earlier tests have left must not go while this one counts
        before = Allocations.alive
        refinement = prepare(settings, cuda, lambda text: None, Progress(io.StringIO()))
        refinement.particles.images.reserve(0, "float32")
        refinement.particles.parks_sums, refinement.comm = parks_sums, comm
        self.geometry, self.made = refinement.particles.geometry, []
        Allocations.reset()
        for is_last in (False,) * usual + (True,):
            refinement.state.band, refinement.state.stage = self.geometry.nyquist_shell - 4, "local"
            iteration = refinement.iterate(is_last=is_last)
            self.made += [half.reference for half in refinement.state.halves] + [*iteration.half_maps, iteration.fsc]
        self.peak = Allocations.peak - before
        kept = [array for pair in iteration.quarters for one in pair for array in (one.data, one.weight)]
        assert len(kept) == 8
        self.made += [iteration.joined, refinement.state.particles.rotations, *kept]


class Apart(Comm):
    """As if half set 2 were solved elsewhere, from where its sums come by way of the host."""

    def owns(self, number: int) -> bool:
        return number == 0

    def at_root_from_owner(self, number: int, arrays: Sequence[Any]) -> list[np.ndarray]:
        return [cuda.to_host(array).copy() for array in arrays]


@pytest.mark.parametrize(("box", "regulariser", "symmetry", "usual"), [
    (24, "wiener", "O", 1), (36, "wiener", "C1", 1), (24, "sparse-tv", "C1", 2), (30, "sparse-tv", "C1", 2),
    (24, "nonuniform", "C1", 1),
])  # fmt: skip
def test_a_refinement_takes_what_was_planned(
    box: int, regulariser: str, symmetry: str, usual: int, tmp_path: Path, imitation: None, threads_as_before: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A little less, rather; and sums that are parked are elsewhere for a while, but not changed by a bit."""
    use_threads(1)
    for module in (volumes, memory_plan):
        monkeypatch.setattr(module, "BLOCK", 20_000)  # maps are small here
    write_particles(tmp_path, 6, box, density=blobs(box), noise=1.0)
    write_map(tmp_path / "reference.mrc", blobs(box), PIXEL_SIZE)
    runs = []
    for parks_sums in (False, True):
        monkeypatch.setattr(host, "_seeds", itertools.count())  # of the order in which threads of a block come
        runs.append(Run(tmp_path, regulariser, symmetry, usual, parks_sums=parks_sums))
        planned = volume_bytes(runs[-1].geometry, is_gpu=True, parks_sums=parks_sums)
        assert 0.8 * planned < runs[-1].peak < planned
        if symmetry != "C1":
            monkeypatch.setattr(host, "_seeds", itertools.count())
            runs.append(Run(tmp_path, regulariser, symmetry, usual, parks_sums=parks_sums, comm=Apart()))
    for other in runs[1:]:
        for ours, theirs in zip(runs[0].made, other.made, strict=True):
            assert type(ours) is type(theirs) is np.ndarray  # kept accumulators are on the host, in any case
            np.testing.assert_array_equal(ours, theirs)


# ---------------------------------------------------------------------------------------------------- the host's memory
def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_of_the_host_within_its_limits(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == (0, 0)
    write(tmp_path / "proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   800 kB\n")
    assert free_memory(tmp_path) == (800 * 1024, 1000 * 1024)
    job = tmp_path / "sys/fs/cgroup/slurm/job7"
    write(tmp_path / "proc/self/cgroup", "0::/slurm/job7/step\n")
    write(job / "memory.max", "600000\n")
    write(job / "memory.current", "500000\n")
    assert free_memory(tmp_path) == (100_000, 600_000)
    write(job / "memory.stat", "anon 1\ninactive_file 300000\n")  # files that were read, which are given up for others
    assert free_memory(tmp_path) == (400_000, 600_000)
    write(job / "memory.max", "max\n")
    assert free_memory(tmp_path) == (800 * 1024, 1000 * 1024)


def test_memory_within_control_groups_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal:  1000 kB\nMemAvailable:   800 kB\n")
    write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/not/seen/from/here\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    write(top / "memory.limit_in_bytes", "9223372036854771712\n")  # none
    write(top / "memory.usage_in_bytes", "7\n")
    assert free_memory(tmp_path) == (800 * 1024, 1000 * 1024)
    write(top / "memory.limit_in_bytes", "500000\n")
    assert free_memory(tmp_path) == (499_993, 500_000)


def test_memory_of_this_machine() -> None:
    for ops in (cpu, cuda):
        with fake_cupy.installed():
            free, total = ops.free_memory()
        assert 10**8 < free <= total


# ------------------------------------------------------------------------------------------------- when it runs out
@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    return write_particles(tmp_path_factory.mktemp("particles"), COUNT, BOX, density=blobs(BOX), noise=30.0)


class Pass:
    """One pass over all images, of which everything but the pass itself is there already."""

    def __init__(self, ops: ModuleType, table: ParticleTable, stage: str, resident: int = 0, hand: int = 0) -> None:
        self.ops, self.table = ops, table
        self.told: list[str] = []
        self.particles = Particles.of(ops, table, GEOMETRY, np.eye(3)[None], 100.0, tell=self.told.append)
        self.particles.images.reserve(resident, "float32")
        half = HalfState(blobs(BOX), np.full((1, 12), 450.0), np.ones(1), 3.0, 3.0, 5.0)
        draws = Draws.of(1, 1, COUNT)
        plan = search_plan(GEOMETRY, 6, half, np.eye(3)[None], draws, stage)
        volume = map_to_volume(ops, ops.xp.asarray(half.reference), 10)
        bank = GridBank(ops, volume, plan, self.particles.disc, PADDING) if stage == "global" else None
        self.half, self.search = half, Search(plan, volume, bank, draws, 10, 8)
        if hand:
            self.search = replace(self.search, slices=self.particles.ewald_slices(ops, 10, hand))

    def run(self) -> tuple[ParticleState, HalfResult]:
        state = ParticleState.start(self.table.rotations, np.zeros((COUNT, 2)))
        quarters = np.arange(COUNT) // 10  # a batch of ten, and one of two
        result = expectation_maximisation(self.ops, self.particles, state, self.half, np.arange(COUNT), quarters,
                                          self.search, lambda done: None)
        return state, result


def assert_same(found: tuple[ParticleState, HalfResult], wanted: tuple[ParticleState, HalfResult]) -> None:
    """To rounding."""
    (state, result), (other, expected) = found, wanted
    np.testing.assert_allclose(state.rotations, other.rotations, atol=1e-5)
    np.testing.assert_allclose(state.shifts_px, other.shifts_px, atol=1e-4)
    np.testing.assert_allclose(state.log_likelihood, other.log_likelihood, atol=1e-3)
    for name in ("residual", "counts", "cross", "signal", "factors"):
        ours, theirs = getattr(result.residuals, name), getattr(expected.residuals, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    for one, two in zip(result.quarters, expected.quarters, strict=True):
        for ours, theirs in ((one.data, two.data), (one.weight, two.weight)):
            ours, theirs = (array.get() if hasattr(array, "get") else array for array in (ours, theirs))
            assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


@pytest.mark.parametrize(("stage", "resident", "hand"), [
    ("local", 0, 0), ("local", COUNT, 0), ("global", 0, 0), ("local", 0, 1),
])  # fmt: skip
def test_out_of_memory_on_the_device_changes_nothing(
    stage: str, resident: int, hand: int, table: ParticleTable, imitation: None
) -> None:
    """The k-th array of a pass cannot be had, for k from the first to the last."""
    pass_ = Pass(cuda, table, stage, resident, hand)
    wanted = pass_.run()
    before = Allocations.count
    pass_.run()
    arrays = Allocations.count - before
    assert arrays > 200
    failed = 0
    for k in np.linspace(60, arrays - 40, 5).astype(int):
        again = Pass(cuda, table, stage, resident, hand)
        Allocations.fail_at = Allocations.count + int(k)
        found = again.run()
        Allocations.fail_at = None
        failed += sum("batches of at most" in text for text in again.told)
        assert_same(found, wanted)
    assert failed >= 4  # those between the batches of the quarters are not a batch's


@pytest.mark.parametrize("function", ["find_posterior", "estimate_poses", "sample_statistics", "thinned"])
def test_out_of_memory_on_the_cpu_changes_nothing(
    function: str, table: ParticleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_ = Pass(cpu, table, "local")
    wanted, original, calls = pass_.run(), getattr(half_module, function), []

    def fail_twice(*arguments: Any) -> Any:
        calls.append(len(arguments))
        if len(calls) in (1, 3):
            raise MemoryError  # without a text, as NumPy's may be
        return original(*arguments)

    monkeypatch.setattr(half_module, function, fail_twice)
    assert_same(pass_.run(), wanted)
    assert [text.split()[-5] for text in pass_.told] == ["5", "2"]
    assert pass_.particles.batch_size(None, 0) == 2  # and it does not run out again in the next pass


def test_not_enough_for_one_image_is_the_end(table: ParticleTable, imitation: None) -> None:
    pass_ = Pass(cuda, table, "local")
    Allocations.fail_at, Allocations.fail_always = Allocations.count + 60, True
    with pytest.raises(MemoryError, match=r"not enough for one image.*--memory") as caught:
        pass_.run()
    assert "\n" not in str(caught.value)
    assert [text.split()[-5] for text in pass_.told] == ["5", "2", "1"]


def test_other_faults_are_not_taken_for_it(table: ParticleTable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise ValueError("something else")

    monkeypatch.setattr(half_module, "find_posterior", fail)
    with pytest.raises(ValueError, match="something else"):
        Pass(cpu, table, "local").run()


@pytest.mark.parametrize("text", ["CUBLAS_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED",
                                  "cudaErrorMemoryAllocation: out of memory"])  # fmt: skip
def test_what_libraries_say_is_understood(text: str) -> None:
    assert cuda.is_out_of_memory(RuntimeError(text)) and not cpu.is_out_of_memory(RuntimeError(text))
    assert not cuda.is_out_of_memory(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"))


def test_the_first_noise_spectra_survive_it(table: ParticleTable, imitation: None) -> None:
    pass_ = Pass(cuda, table, "local")
    arguments = (cuda, pass_.particles, np.arange(COUNT), np.zeros((COUNT, 2)))
    wanted = image_power(*arguments)
    Allocations.fail_at = Allocations.count + 30
    np.testing.assert_allclose(image_power(*arguments), wanted, rtol=1e-6)
    assert len(pass_.told) == 1


def test_a_limit_is_that_of_the_pool(imitation: None) -> None:
    cuda.limit_memory(3 * GB)
    assert cuda.xp.get_default_memory_pool().get_limit() == 3 * GB
    assert replace(plan_memory(LARGE, 1, is_gpu=True, free=GB, total=GB), kind="float16").resident == 0


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the host all of them; on GPUs those that have to share one."""
    settings = RefineSettings(particles=tmp_path, reference=tmp_path, output=tmp_path, memory=None)
    comm = SimpleNamespace(local_size=6)
    for devices, expected in ((1, "10.0 GB free"), (4, "30.0 GB free"), (8, "60.0 GB free")):
        kernels = SimpleNamespace(free_memory=lambda: (int(60e9), int(64e9)), devices=lambda n=devices: n, name="cpu")
        plan = memory_plan_of(settings, kernels, Geometry(64, 3.0, 170.0), 1000, comm)
        assert expected in plan.lines[0]
