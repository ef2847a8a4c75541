# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine as a library: names that are imported late, a callback per iteration, results as arrays, silence."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from halfmaps import half_maps

from sparsecv.engine import api
from sparsecv.engine.api import (
    FinishedIteration,
    InputError,
    NonUniformSettings,
    ParticleTable,
    RefineResult,
    RefineSettings,
    RegulariserSettings,
    SimulatedFiles,
    SimulateSettings,
    nu_filter,
    read_map,
    refine,
    regularise,
    simulate,
)
from sparsecv.engine.physics.masks import sphere

BOX, PIXEL_SIZE, PARTICLES = 32, 5.0, 60

pytestmark = pytest.mark.usefixtures("threads_as_before")


# ------------------------------------------------------------------------------------------------------------- names
def test_nothing_is_imported_before_it_is_used() -> None:
    program = (
        "import sys; import sparsecv.engine.api as api; dir(api)\n"
        "heavy = ('numpy', 'scipy', 'numba', 'matplotlib', 'gemmi')\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
        "from sparsecv.engine.api import read_map, InputError\n"
        "assert 'numba' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_for_people_and_for_mypy() -> None:
    for name in api.__all__:
        value = getattr(api, name)
        assert value.__name__ == name and value.__doc__, name
    tree = ast.parse(Path(api.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {(node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    assert typed == {(f"sparsecv.engine.{module}", name) for module, names in api._HOMES.items() for name in names}
    assert sorted(api.__all__) == sorted(api._HOME_OF) == dir(api)
    with pytest.raises(AttributeError, match="no attribute 'refin'"):
        _ = api.refin


# -------------------------------------------------------------------------------------------------------- refinement
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    """Particles of which one image is empty."""
    files = simulate(SimulateSettings(output=tmp_path_factory.mktemp("api") / "data", particles=PARTICLES, box=BOX,
                                      pixel_size=PIXEL_SIZE, snr=0.5))
    with files.stack.open("r+b") as stack:
        stack.seek(1024 + 7 * 4 * BOX * BOX)
        stack.write(bytes(4 * BOX * BOX))
    return files


def asked(data: SimulatedFiles, output: Path, iterations: int = 2) -> RefineSettings:
    return RefineSettings(particles=data.particles, reference=data.reference, output=output, iterations=iterations,
                          threads=1, most_rejected=5.0)


@pytest.fixture(scope="module")
def finished(data: SimulatedFiles) -> tuple[RefineResult, list[FinishedIteration]]:
    seen: list[FinishedIteration] = []
    found = refine(asked(data, data.stack.parent.parent / "run"), on_iteration=seen.append)
    return found, seen


def test_a_callback_sees_each_iteration(finished: tuple[RefineResult, list[FinishedIteration]]) -> None:
    found, seen = finished
    assert [one.number for one in seen] == [1, 2] and [one.is_last for one in seen] == [False, True]
    assert [dict(one.entry) for one in seen] == found.history
    assert seen[0].joined is None and seen[1].joined is not None
    for one in seen:
        for array in (*one.half_maps, *one.references):
            assert array.shape == (BOX,) * 3 and not array.flags.writeable
    assert not np.array_equal(seen[0].half_maps[0], seen[1].half_maps[0])
    np.testing.assert_array_equal(seen[1].half_maps[0], found.half_maps[0])
    with pytest.raises(ValueError, match="read-only"):
        seen[0].fsc[0] = 2


def test_results_are_arrays(data: SimulatedFiles, finished: tuple[RefineResult, list[FinishedIteration]]) -> None:
    found, _ = finished
    np.testing.assert_array_equal(found.map, read_map(found.output / "postprocess.mrc").data)
    np.testing.assert_array_equal(found.mask, read_map(found.output / "postprocess_mask.mrc").data)
    np.testing.assert_array_equal(found.joined, read_map(found.output / "run_class001.mrc").data)
    assert found.regularised is found.joined and found.pixel_size == PIXEL_SIZE
    assert len(found.fsc) == BOX // 2 + 1 and found.resolution.angstrom >= 2 * PIXEL_SIZE
    assert list(found.set_aside) == [7] and found.kept.tolist() == [k for k in range(PARTICLES) if k != 7]
    assert found.particles.rotations.shape == (PARTICLES - 1, 3, 3)
    given = ParticleTable.read(data.particles, check_images=False)
    np.testing.assert_array_equal(found.particles.defocus_u, given.defocus_u[found.kept])


def test_a_library_is_silent(data: SimulatedFiles, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refine(asked(data, tmp_path, iterations=1))
    assert capfd.readouterr() == ("", "")


def test_a_callback_can_end_a_run_that_goes_on_later(data: SimulatedFiles, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(one: FinishedIteration) -> None:
        raise Enough(f"after {one.number}")

    settings = asked(data, tmp_path)
    with pytest.raises(Enough):
        refine(settings, on_iteration=stop)
    assert json.loads((tmp_path / "status.json").read_text())["error"] == "Enough: after 1"
    seen: list[int] = []
    again = RefineSettings(**{**vars(settings), "resume": True})
    refine(again, on_iteration=lambda one: seen.append(one.number))
    assert seen == [2]


# ------------------------------------------------------------------------------------------------ half maps as arrays
def test_half_maps_are_filtered_and_regularised_as_arrays() -> None:
    first, second = half_maps(32, 3.0, noise=0.3)
    mask = sphere(32, 12)
    filtered = nu_filter(first, second, 3.0, NonUniformSettings(nu_filters=4), mask=mask, device="cpu", threads=1)
    assert filtered.is_band_limit and filtered.map.shape == filtered.chosen.shape == (32,) * 3
    assert len(np.unique(filtered.chosen)) <= 4 and filtered.chosen.min() >= 6
    wiener = regularise(first, second, 3.0, RegulariserSettings(), mask=mask, device="cpu", threads=1)
    assert np.abs(wiener.map[mask == 0]).max() == 0
    assert np.corrcoef(wiener.map.ravel(), ((first + second) * mask).ravel())[0, 1] > 0.5


def test_arrays_that_cannot_be_used_are_refused() -> None:
    first, second = half_maps(32, 3.0)
    with pytest.raises(InputError, match="identical"):
        nu_filter(first, first, 3.0)
    with pytest.raises(InputError, match="pixel size"):
        regularise(first, second, 0, RegulariserSettings())
    with pytest.raises(InputError, match="outside"):
        regularise(first, second, 3.0, RegulariserSettings(), mask=3 * np.ones((32,) * 3))
