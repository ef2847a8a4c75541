# SPDX-License-Identifier: GPL-3.0-or-later
"""A Scipion without its launcher: variables that have to stand before pyworkflow is imported, and the plugins."""

import os
import sys
import tempfile

import pytest

HOSTS = "[localhost]\nPARALLEL_COMMAND = mpirun -np %_(JOB_NODES)d %_(COMMAND)s\n"
CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _prepare():
    home = tempfile.mkdtemp(prefix="sparsecv-scipion-")
    hosts = os.path.join(home, "hosts.conf")
    with open(hosts, "w") as out:
        out.write(HOSTS)
    settings = {
        "SCIPION_HOME": home, "SCIPION_USER_DATA": os.path.join(home, "data"), "SCIPION_DOMAIN": "pwem",
        "SCIPION_HOSTS": hosts, "SCIPION_PYTHON": sys.executable, "SCIPION_NOTIFY": "False",
        "MPLBACKEND": "Agg",
        "SCIPION_TEST_NOSYNC": "True", "SCIPION_PRIORITY_PACKAGE_LIST": "pwem tomo pwchem",
        "SCIPION_TESTS": os.path.join(home, "tests"), "SCIPION_TESTS_OUTPUT": os.path.join(home, "output"),
    }  # fmt: skip
    for name, value in settings.items():
        if "PYTEST_XDIST_WORKER" in os.environ:  # whose first process has set them, for itself
            os.environ[name] = value
        os.environ.setdefault(name, value)
    os.environ.setdefault("SPARSECV_HOME", os.path.join(CHECKOUT, ".venv"))
    os.makedirs(os.environ["SCIPION_USER_DATA"], exist_ok=True)


_prepare()


@pytest.fixture(scope="session", autouse=True)
def plugins():
    """Discover the plugins once."""
    import pyworkflow as pw

    return pw.Config.getDomain().getPlugins()
