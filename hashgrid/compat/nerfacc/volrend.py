"""Volume rendering: transmittances, weights and what is seen, of rays of one length and of rays one behind the other.

Samples have shape [R, n], or [S] with either ``packed_info`` or ``ray_indices``, as in :mod:`.scan`; ``n_rays`` is
taken beside ``ray_indices`` and only counts where something is summed up along rays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_indices, check_packed, check_same_shape, count_rays, wrong
from hashgrid.compat.nerfacc._rows import runs
from hashgrid.compat.nerfacc.scan import exclusive_prod, exclusive_sum
from hashgrid.ops.composite import composite


def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    rgb_sigma_fn: Callable | None = None,
    rgb_alpha_fn: Callable | None = None,
    render_bkgd: Tensor | None = None,
    expected_depths: bool = True,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Returns what rays see of a radiance field: colors [R, C], opacities [R, 1], depths [R, 1], and the samples'
    ``weights``, ``trans``, ``alphas``, ``rgbs`` and, with densities, ``sigmas``.

    Args:
        t_starts: [S] or [R, n], distances at which samples begin.
        t_ends: distances at which they end, likewise.
        ray_indices: [S] int64, ray of each sample, rising; None for [R, n].
        n_rays: R beside ``ray_indices``; None is one more than the last ray.
        rgb_sigma_fn: ``f(t_starts, t_ends, ray_indices)`` returns colors [S, C] and densities [S], or [R, n, C] and
            [R, n].
        rgb_alpha_fn: the same with opacities of samples; ``rgb_sigma_fn`` comes first.
        render_bkgd: [C] or [R, C], color behind everything; None is black.
        expected_depths: whether depths are over the opacity, or the sum of weights times middles as it is.

    Raises:
        ValueError: there is no function, or a shape does not fit.

    Example:
        >>> t_starts, t_ends = torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 2, 1])
        >>> def field(t_starts, t_ends, ray_indices):
        ...     return torch.ones(3, 3), torch.full((3,), 50.0)
        >>> rays = torch.tensor([0, 0, 2])
        >>> colors, opacities, depths, extras = rendering(t_starts, t_ends, rays, 3, rgb_sigma_fn=field)
        >>> opacities.flatten().tolist(), depths.flatten().tolist()
        ([1.0, 0.0, 1.0], [0.5, 0.0, 0.5])
    """
    check_same_shape("t_ends", t_ends, "t_starts", t_starts)
    if ray_indices is not None:
        check_indices("ray_indices", ray_indices)
        check_same_shape("t_starts", t_starts, "ray_indices", ray_indices)
    if rgb_sigma_fn is not None:
        rgbs, density = rgb_sigma_fn(t_starts, t_ends, ray_indices)
        check_same_shape("sigmas", density, "t_starts", t_starts)
    elif rgb_alpha_fn is not None:
        rgbs, density = rgb_alpha_fn(t_starts, t_ends, ray_indices)
        check_same_shape("alphas", density, "t_starts", t_starts)
    else:
        raise ValueError("one of `rgb_sigma_fn` and `rgb_alpha_fn` must be given, got neither")
    if rgbs.shape[:-1] != t_starts.shape:
        wrong("rgbs", f"have shape {[*t_starts.shape, 'C']}", list(rgbs.shape))
    samples = _Samples.of(t_starts, t_ends, density, rgb_sigma_fn is None, None, ray_indices)
    if samples.has_kernel:
        seen, opacities, depths, weights, trans = samples.composite(rgbs.flatten(0, -2))
        sums = torch.cat((seen, opacities[:, None], depths[:, None]), dim=1)
        weights, trans = weights.view_as(density), trans.view_as(density)
        if ray_indices is None:
            sums = sums.view(*t_starts.shape[:-1], sums.shape[-1])
        else:
            first = ray_indices.index_select(0, samples.packed_info[:, 0])  # ray of each run of samples
            sums = accumulate_along_rays(torch.ones_like(opacities), sums, first, count_rays(ray_indices, n_rays))
    else:
        weights, trans = samples.weights()
        # one sum along rays for all: colors, opacity and depth side by side
        middles = ((t_starts + t_ends) / 2)[..., None]
        values = torch.cat((rgbs, torch.ones_like(middles), middles), dim=-1)
        sums = accumulate_along_rays(weights, values, ray_indices, n_rays)
    colors, opacities, depths = sums.split((rgbs.shape[-1], 1, 1), dim=-1)
    extras: dict[str, Any] = {"weights": weights, "alphas": samples.alphas(), "trans": trans, "rgbs": rgbs}
    if rgb_sigma_fn is not None:
        extras["sigmas"] = density
    if expected_depths:
        depths = depths / opacities.clamp_min(torch.finfo(rgbs.dtype).eps)
    if render_bkgd is not None:
        colors = colors + render_bkgd * (1 - opacities)
    return colors, opacities, depths, extras


# ---- transmittances and weights --------------------------------------------------------------------------------------


