# SPDX-License-Identifier: GPL-3.0-or-later
"""What starts several processes in the tests: this environment's ``mpiexec``, or the system's ``mpirun``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

LAUNCHER = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
needs_mpi = pytest.mark.skipif(LAUNCHER is None, reason="there is no MPI")
# tests may run as root, and on fewer cores than they start processes
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
           "OMPI_MCA_rmaps_base_oversubscribe": "1"}  # fmt: skip
