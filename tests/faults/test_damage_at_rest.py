# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes that flip, files that are cut, files that change places: noticed, or provably without effect."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tally import record, times
from toy import refine_words, toy_data

from sparsecv import cli
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.results import CHECKSUMS
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.refine.accumulator_files import read_accumulators
from sparsecv.engine.refine.checkpoint import load_checkpoint
from sparsecv.kernels import cpu

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished refinement with everything that one can write."""
    folder = tmp_path_factory.mktemp("run")
    data = toy_data(folder)
    assert cli.main(refine_words(data, folder / "run", "--keep-accumulators", "--iterations", 3)) == 0
    return folder / "run"


def checkpoint(path: Path) -> object:
    """State of a checkpoint; a damaged one is passed over with a warning."""
    said: list[str] = []
    found = load_checkpoint(path.parent, said.append)
    if said or found is None:
        raise InputError("noticed")
    return [found[0].fsc.tobytes(), *(half.reference.tobytes() for half in found[0].halves),
            found[0].particles.rotations.tobytes(), json.dumps([found[0].history, found[1]], default=str)]


def accumulators(path: Path) -> object:
    """Sums of a file, which has to fit the others of its run."""
    found = read_accumulators(cpu, path)
    return [(half, one.data.tobytes(), one.weight.tobytes()) for half, pair in found.quarters.items() for one in pair]


def density(path: Path) -> object:
    """A map, without a warning."""
    found = read_map(path)
    if found.warnings:
        raise InputError("noticed")
    return found.data.tobytes(), found.pixel_size, found.origin


def star(path: Path) -> object:
    """All that a STAR file holds, without a warning."""
    found = StarFile.read(path)
    if found.warnings:
        raise InputError("noticed")
    return [(name, found.table(name).columns, [found.table(name).strings(one) for one in found.table(name).columns])
            for name in found.names]


def particles(path: Path) -> object:
    """Particles, without a note on the file."""
    found = ParticleTable.read(path, check_images=False)
    if any("checksum" in note for note in found.warnings):
        raise InputError("noticed")
    return found.rotations.tobytes(), found.shifts.tobytes(), found.defocus_u.tobytes(), found.halves.tobytes()


def picture(path: Path) -> object:
    """Pixels of a PNG, by the checksums of its chunks, as strict readers have them."""
    raw, place = path.read_bytes(), 8
    if raw[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError("noticed")
    while place < len(raw):
        length = int.from_bytes(raw[place : place + 4], "big")
        chunk, checksum = raw[place + 4 : place + 8 + length], raw[place + 8 + length : place + 12 + length]
        if zlib.crc32(chunk).to_bytes(4, "big") != checksum:
            raise InputError("noticed")
        place += 12 + length
    if chunk[:4] != b"IEND":
        raise InputError("noticed")
    with Image.open(path) as image:
        image.load()
        return image.size, image.tobytes()


def checked(path: Path) -> object:
    """Content of a file that no reader of ours checks, by the checksums of its folder."""
    digests = dict(reversed(line.split("  ", 1)) for line in (path.parent / CHECKSUMS).read_text().splitlines())
    if hashlib.sha256(path.read_bytes()).hexdigest() != digests[path.name]:
        raise InputError("noticed")
    return path.read_bytes()


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoint": ("run_it002_checkpoint.npz", checkpoint),
    "accumulators": ("run_half1_quarter1_accumulator.npz", accumulators),
    "map": ("run_class001.mrc", density),
    "half map": ("run_half1_class001_unfil.mrc", density),
    "particles": ("run_data.star", particles),
    "model": ("run_model.star", star),
    "FSC table": ("postprocess.star", star),
    "picture": ("run_it001_fsc.png", picture),
    "status": ("status.json", checked),
    "record": ("run_it001_record.json", checked),
    "settings": ("run.toml", checked),
    "curve for deposition": ("postprocess_fsc.xml", checked),
    "report": ("report.html", checked),
}
LIKE = {"checkpoint": "run_it001_checkpoint.npz", "accumulators": "run_half2_quarter1_accumulator.npz"}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Content with one bit flipped, one byte replaced, a stretch overwritten, a piece swapped, cut, or emptied."""
    kind, place = rng.integers(6), int(rng.integers(len(content)))
    changed = bytearray(content)
    if kind <= 1:
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        changed[place] = int(rng.integers(256))
    elif kind == 3:
        length = int(rng.integers(1, 65))
        stretch = changed[place : place + length]
        changed[place : place + length] = rng.integers(0, 256, len(stretch), dtype=np.uint8).tobytes()
    elif kind == 4:
        length, other = int(rng.integers(1, 513)), int(rng.integers(len(content)))
        first, second = changed[place : place + length], changed[other : other + length]
        size = min(len(first), len(second))
        changed[place : place + size], changed[other : other + size] = second[:size], first[:size]
    else:
        changed = changed[:place]
    return bytes(changed)


