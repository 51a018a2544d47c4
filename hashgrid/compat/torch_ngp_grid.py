"""torch-ngp's grid encoding: its levels as a level table, and the layer over them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from hashgrid.compat.tinycudann_layout import next_multiple
from hashgrid.levels import FEATURE_COUNTS, LevelTable, round_fp32
from hashgrid.ops._backend import backend_ops
from hashgrid.util.choices import BACKENDS, check_option

GRID_TYPES = ("hash", "tiled")
INTERPOLATIONS = ("linear", "smoothstep")
_UINT32 = 2**32 - 1
# factors of the hash, as of the kernels
_PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)


def level_offsets(
    n_input_dims: int, n_levels: int, growth: float, base_resolution: int, log2_hashmap_size: int, align_corners: bool
) -> list[int]:
    """The first entry of each level, and the number of entries of all."""
    offsets = [0]
    for level in range(n_levels):
        side = math.ceil(base_resolution * growth**level) + (0 if align_corners else 1)
        offsets.append(offsets[-1] + next_multiple(min(2**log2_hashmap_size, side**n_input_dims), 8))
    return offsets


@lru_cache(maxsize=64)
def level_table(
    n_input_dims: int, offsets: tuple[int, ...], log2_growth: float, base_resolution: int, tiled: bool, align: bool
) -> LevelTable:
    """Levels whose entries lie at ``offsets``, scales rounded as by its kernel: fp32, one fused multiply and add.

    A level counts its vertices axis by axis until there are more than entries. If it is hashed, it is hashed then; if
    it is tiled, the axes that are left do not count: that is, its features do not depend on them.
    """
    log2_growth = round_fp32(log2_growth)
    scales, resolutions, sizes, hashed = [], [], [], []
    for level, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        power = round_fp32(2.0 ** round_fp32(level * log2_growth))
        scale = round_fp32(power * base_resolution - 1.0)
        side, size = math.ceil(scale) + (1 if align else 2), end - begin
        sides, stride = [side] * n_input_dims, 1
        for axis in range(n_input_dims):
            stride = stride * side & _UINT32
            if stride > size:
                if tiled:  # what is left has strides that are multiples of the size, a power of two
                    sides[axis] = size
                break
        scales.append((scale,) * n_input_dims)
        resolutions.append(tuple(sides))
        sizes.append(size)
        hashed.append(not tiled and stride > size)
    shift = 0.0 if align else 0.5
    return LevelTable(n_input_dims, tuple(scales), tuple(resolutions), shift, offsets[:-1], tuple(sizes), tuple(hashed))


def grid_encode(
    inputs: Tensor,
    embeddings: Tensor,
    offsets: Tensor,
    per_level_scale: float,
    base_resolution: int,
    calc_grad_inputs: bool = False,
    gridtype: int = 0,
    align_corners: bool = False,
    interpolation: int = 0,
) -> Tensor:
    """Features [B, L * C] of ``inputs`` [B, D] in [0, 1], zero outside.

    Args:
        embeddings: [n, C], C 1, 2, 4 or 8.
        offsets: [L + 1] int32, first entry of each level.
        per_level_scale: growth of the resolution from level to level.
        base_resolution: that of the first level.
        calc_grad_inputs: whether a gradient reaches ``inputs``; here it does if they want one.
        gridtype: 0 for hashed levels, 1 for tiled ones.
        align_corners: whether the outermost vertices lie on the sides of the cube.
        interpolation: 0 for linear, 1 for smoothstep.
    """
    growth = float(np.log2(per_level_scale))
    geometry = (inputs.shape[-1], tuple(offsets.tolist()), growth, base_resolution)
    levels = level_table(*geometry, bool(gridtype), bool(align_corners))
    return backend_ops("native").hash_encode(inputs, embeddings, levels, INTERPOLATIONS[interpolation], "zero")


class _grid_encode:
    """What scripts call ``_grid_encode.apply``."""

    apply = staticmethod(grid_encode)


class GridEncoder(nn.Module):
    """Features of positions in a cube at several resolutions.

    Args:
        input_dim: dimensions D of the positions, 1..7.
        num_levels: levels L.
        level_dim: features C of an entry: 1, 2, 4 or 8.
        per_level_scale: growth of the resolution from level to level.
        base_resolution: that of the coarsest level.
        log2_hashmap_size: a level has at most 2 to this power entries.
        desired_resolution: that of the finest level; when given, it wins over ``per_level_scale``.
        gridtype: ``"hash"`` or ``"tiled"``.
        align_corners: whether the outermost vertices lie on the sides of the cube.
        interpolation: ``"linear"`` or ``"smoothstep"``.
        backend: ``"native"`` or ``"reference"``; torch-ngp has no such argument.

    Attributes:
        embeddings: Parameter [n, C], fp32, drawn from U(-1e-4, 1e-4).
        offsets: buffer [L + 1] int32, first entry of each level.
        output_dim: L * C.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> encoder = GridEncoder(3, num_levels=4, log2_hashmap_size=14, desired_resolution=128)
        >>> encoder(torch.rand(100, 3) * 4 - 2, bound=2).shape
        torch.Size([100, 8])
    """

    embeddings: nn.Parameter
    offsets: Tensor

    def __init__(
        self,
        input_dim: int = 3,
        num_levels: int = 16,
        level_dim: int = 2,
        per_level_scale: float = 2,
        base_resolution: int = 16,
        log2_hashmap_size: int = 19,
        desired_resolution: float | None = None,
        gridtype: str = "hash",
        align_corners: bool = False,
        interpolation: str = "linear",
        *,
        backend: str = "native",
    ) -> None:
        super().__init__()
        if level_dim not in FEATURE_COUNTS:
            raise ValueError(f"`level_dim` must be one of {FEATURE_COUNTS}, got {level_dim}")
        if desired_resolution is not None:
            if num_levels < 2:
                raise ValueError(f"`num_levels` must be at least 2 with `desired_resolution`, got {num_levels}")
            per_level_scale = float(np.exp2(np.log2(desired_resolution / base_resolution) / (num_levels - 1)))
        self.input_dim = input_dim
        self.num_levels = num_levels
        self.level_dim = level_dim
        self.per_level_scale = per_level_scale
        self.log2_hashmap_size = log2_hashmap_size
        self.base_resolution = base_resolution
        self.output_dim = num_levels * level_dim
        self.gridtype = check_option("gridtype", gridtype, GRID_TYPES)
        self.gridtype_id = GRID_TYPES.index(gridtype)
        self.interpolation = check_option("interpolation", interpolation, INTERPOLATIONS)
        self.interp_id = INTERPOLATIONS.index(interpolation)
        self.align_corners = align_corners
        self.max_params = 2**log2_hashmap_size
        self.backend = check_option("backend", backend, BACKENDS)
        offsets = level_offsets(
            input_dim, num_levels, per_level_scale, base_resolution, log2_hashmap_size, align_corners
        )
        growth = float(np.log2(per_level_scale))
        self.levels = level_table(
            input_dim, tuple(offsets), growth, base_resolution, gridtype == "tiled", align_corners
        )
        self.n_params = offsets[-1] * level_dim
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32))
        self.embeddings = nn.Parameter(torch.empty(offsets[-1], level_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings from U(-1e-4, 1e-4)."""
        nn.init.uniform_(self.embeddings, -1e-4, 1e-4)

    def forward(self, inputs: Tensor, bound: float = 1) -> Tensor:
        """Features [..., L * C] of ``inputs`` [..., D] in [-bound, bound], zero outside.

        Raises:
            ValueError: the last dimension of ``inputs`` does not fit.
        """
        if inputs.dim() == 0 or inputs.shape[-1] != self.input_dim:
            raise ValueError(f"`inputs` must have shape [..., {self.input_dim}], got {list(inputs.shape)}")
        hash_encode = backend_ops(self.backend).hash_encode
        return hash_encode(self._unit(inputs, bound), self.embeddings, self.levels, self.interpolation, "zero")

    @torch.no_grad()
    def grad_total_variation(
        self, weight: float = 1e-7, inputs: Tensor | None = None, bound: float = 1, B: int = 1000000
    ) -> None:
        """Adds ``weight`` times the gradient of the total variation to ``embeddings.grad``: of the entry before each of
        ``inputs`` [..., D], in every level, the mean difference to its neighbours over the norm of all of them.

        Args:
            weight: of the term.
            inputs: positions in [-bound, bound]; None for ``B`` ones by chance.
            bound: as of `forward`.
            B: how many.

        Raises:
            ValueError: there is no gradient yet: it belongs between ``backward`` and the optimiser's step.
        """
        if self.embeddings.grad is None:
            raise ValueError("`embeddings.grad` is None; call this after `loss.backward()` and before `step()`")
        if inputs is None:
            x = torch.rand(B, self.input_dim, device=self.embeddings.device)
        else:
            x = self._unit(inputs, bound).reshape(-1, self.input_dim).to(self.embeddings.dtype)
        x = x[((x >= 0) & (x <= 1)).all(dim=1)]
        for level in range(self.num_levels):
            rows, terms = self._variation(x, level)
            self.embeddings.grad.index_add_(0, rows, terms.mul_(weight / (2 * self.input_dim)))

    def _variation(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Entries [B] that positions ``x`` [B, D] lie behind, and their terms [B, C]."""
        scale = self.levels.scales[level][0]
        cell = (x * scale + self.levels.shift).floor().long()
        rows = self._rows(cell, level)
        here = self.embeddings[rows]
        total, squares = torch.zeros_like(here), torch.zeros_like(here)
        for axis in range(self.input_dim):
            for step, exists in ((1, cell[:, axis] <= math.ceil(scale)), (-1, cell[:, axis] > 0)):
                neighbour = cell.clone()
                neighbour[:, axis] += step
                difference = (here - self.embeddings[self._rows(neighbour, level)]) * exists[:, None]
                total += difference
                squares += difference.square()
        return rows, total * (squares + 1e-9).rsqrt()

    def _rows(self, vertices: Tensor, level: int) -> Tensor:
        """Rows of ``embeddings`` [B] of ``vertices`` [B, D]."""
        sides, size = self.levels.resolutions[level], self.levels.sizes[level]
        index = torch.zeros_like(vertices[:, 0])
        for axis, vertex in enumerate(vertices.unbind(dim=1)):
            factor = _PRIMES[axis] if self.levels.hashed[level] else math.prod(sides[:axis])
            term = vertex * (factor & _UINT32) & _UINT32
            index = index ^ term if self.levels.hashed[level] else index + term & _UINT32
        return index % size + self.levels.offsets[level]

    def _unit(self, inputs: Tensor, bound: float) -> Tensor:
        return (inputs + bound) / (2 * bound)

    def extra_repr(self) -> str:
        finest = round(self.base_resolution * self.per_level_scale ** (self.num_levels - 1))
        sizes = f"input_dim={self.input_dim}, num_levels={self.num_levels}, level_dim={self.level_dim}"
        resolution = f"resolution={self.base_resolution} -> {finest}, per_level_scale={self.per_level_scale:.4f}"
        options = f"gridtype={self.gridtype}, align_corners={self.align_corners}, interpolation={self.interpolation}"
        return f"{sizes}, {resolution}, params={tuple(self.embeddings.shape)}, {options}"
