# SPDX-License-Identifier: GPL-3.0-or-later
"""``sparsecv postprocess``: masked FSC, sharpening and filtering of two half maps."""

from __future__ import annotations

from sparsecv.engine.commands import Save
from sparsecv.engine.errors import tell
from sparsecv.engine.validate.settings import PostprocessSettings

SETTINGS = PostprocessSettings
RESULTS = ("postprocess.mrc", "postprocess_masked.mrc", "postprocess.star")


def run(settings: PostprocessSettings, save: Save) -> int:
    """Write RELION's files of a post-processing, pictures, what a deposition takes, and the settings."""
    from sparsecv.engine.commands.maps import read_halves, read_mask, warn
    from sparsecv.engine.io.results import refuse_to_overwrite, remove_results
    from sparsecv.engine.report.deposition import WRITTEN, Reconstruction, Sources, write_deposition
    from sparsecv.engine.report.plots import plot_fsc, plot_slices
    from sparsecv.engine.threads import use_threads
    from sparsecv.engine.validate.fsc_files import write_postprocess
    from sparsecv.engine.validate.postprocess import postprocess

    workers = use_threads(settings.threads)
    inputs = (settings.half1, settings.half2, settings.mask, settings.mtf)
    refuse_to_overwrite(settings.output, (*RESULTS, *WRITTEN), inputs)
    half1, half2 = read_halves(settings.half1, settings.half2, settings.pixel_size)
    result = postprocess(
        half1.data,
        half2.data,
        half1.pixel_size,
        mask=read_mask(settings.mask, half1, settings.pixel_size),
        mtf=settings.mtf,
        mtf_pixel_size=settings.mtf_pixel_size,
        bfactor=settings.bfactor,
        autob_lowres=settings.autob_lowres,
        autob_highres=settings.autob_highres,
        low_pass=settings.low_pass,
        fsc_weighting=not settings.no_fsc_weighting,
        force_mask=settings.force_mask,
        seed=settings.seed,
        workers=workers,
    )
    warn(result.warnings)
    folder = settings.output
    folder.mkdir(parents=True, exist_ok=True)
    remove_results(folder, inputs, WRITTEN)
    mask_name = None if settings.mask is None else str(settings.mask)
    names = (str(settings.half1), str(settings.half2))
    files = write_postprocess(result, folder, half_names=names, mask_name=mask_name)
    prepared = None
    if not settings.no_deposition:
        sources = Sources(files["map"], files["xml"], (settings.half1, settings.half2), False, files.get("mask"))
        prepared = write_deposition(folder, result, sources, (half1.data, half2.data), Reconstruction(),
                                    lambda text: warn([text]))
    curves = {"mask-corrected": result.curves.corrected, "masked": result.curves.masked,
              "unmasked": result.curves.unmasked, "sphere": result.curves.spherical,
              "random phases": result.curves.randomised}
    box = result.map.shape[0]
    plot_fsc(folder / "postprocess_fsc.png", curves, box, result.pixel_size, without_crossing=("random phases",))
    plot_slices(folder / "postprocess_slices.png", result.map, result.pixel_size, title="Sharpened map")
    save(folder / "postprocess.toml")
    bfactor = "none: not sharpened" if result.bfactor is None else f"{result.bfactor:.1f} A^2"
    tell(f"resolution {result.resolution_0143} at 0.143, {result.resolution_05} at 0.5; "
         f"final resolution {result.final_resolution:.2f} A; B-factor {bfactor}")
    deposition = "" if prepared is None else f", {prepared.name} (for a deposition)"
    tell(f"results in {folder}: postprocess.mrc, postprocess_masked.mrc, postprocess.star, pictures{deposition}")
    return 0
