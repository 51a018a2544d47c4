"""Trainable features on simplices instead of cubes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hashgrid.nn.encodings import check_positions
from hashgrid.ops._tensors import at_least_fp32
from hashgrid.util.choices import as_integer

HASH_FACTOR = 2531011  # of Adams et al.
GOLDEN = (math.sqrt(5) - 1) / 2


class Permutohedral(nn.Module):
    """Trainable features at the corners of simplices, at several resolutions: D + 1 reads per level and point where a
    hash grid has 2^D (Rosu and Behnke 2023, PermutoSDF, section 3; the lattice is that of Adams et al. 2010). In plain
    PyTorch: a few times slower than `HashGrid` up to four dimensions, and there for more.

    Args:
        n_input_dims: dimensions D of the positions, any number.
        n_levels: levels L.
        n_features_per_level: features F of a table entry.
        log2_hashmap_size: every level has 2 to this power entries, T; where it has more vertices, some share one.
        base_resolution: of the coarsest level: neighbouring vertices are 1 over this apart.
        max_resolution: of the finest level.
        per_level_scale: growth from level to level; when given, it wins over ``max_resolution``.

    Attributes:
        table: Parameter [L * 2^T, F], drawn from U(-1e-4, 1e-4).
        n_output_dims: L * F.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> encoding = Permutohedral(n_input_dims=6, n_levels=4, log2_hashmap_size=12)
        >>> encoding(torch.rand(100, 6)).shape
        torch.Size([100, 8])
    """

    n_levels: int
    table: nn.Parameter

    def __init__(
        self,
        n_input_dims: int = 3,
        n_levels: int = 16,
        n_features_per_level: int = 2,
        log2_hashmap_size: int = 18,
        base_resolution: float = 16,
        max_resolution: float = 2048,
        per_level_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.n_input_dims = as_integer("n_input_dims", n_input_dims)
        self.n_levels = as_integer("n_levels", n_levels)
        self.n_features_per_level = as_integer("n_features_per_level", n_features_per_level)
        self.log2_hashmap_size = as_integer("log2_hashmap_size", log2_hashmap_size)
        if min(self.n_input_dims, self.n_levels, self.n_features_per_level) < 1:
            raise ValueError(
                "`n_input_dims`, `n_levels` and `n_features_per_level` must be at least 1, got"
                f" {n_input_dims}, {n_levels} and {n_features_per_level}"
            )
        if not 0 <= self.log2_hashmap_size <= 30:
            raise ValueError(f"`log2_hashmap_size` must be in 0..30, got {log2_hashmap_size}")
        if per_level_scale is None:
            per_level_scale = (max_resolution / base_resolution) ** (1 / max(self.n_levels - 1, 1))
        if not (base_resolution > 0 and 0 < per_level_scale < math.inf):
            raise ValueError(
                f"`base_resolution` and `per_level_scale` must be positive, got {base_resolution} and {per_level_scale}"
            )
        self.resolutions = tuple(base_resolution * per_level_scale**level for level in range(self.n_levels))
        self.n_output_dims = self.n_levels * self.n_features_per_level
        n_entries = self.n_levels << self.log2_hashmap_size
        self.table = nn.Parameter(torch.empty(n_entries, self.n_features_per_level))
        nn.init.uniform_(self.table, -1e-4, 1e-4)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Features [..., L * F] of the positions ``x`` [..., D], channel ``l * F + f``; ``level_weights`` [L] scale the
        levels.

        Raises:
            ValueError: a shape does not fit.
        """
        check_positions(x, self.n_input_dims)
        y = permutohedral_encode(x, self.table, self.resolutions)
        if level_weights is None:
            return y
        if level_weights.shape != (self.n_levels,):
            raise ValueError(f"`level_weights` must have shape [{self.n_levels}], got {list(level_weights.shape)}")
        return y * level_weights.to(y.dtype).repeat_interleave(self.n_features_per_level)

    def extra_repr(self) -> str:
        sizes = f"n_levels={self.n_levels}, n_features_per_level={self.n_features_per_level}"
        return f"{self.n_input_dims}, {sizes}, log2_hashmap_size={self.log2_hashmap_size}"


