# SPDX-License-Identifier: GPL-3.0-or-later
"""Every input that is wrong, odd or hostile: how it is made, the command that gets it, and what must happen.

A case changes a copy of :class:`inputs.Inputs` and returns a command line. What must happen is one of

``REFUSED``   status 2 and one line that names the file, holds the words of the case, a rule and a remedy; nothing has
              been iterated
``ASIDE``     status 0, and ``rejected.star`` has the row with the words as its reason
``ACCEPTED``  status 0, maps and numbers finite, and the words, if any, among what was said

and in all of them no file appears, or changes, outside of the output folder.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import socket
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inputs import BOX, MAP_BOX, PARTICLES, PIXEL_SIZE, Inputs, old_file, with_field, without_field

from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.io.star import StarFile

REFUSED, ASIDE, ACCEPTED = "refused", "set aside", "accepted"
KINDS = ("images", "metadata", "maps", "numerics", "security")
CANARY = "canary"
TOUCH = f"touch {CANARY}"
Make = Callable[[Inputs], Sequence[object]]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes
    ----------
    name, kind
        Of the case; one of ``KINDS``.
    make
        Changes the inputs and returns the command line.
    outcome, words
        What must happen, see above.
    file
        Name of the file that a refusal names; "" where an option is at fault.
    row
        Of the particle that is set aside, from 1.
    is_heavy
        Takes seconds: with ``make reliability`` only.
    has_remedy
        A user can do something about it.
    base
        Box of the images.
    """

    name: str
    kind: str
    make: Make
    outcome: str
    words: tuple[str, ...] = ()
    file: str = "particles.star"
    row: int = 0
    is_heavy: bool = False
    has_remedy: bool = True
    base: int = BOX


CASES: list[Case] = []


def refused(kind: str, name: str, make: Make, *words: str, **more: Any) -> None:
    """Add a case that must be refused."""
    CASES.append(Case(name, kind, make, REFUSED, words, **more))


def aside(kind: str, name: str, make: Make, *words: str, row: int, **more: Any) -> None:
    """Add a case of which a particle must be set aside."""
    CASES.append(Case(name, kind, make, ASIDE, words, row=row, **more))


def accepted(kind: str, name: str, make: Make, *words: str, **more: Any) -> None:
    """Add a case that must work, with a note where there are words."""
    CASES.append(Case(name, kind, make, ACCEPTED, words, **more))


# --------------------------------------------------------------------------------------------------------- bad images
def _image(value: Any) -> Make:
    return lambda p: p.image(4, value).refine()


def _pixel(value: float) -> Make:
    def change(image: np.ndarray) -> np.ndarray:
        changed = image.copy()
        changed[3, 5] = value
        return changed

    return _image(change)


aside("images", "NaN", _pixel(np.nan), "NaN or infinite", row=5)
aside("images", "infinity", _pixel(-np.inf), "NaN or infinite", row=5)
aside("images", "all NaN", _image(np.nan), "NaN or infinite", row=5)
aside("images", "constant", _image(3.0), "constant", row=5)
aside("images", "all zero", _image(0.0), "constant", row=5)
aside("images", "value of 1e30", _pixel(1e30), "beyond 1e15", row=5)
aside("images", "other grey scale", _image(lambda image: 1e4 * image), "standard deviation", row=5)
aside("images", "far fainter", _image(lambda image: 1e-4 * image), "standard deviation", row=5)


def _several(count: int) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        images = p.images()
        images[:count, 2, 2] = np.nan
        write_stack(p.stack, images, PIXEL_SIZE)
        return p.refine()

    return make


