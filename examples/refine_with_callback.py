# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulates particles, refines them, looks at each iteration as it ends, and compares the poses with the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from sparsecv.engine.api import (
    FinishedIteration,
    ParticleTable,
    RefineSettings,
    SimulateSettings,
    read_map,
    refine,
    simulate,
)


def show(iteration: FinishedIteration) -> None:
    """One line on an iteration; its maps are arrays, such as iteration.half_maps."""
    power = float(np.mean(iteration.half_maps[0] ** 2))
    print(f"iteration {iteration.number}: {iteration.entry['crossing_05']:.1f} A at FSC 0.5, mean square {power:.3g}")


def main() -> None:
    """Everything happens in a folder that goes away at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = simulate(SimulateSettings(output=folder / "data", particles=100, box=32, pixel_size=5.0, snr=0.5))
        settings = RefineSettings(particles=data.particles, reference=data.reference, output=folder / "run",
                                  iterations=3, threads=2)  # fmt: skip
        found = refine(settings, on_iteration=show)
        first, second = found.half_maps
        print(f"resolution: {found.resolution}; correlation of the half maps: "
              f"{np.corrcoef(first.ravel(), second.ravel())[0, 1]:.2f}")
        truth = ParticleTable.read(data.truth, check_images=False).rotations[found.kept]
        cosine = (np.einsum("nij,nij->n", found.particles.rotations, truth) - 1) / 2
        print(f"{len(found.kept)} particles kept, median error {np.rad2deg(np.median(np.arccos(cosine))):.1f} degrees")
        with_truth = np.corrcoef(found.joined.ravel(), read_map(data.truth_map).data.ravel())[0, 1]
        print(f"correlation of the map with the truth: {with_truth:.2f}")


if __name__ == "__main__":
    main()
