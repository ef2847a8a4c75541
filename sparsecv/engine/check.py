# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv check``: what is installed, what it will compute on, and whether a small refinement comes out right."""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sparsecv.constants import DISTRIBUTION
from sparsecv.engine import machine
from sparsecv.engine.commands import Save, check_device
from sparsecv.engine.errors import printable
from sparsecv.engine.settings import check_range, option

PARTICLES, BOX, PIXEL_SIZE, SNR = 200, 32, 5.0, 0.5
EXPECTED = 12.0  # A at FSC = 0.5 against the truth: seeds 1 to 4 give 10.0 to 10.2 A, from a start at 40 A


@dataclass(frozen=True)
class CheckSettings:
    """What to check; checked itself when it is made."""

    device: str = option("auto", "where to compute", choices=("auto", "cpu", "gpu"))
    threads: int = option(0, "threads; 0 takes all cores")
    output: Path | None = option(None, "folder for results that is looked at, too: space, links (default: none)")
    no_run: bool = option(False, "only show what is installed")
    seed: int = option(1, "of the simulated particles and the refinement", expert=True)

    def __post_init__(self) -> None:
        check_range("threads", self.threads, 0, 4096)
        check_range("seed", self.seed, 0, 2**32 - 1)


SETTINGS = CheckSettings


def run(settings: CheckSettings, save: Save) -> int:
    """Print what is there and the outcome of the run; 0 if all is well, else 1. Writes nothing that stays."""
    found = machine.software()
    print(f"sparsecv {found.pop('sparsecv')}, Python {found.pop('Python')}, {platform.platform()}")
    print("packages: " + ", ".join(f"{name} {version}" for name, version in found.items()))
    missing = [name for name in machine.PACKAGES if machine.version(name) is None]
    if missing:
        print(f"FAIL: {', '.join(missing)} not installed; remedy: pip install '{DISTRIBUTION}[engine]'")
        return 1
    from sparsecv.engine.doctor import examine
    from sparsecv.engine.threads import use_threads

    threads = use_threads(settings.threads)
    for finding in examine(settings.device, threads, settings.threads, settings.output):
        for line in finding.lines():
            print(printable(line), flush=True)
    check_device(settings.device)
    if settings.no_run:
        return 0
    print(f"run: {PARTICLES} simulated particles of {BOX} pixels ...", flush=True)
    started = time.perf_counter()
    resolution = phantom_resolution(settings)
    seconds = time.perf_counter() - started
    is_right = resolution <= EXPECTED
    print(f"  {seconds:.0f} s, {resolution:.1f} A against the truth (at 0.5); {EXPECTED:g} A or better is expected")
    print("PASS" if is_right else "FAIL: the refinement did not come out right")
    return 0 if is_right else 1


def phantom_resolution(settings: CheckSettings) -> float:
    """Resolution in A of a small simulated refinement against its truth: at FSC = 0.5, inside the protein's mask."""
    from sparsecv.engine.io.mrc import read_map
    from sparsecv.engine.refine.run import refine
    from sparsecv.engine.refine.settings import RefineSettings
    from sparsecv.engine.simulate import SimulateSettings, simulate
    from sparsecv.engine.validate.fsc import HALF, fsc, resolution

    with tempfile.TemporaryDirectory(prefix="sparsecv-check-") as name:
        folder = Path(name)
        files = simulate(SimulateSettings(output=folder / "data", particles=PARTICLES, box=BOX, pixel_size=PIXEL_SIZE,
                                          snr=SNR, seed=settings.seed))
        refine(
            RefineSettings(particles=files.particles, reference=files.reference, output=folder / "run",
                           threads=settings.threads, device=settings.device, seed=settings.seed),
        )
        found, truth = read_map(folder / "run" / "run_class001.mrc"), read_map(files.truth_map)
        curve = fsc(found.data, truth.data, read_map(files.mask).data)
        return resolution(curve, HALF, BOX, PIXEL_SIZE).angstrom
