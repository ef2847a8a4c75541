# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to images as they are read, against closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.door import LEAST_MTF
from sparsecv.engine.io.mrc import write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import LEAST_DIVISOR, ctf, wavelength
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.fourier import resample_images
from sparsecv.engine.refine.prepare import check_mtf
from sparsecv.engine.refine.reconstruct import reconstruct
from sparsecv.engine.refine.settings import ReconstructSettings

BOX, PIXEL, COUNT = 32, 2.0, 4


def project(folder, optics, images, particles=None):
    """A STAR file of images in one optics group with further columns."""
    write_stack(folder / "a.mrcs", images, PIXEL)
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [PIXEL], "rlnImageSize": [images.shape[1]],
        "rlnImageDimensionality": [2], **{name: [value] for name, value in optics.items()},
    })  # fmt: skip
    count = len(images)
    star.add_loop("particles", {
        "rlnImageName": [f"{row + 1}@{folder}/a.mrcs" for row in range(count)], "rlnOpticsGroup": [1] * count,
        "rlnDefocusU": np.full(count, 12000.0), "rlnDefocusV": np.full(count, 11000.0),
        "rlnDefocusAngle": np.full(count, 15.0), **(particles or {}),
    })  # fmt: skip
    star.write(folder / "in.star")
    return folder / "in.star"


def noise(count=COUNT, box=BOX):
    return np.random.default_rng(3).normal(size=(count, box, box)).astype(np.float32)


def test_the_door_takes_an_odd_phase_out(tmp_path):
    """Z_1^1 = k_x is a displacement: exp(i o k_x) moves an image by -o / 2 pi along x, in A."""
    images = noise()
    o = 2 * np.pi * 3 * PIXEL
    table = ParticleTable.read(project(tmp_path, {"rlnOddZernike": f"[0,{o:.12f}]"}, np.roll(images, -3, axis=2)))
    found, good = table.read_images(np.arange(COUNT))
    assert good.all() and not table.warnings
    np.testing.assert_allclose(found, images, atol=2e-5)
    one, _ = table.read_images([2])  # neighbours in a batch do not show
    np.testing.assert_array_equal(one[0], found[2])


def test_images_without_aberrations_pass_as_they_are(tmp_path):
    images = noise()
    table = ParticleTable.read(project(tmp_path, {"rlnOddZernike": "[0,0]", "rlnBeamTiltX": 0.0}, images))
    np.testing.assert_array_equal(table.read_images(np.arange(COUNT))[0], images)
    assert table.ctf_parameters().even is None


