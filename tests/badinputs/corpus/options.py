# SPDX-License-Identifier: GPL-3.0-or-later
"""Options on the command line and in files of settings: wrong ones, and absurd ones that must work."""

from __future__ import annotations

from inputs import PIXEL_SIZE

from corpus.case import Cases

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted
for _what, _text, _words in (("unknown key", b"[refine]\nparticlez = 'a'\n", "did you mean particles"),
                             ("wrong type", b"[refine]\niterations = 'many'\n", "a whole number"),
                             ("not TOML", b"refine = = 1\n", "not valid TOML"), ("binary", b"\xff\xfe\0", "TOML"),
                             ("another command's", b"[fsc]\nmap1 = 'a'\n", "no table [refine]")):  # fmt: skip
    refused(
        "metadata",
        f"settings: {_what}",
        lambda p, text=_text: p.refine("--config", p.raw("run.toml", text)),
        _words,
        file="run.toml",
    )
for _option, _value, _words in (("--iterations", 0, "1 to 1000"), ("--particle-diameter", "nan", "1 to 100000"),
                                ("--initial-lowpass", -1, "0 to 1000"), ("--symmetry", "Q7", "Cn and Dn"),
                                ("--seed", -1, "0 to"), ("--particle-diameter", 500, "at most the box"),
                                ("--tau-factor", 1e30, "0.01 to 100")):  # fmt: skip
    refused(
        "metadata",
        f"{_option} {_value}",
        lambda p, o=_option, v=_value: p.refine(o, v),
        _words,
        file="",
        has_remedy=False,
    )
for _words_given in (("--kappa-sparse", 0, "--kappa-variation", 0), ("--kappa-sparse", 100, "--kappa-variation", 100)):
    accepted(
        "numerics",
        f"sparse-tv {' '.join(map(str, _words_given))}",
        lambda p, words=_words_given: p.refine("--regulariser", "sparse-tv", "--strength", "noise", *words),
    )
accepted("numerics", "tau-factor 100", lambda p: p.refine("--tau-factor", 100))
accepted("numerics", "nonuniform in a box of 16", lambda p: p.refine("--regulariser", "nonuniform"))
accepted("numerics", "sparse-tv in a box of 16", lambda p: p.refine("--regulariser", "sparse-tv"))
accepted("numerics", "diameter of one pixel", lambda p: p.refine("--particle-diameter", PIXEL_SIZE))
accepted("numerics", "no low-pass filter", lambda p: p.refine("--initial-lowpass", 0), "is not low-pass filtered")
for _command, _key, _text, _words in (
    ("select", "keep", "'much'", "a number"), ("select", "random", "true", "a whole number"),
    ("select", "relative_to", "'moon'", "one of none, optics"), ("select", "split", "2.0", "a whole number"),
    ("select", "optics_groups", "1", "a string"), ("ctf_refine", "beam_tilt", "'yes'", "true or false"),
    ("ctf_refine", "rounds", "2.0", "a whole number"), ("ctf_refine", "astigmatism", "'group'", "one of micrograph"),
    ("reconstruct", "ewald", "1", "true or false"), ("reconstruct", "ewald_hand", "1.0", "a whole number"),
    ("refine", "ewald_hand", "'left'", "a whole number"), ("convert", "aberrations", "'left'", "one of specter, pyem"),
    ("convert", "passthrough", "'a.cs'", "an array"), ("convert", "passthrough", "['a.cs', 1]", "a string"),
    ("compare", "symmetry", "4", "a string"), ("compare", "runs", "'one'", "an array"),
):  # fmt: skip
    refused(
        "metadata",
        f"settings of {_command}: {_key} = {_text}",
        lambda p, command=_command, line=f"{_key} = {_text}\n": getattr(p, command)(
            "--config", p.raw("run.toml", line.encode())
        ),
        f"{_key}",
        _words,
        file="run.toml",
        has_remedy=False,
    )
