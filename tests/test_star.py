# SPDX-License-Identifier: GPL-3.0-or-later
"""STAR files: round trips, RELION's line rules, and messages that name the place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.atomic import atomic_text, atomic_write
from sparsecv.engine.io.star import StarFile, format_values
from sparsecv.engine.io.starlines import split_lines

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
HEADER = "data_a\n\nloop_\n_x #1\n_y #2\n"
PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).filter(
    lambda text: not ("'" in text and '"' in text)
)
NAMES = st.from_regex(r"[a-z][A-Za-z0-9]{0,8}", fullmatch=True)
# Examples are the same in every run, and nothing is left in the checkout.
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_text(folder: Path, text: str | bytes) -> StarFile:
    path = folder / "in.star"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("latin-1"))
    return StarFile.read(path)


@QUICK
@given(
    columns=st.lists(NAMES, min_size=1, max_size=4, unique_by=str.lower),
    rows=st.lists(st.lists(WORDS, min_size=4, max_size=4), max_size=5),
    pairs=st.dictionaries(NAMES, WORDS, max_size=3).filter(lambda d: len({k.lower() for k in d}) == len(d)),
)
def test_any_text_survives_a_round_trip(tmp_path, columns, rows, pairs):
    star = StarFile.new()
    written = {column: [row[number] for row in rows] for number, column in enumerate(columns)}
    star.add_pairs("general", pairs)
    star.add_loop("particles", written)
    star.write(tmp_path / "out.star")
    again = StarFile.read(tmp_path / "out.star")
    assert again.names == ["general", "particles"]
    table = again.table("particles")
    assert table.columns == columns
    assert {column: table.strings(column) for column in columns} == written
    assert {key: again.table("general").strings(key)[0] for key in pairs} == pairs


@QUICK
@given(
    raw=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "data_",
                    "loop_",
                    "_x",
                    "1",
                    "'a",
                    '"',
                    "#",
                    ";",
                    "save_",
                    "\n",
                    " ",
                    "[",
                    "data_a\n",
                    "loop_\n",
                    "_y\n",
                ]
            ),
            max_size=25,
        ).map(lambda parts: "".join(parts).encode()),
    )
)
def test_any_bytes_are_read_or_refused(tmp_path, raw):
    try:
        star = read_text(tmp_path, raw)
    except InputError as error:
        assert "in.star" in str(error)
        return
    star.write(tmp_path / "out.star")
    again = StarFile.read(tmp_path / "out.star")
    for name in star.names:
        for column in star.table(name).columns:
            assert again.table(name).strings(column) == star.table(name).strings(column)


@pytest.mark.parametrize("value", [0.1, -180.0, 1e-9, 12345678.9, 1 / 3])
def test_numbers_keep_nine_digits(value):
    assert float(format_values([value])[0]) == pytest.approx(value, rel=1e-8)


def test_what_is_not_touched_stays_verbatim(tmp_path):
    text = (
        "\n# version 50001\n\ndata_optics\n\nloop_ \n_rlnOpticsGroup #1 \n_rlnOddZernike #2 \n"
        "           1 [0.068,0.098,-1.7] \n \n\n# version 50001\n\ndata_particles\n\nloop_ \n"
        '_rlnImageName #1 \n_rlnDefocusU #2 \n_rlnNote #3\n"00001@a b.mrcs"  10948.061330 00123 \n'
        "2@c.mrcs 1.50 x#y \n \n"
    )
    star = read_text(tmp_path, text)
    star.table("particles").set("rlnDefocusU", [1.0, 2.0], "%.3f")
    star.table("particles").set("rlnRandomSubset", np.array([1, 2]))
    star.write(tmp_path / "out.star")
    written = (tmp_path / "out.star").read_text()
    assert written.count("# version 50001\n\ndata_") == 2
    assert "\n1 [0.068,0.098,-1.7]\n" in written
    assert '\n"00001@a b.mrcs" 1.000 00123 1\n2@c.mrcs 2.000 x#y 2\n\n' in written
    assert written.index("data_optics") < written.index("data_particles")


def test_old_files_do_not_become_new_ones(tmp_path):
    read_text(tmp_path, "\ndata_\n\nloop_\n_rlnX\n1\n").write(tmp_path / "out.star")
    assert "version" not in (tmp_path / "out.star").read_text()


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_line_endings(tmp_path, ending):
    star = read_text(tmp_path, (HEADER + "1 2\n3 4").replace("\n", ending or "\n") + ending)
    assert star.table("a").floats("y").tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1 2\n3\n", "line 7 (row 2 of its loop): a row with 1 values for 2 columns"),
        (HEADER + "1 2\n3 4 5\n6\n", "line 7 (row 2 of its loop): a row with 3 values"),  # the total would fit
        (HEADER + "1 'a b' 3\n", "line 6 (row 1 of its loop): a row with 3 values"),
        (HEADER + "1 2\n\n3 4\n", "line 7: a blank line inside a loop"),
        (HEADER + "1 2\n \n# note\n3 4\n", "line 7: a blank line inside a loop"),
        (HEADER + "\n1 2\n", "line 6: a blank line inside a loop"),
        (HEADER + "1 2\n# note\n3 4\n", "line 7: a comment inside a loop"),
        ("data_a\nloop_\n_x\n_x\n1 2\n", "duplicate tag _x"),
        ("data_a\n_x 1\n\ndata_a\n_x 2\n", "duplicate block name: a"),
        ("data_a\nloop_\n_x\n1\n\nloop_\n_y\n2\n", "data_a: a table holds more than one loop"),
        ("data_a\n_z 1\nloop_\n_x\n1\n", "data_a: a table holds more than one loop"),
        ("hello\n", "line 1"),
        ("", "the file holds no table"),
        ("data_a\n_x caf\xe9\n", "line 2: a character outside ASCII"),
        ("data_a\n_x \0\n", "binary or compressed"),
        ("\x1f\x8b\x08", "binary or compressed"),
        ("data_a\n_x\n", "_x has no value"),
    ],
)
def test_broken_files_are_refused_with_their_place(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read_text(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "in.star"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [HEADER + "1 'a b'\n", HEADER + "1 2\n#\n\ndata_b\n_z 1\n", HEADER + "1 2\ndata_b\n_z 1\n"]
)
def test_good_files_are_not_refused(tmp_path, text):
    assert len(read_text(tmp_path, text).table("a")) == 1


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("abc", "a number"),
        ("1_0", "a number"),
        ("?", "a number"),
        ("nan", "a finite number"),
        ("-inf", "a finite number"),
    ],
)
def test_bad_numbers_name_row_column_and_value(tmp_path, bad, rule):
    table = read_text(tmp_path, HEADER + f"1 2\n3 {bad}\n").table("a")
    with pytest.raises(InputError) as caught:
        table.floats("y")
    for part in ("in.star", "data_a, row 2, column y", repr(bad), f"rule: y holds {rule}", "remedy"):
        assert part in str(caught.value)


def test_numbers(tmp_path):
    table = read_text(tmp_path, HEADER + "1 '2.5'\n3.000000 nan\n").table("a")
    assert table.integers("x").tolist() == [1, 3]
    np.testing.assert_array_equal(table.floats("y", finite=False), [2.5, np.nan])
    with pytest.raises(InputError, match="row 1, column y: not a whole number"):
        read_text(tmp_path, HEADER + "1 2.5\n").table("a").integers("y")


def test_rows_columns_and_tables_change(tmp_path):
    star = read_text(tmp_path, HEADER + "1 a\n2 b\n3 c\n")
    original = star.copy()
    table = star.table("a")
    table.keep(np.array([True, False, True]))
    table.keep([1, 0])
    assert table.strings("y") == ["c", "a"]
    table.drop("x")
    table.keep([])
    assert (len(table), table.columns) == (0, ["y"])
    star.add_loop("optics", {"rlnOpticsGroup": [1]})
    star.rename("a", "particles")
    star.move_first("optics")
    star.write(tmp_path / "out.star")
    assert StarFile.read(tmp_path / "out.star").names == ["optics", "particles"]
    assert original.table("a").strings("y") == ["a", "b", "c"]
    with pytest.raises(InputError, match="no table data_b; rule: the file holds data_optics, data_particles"):
        star.table("b")
    with pytest.raises(InputError, match="column q is missing; rule: the columns there are: y"):
        table.star.table("particles").strings("q")


@pytest.mark.parametrize("text", ["a\nb", "'a\" b", "\u00b5"])
def test_text_that_no_star_file_holds(text):
    with pytest.raises(InputError, match="cannot hold"):
        format_values([text])


def test_lines_are_found_across_chunks(monkeypatch):
    raw = b"ab c\n\n" + b"x" * 50 + b" y\n  z  \nlast one"
    whole = split_lines(raw)
    monkeypatch.setattr("sparsecv.engine.io.starlines.CHUNK", 3)
    pieces = split_lines(raw)
    np.testing.assert_array_equal(whole.words, [2, 0, 2, 1, 2])
    np.testing.assert_array_equal(pieces.words, whole.words)
    np.testing.assert_array_equal(pieces.starts, whole.starts)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "named pipe"),
        (tmp_path, "directory"),
        (Path("/dev/zero"), "device"),
        (tmp_path / "absent", "No such file"),
        (Path("a\0b"), "cannot be opened"),
    ):
        with pytest.raises(InputError, match=message):
            StarFile.read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "out.txt"
    atomic_text(target, "old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_written_files_have_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("x")
    atomic_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "ours").chmod(0o640)
    atomic_text(tmp_path / "ours", "y")
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("name", "rows"),
    [("relion31", 5), ("relion5", 17), ("FinalRefinement-OriginalParticles-PfCRT", 5), ("sta_testing_bin8", 219)],
)
def test_real_files_survive_a_round_trip(tmp_path, name, rows):
    star = StarFile.read(DATA / f"{name}.star")
    assert len(star.table(star.names[-1])) == rows
    star.write(tmp_path / "out.star")
    again = StarFile.read(tmp_path / "out.star")
    assert again.names == star.names
    for table in star.names:
        assert again.table(table).columns == star.table(table).columns
        for column in star.table(table).columns:
            assert again.table(table).strings(column) == star.table(table).strings(column)


def test_a_file_that_was_changed_is_noticed(tmp_path):
    star = StarFile.new()
    star.add_loop("particles", {"rlnDefocusU": [10000.0, 12000.0]})
    star.write(tmp_path / "a.star")
    assert StarFile.read(tmp_path / "a.star").warnings == ()
    text = (tmp_path / "a.star").read_text()
    assert text.startswith("# sparsecv crc32 ")
    (tmp_path / "a.star").write_text(text.replace("12000", "12001"))
    assert "its checksum is wrong" in StarFile.read(tmp_path / "a.star").warnings[0]
    (tmp_path / "a.star").write_text(text.partition("\n")[2])
    assert StarFile.read(tmp_path / "a.star").warnings == ()