def test_coma_of_a_beam_tilt_is_taken_out(tmp_path):
    images = noise()
    kx, ky = np.fft.rfftfreq(BOX, PIXEL)[None, :], np.fft.fftfreq(BOX, PIXEL)[:, None]
    lam = float(wavelength(np.array(300.0)))
    phase = -2 * np.pi * 2.7e7 * lam**2 * 1e-3 * (0.5 * kx + 0.2 * ky) * (kx**2 + ky**2)
    blurred = np.fft.irfft2(np.fft.rfft2(images) * np.exp(1j * phase), s=(BOX, BOX)).astype(np.float32)
    table = ParticleTable.read(project(tmp_path, {"rlnBeamTiltX": 0.5, "rlnBeamTiltY": 0.2}, blurred))
    difference = np.fft.rfft2(table.read_images(np.arange(COUNT))[0] - images)
    assert np.abs(difference[:, np.abs(np.fft.fftfreq(BOX, 1 / BOX)) < BOX // 2, : BOX // 2]).max() < 1e-3


def test_tilts_of_relion_3_0_make_groups(tmp_path):
    path = project(tmp_path, {}, noise())
    star, old = StarFile.read(path), StarFile.new()
    table = star.table("particles")
    columns = {name: table.strings(name) for name in table.columns if name != "rlnOpticsGroup"}
    old.add_loop("", columns | {
        "rlnVoltage": [300.0] * COUNT, "rlnSphericalAberration": [2.7] * COUNT, "rlnAmplitudeContrast": [0.1] * COUNT,
        "rlnMagnification": [10000.0] * COUNT, "rlnDetectorPixelSize": [PIXEL] * COUNT,
        "rlnBeamTiltX": [0.1, 0.1, -0.2, 0.1], "rlnBeamTiltY": [0.0] * COUNT,
    })  # fmt: skip
    old.write(tmp_path / "old.star")
    read = ParticleTable.read(tmp_path / "old.star")
    assert [group.beam_tilt for group in read.optics] == [(0.1, 0.0), (-0.2, 0.0)]
    assert read.optics_index.tolist() == [0, 0, 1, 0]
    read.write(tmp_path / "new.star")
    again = ParticleTable.read(tmp_path / "new.star")
    assert again.optics == read.optics
    np.testing.assert_array_equal(again.read_images([2])[0], read.read_images([2])[0])


def test_a_tilt_outside_of_the_optics_table_is_said(tmp_path):
    path = project(tmp_path, {}, noise(), {"rlnBeamTiltX": [0.1] * COUNT, "rlnCtfDataArePhaseFlipped": [1] * COUNT})
    told = " ".join(ParticleTable.read(path).warnings)
    assert "not in the optics table and therefore ignored: rlnBeamTiltX, rlnCtfDataArePhaseFlipped" in told


@pytest.mark.parametrize(("column", "value", "text"), [
    ("rlnOddZernike", "[0,x]", "not a vector of numbers"), ("rlnEvenZernike", "[nan]", "not a vector of numbers"),
    ("rlnEvenZernike", "[0,1_0]", "not a vector of numbers"), ("rlnBeamTiltY", 1e4, "mrad, at most 100"),
    ("rlnOddZernike", "[" + "0," * 40 + "1]", "too many Zernike coefficients (value 41); rule: up to order 8"),
])  # fmt: skip
def test_wrong_aberrations_are_refused(tmp_path, column, value, text):
    with pytest.raises(InputError) as error:
        ParticleTable.read(project(tmp_path, {column: value}, noise()))
    assert f"data_optics, row 1, column {column}" in str(error.value) and text in str(error.value)


def transformed(images, disc):
    """Fourier pixels of images, white noise of variance 1 as E|X|^2 = 1."""
    flat = np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2))).reshape(len(images), -1)
    return flat[:, disc.flat] / disc.box


def test_flipped_phases_leave_the_modulus(tmp_path):
    """But a negative scale, by which particles are dark, stays negative."""
    columns = {"rlnCtfScalefactor": [1.0, -1.0, 0.5, -0.5], "rlnPhaseShift": [0.0, 90.0, 0.0, 90.0]}
    table = ParticleTable.read(project(tmp_path, {"rlnCtfDataArePhaseFlipped": 1}, noise(), columns))
    disc, parameters = make_disc(BOX), table.ctf_parameters()
    recorded = replace(parameters, is_flipped=None, scale=np.ones(COUNT))
    found = ctf(parameters, disc.kx, disc.ky, BOX, PIXEL)
    values = np.abs(ctf(recorded, disc.kx, disc.ky, BOX, PIXEL))
    np.testing.assert_allclose(found, values * np.array(columns["rlnCtfScalefactor"])[:, None], atol=1e-6)
    np.testing.assert_array_equal(table.read_images(np.arange(COUNT))[0], noise())


def test_a_phase_plate_belongs_to_each_particle(tmp_path):
    table = ParticleTable.read(project(tmp_path, {}, noise(), {"rlnPhaseShift": [0.0, 30.0, 90.0, 90.0]}))
    disc = make_disc(BOX)
    without = replace(table.ctf_parameters(), phase_shift=np.zeros(COUNT))
    phase = np.arcsin(ctf(without, disc.kx[:6], disc.ky[:6], BOX, PIXEL))  # before the first maximum
    found = ctf(table.ctf_parameters(), disc.kx[:6], disc.ky[:6], BOX, PIXEL)
    np.testing.assert_allclose(found, np.sin(phase + np.deg2rad(table.phase_shift)[:, None]), atol=1e-5)


