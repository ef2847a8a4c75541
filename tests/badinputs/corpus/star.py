# SPDX-License-Identifier: GPL-3.0-or-later
"""STAR files of particles: tables, columns, rows, optics groups, and the names of images in them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from inputs import Inputs, old_file

from corpus.case import TOUCH, Cases, Make
from sparsecv.engine.io.star import StarFile

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


def _row(column: str, value: Any, row: int = 6) -> Make:
    return lambda p: p.table(**{column: {row: value}}).refine()


def _group(column: str, value: Any) -> Make:
    return lambda p: p.table("optics", **{column: [value]}).refine()


for _column in ("rlnImageName", "rlnDefocusU"):
    refused("metadata", f"no {_column}", lambda p, c=_column: p.without(c).refine(), _column)
for _column in ("rlnVoltage", "rlnSphericalAberration", "rlnImagePixelSize"):
    refused("metadata", f"no {_column}", lambda p, c=_column: p.without(c, "optics").refine(), _column)
accepted(
    "metadata",
    "no rlnAmplitudeContrast",
    lambda p: p.without("rlnAmplitudeContrast", "optics").refine(),
    "0.1 is assumed",
)
accepted("metadata", "no half sets", lambda p: p.without("rlnRandomSubset").refine(), "drawn with seed")
accepted("metadata", "no micrographs", lambda p: p.without("rlnMicrographName").refine())
accepted("metadata", "no rlnImageSize", lambda p: p.without("rlnImageSize", "optics").refine())
refused("metadata", "no poses", lambda p: p.without("rlnAngleRot").refine(), "needs orientations")
accepted("metadata", "unknown column", lambda p: p.table(rlnNewerThanUs=7).refine())
refused("metadata", "column twice", lambda p: p.lines(
    lambda lines: [line.replace(b"_rlnDefocusV", b"_rlnDefocusU") for line in lines]).refine(),
    "duplicate")  # fmt: skip


def _changed_row(change: Callable[[bytes], bytes]) -> Make:
    def edit(lines: list[bytes]) -> list[bytes]:
        place = next(k for k, line in enumerate(lines) if b"000007@" in line)
        return [*lines[:place], *change(lines[place]).split(b"\n"), *lines[place + 1 :]]

    return lambda p: p.lines(edit).refine()


refused("metadata", "short row", _changed_row(lambda row: row.rsplit(None, 1)[0]), "row 7", "a row with 11 values")
refused("metadata", "long row", _changed_row(lambda row: row + b" 1"), "row 7", "a row with 13 values")
refused("metadata", "blank line", _changed_row(lambda row: row + b"\n"), "a blank line inside a loop")
refused("metadata", "comment", _changed_row(lambda row: row + b"\n# note"), "a comment inside a loop")
refused("metadata", "text of several lines", _changed_row(lambda row: b";\n" + row + b"\n;"), "a text of several lines")
refused("metadata", "accent", _changed_row(lambda row: row.replace(b"micrograph", b"m\xe9crograph")), "outside ASCII")
refused("metadata", "NUL", _changed_row(lambda row: row.replace(b"micrograph", b"m\0crograph")), "binary")
refused("metadata", "escape code", _changed_row(lambda row: row.replace(b"micrograph", b"m\x1b[2Jcrograph")), "line")
refused("metadata", "unbalanced quote", _changed_row(lambda row: row.replace(b"micrograph", b"'micrograph")), "line")
accepted("metadata", "lines that end as on Windows", lambda p: p.lines(
    lambda lines: [line + b"\r" for line in lines]).refine())  # fmt: skip
refused("metadata", "loop_ and a tag on one line", lambda p: p.lines(
    lambda lines: [line.replace(b"loop_", b"loop_ _rlnX") for line in lines]).refine(),
    "loop_ stands alone")  # fmt: skip
for _what, _raw, _words in (("empty", b"", "no table"), ("only blanks", b" \n\n", "no table"),
                            ("gz", gzip.compress(b"data_\n"), "binary or compressed"),
                            ("no particles", b"data_micrographs\nloop_\n_rlnMicrographName\na.mrc\n", "no particles"),
                            ("HTML", b"<html><body>404</body></html>\n", "line 1")):  # fmt: skip
    refused("metadata", f"STAR file: {_what}",
            lambda p, raw=_raw: (p.raw("particles.star", raw), p.refine())[1], _words)  # fmt: skip


def _star_is(kind: str) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        p.star.unlink()
        if kind == "pipe":
            os.mkfifo(p.star)
        elif kind == "folder":
            p.star.mkdir()
        return p.refine()

    return make


refused("metadata", "STAR file: missing", _star_is("missing"), "No such file")
refused("metadata", "STAR file: named pipe", _star_is("pipe"), "named pipe")
refused("metadata", "STAR file: directory", _star_is("folder"), "directory")


def _old(p: Inputs) -> Sequence[object]:
    old_file(p)
    return p.refine()


def _without_optics(p: Inputs) -> Sequence[object]:
    star = StarFile.read(p.star)
    only = StarFile.new()
    table = star.table("particles")
    only.add_loop("particles", {name: table.strings(name) for name in table.columns})
    only.write(p.star)
    return p.refine()


def optics_groups(count: int, **columns: list[Any]) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        star, made = StarFile.read(p.star), StarFile.new()
        first = star.table("optics")
        groups: dict[str, Any] = {name: first.strings(name) * count for name in first.columns}
        groups["rlnOpticsGroup"] = list(range(1, count + 1))
        groups["rlnOpticsGroupName"] = [f"group{k}" for k in range(count)]
        made.add_loop("optics", groups | columns)
        table = star.table("particles")
        rows: dict[str, Any] = {name: table.strings(name) for name in table.columns}
        rows["rlnOpticsGroup"] = [1 + k % count for k in range(len(table))]
        made.add_loop("particles", rows)
        made.write(p.star)
        return p.refine()

    return make


def _old_of_huge_pixels(p: Inputs) -> Sequence[object]:
    old_file(p)
    return p.table("images", rlnMagnification={6: 1e-3}).refine()


def _two_tables(p: Inputs) -> Sequence[object]:
    old_file(p)
    p.star.write_bytes(p.star.read_bytes() + b"\ndata_particles\n\n_rlnOther 1\n")
    return p.refine()


refused("metadata", "RELION 3.0 with a second table", _two_tables, "data_images", "data_particles without images")
accepted("metadata", "RELION 3.0", _old)
refused(
    "metadata",
    "RELION 3.0: impossible magnification",
    _old_of_huge_pixels,
    "row 7, column rlnMagnification",
    "0 < pixel size",
)
refused("metadata", "optics table missing", _without_optics, "no pixel size")
refused("metadata", "optics group of another box than its images", optics_groups(2, rlnImageSize=[16, 20]),
        "the box is 20 pixels by the optics group's rlnImageSize")  # fmt: skip
refused(
    "metadata",
    "optics groups of very different pixel size",
    optics_groups(2, rlnImagePixelSize=[4.0, 17.0]),
    "differ too much in pixel size",
)
accepted("metadata", "optics groups of different pixel size", optics_groups(2, rlnImagePixelSize=[4.0, 4.1]),
         "are brought to 16 px of 4 A")  # fmt: skip
refused("metadata", "optics group twice", optics_groups(2, rlnOpticsGroup=[1, 1]), "occurs twice")
refused("metadata", "optics group that is not there", _row("rlnOpticsGroup", 9), "row 7", "no such optics group")
accepted("metadata", "two optics groups", optics_groups(2))
accepted("metadata", "200 optics groups", optics_groups(200))
for _value, _words in (("nan", "not a finite number"), ("inf", "not a finite number"), ("1e400", "not a finite number"),
                       ("abc", "not a number"), ("1_0", "not a number"), ("?", "not a number"),
                       ("''", "not a number"), ("2e6", "impossible defocus"),
                       ("-2e6", "impossible defocus")):  # fmt: skip
    refused(
        "metadata", f"defocus {_value}", _row("rlnDefocusU", _value.strip("'")), "row 7, column rlnDefocusU", _words
    )
accepted("metadata", "negative defocus", _row("rlnDefocusU", -12000.0), "negative defocus")
for _column, _value, _words in (
    ("rlnVoltage", 0.0, "10 to 3000 kV"), ("rlnVoltage", 300000.0, "10 to 3000 kV"), ("rlnVoltage", -300.0, "kV"),
    ("rlnVoltage", "nan", "a finite number"), ("rlnImagePixelSize", 0.0, "0 < pixel size"),
    ("rlnImagePixelSize", -4.0, "0 < pixel size"), ("rlnImagePixelSize", "inf", "a finite number"),
    ("rlnSphericalAberration", -1.0, "0 to 100 mm"), ("rlnAmplitudeContrast", 2.0, "0 to 1"),
    ("rlnImageSize", -16, "the box is -16"), ("rlnImageSize", "big", "a number"),
    ("rlnImageDimensionality", 3, "not two-dimensional"), ("rlnCtfDataAreCtfPremultiplied", "yes", "a number"),
    ("rlnCtfDataArePhaseFlipped", 0.5, "a whole number"), ("rlnMicrographOriginalPixelSize", "abc", "a number"),
    ("rlnMicrographOriginalPixelSize", 0.0, "0 < pixel size"),
):  # fmt: skip
    refused("metadata", f"{_column} {_value}", _group(_column, _value), _words)
for _column, _value in (("rlnBeamTiltX", 0.5), ("rlnOddZernike", "[0,1]"), ("rlnEvenZernike", "[0,0,1]"),
                        ("rlnCtfDataAreCtfPremultiplied", 1), ("rlnCtfDataArePhaseFlipped", 1)):  # fmt: skip
    accepted("metadata", f"{_column} {_value}", _group(_column, _value))
for _column, _value, _words in (
    ("rlnBeamTiltX", 1e6, "mrad, at most 100"), ("rlnBeamTiltY", "nan", "a finite number"),
    ("rlnOddZernike", "[0,inf]", "not a vector of numbers"), ("rlnEvenZernike", "abc", "not a vector of numbers"),
    ("rlnCtfDataAreCtfPremultiplied", 1e300, "a whole number"),
    ("rlnOddZernike", "[" + "1," * 1000 + "1]", "too many Zernike coefficients"),
):  # fmt: skip
    refused("metadata", f"{_column} {_value}"[:40], _group(_column, _value), f"row 1, column {_column}", _words)
for _column, _value, _words in (
    ("rlnPhaseShift", 1e30, "out of range"), ("rlnCtfBfactor", -1e30, "out of range"),
    ("rlnCtfScalefactor", 1e30, "out of range"), ("rlnAngleRot", 1e30, "out of range"),
    ("rlnAnglePsi", "nan", "a finite number"), ("rlnOriginXAngst", 1e9, "within the box"),
    ("rlnDefocusAngle", 1e300, "out of range"), ("rlnRandomSubset", 3, "not a half set"),
    ("rlnRandomSubset", 0, "not a half set"), ("rlnRandomSubset", 1.5, "a whole number"),
):  # fmt: skip
    refused("metadata", f"{_column} {_value}", _row(_column, _value), f"row 7, column {_column}", _words)
refused(
    "metadata", "all in half set 1", lambda p: p.table(rlnRandomSubset=1).refine(), "all particles are in half set 1"
)
refused(
    "metadata",
    "half set without a usable image",
    lambda p: p.table(rlnRandomSubset=[2] * 4 + [1] + [2] * 15).image(4, 0.0).refine(),
    "no usable particle",
)
accepted(
    "metadata", "half sets of different size", lambda p: p.table(rlnRandomSubset=[1] * 15 + [2] * 5).refine(), "15 + 5"
)
refused("metadata", "one particle", lambda p: p.keep([3]).refine(), "too few particles")
refused("metadata", "no particle", lambda p: p.keep([]).refine(), "too few particles")
accepted("metadata", "two particles", lambda p: p.keep([3, 4]).refine())
for _name, _words in (("000003@particles.mrcs", "the same image as in row 3"),
                      ("0@particles.mrcs", "not an image name"),
                      ("3@./particles.mrcs", "the same image as in row 3"),
                      ("-1@particles.mrcs", "not an image name"),
                      ("21@particles.mrcs", "no such image"), ("3@", "not an image name"), ("@", "not an image name"),
                      ("9" * 30 + "@particles.mrcs", "not an image name"), ("x@particles.mrcs", "not an image name"),
                      ("0" * 18 + "1" + "0" * 5000 + "@particles.mrcs", "not an image name")):  # fmt: skip
    refused("metadata", f"image {_name[:40]}", _row("rlnImageName", _name), "row 7, column rlnImageName", _words)
refused("metadata", "subtomograms", lambda p: p.table(rlnTomoName="a").refine(), "tomography particles")
accepted("metadata", "MTF file missing", _group("rlnMtfFileName", "absent.star"), "is not there")
accepted(
    "metadata",
    "names of groups with quotes and blanks",
    lambda p: p.lines(lambda lines: [line.replace(b"micrograph0.mrc", b"'it's \"a b\"'") for line in lines]).refine(),
)


def _mtf(content: bytes) -> Make:
    return lambda p: p.table("optics", rlnMtfFileName=[str(p.raw("mtf.star", content))]).refine()


refused("metadata", "MTF file without a curve", _mtf(b"data_\nloop_\n_x\n1\n"), "no MTF curve", file="mtf.star")
refused(
    "metadata",
    "MTF that does not ascend",
    _mtf(b"data_\nloop_\n_rlnResolutionInversePixel\n_rlnMtfValue\n0.1 1\n0 0.5\n"),
    "ascend",
    file="mtf.star",
)


def _many(change: Callable[[dict[str, Any]], None], *, convert_only: bool = True) -> Make:
    """10^6 particles; their images are not looked for."""

    def make(p: Inputs) -> Sequence[object]:
        rows = 10**6
        columns: dict[str, Any] = {
            "rlnImageName": [f"{k % 1000 + 1:06d}@stack{k // 1000}.mrcs" for k in range(rows)],
            "rlnDefocusU": np.full(rows, 12345.6), "rlnAngleRot": np.linspace(-180, 180, rows),
            "rlnAngleTilt": np.linspace(0, 180, rows), "rlnAnglePsi": np.linspace(-180, 180, rows),
            "rlnOpticsGroup": np.ones(rows, dtype=int),
        }  # fmt: skip
        change(columns)
        star, made = StarFile.read(p.star), StarFile.new()
        made.add_loop("optics", {name: star.table("optics").strings(name) for name in star.table("optics").columns})
        made.add_loop("particles", columns)
        made.write(p.star)
        p.out.mkdir()
        return ["convert", p.star, p.out / "out.cs"]

    return make


def _last_defocus(columns: dict[str, Any]) -> None:
    columns["rlnDefocusU"] = [*columns["rlnDefocusU"][:-1].tolist(), "nan"]


accepted("metadata", "10^6 rows", _many(lambda columns: None), "1000000 particles", is_heavy=True)
refused(
    "metadata", "10^6 rows, the last one wrong", _many(_last_defocus), "row 1000000, column rlnDefocusU", is_heavy=True
)
accepted("numerics", "all weights zero", lambda p: p.table(rlnCtfScalefactor=0.0).reconstruct())
refused(
    "numerics",
    "all weights zero in a refinement",
    lambda p: p.table(rlnCtfScalefactor=0.0).refine(),
    "20 of 20 images cannot be used",
    "rlnCtfScalefactor",
)
aside(
    "numerics",
    "one weight zero",
    lambda p: p.table(rlnCtfScalefactor=[1.0] * 4 + [0.0] + [1.0] * 15).refine(),
    "weight 0",
    row=5,
)
for _name, _words in (("../../../../../../etc/passwd", "cannot be used"), ("/etc/passwd", "cannot be used"),
                      ("/dev/zero", "is a device"), ("/dev/stdin", "row 7"), ("/proc/self/mem", "row 7"),
                      (f"|{TOUCH}", "not found"), (f"$({TOUCH})", "not found"), (f"`{TOUCH}`", "not found"),
                      (f";{TOUCH};", "not found"), (f"{TOUCH}|", "not found"), ("http://localhost/a.mrcs", "not found"),
                      ("\\\\host\\a.mrcs", "not found")):  # fmt: skip
    refused("security", f"image {_name}", _row("rlnImageName", f"1@{_name}"), "row 7, column rlnImageName", _words)


def _pipe_elsewhere(p: Inputs) -> Sequence[object]:
    os.mkfifo(p.folder / "pipe.mrcs")
    return _row("rlnImageName", "1@pipe.mrcs")(p)


def _link_elsewhere(p: Inputs) -> Sequence[object]:
    (p.folder / "link.mrcs").symlink_to("/dev/zero")
    return _row("rlnImageName", "1@link.mrcs")(p)


refused("security", "image in a named pipe", _pipe_elsewhere, "row 7", "named pipe")
refused("security", "image behind a link to a device", _link_elsewhere, "row 7", "is a device")
