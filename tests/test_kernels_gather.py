# SPDX-License-Identifier: GPL-3.0-or-later
"""Backprojection by gathering on the GPU: the sums of scattering, the same bits each time, and the choice between them.

On the back ends that run the CUDA sources: through the host shim, and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from backends import Backend, opened, relative_error
from cuda_host.problem import PADDING, complex_normal, disc, make_problem

from sparsecv.kernels import cuda_backproject, reference
from sparsecv.kernels.cuda_backproject import Trial, can_gather, gather, scatter

NAMES = ("images", "ctf2", "weights", "rotations", "owner", "kx", "ky")


@pytest.fixture(params=["cuda-host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with opened(request.param) as backend:
        yield backend


def gathered(device: Backend, p: dict[str, Any], kernel: str, way: Any = gather) -> tuple[np.ndarray, np.ndarray]:
    data, weight = (device.up(p[name].copy()) for name in ("data", "weight"))
    way(*(device.up(p[name]) for name in NAMES), PADDING, data, weight, kernel)
    return device.ops.to_host(data), device.ops.to_host(weight)


@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
@pytest.mark.parametrize("sizes", [
    {}, {"largest": 5, "candidates": 2, "shifts": 1}, {"largest": 9, "candidates": 300, "images": 7, "shifts": 2},
    {"largest": 23, "candidates": 20, "images": 4},
])  # fmt: skip
def test_sums_are_the_definition(device: Backend, sizes: dict[str, int], kernel: str) -> None:
    """Few tiles and many, the last of them partial; fewer candidates than a block lists at once, and more."""
    p = make_problem(**sizes)
    expected = p["data"].astype(complex), p["weight"].astype(float)
    reference.backproject(*(p[name] for name in NAMES), PADDING, *expected, kernel)
    for found, wanted in zip(gathered(device, p, kernel), expected, strict=True):
        assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("kernel", ["trilinear", "gaussian"])
def test_pixels_on_voxels_and_on_the_plane_between_mates(device: Backend, kernel: str) -> None:
    """Quarter turns put pixels on voxels, many of them on x = 0, where a pixel and its mate must not both count."""
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    tip = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
    turns = [np.linalg.matrix_power(turn, n) @ np.linalg.matrix_power(tip, m) for n in range(4) for m in range(4)]
    p = make_problem(largest=7, candidates=len(turns)) | {"rotations": np.stack(turns).astype(np.float32)}
    expected = p["data"].astype(complex), p["weight"].astype(float)
    reference.backproject(*(p[name] for name in NAMES), PADDING, *expected, kernel)
    for found, wanted in zip(gathered(device, p, kernel), expected, strict=True):
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_same_bits_each_time(device: Backend) -> None:
    """The host shim runs the threads of a block in another order each time; a GPU does so by itself."""
    p = make_problem(largest=9, candidates=200, images=7)
    first, second = (gathered(device, p, "trilinear") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_gathered(device: Backend) -> None:
    kx, ky, _ = disc(6)
    up = device.up
    assert can_gather(up(kx), up(ky), 2)
    assert can_gather(up(kx.astype(np.float32)), up(ky.astype(np.float32)), 3)
    assert not can_gather(up(kx), up(ky), 1.5)  # more pixels reach a tile
    assert not can_gather(up(kx + np.float32(0.5)), up(ky.astype(np.float32)), 2)  # no whole frequencies
    mates = [up(np.concatenate([k, -k])) for k in (kx, ky)]
    assert not can_gather(*mates, 2)
    twice = [up(np.concatenate([k, k[:1]])) for k in (kx, ky)]
    assert not can_gather(*twice, 2)


def test_small_calls_scatter_and_large_ones_are_tried(device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way twice, then the faster one; all calls add the same, whichever way they went."""
    p, took = make_problem(), list[str]()
    cuda_backproject._trial.cache_clear()

    def counted(way: Any) -> Any:
        def call(*given: Any) -> None:
            took.append(way.__name__)
            way(*given)

        return call

    trials = {}

    def trial_of(device: int, shape: tuple[int, ...], kernel: str) -> Trial:
        return trials.setdefault((shape, kernel), Trial((counted(scatter), counted(gather))))

    monkeypatch.setattr(cuda_backproject, "_trial", trial_of)
    expected = p["data"].astype(complex), p["weight"].astype(float)
    for limit, calls in ((1e8, 1), (1, 6)):
        monkeypatch.setattr(cuda_backproject, "WORTH_A_TRIAL", limit)
        for _ in range(calls):
            reference.backproject(*(p[name] for name in NAMES), PADDING, *expected, "trilinear")
            arguments = (*(p[name] for name in NAMES), PADDING)
            device.call("backproject", *arguments, p["data"], p["weight"], "trilinear")
    assert took[:4] == ["scatter", "scatter", "gather", "gather"]
    assert len(took) == 6 and list(trials) == [(p["data"].shape, "trilinear")]
    for found, wanted in zip((p["data"], p["weight"]), expected, strict=True):
        assert relative_error(found, wanted) < 1e-5


