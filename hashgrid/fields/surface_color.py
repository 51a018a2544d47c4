"""What the colour network of a surface knows of a point."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hashgrid.geometry.rays import At


def surface_color_inputs(
    at: At,
    gradient: Tensor,
    features: Tensor,
    harmonics: Callable[[Tensor], Tensor],
    reflected: bool,
    codes: Tensor | None = None,
) -> Tensor:
    """The place in [-1, 1]^3, the normal, where the point is seen from, and what the distance and the ray say of it.

    Args:
        at: of the points [S].
        gradient: [S, 3], of the distance in the scene.
        features: [S, G] of the distance.
        harmonics: encodes directions [N, 3] as [N, E].
        reflected: directions are mirrored at the normals (Verbin et al. 2022, eq. 4): what a glossy surface shows of
            its surroundings depends on those alone.
        codes: [R, n], of the rays.

    Returns:
        [S, 6 + E + G + n].
    """
    normals, rays = normalize(gradient, dim=-1), at.ray_indices
    if reflected:
        view = at.rays.directions.index_select(0, rays)
        seen = harmonics(view - 2 * (view * normals).sum(-1, keepdim=True) * normals)
    else:
        seen = harmonics(at.rays.directions).index_select(0, rays)
    more = [] if codes is None else [codes.index_select(0, rays)]
    return torch.cat((2 * at.unit - 1, normals, seen, features, *more), dim=-1)
