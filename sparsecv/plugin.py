# SPDX-License-Identifier: GPL-3.0-or-later
"""The Scipion plugin: its variables, the installation of the engine's environment, and how the engine is started.

The engine needs a numpy that Scipion does not allow, so it lives in an environment of its own and is started as a
program; the two exchange files only.
"""

import os
import shlex
import shutil
import subprocess
import sys

import pwem
import pyworkflow as pw
from pyworkflow import VarTypes
from pyworkflow.utils import Environ

from sparsecv import __version__
from sparsecv.constants import (
    CUDA_EXTRAS,
    FOREIGN_VARIABLES,
    PACKAGE,
    SPARSECV_CUDA,
    SPARSECV_ENV_ACTIVATION,
    SPARSECV_HOME,
    SPARSECV_PYTHON,
)

OLDEST_DRIVER = 525  # that runs CUDA 12


def driver_version():
    """Return the major version of the NVIDIA driver, 0 where there is none."""
    try:
        said = subprocess.check_output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                       stderr=subprocess.DEVNULL, timeout=20)  # fmt: skip
        return int(said.decode("ascii", "replace").split(".")[0])
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


class Plugin(pwem.Plugin):
    """Registers sparsecv with Scipion."""

    # Scipion looks for the folder of the plugin in the module of this class, which has to be the package for that
    __module__ = PACKAGE

    _homeVar = SPARSECV_HOME
    _supportedVersions = (__version__,)
    _processingField = (pw.SPA,)

    @classmethod
    def _defineVariables(cls):
        cls._defineEmVar(
            SPARSECV_HOME,
            f"{PACKAGE}-{__version__}",
            description="Folder of the Python environment in which the sparsecv engine is installed.",
            var_type=VarTypes.FOLDER,
        )
        cls._defineVar(
            SPARSECV_ENV_ACTIVATION,
            "",
            description="Command that makes the program sparsecv callable, for engines installed in another way "
            f"(conda activate ..., module load ...). Takes the place of {SPARSECV_HOME}.",
            var_type=VarTypes.STRING,
        )
        cls._defineVar(
            SPARSECV_PYTHON,
            "",
            description="Python >= 3.10 from which the environment of the engine is made. Looked for if empty.",
            var_type=VarTypes.PATH,
        )
        cls._defineVar(
            SPARSECV_CUDA,
            "auto",
            description="CUDA generation that the engine is installed for: auto (by the driver), 12 (Volta to "
            "Blackwell), 13, or none.",
            var_type=VarTypes.STRING,
        )

    @classmethod
    def defineBinaries(cls, env):
        """Offer the engine's environment to ``scipion installb``: a virtual environment, made without conda."""
        done = f"{PACKAGE}.installed"
        commands = [(f"{cls._getInstallCommand()} && touch {done}", done)]
        env.addPackage(PACKAGE, version=__version__, tar="void.tgz", commands=commands, default=True)

    @classmethod
    def _getInstallCommand(cls):
        """Return the shell command that makes the environment in the current folder."""
        words = [sys.executable, "-m", "sparsecv.environment", "."]
        cuda = CUDA_EXTRAS.get(cls._cudaGeneration(cls.getVar(SPARSECV_CUDA), driver_version()), "")
        words += ["--extras", f"engine,{cuda}" if cuda else "engine"]
        checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if os.path.exists(os.path.join(checkout, "setup.py")):
            words += ["--source", checkout]
        if cls.getVar(SPARSECV_PYTHON):
            words += ["--python", cls.getVar(SPARSECV_PYTHON)]
        return " ".join(shlex.quote(word) for word in words)

    @staticmethod
    def _cudaGeneration(asked, driver):
        """Return the key of ``CUDA_EXTRAS``: what was asked for, or what suits a driver's version (0: none is seen).

        CUDA 12 serves every card from Volta to Blackwell and every driver from 525 on. A machine without a driver gets
        it, too: it may be the head of a cluster whose nodes have cards.
        """
        if asked != "auto":
            return asked
        return "none" if 0 < driver < OLDEST_DRIVER else "12"

    @classmethod
    def getEnviron(cls):
        """Return the environment for the engine: Scipion's, without what belongs to Scipion's own Python."""
        environ = Environ(os.environ)
        for name in FOREIGN_VARIABLES:
            environ.pop(name, None)
        environ["PYTHONNOUSERSITE"] = "1"
        return environ

    @classmethod
    def getProgram(cls):
        """Return the start of the command line that runs the engine."""
        activation = cls.getVar(SPARSECV_ENV_ACTIVATION)
        if activation:
            hook = cls.getCondaActivationCmd() if activation.startswith("conda ") else ""
            return f"{hook or ''} {activation} && {PACKAGE}".strip()
        return shlex.quote(cls.getHome("bin", PACKAGE))

    @classmethod
    def validateInstallation(cls):
        """Return what is wrong with the installation of the engine, in words for the form; empty if nothing is."""
        if cls.getVar(SPARSECV_ENV_ACTIVATION):
            return []
        program = cls.getHome("bin", PACKAGE)
        if shutil.which(program):
            return []
        return [
            f"The sparsecv engine is not installed: there is no program {program}.",
            f"Install it with 'scipion3 installb {PACKAGE}', or set {SPARSECV_HOME} or {SPARSECV_ENV_ACTIVATION}.",
        ]
