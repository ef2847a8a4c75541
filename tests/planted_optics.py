# SPDX-License-Identifier: GPL-3.0-or-later
"""Particles of known poses, recorded with optics of which their STAR file says nothing, and their half maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tiny import blobs

from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters, defocus_of_terms, defocus_terms
from sparsecv.engine.physics.geometry import euler_to_matrix
from sparsecv.engine.simulate.record import recorded

BOX, PIXEL_SIZE, VOLTAGE, CS, CONTRAST = 48, 2.0, 300.0, 2.7, 0.1
PER_MICROGRAPH = 25


@dataclass(frozen=True)
class Planted:
    """What is wrong with the STAR file.

    Attributes
    ----------
    defocus
        Largest error of each particle's defocus, A, uniform to either side.
    astigmatism
        (2,) A: along and across, that every micrograph lacks.
    odd, even
        Coefficients of monomials, or None.
    matrix
        M, or None.
    """

    defocus: float = 0.0
    astigmatism: tuple[float, float] = (0.0, 0.0)
    odd: np.ndarray | None = None
    even: np.ndarray | None = None
    matrix: np.ndarray | None = None


@dataclass(frozen=True)
class Set:
    """Files of a set, and the true `defocus_terms`, (n, 3)."""

    star: Path
    halves: tuple[Path, Path]
    terms: np.ndarray


def make(folder: Path, planted: Planted, count: int = 200, noise: float = 1.0, seed: int = 1) -> Set:
    """Write ``particles.star``, its stack, and half maps: the truth with a little noise of their own."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((BOX,) * 3, dtype=np.float32)
    truth[4:-4, 4:-4, 4:-4] = blobs(BOX - 8, width=0.8, seed=3)  # the box holds what the CTF spreads
    angles = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arccos(rng.uniform(-1, 1, count))),
                       rng.uniform(-180, 180, count)])  # fmt: skip
    displacement = rng.uniform(-3, 3, (count, 2))
    u = rng.uniform(3000, 6000, count // PER_MICROGRAPH + 1)[np.arange(count) // PER_MICROGRAPH]
    optics = CtfParameters(
        defocus_u=u + 100, defocus_v=u - 100, defocus_angle=np.full(count, 30.0), phase_shift=np.zeros(count),
        bfactor=np.zeros(count), scale=np.ones(count), voltage_kv=np.full(count, VOLTAGE), cs_mm=np.full(count, CS),
        amplitude_contrast=np.full(count, CONTRAST),
        even=None if planted.even is None else np.tile(planted.even, (count, 1)))  # fmt: skip
    images = recorded(truth, euler_to_matrix(*angles), displacement, optics, PIXEL_SIZE, odd=planted.odd,
                      matrix=planted.matrix)  # fmt: skip
    gain = np.float32(1 / images.std())
    images = gain * images + noise * rng.standard_normal(images.shape, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / "particles.mrcs", images, PIXEL_SIZE)
    halves = folder / "half1.mrc", folder / "half2.mrc"
    for path in halves:
        own = 0.1 * truth.std() * rng.standard_normal(truth.shape, dtype=np.float32)
        write_map(path, gain * (truth + own), PIXEL_SIZE)
    terms = np.stack(defocus_terms(optics.defocus_u, optics.defocus_v, optics.defocus_angle), axis=1)
    wrong = terms.copy()
    if planted.matrix is not None:  # what is measured in the distorted micrograph
        wrong = distorted(terms, planted.matrix)
    wrong[:, 0] += rng.uniform(-planted.defocus, planted.defocus, count)
    wrong[:, 1:] -= planted.astigmatism
    _write(folder / "particles.star", angles, displacement, replace(optics, **dict(zip(
        ("defocus_u", "defocus_v", "defocus_angle"), defocus_of_terms(*wrong.T), strict=True))))  # fmt: skip
    return Set(folder / "particles.star", halves, terms)


def distorted(terms: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`defocus_terms` (n, 3) as they are in images with a magnification M: M^T Q M."""
    mean, along, across = terms.T
    forms = np.stack([np.stack([mean + along, across], axis=1), np.stack([across, mean - along], axis=1)], axis=1)
    forms = matrix.T @ forms @ matrix
    return np.stack([(forms[:, 0, 0] + forms[:, 1, 1]) / 2, (forms[:, 0, 0] - forms[:, 1, 1]) / 2, forms[:, 0, 1]],
                    axis=1)  # fmt: skip


def _write(path: Path, angles: np.ndarray, displacement: np.ndarray, optics: CtfParameters) -> None:
    star, count = StarFile.new(), len(optics)
    star.add_loop("optics", {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [VOLTAGE], "rlnSphericalAberration": [CS],
        "rlnAmplitudeContrast": [CONTRAST], "rlnImagePixelSize": [PIXEL_SIZE], "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    })  # fmt: skip
    star.add_loop("particles", {
        "rlnImageName": [f"{k + 1:06d}@particles.mrcs" for k in range(count)],
        "rlnMicrographName": [f"mic{k // PER_MICROGRAPH}.mrc" for k in range(count)],
        "rlnOpticsGroup": np.ones(count, dtype=int), "rlnDefocusU": optics.defocus_u, "rlnDefocusV": optics.defocus_v,
        "rlnDefocusAngle": optics.defocus_angle, "rlnAngleRot": angles[0], "rlnAngleTilt": angles[1],
        "rlnAnglePsi": angles[2], "rlnOriginXAngst": -displacement[:, 0], "rlnOriginYAngst": -displacement[:, 1],
        "rlnRandomSubset": 1 + np.arange(count) % 2,
    })  # fmt: skip
    star.write(path)
