# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of particles as RELION STAR files, and back: what the engine reads and writes.

Conventions: A is RELION's matrix of (rot, tilt, psi), which turns map coordinates into image coordinates, and s =
(rlnOriginXAngst, rlnOriginYAngst) / pixel size. Scipion's matrix of a projection-aligned particle is

    M[:3, :3] = A^T,    M[:3, 3] = A^T s                  (shifts in pixels of the set)

and cryoSPARC's pose is the rotation vector of A^T, its shift is s.
"""

import os
from collections import OrderedDict

import numpy as np
from pyworkflow.object import Float, Integer

from sparsecv.star import StarError, parse_star, read_star, star_lines, write_star

PARTICLES, OPTICS = "particles", "optics"
DECISIVE = ("rlnRandomSubset", "rlnOpticsGroup")  # in which all rows of an image have to agree
SAME_PIXEL = 1e-3  # relative difference that rounding may have made
MOST_LINKS = 20  # that are followed from one name of a stack to the next
UNWRITTEN = {"_rlnImageId", "_rlnImageName", "_rlnOpticsGroup", "_rlnRandomSubset"}
RECOVERED = ("rlnRandomSubset", "rlnOpticsGroup", "rlnOpticsGroupName", "rlnNormCorrection", "rlnGroupName",
             "rlnGroupNumber", "rlnMicrographName", "rlnCtfScalefactor", "rlnCtfBfactor", "rlnPhaseShift")  # fmt: skip

QUALITIES = ("sparsecvLogEvidence", "rlnNormCorrection", "rlnMaxValueProbDistribution", "rlnNrOfSignificantSamples",
             "sparsecvPoseSpread", "rlnGroupScaleCorrection", "rlnLogLikeliContribution")  # fmt: skip

COUNTS = ("rlnNrOfSignificantSamples",)

NO_HALF_SETS = ("The particles have no half sets in Scipion: they are drawn anew. If they were refined before, give "
                "the original STAR or .cs file, so that the halves stay independent.")  # fmt: skip
SAME_ALIGNMENT = "All particles have the same alignment, which is taken for none."


class ConversionError(Exception):
    """A set of particles that cannot be converted; the message is for the user."""


def euler_matrix(rot, tilt, psi):
    """Return A of angles in degrees, each (n,): shape (n, 3, 3)."""
    (ca, sa), (cb, sb), (cg, sg) = ((np.cos(t), np.sin(t)) for t in np.deg2rad([rot, tilt, psi]))
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def euler_angles(matrices):
    """Return rot, tilt, psi in degrees, each (n,), of matrices A (n, 3, 3); psi is 0 where only its sum is known."""
    a = np.asarray(matrices)
    tilt = np.arctan2(np.hypot(a[:, 2, 0], a[:, 2, 1]), a[:, 2, 2])
    is_pole = np.hypot(a[:, 2, 0], a[:, 2, 1]) < 1e-7
    rot = np.where(is_pole, np.arctan2(np.sign(a[:, 2, 2]) * a[:, 0, 1], np.sign(a[:, 2, 2]) * a[:, 0, 0]),
                   np.arctan2(a[:, 2, 1], a[:, 2, 0]))  # fmt: skip
    psi = np.where(is_pole, 0.0, np.arctan2(a[:, 1, 2], -a[:, 0, 2]))
    return tuple(np.rad2deg(angle) for angle in (rot, tilt, psi))


def to_scipion(rot, tilt, psi, x_angst, y_angst, pixel_size):
    """Return Scipion's matrices (n, 4, 4) of poses given as in a STAR file."""
    back = np.swapaxes(euler_matrix(rot, tilt, psi), 1, 2)
    shifts = np.stack([x_angst, y_angst, np.zeros_like(x_angst)], axis=1) / pixel_size
    matrices = np.tile(np.eye(4), (len(back), 1, 1))
    matrices[:, :3, :3] = back
    matrices[:, :3, 3] = np.einsum("nij,nj->ni", back, shifts)
    return matrices


