# SPDX-License-Identifier: GPL-3.0-or-later
"""Distribution of sparsecv.

``install_requires`` stays empty: Scipion brings the packages of the plugin, and pins numpy below what the engine needs.
The engine lives in an environment of its own, which installs the extra ``engine`` (and ``cuda12`` or ``cuda13`` where
there is a GPU).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
PACKAGE = (HERE / "sparsecv" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"', PACKAGE, re.M).group(1)

ENGINE = [
    "numpy>=2,<2.6",
    "scipy>=1.15",
    "gemmi>=0.7",
    "mrcfile>=1.5",
    "numba>=0.61",
    "healpix>=2024.1",
    "finufft>=2.3",
    "matplotlib>=3.9",
    "threadpoolctl>=3.5",
    'tomli>=2; python_version < "3.11"',
]
MPI = ["mpi4py>=4", 'mpich>=4.2; platform_system == "Linux"']
DEV = [
    *MPI,
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.13",
    "setuptools>=77",
    'nvidia-cuda-nvrtc-cu12>=12.9,<13; platform_system == "Linux"',
]
DOCS = ["sphinx>=8.1", "myst-parser>=4"]

setup(
    name="scipion-em-sparsecv",
    version=VERSION,
    description="Single-particle cryo-EM refinement with cross-validated priors: an engine and a Scipion plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The sparsecv developers",
    license="GPL-3.0-or-later",
    keywords="cryo-EM single-particle refinement scipion relion CUDA",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
    python_requires=">=3.8",
    packages=find_packages(include=["sparsecv", "sparsecv.*"]),
    include_package_data=False,
    package_data={
        "sparsecv": ["constraints.txt", "protocols.conf", "*.png", "templates/*.json.template"],
        "sparsecv.tests": ["golden/*.star", "golden/*.npz"],
        "sparsecv.engine.report": ["page.css", "page.js"],
        "sparsecv.kernels": ["cuda/*.cu", "cuda/*.cuh"],
    },
    install_requires=[],
    extras_require={
        "engine": ENGINE,
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        "mpi": MPI,
        "dev": DEV,
        "docs": DOCS,
    },
    entry_points={
        "console_scripts": ["sparsecv = sparsecv.cli:main"],
        "pyworkflow.plugin": ["sparsecv = sparsecv"],
    },
    zip_safe=False,
)
