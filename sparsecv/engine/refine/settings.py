# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can ask of a refinement or a reconstruction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.ewald import HANDS
from sparsecv.engine.physics.symmetry import parse_symmetry
from sparsecv.engine.settings import check_range, option, required
from sparsecv.kernels import DEVICES
from sparsecv.kernels.contract import KERNELS

REGULARISERS = ("wiener", "sparse-tv", "nonuniform")
PRECISION = ("auto", "fp32")
STRENGTHS = ("held-out", "noise", "paper")
SOLVERS = ("splitting", "paper")
PRESET_NAMES = ("beta-galactosidase", "80s-ribosome", "ha-trimer", "hrd1-hrd3", "tmem16a")
NU_OPTIONS = ("nu_preset", "nu_family", "nu_selection", "nu_order", "nu_filters", "nu_awf", "nu_coarsest")
SPARSE_TV_OPTIONS = ("strength", "preset", "gamma", "epsilon", "epsilon_gradient", "solver", "positivity")
CTF_OPTIONS = ("refine_defocus", "refine_astigmatism", "refine_aberrations")
NU_FAMILIES = ("butterworth", "local-wiener", "sparse-tv")
NU_SELECTIONS = ("like-for-like", "literal")
NU_PRESETS = ("paper",)
OFFERED_DEVICES = DEVICES[:3]  # the last, the float64 definition, is for tests
CHOICES = {
    "regulariser": REGULARISERS, "device": DEVICES, "kernel": KERNELS, "strength": STRENGTHS, "solver": SOLVERS,
    "precision": PRECISION, "preset": PRESET_NAMES, "nu_family": NU_FAMILIES, "nu_selection": NU_SELECTIONS,
    "nu_preset": NU_PRESETS, "ewald_hand": HANDS,
}  # fmt: skip
PATHS = ("particles", "reference", "output", "mask", "data_dir", "half1", "half2", "accumulators", "previous",
         "refine", "mtf")
RANGES: dict[str, tuple[float, float]] = {
    "pixel_size": (0.01, 1000),
    "reference_pixel_size": (0.01, 1000),
    "initial_lowpass": (0, 1000),
    "particle_diameter": (1, 1e5),
    "threads": (0, 4096),
    "seed": (0, 2**32 - 1),
    "iterations": (1, 1000),
    "local_sigma": (0.01, 60),
    "offset_range": (0, 1e4),
    "tau_factor": (0.01, 100),
    "kappa_sparse": (0, 100),
    "kappa_variation": (0, 100),
    "alpha": (0, 100),
    "beta": (0, 100),
    "gamma": (1e-6, 100),  # above 0: nothing else holds the map where there are no data
    "epsilon": (1e-12, 1e12),
    "epsilon_gradient": (1e-12, 1e12),
    "nu_order": (1, 50),
    "nu_filters": (1, 250),
    "nu_awf": (0.1, 20),
    "nu_coarsest": (1, 1000),
    "nu_share": (0, 100),
    "mtf_pixel_size": (0.01, 1000),
    "bfactor": (-10_000, 10_000),
    "local_window": (4, 512),
    "join_below": (0, 1000),
    "memory": (0.1, 1e5),
    "batch_memory": (1, 1e6),
    "most_rejected": (0, 100),
    "subset": (0, 2),
    "resolution": (0, 1e4),
}


def _check(settings: Checked) -> None:
    """Bring the symmetry and the paths into one form; InputError for what is out of range or no choice."""
    for name in (entry.name for entry in fields(settings)):
        value = getattr(settings, name)
        if name == "symmetry":
            object.__setattr__(settings, name, parse_symmetry(value)[0])
        elif name in PATHS and value is not None:
            object.__setattr__(settings, name, Path(value))
        elif name in CHOICES and value is not None and value not in CHOICES[name]:
            raise InputError("unknown", item=name, value=value, rule=f"one of {', '.join(map(str, CHOICES[name]))}")
        elif name in RANGES:
            check_range(name, value, *RANGES[name])


