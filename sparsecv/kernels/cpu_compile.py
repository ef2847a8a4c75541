# SPDX-License-Identifier: GPL-3.0-or-later
"""How the loops of the CPU back end are compiled; Numba does it at their first call and keeps the result on disk."""

from __future__ import annotations

import numba

_options = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
compiled = numba.njit(**_options)
compiled_parallel = numba.njit(parallel=True, **_options)
