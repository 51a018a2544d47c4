"""Sums and products up to each sample of a ray, for rays of one length and for rays one behind the other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_indices, check_packed, wrong
from hashgrid.compat.nerfacc._rows import Rows, runs


def inclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Returns the sums of the samples of a ray up to each one and with it, of the shape of ``inputs``.

    Args:
        inputs: [..., n], scanned along the last dimension, or [S] with one of the other arguments.
        packed_info: [R, 2] int64, first sample and number of samples of each ray. What belongs to no ray becomes 0.
        indices: [S] int64, the ray of each sample; neighbours with one index are a ray.

    Raises:
        ValueError: both arguments are given, or a shape does not fit.

    Example:
        >>> inclusive_sum(torch.tensor([1.0, 2, 3, 4]), indices=torch.tensor([0, 0, 1, 1])).tolist()
        [1.0, 3.0, 3.0, 7.0]
    """
    return _scan(inputs, packed_info, indices, "sum", exclusive=False)


def exclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Returns the sums of the samples of a ray before each one; arguments are those of :func:`inclusive_sum`.

    Example:
        >>> exclusive_sum(torch.tensor([1.0, 2, 3, 4]), packed_info=torch.tensor([[0, 1], [1, 3]])).tolist()
        [0.0, 0.0, 2.0, 5.0]
    """
    return _scan(inputs, packed_info, indices, "sum", exclusive=True)


def inclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Returns the products of the samples of a ray up to each one and with it; arguments are those of
    :func:`inclusive_sum`. Gradients are right where a factor is zero, too.

    Example:
        >>> inclusive_prod(torch.tensor([1.0, 2, 3, 4]), indices=torch.tensor([0, 0, 1, 1])).tolist()
        [1.0, 2.0, 3.0, 12.0]
    """
    return _scan(inputs, packed_info, indices, "prod", exclusive=False)


def exclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Returns the products of the samples of a ray before each one; arguments are those of :func:`inclusive_sum`.

    Example:
        >>> exclusive_prod(torch.tensor([[2.0, 3, 4]])).tolist()
        [[1.0, 2.0, 6.0]]
    """
    return _scan(inputs, packed_info, indices, "prod", exclusive=True)


def _scan(
    inputs: Tensor, packed_info: Tensor | None, indices: Tensor | None, kind: Literal["sum", "prod"], exclusive: bool
) -> Tensor:
    if packed_info is None and indices is None:
        return _scan_last(inputs, kind, exclusive)
    if packed_info is not None and indices is not None:
        raise ValueError("`packed_info` and `indices` exclude each other; give one of them")
    if inputs.dim() != 1:
        remedy = "flatten it, or leave `packed_info` and `indices` out"
        wrong("inputs", "have shape [S] beside `packed_info` or `indices`", list(inputs.shape), remedy)
    if indices is not None:
        check_indices("indices", indices, len(inputs))
        packed_info = runs(indices)
    assert packed_info is not None
    check_packed(packed_info)
    return Rows(packed_info, len(inputs)).scan(inputs, kind, exclusive)


def _scan_last(inputs: Tensor, kind: Literal["sum", "prod"], exclusive: bool) -> Tensor:
    if inputs.dim() == 0:
        wrong("inputs", "have at least one dimension", list(inputs.shape))
    if exclusive:
        first = torch.full_like(inputs[..., :1], 0 if kind == "sum" else 1)
        inputs = torch.cat((first, inputs[..., :-1]), dim=-1)
    return inputs.cumsum(dim=-1) if kind == "sum" else inputs.cumprod(dim=-1)
