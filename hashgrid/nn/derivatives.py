"""Derivatives of fields along directions, for losses that hold them: differential equations, curvature.

`torch.autograd.grad` of `torch.autograd.grad` gives second derivatives, too, but a loss of them then differentiates a
third time, which the native kernels refuse. Here derivatives are carried forward with the values, so that such a loss
is as far from its parameters as any other: one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hashgrid.nn.network_with_input_encoding import NetworkWithInputEncoding

Stage = Callable[[Tensor], Tensor]


def derivatives_along(
    field: Stage, x: Tensor, directions: Tensor, operators: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of ``field`` at ``x`` and its first and second derivatives along ``directions``.

    `FusedMLP` and `HashGrid` have a method ``jet(x, directions, accelerations, operators)`` that runs on the native
    kernels; a module of your own may have one, too: of inputs [..., D] that move with first derivatives [..., K, D] and
    second ones [..., M, D] (None: zero) it makes values, first and second derivatives of its outputs.
    `NetworkWithInputEncoding` and `nn.Sequential` go through their parts one after the other. Everything else is
    differentiated by `torch.func.jvp` and must be made of PyTorch's own ops, `Frequency` or `SphericalHarmonics`.

    Args:
        field: maps points [..., D] to [..., C], each by itself.
        x: [..., D].
        directions: [K, D], or [..., K, D] for directions of each point. Need not have length 1: the first derivative
            grows with it, the second with its square.
        operators: [M, K] constants; the second derivatives are then the sums of ``operators[m, k]`` times the one along
            direction k. What is not wanted, or wanted in a sum only, need not be carried through the field:
            ``[[1, 0]]`` for u_xx without u_tt, ``[[1, 1]]`` for the Laplacian.

    Returns:
        Values [..., C], first derivatives [..., K, C], second ones [..., K, C], or [..., M, C] with ``operators``; a
        loss of them can be differentiated once, in ``x`` and ``directions`` as well.

    Raises:
        ValueError: a shape does not fit, or a part multiplies in half precision.
        NotImplementedError: native kernels are inside of something that has no method ``jet``.
    """
    if directions.dim() == 2 and directions.shape[-1:] == x.shape[-1:]:
        directions = directions.expand(*x.shape[:-1], *directions.shape)
    if directions.dim() != x.dim() + 1 or directions.shape[:-2] != x.shape[:-1] or directions.shape[-1] != x.shape[-1]:
        each = ", ".join(map(str, (*x.shape[:-1], "K", x.shape[-1])))
        raise ValueError(f"`directions` must have shape [K, {x.shape[-1]}] or [{each}], got {list(directions.shape)}")
    if operators is not None and (operators.dim() != 2 or operators.shape[1] != directions.shape[-2]):
        raise ValueError(f"`operators` must have shape [M, {directions.shape[-2]}], got {list(operators.shape)}")
    operators = None if operators is None else operators.to(x.dtype)
    values, first, second = x, directions.to(x.dtype), None
    for stage in _stages(field):
        values, first, second = (getattr(stage, "jet", None) or _jet_of(stage))(values, first, second, operators)
    if second is None:  # an empty nn.Sequential
        second = torch.zeros_like(first if operators is None else operators @ first)
    return values, first, second


def value_and_laplacian(field: Stage, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values [..., C] of ``field`` at ``x`` [..., D] and their Laplacian [..., C], the sum of the second derivatives
    along the axes; see `derivatives_along`. Li et al. 2024 ("A computational framework for neural network-based
    variational Monte Carlo with forward Laplacian") carry it forward in the same way."""
    n_dims = x.shape[-1]
    axes, total = torch.eye(n_dims, dtype=x.dtype, device=x.device), x.new_ones(1, n_dims)
    values, _, second = derivatives_along(field, x, axes, total)
    return values, second.squeeze(-2)


def _stages(field: Stage) -> Iterator[Stage]:
    """The parts of ``field`` that run one after the other."""
    if hasattr(field, "jet"):
        yield field
    elif type(field) is nn.Sequential:
        for part in field:
            yield from _stages(part)
    elif type(field) is NetworkWithInputEncoding:
        yield from _stages(field.encoding)
        yield from _stages(field.network)
    else:
        yield field


def _jet_of(stage: Stage) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The method ``jet`` of a stage made of PyTorch's ops."""

    def slope(x: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(stage, (x,), (v,))[1]

    def jet(
        x: Tensor, directions: Tensor, accelerations: Tensor | None, operators: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        try:
            # of the slope along each direction: itself and its derivative
            along = [torch.func.jvp(lambda x, v=v: slope(x, v), (x,), (v,)) for v in directions.unbind(-2)]
        except NotImplementedError as error:
            raise NotImplementedError(
                "`field` must be modules with a method `jet` or PyTorch's own ops, got native kernels inside of"
                f" {getattr(stage, '__name__', type(stage).__name__)}: give it a method `jet`, pass its parts as"
                ' nn.Sequential, or use `backend="reference"`'
            ) from error
        first, second = (torch.stack([pair[i] for pair in along], dim=-2) for i in range(2))
        if operators is not None:
            second = operators @ second
        if accelerations is not None:
            second = second + torch.stack([slope(x, v) for v in accelerations.unbind(-2)], dim=-2)
        return stage(x), first, second

    return jet
