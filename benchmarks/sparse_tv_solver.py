# SPDX-License-Identifier: GPL-3.0-or-later
"""Solvers of the sparse + TV problem: iterations to a relative objective gap, and what an iteration costs.

    python benchmarks/sparse_tv_solver.py                 the convergence table, a 96^3 grid
    python benchmarks/sparse_tv_solver.py --gpu-size 512  and the time of one solve on a GPU

The problem is a map of 48 px backprojected from 6000 views, 70 % of them about one plane, with a CTF and a noise that
rises with frequency, on the padded grid. Gap = (F - F*) / |F*|, F* from 2500 iterations of the splitting; F(0) = 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import parse, save, table
from scipy.spatial.transform import Rotation

from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.refine.regularisers.sparse_tv.problem import Penalty, Quadratic, objective
from sparsecv.engine.refine.regularisers.sparse_tv.proximal_gradient import SMOOTHING, solve_smoothed
from sparsecv.engine.refine.regularisers.sparse_tv.splitting import solve
from sparsecv.engine.refine.regularisers.sparse_tv.strengths import Strengths
from sparsecv.engine.refine.regularisers.wiener import prior_precision
from sparsecv.engine.refine.volumes import PADDING, Accumulator, volume_to_map
from sparsecv.engine.simulate.phantom import membrane_protein
from sparsecv.engine.simulate.potential import potential_map
from sparsecv.engine.simulate.project import central_slices
from sparsecv.engine.threads import use_threads
from sparsecv.engine.validate.fsc import fsc
from sparsecv.kernels import ops as kernels_of

BOX, PIXEL_SIZE, VIEWS, PREFERRED = 48, 2.6, 6000, 0.7
EXACT = 2500
GAPS = (1e-2, 1e-3, 1e-4)


def sums(ops: Any) -> tuple[Accumulator, Accumulator]:
    """Accumulators of two quarters with all of the views between them."""
    rng = np.random.default_rng(1)
    atoms, _ = membrane_protein(1)
    truth = potential_map(atoms, BOX, PIXEL_SIZE, 80.0)
    truth = (truth / truth.std()).astype(np.float32)
    rotations = Rotation.random(VIEWS, random_state=1)
    tilted = Rotation.from_euler("ZYZ", np.stack([rng.uniform(0, 360, VIEWS), rng.normal(90, 15, VIEWS),
                                                  rng.uniform(0, 360, VIEWS)], axis=1), degrees=True)  # fmt: skip
    matrices = np.where((rng.random(VIEWS) < PREFERRED)[:, None, None], tilted.as_matrix(), rotations.as_matrix())
    disc = make_disc(BOX)
    frequency = np.hypot(disc.kx, disc.ky) / (BOX * PIXEL_SIZE)
    sigma2 = 120 * (1 + (frequency * PIXEL_SIZE * 2) ** 2)
    quarters = []
    for quarter in (0, 1):
        accumulator = Accumulator.empty(ops, BOX, disc.last)
        own = matrices[quarter::2].astype(np.float32)
        for start in range(0, len(own), 500):
            some = own[start : start + 500]
            defocus = rng.uniform(0.8e4, 2.5e4, len(some))[:, None]
            ctf = np.sin(np.pi * 0.0197 * defocus * frequency**2 + 0.1) * np.exp(-20 * frequency**2)
            noise = rng.standard_normal((2, *ctf.shape)) * np.sqrt(sigma2)
            signal = central_slices(truth, some, disc.kx / BOX, disc.ky / BOX) / BOX
            images = (ctf * (ctf * signal + noise[0] + 1j * noise[1]) / sigma2).astype(np.complex64)
            ops.backproject(
                *map(ops.xp.asarray, (images[:, None], (ctf**2 / sigma2).astype(np.float32),
                                      np.ones((len(some), 1), np.float32), some, np.arange(len(some), dtype=np.int32),
                                      disc.kx, disc.ky)), PADDING, accumulator.data, accumulator.weight,
            )  # fmt: skip
        quarters.append(accumulator.completed(ops, np.eye(3)[None]))
    return quarters[0], quarters[1]


class Case:
    """The problem on the padded grid, and the two scales of its strengths."""

    def __init__(self, ops: Any) -> None:
        quarters = sums(ops)
        self.ops = ops
        weight, linear = padded_weight(quarters), [padded(volume_to_map(ops, q.data, BOX, q.kernel)) for q in quarters]
        self.data = Quadratic(linear[0] + linear[1], weight)
        axis = np.fft.fftfreq(PADDING * BOX) * PADDING * BOX
        distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
        self.support = distance < BOX / 2
        band = weight > 0
        self.mean_weight = float(weight[band].mean())
        self.noise = rms((linear[0] - linear[1])[self.support])
        self.box_power = rms(self.data.linear) * PADDING**1.5
        total = quarters[0] + quarters[1]
        halves = fsc(*(ops.to_host(q.solve(ops)) for q in quarters))
        wiener = total.solve(ops, prior_precision(ops, total, halves, 2.0))
        self.start = padded(ops.to_host(wiener)) * self.support
        self.level = float(np.percentile(self.start[self.support], 93))

    def strengths(self, scale: str) -> Strengths:
        """alpha .5 s eps, beta 1.8 s eps' (the paper's), or kappas 1 (the noise's); eps' = eps / 3, or eps / 2."""
        if scale == "noise":
            alpha, beta, gradient = self.noise * self.level, self.noise * self.level / 2, self.level / 2
        else:
            power = self.box_power / (1 if scale == "paper, s of the box" else PADDING**1.5)
            alpha, beta, gradient = 0.5 * power * self.level, 1.8 * power * self.level / 3, self.level / 3
        return Strengths(alpha, beta, 0.05 * self.mean_weight, self.level, gradient, self.mean_weight)


def padded(density: np.ndarray) -> np.ndarray:
    """A centred map in a box of zeros twice as large, its centre at voxel 0."""
    wide = np.zeros((PADDING * BOX,) * 3, np.float32)
    wide[:BOX, :BOX, :BOX] = density
    return np.ascontiguousarray(np.roll(wide, (-(BOX // 2),) * 3, (0, 1, 2)))


def padded_weight(quarters: tuple[Accumulator, Accumulator]) -> np.ndarray:
    """N of both quarters in the layout of rfftn."""
    weight = quarters[0].weight + quarters[1].weight
    c, last, n = weight.shape[2] - 1, PADDING * quarters[0].last_shell, PADDING * BOX
    wide = np.zeros((n, n, n // 2 + 1), np.float32)
    index = np.arange(-last, last + 1)
    wide[np.ix_(index % n, index % n, np.arange(last + 1))] = weight[np.ix_(index + c, index + c, np.arange(last + 1))]
    return wide


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def iterations_to(gaps: list[tuple[int, float]], goal: float) -> str:
    """First iteration with a gap below a goal."""
    reached = [iteration for iteration, gap in gaps if gap < goal]
    return str(reached[0]) if reached else f"> {gaps[-1][0]}"


def convergence(case: Case, scale: str) -> list[list[object]]:
    """Rows of the table for one scale: start, splitting, the paper's method with its safe step."""
    ops, strengths = case.ops, case.strengths(scale)
    penalty = strengths.penalty(ops, case.start, case.support)
    data = strengths.data(case.data, case.start)
    best = solve(ops, data, penalty, case.start, strengths.steps, gap=0, most=EXACT, check_every=100)
    lowest = min(best.objective)

    def gap(value: float) -> float:
        return (value - lowest) / abs(lowest)

    found = solve(ops, data, penalty, case.start, strengths.steps, gap=0, most=100, check_every=1)
    splitting = list(zip(range(1, 101), map(gap, found.objective), strict=True))
    certified = list(zip(range(1, 101), found.gaps, strict=True))
    mu = SMOOTHING * strengths.epsilon_gradient
    smooth = solve_smoothed(ops, data, penalty, case.start, mu, iterations=400, record=10)
    paper = list(zip(range(10, 401, 10), map(gap, smooth.objective), strict=True))
    rows = [("splitting", splitting), ("the same, certified by its dual", certified), ("paper, safe step", paper)]
    first = f"{gap(objective(ops, data, penalty, case.start)):.3g}"
    return [[scale, first, name, *(iterations_to(gaps, goal) for goal in GAPS)] for name, gaps in rows]


def best_ms(call: Callable[[], object], repeats: int = 15) -> float:
    """Shortest CPU time of a call in ms."""
    call()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return 1e3 * min(found)


def costs(size: int) -> list[object]:
    """CPU time of the parts of an iteration at a size: two transforms, the two fused kernels, all of it."""
    ops, rng = kernels_of("cpu"), np.random.default_rng(1)
    b, x, a, c = (rng.standard_normal((size,) * 3, dtype=np.float32) for _ in "bxac")
    w1, w2 = b.copy(), rng.standard_normal((3, size, size, size), dtype=np.float32)
    a, c, hessian = abs(a), abs(c), np.ones((size, size, size // 2 + 1), np.float32)
    transforms = best_ms(lambda: ops.irfftn(ops.rfftn(b), size))
    fused = best_ms(lambda: ops.split_step(b, w1, w2, a, c, 1.0, 1.0, 2.0)) + best_ms(
        lambda: ops.relax_step(x, w1, w2, a, c, 1.0, 1.0, 0.0)
    )
    data, penalty = Quadratic(b, hessian), Penalty(a, c)
    steps = Strengths(1, 1, 0, 1, 1, 1).steps

    def solved(iterations: int) -> float:
        return best_ms(lambda: solve(ops, data, penalty, b, steps, gap=0, most=iterations, check_every=99), 5)

    whole = (solved(12) - solved(2)) / 10
    return [f"{size}^3", f"{transforms:.1f}", f"{fused:.1f}", f"{whole:.1f}", f"{whole / transforms:.2f}"]


def gpu_seconds(size: int) -> dict[str, float] | None:
    """Wall time of one solve to a certified gap of 1e-3 on a GPU, and the floor its memory sets; None without a GPU."""
    try:
        ops = kernels_of("gpu")
    except RuntimeError as error:
        print(f"not run on a GPU: {error}")
        return None
    xp = ops.xp
    generator = xp.random.default_rng(1)
    k = xp.fft.fftfreq(size, 1 / size).astype(xp.float32)
    radius = xp.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, : size // 2 + 1] ** 2)
    weight = 1e3 / (1 + radius)
    inside = (xp.abs(k) < size / 8).astype(xp.float32)
    truth = inside[:, None, None] * inside[None, :, None] * inside[None, None, :]
    noise = ops.irfftn(xp.sqrt(weight) * ops.rfftn(generator.standard_normal((size,) * 3, dtype=xp.float32)), size)
    linear = ops.irfftn(weight * ops.rfftn(truth), size) + noise
    sigma, level, mean = float(noise.std()), 1.0, float(weight.mean())
    strengths = Strengths(sigma * level, sigma * level / 2, 0.05 * mean, level, level / 2, mean)
    data = strengths.data(Quadratic(linear, weight), xp.zeros_like(linear))
    penalty = strengths.penalty(ops, linear / mean, xp.ones(linear.shape, dtype=bool))
    times = []
    for _ in range(3):
        xp.cuda.Device().synchronize()
        started = time.perf_counter()
        found = solve(ops, data, penalty, linear / np.float32(mean), strengths.steps, gap=1e-3)
        xp.cuda.Device().synchronize()
        times.append(time.perf_counter() - started)
    stream = xp.empty_like(linear)
    started = time.perf_counter()
    for _ in range(10):
        xp.copyto(stream, linear)
    xp.cuda.Device().synchronize()
    one_pass = (time.perf_counter() - started) / 20
    passes = 26  # volumes read or written per iteration: split 7, relax 10, two transforms in place 8, product 1
    return {"seconds": min(times), "iterations": found.iterations, "gap": found.gap,
            "floor_seconds": found.iterations * passes * one_pass}


def main() -> None:
    """Measure and print."""
    bench, given = parse(__doc__, ("--gpu-size", {"type": int, "default": 512}))
    use_threads(bench.threads)
    case = Case(kernels_of("cpu"))
    rows = [row for scale in ("noise", "paper, s of the box", "paper, s of the padded grid")
            for row in convergence(case, scale)]  # fmt: skip
    table("sparse_tv_solver", ("strengths", "gap at start", "solver", *(f"{goal:g}" for goal in GAPS)), rows)
    per_iteration = [costs(size) for size in (96, 128, 192)]
    table("sparse_tv_cost", ("grid", "two FFTs, ms", "fused kernels, ms", "iteration, ms", "ratio"), per_iteration)
    gpu = gpu_seconds(given.gpu_size)
    save("sparse_tv_solver", {"convergence": rows, "cost": per_iteration, "gpu": gpu})


if __name__ == "__main__":
    main()
