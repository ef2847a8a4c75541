# SPDX-License-Identifier: GPL-3.0-or-later
"""cryoSPARC's aberrations and anisotropic magnification: the phases of a lens in closed form, and every bit back."""

import numpy as np
import pytest

from sparsecv.cli import main
from sparsecv.engine.commands.convert import ConvertSettings
from sparsecv.engine.io.cryosparc import cs_of_star, star_of_cs
from sparsecv.engine.io.cs_aberrations import CONVENTIONS, SPECTER, TERMS
from sparsecv.engine.io.cs_table import ALIGNMENT, NEW, write_cs
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.aberrations import monomials
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.settings import settings_of

COUNT, PIXEL = 60, 0.83
SIZES = {"ctf/shift_A": 0.3, "ctf/tilt_A": 6000, "ctf/trefoil_A": 3000, "ctf/tetra_A": 4e5, "ctf/anisomag": 0.01}


def planted(seed=3, cs_mm=2.7, groups=1, **terms):
    """A table of particles with poses, CTFs and aberrations at random, which differ between groups."""
    rng = np.random.default_rng(seed)
    table = np.zeros(COUNT, dtype=[*NEW, ("blob/path", "S6"), *ALIGNMENT])
    table["uid"], table["blob/idx"], table["blob/path"] = np.arange(COUNT) + 5, np.arange(COUNT), b"a.mrcs"
    table["blob/shape"], table["blob/psize_A"], table["alignments3D/psize_A"] = 64, PIXEL, PIXEL
    for name in ("blob/sign", "ctf/scale", "ctf/scale_const", "alignments3D/alpha", "alignments3D/class_posterior",
                 "alignments3D/class_ess"):  # fmt: skip
        table[name] = 1
    table["ctf/type"], table["ctf/exp_group_id"] = b"imported", 4
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300, cs_mm, 0.1
    table["ctf/df1_A"] = rng.uniform(8000, 20000, COUNT)
    table["ctf/df2_A"] = table["ctf/df1_A"] - rng.uniform(0, 500, COUNT)
    table["ctf/df_angle_rad"] = rng.uniform(0, np.pi, COUNT)
    table["alignments3D/pose"], table["alignments3D/split"] = rng.normal(size=(COUNT, 3)), np.arange(COUNT) % 2
    for name, size in SIZES.items():
        numbers = rng.uniform(-size, size, (groups, TERMS[name]))
        table[name] = terms.get(name, numbers[np.arange(COUNT) % groups])
    return table


def through_star(table, folder, aberrations=SPECTER):
    """The STAR file, read again, and the notes."""
    star, notes = star_of_cs(table, "a.cs", aberrations)
    star.write(folder / "a.star")
    return ParticleTable.read(folder / "a.star", check_images=False), notes


def disc():
    """Frequencies in 1/A, as complex numbers, up to Nyquist."""
    x, y = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41))
    return (x + 1j * y)[np.hypot(x, y) <= 1] / (2 * PIXEL)


