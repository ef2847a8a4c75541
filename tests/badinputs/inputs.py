# SPDX-License-Identifier: GPL-3.0-or-later
"""Small valid inputs of every command, and ways to damage them; everything is made by code, from fixed seeds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from halfmaps import half_maps
from tiny import PIXEL_SIZE, blobs, write_particles

from sparsecv.engine.io.cs_table import read_cs, write_cs
from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.masks import sphere

PARTICLES, BOX, MAP_BOX = 20, 16, 32
QUICK = ("--local", "--iterations", 1, "--threads", 1, "--device", "cpu")


class Inputs:
    """A folder with valid files, to be changed by one case.

    Parameters
    ----------
    folder
        Holds ``particles.star``, ``particles.mrcs`` and ``start.mrc``; other files are made when they are asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.star, self.stack, self.start = (
            folder / name for name in ("particles.star", "particles.mrcs", "start.mrc")
        )
        self.out = folder / "out"

    @classmethod
    def made(cls, folder: Path, box: int = BOX, particles: int = PARTICLES) -> Inputs:
        """Make particles and a starting map."""
        folder.mkdir(parents=True, exist_ok=True)
        density = blobs(box)
        write_particles(folder, particles, box, density=density, noise=1.0)
        write_map(folder / "start.mrc", density, PIXEL_SIZE)
        return cls(folder)

    def copy(self, folder: Path) -> Inputs:
        """The same files in another folder."""
        shutil.copytree(self.folder, folder)
        return Inputs(folder)

    # ------------------------------------------------------------------------------------------------------- commands
    def refine(self, *words: object) -> list[object]:
        """A short refinement of whatever the files hold by now; later words win."""
        return ["refine", "--particles", self.star, "--reference", self.start, "--output", self.out, *QUICK, *words]

    def reconstruct(self, *words: object) -> list[object]:
        """A reconstruction, which is less strict about half sets."""
        self.out.mkdir(exist_ok=True)
        return ["reconstruct", "--particles", self.star, "--output", self.out / "map.mrc", "--threads", 1,
                "--device", "cpu", *words]  # fmt: skip

    def halves(self, command: str, *words: object) -> list[object]:
        """A command on two half maps, which are made here unless a case has made others."""
        first, second = self.folder / "half1.mrc", self.folder / "half2.mrc"
        for path, data in zip((first, second), half_maps(MAP_BOX, PIXEL_SIZE, noise=0.05), strict=True):
            if not path.exists():
                write_map(path, data, PIXEL_SIZE)
        device = () if command in ("fsc", "postprocess") else ("--device", "cpu")
        return [command, first, second, "--output", self.out, "--threads", 1, *device, *words]

    def select(self, *words: object) -> list[object]:
        """A selection of the particles."""
        return ["select", "--particles", self.star, "--output", self.out / "kept.star", *words]

    def ctf_refine(self, *words: object) -> list[object]:
        """A CTF refinement against half maps, which are made here unless a case has made others."""
        paths, rng = (self.folder / "half1.mrc", self.folder / "half2.mrc"), np.random.default_rng(3)
        for path in paths:
            noise = 0.3 * rng.normal(size=(BOX,) * 3)
            if not path.exists():
                write_map(path, (blobs(BOX) + noise).astype(np.float32), PIXEL_SIZE)
        return ["ctf-refine", "--particles", self.star, "--half1", paths[0], "--half2", paths[1], "--output", self.out,
                "--threads", 1, *words]  # fmt: skip

    def compare(self, *words: object, names: tuple[str, str] = ("one", "two")) -> list[object]:
        """A comparison of two finished runs, which are made here unless a case has made them."""
        for name in names:
            self.run(name)
        return ["compare", *(self.folder / name for name in names), "--output", self.out, "--threads", 1, *words]

    def report(self, **status: Any) -> list[object]:
        """The page of a run, whose folder is the output; ``status`` changes what status.json says."""
        self.out.mkdir(exist_ok=True)
        entry = {"iteration": 1, "stage": "local", "is_last": True, "crossing_0143": 9.0, "crossing_05": 12.0,
                 "step_deg": 7.5, "turned_deg": 1.0, "moved_A": 0.5, "spread_deg": 3.0, "rejected": 0}  # fmt: skip
        content = {"state": "finished", "iteration": 1, "wall_seconds": 3.0, "history": [entry]} | status
        (self.out / "status.json").write_text(json.dumps(content))
        return ["report", self.out]

    def convert(self, *words: object) -> list[object]:
        """particles.cs to a STAR file."""
        self.out.mkdir(exist_ok=True)
        return ["convert", self.folder / "particles.cs", self.out / "out.star", *words]

    # -------------------------------------------------------------------------------------------------------- changes
    def qualities(self, **columns: Any) -> Inputs:
        """Give the particles what a refinement has found of them."""
        rng = np.random.default_rng(5)
        found = {"sparsecvLogEvidence": rng.normal(30, 5, PARTICLES).tolist(),
                 "rlnNormCorrection": (1 + 0.05 * rng.normal(size=PARTICLES)).tolist()}  # fmt: skip
        return self.table(**found).table(**columns)

    def run(self, name: str) -> Path:
        """The folder of a finished refinement of the particles as they are by now; one that is there is left."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            shutil.copyfile(self.star, folder / "run_data.star")
            for number, data in enumerate(half_maps(BOX, PIXEL_SIZE, noise=0.05), 1):
                write_map(folder / f"run_half{number}_class001_unfil.mrc", data, PIXEL_SIZE)
        return folder

    def table(self, name: str = "particles", **columns: Any) -> Inputs:
        """Set columns of a table: a value for all rows, values, or a dict from row to value."""
        star = StarFile.read(self.star)
        table = star.table(name)
        for column, given in columns.items():
            if isinstance(given, dict):
                values = table.strings(column) if column in table else ["0"] * len(table)
                for row, value in given.items():
                    values[row] = value if isinstance(value, str) else repr(value)
            else:
                values = given if isinstance(given, list) else [given] * len(table)
            table.set(column, values)
        star.write(self.star)
        return self

    def without(self, column: str, name: str = "particles") -> Inputs:
        """Remove a column."""
        star = StarFile.read(self.star)
        star.table(name).drop(column)
        star.write(self.star)
        return self

    def keep(self, rows: list[int]) -> Inputs:
        """Keep some particles only."""
        star = StarFile.read(self.star)
        star.table("particles").keep(rows)
        star.write(self.star)
        return self

    def lines(self, change: Any) -> Inputs:
        """Change the lines of the STAR file, bytes."""
        lines = self.star.read_bytes().split(b"\n")
        self.star.write_bytes(b"\n".join(change(lines)))
        return self

    def images(self) -> np.ndarray:
        """All images, float32."""
        with mrcfile.open(self.stack, permissive=True) as file:
            return np.array(file.data, dtype=np.float32)

    def image(self, number: int, value: Any) -> Inputs:
        """Replace one image, or multiply it where ``value`` is a function."""
        images = self.images()
        images[number] = value(images[number]) if callable(value) else value
        write_stack(self.stack, images, PIXEL_SIZE)
        return self

    def stored_as(self, dtype: str, factor: float = 1.0, offset: float = 0.0, order: str = "<") -> Inputs:
        """Store the images in another mode or byte order."""
        images = self.images() * factor + offset
        data = (np.rint(images) if np.dtype(dtype).kind in "iu" else images).astype(dtype)
        with mrcfile.new(self.stack, overwrite=True) as file:
            file.set_data(data)
            file.set_image_stack()
            file.voxel_size = PIXEL_SIZE
            header = np.array(file.header)
        if order == ">":
            swapped = header.astype(header.dtype.newbyteorder(">"))
            swapped["machst"] = [0x11, 0x11, 0, 0]
            self.stack.write_bytes(swapped.tobytes() + data.astype(data.dtype.newbyteorder(">")).tobytes())
        return self

    def word(self, path: Path, number: int, value: Any, dtype: str = "<i4") -> Inputs:
        """Overwrite one 4-byte word of an MRC header, numbered from 1."""
        with path.open("r+b") as file:
            file.seek(4 * (number - 1))
            file.write(np.array(value, dtype=dtype).tobytes())
        return self

    def stretched(self, path: Path, shape: tuple[int, int, int]) -> Inputs:
        """Let an MRC file announce these sides; it has all the bytes that its header announces, and takes no space."""
        for number, side in enumerate(shape, 1):
            self.word(path, number, side)
        os.truncate(path, 1024 + 4 * int(np.prod(shape, dtype=np.int64)))
        return self

    def renamed(self, name: str) -> Inputs:
        """Give the stack another name, in the folder and in the STAR file."""
        self.stack.rename(self.folder / name)
        return self.named(name)

    def named(self, name: str) -> Inputs:
        """Let the STAR file name another stack."""
        return self.table(rlnImageName=[f"{row + 1:06d}@{name}" for row in range(PARTICLES)])

    def map(self, name: str, data: np.ndarray, pixel_size: float = PIXEL_SIZE, **more: Any) -> Path:
        """Write a map."""
        write_map(self.folder / name, data, pixel_size, **more)
        return self.folder / name

    def raw(self, name: str, content: bytes) -> Path:
        """Write bytes."""
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def mask(self, box: int = BOX) -> np.ndarray:
        """A soft sphere."""
        return sphere(box, 0.3 * box, 4)

    def cs(self, change: Any = None) -> Inputs:
        """particles.cs, of the STAR file; ``change`` makes another table of it."""
        from sparsecv.engine.io.cryosparc import cs_of_star

        table, _ = cs_of_star(self.star)
        table = table if change is None else change(table)
        write_cs(self.folder / "particles.cs", table)
        return self


def old_file(inputs: Inputs) -> None:
    """Write the particles as RELION 3.0 had them: no optics table, origins in pixels."""
    star = StarFile.read(inputs.star)
    table = star.table("particles")
    columns: dict[str, Any] = {name: table.strings(name) for name in table.columns if name != "rlnOpticsGroup"}
    for axis in "XY":
        columns[f"rlnOrigin{axis}"] = (table.floats(f"rlnOrigin{axis}Angst") / PIXEL_SIZE).tolist()
        del columns[f"rlnOrigin{axis}Angst"]
    rows = len(table)
    columns |= {"rlnVoltage": [300.0] * rows, "rlnSphericalAberration": [2.7] * rows,
                "rlnAmplitudeContrast": [0.1] * rows, "rlnDetectorPixelSize": [1e-4 * PIXEL_SIZE * 5e4] * rows,
                "rlnMagnification": [5e4] * rows}  # fmt: skip
    old = StarFile.new()
    old.add_loop("images", columns)
    old.write(inputs.star)


def with_field(table: np.ndarray, name: str, dtype: Any, values: Any) -> np.ndarray:
    """A .cs table with a field of another type."""
    kept = [(one, table.dtype[one]) for one in table.dtype.names if one != name]
    found = np.zeros(len(table), dtype=[*kept, (name, dtype)])
    for one, _ in kept:
        found[one] = table[one]
    found[name] = values
    return found


def without_field(table: np.ndarray, name: str) -> np.ndarray:
    """A .cs table without a field."""
    found = np.zeros(len(table), dtype=[(one, table.dtype[one]) for one in table.dtype.names if one != name])
    for one in found.dtype.names:
        found[one] = table[one]
    return found


__all__ = ["BOX", "MAP_BOX", "PARTICLES", "PIXEL_SIZE", "Inputs", "old_file", "read_cs", "with_field", "without_field"]
