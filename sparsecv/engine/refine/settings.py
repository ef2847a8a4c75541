# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a refinement or a reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.symmetry import parse_symmetry
from sparsecv.kernels import DEVICES
from sparsecv.kernels.contract import KERNELS

REGULARISERS = ("wiener",)


def option(default: object, text: str, *, choices: tuple[str, ...] = (), expert: bool = False) -> object:
    """A dataclass field with what the command line says about it."""
    return field(default=default, metadata={"help": text, "choices": choices, "expert": expert})


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number outside [low, high]; None stands for an automatic value."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InputError("out of range", item=name, value=value, rule=f"{low:g} to {high:g}")


@dataclass(frozen=True)
class RefineSettings:
    """A refinement; checked when it is made. Fields without a default must be given; lengths are in A.

    The text of every field stands in its metadata and is what ``sparsecv refine --help`` prints.
    """

    particles: Path = field(metadata={"help": "STAR file of the particles (RELION 3.0, 3.1 or 5)"})
    reference: Path = field(metadata={"help": "starting map (MRC)"})
    output: Path = field(metadata={"help": "folder for the results"})
    regulariser: str = option("wiener", "prior on the map", choices=REGULARISERS)
    symmetry: str = option("C1", "point group, RELION's names and frames")
    initial_lowpass: float = option(40.0, "low-pass filter of the starting map, A; 0 leaves it as it is")
    particle_diameter: float | None = option(None, "diameter of the particle, A (default: 90 %% of the box)")
    local: bool = option(False, "search around the poses in the STAR file only")
    mask: Path | None = option(None, "mask on the reference, values 0 to 1 (default: a sphere)")
    data_dir: Path | None = option(None, "further folder in which image paths are looked up")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=DEVICES[:3])
    seed: int = option(1, "of everything random")
    resume: bool = option(False, "go on from the last finished iteration in the output folder")
    iterations: int = option(30, "most iterations", expert=True)
    local_sigma: float = option(5.0, "with --local: expected error of the given angles, degrees", expert=True)
    offset_range: float | None = option(None, "largest shift searched at first, A (default: 5 pixels)", expert=True)
    tau_factor: float = option(1.0, "wiener: strength of the data against the prior (RELION's T)", expert=True)
    join_below: float = option(40.0, "halves are averaged below this resolution, A; 0 never", expert=True)
    intact_first_peak: bool = option(False, "no CTF correction up to the first peak", expert=True)
    kernel: str = option("trilinear", "backprojection kernel", choices=KERNELS, expert=True)
    batch_memory: float = option(256.0, "memory for one batch of images, MB", expert=True)
    most_rejected: float = option(1.0, "stop when more than this percentage of particles must be set aside", expert=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symmetry", parse_symmetry(self.symmetry)[0])
        for name in ("particles", "reference", "output", "mask", "data_dir"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        for name, allowed in (("regulariser", REGULARISERS), ("device", DEVICES), ("kernel", KERNELS)):
            if getattr(self, name) not in allowed:
                raise InputError("unknown", item=name, value=getattr(self, name), rule=f"one of {', '.join(allowed)}")
        for name, low, high in (
            ("initial_lowpass", 0, 1000),
            ("particle_diameter", 1, 1e5),
            ("threads", 0, 4096),
            ("seed", 0, 2**32 - 1),
            ("iterations", 1, 1000),
            ("local_sigma", 0.01, 60),
            ("offset_range", 0, 1e4),
            ("tau_factor", 0.01, 100),
            ("join_below", 0, 1000),
            ("batch_memory", 1, 1e6),
            ("most_rejected", 0, 100),
        ):
            check_range(name, getattr(self, name), low, high)


@dataclass(frozen=True)
class ReconstructSettings:
    """A reconstruction from known poses; checked when it is made."""

    particles: Path = field(metadata={"help": "STAR file of the particles, with poses"})
    output: Path = field(metadata={"help": "map to write; with --halves also OUTPUT_half1/2"})
    symmetry: str = option("C1", "point group, RELION's names and frames")
    kernel: str = option("trilinear", "backprojection kernel", choices=KERNELS)
    halves: bool = option(False, "also reconstruct the two half sets")
    subset: int = option(0, "only half set 1 or 2; 0 for all particles")
    resolution: float = option(0.0, "highest resolution, A; 0 for Nyquist")
    no_ctf: bool = option(False, "ignore the CTF")
    intact_first_peak: bool = option(False, "no CTF correction up to the first peak")
    data_dir: Path | None = option(None, "further folder in which image paths are looked up")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=DEVICES[:3])
    batch_memory: float = option(64.0, "memory for one batch of images, MB", expert=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symmetry", parse_symmetry(self.symmetry)[0])
        for name in ("particles", "output", "data_dir"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        for name, allowed in (("device", DEVICES), ("kernel", KERNELS)):
            if getattr(self, name) not in allowed:
                raise InputError("unknown", item=name, value=getattr(self, name), rule=f"one of {', '.join(allowed)}")
        for name, low, high in (
            ("subset", 0, 2), ("resolution", 0, 1e4), ("threads", 0, 4096), ("batch_memory", 1, 1e6)
        ):  # fmt: skip
            check_range(name, getattr(self, name), low, high)
