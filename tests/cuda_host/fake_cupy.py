# SPDX-License-Identifier: GPL-3.0-or-later
"""A CuPy without a GPU: ``with fake_cupy.installed(): ...`` runs code for the device on the CPU.

Kernels run through the host shim; array functions are NumPy's and SciPy's, offered only where CuPy has them, with
CuPy's parameters, and refusing NumPy arrays where CuPy refuses them. `Allocations` makes memory run out on demand,
`Waits` counts when the host would wait for the device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.special

from cuda_host.fake_array import API, Allocations, OutOfMemoryError, Waits, ndarray, proxy, ufunc, unwrap, wrap
from cuda_host.host import HostModule

__all__ = ["Allocations", "OutOfMemoryError", "Waits", "installed", "ndarray"]

TOTAL_BYTES = 8 << 30  # what the device says it has
UPLOADS = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"}


class Mirror(ModuleType):
    """A module with the names that CuPy's has; each is made from the NumPy or SciPy function at its first use."""

    def __init__(self, name: str, origin: Any, **own: Any) -> None:
        super().__init__(name)
        self._origin = origin
        self.__dict__.update(own)

    def __getattr__(self, attribute: str) -> Any:
        described = API.get(self.__name__, {}).get(attribute)
        missing = attribute not in API.get(self.__name__, {}) or not hasattr(self._origin, attribute)
        if attribute.startswith("_") or missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {attribute!r}")
        item = getattr(self._origin, attribute)
        if described == "ufunc":
            item = ufunc(item, attribute)
        elif described != "value":
            item = proxy(item, attribute, described, host=attribute in UPLOADS)
        setattr(self, attribute, item)
        return item


# ------------------------------------------------------------------------------------------------------- kernels
class RawModule:
    """CUDA source, compiled at the first use and run through the host shim."""

    sanitize = False  # build with AddressSanitizer (the interpreter must then run with it, too)

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: bool = False,
    ) -> None:
        if code is None or backend != "nvrtc":
            raise NotImplementedError("the fake compiles source text only")
        if not isinstance(options, tuple):
            raise TypeError("options is a tuple of strings")
        self._code, self._options = code, options

    @functools.cached_property
    def _module(self) -> HostModule:
        return HostModule(self._code, self._options, sanitize=self.sanitize)

    def get_function(self, name: str) -> Any:
        """A kernel: call it with grid, block and arguments."""
        return functools.partial(_launch, self._module.get_function(name))


class RawKernel:
    """One kernel of a source."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **_: Any) -> None:
        self._get = functools.partial(RawModule(code=code, options=options, backend=backend).get_function, name)

    def __call__(self, grid: Any, block: Any, args: Any, **kwargs: Any) -> None:
        self._get()(grid, block, args, **kwargs)


def _launch(
    kernel: Any, grid: Any, block: Any, args: Any, *, shared_mem: int = 0, stream: Any = None, **_: Any
) -> None:
    if shared_mem:
        raise NotImplementedError("the shim has no dynamic shared memory")
    kernel(grid, block, [_argument(value) for value in args])


def _argument(value: Any) -> np.ndarray | np.generic:
    """A kernel's argument as CuPy passes it: Python integers as int64, Python reals as float64."""
    if isinstance(value, ndarray):
        return value._host
    python = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}.get(type(value))
    if python is None and not isinstance(value, np.generic):
        raise TypeError(f"Unsupported type {type(value)}")
    return value if python is None else python(value)


# --------------------------------------------------------------------------------------------------------- device
class Device:
    """The only device, number 0."""

    compute_capability = "80"
    pci_bus_id = "0000:00:00.0"
    mem_info = (TOTAL_BYTES, TOTAL_BYTES)

    def __init__(self, device: int | None = None) -> None:
        if int(getattr(device, "id", device) or 0) != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = 0
        self.attributes = {"MultiProcessorCount": 2, "MaxThreadsPerBlock": 1024, "WarpSize": 32}

    def use(self) -> None:
        """Make it the current device."""

    def synchronize(self) -> None:
        """Wait for its work; all work is done at once here."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __int__(self) -> int:
        return self.id


class CUDARuntimeError(RuntimeError):
    """Stands for cupy.cuda.runtime.CUDARuntimeError."""


class Stream:
    """A queue of work, done at once."""

    null: Any = None
    ptr = 0
    done = True

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.is_non_blocking = non_blocking

    def synchronize(self) -> None:
        """Wait for the queue."""

    def use(self) -> Stream:
        """Make it the current stream."""
        return self

    def record(self, event: Any = None) -> Any:
        """Mark this place in the queue."""
        return Event() if event is None else event

    def wait_event(self, event: Any) -> None:
        """Wait for a mark of another queue."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


