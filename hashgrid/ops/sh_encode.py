"""Real spherical harmonics of directions, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.maths import spherical_harmonics
from hashgrid.ops._composed import pull_back_gradient
from hashgrid.ops._flatten import flatten, unflatten
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import at_least_fp32

MAX_DEGREE = 8


def sh_encode(directions: Tensor, degree: int = 4) -> Tensor:
    """Real spherical harmonics of the bands ``l < degree``.

    Orthonormal on the sphere, in tiny-cuda-nn's order and signs: the band l = 1 is (-y, z, -x) times sqrt(3 / (4 pi)).
    Evaluated as polynomials of (x, y, z), also off the unit sphere. Differentiable any number of times.

    Args:
        directions: [..., 3], unit vectors, fp32 or fp64 (half precision is read as fp32).
        degree: number of bands, 1..8.

    Returns:
        [..., degree^2], channel ``l^2 + l + m`` for m in -l..l.

    Raises:
        ValueError: a shape or the degree does not fit.
    """
    if not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"`degree` must be in 1..{MAX_DEGREE}, got {degree}")
    batch = directions.shape[:-1]
    flat = flatten(at_least_fp32(directions), 3, "directions")
    return unflatten(apply(_ShEncode, flat, degree), batch)


def _pull_back_twice(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, directions = ctx.saved_tensors
    return pull_back_gradient(
        lambda d: spherical_harmonics(d, ctx.degree), directions, grad_y, cotangent, ctx.needs_input_grad[:2]
    )


class _ShEncode(Function):
    @staticmethod
    def forward(directions, degree):  # type: ignore[override]
        return _extension.ops().sh_encode(directions, degree)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        directions, ctx.degree = inputs
        ctx.save_for_backward(directions)

    @staticmethod
    def backward(ctx, grad_y):  # type: ignore[override]
        return apply(_ShEncodeBackward, grad_y.contiguous(), *ctx.saved_tensors, ctx.degree), None


class _ShEncodeBackward(Function):
    """The first derivative as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(grad_y, directions, degree):  # type: ignore[override]
        return _extension.ops().sh_encode_backward(grad_y, directions, degree)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        grad_y, directions, ctx.degree = inputs
        ctx.save_for_backward(grad_y, directions)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[override]
        return *_pull_back_twice(ctx, cotangent), None


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.sh_encode``."""

    @torch.library.register_fake("hashgrid::sh_encode")
    def _(directions, degree):
        return directions.new_empty(directions.shape[0], degree * degree)

    @torch.library.register_fake("hashgrid::sh_encode_backward")
    def _(grad_y, directions, degree):
        return torch.empty_like(directions)

    def backward(ctx, grad_y):
        return torch.ops.hashgrid.sh_encode_backward(grad_y.contiguous(), *ctx.saved_tensors, ctx.degree), None

    def backward_backward(ctx, cotangent):
        return *_pull_back_twice(ctx, cotangent), None

    torch.library.register_autograd("hashgrid::sh_encode", backward, setup_context=_ShEncode.setup_context)
    torch.library.register_autograd(
        "hashgrid::sh_encode_backward", backward_backward, setup_context=_ShEncodeBackward.setup_context
    )

    register_vmap("sh_encode", ["directions"])
    register_vmap("sh_encode_backward", ["grad_y", "directions"])


if _extension.module is not None:
    _register()
