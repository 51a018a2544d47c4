"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


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


# ---- which kernels a test runs on ------------------------------------------------------------------------------------

# Test modules that call ops only through hashgrid.ops, on tensors they make themselves: they run once on the CPU's
# kernels and once on the CUDA kernels emulated on the host.
KERNEL_TESTS = {"test_frequency_encode", "test_golden", "test_hash_encode", "test_sh_encode", "test_tcnn_defects"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in KERNEL_TESTS:
        metafunc.fixturenames.append("kernels")
        metafunc.parametrize("kernels", ["cpu", "cuda_on_host"], indirect=True, scope="module")


@pytest.fixture(scope="session")
def cuda_on_host():
    """The module of the emulated CUDA kernels, built when it is first asked for; skips where there is no compiler."""
    from host.build import build, load

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler to build the CUDA kernels for the host with")
    return load(build(Path(__file__).resolve().parents[1] / "build" / "host"))


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the kernels in use; `hashgrid.ops` calls them while the fixture lives."""
    if request.param == "cpu":
        yield "cpu"
        return
    from hashgrid import _extension

    request.getfixturevalue("cuda_on_host")
    before = _extension.ops
    _extension.ops = lambda: torch.ops.hashgrid_on_host
    yield "cuda_on_host"
    _extension.ops = before