refused("images", "more NaN than allowed", _several(3), "3 of 20 images cannot be used", "row 1")
refused("images", "NaN in all", _several(PARTICLES), "20 of 20 images cannot be used", "row 1")
refused("images", "none may be set aside", lambda p: p.image(4, 0.0).refine("--most-rejected", 0), "1 of 20", "row 5")
accepted("images", "not normalised", lambda p: p.stored_as("f4", 1000, 500).refine(), "multiplied by")
refused(
    "images",
    "wrong contrast",
    lambda p: p.stored_as("f4", -1).refine(),
    "does not fit the images",
    "contrast",
    file="start.mrc",
)
accepted("images", "float16", lambda p: p.stored_as("f2").refine())
accepted("images", "int8", lambda p: p.stored_as("i1", 10).refine())
accepted("images", "int16", lambda p: p.stored_as("i2", 1000).refine())
accepted("images", "uint16", lambda p: p.stored_as("u2", 1000, 20000).refine())
accepted("images", "big endian", lambda p: p.stored_as("f4", order=">").refine())
accepted("images", "big endian int16", lambda p: p.stored_as("i2", 1000, order=">").refine())
accepted("images", "odd box", lambda p: p.refine(), base=17)
accepted("images", "smallest box", lambda p: p.refine(), base=16)


def _small(p: Inputs) -> Sequence[object]:
    write_stack(p.stack, p.images()[:, 1:-1, 1:-1], PIXEL_SIZE)
    return p.table("optics", rlnImageSize=[BOX - 2]).refine()


refused("images", "box too small", _small, "box too small", "at least 16")


def _cut(p: Inputs) -> Sequence[object]:
    os.truncate(p.stack, p.stack.stat().st_size - 100)
    return p.refine()


def _content(change: Callable[[bytes], bytes], *words: object) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        p.stack.write_bytes(change(p.stack.read_bytes()))
        return p.refine(*words)

    return make


def _stack_word(number: int, value: Any, dtype: str = "<i4") -> Make:
    return lambda p: p.word(p.stack, number, value, dtype).refine()


STACK = ("row 1", "rlnImageName", "particles.mrcs")
refused("images", "truncated", _cut, "truncated", *STACK)
accepted("images", "extra bytes", _content(lambda raw: raw + b"more"), "4 bytes beyond")
refused("images", "empty stack", _content(lambda raw: b""), "too short", *STACK)
refused("images", "text", _content(lambda raw: b"loop_ of images\n" * 100), "not an MRC file", *STACK)
refused("images", "header lies: more images", _stack_word(3, 10**6), "truncated", *STACK)
refused("images", "header lies: fewer images", _stack_word(3, 5), "no such image", "row 6")
refused("images", "header lies: mode", _stack_word(4, 99), "unknown MRC mode", *STACK)
refused("images", "header lies: complex", _stack_word(4, 4), "unknown MRC mode", *STACK)
refused("images", "header lies: no columns", _stack_word(1, 0), "not an MRC file", *STACK)
refused("images", "header lies: negative rows", _stack_word(2, -16), "impossible sizes", *STACK)
refused("images", "header lies: negative extension", _stack_word(24, -4), "impossible sizes", *STACK)
refused("images", "header lies: huge extension", _stack_word(24, 2**31 - 1), "truncated", *STACK)
accepted("images", "header lies: NaN cell", _stack_word(11, np.nan, "<f4"))
refused("images", "not square", lambda p: p.word(p.stack, 1, 8).refine(), "not square", *STACK)
refused(
    "images",
    "not those of the optics group",
    lambda p: p.table("optics", rlnImageSize=[20]).refine(),
    "images of 16 pixels",
    "the box is 20",
)
accepted(
    "images",
    "pixel size in the header off by 10 %",
    lambda p: p.word(p.stack, 11, 1.1 * BOX * PIXEL_SIZE, "<f4").refine(),
    "another pixel size",
    "4.4 A",
)
accepted(
    "images",
    "pixel size in the header off by 1 %",
    lambda p: p.word(p.stack, 11, 1.01 * BOX * PIXEL_SIZE, "<f4").refine(),
)