def from_scipion(matrices, pixel_size):
    """Return rot, tilt, psi (degrees) and x, y (A), each (n,), of Scipion's matrices (n, 4, 4).

    Raises
    ------
    ConversionError
        If a matrix mirrors: no projection of the particle can look like that.
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    forward = np.swapaxes(matrices[:, :3, :3], 1, 2)
    if np.any(np.linalg.det(forward) < 0.5):
        bad = int(np.argmin(np.linalg.det(forward))) + 1
        raise ConversionError("the alignment of particle %d in the set mirrors it: no rotation does that" % bad)
    shifts = np.einsum("nij,nj->ni", forward, matrices[:, :3, 3]) * pixel_size
    return euler_angles(forward) + (shifts[:, 0], shifts[:, 1])


def rotation_vectors(matrices):
    """Return cryoSPARC's poses, the rotation vectors of A^T, of matrices A (n, 3, 3): shape (n, 3), radians."""
    back = np.swapaxes(np.asarray(matrices, dtype=np.float64), 1, 2)
    # by the quaternion whose largest part is found first: no angle is special
    m = [[back[:, i, j] for j in range(3)] for i in range(3)]
    squares = np.stack([
        1 + m[0][0] + m[1][1] + m[2][2], 1 + m[0][0] - m[1][1] - m[2][2],
        1 - m[0][0] + m[1][1] - m[2][2], 1 - m[0][0] - m[1][1] + m[2][2],
    ])  # fmt: skip
    products = np.array([
        [squares[0], m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]],
        [m[2][1] - m[1][2], squares[1], m[1][0] + m[0][1], m[0][2] + m[2][0]],
        [m[0][2] - m[2][0], m[1][0] + m[0][1], squares[2], m[2][1] + m[1][2]],
        [m[1][0] - m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2], squares[3]],
    ])  # fmt: skip
    best = np.argmax(squares, axis=0)
    q = products[best, :, np.arange(len(back))]
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    q *= np.where(q[:, :1] < 0, -1, 1)
    length = np.linalg.norm(q[:, 1:], axis=1)
    angle = 2 * np.arctan2(length, q[:, 0])
    factor = np.where(length > 1e-12, angle / np.maximum(length, 1e-12), 2.0)
    return q[:, 1:] * factor[:, None]


def matrices_of_vectors(vectors):
    """Return A (n, 3, 3) of cryoSPARC's poses (n, 3), radians: the inverse of :func:`rotation_vectors`."""
    vectors = np.asarray(vectors, dtype=np.float64)
    angle = np.linalg.norm(vectors, axis=1)
    axis = vectors / np.maximum(angle, 1e-300)[:, None]
    zero = np.zeros(len(vectors))
    x, y, z = axis.T
    cross = np.moveaxis(np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), -1, 0)
    sine, versine = np.sin(angle)[:, None, None], (1 - np.cos(angle))[:, None, None]
    back = np.eye(3) + sine * cross + versine * (cross @ cross)
    return np.swapaxes(back, 1, 2)


# ------------------------------------------------------------------------------------------------ Scipion to STAR file
def write_particles(particles, path, original=None, invert=False):
    """Write a set of particles as a RELION 3.1 STAR file.

    Parameters
    ----------
    particles : SetOfParticles
        With a CTF for each; poses are written where the set is projection-aligned.
    path : str
        File to write. Image names in it are absolute, rlnImageId is Scipion's id.
    original : str
        STAR or .cs file that the particles were imported from; gives back half sets, optics groups and other columns
        that Scipion's importers drop.
    invert : bool
        Write the contrast as inverted, as scale -1 of the CTF: for particles that are black.

    Returns
    -------
    list of str
        What a user must know: what was lost, or could not be recovered.

    Raises
    ------
    ConversionError
        Particles without CTF, that mirror, whose images are missing, or an original file that does not fit.
    """
    if not particles.hasCTF():
        raise ConversionError("the particles have no CTF: refinement needs one for each")
    rows, matrices = _rows_of(particles)
    pixel_size = particles.getSamplingRate()
    optics, said = _optics_of(particles), []
    if particles.hasAlignmentProj() and are_alike(matrices):
        said.append(SAME_ALIGNMENT)
    elif particles.hasAlignmentProj():
        for row, values in zip(rows, zip(*from_scipion(matrices, pixel_size))):
            row.update(zip(POSE, ("%.6f" % value for value in values)))
    if original:
        optics = _recover(rows, original, optics, said)
    said += _check_half_sets(rows)
    said += _check_optics(rows, optics, bool(original))
    if invert:
        for row in rows:
            row["rlnCtfScalefactor"] = "%.6f" % -float(row.get("rlnCtfScalefactor", 1))
    dim = particles.getDim()
    if dim is None:  # which Scipion finds out when it imports them
        raise ConversionError("the images of the particles cannot be read: there is no %s"
                              % rows[0]["rlnImageName"].partition("@")[2])  # fmt: skip
    # one box or pixel size for all is that of the images, which may have been cropped or scaled since
    has_boxes = len({group.get("rlnImageSize") for group in optics.values()}) > 1
    has_pixels = len({group.get("rlnImagePixelSize") for group in optics.values()}) > 1
    for group in optics.values():
        given = group.get("rlnImagePixelSize")
        if given is None or not (has_pixels or abs(float(given) / pixel_size - 1) < SAME_PIXEL):
            group["rlnImagePixelSize"] = "%.6f" % pixel_size
        group["rlnImageSize"] = group.get("rlnImageSize", str(dim[0])) if has_boxes else str(dim[0])
        group["rlnImageDimensionality"] = "2"
        if particles.isPhaseFlipped():
            group["rlnCtfDataArePhaseFlipped"] = "1"
    try:
        write_star(path, ((OPTICS, list(optics.values())), (PARTICLES, rows)))
    except StarError as error:
        raise ConversionError(str(error))
    return said


