"""Volume compositing of packed samples (Max 1995; distortion: Barron et al. 2022, eq. 15) on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._autograd import Gradients, Static, added, differentiable, make_function, no_third_derivative
from hashgrid.ops._tensors import HALF_DTYPES, maths_dtype
from hashgrid.ops._vmap import register_vmap
from hashgrid.util.autograd import apply
from hashgrid.util.choices import exactly_one

_N_OUTPUTS = 6


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
    """Composites the samples of every ray, front to back.

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
    outputs = _composite(*arguments)
    return outputs if return_transmittances else outputs[:-1]


def _contiguous(tensors: Any) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


# ---- derivatives -----------------------------------------------------------------------------------------------------
# Tensors (sigmas or alphas, features, t_starts, t_ends, packed_info), of which the first two can be differentiated;
# options (early_stop_eps, are_alphas), and need_transmittances where outputs are made.


def _gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], *grads: Tensor | None
) -> Gradients:
    return *_composite_backward(*_contiguous(grads), *tensors, *options[:2]), None, None, None


def _gradient_gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], *cotangents: Tensor | None
) -> Gradients:
    return *_second_order(cotangents, tensors[:_N_OUTPUTS], tensors[_N_OUTPUTS:], options), None, None, None


def _second_order(
    cotangents: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    tensors: Sequence[Any],
    options: Sequence[Any],
) -> Gradients:
    """Gradients of the gradients' product with ``cotangents``: to ``grads``, sigmas and features."""

    def compute(*tensors: Any) -> Any:
        return _extension.ops().composite_backward_backward(*tensors, *options)

    return no_third_derivative("composite", compute, *_contiguous(cotangents), *grads, *tensors)


def _tangent(tensors: Sequence[Any], options: Sequence[Any], *tangents: Tensor | None) -> Any:
    return apply(_Along, *_contiguous(tangents[:2]), *tensors, Static(None, options))


def _gradient_tangents(tensors: Sequence[Any], options: Sequence[Any], *tangents: Tensor | None) -> Gradients:
    """Returns the change of the inputs' gradients along tangents. They are linear in those of the outputs; along
    tangents of the inputs, as second derivatives are symmetric, it is the gradient of their product with these
    tangents."""
    of_grads, directions = tangents[:_N_OUTPUTS], tangents[_N_OUTPUTS : _N_OUTPUTS + 2]
    grads, inputs = tensors[:_N_OUTPUTS], tensors[_N_OUTPUTS:]
    terms: list[Any] = []
    if any(tangent is not None for tangent in of_grads):
        terms.append(_composite_backward(*_contiguous(of_grads), *inputs, *options))
    if any(direction is not None for direction in directions):
        terms.append(_second_order(directions, grads, inputs, options)[_N_OUTPUTS:])
    return added(terms)


def _run_along(*arguments: Any) -> Any:
    """Returns the change of the outputs along directions of sigmas and features. It is the derivative, to the outputs'
    gradients, of the product of the inputs' gradients with these directions; as that product is linear in them, their
    values do not matter."""
    *tensors, static = arguments
    *options, need_transmittances = static.options
    grads: list[Tensor | None] = [None] * _N_OUTPUTS
    if need_transmittances:  # their change is made where they have a gradient
        grads[-1] = torch.zeros_like(tensors[2])
    second = _extension.ops().composite_backward_backward
    return second(*tensors[:2], *grads, *tensors[2:], *options)[:_N_OUTPUTS]


def _along_gradients(
    needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], *grads: Tensor | None
) -> Gradients:
    directions, inputs, grads, options = tensors[:2], tensors[2:], tuple(_contiguous(grads)), options[:2]
    of_directions: Gradients = (None, None)
    of_inputs: Gradients = (None, None)
    if any(needs[:2]):
        of_directions = _composite_backward(*grads, *inputs, *options)
    if any(needs[2:]):
        of_inputs = _second_order(directions, grads, inputs, options)[_N_OUTPUTS:]
    return *of_directions, *of_inputs, None, None, None


_Along = make_function("composite_along", _run_along, _along_gradients)
_composite = differentiable("composite", _gradients, _tangent)
_composite_backward = differentiable("composite_backward", _gradient_gradients, _gradient_tangents)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.composite`` and its derivatives, and vmap over them."""

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
        sigmas, features, _, _, packed_info, *_ = arguments[_N_OUTPUTS + 2 :]
        n_transmittances = 0 if grad_transmittances is None else grad_transmittances.shape[0]
        first = outputs(sigmas, features, packed_info, n_transmittances)
        return *first, torch.empty_like(sigmas), torch.empty_like(features)

    for name in ("composite", "composite_backward", "composite_backward_backward"):
        register_vmap(name)


if _extension.module is not None:
    _register()
