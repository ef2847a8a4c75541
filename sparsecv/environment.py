# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the engine's own Python environment: a checkout's ``.venv``, or the one beside Scipion's.

Needs nothing but the standard library and runs on Python 3.8, so that a bare system and Scipion's own Python can both
start it: ``python3 -m sparsecv.environment FOLDER --source . --extras engine``. A folder that already holds what is
asked for is left as it is.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sparsecv import __version__
from sparsecv.constants import CUDA_EXTRAS, DISTRIBUTION, FOREIGN_VARIABLES

OLDEST_DRIVER = 525  # that runs CUDA 12
OLDEST, NEWEST = (3, 10), (3, 13)
SCIPION_OLDEST, SCIPION_NEWEST = (3, 8), (3, 12)
CONSTRAINTS = Path(__file__).resolve().parent / "constraints.txt"
STAMP = "sparsecv-environment.json"


class EnvironmentProblem(Exception):
    """The environment cannot be made here; the message says what to install."""


def find_python(preferred=""):
    """Return the command of a Python that the engine runs on.

    Parameters
    ----------
    preferred : str
        The only command to try, if not empty.

    Raises
    ------
    EnvironmentProblem
        If no Python of at least ``OLDEST`` is found. One up to ``NEWEST``, for which the constraints are known to have
        wheels, is taken before a newer one.
    """
    names = [preferred] if preferred else [sys.executable, "python3"]
    if not preferred:
        names += [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    newer = None
    for name in names:
        version = _version_of(name)
        if version is None or version < OLDEST:
            continue
        if version <= NEWEST:
            return name
        newer = newer or name
    if newer:
        return newer
    raise EnvironmentProblem(
        f"no Python >= {OLDEST[0]}.{OLDEST[1]} found (tried {', '.join(names)}); "
        "remedy: install one, or name it with --python or SPARSECV_PYTHON"
    )


def _version_of(python):
    """Return (major, minor) of a Python command, or None if it does not run."""
    try:
        program = "import sys; print(*sys.version_info[:2])"
        text = subprocess.check_output([python, "-c", program], stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in text.split())


def make_environment(folder, python):
    """Make an empty virtual environment with pip in it, also where the system has split ``ensurepip`` off (Debian)."""
    if _succeeds([python, "-c", "import ensurepip"]):
        _run([python, "-m", "venv", "--clear", str(folder)])
        return
    _run([python, "-m", "venv", "--clear", "--without-pip", str(folder)])
    inside = str(_python_in(folder))
    if _succeeds([python, "-m", "pip", "--python", inside, "--quiet", "install", "pip"]):
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel, bundle = _pip_from_debian(Path(scratch))
        has_own = "PIP_CERT" in os.environ or Path("/etc/ssl/certs/ca-certificates.crt").exists()
        variables = {} if has_own else {"PIP_CERT": str(bundle)}
        _run([inside, str(wheel / "pip"), "--quiet", "install", "pip"], **variables)


def _pip_from_debian(scratch):
    """Unpack Debian's signed pip wheel and certificates into a scratch folder, without installing either.

    Returns
    -------
    tuple of Path
        The wheel, and one file with the certificates that a bare system may lack.
    """
    remedy = "this Python has no ensurepip; remedy: sudo apt install python3-venv (or your system's equivalent)"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise EnvironmentProblem(remedy)
    download = ["apt-get", "-qq", "download", "python3-pip-whl", "ca-certificates"]
    if not _succeeds(download, cwd=scratch):
        # a container image comes without package lists, and only root may fetch them
        if not (_succeeds(["apt-get", "-qq", "update"]) and _succeeds(download, cwd=scratch)):
            raise EnvironmentProblem(remedy)
    for package in scratch.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(scratch / "system")])
    wheels = sorted((scratch / "system" / "usr" / "share" / "python-wheels").glob("pip-*.whl"))
    if not wheels:
        raise EnvironmentProblem(remedy)
    bundle = scratch / "certificates.pem"
    certificates = sorted((scratch / "system" / "usr" / "share" / "ca-certificates").rglob("*.crt"))
    bundle.write_text("\n".join(path.read_text(encoding="ascii") for path in certificates), encoding="ascii")
    return wheels[-1], bundle


