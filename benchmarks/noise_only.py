# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise without particles, refined from a ball: does a refinement claim a resolution that is not there?

    python benchmarks/noise_only.py --seeds 5

The reference is a soft ball, low-pass filtered. Noise aligned to one reference correlates up to the resolution of that
reference; anything beyond would be invented.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from common import Bench, Usage, parse, save, table

from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.validate.fsc import GOLD_STANDARD, resolution

LOW_PASS = 40.0  # A, of the reference
RADIUS = 50.0  # A, of the ball
COLUMNS = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


def run(bench: Bench, seed: int, box: int, pixel_size: float, particles: int) -> tuple[Usage, dict[str, float]]:
    """Simulate and refine; resolutions in A at FSC = 0.143 by curve."""
    data, out = bench.work / f"noise_{seed}", bench.work / f"noise_{seed}_run"
    bench.sparsecv("simulate", "--noise-only", "--box", str(box), "--pixel-size", f"{pixel_size:g}", "--particles",
                   str(particles), "--seed", str(seed), "--output", str(data), log=data.with_suffix(".log"))  # fmt: skip
    ball = low_pass(sphere(box, RADIUS / pixel_size), pixel_size, LOW_PASS)
    write_map(data / "ball.mrc", ball, pixel_size)
    usage = bench.sparsecv(
        "refine", "--particles", str(data / "particles.star"), "--reference", str(data / "ball.mrc"), "--output",
        str(out), "--initial-lowpass", f"{LOW_PASS:g}", "--threads", str(bench.threads), "--seed", str(seed),
        "--device", "cpu", log=out.with_suffix(".log"),
    )  # fmt: skip
    history = json.loads((out / "status.json").read_text())["history"]
    claimed = {"sphere": float(history[-1]["resolution_0143"])}
    return usage, claimed | curves_resolution(out / "postprocess.star", box, pixel_size)


def curves_resolution(path: Path, box: int, pixel_size: float) -> dict[str, float]:
    """Where each curve of a ``postprocess.star`` falls below 0.143, A."""
    fsc = StarFile.read(path).table("fsc")
    return {name: resolution(fsc.floats(column), GOLD_STANDARD, box, pixel_size).angstrom
            for name, column in COLUMNS.items()}  # fmt: skip


def main() -> None:
    """Run the seeds and print."""
    bench, given = parse(
        __doc__,
        ("--seeds", {"type": int, "default": 5, "help": "number of runs"}),
        ("--box", {"type": int, "default": 64}),
        ("--pixel-size", {"type": float, "default": 3.0, "help": "A"}),
        ("--particles", {"type": int, "default": 500}),
    )
    bench.warm_up()
    rows, figures = [], {}
    for seed in range(1, given.seeds + 1):
        usage, claimed = run(bench, seed, given.box, given.pixel_size, given.particles)
        best = float(np.min(list(claimed.values())))
        rows.append([seed, *(f"{value:.1f}" for value in claimed.values()), "no" if best >= LOW_PASS else "YES",
                     usage.cpu_s])  # fmt: skip
        figures[str(seed)] = {"usage": usage, "resolution": claimed}
    print(f"{given.particles} images of noise, box {given.box} px of {given.pixel_size:g} A, from a ball low-passed at "
          f"{LOW_PASS:g} A: resolution at FSC = 0.143, A")  # fmt: skip
    table(["seed", *claimed, f"beyond {LOW_PASS:g} A", "CPU s"], rows)
    save("noise_only", figures)


if __name__ == "__main__":
    main()