def _refuse(settings: object, names: Iterable[str], rule: str, remedy: str = "leave it away") -> None:
    """Refuse, with InputError, options that were given though they have no meaning."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value is not False:
            shown = str(value) if isinstance(value, Path) else value
            raise InputError("has no meaning here", item=name, value=shown, rule=rule, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class SparseTvSettings:
    """What the sparse + TV prior has beside its two strengths.

    None stands for what suits the other settings: a preset's value, or the regulariser's default.
    """

    preset: str | None = option(None, "sparse-tv: parameters published for a data set", choices=PRESET_NAMES,
                                expert=True)
    gamma: float | None = option(None, "sparse-tv: pull to the previous reference, units of the mean weight (default: "
                                 "0.05)", expert=True)
    epsilon: float | None = option(None, "sparse-tv: density level of the molecule (default: measured)", expert=True)
    epsilon_gradient: float | None = option(None, "sparse-tv: level of gradients (default: epsilon / 2)", expert=True)
    solver: str | None = option(None, "sparse-tv: Douglas-Rachford splitting, or the paper's proximal gradient "
                                "(default: splitting)", choices=SOLVERS, expert=True)
    positivity: bool = option(False, "sparse-tv: no negative densities in references", expert=True)


@dataclass(frozen=True, kw_only=True)
class NonUniformSettings:
    """Cross-validated local filters; None stands for a preset's value, or the default."""

    nu_preset: str | None = option(None, "nonuniform: order 2, 50 filters, AWF 2, literal selection, as published",
                                   choices=NU_PRESETS, expert=True)
    nu_family: str | None = option(None, "nonuniform: what is chosen locally (default: butterworth)",
                                   choices=NU_FAMILIES, expert=True)
    nu_selection: str | None = option(None, "nonuniform: filters compared within equal windows, coarse to fine, or by "
                                      "the paper's equation 6 (default: like-for-like)", choices=NU_SELECTIONS,
                                      expert=True)
    nu_order: int | None = option(None, "nonuniform: order of the Butterworth filters (default: 8)", expert=True)
    nu_filters: int | None = option(None, "nonuniform: number of filters, equispaced in frequency (default: 12)",
                                    expert=True)
    nu_awf: float | None = option(None, "nonuniform: adaptive window factor, width of a window in wavelengths of its "
                                  "filter (default: 2.5)", expert=True)
    nu_coarsest: float | None = option(None, "nonuniform: wavelength of the coarsest filter, A (default: 25)",
                                       expert=True)

    def check_nonuniform(self) -> None:
        """Refuse, with InputError, options that the chosen family does not know."""
        family = self.nu_values["nu_family"]
        unknown = {"sparse-tv": ("nu_order", "nu_filters", "nu_coarsest"), "local-wiener": ("nu_selection",)}
        _refuse(self, unknown.get(family, ()), f"the family {family} does not know it")

    @property
    def nu_values(self) -> dict[str, Any]:
        """What was given, over the preset's values and the defaults."""
        defaults = {"nu_family": "butterworth", "nu_selection": "like-for-like", "nu_order": 8, "nu_filters": 12,
                    "nu_awf": 2.5, "nu_coarsest": 25.0}  # fmt: skip
        paper = {"nu_selection": "literal", "nu_order": 2, "nu_filters": 50, "nu_awf": 2.0}
        given = {name: value for name in defaults if (value := getattr(self, name)) is not None}
        return defaults | (paper if self.nu_preset == "paper" else {}) | given