def install(folder, extras, source=""):
    """Install the distribution with its extras into an environment, in the versions of the constraints.

    Parameters
    ----------
    folder : Path
        The environment.
    extras : iterable of str
        Extras of the distribution.
    source : str
        A checkout, installed in place; empty for the release of this version from the package index.
    """
    names = ",".join(sorted(extras))
    if source:
        what = ["--editable", f"{os.path.abspath(source)}[{names}]"]
    else:
        what = [f"{DISTRIBUTION}[{names}]=={__version__}"]
    pip = [str(_python_in(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # setuptools warns at length about every installation in place
    _run([*pip, "--constraint", str(CONSTRAINTS), *what], PYTHONWARNINGS="ignore")


def driver_version():
    """Return the major version of the NVIDIA driver, 0 where there is none."""
    try:
        said = subprocess.check_output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                       stderr=subprocess.DEVNULL, timeout=20)  # fmt: skip
        return int(said.decode("ascii", "replace").split(".")[0])
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def cuda_extras(asked, driver):
    """Return the extras for a key of ``CUDA_EXTRAS`` or "auto": what suits a driver's version (0: none is seen).

    CUDA 12 serves every card from Volta to Blackwell and every driver from 525 on. A machine without a driver gets it,
    too: it may be the head of a cluster whose nodes have cards.
    """
    if asked == "auto":
        asked = "none" if 0 < driver < OLDEST_DRIVER else "12"
    return {CUDA_EXTRAS[asked]} - {""}


def ensure(folder, extras, source="", python="", existing=False):
    """Make the environment, or bring it up to date, unless it is there already.

    Parameters
    ----------
    folder, extras, source, python
        As of :func:`install` and :func:`find_python`.
    existing : bool
        The environment was made by another program (conda): it is never made here.

    Returns
    -------
    bool
        True if something was done.

    Raises
    ------
    EnvironmentProblem
        If there is no Python that is new enough, or an existing environment has none with pip.
    """
    folder, extras = Path(folder), set(extras)
    digest = _digest(source)
    before = _read_stamp(folder)
    if before.get("digest") == digest and extras <= set(before.get("extras", ())):
        return False
    print(f"Setting up {folder} (a minute or two, once) ...", file=sys.stderr, flush=True)
    version = _version_of(str(_python_in(folder)))
    if existing and version and version < OLDEST:
        raise EnvironmentProblem(
            f"{folder} has Python {version[0]}.{version[1]}; remedy: make it with {OLDEST[0]}.{OLDEST[1]} or later"
        )
    if version and _succeeds([str(_python_in(folder)), "-m", "pip", "--version"]):
        extras |= set(before.get("extras", ()))
        (folder / STAMP).unlink(missing_ok=True)
    elif existing:
        raise EnvironmentProblem(f"{folder} has no Python with pip; remedy: make the environment anew")
    else:
        make_environment(folder, find_python(python))
    install(folder, extras, source)
    (folder / STAMP).write_text(json.dumps({"digest": digest, "extras": sorted(extras)}) + "\n", encoding="ascii")
    return True


def ensure_scipion(folder, requirements, source, python=""):
    """Make an environment with Scipion and this plugin in place, for its tests, unless it is there already.

    Raises
    ------
    EnvironmentProblem
        If no Python is found that Scipion runs on; the message says what to install.
    """
    folder = Path(folder)
    with open(requirements, "rb") as text:
        digest = hashlib.sha256(text.read() + os.path.abspath(source).encode()).hexdigest()
    if _read_stamp(folder).get("digest") == digest:
        return
    print(f"Setting up Scipion in {folder} (a minute or two, once) ...", file=sys.stderr, flush=True)
    make_environment(folder, find_scipion_python(python))
    pip = [str(_python_in(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--requirement", str(requirements)])
    _run([*pip, "--no-deps", "--editable", os.path.abspath(source)], PYTHONWARNINGS="ignore")
    (folder / STAMP).write_text(json.dumps({"digest": digest}) + "\n", encoding="ascii")


def find_scipion_python(preferred=""):
    """Return the command of a Python that Scipion runs on: 3.8 to 3.12, with tkinter, which it imports everywhere."""
    names = [preferred] if preferred else [sys.executable, "python3"]
    if not preferred:
        names += [f"python3.{minor}" for minor in range(SCIPION_NEWEST[1], SCIPION_OLDEST[1] - 1, -1)]
    for name in names:
        version = _version_of(name)
        if version and SCIPION_OLDEST <= version <= SCIPION_NEWEST and _succeeds([name, "-c", "import tkinter"]):
            return name
    raise EnvironmentProblem(
        f"no Python 3.{SCIPION_OLDEST[1]} to 3.{SCIPION_NEWEST[1]} with tkinter found (tried {', '.join(names)}); "
        "remedy: sudo apt install python3-tk (or your system's equivalent)"
    )


def _digest(source):
    """Return a hash of everything that decides what is installed, apart from the extras."""
    parts = [__version__.encode(), os.path.abspath(source).encode() if source else b"", CONSTRAINTS.read_bytes()]
    if source:
        parts.append((Path(source) / "setup.py").read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _read_stamp(folder):
    """Return what an earlier run installed, an empty dictionary if there was none or it did not end."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}


def _python_in(folder):
    return Path(folder).absolute() / "bin" / "python"


def _clean_environ():
    """Return the variables of this process without those that would lead another Python to this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}


def _succeeds(command, cwd=None):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.call(command, cwd=cwd, env=_clean_environ(), **quiet) == 0
    except OSError:
        return False


def _run(command, **variables):
    code = subprocess.call(command, env={**_clean_environ(), **variables})
    if code:
        raise EnvironmentProblem(f"'{' '.join(command)}' ended with exit status {code}")


def main(arguments=None):
    """Command line of ``python3 -m sparsecv.environment``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sparsecv.environment", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="the environment to make")
    parser.add_argument("--extras", default="engine", help="comma-separated extras (default: engine)")
    parser.add_argument("--cuda", default="none", choices=["auto", *CUDA_EXTRAS],
                        help="CUDA generation to install CuPy for; auto: by the driver (default: none)")
    parser.add_argument("--existing", action="store_true",
                        help="the environment is there, made by conda: install into it only")
    parser.add_argument("--source", default="", help="checkout to install in place (default: the released version)")
    parser.add_argument("--scipion", metavar="FILE", default="",
                        help="instead of the engine, Scipion as in a requirements file, with the checkout in place")
    parser.add_argument("--python", default=os.environ.get("SPARSECV_PYTHON", ""), help="Python to make it from")
    options = parser.parse_args(arguments)
    try:
        if options.scipion:
            ensure_scipion(options.folder, options.scipion, options.source or ".", options.python)
            return 0
        extras = {name for name in options.extras.split(",") if name}
        extras |= cuda_extras(options.cuda, driver_version() if options.cuda == "auto" else 0)
        ensure(options.folder, extras, options.source, options.python, options.existing)
    except EnvironmentProblem as problem:
        print(f"sparsecv.environment: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
