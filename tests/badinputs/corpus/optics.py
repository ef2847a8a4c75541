# SPDX-License-Identifier: GPL-3.0-or-later
"""Particles with known poses whose optics count: CTF refinement, and the curvature of the Ewald sphere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from inputs import BOX, PIXEL_SIZE, Inputs, old_file
from tiny import blobs

from corpus.case import Cases, Make
from corpus.star import optics_groups

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted

# ------------------------------------------------------------------------------------------------------- Ewald sphere
EWALD = ("--ewald",)
for _hand in (-1, 1):
    accepted("numerics", f"reconstruct: hand {_hand}", lambda p, h=_hand: p.reconstruct(*EWALD, "--ewald-hand", h))
for _command in ("reconstruct", "refine"):
    for _words, _said in ((("--ewald", "--ewald-hand", 2), "one of 1, -1"),
                          (("--ewald", "--ewald-hand", 0), "one of 1, -1"),
                          (("--ewald-hand", -1), "with --ewald only"),
                          (("--ewald", "--intact-first-peak"), "both sidebands")):  # fmt: skip
        refused("metadata", f"{_command}: {' '.join(map(str, _words))}",
                lambda p, c=_command, w=_words: getattr(p, c)(*w), _said, file="", has_remedy=False)  # fmt: skip
for _words, _said in ((("--ewald", "--no-ctf"), "both sidebands"), (("--particle-diameter", 50), "with --ewald only"),
                      (("--ewald", "--particle-diameter", 500), "at most the box")):  # fmt: skip
    refused("metadata", f"reconstruct: {' '.join(map(str, _words))}", lambda p, w=_words: p.reconstruct(*w), _said,
            file="", has_remedy=False)  # fmt: skip
for _column in ("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"):
    for _command in ("reconstruct", "refine"):
        refused("metadata", f"{_command}: {_column} with --ewald",
                lambda p, c=_command, name=_column: getattr(p.table("optics", **{name: 1}), c)(*EWALD),
                f"{_column} of one", "as they were recorded")  # fmt: skip


def _one_group_of_two(*keep: int) -> Make:
    """Particles of group 1, and of group 2, whose images are premultiplied, those asked for."""

    def make(p: Inputs) -> Sequence[object]:
        optics_groups(2, rlnCtfDataAreCtfPremultiplied=[0, 1])(p)
        return p.keep(sorted([*range(0, 20, 2), *keep])).reconstruct(*EWALD)

    return make


accepted("metadata", "reconstruct: --ewald, and a premultiplied group without particles", _one_group_of_two())
refused("metadata", "reconstruct: --ewald, and one particle of a premultiplied group", _one_group_of_two(3),
        "rlnCtfDataAreCtfPremultiplied of group1")  # fmt: skip
accepted("metadata", "reconstruct: --ewald, RELION 3.0", lambda p: (old_file(p), p.reconstruct(*EWALD))[1])
accepted("numerics", "reconstruct: --ewald in focus",
         lambda p: p.table(rlnDefocusU=0.0, rlnDefocusV=0.0).table("optics", rlnSphericalAberration=0.0)
         .reconstruct(*EWALD))  # fmt: skip
accepted("numerics", "reconstruct: --ewald, all weights zero",
         lambda p: p.table(rlnCtfScalefactor=0.0).reconstruct(*EWALD))  # fmt: skip
refused("metadata", "reconstruct: half sets that are not there",
        lambda p: p.without("rlnRandomSubset").reconstruct(*EWALD, "--halves"), "no particle is in half set 1")


# names of maps
def _to(name: str, *words: object, prepare: Callable[[Inputs], object] = lambda p: None) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        command = p.reconstruct(*words)
        prepare(p)
        return [*command, "--output", p.out / name]

    return make


def _stack_as_half(p: Inputs) -> Sequence[object]:
    p.renamed("map_half1.mrc")
    return [*p.reconstruct("--halves"), "--output", p.folder / "map.mrc"]


MAP = {"file": "map.mrc"}
refused("security", "reconstruct: output that is the STAR file", lambda p: [*p.reconstruct(), "--output", p.star],
        "would be overwritten")  # fmt: skip
refused("security", "reconstruct: output that is a stack", lambda p: [*p.reconstruct(), "--output", p.stack],
        "would be overwritten", file="particles.mrcs")  # fmt: skip
refused("security", "reconstruct: output that links to a stack",
        _to("map.mrc", prepare=lambda p: (p.out / "map.mrc").symlink_to(p.stack)), "would be overwritten", **MAP)
refused("security", "reconstruct: half map of a stack's name", _stack_as_half, "would be overwritten",
        file="map_half1.mrc")  # fmt: skip
refused("security", "reconstruct: output that is a directory",
        _to("map.mrc", prepare=lambda p: (p.out / "map.mrc").mkdir()), "is a directory", **MAP)  # fmt: skip
refused("security", "reconstruct: output that is a device",
        _to("map.mrc", prepare=lambda p: (p.out / "map.mrc").symlink_to("/dev/null")), "is a device", **MAP)
refused("security", "reconstruct: map of the name of the settings", _to("map.toml"), "two results", file="map.toml")
refused("security", "reconstruct: name of a half map too long", _to("m" * 250 + ".mrc", "--halves"), "too long",
        file="mm")  # fmt: skip
accepted("security", "reconstruct: output with line breaks and escape codes", _to("-a\n\x1b[31m;.mrc"),
         "-a\\n\\x1b[31m;.mrc")  # fmt: skip
refused("security", "refine: output that is a file", lambda p: [*p.refine(), "--output", p.start], "is no folder",
        file="start.mrc")  # fmt: skip


# ------------------------------------------------------------------------------------------------------ CTF refinement
def _noise(p: Inputs, name: str, seed: int) -> None:
    p.map(name, np.random.default_rng(seed).normal(size=(BOX,) * 3).astype(np.float32))


def _halves(change: Callable[[np.ndarray], np.ndarray], pixel_size: float = PIXEL_SIZE, *words: object) -> Make:
    """Half maps that are made of good ones."""

    def make(p: Inputs) -> Sequence[object]:
        rng = np.random.default_rng(3)
        for name in ("half1.mrc", "half2.mrc"):
            density = blobs(BOX) + 0.3 * rng.normal(size=(BOX,) * 3)
            p.map(name, np.ascontiguousarray(change(density), dtype=np.float32), pixel_size)
        return p.ctf_refine(*words)

    return make


def _half_is(kind: str) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        (os.mkfifo if kind == "pipe" else os.mkdir)(p.folder / "half1.mrc")
        return p.ctf_refine()

    return make


FIRST, SECOND = {"file": "half1.mrc"}, {"file": "half2.mrc"}
accepted("metadata", "ctf-refine: whole", lambda p: p.ctf_refine("--defocus"), "20 particles, compared to")
accepted("metadata", "ctf-refine: RELION 3.0",
         lambda p: (old_file(p), p.ctf_refine("--magnification", "--least-particles", 1))[1], "anisotropy")  # fmt: skip
refused("metadata", "ctf-refine: no half sets", lambda p: p.without("rlnRandomSubset").ctf_refine(), "no half sets")
refused("metadata", "ctf-refine: one half set", lambda p: p.table(rlnRandomSubset=2).ctf_refine(), "in half set 2")
refused("metadata", "ctf-refine: no poses", lambda p: p.without("rlnAngleRot").ctf_refine(), "needs orientations")
refused("metadata", "ctf-refine: an image in both half sets",
        lambda p: p.table(rlnImageName={6: "000002@particles.mrcs"}).ctf_refine(), "row 7", "as in row 2")  # fmt: skip
refused("metadata", "ctf-refine: norm NaN", lambda p: p.qualities(rlnNormCorrection={3: "nan"}).ctf_refine(),
        "row 4, column rlnNormCorrection", "not a finite number")  # fmt: skip
refused("metadata", "ctf-refine: premultiplied",
        lambda p: p.table("optics", rlnCtfDataAreCtfPremultiplied=1).ctf_refine(), "no CTF has been applied")
refused("numerics", "ctf-refine: all weights zero", lambda p: p.table(rlnCtfScalefactor=0.0).ctf_refine(),
        "half set 1 has no usable particle")  # fmt: skip
refused("maps", "ctf-refine: maps of another box", _halves(lambda m: m[1:-1, 1:-1, 1:-1]), "16 pixels", **FIRST)
refused("maps", "ctf-refine: maps of another pixel size", _halves(lambda m: m, 4.4), "4 A within 1 %", **FIRST)
refused("maps", "ctf-refine: maps of the wrong contrast", _halves(lambda m: -m), "positive", **FIRST)
refused("maps", "ctf-refine: one map twice", lambda p: (
    p.map("half1.mrc", blobs(BOX)), p.map("half2.mrc", blobs(BOX)), p.ctf_refine())[2], "identical", **SECOND)
refused("maps", "ctf-refine: flat map", lambda p: (p.map("half2.mrc", np.zeros((BOX,) * 3)), p.ctf_refine())[1], "flat",
        **SECOND)  # fmt: skip
refused("maps", "ctf-refine: maps of noise", lambda p: (
    _noise(p, "half1.mrc", 1), _noise(p, "half2.mrc", 2), p.ctf_refine())[2], "agree on too little", **FIRST)
refused("maps", "ctf-refine: map that is a named pipe", _half_is("pipe"), "named pipe", **FIRST)
refused("maps", "ctf-refine: map that is a directory", _half_is("folder"), "directory", **FIRST)
for _words, _said in ((("--resolution", 100), "12.8 A or finer"), (("--run", "."), "--run, or --particles")):
    refused("metadata", f"ctf-refine: {' '.join(map(str, _words))}", lambda p, w=_words: p.ctf_refine(*w), _said,
            file="")  # fmt: skip
for _words, _said in ((("--defocus-range", 0), "1 to 100000"), (("--defocus-prior", "nan"), "1 to 1e+06"),
                      (("--rounds", 0), "1 to 20"), (("--least-particles", 0), "1 to 1e+09")):  # fmt: skip
    refused("metadata", f"ctf-refine: {' '.join(map(str, _words))}", lambda p, w=_words: p.ctf_refine(*w), _said,
            file="", has_remedy=False)  # fmt: skip
refused("metadata", "ctf-refine: half maps missing", lambda p: ["ctf-refine", "--particles", p.star, "--output", p.out],
        "--half1, --half2 missing", file="")  # fmt: skip
refused("metadata", "ctf-refine: run that is not there", lambda p: ["ctf-refine", "--run", p.folder / "run", "--output",
        p.out], "no such folder", file="run")  # fmt: skip


def _link_into_results(p: Inputs) -> Sequence[object]:
    """The particles given are a link to what an earlier CTF refinement has left in the output folder."""
    p.out.mkdir()
    p.star.rename(p.out / "particles_ctf_refined.star")
    p.star.symlink_to("out/particles_ctf_refined.star")
    return p.ctf_refine()


refused("security", "ctf-refine: input that links into the results", _link_into_results, "would be overwritten")
refused("security", "ctf-refine: output folder of a name too long",
        lambda p: [*p.ctf_refine(), "--output", p.out / ("o" * 300)], "too long", file="ooo")  # fmt: skip
accepted("security", "ctf-refine: output folder with line breaks and escape codes",
         lambda p: [*p.ctf_refine("--trefoil"), "--output", p.out / "a\n\x1b[31m"], "a\\n\\x1b[31m")  # fmt: skip
accepted("security", "ctf-refine: optics group that is a formula and HTML",
         lambda p: p.table("optics", rlnOpticsGroupName="$\\frac{;<script>")
         .ctf_refine("--beam-tilt", "--least-particles", 1), "$\\frac{;<script>: beam tilt")  # fmt: skip
