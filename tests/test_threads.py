"""Threads of our own: what callers of the pool rely on, the context that chooses it, and how many cores there are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from host.build import compiler

import hashgrid
from hashgrid import _extension
from hashgrid.cli import main
from hashgrid.util import threads

ROOT = Path(__file__).resolve().parents[1]
POOL = ROOT / "csrc" / "ops" / "thread_pool.cpp"
# What stands in the pool, and a fault instead.
FAULTS = {
    "units under way are not waited for": ("if (!spin(kSpinForLast, left)) {", "if (false) {"),
    "all threads are waited for": (
        "const auto left = [&] { return",
        "const auto left = [&] { return !job.n_helpers &&",
    ),
    "sleepers are not woken": ("wake_.notify_one();", ";"),
    "a worker takes units of a job that is gone": ("*place = job.after;", ""),
    "workers stay with the parent": ("pthread_atfork(", "(void)([](auto...) {})("),
}


def build_program(folder: Path, pool: Path, *flags: str) -> Path:
    program = folder / "thread_pool"
    sources = [str(ROOT / "tests" / "host" / "thread_pool.cpp"), str(pool)]
    command = [compiler(), "-std=c++20", "-g", *flags, f"-I{ROOT / 'csrc'}", *sources, "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def needs_compiler() -> None:
    if shutil.which(compiler()) is None or not sys.platform.startswith("linux"):
        pytest.skip("no C++ compiler, or no Linux")


@pytest.mark.usefixtures("needs_compiler")
def test_pool_keeps_its_promises(tmp_path: Path) -> None:
    done = subprocess.run([build_program(tmp_path, POOL, "-O1")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("passed\n"), done.stdout


@pytest.mark.full
@pytest.mark.usefixtures("needs_compiler")
def test_pool_has_no_data_races(tmp_path: Path) -> None:
    program = build_program(tmp_path, POOL, "-O1", "-fsanitize=thread")
    done = subprocess.run([program, "no fork"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("passed\n") and "WARNING" not in done.stderr, done.stderr


@pytest.mark.full
@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.parametrize("fault", FAULTS)
def test_pool_with_a_fault_fails(fault: str, tmp_path: Path) -> None:
    sound, broken = FAULTS[fault]
    source = POOL.read_text()
    assert source.count(sound) == 1
    copy = tmp_path / "broken.cpp"
    copy.write_text(source.replace(sound, broken))
    program = build_program(tmp_path, copy, "-O1", "-fsanitize=address")
    try:
        done = subprocess.run([program], capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:  # waits for ever
        return
    assert done.returncode != 0 and b"passed" not in done.stdout


# ---- the ops on it ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Iterator[None]:
    """Whatever a test does to the process's threads ends with it."""
    module, n = _extension.require(), torch.get_num_threads()
    before = module.own_threads()
    yield
    module.use_own_threads(*before)
    torch.set_num_threads(n)


def results() -> list[torch.Tensor]:
    """Of a training step in small: values and gradients through encoding, MLP and compositing."""
    generator = torch.Generator().manual_seed(0)
    grid = hashgrid.HashGrid(n_input_dims=3, n_levels=8, log2_hashmap_size=12)
    mlp = hashgrid.FusedMLP(grid.n_output_dims, 4)
    with torch.no_grad():
        for parameter in [*grid.parameters(), *mlp.parameters()]:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
    x = torch.rand(5000, 3, generator=generator)
    y = mlp(grid(x))
    counts = torch.full((500,), 10)
    packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
    t = torch.arange(5000.0) % 10
    colors = hashgrid.ops.composite(y[:, 0].exp(), y[:, 1:], t, t + 1, packed_info)[0]
    return [colors, *torch.autograd.grad(colors.sum(), [*grid.parameters(), *mlp.parameters()])]


@pytest.mark.usefixtures("restored")
def test_ops_have_the_same_bits_on_any_threads() -> None:
    module = _extension.require()
    torch.set_num_threads(1)
    expected = results()
    for own, n_own, n_torch in ((False, 0, 2), (False, 0, 7), (True, 0, 2), (True, 2, 1), (True, 16, 1)):
        module.use_own_threads(own, n_own)
        torch.set_num_threads(n_torch)
        assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True)), (own, n_own, n_torch)


@pytest.mark.usefixtures("restored")
def test_own_threads_last_as_long_as_the_context() -> None:
    module = _extension.require()
    module.use_own_threads(False, 0)
    torch.set_num_threads(3)
    with pytest.raises(KeyError), hashgrid.own_threads(5) as n:
        assert n == 5 == threads.threads_in_use() and module.own_threads() == (True, 5)
        assert torch.get_num_threads() == 1
        with hashgrid.own_threads() as inner:
            assert inner == threads.usable_cores() == threads.threads_in_use()
        assert module.own_threads() == (True, 5)
        raise KeyError
    assert module.own_threads() == (False, 0) and torch.get_num_threads() == 3 == threads.threads_in_use()
    with pytest.raises(ValueError, match="`n_threads` must be at least 1, got 0"), hashgrid.own_threads(0):
        pass


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({}, False),
        ({"OMP_WAIT_POLICY": "passive"}, True),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, False),
        ({"GOMP_SPINCOUNT": "1000"}, True),
        ({"GOMP_SPINCOUNT": "10000000", "OMP_WAIT_POLICY": "passive"}, False),
    ],
)
@pytest.mark.usefixtures("restored")
def test_environment_decides_for_other_programs(
    environment: dict, own: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Beside PyTorch's threads, while they spin, ours would have half a core each."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads.follow_environment()
    assert _extension.require().own_threads() == (own, 0)
    assert main(["info"]) == 0
    assert ("do not spin here" in capsys.readouterr().out) == own


def test_commands_take_own_threads_for_kernels_only() -> None:
    module = _extension.require()
    before, n_torch = module.own_threads(), torch.get_num_threads()
    with threads.threads_for("native") as n:
        assert module.own_threads() == (True, n) and torch.get_num_threads() == 1
    with threads.threads_for("reference") as n:
        assert module.own_threads() == before and torch.get_num_threads() == n_torch == n


# ---- how many --------------------------------------------------------------------------------------------------------


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_cgroup_quota_version_2(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/user/job\n")
    group(tmp_path, "root/user/job", cpu__max="max 100000")
    assert threads.cgroup_cores(membership, tmp_path / "root") is None
    group(tmp_path, "root/user", cpu__max="150000 100000")  # of the group above
    assert threads.cgroup_cores(membership, tmp_path / "root") == 1.5
    group(tmp_path, "root/user/job", cpu__max="50000 100000")
    assert threads.cgroup_cores(membership, tmp_path / "root") == 0.5


def test_cgroup_quota_version_1_inside_a_container(tmp_path: Path) -> None:
    """The path is one of the host's, the folder the container's own."""
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu,cpuacct:/docker/0123\n3:memory:/docker/0123\n0::/\n")
    group(tmp_path, "root/cpu,cpuacct", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert threads.cgroup_cores(membership, tmp_path / "root") == 2
    group(tmp_path, "root/cpu,cpuacct", cpu__cfs_quota_us="-1")
    assert threads.cgroup_cores(membership, tmp_path / "root") is None
    assert threads.cgroup_cores(tmp_path / "none", tmp_path) is None


def test_usable_cores_heed_affinity_quota_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, wanted, n in ((None, "", 8), (2.5, "", 3), (0.2, "", 1), (100, "", 8), (4.0, "2,1", 2), (4.0, "64", 4)):
        monkeypatch.setattr(threads, "cgroup_cores", lambda quota=quota: quota)
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert threads.usable_cores() == n, (quota, wanted)