def _linked(p: Inputs) -> Sequence[object]:
    p.stack.rename(p.folder / "true name.mrcs")
    p.stack.symlink_to("true name.mrcs")
    return p.refine()


def _loop(p: Inputs) -> Sequence[object]:
    p.stack.unlink()
    p.stack.symlink_to(p.stack.name)
    return p.refine()


accepted("images", "symbolic link", _linked)
refused("images", "link to itself", _loop, "not found", "row 1", "--data-dir")
for _name in ("with blank.mrcs", "per%cent %s %d.mrcs", "it's.mrcs", 'say "a".mrcs', "both'\".mrcs", "$HOME.mrcs",
              "a;b#c.mrcs", "x.st", "-rf.mrcs", "data_loop_.mrcs", "@@.mrcs", "[1,2].mrcs", "*.mrcs"):  # fmt: skip
    accepted("images", f"name {_name}", lambda p, name=_name: p.renamed(name).refine())


def _quoted_twice(p: Inputs) -> Sequence[object]:
    """CIF lets a quoted text have its own quote where no blank follows: it can be read, but hardly written."""
    name = 'it\'s "a b".mrcs'
    p.stack.rename(p.folder / name)
    text = p.star.read_text().replace("@particles.mrcs", "@" + name)
    p.star.write_text("\n".join(
        line.replace(line[:line.index(".mrcs") + 5], f"'{line[:line.index('.mrcs') + 5]}'") if ".mrcs" in line else line
        for line in text.split("\n")))  # fmt: skip
    return p.refine()


def _moved(folder: str | bytes, *words: object) -> Make:
    """Everything in a folder of that name, given by absolute paths from elsewhere: image names become absolute."""

    def make(p: Inputs) -> Sequence[object]:
        inner = Path(os.fsdecode(os.path.join(os.fsencode(p.folder), os.fsencode(folder))))
        inner.mkdir(parents=True)
        for path in (p.star, p.stack, p.start):
            path.rename(inner / path.name)
        command = Inputs(inner).refine(*words)
        command[command.index("--output") + 1] = p.out
        return command

    return make


refused("images", "name with both quotes beside blanks", _quoted_twice, "row 1", "not both kinds of quotes")
refused("images", "folder with both quotes beside blanks", _moved("a 'b' \"c\""), "row 1", "not both kinds of quotes")
refused("images", "folder with a line break", _moved("a\nb"), "row 1", "ASCII without line breaks")
refused("images", "folder with an accent", _moved("caf\u00e9"), "row 1", "ASCII without line breaks")
refused("images", "folder that is not UTF-8", _moved(b"caf\xe9"), "UTF-8", file="")
accepted("images", "folder with blanks and quotes", _moved("it's a folder; #1"))
accepted("images", "folder with %", _moved("100 %s"))
refused("images", "gz", _content(gzip.compress), "compressed", *STACK)
refused("images", "bz2", _content(bz2.compress), "compressed", *STACK)
refused("images", "small gz", _content(lambda raw: gzip.compress(bytes(100))), "compressed", *STACK)
refused("images", "missing file", lambda p: p.named("absent.mrcs").refine(), "not found", "row 1", "absent.mrcs")


def _special(kind: str) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        p.stack.unlink()
        if kind == "pipe":
            os.mkfifo(p.stack)
        elif kind == "folder":
            p.stack.mkdir()
        else:
            here = os.getcwd()
            os.chdir(p.folder)  # names of sockets are short
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(p.stack.name)
            os.chdir(here)
        return p.refine()

    return make


refused("images", "named pipe", _special("pipe"), "named pipe", *STACK)
refused("images", "directory", _special("folder"), "directory", *STACK)
refused("images", "socket", _special("socket"), "row 1", "cannot be used")


