"""Density and colour networks of a radiance field on the native kernels, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.maths import color_inputs, density_of, layers
from hashgrid.ops._autograd import Gradients, differentiable
from hashgrid.ops._kernels import takes
from hashgrid.ops._tensors import at_least_fp32, product_dtype, without_autocast
from hashgrid.ops._vmap import register_vmap
from hashgrid.ops.mlp import check_network, mlp, split_gradient
from hashgrid.util.autograd import has_tangents, is_transformed
from hashgrid.util.choices import ACTIVATIONS, FACTORS


def radiance_mlp(
    x: Tensor,
    ray_features: Tensor,
    rays: Tensor,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    output_activation: str = "sigmoid",
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns densities and colours by both networks of Instant-NGP's field (Müller et al. 2022, section 5.4). The
    first output of the one is the logarithm of a density; the other makes colours of all outputs of the first and of
    features of the point's ray. Hidden layers are ReLU, without biases.

    Neither geometry features nor the inputs of the colour network, nor gradients of either, go through memory, and no
    row of ``ray_features`` is repeated. Gradients have the same bits in every run. They are those of `mlp`, with the
    density's derivative exp(clamp(z, -15, 15)).

    On a GPU the kernel takes fp32 tensors, 16-bit products, 16 outputs of the density network, an even number of ray
    features and layers up to 64 wide, from sm_80 on; otherwise, where ``ray_features`` needs a gradient, and for second
    derivatives, the same is made of `mlp` and PyTorch's ops.

    Args:
        x: [N, in], features of points such as those of `hash_encode`, taken in the dtype of the weights.
        ray_features: [R, E], such as spherical harmonics of directions, taken in the dtype of the weights.
        rays: [N] int64, to which ray a point belongs.
        density_weights, color_weights: matrices [out, in] of the layers, at most 9 together; the first colour layer has
            G + E inputs.
        output_activation: of the colour network, see `mlp`.
        compute_dtype: of the products, see `mlp`.

    Returns:
        Densities [N], exp of the first output, and colours [N, C], in the dtype of the weights, at least
        fp32.

    Raises:
        ValueError: an option is unknown, or shapes do not chain.
        RuntimeError: a dtype the kernels do not take, or a ray does not exist (on a GPU: NaN).
    """
    weights = [at_least_fp32(weight) for weight in (*density_weights, *color_weights)]
    n_density = len(density_weights)
    if x.dim() != 2:
        raise ValueError(f"`x` must have shape [N, in], got {list(x.shape)}")
    if ray_features.dim() != 2:
        raise ValueError(f"`ray_features` must have shape [R, E], got {list(ray_features.shape)}")
    products = product_dtype(compute_dtype, weights[0]) if weights else compute_dtype
    composed = (ray_features.requires_grad and torch.is_grad_enabled()) or has_tangents()
    if composed or not takes(
        "radiance_mlp", (), x.shape[1], weights, products, n_density, ray_features.shape[1], output_activation
    ):
        return _radiance_by_mlp(
            x, ray_features, rays, weights[:n_density], weights[n_density:], output_activation, products
        )
    dtype = weights[0].dtype
    options = ACTIVATIONS.index(output_activation), FACTORS.index(None if products == dtype else products)
    arguments = [tensor.to(dtype).contiguous() for tensor in (x, ray_features)]
    params = [weight.contiguous() for weight in weights]
    return _radiance_mlp(*arguments, rays.contiguous(), params[:n_density], params[n_density:], *options)


