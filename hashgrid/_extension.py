"""Loads the compiled extension; the one place that knows how its absence is reported."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_BUILD_COMMAND = "pip install --no-build-isolation ."


def load() -> tuple[ModuleType | None, str]:
    """The extension module, or None and the reason why it could not be loaded."""
    try:
        return importlib.import_module("hashgrid._C"), ""
    except ImportError as error:
        return None, str(error)


def load_cuda() -> tuple[ModuleType | None, str]:
    """The CUDA kernels, or None and the reason why they are not there. Needs no GPU, but a torch with CUDA."""
    if module is None:
        return None, reason
    if module.no_cuda():
        return None, f"not built: {module.no_cuda()}"
    if torch.version.cuda is None:
        return None, "not loaded: this torch has no CUDA"
    try:
        return importlib.import_module("hashgrid._C_cuda"), ""
    except ImportError as error:
        return None, f"not loaded: {error}"


module, reason = load()
cuda_module, cuda_reason = load_cuda()


def require() -> ModuleType:
    """The extension module.

    Raises:
        ImportError: the extension is missing; the message names the command that builds it.
    """
    if module is None:
        raise ImportError(
            f"hashgrid's compiled extension is missing ({reason}). Build it with `{_BUILD_COMMAND}` in a clone of the"
            ' repository, or choose the slow pure-PyTorch twin with `backend="reference"`.'
        )
    return module


def ops() -> torch._ops._OpNamespace:
    """``torch.ops.hashgrid``, after making sure that the kernels behind it are loaded."""
    require()
    return torch.ops.hashgrid
