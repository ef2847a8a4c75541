# SPDX-License-Identifier: GPL-3.0-or-later
"""Which resolution two half maps may claim, given what their refinements had in common.

Halves that start from one map are independent only beyond its resolution. Even pure noise comes out aligned to that map
and correlates up to it, and a little further: images are compared inside a circle, which ties each Fourier coefficient
to its neighbours. A coefficient s shells beyond the last common one takes over the part 2 J1(x) / x of its neighbour's
alignment, x = pi s D / L for a circle of diameter D in a box of length L: less than 0.1 from s = 2 L / D on, less than
0.03 from 4 L / D on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsecv.engine.validate.fsc import Resolution

LEAK = 5.75  # s D / L up to which common alignment is felt; measured on noise: the last FSC above 0.143 was at 5.4


@dataclass(frozen=True)
class Common:
    """What the halves of a refinement shared.

    Attributes
    ----------
    resolution
        Of the map that both started from, or up to which they were averaged, A; the finer of the two.
    diameter
        Of the circle inside which images were compared, A.
    """

    resolution: float
    diameter: float

    @property
    def reach(self) -> float:
        """Resolution in A beyond which correlation of the halves cannot come from what they shared."""
        return 1 / (1 / self.resolution + LEAK / self.diameter)

    def is_exceeded_by(self, found: Resolution) -> bool:
        """Whether a resolution is finer than what noise could have reached."""
        return found.angstrom < self.reach

    def explains(self, found: Resolution) -> bool:
        """Whether noise could have reached a resolution that is finer than the common one."""
        return self.reach <= found.angstrom < self.resolution

    def claim(self, found: Resolution, length: float) -> Resolution:
        """The resolution found, or the common one where noise could have reached it; ``length``: of the box, A."""
        if not self.explains(found):
            return found
        return replace(found, angstrom=self.resolution, crossed=True, shell=length / self.resolution, is_shared=True)