def test_a_premultiplied_image_says_what_the_recorded_one_says(tmp_path):
    """Away from the CTF's zeros both are the same image; what lies near them counts next to nothing."""
    disc, recorded = make_disc(BOX), noise()
    plain = ParticleTable.read(project(tmp_path, {"rlnEvenZernike": "[0,90,-60]"}, recorded))
    kx, ky = np.arange(BOX // 2 + 1.0)[None, :] + 0 * np.ones((BOX, 1)), np.fft.fftfreq(BOX, 1 / BOX)[:, None]
    full = ctf(plain.ctf_parameters(), kx.ravel(), (ky + 0 * kx).ravel(), BOX, PIXEL).reshape(COUNT, BOX, -1)
    multiplied = np.fft.irfft2(np.fft.rfft2(recorded) * full, s=(BOX, BOX)).astype(np.float32)
    terms = {"rlnEvenZernike": "[0,90,-60]", "rlnCtfDataAreCtfPremultiplied": 1}
    (tmp_path / "multiplied").mkdir()
    table = ParticleTable.read(project(tmp_path / "multiplied", terms, multiplied))
    seen = transformed(table.read_images(np.arange(COUNT))[0], disc)
    values = ctf(plain.ctf_parameters(), disc.kx, disc.ky, BOX, PIXEL)
    left = ctf(table.ctf_parameters(), disc.kx, disc.ky, BOX, PIXEL)
    away = np.abs(values) > LEAST_DIVISOR
    assert 0.8 < away.mean() < 0.97
    np.testing.assert_allclose(seen[away], transformed(recorded, disc)[away], atol=2e-4)
    np.testing.assert_allclose(left[away], values[away], atol=1e-6)
    # the signal's part of the likelihood: cross terms with any projection, and norm terms
    assert (left**2).sum() == pytest.approx((values**2).sum(), rel=2e-3)
    assert np.all(np.abs(left * seen - values * transformed(recorded, disc)) < 2 * LEAST_DIVISOR)
    assert (np.abs(seen) ** 2).mean() == pytest.approx((np.abs(transformed(recorded, disc)) ** 2).mean(), rel=0.08)


def test_an_intact_first_peak_of_premultiplied_images_is_refused(tmp_path):
    path = project(tmp_path, {"rlnCtfDataAreCtfPremultiplied": 1}, noise(), {
        "rlnAngleRot": np.arange(4.0), "rlnAngleTilt": np.ones(4), "rlnAnglePsi": np.ones(4)})
    with pytest.raises(InputError, match="premultiplied by their CTF cannot be refined with an intact first peak"):
        reconstruct(ReconstructSettings(particles=path, output=tmp_path / "map.mrc", intact_first_peak=True))


def test_both_flipped_and_premultiplied_is_refused(tmp_path):
    terms = {"rlnCtfDataAreCtfPremultiplied": 1, "rlnCtfDataArePhaseFlipped": 1}
    with pytest.raises(InputError, match=r"data_optics, row 1.*both phase-flipped and premultiplied"):
        ParticleTable.read(project(tmp_path, terms, noise()))


def blob(box, pixel_size, centre, width, matrix=None):
    """A Gaussian about a point (x, y) in A, at r or at M^-T r, (box, box)."""
    axis = (np.arange(box) - box // 2) * pixel_size
    x, y = np.meshgrid(axis, axis)
    if matrix is not None:
        x, y = np.tensordot(np.linalg.inv(matrix).T, np.stack([x, y]), 1)
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * width**2)).astype(np.float32)


