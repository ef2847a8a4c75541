# SPDX-License-Identifier: GPL-3.0-or-later
"""Particles made on the fly: a table of any length whose images are put together when they are asked for.

A million images of 360 px are half a terabyte, which few machines can store. Here an image is one of a few thousand
noise-free projections of a phantom, each at a pose and defocus of its own, plus noise that no other image has: a piece
of a long list of random numbers that begins somewhere else for each image. So posteriors are as wide, and searches keep
as many cells, as with images that were measured; what is missing is more than a few thousand different poses, which
nothing here takes advantage of, and the disc: putting an image together costs the host about what reading it from
memory would, and is timed (`SyntheticStack.seconds`).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.geometry import matrix_to_euler
from sparsecv.engine.refine.images import ctf_images
from sparsecv.engine.refine.schedule import Geometry
from sparsecv.engine.refine.volumes import PADDING, map_to_volume
from sparsecv.engine.simulate.phantom import membrane_protein
from sparsecv.engine.simulate.potential import potential_map
from sparsecv.engine.threads import available_cores

LENGTH = 270.0  # A, side of the box
DIAMETER = 150.0  # A; the phantom, 95 kDa, is 120 A long
BFACTOR = 80.0  # A^2, of all atoms
POWER = 1000.0  # sum of C^2 |P|^2 / sigma^2 over the pixels, which decides how sharp posteriors are
NOISE = 0.5  # sigma^2 per real component of a transform divided by the box, of white noise of variance 1
PER_MICROGRAPH = 100
SMALLEST_COUNT = 1 << 22  # of random numbers


@dataclass(frozen=True)
class Specimen:
    """What is looked at, and from where.

    Attributes
    ----------
    density
        (box, box, box) float32, so scaled that an image's noise has variance 1.
    geometry
        Sizes.
    rotations, parameters
        (views, 3, 3) poses, and the CTF of each view.
    views
        (views, box, box) float32 noise-free images.
    """

    density: np.ndarray
    geometry: Geometry
    rotations: np.ndarray
    parameters: CtfParameters
    views: np.ndarray

    @classmethod
    def of(cls, ops: Any, box: int, views: int, seed: int = 1) -> Specimen:
        """The phantom in a box of 270 A, seen at random."""
        geometry = Geometry(box, LENGTH / box, DIAMETER)
        density = phantom(box)
        rotations = Rotation.random(views, random_state=seed).as_matrix()
        parameters = optics(views, seed)
        few = min(views, 64)
        images = list(pictures(ops, density, geometry, rotations[:few], parameters[np.arange(few)]))
        # Parseval: with X divided by the box, the sum of |X|^2 over all pixels is that of the squared image
        power = np.mean([(image**2).sum() for image in np.concatenate(images)]) / 2 / NOISE
        density *= np.float32(np.sqrt(POWER / power))
        seen = np.concatenate(list(pictures(ops, density, geometry, rotations, parameters)))
        return cls(density, geometry, rotations, parameters, seen)


def phantom(box: int) -> np.ndarray:
    """The phantom (box, box, box), float32, in a box of 270 A.

    All of its atoms are carbon with one B-factor: a transform for each element and B-factor takes minutes at 256 px.
    """
    atoms, _ = membrane_protein(1)
    alike = replace(atoms, elements=np.full(len(atoms), "C"), b_factors=np.zeros(len(atoms)))
    return potential_map(alike, box, LENGTH / box, BFACTOR, threads=max(1, available_cores() // 2))


def optics(count: int, seed: int) -> CtfParameters:
    """CTFs at 300 kV, 0.8 to 2.5 um underfocus, a little astigmatic."""
    rng = np.random.default_rng([seed, 3])
    middle, half = rng.uniform(0.8e4, 2.5e4, count), rng.uniform(0, 150, count)
    constants = {"phase_shift": 0.0, "bfactor": 0.0, "scale": 1.0, "voltage_kv": 300.0, "cs_mm": 2.7,
                 "amplitude_contrast": 0.1}  # fmt: skip
    return CtfParameters(defocus_u=middle + half, defocus_v=middle - half, defocus_angle=rng.uniform(0, 180, count),
                         **{name: np.full(count, value) for name, value in constants.items()})  # fmt: skip


def pictures(
    ops: Any, density: np.ndarray, geometry: Geometry, rotations: np.ndarray, parameters: CtfParameters, size: int = 64
) -> Any:
    """Noise-free images (n, box, box) float32 on the host, ``size`` at a time, by the engine's own slices."""
    xp, box, disc = ops.xp, geometry.box, make_disc(geometry.box)
    pixels, half = disc.on(xp), geometry.box // 2 + 1
    volume = map_to_volume(ops, xp.asarray(density), disc.last)
    # phases that bring the centre from pixel 0 to box // 2; and where the mates on the axis kx = 0 belong
    signs = xp.asarray((box * (-1.0) ** (disc.kx + disc.ky)).astype(np.float32))
    on_axis = np.flatnonzero(disc.kx == 0)
    mates = xp.asarray((-disc.ky[on_axis] % box).astype(np.int64) * half)
    on_axis = xp.asarray(on_axis)
    for start in range(0, len(rotations), size):
        rows = np.arange(start, min(start + size, len(rotations)))
        turns = xp.asarray(rotations[rows].astype(np.float32))
        slices = ops.extract_slices(volume, turns, pixels.kx, pixels.ky, PADDING) * signs
        slices = slices * ctf_images(ops, parameters[rows], np.ones(len(rows)), disc, geometry.pixel_size)
        transform = xp.zeros((len(rows), box * half), dtype=xp.complex64)
        transform[:, pixels.flat] = slices
        transform[:, mates] = slices[:, on_axis].conj()
        yield ops.to_host(xp.fft.irfft2(transform.reshape(len(rows), box, half), s=(box, box)).astype(xp.float32))


