# SPDX-License-Identifier: GPL-3.0-or-later
"""The program: commands, exit statuses, one-line errors, and settings files that repeat a run."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from halfmaps import filtered, half_maps

from sparsecv import __version__, cli
from sparsecv.engine.commands import DeviceError
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.report import deposition
from sparsecv.engine.threads import available_cores, use_threads

BOX, PIXEL_SIZE = 32, 4.0
PROGRAM = (sys.executable, "-m", "sparsecv.cli")


@pytest.fixture
def maps(tmp_path: Path) -> dict[str, Path]:
    """Half maps of a small particle, a mask, and maps that do not fit."""
    half1, half2 = half_maps(BOX, PIXEL_SIZE)
    paths = {name: tmp_path / f"{name}.mrc" for name in ("half1", "half2", "mask", "other_box", "other_pixel", "wild")}
    mask = sphere(BOX, 11, 4)
    write_map(paths["half1"], half1, PIXEL_SIZE)
    write_map(paths["half2"], half2, PIXEL_SIZE)
    write_map(paths["mask"], mask, PIXEL_SIZE)
    write_map(paths["other_box"], half1[:-2, :-2, :-2], PIXEL_SIZE)
    write_map(paths["other_pixel"], half1, 1.1 * PIXEL_SIZE)
    write_map(paths["wild"], 3 * mask, PIXEL_SIZE)
    return paths


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a wrong command line says: one line, status 2."""
    assert run(*words) == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said.startswith("sparsecv: error: ") and said.count("\n") == 1, said
    return said.removeprefix("sparsecv: error: ").rstrip()


# -------------------------------------------------------------------------------------------------- the program
def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"sparsecv {__version__}\n"
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from sparsecv.cli import main; main(['--help']); main(['fsc', '--help']); "
        "sys.exit([name for name in ('numpy', 'scipy', 'numba', 'matplotlib', 'gemmi') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["refin"], "unknown command (value 'refin'); rule: one of refine, reconstruct, ctf-refine, select, "
                    "regularise, nu-filter, scan, postprocess, fsc, compare, validate, report, convert, "
                    "simulate, check; remedy: did you mean refine?"),
        (["fsc", "a.mrc"], "MAP2 missing; remedy: give it on the command line or in the --config file"),
        (["refine"], "--particles, --reference, --output missing; remedy: give it on the command line or in the "
                     "--config file"),
        (["fsc", "a", "b", "--maks", "m"], "unrecognized arguments: --maks m; remedy: see sparsecv fsc --help"),
        (["check", "--threads", "two"], "argument --threads: invalid int value: 'two'; remedy: see sparsecv check "
                                        "--help"),
        (["check", "--threads", "-1"], "threads: out of range (value -1); rule: 0 to 4096"),
        (["refine", "--regulariser", "best"], "argument --regulariser: invalid choice: 'best'"),
        (["simulate", "--part", "5"], "unrecognized arguments: --part 5; remedy: see sparsecv simulate --help"),
    ],
)  # fmt: skip
def test_wrong_command_lines(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, *words).startswith(message)


def test_no_command_shows_the_commands_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == cli.WRONG_INPUT
    assert "usage: sparsecv COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("too\nlong", file="a.star"), 2, "a.star: too long"),
        (DeviceError("no GPU can be used"), 3, "no GPU can be used"),
        (OSError(errno.ENOSPC, "No space left on device", "out.mrc"), 74, "out.mrc: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (cli.Terminated(), 143, "stopped by SIGTERM"),
        (MemoryError("3 GB"), 1, "out of memory (3 GB)"),
    ],
)
def test_failures_have_a_status_and_a_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: object, save: object) -> int:
        raise error

    monkeypatch.setattr("sparsecv.engine.check.run", fail)
    assert run("check") == status
    assert capsys.readouterr().err == f"sparsecv: error: {line}\n"