@dataclass(frozen=True, kw_only=True)
class RegulariserSettings(NonUniformSettings, SparseTvSettings):
    """Which prior on the map, and how strong: of every command that regularises; None stands for a default."""

    regulariser: str = option("wiener", "prior on the map", choices=REGULARISERS)
    tau_factor: float | None = option(None, "wiener: strength of the data against the prior, RELION's T (default: 1)",
                                      expert=True)
    strength: str | None = option(None, "sparse-tv: strengths moved by held-out data from the noise's scale, kept "
                                  "at it, or in the paper's units (default: held-out; paper with a preset)",
                                  choices=STRENGTHS, expert=True)
    kappa_sparse: float | None = option(None, "sparse-tv: strength of sparsity in units of the noise (default: 1)",
                                        expert=True)
    kappa_variation: float | None = option(None, "sparse-tv: strength of total variation in units of the noise "
                                           "(default: 1)", expert=True)
    alpha: float | None = option(None, "sparse-tv, paper's units: strength of sparsity", expert=True)
    beta: float | None = option(None, "sparse-tv, paper's units: strength of total variation", expert=True)
    nu_share: float | None = option(None, "nonuniform: percentage of the signal's voxels that must use a filter for "
                                    "the search to go as far (default: 1)", expert=True)

    def check_regulariser(self) -> None:
        """Refuse, with InputError, options that the chosen regulariser does not know or that exclude one another."""
        if self.regulariser != "wiener":
            _refuse(self, ("tau_factor",), "of the Wiener filter alone")
        if self.regulariser != "nonuniform":
            _refuse(self, (*NU_OPTIONS, "nu_share"), "of nonuniform alone")
        else:
            self.check_nonuniform()
        if self.regulariser != "sparse-tv":
            strengths = ("alpha", "beta", "kappa_sparse", "kappa_variation")
            _refuse(self, (*SPARSE_TV_OPTIONS, *strengths), "of sparse-tv alone")
            return
        if self.is_in_paper_units:
            _refuse(self, ("kappa_sparse", "kappa_variation"), "in units of the noise; paper strengths are not")
            if self.preset is None and None in (self.alpha, self.beta, self.epsilon):
                raise InputError("strengths in the paper's units need alpha, beta and epsilon", item="strength",
                                 value="paper", remedy="give --alpha, --beta and --epsilon, or a --preset")
        else:
            _refuse(self, ("alpha", "beta"), "in the paper's units", remedy="add --strength paper")
            _refuse(self, ("preset",), "in the paper's units", remedy="leave --strength away")

    @property
    def is_in_paper_units(self) -> bool:
        """Whether alpha and beta are in units of rms(A^H D y)."""
        return self.strength == "paper" or (self.strength is None and self.preset is not None)


@dataclass(frozen=True, kw_only=True)
class EwaldSettings:
    """Whether sums are made with the curvature of the Ewald sphere, and to which side it curves."""

    ewald: bool = option(False, "correct the final maps for the curvature of the Ewald sphere", expert=True)
    ewald_hand: int | None = option(None, "with --ewald: side to which the sphere curves, 1 or -1; try both: the right "
                                    "one gives the higher resolution (default: 1)", expert=True, only_with="ewald")

    @property
    def hand(self) -> int:
        """The hand given, or RELION's default."""
        return HANDS[0] if self.ewald_hand is None else self.ewald_hand

    def check_ewald(self, others: tuple[str, ...]) -> None:
        """Refuse, with InputError, a hand without the correction, and the correction together with some switches."""
        if self.ewald:
            _refuse(self, others, "with --ewald both sidebands are put in focus at all frequencies")
        else:
            _refuse(self, ("ewald_hand",), "with --ewald only", remedy="add --ewald, or leave it away")


