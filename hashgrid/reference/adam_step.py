"""One step of Adam (Kingma & Ba 2015) with sparse rows and an exponential moving average, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hashgrid.ops.adam_step import Tensors, check_alike


@torch.no_grad()
def adam_step(
    param: Tensors,
    grad: Tensors,
    exp_avg: Tensors,
    exp_avg_sq: Tensors,
    steps: Tensors,
    lr: Tensor,
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
    """Updates ``param`` and its state in place.

    ``p -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)``: as in tcnn, ``eps`` is added to the uncorrected
    root. With ``skip_zero``, rows whose gradient is all zero are left alone, state included, and t counts the updates
    of each row.

    The moving average of a row that was last updated in step s0 first catches up with the steps it missed,
    ``ema = d^n ema + (1 - d^n) p`` with ``n = global_step - 1 - s0``, then takes the new value: the same as averaging
    in every step, except that rows not updated since lag behind.

    Args:
        param: [..., C], a row is a vector along the last dimension; or a list, and so are the other tensors but ``lr``
            and ``global_step``: one parameter after the other, without ``skip_zero`` and ``half_copy``.
        grad: shape of ``param``.
        exp_avg: shape of ``param``, first moment.
        exp_avg_sq: shape of ``param``, second moment.
        steps: int32, updates so far; [n_rows] with ``skip_zero``, otherwise [1].
        lr: 0-dim, a tensor so that a schedule needs no new graph.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: coupled L2, added to the gradient of updated rows.
        skip_zero: skip rows whose gradient is all zero.
        ema: shape of ``param``, average of the parameters, starts as a copy of them.
        ema_last: int32 of the shape of ``steps``, step of the last update, starts as 0; goes with ``ema``.
        ema_decay: d above.
        global_step: number of this step, from 1; a number or an int32 tensor [1].
        half_copy: shape of ``param``, half copy, rewritten for the updated rows.
        zero_grad: overwrite ``grad`` with zeros once it is consumed.

    Raises:
        ValueError: a shape does not fit, only one of ``ema`` and ``ema_last`` is given, or ``skip_zero`` or
            ``half_copy`` comes with lists.
    """
    if not isinstance(param, Tensor):
        check_alike(skip_zero, half_copy)
        for i, tensors in enumerate(zip(param, grad, exp_avg, exp_avg_sq, steps, strict=True)):
            adam_step(
                *(*tensors, lr, beta1, beta2, eps, weight_decay, False),
                ema[i] if ema else None,
                ema_last[i] if ema_last else None,
                ema_decay,
                global_step,
                zero_grad=zero_grad,
            )
        return
    assert isinstance(grad, Tensor) and isinstance(exp_avg, Tensor) and isinstance(exp_avg_sq, Tensor)
    assert isinstance(steps, Tensor) and not isinstance(ema, Sequence) and not isinstance(ema_last, Sequence)
    _check_arguments(param, grad, exp_avg, exp_avg_sq, steps, skip_zero, ema, ema_last, half_copy)
    width = param.shape[-1] if param.dim() else 1
    rows = grad.reshape(-1, width).ne(0).any(-1).nonzero().squeeze(-1) if skip_zero else None

    def read(state: Tensor) -> Tensor:
        """The updated rows of ``state``, [n, C], or of a counter, [n, 1]."""
        values = state.reshape(-1, 1 if state is steps or state is ema_last else width)
        return values if rows is None else values.index_select(0, rows)

    def write(state: Tensor, values: Tensor) -> None:
        if rows is not None:
            values = state.reshape(-1, values.shape[-1]).index_copy(0, rows, values.to(state.dtype))
        state.copy_(values.view_as(state))

    t = read(steps) + 1  # [n, 1], [1, 1] when dense
    old = read(param).clone()  # dense rows are a view, and the average needs the value before the update
    g = read(grad).to(param.dtype) + weight_decay * old
    m = beta1 * read(exp_avg) + (1 - beta1) * g
    v = beta2 * read(exp_avg_sq) + (1 - beta2) * g * g
    rate = lr * ((1 - beta2 ** t.double()).sqrt() / (1 - beta1 ** t.double())).to(param.dtype)
    new = old - rate * m / (v.sqrt() + eps)

    for state, values in ((steps, t), (exp_avg, m), (exp_avg_sq, v), (param, new)):
        write(state, values)
    if ema is not None and ema_last is not None:
        missed = (global_step - 1 - read(ema_last)).double()
        behind = -torch.expm1(missed * math.log(ema_decay)).to(param.dtype)  # 1 - d^n
        average = torch.lerp(read(ema), old, behind)
        write(ema, ema_decay * average + (1 - ema_decay) * new)
        write(ema_last, torch.zeros_like(t) + global_step)
    if half_copy is not None:
        write(half_copy, new)
    if zero_grad:
        grad.zero_()


def _check_arguments(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    skip_zero: bool,
    ema: Tensor | None,
    ema_last: Tensor | None,
    half_copy: Tensor | None,
) -> None:
    for name, tensor in (
        ("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("ema", ema), ("half_copy", half_copy)
    ):  # fmt: skip
        if tensor is not None and tensor.shape != param.shape:
            raise ValueError(f"`{name}` must have the shape of `param`, {list(param.shape)}, got {list(tensor.shape)}")
    if (ema is None) != (ema_last is None):
        raise ValueError("`ema` and `ema_last` must be given together, got one of them")
    n_counters = math.prod(param.shape[:-1]) if skip_zero else 1
    for name, counter in (("steps", steps), ("ema_last", ema_last)):
        if counter is not None and counter.shape != (n_counters,):
            raise ValueError(f"`{name}` must have shape [{n_counters}], got {list(counter.shape)}")
