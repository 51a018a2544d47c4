"""Which threads the CPU kernels run on, and how many there may be."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from hashgrid import _extension

# PyTorch's threads look for work that many times before they sleep, unless the environment says otherwise; it is some
# milliseconds, in which they keep others from their core.
_SHORT_SPINS = 10_000


@contextlib.contextmanager
def own_threads(n_threads: int | None = None) -> Iterator[int]:
    """Runs hashgrid's CPU ops on threads of its own while the context lives, and PyTorch's own ops on one.

    For programs whose time goes to hashgrid's ops: on a machine that is busy with other work they wait for each other
    far less (`docs/threads.md`). Results do not change, to the bit. It holds for the whole process.

    Args:
        n_threads: how many, the calling one included; :func:`usable_cores` if none.

    Yields:
        The number of threads.

    Raises:
        ValueError: ``n_threads`` is below 1.
        ImportError: the compiled extension is missing.

    Example:
        >>> import torch, hashgrid
        >>> grid = hashgrid.HashGrid(n_input_dims=2, n_levels=2, log2_hashmap_size=8)
        >>> with hashgrid.own_threads(2):
        ...     grid(torch.rand(5, 2)).shape
        torch.Size([5, 4])
    """
    n = usable_cores() if n_threads is None else n_threads
    if n < 1:
        raise ValueError(f"`n_threads` must be at least 1, got {n}")
    module = _extension.require()
    before, torch_threads = module.own_threads(), torch.get_num_threads()
    module.use_own_threads(True, n)
    torch.set_num_threads(1)
    try:
        yield n
    finally:
        module.use_own_threads(*before)
        torch.set_num_threads(torch_threads)


def threads_for(backend: str) -> contextlib.AbstractContextManager[int]:
    """:func:`own_threads` for a program on the native backend; on the reference PyTorch keeps its threads."""
    return own_threads() if backend == "native" else contextlib.nullcontext(torch.get_num_threads())


def threads_in_use() -> int:
    """Number of threads that ops run on now."""
    own, n = (False, 0) if _extension.module is None else _extension.module.own_threads()
    return n if own and n > 0 else torch.get_num_threads()


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, its container's quota (cgroups) and ``OMP_NUM_THREADS``."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (quota := cgroup_cores()) is not None:
        n = min(n, max(1, math.ceil(quota)))
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(n, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else n


def cgroup_cores(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPU time per time that cgroups (version 1 or 2) grant this process; None without a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = root / controllers if controllers else root
        # A limit of a group above holds, too; inside a container the path may be one of the host's.
        for group in (folder / path.lstrip("/"), *(folder / path.lstrip("/")).parents):
            if not group.is_relative_to(folder):
                break
            limits += _limit_of(group)
    return min(limits, default=None)


def _limit_of(group: Path) -> list[float]:
    """The group's own limit in cores, as a list of one or none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if quota.strip() != "max" and int(quota) > 0 else []
    except (OSError, ValueError):
        return []


def follow_environment() -> None:
    """Lets ops run on own threads, as many as PyTorch has, where PyTorch's have been told not to spin for long after
    each of their regions."""
    spins = os.environ.get("GOMP_SPINCOUNT", "").strip()
    passive = os.environ.get("OMP_WAIT_POLICY", "").strip().lower() == "passive"
    if _extension.module is not None:
        _extension.module.use_own_threads(int(spins) <= _SHORT_SPINS if spins.isdigit() else passive, 0)


def describe() -> str:
    """How many threads there are and how they wait, for ``hashgrid info``."""
    quota = cgroup_cores()
    limit = "" if quota is None else f" (the container's quota is {quota:g})"
    own = f"{usable_cores()} usable cores{limit}; commands run the kernels on threads of their own"
    if _extension.module is None or _extension.module.own_threads()[0]:
        return f"{own}, and so do other programs, as PyTorch's do not spin here"
    return f"{own}, other programs on PyTorch's {torch.get_num_threads()} unless they ask (`hashgrid.own_threads`)"