@dataclass(frozen=True, kw_only=True)
class RefineSettings(RegulariserSettings, EwaldSettings):
    """A refinement; checked when it is made. Fields without a default must be given; lengths are in A.

    The text of every field stands in its metadata and is what ``sparsecv refine --help`` prints.
    """

    particles: Path = required("STAR file of the particles (RELION 3.0, 3.1 or 5)")
    reference: Path = required("starting map (MRC)")
    output: Path = required("folder for the results")
    symmetry: str = option("C1", "point group, RELION's names and frames")
    initial_lowpass: float = option(40.0, "low-pass filter of the starting map, A; 0 leaves it as it is")
    particle_diameter: float | None = option(None, "diameter of the particle, A (default: 90 %% of the box)")
    local: bool = option(False, "search around the poses in the STAR file only")
    symmetry_expanded: bool = option(False, "images occur once for each symmetry mate, with its pose: local search, C1")
    mask: Path | None = option(None, "mask on the reference, values 0 to 1; nonuniform: outside it the coarsest filter "
                               "holds (default: a sphere)")
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
    join_below: float = option(40.0, "halves are averaged below this resolution, A; 0 never", expert=True)
    refine_defocus: bool = option(False, "refine the defocus of each particle, after local iterations", expert=True)
    refine_astigmatism: bool = option(False, "refine the astigmatism of each micrograph, likewise",
                                      expert=True)
    refine_aberrations: bool = option(False, "refine beam tilt and trefoil of each optics group, after fine iterations",
                                      expert=True)
    intact_first_peak: bool = option(False, "no CTF correction up to the first peak", expert=True)
    kernel: str | None = option(None, "backprojection kernel (default: trilinear; gaussian with a preset)",
                                choices=KERNELS, expert=True)
    memory: float | None = option(None, "memory that may be used, of the GPU where there is one, GB (default: what is "
                                  "free)", expert=True)
    batch_memory: float | None = option(None, "memory for one batch of images, MB (default: 256 on the CPU, on a GPU a "
                                        "quarter of what volumes leave)", expert=True)
    precision: str = option("auto", "on a GPU: the first level of a global search in bfloat16 or TF32 where the "
                            "signal allows it, or in float32", choices=PRECISION, expert=True)
    keep_accumulators: bool = option(False, "keep the sums of the last iteration, for regularise and scan", expert=True)
    most_rejected: float = option(
        1.0, "stop when more than this percentage of particles is set aside; one always may be, unless 0", expert=True
    )

    def __post_init__(self) -> None:
        _check(self)
        self.check_regulariser()
        self.check_ewald(("intact_first_peak",))
        if self.symmetry_expanded and not (self.local and self.symmetry.upper() == "C1"):
            raise InputError("symmetry-expanded particles are refined locally and in C1", item="symmetry_expanded",
                             rule="each copy of an image has the pose of one symmetry mate",
                             remedy="add --local, and leave --symmetry away")  # fmt: skip
        if self.symmetry_expanded:
            _refuse(self, CTF_OPTIONS, "images that occur once: each copy would have a CTF of its own")
        if self.intact_first_peak:
            _refuse(self, CTF_OPTIONS, "maps that are corrected for the whole CTF")

    @property
    def scatter_kernel(self) -> str:
        """The kernel given, or that of the paper with one of its presets."""
        return self.kernel or ("trilinear" if self.preset is None else "gaussian")


@dataclass(frozen=True)
class ReconstructSettings(EwaldSettings):
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
    particle_diameter: float | None = option(None, "with --ewald: diameter of the particle, A (default: 90 %% of the "
                                             "box)", only_with="ewald")
    data_dir: Path | None = option(None, "further folder in which image paths are looked up")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=OFFERED_DEVICES)
    batch_memory: float = option(64.0, "memory for one batch of images, MB", expert=True)
    keep_accumulators: bool = option(False, "keep the sums of each quarter, for regularise and scan", expert=True)

    def __post_init__(self) -> None:
        _check(self)
        self.check_ewald(("no_ctf", "intact_first_peak"))
        if not self.ewald:
            _refuse(self, ("particle_diameter",), "with --ewald only", remedy="add --ewald, or leave it away")


