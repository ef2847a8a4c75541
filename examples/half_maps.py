# SPDX-License-Identifier: GPL-3.0-or-later
"""Two half maps for the other examples: a smooth body with a fine-grained half, each time with noise of its own."""

from __future__ import annotations

import numpy as np

BOX, PIXEL_SIZE = 48, 3.0


def made(noise: float = 1.5, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half map 1, half map 2 and the truth, (box, box, box) float32 each."""
    rng = np.random.default_rng(seed)
    axis = np.arange(BOX) - BOX // 2
    body = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < (0.3 * BOX) ** 2
    fine, coarse = (_smooth(rng.normal(size=body.shape), width) for width in (0.8, 2.5))
    truth = body * (2 + np.where(axis > 0, fine, coarse))
    first, second = (truth + noise * rng.normal(size=body.shape) for _ in range(2))
    return first.astype(np.float32), second.astype(np.float32), truth.astype(np.float32)


def _smooth(volume: np.ndarray, width_px: float) -> np.ndarray:
    """A map through a Gaussian, with standard deviation 1."""
    frequency = np.fft.fftfreq(BOX)
    squared = frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2
    found = np.fft.ifftn(np.fft.fftn(volume) * np.exp(-2 * (np.pi * width_px) ** 2 * squared)).real
    return np.asarray(found / found.std())
