"""Volume compositing of packed samples (Max 1995; distortion: Barron et al. 2022, eq. 15) on the native kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.ops._last import no_third_derivative
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import HALF_DTYPES, maths_dtype

_N_OUTPUTS = 5


def composite(
    sigmas: Tensor,
    features: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    early_stop_eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Composite the samples of every ray, front to back.

    With ``dt = t_end - t_start``: ``alpha_i = 1 - exp(-sigma_i dt_i)``, ``T_i = exp(-sum_{j<i} sigma_j dt_j)`` and
    ``w_i = T_i alpha_i``. A sample counts iff ``T_i >= early_stop_eps``; the others have weight and gradient exactly
    zero. Twice differentiable to ``sigmas`` and ``features`` through all outputs, not to ``t_starts`` and ``t_ends``.
    The sums along a ray are fp64, and all bits are the same for any number of threads.

    Args:
        sigmas: [S], densities, non-negative, fp32 or fp64 (half precision is read as fp32).
        features: [S, C], any C.
        t_starts: [S], distances along the ray.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
            Samples behind those of the last ray belong to none: their weights and gradients are zero.
        early_stop_eps: smallest transmittance at which a sample counts.

    Returns:
        features [R, C] ``sum w_i c_i``, opacities [R] ``sum w_i``, depths [R] ``sum w_i m_i`` with the midpoints ``m``,
        weights [S], distortion [R] ``1/3 sum w_i^2 dt_i + 2 sum_i w_i sum_{j<i} w_j (m_i - m_j)``.

    Raises:
        RuntimeError: a shape or a dtype does not fit, or the rays do not lie back to back. On CUDA, where finding the
            latter out would mean waiting for the device, the outputs of such a ray are NaN instead.
    """
    dtype = maths_dtype(sigmas)
    if features.dtype in HALF_DTYPES:
        features = features.to(dtype)
    arguments = (
        sigmas.to(dtype).contiguous(),
        features.contiguous(),
        t_starts.detach().to(dtype).contiguous(),
        t_ends.detach().to(dtype).contiguous(),
        packed_info.contiguous(),
        early_stop_eps,
    )
    # Dynamo shifts the arguments of a Function whose forward takes *arguments, as the backward's does.
    if torch.compiler.is_compiling():
        return _extension.ops().composite(*arguments)
    return apply(_Composite, *arguments)


def _contiguous(tensors: Any) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.early_stop_eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _pull_back_twice(ctx, cotangents) -> tuple[Tensor | None, ...]:
    """Gradients of the tensor arguments of ``composite_backward`` for cotangents of its two outputs."""
    needs = ctx.needs_input_grad[: _N_OUTPUTS + 2]
    if all(g is None for g in cotangents):
        return (None,) * len(needs)
    backward_backward = _extension.ops().composite_backward_backward
    arguments = (*_contiguous(cotangents), *ctx.saved_tensors, ctx.early_stop_eps)
    grads = no_third_derivative("composite", backward_backward, *arguments)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


class _Composite(Function):
    @staticmethod
    def forward(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps):  # type: ignore[override]
        return _extension.ops().composite(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        _setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        needs = ctx.needs_input_grad[:2]
        results = apply(_CompositeBackward, *_contiguous(grads), *ctx.saved_tensors, ctx.early_stop_eps)
        return *(g if need else None for g, need in zip(results, needs, strict=True)), None, None, None, None


class _CompositeBackward(Function):
    """The first derivative as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(*arguments):  # type: ignore[override]
        return _extension.ops().composite_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        _setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, *cotangents):  # type: ignore[override]
        return *_pull_back_twice(ctx, cotangents), None, None, None, None


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.composite``."""

    def outputs(sigmas, features, packed_info):
        n_rays = packed_info.shape[0]
        return (
            sigmas.new_empty(n_rays, features.shape[1]),
            sigmas.new_empty(n_rays),
            sigmas.new_empty(n_rays),
            torch.empty_like(sigmas),
            sigmas.new_empty(n_rays),
        )

    @torch.library.register_fake("hashgrid::composite")
    def _(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps):
        return outputs(sigmas, features, packed_info)

    @torch.library.register_fake("hashgrid::composite_backward")
    def _(*arguments):
        sigmas, features = arguments[_N_OUTPUTS : _N_OUTPUTS + 2]
        return torch.empty_like(sigmas), torch.empty_like(features)

    @torch.library.register_fake("hashgrid::composite_backward_backward")
    def _(*arguments):
        sigmas, features, _, _, packed_info, _ = arguments[_N_OUTPUTS + 2 :]
        return *outputs(sigmas, features, packed_info), torch.empty_like(sigmas), torch.empty_like(features)

    def backward(ctx, *grads):
        results = torch.ops.hashgrid.composite_backward(*_contiguous(grads), *ctx.saved_tensors, ctx.early_stop_eps)
        needs = ctx.needs_input_grad[:2]
        return *(g if need else None for g, need in zip(results, needs, strict=True)), None, None, None, None

    def backward_backward(ctx, *cotangents):
        return *_pull_back_twice(ctx, cotangents), None, None, None, None

    torch.library.register_autograd("hashgrid::composite", backward, setup_context=_setup_context)
    torch.library.register_autograd("hashgrid::composite_backward", backward_backward, setup_context=_setup_context)

    for name in ("composite", "composite_backward", "composite_backward_backward"):
        register_vmap(name)


if _extension.module is not None:
    _register()
