"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from host.build import HOST_BUILD, build, compiler, load
from on_device import OpsOn


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data, ``HASHGRID_DATA`` or ``../shared`` beside the repository; skips where it is absent."""
    path = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set HASHGRID_DATA")
    return path


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state; tests that need a seed of their own derive it from this one."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> None:
    """Two threads unless ``OMP_NUM_THREADS`` says otherwise: enough to race, cheap on a busy machine."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(2)


@pytest.fixture(scope="session")
def scene_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny procedural scene; skips where images cannot be written."""
    pytest.importorskip("imageio.v3")
    from hashgrid.nerf.procedural import write_scene

    path = tmp_path_factory.mktemp("scene")
    write_scene(path, n_train=12, n_test=2, resolution=48)
    return path


@pytest.fixture(scope="session")
def scene() -> Any:
    """The same in memory, a ``hashgrid.nerf.dataset.Scene``."""
    from hashgrid.bench.scenes import procedural_scene

    return procedural_scene(n_train=12, n_test=2, resolution=48)


# ---- which kernels a test runs on ------------------------------------------------------------------------------------

# Test modules that call ops only through hashgrid.ops, on tensors they make themselves: they run on the CPU's kernels,
# on the CUDA kernels emulated on the host and, where there is a GPU, on the CUDA kernels themselves.
KERNEL_TESTS = {
    *(
        "test_adam_step",
        "test_composite",
        "test_frequency_encode",
        "test_golden",
        "test_hash_encode",
        "test_hash_encode_mlp",
        "test_march_rays",
    ),
    *(
        "test_mlp",
        "test_occupancy",
        "test_occupancy_values",
        "test_pixel_loss",
        "test_radiance_field",
        "test_radiance_mlp",
        "test_ray_aabb",
        "test_render_rays",
        "test_sample_positions",
        "test_sample_rays",
        "test_sh_encode",
        "test_sphere_trace",
        "test_tcnn_defects",
    ),
}
CUDA_KERNEL_TESTS = {"test_cuda_kernels"}
# Tests of those modules that are about the CPU's kernels alone: its threads and instruction sets, what torch knows of
# the ops under their registered name, and what only a CPU op can afford to check.
CPU_ONLY = re.compile("threads|instruction_set|opcheck|registered|compiled|on_the_cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__
    if module in KERNEL_TESTS | CUDA_KERNEL_TESTS:
        kernels = [] if module in CUDA_KERNEL_TESTS else ["cpu"]
        if not CPU_ONLY.search(metafunc.function.__name__):
            kernels += ["cuda_on_host", "cuda"]
        metafunc.parametrize("kernels", kernels, indirect=True, scope="module")


@pytest.fixture(scope="session")
def cuda_on_host() -> ModuleType:
    """The module of the emulated CUDA kernels, built when it is first asked for; skips where there is no compiler."""
    if shutil.which(compiler()) is None:
        pytest.skip("no C++ compiler to build the CUDA kernels for the host with")
    return load(build(HOST_BUILD))


@pytest.fixture(scope="module", autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the kernels in use; `hashgrid.ops` calls them while the fixture lives.

    Of every test, as pytest forgets a fixture that only pytest_generate_tests asks for.
    """
    from host.redirect import take_cuda_ops

    from hashgrid import _extension

    library: Any = None
    param = getattr(request, "param", "cpu")
    if param == "cuda_on_host":
        request.getfixturevalue("cuda_on_host")
        library = torch.ops.hashgrid_on_host
    elif param == "cuda":
        if _extension.cuda_module is None or not torch.cuda.is_available():
            pytest.skip("no GPU" if _extension.cuda_module is not None else _extension.cuda_reason)
        library = OpsOn(torch.ops.hashgrid, "cuda")
    with pytest.MonkeyPatch.context() as patch:
        if library is not None:
            take_cuda_ops(library, patch.setattr)
        yield param
