# SPDX-License-Identifier: GPL-3.0-or-later
"""One iteration of a refinement, taken apart: what each stage takes, and how much work the data made of it.

The stages are the engine's own functions, wrapped while a block lasts; on a GPU each leaves two events in the stream,
which make nobody wait.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from device import Device
from scipy.spatial.transform import Rotation
from synthetic import NOISE, Specimen, SyntheticStack, table_of

from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine import expectation, half, loop
from sparsecv.engine.refine.half import Particles
from sparsecv.engine.refine.memory_plan import plan_memory
from sparsecv.engine.refine.regularisers import make_regulariser
from sparsecv.engine.refine.settings import RegulariserSettings
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState

POSE_ERROR = 1.0  # degrees, of the poses that a local search begins with
SHIFT_SIGMA = 10.0 / 3  # A
# stage -> where its function is; what is within another's is taken out of that one's time
WITHIN = {"grid": "candidates"}
NAMES = ("references", "images", "grid", "candidates", "poses", "statistics", "deposit", "sums", "maps", "prior",
         "state")  # fmt: skip


@dataclass
class Spent:
    """What an iteration took.

    Attributes
    ----------
    seconds
        By stage, and ``rest``.
    total, wall
        Seconds on the device (or of CPU time) and of wall time.
    reading
        Seconds of the host for putting images together, beside the device's.
    peak_bytes
        Of the device's memory.
    counts
        Of the work: candidates times pixels and so on, see `Watch`.
    """

    seconds: dict[str, float]
    total: float
    wall: float
    reading: float
    peak_bytes: int
    counts: dict[str, float]


@dataclass
class Watch:
    """Marks at the beginnings and ends of stages, and counts of the work."""

    device: Device
    marks: list[tuple[str, Any, Any]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    later: list[tuple[str, Any, float]] = field(default_factory=list)  # counts that are still on the device
    level: int = 0  # of the search that goes on; the exhaustive one has no candidates

    def wrapped(self, stage: str, function: Any) -> Any:
        """The function with marks around it, and with what can be counted from its arguments."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            if stage == "candidates":
                self.level = 0
            first = self.device.mark()
            found = function(*arguments, **options)
            self.marks.append((stage, first, self.device.mark()))
            self._count(stage, arguments)
            return found

        return run

    def counting(self, function: Any) -> Any:
        """`expectation._score_candidates` with its candidates counted, level by level."""

        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            _, _, batch, owner, _, shifts, disc, _ = arguments
            candidates, pixels, count = len(owner), len(disc), shifts.shape[1]
            self.add(gathered=candidates * pixels, scored=candidates * pixels * count, samples=candidates * count,
                     moved=len(batch.index) * pixels * count, candidates=candidates)  # fmt: skip
            self.add(**{f"candidates {self.level}": candidates})
            self.level += 1
            return function(*arguments)

        return run

    def add(self, **counts: float) -> None:
        """Add to counts by name."""
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + value

    def _count(self, stage: str, arguments: tuple[Any, ...]) -> None:
        if stage == "deposit":
            _, batch, posterior, disc, _ = arguments
            self.later.append(("slices", posterior.weights.any(axis=1).sum(), 1.0))
            self.later.append(("deposits", self.later[-1][1], float(len(disc))))
            self.add(images=len(batch.index), moved_deposits=len(batch.index) * len(disc) * posterior.shifts.shape[1])

    def spent(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds by stage, and counts; all that was asked of the device must have been done."""
        seconds = dict.fromkeys(NAMES, 0.0)
        for stage, first, last in self.marks:
            taken = self.device.between(first, last)
            seconds[stage] += taken
            if stage in WITHIN:
                seconds[WITHIN[stage]] -= taken
        for name, value, factor in self.later:
            self.add(**{name: float(value) * factor})
        return seconds, self.counts


@contextlib.contextmanager
def watched(device: Device) -> Iterator[Watch]:
    """Within the block the engine's stages are timed."""
    watch = Watch(device)
    places: list[tuple[Any, str, str]] = [
        (loop.Refinement, "_search", "references"), (Particles, "batch", "images"),
        (expectation, "_score_grid", "grid"), (half, "find_posterior", "candidates"),
        (half, "estimate_poses", "poses"), (half, "sample_statistics", "statistics"), (half, "accumulate", "deposit"),
        (loop.Refinement, "_complete", "sums"), (loop.Refinement, "_centre_frame", "sums"),
        (loop.Refinement, "_half_maps", "maps"), (loop.Refinement, "_next_references", "prior"),
        (loop.Refinement, "_join", "prior"), (loop.Refinement, "_updated", "state"),
    ]  # fmt: skip
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    scoring = expectation._score_candidates
    try:
        for place, name, stage in places:
            setattr(place, name, watch.wrapped(stage, getattr(place, name)))
        expectation._score_candidates = watch.counting(scoring)
        yield watch
    finally:
        for place, name, function in before:
            setattr(place, name, function)
        expectation._score_candidates = scoring


def refinement_of(
    device: Device,
    specimen: Specimen,
    particles: int,
    stage: str,
    band: int,
    *,
    symmetry: str = "C1",
    prior: str = "wiener",
    is_streamed: bool = False,
    readers: int = 1,
) -> tuple[loop.Refinement, SyntheticStack, str]:
    """A refinement in the middle of its course, its images, and what the memory plan says of them.

    Parameters
    ----------
    stage, band
        What the next iteration is, and the highest shell that it compares.
    is_streamed
        Whether no image may stay on the device, whatever there is room for.
    readers
        Threads that put images together.
    """
    ops, geometry = device.ops, specimen.geometry
    stack = SyntheticStack(specimen.views, threads=readers)
    table = table_of(specimen, particles, stack)
    free, total = ops.free_memory()
    plan = plan_memory(geometry, particles, is_gpu=device.is_gpu, free=free, total=total)
    own = Particles.of(ops, table, geometry, symmetry_matrices(symmetry), plan.batch_bytes / 1e6,
                       parks_sums=plan.parks_sums)
    if not is_streamed:
        own.images.reserve(plan.resident, plan.kind)
    rng = np.random.default_rng(7)
    turns = rng.normal(0, np.deg2rad(POSE_ERROR) / np.sqrt(3), (particles, 3))
    state = ParticleState.start(_turned(turns, table.rotations), np.zeros((particles, 2)))
    round_mask = sphere(geometry.box, geometry.diameter / 2 / geometry.pixel_size)
    reference = low_pass(specimen.density, geometry.pixel_size, geometry.length / band) * round_mask
    curve = np.where(np.arange(geometry.nyquist_shell + 1) <= band, 0.9, 0.0)
    curve[0] = 1
    shells = geometry.nyquist_shell + 1
    sigma = 1.2 * POSE_ERROR
    halves = [HalfState(reference.astype(np.float32), np.full((1, shells), NOISE), np.ones(len(table.group_names)),
                        SHIFT_SIGMA / geometry.pixel_size, 3 * SHIFT_SIGMA / geometry.pixel_size / 2, sigma)
              for _ in "12"]  # fmt: skip
    # one iteration behind it: the first one would also look for the grey scale
    whole = RefinementState(state, (halves[0], halves[1]), curve, band, stage, iteration=1)
    regulariser = make_regulariser(RegulariserSettings(regulariser=prior))
    found = loop.Refinement(
        ops, own, regulariser, whole, ops.xp.asarray(round_mask), round_mask, table.halves, table.quarters(), 1, 40.0,
        frame_is_free=True,
    )  # fmt: skip
    where = "streamed" if is_streamed or not plan.resident else plan.kind
    return found, stack, where if device.is_gpu else "from the host"


def _turned(vectors: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Rotations turned by small ones, as rotation vectors (n, 3)."""
    return Rotation.from_rotvec(vectors).as_matrix() @ rotations


def iterate(device: Device, refinement: loop.Refinement, stack: SyntheticStack, *, is_last: bool = False) -> Spent:
    """Run one iteration and say what it took."""
    stack.seconds = 0.0
    device.synchronize()
    with watched(device) as watch:
        used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        first = device.mark()
        refinement.iterate(is_last=is_last)
        last = device.mark()
        device.synchronize()
        wall, now = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        seconds, counts = watch.spent()
        total = device.between(first, last)
    seconds["rest"] = max(0.0, total - sum(seconds.values()))
    if not device.is_gpu:
        total = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return Spent(seconds, total, wall, stack.seconds, device.peak_bytes(), counts)