def render_transmittance_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Returns the light that reaches each sample, ``T_i = prod_{j<i} (1 - alpha_j)``, of the shape of ``alphas``.

    Args:
        alphas: [S] or [R, n], opacities in [0, 1]. One of exactly 1 has a gradient like any other.
        packed_info: [R, 2] int64, first sample and number of samples of each ray, for [S].
        ray_indices: [S] int64, rising, instead of that.
        n_rays: has no effect.
        prefix_trans: of the shape of ``alphas``, what is left of the light where the first sample begins.

    Raises:
        ValueError: ``packed_info`` and ``ray_indices`` are both given, or a shape does not fit.

    Example:
        >>> render_transmittance_from_alpha(torch.tensor([0.5, 0.5, 0.1]), ray_indices=torch.tensor([0, 0, 1]))
        tensor([1.0000, 0.5000, 1.0000])
    """
    return render_weight_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)[1]


def render_transmittance_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the light that reaches each sample, ``T_i = exp(-sum_{j<i} sigma_j dt_j)``, and opacities ``1 -
    exp(-sigma_i dt_i)``, both of the shape of ``sigmas``; a gradient reaches distances, too.

    Args:
        t_starts: [S] or [R, n], distances at which samples begin.
        t_ends: distances at which they end, likewise.
        sigmas: densities, likewise.
        packed_info: as of :func:`render_transmittance_from_alpha`, and so are the others.

    Example:
        >>> sigmas, t = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 1, 0])
        >>> render_transmittance_from_density(t, t + 1, sigmas, ray_indices=torch.tensor([0, 0, 1]))
        (tensor([1.0000, 0.3679, 1.0000]), tensor([0.6321, 0.8647, 0.9502]))
    """
    return render_weight_from_density(t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans)[1:]


def render_weight_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns weights ``T_i alpha_i`` and transmittances; arguments are those of
    :func:`render_transmittance_from_alpha`.

    Example:
        >>> render_weight_from_alpha(torch.tensor([[0.5, 0.5, 0.1]]))[0]
        tensor([[0.5000, 0.2500, 0.0250]])
    """
    nowhere = torch.zeros_like(alphas)  # distances play no part
    samples = _Samples.of(nowhere, nowhere, alphas, True, packed_info, ray_indices)
    return _prefixed(*samples.weights(), prefix_trans)


def render_weight_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns weights ``T_i alpha_i``, transmittances and opacities; arguments are those of
    :func:`render_transmittance_from_density`.

    Example:
        >>> t = torch.tensor([[0.0, 1, 2]])
        >>> weights, transmittances, opacities = render_weight_from_density(t, t + 1, torch.ones(1, 3))
        >>> weights
        tensor([[0.6321, 0.2325, 0.0855]])
    """
    for name, x in (("t_starts", t_starts), ("t_ends", t_ends)):
        check_same_shape(name, x, "sigmas", sigmas)
    samples = _Samples.of(t_starts, t_ends, sigmas, False, packed_info, ray_indices)
    return *_prefixed(*samples.weights(), prefix_trans), samples.alphas()


# ---- what is seen ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def render_visibility_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Returns which samples have a transmittance of ``early_stop_eps`` and an opacity of ``alpha_thre`` or more, bool
    of the shape of ``alphas``; the other arguments are those of :func:`render_transmittance_from_alpha`.

    Example:
        >>> rays = torch.tensor([0, 0, 0, 1])
        >>> render_visibility_from_alpha(torch.tensor([0.9, 0.05, 0.9, 0.5]), None, rays, 2, 0.5, 0.1).tolist()
        [True, False, False, True]
    """
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


@torch.no_grad()
def render_visibility_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Returns which samples have a transmittance of ``early_stop_eps`` and an opacity of ``alpha_thre`` or more, bool
    of the shape of ``sigmas``; the other arguments are those of :func:`render_transmittance_from_density`."""
    trans, alphas = render_transmittance_from_density(
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans
    )
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


# ---- sums along rays -------------------------------------------------------------------------------------------------


