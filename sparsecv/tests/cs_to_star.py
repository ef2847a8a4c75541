# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for pyem in the tests of cryoSPARC's importer: converts a .cs file to a STAR file.

scipion-em-cryosparc2 runs ``python3 <its script> IN.cs OUT.star`` in an environment with pyem, which is not on PyPI.
The tests put a ``python3`` in front of the path that starts this file instead. It follows what is documented:
a pose is the rotation vector of A^T, a shift is in pixels of ``alignments3D/psize_A``, halves and groups count from 0.
Angles are taken from scipy, so that the plugin's own conversion is not compared with itself.
"""

import sys

import numpy as np
from scipy.spatial.transform import Rotation

HEAD = "\ndata_%s\n\nloop_\n"


def columns_of(table):
    """Return the columns of the particles, names to lists of text, as far as the file has them."""
    fields = table.dtype.names
    paths = [path.decode() if isinstance(path, bytes) else path for path in table["blob/path"].tolist()]
    found = {"rlnImageName": ["%06d@%s" % (k + 1, path.lstrip(">")) for k, path in zip(table["blob/idx"], paths)]}

    def numbers(name, values):
        found[name] = ["%.6f" % value for value in values]

    if "alignments3D/pose" in fields:
        back = Rotation.from_rotvec(table["alignments3D/pose"].astype(float))  # A^T, which is Rz(rot) Ry(tilt) Rz(psi)
        for name, values in zip(("Rot", "Tilt", "Psi"), back.as_euler("ZYZ", degrees=True).T):
            numbers("rlnAngle" + name, values)
        shifts = table["alignments3D/shift"] * table["alignments3D/psize_A"][:, None]
        numbers("rlnOriginXAngst", shifts[:, 0])
        numbers("rlnOriginYAngst", shifts[:, 1])
        found["rlnRandomSubset"] = [str(k + 1) for k in table["alignments3D/split"]]
    numbers("rlnDefocusU", table["ctf/df1_A"])
    numbers("rlnDefocusV", table["ctf/df2_A"])
    numbers("rlnDefocusAngle", np.rad2deg(table["ctf/df_angle_rad"]))
    numbers("rlnPhaseShift", np.rad2deg(table["ctf/phase_shift_rad"]))
    found["rlnOpticsGroup"] = [str(k + 1) for k in table["ctf/exp_group_id"]]
    return found


def main():
    """Arguments are those of the script of scipion-em-cryosparc2, with its own name before them."""
    table = np.load(sys.argv[2], allow_pickle=False)
    optics = {}
    for row in table:
        optics.setdefault(int(row["ctf/exp_group_id"]) + 1, row)
    names = ("rlnOpticsGroup", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")
    columns = columns_of(table)
    with open(sys.argv[3], "w") as out:
        out.write(HEAD % "optics" + "".join("_%s\n" % name for name in names))
        for group, row in sorted(optics.items()):
            values = [row[name] for name in ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast", "blob/psize_A")]
            out.write("%d %s\n" % (group, " ".join("%.6f" % value for value in values)))
        out.write(HEAD % "particles" + "".join("_%s\n" % name for name in columns))
        out.writelines(" ".join(row) + "\n" for row in zip(*columns.values()))


if __name__ == "__main__":
    main()
