# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that show the curvature of the Ewald sphere, exact: of Gaussian blobs, whose transform is known anywhere.

Slow electrons bring the curvature of a virus into a small box: at 10 kV, with a diameter of 34 pixels of 0.35 A, the
two slices of an image are as far apart at Nyquist, in units of 1 / diameter, as those of 600 A at 2 A with 300 kV.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.aberrations import even_polynomial, monomials, odd_polynomial
from sparsecv.engine.physics.ctf import CtfParameters, ctf_parts, frequency_powers, wavelength
from sparsecv.engine.physics.geometry import euler_to_matrix

BOX, PIXEL_SIZE, VOLTAGE, CONTRAST = 48, 0.35, 10.0, 0.1
DIAMETER = 34 * PIXEL_SIZE


@dataclass(frozen=True)
class Group:
    """An optics group.

    Attributes
    ----------
    box, pixel_size, voltage
        Pixels, A and kV.
    odd, even
        RELION's Zernike coefficients.
    magnification
        M, row by row.
    hand
        Of the microscope: +1 or -1.
    """

    box: int = BOX
    pixel_size: float = PIXEL_SIZE
    voltage: float = VOLTAGE
    odd: tuple[float, ...] = ()
    even: tuple[float, ...] = ()
    magnification: tuple[float, ...] = (1.0, 0.0, 0.0, 1.0)
    hand: int = 1


