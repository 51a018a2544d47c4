"""nerfacc 0.3's occupancy grids: one box, and all of space mapped into it or nothing outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.compat.nerfacc._checks import check_shape
from hashgrid.ops._tensors import maths_dtype

_CELLS = 1 << 18  # at which an occupancy function is asked at a time
_FARTHEST = 1e10  # of a point that tanh maps to a side of the unit cube, in sides of the box


class ContractionType(Enum):
    """How space is mapped to the unit cube. With ``z`` in [-1, 1] within the box ``roi``:

    Attributes:
        AABB: ``(z + 1) / 2``; what is outside stays outside.
        UN_BOUNDED_TANH: ``(tanh(z / 2) + 1) / 2`` along each axis.
        UN_BOUNDED_SPHERE: ``z / 4 + 1/2`` in the unit ball; outside ``(2 - 1 / |z|) z / |z|`` for ``z``, so that space
            fills the ball that touches the cube's sides (Barron et al. 2022, eq. 10).
    """

    AABB = 0
    UN_BOUNDED_TANH = 1
    UN_BOUNDED_SPHERE = 2


@torch.no_grad()
def contract(x: Tensor, roi: Tensor, type: ContractionType = ContractionType.AABB) -> Tensor:
    """Points of the unit cube [..., 3] for points of space. Not differentiable.

    Args:
        x: [..., 3].
        roi: [6], the box that is mapped linearly, (x_min, y_min, z_min, x_max, y_max, z_max); of the sphere its
            inscribed ball alone, of tanh its middle.
        type: of the contraction.

    Raises:
        ValueError: a shape does not fit.
    """
    x, low, side = _prepare(x, roi)
    unit = (x - low) / side
    if type is ContractionType.AABB:
        return unit
    if type is ContractionType.UN_BOUNDED_TANH:
        return (unit - 0.5).tanh() * 0.5 + 0.5
    z = unit * 2 - 1
    norm = z.norm(dim=-1, keepdim=True).clamp(min=1)
    return z * ((2 - 1 / norm) / norm) * 0.25 + 0.5


@torch.no_grad()
def contract_inv(x: Tensor, roi: Tensor, type: ContractionType = ContractionType.AABB) -> Tensor:
    """Points of space [..., 3] that `contract` maps to ``x``. Not differentiable.

    Points at infinity are far away instead: at most 1e10 sides of the box for tanh, and 1e10 times as far as their
    ``z`` for the sphere, those outside of its ball among them.

    Args:
        x: [..., 3], in the unit cube.
        roi: [6], the box.
        type: of the contraction.

    Raises:
        ValueError: a shape does not fit.
    """
    x, low, side = _prepare(x, roi)
    if type is ContractionType.UN_BOUNDED_TANH:
        x = (x * 2 - 1).atanh().clamp(-_FARTHEST, _FARTHEST) + 0.5
    elif type is ContractionType.UN_BOUNDED_SPHERE:
        z = (x - 0.5) * 4
        norm = z.norm(dim=-1, keepdim=True)
        # |z| = 2 - 1 / r, and r / |z| = 1 / (2 |z| - |z|^2)
        z = torch.where(norm > 1, z / (2 * norm - norm * norm).clamp(min=1 / _FARTHEST), z)
        x = z * 0.5 + 0.5
    return x * side + low


@torch.no_grad()
def query_grid(samples: Tensor, grid_roi: Tensor, grid_values: Tensor, grid_type: ContractionType) -> Tensor:
    """Values [N] of the cells in which points lie. Not differentiable.

    Args:
        samples: [N, 3], points of space.
        grid_roi: [6], the box of the grid.
        grid_values: [X, Y, Z], of any dtype.
        grid_type: how space is mapped to the grid; with ``AABB`` values outside of the box are 0, or False.

    Raises:
        ValueError: a shape does not fit.
    """
    check_shape("samples", samples, "N", 3)
    check_shape("grid_values", grid_values, "X", "Y", "Z")
    unit = contract(samples, grid_roi, grid_type)
    sizes = torch.tensor(grid_values.shape, device=unit.device)
    # the far sides of the cube belong to the last cells; NaN and what is far outside become any number
    cell = (unit * sizes).long().clamp(min=0).minimum(sizes - 1)
    values = grid_values[cell[:, 0], cell[:, 1], cell[:, 2]]
    if grid_type is not ContractionType.AABB:
        return values
    inside = ((unit >= 0) & (unit <= 1)).all(-1)
    return torch.where(inside, values, torch.zeros_like(values))


class Grid(nn.Module):
    """What `ray_marching` asks of a grid. A class of one's own sets ``_roi_aabb``, ``_binary`` and
    ``_contraction_type``."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.register_buffer("_dummy", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Of the buffers."""
        return self.get_buffer("_dummy").device

    @property
    def roi_aabb(self) -> Tensor:
        """[6], the box."""
        return self._set("_roi_aabb")

    @property
    def binary(self) -> Tensor:
        """[X, Y, Z] bool, whether a cell is occupied."""
        return self._set("_binary")

    @property
    def contraction_type(self) -> ContractionType:
        """How space is mapped to the grid."""
        return self._set("_contraction_type")

    def _set(self, name: str) -> Any:
        if not hasattr(self, name):
            raise NotImplementedError(f"set `{name}` in the constructor of {type(self).__name__}")
        return getattr(self, name)


