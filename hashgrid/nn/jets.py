"""Values with their first and second derivatives along directions: what the methods ``jet`` of modules are made of.

A jet of [..., C] along K directions is three tensors: values [..., C], first derivatives [..., K, C] and second ones
[..., M, C], M = K or as many as ``operators`` [M, K] sum up; second ones may be None, which is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Jet = tuple[Tensor, Tensor, Tensor]
Jets = tuple[Tensor, Tensor, Tensor | None]
Stage = Callable[[Tensor], Tensor]


def through(
    stages: Sequence[Stage], x: Tensor, directions: Tensor, accelerations: Tensor | None, operators: Tensor | None
) -> Jet:
    """The jet of ``stages`` one after the other, each by its method ``jet`` or, without one, by `torch.func.jvp`."""
    jet: Jets = (x, directions, accelerations)
    for stage in stages:
        jet = (getattr(stage, "jet", None) or of_function(stage))(*jet, operators)
    values, first, second = jet
    if second is None:  # no stages
        second = torch.zeros_like(first if operators is None else operators @ first)
    return values, first, second


def of_function(stage: Stage) -> Callable[..., Jet]:
    """The method ``jet`` of a stage made of PyTorch's ops."""

    def slope(x: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(stage, (x,), (v,))[1]

    def jet(x: Tensor, directions: Tensor, accelerations: Tensor | None, operators: Tensor | None) -> Jet:
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


def product(a: Jets, b: Jets, operators: Tensor | None) -> Jet:
    """The jet of ``a * b``, channel by channel."""
    first = a[1] * b[0].unsqueeze(-2) + a[0].unsqueeze(-2) * b[1]
    second = 2 * a[1] * b[1]
    if operators is not None:
        second = operators @ second
    for one, other in ((a, b), (b, a)):
        if one[2] is not None:
            second = second + one[2] * other[0].unsqueeze(-2)
    return a[0] * b[0], first, second


def linear(jet: Jets, weight: Tensor, bias: Tensor | None = None) -> Jets:
    """The jet of ``weight @ y + bias`` for ``weight`` [out, in]."""
    values, first, second = jet
    functional = torch.nn.functional.linear
    return (
        functional(values, weight, bias),
        functional(first, weight),
        None if second is None else functional(second, weight),
    )


def concatenated(parts: Sequence[Jet]) -> Jet:
    """The channels of all ``parts`` one after the other."""
    values, first, second = (torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True))
    return values, first, second


def channels(jet: Jets, index: int | slice | Sequence[int]) -> Jets:
    """Some of the channels."""
    values, first, second = jet
    return values[..., index], first[..., index], None if second is None else second[..., index]


def mapped(jet: Jets, fn: Stage) -> Jets:
    """The jet with a linear ``fn`` that leaves shapes as they are applied to all three, such as a factor."""
    values, first, second = jet
    return fn(values), fn(first), None if second is None else fn(second)
