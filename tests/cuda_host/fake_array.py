# SPDX-License-Identifier: GPL-3.0-or-later
"""The array of the fake CuPy: NumPy memory that refuses to be mixed with NumPy, as device memory does.

The names and parameters offered are those in cupy_api.json, listed from the real CuPy.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

API = json.loads(Path(__file__).with_name("cupy_api.json").read_text())
SCATTERS = {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"}
NO_IMPLICIT = "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct one explicitly."


class OutOfMemoryError(MemoryError):
    """Stands for cupy.cuda.memory.OutOfMemoryError."""


class Allocations:
    """Counts arrays, and the bytes of those that are alive; the one numbered fail_at (and, with fail_always, all after
    it) raises OutOfMemoryError."""

    count = 0
    alive = peak = 0  # bytes, now and at the most
    fail_at: int | None = None
    fail_always = False
    largest: int | None = None  # bytes; a larger array raises
    _held: ClassVar[dict[int, weakref.ref[np.ndarray]]] = {}

    @classmethod
    def reset(cls) -> None:
        """Forget the count and stop failing."""
        cls.count, cls.fail_at, cls.fail_always, cls.largest = 0, None, False, None
        cls.peak = cls.alive

    @classmethod
    def hold(cls, memory: np.ndarray) -> None:
        """Memory of the device, until it is given up; whatever shares it is counted with it, once."""
        key = id(memory)
        if key in cls._held:
            return

        def give_up(_: object, nbytes: int = memory.nbytes) -> None:
            del cls._held[key]
            cls.alive -= nbytes

        cls._held[key] = weakref.ref(memory, give_up)
        cls.alive += memory.nbytes
        cls.peak = max(cls.peak, cls.alive)

    @classmethod
    def add(cls, nbytes: int) -> None:
        """One more array of nbytes."""
        cls.count += 1
        late = cls.fail_at is not None and (cls.count == cls.fail_at or (cls.fail_always and cls.count > cls.fail_at))
        if late or (cls.largest is not None and nbytes > cls.largest):
            raise OutOfMemoryError(f"Out of memory allocating {nbytes} bytes (simulated)")


class Waits:
    """Counts what would make the host wait for a device: numbers and arrays that it reads, sizes that it must learn."""

    SIZED = ("argwhere", "bincount", "flatnonzero", "nonzero", "unique")  # functions whose result's size is data
    count = 0
    nbytes = 0  # of what came to the host

    @classmethod
    def reset(cls) -> None:
        """Forget the counts."""
        cls.count = cls.nbytes = 0

    @classmethod
    def add(cls, nbytes: int = 0) -> None:
        """One more, which brings nbytes to the host."""
        cls.count += 1
        cls.nbytes += nbytes


def wrap(value: Any) -> Any:
    """Device arrays for NumPy arrays and scalars, also inside tuples and lists; everything else as it is."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray._of(np.asarray(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(wrap, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(wrap, value))
    return value


def unwrap(value: Any, *, host: bool = False) -> Any:
    """The memory of device arrays; TypeError for NumPy arrays, unless the caller takes those (host)."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        if not host:
            raise TypeError(f"Unsupported type {type(value)}")
        return value.copy()  # it goes to the device: later changes do not follow
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(unwrap(item, host=host) for item in value)
    if isinstance(value, slice):
        return slice(*(int(v) if isinstance(v, ndarray) else v for v in (value.start, value.stop, value.step)))
    return value


def proxy(
    function: Callable[..., Any], name: str, parameters: list[str] | None, *, host: bool = False
) -> Callable[..., Any]:
    """Function on device arrays that takes CuPy's parameters only; host: NumPy arrays are taken too (uploads)."""
    named = None if parameters is None else {p for p in parameters if not p.startswith("*")}
    is_open = parameters is None or any(p.startswith("**") for p in parameters)
    most = None if parameters is None or any(p.startswith("*") for p in parameters) else len(parameters)
    refused = {"where", "initial"} if parameters is None else set()

    def call(*args: Any, **kwargs: Any) -> Any:
        unknown = [k for k in kwargs if k in refused or (not is_open and named is not None and k not in named)]
        if unknown or (most is not None and len(args) > most):
            raise TypeError(f"CuPy's {name}() takes no {', '.join(unknown) or 'so many arguments'}")
        if name in Waits.SIZED:
            Waits.add()
        for device_only in ("blocking", "stream", "plan"):
            kwargs.pop(device_only, None)
        with np.errstate(all="ignore"):
            named_values = {k: unwrap(v, host=host) for k, v in kwargs.items()}
            result = function(*(unwrap(a, host=host) for a in args), **named_values)
        return wrap(result)

    call.__name__ = name
    return call


