# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps and stacks against the mrcfile package and RELION, and damaged files."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from sparsecv.engine.errors import InputError
from sparsecv.engine.io import mrc
from sparsecv.engine.io.mrc import ImageStack, read_map, write_map, write_stack

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def images(count=7, box=16, seed=1):
    return np.random.default_rng(seed).normal(size=(count, box, box)).astype(np.float32)


def foreign_stack(path, data, order="<", extended=b""):
    """Write a stack with the mrcfile package, in either byte order."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
        file.set_image_stack()
        file.voxel_size = 1.5
        if extended:
            file.set_extended_header(np.frombuffer(extended, dtype="V1"))
        header = np.array(file.header)
    if order == ">":
        swapped = header.astype(header.dtype.newbyteorder(">"))
        swapped["machst"] = [0x11, 0x11, 0, 0]
        path.write_bytes(swapped.tobytes() + extended + data.astype(data.dtype.newbyteorder(">")).tobytes())
    return path


def set_word(path, word, value, dtype="<i4"):
    """Overwrite one of the 4-byte words of a header (numbered from 1, as in the MRC2014 standard)."""
    with path.open("r+b") as file:
        file.seek(4 * (word - 1))
        file.write(np.array(value, dtype=dtype).tobytes())


def test_map_round_trip_is_valid_and_exact(tmp_path):
    data = np.random.default_rng(0).normal(size=(5, 6, 7))
    write_map(tmp_path / "a.mrc", data, 1.34, origin=(-3.0, 2.5, 7.0), label="a label")
    assert mrcfile.validate(tmp_path / "a.mrc")
    found = read_map(tmp_path / "a.mrc", cubic=False)
    np.testing.assert_array_equal(found.data, data.astype(np.float32))
    assert found.pixel_size == 1.34
    assert found.origin == (-3.0, 2.5, 7.0)
    with mrcfile.open(tmp_path / "a.mrc") as file:
        label, checksum = file.get_labels()
        assert label == "a label" and checksum.startswith("sparsecv crc32 ")
        assert file.header.rms == pytest.approx(data.std(), rel=1e-5)
        assert not file.is_image_stack()


def test_maps_that_are_not_finite_are_not_written(tmp_path):
    write_map(tmp_path / "a.mrc", np.ones((4, 4, 4)), 1.0)
    with pytest.raises(ValueError, match="not finite"):
        write_map(tmp_path / "a.mrc", np.full((4, 4, 4), np.inf), 1.0)
    assert read_map(tmp_path / "a.mrc").data.all()


def test_equal_maps_are_equal_files(tmp_path):
    for name in "ab":
        write_map(tmp_path / name, np.ones((4, 4, 4)), 1.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("columns_rows_sections", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1)])
def test_axis_order_is_honoured(tmp_path, columns_rows_sections):
    truth = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)  # z, y, x
    stored = truth.transpose([3 - axis for axis in reversed(columns_rows_sections)])
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.ascontiguousarray(stored))
        file.header.mapc, file.header.mapr, file.header.maps = columns_rows_sections
        file.header.mx, file.header.my, file.header.mz = 5, 4, 3
        file.header.cella = (10, 8, 6)
        file.header.nxstart, file.header.nystart, file.header.nzstart = (10 * axis for axis in columns_rows_sections)
    found = read_map(path, cubic=False)
    np.testing.assert_array_equal(found.data, truth)
    assert found.pixel_size == 2.0
    assert found.origin == (20.0, 40.0, 60.0)


def test_origin_wins_over_start(tmp_path):
    write_map(tmp_path / "a.mrc", np.ones((4, 4, 4)), 2.0, origin=(1.0, 0.0, 0.0))
    set_word(tmp_path / "a.mrc", 5, -2)
    assert read_map(tmp_path / "a.mrc").origin == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", "<>")
def test_stacks_of_every_mode_and_byte_order(tmp_path, mode, order):
    data = np.random.default_rng(mode).integers(0 if mode == 6 else -100, 100, size=(6, 16, 16)).astype(MODES[mode])
    stack = ImageStack(foreign_stack(tmp_path / "a.mrcs", data, order, extended=b"x" * 1024))
    assert (stack.count, stack.box, stack.pixel_size) == (6, 16, 1.5)
    found = stack.read([4, 0, 1, 2, 4])
    assert found.dtype == np.float32
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, data[[4, 0, 1, 2, 4]].astype(np.float32))
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrcs", cubic=False).data, data.astype(np.float32))


def test_an_empty_request_and_a_single_image(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(images()[0])
    stack = ImageStack(tmp_path / "a.mrc")
    assert stack.count == 1
    assert stack.read([]).shape == (0, 16, 16)
    np.testing.assert_array_equal(stack.read([0])[0], images()[0])


def test_stack_in_batches_is_valid(tmp_path):
    write_stack(tmp_path / "a.mrcs", (images(seed=seed) for seed in range(3)), 1.5)
    assert mrcfile.validate(tmp_path / "a.mrcs")
    expected = np.concatenate([images(seed=seed) for seed in range(3)])
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        assert file.is_image_stack()
        np.testing.assert_array_equal(file.data, expected)
        assert file.header.rms == pytest.approx(expected.std(), rel=1e-5)
        assert file.voxel_size.x == pytest.approx(1.5)


def test_many_stacks_with_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(mrc, "_OPEN", mrc._OpenFiles(3))
    stacks = []
    for number in range(10):
        write_stack(tmp_path / f"{number}.mrcs", images(2, seed=number), 1.0)
        stacks.append(ImageStack(tmp_path / f"{number}.mrcs"))
    before = len(os.listdir("/proc/self/fd"))

    def read_all():
        for turn in range(60):
            number = (7 * turn) % 10
            np.testing.assert_array_equal(stacks[number].read([1, 0]), images(2, seed=number)[::-1])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_replaced_stack_is_opened_anew(tmp_path):
    path = tmp_path / "a.mrcs"
    write_stack(path, images(seed=1), 1.0)
    ImageStack(path).read([0])
    write_stack(path, images(seed=2), 1.0)
    np.testing.assert_array_equal(ImageStack(path).read([0])[0], images(seed=2)[0])


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (4, 3, "unknown MRC mode"),
        (4, 99, "unknown MRC mode"),
        (1, -5, "not an MRC file"),
        (1, 1 << 30, "not an MRC file"),
        (2, 15, "images are not square"),
        (3, 0, "impossible sizes"),
        (3, (1 << 31) - 1, "truncated"),
        (3, 8, "truncated"),
        (24, -4, "impossible sizes"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, word, value, message):
    path = tmp_path / "a.mrcs"
    write_stack(path, images(), 1.0)
    set_word(path, word, value)
    with pytest.raises(InputError, match=message) as caught:
        ImageStack(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"\x1f\x8b" + b"\0" * 2000, b"loop_\n" * 400, b"\xff" * 3000])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.mrcs").write_bytes(content)
    for reader in (ImageStack, read_map):
        with pytest.raises(InputError, match=r"a\.mrcs"):
            reader(tmp_path / "a.mrcs")


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mrcs")
    for path in (tmp_path / "pipe.mrcs", tmp_path, "/dev/zero", tmp_path / "absent.mrcs"):
        for reader in (ImageStack, read_map):
            with pytest.raises(InputError):
                reader(path)


def test_a_stack_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "a.mrcs"
    write_stack(path, images(), 1.0)
    stack = ImageStack(path)
    os.truncate(path, 2000)
    with pytest.raises(InputError, match="ended before its last image"):
        stack.read([6])
    with pytest.raises(InputError, match="images 1 to 7 exist"):
        stack.read([7])


def test_extra_bytes_are_noted(tmp_path):
    path = tmp_path / "a.mrcs"
    write_stack(path, images(), 1.0)
    with path.open("ab") as file:
        file.write(b"1234")
    assert "4 bytes beyond" in ImageStack(path).warnings[0]


def test_maps_that_are_refused(tmp_path):
    path = tmp_path / "a.mrc"
    write_map(path, np.ones((4, 4, 4)), 1.0)
    set_word(path, 257 + 3 + 4 * (2 + 4 * 1), np.nan, "<f4")
    with pytest.raises(InputError, match="1 values are not finite") as caught:
        read_map(path)
    assert "voxel x, y, z = 3, 2, 1" in str(caught.value)
    write_map(path, np.ones((4, 4, 6)), 1.0)
    with pytest.raises(InputError, match="not a cubic map"):
        read_map(path)
    write_map(path, np.ones((4, 4, 4)), 1.0)
    set_word(path, 11, 4.2, "<f4")
    with pytest.raises(InputError, match="pixel sizes differ"):
        read_map(path)
    set_word(path, 11, 0.0, "<f4")
    with pytest.raises(InputError, match="no pixel size"):
        read_map(path)
    assert read_map(path, pixel_size=2.0).pixel_size == 2.0
    set_word(path, 23, 401)
    with pytest.raises(InputError, match="stack of volumes"):
        read_map(path, pixel_size=2.0)
    set_word(path, 23, 1)
    set_word(path, 17, 2)
    with pytest.raises(InputError, match="impossible axis order"):
        read_map(path, pixel_size=2.0)


def test_axes_with_different_pixel_size_are_refused_only_beyond_a_percent(tmp_path):
    write_map(tmp_path / "a.mrc", np.ones((4, 4, 4)), 1.0)
    set_word(tmp_path / "a.mrc", 11, 4.02, "<f4")
    assert read_map(tmp_path / "a.mrc").pixel_size == pytest.approx(1.005)


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_image_handler") is None, reason="RELION is not installed")
def test_relion_reads_our_maps(tmp_path):
    data = np.random.default_rng(3).normal(2.0, 3.0, size=(16, 16, 16))
    write_map(tmp_path / "a.mrc", data, 1.7)
    command = ["relion_image_handler", "--i", "a.mrc", "--stats"]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    words = output.replace(";", " ").replace("=", " ").split()
    for name, value in (("avg", data.mean()), ("stddev", data.std()), ("minval", data.min()), ("maxval", data.max())):
        assert float(words[words.index(name) + 1]) == pytest.approx(value, rel=1e-3)
    assert "1.7" in output


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")
def test_real_maps_and_stacks():
    found = read_map(DATA / "emd_5625.map")
    assert found.data.shape == (56, 56, 56)
    assert found.pixel_size == pytest.approx(4.23)
    assert found.origin == pytest.approx((-118.44,) * 3)
    assert read_map(DATA / "emd_2566_3J6B_9.mrc", cubic=False).origin == pytest.approx((356.44, 155.44, 159.46))
    for name, count, box in (("relion31.mrcs", 5, 256), ("empiar_10076_7.mrc", 7, 320)):
        stack = ImageStack(DATA / name)
        assert (stack.count, stack.box) == (count, box)
        assert stack.read(range(count)).std(axis=(1, 2)) == pytest.approx(np.ones(count), abs=0.05)


def test_a_map_that_was_changed_is_noticed(tmp_path):
    """One bit of a voxel or of the header; and nothing is said of files without a checksum."""
    path = tmp_path / "a.mrc"
    write_map(path, np.random.default_rng(0).normal(size=(4, 4, 4)), 1.5)
    content = path.read_bytes()
    assert read_map(path).warnings == ()
    for place in (1024 + 17, 4 * 10, 224 + 3):  # a voxel, the cell, the first label
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "its checksum is wrong" in read_map(path).warnings[0]
    path.write_bytes(content[:304] + bytes(80) + content[384:])
    assert read_map(path).warnings == ()