def accumulate_along_rays(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Returns the sums [R, D] along rays of weights times values, or of the weights alone, D = 1.

    Args:
        weights: [R, n], or [S] with ``ray_indices``.
        values: the same with D behind it; None is 1.
        ray_indices: [S] int64, ray of each sample, in any order.
        n_rays: R beside ``ray_indices``; None is one more than the last ray.

    Raises:
        ValueError: a shape does not fit, or there is no such ray.

    Example:
        >>> accumulate_along_rays(torch.tensor([0.5, 0.25, 1]), ray_indices=torch.tensor([0, 0, 2]), n_rays=3)
        tensor([[0.7500],
                [0.0000],
                [1.0000]])
    """
    weighted = _weighted(weights, values, ray_indices)
    if ray_indices is None:
        return weighted.sum(dim=-2)
    sums = weighted.new_zeros(count_rays(ray_indices, n_rays), weighted.shape[-1])
    return sums.index_add(0, ray_indices, weighted)


def accumulate_along_rays_(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """Adds what :func:`accumulate_along_rays` returns to ``outputs`` [R, D], in place.

    Raises:
        ValueError: there are no ``outputs``, or a shape does not fit.
    """
    weighted = _weighted(weights, values, ray_indices)
    if outputs is None or outputs.dim() < 2 or outputs.shape[-1] != weighted.shape[-1]:
        actual = "None" if outputs is None else list(outputs.shape)
        wrong("outputs", f"have shape [R, {weighted.shape[-1]}]", actual)
    if ray_indices is None:
        outputs.add_(weighted.sum(dim=-2))
    else:
        outputs.index_add_(0, ray_indices, weighted)


def _weighted(weights: Tensor, values: Tensor | None, ray_indices: Tensor | None) -> Tensor:
    """Checked weights times values."""
    if ray_indices is not None:
        if weights.dim() != 1:
            wrong("weights", "have shape [S] beside `ray_indices`", list(weights.shape), "flatten it")
        check_indices("ray_indices", ray_indices, len(weights))
    if values is None:
        return weights[..., None]
    if values.dim() != weights.dim() + 1 or values.shape[:-1] != weights.shape:
        remedy = "give a single channel as `values[..., None]`"
        wrong("values", f"have shape {[*weights.shape, 'D']}", list(values.shape), remedy)
    return weights[..., None] * values


# ---- shared ----------------------------------------------------------------------------------------------------------


class _Samples(NamedTuple):
    """Samples, and the rays they lie on."""

    t_starts: Tensor
    t_ends: Tensor
    density: Tensor
    is_alpha: bool  # whether `density` is the opacity
    packed_info: Tensor
    has_kernel: bool  # rays lie back to back, and no gradient of a distance is asked for

    @classmethod
    def of(
        cls,
        t_starts: Tensor,
        t_ends: Tensor,
        density: Tensor,
        is_alpha: bool,
        packed_info: Tensor | None,
        ray_indices: Tensor | None,
    ) -> _Samples:
        if packed_info is not None and ray_indices is not None:
            raise ValueError("`packed_info` and `ray_indices` exclude each other; give one of them")
        name = "alphas" if is_alpha else "sigmas"
        is_flat = packed_info is not None or ray_indices is not None
        if is_flat and density.dim() != 1:
            remedy = "flatten it, or leave `packed_info` and `ray_indices` out"
            wrong(name, "have shape [S] beside `packed_info` or `ray_indices`", list(density.shape), remedy)
        has_kernel = not (torch.is_grad_enabled() and (t_starts.requires_grad or t_ends.requires_grad))
        if packed_info is not None:
            check_packed(packed_info)
            starts, counts = packed_info.unbind(dim=1)
            has_kernel = has_kernel and bool((starts == counts.cumsum(0) - counts).all())
        elif ray_indices is not None:
            check_indices("ray_indices", ray_indices, len(density))
            packed_info = runs(ray_indices)
        else:
            if density.dim() == 0:
                wrong(name, "have shape [R, n]", list(density.shape))
            n = density.shape[-1]
            starts = torch.arange(density.shape[:-1].numel(), device=density.device) * n
            packed_info = torch.stack((starts, torch.full_like(starts, n)), dim=1)
        return cls(t_starts, t_ends, density, is_alpha, packed_info, has_kernel)

    def alphas(self) -> Tensor:
        """Opacities."""
        return self.density if self.is_alpha else -torch.expm1(-self.density * (self.t_ends - self.t_starts))

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights and transmittances, of the shape of the density."""
        if self.has_kernel:
            weights, trans = self.composite(self.density.new_empty(self.density.numel(), 0))[-2:]
            return weights.view_as(self.density), trans.view_as(self.density)
        alphas = self.alphas()
        if self.is_alpha:
            trans = exclusive_prod((1 - alphas).flatten(), self.packed_info)
        else:
            thickness = self.density * (self.t_ends - self.t_starts)
            trans = torch.exp(-exclusive_sum(thickness.flatten(), self.packed_info))
        trans = trans.view_as(self.density)
        return trans * alphas, trans

    def composite(self, features: Tensor) -> tuple[Tensor, ...]:
        """Sums along rays of ``features`` [S, C], of opacities and depths, then weights and transmittances [S]. Nothing
        stops early, but behind a NaN all is zero."""
        density = self.density.flatten()
        kind = (None, density) if self.is_alpha else (density, None)
        arguments = features, self.t_starts.flatten(), self.t_ends.flatten(), self.packed_info.long()
        outputs = composite(kind[0], *arguments, -math.inf, alphas=kind[1], return_transmittances=True)
        return *outputs[:4], outputs[5]  # without the distortion


def _prefixed(weights: Tensor, trans: Tensor, prefix_trans: Tensor | None) -> tuple[Tensor, Tensor]:
    if prefix_trans is None:
        return weights, trans
    check_same_shape("prefix_trans", prefix_trans, "samples", trans)
    return weights * prefix_trans, trans * prefix_trans


def _visible(trans: Tensor, alphas: Tensor, early_stop_eps: float, alpha_thre: float) -> Tensor:
    seen = trans >= early_stop_eps
    return seen & (alphas >= alpha_thre) if alpha_thre > 0 else seen