@pytest.mark.parametrize(("box", "pixel_size"), [(40, 2.0), (33, 2.0), (48, 2.6), (64, 1.7), (31, 1.3), (27, 3.0)])
def test_resampled_images_of_a_blob(box, pixel_size):
    """The same function at the new pixels, times new / old pixel size, about the same centre."""
    image = blob(40, 2.0, (7.3, -4.1), 5.0)
    found = resample_images(np.stack([image, 2 * image + 3]), 2.0, box, pixel_size)
    expected = blob(box, pixel_size, (7.3, -4.1), 5.0) * pixel_size / 2.0
    scale = np.array([1, 2])[:, None, None]  # and what lies under an image is gone
    np.testing.assert_allclose(found, expected * scale, atol=6e-3)


@pytest.mark.parametrize(("box", "pixel_size"), [(50, 2.6), (90, 1.6), (48, 2.0)])
def test_noise_keeps_its_power_where_images_reach(box, pixel_size):
    images = noise(200, 64)
    found = transformed(resample_images(images, 2.0, box, pixel_size), disc := make_disc(box))
    power = (np.abs(found) ** 2).mean(axis=0)
    covered = min((64 * 2.0 / (box * pixel_size)) ** 2, 1)  # by what the old box held
    reach = disc.shell <= box * pixel_size / (2 * 2.0) - 1
    assert power[reach].mean() == pytest.approx(covered, rel=0.01)
    assert power[disc.shell > box * pixel_size / (2 * 2.0) * 1.42].sum() < 1e-6 * power.sum()


def test_groups_of_another_pixel_size_come_in_like_the_others(tmp_path):
    """Each image by itself; the CTF ends where the coarser pixels do, and what is written are the original images."""
    write_stack(tmp_path / "b.mrcs", noise(3, 24), 3.0)
    star = StarFile.read(project(tmp_path, {}, noise()))
    optics, particles = star.table("optics"), star.table("particles")
    both, new = {name: optics.strings(name) * 2 for name in optics.columns}, StarFile.new()
    both |= {"rlnOpticsGroup": [1, 2], "rlnImagePixelSize": [PIXEL, 3.0], "rlnImageSize": [BOX, 24]}
    new.add_loop("optics", both)
    rows = {name: particles.strings(name) + particles.strings(name)[:3] for name in particles.columns}
    rows["rlnImageName"][COUNT:] = [f"{row + 1}@{tmp_path}/b.mrcs" for row in range(3)]
    rows["rlnOpticsGroup"] = [1] * COUNT + [2] * 3
    new.add_loop("particles", rows)
    new.write(tmp_path / "both.star")
    table = ParticleTable.read(tmp_path / "both.star")
    assert (table.box, table.pixel_size, table.smallest_side) == (BOX, PIXEL, BOX * PIXEL)
    assert table.known_shells.tolist() == [15, 9]
    images, good = table.read_images(np.arange(7))
    assert good.all()
    np.testing.assert_array_equal(images[:COUNT], noise())
    np.testing.assert_array_equal(images[COUNT:], resample_images(noise(3, 24), 3.0, BOX, PIXEL))
    np.testing.assert_array_equal(table.read_images([5, 0])[0], images[[5, 0]])
    disc = make_disc(BOX)
    values = ctf(table.ctf_parameters(), disc.kx, disc.ky, BOX, PIXEL)
    assert np.array_equal(values != 0, np.where(np.arange(7) < COUNT, 15, 9)[:, None] >= disc.shell)
    table.write(tmp_path / "again.star")
    again = StarFile.read(tmp_path / "again.star")
    assert again.table("optics").floats("rlnImagePixelSize").tolist() == [PIXEL, 3.0]
    assert again.table("particles").strings("rlnImageName") == rows["rlnImageName"]


MATRIX = np.array([[1.03, 0.02], [-0.01, 0.98]])


