"""One fused Adam update of a parameter, on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid import _extension

MAX_LIST = 16  # parameters that `adam_step_foreach` takes


@torch.no_grad()
def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    lr: Tensor | float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    skip_zero: bool,
    ema: Tensor | None = None,
    ema_last: Tensor | None = None,
    ema_decay: float = 0.95,
    global_step: int | Tensor = 0,
    shadow: Tensor | None = None,
    zero_grad: bool = False,
) -> None:
    """Updates ``param`` and the optimiser state in place (Kingma & Ba 2015).

    ``p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)``, eps on the uncorrected root as in
    tiny-cuda-nn. With ``skip_zero``, rows (along the last dimension) whose gradient is entirely zero stay as they are:
    no decay of their moments, no weight decay, and t counts the updates of the row.

    The average of the weights is kept in closed form: a row touched at step s and last at s0 first catches up,
    ``ema = d^(s-1-s0) ema + (1 - d^(s-1-s0)) p``, then follows the update, ``ema = d ema + (1 - d) p``.

    Args:
        param: [..., C], fp32 or fp64, contiguous.
        grad, exp_avg, exp_avg_sq: like ``param``.
        steps: int32, updates so far: one per row (the product of the leading dimensions) with ``skip_zero``, else [1].
        lr: learning rate, a number or a tensor with one element.
        weight_decay: coupled L2, added to the gradient.
        ema: average of the weights, like ``param``.
        ema_last: int32, shaped like ``steps``: the global step of the last update.
        global_step: number of this step, from 1; a number, or an int32 tensor [1] that a captured CUDA graph follows.
        shadow: half-precision copy of ``param``, rewritten where ``param`` changes.
        zero_grad: overwrite the gradient with zeros where it was consumed (elsewhere it is zero already), so that it
            can be accumulated into again without a separate memset.

    Raises:
        RuntimeError: a shape, dtype or value does not fit.
    """
    if not isinstance(lr, Tensor):
        lr = torch.tensor(lr, dtype=torch.float64)
    if not isinstance(global_step, Tensor):
        global_step = torch.tensor([global_step], dtype=torch.int32, device=param.device)
    _extension.ops().adam_step(
        param, grad, exp_avg, exp_avg_sq, steps, lr, beta1, beta2, eps, weight_decay, skip_zero,
        ema, ema_last, ema_decay, global_step, shadow, zero_grad,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        return
    # The kernel is opaque to autograd's version counters, which shadows and saved tensors rely on.
    written = [param, exp_avg, exp_avg_sq, steps, ema, ema_last, shadow, grad if zero_grad else None]
    torch.autograd.graph.increment_version([tensor for tensor in written if tensor is not None])


@torch.no_grad()
def adam_step_foreach(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor | float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    emas: Sequence[Tensor] = (),
    ema_lasts: Sequence[Tensor] = (),
    ema_decay: float = 0.95,
    global_step: int | Tensor = 0,
    zero_grad: bool = False,
) -> None:
    """`adam_step` without ``skip_zero`` and shadows for several parameters of one dtype: on a GPU in two launches, not
    in two for each. Sequences are as long as ``params``, at most ``MAX_LIST``; those of averages may be empty.

    Raises:
        RuntimeError: a length, shape, dtype or value does not fit; nothing has been written then.
    """
    if not isinstance(lr, Tensor):
        lr = torch.tensor(lr, dtype=torch.float64)
    if not isinstance(global_step, Tensor):
        device = params[0].device if params else None
        global_step = torch.tensor([global_step], dtype=torch.int32, device=device)
    lists = [list(tensors) for tensors in (params, grads, exp_avgs, exp_avg_sqs, steps)]
    averages = [list(emas), list(ema_lasts)]
    _extension.ops().adam_step_foreach(
        *lists, lr, beta1, beta2, eps, weight_decay, *averages, ema_decay, global_step, zero_grad
    )
    if torch.compiler.is_compiling():
        return
    params, grads, *state = lists
    torch.autograd.graph.increment_version(
        [tensor for tensors in (params, grads if zero_grad else [], *state, *averages) for tensor in tensors]
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