def _sparse(shape: tuple[int, int, int], word: str = "stack") -> Make:
    """A file that takes no space, and has all the bytes that its header announces."""

    def make(p: Inputs) -> Sequence[object]:
        path = p.stack if word == "stack" else p.start
        for number, side in enumerate(shape, 1):
            p.word(path, number, side)
        os.truncate(path, 1024 + 4 * int(np.prod(shape, dtype=np.int64)))
        return p.refine()

    return make


refused(
    "images", "sparse file of huge images", _sparse((100_000, 100_000, PARTICLES)), "no images of particles", *STACK
)


def _copied(p: Inputs) -> Sequence[object]:
    """The particles joined with a copy of themselves, in the other half set."""
    images = p.images()
    images[11] = images[2]
    write_stack(p.stack, images, PIXEL_SIZE)
    return p.refine()


refused(
    "images",
    "one image under two names, in both half sets",
    _copied,
    "row 12",
    "as in row 3",
    "both half sets",
    "fake resolution",
)


# ------------------------------------------------------------------------------------------------------- bad metadata
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


def _optics_groups(count: int, **columns: list[Any]) -> Make:
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
refused("metadata", "optics group of another box than its images", _optics_groups(2, rlnImageSize=[16, 20]),
        "the box is 20 pixels by the optics group's rlnImageSize")  # fmt: skip
refused(
    "metadata",
    "optics groups of very different pixel size",
    _optics_groups(2, rlnImagePixelSize=[4.0, 17.0]),
    "differ too much in pixel size",
)
accepted("metadata", "optics groups of different pixel size", _optics_groups(2, rlnImagePixelSize=[4.0, 4.1]),
         "are brought to 16 px of 4 A")  # fmt: skip
refused("metadata", "optics group twice", _optics_groups(2, rlnOpticsGroup=[1, 1]), "occurs twice")
refused("metadata", "optics group that is not there", _row("rlnOpticsGroup", 9), "row 7", "no such optics group")
accepted("metadata", "two optics groups", _optics_groups(2))
accepted("metadata", "200 optics groups", _optics_groups(200))
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


# .cs files of cryoSPARC
def _cs(change: Callable[[np.ndarray], np.ndarray] | None, *words: object) -> Make:
    return lambda p: p.cs(change).convert(*words)


def _set(name: str, value: Any, row: int = 2) -> Make:
    def change(table: np.ndarray) -> np.ndarray:
        table[name][row] = value
        return table

    return _cs(change)


CS = {"file": "particles.cs"}
accepted("metadata", ".cs: whole", _cs(None), "20 particles")
refused("metadata", ".cs: no uid", _cs(lambda t: without_field(t, "uid")), "no field uid", **CS)
refused("metadata", ".cs: a uid twice", _cs(lambda t: t[[0, 1, 1]]), "uid occurs twice", **CS)
refused("metadata", ".cs: no rows", _cs(lambda t: t[:0]), "no particles", **CS)
refused("metadata", ".cs: no defocus", _cs(lambda t: without_field(t, "ctf/df1_A")), "ctf/df1_A", "--passthrough", **CS)
for _field, _type, _value in (("ctf/df1_A", "S4", b"a"), ("blob/shape", "<u4", 16),
                              ("alignments3D/pose", ("<f4", (2,)), 0),
                              ("blob/idx", "<f4", 0), ("blob/path", "<f4", 0), ("ctf/cs_mm", "<c8", 1)):  # fmt: skip
    refused(
        "metadata",
        f".cs: {_field} of another type",
        _cs(lambda t, f=_field, d=_type, v=_value: with_field(t, f, d, v)),
        _field,
        "of another type",
        **CS,
    )
