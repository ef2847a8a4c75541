# SPDX-License-Identifier: GPL-3.0-or-later
"""Half maps with a known answer, for tests of validation: a blob particle, or pure shells, plus noise."""

from __future__ import annotations

import numpy as np
import scipy.fft


def particle(box: int, pixel_size: float, *, bfactor: float = 60.0, atoms: int = 400, seed: int = 3) -> np.ndarray:
    """Point atoms inside an off-centre ellipsoid, blurred by exp(-B k^2 / 4); float32, (box, box, box)."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(atoms, 3))
    points *= (rng.uniform(size=(atoms, 1)) ** (1 / 3)) / np.linalg.norm(points, axis=1, keepdims=True)
    points = points * box * np.array([0.26, 0.17, 0.21]) + box // 2 + np.array([0.0, 1.0, -2.0])
    volume = np.zeros((box, box, box), dtype=np.float32)
    np.add.at(volume, tuple(np.rint(points).astype(int).T), 1.0)
    return filtered(volume, lambda k: np.exp(-bfactor / 4 * (k / pixel_size) ** 2))


def filtered(volume: np.ndarray, transfer) -> np.ndarray:
    """Multiply the transform of a map by ``transfer(k)``, k in cycles per pixel."""
    box = volume.shape[0]
    k = np.fft.fftfreq(box)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.fft.rfftfreq(box) ** 2)
    return scipy.fft.irfftn(scipy.fft.rfftn(volume) * transfer(radius), s=volume.shape).astype(np.float32)


def half_maps(
    box: int = 64, pixel_size: float = 2.0, *, bfactor: float = 60.0, noise: float = 0.01, seed: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """The particle twice, each time with its own noise, somewhat stronger at low frequency; float32."""
    signal = particle(box, pixel_size, bfactor=bfactor)
    rng = np.random.default_rng(seed)
    noises = [filtered(rng.normal(size=signal.shape), lambda k: noise * (1 + np.exp(-((k / 0.1) ** 2)))) for _ in "12"]
    return signal + noises[0], signal + noises[1]
