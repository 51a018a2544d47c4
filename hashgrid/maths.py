"""Formulas in plain PyTorch that the native ops and their plain twins share, each differentiable any number of times.

The native ops use them where no kernel exists: for rare derivatives and for what surrounds a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.util.autograd import apply
from hashgrid.util.choices import ACTIVATIONS, check_option

EXP_GRADIENT_CLAMP = 15.0
FIRST_DRAW, DRAWS_PER_RAY = 2**31, 5  # indices of random numbers; march_rays takes those of the rays themselves


# ---- networks --------------------------------------------------------------------------------------------------------


class _ClampedGradientExp(torch.autograd.Function):
    """exp(x) with the derivative exp(clamp(x, -15, 15)).

    The derivatives are made of differentiable operations, so the second one follows: zero outside the clamp.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_y * x.clamp(-EXP_GRADIENT_CLAMP, EXP_GRADIENT_CLAMP).exp()


class _ClampedGradientExpForwardMode(_ClampedGradientExp):
    """The same with a forward mode, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:  # type: ignore[override]
        return _ClampedGradientExp.backward(ctx, tangent)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value, gradient_to):  # type: ignore[override]
        return value.to(gradient_to.dtype, copy=True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[override]
        pass

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return None, grad


class _StraightThroughForwardMode(_StraightThrough):
    """The same with a forward mode, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx, _, tangent):  # type: ignore[override]
        return tangent.view_as(tangent)


def straight_through(value: Tensor, gradient_to: Tensor) -> Tensor:
    """Exactly ``value`` in the dtype of ``gradient_to``, which receives the whole gradient; same shapes."""
    if torch.compiler.is_compiling():
        return _StraightThrough.apply(value, gradient_to)
    return apply(_StraightThroughForwardMode, value, gradient_to)