class OccupancyGrid(Grid):
    """Where there is something: a value of each cell that follows a function's, and whether it is above a threshold.

    All cells are empty before the first update. Checkpoints are nerfacc's.

    Args:
        roi_aabb: [6], the box, (x_min, y_min, z_min, x_max, y_max, z_max).
        resolution: cells per axis, one number or (X, Y, Z).
        contraction_type: how space is mapped to the grid.

    Attributes:
        num_cells: X * Y * Z.
        resolution: [3] int32.
        occs: [X * Y * Z] fp32, values of the cells.

    Raises:
        ValueError: a shape does not fit.
    """

    NUM_DIM = 3

    _roi_aabb: Tensor
    _binary: Tensor
    resolution: Tensor
    occs: Tensor

    def __init__(
        self,
        roi_aabb: Tensor | Sequence[float],
        resolution: int | Sequence[int] | Tensor = 128,
        contraction_type: ContractionType = ContractionType.AABB,
    ) -> None:
        super().__init__()
        sizes = torch.as_tensor([resolution] * self.NUM_DIM if isinstance(resolution, int) else resolution)
        box = torch.as_tensor(roi_aabb)
        check_shape("resolution", sizes, self.NUM_DIM)
        check_shape("roi_aabb", box, 2 * self.NUM_DIM)
        self._contraction_type = contraction_type
        self.num_cells = math.prod(sizes.tolist())
        self.register_buffer("_roi_aabb", box.to(maths_dtype(box)))
        self.register_buffer("_binary", torch.zeros(sizes.tolist(), dtype=torch.bool))
        self.register_buffer("resolution", sizes.int())
        self.register_buffer("occs", torch.zeros(self.num_cells))

    def query_occ(self, samples: Tensor) -> Tensor:
        """Whether points [N, 3] lie in occupied cells, [N] bool."""
        return query_grid(samples, self.roi_aabb, self.binary, self.contraction_type)

    def every_n_step(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Look at the function anew if ``step`` is a multiple of ``n``, at a random place in each of some cells.

        The value of a cell becomes the larger one of the old value times ``ema_decay`` and the function's. A cell is
        occupied if it is above ``occ_thre`` or, if that is less, the mean of all cells.

        Args:
            step: of training.
            occ_eval_fn: values [M, 1] or [M], 0 or more, at points [M, 3] of space; it is called for 2^18 at a time.
            occ_thre: largest threshold.
            ema_decay: factor of old values.
            warmup_steps: before, all cells are looked at; later, as many as a quarter of all by chance, and at most as
                many of those that are occupied.
            n: steps from one update to the next.

        Raises:
            RuntimeError: the module is not in training mode.
        """
        if not self.training:
            raise RuntimeError("`every_n_step` is for training; call `_update` to look at the function in evaluation")
        if step % n == 0:
            self._update(step, occ_eval_fn, occ_thre, ema_decay, warmup_steps)

    @torch.no_grad()
    def _update(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 0.01,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
    ) -> None:
        """What `every_n_step` does in one of its steps."""
        if step < warmup_steps:
            chosen = torch.arange(self.num_cells, device=self.device)
        else:
            chosen = self._sample_uniform_and_occupied_cells(self.num_cells // 4)
        asked = [self._look_at(cells, occ_eval_fn) for cells in chosen.split(_CELLS)]
        cells, values = (torch.cat(parts) for parts in zip(*asked, strict=True))
        self.occs[cells] = self.occs[cells] * ema_decay  # once, also of a cell that was chosen twice
        self.occs.scatter_reduce_(0, cells, values, "amax")
        self._binary = (self.occs > self.occs.mean().clamp(max=occ_thre)).view(self._binary.shape)

    def _look_at(self, cells: Tensor, occ_eval_fn: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Those of ``cells`` [M] whose random place belongs to space, and the function's values there."""
        _, y, z = self._binary.shape
        corner = torch.stack((cells // (y * z), cells // z % y, cells % z), dim=-1)
        unit = (corner + torch.rand(corner.shape, device=corner.device)) / self.resolution
        if self.contraction_type is ContractionType.UN_BOUNDED_SPHERE:
            inside = (unit - 0.5).norm(dim=1) < 0.5
            cells, unit = cells[inside], unit[inside]
        values = occ_eval_fn(contract_inv(unit, self.roi_aabb, self.contraction_type))
        return cells, values.reshape(len(cells)).to(self.occs.dtype)

    def _sample_uniform_and_occupied_cells(self, n: int) -> Tensor:
        """``n`` cells by chance, and all occupied ones, or ``n`` of them by chance if there are more."""
        occupied = self._binary.flatten().nonzero().squeeze(-1)
        uniform = torch.randint(self.num_cells, (n,), device=self.device)
        if n < len(occupied):
            occupied = occupied[torch.randint(len(occupied), (n,), device=self.device)]
        return torch.cat((uniform, occupied))


def _prepare(x: Tensor, roi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x``, the lower corner of the box and its sides [3], at least fp32."""
    check_shape("roi", roi, 6)
    if x.shape[-1:] != (3,):
        raise ValueError(f"`x` must have shape [..., 3], got {list(x.shape)}")
    x = x.to(maths_dtype(x))
    low, high = roi.to(x).split(3)
    return x, low, high - low
