# SPDX-License-Identifier: GPL-3.0-or-later
"""Detector MTF curves: read from STAR files, evaluated per coefficient of a map or an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.star import StarFile

FREQUENCY, VALUE = "rlnResolutionInversePixel", "rlnMtfValue"


@dataclass(frozen=True, eq=False)
class MtfCurve:
    """Modulation transfer function: cycles per detector pixel, ascending, and values in (0, 1]; each shape (n,)."""

    frequency: np.ndarray
    value: np.ndarray

    @classmethod
    def read(cls, path: str | Path) -> MtfCurve:
        """Read a RELION MTF STAR file (``rlnResolutionInversePixel``, ``rlnMtfValue``).

        Raises
        ------
        InputError
            If the columns are absent, frequencies do not ascend, or a value is not positive.
        """
        star = StarFile.read(path)
        tables = [star.table(name) for name in star.names]
        found = [table for table in tables if FREQUENCY in table and VALUE in table]
        if not found:
            raise InputError("no MTF curve", file=path, rule=f"columns {FREQUENCY} and {VALUE}",
                             remedy="take the detector's MTF file as RELION distributes it")
        return cls.checked(found[0].floats(FREQUENCY), found[0].floats(VALUE), path)

    @classmethod
    def checked(cls, frequency: np.ndarray, value: np.ndarray, path: str | Path | None = None) -> MtfCurve:
        """Build a curve from arrays, refusing what cannot be one."""
        if len(frequency) < 2 or not np.all(np.diff(frequency) > 0):
            raise InputError("MTF frequencies do not ascend", file=path, item=FREQUENCY, rule="at least two, ascending",
                             remedy="take the detector's MTF file as RELION distributes it")
        wrong = np.flatnonzero(~(value > 1e-10))
        if len(wrong):
            raise InputError("MTF value is not positive", file=path, item=f"{VALUE}, row {wrong[0] + 1}",
                             value=float(value[wrong[0]]), rule="> 0",
                             remedy="take the detector's MTF file as RELION distributes it")
        return cls(np.asarray(frequency, dtype=np.float64), np.asarray(value, dtype=np.float64))

    def on_shells(self, box: int, pixel_size: float, detector_pixel_size: float) -> np.ndarray:
        """MTF at each coefficient of a half transform.

        Parameters
        ----------
        box, pixel_size
            Of the map, pixels and A.
        detector_pixel_size
            Of the movie pixels to which the curve refers, A.

        Returns
        -------
        numpy.ndarray
            float32, shape (box, box, box // 2 + 1); 1 beyond Nyquist, where RELION leaves the map as it is too.
        """
        k2 = np.fft.fftfreq(box) ** 2
        radius = np.sqrt(k2[:, None, None] + k2[:, None] + np.fft.rfftfreq(box) ** 2)  # cycles per map pixel
        found = self.at(radius / pixel_size, detector_pixel_size)
        return np.where(radius < 0.5, found, 1.0).astype(np.float32)

    def at(self, frequency: np.ndarray, detector_pixel_size: float) -> np.ndarray:
        """MTF at frequencies in 1/A, float64; beyond the curve that of its end."""
        found: np.ndarray = np.interp(frequency * detector_pixel_size, self.frequency, self.value)
        return found


def curve_of(path: str | None) -> MtfCurve | None:
    """The curve in a file, read once; None where no file is named, or it is not there."""
    return _read_once(path) if path and Path(path).is_file() else None


_read_once = lru_cache(maxsize=64)(MtfCurve.read)
