# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds CUDA sources for the CPU with g++ and launches their kernels through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("cuda_host.h")
FLAGS = ("-std=c++17", "-O2", "-march=native", "-fopenmp", "-fPIC", "-shared", "-g1")
# Two builds of one kernel live in one process: nothing of theirs may be shared by name.
APART = ("-fvisibility=hidden", "-fno-gnu-unique")
JUMPS = ("-U_FORTIFY_SOURCE", "-fcf-protection=none")  # let longjmp change stacks
WARNINGS = ("-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
_KERNEL = re.compile(r"\bKERNEL\s+void\s+(?:RESIDENT\(\d+\)\s+)?(\w+)\s*\(")
_seeds = itertools.count(1)


class HostError(RuntimeError):
    """A kernel that a GPU would not run either, or not rightly: the message says why."""


def compiler() -> str | None:
    """Path of g++ (or of $CXX), or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    folder = Path(base) / f"sparsecv-cuda-host-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder


@functools.cache
def _target(cxx: str) -> str:
    """What -march=native means here, so that a cache shared between machines stays right."""
    command = [cxx, "-march=native", "-E", "-v", "-x", "c++", os.devnull, "-o", os.devnull]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    return "\n".join(line for line in lines if "-march=" in line or "version" in line)


def _translation_unit(source: str) -> str:
    """The C++ text: the source inside struct Block, and an exported launcher for each of its kernels."""
    starts = [match.start() for match in _KERNEL.finditer(source)]
    names = _KERNEL.findall(source)
    if not names:
        raise HostError("the source holds no KERNEL")
    ends = [*starts[1:], len(source)]
    shared = "__syncthreads" in source[: starts[0]]
    barriers = [shared or "__syncthreads" in source[a:b] for a, b in zip(starts, ends, strict=True)]
    exports = "\n".join(f"CUDA_HOST_EXPORT({n}, {str(b).lower()})" for n, b in zip(names, barriers, strict=True))
    using = "".join(f"using cuda_host::{name};\n" for name in ("atomicAdd", "__popc", "sincospif"))
    opening = f'#include "{HEADER}"\n{using}namespace {{\n'
    opening += "struct Block : cuda_host::BlockBase {\n"
    return f'{opening}{source}\n}};\n}}\n#line 1 "exports"\n{exports}\n'


def build(source: str, options: Sequence[str] = (), *, sanitize: bool = False) -> Path:
    """Shared library of a CUDA source; built once per text, options and compiler.

    Raises
    ------
    HostError
        When there is no g++ or it refuses the source; the message is the compiler's.
    """
    cxx = compiler()
    if cxx is None:
        raise HostError("g++ is not installed")
    text = _translation_unit(source)
    macros = [option for option in options if option.startswith("-D")]
    flags = [*FLAGS, *APART, *JUMPS, *WARNINGS, *(SANITIZE if sanitize else ()), *macros]
    key = hashlib.sha256("\0".join([text, HEADER.read_text(), *flags, _target(cxx)]).encode()).hexdigest()[:24]
    library = _cache() / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            unit, built = Path(folder) / "unit.cpp", Path(folder) / "unit.so"
            unit.write_text(text)
            command = [cxx, *flags, str(unit), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise HostError(done.stderr)
            os.replace(built, library)
    return library


class HostKernel:
    """One kernel; call it with grid, block and arguments as a CuPy kernel, but with NumPy arrays."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        try:
            self._launch = getattr(library, f"launch_{name}")
            signature = getattr(library, f"signature_{name}")
        except AttributeError as error:
            raise HostError(f"the source holds no kernel {name}") from error
        signature.restype = ctypes.c_char_p
        self.name, self.signature = name, signature().decode().split()

    def _check(self, position: int, code: str, argument: np.ndarray | np.generic) -> None:
        """A GPU would take the bits as they are; here a wrong type is an error."""
        kind, size = code[0], int(code[1:])
        is_array = isinstance(argument, np.ndarray)
        wanted = {"p": "array", "f": "f", "i": "iu"}[kind]
        given = "array" if is_array else argument.dtype.kind
        if given not in wanted or argument.dtype.itemsize != size:
            raise TypeError(f"argument {position} of {self.name}: {argument.dtype} {given} where {code} is expected")
        if is_array and not argument.flags.c_contiguous:
            raise TypeError(f"argument {position} of {self.name}: the array is not contiguous")

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[np.ndarray | np.generic],
        *,
        seed: int | None = None,
    ) -> None:
        if len(arguments) != len(self.signature):
            raise TypeError(f"{self.name} takes {len(self.signature)} arguments, not {len(arguments)}")
        dims = [(*(int(n) for n in dim), 1, 1)[:3] for dim in (grid, block)]
        limits = ((2**31 - 1, 65535, 65535), (1024, 1024, 64))
        for dim, limit in zip(dims, limits, strict=True):
            if any(not 1 <= n <= most for n, most in zip(dim, limit, strict=True)):
                raise HostError(f"{self.name}: grid {dims[0]} and block {dims[1]} are not launchable")
        if dims[1][0] * dims[1][1] * dims[1][2] > 1024:
            raise HostError(f"{self.name}: more than 1024 threads per block")
        for position, pair in enumerate(zip(self.signature, arguments, strict=True)):
            self._check(position, *pair)
        values = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else np.array(a) for a in arguments]
        pointers = [ctypes.addressof(v) if isinstance(v, ctypes.c_void_p) else v.ctypes.data for v in values]
        packed = (ctypes.c_void_p * len(pointers))(*pointers)
        sizes = [(ctypes.c_uint * 3)(*dim) for dim in dims]
        status = self._launch(*sizes, packed, ctypes.c_uint64(next(_seeds) if seed is None else seed))
        if status:
            raise HostError(f"{self.name}: threads of a block met at different barriers, or left before one")


class HostModule:
    """A compiled source; its kernels by name."""

    def __init__(self, source: str, options: Sequence[str] = (), *, sanitize: bool = False) -> None:
        self._library = ctypes.CDLL(str(build(source, options, sanitize=sanitize)))

    def get_function(self, name: str) -> HostKernel:
        """The kernel of that name."""
        return HostKernel(self._library, name)
