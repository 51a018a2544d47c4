"""nerfacc 0.3's volume rendering: that of later versions with values of samples in columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hashgrid.compat.nerfacc import volrend
from hashgrid.compat.nerfacc._checks import check_shape

# of samples: begins [S, 1], ends [S, 1] and rays [S]
ColorFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    n_rays: int,
    rgb_sigma_fn: ColorFn | None = None,
    rgb_alpha_fn: ColorFn | None = None,
    render_bkgd: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colors [R, C], opacities [R, 1] and depths [R, 1] of rays, differentiable to what the functions return. Depths
    are sums of weights times middles of samples, not over the opacity.

    Args:
        t_starts: [S, 1].
        t_ends: [S, 1].
        ray_indices: [S] int64.
        n_rays: number of rays R.
        rgb_sigma_fn: colors [S, C] and densities [S, 1] of samples.
        rgb_alpha_fn: colors and opacities instead.
        render_bkgd: [C] or [R, C], color behind.

    Raises:
        ValueError: there is no function, or what one returns has another shape.
    """

    def in_rows(name: str, fn: ColorFn | None) -> ColorFn | None:
        def asked_in_rows(*_: Tensor) -> tuple[Tensor, Tensor]:
            colors, values = fn(t_starts, t_ends, ray_indices)  # type: ignore[misc]
            return colors, asked(name, values, t_starts)[:, 0]

        return None if fn is None else asked_in_rows

    check_shape("t_starts", t_starts, "S", 1)
    check_shape("t_ends", t_ends, len(t_starts), 1)
    functions = in_rows("rgb_sigma_fn", rgb_sigma_fn), in_rows("rgb_alpha_fn", rgb_alpha_fn)
    found = volrend.rendering(
        t_starts[:, 0], t_ends[:, 0], ray_indices, n_rays, *functions, render_bkgd, expected_depths=False
    )
    return found[:3]


def accumulate_along_rays(
    weights: Tensor, ray_indices: Tensor, values: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Sums [R, D] of weights [S, 1] times values [S, D], or of the weights alone, [R, 1], along rays.

    Args:
        weights: [S, 1].
        ray_indices: [S] int64, in any order.
        values: [S, D].
        n_rays: number of rays R; None for one more than the last ray.

    Raises:
        ValueError: a shape does not fit.
    """
    check_shape("weights", weights, "S", 1)
    return volrend.accumulate_along_rays(weights[:, 0], values, ray_indices, n_rays)


def render_transmittance_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    *,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    """Transmittances [S, 1] up to samples of densities ``sigmas`` [S, 1].

    This and the four functions that follow take the rays of samples as ``ray_indices`` [S] or ``packed_info`` [R, 2],
    the former if both are given; ``n_rays`` has no effect.

    Raises:
        ValueError: a shape does not fit, or neither is given.
    """
    rows, rays = _rows(t_starts=t_starts, t_ends=t_ends, sigmas=sigmas), _rays(packed_info, ray_indices)
    return volrend.render_transmittance_from_density(**rows, **rays)[0][:, None]


def render_transmittance_from_alpha(
    alphas: Tensor,
    *,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    """Transmittances [S, 1] up to samples of opacities ``alphas`` [S, 1]; see `render_transmittance_from_density`."""
    rays = _rays(packed_info, ray_indices)
    return volrend.render_transmittance_from_alpha(**_rows(alphas=alphas), **rays)[:, None]


def render_weight_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    *,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    """Weights [S, 1] of samples of densities ``sigmas`` [S, 1]: transmittance times opacity; see
    `render_transmittance_from_density`."""
    rows, rays = _rows(t_starts=t_starts, t_ends=t_ends, sigmas=sigmas), _rays(packed_info, ray_indices)
    return volrend.render_weight_from_density(**rows, **rays)[0][:, None]


def render_weight_from_alpha(
    alphas: Tensor,
    *,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    """Weights [S, 1] of samples of opacities ``alphas`` [S, 1]; see `render_transmittance_from_density`."""
    return volrend.render_weight_from_alpha(**_rows(alphas=alphas), **_rays(packed_info, ray_indices))[0][:, None]


def render_visibility(
    alphas: Tensor,
    *,
    ray_indices: Tensor | None = None,
    packed_info: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
) -> Tensor:
    """Whether samples of opacities ``alphas`` [S, 1] are visible, [S] bool: a transmittance up to them of
    ``early_stop_eps`` or more, and an opacity of ``alpha_thre`` or more; see `render_transmittance_from_density`."""
    how = {**_rays(packed_info, ray_indices), "early_stop_eps": early_stop_eps, "alpha_thre": alpha_thre}
    return volrend.render_visibility_from_alpha(**_rows(alphas=alphas), **how)


def asked(name: str, values: Tensor, t_starts: Tensor) -> Tensor:
    """What the function called ``name`` returned, if it has the shape of ``t_starts``, [S, 1]."""
    if values.shape != t_starts.shape:
        raise ValueError(f"`{name}` must return shape {list(t_starts.shape)}, got {list(values.shape)}")
    return values


def _rows(**columns: Tensor) -> dict[str, Any]:
    """Columns [S, 1] as vectors [S]."""
    n: int | str = "S"
    for name, column in columns.items():
        check_shape(name, column, n, 1)
        n = len(column)
    return {name: column[:, 0] for name, column in columns.items()}


def _rays(packed_info: Tensor | None, ray_indices: Tensor | None) -> dict[str, Any]:
    if packed_info is None and ray_indices is None:
        raise ValueError("one of `ray_indices` and `packed_info` must be given, got neither")
    return {"packed_info": packed_info} if ray_indices is None else {"ray_indices": ray_indices}