@dataclass(frozen=True, kw_only=True)
class RegulariseSettings(RegulariserSettings):
    """A regularisation without refinement, of half maps or of accumulators; checked when it is made."""

    half1: Path | None = option(None, "unfiltered, unmasked half map of any program", positional=True)
    half2: Path | None = option(None, "the other half map", positional=True)
    output: Path = required("folder for the results")
    accumulators: Path | None = option(None, "in place of half maps: folder of a run with --keep-accumulators, or one "
                                       "of the files")
    mask: Path | None = option(None, "mask on the result, values 0 to 1 (default: a sphere)")
    particle_diameter: float | None = option(None, "diameter of the particle, A (default: that of the run, or 90 %% of "
                                             "the box)")
    previous: Path | None = option(None, "half maps, sparse-tv: map to which gamma pulls (default: an empty one)")
    pixel_size: float | None = option(None, "half maps: A, instead of what the headers say")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=OFFERED_DEVICES)

    def __post_init__(self) -> None:
        _check(self)
        self.check_regulariser()
        _refuse(self, ("nu_share",), "of a refinement: it limits its search")
        if self.accumulators is None:
            if self.half1 is None or self.half2 is None:
                raise InputError("nothing to regularise", rule="HALF1 and HALF2, or --accumulators")
            if self.regulariser != "sparse-tv":
                _refuse(self, ("previous",), "of sparse-tv alone")
        else:
            _refuse(self, ("half1", "half2"), "accumulators or half maps, not both")
            _refuse(self, ("pixel_size",), "accumulators know theirs")
            _refuse(self, ("previous",), "a map that both halves are pulled to would make them correlate")


@dataclass(frozen=True, kw_only=True)
class NuFilterSettings(NonUniformSettings):
    """A non-uniform filter of two half maps, without refinement; checked when it is made."""

    half1: Path = required("unfiltered, unmasked half map of any program", positional=True)
    half2: Path = required("the other half map", positional=True)
    output: Path = required("folder for the results")
    mask: Path | None = option(None, "where filters are chosen, values 0 to 1; outside it the coarsest holds (default: "
                               "a sphere)")
    particle_diameter: float | None = option(None, "diameter of the particle, A (default: 90 %% of the box)")
    pixel_size: float | None = option(None, "A, instead of what the headers say")
    mtf: Path | None = option(None, "STAR file with the detector's MTF, for the sharpened map")
    mtf_pixel_size: float | None = option(None, "of the movies that the MTF refers to, A (default: the map's)")
    bfactor: float | None = option(None, "A^2, of the sharpened map, negative sharpens (default: Guinier plot)")
    no_local_resolution: bool = option(False, "leave out the estimate of local resolution, for comparison")
    local_window: int | None = option(None, "diameter of its spheres, pixels, even (default: 7 times the resolution)",
                                      expert=True)
    seed: int = option(1, "of the random phases behind the mask correction", expert=True)
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=OFFERED_DEVICES)

    def __post_init__(self) -> None:
        _check(self)
        self.check_nonuniform()
        if self.local_window is not None and self.local_window % 2:
            raise InputError("is odd", item="local_window", value=self.local_window, rule="an even number of pixels")
        if self.mtf is None:
            _refuse(self, ("mtf_pixel_size",), "of an MTF, and none is given")
        if self.no_local_resolution:
            _refuse(self, ("local_window",), "of the local resolution, which is left out")
        if self.nu_values["nu_family"] == "sparse-tv":
            _refuse(self, ("bfactor", "mtf", "local_window"), "of band limits, which sparse-tv does not have")