refused("metadata", ".cs: NaN", _set("ctf/df1_A", np.nan), "row 3, ctf/df1_A", "not a finite number", **CS)
refused("metadata", ".cs: not square", _set("blob/shape", (16, 17)), "row 3, blob/shape", "not square", **CS)
refused("metadata", ".cs: third half set", _set("alignments3D/split", 2), "row 3, alignments3D/split", "0 or 1", **CS)
refused("metadata", ".cs: pixel size 0", _set("blob/psize_A", 0), "row 3, blob/psize_A", "0 < pixel size", **CS)
refused(
    "metadata", ".cs: name with a line break", _set("blob/path", b"a\nb.mrc"), "row 3, blob/path", "line breaks", **CS
)
refused("metadata", ".cs: no name", _set("blob/path", b""), "row 3, blob/path", "the name of a file", **CS)
refused(
    "metadata", ".cs: text", lambda p: (p.raw("particles.cs", b"hello" * 9), p.convert())[1], "is no .cs file", **CS
)
refused("metadata", ".cs: empty", lambda p: (p.raw("particles.cs", b""), p.convert())[1], "is no .cs file", **CS)


def _cs_cut(p: Inputs) -> Sequence[object]:
    p.cs()
    os.truncate(p.folder / "particles.cs", (p.folder / "particles.cs").stat().st_size - 10)
    return p.convert()


def _other_passthrough(p: Inputs) -> Sequence[object]:
    def changed(table: np.ndarray) -> np.ndarray:
        table["uid"][4] += 1
        return table

    p.cs(changed)
    (p.folder / "particles.cs").rename(p.folder / "passthrough.cs")
    return p.cs().convert("--passthrough", p.folder / "passthrough.cs")


refused("metadata", ".cs: cut off", _cs_cut, "cannot be read", "announces", **CS)
refused(
    "metadata",
    ".cs: passthrough file of another job",
    _other_passthrough,
    "1 of 20 particles are not in it",
    file="passthrough.cs",
)
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


# ----------------------------------------------------------------------------------------------------------- bad maps
def _reference(box: int, pixel_size: float, *words: object, **more: Any) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        from tiny import blobs

        p.map("start.mrc", blobs(box), pixel_size, **more)
        return p.refine(*words)

    return make


START = {"file": "start.mrc"}
accepted("maps", "reference of another box", _reference(20, PIXEL_SIZE * BOX / 20), "resampled")
accepted("maps", "reference of another pixel size", _reference(BOX, 1.05 * PIXEL_SIZE), "resampled")
accepted("maps", "reference of 1 A", _reference(BOX, 1.0), "has a pixel size of 1 A")
refused("maps", "reference of another box and 1 A", _reference(20, 1.0), "1 A", "--reference-pixel-size", **START)
accepted("maps", "reference of another origin", _reference(BOX, PIXEL_SIZE, origin=(-100.0, 3.0, 7.0)))
refused("maps", "reference that is missing", lambda p: (p.start.unlink(), p.refine())[1], "No such file", **START)
refused(
    "maps",
    "reference that is not cubic",
    lambda p: (p.map("start.mrc", np.ones((16, 16, 18))), p.refine())[1],
    "not a cubic map",
    **START,
)
refused(
    "maps", "reference with NaN", lambda p: p.word(p.start, 300, np.nan, "<f4").refine(), "not finite", "voxel", **START
)
refused(
    "maps", "reference without pixel size", lambda p: p.word(p.start, 11, 0.0, "<f4").refine(), "no pixel size", **START
)
refused(
    "maps", "reference of zeros", lambda p: (p.map("start.mrc", np.zeros((16,) * 3)), p.refine())[1], "flat", **START
)
refused(
    "maps",
    "constant reference",
    lambda p: (p.map("start.mrc", np.full((16,) * 3, 2.0)), p.refine())[1],
    "flat",
    **START,
)
refused("maps", "reference with axes of one name", lambda p: p.word(p.start, 18, 1).refine(), "axis order", **START)
refused("maps", "stack of volumes", lambda p: p.word(p.start, 23, 401).refine(), "stack of volumes", **START)
refused("maps", "sparse file of a huge map", _sparse((15_000,) * 3, "map"), "larger than the memory", **START)