@pytest.mark.parametrize("kind", READERS)
def test_damage_is_noticed_or_has_no_effect(kind: str, run: Path, tmp_path: Path) -> None:
    """What is read without complaint is what was written: only then was the damage in nothing that counts."""
    name, read = READERS[kind]
    rng = np.random.default_rng(list(READERS).index(kind))
    for path in run.iterdir():
        if path.is_file() and ("checkpoint" not in path.name or path.name == name):
            shutil.copy(path, tmp_path)
    target, content = tmp_path / name, (run / name).read_bytes()
    expected = read(target)
    noticed = harmless = 0
    wanted = times(125, 30)
    while noticed + harmless < wanted:
        changed = damaged(content, rng)
        if changed == content:
            continue
        target.write_bytes(changed)
        try:
            found = read(target)
        except (InputError, OSError, SyntaxError, ValueError, Warning):
            noticed += 1
            continue
        assert found == expected, f"{kind}: damage that nobody has noticed"
        harmless += 1
    record("damage at rest", f"flips, cuts and swaps in {kind} ({name})", wanted, noticed + harmless,
           f"{noticed} noticed, {harmless} without effect")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_checksums_name_what_has_changed(run: Path, tmp_path: Path) -> None:
    """By the program that every system has, for each file of a run."""
    shutil.copytree(run, tmp_path / "run")
    command = ["sha256sum", "--check", "--quiet", CHECKSUMS]
    assert subprocess.run(command, cwd=tmp_path / "run", check=False).returncode == 0
    listed = {line.split("  ", 1)[1] for line in (run / CHECKSUMS).read_text().splitlines()}
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert there - listed == {CHECKSUMS}
    with (tmp_path / "run" / "run.toml").open("a") as out:
        out.write("# changed\n")
    done = subprocess.run(command, cwd=tmp_path / "run", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run.toml: FAILED" in done.stdout
    record("damage at rest", "a changed file, by sha256sum", 1, 1)


@pytest.mark.parametrize("kind", LIKE)
def test_files_that_have_changed_places_are_noticed(kind: str, run: Path, tmp_path: Path) -> None:
    """The same kind of file, whole, but of another iteration or half."""
    for path in run.glob("*.npz"):
        shutil.copy(path, tmp_path)
    name, other = READERS[kind][0], LIKE[kind]
    content = (tmp_path / name).read_bytes(), (tmp_path / other).read_bytes()
    (tmp_path / name).write_bytes(content[1])
    (tmp_path / other).write_bytes(content[0])
    with pytest.raises((InputError, ValueError)):
        READERS[kind][1](tmp_path / name)
    record("damage at rest", f"{kind} files change places", 1, 1)


def test_a_pickle_in_place_of_a_checkpoint_is_not_run(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "run_it002_checkpoint.npz"
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (canary,))

    np.savez(target, plain=np.array([Bomb()], dtype=object))
    with pytest.raises((InputError, ValueError)):
        checkpoint(target)
    assert not canary.exists()
    record("damage at rest", "a pickle in place of a checkpoint", 1, 1, "not run")