def test_anisotropic_magnification_is_taken_out(tmp_path):
    """X(k) = Y(M k) is the image y(M^-T r) / |M|; origins belong to the images, and are the same when written again."""
    centres = np.random.default_rng(4).uniform(-8, 8, (COUNT, 2))
    images = np.stack([blob(BOX, PIXEL, centre, 5.0, MATRIX) for centre in centres]) / np.linalg.det(MATRIX)
    terms = dict(zip(("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"), MATRIX.ravel(), strict=True))
    origins = -centres @ MATRIX  # the blob in its image
    columns = {"rlnOriginXAngst": origins[:, 0], "rlnOriginYAngst": origins[:, 1]}
    table = ParticleTable.read(project(tmp_path, terms, images.astype(np.float32), columns))
    np.testing.assert_allclose(table.shifts, -centres, atol=1e-5)
    found, _ = table.read_images(np.arange(COUNT))
    np.testing.assert_allclose(found, [blob(BOX, PIXEL, centre, 5.0) for centre in centres], atol=5e-3)
    np.testing.assert_array_equal(table.read_images([3])[0][0], found[3])
    assert table.known_shells.tolist() == [14]
    table.write(tmp_path / "again.star", shifts=table.shifts)
    written = StarFile.read(tmp_path / "again.star").table("particles")
    found = np.stack([written.floats("rlnOriginXAngst"), written.floats("rlnOriginYAngst")], axis=1)
    np.testing.assert_allclose(found, origins, atol=2e-6)


