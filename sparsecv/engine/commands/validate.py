# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv validate``: a map against an atomic model."""

from __future__ import annotations

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import InputError, tell
from sparsecv.engine.model_map.settings import ValidateSettings

SETTINGS = ValidateSettings


def run(settings: ValidateSettings, save: Save) -> int:
    """Validate, print what was found, and write everything into the output folder."""
    from sparsecv.engine.commands.maps import warn
    from sparsecv.engine.io.models import read_structure
    from sparsecv.engine.io.mrc import read_map
    from sparsecv.engine.io.results import refuse_to_overwrite, remove_results, write_checksums
    from sparsecv.engine.model_map.files import WRITTEN, write_validation
    from sparsecv.engine.model_map.results import Options
    from sparsecv.engine.model_map.validation import validate
    from sparsecv.engine.threads import use_threads

    s = settings
    inputs = (s.model, s.map, s.half1, s.half2, s.mask, s.versus)
    refuse_to_overwrite(s.output, WRITTEN, inputs)
    workers = use_threads(s.threads)
    left_away: list[str] = []
    structure = read_structure(s.model, assembly=s.assembly, said=left_away)
    density, half1, half2, mask, versus = (
        None if path is None else read_map(path, cubic=False, pixel_size=s.pixel_size)
        for path in (s.map, s.half1, s.half2, s.mask, s.versus)
    )
    assert density is not None
    left_away += [text for one in (density, half1, half2, mask, versus) if one is not None for text in one.warnings]
    halves = None if half1 is None or half2 is None else (half1, half2)
    options = Options(s.fit, s.frame, s.origin_xyz, s.resolution, s.level, s.bfactors, s.mask_radius, s.mask_edge,
                      s.sharpening, s.q_sigma, not s.no_chains, s.seed)  # fmt: skip
    try:
        found = validate(density, structure, options, halves=halves, mask=mask, versus=versus, workers=workers,
                         progress=lambda text: tell(f"{text} ..."))  # fmt: skip
    except InputError as error:
        raise error.about(f"{s.model} and {s.map}") from error
    names = {"model": str(s.model), "map": str(s.map)} | ({} if s.versus is None else {"versus": str(s.versus)})
    s.output.mkdir(parents=True, exist_ok=True)
    remove_results(s.output, inputs, WRITTEN)
    save(s.output / "validate.toml")
    written = write_validation(found, s.output, names=names)
    write_checksums(s.output, WRITTEN)
    warn([*left_away, *found.warnings])
    for text in found.notes:
        tell(text)
    tell(f"resolution for mask, model density and correlations: {found.resolution:.2f} A, {found.resolution_source}")
    tell(f"phases of the control are random from {found.randomised_from:.2f} A on")
    tell(f"FSC 0.5: {found.masked.at_05} in the mask, {found.unmasked.at_05} without")
    tell(f"FSC 0.143: {found.masked.at_0143} in the mask, {found.unmasked.at_0143} without")
    tell(f"FSC 0.5, corrected for the mask: {found.corrected_at_05}; mean FSC {found.fsc_average:.3f}")
    if found.halves is not None:
        over = found.halves.over_fit
        tell(f"half maps at FSC 0.143: {found.halves.resolution}; model against half 1 less half 2: "
             f"{over.difference:.4f} +- {over.error:.4f}")  # fmt: skip
    if found.versus is not None:
        tell(f"{s.versus}, FSC 0.5: {found.versus.masked.at_05} in the mask")
    whole = found.scores.whole
    tell(f"CC_mask {whole.mask:.3f}, CC_volume {whole.volume:.3f}, CC_peaks {whole.peaks:.3f}, CC_box {whole.box:.3f}")
    tell(f"Q-score {found.scores.q_score:.3f}; {found.scores.inclusion:.1%} of the atoms inside at level "
         f"{found.scores.level:.4g}")  # fmt: skip
    worst = ", ".join(str(found.atoms.residues[k]) for k in found.scores.worst(found.atoms, 5))
    tell(f"lowest Q-scores: {worst or 'none'}")
    tell(f"results in {s.output}: {', '.join(written)}")
    return 0
