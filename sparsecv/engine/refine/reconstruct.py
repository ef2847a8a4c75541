# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconstruction from known poses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import write_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.results import refuse_to_replace
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.physics.masks import fade_corners
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine.accumulator_files import WHOLE, Origin, accumulator_path, write_accumulators
from sparsecv.engine.refine.half import Particles
from sparsecv.engine.refine.prepare import particle_diameter
from sparsecv.engine.refine.schedule import Geometry
from sparsecv.engine.refine.settings import ReconstructSettings
from sparsecv.engine.refine.sidebands import SIDEBAND_BYTES, EwaldSlices, check_ewald
from sparsecv.engine.refine.volumes import PADDING, Accumulator
from sparsecv.engine.threads import keep_freed_memory, use_threads
from sparsecv.kernels import ops

LARGEST_BATCH = 128  # images: their transforms still fit a processor's cache
RING_DEG = 20.0  # width of the rings of views along which images are put in order
BYTES_PER_PIXEL = 24  # of an image: itself, its transform, its CTF, and copies of them


def reconstruct(settings: ReconstructSettings) -> list[Path]:
    """Backproject particles at the poses of their STAR file; returns the files written.

    Unregularised and unmasked but for the box's corners: V = sum C X / sum C^2, corrected for the kernel.
    """
    use_threads(settings.threads)
    keep_freed_memory()
    kernels = ops(settings.device)
    table = ParticleTable.read(settings.particles, settings.data_dir, independent_halves=False)
    rotations, groups = table.rotations, _groups(settings, table)
    refuse_to_replace(_outputs(settings, groups), (settings.particles, *table.stacks))
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    diameter = particle_diameter(settings.particle_diameter, table.smallest_side)
    geometry = Geometry(table.box, table.pixel_size, diameter)
    matrices = symmetry_matrices(settings.symmetry)
    particles = Particles.of(kernels, table, geometry, matrices, settings.batch_memory,
                             intact_first_peak=settings.intact_first_peak, kernel=settings.kernel)
    if settings.ewald:
        check_ewald(table)
    last = max(geometry.shell_of(settings.resolution), 2) if settings.resolution > 0 else geometry.nyquist_shell
    sums: dict[str, Accumulator] = {}
    written: list[Path] = []
    for name, rows in groups.items():
        parts = _alternating(table, rows) if settings.keep_accumulators else [rows]
        found = [_backproject(kernels, particles, rotations, part, last, settings).completed(kernels, matrices)
                 for part in parts]
        if settings.keep_accumulators:
            half = int(name[-1]) if name else WHOLE
            origin = Origin(table.pixel_size, settings.symmetry)
            written += write_accumulators(kernels, settings.output.with_suffix(""), half, found, origin)
        sums[name] = found[0] if len(found) == 1 else found[0] + found[1]
        del found  # gigabytes, at the largest boxes
    if settings.halves:
        first, second = sums.values()
        sums[""] = first + second
    for name, total in sums.items():
        density = kernels.to_host(fade_corners(total.solve(kernels), kernels.xp))
        write_map(_named(settings, name), density, table.pixel_size, label="sparsecv reconstruct")
        written.append(_named(settings, name))
    return written


def _outputs(settings: ReconstructSettings, groups: Iterable[str]) -> list[Path]:
    """All files that are to be written: maps, sums of quarters, and the record of the settings."""
    names = dict.fromkeys((*groups, ""))
    found = [*(_named(settings, name) for name in names), settings.output.with_suffix(".toml")]
    if settings.keep_accumulators:
        found += [accumulator_path(settings.output.with_suffix(""), int(name[-1]) if name else WHOLE, quarter)
                  for name in groups for quarter in (0, 1)]  # fmt: skip
    return found


def _named(settings: ReconstructSettings, name: str) -> Path:
    """The output with something added to its name."""
    return settings.output.with_name(settings.output.stem + name + settings.output.suffix)


def _alternating(table: ParticleTable, rows: np.ndarray) -> list[np.ndarray]:
    """Two quarters of some rows, every other one in the order of the STAR file."""
    ordered = rows[np.argsort(table.identifiers[rows], kind="stable")]
    return [ordered[0::2], ordered[1::2]]


def _groups(settings: ReconstructSettings, table: ParticleTable) -> dict[str, np.ndarray]:
    """Rows of each map to be made, by what is added to the map's name; InputError for a half set without particles."""
    if not settings.halves and not settings.subset:
        return {"": np.arange(len(table))}
    groups = {}
    for number in (1, 2) if settings.halves else (settings.subset,):
        rows = np.flatnonzero(table.halves == number)
        if not len(rows):
            raise InputError(f"no particle is in half set {number}", file=settings.particles,
                             rule="column rlnRandomSubset, 1 or 2",
                             remedy="reconstruct all particles, or give those of an earlier refinement")
        groups[f"_half{number}" if settings.halves else ""] = rows
    return groups