def test_unexpected_failures_show_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sparsecv.engine.check.run", lambda settings, save: {}["shell"])
    assert run("check") == cli.FAILED
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("sparsecv: error: unexpected KeyError; the lines above say where\n")


def test_sigterm_ends_a_run_and_leaves_no_pieces(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*PROGRAM, "simulate", "--output", str(out), "--particles", "100000", "--box", "48"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    give_up = time.monotonic() + 60
    while not list(out.glob(".*.part")) and time.monotonic() < give_up and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == cli.TERMINATED, said
    assert said == "sparsecv: error: stopped by SIGTERM\n"
    assert list(out.iterdir()) == []


def test_a_reader_that_has_gone_is_no_crash() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (cli.DISK, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_said_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == cli.DISK
    assert done.stderr.startswith("sparsecv: error: No space left on device\n")


# -------------------------------------------------------------------------------------------------------- fsc
def resolutions(text: str) -> dict[str, list[float]]:
    rows = re.findall(r"^  ([a-z-]+) +(.*)$", text, re.M)
    return {name: [float(value) for value in re.findall(r"([\d.]+) A", rest)] for name, rest in rows}


def test_fsc_finds_a_known_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    first, second = (rng.normal(size=(BOX,) * 3).astype(np.float32) for _ in "12")
    shell = 10

    def low(k: np.ndarray) -> np.ndarray:
        return (k * BOX <= shell + 0.5).astype(float)

    # the two maps agree up to shell 10 and are independent beyond, so the curve falls from 1 to about 0 there
    write_map(tmp_path / "first.mrc", first, PIXEL_SIZE)
    write_map(tmp_path / "second.mrc", filtered(first, low) + second - filtered(second, low), PIXEL_SIZE)
    assert run("fsc", tmp_path / "first.mrc", tmp_path / "second.mrc") == 0
    gold, half = resolutions(capsys.readouterr().out)["unmasked"]
    assert BOX * PIXEL_SIZE / (shell + 1) < gold < half < BOX * PIXEL_SIZE / shell


def test_fsc_leaves_curves_and_settings(maps: dict[str, Path], tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "curves"
    assert run("fsc", maps["half1"], maps["half2"], "--mask", maps["mask"], "--output", out) == 0
    shown = resolutions(capsys.readouterr().out)
    assert set(shown) == {"mask-corrected", "masked", "unmasked"}
    table = StarFile.read(out / "fsc.star").table("fsc")
    curve = table.floats("rlnFourierShellCorrelationUnmaskedMaps")
    halves = [np.fft.fftn(read_map(maps[name]).data.astype(float)) for name in ("half1", "half2")]
    axis = np.fft.fftfreq(BOX, 1 / BOX)
    radius = np.rint(np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)).astype(int)
    sums = [np.bincount(radius.ravel(), weights=(a * b.conj()).real.ravel())[: BOX // 2 + 1]
            for a, b in (halves, (halves[0],) * 2, (halves[1],) * 2)]
    np.testing.assert_allclose(curve[1:], (sums[0] / np.sqrt(sums[1] * sums[2]))[1:], atol=2e-5)
    np.testing.assert_allclose(table.floats("rlnAngstromResolution")[1:], BOX * PIXEL_SIZE / np.arange(1, len(curve)),
                               rtol=1e-5)
    assert (out / "fsc.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "fsc.xml").read_text().count("<coordinate>") == BOX // 2
    before = (out / "fsc.star").read_bytes()
    assert run("fsc", "--config", out / "fsc.toml", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "fsc.star").read_bytes() == before


def test_maps_that_do_not_fit_are_refused(maps: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    half1 = maps["half1"]
    assert complaint(capsys, "fsc", half1, maps["other_box"]) == (
        f"{maps['other_box']}: box differs from that of {half1} (value 30); rule: 32 pixels; remedy: compare maps of "
        "the same box"
    )
    assert complaint(capsys, "fsc", half1, maps["other_pixel"]) == (
        f"{maps['other_pixel']}: pixel size differs from that of {half1} (value 4.4); rule: 4 A within 1 %; remedy: "
        "give the true one with --pixel-size"
    )
    wild = complaint(capsys, "postprocess", half1, maps["half2"], "--mask", maps["wild"], "--output", "nowhere")
    assert wild.startswith(f"{maps['wild']}: mask values outside [0, 1]")
    assert not Path("nowhere").exists()
    gone = complaint(capsys, "fsc", half1, "absent.mrc")
    assert gone.startswith("absent.mrc: cannot be opened: No such file or directory; rule: ")
    assert run("fsc", half1, maps["other_pixel"], "--pixel-size", 4) == 0, "the pixel size given is the one used"


# ---------------------------------------------------------------------------------- postprocess and simulate
def test_postprocess_repeats_from_its_settings(maps: dict[str, Path], tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "post", tmp_path / "again"
    words = ("--mask", maps["mask"], "--bfactor", -50, "--no-fsc-weighting", "--seed", 4)
    assert run("postprocess", maps["half1"], maps["half2"], "--output", out, *words) == 0
    assert "B-factor -50.0 A^2" in capsys.readouterr().out
    names = {"postprocess.mrc", "postprocess_masked.mrc", "postprocess.star", "postprocess_fsc.xml",
             "postprocess_fsc.png", "postprocess_slices.png", "postprocess.toml", "emdb"}
    assert {path.name for path in out.iterdir()} == names
    general = StarFile.read(out / "postprocess.star").table("general")
    assert general.floats("rlnBfactorUsedForSharpening") == [-50]
    assert general.strings("rlnUnfilteredMapHalf1") == [str(maps["half1"])]
    assert run("postprocess", "--config", out / "postprocess.toml", "--output", again) == 0
    for name in (names | set(deposition.WRITTEN)) - {"postprocess.toml", "emdb"}:
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_a_deposition_can_be_left_out_and_none_of_other_maps_stays(maps: dict[str, Path], tmp_path: Path) -> None:
    words = ("postprocess", maps["half1"], maps["half2"], "--output", tmp_path / "post")
    assert run(*words) == 0 and (tmp_path / "post" / "emdb" / "emd_map.mrc").is_file()
    assert run(*words, "--no-deposition") == 0 and not (tmp_path / "post" / "emdb").exists()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_simulate_repeats_from_its_settings(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    words = ("--particles", 6, "--box", 32, "--pixel-size", 6, "--seed", 5, "--shift", 3)
    assert run("simulate", "--output", first, *words) == 0
    assert run("simulate", "--config", first / "simulate.toml", "--output", second) == 0
    assert run("simulate", "--config", first / "simulate.toml", "--output", third, "--seed", 6) == 0
    stacks = [digest(folder / "particles.mrcs") for folder in (first, second, third)]
    assert stacks[0] == stacks[1] != stacks[2], "the command line wins over the file"


def test_one_file_can_hold_several_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "all.toml"
    config.write_text(f"[simulate]\noutput = '{tmp_path / 'data'}'\nparticles = 4\nbox = 32\npixel_size = 6.0\n"
                      "shift = 3\n[fsc]\nthreads = 1\n[check]\nboxes = 3\n")
    assert run("simulate", "--config", config) == 0
    assert run("fsc", "--config", config, tmp_path / "data" / "truth.mrc", tmp_path / "data" / "reference.mrc") == 0
    capsys.readouterr()
    assert complaint(capsys, "check", "--config", config).startswith(f"{config}, [check] boxes: unknown key")


# ----------------------------------------------------------------------------------------------------- threads
def test_threads_are_set_and_cut_to_the_cores() -> None:
    import numba
    import threadpoolctl

    before = numba.get_num_threads()
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    try:
        assert use_threads(0) == available_cores() == numba.get_num_threads()
        assert use_threads(10_000) == available_cores()
        assert use_threads(1) == 1 == numba.get_num_threads()
        blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        assert blas and set(blas) == {1}
    finally:
        numba.set_num_threads(before)
        for name, value in variables.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