def lens_phases(table, row):
    """Odd and even phase by the expansion of a lens in its complex angle w = lambda k [Haider2000], with its names.

    chi = 2 pi / lambda Re (B w^2 conj w + A2 conj(w)^3 / 3 + C3 |w|^4 / 4 + S w^3 conj w + A3 conj(w)^4 / 4), for which
    tilt_A is B, trefoil_A is A2, C3 the spherical aberration and tetra_A are S and A3; a shift of the image is a ramp.
    """
    k = disc()
    length = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    w = length * k
    shift, coma, trefoil = (table[name][row] @ [1, 1j] for name in ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A"))
    star, four = (table["ctf/tetra_A"][row, part] @ [1, 1j] for part in (slice(0, 2), slice(2, 4)))
    odd = np.conj(coma) * w**2 * np.conj(w) + np.conj(trefoil) * w**3 / 3 - np.conj(shift) * w
    even = np.conj(star) * w**3 * np.conj(w) + np.conj(four) * w**4 / 4
    return (2 * np.pi / length * part.real for part in (odd, even))


def phases(group):
    """Odd and even phase that the engine makes of an optics group."""
    k = disc()
    for polynomial, is_odd in ((group.odd_polynomial(), True), (group.even_polynomial(), False)):
        rows = monomials(k.real, k.imag, len(polynomial), odd=is_odd)
        yield polynomial @ rows if len(polynomial) else np.zeros(len(k))


@pytest.mark.parametrize("cs_mm", [2.7, 0.001, 0.0])
def test_phases_are_those_of_a_lens(tmp_path, cs_mm):
    """With a spherical aberration coma is a beam tilt, without it a Zernike polynomial."""
    table = planted(cs_mm=cs_mm)
    particles, _ = through_star(table, tmp_path)
    (group,) = particles.optics
    assert any(group.beam_tilt) == (cs_mm > 1)
    for found, expected in zip(phases(group), lens_phases(table, 0), strict=True):
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(group.matrix, np.eye(2) + table["ctf/anisomag"][0].reshape(2, 2), atol=1e-12)
    if cs_mm > 1:  # rlnBeamTilt of this sign is -2 pi Cs lambda^2 |k|^2 t.k: docs/conventions.md
        np.testing.assert_allclose(group.beam_tilt, -table["ctf/tilt_A"][0] / 2.7e4, rtol=1e-6)


@pytest.mark.parametrize(("tilt", "cs_mm"), [(5e6, 2.7), (40.0, 0.005)])
def test_coma_that_is_no_beam_tilt_stays_a_polynomial(tmp_path, tilt, cs_mm):
    """More than 100 mrad would be, which no STAR file may have; and with next to no Cs a tilt makes no coma."""
    table = planted(cs_mm=cs_mm, **{"ctf/tilt_A": (tilt, -tilt / 2)})
    particles, _ = through_star(table, tmp_path)
    (group,) = particles.optics
    assert not any(group.beam_tilt)
    found, wanted = next(iter(phases(group))), next(iter(lens_phases(table, 0)))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-8 * np.abs(wanted).max())


