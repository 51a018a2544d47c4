"""What functions ask of their arguments: one error that names the argument, its contract and what came instead."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor


def wrong(name: str, contract: str, actual: object, remedy: str = "") -> NoReturn:
    """Raises the ``ValueError`` of an argument that does not fit."""
    raise ValueError(f"`{name}` must {contract}, got {actual}" + (f"; {remedy}" if remedy else ""))


def check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that two tensors have one shape."""
    if x.shape != other.shape:
        wrong(name, f"have the shape of `{other_name}`, {list(other.shape)}", list(x.shape))


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


def check_indices(name: str, indices: Tensor, size: int | None = None) -> None:
    """Checks that rays of samples are a vector of integers, of ``size`` if that is given."""
    if indices.dim() != 1 or (size is not None and len(indices) != size):
        wrong(name, f"have shape [{'S' if size is None else size}]", list(indices.shape))
    if indices.dtype not in (torch.int64, torch.int32):
        wrong(name, "be int64 or int32", indices.dtype, f"convert it with `{name}.long()`")


def count_rays(ray_indices: Tensor, n_rays: int | None) -> int:
    """Returns ``n_rays``, or one more than the last ray where that is None, and checks that no ray is beyond."""
    if n_rays is None:
        return int(ray_indices.max()) + 1 if len(ray_indices) else 0
    # on a GPU PyTorch's own assertion finds it without waiting
    if not ray_indices.is_cuda and len(ray_indices):
        least, most = torch.aminmax(ray_indices)
        if least < 0 or most >= n_rays:
            wrong("ray_indices", f"be rays 0..{n_rays - 1} of `n_rays`", f"{least}..{most}")
    return n_rays


def check_packed(packed_info: Tensor) -> None:
    """Checks that first samples and counts of rays are two columns of integers."""
    if packed_info.dim() != 2 or packed_info.shape[1] != 2:
        remedy = "pack_info(ray_indices, n_rays) makes it"
        wrong("packed_info", "have shape [R, 2], the first sample and the count", list(packed_info.shape), remedy)
    if packed_info.dtype not in (torch.int64, torch.int32):
        wrong("packed_info", "be int64 or int32", packed_info.dtype, "convert it with `packed_info.long()`")
