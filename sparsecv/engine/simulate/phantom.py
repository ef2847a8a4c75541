# SPDX-License-Identifier: GPL-3.0-or-later
"""A membrane protein that is built by rules, so that no third-party model is needed.

About 90 kDa: a bundle of seven helices across the membrane (normal along z), a beta sandwich outside the cell (+z), and
inside it a three-layer alpha/beta domain and a curved solenoid of helix pairs. No two domains are alike and none lies
on the axis, so the particle has no symmetry or near-symmetry, and its hand is plain at 8 A.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gemmi import Element
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from sparsecv.engine.physics.symmetry import parse_symmetry, symmetry_matrices
from sparsecv.engine.simulate.belt import Membrane, membrane_at
from sparsecv.engine.simulate.fold import Segment, connect, dress, helix, strand
from sparsecv.engine.simulate.potential import Atoms

CONTACT = 5.5  # A between C-alpha atoms of touching domains
FOLD_SEED, PLACEMENT_SEED = (1, 7), 6  # chosen by eye among a few: compact, all domains in view
PLACEMENTS = 150  # tried when a domain is docked
COPY_CONTACT = 4.5  # A between atoms of symmetric copies
X, Y, Z = np.eye(3)

Domain = list[list[Segment]]


def membrane_protein(seed: int = 1, symmetry: str = "C1") -> tuple[Atoms, Membrane | None]:
    """Build the phantom.

    Parameters
    ----------
    seed
        Changes the side chains; the fold and its loops are always the same.
    symmetry
        A point group. Copies stand around the axes as close as they touch. Cn is a ring of whole proteins with the
        membrane's normal along z; the other groups use the two domains of the cytosol only.

    Returns
    -------
    Atoms about the centre of mass (C1) or the symmetry centre, and the membrane that they span (None where the group is
    not Cn).

    Examples
    --------
    >>> atoms, membrane = membrane_protein()
    >>> 80 < atoms.mass_kda < 110
    True
    """
    rng = np.random.default_rng(FOLD_SEED)
    name, _ = parse_symmetry(symmetry)
    if name[0] == "C":
        body: Domain = [_helix_bundle(rng)]
        body = _dock(body, 0, _sandwich(rng), (0.8, -0.1, 1.0), spread=10.0)
        body = _dock(body, 0, _alpha_beta(rng), (-0.3, -0.2, -1.0), spread=10.0)
        body = _dock(body, 2, _solenoid(rng), (0.5, 1.0, -0.3), spread=16.0)
    else:
        body = [_alpha_beta(rng)]
        body = _dock(body, 0, _solenoid(rng), (0.0, 1.0, 0.0), spread=10.0)
    atoms = dress(body, np.random.default_rng([seed, 7]))
    centre = np.average(atoms.positions, axis=0, weights=[Element(symbol).weight for symbol in atoms.elements])
    atoms = atoms.moved(atoms.positions - centre)
    if name != "C1":
        atoms = assemble(atoms, name)
    if name[0] != "C":
        return atoms, None
    spanning = np.concatenate([segment.trace for segment in body[0] if segment.is_membrane])
    return atoms, membrane_at(atoms, Z, float(spanning[:, 2].mean() - centre[2]))


def assemble(atoms: Atoms, symmetry: str) -> Atoms:
    """Copies of the atoms under a point group, moved out from its axes until they only touch.

    Parameters
    ----------
    atoms
        One protomer, about its own centre.
    symmetry
        The point group.
    """
    group = symmetry_matrices(symmetry)
    # Cn: outwards along x keeps the membrane in the xy plane; else along a direction off all axes.
    direction = X if symmetry.upper().startswith("C") else np.array([0.66, 0.26, 0.70])
    direction = direction / np.linalg.norm(direction)
    low, high = 0.0, 2.0 * atoms.radius * len(group)
    while high - low > 0.25:
        middle = (low + high) / 2
        if _closest_copies(atoms.positions + middle * direction, group) > COPY_CONTACT:
            high = middle
        else:
            low = middle
    protomer = atoms.positions + high * direction
    copies = np.einsum("gij,nj->gni", group, protomer)
    count, size = len(group), len(atoms)
    repeated = {
        name: np.tile(getattr(atoms, name), count)
        for name in ("elements", "b_factors", "occupancies", "residues", "residue_ids", "chains")
    }
    number = np.repeat(np.arange(count), size)
    repeated["residue_ids"] = repeated["residue_ids"] + number * (atoms.residue_ids.max() + 1)
    repeated["chains"] = np.char.add(repeated["chains"], number.astype(str))
    return replace(atoms, positions=copies.reshape(-1, 3), **repeated)


def _closest_copies(protomer: NDArray[np.float64], group: NDArray[np.float64]) -> float:
    tree = cKDTree(protomer)
    return min(float(tree.query(protomer @ rotation.T)[0].min()) for rotation in group[1:])


def _dock(
    body: Domain, onto: int, domain: list[Segment], direction: tuple[float, ...], spread: float
) -> Domain:
    """Push a domain towards one domain of the body from outside, in the placement that buries most of it and stands
    out least.

    Placements differ by turns up to some 70 degrees and by sideways shifts up to ``spread`` (A); the same ones are
    tried for every seed.
    """
    rng = np.random.default_rng(PLACEMENT_SEED)
    tree = cKDTree(np.concatenate([segment.trace for chain in body for segment in chain]))
    aim = np.concatenate([segment.trace for segment in body[onto]]).mean(axis=0)
    trace = np.concatenate([segment.trace for segment in domain])
    outward = np.array(direction) / np.linalg.norm(direction)
    best: tuple[float, NDArray[np.float64], NDArray[np.float64]] = (-np.inf, np.eye(3), np.zeros(3))
    for _ in range(PLACEMENTS):
        turn = Rotation.from_rotvec(rng.uniform(-0.7, 0.7, 3)).as_matrix()
        sideways = rng.uniform(-spread, spread, 3)
        sideways -= (sideways @ outward) * outward
        near, far = 0.0, 150.0
        turned = trace @ turn.T + aim + sideways
        while far - near > 0.3:  # touching is the end of the free way in, which starts at 150 A
            middle = (near + far) / 2
            is_free = tree.query(turned + middle * outward)[0].min() > CONTACT
            near, far = (near, middle) if is_free else (middle, far)
        contacts = np.sum(tree.query(turned + far * outward)[0] < 11.0)
        compactness = float(contacts - np.ptp((turned + far * outward) @ outward))
        if compactness > best[0]:
            best = (compactness, turn, aim + sideways + far * outward)
    _, turn, place = best
    return [*body, [replace(segment, trace=segment.trace @ turn.T + place) for segment in domain]]


def _helix_bundle(rng: np.random.Generator) -> list[Segment]:
    """Seven helices, one of them in the middle, tilted and of different lengths, alternating up and down."""
    places = [(-10.2, -1.0), (-5.4, -9.6), (4.6, -9.8), (0.2, -0.4), (9.9, 0.6), (6.4, 9.8), (-3.6, 9.4)]
    lengths = [28, 26, 30, 25, 32, 29, 26]
    tilts = [(14, 60), (9, 200), (20, 330), (6, 120), (12, 250), (17, 20), (10, 160)]  # degrees: tilt, its azimuth
    heights = [1.0, -1.0, -2.0, 0.0, -4.0, -3.0, 1.0]
    parts = []
    for i, ((x, y), residues, (tilt, azimuth), z) in enumerate(zip(places, lengths, tilts, heights, strict=True)):
        lean = Rotation.from_euler("ZYZ", [azimuth, tilt + rng.normal(0, 1), -azimuth], degrees=True).as_matrix() @ Z
        centre = np.array([x, y, z]) + rng.normal(0, 0.4, 3)
        axis = lean * (1 if i % 2 else -1)
        parts.append(Segment(helix(centre, axis, residues, rng.uniform(0, 2 * np.pi)), is_membrane=True))
    amphipathic = helix(np.array([22.0, 3.0, -21.0]), np.array([0.5, 1.0, 0.1]), 14)
    return connect([*parts, Segment(amphipathic)], rng)


def _sandwich(rng: np.random.Generator) -> list[Segment]:
    """Two twisted beta sheets of five and four strands, face to face, leaning against a short helix."""
    parts = []
    for sheet, (strands, offset) in enumerate(((5, -5.2), (4, 5.2))):
        for j in range(strands):
            across = 4.8 * (j - (strands - 1) / 2)
            axis = Rotation.from_rotvec(np.deg2rad(-2.6 * across - 32 * sheet) * X).as_matrix() @ Z
            centre = np.array([offset, across, rng.normal(0, 0.5)])
            parts.append(Segment(strand(centre, axis * (-1) ** j, X, 9 + (j + sheet) % 3)))
    parts.append(Segment(helix(np.array([15.5, 2.0, -2.0]), np.array([0.1, 0.7, 1.0]), 15)))
    return _turned(connect(parts, rng), 35.0, 62.0)


def _alpha_beta(rng: np.random.Generator) -> list[Segment]:
    """Six parallel strands in a twisted sheet with three helices on each face, joined in turn."""
    parts = []
    for j, place in enumerate((2, 1, 0, 3, 4, 5)):
        across = 4.8 * (place - 2.5)
        twist = Rotation.from_rotvec(np.deg2rad(-4.2 * across) * X).as_matrix()
        centre = np.array([0.0, across, rng.normal(0, 0.5)])
        parts.append(Segment(strand(centre, twist @ Z, X, 6 + j % 2)))
        face = 1 if j % 2 else -1
        lean = twist @ Rotation.from_rotvec(np.deg2rad(-38 * face) * X).as_matrix() @ Z
        row = (-10.0, 0.0, 10.0)[j // 2] if face > 0 else (9.0, -1.0, -11.0)[j // 2]
        place_of_helix = np.array([10.2 * face, row, rng.normal(0, 1.0)])
        parts.append(Segment(helix(place_of_helix, -lean, 15 + 2 * (j % 3), rng.uniform(0, 2 * np.pi))))
    return _turned(connect(parts, rng), -20.0, 70.0)


def _solenoid(rng: np.random.Generator) -> list[Segment]:
    """Seven pairs of antiparallel helices stacked into a curved, right-handed rod."""
    parts = []
    for j in range(7):
        angle = np.deg2rad(16.0) * (j - 3)
        twist = np.deg2rad(9.0) * (j - 3)
        frame = (Rotation.from_rotvec(angle * Z) * Rotation.from_rotvec(twist * X)).as_matrix()
        arc = np.array([38 * (np.cos(angle) - 1), 38 * np.sin(angle), 1.6 * (j - 3)])
        for layer, direction in ((0, 1), (1, -1)):
            centre = arc + frame @ np.array([4.9 if layer == 0 else -4.9, rng.normal(0, 0.3), 0.0])
            axis = frame @ np.array([0.15 * direction, 0.2, 1.0 * direction])
            parts.append(Segment(helix(centre, axis, 15 + (j + layer) % 4, rng.uniform(0, 2 * np.pi))))
    return _turned(connect(parts, rng), 55.0, 15.0)


def _turned(domain: list[Segment], azimuth: float, tilt: float) -> list[Segment]:
    """The domain about its own centre, turned by fixed angles in degrees."""
    middle = np.concatenate([segment.trace for segment in domain]).mean(axis=0)
    rotation = Rotation.from_euler("ZY", [azimuth, tilt], degrees=True).as_matrix()
    return [replace(segment, trace=(segment.trace - middle) @ rotation.T) for segment in domain]