def two_detectors(folder: Path, mtfs: tuple[str, ...], detector: tuple[float, ...], images: np.ndarray) -> Path:
    """A STAR file of two groups, the first with one particle more, and the curves exp(-a f) of names like "*a"."""
    names = []
    for name in mtfs:
        if name.startswith("*"):
            curve = StarFile.new()
            frequency = np.linspace(0, 1, 21)
            columns = {"rlnResolutionInversePixel": frequency, "rlnMtfValue": np.exp(-float(name[1:]) * frequency)}
            curve.add_loop("", columns)
            curve.write(folder / f"mtf{name[1:]}.star")
        names.append(str(folder / f"mtf{name.strip('*')}.star") if name else "")
    write_stack(folder / "a.mrcs", images, PIXEL)
    star, count = StarFile.new(), len(images)
    star.add_loop("optics", {
        "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["most", "few"], "rlnVoltage": [300.0] * 2,
        "rlnSphericalAberration": [2.7] * 2, "rlnAmplitudeContrast": [0.1] * 2, "rlnImagePixelSize": [PIXEL] * 2,
        "rlnImageSize": [BOX] * 2, "rlnImageDimensionality": [2] * 2, "rlnMtfFileName": names,
        "rlnMicrographOriginalPixelSize": list(detector),
    })  # fmt: skip
    star.add_loop("particles", {
        "rlnImageName": [f"{row + 1}@{folder}/a.mrcs" for row in range(count)], "rlnDefocusU": [1e4] * count,
        "rlnOpticsGroup": [1] * (count // 2 + 1) + [2] * (count - count // 2 - 1),
    })  # fmt: skip
    star.write(folder / "in.star")
    return folder / "in.star"


@pytest.mark.parametrize(("mtfs", "detector"), [(("*1", "*2.5"), (2.0, 2.0)), (("*2", "*2"), (1.0, 1.5)),
                                                (("*0.7", "*3"), (0.8, 1.2))])  # fmt: skip
def test_images_of_two_detectors_come_with_one_mtf(
    mtfs: tuple[str, ...], detector: tuple[float, ...], tmp_path: Path
) -> None:
    """exp(-a k d) of each group's own: images that differ by nothing else are the same afterwards."""
    scene = noise(5)
    radius = np.hypot(np.fft.fftfreq(BOX, PIXEL)[:, None], np.fft.rfftfreq(BOX, PIXEL))
    first, second = (np.exp(-float(name[1:]) * radius * pixel) for name, pixel in zip(mtfs, detector, strict=True))
    seen = np.where(np.arange(5)[:, None, None] < 3, first, second) * np.fft.rfft2(scene)
    images = np.fft.irfft2(seen, s=(BOX, BOX)).astype(np.float32)
    table = ParticleTable.read(two_detectors(tmp_path, mtfs, detector, images))
    said: list[str] = []
    check_mtf(table, said.append)
    assert not said and table.optics[table.common].mtf_pixel_size == detector[0]
    found, _ = table.read_images(np.arange(5))
    np.testing.assert_array_equal(found[:3], images[:3])  # the common group's pass as they are
    expected = np.fft.irfft2(first * np.fft.rfft2(scene), s=(BOX, BOX))
    # curves are lines between points 0.05 apart
    assert np.abs(found - expected).max() < 0.01 < np.abs(images - expected).max()


@pytest.mark.parametrize(("mtfs", "said"), [
    (("*1", "*1"), ""), (("*1", ""), "taken as if they had the MTF of most"), (("", "*1"), "images of few are taken"),
    (("*1", "9"), "images of few are taken"), (("9", "*1"), "is not there: post-processing goes without"),
    (("", ""), ""),
])  # fmt: skip
def test_images_pass_where_a_curve_is_missing(mtfs: tuple[str, ...], said: str, tmp_path: Path) -> None:
    images, heard = noise(5), list[str]()
    table = ParticleTable.read(two_detectors(tmp_path, mtfs, (PIXEL, PIXEL), images))
    check_mtf(table, heard.append)
    assert said in "".join(heard) and len(heard) == bool(said)
    np.testing.assert_array_equal(table.read_images(np.arange(5))[0], images)


def test_little_is_not_divided_by_next_to_nothing(tmp_path: Path) -> None:
    """Where a detector passes less than a fiftieth, images are lifted no more than by that."""
    images = noise(5)
    table = ParticleTable.read(two_detectors(tmp_path, ("*0", "*20"), (PIXEL, PIXEL), images))
    transforms, found = (np.fft.rfft2(part[3:]) for part in (images, table.read_images(np.arange(5))[0]))
    ratio = np.abs(found[:, 1:15, 1:15]) / np.abs(transforms[:, 1:15, 1:15])
    np.testing.assert_allclose(ratio[:, 10:, 10:], 1 / LEAST_MTF, rtol=1e-3)


def test_pixel_sizes_of_detectors_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rlnMicrographOriginalPixelSize"):
        ParticleTable.read(two_detectors(tmp_path, ("", ""), (1.0, -1.0), noise(5)))


def test_post_processing_takes_the_detector_of_the_common_group(tmp_path: Path) -> None:
    """Its curve, and the pixel size that it was measured at."""
    star = StarFile.new()
    star.add_loop("optics", {
        "rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["few", "most"], "rlnVoltage": [300.0, 300.0],
        "rlnSphericalAberration": [2.7, 2.7], "rlnAmplitudeContrast": [0.1, 0.1], "rlnImagePixelSize": [2.0, 1.5],
        "rlnImageSize": [32, 40], "rlnImageDimensionality": [2, 2], "rlnMtfFileName": ["few.star", "most.star"],
        "rlnMicrographOriginalPixelSize": [1.0, 0.75],
    })  # fmt: skip
    star.add_loop("particles", {
        "rlnImageName": [f"{row}@a.mrcs" for row in (1, 2, 3)], "rlnDefocusU": [1e4] * 3, "rlnOpticsGroup": [1, 2, 2],
    })  # fmt: skip
    star.write(tmp_path / "in.star")
    table = ParticleTable.read(tmp_path / "in.star", check_images=False)
    said: list[str] = []
    check_mtf(table, said.append)
    assert table.optics[table.common].mtf_pixel_size == 0.75
    assert len(said) == 1 and "most.star (rlnMtfFileName) is not there" in said[0]