def _mask(change: Callable[[np.ndarray], np.ndarray], pixel_size: float = PIXEL_SIZE) -> Make:
    return lambda p: p.refine("--mask", p.map("mask.mrc", change(p.mask()), pixel_size))


MASK = {"file": "mask.mrc"}
refused("maps", "empty mask", _mask(lambda m: 0 * m), "mask is empty", **MASK)
refused("maps", "mask beyond 1", _mask(lambda m: 3 * m), "outside [0, 1]", **MASK)
refused("maps", "mask below 0", _mask(lambda m: m - 0.5), "outside [0, 1]", **MASK)
refused("maps", "mask of another box", _mask(lambda m: m[1:-1, 1:-1, 1:-1]), "differ in box", **MASK)
refused("maps", "mask of another pixel size", _mask(lambda m: m, 1.1 * PIXEL_SIZE), "differ in pixel size", **MASK)
accepted("maps", "mask of ones", _mask(np.ones_like), "covers the whole box")
accepted("maps", "hard mask", _mask(np.round), "hard edge")
accepted("maps", "mask at the face of the box", _mask(lambda m: np.roll(m, 6, 0)), "face of the box")


def _pair(command: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray], pixel_size: float = PIXEL_SIZE,
          *words: object) -> Make:  # fmt: skip
    """Two half maps, the second one made of both."""

    def make(p: Inputs) -> Sequence[object]:
        from halfmaps import half_maps

        first, second = half_maps(MAP_BOX, PIXEL_SIZE, noise=0.05)
        p.map("half2.mrc", change(first, second), pixel_size)
        return p.halves(command, *words)

    return make


for _command in ("postprocess", "regularise", "nu-filter"):
    refused("maps", f"identical half maps: {_command}", _pair(_command, lambda a, b: a), "identical", file="half2.mrc")
accepted("maps", "identical maps: fsc", _pair("fsc", lambda a, b: a), "identical")
for _command in ("postprocess", "fsc"):
    accepted(
        "maps",
        f"half maps of one set: {_command}",
        _pair(_command, lambda a, b: 0.98 * a + 0.02 * b),
        "not independent",
        "same particles",
    )
refused(
    "maps", "half maps of different box", _pair("fsc", lambda a, b: b[:-2, :-2, :-2]), "box differs", file="half2.mrc"
)
refused(
    "maps",
    "half maps of different pixel size",
    _pair("fsc", lambda a, b: b, 1.1 * PIXEL_SIZE),
    "pixel size differs",
    file="half2.mrc",
)
for _command in ("postprocess", "regularise", "nu-filter", "fsc"):
    refused("maps", f"empty half map: {_command}", _pair(_command, lambda a, b: 0 * b), "flat", file="half2.mrc")


def _model(folder: Path, name: str = "model.pdb", shift: float = 0.0) -> Path:
    rng = np.random.default_rng(4)
    rows = [f"ATOM  {k:5d}  CA  ALA A{k:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 30.00           C\n"
            for k, (x, y, z) in enumerate(rng.normal(size=(60, 3)) * 12 + 64 + shift, 1)]  # fmt: skip
    (folder / name).write_text("".join(rows))
    return folder / name


def _validate(name: str = "map.mrc", model: str = "model.pdb", shift: float = 0.0) -> Make:
    def make(p: Inputs) -> Sequence[object]:
        from halfmaps import half_maps

        written = p.map(name, half_maps(MAP_BOX, PIXEL_SIZE, noise=0.002)[0])
        return [
            "validate",
            "--model",
            _model(p.folder, model, shift),
            "--map",
            written,
            "--output",
            p.out,
            "--threads",
            1,
        ]

    return make


refused("maps", "model outside the box", _validate(shift=2000.0), "does not overlap", file="model.pdb")
refused("maps", "model without atoms", lambda p: [
    "validate", "--model", p.raw("model.pdb", b"HEADER\nEND\n"), "--map", p.start, "--output", p.out], "no atoms",
    file="model.pdb")  # fmt: skip
