# SPDX-License-Identifier: GPL-3.0-or-later
"""Protein folds as traces of C-alpha positions, and atoms dressed onto them.

A trace is an array (n, 3) in A. Helices have 1.5 A of rise and 100 degrees of turn per residue on a radius of 2.3 A,
right-handed; strands have 3.4 A per residue, pleated; loops are smooth curves with 3.8 A between residues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sparsecv.engine.simulate.potential import Atoms

Trace = NDArray[np.float64]

# Side-chain atoms from C-beta outwards, and the shape that they take: a chain, or a ring of pairs.
SIDE_CHAINS = {
    "GLY": "", "ALA": "C", "SER": "CO", "CYS": "CS", "VAL": "CCC", "THR": "COC", "PRO": "CCC", "LEU": "CCCC",
    "ILE": "CCCC", "MET": "CCSC", "ASN": "CCON", "ASP": "CCOO", "GLN": "CCCON", "GLU": "CCCOO", "LYS": "CCCCN",
    "ARG": "CCCNCNN", "HIS": "CCNCCN", "PHE": "CCCCCCC", "TYR": "CCCCCCCO", "TRP": "CCCCNCCCCC",
}
RINGS = frozenset({"HIS", "PHE", "TYR", "TRP"})
# Frequencies in per mille of residues in the membrane and in water.
MEMBRANE_MIX = {"LEU": 190, "ILE": 120, "VAL": 130, "PHE": 110, "ALA": 120, "GLY": 90, "MET": 40, "SER": 60, "THR": 50,
                "TRP": 30, "TYR": 40, "CYS": 20}
SOLUBLE_MIX = {"ALA": 80, "ARG": 60, "ASN": 45, "ASP": 60, "CYS": 15, "GLN": 45, "GLU": 75, "GLY": 60, "HIS": 25,
               "ILE": 55, "LEU": 90, "LYS": 70, "MET": 20, "PHE": 40, "PRO": 35, "SER": 65, "THR": 55, "TRP": 12,
               "TYR": 33, "VAL": 60}
ROTAMERS = 6  # tried for every side chain; the one with most room is taken


@dataclass(frozen=True)
class Segment:
    """A stretch of one secondary structure: its trace, and whether it lies in the membrane."""

    trace: Trace
    is_membrane: bool = False
    is_loop: bool = False


def perpendicular(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """A unit vector at right angles to ``axis``."""
    other = np.eye(3)[np.argmin(np.abs(axis))]
    normal = np.cross(axis, other)
    return normal / np.linalg.norm(normal)


def helix(centre: NDArray[np.float64], axis: NDArray[np.float64], residues: int, phase: float = 0.0) -> Trace:
    """Right-handed alpha helix about ``centre``, running along ``axis``; ``phase`` in radians."""
    axis = axis / np.linalg.norm(axis)
    u = perpendicular(axis)
    v = np.cross(axis, u)
    turn = phase + np.deg2rad(100) * np.arange(residues)
    rise = 1.5 * (np.arange(residues) - (residues - 1) / 2)
    return centre + 2.3 * (np.outer(np.cos(turn), u) + np.outer(np.sin(turn), v)) + np.outer(rise, axis)


def strand(centre: NDArray[np.float64], axis: NDArray[np.float64], normal: NDArray[np.float64], residues: int) -> Trace:
    """Beta strand about ``centre`` along ``axis``, pleated along the sheet's ``normal``."""
    axis, normal = axis / np.linalg.norm(axis), normal / np.linalg.norm(normal)
    rise = 3.4 * (np.arange(residues) - (residues - 1) / 2)
    return centre + np.outer(rise, axis) + 0.9 * np.outer((-1.0) ** np.arange(residues), normal)


def loop(first: NDArray[np.float64], last: NDArray[np.float64], bulge: NDArray[np.float64]) -> Trace:
    """Residues between two ends on a cubic curve that leaves them along ``bulge`` (a vector, A)."""
    t = np.linspace(0, 1, 200)[:, None]
    # Bezier curve with its two handles along the bulge.
    curve = (1 - t) ** 2 * (1 + 2 * t) * first + t**2 * (3 - 2 * t) * last + 3 * t * (1 - t) * bulge
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    residues = max(round(length[-1] / 3.6) - 1, 1)
    wanted = length[-1] * np.arange(1, residues + 1) / (residues + 1)
    return np.stack([np.interp(wanted, length, curve[:, axis]) for axis in range(3)], axis=1)


def connect(parts: list[Segment], rng: np.random.Generator) -> list[Segment]:
    """Join the parts of one chain by loops that bulge away from its middle."""
    middle = np.concatenate([part.trace for part in parts]).mean(axis=0)
    chain = [parts[0]]
    for part in parts[1:]:
        first, last = chain[-1].trace[-1], part.trace[0]
        outward = (first + last) / 2 - middle
        outward /= np.linalg.norm(outward)
        bulge = outward * rng.uniform(4, 9) + rng.normal(0, 1.5, 3)
        chain += [Segment(loop(first, last, bulge), is_loop=True), part]
    return chain