def _radiance_by_mlp(
    x: Tensor,
    ray_features: Tensor,
    rays: Tensor,
    density_weights: list[Tensor],
    color_weights: list[Tensor],
    output_activation: str,
    compute_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Returns the same by `mlp` and PyTorch's ops.

    Raises:
        ValueError: an option is unknown, or shapes do not chain.
    """
    check_network(x.shape[1], density_weights, [], "relu", "none", compute_dtype, "density_weights")
    width = density_weights[-1].shape[0] + ray_features.shape[1]
    check_network(width, color_weights, [], "relu", output_activation, compute_dtype, "color_weights")
    n_layers, most = len(density_weights) + len(color_weights), _extension.require().MAX_MLP_LAYERS
    if n_layers > most:
        raise ValueError(f"`density_weights` and `color_weights` must have at most {most} layers, got {n_layers}")
    geometry = mlp(x, density_weights, compute_dtype=compute_dtype)
    inputs = color_inputs(geometry, ray_features, rays)
    return density_of(geometry), mlp(inputs, color_weights, None, "relu", output_activation, compute_dtype)


# ---- derivatives: the first one has a kernel, the second is composed of PyTorch's ops --------------------------------


def _gradients(
    needs: Sequence[bool],
    tensors: Sequence[Any],
    options: Sequence[Any],
    grad_sigmas: Tensor | None,
    grad_colors: Tensor | None,
) -> Gradients:
    x, ray_features, rays, density_weights, color_weights = tensors
    weights = [*density_weights, *color_weights]
    if grad_sigmas is None:
        grad_sigmas = x.new_zeros(x.shape[0])
    if grad_colors is None:
        grad_colors = x.new_zeros(x.shape[0], weights[-1].shape[0])
    wanted = [needs[0], *needs[3:]]
    if torch.is_grad_enabled():  # to be differentiated once more
        grads = _differentiable(
            grad_sigmas, grad_colors, x, ray_features, rays, weights, len(density_weights), options, wanted
        )
    else:
        need_weights = any(wanted[1:])
        grad_x, grad_params = _extension.ops().radiance_mlp_backward(
            grad_sigmas.contiguous(), grad_colors.contiguous(), *tensors, *options, needs[0], need_weights
        )
        grads = [grad_x, *(split_gradient(grad_params, weights) if need_weights else [None] * len(weights))]
    return [grads[0], None, None, *grads[1:]]


@without_autocast
def _differentiable(
    grad_sigmas: Tensor,
    grad_colors: Tensor,
    x: Tensor,
    ray_features: Tensor,
    rays: Tensor,
    weights: Sequence[Tensor],
    n_density: int,
    options: Sequence[int],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Returns the gradients of (x, ``weights``), made of PyTorch's ops."""

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        output_activation, factors = ACTIVATIONS[options[0]], FACTORS[options[1]]
        geometry = layers(x, weights[:n_density], None, "relu", "none", factors)
        inputs = color_inputs(geometry, ray_features, rays)
        return density_of(geometry), layers(inputs, weights[n_density:], None, "relu", output_activation, factors)

    if is_transformed():
        grads = torch.func.vjp(function, x, *weights)[1]((grad_sigmas, grad_colors))
        return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
    # new views, so that gradients computed from x do not lead back to the x differentiated here
    inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (x, *weights)]
    outputs = function(*inputs)
    targets = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(outputs, targets, (grad_sigmas, grad_colors), create_graph=True) if targets else ()
    )
    return [next(found) if want else None for want in wanted]


_radiance_mlp = differentiable("radiance_mlp", _gradients)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.radiance_mlp`` and its derivative, and vmap over them."""

    @torch.library.register_fake("hashgrid::radiance_mlp")
    def _(x, ray_features, rays, density_weights, color_weights, *options):
        return x.new_empty(x.shape[0]), x.new_empty(x.shape[0], color_weights[-1].shape[0])

    @torch.library.register_fake("hashgrid::radiance_mlp_backward")
    def _(grad_sigmas, grad_colors, x, ray_features, rays, density_weights, color_weights, *options):
        *_, need_x, need_params = options
        n_params = sum(weight.numel() for weight in (*density_weights, *color_weights))
        return x.new_empty(x.shape[0] if need_x else 0, x.shape[1]), x.new_empty(n_params if need_params else 0)

    for name in ("radiance_mlp", "radiance_mlp_backward"):
        register_vmap(name)


if _extension.module is not None:
    _register()
