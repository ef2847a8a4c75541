# SPDX-License-Identifier: GPL-3.0-or-later
"""Particles to select from: columns of qualities, half sets, lists of micrographs, rules, and names of the results."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence

from inputs import PARTICLES, Inputs, old_file

from corpus.case import Cases, Make

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted
BEST = ("--keep", 0.9)


def _by(*words: object, **columns: object) -> Make:
    """A selection by these words; columns are changed before."""
    return lambda p: p.qualities(**columns).select(*words)


# what particles are judged by
accepted("metadata", "select: whole", _by(*BEST), "kept 18 of 20 particles", "half set 1: 9 of 10")
refused("metadata", "select: no quality", lambda p: p.select(*BEST), "sparsecvLogEvidence is missing", "--by fit")
refused("metadata", "select: unknown quality", _by("--by", "evidense", *BEST), "neither a quality nor a column",
        "'evidense'", has_remedy=False)  # fmt: skip
refused("metadata", "select: column of text", _by("--by", "rlnMicrographName", "--least", 0),
        "row 1, column rlnMicrographName", "not a number")  # fmt: skip
for _value, _words in (("nan", "not a finite number"), ("-inf", "not a finite number"), ("abc", "not a number"),
                       ("1e300", "at most 1e100")):  # fmt: skip
    for _column in ("sparsecvLogEvidence", "rlnNormCorrection"):
        refused("metadata", f"select: {_column} {_value}", _by(*BEST, **{_column: {6: _value}}),
                f"row 7, column {_column}", _words)  # fmt: skip
refused("metadata", "select: all of one value", _by(*BEST, sparsecvLogEvidence=1.0, rlnNormCorrection=1.0),
        "all values are the same", "--random")  # fmt: skip
refused("metadata", "select: no best values", _by("--by", "defocus", *BEST), "no values are the best", "--prefer")

# rules
for _words in ((0,), (1,), (-0.5,), (1.5,), ("nan",), ("inf",)):
    refused("metadata", f"select: --keep {_words[0]}", _by("--keep", *_words), "above 0 and below 1", file="")
for _words, _said in (
    (("--least", "nan"), "not a finite number"), (("--most", "inf"), "not a finite number"),
    (("--least", 2, "--most", 1), "at most 1, which --most is"), ((), "nothing says which particles to keep"),
    (("--random", 5, "--by", "norm"), "by: has no meaning here"),
    (("--random", 5, "--relative-to", "optics"), "relative_to: has no meaning here"),
    (("--least", 0, "--prefer", "high"), "prefer: has no meaning here"),
):  # fmt: skip
    refused("metadata", f"select: {' '.join(map(str, _words)) or 'no rule'}", _by(*_words), _said, file="")
refused("metadata", "select: nothing is kept", _by("--least", 1e9), "no particle is left in half set 1")
refused("metadata", "select: a fraction of nothing", _by("--keep", 1e-9), "no particle is left in half set 1")
accepted("metadata", "select: everything is kept", _by("--least", -1e9), "kept 20 of 20 particles", "0 removed")
refused("metadata", "select: more at random than there are", _by("--random", 21), "--random", "at most the 20")
refused("metadata", "select: fewer at random than half sets", _by("--random", 1), "--random", "at least 2")
accepted("metadata", "select: at random of half sets of 1 and 19",
         _by("--random", 5, rlnRandomSubset=[1] + [2] * 19), "kept 5 of 20 particles", "half set 1: 1 of 1")
refused("metadata", "select: more subsets than images", _by("--split", 11), "--split", "at most 10")
refused("metadata", "select: optics group that is not there", _by("--optics-groups", "one,9"), "'9'", "file has one")

# half sets and images
accepted("metadata", "select: one half set", _by(*BEST, rlnRandomSubset=1), "all particles are in half set 1",
         "kept 18 of 20 particles")  # fmt: skip
accepted("metadata", "select: no half sets", lambda p: p.qualities().without("rlnRandomSubset").select(*BEST),
         "kept 18 of 20 particles")  # fmt: skip
refused("metadata", "select: half set 3", _by(*BEST, rlnRandomSubset={6: 3}), "row 7, column rlnRandomSubset")
refused("metadata", "select: a half set that loses its one particle",
        _by("--keep", 0.4, rlnRandomSubset=[1] + [2] * 19), "no particle is left in half set 1")  # fmt: skip
accepted("metadata", "select: an image twice", _by(*BEST, rlnImageName={6: "000003@particles.mrcs"}),
         "1 images occur more than once")  # fmt: skip
accepted("metadata", "select: RELION 3.0", lambda p: (old_file(p.qualities()), p.select(*BEST))[1],
         "kept 18 of 20 particles", "optics group opticsGroup1")  # fmt: skip


# lists of micrographs
def _listed(content: bytes, name: str = "list.txt") -> Make:
    return lambda p: p.select("--micrographs", p.raw(name, content))


def _list_is(kind: str) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        (os.mkfifo if kind == "pipe" else os.mkdir)(p.folder / "list.txt")
        return p.select("--micrographs", p.folder / "list.txt")

    return make


LIST = {"file": "list.txt"}
accepted("metadata", "select: micrographs", _listed(b"micrograph0.mrc\n\nother.mrc\n"), "kept 20 of 20 particles",
         "1 of 2 micrographs have no particles")  # fmt: skip
refused("metadata", "select: no micrograph of the list", _listed(b"other.mrc\n"), "names such as micrograph0", **LIST)
refused("metadata", "select: empty list", _listed(b"\n"), "none of the particles", **LIST)
refused("metadata", "select: list of escape codes", _listed(b"\x1b[31m\xff;\n"), "none of the particles", **LIST)
refused("metadata", "select: list that is gz", _listed(gzip.compress(b"micrograph0.mrc")), "none of the", **LIST)
refused("metadata", "select: STAR list without micrographs", _listed(b"data_\nloop_\n_rlnX\n1\n", "list.star"),
        "rlnMicrographName is missing", file="list.star")  # fmt: skip
refused("metadata", "select: list that is a named pipe", _list_is("pipe"), "named pipe", **LIST)
refused("metadata", "select: list that is a directory", _list_is("folder"), "directory", **LIST)
refused("metadata", "select: particles without micrographs",
        lambda p: p.without("rlnMicrographName").select("--micrographs", p.raw("list.txt", b"a")),
        "rlnMicrographName is missing")  # fmt: skip


# names of results
def _to(name: str, prepare: Callable[[Inputs], object] = lambda p: None) -> Make:
    """A selection into ``out``, of which something has been made before."""

    def make(p: Inputs) -> Sequence[object]:
        p.out.mkdir()
        command = p.qualities().select(*BEST)
        prepare(p)
        return [*command, "--output", p.out / name]

    return make


def _list_among_old_parts(p: Inputs) -> Sequence[object]:
    p.out.mkdir()
    listed = b"data_\nloop_\n_rlnMicrographName\nmicrograph0.mrc\n"
    return p.select("--micrographs", p.raw("out/kept_part1.star", listed))


def _particles_as_the_rest(p: Inputs) -> Sequence[object]:
    p.star.rename(p.folder / "a_removed.star")
    return ["select", "--particles", p.folder / "a_removed.star", "--output", p.folder / "a.star", "--random", 4]


KEPT = {"file": "kept.star"}
refused("security", "select: output that is the input", lambda p: [*p.select("--random", 4), "--output", p.star],
        "would be overwritten")  # fmt: skip
refused("security", "select: output that links to the input",
        _to("kept.star", lambda p: (p.out / "kept.star").symlink_to(p.star)), "would be overwritten", **KEPT)
refused("security", "select: output that is another name of the input",
        _to("kept.star", lambda p: os.link(p.star, p.out / "kept.star")), "would be overwritten", **KEPT)  # fmt: skip
refused("security", "select: input among the further results", _particles_as_the_rest, "would be overwritten",
        file="a_removed.star")  # fmt: skip
refused("security", "select: list among subsets that are to be removed", _list_among_old_parts, "would be overwritten",
        file="kept_part1.star")  # fmt: skip
refused("security", "select: output that is a directory",
        _to("kept.star", lambda p: (p.out / "kept.star").mkdir()), "is a directory", **KEPT)  # fmt: skip
refused("security", "select: output that is a named pipe",
        _to("kept.star", lambda p: os.mkfifo(p.out / "kept.star")), "is a named pipe", **KEPT)  # fmt: skip
refused("security", "select: output that is a device",
        _to("kept.star", lambda p: (p.out / "kept.star").symlink_to("/dev/null")), "is a device", **KEPT)  # fmt: skip
refused("security", "select: output in a file",
        lambda p: [*p.select("--random", 4), "--output", p.start / "kept.star"], "Not a directory", **KEPT)  # fmt: skip
refused("security", "select: name of a result too long", _to("k" * 249 + ".star"), "File name too long", file="kkk")
refused("security", "select: output that is no STAR file", _to("kept.mrc"), "ends in .star", file="", has_remedy=False)
accepted("security", "select: output with line breaks, escape codes and semicolons", _to("-a\n;\x1b[31m$HOME.star"),
         "-a\\n;\\x1b[31m$HOME.star")  # fmt: skip
accepted("security", "select: micrographs that are formulas and HTML",
         _by(*BEST, rlnMicrographName=["$\\frac{<script>"] * 5 + [";rm -rf"] * (PARTICLES - 5)),
         "kept 18 of 20 particles")  # fmt: skip
