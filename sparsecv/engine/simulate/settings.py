# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated data set is to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.symmetry import parse_symmetry
from sparsecv.engine.settings import option, required

# Field: (smallest, largest), both allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "box": (16, 4096),
    "pixel_size": (0.1, 50),
    "particles": (1, 10_000_000),
    "snr": (1e-6, 1e6),
    "bfactor": (0, 10_000),
    "defocus_min": (-100_000, 100_000),
    "defocus_max": (-100_000, 100_000),
    "astigmatism": (0, 20_000),
    "phase_shift": (0, 180),
    "shift": (0, 1000),
    "voltage_kv": (10, 3000),
    "cs_mm": (0, 100),
    "amplitude_contrast": (0, 1),
    "particles_per_micrograph": (1, 10_000_000),
    "preference": (0, 500),
    "reference_lowpass": (0, 1000),
    "seed": (0, 2**32 - 1),
    "threads": (1, 4096),
}
_WHOLE = ("box", "particles", "particles_per_micrograph", "seed", "threads")


@dataclass(frozen=True)
class SimulateSettings:
    """A simulated data set; checked when it is made.

    The text of every field stands in its metadata and is what ``sparsecv simulate --help`` prints; lengths are in A.

    Raises
    ------
    InputError
        Names the setting, its value and the allowed range.
    """

    output: Path = required("folder that is made and filled")
    model: Path | None = option(None, "PDB or mmCIF file (default: a built-in membrane protein)")
    assembly: str | None = option(None, "biological assembly of the model to build (default: its chains as they are)")
    symmetry: str = option("C1", "point group; the built-in protein is repeated, a model is turned into its frame")
    box: int = option(64, "pixels")
    pixel_size: float = option(3.0, "A")
    particles: int = option(1000, "number of images")
    snr: float = option(0.1, "variance of the CTF-modulated signal in the particle's circle over that of the noise")
    bfactor: float = option(80.0, "added to that of every atom, A^2")
    defocus_min: float = option(8000.0, "of the micrographs' mean defocus, A, underfocus positive")
    defocus_max: float = option(25000.0, "of the micrographs' mean defocus, A")
    shift: float = option(6.0, "largest displacement from the centre along x and y, A")
    belt: bool = option(False, "add a detergent belt that differs from particle to particle")
    reference_lowpass: float = option(40.0, "resolution of the starting map reference.mrc, A")
    seed: int = option(1, "of everything random")
    threads: int = option(1, "for Fourier transforms")
    noise_only: bool = option(False, "images of noise, without a particle", expert=True)
    preference: float = option(
        0.0, "0: views from all sides alike; else how strongly they crowd about z (von Mises-Fisher)", expert=True
    )
    astigmatism: float = option(300.0, "standard deviation of defocusU - defocusV over micrographs, A", expert=True)
    phase_shift: float = option(0.0, "of a phase plate, degrees", expert=True)
    voltage_kv: float = option(300.0, "kV", expert=True)
    cs_mm: float = option(2.7, "spherical aberration, mm", expert=True)
    amplitude_contrast: float = option(0.1, "fraction", expert=True)
    particles_per_micrograph: int = option(50, "images that share name, defocus and astigmatism", expert=True)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError("out of range", item=name, value=value, rule=f"{low:g} to {high:g}")
            if name in _WHOLE and value != int(value):
                raise InputError("not a whole number", item=name, value=value)
        if self.defocus_min > self.defocus_max:
            raise InputError("the range of defocus is empty", item="defocus_min", value=self.defocus_min,
                             rule=f"at most defocus_max ({self.defocus_max:g})")
        if 2 * self.shift >= self.box * self.pixel_size:
            raise InputError("particles would leave the box", item="shift", value=self.shift,
                             rule=f"less than half the box ({self.box * self.pixel_size / 2:g} A)")
        object.__setattr__(self, "symmetry", parse_symmetry(self.symmetry)[0])
        object.__setattr__(self, "output", Path(self.output))
        if self.model is not None:
            object.__setattr__(self, "model", Path(self.model))

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON and TOML."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
