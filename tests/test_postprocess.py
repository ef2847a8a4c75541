# SPDX-License-Identifier: GPL-3.0-or-later
"""Post-processing: each step against its closed form, the whole against relion_postprocess."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from halfmaps import filtered, half_maps, particle

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import read_map, write_map
from sparsecv.engine.io.mtf import MtfCurve
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.masks import solvent_mask, sphere
from sparsecv.engine.validate import guinier
from sparsecv.engine.validate.fsc import fsc
from sparsecv.engine.validate.fsc_files import write_fsc_xml, write_postprocess
from sparsecv.engine.validate.postprocess import postprocess
from sparsecv.engine.validate.sharpen import Sharpening, sharpen

BOX, PIXEL_SIZE = 48, 2.0


def white(box: int = BOX, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(box, box, box)).astype(np.float32)


def test_bfactor_of_a_gaussian_decay_is_found():
    """White noise damped by exp(-B k^2 / 4): the plot's slope is -B/4 and the fit gives -B back."""
    damped = filtered(white(), lambda k: np.exp(-90 / 4 * (k / PIXEL_SIZE) ** 2))
    steps = Sharpening(fsc_weighting=False, autob_lowres=10)
    flat, plot, bfactor, warnings = sharpen(damped, np.ones(BOX // 2 + 1), PIXEL_SIZE, steps)
    assert bfactor == pytest.approx(-90, rel=0.02) and not warnings
    assert plot.fit.correlation < -0.99
    assert np.ptp(plot.sharpened[8:-1]) < 0.1  # the last shell is cut at Nyquist
    assert flat.dtype == np.float32


def test_fsc_weights_are_rosenthal_and_henderson():
    curve = np.linspace(1, -0.5, BOX // 2 + 1)
    _, plot, _, _ = sharpen(white(), curve, PIXEL_SIZE, Sharpening(bfactor=0.0))
    kept = curve >= 1e-4
    expected = 0.5 * np.log(2 * curve[kept] / (1 + curve[kept]))
    np.testing.assert_allclose((plot.weighted - plot.original)[kept], expected, atol=1e-5)
    np.testing.assert_array_equal(plot.weighted[~kept], guinier.EMPTY_SHELL)


def test_nothing_comes_back_after_the_first_empty_shell():
    curve = np.ones(BOX // 2 + 1)
    curve[10] = 0.0
    _, plot, _, _ = sharpen(white(), curve, PIXEL_SIZE, Sharpening(bfactor=0.0))
    np.testing.assert_array_equal(plot.weighted[10:], guinier.EMPTY_SHELL)


def test_mtf_is_divided_out_at_the_detector_pixel():
    """MTF exp(-3 f), f in cycles per detector pixel of half the map's pixel: amplitudes rise by exp(3 k / 2)."""
    frequency = np.linspace(0, 0.5, 501)
    curve = MtfCurve.checked(frequency, np.exp(-3 * frequency))
    steps = Sharpening(mtf=curve, mtf_pixel_size=PIXEL_SIZE / 2, bfactor=0.0, fsc_weighting=False)
    _, plot, _, _ = sharpen(white(), np.ones(BOX // 2 + 1), PIXEL_SIZE, steps)
    k = np.arange(BOX // 2 + 1) / BOX
    np.testing.assert_allclose((plot.inverse_mtf - plot.original)[2:-1], (1.5 * k)[2:-1], atol=1e-2)


def test_mtf_file(tmp_path):
    star = StarFile.new()
    star.add_loop("", {"rlnResolutionInversePixel": [0.0, 0.25, 0.5], "rlnMtfValue": [1.0, 0.6, 0.2]})
    star.write(tmp_path / "mtf.star")
    curve = MtfCurve.read(tmp_path / "mtf.star")
    np.testing.assert_allclose(curve.value, [1.0, 0.6, 0.2])
    assert curve.on_shells(8, 1.0, 1.0)[0, 0, 1] == pytest.approx(0.8)
    bad = (([0, 0], [1, 1], "ascend"), ([0, 0.5], [1, 0], "row 2"), ([0, 0.5], [1, np.nan], "row 2"))
    for frequency, value, match in bad:
        with pytest.raises(InputError, match=match):
            MtfCurve.checked(np.array(frequency, float), np.array(value, float), "mtf.star")
    star.table("").drop("rlnMtfValue")
    star.write(tmp_path / "none.star")
    with pytest.raises(InputError, match="no MTF curve"):
        MtfCurve.read(tmp_path / "none.star")


def test_low_pass_falls_over_two_shells():
    """Shells outside the edge of one shell either way are untouched or empty."""
    volume, shell = white(), 12
    steps = Sharpening(bfactor=0.0, fsc_weighting=False, low_pass=BOX * PIXEL_SIZE / shell)
    result, _, _, _ = sharpen(volume, np.ones(BOX // 2 + 1), PIXEL_SIZE, steps)
    curve = fsc(volume, result)
    gain = guinier.log_amplitudes(np.fft.rfftn(result)) - guinier.log_amplitudes(np.fft.rfftn(volume))
    np.testing.assert_allclose(curve[: shell - 1], 1, atol=1e-5)
    np.testing.assert_allclose(gain[: shell - 1], 0, atol=1e-4)
    assert gain[shell + 2] < -10
    assert np.exp(gain[shell]) == pytest.approx(0.5, abs=0.03)


def test_whole_result_on_a_particle():
    """The average of a noisy particle: closer to the truth than either half, sharper than it went in."""
    half1, half2 = half_maps(BOX, 2.5, bfactor=150, noise=0.01)
    truth = particle(BOX, 2.5, bfactor=150)
    result = postprocess(half1, half2, 2.5)
    assert result.warnings == ()
    assert result.bfactor < -50
    assert result.resolution_0143.angstrom <= result.final_resolution <= result.resolution_05.angstrom
    curve = fsc(result.masked_map, truth, result.mask)
    assert curve[:10].min() > 0.95
    assert curve[:15].mean() > fsc(half1, truth, result.mask)[:15].mean()
    np.testing.assert_array_equal(result.masked_map, result.map * result.mask)
    again = postprocess(half1, half2, 2.5)
    np.testing.assert_array_equal(again.map, result.map)


def test_a_mask_off_the_particle_is_not_used():
    half1, half2 = half_maps(BOX, 2.5, bfactor=150, noise=0.01)
    wrong = np.roll(sphere(BOX, 6, 5), (16, 16, 16), axis=(0, 1, 2))
    result = postprocess(half1, half2, 2.5, mask=wrong)
    assert any("unmasked FSC is used" in text for text in result.warnings)
    np.testing.assert_array_equal(result.fsc, result.curves.unmasked)
    forced = postprocess(half1, half2, 2.5, mask=wrong, force_mask=True)
    np.testing.assert_array_equal(forced.fsc, forced.curves.corrected)


def test_too_few_shells_for_a_bfactor():
    half1, half2 = half_maps(24, 4.0, bfactor=150, noise=0.001)
    result = postprocess(half1, half2, 4.0, autob_lowres=8.4)
    assert result.bfactor is None and any("no B-factor" in text for text in result.warnings)
    given = postprocess(half1, half2, 4.0, bfactor=-40.0)
    assert given.bfactor == -40 and given.guinier.fit is None


def test_noise_alone_claims_no_resolution():
    result = postprocess(white(seed=2), white(seed=3), PIXEL_SIZE, mask=sphere(BOX, 14, 6))
    assert result.final_resolution > 0.3 * BOX * PIXEL_SIZE


def test_inputs_that_cannot_be_halves():
    half1, half2 = half_maps(24, 4.0)
    identical = postprocess(half1, half1.copy(), 4.0)
    assert any("identical" in text for text in identical.warnings)
    assert not identical.resolution_0143.crossed and identical.final_resolution == 8.0
    with pytest.raises(InputError, match="half 2: half map is flat"):
        postprocess(half1, np.zeros_like(half2), 4.0)
    with pytest.raises(InputError, match="differ in box"):
        postprocess(half1, half2[1:, 1:, 1:], 4.0)
    with pytest.raises(InputError, match="not finite"):
        postprocess(half1, half2 * np.nan, 4.0)
    with pytest.raises(InputError, match="pixel size"):
        postprocess(half1, half2, 0.0)


def test_files_have_relions_names(tmp_path):
    half1, half2 = half_maps(32, 3.0, bfactor=150, noise=0.01)
    result = postprocess(half1, half2, 3.0)
    files = write_postprocess(result, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "postprocess.mrc",
        "postprocess_masked.mrc",
        "postprocess.star",
        "postprocess_fsc.xml",
        "postprocess_mask.mrc",
    }
    star = StarFile.read(files["star"])
    assert star.names == ["general", "fsc", "guinier"]
    table = star.table("fsc")
    np.testing.assert_allclose(table.floats("rlnFourierShellCorrelationCorrected"), result.fsc, atol=1e-6)
    assert table.floats("rlnAngstromResolution")[:2].tolist() == [999.0, 96.0]
    assert read_map(files["map"]).pixel_size == pytest.approx(3.0)
    np.testing.assert_array_equal(read_map(files["masked"]).data, result.masked_map)


def test_fsc_xml_is_emdbs(tmp_path):
    write_fsc_xml(tmp_path / "fsc.xml", np.array([1.0, 0.5, -0.1]), 2.0, title='A & "B"')
    root = ElementTree.parse(tmp_path / "fsc.xml").getroot()
    assert root.tag == "fsc" and root.get("title") == 'A & "B"'
    assert root.get("xaxis") == "Resolution (A-1)" and root.get("yaxis") == "Correlation Coefficient"
    points = [(float(c.find("x").text), float(c.find("y").text)) for c in root.findall("coordinate")]
    assert points == [(0.125, 0.5), (0.25, -0.1)]


def run_relion(folder: Path, *options: str) -> StarFile:
    command = "relion_postprocess --i half1.mrc --i2 half2.mrc --mask mask.mrc --auto_bfac --autob_lowres 10"
    command += " --low_pass -1 --o relion/postprocess"
    (folder / "relion").mkdir()
    subprocess.run([*command.split(), *options], cwd=folder, check=False, capture_output=True)
    return StarFile.read(folder / "relion" / "postprocess.star")


@pytest.fixture(scope="module")
def relion_case(tmp_path_factory):
    """Half maps of realistic fall-off, ours and RELION's result; RELION also divides by an MTF."""
    folder = tmp_path_factory.mktemp("relion")
    half1, half2 = half_maps(64, PIXEL_SIZE, bfactor=120, noise=0.01)
    mask = solvent_mask((half1 + half2) / 2, PIXEL_SIZE)
    for name, volume in (("half1", half1), ("half2", half2), ("mask", mask)):
        write_map(folder / f"{name}.mrc", volume, PIXEL_SIZE)
    frequency = np.linspace(0, 0.5, 1001)
    star = StarFile.new()
    star.add_loop("mtf", {"rlnResolutionInversePixel": frequency, "rlnMtfValue": 1 - 1.2 * frequency})
    star.write(folder / "mtf.star")
    theirs = run_relion(folder, "--angpix", str(PIXEL_SIZE), "--mtf", "mtf.star")
    ours = postprocess(half1, half2, PIXEL_SIZE, mask=mask, mtf=folder / "mtf.star")
    return ours, theirs, folder


@pytest.mark.relion
class TestAgainstRelion:
    def test_fsc(self, relion_case):
        """Off by its omission of Friedel weights only: it counts the plane kx = 0 twice against the others."""
        ours, theirs, _ = relion_case
        table = theirs.table("fsc")
        inner = slice(0, 30)
        for name, curve, tolerance in (
            ("UnmaskedMaps", ours.curves.unmasked, 0.01),
            ("MaskedMaps", ours.curves.masked, 0.01),
            ("Corrected", ours.fsc, 0.03),
            ("ParticleMaskFraction", None, 0.01),
        ):
            if curve is None:
                files = write_postprocess(ours, relion_case[2])
                curve = StarFile.read(files["star"]).table("fsc").floats(f"rlnFourierShellCorrelation{name}")
            found = table.floats(f"rlnFourierShellCorrelation{name}")
            assert np.abs(found - curve)[inner].max() < tolerance, name

    def test_bfactor_and_resolution(self, relion_case):
        ours, theirs, _ = relion_case
        general = theirs.table("general")
        assert ours.bfactor == pytest.approx(general.floats("rlnBfactorUsedForSharpening")[0], rel=0.05)
        assert ours.final_resolution == pytest.approx(general.floats("rlnFinalResolution")[0])
        assert ours.randomised_from == pytest.approx(general.floats("rlnRandomiseFrom")[0], rel=1e-4)
        correlation = general.floats("rlnCorrelationFitGuinierPlot")[0]
        assert ours.guinier.fit.correlation**2 == pytest.approx(correlation, abs=5e-3)

    def test_guinier_plot(self, relion_case):
        ours, theirs, _ = relion_case
        table = theirs.table("guinier")
        for name, curve in (
            ("Original", ours.guinier.original),
            ("MTFCorrected", ours.guinier.inverse_mtf),
            ("Weighted", ours.guinier.weighted),
        ):
            assert np.abs(table.floats(f"rlnLogAmplitudes{name}") - curve)[6:30].max() < 0.02, name

    def test_sharpening_with_relions_own_curve(self, relion_case):
        """Without the scatter of random phases, B agrees to a fraction of a percent."""
        ours, theirs, folder = relion_case
        curve = theirs.table("fsc").floats("rlnFourierShellCorrelationCorrected")
        average = (read_map(folder / "half1.mrc").data + read_map(folder / "half2.mrc").data) / 2
        steps = Sharpening(mtf=MtfCurve.read(folder / "mtf.star"), low_pass=ours.final_resolution)
        sharpened, _, bfactor, _ = sharpen(average, curve, PIXEL_SIZE, steps)
        assert bfactor == pytest.approx(theirs.table("general").floats("rlnBfactorUsedForSharpening")[0], rel=5e-3)
        relion = read_map(folder / "relion" / "postprocess.mrc").data
        difference = np.abs(relion - sharpened).max() / np.abs(relion).max()
        assert difference < 0.01

    def test_relion_reads_our_star_file(self, relion_case):
        ours, _, folder = relion_case
        files = write_postprocess(ours, folder)
        command = ["relion_star_printtable", str(files["star"]), "data_fsc", "rlnFourierShellCorrelationCorrected"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        values = [float(word) for word in printed.split() if word.lstrip("-")[:1].isdigit()]
        np.testing.assert_allclose(values[-len(ours.fsc) :], ours.fsc, atol=1e-4)
