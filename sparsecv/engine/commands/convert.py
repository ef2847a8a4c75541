# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv convert``: particles of cryoSPARC as a STAR file, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import InputError, tell
from sparsecv.engine.settings import option, required, settings_beside

KINDS = {(".cs", ".star"), (".star", ".cs")}


@dataclass(frozen=True)
class ConvertSettings:
    """Files to convert; checked when it is made."""

    particles: Path = required("particles: .cs of cryoSPARC, or .star of RELION", positional=True)
    output: Path = required("file to write: .star, or .cs", positional=True)
    passthrough: tuple[Path, ...] = option((), "cryoSPARC's passthrough file of the same job; may be given again")
    original: Path | None = option(None, "to .cs: the .cs file the particles came from, whose other fields are kept")
    aberrations: str = option("specter", "whose sign of cryoSPARC's beam tilt, trefoil and shift is taken; none leaves "
                              "all aberrations out", choices=("specter", "pyem", "none"))

    def __post_init__(self) -> None:
        kinds = (self.particles.suffix, self.output.suffix)
        if kinds not in KINDS:
            raise InputError("cannot be converted", item=f"{self.particles} to {self.output}",
                             rule=".cs to .star, or .star to .cs", remedy="let the names of the files end so")
        if self.original is not None and self.output.suffix != ".cs":
            raise InputError("is kept only in a .cs file", item="original", value=str(self.original),
                             rule="an output that ends in .cs", remedy="leave --original away")
        if self.passthrough and self.output.suffix == ".cs" and self.original is None:
            raise InputError("belongs to a .cs file, and none is read", item="passthrough",
                             value=str(self.passthrough[0]), rule="--original with --passthrough",
                             remedy="give that file with --original")


SETTINGS = ConvertSettings


def run(settings: ConvertSettings, save: Save) -> int:
    """Convert, and say what the new file does not hold."""
    from sparsecv.engine.commands.maps import warn
    from sparsecv.engine.io.cryosparc import cs_of_star, star_of_cs
    from sparsecv.engine.io.cs_table import read_cs, write_cs
    from sparsecv.engine.io.results import refuse_to_replace

    inputs = settings.particles, *settings.passthrough, settings.original
    refuse_to_replace([settings.output, settings.output.with_suffix(".toml")], inputs)
    record = settings_beside(settings.output, "convert")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    if settings.output.suffix == ".star":
        table = read_cs(settings.particles, settings.passthrough)
        star, notes = star_of_cs(table, settings.particles, settings.aberrations)
        star.write(settings.output)
    else:
        original = None if settings.original is None else read_cs(settings.original, settings.passthrough)
        table, notes = cs_of_star(settings.particles, original, settings.aberrations)
        write_cs(settings.output, table)
    save(record)
    warn(notes)
    tell(f"written: {settings.output}, {len(table)} particles")
    return 0
