"""What this installation is made of: ``hashgrid info``."""

from __future__ import annotations

import os
import platform

import torch

from hashgrid import _extension
from hashgrid.util import threads
from hashgrid.version import __version__


def describe() -> list[tuple[str, str]]:
    """Name and value of each fact a bug report needs."""
    module = _extension.module
    facts = [
        ("hashgrid", __version__),
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores"),
        ("threads", threads.describe()),
    ]
    if module is None:
        facts.append(("CPU kernels", f"missing: {_extension.reason}"))
        facts.append(("", "build them with `pip install --no-build-isolation .` in a clone of the repository"))
    else:
        facts.append(("CPU kernels", f"built with {module.compiler()}"))
        try:
            available = ", ".join(module.available_cpu_capabilities())
            facts.append(("CPU capability", f"{module.cpu_capability()} (available: {available})"))
        except RuntimeError as error:
            facts.append(("CPU capability", str(error)))
    facts.append(("CUDA kernels", cuda_status()))
    return facts


def cuda_status() -> str:
    """Whether the CUDA kernels are there, or why not."""
    module = _extension.cuda_module
    if module is None:
        return _extension.cuda_reason
    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    where = ", ".join(devices) if devices else "no GPU to be seen"
    return f"built with CUDA {module.toolkit()} for {module.archs()}; {where}"