class SyntheticStack:
    """Images by number: a view, and noise of their own.

    Attributes
    ----------
    seconds
        Wall time spent so far on putting images together.
    """

    def __init__(self, views: np.ndarray, seed: int = 1, threads: int = 1, noise: int | None = None) -> None:
        self._views, self._threads, self.seconds = views, threads, 0.0
        pixels = views[0].size
        count = max(8 * pixels, SMALLEST_COUNT) if noise is None else noise
        self._noise = np.random.default_rng([seed, 5]).standard_normal(count, dtype=np.float32)
        self._room = count - pixels

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Images (k, box, box) float32."""
        started = time.perf_counter()
        out = np.empty((len(numbers), *self._views.shape[1:]), np.float32)
        pieces = np.array_split(np.arange(len(numbers)), self._threads)
        if self._threads == 1:
            self._fill(out, numbers, pieces[0])
        else:
            with ThreadPoolExecutor(self._threads) as pool:  # NumPy adds without holding the interpreter
                list(pool.map(lambda piece: self._fill(out, numbers, piece), pieces))
        self.seconds += time.perf_counter() - started
        return out

    def _fill(self, out: np.ndarray, numbers: np.ndarray, piece: np.ndarray) -> None:
        for place in piece.tolist():
            number = int(numbers[place])
            # multiplication by a large odd number scatters the beginnings; 2^64 is cut off
            start = (number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) % self._room
            noise = self._noise[start : start + self._views[0].size]
            np.add(self._views[number % len(self._views)].ravel(), noise, out=out[place].ravel())


def table_of(specimen: Specimen, particles: int, stack: SyntheticStack) -> ParticleTable:
    """A table of as many particles as wanted, with true poses, in micrographs of a hundred."""
    geometry, view = specimen.geometry, np.arange(particles) % len(specimen.rotations)
    group = OpticsGroup("opticsGroup1", 1, geometry.pixel_size, geometry.box, 300.0, 2.7, 0.1)
    micrograph = (np.arange(particles) // PER_MICROGRAPH).astype(np.int32)
    names = tuple(f"micrograph{number + 1:06d}.mrc" for number in range(int(micrograph[-1]) + 1))
    parameters = specimen.parameters[view]
    return ParticleTable(
        star=StarFile.new(), table_name="particles", path=Path("synthetic.star"), optics=(group,),
        optics_index=np.zeros(particles, np.int32), stacks=(Path("synthetic.mrcs"),),
        stack_index=np.zeros(particles, np.int32), image_index=np.arange(particles, dtype=np.int64),
        defocus_u=parameters.defocus_u, defocus_v=parameters.defocus_v, defocus_angle=parameters.defocus_angle,
        phase_shift=parameters.phase_shift, ctf_bfactor=parameters.bfactor, ctf_scale=parameters.scale,
        angles=matrix_to_euler(specimen.rotations[view]), shifts=np.zeros((particles, 2)),
        halves=(1 + np.arange(particles) % 2).astype(np.int8), micrograph_index=micrograph, micrograph_names=names,
        group_index=micrograph, group_names=names, identifiers=np.arange(particles, dtype=np.int64), warnings=(),
        readers=(stack,),  # type: ignore[arg-type]
    )  # fmt: skip