def matrix_of(particle):
    """Return Scipion's matrix (4, 4) of a particle, a copy; the identity where it has none."""
    transform = particle.getTransform()
    return np.eye(4) if transform is None else np.array(transform.getMatrix())


def are_alike(matrices):
    """Whether several alignments are all the same: a file without any, which the importer has filled up."""
    return len(matrices) > 1 and bool(np.all(np.asarray(matrices) == matrices[0]))


def _rows_of(particles):
    """Return one dictionary of STAR values for each particle, and their matrices (n, 4, 4)."""
    rows, matrices = [], []
    for particle in particles.iterItems():
        index, name = particle.getLocation()
        row = OrderedDict([
            ("rlnImageId", str(particle.getObjId())),
            ("rlnImageName", "%06d@%s" % (max(index, 1), os.path.abspath(name.split(":")[0]))),
        ])  # fmt: skip
        ctf = particle.getCTF()
        row["rlnDefocusU"], row["rlnDefocusV"] = "%.3f" % ctf.getDefocusU(), "%.3f" % ctf.getDefocusV()
        row["rlnDefocusAngle"] = "%.4f" % ctf.getDefocusAngle()
        if ctf.hasPhaseShift():
            row["rlnPhaseShift"] = "%.4f" % ctf.getPhaseShift()
        coordinate = particle.getCoordinate()
        if coordinate is not None:
            row["rlnCoordinateX"], row["rlnCoordinateY"] = ("%.2f" % value for value in coordinate.getPosition())
            if coordinate.getMicName():
                row["rlnMicrographName"] = coordinate.getMicName()
        if "rlnMicrographName" not in row and particle.getMicId():
            row["rlnMicrographName"] = "micrograph_%06d" % particle.getMicId()
        row["rlnOpticsGroup"] = str(particle.getAttributeValue("_rlnOpticsGroup", 1))
        subset = particle.getAttributeValue("_rlnRandomSubset", None)
        if subset is not None:
            row["rlnRandomSubset"] = str(subset)
        for label, value in particle.getAttributes():
            if label.startswith("_rln") and label not in UNWRITTEN and value.hasValue():
                row.setdefault(label[1:], str(value))
        rows.append(row)
        matrices.append(matrix_of(particle))
    _complete(rows)
    return rows, np.array(matrices)


def _complete(rows):
    """Take away columns that some rows lack: a STAR table has none that is empty."""
    partial = set().union(*(set(row) for row in rows)) - set.intersection(*(set(row) for row in rows)) if rows else ()
    for row in rows:
        for name in partial:
            row.pop(name, None)


