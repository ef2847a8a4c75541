# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a refinement with a simulated truth: pose errors and Fourier shell correlations.

    python benchmarks/evaluate.py TRUTH_FOLDER run_data.star HALF1.mrc HALF2.mrc [--symmetry D7]

A refinement may turn and move the whole particle: its map is v'(x) = v(Q^T (x - t)) of the truth v, its poses are
A' = A Q^T and, because an image shows the map at x + origin, origin' = origin + (A' t)_xy. Q and t are fitted to the
poses, and the truth and its mask are brought into the refinement's frame by them before maps are compared.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import common  # noqa: F401 - finds this checkout's sparsecv
import finufft
import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.validate.fsc import fsc, resolution

TRIM = 3.0  # particles with an error above this many medians do not take part in a fit
LEAST_TRIM_DEG = 1.0
ROUNDS = 10


@dataclass(frozen=True)
class Frame:
    """Where a refinement put the particle: rotation Q (3, 3) and displacement t (3,), A."""

    rotation: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Poses:
    """Matrices A (n, 3, 3) and origins (n, 2) in A."""

    matrices: np.ndarray
    origins: np.ndarray

    def __getitem__(self, which: np.ndarray) -> Poses:
        return Poses(self.matrices[which], self.origins[which])


@dataclass(frozen=True)
class Evaluation:
    """Errors of a refinement.

    ``angle_deg`` and ``shift_A`` are medians after the best frame; ``lost`` the fraction of particles more than 30
    degrees off; ``fsc05`` the resolutions in A at which the FSC against the truth falls below 0.5, keyed by
    ``average``, ``half1``, ``half2`` and ``unmasked`` or ``masked``; ``curves`` the FSC curves of the average.
    """

    particles: int
    angle_deg: float
    shift_A: float
    lost: float
    frame_angle_deg: float
    frame_shift_A: float
    fsc05: dict[str, float]
    curves: dict[str, list[float]]


def read_poses(path: Path) -> tuple[Poses, np.ndarray, np.ndarray]:
    """Poses, image numbers and half sets (all 1 where there are none) of a RELION 3.1 STAR file."""
    block = gemmi.cif.read(str(path)).find_block("particles")

    def column(name: str) -> np.ndarray:
        return np.array([float(value) for value in block.find_loop(f"_rln{name}")])

    angles = np.stack([column(f"Angle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    origins = np.stack([column("OriginXAngst"), column("OriginYAngst")], axis=1)
    numbers = np.array([int(name.split("@")[0]) for name in block.find_loop("_rlnImageName")])
    halves = column("RandomSubset").astype(int)
    return Poses(matrices, origins), numbers, halves if len(halves) else np.ones(len(numbers), int)


def angle_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angle in degrees between matrices (n, 3, 3)."""
    cosine = (np.einsum("nij,nij->n", first, second) - 1) / 2
    return np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))


def nearest_equivalent(found: np.ndarray, true: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Of the truth's equivalents A S, S in the group (g, 3, 3), the one nearest to the matrix found."""
    match = np.einsum("nij,nik,gkj->ng", found, true, group)
    return np.matmul(true, group[match.argmax(axis=1)])


def fit_frame(found: Poses, true: Poses) -> tuple[Frame, np.ndarray, np.ndarray]:
    """Frame that maps the true poses to those found, and the remaining errors in degrees and A, each (n,).

    Least squares over the particles that are not far off: Q by the polar factor of sum A'^T A, t by linear equations.
    """
    near = np.ones(len(found.matrices), bool)
    for _ in range(ROUNDS):
        u, _, vt = np.linalg.svd(np.einsum("nij,nik->jk", found.matrices[near], true.matrices[near]))
        q = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        angles = angle_between(found.matrices, true.matrices @ q.T)
        near = angles < max(TRIM * np.median(angles), LEAST_TRIM_DEG)
    oriented, moved = near, found.origins - true.origins
    for _ in range(ROUNDS):
        rows = found.matrices[near, :2].reshape(-1, 3)
        t = np.linalg.lstsq(rows, moved[near].ravel(), rcond=None)[0]
        distances = np.linalg.norm(moved - found.matrices[:, :2] @ t, axis=1)
        near = oriented & (distances <= TRIM * np.median(distances))
    return Frame(q, t), angles, distances


def into_frame(volume: np.ndarray, frame: Frame, pixel_size: float) -> np.ndarray:
    """v'(x) = v(Q^T (x - t)) of a map (z, y, x), by its trigonometric polynomial: no interpolation error.

    Voxels that come from outside the box are 0.
    """
    n = volume.shape[0]
    axis = np.arange(n) - n // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    there = np.stack([x.ravel(), y.ravel(), z.ravel()]).astype(np.float64) - frame.shift[:, None] / pixel_size
    source = frame.rotation.T @ there
    inside = (np.abs(source) <= n / 2).all(axis=0)
    points = [np.ascontiguousarray(axis) for axis in source[::-1, inside] * (2 * np.pi / n)]
    transform = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume.astype(np.float64)))) / n**3
    moved = np.zeros(n**3)
    moved[inside] = finufft.nufft3d2(*points, transform, isign=1, eps=1e-6, nthreads=1).real
    return moved.reshape(volume.shape)


def evaluate(truth: Path, star: Path, half1: Path, half2: Path, symmetry: str = "C1") -> Evaluation:
    """Compare a refinement with the truth in a bench set's folder.

    Parameters
    ----------
    truth
        Has ``truth.star``, ``truth.mrc`` and ``mask_protein.mrc``.
    star
        Poses of the same images, in any order or number.
    half1, half2
        Unfiltered half maps.
    symmetry
        Point group in the frame of the truth.
    """
    found, numbers, halves = read_poses(star)
    true, true_numbers, _ = read_poses(truth / "truth.star")
    row = {number: k for k, number in enumerate(true_numbers)}
    true = true[np.array([row[number] for number in numbers])]
    true = Poses(nearest_equivalent(found.matrices, true.matrices, symmetry_matrices(symmetry)), true.origins)
    frame, angles, distances = fit_frame(found, true)
    density, mask = read_map(truth / "truth.mrc"), read_map(truth / "mask_protein.mrc").data
    maps = [read_map(path).data.astype(np.float64) for path in (half1, half2)]
    frames = {"average": frame}
    frames |= {f"half{k}": fit_frame(found[halves == k], true[halves == k])[0] for k in (1, 2) if (halves == k).any()}
    found_maps = {"average": (maps[0] + maps[1]) / 2, "half1": maps[0], "half2": maps[1]}
    fsc05, curves = {}, {}
    for name, its_frame in frames.items():
        volume = into_frame(density.data, its_frame, density.pixel_size)
        moved_mask = np.clip(into_frame(mask, its_frame, density.pixel_size), 0, 1)
        for kind, window in (("unmasked", None), ("masked", moved_mask)):
            curve = fsc(found_maps[name], volume, window)
            fsc05[f"{name} {kind}"] = resolution(curve, 0.5, len(volume), density.pixel_size).angstrom
            if name == "average":
                curves[kind] = curve.tolist()
    turned = float(angle_between(frame.rotation[None], np.eye(3)[None])[0])
    return Evaluation(len(numbers), float(np.median(angles)), float(np.median(distances)), float((angles > 30).mean()),
                      turned, float(np.linalg.norm(frame.shift)), fsc05, curves)


def main() -> None:
    """Print an evaluation as JSON, without the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("truth", "star", "half1", "half2"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--symmetry", default="C1")
    given = vars(parser.parse_args())
    figures = asdict(evaluate(**given))
    del figures["curves"]
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
