# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconstruction from known poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.kernels import ops

from ..io.mrc import write_map
from ..io.particles import ParticleTable
from ..physics.symmetry import symmetry_matrices
from ..threads import use_threads
from .half import Particles
from .images import ImageBatch, ctf_images, transform_images
from .schedule import Geometry
from .settings import ReconstructSettings
from .volumes import PADDING, Accumulator


def reconstruct(settings: ReconstructSettings) -> list[Path]:
    """Backproject particles at the poses of their STAR file; returns the maps written.

    Unregularised and unmasked: V = sum C X / sum C^2, corrected for the kernel.
    """
    use_threads(settings.threads)
    kernels = ops(settings.device)
    table = ParticleTable.read(settings.particles, settings.data_dir, independent_halves=False)
    geometry = Geometry(table.box, table.pixel_size, table.box * table.pixel_size)
    matrices = symmetry_matrices(settings.symmetry)
    particles = Particles.of(kernels, table, geometry, matrices, settings.batch_memory,
                             intact_first_peak=settings.intact_first_peak, kernel=settings.kernel)
    last = geometry.shell_of(settings.resolution) if settings.resolution > 0 else geometry.nyquist_shell
    table.rotations  # noqa: B018 - raises where there are no poses
    if settings.halves:
        groups = {f"_half{number}": np.flatnonzero(table.halves == number) for number in (1, 2)}
    elif settings.subset:
        groups = {"": np.flatnonzero(table.halves == settings.subset)}
    else:
        groups = {"": np.arange(len(table))}
    sums = {name: _backproject(kernels, particles, rows, last, with_ctf=not settings.no_ctf) for name, rows in groups.items()}
    if settings.halves:
        first, second = sums.values()
        sums[""] = first + second
    written = []
    for name, total in sums.items():
        path = settings.output.with_name(settings.output.stem + name + settings.output.suffix)
        density = kernels.to_host(total.completed(kernels, matrices).solve(kernels))
        write_map(path, density, table.pixel_size, label="sparsecv reconstruct")
        written.append(path)
    return written


def _backproject(kernels: Any, particles: Particles, rows: np.ndarray, last: int, *, with_ctf: bool) -> Accumulator:
    """Sums over some rows, each image at its one pose with weight 1."""
    xp, table = kernels.xp, particles.table
    disc = particles.disc.crop(last)
    kx, ky = xp.asarray(disc.kx), xp.asarray(disc.ky)
    accumulator = Accumulator.empty(kernels, table.box, last, particles.kernel)
    shifts_px = table.shifts / table.pixel_size
    size = particles.batch_size(None, 0)
    for start in range(0, len(rows), size):
        index = rows[start : start + size]
        images, good = table.read_images(index)
        centre = np.rint(shifts_px[index]).astype(np.int64)
        _, transforms = transform_images(kernels, xp.asarray(images), centre, particles.circle, disc)
        ctf = xp.ones(transforms.shape, dtype=xp.float32)
        if with_ctf:
            ctf = ctf_images(kernels, particles.parameters[index], np.ones(len(index)), disc, table.pixel_size,
                             intact_first_peak=particles.intact_first_peak)
        moved = kernels.shift_images(
            transforms * ctf, xp.asarray((shifts_px[index] - centre)[:, None, :].astype(np.float32)), kx, ky, disc.box
        )
        kernels.backproject(
            moved, ctf * ctf, xp.asarray(good[:, None].astype(np.float32)),
            xp.asarray(table.rotations[index].astype(np.float32)), xp.arange(len(index), dtype=xp.int32), kx, ky, PADDING,
            accumulator.data, accumulator.weight, particles.kernel,
        )  # fmt: skip
    return accumulator