class ufunc:
    """An elementwise function with the arguments and methods that CuPy's have."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self.name = function, f"cupy_{name}"
        self.__name__ = name
        self.nin, self.nout, self.nargs = (getattr(function, key, 1) for key in ("nin", "nout", "nargs"))
        self._elementwise = proxy(function, name, ["*args", "out", "dtype", "casting"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._elementwise(*args, **kwargs)

    def _method(self, method: str, parameters: list[str], supported: set[str]) -> Callable[..., Any]:
        if self.__name__ not in supported:
            raise NotImplementedError(f"`{self.name}.{method}` is not supported yet")
        return proxy(getattr(self._function, method), f"{self.__name__}.{method}", parameters)

    def at(self, a: Any, indices: Any, b: Any = None) -> None:
        """In-place operation at indices, also repeated ones."""
        self._method("at", ["a", "indices", "b"], SCATTERS)(a, indices, b)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Sum or product."""
        parameters = ["array", "axis", "dtype", "out", "keepdims"]
        return self._method("reduce", parameters, {"add", "multiply"})(*args, **kwargs)

    def accumulate(self, *args: Any, **kwargs: Any) -> Any:
        """Running sum or product."""
        return self._method("accumulate", ["array", "axis", "dtype", "out"], {"add", "multiply"})(*args, **kwargs)

    def reduceat(self, *args: Any, **kwargs: Any) -> Any:
        """Sums between indices."""
        return self._method("reduceat", ["array", "indices", "axis", "dtype", "out"], {"add"})(*args, **kwargs)

    def outer(self, a: Any, b: Any, **kwargs: Any) -> Any:
        """All pairs."""
        return proxy(self._function.outer, "outer", ["A", "B", "**kwargs"])(a, b, **kwargs)  # type: ignore[attr-defined]


