# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of the compiled loops on one thread: millions of Fourier pixels per second of CPU time, at several boxes.

    python benchmarks/kernels_cpu.py --boxes 64 128 256

A pixel of a score is counted once for its slice and eight shifts; a pixel of a backprojection once per orientation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from common import parse, save, table
from scipy.spatial.transform import Rotation

from sparsecv.engine.physics.disc import Disc, make_disc
from sparsecv.engine.refine.volumes import PADDING, half_width
from sparsecv.engine.threads import use_threads
from sparsecv.kernels import cpu

SHIFTS = 8
PIXELS = 2e6  # of one call: large beside what a call costs by itself
REPEATS = 5


def best_seconds(call: Callable[[], object]) -> float:
    """Shortest CPU time of several calls, after one that compiles or loads."""
    call()
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def speeds(box: int) -> dict[str, float]:
    """Mpix/s of each loop at a box, with the whole disc and random orientations."""
    disc = make_disc(box)
    count = max(8, int(PIXELS / len(disc)))
    rng = np.random.default_rng(1)
    rotations = Rotation.random(count, random_state=1).as_matrix().astype(np.float32)
    owner = np.arange(count, dtype=np.int32)
    c = half_width(disc.last)
    volume = random_complex(rng, (2 * c + 1, 2 * c + 1, c + 1))
    images = random_complex(rng, (count, SHIFTS, len(disc)))
    ctf2 = rng.random((count, len(disc)), dtype=np.float32)
    one = np.ones((count, 1), dtype=np.float32)
    data, weight = np.zeros_like(volume), np.zeros(volume.shape, dtype=np.float32)
    single = np.ascontiguousarray(images[:, :1])
    calls = {
        "slices": lambda: cpu.extract_slices(volume, rotations, disc.kx, disc.ky, PADDING),
        "scores": lambda: cpu.score_candidates(volume, rotations, owner, images, ctf2, disc.kx, disc.ky, PADDING),
        "trilinear": lambda: backproject("trilinear"),
        "gaussian": lambda: backproject("gaussian"),
    }

    def backproject(kernel: str) -> None:
        cpu.backproject(single, ctf2, one, rotations, owner, disc.kx, disc.ky, PADDING, data, weight, kernel)

    return {name: megapixels(count, disc) / best_seconds(call) for name, call in calls.items()}


def random_complex(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise, complex64."""
    return rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]


def megapixels(count: int, disc: Disc) -> float:
    """Fourier pixels of ``count`` slices, millions."""
    return count * len(disc) / 1e6


def main() -> None:
    """Measure and print."""
    bench, given = parse(__doc__, ("--boxes", {"type": int, "nargs": "+", "default": [64, 128, 256]}))
    threads = use_threads(bench.threads)
    found = {box: speeds(box) for box in given.boxes}
    names = list(next(iter(found.values())))
    print(f"{threads} thread(s), Mpix per second of CPU time; scores with {SHIFTS} shifts")
    rows = [[box, *(f"{speed:.1f}" for speed in row.values())] for box, row in found.items()]
    table("kernels_cpu", ["box", *names], rows)
    save("kernels_cpu", {"threads": threads, "Mpix_per_s": found})


if __name__ == "__main__":
    main()