def test_the_other_convention_turns_the_odd_phase_round_and_nothing_else(tmp_path):
    table = planted()
    odd, even = lens_phases(table, 0)
    particles, notes = through_star(table, tmp_path, "pyem")
    for found, expected in zip(phases(particles.optics[0]), (-odd, even), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(particles.optics[0].beam_tilt, table["ctf/tilt_A"][0] / 2.7e4, rtol=1e-6)
    assert "in the convention of pyem (--aberrations): ctf/shift_A" in notes[0]


@pytest.mark.parametrize("aberrations", ["specter", "pyem"])
@pytest.mark.parametrize("cs_mm", [2.7, 0.0])
def test_every_bit_comes_back(tmp_path, aberrations, cs_mm):
    """Also of an exposure group whose particles differ, which becomes several optics groups."""
    table = planted(cs_mm=cs_mm, groups=3)
    particles, _ = through_star(table, tmp_path, aberrations)
    assert [group.name for group in particles.optics] == [f"exp_group_4_{k}" for k in (1, 2, 3)]
    back, _ = cs_of_star(tmp_path / "a.star", aberrations=aberrations)
    for name in (*TERMS, "ctf/cs_mm", "ctf/exp_group_id", "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad",
                 "ctf/phase_shift_rad", "uid", "alignments3D/shift"):  # fmt: skip
        assert back[name].tobytes() == table[name].tobytes(), name


def test_a_spherical_aberration_below_0_is_an_even_aberration(tmp_path):
    """cryoSPARC fits any; a STAR file has at least 0."""
    table = planted(cs_mm=-3.2, **{"ctf/tetra_A": 0})
    particles, _ = through_star(table, tmp_path)
    (group,) = particles.optics
    assert group.cs_mm == 0
    length = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    _, even = phases(group)
    np.testing.assert_allclose(even, -np.pi / 2 * 3.2e7 * length**3 * np.abs(disc()) ** 4, rtol=1e-7, atol=1e-12)
    for aberrations in CONVENTIONS:
        particles, _ = through_star(table, tmp_path, aberrations)
        back, _ = cs_of_star(tmp_path / "a.star", aberrations=aberrations)
        for name in ("ctf/cs_mm", "ctf/tetra_A", "ctf/df1_A"):
            assert back[name].tobytes() == table[name].tobytes(), name


def test_coefficients_of_relion_become_the_same_ctfs_and_phases(tmp_path):
    """All polynomials up to the fourth order, of which the lower ones are defocus, astigmatism and phase shift."""
    rng = np.random.default_rng(8)
    through_star(planted(), tmp_path)
    star = StarFile.read(tmp_path / "a.star")
    for name, count in (("rlnOddZernike", 6), ("rlnEvenZernike", 9)):
        star.table("optics").set(name, [f"[{','.join(map(str, rng.uniform(-20, 20, count)))}]"])
    star.write(tmp_path / "b.star")
    first = ParticleTable.read(tmp_path / "b.star", check_images=False)
    table, notes = cs_of_star(tmp_path / "b.star")
    assert any("in defocus, phase shift and Cs now" in note for note in notes)
    second, _ = through_star(table, tmp_path)
    assert not any(second.optics[0].even[:3:2]) and second.optics[0].cs_mm != first.optics[0].cs_mm
    k = disc()
    one, other = (ctf(each.ctf_parameters(), k.real * 64 * PIXEL, k.imag * 64 * PIXEL, 64, PIXEL)
                  for each in (first, second))  # fmt: skip
    np.testing.assert_allclose(other, one, atol=1e-4)  # phases of hundreds of rad in single precision
    pairs = zip(phases(first.optics[0]), phases(second.optics[0]), strict=True)
    np.testing.assert_allclose(*next(pairs), atol=1e-4)
    np.testing.assert_allclose(second.optics[0].magnification, first.optics[0].magnification, atol=1e-9)


def test_what_is_converted_is_named_with_its_size(tmp_path):
    table = planted(**dict.fromkeys(TERMS, 0))
    table["ctf/tilt_A"][7] = 0, 1000
    table["ctf/anisomag"][:] = 0.02, 0, 0, -0.01
    length = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    tilt = f"ctf/tilt_A (up to {2 * np.pi * length**2 * 1000 / (2 * PIXEL) ** 3:.2g} rad at Nyquist)"
    starts = {"specter": "in the convention of specter", "none": "not carried over, and so ignored"}
    for aberrations, start in starts.items():
        particles, notes = through_star(table, tmp_path, aberrations)
        assert notes == [f"a.cs: {start} (--aberrations): {tilt}, ctf/anisomag (up to 2 %)"]
    assert not any(group.unusual() for group in particles.optics)
    back, _ = cs_of_star(tmp_path / "a.star", table, "none")  # what was left out is still in the original
    assert back.tobytes() == table.tobytes()


def test_what_a_star_file_says_of_optics_is_named_with_its_size(tmp_path):
    through_star(planted(**dict.fromkeys(TERMS, 0)), tmp_path)
    star = StarFile.read(tmp_path / "a.star")
    star.table("optics").set("rlnBeamTiltX", [0.1])
    star.table("optics").set("rlnEvenZernike", [f"[{'0,' * 15}1]"])  # of the sixth order
    star.write(tmp_path / "a.star")
    length = 12.2643247 / np.sqrt(300e3 * (1 + 300e3 * 0.978466e-6))
    size = f"{2 * np.pi * length**2 * 2700 / (2 * PIXEL) ** 3:.2g} rad at Nyquist)"
    _, notes = cs_of_star(tmp_path / "a.star")
    assert f"{tmp_path / 'a.star'}: in the convention of specter (--aberrations): ctf/tilt_A (up to {size}" in notes
    assert any("Zernike coefficients beyond the fourth order" in note for note in notes)
    table, notes = cs_of_star(tmp_path / "a.star", aberrations="none")
    assert f"{tmp_path / 'a.star'}: not carried over, and so ignored (--aberrations): ctf/tilt_A (up to {size}" in notes
    assert not table["ctf/tilt_A"].any()
    star.table("optics").set("rlnEvenZernike", [f"[{'1,' * 8}1]"])  # part of it is tetrafoil
    star.write(tmp_path / "a.star")
    for aberrations, end in (("specter", "Cs now: the same CTFs"), ("none", "Cs now")):
        _, notes = cs_of_star(tmp_path / "a.star", aberrations=aberrations)
        assert any(note.endswith(end) for note in notes)


def test_command_offers_the_conventions(tmp_path, capsys):
    (setting,) = (one for one in settings_of(ConvertSettings) if one.name == "aberrations")
    assert setting.choices == CONVENTIONS and setting.default == SPECTER
    write_cs(tmp_path / "a.cs", planted())
    tilts = {}
    for name in CONVENTIONS:
        path = str(tmp_path / f"{name}.star")
        assert main(["convert", str(tmp_path / "a.cs"), path, "--aberrations", name]) == 0
        tilts[name] = ParticleTable.read(path, check_images=False).optics[0].beam_tilt
        assert "(--aberrations)" in capsys.readouterr().err
    assert tilts["pyem"] == tuple(-x for x in tilts["specter"]) and tilts["none"] == (0, 0)
