# SPDX-License-Identifier: GPL-3.0-or-later
"""Planted junk: which quality of a refinement finds it best, by the area under the ROC curve.

python benchmarks/junk.py [--seed N]

A set of the simulator's protein in which every tenth image is, in turns, one of KINDS: noise alone, another protein, a
particle displaced beyond the search, or one that the straight edge of a carbon film crosses. The images of every other
micrograph have three times the noise variance and stand in an optics group of their own. The set is refined as if
nothing were known of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import parse, save, table
from scipy.stats import rankdata

from sparsecv.engine.io.mrc import ImageStack, write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.simulate import SimulateSettings, simulate
from sparsecv.engine.subset.qualities import QUALITIES, goodness, of_like_defocus, values_of

PARTICLES, BOX, PIXEL_SIZE, SNR, SEED, DIAMETER = 2000, 64, 3.0, 0.08, 4, "150"
EVERY, MORE_NOISE = 10, 3.0
KINDS = ("noise", "other protein", "displaced", "edge")
DISPLACED_PX, EDGE = 14, 1.5  # pixels; step of the edge in standard deviations of the noise
OF_A_REFINEMENT = ("fit", "evidence", "probability", "samples", "spread", "norm", "scale", "likelihood")
MOST_LIKELY = ("fit", "evidence", "probability")  # the only ones that are also taken relative to the micrograph
HEADER = ("quality", "relative to", *KINDS, "all junk", "in the worst tenth")


def kind_of(particles: int) -> np.ndarray:
    """0 for a particle, else 1 + its place in KINDS, (particles,)."""
    kinds = np.zeros(particles, dtype=int)
    places = np.arange(0, particles, EVERY)
    kinds[places] = 1 + np.arange(len(places)) % len(KINDS)
    return kinds


def make_set(folder: Path, set_seed: int) -> tuple[Path, Path]:
    """Write the set, once; returns STAR file and starting map."""
    star_path = folder / "particles.star"
    sets = {name: SimulateSettings(output=folder / name, particles=PARTICLES, box=BOX, pixel_size=PIXEL_SIZE, snr=SNR,
                                   seed=seed, noise_only=name == "noise", threads=2)
            for name, seed in (("protein", set_seed), ("other", set_seed + 1), ("noise", set_seed + 2))}  # fmt: skip
    if star_path.is_file():
        return star_path, folder / "protein" / "reference.mrc"
    files = {name: simulate(settings) for name, settings in sets.items()}
    stacks = {name: ImageStack(one.stack) for name, one in files.items()}
    star = StarFile.read(files["protein"].particles)
    particles = star.table("particles")
    micrograph = np.unique(particles.strings("rlnMicrographName"), return_inverse=True)[1]
    is_noisy = micrograph % 2 == 1
    kinds, rng = kind_of(PARTICLES), np.random.default_rng(set_seed)

    def images() -> Iterator[np.ndarray]:
        row, column = np.indices((BOX, BOX)) - BOX // 2
        for number, kind in enumerate(kinds.tolist()):
            source = {1: "noise", 2: "other"}.get(kind, "protein")
            image = stacks[source].read(np.array([number]))
            if KINDS[kind - 1] == "displaced" and kind:
                image = np.roll(image, tuple(rng.choice((-DISPLACED_PX, DISPLACED_PX), 2)), axis=(1, 2))
            if KINDS[kind - 1] == "edge" and kind:
                angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-BOX / 8, BOX / 8)
                image = image + EDGE * (np.cos(angle) * column + np.sin(angle) * row > offset)
            if is_noisy[number]:
                image = image + np.sqrt(MORE_NOISE - 1) * rng.standard_normal(image.shape)
            image = image - image.mean()
            yield image.astype(np.float32)

    write_stack(folder / "particles.mrcs", images(), PIXEL_SIZE)
    optics = star.table("optics")
    loop = {name: optics.strings(name) * 2 for name in optics.columns}
    loop |= {"rlnOpticsGroup": ["1", "2"], "rlnOpticsGroupName": ["quiet", "noisy"]}
    made = StarFile.new()
    made.add_loop("optics", loop)
    columns = {name: particles.strings(name) for name in particles.columns}
    columns["rlnOpticsGroup"] = [str(1 + int(noisy)) for noisy in is_noisy]
    made.add_loop("particles", columns)
    made.write(star_path)
    return star_path, files["protein"].reference


def area(good: np.ndarray, is_junk: np.ndarray) -> float:
    """Area under the ROC curve: how often a particle is better than a piece of junk; 0.5 tells nothing."""
    ranks, real = rankdata(good), int((~is_junk).sum())
    return float((ranks[~is_junk].sum() - real * (real + 1) / 2) / (real * int(is_junk.sum())))


def main() -> None:
    """Make the set, refine it, and print what each quality finds."""
    bench, given = parse(__doc__, ("--seed", {"type": int, "default": SEED}))
    folder = bench.work / f"junk{given.seed}"
    star, reference = make_set(folder, given.seed)
    bench.warm_up()
    run = folder / "run"
    if not (run / "run_data.star").is_file():
        bench.sparsecv("refine", "--particles", str(star), "--reference", str(reference), "--output", str(run),
                       "--particle-diameter", DIAMETER, "--threads", str(bench.threads), log=folder / "refine.log")
    found = ParticleTable.read(run / "run_data.star", check_images=False)
    kinds = kind_of(PARTICLES)[found.image_index]
    like = of_like_defocus(found.optics_index, found.halves, (found.defocus_u + found.defocus_v) / 2)
    rows, areas = [], {}
    for name in OF_A_REFINEMENT:
        quality = QUALITIES[name]
        for words, group in (("-", None), ("optics group", found.optics_index), ("like defocus", like),
                             ("micrograph", found.micrograph_index)):  # fmt: skip
            if words == "micrograph" and name not in MOST_LIKELY:
                continue
            values = values_of(name, quality, found.star.table(found.table_name), found.halves, group)
            assert quality.prefer is not None
            good = goodness(values, quality.prefer, found.halves)
            by_kind = [area(good[np.isin(kinds, (0, kind))], kinds[np.isin(kinds, (0, kind))] > 0)
                       for kind in range(1, len(KINDS) + 1)]  # fmt: skip
            worst = np.argsort(good)[: len(good) // EVERY]
            share = float((kinds[worst] > 0).mean())
            areas[f"{name}, {words}"] = [*by_kind, area(good, kinds > 0), share]
            rows.append([name, words, *(f"{value:.3f}" for value in areas[f"{name}, {words}"][:-1]),
                         f"{100 * share:.0f} %"])  # fmt: skip
    name = "junk" if given.seed == SEED else f"junk{given.seed}"
    save(name, {"areas": areas})
    print(f"{PARTICLES} particles, {100 // EVERY} % of them junk; areas under ROC curves, and how much of the worst\n"
          "tenth is junk")  # fmt: skip
    table(name, HEADER, rows)


if __name__ == "__main__":
    main()
