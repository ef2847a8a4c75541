# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of finished refinements, to be compared, or to have their page made again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from inputs import Inputs

from corpus.case import Cases, Make

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


# ------------------------------------------------------------------------------------------------------------ compare
def _second(change: Callable[[Inputs], object]) -> Make:
    """A comparison of which something in the second run's folder has been changed."""

    def make(p: Inputs) -> Sequence[object]:
        command = p.compare()
        change(p)
        return command

    return make


def _says(name: str, content: bytes) -> Make:
    return _second(lambda p: p.raw(f"two/{name}", content))


def _same_run(p: Inputs) -> Sequence[object]:
    p.run("one")
    (p.folder / "two").symlink_to("one")
    return ["compare", p.folder / "one", p.folder / "two", "--output", p.out]


HALF = "two/run_half2_class001_unfil.mrc"
SECOND = {"file": "two"}
refused("metadata", "compare: one run", lambda p: ["compare", p.run("one"), "--output", p.out], "two or more", file="")
refused("metadata", "compare: a run twice, by a link", _same_run, "the same folder as", **SECOND)
refused("metadata", "compare: a run that is not there",
        lambda p: ["compare", p.run("one"), p.folder / "two", "--output", p.out], "no such folder", **SECOND)
refused("metadata", "compare: a run that is a file", lambda p: ["compare", p.run("one"), p.star, "--output", p.out],
        "no such folder")  # fmt: skip
refused("maps", "compare: half map missing", _second(lambda p: (p.folder / HALF).unlink()), "no run_half2_", **SECOND)
refused("maps", "compare: half map that is a named pipe",
        _second(lambda p: ((p.folder / HALF).unlink(), os.mkfifo(p.folder / HALF))), "no run_half2_", **SECOND)
refused("metadata", "compare: poses NaN", lambda p: p.table(rlnAngleRot={4: "nan"}).compare(),
        "row 5, column rlnAngleRot", file="run_data.star")  # fmt: skip
refused("metadata", "compare: no poses", lambda p: p.without("rlnAngleRot").compare(), "no orientations",
        file="run_data.star")  # fmt: skip
refused("metadata", "compare: numbers of images that are none", lambda p: p.table(rlnImageId="nan").compare(),
        "column rlnImageId", file="run_data.star")  # fmt: skip
for _what, _name, _content in (("point group", "run.toml", b"[refine]\nsymmetry = 'Q9'\n"),
                               ("point group that is a number", "run.toml", b"[refine]\nsymmetry = 4\n")):  # fmt: skip
    refused("metadata", f"compare: unknown {_what} in the settings", _says(_name, _content), "unknown point group",
            has_remedy=False, **SECOND)  # fmt: skip
refused("metadata", "compare: unknown point group", lambda p: p.compare("--symmetry", "Q7"), "unknown point group",
        file="", has_remedy=False)  # fmt: skip
refused("maps", "compare: mask of another box", lambda p: p.compare("--mask", p.map("mask.mrc", p.mask(20))),
        "differ in box", file="mask.mrc")  # fmt: skip
refused("security", "compare: output that is a file", lambda p: [*p.compare(), "--output", p.star], "is no folder")


def _damaged(p: Inputs) -> Sequence[object]:
    """What is said about the run is nonsense, and so is the run's name; maps and poses are good."""
    names = ("a\n\x1b[31m", ";<script>$\\frac{")
    command = p.compare(names=names)
    first, second = (p.folder / name for name in names)
    (first / "status.json").write_bytes(b"[" * 100_000)
    (first / "run_sampling.star").write_bytes(b"data_sampling_general\n\nloop_\n_rlnSymmetryGroup\n")
    seconds = b"1" + b"0" * 400
    status = b'{"state": "<script>\\u001b[31m", "wall_seconds": %s, "cpu_seconds": NaN}' % seconds
    (second / "status.json").write_bytes(status)
    (second / "run.toml").write_bytes(b"[refine]\nregulariser = \"<script>\\u001b[31m\"\n")
    return command


accepted("security", "compare: names, status and settings that are hostile", _damaged, "a\\n\\x1b[31m",
         "is no JSON: it is passed over", "nothing says which symmetry")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- report
def _status(content: bytes | None) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        command = p.report()
        (p.out / "status.json").unlink()
        if content is not None:
            p.raw("out/status.json", content)
        return command

    return make


def _beside(name: str, content: bytes | None, **status: Any) -> Make:
    """A page beside a file of that content; None: a named pipe."""

    def make(p: Inputs) -> Sequence[object]:
        command = p.report(**status)
        if content is None:
            os.mkfifo(p.out / name)
        else:
            p.raw(f"out/{name}", content)
        return command

    return make


STATUS = {"file": "status.json"}
accepted("metadata", "report: whole", lambda p: p.report(), "report.html")
for _what, _content in (("missing", None), ("empty", b""), ("a list", b"[1]"), ("pairs", b'[["state", "running"]]'),
                        ("brackets", b"[" * 100_000), ("not UTF-8", b"\xff\xfe")):  # fmt: skip
    refused("metadata", f"report: status: {_what}", _status(_content), "cannot be read", **STATUS)
for _what, _given in (("history of text", {"history": "abc"}), ("history of numbers", {"history": [1, 2]}),
                      ("history without resolution", {"history": [{"iteration": 1}]}),
                      ("time that is text", {"wall_seconds": "abc"}), ("machine that is text", {"machine": "abc"}),
                      ("resolution that is text", {"resolution_0143": "<script>"})):  # fmt: skip
    refused("metadata", f"report: {_what}", lambda p, given=_given: p.report(**given), "damaged", **STATUS)
refused("metadata", "report: curves of text",
        _beside("run_it001_record.json", b'{"iteration": 1, "fsc": "abc", "length_A": "x"}'), "damaged",
        file="record.json")  # fmt: skip
refused("metadata", "report: table that is binary", _beside("postprocess.star", b"\xff"), "outside ASCII",
        file="postprocess.star")  # fmt: skip
accepted("numerics", "report: numbers that are none", lambda p: p.report(wall_seconds=np.inf, bfactor=np.nan))
for _what, _content in (("brackets", b"[" * 100_000), ("an infinite iteration", b'{"iteration": 1e999}')):
    accepted("metadata", f"report: record: {_what}", _beside("run_it001_record.json", _content))
accepted("images", "report: picture that is none", _beside("run_it001_slices.png", b"text"))
accepted("security", "report: picture that is a named pipe", _beside("run_it001_slices.png", None))
accepted("security", "report: settings that are a named pipe", _beside("run.toml", None))
accepted("security", "report: words that are HTML", _beside(
    "run.toml", b"[provenance]\ncommand = '<script>alert(1)</script>'\n",
    warnings=["<script>alert(2)</script>\x1b[31m"], error="<img src=x onerror=alert(3)>"))  # fmt: skip
refused("security", "report: page that is a directory",
        lambda p: (p.report(), (p.out / "report.html").mkdir(), ["report", p.out])[2], "is a directory",
        file="report.html")  # fmt: skip
refused("security", "report: folder of a name too long", lambda p: ["report", p.out / ("x" * 300)], "xxx", file="")
