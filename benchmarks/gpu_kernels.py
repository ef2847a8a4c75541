# SPDX-License-Identifier: GPL-3.0-or-later
"""Each kernel against its floor: the larger of bytes over bandwidth, FLOPs over peak, and additions over their rate.

    python benchmarks/gpu_kernels.py --box 256
    python benchmarks/gpu_kernels.py --device cpu --tiny

All ceilings are measured in the same run, see `device.py`; what a kernel must do at least is a formula in `work.py`.
A time is the median of many calls between two CUDA events. On the CPU times are CPU times, and the ceiling of additions
is a loop's, as there are no atomic ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import work
from common import save, table
from device import Ceilings, Device, ceilings, parse
from scipy.spatial.transform import Rotation
from work import Work

from sparsecv.engine.physics.disc import Disc, make_disc
from sparsecv.engine.physics.symmetry import symmetry_matrices
from sparsecv.engine.refine.schedule import CELLS_KEPT, GLOBAL_ORDER, SHIFTS_KEPT
from sparsecv.engine.refine.volumes import PADDING, half_width

HEADER = ("kernel", "case", "ms", "GB", "GFLOP", "1e9 adds", "floor ms", "set by", "x floor")
OCTAHEDRAL = "O"
# per voxel, of the steps of the sparse + TV solver
PRIOR_FLOPS = {"split_step": 55.0, "relax_step": 29.0, "sparse_prox": 2.0, "penalties": 13.0, "penalty_weights": 13.0,
               "smoothed_variation_gradient": 44.0}  # fmt: skip
# Functions of the namespace that are not timed: they ask or release, or hand on to another that is.
NOT_TIMED = {"to_host", "devices", "free_memory", "limit_memory", "release_memory", "is_out_of_memory",
             "product_precisions", "backprojection"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A kernel with arguments: its name in the namespace, what is special, how to call it, what it must do."""

    name: str
    what: str
    call: Callable[[], object]
    work: Work


@dataclass(frozen=True)
class Sizes:
    """Box of the images, and of maps; images, shifts, candidates of an image, images of the matrix product."""

    box: int
    side: int
    images: int
    shifts: int
    each: int
    rows: int

    @classmethod
    def of(cls, box: int, side: int, *, is_tiny: bool) -> Sizes:
        """Sizes that fill a GPU and its caches many times, or that show only that it runs."""
        if is_tiny:
            return cls(16, 16, 3, 2, 2, 2)
        return cls(box, side, max(8, int(192 * (256 / box) ** 2)), 4 * SHIFTS_KEPT, 8 * CELLS_KEPT, 64)


class Inputs:
    """Random arrays on the device: never zeros, which hide mistakes and may be faster."""

    def __init__(self, ops: Any) -> None:
        self.ops, self.rng = ops, np.random.default_rng(1)

    def real(self, *shape: int) -> Any:
        """Standard normal numbers, float32; a million of them, repeated, to be quick."""
        size = int(np.prod(shape))
        some = self.rng.standard_normal(min(size, 1 << 20), dtype=np.float32)
        # uploaded once and repeated there: the host would need longer for it than all measurements
        return self.ops.xp.resize(self.ops.xp.asarray(some), size).reshape(shape)

    def complex(self, *shape: int) -> Any:
        """Complex64 noise."""
        return self.real(*shape, 2).view(np.complex64)[..., 0]

    def rotations(self, count: int) -> Any:
        """Random ones, float32."""
        return self.ops.xp.asarray(Rotation.random(count, random_state=1).as_matrix().astype(np.float32))


