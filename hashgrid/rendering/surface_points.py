"""Points of a surface that has no inside: where an unsigned distance vanishes."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.rendering.extract import CHUNK, Distance, device_of


def surface_points(
    field: Distance, n: int, n_steps: int = 6, near: float = 0.005, level: float = 0.0, seed: int = 0
) -> Tensor:
    """Points [n, 3] fp32 of the surface of an unsigned distance, fewer or none where it is hardly met.

    Points move by the field's value against its gradient, some times (Chibane et al. 2020, NDF, algorithm 1). Those
    that come near start again with a little noise, until there are as many as are wanted: where a field is trained up
    to a distance only, points from farther away do not know where to go.

    Args:
        field: distances [N] of points [N, 3] in the unit cube, differentiable.
        n: points.
        n_steps: moves of each.
        level: value of the field at the surface.
        near: distance, in units of the cube, below which a point is one of the surface.
        seed: of the points.

    Raises:
        ValueError: a number is not positive, or the field is not finite.

    Example:
        >>> import torch
        >>> points = surface_points(lambda x: (x[:, 2] - 0.5).abs(), 100)
        >>> bool(((points[:, 2] - 0.5).abs() < 1e-3).all())
        True
    """
    if n < 1 or n_steps < 1 or not near > 0:
        raise ValueError(f"`n`, `n_steps` and `near` must be positive, got {n}, {n_steps} and {near}")
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(max(n, 1 << 13), 3, generator=generator)
    found = _project(field, start, n_steps, near, level)
    kept = found[:n]
    for _ in range(8):
        if not len(found) or len(kept) >= n:
            break
        start = found[torch.randint(len(found), (2 * n,), generator=generator)]
        start = start + 2 * near * torch.randn(start.shape, generator=generator)
        found = _project(field, start.clamp(0, 1), n_steps, near, level)
        kept = torch.cat([kept, found])[:n]
    return kept


def _project(field: Distance, points: Tensor, n_steps: int, near: float, level: float) -> Tensor:
    """Those of points [N, 3] that come near the surface, there [K, 3]."""
    device, found = device_of(field), []
    for x in points.split(CHUNK):
        x = x.to(device)
        for _ in range(n_steps):
            distance, gradient = _with_gradient(field, x, level)
            x = (x - distance[:, None] * torch.nn.functional.normalize(gradient, dim=-1)).clamp(0, 1)
        found.append(x[_with_gradient(field, x, level)[0] < near].cpu())
    return torch.cat(found)


def _with_gradient(field: Distance, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Distances [N] of points [N, 3] and their gradients [N, 3]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        distance = field(x) - level
        (gradient,) = torch.autograd.grad(distance.sum(), x)
    if not bool(distance.isfinite().all()):
        n_bad = int((~distance.isfinite()).sum())
        raise ValueError(f"the field must be finite, {n_bad} of {len(distance)} values are not")
    return distance.detach(), gradient.nan_to_num(0)  # at a kink there may be none