def _backproject(
    kernels: Any, particles: Particles, rotations: np.ndarray, rows: np.ndarray, last: int,
    settings: ReconstructSettings,
) -> Accumulator:  # fmt: skip
    """Sums over some rows, each image at its one pose with weight 1."""
    xp, table = kernels.xp, particles.table
    disc = particles.disc.crop(last)
    # Row by row, and images seen from alike directions one after another: what is added to stays in the cache.
    order = np.lexsort((disc.kx, disc.ky))
    kx, ky, flat = disc.kx[order], disc.ky[order], disc.flat[order]
    rows = rows[_by_direction(rotations[rows])]
    accumulator = Accumulator.empty(kernels, table.box, last, particles.kernel)
    pixels = xp.asarray(kx), xp.asarray(ky)
    slices = particles.ewald_slices(kernels, last, settings.hand) if settings.ewald else None
    bytes_per_pixel = BYTES_PER_PIXEL if slices is None else SIDEBAND_BYTES
    size = int(np.clip(particles.batch_bytes / (bytes_per_pixel * table.box**2), 1, LARGEST_BATCH))
    with accumulator.adding(kernels) as add:
        for start in range(0, len(rows), size):
            index = rows[start : start + size]
            if slices is not None:
                _add_sidebands(kernels, particles, index, rotations[index], slices, add)
                continue
            images, ctf2, good = _weighted(kernels, particles, index, kx, ky, flat, not settings.no_ctf)
            add(images, ctf2, xp.asarray(good[:, None].astype(np.float32)),
                xp.asarray(rotations[index].astype(np.float32)), xp.arange(len(index), dtype=xp.int32),
                *pixels, PADDING)  # fmt: skip
    return accumulator


def _add_sidebands(
    kernels: Any, particles: Particles, index: np.ndarray, rotations: np.ndarray, slices: EwaldSlices,
    add: Callable[..., None],
) -> None:  # fmt: skip
    """Add images ``index`` with the curvature of the Ewald sphere, each at its one pose with weight 1."""
    xp, table = kernels.xp, particles.table
    images, good = table.read_images(index)
    shifts = table.shifts[index] / table.pixel_size
    centre, groups = np.rint(shifts).astype(np.int64), table.optics_index[index]
    sums = slices.sums(kernels, xp.asarray(images), centre, particles.parameters[index], groups)
    slices.deposit(kernels, add, sums, groups, xp.asarray((shifts - centre)[:, None].astype(np.float32)),
                   xp.asarray(good[:, None].astype(np.float32)), xp.asarray(rotations.astype(np.float32)),
                   xp.arange(len(index), dtype=xp.int32))  # fmt: skip


def _by_direction(rotations: np.ndarray) -> np.ndarray:
    """Order (n,) in which alike views follow one another: ring by ring about z, to and fro along the rings."""
    views = rotations[:, 2] * np.where(rotations[:, 2, 2:] < 0, -1, 1)  # opposite views have the same slice
    ring = np.floor(np.arccos(np.minimum(views[:, 2], 1)) / np.deg2rad(RING_DEG))
    along = np.arctan2(views[:, 1], views[:, 0])
    return np.lexsort((np.where(ring % 2, -along, along), ring))


def _weighted(kernels: Any, particles: Particles, index: np.ndarray, kx: np.ndarray, ky: np.ndarray, flat: np.ndarray,
              with_ctf: bool) -> tuple[Any, Any, np.ndarray]:
    """C X (I, 1, J) of centred images, C^2 (I, J), and which images are good (I,)."""
    xp, table = kernels.xp, particles.table
    images, good = table.read_images(index)
    transforms = kernels.rfft2(xp.asarray(images)).reshape(len(index), -1).take(xp.asarray(flat), axis=1)
    values = xp.ones((len(index), len(kx)), dtype=xp.float32)
    if with_ctf or particles.parameters.limit is not None:
        values = ctf(particles.parameters[index], kx, ky, table.box, table.pixel_size, xp=xp,
                     intact_first_peak=particles.intact_first_peak)
    if not with_ctf:
        values = (values != 0).astype(xp.float32)  # beyond its limit an image has no weight
    transforms *= values * xp.float32(1 / table.box)
    # One shift centres the particle and brings the image's centre to pixel 0.
    shifts = (table.shifts[index] / table.pixel_size - table.box // 2)[:, None, :].astype(np.float32)
    moved = kernels.shift_images(transforms, xp.asarray(shifts), xp.asarray(kx), xp.asarray(ky), table.box)
    return moved, values * values, good
