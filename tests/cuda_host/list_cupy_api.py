# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes cupy_api.json: the public names of CuPy with their parameters, so that the fake offers no more than CuPy does.

Run with a Python that has cupy-cuda12x[ctk]; no GPU is needed: ``python list_cupy_api.py > cupy_api.json``.
"""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

MODULES = (
    "cupy",
    "cupy.fft",
    "cupy.linalg",
    "cupy.random",
    "cupyx.scipy.fft",
    "cupyx.scipy.ndimage",
    "cupyx.scipy.special",
)


def _public(owner: Any) -> list[str]:
    names = (name for name in dir(owner) if not name.startswith("_") and name != "annotations")
    return sorted(name for name in names if not inspect.ismodule(getattr(owner, name)))


def _parameters(function: Any) -> list[str] | None:
    """Names of the parameters, * and ** marked; None where CuPy does not tell."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [stars.get(p.kind, "") + p.name for p in parameters if p.name != "self"]


def _describe(item: Any) -> Any:
    import cupy

    if isinstance(item, cupy.ufunc):
        return "ufunc"
    return "value" if isinstance(item, type) or not callable(item) else _parameters(item)


def main() -> None:
    """Print the list, one line per name."""
    import cupy

    owners = {name: importlib.import_module(name) for name in MODULES}
    owners["cupy.ndarray"] = cupy.ndarray
    owners["cupy.random.Generator"] = cupy.random._generator_api.Generator
    api = {key: {name: _describe(getattr(owner, name)) for name in _public(owner)} for key, owner in owners.items()}
    blocks = [f'"version":{json.dumps(cupy.__version__)}']
    for key, names in api.items():
        lines = ",\n".join(f"{json.dumps(name)}:{json.dumps(described)}" for name, described in names.items())
        blocks.append(f'"{key}":{{\n{lines}\n}}')
    print("{" + ",\n".join(blocks) + "}")


if __name__ == "__main__":
    main()
