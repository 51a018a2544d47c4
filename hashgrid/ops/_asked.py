"""Which gradients a backward pass is about."""

from __future__ import annotations

from typing import Any

import torch


def is_asked_for(ctx: Any, index: int) -> bool:
    """Whether this backward pass goes on to tensor ``index`` of the inputs. ``needs_input_grad`` does not say: for the
    gradient of positions alone, as an eikonal loss takes it, that of the parameters would be made and thrown away."""
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    except (AttributeError, RuntimeError, TypeError):  # no engine at work, as in torch.func; or another PyTorch
        return True