def dress(chains: list[list[Segment]], rng: np.random.Generator) -> Atoms:
    """Backbone, side chains and B factors for the traces of several chains.

    Parameters
    ----------
    chains
        The segments of every chain, in order.

    Returns
    -------
    Heavy atoms, where the traces lie.
    """
    rows: list[tuple[str, float, str, int, str]] = []
    positions: list[NDArray[np.float64]] = []
    residue_id = 0
    sites = []
    for number, segments in enumerate(chains):
        trace = np.concatenate([segment.trace for segment in segments])
        frames = _frames(trace)
        backbone = _backbone(trace, frames)
        labels = [segment for segment in segments for _ in segment.trace]
        for i, segment in enumerate(labels):
            mix = MEMBRANE_MIX if segment.is_membrane else SOLUBLE_MIX
            name = str(rng.choice(list(mix), p=np.array(list(mix.values())) / sum(mix.values())))
            b_factor = 60.0 if segment.is_loop else 10.0
            for element, position in zip("NCCO", backbone[i], strict=True):
                positions.append(position)
                rows.append((element, b_factor, name, residue_id, chr(65 + number)))
            sites.append((trace[i], frames[i], name, residue_id, chr(65 + number), b_factor))
            residue_id += 1
    side_positions, side_rows = _side_chains(np.array(positions), np.array([row[3] for row in rows]), sites, rng)
    elements, b_factors, residues, residue_ids, names = zip(*(rows + side_rows), strict=True)
    return Atoms(
        positions=np.concatenate([np.array(positions), side_positions]),
        elements=np.array(elements),
        b_factors=np.array(b_factors),
        occupancies=np.ones(len(elements)),
        residues=np.array(residues),
        residue_ids=np.array(residue_ids, dtype=np.int64),
        chains=np.array(names),
    )


def _frames(trace: Trace) -> NDArray[np.float64]:
    """Rows (outward, along, across) of every residue: outward is where the side chain points. Shape (n, 3, 3)."""
    padded = np.concatenate([[2 * trace[0] - trace[1]], trace, [2 * trace[-1] - trace[-2]]])
    along = padded[2:] - padded[:-2]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    outward = 2 * trace - padded[2:] - padded[:-2] + 1e-3 * np.stack([perpendicular(a) for a in along])
    outward -= np.sum(outward * along, axis=1, keepdims=True) * along
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    return np.stack([outward, along, np.cross(outward, along)], axis=1)


def _backbone(trace: Trace, frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """N, CA, C, O of every residue, shape (n, 4, 3), from the planes of the peptide bonds."""
    step = np.diff(trace, axis=0)
    across = frames[:-1, 2]
    carbon = trace[:-1] + 0.37 * step - 0.55 * across
    oxygen = carbon + 0.05 * step - 1.22 * across
    nitrogen = trace[:-1] + 0.63 * step + 0.55 * across
    first, last = trace[0] - 0.4 * step[0], trace[-1] + 0.4 * step[-1]
    nitrogen = np.concatenate([first[None], nitrogen])
    carbon = np.concatenate([carbon, last[None]])
    oxygen = np.concatenate([oxygen, (last - 1.22 * across[-1])[None]])
    return np.stack([nitrogen, trace, carbon, oxygen], axis=1)


def _side_chains(
    backbone: NDArray[np.float64], owners: NDArray[np.int64], sites: list[tuple], rng: np.random.Generator
) -> tuple[NDArray[np.float64], list[tuple[str, float, str, int, str]]]:
    tree = cKDTree(backbone)
    placed = np.empty((0, 3))
    rows: list[tuple[str, float, str, int, str]] = []
    for alpha, frame, name, residue_id, chain, b_factor in sites:
        elements = SIDE_CHAINS[name]
        if not elements:
            continue
        near = np.array(tree.query_ball_point(alpha, 12.0))
        near = backbone[near[owners[near] != residue_id]]
        neighbours = np.concatenate([near, placed[np.linalg.norm(placed - alpha, axis=1) < 14.0]])
        trials = [_rotamer(alpha, frame, len(elements), name in RINGS, rng) for _ in range(ROTAMERS)]
        room = [np.linalg.norm(trial[:, None] - neighbours[None], axis=2).min(initial=np.inf) for trial in trials]
        placed = np.concatenate([placed, trials[int(np.argmax(room))]])
        rows += [(element, b_factor + 8.0 * k, name, residue_id, chain) for k, element in enumerate(elements)]
    return placed, rows


def _rotamer(
    alpha: NDArray[np.float64], frame: NDArray[np.float64], atoms: int, is_ring: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Positions of ``atoms`` side-chain atoms: a zigzag along a random direction about the outward one, or a ring."""
    outward, along, across = frame
    beta = alpha + 1.53 * (0.75 * outward - 0.25 * along + 0.6 * across)
    axis = outward + rng.normal(0, 0.45) * along + rng.normal(0, 0.45) * across
    axis /= np.linalg.norm(axis)
    side = perpendicular(axis)
    angle = rng.uniform(0, 2 * np.pi)
    side = np.cos(angle) * side + np.sin(angle) * np.cross(axis, side)
    number = np.arange(atoms)
    if is_ring:
        steps = np.where(number < 2, number, 1 + number // 2)
        sideways = np.where(number < 2, 0.0, 1.2 * (-1.0) ** number)
        return beta + 1.25 * np.outer(steps, axis) + np.outer(sideways, side)
    return beta + 1.25 * np.outer(number, axis) + 0.85 * np.outer(number % 2, side)
