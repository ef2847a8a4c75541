# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that the Scipion wing shares: configuration variables and the name of the engine's environment."""

PACKAGE = "sparsecv"
DISTRIBUTION = "scipion-em-sparsecv"

SPARSECV_HOME = "SPARSECV_HOME"
"""Folder of the engine's environment; below EM_ROOT unless absolute."""

SPARSECV_ENV_ACTIVATION = "SPARSECV_ENV_ACTIVATION"
"""Shell command that makes ``sparsecv`` callable (``conda activate ...``); takes the place of SPARSECV_HOME."""

SPARSECV_INSTALL = "SPARSECV_INSTALL"
"""How the engine's environment is made: venv (default) or conda."""

SPARSECV_PYTHON = "SPARSECV_PYTHON"
"""Python >= 3.10 from which the environment is made; looked for on the PATH when empty."""

SPARSECV_CUDA = "SPARSECV_CUDA"
"""CUDA generation to install CuPy for: auto (by the driver), 12, 13 or none."""

VENV, CONDA = INSTALLS = ("venv", "conda")
"""Values of SPARSECV_INSTALL."""

CONDA_PYTHON = "3.11"
"""Python of a conda environment."""

CUDA_EXTRAS = {"12": "cuda12", "13": "cuda13", "none": ""}
"""Value of SPARSECV_CUDA to extra of the distribution."""

FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONUSERBASE", "PYTHONHOME", "VIRTUAL_ENV")
"""Set by Scipion's launcher for its own Python; they would lead the engine to the wrong packages."""
