# SPDX-License-Identifier: GPL-3.0-or-later
"""The program ``sparsecv``: finds the command, reads its settings, turns what went wrong into one line and a status.

Exit status: 0 finished; 1 failed; 2 the input is wrong; 3 the device cannot be used; 74 a disk or a file failed; 130
and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from sparsecv import __version__
from sparsecv.engine.commands import DeviceError
from sparsecv.engine.errors import InputError, Terminated, complain, printable
from sparsecv.engine.ranks.launch import failure, is_first, launched

# Modules are imported when their command runs: all of them together take a second.
COMMANDS = {
    "refine": ("sparsecv.engine.commands.refine", "gold-standard 3D refinement of particles against a starting map"),
    "reconstruct": ("sparsecv.engine.commands.reconstruct", "a map from particles with known poses"),
    "ctf-refine": ("sparsecv.engine.commands.ctf_refine", "defocus, astigmatism, aberrations, magnification"),
    "select": ("sparsecv.engine.commands.select", "a subset of particles by quality, group or at random"),
    "regularise": ("sparsecv.engine.commands.regularise", "a prior on half maps or on kept sums, without refining"),
    "nu-filter": ("sparsecv.engine.commands.nu_filter", "cross-validated local filters for two half maps"),
    "scan": ("sparsecv.engine.commands.scan", "the strengths of the sparse + TV prior on a grid"),
    "postprocess": ("sparsecv.engine.commands.postprocess", "masked FSC, sharpening and filtering of two half maps"),
    "fsc": ("sparsecv.engine.commands.fsc", "the Fourier shell correlation of two maps"),
    "compare": ("sparsecv.engine.commands.compare", "finished refinements side by side: poses, maps, curves"),
    "validate": ("sparsecv.engine.commands.validate", "a map against an atomic model: FSC, fit, scores of residues"),
    "report": ("sparsecv.engine.commands.report", "the page of a refinement, made again from its folder"),
    "convert": ("sparsecv.engine.commands.convert", "particles of cryoSPARC (.cs) as a STAR file, and back"),
    "simulate": ("sparsecv.engine.commands.simulate", "particles with known truth"),
    "check": ("sparsecv.engine.check", "versions, devices and a short run: does the installation work?"),
}
IN_RANKS = ("refine",)  # commands that several processes can share
FAILED, WRONG_INPUT, NO_DEVICE, DISK, INTERRUPTED, TERMINATED = 1, 2, 3, 74, 130, 143


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(message, remedy=f"see {self.prog} --help")


# Idle threads of OpenMP (Numba's loops) and OpenBLAS spin for a while by default: a fifth of the processor time of a
# refinement on two cores, and a quarter of its wall time. They are read when the libraries are loaded.
THREADS_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process) and return the exit status; never raises an Exception."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for variable, value in THREADS_SLEEP.items():
        os.environ.setdefault(variable, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is not UTF-8 must not end what prints it
    try:
        with _sigterm_raises():
            status = _dispatch(given)
            sys.stdout.flush()
            return status
    except InputError as error:
        return _complain(str(error), WRONG_INPUT)
    except DeviceError as error:
        return _complain(str(error), NO_DEVICE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Terminated as error:
        return _complain(str(error), TERMINATED)
    except BrokenPipeError:
        # the reader of our output has gone; what is left in the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        failure(DISK, "the reader of the output has gone")
        return DISK
    except OSError as error:
        place = f"{printable(str(error.filename))}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}", DISK)
    except MemoryError as error:
        return _complain(f"out of memory ({error})", FAILED)
    except Exception as error:
        traceback.print_exc()
        return _complain(f"unexpected {type(error).__name__}; the lines above say where", FAILED)


def _complain(text: str, status: int) -> int:
    """One line, whoever of several processes has failed."""
    failure(status, text)  # does not return where this process is one of several that know of each other
    if is_first():
        complain(text)
    return status


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that files are closed and temporary ones removed."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else WRONG_INPUT
    name = arguments[0]
    if name == "--version":
        print(f"sparsecv {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise InputError("unknown command", value=name, rule=f"one of {', '.join(COMMANDS)}",
                         remedy=f"did you mean {near[0]}?" if near else None)
    if name not in IN_RANKS and launched() > 1:
        raise InputError("runs in one process", item=name, value=launched(),
                         rule=f"mpirun starts several of {', '.join(IN_RANKS)} only", remedy="leave mpirun away")
    module = importlib.import_module(COMMANDS[name][0])
    return _run(name, module, arguments)


def _run(name: str, module: Any, arguments: list[str]) -> int:
    """Read the settings of a command from its options and its TOML file, and run it."""
    from sparsecv.engine.settings import add_options, build, given, read_settings, settings_text, write_settings

    parser = Parser(prog=f"sparsecv {name}", description=COMMANDS[name][1], allow_abbrev=False)
    add_options(parser, module.SETTINGS)
    try:
        namespace = parser.parse_args(arguments[1:])
    except SystemExit as end:  # --help
        return int(end.code or 0)
    from_line = given(namespace, module.SETTINGS)
    config = namespace.config or _earlier_settings(name, from_line)
    from_file = {} if config is None else read_settings(config, name, module.SETTINGS, tuple(COMMANDS))
    settings = build(module.SETTINGS, from_file, from_line)
    settings_text(name, settings, arguments)  # refuses a name that could not be recorded, before the work
    status: int = module.run(settings, lambda path: write_settings(path, name, settings, arguments))
    return status


def _earlier_settings(name: str, from_line: dict[str, Any]) -> Path | None:
    """The run.toml that ``refine --output DIR --continue`` goes on with where nothing says which particles."""
    if name != "refine" or not from_line.get("resume") or "particles" in from_line or "output" not in from_line:
        return None
    found = Path(from_line["output"]) / "run.toml"
    return found if found.is_file() else None


def _overview() -> str:
    rows = [f"  {name:12s} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([
        "usage: sparsecv COMMAND [options]", "", "Single-particle cryo-EM refinement.", "", "commands:", *rows, "",
        "sparsecv COMMAND --help   the options of a command",
        "sparsecv --version        the version",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
