# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a refinement or a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.symmetry import parse_symmetry
from sparsecv.engine.settings import check_range, option, required
from sparsecv.kernels import DEVICES
from sparsecv.kernels.contract import KERNELS

REGULARISERS = ("wiener",)
OFFERED_DEVICES = DEVICES[:3]  # the last, the float64 definition, is for tests
CHOICES = {"regulariser": REGULARISERS, "device": DEVICES, "kernel": KERNELS}
PATHS = ("particles", "reference", "output", "mask", "data_dir")
RANGES: dict[str, tuple[float, float]] = {
    "reference_pixel_size": (0.01, 1000),
    "initial_lowpass": (0, 1000),
    "particle_diameter": (1, 1e5),
    "threads": (0, 4096),
    "seed": (0, 2**32 - 1),
    "iterations": (1, 1000),
    "local_sigma": (0.01, 60),
    "offset_range": (0, 1e4),
    "tau_factor": (0.01, 100),
    "join_below": (0, 1000),
    "batch_memory": (1, 1e6),
    "most_rejected": (0, 100),
    "subset": (0, 2),
    "resolution": (0, 1e4),
}


def _check(settings: RefineSettings | ReconstructSettings) -> None:
    """Bring the symmetry and the paths into one form; InputError for what is out of range or no choice."""
    object.__setattr__(settings, "symmetry", parse_symmetry(settings.symmetry)[0])
    for name in (entry.name for entry in fields(settings)):
        value = getattr(settings, name)
        if name in PATHS and value is not None:
            object.__setattr__(settings, name, Path(value))
        elif name in CHOICES and value not in CHOICES[name]:
            raise InputError("unknown", item=name, value=value, rule=f"one of {', '.join(CHOICES[name])}")
        elif name in RANGES:
            check_range(name, value, *RANGES[name])


@dataclass(frozen=True)
class RefineSettings:
    """A refinement; checked when it is made. Fields without a default must be given; lengths are in A.

    The text of every field stands in its metadata and is what ``sparsecv refine --help`` prints.
    """

    particles: Path = required("STAR file of the particles (RELION 3.0, 3.1 or 5)")
    reference: Path = required("starting map (MRC)")
    output: Path = required("folder for the results")
    regulariser: str = option("wiener", "prior on the map", choices=REGULARISERS)
    symmetry: str = option("C1", "point group, RELION's names and frames")
    initial_lowpass: float = option(40.0, "low-pass filter of the starting map, A; 0 leaves it as it is")
    particle_diameter: float | None = option(None, "diameter of the particle, A (default: 90 %% of the box)")
    local: bool = option(False, "search around the poses in the STAR file only")
    mask: Path | None = option(None, "mask on the reference, values 0 to 1 (default: a sphere)")
    data_dir: Path | None = option(None, "further folder in which image paths are looked up")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=OFFERED_DEVICES)
    seed: int = option(1, "of everything random")
    resume: bool = option(False, "go on from the last finished iteration in the output folder")
    iterations: int = option(30, "most iterations", expert=True)
    reference_pixel_size: float | None = option(
        None, "of the starting map, A (default: what its header says)", expert=True
    )
    local_sigma: float = option(5.0, "with --local: expected error of the given angles, degrees", expert=True)
    offset_range: float | None = option(None, "largest shift searched at first, A (default: 5 pixels)", expert=True)
    tau_factor: float = option(1.0, "wiener: strength of the data against the prior (RELION's T)", expert=True)
    join_below: float = option(40.0, "halves are averaged below this resolution, A; 0 never", expert=True)
    intact_first_peak: bool = option(False, "no CTF correction up to the first peak", expert=True)
    kernel: str = option("trilinear", "backprojection kernel", choices=KERNELS, expert=True)
    batch_memory: float = option(256.0, "memory for one batch of images, MB", expert=True)
    most_rejected: float = option(
        1.0, "stop when more than this percentage of particles is set aside; one always may be, unless 0", expert=True
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class ReconstructSettings:
    """A reconstruction from known poses; checked when it is made."""

    particles: Path = required("STAR file of the particles, with poses")
    output: Path = required("map to write; with --halves also OUTPUT_half1/2")
    symmetry: str = option("C1", "point group, RELION's names and frames")
    kernel: str = option("trilinear", "backprojection kernel", choices=KERNELS)
    halves: bool = option(False, "also reconstruct the two half sets")
    subset: int = option(0, "only half set 1 or 2; 0 for all particles")
    resolution: float = option(0.0, "highest resolution, A; 0 for Nyquist")
    no_ctf: bool = option(False, "ignore the CTF")
    intact_first_peak: bool = option(False, "no CTF correction up to the first peak")
    data_dir: Path | None = option(None, "further folder in which image paths are looked up")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=OFFERED_DEVICES)
    batch_memory: float = option(64.0, "memory for one batch of images, MB", expert=True)

    def __post_init__(self) -> None:
        _check(self)