@dataclass
class Blobs:
    """Gaussian blobs that fill a ball; positions (n, 3) and width in A."""

    positions: np.ndarray
    width: float = 0.25
    heights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.heights = (1 + np.arange(len(self.positions)) % 3).astype(np.float32)

    @classmethod
    def within(cls, diameter: float, count: int = 150, seed: int = 1) -> Blobs:
        """Anywhere in a ball."""
        rng = np.random.default_rng(seed)
        places = rng.normal(size=(count, 3))
        places *= diameter / 2 * rng.random((count, 1)) ** (1 / 3) / np.linalg.norm(places, axis=1, keepdims=True)
        return cls(places)

    def transform(self, k: np.ndarray) -> np.ndarray:
        """V at frequencies (J, 3) in 1/A."""
        phase = (2 * np.pi * (k @ self.positions.T)).astype(np.float32)  # up to 100 rad: single precision is enough
        found = np.cos(phase) @ self.heights - 1j * (np.sin(phase) @ self.heights)
        return (2 * np.pi) ** 1.5 * self.width**3 * np.exp(-2 * (np.pi * self.width) ** 2 * (k * k).sum(axis=1)) * found

    def density(self, box: int, pixel_size: float) -> np.ndarray:
        """The map (box, box, box) with all frequencies below Nyquist, float32."""
        axis = np.fft.fftfreq(box, 1 / box)
        z, y, x = np.meshgrid(axis, axis, np.arange(box // 2 + 1.0), indexing="ij")
        k = np.stack([x, y, z], axis=-1).reshape(-1, 3)
        below = np.abs(k).max(axis=1) < box / 2
        values = np.where(below, self.transform(k / (box * pixel_size)), 0).reshape(x.shape) / pixel_size**3
        return np.fft.fftshift(np.fft.irfftn(values, s=(box,) * 3, axes=(0, 1, 2))).astype(np.float32)


def images_of(
    blobs: Blobs, rotations: np.ndarray, origins: np.ndarray, defocus: np.ndarray, group: Group
) -> np.ndarray:
    """Images (n, box, box) by the equation of :mod:`sparsecv.engine.physics.ewald`, written out.

    Parameters
    ----------
    origins
        (n, 2) A, RELION's: of the images without anisotropic magnification.
    """
    box, length = group.box, group.box * group.pixel_size
    rows, columns = np.fft.fftfreq(box, 1 / box), np.arange(box // 2 + 1.0)
    ky, kx = np.stack(np.meshgrid(rows, columns, indexing="ij")).reshape(2, -1)
    x, y = np.reshape(group.magnification, (2, 2)) @ np.stack([kx, ky]) / length  # of the particle
    bend = group.hand * wavelength(np.array(group.voltage)) / 2 * (x * x + y * y)
    even, odd = even_polynomial(group.even), odd_polynomial(group.odd)
    found = np.zeros((len(rotations), box, box), np.float32)
    for n, rotation in enumerate(rotations):
        optics = CtfParameters(*(np.array([value]) for value in (
            defocus[n] + 1, defocus[n] - 1, 25.0, 0.0, 0.0, 1.0, group.voltage, 0.0, CONTRAST)),
            even=even[None] if len(even) else None)  # fmt: skip
        gamma = ctf_parts(optics, frequency_powers(x * length, y * length, box, group.pixel_size, even=len(even)))[1][0]
        above, below = (blobs.transform(np.stack([x, y, side * bend], axis=1) @ rotation) for side in (1, -1))
        values = (np.exp(1j * gamma) * above - np.exp(-1j * gamma) * below) / 2j
        values = values * np.exp(1j * odd @ monomials(x, y, len(odd), odd=True)) if len(odd) else values
        values *= np.exp(2j * np.pi * (x * origins[n, 0] + y * origins[n, 1])) / group.pixel_size**3
        values[(np.abs(kx) == box / 2) | (np.abs(ky) == box / 2)] = 0
        found[n] = np.fft.fftshift(np.fft.irfft2(values.reshape(box, -1), s=(box, box)))
    return found


def write_set(
    folder: Path, count: int, groups: tuple[Group, ...] = (Group(),), *, blobs: Blobs | None = None, noise: float = 0.0,
    seed: int = 1, defocus_range: tuple[float, float] = (4, 16), **columns: Any,
) -> np.ndarray:  # fmt: skip
    """Write ``particles.star`` with its stacks and ``truth.mrc``; returns the truth.

    Parameters
    ----------
    noise
        Standard deviation of white noise in units of the images'.
    defocus_range
        A; within it every particle has its own.
    columns
        More columns of the optics table.
    """
    rng, blobs = np.random.default_rng(seed), blobs or Blobs.within(DIAMETER)
    angles = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arccos(rng.uniform(-1, 1, count))),
                       rng.uniform(-180, 180, count)], axis=1).round(3)  # fmt: skip
    origins, defocus = rng.normal(0, 1, (count, 2)).round(3), rng.uniform(*defocus_range, count).round(2)
    member, names = np.arange(count) % len(groups), np.empty(count, object)
    shown = origins.copy()
    for number, group in enumerate(groups):
        rows = np.flatnonzero(member == number)
        images = images_of(blobs, euler_to_matrix(*angles[rows].T), origins[rows], defocus[rows], group)
        images += noise * images.std() * rng.standard_normal(images.shape, dtype=np.float32)
        write_stack(folder / f"group{number}.mrcs", images, group.pixel_size)
        names[rows] = [f"{k + 1:06d}@group{number}.mrcs" for k in range(len(rows))]
        shown[rows] = origins[rows] @ np.reshape(group.magnification, (2, 2))
    star, numbers = StarFile.new(), np.arange(1, len(groups) + 1)
    optics: dict[str, Any] = {
        "rlnOpticsGroup": numbers, "rlnOpticsGroupName": [f"group{number}" for number in numbers - 1],
        "rlnVoltage": [group.voltage for group in groups], "rlnSphericalAberration": np.zeros(len(groups)),
        "rlnAmplitudeContrast": np.full(len(groups), CONTRAST),
        "rlnImagePixelSize": [group.pixel_size for group in groups], "rlnImageSize": [group.box for group in groups],
        "rlnImageDimensionality": np.full(len(groups), 2),
        "rlnOddZernike": ["[" + ",".join(map(str, group.odd or (0.0, 0.0))) + "]" for group in groups],
        "rlnEvenZernike": ["[" + ",".join(map(str, group.even or (0.0,))) + "]" for group in groups],
    }  # fmt: skip
    for place, name in enumerate(("00", "01", "10", "11")):
        optics[f"rlnMagMat{name}"] = [group.magnification[place] for group in groups]
    star.add_loop("optics", optics | columns)
    star.add_loop("particles", {
        "rlnImageName": names, "rlnMicrographName": ["mic.mrc"] * count, "rlnOpticsGroup": member + 1,
        "rlnDefocusU": defocus + 1, "rlnDefocusV": defocus - 1, "rlnDefocusAngle": np.full(count, 25.0),
        "rlnAngleRot": angles[:, 0], "rlnAngleTilt": angles[:, 1], "rlnAnglePsi": angles[:, 2],
        "rlnOriginXAngst": shown[:, 0], "rlnOriginYAngst": shown[:, 1],
        "rlnRandomSubset": 1 + np.arange(count) // 2 % 2,
    })  # fmt: skip
    star.write(folder / "particles.star")
    truth = blobs.density(groups[0].box, groups[0].pixel_size)
    write_map(folder / "truth.mrc", truth, groups[0].pixel_size)
    return truth
