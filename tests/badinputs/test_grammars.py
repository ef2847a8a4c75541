# SPDX-License-Identifier: GPL-3.0-or-later
"""Files made after the grammars of STAR, MRC and .cs, and damaged: they are read, or refused with an InputError.

Whatever else is raised, a reader that takes longer than the test's time, or one that asks for more than 1 GB, fails.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from corpus.bombs import npz_bombs
from fuzz import cs_target, mrc_target, seeds, star_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.cs_table import ALIGNMENT, NEW
from sparsecv.engine.io.mrc import ImageStack, read_map
from sparsecv.engine.io.npz import read_npz, write_npz

MOST_MEMORY = 1 << 30
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(120)]
QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """No test may ask for more than 1 GB beyond what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, changes: int = 4) -> bytes:
    """Some bytes of a file changed, removed, inserted or repeated, or its end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, changes))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        how = draw(st.sampled_from(("change", "remove", "insert", "repeat", "cut")))
        length = draw(st.integers(1, 40))
        if how == "change":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "remove":
            del content[place : place + length]
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        elif how == "repeat":
            content[place:place] = content[place : place + length]
        else:
            del content[place:]
    return bytes(content)


# --------------------------------------------------------------------------------------------------------------- STAR
NAMES = ("rlnImageName", "rlnVoltage", "rlnDefocusU", "rlnOpticsGroup", "rlnRandomSubset", "rlnImagePixelSize",
         "rlnSphericalAberration", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnMagnification", "rlnImageSize",
         "rlnDetectorPixelSize", "rlnOriginX", "rlnOriginY", "rlnGroupName", "rlnOther")  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(("1", "2", "0", "-1", "300", "2.7", "1e4", "nan", "1e999", "1@a.mrcs", "2@a.mrcs", "'a b'", "''",
                     '"it\'s"', "?", ".", "'open", ";", "#", "_x", "data_", "loop_", "1_0", "0x1", "[0,1]", "\x7f")),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=9),
)  # fmt: skip
BREAKS = st.sampled_from(("\n",) * 12 + ("\n\n", "\r\n", " \n", "", "\n# note\n", "\n;\n", "\t\n"))


@st.composite
def star_texts(draw: st.DrawFn) -> bytes:
    """Tables of rows and of single values that are nearly right."""
    text = ""
    for _ in range(draw(st.integers(1, 3))):
        text += (
            draw(BREAKS) + "data_" + draw(st.sampled_from(("optics", "particles", "images", "", "x"))) + draw(BREAKS)
        )
        columns = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9, unique=draw(st.booleans())))
        if draw(st.booleans()):
            text += "loop_" + draw(BREAKS)
            text += "".join(f"_{name} #{k}{draw(BREAKS)}" for k, name in enumerate(columns, 1))
            for _ in range(draw(st.integers(0, 4))):
                count = len(columns) + draw(st.sampled_from((0,) * 9 + (-1, 1)))
                text += " ".join(draw(VALUES) for _ in range(count)) + draw(BREAKS)
        else:
            text += "".join(f"_{name} {draw(VALUES)}{draw(BREAKS)}" for name in columns)
    return text.encode("latin-1")


@QUICK
@given(content=st.one_of(star_texts(), *(damaged(seed) for seed in seeds("star")), st.binary(max_size=200)))
def test_star(tmp_path: Path, content: bytes) -> None:
    star_target(tmp_path)(content)


# ---------------------------------------------------------------------------------------------------------------- MRC
@st.composite
def mrc_files(draw: st.DrawFn) -> bytes:
    """A header whose words are right, nearly right or wild, and any number of bytes behind it."""
    words = np.zeros(256, dtype="<i4")
    words[:4] = draw(st.lists(st.sampled_from((1, 2, 4, 4, 4)), min_size=4, max_size=4))
    words[3] = draw(st.sampled_from((0, 1, 2, 2, 6, 12, 3, 4, 101, -1)))
    words[7:10], words[16:19] = words[:3], (1, 2, 3)
    words[10:13] = np.array([4, 4, 4], dtype="<f4").view("<i4")
    for _ in range(draw(st.integers(0, 3))):
        wild = st.sampled_from((0, 1, -1, 401, 2**31 - 1, -(2**31), 0x7FC00000, 0x7F800000))
        words[draw(st.integers(0, 60))] = draw(st.one_of(wild, st.integers(-9, 9)))
    header = words.byteswap().tobytes() if draw(st.booleans()) else words.tobytes()
    return header + draw(st.binary(max_size=16)) * draw(st.integers(0, 40))


@QUICK
@given(content=st.one_of(mrc_files(), st.binary(max_size=2000)))
def test_mrc(tmp_path: Path, content: bytes) -> None:
    mrc_target(tmp_path)(b"\xff" + content)


@pytest.mark.parametrize("words", [{0: 4096, 1: 4096, 2: 4096}, {0: 1 << 20, 1: 1 << 20, 2: 2**31 - 1}, {2: 10**9}])
def test_an_announcement_reserves_nothing(tmp_path: Path, words: dict[int, int]) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:4] = 4, 4, 4, 2
    for place, value in words.items():
        header[place] = value
    (tmp_path / "a.mrc").write_bytes(header.tobytes() + bytes(256))
    for reader in (read_map, ImageStack):
        with pytest.raises(InputError, match=r"truncated|no images"):
            reader(tmp_path / "a.mrc")


# ---------------------------------------------------------------------------------------------------------------- .cs
TYPES = ("<u8", "<f4", "<f8", "<u4", "<i8", "|S4", "<U2", "|b1", "<c8", "|V3", "|O", "<f2", "<M8[s]", "|u1", ">f4")


@st.composite
def cs_files(draw: st.DrawFn) -> bytes:
    """Tables of the fields that there are, some missing or of another type and shape, with any content."""
    fields = []
    for name, kind, *shape in (*NEW, *ALIGNMENT, ("blob/path", "|S8"), ("location/micrograph_path", "|S8")):
        fate = draw(st.integers(0, 60))
        own = shape[0] if shape else ()
        kind = draw(st.sampled_from(TYPES)) if fate == 1 else kind
        own = draw(st.sampled_from(((), (1,), (2,), (0,), (3,), (2, 2)))) if fate == 2 else own
        if fate:
            fields.append((name, kind, own) if own else (name, kind))
    count = draw(st.one_of(st.integers(0, 3), st.sampled_from((10**12, -1, 2**63))))
    head = f"{{'descr': {fields!r}, 'fortran_order': {draw(st.booleans())}, 'shape': ({count},), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + draw(st.binary(max_size=60)) * 20


@QUICK
@given(content=st.one_of(cs_files(), damaged(seeds("cs")[0][1:]), st.binary(max_size=200)))
def test_cs(tmp_path: Path, content: bytes) -> None:
    cs_target(tmp_path)(b"\x00" + content)


# ------------------------------------------------------------------------------------------------- our own npz files
@QUICK
@given(data=st.data())
def test_damage_of_npz_files_is_noticed_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.npz"
    arrays = {"data": np.arange(20.0), "weight": np.ones((2, 3), dtype=np.float32)}
    if not path.exists():
        write_npz(path, arrays, {"format": 1})
    (tmp_path / "b.npz").write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        with open(tmp_path / "b.npz", "rb") as stream:
            found, plain = read_npz(stream)
    except MemoryError:
        raise
    except Exception:
        return
    assert plain in ({"format": 1},)
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("name", [name for name in npz_bombs() if name != "path"])  # which is never extracted
def test_npz_bombs_are_not_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npz").write_bytes(npz_bombs()[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(tmp_path / "a.npz", "rb") as stream, pytest.raises(Exception, match=r"\w"):
        read_npz(stream)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # kB
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_the_targets_fail_where_a_reader_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fuzzers call can fail: a reader that raises anything else is not swallowed."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    targets: tuple[tuple[str, Callable[[Path], Callable[[bytes], None]]], ...] = (
        ("sparsecv.engine.io.starlines.split_lines", star_target),
        ("sparsecv.engine.io.mrc._read_header", mrc_target),
        ("sparsecv.engine.io.cs_table.read_bytes", cs_target),
    )
    for name, target in targets:
        monkeypatch.setattr(name, fail)
        with pytest.raises(ZeroDivisionError):
            target(tmp_path)(b"data_" + b"\n" * 2000)
