# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the logo of the plugin: two half maps, and the correlation that falls off between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

TARGET = Path(__file__).resolve().parents[1] / "sparsecv" / "sparsecv_logo.png"
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#333333"


def draw(path: Path, pixels: int = 48) -> None:
    """Write the logo as a square PNG with a transparent background.

    Parameters
    ----------
    path
        File to write.
    pixels
        Side of the picture.
    """
    figure = Figure(figsize=(1, 1), dpi=pixels)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    axes.axis("off")
    for centre, colour in ((-0.32, BLUE), (0.32, ORANGE)):
        axes.add_patch(Circle((centre, 0), 0.62, facecolor=colour, alpha=0.75, linewidth=0))
    x = np.linspace(-0.95, 0.95, 200)
    axes.plot(x, 0.75 / (1 + np.exp(9 * (x - 0.15))) - 0.38, color=GREY, linewidth=4)
    figure.savefig(path, dpi=pixels, transparent=True, metadata={"Software": None})


if __name__ == "__main__":
    draw(TARGET)
