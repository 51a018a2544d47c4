"""Derivatives of fields, along directions and as the operators of vector analysis, for losses that hold them.

`torch.autograd.grad` of `torch.autograd.grad` gives second derivatives, too, but a loss of them then differentiates a
third time, which the native kernels refuse. Here derivatives are carried forward with the values, so that such a loss
is as far from its parameters as any other: one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hashgrid.nn import jets
from hashgrid.nn.jets import Stage
from hashgrid.nn.network_with_input_encoding import NetworkWithInputEncoding


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
    return jets.through(list(_stages(field)), x, directions.to(x.dtype), None, operators)


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


def value_and_jacobian(field: Stage, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values [..., C] of ``field`` at ``x`` [..., D] and their first derivatives [..., C, D], a row per channel.

    A backward pass per channel, of any field whose points do not depend on one another; a loss of the result trains the
    field, and ``x`` where that requires grad.

    Raises:
        ValueError: the field does not return [..., C].
    """
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        values = field(x)
        if values.dim() != x.dim() or values.shape[:-1] != x.shape[:-1]:
            batch = "".join(f"{n}, " for n in x.shape[:-1])
            raise ValueError(
                f"`field` must return shape [{batch}C] for points {list(x.shape)}, got {list(values.shape)}"
            )
        rows = [_gradient_of(channel, x, is_recorded) for channel in values.unbind(-1)]
    derivatives = torch.stack(rows, dim=-2) if rows else x.new_zeros(*x.shape[:-1], 0, x.shape[-1])
    return (values, derivatives) if is_recorded else (values.detach(), derivatives.detach())


def jacobian(field: Stage, x: Tensor) -> Tensor:
    """First derivatives [..., C, D] of ``field`` at ``x`` [..., D]; see `value_and_jacobian`.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> jacobian(lambda x: torch.stack((x.prod(-1), x.sum(-1)), dim=-1), x).tolist()
        [[[2.0, 1.0], [1.0, 1.0]]]
    """
    return value_and_jacobian(field, x)[1]


def gradient(field: Stage, x: Tensor) -> Tensor:
    """Gradients [..., D] of a ``field`` of one channel at ``x`` [..., D]; a loss of them trains. Those of several
    channels are rows of the `jacobian`, and not summed up here.

    Raises:
        ValueError: the field does not have one channel.
    """
    rows = jacobian(field, x)
    if rows.shape[-2] != 1:
        raise ValueError(f"`field` must have one channel to have a gradient, got {rows.shape[-2]}; take its jacobian")
    return rows.squeeze(-2)


def divergence(field: Stage, x: Tensor) -> Tensor:
    """Divergence [...] of a ``field`` with a channel per dimension at ``x`` [..., D]; a loss of it trains.

    Raises:
        ValueError: the field has more or fewer channels.
    """
    rows = jacobian(field, x)
    if rows.shape[-2] != rows.shape[-1]:
        raise ValueError(
            f"`field` must have {rows.shape[-1]} channels, as points have dimensions, got {rows.shape[-2]}"
        )
    return rows.diagonal(dim1=-2, dim2=-1).sum(-1)


def curl(field: Stage, x: Tensor) -> Tensor:
    """Curl of a ``field`` with a channel per dimension at ``x`` [..., D]: vectors [..., 3] in space, in the plane their
    component [...] out of it; a loss of it trains.

    Raises:
        ValueError: D is neither 2 nor 3, or the field has more or fewer channels.
    """
    rows = jacobian(field, x)
    n_channels, n_dims = rows.shape[-2:]
    if n_dims not in (2, 3) or n_channels != n_dims:
        raise ValueError(
            f"`field` must have 2 channels in the plane or 3 in space, got {n_channels} in {n_dims} dimensions"
        )
    turns = rows - rows.transpose(-2, -1)
    if n_dims == 2:
        return turns[..., 1, 0]
    return torch.stack([turns[..., i, j] for i, j in ((2, 1), (0, 2), (1, 0))], dim=-1)


def laplacian(field: Stage, x: Tensor) -> Tensor:
    """Laplacians [..., C] of the channels of ``field`` at ``x`` [..., D]; see `value_and_laplacian`. A grid that is
    interpolated linearly has no curvature along the axes within its cells, and the kinks between them are not seen."""
    return value_and_laplacian(field, x)[1]


def _gradient_of(channel: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """Gradients of the sum of ``channel``, of which each value depends on its own point."""
    if not channel.requires_grad:  # a constant
        return torch.zeros_like(x)
    (result,) = torch.autograd.grad(
        channel.sum(), x, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return result