@dataclass(frozen=True, kw_only=True)
class ScanSettings(SparseTvSettings):
    """A scan of the strengths of the sparse + TV prior; checked when it is made."""

    output: Path = required("folder for the results")
    accumulators: Path | None = option(None, "folder of a run with --keep-accumulators, or one of the files: each "
                                       "point of the grid regularises both halves once")
    refine: Path | None = option(None, "TOML file with the settings of refine, as a run.toml: each point of the grid "
                                 "is a whole refinement")
    alphas: str | None = option(None, "paper's units: strengths of sparsity, 0.4,0.5")
    betas: str | None = option(None, "paper's units: strengths of total variation, 1.2,1.6,2.0,2.4")
    kappas_sparse: str | None = option(None, "in place of alphas: strengths of sparsity in units of the noise")
    kappas_variation: str | None = option(None, "in place of betas: strengths of total variation in units of the noise")
    mask: Path | None = option(None, "accumulators: mask on references, values 0 to 1 (default: a sphere)")
    particle_diameter: float | None = option(None, "accumulators: diameter of the particle, A (default: that of the "
                                             "run, or 90 %% of the box)")
    threads: int = option(0, "threads; 0 takes all cores")
    device: str = option("auto", "where to compute", choices=OFFERED_DEVICES)

    def __post_init__(self) -> None:
        _check(self)
        if (self.accumulators is None) == (self.refine is None):
            raise InputError("a scan needs something to regularise", rule="one of --accumulators and --refine")
        if self.refine is not None and (self.mask is not None or self.particle_diameter is not None):
            raise InputError("has no meaning here", item="mask" if self.mask is not None else "particle_diameter",
                             rule="with --refine it stands in the TOML file")
        for names in (("alphas", "betas"), ("kappas_sparse", "kappas_variation")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) == 1:
                missing = next(name for name in names if name not in given)
                raise InputError(f"a scan needs {missing} as well", item=given[0], value=getattr(self, given[0]))
        if (self.alphas is None) == (self.kappas_sparse is None):
            raise InputError("a scan needs a grid of strengths", rule="either --alphas and --betas, or --kappas-sparse "
                             "and --kappas-variation")
        points = self.points()
        if self.refine is None:  # else the file may hold what is missing
            for point in points:
                self.at(point).check_regulariser()

    @property
    def is_in_paper_units(self) -> bool:
        """Whether strengths are alpha and beta of the paper, and not kappas."""
        return self.alphas is not None

    @property
    def names(self) -> tuple[str, str]:
        """What the two strengths are called."""
        return ("alpha", "beta") if self.is_in_paper_units else ("kappa_sparse", "kappa_variation")

    def points(self) -> list[tuple[float, float]]:
        """The grid (sparsity, total variation), one strength of sparsity after another."""
        lists = ("alphas", "betas") if self.is_in_paper_units else ("kappas_sparse", "kappas_variation")
        sparse, variation = (parse_strengths(name, getattr(self, name)) for name in lists)
        return [(one, two) for one in sparse for two in variation]

    def at(self, point: tuple[float, float]) -> RegulariserSettings:
        """The regulariser's settings at a point of the grid."""
        return RegulariserSettings(**self.changes(point))

    def changes(self, point: tuple[float, float]) -> dict[str, Any]:
        """What a point of the grid asks of the regulariser, by names of settings."""
        same = {entry.name: getattr(self, entry.name) for entry in fields(SparseTvSettings)}
        strength = "paper" if self.is_in_paper_units else "noise"
        return same | {"regulariser": "sparse-tv", "strength": strength} | dict(zip(self.names, point, strict=True))


def parse_strengths(name: str, text: str) -> tuple[float, ...]:
    """Strengths from ``0.4,0.5``, ascending; InputError for none, what is no number, out of range or given twice."""
    words = [word.strip() for word in text.split(",")]
    rule = "numbers with commas between them, 0.4,0.5"
    if not any(words):
        raise InputError("no strength is given", item=name, value=text, rule=rule)
    try:
        values = tuple(sorted(float(word) for word in words))
    except ValueError:
        raise InputError("not a list of numbers", item=name, value=text, rule=rule) from None
    for value in values:
        check_range(name, value, 0, 100)
    if len(set(values)) < len(values):
        raise InputError("a strength is given twice", item=name, value=text)
    return values


Checked = RefineSettings | ReconstructSettings | RegulariseSettings | NuFilterSettings | ScanSettings