Stream.null = Stream(null=True)


class Event:
    """A mark in a stream."""

    done = True

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Put the mark."""

    def synchronize(self) -> None:
        """Wait for the mark."""


class MemoryPool:
    """Says that nothing is used; see `Allocations` for memory that runs out."""

    _limit = 0

    def __init__(self, allocator: Any = None) -> None:
        pass

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give unused memory back."""

    def used_bytes(self) -> int:
        """Bytes in arrays."""
        return 0

    def total_bytes(self) -> int:
        """Bytes taken from the device."""
        return 0

    def free_bytes(self) -> int:
        """Bytes taken and unused."""
        return 0

    def n_free_blocks(self) -> int:
        """Blocks taken and unused."""
        return 0

    def get_limit(self) -> int:
        """Most bytes that may be taken; 0: all."""
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """Set the most bytes that may be taken."""
        self._limit = int(size if size is not None else (fraction or 0) * TOTAL_BYTES)


def _runtime() -> ModuleType:
    module = ModuleType("cupy.cuda.runtime")
    module.__dict__.update(
        CUDARuntimeError=CUDARuntimeError,
        CUDA_R_32F=0,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        setDevice=lambda device: Device(device).use(),
        getDeviceProperties=lambda device: {
            "name": b"Host shim",
            "totalGlobalMem": TOTAL_BYTES,
            "multiProcessorCount": 2,
            "major": 8,
            "minor": 0,
        },
        memGetInfo=lambda: Device.mem_info,
        runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 12090,
        deviceSynchronize=lambda: None,
    )
    return module


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 numbers with that many significant bits, the nearest, of two as near the even one."""
    dropped = 24 - bits
    whole = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    nearest = (whole + (1 << (dropped - 1)) - 1 + ((whole >> dropped) & 1)) >> dropped << dropped
    return np.where(np.isfinite(values), nearest.astype(np.uint32).view(np.float32), values)


KEPT_BITS = {68: 24, 75: 8, 77: 11}  # of factors, by cublasComputeType_t


def _gemm_ex(handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int,
             B: int, Btype: int, ldb: int, beta: int, C: int, Ctype: int, ldc: int, computeType: int,
             algo: int) -> None:
    """cublasGemmEx of float32 matrices, column by column in memory, with its roundings; sums in float32."""
    if (Atype, Btype, Ctype) != (0, 0, 0) or computeType not in KEPT_BITS:
        raise NotImplementedError("the fake multiplies float32 matrices only")
    if handle != HANDLE or _memory(alpha, 1)[0] != 1 or _memory(beta, 1)[0] != 0:
        raise ValueError("not the handle of the device, or factors that the fake does not know")

    def matrix(pointer: int, transposed: int, rows: int, columns: int, leading: int) -> np.ndarray:
        rows, columns = (columns, rows) if transposed else (rows, columns)
        if leading < rows:
            raise ValueError("CUBLAS_STATUS_INVALID_VALUE: leading dimension")
        stored = _memory(pointer, leading * columns).reshape(columns, leading)[:, :rows].T
        bits = KEPT_BITS[computeType]
        return rounded(stored.T if transposed else stored, bits) if bits < 24 else stored.T if transposed else stored

    with np.errstate(all="ignore"):
        product = matrix(A, transa, m, k, lda) @ matrix(B, transb, k, n, ldb)
    _memory(C, ldc * n).reshape(n, ldc)[:, :m] = product.T


HANDLE = 4711


def _memory(pointer: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(pointer))


def _cublas() -> ModuleType:
    module = ModuleType("cupy.cuda.cublas")
    module.__dict__.update(
        gemmEx=_gemm_ex,
        CUBLAS_OP_N=0,
        CUBLAS_OP_T=1,
        CUBLAS_COMPUTE_32F=68,
        CUBLAS_COMPUTE_32F_FAST_16BF=75,
        CUBLAS_COMPUTE_32F_FAST_TF32=77,
        CUBLAS_GEMM_DEFAULT=-1,
    )
    return module


def _cuda() -> ModuleType:
    module = ModuleType("cupy.cuda")
    memory = ModuleType("cupy.cuda.memory")
    memory.__dict__.update(OutOfMemoryError=OutOfMemoryError, MemoryPool=MemoryPool)
    module.__dict__.update(
        Device=Device,
        Stream=Stream,
        Event=Event,
        MemoryPool=MemoryPool,
        PinnedMemoryPool=MemoryPool,
        runtime=_runtime(),
        cublas=_cublas(),
        get_cublas_handle=lambda: HANDLE,
        memory=memory,
        is_available=lambda: True,
        get_device_id=lambda: 0,
        get_current_stream=lambda: Stream.null,
        get_elapsed_time=lambda start, end: 0.0,
        alloc_pinned_memory=lambda size: memoryview(bytearray(size)),
        set_allocator=lambda allocator=None: None,
        set_pinned_memory_allocator=lambda allocator=None: None,
    )
    return module


# ----------------------------------------------------------------------------------------------- the two modules
class Generator:
    """cupy.random.default_rng(seed), with the draws that CuPy's generator has; the numbers are NumPy's."""

    def __init__(self, seed: Any = None) -> None:
        self._generator = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in API["cupy.random.Generator"]:
            raise AttributeError(f"CuPy's Generator has no {name!r}")
        return proxy(getattr(self._generator, name), name, API["cupy.random.Generator"][name])


def _asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def _scatter_add(a: ndarray, slices: Any, value: Any) -> None:
    np.add.at(unwrap(a), unwrap(slices), unwrap(value))


def modules() -> dict[str, ModuleType]:
    """New fake modules by their names."""
    cuda, pool, pinned = _cuda(), MemoryPool(), MemoryPool()
    cupy = Mirror(
        "cupy",
        np,
        __version__=API["version"],
        ndarray=ndarray,
        ufunc=ufunc,
        RawModule=RawModule,
        RawKernel=RawKernel,
        cuda=cuda,
        fft=Mirror("cupy.fft", scipy.fft, config=SimpleNamespace(clear_plan_cache=lambda: None)),
        linalg=Mirror("cupy.linalg", np.linalg),
        random=Mirror("cupy.random", np.random, default_rng=Generator, Generator=Generator),
        asnumpy=_asnumpy,
        is_available=lambda: True,
        fuse=lambda *a, **k: a[0] if a else (lambda f: f),
        memoize=lambda for_each_device=False: functools.cache,
        get_array_module=lambda *args: cupy if any(isinstance(a, ndarray) for a in args) else np,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pinned,
    )
    ndarray.__array_namespace__ = lambda self, *, api_version=None: cupy  # type: ignore[attr-defined]
    scipy_like = ModuleType("cupyx.scipy")
    parts = {"fft": scipy.fft, "ndimage": scipy.ndimage, "special": scipy.special}
    mirrors = {name: Mirror(f"cupyx.scipy.{name}", origin) for name, origin in parts.items()}
    scipy_like.__dict__.update(mirrors, get_array_module=lambda *args: scipy_like)
    cupyx = ModuleType("cupyx")
    profiler = SimpleNamespace(time_range=lambda *a, **k: contextlib.nullcontext())
    cupyx.__dict__.update(
        scipy=scipy_like,
        scatter_add=_scatter_add,
        errstate=lambda **k: contextlib.nullcontext(),
        profiler=profiler,
        rsqrt=lambda x: wrap(1 / np.sqrt(unwrap(x))),
        empty_pinned=np.empty,
        zeros_pinned=np.zeros,
        empty_like_pinned=np.empty_like,
        zeros_like_pinned=np.zeros_like,
    )
    found: dict[str, ModuleType] = {"cupy": cupy, "cupyx": cupyx, "cupyx.scipy": scipy_like, "cupy.cuda": cuda}
    found |= {f"cupy.{name}": getattr(cupy, name) for name in ("fft", "linalg", "random")}
    found |= {f"cupy.cuda.{name}": getattr(cuda, name) for name in ("runtime", "memory")}
    return found | {f"cupyx.scipy.{name}": mirror for name, mirror in mirrors.items()}


@contextlib.contextmanager
def installed(*, sanitize: bool = False) -> Iterator[ModuleType]:
    """Put the fake in the place of CuPy inside the block; gives the module cupy.

    Notes
    -----
    Whatever memoised a module of the real or the fake CuPy has to be cleared by the caller.
    """
    fakes = modules()
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("cupy", "cupyx")}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(fakes)
    Allocations.reset()
    RawModule.sanitize = sanitize
    try:
        yield fakes["cupy"]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx")]:
            del sys.modules[name]
        sys.modules.update(hidden)
        Allocations.reset()
        RawModule.sanitize = False
