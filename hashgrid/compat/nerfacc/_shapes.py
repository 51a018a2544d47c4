"""Errors about tensors that do not fit, alike in all modules of the package."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import wrong


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Check that ``tensor`` has ``shape``, of which names, ``"R"``, stand for any size.

    Raises:
        ValueError: it has another one, or is no tensor.
    """
    if not isinstance(tensor, Tensor):
        wrong(name, f"be a tensor of shape {_written(shape)}", type(tensor).__name__)
    fits = tensor.dim() == len(shape) and all(
        isinstance(size, str) or size == actual for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wrong(name, f"have shape {_written(shape)}", list(tensor.shape))


def check_last(name: str, tensor: Tensor, *sizes: int) -> None:
    """Check that the last dimension of ``tensor`` has one of ``sizes``.

    Raises:
        ValueError: it has another one.
    """
    if tensor.dim() == 0 or tensor.shape[-1] not in sizes:
        allowed = " or ".join(str(size) for size in sizes)
        wrong(name, f"have shape [..., n], n of {allowed}", list(tensor.shape))


def check_device(device: torch.device, **tensors: Tensor) -> None:
    """Check that ``tensors`` are on the ``device`` of the rays.

    Raises:
        ValueError: one is on another.
    """
    for name, tensor in tensors.items():
        if tensor.device != device:
            wrong(name, f"be on the device of the rays, {device}", tensor.device, "move one with .to()")


def _written(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
