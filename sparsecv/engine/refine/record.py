# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page of a run shows of each iteration beyond its summary: curves and distributions, as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.io.results import write_json
from sparsecv.engine.refine.loop import Iteration, Refinement
from sparsecv.engine.refine.state import ParticleState

RECORD = "run_it{:03d}_record.json"
MOST_BINS, PER_BIN = 50, 20  # particles per bin, on the average of a half set
EVIDENCE = "log_evidence"
MOST_GROUPS = 3  # optics groups whose noise is shown: there may be hundreds
QUALITIES = ("best_probability", "spread_deg", "turned_deg", "norm", EVIDENCE)
OUTLIERS = 0.5  # percent at either end that a distribution leaves out of its range


def write_record(
    folder: Path, refinement: Refinement, iteration: Iteration, seconds: Mapping[str, float], memory: int
) -> None:
    """Write the record of the iteration that has just ended.

    Parameters
    ----------
    seconds
        Wall time by part of the iteration.
    memory
        Most bytes of the host in use so far, by this process.
    """
    state = refinement.state
    write_json(folder / RECORD.format(state.iteration), {
        "iteration": state.iteration,
        "length_A": refinement.particles.geometry.length,
        "fsc": iteration.fsc.tolist(),
        "noise": [[spectrum.tolist() for spectrum in half.noise[:MOST_GROUPS]] for half in state.halves],
        "optics_groups": [group.name for group in refinement.particles.table.optics[:MOST_GROUPS]],
        "distributions": distributions(state.particles, refinement.halves),
        "seconds": dict(seconds),
        "memory_bytes": memory,
    })  # fmt: skip


def distributions(particles: ParticleState, halves: np.ndarray) -> dict[str, dict[str, Any]]:
    """Histogram of each quality of the particles that are kept: edges, and share in each bin by half set.

    Parameters
    ----------
    halves
        (n,) half set of each particle, 1 or 2.

    Returns
    -------
    dict
        By name: ``edges`` (bins + 1), ``half 1`` and ``half 2`` (bins), shares of that half. Log evidences are those
        beyond the median, which depends on the number of pixels compared.
    """
    kept = ~particles.is_rejected
    bins = int(np.clip(kept.sum() / 2 / PER_BIN, 5, MOST_BINS))
    found = {}
    for name in QUALITIES:
        values = np.asarray(getattr(particles, name), dtype=np.float64)
        if name == EVIDENCE:
            values = values - np.median(values[kept])
        low, high = np.percentile(values[kept], (OUTLIERS, 100 - OUTLIERS))
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        found[name] = {"edges": edges.tolist()} | {
            f"half {half}": _shares(values[kept & (halves == half)], edges) for half in (1, 2)
        }
    return found


def _shares(values: np.ndarray, edges: np.ndarray) -> list[float]:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return (counts / max(len(values), 1)).tolist()
