# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole engine on the device "gpu", compared with the device "cpu".

Without a GPU the device is imitated: CUDA sources run through the host shim, and arrays refuse whatever CuPy's refuse.
Where there is a GPU, the same tests run on it, too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backends import opened

from sparsecv.engine.io.mrc import read_map
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.io.star import StarFile
from sparsecv.engine.physics.ctf import ctf
from sparsecv.engine.physics.disc import make_disc
from sparsecv.engine.physics.geometry import angular_distance
from sparsecv.engine.physics.symmetry import symmetric_distance, symmetry_matrices
from sparsecv.engine.refine.reconstruct import reconstruct
from sparsecv.engine.refine.run import refine
from sparsecv.engine.refine.settings import ReconstructSettings, RefineSettings
from sparsecv.engine.report.progress import Progress
from sparsecv.engine.simulate import SimulatedFiles, SimulateSettings, simulate
from sparsecv.kernels import cuda, cuda_backproject, ops
from sparsecv.kernels.cuda_backproject import Trial

PARTICLES, BOX, PIXEL_SIZE = 60, 24, 6.5
MAPS = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_class001.mrc")
# Sums are made in another order, and each iteration starts from the rounding of the one before. Measured over three
# iterations: maps 5e-5, FSC 2e-6, 1e-4 degrees, 4e-5 A.
MAP_BOUND, FSC_BOUND, ANGLE_BOUND, SHIFT_BOUND = 1e-3, 1e-4, 2e-3, 1e-3
# A candidate at the very edge of what is searched may fall on the other side of it.
ALIKE = 0.95


pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(params=["imitation", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """A device that ops("gpu") finds."""
    if request.param == "real":
        yield
        return
    with opened("cuda-host"):
        yield


@pytest.fixture(scope="module", params=["C1", "D2"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, SimulatedFiles]:
    """A point group, and simulated particles that have it."""
    folder = tmp_path_factory.mktemp(request.param) / "data"
    size = {"particles": PARTICLES, "box": BOX, "pixel_size": PIXEL_SIZE}
    return request.param, simulate(SimulateSettings(output=folder, symmetry=request.param, snr=0.5, **size))


def relative_error(found: Path, expected: Path) -> float:
    first, second = read_map(found).data, read_map(expected).data
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def curve_of(folder: Path) -> np.ndarray:
    return np.asarray(StarFile.read(folder / "run_model.star").table("model_class_1").floats("rlnGoldStandardFsc"))


@pytest.mark.parametrize("is_local", [False, True], ids=["global", "local"])
def test_refinement_is_that_of_the_cpu(
    data: tuple[str, SimulatedFiles], is_local: bool, gpu: None, tmp_path: Path
) -> None:
    symmetry, files = data
    if symmetry == "C1" and not is_local:
        pytest.skip("a search of a quarter of the size says as much")
    on_cpu = RefineSettings(
        particles=files.truth if is_local else files.particles, reference=files.reference, output=tmp_path / "cpu",
        symmetry=symmetry, local=is_local, device="cpu", threads=1, iterations=2,
        kernel="gaussian" if is_local else "trilinear", batch_memory=1, precision="fp32",
    )  # fmt: skip
    histories = []
    for settings in (on_cpu, replace(on_cpu, output=tmp_path / "gpu", device="gpu")):
        histories.append(refine(settings, Progress(io.StringIO(), interactive=False)).history)
    assert [entry["band"] for entry in histories[1]] == [entry["band"] for entry in histories[0]]
    for name in MAPS:
        assert relative_error(tmp_path / "gpu" / name, tmp_path / "cpu" / name) < MAP_BOUND, name
    np.testing.assert_allclose(curve_of(tmp_path / "gpu"), curve_of(tmp_path / "cpu"), rtol=0, atol=FSC_BOUND)
    ours, theirs = (ParticleTable.read(tmp_path / device / "run_data.star") for device in ("gpu", "cpu"))
    assert np.quantile(angular_distance(ours.rotations, theirs.rotations), ALIKE) < ANGLE_BOUND
    assert np.quantile(np.linalg.norm(ours.shifts - theirs.shifts, axis=1), ALIKE) < SHIFT_BOUND


def test_less_precision_is_told_once_and_finds_the_same(
    data: tuple[str, SimulatedFiles], gpu: None, tmp_path: Path
) -> None:
    symmetry, files = data
    if symmetry == "C1":
        pytest.skip("a search of a quarter of the size says as much")
    on_cpu = RefineSettings(particles=files.particles, reference=files.reference, output=tmp_path / "cpu",
                            symmetry=symmetry, device="cpu", threads=1, iterations=1)  # fmt: skip
    told = io.StringIO()
    refine(on_cpu, Progress(io.StringIO(), interactive=False))
    refine(replace(on_cpu, output=tmp_path / "gpu", device="gpu"), Progress(told, interactive=False))
    assert told.getvalue().count("is scored in TF32") == 1  # few pixels, with more signal than noise
    ours, theirs = (ParticleTable.read(tmp_path / device / "run_data.star") for device in ("gpu", "cpu"))
    # Where it keeps more cells, posteriors change a little; poses stay within a fraction of the finest step.
    assert np.quantile(symmetric_distance(ours.rotations, theirs.rotations, symmetry_matrices(symmetry)), 0.9) < 1
    assert np.abs(curve_of(tmp_path / "gpu") - curve_of(tmp_path / "cpu"))[:8].max() < 0.02


@pytest.mark.parametrize(("kernel", "way"), [("trilinear", "scatter"), ("trilinear", "gather"), ("gaussian", "gather")])
def test_reconstruction_is_that_of_the_cpu(
    data: tuple[str, SimulatedFiles], kernel: str, way: str, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backproject, "WORTH_A_TRIAL", 1)
    monkeypatch.setattr(cuda_backproject, "_trial", lambda *key: Trial((getattr(cuda_backproject, way),)))
    symmetry, files = data
    for device in ("cpu", "gpu"):
        settings = ReconstructSettings(
            particles=files.truth, output=tmp_path / f"{device}.mrc", symmetry=symmetry, kernel=kernel,
            intact_first_peak=kernel == "gaussian", device=device, threads=1,
        )  # fmt: skip
        reconstruct(settings)
    assert relative_error(tmp_path / "gpu.mrc", tmp_path / "cpu.mrc") < 1e-5


def test_ctf_with_envelope_and_scale(data: tuple[str, SimulatedFiles], gpu: None) -> None:
    """What the simulated particles do not have."""
    plain, disc, kernels = ParticleTable.read(data[1].truth).ctf_parameters(), make_disc(BOX), ops("gpu")
    enveloped = replace(plain, bfactor=plain.bfactor + 40, scale=plain.scale * 1.2)
    third = np.arange(PARTICLES) % 3
    unlike = replace(enveloped, even=np.outer(third, [0.3, 20.0, -10.0, 30.0]), is_flipped=third == 1,
                     is_premultiplied=third == 2, limit=np.where(third == 0, 0.05, 0.07))  # fmt: skip
    for parameters in (enveloped, unlike):
        terms = (parameters, disc.kx, disc.ky, BOX, PIXEL_SIZE)
        for intact in (False, True):
            found = kernels.to_host(ctf(*terms, intact_first_peak=intact, xp=kernels.xp))
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, ctf(*terms, intact_first_peak=intact), rtol=0, atol=2e-6)


def test_a_gpu_is_taken_where_there_is_one(gpu: None) -> None:
    assert ops("auto") is cuda
    assert ops("gpu") is cuda
    assert ops("cpu") is not cuda
