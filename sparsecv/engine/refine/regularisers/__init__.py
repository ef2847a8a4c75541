# SPDX-License-Identifier: GPL-3.0-or-later
"""Priors on maps, one module or package each, behind the seam of :mod:`.base`."""

from __future__ import annotations

from dataclasses import replace

from sparsecv.engine.refine.regularisers.base import Evidence, Regularised, Regulariser
from sparsecv.engine.refine.regularisers.nonuniform import (
    Bank,
    Butterworth,
    LocalWiener,
    NonUniform,
    Rule,
    SparseTvStrength,
)
from sparsecv.engine.refine.regularisers.nonuniform.families import Family
from sparsecv.engine.refine.regularisers.sparse_tv import PRESETS, Kappas, NoiseUnits, PaperUnits, SparseTv
from sparsecv.engine.refine.regularisers.wiener import Wiener
from sparsecv.engine.refine.settings import NonUniformSettings, RegulariserSettings

__all__ = ["Evidence", "NonUniform", "Regularised", "Regulariser", "SparseTv", "Wiener", "make_nonuniform",
           "make_regulariser"]  # fmt: skip

GAMMA = 0.05  # units of mean N: the weakest pull to the previous reference that the paper uses
PAPER_GRADIENT_LEVEL = 1 / 3  # eps' / eps of the paper's first data sets


def make_regulariser(settings: RegulariserSettings) -> Regulariser:
    """The regulariser that the settings ask for."""
    if settings.regulariser == "wiener":
        return Wiener(1.0 if settings.tau_factor is None else settings.tau_factor)
    if settings.regulariser == "nonuniform":
        return make_nonuniform(settings, 0.01 if settings.nu_share is None else settings.nu_share / 100)
    kappas = (1.0 if kappa is None else kappa for kappa in (settings.kappa_sparse, settings.kappa_variation))
    return SparseTv(
        units=_paper_units(settings) if settings.is_in_paper_units else _noise_units(settings),
        kappas=Kappas(*kappas),
        is_chosen=settings.strength in (None, "held-out") and not settings.is_in_paper_units,
        is_paper_solver=settings.solver == "paper",
        is_positive=settings.positivity,
    )


def make_nonuniform(settings: NonUniformSettings, share: float = 0.01) -> NonUniform:
    """The non-uniform regulariser that the settings ask for; ``share``: see :class:`NonUniform`."""
    values = settings.nu_values
    bank = Bank(values["nu_filters"], values["nu_order"], values["nu_coarsest"])
    families: dict[str, Family] = {
        "butterworth": Butterworth(bank), "local-wiener": LocalWiener(bank),
        "sparse-tv": SparseTvStrength(NoiseUnits(GAMMA)),
    }  # fmt: skip
    rule = Rule(values["nu_awf"], is_literal=values["nu_selection"] == "literal")
    return NonUniform(bank, families[values["nu_family"]], rule, share)


def _noise_units(settings: RegulariserSettings) -> NoiseUnits:
    gamma = GAMMA if settings.gamma is None else settings.gamma
    return NoiseUnits(gamma, settings.epsilon, settings.epsilon_gradient)


def _paper_units(settings: RegulariserSettings) -> PaperUnits:
    """The preset's values, but for those that were given."""
    names = ("alpha", "beta", "gamma", "epsilon", "epsilon_gradient")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    if settings.preset is not None:
        return replace(PRESETS[settings.preset], **given)
    return PaperUnits(**{"gamma": GAMMA, "epsilon_gradient": PAPER_GRADIENT_LEVEL * given["epsilon"]} | given)
