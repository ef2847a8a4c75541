# SPDX-License-Identifier: GPL-3.0-or-later
"""A small asymmetric map and exact images of it, for tests of single steps of a refinement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.io.mrc import write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.physics.geometry import matrix_to_euler
from sparsecv.engine.refine.images import ImageBatch
from sparsecv.engine.simulate.project import central_slices, half_plane, images_of, shift_phases

PIXEL_SIZE = 4.0
PADDING = 2


def blobs(box: int, *, count: int = 40, width: float = 1.2, seed: int = 1) -> np.ndarray:
    """Gaussian blobs within a third of the box from its centre, float32 (box, box, box), mean square 1."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 3))
    centres *= 0.3 * box * rng.random((count, 1)) ** (1 / 3) / np.linalg.norm(centres, axis=1, keepdims=True)
    axis = np.arange(box) - box // 2
    parts = [np.exp(-((axis[None, :] - centres[:, k, None]) ** 2) / (2 * width**2)) for k in range(3)]
    density = np.einsum("nz,ny,nx->zyx", *parts)
    return (density / np.sqrt((density**2).mean())).astype(np.float32)


def random_rotations(count: int, seed: int = 1) -> np.ndarray:
    """Uniformly distributed rotations (count, 3, 3)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, 3, 3)))
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    return q * np.linalg.det(q)[:, None, None]


def exact_slices(density: np.ndarray, rotations: np.ndarray, disc: Disc) -> np.ndarray:
    """Transforms of projections at the pixels of a disc, divided by the box; no interpolation."""
    box = disc.box
    return central_slices(density, rotations, disc.kx / box, disc.ky / box) / np.complex64(box)


def noise_of(shape: tuple[int, ...], sigma2: float, seed: int = 1) -> np.ndarray:
    """Complex noise with the variance sigma2 per real component."""
    rng = np.random.default_rng(seed)
    return np.sqrt(sigma2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def batch_of(images: np.ndarray, sigma2: float, contrast: np.ndarray | None = None) -> ImageBatch:
    """Images (I, J) that need no centring, with white noise and a CTF, by default 1."""
    count = len(images)
    values = np.ones(images.shape, dtype=np.float32) if contrast is None else contrast.astype(np.float32)
    inverse = np.full(images.shape, 1 / sigma2, dtype=np.float32)
    return ImageBatch(np.arange(count), np.zeros((count, 2), dtype=np.int64), images, images, values, inverse)


def write_particles(
    folder: Path,
    count: int,
    box: int,
    *,
    density: np.ndarray | None = None,
    noise: np.ndarray | float = 0.0,
    groups: np.ndarray | None = None,
    factors: np.ndarray | None = None,
    origins_px: np.ndarray | None = None,
    seed: int = 1,
) -> ParticleTable:
    """Write particles at random poses with their CTF, and read them back.

    Parameters
    ----------
    density
        Map that is projected exactly; None for images without signal.
    noise
        Images of noise (count, box, box), or the standard deviation of white noise.
    groups, factors
        Scale group of each particle, and the factor of each particle's signal.
    """
    rng = np.random.default_rng(seed)
    rotations = random_rotations(count, seed)
    origins = np.zeros((count, 2)) if origins_px is None else origins_px
    names = np.zeros(count, dtype=int) if groups is None else groups
    angles = matrix_to_euler(rotations)
    defocus = rng.uniform(10_000, 20_000, count)
    columns: dict[str, Any] = {
        "rlnImageName": [f"{number + 1:06d}@particles.mrcs" for number in range(count)],
        "rlnMicrographName": [f"micrograph{name}.mrc" for name in names],
        "rlnDefocusU": defocus, "rlnDefocusV": defocus, "rlnDefocusAngle": np.zeros(count),
        "rlnAngleRot": angles[:, 0], "rlnAngleTilt": angles[:, 1], "rlnAnglePsi": angles[:, 2],
        "rlnOriginXAngst": origins[:, 0] * PIXEL_SIZE, "rlnOriginYAngst": origins[:, 1] * PIXEL_SIZE,
        "rlnRandomSubset": 1 + np.arange(count) % 2, "rlnOpticsGroup": np.ones(count, dtype=int),
    }  # fmt: skip
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [PIXEL_SIZE], "rlnImageSize": [box],
        "rlnImageDimensionality": [2],
    })  # fmt: skip
    star.add_loop("particles", columns)
    star.write(folder / "particles.star")
    images = rng.normal(size=(count, box, box)) * noise if np.isscalar(noise) else np.array(noise)
    write_stack(folder / "particles.mrcs", images.astype(np.float32), PIXEL_SIZE)
    table = ParticleTable.read(folder / "particles.star")
    if density is not None:
        kx, ky = half_plane(box)
        slices = central_slices(density, table.rotations, kx / box, ky / box)
        slices *= ctf(table.ctf_parameters(), kx, ky, box, PIXEL_SIZE)
        slices *= shift_phases(kx / box, ky / box, -origins)
        if factors is not None:
            slices *= factors[:, None].astype(np.float32)
        write_stack(folder / "particles.mrcs", images.astype(np.float32) + images_of(slices, box, box), PIXEL_SIZE)
        table = ParticleTable.read(folder / "particles.star")
    return table
