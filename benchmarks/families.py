# SPDX-License-Identifier: GPL-3.0-or-later
"""Families of regularisers behind one held-out choice, on the sets: which predicts best, and which aligns best.

    python benchmarks/families.py gpcr96 gpcr64 t20s96

For each variant a whole refinement (pose error and FSC against the truth), and, over one set of kept sums that all
variants share (those of a Wiener refinement), the held-out score, the FSC of the references against the truth, and the
squared FSC that references of the two halves claim beside the one that they have. The protein's mask is for the truth
alone: nothing else sees it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from common import Bench, parse, save, table
from evaluate import evaluate
from priors import fsc_cell, refined
from refine_peers import HALVES, TASKS

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.accumulator_files import read_accumulators
from sparsecv.engine.refine.evidence import evidence_of_accumulators
from sparsecv.engine.refine.regularisers import NonUniform, make_regulariser
from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps
from sparsecv.engine.refine.regularisers.nonuniform.score import held_out_score
from sparsecv.engine.refine.settings import RegulariserSettings
from sparsecv.engine.validate.fsc import fsc, resolution
from sparsecv.kernels import ops

VARIANTS: dict[str, dict[str, Any]] = {
    "butterworth": {},
    "butterworth, literal": {"nu_selection": "literal"},
    "paper": {"nu_preset": "paper"},
    "local-wiener": {"nu_family": "local-wiener"},
    "sparse-tv": {"nu_family": "sparse-tv"},
}
HEADER = ("set", "variant", "angle, deg", "FSC, soft", "CPU s", "held-out", "reference, FSC 0.5", "claimed", "true")
CLAIM_SHELLS = (0.5, 0.95)  # of Nyquist: where references are compared with what they claim


def on_kept_sums(bench: Bench, name: str, values: dict[str, Any]) -> dict[str, float]:
    """Held-out score, reference against the truth, and what the references' own FSC claims, at the true frame.

    The Wiener refinement of a local search stays in the frame of its start; a global one moves the truth into its own.
    """
    folder, _ = refined(bench, name, "wiener", 1, ["--keep-accumulators"])
    kernels, stored = ops("cpu"), read_accumulators(ops("cpu"), folder)
    round_mask = sphere(stored.box, TASKS[name].diameter / 2 / stored.origin.pixel_size)
    evidence = evidence_of_accumulators(kernels, stored, round_mask, round_mask)
    regulariser = make_regulariser(RegulariserSettings(regulariser="nonuniform", **values))
    assert isinstance(regulariser, NonUniform)
    scores, references = [], []
    for own in evidence.values():
        maps, found = regulariser.filtered(kernels, own, keep_predictions=True)
        assert found.selection.predictions is not None and isinstance(maps, RawMaps)
        scores.append(held_out_score(kernels, maps, found.selection.predictions, own.band))
        references.append(regulariser.regularise(kernels, own).reference)
    truth, mask = truth_in_frame(bench, name, folder)
    box, last = stored.box, stored.box // 2
    shells = slice(int(CLAIM_SHELLS[0] * last), int(CLAIM_SHELLS[1] * last))
    against = np.mean([fsc(one, truth, mask) for one in references], axis=0)
    claimed = fsc(*references)
    return {
        "score": float(np.mean(scores)),
        "reference_fsc05_A": resolution(against, 0.5, box, stored.origin.pixel_size).angstrom,
        "claimed": float(np.mean(np.sqrt(np.clip(claimed[shells], 0, 1)))),
        "true": float(np.mean(np.mean([fsc(one, truth) for one in references], axis=0)[shells])),
    }


def truth_in_frame(bench: Bench, name: str, folder: Any) -> tuple[np.ndarray, np.ndarray]:
    """Truth with the mean detergent belt, where there is one, and the protein's mask, in the frame of a refinement."""
    from evaluate import Poses, fit_frame, into_frame, nearest_equivalent, read_poses

    from sparsecv.engine.physics.symmetry import symmetry_matrices

    data = bench.data_set(name)
    found, numbers, _ = read_poses(folder / "run_data.star")
    true, true_numbers, _ = read_poses(data / "truth.star")
    row = {number: k for k, number in enumerate(true_numbers)}
    true = true[np.array([row[number] for number in numbers])]
    group = symmetry_matrices(TASKS[name].symmetry)
    frame = fit_frame(found, Poses(nearest_equivalent(found.matrices, true.matrices, group), true.origins))[0]
    density = read_map(data / "truth.mrc")
    belt = data / "belt_mean.mrc"
    whole = density.data + (read_map(belt).data if belt.is_file() else 0)
    mask = np.clip(into_frame(read_map(data / "mask_protein.mrc").data, frame, density.pixel_size), 0, 1)
    return into_frame(whole, frame, density.pixel_size), mask


def options_of(values: dict[str, Any]) -> list[str]:
    """Command-line words of settings."""
    return [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), str(value))]


def main() -> None:
    """Run, evaluate and print."""
    bench, given = parse(__doc__, ("sets", {"nargs": "*", "default": list(TASKS), "metavar": "SET"}),
                         ("--variants", {"nargs": "+", "default": list(VARIANTS)}))  # fmt: skip
    bench.warm_up()
    rows, figures = [], {}
    for name in given.sets:
        for variant in given.variants:
            values = VARIANTS[variant]
            folder, usage = refined(bench, name, "nonuniform", 1, options_of(values))
            halves = [folder / half for half in HALVES]
            soft = evaluate(bench.data_set(name), folder / "run_data.star", *halves, TASKS[name].symmetry)
            kept = on_kept_sums(bench, name, values)
            rows.append([name, variant, f"{soft.angle_deg:.3f}", fsc_cell(soft), f"{usage.cpu_s:.0f}",
                         f"{kept['score']:.4f}", f"{kept['reference_fsc05_A']:.2f} A", f"{kept['claimed']:.2f}",
                         f"{kept['true']:.2f}"])  # fmt: skip
            figures[f"{name} {variant}"] = {"soft": asdict(soft), "usage": asdict(usage), "kept sums": kept}
            table("families", HEADER, rows)
    save("families", figures)


if __name__ == "__main__":
    main()
