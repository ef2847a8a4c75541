# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated project of three optics groups as real ones are, and the same images as one clean group would have them.

Signal and noise are made once, in a plane of twice the box, and what belongs to a group is done there: delocalised
signal leaves the box, and what was multiplied by the CTF is cut off afterwards, as in micrographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsecv.engine.io.mrc import write_map, write_stack
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters, ctf, wavelength
from sparsecv.engine.physics.geometry import euler_to_matrix, matrix_to_euler, rotvec_to_matrix
from sparsecv.engine.simulate.phantom import membrane_protein
from sparsecv.engine.simulate.potential import potential_map
from sparsecv.engine.simulate.project import central_slices, half_plane, shift_phases

PLANE, FINE, FINE_BOX = 88, 4.0, 44  # pixels, A, pixels: the finer group has a larger field, 176 A
WINDOW, BOX, PIXEL_SIZE = 40, 32, 5.0  # 160 A in either
TILT, TREFOIL = (14.0, -9.0), 1200.0  # mrad, radians A^3: phases of radians at 10 A
GROUPS = ("finer", "tilted", "premultiplied")
VOLTAGE, CS, CONTRAST = 300.0, 2.7, 0.1
POSE_ERROR, SHIFT_ERROR = 5.0, 2.0  # degrees and A along each axis, of the poses given