def _optics_of(particles):
    """Return the optics table of a set by group number (text): as RELION's importer kept it, or of the acquisition."""
    acquisition = particles.getAcquisition()
    text = acquisition.opticsGroupInfo.get() if acquisition.opticsGroupInfo.hasValue() else ""
    if text:
        groups = OrderedDict()
        for row in next((rows for rows in parse_star(text.splitlines()).values() if rows), ()):
            groups[row["rlnOpticsGroup"]] = row
        if groups:
            return groups
    return OrderedDict([("1", OrderedDict([
        ("rlnOpticsGroup", "1"), ("rlnOpticsGroupName", "opticsGroup1"),
        ("rlnVoltage", "%.4f" % acquisition.getVoltage()),
        ("rlnSphericalAberration", "%.4f" % acquisition.getSphericalAberration()),
        ("rlnAmplitudeContrast", "%.4f" % acquisition.getAmplitudeContrast()),
    ]))])  # fmt: skip


def _check_half_sets(rows):
    subsets = [row.get("rlnRandomSubset") for row in rows]
    if all(subset in ("1", "2") for subset in subsets) and len(set(subsets)) == 2:
        return []
    for row in rows:
        row.pop("rlnRandomSubset", None)
    if any(subset in ("1", "2") for subset in subsets):
        return ["Half sets are given for some of the particles only, or all are in one: all are drawn anew."]
    return [NO_HALF_SETS]


def _check_optics(rows, optics, is_recovered):
    used = {row["rlnOpticsGroup"] for row in rows}
    missing = sorted(used - set(optics))
    if missing:
        raise ConversionError("particles are in optics groups that are not described: %s" % ", ".join(missing))
    if len(optics) > 1 and used == {"1"} and not is_recovered:
        return ["The import has dropped which of the %d optics groups each particle is in: all are taken to be in the "
                "first. Give the original STAR file to recover them." % len(optics)]  # fmt: skip
    return []


# -------------------------------------------------------------------------------------- what the importers have dropped
def image_key(name):
    """Return what an image is found again by: its number in the stack and the name of the stack without folders."""
    index, _, path = name.rpartition("@")
    base, suffix = os.path.splitext(os.path.basename(path.split(":")[0]))
    return int(index or 1), base if suffix in (".mrc", ".mrcs", ".st") else base + suffix


def _recover(rows, original, optics, said):
    """Fill rows with what the original file says; return the optics table to be used."""
    found, table = read_original(original)
    stacks = {}
    values = []
    for row in rows:
        index, _, stack = row["rlnImageName"].partition("@")
        if stack not in stacks:
            stacks[stack] = _names_behind(stack)
        values.append(_find(found, index, stacks[stack], original))
    missing = values.count(None)
    if missing == len(rows):
        raise ConversionError("none of the particles is in the original file %s" % original)
    if missing:
        raise ConversionError("%d of %d particles are not in the original file %s" % (missing, len(rows), original))
    for row, part in zip(rows, values):
        row.update(part)
    _complete(rows)
    if not any("rlnRandomSubset" in row for row in rows):
        said.append("The original file has no half sets.")
    return table or optics


def _names_behind(path):
    """Return the name of a file and those that its links lead to: importers link stacks under names of their own."""
    names = [path]
    while os.path.islink(names[-1]) and len(names) < MOST_LINKS:
        names.append(os.path.normpath(os.path.join(os.path.dirname(names[-1]), os.readlink(names[-1]))))
    return names


def _find(found, index, names, original):
    """Return what the original file says about an image of a stack with these names; None if it does not know it.

    Of several stacks with this name the one whose folders agree furthest is meant (``Extract/job007/Movies/a.mrcs``).
    """
    for name in names:
        places = found.get(image_key("%s@%s" % (index, name)), ())
        if len(places) < 2:
            if places:
                return places[0][1]
            continue
        folders = os.path.dirname(name).split(os.sep)[::-1]
        ranks = [_agreement(place.split("/")[::-1], folders) for place, _ in places]
        best = [values for rank, (_, values) in zip(ranks, places) if rank == max(ranks)]
        # the same image may stand in several rows, for each of its poses
        if any(values.get(column) != best[0].get(column) for values in best for column in DECISIVE):
            raise ConversionError("the original file %s says different things about image %s of %s, or of stacks with "
                                  "that name in other folders" % (original, int(index), name))  # fmt: skip
        return best[0]
    return None


def _agreement(first, second):
    """Return how many words two lists begin with alike."""
    count = 0
    for one, other in zip(first, second):
        if one != other:
            break
        count += 1
    return count


