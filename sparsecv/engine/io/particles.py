# SPDX-License-Identifier: GPL-3.0-or-later
"""The particle table: everything that is known of every particle image, checked once, at the door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.checks import (
    ANGLES,
    LARGEST_ANGLE,
    LARGEST_BFACTOR,
    LARGEST_SCALE,
    OLD_SHIFTS,
    SHIFTS,
    check_duplicates,
    check_expanded,
    check_names,
    check_stacks,
    find_particles,
    floats_or,
    merge_links,
    name_groups,
    open_stacks,
    read_angles,
    read_defocus,
    read_halves,
    read_shifts,
    unique_images,
)
from sparsecv.engine.io.door import door_of, known_shell
from sparsecv.engine.io.mrc import ImageStack
from sparsecv.engine.io.optics import OpticsGroup, add_optics_table, common_group, read_optics
from sparsecv.engine.io.paths import IMAGE_NAME, name_to_write, resolve_stacks, split_image_names
from sparsecv.engine.io.star import StarFile, StarTable, positions
from sparsecv.engine.physics.ctf import CtfParameters
from sparsecv.engine.physics.geometry import euler_to_matrix, matrix_to_euler

LARGEST_VALUE = 1e15  # its square still fits float32, so powers of such an image stay finite


@dataclass(frozen=True)
class ParticleTable:
    """Particles of one STAR file; every array has one entry per particle.

    Attributes
    ----------
    star, table_name, path
        The file, the name of its particle table, and where it is.
    optics, optics_index
        Optics groups, and which one each particle belongs to, int32 (n,).
    stacks, stack_index, image_index
        Image files, which of them, int32 (n,), and the image number in it from 0, int64 (n,).
    defocus_u, defocus_v, defocus_angle
        A, A, degrees; underfocus positive. Float64 (n,).
    phase_shift, ctf_bfactor, ctf_scale
        Degrees (default 0), A^2 (default 0), plain factor (default 1). Float64 (n,).
    angles
        RELION's (rot, tilt, psi), degrees, float64 (n, 3), or None where the file has no poses.
    shifts
        RELION's origins (x, y) in A, float64 (n, 2): a particle moved by +shift is centred. 0 where not given. Where
        the magnification is anisotropic, in images without that.
    halves
        Half set, 1 or 2, int8 (n,); all 0 where not given.
    micrograph_index, micrograph_names
        From rlnMicrographName, else the scale group, else the stack. Int32 (n,).
    group_index, group_names
        Groups that share one intensity scale: rlnGroupName, else the micrograph. Int32 (n,).
    identifiers
        Row of each particle in ``star``, from 0, int64 (n,): unchanged by :meth:`select`.
    warnings
        Sentences on what was assumed or ignored.
    common
        Optics group whose pixel size and box are those of all images as they are read.
    """

    star: StarFile
    table_name: str
    path: Path
    optics: tuple[OpticsGroup, ...]
    optics_index: NDArray[np.int32]
    stacks: tuple[Path, ...]
    stack_index: NDArray[np.int32]
    image_index: NDArray[np.int64]
    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    defocus_angle: NDArray[np.float64]
    phase_shift: NDArray[np.float64]
    ctf_bfactor: NDArray[np.float64]
    ctf_scale: NDArray[np.float64]
    angles: NDArray[np.float64] | None
    shifts: NDArray[np.float64]
    halves: NDArray[np.int8]
    micrograph_index: NDArray[np.int32]
    micrograph_names: tuple[str, ...]
    group_index: NDArray[np.int32]
    group_names: tuple[str, ...]
    identifiers: NDArray[np.int64]
    warnings: tuple[str, ...]
    readers: tuple[ImageStack, ...]
    common: int = 0

    @classmethod
    def read(
        cls,
        path: str | Path,
        data_dir: str | Path | None = None,
        *,
        check_images: bool = True,
        independent_halves: bool = True,
        are_expanded: bool = False,
    ) -> ParticleTable:
        """Read and check a particle STAR file of RELION 3.0, 3.1 or 5.

        Parameters
        ----------
        path
            The STAR file.
        data_dir
            Third folder, after the working directory and that of the STAR file, in which image paths are tried.
        check_images
            Find the stacks and compare their headers with the table. Without it images cannot be read.
        independent_halves
            Refuse what makes half sets that are not independent or not there: images that occur twice, all particles in
            one half, a single particle. Without it (reconstruction from known poses) they are only noted.

        are_expanded
            Whether images may occur several times, as after symmetry expansion; all copies have to be in one half set.

        Raises
        ------
        InputError
            Naming file, row, column, value, rule and remedy of the first thing that is wrong.
        """
        star = StarFile.read(path)
        table = find_particles(star, 2 if independent_halves else 1)
        notes = list(star.warnings)
        optics, optics_index = read_optics(star, table, notes)
        names, stack_index, image_index = split_image_names(table)
        readers: list[ImageStack] = []
        stacks, name_index = [Path(name) for name in names], stack_index
        if check_images:
            stacks, stack_index = merge_links(resolve_stacks(names, stack_index, table, data_dir), stack_index)
            readers = open_stacks(stacks, stack_index, table)
            optics = check_stacks(readers, stack_index, image_index, table, optics, optics_index, notes)
        halves = read_halves(table, None if independent_halves else notes)
        images = unique_images(stack_index, image_index)
        if are_expanded:
            check_expanded(images, halves, table)
        else:
            check_duplicates(images, table, None if independent_halves else notes)
        if check_images:
            check_names(names, name_index, stacks, stack_index, table)
        common = common_group(optics, optics_index, table, notes)
        files = [str(path) for path in stacks]
        groups = name_groups(table, ("rlnGroupName", "rlnMicrographName", "rlnGroupNumber"), files, stack_index)
        micrographs = name_groups(table, ("rlnMicrographName", "rlnGroupName", "rlnGroupNumber"), files, stack_index)
        return cls(
            star=star,
            table_name=table.name,
            path=Path(path),
            optics=optics,
            optics_index=optics_index,
            stacks=tuple(stacks),
            stack_index=stack_index,
            image_index=image_index,
            **read_defocus(table, notes),
            phase_shift=floats_or(table, "rlnPhaseShift", 0.0, LARGEST_ANGLE, "degrees, at most 1e4"),
            ctf_bfactor=floats_or(table, "rlnCtfBfactor", 0.0, LARGEST_BFACTOR, "at most 1e4 A^2"),
            ctf_scale=floats_or(table, "rlnCtfScalefactor", 1.0, LARGEST_SCALE, "at most 1e3, 1 by custom"),
            angles=read_angles(table),
            shifts=_turned(read_shifts(table, optics, optics_index), optics, optics_index, back=False),
            halves=halves,
            micrograph_index=micrographs[1],
            micrograph_names=tuple(micrographs[0]),
            group_index=groups[1],
            group_names=tuple(groups[0]),
            identifiers=np.arange(len(table), dtype=np.int64),
            warnings=tuple(notes),
            readers=tuple(readers),
            common=common,
        )

    def __len__(self) -> int:
        return len(self.identifiers)

    @property
    def pixel_size(self) -> float:
        """A, of all images as they are read."""
        return self.optics[self.common].pixel_size

    @property
    def box(self) -> int:
        """Side of all images in pixels, as they are read."""
        return self.optics[self.common].box

    @property
    def smallest_side(self) -> float:
        """A, of the images that show least around their particles."""
        return min(self.optics[k].box * self.optics[k].pixel_size for k in np.unique(self.optics_index).tolist())

    @property
    def known_shells(self) -> NDArray[np.int64]:
        """Highest shell, of images as they are read, that those of each optics group reach, (groups,)."""
        return np.array([known_shell(group, self.box, self.pixel_size) for group in self.optics])

    @property
    def image_shifts(self) -> NDArray[np.float64]:
        """RELION's origins in A, (n, 2), of the images as they are in the files."""
        return _turned(self.shifts, self.optics, self.optics_index, back=True)

    @property
    def has_poses(self) -> bool:
        """Whether the file holds orientations."""
        return self.angles is not None

    @property
    def rotations(self) -> NDArray[np.float64]:
        """RELION's A matrices, map coordinates to image coordinates, shape (n, 3, 3)."""
        if self.angles is None:
            raise InputError(
                "the particles have no orientations",
                file=self.path,
                rule=f"columns {', '.join(ANGLES)}, not all 0",
                remedy="refine globally, or give particles from an earlier refinement",
            )
        return euler_to_matrix(*self.angles.T)

    def ctf_parameters(self) -> CtfParameters:
        """Return the terms of every particle's CTF, for images as :meth:`read_images` gives them."""
        flipped, premultiplied = (
            np.array([getattr(group, name) for group in self.optics])[self.optics_index]
            for name in ("is_flipped", "is_premultiplied")
        )
        shells = self.known_shells
        limits = ((shells + 0.5) / (self.box * self.pixel_size))[self.optics_index] if self.box else np.zeros(0)
        is_limited = bool(self.box) and shells.min() < (self.box - 1) // 2
        return replace(self._recorded_ctf(np.arange(len(self))), is_flipped=flipped if flipped.any() else None,
                       is_premultiplied=premultiplied if premultiplied.any() else None,
                       limit=limits if is_limited else None)  # fmt: skip

    def _recorded_ctf(self, index: NDArray[np.int64]) -> CtfParameters:
        """Terms of the CTFs that some particles were recorded with."""
        optics_index = self.optics_index[index]
        optics = np.array([[g.voltage_kv, g.cs_mm, g.amplitude_contrast] for g in self.optics])[optics_index]
        even = [group.even_polynomial() for group in self.optics]
        terms = max(map(len, even))
        aberrations = np.stack([np.pad(values, (0, terms - len(values))) for values in even])
        return CtfParameters(
            defocus_u=self.defocus_u[index],
            defocus_v=self.defocus_v[index],
            defocus_angle=self.defocus_angle[index],
            phase_shift=self.phase_shift[index],
            bfactor=self.ctf_bfactor[index],
            scale=self.ctf_scale[index],
            voltage_kv=optics[:, 0],
            cs_mm=optics[:, 1],
            amplitude_contrast=optics[:, 2],
            even=aberrations[optics_index] if terms else None,
        )

    def select(self, which: ArrayLike) -> ParticleTable:
        """Return the table of some particles: a boolean mask, or positions in the order wanted."""
        index = positions(which, len(self))
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        chosen: dict[str, Any] = {name: value[index] for name, value in values if isinstance(value, np.ndarray)}
        return replace(self, **chosen)

    def with_optics(self, optics: tuple[OpticsGroup, ...]) -> ParticleTable:
        """Return the table with other optics groups in place of its own: images come in through them from then on."""
        shifts = _turned(self.image_shifts, optics, self.optics_index, back=False)
        return replace(self, optics=optics, shifts=shifts)

    def with_halves(self, seed: int) -> ParticleTable:
        """Return the table with half sets: those given, else drawn at random by the seed, of as many images each."""
        if self.halves.any():
            return self
        images = unique_images(self.stack_index, self.image_index)
        count = int(images.max()) + 1
        halves = np.full(count, 2, dtype=np.int8)
        halves[np.random.default_rng(seed).permutation(count)[: (count + 1) // 2]] = 1
        return replace(self, halves=halves[images])

    def quarters(self) -> NDArray[np.int8]:
        """Return 0 or 1, int8 (n,): two independent quarters of either half, its images taken in turns."""
        quarters = np.zeros(len(self), dtype=np.int8)
        for half in (1, 2):
            members = np.flatnonzero(self.halves == half)
            members = members[np.argsort(self.identifiers[members], kind="stable")]
            quarters[members] = unique_images(self.stack_index[members], self.image_index[members]) % 2
        return quarters

    def read_images(self, which: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read images as the refinement takes them, in the order of the stacks on disk and returned in the order asked.

        Parameters
        ----------
        which
            Positions in this table, (k,).

        Returns
        -------
        images, good
            Float32 (k, box, box) and bool (k,). An image with values that are not finite, beyond 1e15, or all the same
            is not good and is returned as zeros: one bad particle must not stop a run.

        Notes
        -----
        Images of all optics groups come with one pixel size, box and detector's MTF, without anisotropic magnification
        and phases of odd aberrations, and divided by CTFs that they were multiplied by (:mod:`.door`).
        """
        index = np.asarray(which, dtype=np.int64).reshape(-1)
        images = np.zeros((len(index), self.box, self.box), dtype=np.float32)
        good = np.zeros(len(index), dtype=bool)
        groups = self.optics_index[index]
        for stack, members in self._by_stack(index):
            raw = self.readers[stack].read(self.image_index[index[members]])
            good[members] = _extent(raw)[2]
            raw[~good[members]] = 0
            numbers = np.unique(groups[members]).tolist()
            for number in numbers:
                door = door_of(self.optics[number], self.optics[self.common])
                own = groups[members] == number
                rows, part = members[own], raw if len(numbers) == 1 else raw[own]
                images[rows] = part if door is None else door(part, self._recorded_ctf(index[rows]))
        return images, good

    def image_faults(self, which: ArrayLike) -> list[str]:
        """Say for each image why it is not good ("" where it is)."""
        index = np.asarray(which, dtype=np.int64).reshape(-1)
        lowest, highest, good = np.zeros(len(index)), np.zeros(len(index)), np.zeros(len(index), dtype=bool)
        for stack, members in self._by_stack(index):
            raw = self.readers[stack].read(self.image_index[index[members]])
            lowest[members], highest[members], good[members] = _extent(raw)
        faults = []
        for low, high, is_good in zip(lowest, highest, good, strict=True):
            if is_good:
                faults.append("")
            elif not np.isfinite([low, high]).all():
                faults.append("image holds NaN or infinite values")
            else:
                faults.append("image is constant" if low == high else "image values beyond 1e15")
        return faults

    def write(
        self,
        path: str | Path,
        *,
        rotations: ArrayLike | None = None,
        shifts: ArrayLike | None = None,
        halves: ArrayLike | None = None,
        columns: Mapping[str, ArrayLike | Sequence[str]] | None = None,
        keep: ArrayLike | None = None,
        optics: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Write the particles as RELION 3.1 or later has them; what is not given is kept as it was read.

        Parameters
        ----------
        path
            The STAR file to write.
        rotations, shifts, halves
            New poses (n, 3, 3), origins in A (n, 2) and half sets (n,), by default those of the table.
        columns
            Further columns by name, one value per particle.
        keep
            Mask or positions: which particles to write. Arrays still have one entry per particle of this table.
        optics
            Columns of the optics table by name, one value per group.

        Notes
        -----
        A RELION 3.0 file gets an optics table and origins in A. Image paths stay as they are where they lead to the
        same file from the working directory, and become absolute otherwise.
        """
        index = np.arange(len(self)) if keep is None else positions(keep, len(self))
        star = self.star.copy()
        table = star.table(self.table_name)
        table.keep(self.identifiers[index])
        if "optics" not in star:
            table = self._upgrade(star, index)
        if self.readers:
            self._write_image_names(table, index)
        if rotations is not None:
            angles = matrix_to_euler(np.asarray(rotations, dtype=np.float64)[index])
            for column, values in zip(ANGLES, angles.T, strict=True):
                table.set(column, values, "%.6f")
        if shifts is None and any(column in table for column in OLD_SHIFTS):
            shifts = self.shifts
        if shifts is not None:
            origins = _turned(np.asarray(shifts, dtype=np.float64), self.optics, self.optics_index, back=True)[index]
            for column, old, values in zip(SHIFTS, OLD_SHIFTS, origins.T, strict=True):
                table.set(column, values, "%.6f")
                table.drop(old)
        subsets = self.halves if halves is None else np.asarray(halves)
        if subsets.any():
            table.set("rlnRandomSubset", subsets[index].astype(np.int64))
        for column, given in (columns or {}).items():
            texts = list(given) if isinstance(given, (list, tuple)) else np.asarray(given).tolist()
            table.set(column, [texts[row] for row in index.tolist()])
        for column, values in (optics or {}).items():
            star.table("optics").set(column, values)
        star.write(path)

    def _by_stack(self, index: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each stack, and which of the rows ``index`` are in it."""
        stack_of = self.stack_index[index]
        for stack in np.unique(stack_of).tolist():
            yield stack, np.flatnonzero(stack_of == stack)

    def _upgrade(self, star: StarFile, index: NDArray[np.int64]) -> StarTable:
        star.rename(self.table_name, "particles")
        add_optics_table(star, star.table("particles"), self.optics, self.optics_index[index])
        star.move_first("optics")
        return star.table("particles")

    def _write_image_names(self, table: StarTable, index: NDArray[np.int64]) -> None:
        names, name_index, numbers = split_image_names(table)
        stack_of_name = np.zeros(len(names), dtype=np.int64)
        stack_of_name[name_index] = self.stack_index[index]
        targets = [str(self.stacks[stack]) for stack in stack_of_name]
        written = [name_to_write(name, target) for name, target in zip(names, targets, strict=True)]
        if written != names:
            rows = zip(numbers.tolist(), name_index.tolist(), strict=True)
            table.set(IMAGE_NAME, [f"{number + 1:06d}@{written[name]}" for number, name in rows])


def _turned(
    shifts: NDArray[np.float64], optics: tuple[OpticsGroup, ...], index: NDArray[np.int32], *, back: bool
) -> NDArray[np.float64]:
    """Origins of images without anisotropic magnification M, o M^-1 as rows, of those of the images; or ``back``."""
    found = shifts
    for number, group in enumerate(optics):
        if group.is_distorted:
            found = found.copy() if found is shifts else found
            found[index == number] = shifts[index == number] @ (group.matrix if back else np.linalg.inv(group.matrix))
    return found


def _extent(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    lowest, highest = flat.min(axis=1), flat.max(axis=1)  # NaN wins in both
    with np.errstate(invalid="ignore"):
        good = (highest > lowest) & (highest < LARGEST_VALUE) & (lowest > -LARGEST_VALUE)
    return lowest, highest, good