def make(folder: Path, count: int, snr: float = 0.6, seed: int = 1) -> None:
    """Write ``clean.star``, ``unlike.star`` and ``naive.star`` with their stacks, and the map, ``reference.mrc``.

    All have the same particles with the same poses, some degrees off, and beside them files with the true ones,
    ``clean_truth.star`` ... ``unlike`` says what its three groups are; ``naive`` has the same images, cropped to one
    box, in a table that does not say it. SNR: in the 160 A of an image.
    """
    rng = np.random.default_rng(seed)
    potential = potential_map(membrane_protein(seed, "C1")[0], FINE_BOX, FINE, 100.0, threads=1)
    angles = np.stack([rng.uniform(-180, 180, count), np.degrees(np.arccos(rng.uniform(-1, 1, count))),
                       rng.uniform(-180, 180, count)])  # fmt: skip
    rotations, displacement = euler_to_matrix(*angles), rng.uniform(-5, 5, (count, 2))
    optics = CtfParameters(
        defocus_u=rng.uniform(9000, 16000, count), defocus_v=rng.uniform(9000, 16000, count),
        defocus_angle=rng.uniform(0, 180, count), phase_shift=np.zeros(count), bfactor=np.zeros(count),
        scale=np.ones(count), voltage_kv=np.full(count, VOLTAGE), cs_mm=np.full(count, CS),
        amplitude_contrast=np.full(count, CONTRAST))  # fmt: skip
    kx, ky = half_plane(PLANE)
    values = ctf(optics, kx, ky, PLANE, FINE)
    planes = central_slices(potential, rotations, kx / PLANE, ky / PLANE) * values
    planes *= shift_phases(kx / PLANE, ky / PLANE, displacement / FINE)
    gain = np.sqrt(snr / _windows(planes, WINDOW).var())
    noise = np.fft.rfft2(rng.standard_normal((count, PLANE, PLANE), dtype=np.float32))[:, ky, kx]
    planes = gain * planes + noise
    phase = np.exp(1j * _odd_phase(kx / (PLANE * FINE), ky / (PLANE * FINE)))
    group = np.arange(count) % len(GROUPS)
    clean = _coarser(_windows(planes, WINDOW))
    stacks = {
        "finer": _windows(planes[group == 0], FINE_BOX),
        "tilted": _coarser(_windows(planes[group == 1] * phase, WINDOW)),
        "premultiplied": _coarser(_windows((planes * values)[group == 2], WINDOW)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_map(folder / "reference.mrc", gain * potential, FINE)
    write_stack(folder / "clean.mrcs", clean, PIXEL_SIZE)
    for name, images in stacks.items():
        write_stack(folder / f"{name}.mrcs", images, FINE if name == "finer" else PIXEL_SIZE)
    first = (FINE_BOX - BOX) // 2
    write_stack(folder / "cropped.mrcs", stacks["finer"][:, first : first + BOX, first : first + BOX], PIXEL_SIZE)
    given = rotvec_to_matrix(np.deg2rad(POSE_ERROR) * rng.standard_normal((count, 3))) @ rotations
    origins = -displacement + SHIFT_ERROR * rng.standard_normal((count, 2))
    own = [f"{number // 3 + 1:06d}@{GROUPS[group[number]]}.mrcs" for number in range(count)]
    names = {"clean": [f"{k + 1:06d}@clean.mrcs" for k in range(count)], "unlike": own,
             "naive": [name.replace("finer", "cropped") for name in own]}  # fmt: skip
    for name, images in names.items():
        own_groups = group if name == "unlike" else None
        _write(folder / f"{name}.star", images, given, origins, optics, own_groups)
        _write(folder / f"{name}_truth.star", images, rotations, -displacement, optics, own_groups)


def _odd_phase(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the tilt and the trefoil, Z_3^3 = x^3 - 3 x y^2."""
    tilt = -2 * np.pi * CS * 1e7 * wavelength(np.array(VOLTAGE)) ** 2 * 1e-3 * (TILT[0] * x + TILT[1] * y)
    return tilt * (x**2 + y**2) + TREFOIL * (x**3 - 3 * x * y**2)


def _windows(planes: np.ndarray, box: int) -> np.ndarray:
    """Images (k, box, box) about the centre of planes given by their Fourier pixels."""
    kx, ky = half_plane(PLANE)
    whole = np.zeros((len(planes), PLANE, PLANE // 2 + 1), dtype=np.complex64)
    whole[:, ky, kx] = planes
    first = PLANE // 2 - box // 2
    images = np.fft.fftshift(np.fft.irfft2(whole, s=(PLANE, PLANE)), axes=(1, 2))
    return images[:, first : first + box, first : first + box].astype(np.float32)


def _coarser(images: np.ndarray) -> np.ndarray:
    """Images of 40 px of 4 A as 32 px of 5 A, with noise of the same power: transforms cropped, without Nyquist."""
    transforms = np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2)))
    reach = BOX // 2 - 1
    kept = np.zeros((len(images), BOX, BOX // 2 + 1), dtype=complex)
    kept[:, : reach + 1, : reach + 1] = transforms[:, : reach + 1, : reach + 1]
    kept[:, -reach:, : reach + 1] = transforms[:, -reach:, : reach + 1]
    coarse = np.fft.irfft2(kept * (BOX / WINDOW), s=(BOX, BOX))
    return np.fft.fftshift(coarse, axes=(1, 2)).astype(np.float32)


def _write(path: Path, names: list[str], rotations: np.ndarray, origins: np.ndarray, optics: CtfParameters,
           group: np.ndarray | None = None) -> None:  # fmt: skip
    groups = 1 if group is None else len(GROUPS)
    star, table = StarFile.new(), {
        "rlnOpticsGroup": np.arange(1, groups + 1), "rlnOpticsGroupName": list(GROUPS[:groups]),
        "rlnVoltage": [VOLTAGE] * groups, "rlnSphericalAberration": [CS] * groups,
        "rlnAmplitudeContrast": [CONTRAST] * groups, "rlnImagePixelSize": [PIXEL_SIZE] * groups,
        "rlnImageSize": [BOX] * groups, "rlnImageDimensionality": [2] * groups,
    }  # fmt: skip
    if group is not None:
        table |= {
            "rlnImagePixelSize": [FINE, PIXEL_SIZE, PIXEL_SIZE], "rlnImageSize": [FINE_BOX, BOX, BOX],
            "rlnBeamTiltX": [0.0, TILT[0], 0.0], "rlnBeamTiltY": [0.0, TILT[1], 0.0],
            "rlnOddZernike": ["[0,0,0,0,0,0]", f"[0,0,0,0,0,{TREFOIL}]", "[0,0,0,0,0,0]"],
            "rlnCtfDataAreCtfPremultiplied": [0, 0, 1],
        }  # fmt: skip
    star.add_loop("optics", table)
    rot, tilt, psi = matrix_to_euler(rotations).T
    star.add_loop("particles", {
        "rlnImageName": names, "rlnMicrographName": [f"mic{k // 50}.mrc" for k in range(len(names))],
        "rlnOpticsGroup": np.ones(len(names), dtype=int) if group is None else group + 1,
        "rlnDefocusU": optics.defocus_u, "rlnDefocusV": optics.defocus_v, "rlnDefocusAngle": optics.defocus_angle,
        "rlnAngleRot": rot, "rlnAngleTilt": tilt, "rlnAnglePsi": psi,
        "rlnOriginXAngst": origins[:, 0], "rlnOriginYAngst": origins[:, 1],
        "rlnRandomSubset": 1 + (np.arange(len(names)) // 3) % 2,
    })  # fmt: skip
    star.write(path)
