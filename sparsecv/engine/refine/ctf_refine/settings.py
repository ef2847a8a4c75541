# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a CTF refinement; lengths are in A."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.results import files_of_run
from sparsecv.engine.settings import check_range, option, required

ASTIGMATISM = ("micrograph", "particle")
RUN_FILES = ("run_data.star", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
RANGES: dict[str, tuple[float, float]] = {
    "defocus_range": (1, 1e5),
    "defocus_prior": (1, 1e6),
    "particle_diameter": (1, 1e5),
    "resolution": (0, 1e4),
    "pixel_size": (0.01, 1000),
    "rounds": (1, 20),
    "least_particles": (1, 1e9),
    "threads": (0, 4096),
}


@dataclass(frozen=True, kw_only=True)
class CtfRefineSettings:
    """A CTF refinement; checked when it is made. Where nothing to be refined is named: defocus and beam tilt."""

    particles: Path | None = option(None, "STAR file of the particles, with poses and half sets")
    half1: Path | None = option(None, "unregularised map of half set 1")
    half2: Path | None = option(None, "unregularised map of half set 2")
    run: Path | None = option(None, "in place of these three: folder of a finished refinement, sparsecv's or RELION's")
    output: Path = required("folder for the results")
    mask: Path | None = option(None, "mask on the references, values 0 to 1 (default: a sphere)")
    defocus: bool = option(False, "refine the defocus of each particle")
    astigmatism: str | None = option(None, "refine astigmatism, and with it the defocus that particles share",
                                     choices=ASTIGMATISM)  # fmt: skip
    beam_tilt: bool = option(False, "refine the beam tilt of each optics group")
    trefoil: bool = option(False, "refine the trefoil of each optics group")
    even_aberrations: bool = option(False, "refine even aberrations of each optics group, to 4th order")
    magnification: bool = option(False, "refine the anisotropic magnification of each optics group")
    defocus_range: float = option(2000.0, "largest change of a defocus, A")
    data_dir: Path | None = option(None, "further folder in which image paths are looked up")
    threads: int = option(0, "threads; 0 takes all cores")
    particle_diameter: float | None = option(None, "of the default mask, A (default: 90 %% of the box)", expert=True)
    resolution: float = option(0.0, "finest resolution compared, A (default: where the FSC falls below 0.143)",
                               expert=True)  # fmt: skip
    pixel_size: float | None = option(None, "of the maps, A, instead of what the headers say", expert=True)
    defocus_prior: float | None = option(None, "width of a Gaussian prior on changes of defocus and astigmatism, A "
                                         "(default: the range)", expert=True)  # fmt: skip
    rounds: int | None = option(None, "times that everything asked for is refined (default: 2, or 1 where there is "
                                "nothing else that it is seen through)", expert=True)  # fmt: skip
    least_particles: int = option(100, "optics groups with fewer keep their aberrations and magnification", expert=True)

    def __post_init__(self) -> None:
        for name in ("particles", "half1", "half2", "run", "output", "mask", "data_dir"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        for name, (low, high) in RANGES.items():
            check_range(name, getattr(self, name), low, high)
        if self.astigmatism is not None and self.astigmatism not in ASTIGMATISM:
            raise InputError("unknown", item="astigmatism", value=self.astigmatism,
                             rule=f"one of {', '.join(ASTIGMATISM)}")  # fmt: skip
        files = {name: getattr(self, name) for name in ("particles", "half1", "half2")}
        if self.run is not None:
            given = [name for name, path in files.items() if path is not None]
            if given:
                raise InputError("has no meaning here", item=given[0], value=str(files[given[0]]),
                                 rule="--run, or --particles with --half1 and --half2", remedy="leave it away")
            found = files_of_run(self.run, RUN_FILES, ", ".join(RUN_FILES))
            for name, path in zip(files, found, strict=True):
                object.__setattr__(self, name, path)
            object.__setattr__(self, "run", None)  # what is recorded are the files that were used
        missing = [f"--{name}" for name in files if getattr(self, name) is None]
        if missing:
            raise InputError(f"{', '.join(missing)} missing", rule="--run, or --particles with --half1 and --half2",
                             remedy="give it on the command line or in the --config file")  # fmt: skip
        asked = (self.defocus, self.beam_tilt, self.trefoil, self.even_aberrations, self.magnification)
        if not any(asked) and self.astigmatism is None:
            object.__setattr__(self, "defocus", True)
            object.__setattr__(self, "beam_tilt", True)

    @property
    def files(self) -> tuple[Path, Path, Path, Path]:
        """STAR file, half maps and output folder."""
        assert self.particles and self.half1 and self.half2, "checked above"
        return self.particles, self.half1, self.half2, self.output

    @property
    def times(self) -> int:
        """Rounds."""
        kinds = (self.of_defocus, self.beam_tilt or self.trefoil or self.even_aberrations, self.magnification)
        return (2 if sum(kinds) > 1 else 1) if self.rounds is None else self.rounds

    @property
    def of_groups(self) -> bool:
        """Whether anything is refined that all particles of an optics group share."""
        return self.beam_tilt or self.trefoil or self.even_aberrations or self.magnification

    @property
    def of_defocus(self) -> bool:
        """Whether anything is refined that the columns of defoci hold."""
        return self.defocus or self.astigmatism is not None