def read_original(path):
    """Return what a STAR or .cs file says about its images, and its optics table or None.

    Returns
    -------
    found : dict
        By :func:`image_key`, a list of (folders of the stack, dictionary of values): the same key may stand for stacks
        in several folders.
    optics : OrderedDict or None
        Rows of the optics table by group.

    Raises
    ------
    ConversionError
        Unreadable, without image names, or of an unknown kind.
    """
    try:
        if path.endswith(".cs"):
            return _read_cs(path), None
        if path.endswith(".star"):
            return _read_star(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConversionError("the original file %s cannot be read: %s" % (path, error))
    raise ConversionError("the original file must end in .star or .cs: %s" % path)


def _read_star(path):
    tables = read_star(path)
    rows = tables.get(PARTICLES) or next((rows for name, rows in tables.items() if name != OPTICS and rows), [])
    if not rows or "rlnImageName" not in rows[0]:
        raise ValueError("it has no column rlnImageName")
    kept = [name for name in RECOVERED if name in rows[0]]
    found = {}
    for row in rows:
        _keep(found, row["rlnImageName"], {name: row[name] for name in kept})
    optics = OrderedDict((row["rlnOpticsGroup"], row) for row in tables.get(OPTICS, ()))
    return found, optics or None


def _read_cs(path):
    """Half sets of a cryoSPARC file; the table is plain, nothing in it is executed."""
    table = np.load(path, allow_pickle=False)
    fields = table.dtype.names or ()
    if "blob/path" not in fields or "blob/idx" not in fields:
        raise ValueError("it has no images (blob/path, blob/idx)")
    found = {}
    for number in range(len(table)):
        stack = table["blob/path"][number]
        stack = stack.decode("utf-8") if isinstance(stack, bytes) else str(stack)
        stack = stack.lstrip(">")  # which exported files have
        values = {}
        if "alignments3D/split" in fields:
            values["rlnRandomSubset"] = str(int(table["alignments3D/split"][number]) + 1)
        _keep(found, "%d@%s" % (int(table["blob/idx"][number]) + 1, stack), values)
    return found


def _keep(found, name, values):
    folders = os.path.dirname(name.rpartition("@")[2])
    found.setdefault(image_key(name), []).append((folders, values))


# ------------------------------------------------------------------------------------------------ STAR file to Scipion
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")


def read_results(path):
    """Return the rows of the engine's ``run_data.star`` by Scipion's id."""
    return {int(row["rlnImageId"]): row for row in read_star(path)[PARTICLES]}


def poses_of(rows, pixel_size):
    """Return Scipion's matrices (n, 4, 4) of rows of a STAR file."""
    values = np.array([[float(row[name]) for name in POSE] for row in rows])
    return to_scipion(values[:, 0], values[:, 1], values[:, 2], values[:, 3], values[:, 4], pixel_size)


def set_optics(particles, path):
    """Keep the optics table of a STAR file in a set of particles, where scipion-em-relion has it and looks for it."""
    rows = read_star(path)[OPTICS]
    particles.getAcquisition().opticsGroupInfo.set("".join(star_lines(OPTICS, rows)))


def update_ctf(particle, row):
    """Give a particle the defocus of a row of the engine's STAR file, its optics group and its half set."""
    _set_defocus(particle, row)
    _set_groups(particle, row)


def _set_defocus(particle, row):
    particle.getCTF().setStandardDefocus(*(float(row[name]) for name in DEFOCUS))


def _set_groups(particle, row):
    particle._rlnRandomSubset = Integer(int(row["rlnRandomSubset"]))
    particle._rlnOpticsGroup = Integer(int(row["rlnOpticsGroup"]))


def update_particle(particle, row, matrix, with_ctf=False):
    """Give a particle its refined pose, half set and quality, and its defocus where that was refined, too.

    ``_appendItem`` is False for one that was set aside.
    """
    from pwem.objects import Transform

    particle._appendItem = row is not None
    if row is None:
        return
    particle.setTransform(Transform(matrix))
    _set_groups(particle, row)
    if with_ctf:
        _set_defocus(particle, row)
    for name in QUALITIES:
        if name in row:
            setattr(particle, "_" + name, Integer(int(row[name])) if name in COUNTS else Float(float(row[name])))
