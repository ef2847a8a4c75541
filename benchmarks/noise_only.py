# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise without particles, refined from a ball: does a refinement claim a resolution that is not there?

    python benchmarks/noise_only.py --seeds 5 --regularisers wiener sparse-tv nonuniform

The reference is a soft ball, low-pass filtered. Noise aligned to one reference correlates up to the resolution of that
reference and a little further (``sparsecv/engine/validate/claims.py``), as the curves show; the program must claim none
of it. With the non-uniform prior: the smaller of the halves' shares of voxels that are left to the coarsest filter.
"""

from __future__ import annotations

import json

import numpy as np
from common import Bench, Usage, parse, save, table

from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.prepare import DIAMETER_OF_BOX
from sparsecv.engine.validate.fsc import GOLD_STANDARD, resolution

LOW_PASS = 40.0  # A, of the reference
RADIUS = 50.0  # A, of the ball
COLUMNS = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


def run(
    bench: Bench, regulariser: str, seed: int, box: int, pixel_size: float, particles: int
) -> tuple[Usage, dict[str, float]]:
    """Simulate and refine; resolutions in A at FSC = 0.143 by curve."""
    data, out = bench.work / f"noise_{seed}", bench.work / f"noise_{seed}_{regulariser}"
    size = ["--box", str(box), "--pixel-size", f"{pixel_size:g}", "--particles", str(particles)]
    bench.sparsecv("simulate", "--noise-only", *size, "--seed", str(seed), "--output", str(data),
                   log=data.with_suffix(".log"))  # fmt: skip
    ball = low_pass(sphere(box, RADIUS / pixel_size), pixel_size, LOW_PASS)
    write_map(data / "ball.mrc", ball, pixel_size)
    usage = bench.sparsecv(
        "refine", "--particles", str(data / "particles.star"), "--reference", str(data / "ball.mrc"), "--output",
        str(out), "--initial-lowpass", f"{LOW_PASS:g}", "--threads", str(bench.threads), "--seed", str(seed),
        "--device", "cpu", "--regulariser", regulariser, log=out.with_suffix(".log"),
    )  # fmt: skip
    star = StarFile.read(out / "postprocess.star")
    status = json.loads((out / "status.json").read_text())
    claimed = {
        "claimed": float(status["history"][-1]["resolution_0143"]),
        "claimed, masked": min(float(status["masked_resolution_0143"]),
                               float(star.table("general").floats("rlnFinalResolution")[0])),
    }  # fmt: skip
    limits = [read_map(path).data for path in sorted(out.glob("run_half[12]_bandlimit.mrc"))]
    inside = sphere(box, DIAMETER_OF_BOX * box / 2) > 0.5
    shares = [float((one[inside] > one.max() * 0.999).mean()) for one in limits]
    claimed["coarsest filter, %"] = 100 * min(shares) if shares else float("nan")
    for name, column in COLUMNS.items():
        claimed[name] = resolution(star.table("fsc").floats(column), GOLD_STANDARD, box, pixel_size).angstrom
    return usage, claimed


def main() -> None:
    """Run the seeds and print."""
    bench, given = parse(
        __doc__,
        ("--seeds", {"type": int, "default": 5, "help": "number of runs"}),
        ("--regularisers", {"nargs": "+", "default": ["wiener", "sparse-tv", "nonuniform"]}),
        ("--box", {"type": int, "default": 64}),
        ("--pixel-size", {"type": float, "default": 3.0, "help": "A"}),
        ("--particles", {"type": int, "default": 500}),
    )
    bench.warm_up()
    rows, figures = [], {}
    for regulariser in given.regularisers:
        for seed in range(1, given.seeds + 1):
            usage, claimed = run(bench, regulariser, seed, given.box, given.pixel_size, given.particles)
            is_invented = min(claimed["claimed"], claimed["claimed, masked"]) < LOW_PASS
            verdict = "YES" if is_invented else "no"
            told = ("-" if np.isnan(value) else f"{value:.1f}" for value in claimed.values())
            rows.append([regulariser, seed, *told, verdict, usage.cpu_s])
            figures[f"{regulariser} {seed}"] = {"usage": usage, "resolution": claimed}
    print(f"{given.particles} images of noise, box {given.box} px of {given.pixel_size:g} A, from a ball low-passed at "
          f"{LOW_PASS:g} A: resolution claimed, and where the curves fall below 0.143, A")  # fmt: skip
    table("noise_only", ["prior", "seed", *claimed, f"claimed beyond {LOW_PASS:g} A", "CPU s"], rows)
    save("noise_only", figures)


if __name__ == "__main__":
    main()
