# SPDX-License-Identifier: GPL-3.0-or-later
"""What a prior makes of the sums of one half: time and memory at several boxes, beside the least that memory allows.

    python benchmarks/gpu_priors.py --boxes 256 384 512
    python benchmarks/gpu_priors.py --device cpu --tiny

The sums are those of a phantom seen from everywhere, with noise as its weights have it. Each time is of the whole step
as a refinement calls it (`Regulariser.regularise`): for sparse + TV with the choice of its strengths by held-out data.
The floor adds up what the transforms and the prior's own kernels must move at least (`work.py`), over the bandwidth of
a copy in the same run; plain array operations between them are not in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import work
from common import save, table
from device import Device, ceilings, parse
from synthetic import DIAMETER, LENGTH, phantom

from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.refine.regularisers import Evidence, make_regulariser
from sparsecv.engine.refine.settings import REGULARISERS, RegulariserSettings
from sparsecv.engine.refine.volumes import Accumulator, map_to_volume

HEADER = ("box", "prior", "s", "transforms", "kernels", "GB", "floor s", "x floor", "peak GB")
WEIGHT, FALL = 1e4, 0.25  # of the first shell, and the shell (of Nyquist) where it has fallen to half of that
NOISY = 3.0  # noise over signal in the last shell


def evidence_of(ops: Any, box: int) -> Evidence:
    """Sums of two quarters of a half set, and what else a regulariser is given."""
    xp, pixel_size = ops.xp, LENGTH / box
    density = phantom(box)
    last = (box - 1) // 2
    volume = map_to_volume(ops, xp.asarray(density), last)
    c = volume.shape[2] - 1
    k = xp.arange(-c, c + 1, dtype=xp.float32)
    radius = xp.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, c:] ** 2)
    weight = xp.float32(WEIGHT) / (1 + (radius / xp.float32(c * FALL)) ** 2)
    del radius
    level = float(xp.sqrt((xp.abs(volume) ** 2).mean())) * np.sqrt(WEIGHT)
    rng = np.random.default_rng(1)
    quarters = []
    for _ in "12":
        some = rng.standard_normal((1 << 20, 2), dtype=np.float32).view(np.complex64)[:, 0]
        noise = xp.resize(xp.roll(xp.asarray(some), int(rng.integers(1 << 20))), volume.size).reshape(volume.shape)
        data = weight * volume + xp.float32(NOISY * level) * xp.sqrt(weight) * noise / xp.float32(np.sqrt(WEIGHT))
        quarters.append(Accumulator(data.astype(xp.complex64), weight, box, last))
    round_mask = xp.asarray(sphere(box, DIAMETER / 2 / pixel_size))
    curve = 1 / (1 + np.exp((np.arange(last + 1) - 0.6 * last) / (0.05 * last)))
    previous = xp.asarray(density) * round_mask
    return Evidence((quarters[0], quarters[1]), previous, curve, round_mask, round_mask, box, pixel_size, 2, last // 2)


class Ledger:
    """Kernels that keep account of what they must move at least; all else is handed on."""

    def __init__(self, ops: Any) -> None:
        self._ops, self.bytes, self.transforms, self.kernels = ops, 0.0, 0, 0
        self._known: dict[str, Callable[..., work.Work]] = {
            "rfftn": lambda x: work.fft(1, 2, 4.0 * x.size, 8.0 * len(x) ** 2 * (len(x) // 2 + 1)),
            "irfftn": lambda x, box: work.fft(1, 2, 8.0 * x.size, 4.0 * box**3),
            "rfft": lambda x: work.fft(1, 2, 4.0 * x.size, 8.0 * x.size / x.shape[-1] * (x.shape[-1] // 2 + 1)),
            "fft": lambda x, axis: work.fft(1, 2, 8.0 * x.size, 8.0 * x.size),
            "ifft": lambda x, axis: work.fft(1, 2, 8.0 * x.size, 8.0 * x.size),
            "irfft": lambda x, size: work.fft(1, 2, 8.0 * x.size, 4.0 * x.size / x.shape[-1] * size),
            "split_step": lambda b, *_: work.voxelwise(len(b), 7, 1, 0),
            "relax_step": lambda b, *_: work.voxelwise(len(b), 7, 4, 0),
            "sparse_prox": lambda b, *_: work.voxelwise(len(b), 2, 1, 0),
            "penalties": lambda b, *_: work.voxelwise(len(b), 3, 0, 0),
            "penalty_weights": lambda b, *_: work.voxelwise(len(b), 1, 2, 0),
            "butterworth": lambda x, *_: work.butterworth(len(x), 0),
            "filtered_error": lambda b, *_: work.voxelwise(len(b), 5, 0, 0),
            "take_better": lambda _, __, weight, *___: work.voxelwise(len(weight), 1.5, 0.6, 0),
            "quotient": lambda data, *_: work.quotient(data.shape[2] - 1),
        }

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._ops, name)
        if name not in self._known:
            return function

        def run(*arguments: Any, **options: Any) -> Any:
            self.bytes += self._known[name](*arguments).bytes
            if "fft" in name:
                self.transforms += 1
            else:
                self.kernels += 1
            return function(*arguments, **options)

        return run


def measured(device: Device, evidence: Evidence, name: str, bandwidth: float, repeats: int) -> list[object]:
    """A row of the table."""
    prior = make_regulariser(RegulariserSettings(regulariser=name))
    ledger = Ledger(device.ops)
    prior.regularise(ledger, evidence)  # warms up and counts
    times = []
    for _ in range(repeats):
        first = device.mark()
        prior.regularise(device.ops, evidence)
        last = device.mark()
        device.synchronize()
        times.append(device.between(first, last))
    seconds, floor = statistics.median(times), ledger.bytes / bandwidth
    return [evidence.box, name, seconds, ledger.transforms, ledger.kernels, ledger.bytes / 1e9, floor, seconds / floor,
            device.peak_bytes() / 1e9]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(__doc__, arguments, ("--boxes", {"type": int, "nargs": "+", "default": [256, 384, 512]}),
                  ("--priors", {"nargs": "+", "default": list(REGULARISERS), "choices": list(REGULARISERS)}),
                  ("--repeats", {"type": int, "default": 3}))  # fmt: skip
    device: Device = given.device
    boxes, repeats = ([48], 1) if given.tiny else (given.boxes, given.repeats)
    bandwidth = ceilings(device, is_tiny=given.tiny).bandwidth
    rows = []
    for box in boxes:
        evidence = evidence_of(device.ops, box)
        for name in given.priors:
            device.forget()
            rows.append(measured(device, evidence, name, bandwidth, repeats))
            save("gpu_priors", {"device": device.name, "bandwidth": bandwidth, "rows": rows})
        del evidence
        device.forget()
    print(device.name)
    table("gpu_priors", HEADER, rows)


if __name__ == "__main__":
    main()
