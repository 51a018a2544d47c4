"""How much memory a run took."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Bytes that this process can still take without harm: what the system has available, within the limit of a
    container."""
    free = [_limit() - (current_memory() or 0)]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # not Linux
        with contextlib.suppress(AttributeError, ValueError, OSError):
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(free))


def _limit() -> int:
    """Bytes that a container lets its processes take."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path(file).read_text())
    return sys.maxsize


def current_memory() -> int | None:
    """Resident size of this process now, in bytes; None where the system does not say."""
    return resident_memory().get("VmRSS")


def resident_memory() -> dict[str, int]:
    """Bytes of this process by Linux's names: ``VmHWM`` the largest resident size so far, ``VmRSS`` that of now, of
    which ``RssAnon`` is its own and ``RssFile`` is of mapped files, that the system can take back; empty elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.startswith(("VmHWM:", "VmRSS:", "RssAnon:", "RssFile:")))
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs}
