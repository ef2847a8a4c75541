# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of unusual optics groups as RELION predicts them, brought in by our door, against our own predictions."""

from __future__ import annotations

import numpy as np
import pytest
from golden import optics as golden

from sparsecv.engine.io.mrc import write_stack
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.simulate.project import central_slices, shift_phases

LEAST_CORRELATION = 0.999


def read_group(folder, name, **without):
    """The particles of one optics group; ``without`` are columns of its optics table that are set to other values."""
    star, number = StarFile.read(golden.STAR), list(golden.GROUPS).index(name)
    for table, column in (("optics", "rlnOpticsGroup"), ("particles", "rlnOpticsGroup")):
        star.table(table).keep(star.table(table).integers(column) == number + 1)
    for column, value in without.items():
        star.table("optics").set(column, [value])
    write_stack(folder / f"{name}.mrcs", golden.read_images()[number], golden.GROUPS[name]["pixel_size"])
    star.write(folder / "group.star")
    return ParticleTable.read(folder / "group.star", folder)


def correlations(table):
    """Of every image with our prediction at its pose, over all Fourier pixels that image and map hold."""
    step = golden.PIXEL_SIZE / table.pixel_size / table.box  # of the map's frequencies
    disc, density = make_disc(table.box, int(0.48 / step)), golden.make_map()
    predicted = central_slices(density, table.rotations, disc.kx * step, disc.ky * step)
    predicted *= ctf(table.ctf_parameters(), disc.kx, disc.ky, table.box, table.pixel_size)
    predicted *= shift_phases(disc.kx / table.box, disc.ky / table.box, -table.shifts / table.pixel_size)
    images, good = table.read_images(np.arange(len(table)))
    assert good.all()
    seen = np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2))).reshape(len(table), -1)[:, disc.flat]
    seen *= predicted != 0  # beyond a coarser pixel's limit
    products = [(a.conj() * b).real.sum(axis=1) for a, b in ((seen, predicted), (seen, seen), (predicted, predicted))]
    return products[0] / np.sqrt(products[1] * products[2])


@pytest.mark.parametrize("name", list(golden.GROUPS))
def test_images_agree_with_relion(tmp_path, name):
    found = correlations(read_group(tmp_path, name))
    assert found.min() > LEAST_CORRELATION, found


@pytest.mark.parametrize(("name", "without"), [
    ("odd", {"rlnBeamTiltX": 0}), ("odd", {"rlnBeamTiltY": 0}), ("odd", {"rlnOddZernike": "[0,0]"}),
    ("even", {"rlnEvenZernike": "[0]"}), ("premultiplied", {"rlnCtfDataAreCtfPremultiplied": 0}),
    ("premultiplied", {"rlnEvenZernike": "[0]"}), ("magnification", {"rlnMagMat00": 1}),
    ("magnification", {"rlnMagMat01": 0}), ("magnification", {"rlnMagMat10": 0}), ("magnification", {"rlnMagMat11": 1}),
    ("size", {"rlnImagePixelSize": 3.95}),
])  # fmt: skip
def test_each_term_counts(tmp_path, name, without):
    """The images would show a term that is left away."""
    found = correlations(read_group(tmp_path, name, **without))
    assert found.max() < LEAST_CORRELATION, found


def test_all_groups_at_one_pixel_size_and_box(tmp_path):
    """Images of six optics groups in one table: all come with the pixel size and box of most, at one grey scale."""
    for name, images in zip(golden.GROUPS, golden.read_images(), strict=True):
        write_stack(tmp_path / f"{name}.mrcs", images, golden.GROUPS[name]["pixel_size"])
    table = ParticleTable.read(golden.STAR, tmp_path)
    assert (table.box, table.pixel_size) == (golden.BOX, golden.PIXEL_SIZE)
    assert "6 particles of other optics groups (magnification, size, finer) are brought to 48 px" in table.warnings[-1]
    assert table.known_shells.tolist() == [23, 23, 23, 22, 17, 23]
    found = correlations(table)
    assert found.min() > LEAST_CORRELATION, found