refused("maps", "model that is a picture", lambda p: [
    "validate", "--model", p.raw("model.cif", b"\x89PNG\r\n\x1a\n" + bytes(99)), "--map", p.start, "--output", p.out],
    "model", file="model.cif")  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- numerics
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
accepted("numerics", "images without noise", lambda p: (_noiseless(p), p.refine())[1])
accepted("numerics", "noise of one shell", lambda p: (_one_shell(p), p.refine())[1])
accepted("numerics", "images of 1e-12", lambda p: p.stored_as("f4", 1e-12).refine())
accepted("numerics", "images of 1e12", lambda p: p.stored_as("f4", 1e12).refine())
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
accepted("numerics", "FSC that never crosses", _pair("fsc", lambda a, b: a + 1e-3 * b), "up to Nyquist")
accepted("numerics", "half maps that do not correlate", _pair(
    "postprocess", lambda a, b: np.random.default_rng(1).normal(size=a.shape).astype(np.float32)))  # fmt: skip
accepted("numerics", "half maps of opposite sign", _pair("postprocess", lambda a, b: -b))


def _noiseless(p: Inputs) -> None:
    from tiny import blobs, write_particles

    write_particles(p.folder, PARTICLES, BOX, density=blobs(BOX), noise=0.0)


def _one_shell(p: Inputs) -> None:
    """The same cosine in all images, with little else."""
    images = p.images() * 1e-6 + np.cos(2 * np.pi * 3 * np.arange(BOX) / BOX).astype(np.float32)
    write_stack(p.stack, images, PIXEL_SIZE)


# ----------------------------------------------------------------------------------------------------------- security
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


class Bomb:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (TOUCH,)


def _pickled_cs(p: Inputs) -> Sequence[object]:
    content = io.BytesIO()
    table = np.zeros(2, dtype=[("uid", "<u8"), ("blob/path", "O")])
    table["uid"], table["blob/path"] = [1, 2], [Bomb(), Bomb()]
    np.save(content, table, allow_pickle=True)
    p.raw("particles.cs", content.getvalue())
    return p.convert()


def _pure_pickle(p: Inputs) -> Sequence[object]:
    p.raw("particles.cs", pickle.dumps(Bomb()))
    return p.convert()


def npy(descr: str, shape: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with any header."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + content


refused("security", ".cs: pickled objects", _pickled_cs, "pickled objects", **CS)
refused("security", ".cs: a pickle", _pure_pickle, "is no .cs file", **CS)
for _what, _raw in (("huge shape", npy("[('uid', '<u8')]", "(10000000000000,)", bytes(8))),
                    ("negative shape", npy("[('uid', '<u8')]", "(-1,)", bytes(8))),
                    ("code in the header", npy("__import__('os').system('touch canary')", "(1,)", bytes(8))),
                    ("nested header", npy("[" * 5000 + "]" * 5000, "(1,)", bytes(8))),
                    ("no header", b"\x93NUMPY\x01\x00"), ("format 9", npy("'<u8'", "(1,)", bytes(8), b"\x09\x00")),
                    ("zip", b"PK\x03\x04" + bytes(99))):  # fmt: skip
    refused("security", f".cs: {_what}", lambda p, raw=_raw: (p.raw("particles.cs", raw), p.convert())[1], "cs", **CS)


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An npz file of these parts."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as target:
        for name, data in parts.items():
            target.writestr(name, data)
    return content.getvalue()


def _object_array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Bomb()], dtype=object), allow_pickle=True)
    return content.getvalue()


