# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes, *ranks*, that share one refinement: on the cores of a machine, one for each GPU, on many nodes.

``comm.py`` says what ranks do together and does it for a single process; ``mpi.py`` does it by MPI; ``launch.py`` finds
out whether there are several; ``hub.py`` and ``watch.py`` end all of them when one dies.
"""

from sparsecv.engine.ranks.comm import ALONE as ALONE
from sparsecv.engine.ranks.comm import Comm as Comm
from sparsecv.engine.ranks.comm import Shares as Shares
