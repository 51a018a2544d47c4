"""Forward-mode differentiation by `torch.func`."""

from __future__ import annotations

from typing import Any, NoReturn

from torch._C._functorch import TransformType, get_interpreter_stack


def n_forward_modes() -> int:
    """How many forward modes are nested around this call. In a second one PyTorch silently takes for a constant what an
    autograd function's own ``jvp`` returns."""
    return sum(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def check_forward_modes(n_supported: int) -> None:
    """Raises `NotImplementedError` where more forward modes than that are nested around this call."""
    if n_forward_modes() > n_supported:
        no_forward_mode()


def no_forward_mode(*arguments: Any) -> NoReturn:
    """Raises the error of forward-mode differentiation where there is none."""
    raise NotImplementedError(
        "this op has no forward-mode derivative of that order; use `torch.func.jacrev` instead of `jacfwd`, or"
        ' `backend="reference"`'
    )
