"""One fused Adam update of a parameter, on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension

MAX_LIST = 16  # parameters that one call of the kernel takes

Tensors = Tensor | Sequence[Tensor]


@torch.no_grad()
def adam_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: Tensors,
    exp_avg_sq: Tensors,
    steps: Tensors,
    lr: Tensor | float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    skip_zero: bool,
    ema: Tensors | None = None,
    ema_last: Tensors | None = None,
    ema_decay: float = 0.95,
    global_step: int | Tensor = 0,
    half_copy: Tensor | None = None,
    zero_grad: bool = False,
) -> None:
    """Updates ``param`` and the optimiser state in place (Kingma & Ba 2015).

    ``p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)``, eps on the uncorrected root as in
    tiny-cuda-nn. With ``skip_zero``, rows (along the last dimension) whose gradient is entirely zero stay as they are:
    no decay of their moments, no weight decay, and t counts the updates of the row.

    The average of the weights is kept in closed form: a row touched at step s and last at s0 first catches up,
    ``ema = d^(s-1-s0) ema + (1 - d^(s-1-s0)) p``, then follows the update, ``ema = d ema + (1 - d) p``.

    With lists, several parameters of one dtype are updated together, on a GPU in two launches instead of two for each;
    without ``skip_zero`` and ``half_copy``.

    Args:
        param: [..., C], fp32 or fp64, contiguous; or a list of such. Then so are the other tensors but ``lr`` and
            ``global_step``.
        grad, exp_avg, exp_avg_sq: like ``param``.
        steps: int32, updates so far: one per row (the product of the leading dimensions) with ``skip_zero``, else [1].
        lr: learning rate, a number or a tensor with one element.
        weight_decay: coupled L2, added to the gradient.
        ema: average of the weights, like ``param``.
        ema_last: int32, shaped like ``steps``: the global step of the last update.
        global_step: number of this step, from 1; a number, or an int32 tensor [1] that a captured CUDA graph follows.
        half_copy: half-precision copy of ``param``, rewritten where ``param`` changes.
        zero_grad: overwrite the gradient with zeros where it was consumed (elsewhere it is zero already), so that it
            can be accumulated into again without a separate memset.

    Raises:
        ValueError: ``skip_zero`` or ``half_copy`` comes with lists.
        RuntimeError: a length, shape, dtype or value does not fit; of up to 16 parameters nothing has been written.
    """
    if not isinstance(lr, Tensor):
        lr = torch.tensor(lr, dtype=torch.float64)
    if not isinstance(global_step, Tensor):
        device = param.device if isinstance(param, Tensor) else param[0].device if param else None
        global_step = torch.tensor([global_step], dtype=torch.int32, device=device)
    if not isinstance(param, Tensor):
        check_alike(skip_zero, half_copy)
        given: Any = (param, grad, exp_avg, exp_avg_sq, steps, ema or (), ema_last or ())
        lists = [list(tensors) for tensors in given]
        return _step_together(lists, (lr, beta1, beta2, eps, weight_decay), ema_decay, global_step, zero_grad)
    _extension.ops().adam_step(
        param, grad, exp_avg, exp_avg_sq, steps, lr, beta1, beta2, eps, weight_decay, skip_zero,
        ema, ema_last, ema_decay, global_step, half_copy, zero_grad,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        return
    # The kernel is opaque to autograd's version counters, which half-precision copies and saved tensors rely on.
    written: list[Any] = [param, exp_avg, exp_avg_sq, steps, ema, ema_last, half_copy, grad if zero_grad else None]
    torch.autograd.graph.increment_version([tensor for tensor in written if tensor is not None])


def check_alike(skip_zero: bool, half_copy: Tensor | None) -> None:
    """Checks that a list of parameters asks for nothing that `adam_step` does for single ones only."""
    if skip_zero or half_copy is not None:
        raise ValueError("`skip_zero` and `half_copy` must not come with lists; update that one alone")


def _step_together(
    lists: list[list[Tensor]], rates: tuple[Tensor | float, ...], ema_decay: float, global_step: Tensor, zero_grad: bool
) -> None:
    """Updates lists of parameters, gradients, both moments, steps, averages and their last steps."""
    n = len(lists[0])
    for first in range(0, max(n, 1), MAX_LIST):
        end = first + MAX_LIST if first + MAX_LIST < n else None  # a list that is too long reaches the kernel's check
        part = [tensors[first:end] for tensors in lists]
        _extension.ops().adam_step_foreach(*part[:5], *rates, *part[5:], ema_decay, global_step, zero_grad)
    if torch.compiler.is_compiling():
        return
    params, grads, *state = lists
    torch.autograd.graph.increment_version(
        [tensor for tensors in (params, grads if zero_grad else [], *state) for tensor in tensors]
    )


def _register() -> None:
    @torch.library.register_fake("hashgrid::adam_step")
    def _(param, *arguments):
        return None

    @torch.library.register_fake("hashgrid::adam_step_foreach")
    def _(params, *arguments):
        return None


if _extension.module is not None:
    _register()
