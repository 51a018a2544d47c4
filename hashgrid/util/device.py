"""Which device an application runs on."""

from __future__ import annotations

import torch

from hashgrid import _extension

# What matrix products multiply, by name; None: the tensors as they are.
DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto", backend: str = "native") -> torch.device:
    """The device called ``name``; "auto" is the GPU where there is one that the backend can use, else the CPU.

    Raises:
        ValueError: there is no such device, or the native backend has no kernels for it.
    """
    if name == "auto":
        return torch.device("cpu" if why_not_cuda(backend) else "cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f'`device` must be "auto", "cpu", "cuda" or "cuda:N", got {name!r}')
    if device.type == "cuda":
        if reason := why_not_cuda(backend):
            raise ValueError(f"`device` is {name!r}, but {reason}; choose `cpu`")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"`device` is {name!r}, but there are {torch.cuda.device_count()} GPUs")
    return device


def why_not_cuda(backend: str = "native") -> str:
    """Why ``backend`` cannot run on a GPU here; empty where it can."""
    if not torch.cuda.is_available():
        return "no GPU was found" if torch.version.cuda else "this torch has no CUDA"
    if backend == "native" and _extension.cuda_module is None:
        return f"the CUDA kernels are missing ({_extension.cuda_reason})"
    return ""


def fast_dtype(name: str, backend: str, device: torch.device) -> str:
    """``name``; for "auto" the dtype of matrix products that is fast: bfloat16 where there are instructions for it."""
    if name != "auto":
        return name
    fast = backend == "native" and (device.type != "cpu" or _extension.require().cpu_capability() == "avx512_bf16")
    return "bfloat16" if fast else "float32"
