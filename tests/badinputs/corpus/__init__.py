# SPDX-License-Identifier: GPL-3.0-or-later
"""Every input that is wrong, odd or hostile: how it is made, the command that gets it, and what must happen.

A case changes a copy of :class:`inputs.Inputs` and returns a command line. What must happen is one of

``REFUSED``   status 2 and one line that names the file, holds the words of the case, a rule and a remedy; nothing has
              been iterated
``ASIDE``     status 0, and ``rejected.star`` has the row with the words as its reason
``ACCEPTED``  status 0, maps and numbers finite, and the words, if any, among what was said

and in all of them no file appears, or changes, outside of the output folder. Each module has the cases that feed one
kind of thing; what a case does wrong is its ``kind``.
"""

from __future__ import annotations

from corpus import archives, cs, images, maps, models, optics, options, runs, star, subsets
from corpus.case import Case

MODULES = (images, star, subsets, cs, options, optics, maps, models, runs, archives)
CASES: list[Case] = [case for module in MODULES for case in module.CASES]