def npz_bombs() -> dict[str, bytes]:
    """Archives that must not be unpacked, by what they are."""
    plain = npy("'|u1'", "(2,)", b"{}")
    return {
        "pickle": archive({"plain.npy": plain, "data.npy": _object_array()}),
        "zip bomb": archive({"plain.npy": plain, "data.npy": npy("'|u1'", "(100000000,)", bytes(10**8))},
                            zipfile.ZIP_DEFLATED),
        "huge shape": archive({"plain.npy": plain, "data.npy": npy("'<f8'", "(100000000000,)", bytes(8))}),
        "path": archive({"../../canary.npy": plain, "plain.npy": plain}),
        "no zip": b"PK\x03\x04" + bytes(500),
    }  # fmt: skip


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


def _gz_bomb(p: Inputs) -> Sequence[object]:
    with gzip.open(p.folder / "model.pdb.gz", "wb", compresslevel=1) as out:
        for _ in range(210):
            out.write(b"REMARK  \n" * (10**7 // 9))
    return ["validate", "--model", p.folder / "model.pdb.gz", "--map", p.start, "--output", p.out]


refused("security", "model that unpacks to 2 GB", _gz_bomb, "unpacks to more", file="model.pdb.gz", is_heavy=True)
EVIL = f"<img src=x onerror=alert(1)>'\"$({TOUCH}) & `{TOUCH}`"
accepted(
    "security",
    "names of files that are HTML",
    _validate(f"{EVIL.replace('/', '')}.mrc", "<script>alert(2)<\u2215script>.pdb"),
)
accepted(
    "security",
    "names of files that are commands of ChimeraX",
    _validate("a.mrc\nrunscript evil.py\n.mrc", "m;open evil.cxc;.pdb"),
    is_heavy=True,
)


def _hostile_chains(p: Inputs) -> Sequence[object]:
    """Names of chains go into pictures, where $ begins a formula, into tables, a page and a script."""
    import gemmi

    from sparsecv.engine.io.models import write_structure

    command = _validate()(p)
    structure = gemmi.read_structure(str(p.folder / "model.pdb"))
    residues = list(structure[0][0])
    for name in ("$\\frac{", "<script>alert(3)</script>", "A;open evil.cxc", "it's", "=cmd|' /C calc'!A0"):
        chain = gemmi.Chain(name)
        for residue in residues[:12]:
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    write_structure(p.folder / "model.cif", structure)
    command[command.index("--model") + 1] = p.folder / "model.cif"
    return command


accepted("security", "names of chains that are formulas, HTML and commands", _hostile_chains)


def _hostile_mask(p: Inputs) -> Sequence[object]:
    """A name that would begin a new table, were it written as it is."""
    mask = p.map("mask.mrc\n\ndata_evil\n\n_rlnEvil 'x'\n\u00e9.mrc", p.mask(MAP_BOX))
    return p.halves("postprocess", "--mask", mask)


def _hostile_half(p: Inputs) -> Sequence[object]:
    p.halves("postprocess")
    name = p.folder / "half1'\"\x1b[31m 1\n.mrc"
    (p.folder / "half1.mrc").rename(name)
    return ["postprocess", name, p.folder / "half2.mrc", "--output", p.out, "--threads", 1]


accepted("security", "mask whose name is STAR text", _hostile_mask)
accepted("security", "half map whose name has escape codes", _hostile_half)
accepted(
    "security",
    "mask of a refinement with an accent and quotes",
    lambda p: p.refine("--mask", p.map('m\u00e2sk it\'s "a b".mrc', p.mask())),
)
refused(
    "security",
    "file that is not there, with escape codes in its name",
    lambda p: p.refine("--mask", p.folder / "\x1b]0;evil\x07\u202e\n.mrc"),
    "\\x1b]0;evil\\x07\\u202e\\n.mrc",
    file=".mrc",
)
refused("security", "output that is an input",
        lambda p: (write_map(p.folder / "postprocess.mrc", np.ones((8,) * 3), 1.0),
                   ["postprocess", p.folder / "postprocess.mrc", p.start, "--output", p.folder])[1],
        "would be overwritten", file="postprocess.mrc")  # fmt: skip