def test_curved_slices_are_scattered_whatever_their_number(device: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering knows flat slices only; a trial of both would leave the curvature out in every other call."""
    monkeypatch.setattr(cuda_backproject, "WORTH_A_TRIAL", 1)
    monkeypatch.setattr(cuda_backproject, "_trial", lambda *key: pytest.fail("a trial of curved slices"))
    p = make_problem(largest=5)
    expected = p["data"].astype(complex), p["weight"].astype(float)
    arguments = (*(p[name] for name in NAMES), PADDING)
    bends = [0.01 * (-1) ** image for image in range(len(p["images"]))]
    reference.backproject(*arguments, *expected, "trilinear", bends)
    device.call("backproject", *arguments, p["data"], p["weight"], "trilinear", bends)
    for found, wanted in zip((p["data"], p["weight"]), expected, strict=True):
        assert relative_error(found, wanted) < 1e-5


class Clock:
    """Events in a stream that takes a given time for each way; nothing has happened before `ticks`."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.now, self.happened = seconds, 0.0, False

    def event(self) -> Any:
        clock = self

        class Event:
            at = 0.0

            def record(self) -> None:
                self.at = clock.now

            @property
            def done(self) -> bool:
                return clock.happened

        return Event()


@pytest.mark.parametrize(("seconds", "winner"), [({"a": 1.0, "b": 3.0}, "a"), ({"a": 3.0, "b": 1.0}, "b")])
def test_the_faster_way_wins_by_its_second_time(
    seconds: dict[str, float], winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of the faster way takes long, as it compiles; amounts differ; nobody waits for an event."""
    clock = Clock(seconds)

    class Cupy:
        class cuda:
            Event = staticmethod(clock.event)
            get_elapsed_time = staticmethod(lambda first, last: last.at - first.at)

    monkeypatch.setattr(cuda_backproject, "import_cupy", lambda: Cupy)
    ways = {name: (lambda: None) for name in seconds}
    names = {way: name for name, way in ways.items()}
    trial, taken = Trial(tuple(ways.values())), list[str]()
    for call in range(8):
        clock.happened = call > 4  # the device is behind
        amount = 100 * 4**call  # what is compared is the time for a pixel
        with trial.timed(amount) as way:
            name = names[way]
            is_first = name not in taken
            taken.append(name)
            clock.now += seconds[name] * amount + (1e6 if is_first and name == winner else 0)
    assert taken[:4] == ["a", "a", "b", "b"]
    assert taken[5:] == [winner] * 3


def test_a_way_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, device: Backend) -> None:
    trial = Trial((scatter, gather))
    with pytest.raises(MemoryError), trial.timed(1):
        raise MemoryError
    with trial.timed(1) as way:
        assert way is scatter
    assert trial.waiting == [scatter, gather, gather]


def test_nothing_to_gather(device: Backend) -> None:
    """No candidate with any weight: the sums stay as they are."""
    p = make_problem(largest=4)
    p["weights"][:] = 0
    p["images"] = complex_normal(np.random.default_rng(1), *p["images"].shape) * np.float32(np.nan)
    data, weight = gathered(device, p, "trilinear")
    np.testing.assert_array_equal(data, p["data"])
    np.testing.assert_array_equal(weight, p["weight"])