def image_cases(device: Device, sizes: Sizes) -> Iterator[Case]:
    """What is done to images at full resolution."""
    ops, inputs, disc = device.ops, Inputs(device.ops), make_disc(sizes.box)
    xp, images, shifts, j = ops.xp, sizes.images, sizes.shifts, len(disc)
    pixels, c, reach = disc.on(xp), half_width(disc.last), work.reachable(disc.last)
    half = sizes.box // 2 + 1
    stack = inputs.real(images, sizes.box, sizes.box)
    yield Case(
        "rfft2",
        f"{images} images",
        lambda: ops.rfft2(stack),
        work.fft(images * sizes.box**2, sizes.box**2, stack.nbytes, 8 * images * sizes.box * half),
    )
    flat, moves = inputs.complex(images, j), inputs.real(images, shifts, 2)
    yield Case(
        "shift_images",
        f"{shifts} shifts",
        lambda: ops.shift_images(flat, moves, pixels.kx, pixels.ky, sizes.box),
        work.shift_images(images, shifts, j),
    )
    values = inputs.real(images, j)
    yield Case(
        "sum_disc_shells",
        f"{images} images",
        lambda: ops.sum_disc_shells(values, pixels.offsets),
        work.sum_disc_shells(images, j, disc.last + 1),
    )
    volume, candidates = inputs.complex(2 * c + 1, 2 * c + 1, c + 1), images * sizes.each
    rotations = inputs.rotations(candidates)
    some = rotations[: max(1, candidates // 16)]
    yield Case(
        "extract_slices",
        f"{len(some)} slices",
        lambda: ops.extract_slices(volume, some, pixels.kx, pixels.ky, PADDING),
        work.extract_slices(len(some), j, reach),
    )
    owner = xp.repeat(xp.arange(images, dtype=xp.int32), sizes.each)
    moved, ctf2 = inputs.complex(images, shifts, j), xp.abs(inputs.real(images, j))
    yield Case(
        "score_candidates",
        f"{sizes.each} x {shifts} of an image",
        lambda: ops.score_candidates(volume, rotations, owner, moved, ctf2, pixels.kx, pixels.ky, PADDING),
        work.score_candidates(candidates, images, shifts, j, reach),
    )
    yield from deposit_cases(ops, inputs, disc, moved, ctf2)


def deposit_cases(ops: Any, inputs: Inputs, disc: Disc, moved: Any, ctf2: Any) -> Iterator[Case]:
    """Backprojection of eight orientations of each image with one shift that has weight, as fine searches have it.

    Poses of an image lie within a few degrees, those of images anywhere; the other case has all of them along one view,
    where additions meet. A GPU does it in two ways; a refinement takes the faster one, which it finds for itself.
    """
    xp, (images, shifts, j) = ops.xp, moved.shape
    pixels, c, each = disc.on(xp), half_width(disc.last), 8
    near = Rotation.from_rotvec(inputs.rng.normal(0, 0.03, (images * each, 3)))
    spread = (near * Rotation.random(images, random_state=2)[np.repeat(np.arange(images), each)]).as_matrix()
    owner = xp.repeat(xp.arange(images, dtype=xp.int32), each)
    weights = np.zeros((images * each, shifts), np.float32)
    weights[np.arange(len(weights)), inputs.rng.integers(0, shifts, len(weights))] = 1 / each
    data, weight = (xp.zeros((2 * c + 1, 2 * c + 1, c + 1), dtype=dtype) for dtype in ops.SUMS)
    for kernel, what, turns in (("trilinear", "all views", spread), ("trilinear", "one view", near.as_matrix()),
                                ("gaussian", "all views", spread)):  # fmt: skip
        places = xp.asarray(weights), xp.asarray(turns.astype(np.float32)), owner
        needed = work.backproject(images * each, images, 1, j, work.reachable(disc.last), kernel)  # shifts with weight
        for way, (function, own) in _ways(ops, needed).items():
            sums = pixels.kx, pixels.ky, PADDING, data, weight, kernel
            call = functools.partial(function, moved, ctf2, *places, *sums)
            yield Case("backproject", ", ".join(filter(None, (kernel, what, way))), call, own)


def _ways(ops: Any, needed: Work) -> dict[str, tuple[Callable[..., None], Work]]:
    """How backprojection is done, and what it must do at least: gathering adds nothing to shared memory."""
    if ops.name != "cuda":
        return {"": (ops.backproject, needed)}
    from sparsecv.kernels.cuda_backproject import gather, scatter

    return {"scattered": (scatter, needed), "gathered": (gather, replace(needed, adds=0.0))}


def grid_cases(device: Device, sizes: Sizes) -> Iterator[Case]:
    """The exhaustive level: products with all orientations, and from their scores to posteriors."""
    ops, inputs = device.ops, Inputs(device.ops)
    xp, tiny = ops.xp, sizes.box < 32
    orientations = 40 if tiny else 12 * 4**GLOBAL_ORDER * 6 * 2**GLOBAL_ORDER
    j = 30 if tiny else 320  # at 15 degrees, with 180 A and shells of 270 A
    images, shifts = sizes.rows, 3 if tiny else 29
    left, right = inputs.real(images * shifts, 2 * j), inputs.real(orientations, 2 * j)
    for kind in ops.product_precisions():
        yield Case(
            "product",
            f"grid, {kind}",
            functools.partial(ops.product, left, right, kind),
            work.product(images * shifts, orientations, 2 * j, kind),
        )
    big = inputs.real(64 if tiny else 4096, 64 if tiny else 4096)
    for kind in ops.product_precisions():
        yield Case(
            "product",
            f"{len(big)}^3, {kind}",
            functools.partial(ops.product, big, big, kind),
            work.product(len(big), len(big), len(big), kind),
        )
    cross, norm = inputs.real(images, shifts, orientations), inputs.real(images, orientations)
    prior = inputs.real(images, shifts)
    yield Case(
        "grid_maxima",
        f"{images} images",
        lambda: ops.grid_maxima(cross, norm, prior),
        work.grid_maxima(images, shifts, orientations),
    )
    best = inputs.real(images * orientations)
    equal = xp.arange(images + 1, dtype=xp.int32) * xp.int32(orientations)
    yield Case(
        "mark_best",
        "of the grid",
        lambda: ops.mark_best(best, equal, 8.0, CELLS_KEPT),
        work.runs(images * orientations, images, 1, images * orientations),
    )
    yield Case(
        "leaders",
        "of the grid",
        lambda: ops.leaders(best, equal, SHIFTS_KEPT),
        work.runs(images * orientations, images, 1, 4 * images * SHIFTS_KEPT),
    )
    each = sizes.each
    score, offsets = inputs.real(images * each, shifts), xp.arange(images + 1, dtype=xp.int32) * xp.int32(each)
    yield Case(
        "run_maxima",
        f"{each} x {shifts}",
        lambda: ops.run_maxima(score, offsets),
        work.runs(images * each, images, shifts, 4 * images * shifts),
    )
    yield Case(
        "normalise_runs",
        f"{each} x {shifts}",
        lambda: ops.normalise_runs(score, offsets, 5.5),
        work.runs(images * each, images, shifts, 4 * images * each * shifts + 16 * images),
    )
    sums = score[:, :1].astype(xp.float64)
    yield Case(
        "run_sums",
        f"{each}",
        lambda: ops.run_sums(sums, offsets),
        work.runs(images * each, images, 1, 8 * images, size=8),
    )


def volume_cases(device: Device, sizes: Sizes) -> Iterator[Case]:
    """What is done to Fourier volumes and maps."""
    ops, inputs, disc = device.ops, Inputs(device.ops), make_disc(sizes.box)
    xp, c, shells = ops.xp, half_width(disc.last), disc.last + 1
    shape = (2 * c + 1, 2 * c + 1, c + 1)
    data, weight = inputs.complex(*shape), xp.abs(inputs.real(*shape))
    matrices = symmetry_matrices(OCTAHEDRAL)
    group = xp.asarray(matrices.astype(np.float32))
    yield Case(
        "complete_hermitian", "plane x = 0", lambda: ops.complete_hermitian(data, weight), work.complete_hermitian(c)
    )
    yield Case("symmetrise", OCTAHEDRAL, lambda: ops.symmetrise(data, weight, group), work.symmetrise(c, len(matrices)))
    yield Case(
        "sum_volume_shells",
        "",
        lambda: ops.sum_volume_shells(data, data, PADDING, shells),
        work.sum_volume_shells(c, shells),
    )
    yield Case(
        "mean_volume_shells",
        "",
        lambda: ops.mean_volume_shells(weight, PADDING, shells),
        work.mean_volume_shells(c, shells),
    )
    floor = xp.ones(shells, dtype=xp.float32)
    yield Case("quotient", "", lambda: ops.quotient(data, weight, floor, floor, PADDING), work.quotient(c))
    yield from transform_cases(ops, inputs, PADDING * sizes.box)
    yield from prior_cases(ops, inputs, sizes.side)


def transform_cases(ops: Any, inputs: Inputs, side: int) -> Iterator[Case]:
    """Transforms of a whole map, as priors take them, and along one axis of blocks of planes, as volumes do."""
    cube, half = side**3, side // 2 + 1
    density = inputs.real(side, side, side)
    transform = ops.rfftn(density)
    plain = 4.0 * cube, 8.0 * side**2 * half
    yield Case("rfftn", f"{side}^3", lambda: ops.rfftn(density), work.fft(cube, cube, *plain))
    # it may overwrite what it is given; what it leaves is as good a transform for the next call
    yield Case("irfftn", f"{side}^3", lambda: ops.irfftn(transform, side), work.fft(cube, cube, *plain[::-1]))
    # not contiguous, so that what may be overwritten is a copy, made of it on the way as in the engine
    planes, lines = transform[:, : side // 8], density[: side // 4]
    complex_ = work.fft(2 * planes.size, side, 8.0 * planes.size, 8.0 * planes.size)
    yield Case("fft", "axis 0", lambda: ops.fft(planes, 0), complex_)
    yield Case("ifft", "axis 0", lambda: ops.ifft(planes, 0), complex_)
    real = 4.0 * lines.size, 8.0 * lines.size / side * half
    yield Case("rfft", "last axis", lambda: ops.rfft(lines), work.fft(lines.size, side, *real))
    halves = ops.rfft(lines)
    yield Case("irfft", "last axis", lambda: ops.irfft(halves, side), work.fft(lines.size, side, *real[::-1]))


def prior_cases(ops: Any, inputs: Inputs, side: int) -> Iterator[Case]:
    """Steps of the sparse + TV solver and of the non-uniform filter's bank."""
    xp, shape = ops.xp, (side, side, side)
    x, b, w1, a, c = (inputs.real(*shape) for _ in "xb1ac")
    a, c, w2 = xp.abs(a), xp.abs(c), inputs.real(3, *shape)
    what = f"{side}^3"
    yield Case(
        "split_step",
        what,
        lambda: ops.split_step(b, w1, w2, a, c, 1.0, 1.0, 2.0),
        work.voxelwise(side, 7, 1, PRIOR_FLOPS["split_step"]),
    )
    yield Case(
        "relax_step",
        what,
        lambda: ops.relax_step(x, w1, w2, a, c, 1.0, 1.0, 0.5),
        work.voxelwise(side, 7, 4, PRIOR_FLOPS["relax_step"]),
    )
    yield Case(
        "sparse_prox", what, lambda: ops.sparse_prox(w1, a, 1.0), work.voxelwise(side, 2, 1, PRIOR_FLOPS["sparse_prox"])
    )
    yield Case("penalties", what, lambda: ops.penalties(x, a, c), work.voxelwise(side, 3, 0, PRIOR_FLOPS["penalties"]))
    yield Case(
        "penalty_weights",
        what,
        lambda: ops.penalty_weights(x, 1.0, 1.0),
        work.voxelwise(side, 1, 2, PRIOR_FLOPS["penalty_weights"]),
    )
    yield Case(
        "smoothed_variation_gradient",
        what,
        lambda: ops.smoothed_variation_gradient(x, c, 1.0),
        work.voxelwise(side, 2, 1, PRIOR_FLOPS["smoothed_variation_gradient"]),
    )
    half = inputs.complex(side, side, side // 2 + 1)
    yield Case("butterworth", what, lambda: ops.butterworth(half, side / 4, 8), work.butterworth(side, 8))
    size = 4
    yield Case(
        "filtered_error",
        f"{what}, bins of {size}",
        lambda: ops.filtered_error(x, b, w1, x, a, 1.0, size),
        work.voxelwise(side, 5, 1 / size**3, 10),
    )
    bins, taps = -(-side // size), xp.asarray(np.full(9, 1 / 9, np.float32))
    errors = inputs.real(bins, bins, bins)
    yield Case("window", f"{bins}^3, 9 taps", lambda: ops.window(errors, taps), work.window(bins, 9))
    chosen = xp.zeros(shape, dtype=xp.uint8)
    # about half of the voxels take the new value
    yield Case(
        "take_better",
        what,
        lambda: ops.take_better(errors, size, a, 1, x, chosen, b),
        work.voxelwise(side, 1 + 0.5, 0.5 * 1.25, 21),
    )


def link_cases(device: Device, sizes: Sizes) -> Iterator[Case]:
    """Images that come from the host while those before are worked on (by nobody, here)."""
    ops, rng = device.ops, np.random.default_rng(1)
    count = sizes.images
    images = rng.standard_normal((count, sizes.box, sizes.box), dtype=np.float32)
    batches = [np.arange(count)] * 4

    def read_all() -> None:
        for _ in ops.prefetched(lambda index: images[: len(index)], batches, images.shape[1:]):
            pass

    yield Case("prefetched", f"4 x {count} images", read_all, Work(0, link_bytes=4.0 * images.nbytes))


def measured(device: Device, case: Case, known: Ceilings, repeats: int) -> list[object]:
    """A row of the table."""
    seconds = device.seconds(case.call, repeats)
    times = case.work.times(known.bandwidth, known.flops, known.adds, known.link)
    limit = max(times, key=lambda name: times[name])
    counts = [(case.work.bytes + case.work.link_bytes) / 1e9, case.work.flops / 1e9, case.work.adds / 1e9]
    floor = times[limit]
    return [case.name, case.what, 1e3 * seconds, *counts, 1e3 * floor, limit, seconds / floor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(__doc__, arguments, ("--box", {"type": int, "default": 256, "help": "of the images"}),
                  ("--side", {"type": int, "default": 512, "help": "of the maps that priors work on"}),
                  ("--repeats", {"type": int, "default": 30}))  # fmt: skip
    device: Device = given.device
    sizes, repeats = Sizes.of(given.box, given.side, is_tiny=given.tiny), 2 if given.tiny else given.repeats
    print(device.name)
    known = ceilings(device, is_tiny=given.tiny)
    table("gpu_ceilings", ("ceiling", "measured"), known.rows())
    rows = []
    for family in (image_cases, grid_cases, volume_cases, link_cases):
        for case in family(device, sizes):
            rows.append(measured(device, case, known, repeats))
        device.forget()
    table("gpu_kernels", HEADER, rows)
    save("gpu_kernels", {"device": device.name, "sizes": asdict(sizes), "ceilings": asdict(known), "rows": rows})


if __name__ == "__main__":
    main()
