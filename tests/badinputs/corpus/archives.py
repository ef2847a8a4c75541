# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints and accumulators, which are archives of arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence

from inputs import Inputs

from corpus.bombs import npz_bombs
from corpus.case import Cases, Make

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


def _accumulators(content: bytes) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        for half in (1, 2):
            for quarter in (1, 2):
                p.raw(f"run_half{half}_quarter{quarter}_accumulator.npz", content)
        return ["regularise", "--accumulators", p.folder, "--output", p.out, "--device", "cpu", "--threads", 1]

    return make


def _checkpoint(content: bytes | None) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        p.out.mkdir()
        if content is None:
            os.mkfifo(p.out / "run_it001_checkpoint.npz")
        else:
            p.raw("out/run_it001_checkpoint.npz", content)
        return p.refine("--continue")

    return make


for _what, _raw in npz_bombs().items():
    refused(
        "security",
        f"accumulator: {_what}",
        _accumulators(_raw),
        "damaged or no accumulator",
        file="run_half1_quarter1_accumulator.npz",
    )
    refused(
        "security",
        f"checkpoint: {_what}",
        _checkpoint(_raw),
        "no checkpoint can be read",
        file="run_it001_checkpoint.npz",
    )
refused(
    "security",
    "checkpoint: named pipe",
    _checkpoint(None),
    "no checkpoint can be read",
    file="run_it001_checkpoint.npz",
)
