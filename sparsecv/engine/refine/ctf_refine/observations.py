# SPDX-License-Identifier: GPL-3.0-or-later
"""Images beside what their own half's map predicts, at the poses given.

    X = s C P + noise,   C = E sin(gamma),   log-likelihood = -1/2 sum_j |X_j - s C_j P_j|^2 / sigma_j^2

with the slice P of the particle's *own* half map, as in a refinement: what a particle learns never comes from the other
half. Images are not masked: P is small where nothing is to be seen, and what the CTF has spread beyond the particle's
circle counts.

The particle itself is in that map, C_0 X / N in each of its Fourier pixels, with the CTF C_0 that it was thought to
have and N = sum C_0^2 of all. Its noise therefore fits C_0, and would hold every parameter where it was. What it has
left there is taken out:

    P <- P - kappa W M [C_0 (X - s C_0 P) / (N - m C_0^2)]

exact with kappa = 1 where the map is sum C_0 X / sum C_0^2 at one pose each and N does not depend on direction. M
multiplies in real space by the mean of the mask along the view, which is what a mask in 3D leaves of a plane in Fourier
space, m is its mean, and W the filter of the references. kappa, one number, is measured: it is how much better images
correlate with their own half's map than with the other one, over what the formula says. It is 0 where the maps were not
made of these particles, and below 1 where poses were uncertain or there is symmetry.

How much of P there is in images is measured, too, shell by shell of each half, and P multiplied by it: the FSC of maps
whose poses were fitted to noise promises too much, and shells of noise would speak as loudly as those of signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import phase_terms
from sparsecv.engine.physics.disc import Disc, make_disc
from sparsecv.engine.physics.fourier import backward, forward, shell_counts, shell_indices
from sparsecv.engine.physics.geometry import euler_to_matrix
from sparsecv.engine.refine.images import powers_of, shell_table
from sparsecv.engine.refine.noise import LEAST_NOISE, SCALE_LIMIT
from sparsecv.engine.refine.volumes import PADDING, map_to_volume

LARGEST_PART = 1 << 21  # pixels of a batch: it takes some 100 bytes for each
KAPPA_IMAGES = 2000  # about so many tell kappa
LEAST_KAPPA, LARGEST_KAPPA = 0.02, 1.2  # below the one nothing is taken out; few particles tell kappa badly
ANOTHER_GREY = 1.5  # scales beyond this factor are those of maps, not of images
MASK_SHELLS = 16  # of the mask along the view: masks are soft
LARGEST_AMPLITUDE = 1.5  # of a shell of the references


@dataclass(frozen=True)
class References:
    """Both half maps, masked and weighted by their FSC, as Fourier volumes.

    Attributes
    ----------
    volumes
        Of half sets 1 and 2.
    moments
        Of either, the volumes of x V, y V and z V (pixels from the centre); empty where no gradient is needed.
    mask, mask_mean
        Volume of the mask, shells up to `MASK_SHELLS`; its mean over the box.
    weights
        (last_shell + 1,) W, the filter.
    last_shell
        Highest shell compared.
    """

    volumes: tuple[Any, Any]
    moments: tuple[tuple[Any, ...], tuple[Any, ...]]
    mask: Any
    mask_mean: float
    weights: np.ndarray
    last_shell: int

    @classmethod
    def of(cls, ops: Any, maps: tuple[np.ndarray, np.ndarray], support: np.ndarray, fsc: np.ndarray, last_shell: int,
           *, with_moments: bool) -> References:
        """References of half maps (box, box, box).

        With signal power S and noise power N of a half map, FSC = S / (S + N) is also the factor of the Wiener filter
        that makes the best estimate of V of it.
        """
        box = len(support)
        weights = np.zeros(int(shell_indices(box).max()) + 1, dtype=np.float32)
        weights[: last_shell + 1] = np.clip(fsc[: last_shell + 1], 0, 1)
        axis = np.arange(box, dtype=np.float32) - box // 2
        axes = (axis, axis[:, None], axis[:, None, None])  # x, y, z of (z, y, x)
        volumes, moments = [], []
        for density in maps:
            transform = forward((density * support).astype(np.float32))
            transform *= weights[shell_indices(box)]
            filtered = backward(transform).astype(np.float32)
            volumes.append(map_to_volume(ops, ops.xp.asarray(filtered), last_shell))
            parts = axes if with_moments else ()
            moments.append(tuple(map_to_volume(ops, ops.xp.asarray(filtered * coordinate), last_shell)
                                 for coordinate in parts))  # fmt: skip
        mask = map_to_volume(ops, ops.xp.asarray(support.astype(np.float32)), min(MASK_SHELLS, last_shell))
        used = weights[: last_shell + 1].astype(np.float64)
        return cls((volumes[0], volumes[1]), (moments[0], moments[1]), mask, float(support.mean()), used, last_shell)


@dataclass(frozen=True)
class Observed:
    """Images of some rows of the table and what is expected of them, at the disc's pixels; arrays are on the device.

    Attributes
    ----------
    rows
        (I,) of the table.
    images, slices
        (I, J) complex64: X, centred, and s P; an image that cannot be used has a slice of 0.
    inverse
        (I, J) float32, 1 / sigma^2.
    phase, envelope
        (I, J) float32: gamma in radians and E, which is 0 where an image holds nothing.
    own
        (I, J) complex64: what was taken out of P, without s; None where nothing was.
    """

    rows: np.ndarray
    images: Any
    slices: Any
    inverse: Any
    phase: Any
    envelope: Any
    own: Any = None

    def products(self) -> tuple[Any, Any]:
        """E conj(s P) X / sigma^2, complex64, and E^2 |s P|^2 / sigma^2, float32, (I, J) each."""
        weighted = self.envelope * self.inverse
        power = (self.slices.real**2 + self.slices.imag**2) * weighted * self.envelope
        return self.slices.conj() * self.images * weighted, power


@dataclass(frozen=True)
class Observer:
    """All that is known of the particles now; makes `Observed` of some of them.

    Attributes
    ----------
    ops, table, references, disc
        Kernels, particles as they are thought to be now, references, pixels compared.
    norm
        (n,) factors by which images are divided.
    scale
        (n,) s of each particle: that of its group among the particles of its half.
    amplitude
        (2, shells) factors of the references of either half.
    noise, noise_row
        (2 x optics groups, shells) sigma^2 of each half and optics group, and which one each particle has, (n,).
    given
        The particles as the half maps were made of them.
    share
        (2, shells) N / kappa of either half map, in images with a CTF of 1; infinite where nothing is taken out.
    power
        (2, shells) sum of C_0^2 over the images and pixels of either half; None before it is measured.
    store
        Gives images of some rows as the table ``given`` has them, (I, box, box) float32 on the device, where they need
        not be read.
    """

    ops: Any
    table: ParticleTable
    references: References
    disc: Disc
    norm: np.ndarray
    scale: np.ndarray
    amplitude: np.ndarray
    noise: np.ndarray
    noise_row: np.ndarray
    given: ParticleTable
    share: np.ndarray
    power: np.ndarray | None = None
    store: Callable[[np.ndarray], Any] | None = None

    @classmethod
    def of(cls, ops: Any, table: ParticleTable, references: References, norm: np.ndarray) -> Observer:
        """An observer with scales, amplitudes and noise of 1, to be measured by `measured`."""
        disc = make_disc(table.box, references.last_shell)
        row = (table.halves - 1).astype(np.int64) * len(table.optics) + table.optics_index
        noise = np.ones((2 * len(table.optics), disc.last + 1))
        share = np.full((2, disc.last + 1), np.inf)
        ones = np.ones(len(table)), np.ones((2, disc.last + 1))
        return cls(ops, table, references, disc, norm, *ones, noise, row, table, share)

    @property
    def frequency(self) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of the disc's pixels, (J,) each, 1/A."""
        length = self.table.box * self.table.pixel_size
        return self.disc.kx / length, self.disc.ky / length

    def batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Some rows in parts that fit into memory, images of one stack after another."""
        size = max(1, LARGEST_PART // len(self.disc))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def micrographs(self) -> Iterator[np.ndarray]:
        """All rows in parts of whole micrographs; one of more particles than fit is a part of its own."""
        index = self.table.micrograph_index
        order = np.argsort(index, kind="stable")
        starts = np.flatnonzero(np.diff(index[order], prepend=-1))
        size, first = max(1, LARGEST_PART // len(self.disc)), 0
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            if start > first and end - first > size:
                yield order[first:start]
                first = start
        yield order[first:]

    def observe(self, rows: np.ndarray) -> Observed:
        """Images of some rows, their slices and CTFs."""
        images, good = self._images(self.table, rows)
        phase, envelope = self.optics_of(self.table, rows)
        slices = self.slices_of(self.references.volumes, rows, self.rotations(rows))
        own = None
        if np.isfinite(self.share).all():
            is_as_given = self.given.optics == self.table.optics
            own = self.own_part(rows, images if is_as_given else self._images(self.given, rows)[0], slices)
            slices -= own
        slices *= self.factors(rows) * self.ops.xp.asarray(good)[:, None]
        inverse = shell_table(self.ops, 1 / self.noise, self.noise_row[rows], self.disc)
        return Observed(rows, images, slices, inverse, phase, envelope, own)

    def factors(self, rows: np.ndarray) -> Any:
        """Scale times amplitude of some rows at the disc's pixels, (I, J) float32."""
        amplitude = shell_table(self.ops, self.amplitude, self.table.halves[rows] - 1, self.disc)
        return amplitude * self.ops.xp.asarray(self.scale[rows].astype(np.float32))[:, None]

    def _images(self, table: ParticleTable, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """Centred transforms (I, J) complex64 of images as a table says that they are, and which are good (I,)."""
        xp, pixels, box = self.ops.xp, self.disc.on(self.ops.xp), table.box
        if self.store is not None and table.optics == self.given.optics:
            images, good = self.store(rows), np.ones(len(rows), dtype=bool)
        else:
            read, good = table.read_images(rows)
            images = xp.asarray(read)
        images = images / xp.asarray(self.norm[rows].astype(np.float32))[:, None, None]
        transforms = self.ops.rfft2(images).reshape(len(rows), -1).take(pixels.flat, axis=1).astype(xp.complex64)
        transforms *= xp.float32(1 / box)
        # One shift centres the particle and brings the image's centre to pixel 0.
        shifts = xp.asarray((table.shifts[rows] / table.pixel_size - box // 2)[:, None, :].astype(np.float32))
        return self.ops.shift_images(transforms, shifts, pixels.kx, pixels.ky, box)[:, 0], good

    def own_part(self, rows: np.ndarray, images: Any, slices: Any) -> Any:
        """What is in the slices (I, J) of the particles themselves beyond their signal, complex64."""
        xp, disc, box = self.ops.xp, self.disc, self.table.box
        phase, envelope = self.optics_of(self.given, rows)
        values = envelope * xp.sin(phase)
        expected = xp.asarray(self.scale[rows].astype(np.float32))[:, None] * values * slices
        weights = xp.asarray(self.references.weights[disc.shell].astype(np.float32))
        inner = disc.crop(min(MASK_SHELLS, disc.last))
        mask, mean = self.references.mask, np.float32(self.references.mask_mean)
        along = self._planes(self.slices_of((mask, mask), rows, self.rotations(rows), inner), inner)
        along = along / xp.float32(box) + mean  # the disc does not hold the mean
        share = shell_table(self.ops, self.share, self.table.halves[rows] - 1, disc)
        left = xp.maximum(share - mean * values**2, share / 4)
        residual = values * (images - expected / weights) / left
        masked = self._planes(residual, disc) * along
        flat = disc.on(xp).flat
        own = self.ops.rfft2(masked.astype(xp.float32)).reshape(len(rows), -1).take(flat, axis=1)
        return (own * (weights / xp.float32(box))).astype(xp.complex64)

    def gradients(self, values: Any) -> list[Any]:
        """Derivatives along k_x and k_y of transforms (I, J) of images, (I, J) complex64 each: of -2 pi i r / box."""
        xp, planes, box = self.ops.xp, self._planes(values, self.disc), self.table.box
        r = xp.asarray((np.fft.fftfreq(box) * box).astype(np.float32))
        factor = np.complex64(-2j * np.pi / box**2)
        flat = self.disc.on(xp).flat
        return [self.ops.rfft2(planes * axis).reshape(len(values), -1).take(flat, axis=1) * factor
                for axis in (r, r[:, None])]  # fmt: skip

    def _planes(self, values: Any, disc: Disc) -> Any:
        """Images (I, box, box) with their centre at pixel 0 of the pixels (I, J) of a disc, float32."""
        xp, box = self.ops.xp, self.table.box
        half = xp.zeros((len(values), box * (box // 2 + 1)), dtype=xp.complex64)
        half[:, disc.on(xp).flat] = values * xp.float32(box)
        planes = half.reshape(len(values), box, box // 2 + 1)
        mates = disc.ky[disc.kx == 0]  # the disc has one of each pair; the column k_x = 0 of a half transform both
        planes[:, xp.asarray(-mates % box), 0] = planes[:, xp.asarray(mates), 0].conj()
        return self.ops.irfft(self.ops.ifft(planes, 1), box)

    def rotations(self, rows: np.ndarray) -> np.ndarray:
        """A of some rows, (I, 3, 3)."""
        assert self.table.angles is not None, "checked when the particles were read"
        return euler_to_matrix(*self.table.angles[rows].T)

    def slices_of(self, volumes: tuple[Any, Any], rows: np.ndarray, rotations: np.ndarray,
                  disc: Disc | None = None) -> Any:
        """Slices (I, J) complex64 of each particle's own half's volume, at rotations (I, 3, 3), by default all."""
        xp, disc = self.ops.xp, self.disc if disc is None else disc
        pixels, found = disc.on(xp), xp.empty((len(rows), len(disc)), dtype=xp.complex64)
        for half, volume in enumerate(volumes, start=1):
            own = np.flatnonzero(self.table.halves[rows] == half)
            if len(own):
                turned = xp.asarray(rotations[own].astype(np.float32))
                found[xp.asarray(own)] = self.ops.extract_slices(volume, turned, pixels.kx, pixels.ky, PADDING)
        return found

    def optics_of(self, table: ParticleTable, rows: np.ndarray) -> tuple[Any, Any]:
        """gamma and E of some rows of a table, (I, J) float32 each."""
        xp, p = self.ops.xp, table.select(rows).ctf_parameters()
        powers = powers_of(self.disc, table.pixel_size, xp, 0 if p.even is None else p.even.shape[1])
        phase = (xp.asarray(phase_terms(p)) @ powers).astype(xp.float32)
        square = powers[0] + powers[2]
        envelope = xp.asarray(p.scale)[:, None] * xp.exp(xp.asarray(-p.bfactor / 4)[:, None] * square)
        if p.limit is not None:
            envelope = envelope * (square <= xp.asarray(p.limit**2)[:, None])
        return phase, envelope.astype(xp.float32)


def measured(observer: Observer, files: tuple[Path, ...]) -> Observer:
    """The observer with scales of the groups, amplitudes and noise spectra measured, each half by itself.

    s = sum Re(conj(C P) X) / sigma^2 / sum |C P|^2 / sigma^2 of a group of one half, within 5 x of the median of that
    half; the amplitude of a shell likewise of all images of a half; and sigma^2 = mean |X - s C P|^2 / 2 per half,
    optics group and shell.

    Parameters
    ----------
    files
        Of the half maps, for messages.

    Raises
    ------
    InputError
        Where a half map does not correlate with its own images.
    """
    table, disc = observer.table, observer.disc
    plain = replace(observer, scale=np.ones(len(table)), amplitude=np.ones_like(observer.amplitude),
                    noise=np.ones_like(observer.noise))  # fmt: skip
    keys = observer.noise_row * len(table.group_names) + table.group_index
    unique, place = np.unique(keys, return_inverse=True)
    sums = np.zeros((4, len(unique), disc.last + 1))
    counts = np.zeros(len(unique))
    for rows in plain.batches(np.arange(len(table))):
        seen = plain.observe(rows)
        for total, part in zip(sums, shell_sums(observer, seen), strict=True):
            np.add.at(total, place[rows], part)
        np.add.at(counts, place[rows], 1)
    scale, amplitude, noise = _levels(observer, sums[:3], counts, unique, place, files)
    if observer.power is None:
        total = np.zeros_like(observer.share)
        np.add.at(total, unique // len(table.group_names) // len(table.optics), sums[3])
        observer = replace(observer, power=total)
    return replace(observer, scale=scale, amplitude=amplitude, noise=noise)


def shell_sums(observer: Observer, seen: Observed) -> list[np.ndarray]:
    """Of each image and shell |X|^2, Re(conj(C P) X) / sigma^2, |C P|^2 / sigma^2 and C^2, (I, shells) float64 each."""
    ops, sine = observer.ops, observer.ops.xp.sin(seen.phase)
    product, power = seen.products()
    parts = (seen.images.real**2 + seen.images.imag**2, sine * product.real, sine**2 * power,
             (seen.envelope * sine) ** 2)  # fmt: skip
    offsets = observer.disc.on(ops.xp).offsets
    return [ops.to_host(ops.sum_disc_shells(part, offsets)) for part in parts]


def without_own(observer: Observer) -> tuple[Observer, float]:
    """The observer that takes the particles out of their references, and kappa; scales and noise are measured.

    Both half maps are compared with some of the images, and all that comes of it is kappa.
    """
    table = observer.table
    assert observer.power is not None, "measured"
    share = full_share(observer, observer.power, float(np.median(observer.scale)))
    few = max(1, len(table) // KAPPA_IMAGES)
    excess, expected = own_excess(replace(observer, share=share), np.arange(0, len(table), few))
    kappa = kappa_of(excess, expected)
    return replace(observer, share=shared(share, kappa)), kappa


def full_share(observer: Observer, power: np.ndarray, grey: float = 1.0) -> np.ndarray:
    """N of either half map in images with a CTF of 1, (2, shells).

    A shell of the map has sum C_0^2 of all images over their pixels in it, ``power``, for each of its voxels. ``grey``
    is the scale of the map in images; it is too high by some per cent, as particles are still in it.
    """
    # of each pair of mates the disc has one
    share = np.maximum(2 * power / np.maximum(shell_counts(observer.table.box)[: observer.disc.last + 1], 1), 1e-6)
    share[:, 0] = share[:, 1]
    if not 1 / ANOTHER_GREY < grey < ANOTHER_GREY:  # a map of another grey scale than that of the images
        share *= grey
    return share


def own_excess(full: Observer, rows: np.ndarray) -> tuple[float, float]:
    """By how much some images fit their own half map better than the other one, and by how much with a kappa of 1.

    ``full`` takes all of the particles out of their maps, of which two sums come here.
    """
    xp, whole = full.ops.xp, replace(full, share=np.full_like(full.share, np.inf))
    excess = expected = 0.0
    for part in full.batches(rows):
        seen = whole.observe(part)
        weighted = seen.images * (seen.inverse * seen.envelope * xp.sin(seen.phase)) * full.factors(part)
        weighted *= seen.slices.any(axis=1)[:, None]
        slices, other = (full.slices_of(volumes, part, full.rotations(part))
                         for volumes in (full.references.volumes, full.references.volumes[::-1]))  # fmt: skip
        own = full.own_part(part, seen.images, slices)
        excess += float(((slices - other).conj() * weighted).real.sum(dtype=xp.float64))
        expected += float((own.conj() * weighted).real.sum(dtype=xp.float64))
    return excess, expected


def kappa_of(excess: float, expected: float) -> float:
    """kappa of the sums of `own_excess`."""
    return float(np.clip(excess / expected, 0, LARGEST_KAPPA)) if expected > 0 else 0.0


def shared(share: np.ndarray, kappa: float) -> np.ndarray:
    """N / kappa; infinite where nothing is to be taken out."""
    return share / kappa if kappa > LEAST_KAPPA else np.full_like(share, np.inf)


def _levels(observer: Observer, sums: np.ndarray, counts: np.ndarray, unique: np.ndarray, place: np.ndarray,
            files: tuple[Path, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales (n,), amplitudes and noise of |X|^2, Re(conj(C P) X), |C P|^2 of groups of one half and optics group."""
    table, disc = observer.table, observer.disc
    power, cross, signal = sums
    row, group = unique // len(table.group_names), unique % len(table.group_names)
    half = row // len(table.optics)
    pixels = np.maximum(np.diff(disc.offsets), 1)
    total, number = np.zeros_like(observer.noise), np.zeros(len(observer.noise))
    np.add.at(total, row, power)
    np.add.at(number, row, counts)
    noise = np.maximum(total / (2 * pixels * np.maximum(number, 1)[:, None]), LEAST_NOISE)
    noise[number == 0] = 1
    groups, of = np.unique(half * len(table.group_names) + group, return_inverse=True)
    fits = np.zeros((2, len(groups)))
    np.add.at(fits[0], of, (cross / noise[row]).sum(axis=1))
    np.add.at(fits[1], of, (signal / noise[row]).sum(axis=1))
    scale = fits[0] / np.maximum(fits[1], 1e-30)
    of_half = groups // len(table.group_names)
    for number_of_half in (0, 1):
        own = of_half == number_of_half
        middle = fits[0][own].sum() / max(fits[1][own].sum(), 1e-30)
        if not middle > 0:
            raise InputError(f"the map of half set {number_of_half + 1} does not fit its images at their poses",
                             file=files[number_of_half], value=round(float(middle), 4), item="scale of the map",
                             rule="positive", remedy="give the half maps of these particles and poses")  # fmt: skip
        scale[own] = np.clip(scale[own], middle / SCALE_LIMIT, middle * SCALE_LIMIT)
    scales = scale[of]
    cross, signal = scales[:, None] * cross, scales[:, None] ** 2 * signal
    amplitude = amplitudes(cross / noise[row], signal / noise[row], half)
    factors = amplitude[half]
    residual = power - 2 * factors * cross + factors**2 * signal
    total[:] = 0
    np.add.at(total, row, residual)
    noise = np.where(number[:, None] > 0, total / (2 * pixels * np.maximum(number, 1)[:, None]), 1)
    noise = np.maximum(noise, LEAST_NOISE)
    noise[:, 0] = noise[:, 1]
    return scales[place], amplitude, noise


def amplitudes(cross: np.ndarray, signal: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Factors (2, shells) of the references of sums over images of one half each, (U, shells), over sigma^2."""
    fitted = np.stack([[part[half == number].sum(axis=0) for number in (0, 1)] for part in (cross, signal)])
    found = np.clip(fitted[0] / np.maximum(fitted[1], 1e-30), 0, LARGEST_AMPLITUDE)
    found[:, 0] = 1  # the disc has no pixel there
    return found
