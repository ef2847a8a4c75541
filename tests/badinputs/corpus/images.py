# SPDX-License-Identifier: GPL-3.0-or-later
"""Stacks of images: values, headers, names, and what stands in their place."""

from __future__ import annotations

import bz2
import gzip
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inputs import BOX, PARTICLES, PIXEL_SIZE, Inputs

from corpus.case import Cases, Make
from sparsecv.engine.io.mrc import write_stack

CASES = Cases()
refused, aside, accepted = CASES.refused, CASES.aside, CASES.accepted


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
refused(
    "images",
    "sparse file of huge images",
    lambda p: p.stretched(p.stack, (100_000, 100_000, PARTICLES)).refine(),
    "no images of particles",
    *STACK,
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


def _noiseless(p: Inputs) -> None:
    from tiny import blobs, write_particles

    write_particles(p.folder, PARTICLES, BOX, density=blobs(BOX), noise=0.0)


def _one_shell(p: Inputs) -> None:
    """The same cosine in all images, with little else."""
    images = p.images() * 1e-6 + np.cos(2 * np.pi * 3 * np.arange(BOX) / BOX).astype(np.float32)
    write_stack(p.stack, images, PIXEL_SIZE)


accepted("numerics", "images without noise", lambda p: (_noiseless(p), p.refine())[1])
accepted("numerics", "noise of one shell", lambda p: (_one_shell(p), p.refine())[1])
accepted("numerics", "images of 1e-12", lambda p: p.stored_as("f4", 1e-12).refine())
accepted("numerics", "images of 1e12", lambda p: p.stored_as("f4", 1e12).refine())
