# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: an exact round trip, and every kind of damage passed over."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from sparsecv import __version__
from sparsecv.engine.errors import InputError
from sparsecv.engine.refine.checkpoint import FORMAT, checkpoint_path, load_checkpoint, save_checkpoint
from sparsecv.engine.refine.state import HalfState, ParticleState, RefinementState

IDENTITY = {"particles": "in.star", "seed": 1, "mask": None, "initial_lowpass": 40.0}


def state_of(iteration: int) -> RefinementState:
    """A state in which every value is a random one."""
    rng = np.random.default_rng(iteration)
    particles = ParticleState.start(rng.normal(size=(7, 3, 3)), rng.normal(size=(7, 2)))
    particles.norm[:], particles.turned_deg[:] = rng.normal(size=7), np.nan
    particles.significant[:] = rng.integers(0, 99, 7)
    particles.is_rejected[3] = True
    halves = [
        HalfState(rng.normal(size=(6, 6, 6)).astype(np.float32), rng.random((2, 4)), rng.random(3),
                  *rng.random(3).tolist())
        for _ in "12"
    ]
    history = [{"iteration": number + 1, "stage": "global", "band": 5 + number, "turned_deg": rng.random()}
               for number in range(iteration)]
    return RefinementState(particles, (halves[0], halves[1]), rng.random(4), 9, "local", iteration, history,
                           {3: 'holds "NaN" \u2260 number'})


def assert_same(one: RefinementState, two: RefinementState) -> None:
    for entry in fields(ParticleState):
        first, second = getattr(one.particles, entry.name), getattr(two.particles, entry.name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    for half, other in zip(one.halves, two.halves, strict=True):
        for entry in fields(HalfState):
            first, second = getattr(half, entry.name), getattr(other, entry.name)
            assert type(first) is type(second)
            np.testing.assert_array_equal(first, second)
        assert half.reference.dtype == other.reference.dtype == np.float32
    np.testing.assert_array_equal(one.fsc, two.fsc)
    for name in ("band", "stage", "iteration", "history", "rejected"):
        assert getattr(one, name) == getattr(two, name)


def unexpected(text: str) -> None:
    raise AssertionError(text)


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    state = state_of(3)
    assert save_checkpoint(tmp_path, state, IDENTITY) == tmp_path / "run_it003_checkpoint.npz"
    found = load_checkpoint(tmp_path, unexpected)
    assert found is not None
    assert_same(found[0], state)
    assert found[1] == IDENTITY


def test_the_same_state_is_the_same_file(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, state_of(3), IDENTITY)
    loaded = load_checkpoint(tmp_path, unexpected)
    assert loaded is not None
    (tmp_path / "again").mkdir()
    second = save_checkpoint(tmp_path / "again", *loaded)
    with np.load(first) as one, np.load(second) as two:
        assert one.files == two.files
        assert all(one[name].tobytes() == two[name].tobytes() for name in one.files)


def test_two_are_kept(tmp_path: Path) -> None:
    for iteration in (8, 9, 10, 11):
        save_checkpoint(tmp_path, state_of(iteration), IDENTITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_it010_checkpoint.npz", "run_it011_checkpoint.npz"]
    found = load_checkpoint(tmp_path, unexpected)
    assert found is not None and found[0].iteration == 11


def test_numbers_beyond_three_digits_are_the_newest(tmp_path: Path) -> None:
    for iteration in (999, 1000):
        save_checkpoint(tmp_path, state_of(2), IDENTITY)
        checkpoint_path(tmp_path, 2).rename(checkpoint_path(tmp_path, iteration))
    (tmp_path / "run_itx_checkpoint.npz").write_bytes(b"something else")
    for path in (tmp_path / "run_it999_checkpoint.npz", tmp_path / "run_itx_checkpoint.npz"):
        assert path.exists()
    path = checkpoint_path(tmp_path, 1000)
    path.write_bytes(b"")
    said: list[str] = []
    assert load_checkpoint(tmp_path, said.append) is not None
    assert str(path) in said[0]


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, unexpected) is None
    assert load_checkpoint(tmp_path / "absent", unexpected) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(bytes(content))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state": 1}))


def object_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, plain=np.array([{"format": 1}], dtype=object))


def without_an_array(path: Path) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "half2.noise"}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def of_another_version(path: Path) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    written = f'"format": {FORMAT}'.encode()
    changed = arrays["plain"].tobytes().replace(written, b'"format": 9')
    assert changed != arrays["plain"].tobytes()
    arrays["plain"] = np.frombuffer(changed, dtype=np.uint8)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


@pytest.mark.parametrize(
    "damage", [truncate, cut_in_half, empty, flip_a_bit, pickled, object_array, without_an_array]
)
def test_a_damaged_newest_one_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_checkpoint(tmp_path, state_of(4), IDENTITY)
    damage(save_checkpoint(tmp_path, state_of(5), IDENTITY))
    said: list[str] = []
    found = load_checkpoint(tmp_path, said.append)
    assert found is not None
    assert_same(found[0], state_of(4))
    assert len(said) == 1 and "run_it005_checkpoint.npz is damaged" in said[0]


def test_one_of_another_version_is_no_damage(tmp_path: Path) -> None:
    """An older one must not be gone on with in its place: an iteration would be lost without a word."""
    save_checkpoint(tmp_path, state_of(4), IDENTITY)
    newest = save_checkpoint(tmp_path, state_of(5), IDENTITY)
    of_another_version(newest)
    with pytest.raises(InputError) as refused:
        load_checkpoint(tmp_path, unexpected)
    said = str(refused.value)
    assert said.startswith(f"{newest}, format: was written by another version of sparsecv ({__version__}) (value 9)")
    assert "remedy: go on with the version that began the run" in said


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(1), IDENTITY)
    whole = path.read_bytes()
    for position in np.random.default_rng(1).integers(0, len(whole), 300):
        content = bytearray(whole)
        content[position] ^= 255
        path.write_bytes(bytes(content))
        said: list[str] = []
        found = load_checkpoint(tmp_path, said.append)
        if found is None:
            assert said
        else:  # a byte of the zip format that carries no data
            assert_same(found[0], state_of(1))


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for iteration in (1, 2):
        truncate(save_checkpoint(tmp_path, state_of(iteration), IDENTITY))
    said: list[str] = []
    assert load_checkpoint(tmp_path, said.append) is None
    assert len(said) == 2
