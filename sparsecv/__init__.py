# SPDX-License-Identifier: GPL-3.0-or-later
"""sparsecv: single-particle cryo-EM refinement with cross-validated priors.

The package has two wings that share this file and nothing else: the engine (``sparsecv.engine``, ``sparsecv.kernels``,
``sparsecv.cli``, Python 3.10 and later) and the Scipion plugin (the other modules, Python 3.8 and later). Nothing is
imported here, so that each wing loads without the packages of the other; Scipion finds ``sparsecv.Plugin`` by the
module-level ``__getattr__`` of PEP 562.
"""

__version__ = "0.1.0"

_logo = "sparsecv_logo.png"
_references = ["Luo2019", "Punjani2020", "Scheres2012"]


def __getattr__(name):
    if name == "Plugin":
        from sparsecv.plugin import Plugin

        return Plugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
