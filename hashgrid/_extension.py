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


module, reason = load()


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
