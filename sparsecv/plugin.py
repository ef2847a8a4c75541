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
    CONDA,
    CONDA_PYTHON,
    FOREIGN_VARIABLES,
    INSTALLS,
    PACKAGE,
    SPARSECV_CUDA,
    SPARSECV_ENV_ACTIVATION,
    SPARSECV_HOME,
    SPARSECV_INSTALL,
    SPARSECV_PYTHON,
    VENV,
)

CHECK_SECONDS = 60  # that a command may take to make the engine callable
CALLABLE = set()  # commands that were seen to: a form asks whenever it is opened


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
            SPARSECV_INSTALL,
            VENV,
            description="How the environment of the engine is made: venv (a plain virtual environment, the default) or "
            "conda (an environment of conda, which Scipion's CONDA_ACTIVATION_CMD makes callable).",
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
        """Offer the engine's environment to ``scipion installb``: a virtual environment, or one of conda.

        Nothing is run here, not even to look for a driver: Scipion calls this for every list that it shows.
        """
        way = cls._installs()
        # a file for each way: after a change of the variable the other environment is made
        done = f"{PACKAGE}-{CONDA}.installed" if way == CONDA else f"{PACKAGE}.installed"
        if way not in INSTALLS:
            command = f"echo {shlex.quote(cls._unknownInstall())} >&2 && false"
        else:
            command = cls._condaCommand() if way == CONDA else cls._venvCommand()
        needed = ["conda"] if way == CONDA and not cls.getCondaActivationCmd() else []
        env.addPackage(PACKAGE, version=__version__, tar="void.tgz", commands=[(f"{command} && touch {done}", done)],
                       neededProgs=needed, default=True)  # fmt: skip

    @classmethod
    def _installs(cls):
        """Return how the environment is made; a word that is not known is passed on, to be refused."""
        return (cls.getVar(SPARSECV_INSTALL) or VENV).strip().lower()

    @classmethod
    def getCondaName(cls):
        """Return the name of the engine's conda environment."""
        return f"{PACKAGE}-{__version__}"

    @classmethod
    def _venvCommand(cls):
        """Return the shell command that makes the environment in the current folder."""
        words = [sys.executable, "-m", "sparsecv.environment", ".", *cls._installOptions()]
        if cls.getVar(SPARSECV_PYTHON):
            words += ["--python", cls.getVar(SPARSECV_PYTHON)]
        return " ".join(shlex.quote(word) for word in words)

    @classmethod
    def _condaCommand(cls):
        """Return the shell command that makes the conda environment and installs the engine into it by pip."""
        name, hook = cls.getCondaName(), cls.getCondaActivationCmd() or ""
        # conda is a program in Python, too, so that it must not see the packages of Scipion's; the module of this
        # plugin is all that Scipion's own Python has to find
        install = " ".join(shlex.quote(word) for word in [sys.executable, "-m", "sparsecv.environment"])
        options = " ".join(shlex.quote(word) for word in ["--existing", *cls._installOptions()])
        return (f"unset {' '.join(FOREIGN_VARIABLES)}; {hook} conda create -y -n {name} -c conda-forge "
                f"python={CONDA_PYTHON} pip && conda activate {name} && PYTHONPATH={shlex.quote(cls._checkout())} "
                f'{install} "$CONDA_PREFIX" {options}')  # fmt: skip

    @classmethod
    def _installOptions(cls):
        """Return what the module that installs the engine is told in both ways."""
        words = ["--extras", "engine", "--cuda", cls.getVar(SPARSECV_CUDA) or "auto"]
        if os.path.exists(os.path.join(cls._checkout(), "setup.py")):
            words += ["--source", cls._checkout()]
        return words

    @staticmethod
    def _checkout():
        """Return the folder in which the package lies: a checkout, or where packages are installed."""
        return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    @classmethod
    def getEnviron(cls):
        """Return the environment for the engine: Scipion's, without what belongs to Scipion's own Python."""
        environ = Environ(os.environ)
        for name in FOREIGN_VARIABLES:
            environ.pop(name, None)
        environ["PYTHONNOUSERSITE"] = "1"
        return environ

    @classmethod
    def getActivation(cls):
        """Return the command that makes the engine callable, without ``&&``; empty where it has a folder."""
        activation = cls.getVar(SPARSECV_ENV_ACTIVATION)
        if not activation and cls._installs() == CONDA:
            activation = f"conda activate {cls.getCondaName()}"
        hook = (cls.getCondaActivationCmd() or "") if (activation or "").startswith("conda ") else ""
        return f"{hook} {activation or ''}".strip()

    @classmethod
    def getProgram(cls, variables=""):
        """Return the start of the command line that runs the engine.

        Parameters
        ----------
        variables : str
            Assignments for the engine, ``NAME=value``: before its own name, as before an activation they would hold
            for that only.
        """
        activation = cls.getActivation()
        program = PACKAGE if activation else shlex.quote(cls.getHome("bin", PACKAGE))
        return " && ".join(filter(None, [activation, f"{variables} {program}".strip()]))

    @classmethod
    def validateInstallation(cls):
        """Return what is wrong with the installation of the engine, in words for the form; empty if nothing is."""
        if cls._installs() not in INSTALLS:
            return [cls._unknownInstall()]
        activation = cls.getActivation()
        if activation:
            return cls._validateActivation(activation)
        program = cls.getHome("bin", PACKAGE)
        if shutil.which(program):
            return []
        return [
            f"The sparsecv engine is not installed: there is no program {program}.",
            f"Install it with 'scipion3 installb {PACKAGE}', or set {SPARSECV_HOME} or {SPARSECV_ENV_ACTIVATION}.",
        ]

    @classmethod
    def _validateActivation(cls, activation):
        """Return what is wrong with a command that should make the engine callable."""
        if activation in CALLABLE:
            return []
        try:
            done = subprocess.run(f"{activation} && command -v {PACKAGE}", shell=True, env=cls.getEnviron(),
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                  timeout=CHECK_SECONDS)  # fmt: skip
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            if done.returncode == 0:
                CALLABLE.add(activation)
                return []
        except subprocess.TimeoutExpired:
            said = [f"it did not end within {CHECK_SECONDS} s"]
        found = [f"The sparsecv engine cannot be called after '{activation}'" + (f": {said[-1]}" if said else ".")]
        if cls.getVar(SPARSECV_ENV_ACTIVATION):
            return [*found, f"Correct {SPARSECV_ENV_ACTIVATION} in scipion.conf, or leave it empty."]
        return [
            *found,
            f"Install it with 'scipion3 installb {PACKAGE}' ({SPARSECV_INSTALL} is {CONDA}), and see that "
            f"CONDA_ACTIVATION_CMD in scipion.conf makes conda callable; or set {SPARSECV_INSTALL} to {VENV}.",
        ]

    @classmethod
    def _unknownInstall(cls):
        return f"{SPARSECV_INSTALL} must be one of {', '.join(INSTALLS)}, and is {cls.getVar(SPARSECV_INSTALL)!r}."
