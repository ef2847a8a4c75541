# SPDX-License-Identifier: GPL-3.0-or-later
"""Where images come from: the device's memory, or the disc by a thread that reads ahead."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from backends import Backend
from cuda_host.fake_cupy import Stream
from tiny import write_particles

from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.refine.image_store import ImageStore

COUNT, BOX = 30, 16
BATCHES = [np.arange(0, 7), np.array([20, 3, 8]), np.arange(9, 16), np.array([29])]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    """Images of noise, one of them without contrast, some very loud or very quiet."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(COUNT, BOX, BOX)) * 10.0 ** rng.integers(-9, 9, (COUNT, 1, 1)) + 3.0
    images[8] = 0
    return write_particles(tmp_path_factory.mktemp("images"), COUNT, BOX, noise=images)


def given(store: ImageStore, backend: Backend) -> list[np.ndarray]:
    return [backend.down(images).copy() for _, images in store.batches(BATCHES)]


@pytest.mark.parametrize(("capacity", "kept"), [(0, 0), (12, 11), (40, 18)])
def test_images_are_those_of_the_stack(backend: Backend, table: ParticleTable, capacity: int, kept: int) -> None:
    """Streamed, partly resident, resident; in a second pass too, and one by one."""
    wanted = [table.read_images(index)[0] for index in BATCHES]
    store = ImageStore(backend.ops, table, capacity)
    for _ in range(2):
        for found, expected in zip(given(store, backend), wanted, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert store.resident == kept
    mixed = np.array([25, 3, 26, 20])
    np.testing.assert_array_equal(backend.down(store.get(mixed)), table.read_images(mixed)[0])


def test_what_is_resident_is_read_once(backend: Backend, table: ParticleTable, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = ParticleTable.read_images
    monkeypatch.setattr(ParticleTable, "read_images", lambda self, which: read.extend(which) or whole(self, which))
    store = ImageStore(backend.ops, table, 12)
    given(store, backend)
    assert sorted(read) == sorted(np.concatenate(BATCHES))
    read.clear()
    given(store, backend)
    assert read == [*range(9, 16)]  # the batch that had no room


def test_float16_keeps_images_of_any_scale(backend: Backend, table: ParticleTable) -> None:
    """The error stays at the rounding of 11 bits whatever the units of a stack: nothing overflows or vanishes."""
    store = ImageStore(backend.ops, table, COUNT, "float16")
    for _ in range(2):  # the same in the pass that reads them
        for found, index in zip(given(store, backend), BATCHES, strict=True):
            expected = table.read_images(index)[0].astype(float)
            error = np.linalg.norm(found - expected, axis=(1, 2))
            assert (error <= 2.0**-11 * np.linalg.norm(expected, axis=(1, 2))).all()
            assert np.abs(found - expected).max() > 0  # it was rounded
    assert not backend.down(store.get(np.array([8]))).any()


def test_float16_adds_a_ten_millionth_of_the_noise() -> None:
    """The figure in the docstring, for white noise."""
    noise = np.random.default_rng(1).standard_normal(10**5).astype(np.float32)
    peak = np.abs(noise).max() / 2.0**14
    error = (noise / peak).astype(np.float16).astype(np.float32) * peak - noise
    assert 3e-8 < (error**2).mean() / (noise**2).mean() < 1e-7


@pytest.mark.parametrize("stops_at", [0, 1, 3])
def test_a_fault_of_the_reader_reaches_the_caller(backend: Backend, stops_at: int) -> None:
    def read(index: np.ndarray) -> np.ndarray:
        if index[0] == BATCHES[stops_at][0]:
            raise OSError("the disc is gone")
        return np.zeros((len(index), 2, 2), np.float32)

    seen = 0
    with pytest.raises(OSError, match="gone"):
        for _ in backend.ops.prefetched(read, BATCHES, (2, 2)):
            seen += 1
    assert seen <= stops_at
    assert threading.active_count() == 1 or not any("reader" in thread.name for thread in threading.enumerate())


def test_nothing_to_read(backend: Backend) -> None:
    assert list(backend.ops.prefetched(lambda index: index, [], (2, 2))) == []


def test_who_stops_early_leaves_no_thread(backend: Backend) -> None:
    stream: Iterator[Any] = backend.ops.prefetched(lambda i: np.zeros((len(i), 2, 2), np.float32), BATCHES, (2, 2))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not any("reader" in thread.name for thread in threading.enumerate())


def test_buffers_wait_for_copies_and_for_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: work on a batch follows its copy, and a copy the work on the batch that had its buffer before."""
    from backends import opened
    from cuda_host import fake_cupy

    log: list[str] = []

    class Event:
        names = iter(("copied 0", "used 0", "copied 1", "used 1"))

        def __init__(self, disable_timing: bool = False) -> None:
            self.name = next(Event.names)

        def record(self, stream: Any = None) -> None:
            log.append(f"record {self.name}")

        def synchronize(self) -> None:
            log.append(f"synchronize {self.name}")

    monkeypatch.setattr(Stream, "wait_event", lambda self, event: log.append(f"wait {event.name}"))
    with opened("cuda-host") as backend:
        cupy = sys.modules["cupy"]
        monkeypatch.setattr(cupy.cuda, "Event", Event)
        set_ = fake_cupy.ndarray.set
        monkeypatch.setattr(fake_cupy.ndarray, "set", lambda *a: log.append("copy") or set_(*a))
        batches = [np.array([number]) for number in range(5)]
        stream = backend.ops.prefetched(lambda index: np.full((1, 2), index, np.float32), batches, (2,))
        for number, images in enumerate(stream):
            assert float(images[0, 0]) == number
            log.append(f"work {number}")
    for number in range(5):
        buffer, work = number % 2, log.index(f"work {number}")
        assert f"wait copied {buffer}" in log[:work]
        before = log[log.index(f"work {number - 2}") if number > 1 else 0 : work]
        order = [before.index(step) for step in (f"record used {buffer}", f"synchronize copied {buffer}",
                                                 f"wait used {buffer}")]  # fmt: skip
        assert order[0] < order[2] and order[1] < order[2] < before.index(f"record copied {buffer}", order[2])
