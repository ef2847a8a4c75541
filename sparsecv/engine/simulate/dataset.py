# SPDX-License-Identifier: GPL-3.0-or-later
"""A single-particle data set with known poses, from atoms to STAR files.

image = noise + gain * shift(CTF * projection), with white noise of variance 1. The CTF is applied in a box of twice the
size and cropped, so delocalised signal leaves the box as it does in real data. Maps are written on the grey scale of
the images, so that a reconstruction from ``truth.star`` gives ``truth.mrc`` without scaling.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text
from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters, ctf
from sparsecv.engine.physics.fourier import low_pass
from sparsecv.engine.physics.geometry import euler_to_matrix
from sparsecv.engine.physics.masks import raised_cosine
from sparsecv.engine.simulate.belt import BeltModel, Membrane, find_membrane
from sparsecv.engine.simulate.frame import turned_to_symmetry
from sparsecv.engine.simulate.phantom import membrane_protein
from sparsecv.engine.simulate.potential import Atoms, potential_map, read_model
from sparsecv.engine.simulate.project import central_slices, half_plane, images_of, shift_phases
from sparsecv.engine.simulate.settings import SimulateSettings

CTF_PADDING = 2
DEFOCUS_SPREAD = 150.0  # A, standard deviation within a micrograph
BELT_WIDTH = 26.0  # A beyond the protein in the membrane
MASK_REACH, MASK_EDGE = 4.0, 6.0  # A from the atoms
# Streams of random numbers, so that one part of the simulation does not change another.
POSES, OPTICS, NOISE, BELTS = range(4)


@dataclass(frozen=True)
class SimulatedFiles:
    """Where the parts of a data set are; ``particles`` has no poses, ``truth`` has."""

    stack: Path
    particles: Path
    truth: Path
    truth_map: Path
    mask: Path
    reference: Path
    description: Path


@dataclass(frozen=True)
class _Views:
    """Poses and optics of the particles, one row each: degrees and A."""

    rot: NDArray[np.float64]
    tilt: NDArray[np.float64]
    psi: NDArray[np.float64]
    displacement: NDArray[np.float64]
    micrograph: NDArray[np.int64]
    optics: CtfParameters


def simulate(settings: SimulateSettings) -> SimulatedFiles:
    """Write a data set.

    Parameters
    ----------
    settings
        What to simulate and where.

    Returns
    -------
    The files: ``particles.mrcs``, ``particles.star``, ``truth.star``, ``truth.mrc``, ``mask_protein.mrc``,
    ``reference.mrc`` and ``simulate.json`` in the output folder, each replaced as a whole.

    Raises
    ------
    InputError
        Where the model cannot be used or does not fit into the box.
    """
    s = settings
    atoms, membrane = _particle(s)
    potential = potential_map(atoms, s.box, s.pixel_size, s.bfactor, threads=s.threads)
    distance = _distance_to_atoms(atoms, s.box, s.pixel_size)
    belts, reach = None, atoms.radius
    if membrane is not None:
        belts = BeltModel(raised_cosine(distance - 2.0, 3.0), s.pixel_size, membrane)
        reach = max(reach, float(np.linalg.norm(membrane.centre)) + membrane.radius + BELT_WIDTH)
    radius = min(reach + 5.0, 0.475 * s.box * s.pixel_size)
    views = _draw_views(s)
    images = _Images(s, potential, views, belts, radius)
    s.output.mkdir(parents=True, exist_ok=True)
    names = ("particles.mrcs", "particles.star", "truth.star", "truth.mrc", "mask_protein.mrc", "reference.mrc",
             "simulate.json")
    files = SimulatedFiles(*(s.output / name for name in names))
    write_stack(files.stack, images, s.pixel_size)
    truth = images.gain * potential
    write_map(files.truth_map, truth, s.pixel_size)
    write_map(files.mask, raised_cosine(distance - MASK_REACH, MASK_EDGE), s.pixel_size)
    reference = low_pass(truth, s.pixel_size, s.reference_lowpass) if s.reference_lowpass > 2 * s.pixel_size else truth
    write_map(files.reference, reference, s.pixel_size)
    _write_star(files.particles, s, views, with_poses=False)
    _write_star(files.truth, s, views, with_poses=True)
    derived = {"atoms": len(atoms), "mass_kda": round(atoms.mass_kda, 2), "particle_diameter": round(2 * radius, 1),
               "grey_per_volt": images.gain}
    atomic_text(files.description, json.dumps(s.as_dict() | derived, indent=1) + "\n")
    return files


def _particle(s: SimulateSettings) -> tuple[Atoms, Membrane | None]:
    """The atoms, and where the belt is to run (None: no belt is wanted)."""
    if s.model is None:
        atoms, membrane = membrane_protein(s.seed, s.symmetry)
        if s.belt and membrane is None:
            raise InputError("this built-in particle spans no membrane", item="belt", value=s.symmetry,
                             rule="a symmetry Cn", remedy="simulate without a belt, or from a model")
        return atoms, membrane if s.belt else None
    atoms = read_model(s.model, assembly=s.assembly)
    if s.symmetry != "C1":
        atoms = turned_to_symmetry(atoms, s.symmetry)
    return atoms, find_membrane(atoms) if s.belt else None


def _distance_to_atoms(atoms: Atoms, box: int, pixel_size: float) -> NDArray[np.float32]:
    """Distance of every voxel from the nearest voxel that holds an atom, A, shape (n, n, n)."""
    voxels = np.rint(atoms.positions[:, ::-1] / pixel_size).astype(int) + box // 2
    empty = np.ones((box,) * 3, dtype=bool)
    empty[tuple(np.clip(voxels, 0, box - 1).T)] = False
    return (ndimage.distance_transform_edt(empty) * pixel_size).astype(np.float32)


def _draw_views(s: SimulateSettings) -> _Views:
    rng = np.random.default_rng([s.seed, POSES])
    n = s.particles
    uniform = rng.uniform(0, 1, n)
    # Inverse of the cumulative von Mises-Fisher distribution of cos(tilt); its limit for no preference is uniform.
    if s.preference > 0:
        cos_tilt = 1 + np.log(uniform + (1 - uniform) * np.exp(-2 * s.preference)) / s.preference
    else:
        cos_tilt = 2 * uniform - 1
    rot, psi = rng.uniform(-180, 180, n), rng.uniform(-180, 180, n)
    displacement = rng.uniform(-s.shift, s.shift, (n, 2))
    rng = np.random.default_rng([s.seed, OPTICS])
    micrograph = np.arange(n) // s.particles_per_micrograph
    count = micrograph[-1] + 1
    mean = rng.uniform(s.defocus_min, s.defocus_max, count)[micrograph] + rng.normal(0, DEFOCUS_SPREAD, n)
    mean = np.clip(mean, s.defocus_min, s.defocus_max)
    half_difference = np.abs(rng.normal(0, s.astigmatism, count))[micrograph] / 2
    optics = CtfParameters(
        defocus_u=mean + half_difference,
        defocus_v=mean - half_difference,
        defocus_angle=rng.uniform(0, 180, count)[micrograph],
        phase_shift=np.full(n, s.phase_shift),
        bfactor=np.zeros(n),
        scale=np.ones(n),
        voltage_kv=np.full(n, s.voltage_kv),
        cs_mm=np.full(n, s.cs_mm),
        amplitude_contrast=np.full(n, s.amplitude_contrast),
    )
    return _Views(rot, np.rad2deg(np.arccos(np.clip(cos_tilt, -1, 1))), psi, displacement, micrograph, optics)


class _Images:
    """The particle images in batches; the gain is set on the first batch, which is kept."""

    def __init__(
        self,
        s: SimulateSettings,
        potential: NDArray[np.float32],
        views: _Views,
        belts: BeltModel | None,
        radius: float,
    ) -> None:
        self._settings, self._potential, self._views, self._belts = s, potential, views, belts
        self._padded = CTF_PADDING * s.box
        self._kx, self._ky = half_plane(self._padded)
        size = int(np.clip(2**23 // len(self._kx), 8, 128))
        self._batches = [np.arange(i, min(i + size, s.particles)) for i in range(0, s.particles, size)]
        self._first = self._signal(self._batches[0])
        axis = (np.arange(s.box) - s.box // 2) * s.pixel_size
        circle = np.hypot(axis[:, None], axis[None, :]) <= radius
        self.gain = float(np.sqrt(s.snr / self._first[:, circle].var(axis=1).mean()))

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        s = self._settings
        for number, batch in enumerate(self._batches):
            images = np.stack([
                np.random.default_rng([s.seed, NOISE, particle]).standard_normal((s.box, s.box), dtype=np.float32)
                for particle in batch.tolist()
            ])
            if not s.noise_only:
                signal = self._first if number == 0 else self._signal(batch)
                images += np.float32(self.gain) * signal
            yield images

    def _signal(self, batch: NDArray[np.int64]) -> NDArray[np.float32]:
        """Images without noise, in volts: sums of voxels along the view direction."""
        s, views = self._settings, self._views
        rotations = euler_to_matrix(views.rot[batch], views.tilt[batch], views.psi[batch])
        kx, ky = self._kx / self._padded, self._ky / self._padded
        slices = central_slices(self._potential, rotations, kx, ky, threads=s.threads)
        if self._belts is not None:
            slices += self._belt_slices(self._belts, batch, rotations)
        slices *= ctf(views.optics[batch], self._kx, self._ky, self._padded, s.pixel_size)
        slices *= shift_phases(kx, ky, views.displacement[batch] / s.pixel_size)
        return images_of(slices, self._padded, s.box)

    def _belt_slices(
        self, belts: BeltModel, batch: NDArray[np.int64], rotations: NDArray[np.float64]
    ) -> NDArray[np.complex64]:
        """Transforms of the particles' own belts at `half_plane`, in units of the map's pixel."""
        s, kx, ky = self._settings, self._kx / self._padded, self._ky / self._padded
        step = belts.pixel_size / s.pixel_size
        inside = np.hypot(kx, ky) * step < 0.5  # what the belts' coarser grid can hold
        coarse_x, coarse_y = kx[inside] * step, ky[inside] * step
        envelope = np.exp(-s.bfactor / 4 * (kx**2 + ky**2)[inside] / s.pixel_size**2) * step**3
        slices = np.zeros((len(batch), len(kx)), dtype=np.complex64)
        for row, particle in enumerate(batch.tolist()):
            belt = belts.volume(np.random.default_rng([s.seed, BELTS, particle]))
            values = central_slices(belt, rotations[row : row + 1], coarse_x, coarse_y, threads=s.threads)
            slices[row, inside] = values[0] * envelope
        slices *= shift_phases(kx, ky, (rotations @ belts.centre)[:, :2] / s.pixel_size)
        return slices


def _write_star(path: Path, s: SimulateSettings, views: _Views, *, with_poses: bool) -> None:
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnVoltage": [s.voltage_kv],
        "rlnSphericalAberration": [s.cs_mm], "rlnAmplitudeContrast": [s.amplitude_contrast],
        "rlnImagePixelSize": [s.pixel_size], "rlnImageSize": [s.box], "rlnImageDimensionality": [2],
    })
    optics = asdict(views.optics)
    columns = {
        "rlnImageName": [f"{i + 1:06d}@particles.mrcs" for i in range(s.particles)],
        "rlnMicrographName": [f"micrograph{i + 1:05d}.mrc" for i in views.micrograph],
        "rlnOpticsGroup": np.ones(s.particles, dtype=int),
        "rlnDefocusU": optics["defocus_u"].round(2),
        "rlnDefocusV": optics["defocus_v"].round(2),
        "rlnDefocusAngle": optics["defocus_angle"].round(3),
        "rlnPhaseShift": optics["phase_shift"],
    }
    if with_poses:
        origins = -views.displacement
        columns |= {
            "rlnAngleRot": views.rot.round(5), "rlnAngleTilt": views.tilt.round(5), "rlnAnglePsi": views.psi.round(5),
            "rlnOriginXAngst": origins[:, 0].round(5), "rlnOriginYAngst": origins[:, 1].round(5),
        }
    star.add_loop("particles", columns)
    star.write(path)
