"""The head phantom of Shepp and Logan: ellipsoids, whose values and line integrals have closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shepp & Logan (1974) with the contrast of Toft (1996), in the cube [-1, 1]^3. Each row: value that is added inside,
# half axes a, b, c, middle x, y, z, and the degrees by which it is turned counterclockwise about z.
SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.81, 0.0, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.78, 0.0, -0.0184, 0.0, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.22, 0.0, 0.0, -18.0),
    (-0.2, 0.16, 0.41, 0.28, -0.22, 0.0, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.41, 0.0, 0.35, -0.15, 0.0),
    (0.1, 0.046, 0.046, 0.05, 0.0, 0.1, 0.25, 0.0),
    (0.1, 0.046, 0.046, 0.05, 0.0, -0.1, 0.25, 0.0),
    (0.1, 0.046, 0.023, 0.05, -0.08, -0.605, 0.0, 0.0),
    (0.1, 0.023, 0.023, 0.02, 0.0, -0.606, 0.0, 0.0),
    (0.1, 0.023, 0.046, 0.02, 0.06, -0.605, 0.0, 0.0),
)


@dataclass(frozen=True)
class Phantom:
    """Ellipsoids in the unit cube; in 2-D ellipses, the projections of all of them along z.

    Args:
        rows: one ellipsoid each, as in ``SHEPP_LOGAN``.
        n_dims: 2 or 3.

    Example:
        >>> import torch
        >>> Phantom().values(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.99]]))
        tensor([0.2000, 0.0000])
    """

    rows: tuple[tuple[float, ...], ...] = SHEPP_LOGAN
    n_dims: int = 3

    def values(self, x: Tensor) -> Tensor:
        """Sums of the values of the ellipsoids that hold points [..., 2 or 3] of the unit cube [...]."""
        total = torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
        for row in self.rows:
            total += row[0] * (self._to_sphere(row, 2 * x - 1, True).square().sum(-1) <= 1)
        return total

    def line_integrals(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Integrals [R] along whole lines through ``origins`` along unit ``directions`` [R, 3], in sides of the cube.

        A line is ``p + t d`` where the ellipsoid is the unit sphere; its part inside has length ``2 sqrt(1 - |q|^2) /
        |d|`` in t, with ``q`` its point closest to the middle. Computed in float64.
        """
        origins, directions = 2 * origins.double() - 1, 2 * directions.double()
        total = torch.zeros(len(origins), dtype=torch.float64, device=origins.device)
        for row in self.rows:
            p, d = self._to_sphere(row, origins, True), self._to_sphere(row, directions, False)
            dd, pd = d.square().sum(-1), (p * d).sum(-1)
            gap = 1 - (p - (pd / dd)[:, None] * d).square().sum(-1)
            total += row[0] * 2 * (gap.clamp_min(0) / dd).sqrt()
        return total

    def volume(self, n: int, n_supersamples: int = 4) -> Tensor:
        """Means over voxels [n, ...] (z, y, x) fp32, each of ``n_supersamples`` points along each axis."""
        m = n * n_supersamples
        axis = (torch.arange(m) + 0.5) / m
        # x and y once for all layers: in a layer, |p|^2 <= 1 is a bound for their part of the sum
        plane = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], dim=-1)
        flat = Phantom(self.rows, 2)
        parts = [flat._to_sphere(row, 2 * plane - 1, True).square().sum(-1) for row in self.rows]
        layers = axis if self.n_dims == 3 else axis[:1]
        total = torch.zeros(len(layers) // n_supersamples or 1, n, n)
        for i, z in enumerate((2 * layers - 1).tolist()):
            fine = torch.zeros(m, m)
            for row, part in zip(self.rows, parts, strict=True):
                bound = 1 - ((z - row[6]) / row[3]) ** 2 if self.n_dims == 3 else 1.0
                if bound > 0:
                    fine += row[0] * (part <= bound)
            total[i // n_supersamples] += fine.view(n, n_supersamples, n, n_supersamples).mean((1, 3))
        return total / n_supersamples if self.n_dims == 3 else total[0]

    def _to_sphere(self, row: tuple[float, ...], x: Tensor, is_point: bool) -> Tensor:
        """Points or directions [..., 2 or 3] of [-1, 1]^n where this ellipsoid is the unit sphere."""
        n, angle = self.n_dims, torch.deg2rad(torch.tensor(row[7], dtype=torch.float64))
        x = x[..., :n]
        if is_point:
            x = x - x.new_tensor(row[4 : 4 + n])
        cos, sin = float(angle.cos()), float(angle.sin())
        turned = (cos * x[..., 0] + sin * x[..., 1], cos * x[..., 1] - sin * x[..., 0], *x[..., 2:].unbind(-1))
        return torch.stack(turned, dim=-1) / x.new_tensor(row[1 : 1 + n])
