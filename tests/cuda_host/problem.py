# SPDX-License-Identifier: GPL-3.0-or-later
"""Random but seeded arguments for the kernels, with odd sizes so that no block is full."""

from __future__ import annotations

from typing import Any

import numpy as np

PADDING = 2
BOX = 40  # of the images whose disc this is


def disc(largest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kx, ky (J,) int32 sorted by shell and angle, and the shells' offsets (largest + 2,) int32, shell 0 empty."""
    axis = np.arange(-largest, largest + 1)
    ky, kx = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    shell = np.rint(np.hypot(kx, ky)).astype(int)
    keep = ((kx > 0) | ((kx == 0) & (ky > 0))) & (shell <= largest)
    kx, ky, shell = kx[keep], ky[keep], shell[keep]
    order = np.lexsort((np.arctan2(ky, kx), shell))
    offsets = np.searchsorted(shell[order], np.arange(largest + 2)).astype(np.int32)
    return kx[order].astype(np.int32), ky[order].astype(np.int32), offsets


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """White complex64 noise."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def hermitian_volume(rng: np.random.Generator, c: int) -> np.ndarray:
    """Random half volume (2c+1, 2c+1, c+1) complex64 whose plane x = 0 obeys Friedel's law."""
    volume = complex_normal(rng, 2 * c + 1, 2 * c + 1, c + 1)
    volume[:, :, 0] = (volume[:, :, 0] + np.conj(volume[::-1, ::-1, 0])) / 2
    return volume


def random_rotations(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3, 3) float32 proper rotations; the first ones are the identity and turns that exchange axes."""
    q, _ = np.linalg.qr(rng.standard_normal((count, 3, 3)))
    q *= np.linalg.det(q)[:, None, None]
    special = [np.eye(3), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[-1, 0, 0], [0, 1, 0], [0, 0, -1]]]
    q[: min(3, count)] = special[:count]
    return q.astype(np.float32)


def make_problem(
    seed: int = 1, *, largest: int = 11, images: int = 3, shifts: int = 5, candidates: int = 8
) -> dict[str, Any]:
    """Named arguments that the kernels share."""
    rng = np.random.default_rng(seed)
    kx, ky, offsets = disc(largest)
    c = int(np.ceil(PADDING * np.hypot(kx, ky).max())) + 2
    weights = rng.random((candidates, shifts), dtype=np.float32) * (rng.random((candidates, shifts)) < 0.7)
    weights[candidates // 2] = 0  # one candidate without weight
    return {
        "volume": hermitian_volume(rng, c),
        "rotations": random_rotations(rng, candidates),
        "owner": np.sort(rng.integers(0, images, candidates)).astype(np.int32),
        "images": complex_normal(rng, images, shifts, len(kx)),
        "ctf2": rng.random((images, len(kx)), dtype=np.float32),
        "weights": weights.astype(np.float32),
        "kx": kx,
        "ky": ky,
        "offsets": offsets,
        "data": complex_normal(rng, 2 * c + 1, 2 * c + 1, c + 1),
        "weight": rng.random((2 * c + 1, 2 * c + 1, c + 1), dtype=np.float32),
        "matrices": random_rotations(rng, 4),
        "run_offsets": np.sort(np.concatenate([[0], 1 + rng.permutation(candidates - 1)[: images - 1], [candidates]])
                               ).astype(np.int32),
        "grid_cross": rng.normal(0, 5, (images, shifts, 37 * candidates)).astype(np.float32),
        "grid_norm": rng.exponential(3, (images, 37 * candidates)).astype(np.float32),
        "grid_prior": -rng.exponential(2, (images, shifts)).astype(np.float32),
        "score": rng.normal(0, 4, (candidates, shifts)).astype(np.float32),
        "offsets_px": rng.uniform(-9, 9, (images, shifts, 2)).astype(np.float32),
    }


def make_sparse_tv_problem(side: int, seed: int = 1) -> dict[str, Any]:
    """Named arguments of the kernels of the sparse + TV prior, with forbidden voxels, flat regions and zero vectors."""
    rng = np.random.default_rng(seed)
    volumes = {name: rng.standard_normal((side, side, side)).astype(np.float32) for name in ("b", "w1", "x", "map")}
    volumes |= {name: rng.exponential(1, (side, side, side)).astype(np.float32) for name in ("a", "c")}
    volumes["w2"] = rng.standard_normal((3, side, side, side)).astype(np.float32)
    for name in ("w1", "w2", "c"):
        volumes[name][rng.random(volumes[name].shape) < 0.1] = 0  # some components of vectors, some thresholds
    volumes["w2"][:, rng.random((side, side, side)) < 0.1] = 0  # and some vectors
    volumes["map"][: side // 2] = 0
    forbidden = rng.random((side, side, side)) < 0.2
    volumes["a"][forbidden] = 1e20
    volumes["map"][forbidden] = 0  # x itself does not know what is forbidden
    return volumes


def run_sparse_tv(ops: Any, p: dict[str, Any], *, positive: bool) -> dict[str, Any]:
    """Results of every operation of the sparse + TV prior by name, as `run_all`; p stays as it is."""
    rho1, rho2, results = 1.7, 2.3, {}
    for reflect in (1, 2):
        right_side = ops.split_step(p["b"], p["w1"], p["w2"], p["a"], p["c"], rho1, rho2, reflect, positive)
        results[f"split_step {reflect}"] = right_side
    w1, w2 = p["w1"].copy(), p["w2"].copy()
    ops.relax_step(p["x"], w1, w2, p["a"], p["c"], rho1, rho2, 1.7, positive)
    results["w1"], results["w2"] = w1, w2
    results["sparse_prox"] = ops.sparse_prox(p["w1"], p["a"], rho1, positive)
    results["l1 norm"], results["TV norm"] = ops.penalties(p["map"], p["a"], p["c"])
    results["l1 weights"], results["TV weights"] = ops.penalty_weights(p["map"], 0.3, 0.1)
    results["smoothed_variation_gradient"] = ops.smoothed_variation_gradient(p["map"], p["c"], 0.8)
    return results


def make_nonuniform_problem(side: int, bin: int, seed: int = 1) -> dict[str, Any]:
    """Named arguments of the kernels of non-uniform filtering: maps, a weight with holes, errors, filters chosen."""
    rng = np.random.default_rng(seed)
    count = -(-side // bin)
    volumes = {name: rng.standard_normal((side, side, side)).astype(np.float32)
               for name in ("first", "second", "filtered1", "filtered2", "value", "best")}  # fmt: skip
    weight = rng.random((side, side, side)).astype(np.float32) * (rng.random((side, side, side)) < 0.7)
    return volumes | {
        "weight": weight.astype(np.float32),
        "transform": np.fft.rfftn(volumes["first"]).astype(np.complex64),
        "advantage": rng.standard_normal((count, count, count)).astype(np.float32),
        "chosen": rng.integers(0, 5, (side, side, side)).astype(np.uint8),
        "bin": bin,
    }


def run_nonuniform(ops: Any, p: dict[str, Any]) -> dict[str, Any]:
    """Results of every operation of non-uniform filtering by name, as `run_all`; p stays as it is."""
    results = {f"butterworth {order}": ops.butterworth(p["transform"], 2.7, order) for order in (1, 8, 50)}
    maps = (p["first"], p["second"], p["filtered1"], p["filtered2"], p["weight"])
    for correction in (0.0, 1.0):
        results[f"filtered_error {correction:g}"] = ops.filtered_error(*maps, correction, p["bin"])
    for taps in ([1.0], [0.2, 0.6, 0.2], [0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05]):
        results[f"window {len(taps)}"] = ops.window(p["advantage"], ops.xp.asarray(np.array(taps, np.float32)))
    chosen, best = p["chosen"].copy(), p["best"].copy()
    ops.take_better(p["advantage"], p["bin"], p["weight"], 7, p["value"], chosen, best)
    results["chosen"], results["best"] = chosen, best
    return results


def run_all(ops: Any, p: dict[str, Any]) -> dict[str, Any]:
    """Results of every operation of a back end, by name; arrays of p must already be where the back end wants them."""
    disc_arguments = (p["kx"], p["ky"], PADDING)
    results = {"extract_slices": ops.extract_slices(p["volume"], p["rotations"], *disc_arguments)}
    scores = (p["volume"], p["rotations"], p["owner"], p["images"], p["ctf2"], *disc_arguments)
    results["cross"], results["norm"] = ops.score_candidates(*scores)
    unmoved = p["images"][:, 0]  # not contiguous: a back end has to see to that
    results["shift_images"] = ops.shift_images(unmoved, p["offsets_px"], p["kx"], p["ky"], BOX)
    for kernel in ("trilinear", "gaussian"):
        data, weight = p["data"].copy(), p["weight"].copy()
        deposits = (p["images"], p["ctf2"], p["weights"], p["rotations"], p["owner"], *disc_arguments)
        ops.backproject(*deposits, data, weight, kernel)
        results[f"{kernel} data"], results[f"{kernel} weight"] = data, weight
        data, weight = p["data"].copy(), p["weight"].copy()
        ops.backproject(*deposits, data, weight, kernel, [0.005 * (-1) ** i for i in range(len(p["images"]))])
        results[f"curved {kernel} data"], results[f"curved {kernel} weight"] = data, weight
    data, weight = p["data"].copy(), p["weight"].copy()
    ops.complete_hermitian(data, weight)
    results["complete data"], results["complete weight"] = data, weight
    results["symmetrise data"], results["symmetrise weight"] = ops.symmetrise(data, weight, p["matrices"])
    results["sum_disc_shells"] = ops.sum_disc_shells(p["ctf2"], p["offsets"])
    results["sum_volume_shells"] = ops.sum_volume_shells(p["volume"], p["data"], PADDING, 10)
    results["mean_volume_shells"] = ops.mean_volume_shells(p["weight"], PADDING, 10)
    floor, prior = (ops.xp.asarray(values.astype(np.float32)) for values in np.outer([0.03, 0.1], np.arange(10)))
    results["quotient"] = ops.quotient(p["data"], p["weight"], floor, prior, PADDING)
    grid = (p["grid_cross"], p["grid_norm"], p["grid_prior"])
    results["best orientations"], results["best shifts"] = ops.grid_maxima(*grid)
    results["run_maxima"] = ops.run_maxima(p["score"], p["run_offsets"])
    results["run_sums"] = ops.run_sums(p["score"], p["run_offsets"])
    results["leaders"] = ops.leaders(p["score"][:, 0], p["run_offsets"], 4)
    results["mark_best"] = ops.mark_best(p["score"][:, 0], p["run_offsets"], 6.0, 2)
    names = ("weights", "tops", "masses", "significant")
    results |= dict(zip(names, ops.normalise_runs(p["score"], p["run_offsets"], 7.0), strict=True))
    results["product"] = ops.product(p["ctf2"], p["ctf2"][::-1])
    results["rfft"] = ops.rfft(p["ctf2"])
    results["fft"] = ops.fft(p["data"].copy(), 0)
    results["ifft"] = ops.ifft(p["data"].copy(), 1)
    results["irfft"] = ops.irfft(p["data"], 2 * p["data"].shape[2] - 2)
    return results
