"""Integrals along rays as sums over packed samples, without attenuation (X-ray transform), on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.ops._autograd import Gradients, added, differentiable
from hashgrid.ops._tensors import HALF_DTYPES, maths_dtype
from hashgrid.ops._vmap import register_vmap


def line_integrals(values: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor) -> Tensor:
    """Sums values times the lengths of their intervals along each ray: ``sum_i values_i (t_ends_i - t_starts_i)``.

    What a beam loses on its way where ``values`` are attenuations: the logarithm of Beer and Lambert's law. Linear in
    ``values`` and in the lengths; differentiable any number of times, to ``t_starts`` and ``t_ends`` too. All bits are
    the same for any number of threads.

    Args:
        values: [S, C], any C, fp32 or fp64 (half precision is read as fp32).
        t_starts: [S], distances along the ray, in the unit that the lengths are wanted in.
        t_ends: [S].
        packed_info: [R, 2] int64, first sample and number of samples of each ray; rays lie back to back, in order.
            Samples behind those of the last ray belong to none: their gradients are zero.

    Returns:
        [R, C], zero for a ray without samples.

    Raises:
        RuntimeError: a shape or a dtype does not fit, or the rays do not lie back to back. On CUDA, where finding the
            latter out would mean waiting for the device, the sums of such a ray are NaN instead.

    Example:
        >>> import torch
        >>> from hashgrid.ops import line_integrals
        >>> t = torch.tensor([0.0, 1.0, 0.0])
        >>> line_integrals(torch.tensor([[1.0], [2.0], [3.0]]), t, t + 0.5, torch.tensor([[0, 2], [2, 1]]))
        tensor([[1.5000],
                [1.5000]])
    """
    dtype = maths_dtype(values)
    if values.dtype in HALF_DTYPES:
        values = values.to(dtype)
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        if t.shape != values.shape[:1]:
            raise RuntimeError(f"`{name}` must have shape {list(values.shape[:1])}, got {list(t.shape)}")
    steps = t_ends.to(dtype) - t_starts.to(dtype)
    return _line_integrals(values.contiguous(), steps.contiguous(), packed_info.contiguous())


# ---- derivatives -----------------------------------------------------------------------------------------------------
# Sums are bilinear in (values, steps), and so is each of their gradients in two of (grad_sums, values, steps): every
# derivative of either op is made of the two.


def _gradients(needs: Sequence[bool], tensors: Sequence[Any], options: Sequence[Any], grad_sums: Tensor) -> Gradients:
    return *_backward(grad_sums.contiguous(), *tensors, bool(needs[0]), bool(needs[1])), None


def _tangent(
    tensors: Sequence[Any], options: Sequence[Any], of_values: Tensor | None, of_steps: Tensor | None, _: Any = None
) -> Tensor:
    values, steps, packed_info = tensors
    terms = []
    if of_values is not None:
        terms.append((_line_integrals(of_values.contiguous(), steps, packed_info),))
    if of_steps is not None:
        terms.append((_line_integrals(values, of_steps.contiguous(), packed_info),))
    return added(terms)[0]


def _gradient_gradients(
    needs: Sequence[bool],
    tensors: Sequence[Any],
    options: Sequence[Any],
    of_values: Tensor | None,
    of_steps: Tensor | None,
) -> Gradients:
    """Gradients of ``<grad_values, of_values> + <grad_steps, of_steps>`` to grad_sums, values and steps."""
    grad_sums, values, steps, packed_info = tensors
    need_values, need_steps = options
    of_values = of_values.contiguous() if of_values is not None and need_values else None
    of_steps = of_steps.contiguous() if of_steps is not None and need_steps else None
    to_sums = to_values = to_steps = None
    if needs[0] and (of_values is not None or of_steps is not None):
        to_sums = _tangent((values, steps, packed_info), (), of_values, of_steps)
    if needs[1] and of_steps is not None:
        to_values = _backward(grad_sums, values, of_steps, packed_info, True, False)[0]
    if needs[2] and of_values is not None:
        to_steps = _backward(grad_sums, of_values, steps, packed_info, False, True)[1]
    return to_sums, to_values, to_steps, None


def _gradient_tangents(tensors: Sequence[Any], options: Sequence[Any], *tangents: Tensor | None) -> Gradients:
    """Returns the change of grad_values and grad_steps along tangents of grad_sums, values and steps."""
    grad_sums, values, steps, packed_info = tensors
    of_sums, of_values, of_steps = (None if x is None else x.contiguous() for x in tangents[:3])
    need_values, need_steps = options
    terms = []
    if of_sums is not None:
        terms.append(_backward(of_sums, values, steps, packed_info, *options))
    if of_values is not None or of_steps is not None:
        inputs = (values if of_values is None else of_values, steps if of_steps is None else of_steps)
        asked = need_values and of_steps is not None, need_steps and of_values is not None
        changes = _backward(grad_sums, *inputs, packed_info, *asked)
        shapes = (values if need_values else values[:0, 0], steps if need_steps else steps[:0])
        terms.append([c if a else torch.zeros_like(s) for c, a, s in zip(changes, asked, shapes, strict=True)])
    return added(terms)


_line_integrals = differentiable("line_integrals", _gradients, _tangent)
_backward = differentiable("line_integrals_backward", _gradient_gradients, _gradient_tangents)


def _register() -> None:
    @torch.library.register_fake("hashgrid::line_integrals")
    def _(values, steps, packed_info):
        return values.new_empty(packed_info.shape[0], values.shape[1])

    @torch.library.register_fake("hashgrid::line_integrals_backward")
    def _(grad_sums, values, steps, packed_info, need_values, need_steps):
        return (
            torch.empty_like(values) if need_values else values.new_empty(0),
            steps.new_empty(steps.shape[0] if need_steps else 0),
        )

    for name in ("line_integrals", "line_integrals_backward"):
        register_vmap(name)


if _extension.module is not None:
    _register()
