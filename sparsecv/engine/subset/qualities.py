# SPDX-License-Identifier: GPL-3.0-or-later
"""What particles can be judged by: columns, what they mean, and how particles of different groups are compared.

Log evidence, posterior and spread depend on how much signal an image holds: on its noise, its defocus, its dose. They
tell particles apart that were recorded alike, and are therefore taken relative to the median of those of the optics
group that have a like defocus, in robust standard deviations, each half set by itself. Within whole optics groups the
worst tenth would be that of the lowest defocus, which has the most of high resolution.

    fit = min(z of the log evidence, 2 - |z of the norm|)

is low where the map explains the image hardly better than noise alone does (no particle, another one, one displaced),
or where the image has much more or less power than the others (ice, carbon edges, aggregates): a norm within
``USUAL_NORM`` standard deviations says nothing against a particle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.checks import floats_or
from sparsecv.engine.io.star import StarTable

EVIDENCE, NORM, DEFOCUS_U, DEFOCUS_V = "sparsecvLogEvidence", "rlnNormCorrection", "rlnDefocusU", "rlnDefocusV"
FIT = "fit"
USUAL_NORM = 2.0  # robust standard deviations
FEWEST = 20  # particles of a group in a half set whose median and width are worth something
LIKE, MOST_CLASSES = 100, 20  # particles of a class of defocus at least, classes of an optics group at most
LARGEST_VALUE = 1e100  # differences and their ratios stay finite
TO_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


@dataclass(frozen=True)
class Quality:
    """One thing to judge particles by.

    Attributes
    ----------
    columns
        That it is made of.
    words
        What it is, with its unit, for axes and reports.
    prefer
        ``"high"``, ``"low"`` or ``"middle"``: the best values; None where none are.
    relative_to
        ``"none"``, ``"optics"``, ``"defocus"`` or ``"micrograph"``: what it is compared within by default.
    """

    columns: tuple[str, ...]
    words: str
    prefer: str | None
    relative_to: str = "defocus"


QUALITIES: Mapping[str, Quality] = {
    FIT: Quality((EVIDENCE, NORM), "fit: log evidence and norm", "high"),
    "evidence": Quality((EVIDENCE,), "log evidence of a particle over noise alone", "high"),
    "probability": Quality(("rlnMaxValueProbDistribution",), "largest probability of one pose", "high"),
    "samples": Quality(("rlnNrOfSignificantSamples",), "number of significant poses", "low"),
    "spread": Quality(("sparsecvPoseSpread",), "spread of the poses (degrees)", "low"),
    "norm": Quality((NORM,), "norm", "middle"),
    "scale": Quality(("rlnGroupScaleCorrection",), "scale of the micrograph or group", "high"),
    "likelihood": Quality(("rlnLogLikeliContribution",), "log-likelihood with the image's own power", "high"),
    "defocus": Quality((DEFOCUS_U, DEFOCUS_V), "mean defocus (A)", None, "none"),
    "astigmatism": Quality((DEFOCUS_U, DEFOCUS_V), "defocus U - V (A)", "low", "none"),
    "ctf-fit": Quality(("rlnCtfFigureOfMerit",), "figure of merit of the CTF", "high", "none"),
    "ctf-resolution": Quality(("rlnCtfMaxResolution",), "resolution to which the CTF fits (A)", "low", "none"),
}
_REMEDIES = {
    EVIDENCE: "give run_data.star of sparsecv refine, or judge by what RELION writes, with --by probability",
    "sparsecvPoseSpread": "give run_data.star of sparsecv refine, or judge with --by samples",
    "rlnGroupScaleCorrection": "give run_data.star of sparsecv refine",
}


def quality_of(name: str, table: StarTable) -> Quality:
    """The quality of a name, or of a column, which is taken as it stands.

    Raises
    ------
    InputError
        Neither, or a column that the file does not have.
    """
    if name in QUALITIES:
        found = QUALITIES[name]
    elif name in table:
        known = {one.columns[0]: one.prefer for one in QUALITIES.values() if len(one.columns) == 1}
        found = Quality((name,), name, known.get(name), "none")
    else:
        raise InputError("neither a quality nor a column", file=table.path, item="--by", value=name,
                         rule=f"one of {', '.join(QUALITIES)}, or a column of the file: {', '.join(table.columns)}")
    for column in found.columns:
        if column not in table and not (column == DEFOCUS_V and DEFOCUS_U in table):
            raise InputError(f"column {column} is missing", file=table.path, item=f"data_{table.name}, --by {name}",
                             rule="particles are judged by what their file says of them",
                             remedy=_REMEDIES.get(column, "choose another quality with --by"))
    return found


def values_of(
    name: str, quality: Quality, table: StarTable, halves: NDArray[np.int8], group: NDArray[np.integer[Any]] | None
) -> NDArray[np.float64]:
    """The value of each particle, (n,), by which ``--least`` and ``--most`` go.

    Parameters
    ----------
    halves
        (n,) half sets, which are judged each by itself.
    group
        (n,) what values are relative to; None: they are taken as they stand.
    """
    columns = [floats_or(table, column if column in table else DEFOCUS_U, 0.0, LARGEST_VALUE, "at most 1e100")
               for column in quality.columns]  # fmt: skip
    if name == FIT:
        evidence, norm = (standardised(values, halves, group) for values in columns)
        return np.minimum(evidence, USUAL_NORM - np.abs(norm))
    values = columns[0]
    if name == "defocus":
        values = (columns[0] + columns[1]) / 2
    elif name == "astigmatism":
        values = np.abs(columns[0] - columns[1])
    return values if group is None else standardised(values, halves, group)


def standardised(
    values: NDArray[np.float64], halves: NDArray[np.int8], group: NDArray[np.integer[Any]] | None
) -> NDArray[np.float64]:
    """Distance from the median of the particle's group in its half set, in robust standard deviations, (n,).

    A group of fewer than ``FEWEST`` particles in a half set is compared with that half set; so are all with None.
    """
    found = np.empty(len(values))
    for half in np.unique(halves).tolist():
        own = np.flatnonzero(halves == half)
        found[own] = _distances(values[own])
        if group is None:
            continue
        for members in _by_group(own, group[own]):
            if len(members) >= FEWEST:
                found[members] = _distances(values[members])
    return found


def of_like_defocus(
    group: NDArray[np.integer[Any]], halves: NDArray[np.int8], defocus: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Groups cut into classes of like defocus, of equal size in each half set by itself, (n,)."""
    found = np.zeros(len(group), dtype=np.int64)
    for half in np.unique(halves).tolist():
        own = np.flatnonzero(halves == half)
        for members in _by_group(own, group[own]):
            classes = max(1, min(MOST_CLASSES, len(members) // LIKE))
            ordered = members[np.argsort(defocus[members], kind="stable")]
            found[ordered] = group[ordered] * MOST_CLASSES + np.arange(len(members)) * classes // len(members)
    return found


def _by_group(rows: NDArray[np.int64], group: NDArray[np.integer[Any]]) -> list[NDArray[np.int64]]:
    """Rows of each group."""
    order = np.argsort(group, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(group[order])) + 1)


def _distances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = np.median(values)
    width = TO_SIGMA * np.median(np.abs(values - middle)) or values.std()  # more than half may be alike
    return (values - middle) / width if width else np.zeros(len(values))


def goodness(values: NDArray[np.float64], prefer: str, halves: NDArray[np.int8]) -> NDArray[np.float64]:
    """Higher is better, (n,); what is in the middle is told from the median of each half set."""
    if prefer == "middle":
        return -np.abs(standardised(values, halves, None))
    return values if prefer == "high" else -values
