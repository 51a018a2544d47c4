"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts: tests share their machine
# As many workers as cores: one thread each, also of the processes they start. Two would take 590 s on two AVX2 cores
# instead of 424. Tests of threads ask for theirs.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) >= (os.cpu_count() or 1) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from host.build import HOST_BUILD, build, compiler, load
from on_device import OpsOn

pytest.register_assert_rewrite("problems")  # its checks say what they compared, as those of test modules do


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
    from hashgrid.data.procedural import write_scene

    path = tmp_path_factory.mktemp("scene")
    write_scene(path, n_train=12, n_test=2, resolution=48)
    return path


@pytest.fixture(scope="session")
def scene() -> Any:
    """The same in memory, a ``hashgrid.data.scene.Scene``."""
    from hashgrid.data.procedural import procedural_scene

    return procedural_scene(n_train=12, n_test=2, resolution=48)


# ---- which kernels a test runs on ------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="collect cases that need a GPU where there is none, too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test of a module marked `every_kernel` on the CPU's kernels, on the emulated ones and on the GPU's."""
    module = metafunc.definition.get_closest_marker("every_kernel")
    if module is None:
        return
    kernels = [] if module.kwargs.get("cuda_only") else ["cpu"]
    if metafunc.definition.get_closest_marker("cpu_only") is None:
        kernels.append(pytest.param("cuda_on_host", marks=pytest.mark.full))
        if torch.cuda.is_available() or metafunc.config.getoption("--gpu"):
            kernels.append(pytest.param("cuda", marks=pytest.mark.gpu))
    metafunc.parametrize("kernels", kernels, indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what takes the emulated kernels, and leaves out what needs a GPU where there is none: a skip that nothing
    can mend here says nothing.
    """
    for item in items:
        if "cuda_on_host" in getattr(item, "fixturenames", ()):
            item.add_marker("full")
    if torch.cuda.is_available() or config.getoption("--gpu"):
        return
    unable = [item for item in items if item.get_closest_marker("gpu") is not None]
    config.hook.pytest_deselected(items=unable)
    items[:] = [item for item in items if item.get_closest_marker("gpu") is None]


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
