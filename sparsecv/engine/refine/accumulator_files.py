# SPDX-License-Identifier: GPL-3.0-or-later
"""Accumulators as files: the sums B and N of each quarter, so that priors can be tried without refining again.

One npz file per quarter, nothing in it pickled: ``run_half1_quarter1_accumulator.npz``, or without ``_half1`` where the
quarters are those of all particles. Whatever follows the prefix ``run`` is read back into a whole set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv import __version__
from sparsecv.engine.errors import InputError
from sparsecv.engine.io.npz import read_npz, write_npz
from sparsecv.engine.io.regular import open_regular
from sparsecv.engine.refine.volumes import Accumulator, half_width
from sparsecv.kernels.contract import KERNELS

FORMAT = 1
SUFFIX = "_accumulator.npz"
NAME = re.compile(r"(?P<prefix>.+?)(?:_half(?P<half>[12]))?_quarter(?P<quarter>[12])" + re.escape(SUFFIX))
WHOLE = 0  # in place of a half's number: all particles


@dataclass(frozen=True)
class Origin:
    """What the accumulators of one run have in common.

    Attributes
    ----------
    pixel_size
        A.
    symmetry
        Point group that has been summed over: the sums are complete.
    diameter
        Of the particle, A; None where it was not known.
    """

    pixel_size: float
    symmetry: str
    diameter: float | None = None


@dataclass(frozen=True)
class StoredAccumulators:
    """The accumulators of a run: by half, 1 and 2, or ``WHOLE`` alone, the two quarters on the device."""

    origin: Origin
    quarters: dict[int, tuple[Accumulator, Accumulator]]

    @property
    def box(self) -> int:
        """Of the images, pixels."""
        return next(iter(self.quarters.values()))[0].box


def accumulator_path(prefix: Path, half: int, quarter: int) -> Path:
    """File of a quarter, 0 or 1, of half set 1 or 2, or of all particles (0); in names quarters are 1 and 2."""
    part = f"_half{half}" if half != WHOLE else ""
    return prefix.with_name(f"{prefix.name}{part}_quarter{quarter + 1}{SUFFIX}")


def write_accumulators(
    ops: Any, prefix: Path, half: int, quarters: Iterable[Accumulator], origin: Origin
) -> list[Path]:
    """Write the completed accumulators of the two quarters of a half (0: of all particles), each atomically.

    Parameters
    ----------
    prefix
        Folder and begin of the names: ``DIR/run``.

    Returns
    -------
    The files written.
    """
    written = []
    for number, quarter in enumerate(quarters):
        plain = asdict(origin) | {
            "format": FORMAT, "version": __version__, "half": half, "quarter": number, "box": quarter.box,
            "last_shell": quarter.last_shell, "kernel": quarter.kernel,
        }  # fmt: skip
        path = accumulator_path(prefix, half, number)
        write_npz(path, {"data": ops.to_host(quarter.data), "weight": ops.to_host(quarter.weight)}, plain)
        written.append(path)
    return written


def read_accumulators(ops: Any, where: Path) -> StoredAccumulators:
    """Read all accumulators of a run.

    Parameters
    ----------
    where
        The folder of the run, or one of the files: the others are those beside it.

    Raises
    ------
    InputError
        No accumulators, more than one run's, a half or a quarter missing, a file that is damaged or of another version,
        or files that do not belong together.
    """
    files = _find(Path(where))
    origin: Origin | None = None
    first: tuple[Path, Accumulator] | None = None
    found: dict[int, list[Accumulator]] = {}
    for (half, quarter), path in sorted(files.items()):
        accumulator, own = _read(path, half, quarter)
        if origin is None or first is None:
            origin, first = own, (path, accumulator)
        _check_alike(path, _common(accumulator, own), first[0], _common(first[1], origin))
        xp = ops.xp
        on_device = Accumulator(xp.asarray(accumulator.data), xp.asarray(accumulator.weight), accumulator.box,
                                accumulator.last_shell, accumulator.kernel)
        found.setdefault(half, []).append(on_device)
    assert origin is not None, "a set of files is never empty"
    return StoredAccumulators(origin, {half: (pair[0], pair[1]) for half, pair in found.items()})


def _find(where: Path) -> dict[tuple[int, int], Path]:
    """Files of one run, by half and quarter; InputError unless they are complete."""
    if where.is_dir():
        candidates = sorted(where.glob(f"*{SUFFIX}"))
    elif not where.exists():
        raise InputError("cannot be opened: No such file or directory", file=where,
                         remedy="give the folder of a run that was made with --keep-accumulators")
    elif NAME.fullmatch(where.name) is None:
        raise InputError("not the name of an accumulator", file=where,
                         rule=f"..._half1_quarter1{SUFFIX} or ..._quarter1{SUFFIX}", remedy="give the folder of a run")
    else:
        candidates = sorted(where.parent.glob(f"*{SUFFIX}"))
    sets: dict[tuple[str, bool], dict[tuple[int, int], Path]] = {}
    for path in candidates:
        match = NAME.fullmatch(path.name)
        if match is not None:
            key = (match["prefix"], match["half"] is None)
            sets.setdefault(key, {})[int(match["half"] or WHOLE), int(match["quarter"]) - 1] = path
    if not where.is_dir():
        sets = {key: files for key, files in sets.items() if where.name in {path.name for path in files.values()}}
    if not sets:
        raise InputError("holds no accumulators", file=where, rule=f"files *{SUFFIX}",
                         remedy="refine or reconstruct with --keep-accumulators")
    if len(sets) > 1:
        names = [min(files.values()).name for files in sets.values()]
        raise InputError("holds the accumulators of several runs", file=where, value=names, rule="one run",
                         remedy="name one file of the run that is meant")
    ((prefix, is_whole), files), = sets.items()
    for half in (WHOLE,) if is_whole else (1, 2):
        for quarter in (0, 1):
            if (half, quarter) not in files:
                folder = where if where.is_dir() else where.parent
                raise InputError("cannot be opened: No such file or directory",
                                 file=accumulator_path(folder / prefix, half, quarter),
                                 rule="two quarters of each of both halves, or of all particles",
                                 remedy="copy all files of the run, or write them again with --keep-accumulators")
    return files


def _read(path: Path, half: int, quarter: int) -> tuple[Accumulator, Origin]:
    """One file, checked: its checksums, its version, and that it holds what its name says."""
    try:
        with open(open_regular(path), "rb") as stream:
            arrays, plain = read_npz(stream)
        is_known = plain["format"] == FORMAT
        if is_known:
            arrays = {name: arrays[name] for name in ("data", "weight")}
    except InputError:
        raise
    except Exception as error:  # the readers of zip, npy and JSON each show damage in several ways
        raise InputError(f"damaged or no accumulator ({error})", file=path, rule="a complete npz file with checksums",
                         remedy="copy it again, or write it again with --keep-accumulators") from error
    if not is_known:
        raise InputError(
            f"was written by another version of sparsecv ({plain.get('version', 'an early one')})", file=path,
            item="format", value=plain["format"], rule=f"{FORMAT}, which version {__version__} reads",
            remedy="write it again with this version",
        )  # fmt: skip
    found = (plain["half"], plain["quarter"])
    if found != (half, quarter):
        raise InputError("holds another quarter than its name says", file=path,
                         value=f"half {found[0]}, quarter {found[1] + 1}", rule=f"half {half}, quarter {quarter + 1}",
                         remedy="give the file its own name back")
    side = 2 * half_width(plain["last_shell"]) + 1
    shape = (side, side, side // 2 + 1)
    data, weight = arrays["data"], arrays["weight"]
    is_sound = data.shape == weight.shape == shape and (data.dtype, weight.dtype) == (np.dtype("c8"), np.dtype("f4"))
    if not (is_sound and plain["kernel"] in KERNELS and np.isfinite(data).all() and np.isfinite(weight).all()):
        raise InputError("holds no usable sums", file=path, value=data.shape,
                         rule=f"complex64 data and float32 weights, {shape}, finite", remedy="write it again")
    origin = Origin(plain["pixel_size"], plain["symmetry"], plain["diameter"])
    return Accumulator(data, weight, plain["box"], plain["last_shell"], plain["kernel"]), origin


def _common(accumulator: Accumulator, origin: Origin) -> dict[str, object]:
    """What all accumulators of a run have in common."""
    own = {"box": accumulator.box, "last shell": accumulator.last_shell, "kernel": accumulator.kernel}
    return own | {name.replace("_", " "): value for name, value in asdict(origin).items()}


def _check_alike(path: Path, own: dict[str, object], first: Path, wanted: dict[str, object]) -> None:
    for name, value in own.items():
        if value != wanted[name]:
            raise InputError(f"{name} differs from that of {first}", file=path, value=value,
                             rule=f"{wanted[name]}, as all accumulators of a run", remedy="take the files of one run")
