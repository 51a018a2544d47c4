"""Volume compositing of packed samples (Max 1995; distortion: Barron et al. 2022, eq. 15) on the native kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.autograd import Function, apply
from hashgrid.ops._last import no_third_derivative
from hashgrid.ops._vmap import register_vmap
from hashgrid.precision import HALF_DTYPES, maths_dtype
from hashgrid.util.choices import exactly_one

_N_OUTPUTS = 6
_N_TENSORS = 5  # sigmas or alphas, features, t_starts, t_ends, packed_info


def composite(
    sigmas: Tensor | None,
    features: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    early_stop_eps: float = 1e-4,
    *,
    alphas: Tensor | None = None,
    return_transmittances: bool = False,
) -> tuple[Tensor, ...]:
    """Composite the samples of every ray, front to back.

    With ``dt = t_end - t_start``: ``alpha_i = 1 - exp(-sigma_i dt_i)`` where densities are given,
    ``T_i = prod_{j<i} (1 - alpha_j)`` and ``w_i = T_i alpha_i``. A sample counts iff ``T_i >= early_stop_eps``; the
    others have weight, transmittance and gradient exactly zero. Twice differentiable to ``sigmas`` or ``alphas`` and
    ``features`` through all outputs, not to ``t_starts`` and ``t_ends``; an alpha of exactly 1 has a gradient like any
    other. The sums along a ray are fp64, and all bits are the same for any number of threads.

    Args:
        sigmas: [S], densities, non-negative, fp32 or fp64 (half precision is read as fp32); None with ``alphas``.
        features: [S, C], any C.
        t_starts: [S], distances along the ray.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
            Samples behind those of the last ray belong to none: their weights and gradients are zero.
        early_stop_eps: smallest transmittance at which a sample counts.
        alphas: [S], in [0, 1], instead of ``sigmas``, of the same dtypes.
        return_transmittances: whether ``T`` is returned as well.

    Returns:
        features [R, C] ``sum w_i c_i``, opacities [R] ``sum w_i``, depths [R] ``sum w_i m_i`` with the midpoints ``m``,
        weights [S], distortion [R] ``1/3 sum w_i^2 dt_i + 2 sum_i w_i sum_{j<i} w_j (m_i - m_j)``, and
        transmittances [S] with ``return_transmittances``.

    Raises:
        ValueError: not exactly one of ``sigmas`` and ``alphas`` is given.
        RuntimeError: a shape or a dtype does not fit, or the rays do not lie back to back. On CUDA, where finding the
            latter out would mean waiting for the device, the outputs of such a ray are NaN instead.
    """
    _, density = exactly_one(sigmas=sigmas, alphas=alphas)
    dtype = maths_dtype(density)
    if features.dtype in HALF_DTYPES:
        features = features.to(dtype)
    arguments = (
        density.to(dtype).contiguous(),
        features.contiguous(),
        t_starts.detach().to(dtype).contiguous(),
        t_ends.detach().to(dtype).contiguous(),
        packed_info.contiguous(),
        early_stop_eps,
        alphas is not None,
        return_transmittances,
    )
    # Dynamo shifts the arguments of a Function whose forward takes *arguments, as the backward's does.
    run = _extension.ops().composite if torch.compiler.is_compiling() else partial(apply, _Composite)
    outputs = run(*arguments)
    return outputs if return_transmittances else outputs[:-1]


def _contiguous(tensors: Any) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _setup_context(ctx, inputs, output) -> None:
    """Of both derivatives; ``need_transmittances``, where it is an input, is not one of ``composite_backward``."""
    n_gradients = 0 if len(output) == _N_OUTPUTS else _N_OUTPUTS
    ctx.options = inputs[n_gradients + _N_TENSORS : n_gradients + _N_TENSORS + 2]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: n_gradients + _N_TENSORS])


def _pull_back_twice(ctx, cotangents) -> tuple[Tensor | None, ...]:
    """Gradients of the tensor arguments of ``composite_backward`` for cotangents of its two outputs."""
    needs = ctx.needs_input_grad[: _N_OUTPUTS + 2]
    if all(g is None for g in cotangents):
        return (None,) * len(needs)
    backward_backward = _extension.ops().composite_backward_backward
    arguments = (*_contiguous(cotangents), *ctx.saved_tensors, *ctx.options)
    grads = no_third_derivative("composite", backward_backward, *arguments)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


class _Composite(Function):
    @staticmethod
    def forward(*arguments):  # type: ignore[override]
        return _extension.ops().composite(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        _setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        needs = ctx.needs_input_grad[:2]
        results = apply(_CompositeBackward, *_contiguous(grads), *ctx.saved_tensors, *ctx.options)
        return *(g if need else None for g, need in zip(results, needs, strict=True)), *[None] * 6


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
        return *_pull_back_twice(ctx, cotangents), *[None] * 5


def _register() -> None:
    """Fake kernels and autograd of ``torch.ops.hashgrid.composite``."""

    def outputs(sigmas, features, packed_info, n_transmittances):
        n_rays = packed_info.shape[0]
        return (
            sigmas.new_empty(n_rays, features.shape[1]),
            sigmas.new_empty(n_rays),
            sigmas.new_empty(n_rays),
            torch.empty_like(sigmas),
            sigmas.new_empty(n_rays),
            sigmas.new_empty(n_transmittances),
        )

    @torch.library.register_fake("hashgrid::composite")
    def _(sigmas, features, t_starts, t_ends, packed_info, early_stop_eps, are_alphas, need_transmittances):
        return outputs(sigmas, features, packed_info, sigmas.shape[0] if need_transmittances else 0)

    @torch.library.register_fake("hashgrid::composite_backward")
    def _(*arguments):
        sigmas, features = arguments[_N_OUTPUTS : _N_OUTPUTS + 2]
        return torch.empty_like(sigmas), torch.empty_like(features)

    @torch.library.register_fake("hashgrid::composite_backward_backward")
    def _(*arguments):
        grad_transmittances = arguments[_N_OUTPUTS + 1]
        sigmas, features, _, _, packed_info = arguments[_N_OUTPUTS + 2 : _N_OUTPUTS + 2 + _N_TENSORS]
        n_transmittances = 0 if grad_transmittances is None else grad_transmittances.shape[0]
        first = outputs(sigmas, features, packed_info, n_transmittances)
        return *first, torch.empty_like(sigmas), torch.empty_like(features)

    def backward(ctx, *grads):
        results = torch.ops.hashgrid.composite_backward(*_contiguous(grads), *ctx.saved_tensors, *ctx.options)
        needs = ctx.needs_input_grad[:2]
        return *(g if need else None for g, need in zip(results, needs, strict=True)), *[None] * 6

    def backward_backward(ctx, *cotangents):
        return *_pull_back_twice(ctx, cotangents), *[None] * 5

    torch.library.register_autograd("hashgrid::composite", backward, setup_context=_setup_context)
    torch.library.register_autograd("hashgrid::composite_backward", backward_backward, setup_context=_setup_context)

    for name in ("composite", "composite_backward", "composite_backward_backward"):
        register_vmap(name)


if _extension.module is not None:
    _register()
