"""What numbers depend on and no option says: ``python -m hashgrid.bench.environment --device cuda``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hashgrid import _extension
from hashgrid.util.threads import threads_in_use
from hashgrid.version import __version__

# What nvidia-smi is asked, by the names of `nvidia-smi --help-query-gpu`.
SMI_FIELDS = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "power.limit", "power.draw", "temperature.gpu", "memory.total", "memory.used", "utilization.gpu",
)  # fmt: skip


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Machine, versions and date; with a CUDA ``device`` the card, its driver and its clocks as well."""
    module = _extension.module
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads_in_use(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "hashgrid": __version__,
        "capability": None if module is None else module.cpu_capability(),
        "compiler": None if module is None else module.compiler(),
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = _gpu(torch.device(device))
    return facts


def cache_bytes() -> dict[str, int]:
    """Sizes of the first core's data caches by name, "L1", "L2", "L3"; nothing where the system does not tell."""
    sizes = {}
    units = {"K": 1 << 10, "M": 1 << 20}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and size[-1] in units:
            sizes[f"L{level}"] = int(size[:-1]) * units[size[-1]]
    return sizes


def card_of(facts: dict[str, Any]) -> str:
    """A folder's name for the machine: "h200", "geforce-rtx-4090", "cpu"."""
    if "gpu" not in facts:
        return "cpu"
    words = [word for word in facts["gpu"]["name"].lower().split() if word != "nvidia"]
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(words))


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    module = _extension.cuda_module
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "torch_cuda": torch.version.cuda,
        "kernels": _extension.cuda_reason if module is None else f"CUDA {module.toolkit()} for {module.archs()}",
        "nvcc": _nvcc(),
        "nvidia_smi": _nvidia_smi(),
    }


def _nvidia_smi() -> dict[str, str] | str:
    """Clocks, power and driver as they are now; why not, where the tool does not say."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    output = _output(command)
    values = [value.strip() for value in output.splitlines()[0].split(",")] if output.strip() else []
    return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else output or "no nvidia-smi"


def _nvcc() -> str | None:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return next((line for line in _output([nvcc, "--version"]).splitlines() if "release" in line), None)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _cpu_model() -> str:
    """Model name and vector extensions: virtual machines often hide the former."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = ", ".join(f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts)
    return f"{facts.get('model name', 'unknown')} ({family})" if family else facts.get("model name", "unknown")


def warn_if_busy() -> None:
    """Other programs on the cores spoil every number, and ratios too. Looks at the system for half a second."""
    share = _busy_share(0.5)
    if share is not None and share > 0.1:
        print(f"warning: the cores are {share:.0%} busy with other work; measure on a quiet machine", file=sys.stderr)


def _busy_share(seconds: float) -> float | None:
    """Share of all cores' time that is not idle while this process sleeps; None where the system does not tell."""
    path = Path("/proc/stat")
    if not path.exists():
        return None

    def ticks() -> tuple[int, int]:
        values = [int(word) for word in path.read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]  # all, idle and waiting for disks

    begin = ticks()
    time.sleep(seconds)
    total, idle = (after - before for before, after in zip(begin, ticks(), strict=True))
    return 1 - idle / max(total, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    facts = environment(parser.parse_args().device)
    print(json.dumps(facts | {"card": card_of(facts)}, indent=2))


if __name__ == "__main__":
    main()