class ndarray:
    """Device array; see the module."""

    __slots__ = ("__weakref__", "_host")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        if memptr is not None or strides is not None:
            raise NotImplementedError("the fake has no raw device memory")
        self._host = ndarray._of(np.empty(shape, dtype, order=order))._host

    @classmethod
    def _of(cls, host: np.ndarray) -> ndarray:
        if host.dtype.kind not in "biufc" or host.dtype.itemsize > {"c": 16}.get(host.dtype.kind, 8):
            raise ValueError(f"Unsupported dtype {host.dtype}")
        if host.base is None:
            Allocations.add(host.nbytes)
            Allocations.hold(host)
        self = cls.__new__(cls)
        self._host = host if type(host) is np.ndarray else host.view(np.ndarray)
        return self

    # ---- between host and device
    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        """A copy in host memory."""
        Waits.add(self.nbytes)
        if out is None:
            return self._host.copy(order=order)
        if out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"out is {out.dtype} {out.shape}, the array {self.dtype} {self.shape}")
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Copy from host memory."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(f"cannot set {self.dtype} {self.shape} from {arr.dtype} {arr.shape}")
        self._host[...] = arr

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(NO_IMPLICIT)

    def item(self, *args: int) -> Any:
        """One element as a Python number."""
        Waits.add(self.itemsize)
        return self._host.item(*args)

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        Waits.add(self.nbytes)
        return self._host.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __bool__(self) -> bool:
        Waits.add(self.itemsize)
        return bool(self._host)

    def __repr__(self) -> str:
        return repr(self._host)

    def __str__(self) -> str:
        return str(self._host)

    def __format__(self, spec: str) -> str:
        return format(self._host if self.ndim else self._host[()], spec)

    def __reduce__(self) -> Any:
        return (_restore, (self._host.copy(),))

    def __copy__(self) -> ndarray:
        return wrap(self._host.copy())

    def __deepcopy__(self, memo: Any) -> ndarray:
        return wrap(self._host.copy())

    # ---- shape and type
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: wrap(self._host.T))
    mT = property(lambda self: wrap(self._host.mT))
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))
    device = property(lambda self: SimpleNamespace(id=0))
    base = property(lambda self: None if self._host.base is None else wrap(self._host.base))

    @property
    def flags(self) -> Any:
        """c_contiguous, f_contiguous, owndata."""
        flags = self._host.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._host.shape

    @shape.setter
    def shape(self, value: Any) -> None:
        self._host = self._host.reshape(value)

    @property
    def real(self) -> ndarray:
        """View of the real parts."""
        return wrap(self._host.real)

    @real.setter
    def real(self, value: Any) -> None:
        self.real[...] = value

    @property
    def imag(self) -> ndarray:
        """View of the imaginary parts."""
        return wrap(self._host.imag)

    @imag.setter
    def imag(self, value: Any) -> None:
        self.imag[...] = value

    # ---- elements
    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> ndarray:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, ndarray) and part.dtype == bool for part in parts):
            Waits.add()  # how many are true?
        return wrap(self._host[unwrap(index, host=True)])  # CuPy uploads NumPy indices

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        with np.errstate(all="ignore"):
            self._host[unwrap(index, host=True)] = unwrap(value, host=True)

    # ---- NumPy's functions, called on device arrays
    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = out[0]
        if any(isinstance(x, np.ndarray) for x in (*inputs, kwargs.get("out"))):
            raise TypeError(f"Unsupported type {np.ndarray}")
        if API["cupy"].get(function.__name__) != "ufunc":
            return NotImplemented
        own = ufunc(function, function.__name__)
        return (own if method == "__call__" else getattr(own, method))(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        parameters = API["cupy"].get(function.__name__, "value")
        if getattr(np, function.__name__, None) is not function or isinstance(parameters, str):
            return NotImplemented
        return proxy(function._implementation, function.__name__, parameters)(*args, **kwargs)


def _restore(host: np.ndarray) -> ndarray:
    return wrap(host)


def _add_operators() -> None:
    """Arithmetic and comparison, with the same refusal of NumPy arrays on either side."""
    binary = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift divmod"
    compare = "lt le eq ne gt ge"
    forms = [f"__{side}{name}__" for name in binary.split() for side in ("", "r")]
    for name in (*forms, *(f"__{c}__" for c in compare.split()), "__neg__", "__pos__", "__abs__", "__invert__"):
        setattr(ndarray, name, _operator(name))
    for name in binary.split():
        if name not in ("divmod", "matmul"):
            setattr(ndarray, f"__i{name}__", _in_place(f"__i{name}__"))


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: ndarray, *others: Any) -> Any:
        if any(not isinstance(o, (ndarray, np.ndarray, np.generic, int, float, complex)) for o in others):
            return NotImplemented
        values = [unwrap(other) for other in others]
        with np.errstate(all="ignore"):
            return wrap(getattr(self._host, name)(*values))

    return operate


def _in_place(name: str) -> Callable[..., Any]:
    def operate(self: ndarray, other: Any) -> ndarray:
        value = unwrap(other)
        with np.errstate(all="ignore"):
            getattr(self._host, name)(value)  # CuPy does not replace the array either
        return self

    return operate


def _add_methods() -> None:
    """The methods that both CuPy's and NumPy's arrays have and that are not written out above."""
    for name, parameters in API["cupy.ndarray"].items():
        if name in ndarray.__dict__ or parameters == "value" or not callable(getattr(np.ndarray, name, None)):
            continue
        method = getattr(np.ndarray, name)
        setattr(ndarray, name, proxy(method, name, None if parameters is None else ["self", *parameters]))


_add_operators()
_add_methods()