def permutohedral_encode(x: Tensor, table: Tensor, resolutions: Sequence[float]) -> Tensor:
    """Features [..., L * F] of ``x`` [..., D]: on each level, those of a simplex's corners in ``table`` [L * T, F],
    interpolated by barycentric coordinates. T is a power of two, and the entry of a vertex its hash modulo T."""
    x = at_least_fp32(x)
    flat = x.reshape(-1, x.shape[-1])
    axes = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=torch.float64) * GOLDEN
    features = []
    for level, (resolution, entries) in enumerate(zip(resolutions, table.chunk(len(resolutions)), strict=True)):
        shift = ((level + 1) * axes % 1 / resolution).to(x.dtype)  # so that no borders of two levels lie on each other
        cells, weights = simplices(flat + shift, resolution)
        index = _hash(cells) & (entries.shape[0] - 1)
        values = entries.index_select(0, index.flatten()).unflatten(0, index.shape)  # [N, D + 1, F]
        features.append((weights.unsqueeze(-1) * values.to(x.dtype)).sum(-2))
    return torch.cat(features, dim=-1).reshape(*x.shape[:-1], -1)


def elevation(n_input_dims: int) -> Tensor:
    """Orthonormal axes [D, D + 1] of the plane in D + 1 dimensions whose coordinates sum to 0."""
    rows = torch.ones(n_input_dims, n_input_dims + 1, dtype=torch.float64).tril()
    n = torch.arange(1, n_input_dims + 1, dtype=torch.float64)
    rows = rows - torch.diag_embed(n, offset=1)[:-1]
    return rows / (n * (n + 1)).sqrt().unsqueeze(-1)


def simplices(x: Tensor, resolution: float) -> tuple[Tensor, Tensor]:
    """The corners of the simplex around each of ``x`` [N, D] and its barycentric coordinates [N, D + 1].

    Corner k has the coordinates ``(D + 1) q + k`` in D + 1 dimensions, ``q`` [N, D + 1, D + 1] being what is returned:
    the points of the lattice are those whose coordinates are integers, sum to 0 and leave the same remainder.
    """
    n = x.shape[-1] + 1
    factor = resolution * math.sqrt(n * (n - 1)) / n
    y = x @ (elevation(n - 1) * factor).to(x)  # in units of D + 1
    nearest = y.detach().round()
    order = torch.argsort(y.detach() - nearest, dim=-1, descending=True, stable=True)
    ranks = order.argsort(-1)  # 0 of the largest
    ranks = ranks + nearest.sum(-1, keepdim=True).long()  # the nearest point of remainder 0 has to lie in the plane
    turns = (ranks < 0).long() - (ranks >= n).long()
    ranks, base = ranks + n * turns, nearest + turns
    falling = (y - base).gather(-1, ranks.argsort(-1))
    weights = torch.cat((falling, falling[..., :1] - 1), -1).diff(dim=-1).neg().flip(-1)
    steps = ranks.unsqueeze(-2) > torch.arange(n - 1, -1, -1, device=x.device).unsqueeze(-1)  # [N, k, D + 1]
    return base.long().unsqueeze(-2) - steps.long(), weights


def _hash(cells: Tensor) -> Tensor:
    """32 bits [N, D + 1] of corners, from their remainders and all but the last coordinate, which follows."""
    n = cells.shape[-1]
    value = torch.arange(n, device=cells.device).expand(cells.shape[:-1])
    for axis in range(n - 1):
        value = (value * HASH_FACTOR + cells[..., axis]) & 0xFFFFFFFF
    return value * HASH_FACTOR & 0xFFFFFFFF
