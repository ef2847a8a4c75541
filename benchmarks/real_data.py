# SPDX-License-Identifier: GPL-3.0-or-later
"""Real files: a reconstruction from ribosome tilt images with poses, and what else must be readable.

    python benchmarks/real_data.py

The images of 64 pixels (six ribosomes, each in up to 39 tilts) are reconstructed by ``sparsecv reconstruct`` and
``relion_reconstruct``; pictures of central slices are left in ``benchmarks/results``. Their STAR file still has the
pixel size of the micrographs, 1.96 A, though they are binned eight times: a ribosome would be 30 A across. It is put
right first, as the CTF depends on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import RESULTS, Bench, has, measure, parse, save, table

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import ImageStack, read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.report.plots import plot_slices
from sparsecv.engine.validate.fsc import fsc

TILT_IMAGES = "sta_testing_bin8.star"
TRUE_PIXEL_SIZE = 8 * 1.96  # A
STAR_FILES = {  # with their images, or the header only
    TILT_IMAGES: True,
    "relion31.star": True,
    "relion5.star": False,
    "FinalRefinement-OriginalParticles-PfCRT.star": False,
}
STACKS = ("empiar_10076_7.mrc",)


def reconstruct(bench: Bench) -> list[list[object]]:
    """Maps by both programs, pictures of them, and their FSC."""
    data, rows = bench.shared / "data", []
    star = StarFile.read(data / TILT_IMAGES)
    star.table("").set("rlnDetectorPixelSize", np.full(len(star.table("")), TRUE_PIXEL_SIZE))
    corrected = bench.work / "ribosome.star"
    star.write(corrected)
    ours = bench.work / "ribosome_sparsecv.mrc"
    usage = bench.sparsecv("reconstruct", "--particles", str(corrected), "--data-dir", str(data), "--output", str(ours),
                           "--threads", str(bench.threads), log=ours.with_suffix(".log"))  # fmt: skip
    found = read_map(ours)
    draw(ours, "sparsecv reconstruct, 219 tilt images of ribosomes")
    rows.append(["sparsecv reconstruct", usage.cpu_s, f"{usage.peak_mb:.0f}", "-", "-"])
    if bench.peers and has("relion_reconstruct"):
        for option in ("", "--skip_gridding"):
            name = f"relion_reconstruct {option}".strip()
            path = bench.work / f"ribosome_{name.replace(' --', '_')}.mrc"
            command = f"relion_reconstruct --i {corrected} --o {path} --ctf {option}".split()
            usage = measure(command, log=path.with_suffix(".log"), cwd=data)
            draw(path, name)
            curve = fsc(found.data, read_map(path, pixel_size=found.pixel_size).data)
            half = len(curve) // 2
            agreement = [f"{part.min():.4f}" for part in (curve[1:half], curve[half:-1])]
            rows.append([name, usage.cpu_s, f"{usage.peak_mb:.0f}", *agreement])
    return rows


def draw(path: Path, title: str) -> None:
    """Central slices of a map as a picture among the results."""
    RESULTS.mkdir(exist_ok=True)
    volume = read_map(path, pixel_size=1.0 if read_map(path).pixel_size <= 0 else None)
    plot_slices(RESULTS / f"{path.stem}.png", volume.data, volume.pixel_size, title=title)


def read_all(data: Path) -> list[list[object]]:
    """One row for each file that can be read, and the reason for each that cannot."""
    rows: list[list[object]] = []
    for name, with_images in STAR_FILES.items():
        try:
            particles = ParticleTable.read(data / name, data, check_images=with_images, independent_halves=False)
            images = "not there"
            if with_images:
                values, good = particles.read_images(np.arange(len(particles)))
                images = f"{good.sum()} of {len(good)} good, {values.shape[1]} px"
            poses = "yes" if particles.has_poses else "no"
            rows.append([name, len(particles), f"{particles.pixel_size:.3f}", poses, images])
        except InputError as error:
            rows.append([name, "refused", str(error), "", ""])
    for name in STACKS:
        stack = ImageStack(data / name)
        is_good = np.isfinite(stack.read(np.arange(stack.count))).all(axis=(1, 2))
        rows.append([name, stack.count, "-", "-", f"{is_good.sum()} of {stack.count} good, {stack.box} px"])
    return rows


def main() -> None:
    """Reconstruct, read and print."""
    bench, _ = parse(__doc__)
    bench.warm_up()
    maps = reconstruct(bench)
    print("map of the 219 tilt images; FSC of RELION's map with ours: lowest up to half of Nyquist, and beyond")
    table("real_maps", ["program", "CPU s", "peak MB", "FSC, lower half", "FSC, upper half"], maps)
    files = read_all(bench.shared / "data")
    table("real_files", ["file", "images", "pixel size, A", "poses", "image data"], files)
    save("real_data", {"maps": maps, "files": files})


if __name__ == "__main__":
    main()
