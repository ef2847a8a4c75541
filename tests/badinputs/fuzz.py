# SPDX-License-Identifier: GPL-3.0-or-later
"""The readers of STAR, MRC and .cs files under atheris: whatever the bytes, a table, an image or an InputError.

    python tests/badinputs/fuzz.py [--seconds 60] [--report FILE.json] [star] [mrc] [cs]

runs the targets one after another, each in a process of its own, which ends at the first crash, at a run of 10 s, or
where one asks for 1 GB at once. Without atheris (it has wheels for some Pythons only) it says so, and nothing is run.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ("star", "mrc", "cs")
LONGEST = 1 << 14  # bytes of an input
SECONDS_OF_ONE, MEGABYTES = 10, 1024
# What the fuzzer itself remembers grows by kilobytes with each of a million runs: its limit is no limit on one input,
# which test_grammars.py has.
ALL_MEGABYTES = 8192
NOT_MEASURED = -1
CRASHED = 77


def star_target(folder: Path) -> Callable[[bytes], None]:
    """Read as a STAR file and as particles; what was read is written, and reads the same again."""
    from sparsecv.engine.errors import InputError
    from sparsecv.engine.io.particles import ParticleTable
    from sparsecv.engine.io.star import StarFile

    path, again = folder / "in.star", folder / "out.star"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            star = StarFile.read(path)
        except InputError:
            return
        star.write(again)
        second = StarFile.read(again)
        assert second.names == star.names
        for name in star.names:
            assert second.table(name).columns == star.table(name).columns
        try:
            table = ParticleTable.read(path, check_images=False, independent_halves=False)
            table.write(again)
        except InputError:
            return
        assert len(ParticleTable.read(again, check_images=False, independent_halves=False)) == len(table)

    return read


def mrc_target(folder: Path) -> Callable[[bytes], None]:
    """Read as a map and as a stack of images; the first byte puts the bytes behind a header that is nearly right."""
    import numpy as np

    from sparsecv.engine.errors import InputError
    from sparsecv.engine.io.mrc import ImageStack, read_map

    path = folder / "in.mrc"
    header = np.zeros(256, dtype="<i4")
    header[:4] = 4, 4, 4, 2
    header[7:10] = 4
    header[10:13] = np.array([4, 4, 4], dtype="<f4").view("<i4")
    header[16:19] = 1, 2, 3
    good = header.tobytes() + bytes(4 * 64)

    def read(data: bytes) -> None:
        content = data[1:]
        if data[:1] < b"\x80":  # changes of a good file: place, bytes, place, bytes ...
            changed = bytearray(good)
            for start in range(0, len(content) - 5, 6):
                place = int.from_bytes(content[start : start + 2], "little") % len(changed)
                changed[place : place + 4] = content[start + 2 : start + 6]
            content = bytes(changed)
        path.write_bytes(content)
        for kind in (read_map, ImageStack):
            try:
                found = kind(path)
                if kind is ImageStack:
                    found.read([0, found.count - 1])
            except InputError:
                pass

    return read


def cs_target(folder: Path) -> Callable[[bytes], None]:
    """Read as a .cs table and turn it into a STAR file; odd first bytes make a header of known fields and odd types."""
    from sparsecv.engine.errors import InputError
    from sparsecv.engine.io.cryosparc import cs_of_star, star_of_cs
    from sparsecv.engine.io.cs_table import read_cs, write_cs

    path = folder / "in.cs"

    def read(data: bytes) -> None:
        content = data[1:]
        if data[:1] >= b"\x80":
            import atheris  # only the fuzzer makes such input

            content = _cs_bytes(atheris.FuzzedDataProvider(content))
        path.write_bytes(content)
        try:
            table = read_cs(path)
            star, _ = star_of_cs(table, path)
            star.write(folder / "out.star")
            back, _ = cs_of_star(folder / "out.star", table)
            write_cs(folder / "out.cs", back)
        except InputError:
            pass

    return read


def _cs_bytes(given: Any) -> bytes:
    """A table with a plausible header: the fields that matter, of types that may be wrong, and any content."""
    from sparsecv.engine.io.cs_table import ALIGNMENT, NEW

    fields = [*NEW, *ALIGNMENT, ("blob/path", "|S8"), ("location/micrograph_path", "|S8")]
    kinds = ("<u8", "<f4", "<f8", "<u4", "<i8", "|S4", "<U2", "|b1", "<c8", "|V3", "|O", "<f2", "<M8[s]", "|u1")
    chosen = []
    for entry in fields:
        fate = given.ConsumeIntInRange(0, 40)
        if fate == 0:
            continue
        kind = kinds[given.ConsumeIntInRange(0, len(kinds) - 1)] if fate == 1 else entry[1]
        shape = (given.ConsumeIntInRange(0, 3),) if fate == 2 else () if fate == 3 else entry[2:]
        shape = shape[0] if shape and isinstance(shape[0], tuple) else shape
        chosen.append((entry[0], kind, shape) if shape else (entry[0], kind))
    count = given.ConsumeIntInRange(0, 4) if given.ConsumeBool() else given.ConsumeInt(8)
    head = repr({"descr": chosen, "fortran_order": given.ConsumeBool(), "shape": (count,)}) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + given.ConsumeBytes(LONGEST)


def seeds(target: str) -> list[bytes]:
    """Valid files to begin from."""
    if target == "star":
        from sparsecv.engine.io.star import StarFile

        star = StarFile.new()
        star.add_loop("optics", {
            "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["a b"], "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [1.5],
            "rlnImageSize": [16], "rlnImageDimensionality": [2], "rlnBeamTiltX": [0.1], "rlnBeamTiltY": [-0.2],
            "rlnOddZernike": ["[0.1,0,2.5]"], "rlnEvenZernike": ["[0,1e-3]"], "rlnCtfDataArePhaseFlipped": [0],
            "rlnMagMat00": [1.01], "rlnMagMat01": [0.0], "rlnMagMat10": [0.0], "rlnMagMat11": [0.99],
        })  # fmt: skip
        star.add_loop("particles", {
            "rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnDefocusU": [1e4, 2e4], "rlnAngleRot": [1.0, 2.0],
            "rlnAngleTilt": [1.0, 2.0], "rlnAnglePsi": [1.0, 2.0], "rlnOriginXAngst": [0.0, 1.5],
            "rlnOriginYAngst": [0.0, 1.5], "rlnRandomSubset": [1, 2], "rlnOpticsGroup": [1, 1],
            "rlnGroupName": ["it's", 'a "b'],
        })  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            star.write(Path(folder) / "a.star")
            text = (Path(folder) / "a.star").read_bytes()
        old = (b"data_images\nloop_\n_rlnImageName\n_rlnVoltage\n_rlnSphericalAberration\n_rlnDefocusU\n"
               b"_rlnDetectorPixelSize\n_rlnMagnification\n_rlnOriginX\n_rlnOriginY\n"
               b"1@a.mrcs 300 2.7 1e4 5 50000 1 -1\n'2@a b.mrcs' 300 2.7 1e4 5 50000 1 -1\n")  # fmt: skip
        return [text, old, b"data_\n_x 1\n_y ';'\n", b"data_a\nloop_\n_x\n;\nt\n;\n"]
    if target == "mrc":
        return [b"\x00" + bytes(12), b"\x00\x0c\x00\x0c\x00\x00\x00", b"\xff" + bytes(1024)]
    import numpy as np

    from sparsecv.engine.io.cs_table import ALIGNMENT, NEW

    table = np.zeros(2, dtype=[*NEW, *ALIGNMENT, ("blob/path", "S8")])
    table["uid"], table["blob/path"], table["blob/shape"] = [1, 2], b"a.mrc", 16
    content = io.BytesIO()
    np.save(content, table)
    return [b"\x00" + content.getvalue(), b"\xff" + bytes(range(256)) * 8, b"\xff" + b"\x05" * 400]


def run_here(target: str, corpus: Path, seconds: int) -> None:
    """Fuzz one target in this process, which atheris ends."""
    import atheris

    with atheris.instrument_imports(include=["sparsecv.engine.io"]):
        import sparsecv.engine.io.cryosparc
        import sparsecv.engine.io.particles  # noqa: F401
    for number, content in enumerate(seeds(target)):
        (corpus / f"seed{number}").write_bytes(content)
    work = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    target_of = {"star": star_target, "mrc": mrc_target, "cs": cs_target}[target](work)

    def read(data: bytes) -> None:
        try:
            target_of(data)
        except BaseException:  # kept and shown here: the timer of the fuzzer may end its own way out
            (corpus / "crash-input").write_bytes(data)
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(CRASHED)

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SECONDS_OF_ONE}",
         f"-rss_limit_mb={ALL_MEGABYTES}", f"-malloc_limit_mb={MEGABYTES}", "-print_final_stats=1",
         "-seed=1", f"-artifact_prefix={corpus}/crash-", "-verbosity=0"],
        read,
    )  # fmt: skip
    atheris.Fuzz()


def run_targets(targets: list[str], seconds: int, report: Path | None) -> int:
    """Fuzz each target in a process of its own; 1 where one has crashed."""
    found: dict[str, dict[str, Any]] = {}
    for target in targets:
        with tempfile.TemporaryDirectory(prefix=f"sparsecv-fuzz-{target}-") as corpus:
            command = [sys.executable, __file__, "--here", target, "--corpus", corpus, "--seconds", str(seconds)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, errors="replace"
            )
            counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
            memory = re.search(r"stat::peak_rss_mb:\s*(\d+)", done.stdout)
            crashes = [path.read_bytes() for path in Path(corpus).glob("crash-*")]
            found[target] = {
                "seconds": seconds, "executions": int(counted[1]) if counted else NOT_MEASURED,
                "peak_megabytes": int(memory[1]) if memory else NOT_MEASURED, "status": done.returncode,
                "crashes": len(crashes) or int(done.returncode != 0),
            }  # fmt: skip
            one = found[target]
            print(f"{target}: {one['executions']} executions in {seconds} s, {one['crashes']} crashes", flush=True)
            if done.returncode or crashes:
                print(f"status {done.returncode}\n{done.stdout[-6000:]}")
                for content in crashes:
                    print(f"input: {content!r}")
        if report is not None:
            report.write_text(json.dumps({"fuzz": found}, indent=1) + "\n")
    return int(any(one["status"] or one["crashes"] for one in found.values()))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=[])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--report", type=Path, help="JSON with executions and crashes")
    parser.add_argument("--here", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reproduce", help="a target's input, as it was printed: run it once, without atheris")
    given = parser.parse_args()
    if given.reproduce is not None:
        (target,) = given.targets
        with tempfile.TemporaryDirectory() as folder:
            make = {"star": star_target, "mrc": mrc_target, "cs": cs_target}[target]
            make(Path(folder))(ast.literal_eval(given.reproduce))
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (it has wheels for some Pythons only): nothing is fuzzed")
        return 0
    if given.here:
        run_here(given.here, given.corpus, given.seconds)
        return 0
    return run_targets(given.targets or list(TARGETS), given.seconds, given.report)


if __name__ == "__main__":
    sys.exit(main())