def _exp(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _ClampedGradientExp.apply(x)
    return apply(_ClampedGradientExpForwardMode, x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": _exp,
    "sine": torch.sin,
}


def activate(x: Tensor, activation: str, softplus_beta: float = 1.0) -> Tensor:
    """Applies the activation called ``activation`` elementwise."""
    if activation == "softplus":  # beyond 40 the identity is exact in fp64; PyTorch's default of 20 is not
        return F.softplus(x, softplus_beta, threshold=40)
    return _ACTIVATIONS[check_option("activation", activation, ACTIVATIONS)](x)


def layers(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    activation: str,
    output_activation: str,
    compute_dtype: torch.dtype | None,
    softplus_beta: float = 1.0,
) -> Tensor:
    """Outputs [..., out] of a multilayer perceptron for ``x`` [..., in], all in one dtype; ``softplus_beta`` is of the
    hidden activation.

    ``compute_dtype`` rounds both factors of each product, which is exact before it is summed; gradients pass the
    rounding unchanged.
    """
    for layer, weight in enumerate(weights):
        bias = None if biases is None else biases[layer]
        x = F.linear(_rounded(x, compute_dtype), _rounded(weight, compute_dtype), bias)
        is_hidden = layer < len(weights) - 1
        x = activate(x, activation, softplus_beta) if is_hidden else activate(x, output_activation)
    return x


def _rounded(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None or dtype == x.dtype else straight_through(x.to(dtype), x)


def density_of(geometry: Tensor) -> Tensor:
    """Densities [N], exp of the first of the density network's outputs [N, G]."""
    return activate(geometry[:, 0], "exp")


def color_inputs(geometry: Tensor, ray_features: Tensor, rays: Tensor) -> Tensor:
    """Inputs [N, G + E] of a colour network: the density network's outputs [N, G], features [R, E] of rays [N]."""
    return torch.cat((geometry, ray_features.to(geometry.dtype).index_select(0, rays)), dim=1)


def optical_thickness(
    geometry: Tensor, cells: Tensor, resolution: tuple[int, int, int], n_cascades: int, step_size: float
) -> Tensor:
    """Density times step [M] from the density network's outputs [M, G] in ``cells`` [M]; steps double from cascade to
    cascade."""
    thickness = density_of(geometry) * step_size
    return thickness if n_cascades == 1 else thickness * 2.0 ** (cells // math.prod(resolution))


# ---- encodings -------------------------------------------------------------------------------------------------------


def spherical_harmonics(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics [..., degree^2] of directions [..., 3], channel ``l^2 + l + m`` for m in -l..l.

    ``Y_lm = N_lm P_lm(z) Re|Im (x + i y)^|m|`` as this polynomial, also off the unit sphere; orthonormal on it, with
    the Condon-Shortley phase.
    """
    x, y, z = directions.unbind(-1)
    channels: dict[int, Tensor] = {}
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)  # Re, Im of (x + i y)^m
    for m in range(degree):
        for band, legendre in enumerate(_legendre(z, m, degree), start=m):
            norm = _harmonic_norm(band, m)
            channels[band * band + band + m] = norm * legendre * cosine
            if m > 0:
                channels[band * band + band - m] = norm * legendre * sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    return torch.stack([channels[c] for c in range(degree * degree)], dim=-1)


def _legendre(z: Tensor, m: int, degree: int) -> list[Tensor]:
    """``P_lm(z) / (1 - z^2)^(m/2)`` for l in m..degree-1, without the phase (DLMF 14.10.3)."""
    values = [torch.full_like(z, math.prod(range(1, 2 * m, 2)))]
    for band in range(m + 1, degree):
        previous = (band + m - 1) * values[-2] if band > m + 1 else 0
        values.append(((2 * band - 1) * z * values[-1] - previous) / (band - m))
    return values


def _harmonic_norm(band: int, m: int) -> float:
    """Norm of the real harmonic, with the phase (-1)^m."""
    norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m))
    return norm if m == 0 else (-1) ** m * math.sqrt(2) * norm


def waves(x: Tensor, n_frequencies: int, pi: bool = True) -> Tensor:
    """``sin(2^k pi x), cos(2^k pi x)`` [..., D * 2 * K] of ``x`` [..., D], channel ``(d * K + k) * 2`` for the sine;
    without ``pi`` that factor is left out."""
    half_turns = x.unsqueeze(-1) * 2.0 ** torch.arange(n_frequencies, device=x.device, dtype=x.dtype)  # [..., D, K]
    # whole turns are exact to drop here and no longer are after the product with pi
    angles = math.pi * (half_turns - 2 * (half_turns.detach() / 2).round()) if pi else half_turns
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


# ---- rays and pixels -------------------------------------------------------------------------------------------------


def middles(rays_o: Tensor, rays_d: Tensor, ray_indices: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """Middles [S, 3] of samples ``t_starts`` to ``t_ends`` [S] on the rays ``ray_indices`` [S] of [R, 3]."""
    middle = ((t_starts + t_ends) * 0.5).unsqueeze(-1)
    return rays_o.index_select(0, ray_indices) + rays_d.index_select(0, ray_indices) * middle


def smooth_l1(
    colors: Tensor, opacities: Tensor, background: Tensor, targets: Tensor, beta: float, n_rays: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean smooth L1 loss [] (Girshick 2015) of the first ``n_rays`` [1] rays, colours [R, C] of opacities [R] over
    backgrounds [R, C]; and [2] fp64: that loss and the mean squared error, detached."""
    total, channels = colors.shape
    counts = torch.arange(total, device=colors.device) < (total if n_rays is None else n_rays.clamp(0, total))
    # a choice, not a product: values of rays that do not count may be anything
    colors, opacities, background, targets = (
        torch.where(counts if x.dim() == 1 else counts[:, None], x, 0.0)
        for x in (colors, opacities, background, targets)
    )
    difference = colors + (1 - opacities)[:, None] * background - targets
    weight = 1 / (channels * counts.sum().clamp(min=1).double())
    zero = torch.zeros_like(difference)
    loss = (F.smooth_l1_loss(difference, zero, reduction="sum", beta=beta) * weight).to(colors.dtype)
    means = torch.stack((loss.detach().double(), difference.detach().double().square().sum() * weight))
    return loss, means


def pixel_draws(n_rays: int, device: torch.device) -> Tensor:
    """Indices [R * 5] of the random numbers that `draw_pixels` takes."""
    return FIRST_DRAW + torch.arange(DRAWS_PER_RAY * n_rays, device=device)


def draw_pixels(uniform: Tensor, n_pixels: int) -> tuple[Tensor, Tensor]:
    """Pixels [R] of ``n_pixels``, with replacement, and three uniform numbers for each [R, 3].

    Args:
        uniform: [R * 5], uniform numbers of the indices `pixel_draws`.
    """
    u = uniform.view(-1, DRAWS_PER_RAY)
    # 24 bits are too few for the pixels of a large scene
    place = u[:, 3].double() + u[:, 4].double() * 2.0**-24
    return (place * n_pixels).long().clamp(max=n_pixels - 1), u[:, :3].contiguous()


def locate_pixels(row: Tensor, offsets: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View of pixels [R], column and row in it, all int64 [R]; ``offsets`` [N + 1] and ``sizes`` [N, 2] of views."""
    view = torch.searchsorted(offsets, row, right=True) - 1
    in_view = row - offsets.index_select(0, view)
    width = sizes[:, 0].index_select(0, view)
    pixel_y = torch.div(in_view, width, rounding_mode="floor")
    return view, in_view - pixel_y * width, pixel_y


def pixel_colors(data: Tensor, row: Tensor) -> Tensor:
    """RGBA [R, 4] in [0, 1] of rows [R] of ``data`` [P, 3] or [P, 4] uint8; alpha is 1 where it has none."""
    values = data.index_select(0, row).float().mul_(1 / 255)
    return values if data.shape[1] == 4 else F.pad(values, (0, 1), value=1.0)
