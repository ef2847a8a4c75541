# SPDX-License-Identifier: GPL-3.0-or-later
"""A data set on disc for whole refinements: every image at a pose, shift and defocus of its own, with its own noise.

Stacks are in mode 12 (float16), half of the usual size, which the engine reads as it reads any other: 100,000 images of
256 px take 13 GB.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation
from synthetic import DIAMETER, LENGTH, NOISE, PER_MICROGRAPH, POWER, optics, phantom, pictures

from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters
from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.geometry import matrix_to_euler
from sparsecv.engine.refine.schedule import Geometry

PER_STACK = 1000
LARGEST_MOVE = 3  # pixels, whole ones, so that images are moved by rolling
START = 40.0  # A, of the starting map
ABOUT = "dataset.json"


@dataclass(frozen=True)
class DataSet:
    """Files and truth of a data set."""

    folder: Path
    rotations: np.ndarray

    @property
    def particles(self) -> Path:
        """STAR file without poses."""
        return self.folder / "particles.star"

    @property
    def reference(self) -> Path:
        """The truth, low-pass filtered."""
        return self.folder / "reference.mrc"


def data_set(ops: Any, work: Path, box: int, particles: int, *, threads: int = 1, seed: int = 1) -> DataSet:
    """The data set of that size in the work folder, made where it is not there yet."""
    folder = work / f"synthetic_{box}_{particles}"
    rotations = Rotation.random(particles, random_state=seed).as_matrix()
    wanted = {"box": box, "particles": particles, "seed": seed, "power": POWER, "length": LENGTH}
    about = folder / ABOUT
    if not about.is_file() or json.loads(about.read_text()) != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        _write(ops, folder, box, rotations, threads, seed)
        about.write_text(json.dumps(wanted))
    return DataSet(folder, rotations)


def _write(ops: Any, folder: Path, box: int, rotations: np.ndarray, threads: int, seed: int) -> None:
    geometry, count = Geometry(box, LENGTH / box, DIAMETER), len(rotations)
    density = phantom(box)
    parameters = optics(-(-count // PER_MICROGRAPH), seed)[np.arange(count) // PER_MICROGRAPH]
    few = np.arange(min(count, 64))
    sample = np.concatenate(list(pictures(ops, density, geometry, rotations[few], parameters[few])))
    density *= np.float32(np.sqrt(POWER * 2 * NOISE / np.mean((sample**2).sum(axis=(1, 2)))))
    rng = np.random.default_rng([seed, 11])
    moves = rng.integers(-LARGEST_MOVE, LARGEST_MOVE + 1, (count, 2))
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, PER_STACK):
            rows = np.arange(start, min(start + PER_STACK, count))
            images = np.concatenate(list(pictures(ops, density, geometry, rotations[rows], parameters[rows])))
            path = folder / f"stack{start // PER_STACK:04d}.mrcs"
            waiting.append(pool.submit(_write_stack, path, images, moves[rows], geometry.pixel_size, [seed, 13, start]))
            if len(waiting) > threads:  # no more in memory than threads can write
                waiting.pop(0).result()
        for future in waiting:
            future.result()
    write_map(folder / "truth.mrc", density, geometry.pixel_size)
    write_map(folder / "reference.mrc", low_pass(density, geometry.pixel_size, START), geometry.pixel_size)
    _write_star(folder / "particles.star", geometry, parameters)
    _write_star(folder / "truth.star", geometry, parameters, rotations, -moves)


def _write_stack(path: Path, images: np.ndarray, moves: np.ndarray, pixel_size: float, seed: list[int]) -> None:
    rng = np.random.default_rng(seed)
    for image, (x, y) in zip(images, moves.tolist(), strict=True):
        image[:] = np.roll(image, (y, x), (0, 1))
        image += rng.standard_normal(image.shape, dtype=np.float32)
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(images.astype(np.float16))
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size


def _write_star(
    path: Path, geometry: Geometry, parameters: CtfParameters, rotations: np.ndarray | None = None,
    origins: np.ndarray | None = None,
) -> None:  # fmt: skip
    count = len(parameters)
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [geometry.pixel_size],
        "rlnImageSize": [geometry.box], "rlnImageDimensionality": [2],
    })  # fmt: skip
    columns: dict[str, Any] = {
        "rlnImageName": [f"{i % PER_STACK + 1:06d}@{path.parent}/stack{i // PER_STACK:04d}.mrcs" for i in range(count)],
        "rlnMicrographName": [f"micrograph{i // PER_MICROGRAPH + 1:05d}.mrc" for i in range(count)],
        "rlnOpticsGroup": np.ones(count, dtype=int), "rlnDefocusU": parameters.defocus_u.round(2),
        "rlnDefocusV": parameters.defocus_v.round(2), "rlnDefocusAngle": parameters.defocus_angle.round(3),
    }  # fmt: skip
    if rotations is not None and origins is not None:
        rot, tilt, psi = matrix_to_euler(rotations).T
        columns |= {"rlnAngleRot": rot, "rlnAngleTilt": tilt, "rlnAnglePsi": psi,
                    "rlnOriginXAngst": origins[:, 0] * geometry.pixel_size,
                    "rlnOriginYAngst": origins[:, 1] * geometry.pixel_size}  # fmt: skip
    star.add_loop("particles", columns)
    star.write(path)
