# SPDX-License-Identifier: GPL-3.0-or-later
"""The contrast transfer function against closed forms and against RELION's program."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from sparsecv.engine.io.mrc import ImageStack, write_map
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import CtfParameters, ctf, wavelength
from sparsecv.engine.physics.disc import make_disc

BOX, PIXEL = 128, 1.4
DEFAULTS = {"defocus_u": 15000.0, "defocus_v": 15000.0, "defocus_angle": 0.0, "phase_shift": 0.0, "bfactor": 0.0,
            "scale": 1.0, "voltage_kv": 300.0, "cs_mm": 2.7, "amplitude_contrast": 0.1}


def parameters(**changes):
    """Parameters of as many particles as the longest change has."""
    values = {name: np.atleast_1d(np.asarray(value, dtype=np.float64)) for name, value in (DEFAULTS | changes).items()}
    n = max(map(len, values.values()))
    return CtfParameters(**{name: np.broadcast_to(value, n).copy() for name, value in values.items()})


def along(angle_deg, k, **changes):
    """CTF at frequencies k (1/A) along one direction: the box is one A, so frequencies are 1/A."""
    x, y = k * np.cos(np.deg2rad(angle_deg)), k * np.sin(np.deg2rad(angle_deg))
    return ctf(parameters(**changes), x, y, 1, 1.0)[0]


@pytest.mark.parametrize(("voltage", "expected"), [(300, 0.019687), (200, 0.025079), (100, 0.037014)])
def test_wavelength_of_the_tables(voltage, expected):
    """Reimer & Kohl, Transmission Electron Microscopy, table 3.2."""
    assert wavelength(np.array([voltage]))[0] == pytest.approx(expected, rel=1e-4)


def test_dc_is_the_amplitude_contrast():
    assert along(0, np.zeros(1))[0] == pytest.approx(0.1, abs=1e-7)
    assert along(0, np.zeros(1), amplitude_contrast=1.0)[0] == pytest.approx(1.0, abs=1e-7)


def test_particles_are_white_at_low_frequency_when_underfocused():
    k = np.linspace(1e-3, 0.02, 20)
    assert np.all(along(0, k) > 0) and np.all(np.diff(along(0, k)) > 0)
    assert along(0, np.array([0.02]), defocus_u=-15000, defocus_v=-15000)[0] < 0


def test_zeros_without_spherical_aberration():
    """sin(pi lambda dz k^2 + alpha) = 0 at k^2 = (n - alpha/pi) / (lambda dz)."""
    lam, alpha = wavelength(np.array([300.0]))[0], np.arcsin(0.1)
    k = np.sqrt((np.arange(1, 30) - alpha / np.pi) / (lam * 15000))
    np.testing.assert_allclose(along(33, k, cs_mm=0.0), 0, atol=2e-5)


def test_zeros_with_spherical_aberration():
    """The roots k^2 of pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + alpha = n pi."""
    lam, alpha, spherical = wavelength(np.array([200.0]))[0], np.arcsin(0.07), 2.0e7
    for n in (1, 4, 9):
        roots = np.roots([-0.5 * np.pi * spherical * lam**3, np.pi * lam * 8000, alpha - n * np.pi])
        k = np.sqrt(roots.real.min())
        lens = {"voltage_kv": 200, "cs_mm": 2.0, "amplitude_contrast": 0.07}
        assert abs(along(70, np.array([k]), defocus_u=8000, defocus_v=8000, **lens)[0]) < 2e-5


def test_astigmatism_angle_is_that_of_defocus_u():
    k = np.linspace(0.01, 0.25, 40)
    astigmatic = {"defocus_u": 18000.0, "defocus_v": 12000.0, "defocus_angle": 25.0}
    np.testing.assert_allclose(along(25, k, **astigmatic), along(0, k, defocus_u=18000, defocus_v=18000), atol=1e-4)
    np.testing.assert_allclose(along(115, k, **astigmatic), along(0, k, defocus_u=12000, defocus_v=12000), atol=1e-4)
    np.testing.assert_allclose(along(70, k, **astigmatic), along(0, k), atol=1e-4)
    swapped = {"defocus_u": 12000.0, "defocus_v": 18000.0, "defocus_angle": 115.0}
    np.testing.assert_allclose(along(60, k, **astigmatic), along(60, k, **swapped), atol=1e-4)


def test_phase_plate_of_ninety_degrees_turns_sine_into_cosine():
    k = np.linspace(0, 0.2, 30)
    quarter = along(0, k, phase_shift=90.0)
    plain = along(0, k)
    np.testing.assert_allclose(quarter**2 + plain**2, 1, atol=1e-5)
    assert quarter[0] == pytest.approx(np.sqrt(1 - 0.1**2), abs=1e-6)


def test_envelope_and_scale():
    k = np.linspace(0, 0.3, 30)
    expected = along(0, k) * np.exp(-120 / 4 * k**2) * 0.7
    np.testing.assert_allclose(along(0, k, bfactor=120.0, scale=0.7), expected, atol=1e-6)


def test_intact_first_peak_is_one_up_to_the_first_peak():
    disc = make_disc(BOX)
    plain = ctf(parameters(), disc.kx, disc.ky, BOX, PIXEL)[0]
    intact = ctf(parameters(), disc.kx, disc.ky, BOX, PIXEL, intact_first_peak=True)[0]
    radius = np.hypot(disc.kx, disc.ky) / (BOX * PIXEL)
    lam = wavelength(np.array([300.0]))[0]
    gamma = np.pi * lam * 15000 * radius**2 - 0.5 * np.pi * 2.7e7 * lam**3 * radius**4 + np.arcsin(0.1)
    before = gamma < np.pi / 2
    assert 0 < before.sum() < len(before) / 2
    np.testing.assert_array_equal(intact[before], 1)
    np.testing.assert_array_equal(intact[~before], plain[~before])


def test_one_row_per_particle_in_float32():
    disc = make_disc(32)
    values = ctf(parameters(defocus_u=np.array([1e4, 2e4, 3e4])), disc.kx, disc.ky, 32, 2.0)
    assert values.shape == (3, len(disc)) and values.dtype == np.float32
    assert np.all(np.abs(values) >= 0.99e-8), "the sign is defined everywhere"
    one = ctf(parameters(defocus_u=2e4), disc.kx, disc.ky, 32, 2.0)
    np.testing.assert_array_equal(values[1], one[0])


CASES = {
    "plain": {},
    "astigmatic": {"defocus_u": 21000.0, "defocus_v": 14000.0, "defocus_angle": 33.0},
    "overfocus": {"defocus_u": -9000.0, "defocus_v": -9500.0, "defocus_angle": 10.0},
    "phase plate": {"phase_shift": 72.0, "defocus_u": 6000.0, "defocus_v": 5500.0, "defocus_angle": 140.0},
    "envelope": {"bfactor": 60.0, "scale": 0.8},
    "other lens": {"voltage_kv": 200.0, "cs_mm": 1.2, "amplitude_contrast": 0.07},
}


@pytest.fixture(scope="module")
def relion_point(tmp_path_factory):
    """RELION's image of a point at the box centre under each case: its transform is the CTF itself."""
    folder = tmp_path_factory.mktemp("point")
    point = np.zeros((BOX, BOX, BOX), dtype=np.float32)
    point[BOX // 2, BOX // 2, BOX // 2] = 1
    write_map(folder / "point.mrc", point, PIXEL)
    star = StarFile.new()
    rows = [DEFAULTS | case for case in CASES.values()]
    number = np.arange(1, len(rows) + 1)
    star.add_loop("optics", {
        "rlnOpticsGroup": number, "rlnOpticsGroupName": [f"group{i}" for i in number],
        "rlnVoltage": [r["voltage_kv"] for r in rows], "rlnSphericalAberration": [r["cs_mm"] for r in rows],
        "rlnAmplitudeContrast": [r["amplitude_contrast"] for r in rows], "rlnImagePixelSize": [PIXEL] * len(rows),
        "rlnImageSize": [BOX] * len(rows), "rlnImageDimensionality": [2] * len(rows),
    })
    star.add_loop("particles", {
        "rlnImageName": [f"{i:06d}@none.mrcs" for i in number], "rlnOpticsGroup": number,
        **{column: [r[name] for r in rows] for column, name in {
            "rlnDefocusU": "defocus_u", "rlnDefocusV": "defocus_v", "rlnDefocusAngle": "defocus_angle",
            "rlnPhaseShift": "phase_shift", "rlnCtfBfactor": "bfactor", "rlnCtfScalefactor": "scale"}.items()},
        "rlnAngleRot": [10.0] * len(rows), "rlnAngleTilt": [50.0] * len(rows), "rlnAnglePsi": [-20.0] * len(rows),
        "rlnOriginXAngst": [0.0] * len(rows), "rlnOriginYAngst": [0.0] * len(rows),
    })
    star.write(folder / "views.star")

    def images(*options):
        command = f"relion_project --i point.mrc --ang views.star --o images --angpix {PIXEL}".split()
        subprocess.run([*command, *options], cwd=folder, check=True, capture_output=True)
        return ImageStack(folder / "images.mrcs").read(np.arange(len(rows)))

    return images


@pytest.mark.relion
@pytest.mark.parametrize("intact", [False, True], ids=["whole", "intact-first-peak"])
def test_same_values_as_relion(relion_point, intact):
    images = relion_point("--ctf", *(["--ctf_intact_first_peak"] if intact else []))
    theirs = np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2)))
    disc = make_disc(BOX, BOX // 2 - 2)
    theirs = theirs[:, disc.ky, disc.kx]
    rows = [DEFAULTS | case for case in CASES.values()]
    values = parameters(**{name: np.array([row[name] for row in rows]) for name in DEFAULTS})
    ours = ctf(values, disc.kx, disc.ky, BOX, PIXEL, intact_first_peak=intact)
    scale = np.vdot(ours[0], theirs[0]).real / np.vdot(ours[0], ours[0]).real
    assert scale == pytest.approx(1, rel=1e-3)
    # A pixel on the edge of the first peak may fall on either side in single precision.
    difference = np.abs(theirs - ours)
    assert np.mean(difference > 2e-3) < (1e-4 if intact else 1e-12), difference.max(axis=1)
