# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinements of noise claim nothing, under any prior; and the numbers of a run do not depend on how it was run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tally import IS_FULL, record, times
from toy import content, refine_words, toy_data

from sparsecv import cli
from sparsecv.engine.io.mrc import ImageStack, write_stack
from sparsecv.engine.simulate import SimulatedFiles

pytestmark = [pytest.mark.usefixtures("threads_as_before"), pytest.mark.timeout(3000)]
START = 40.0  # A: low-pass filter of the start, which both halves share
NOISE = {"particles": 500, "box": 32, "pixel_size": 5.0}
if not IS_FULL:
    NOISE = {"particles": 120, "box": 24, "pixel_size": 7.0}


def noise_only(data: SimulatedFiles, seed: int) -> None:
    """Replace the images by white noise of the same size."""
    images = ImageStack(data.stack).read(np.arange(ImageStack(data.stack).count))
    rng = np.random.default_rng(seed)
    write_stack(data.stack, rng.normal(size=images.shape).astype(np.float32), float(NOISE["pixel_size"]))


@pytest.mark.parametrize("prior", ["wiener", "nonuniform", "sparse-tv"])
def test_noise_has_no_resolution(prior: str, tmp_path: Path) -> None:
    """No finer than the start that the halves share, unmasked and inside the mask, said in words and in status.json."""
    wanted = times(20, 1)
    for seed in range(wanted):
        data = toy_data(tmp_path / str(seed), **NOISE, seed=seed)
        noise_only(data, seed)
        out = tmp_path / str(seed) / "run"
        words = ["refine", "--particles", data.particles, "--reference", data.reference, "--output", out, "--threads",
                 1, "--device", "cpu", "--regulariser", prior, "--seed", seed]  # fmt: skip
        if not IS_FULL:
            words += ["--iterations", 4]
        assert cli.main([str(word) for word in words]) == 0
        status = json.loads((out / "status.json").read_text())
        claimed = [status["resolution_0143"], status["masked_resolution_0143"]]
        assert min(claimed) >= START - 1e-6, (seed, claimed)
        assert status["masked_resolution_is_shared"], seed
    record("honesty", f"refinements of noise, {prior}", wanted, wanted, "no resolution beyond the shared start claimed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    return toy_data(tmp_path_factory.mktemp("toy"))


def test_the_same_seed_gives_the_same_bits(data: SimulatedFiles, tmp_path: Path) -> None:
    """Twice, with two threads, in other batches, in pieces."""
    first = tmp_path / "first"
    assert cli.main(refine_words(data, first)) == 0
    others = {"again": [], "two threads": ["--threads", "2"], "small batches": ["--batch-memory", "2"]}
    for name, words in others.items():
        out = tmp_path / name
        assert cli.main([*refine_words(data, out), *words]) == 0
        assert content(out) == content(first), name
    for last in range(2, 6):  # a last iteration leaves no checkpoint: each piece repeats that of the one before
        assert cli.main([*refine_words(data, tmp_path / "pieces"), "--continue", "--iterations", str(last)]) == 0
    assert content(tmp_path / "pieces") == content(first)
    record("determinism", "again, two threads, other batches, in four pieces", 4, 4, "bit-identical")
