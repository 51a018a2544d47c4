"""nerfacc's occupancy grid: which cells of nested boxes are worth a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_shape
from hashgrid.compat.nerfacc.estimators.base import AbstractEstimator
from hashgrid.compat.nerfacc.grid import _enlarge_aabb, sample_grids
from hashgrid.compat.nerfacc.volrend import render_visibility_from_alpha, render_visibility_from_density
from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import as_integer, as_integers

SampleFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class OccGridEstimator(AbstractEstimator):
    """Occupancy of the cells of nested boxes, each twice as large as the one before. All are empty at first.

    Args:
        roi_aabb: [6], box of level 0, (x_min, y_min, z_min, x_max, y_max, z_max).
        resolution: cells per axis, one number or (X, Y, Z).
        levels: number of boxes m.

    Attributes:
        resolution: [3] int32. This and those below are in ``state_dict``, under nerfacc's names.
        aabbs: [m, 6].
        occs: [m * X * Y * Z], values of cells; -1 where no camera looks.
        binaries: [m, X, Y, Z] bool, cells that are occupied.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has a name that there is not.

    Example:
        >>> import torch
        >>> from hashgrid.compat import nerfacc
        >>> estimator = nerfacc.OccGridEstimator([-1.0, -1, -1, 1, 1, 1], resolution=16)
        >>> inside_ball = lambda x: (x.norm(dim=-1, keepdim=True) < 0.5).float()
        >>> estimator.update_every_n_steps(0, occ_eval_fn=inside_ball)
        >>> rays_o, rays_d = torch.tensor([[-2.0, 0.05, 0.05]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> ray_indices, t_starts, t_ends = estimator.sampling(rays_o, rays_d, render_step_size=0.1)
        >>> t_starts
        tensor([1.5000, 1.6000, 1.7000, 1.8000, 1.9000, 2.0000, 2.1000, 2.2000, 2.3000,
                2.4000])
    """

    DIM: int = 3
    resolution: Tensor
    aabbs: Tensor
    occs: Tensor
    binaries: Tensor

    def __init__(
        self,
        roi_aabb: Sequence[float] | Tensor,
        resolution: int | Sequence[int] | Tensor = 128,
        levels: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if "contraction_type" in kwargs:
            raise ValueError("`contraction_type` is no longer there since nerfacc 0.4.0; use `levels` in its place")
        if kwargs:
            raise TypeError(f"OccGridEstimator has no argument {', '.join(f'`{name}`' for name in kwargs)}")
        size = as_integers("resolution", resolution.tolist() if isinstance(resolution, Tensor) else resolution, 3)
        self.levels = as_integer("levels", levels)
        if min(size) < 1 or self.levels < 1:
            raise ValueError(f"`resolution` and `levels` must be positive, got {size} and {levels}")
        box = torch.as_tensor(roi_aabb, dtype=None if isinstance(roi_aabb, Tensor) else torch.float32)
        if box.shape != (6,) or not (box.is_meta or bool((box[3:] > box[:3]).all())):
            raise ValueError(f"`roi_aabb` must be two corners [6], the lower one first, got {box.tolist()}")
        self.cells_per_lvl = math.prod(size)
        self.register_buffer("resolution", torch.tensor(size, dtype=torch.int32))
        self.register_buffer("aabbs", torch.stack([_enlarge_aabb(box, 2**level) for level in range(self.levels)]))
        self.register_buffer("occs", torch.zeros(self.levels * self.cells_per_lvl))
        self.register_buffer("binaries", torch.zeros((self.levels, *size), dtype=torch.bool))

    @property
    def grid_indices(self) -> Tensor:
        """Numbers of the cells of a level, [n] int64, made anew each time."""
        return torch.arange(self.cells_per_lvl, device=self.device)

    @property
    def grid_coords(self) -> Tensor:
        """Cells of a level, [n, 3] int64, made anew each time."""
        return self._coordinates(self.grid_indices)

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: SampleFn | None = None,
        alpha_fn: SampleFn | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        t_min: Tensor | None = None,
        t_max: Tensor | None = None,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
        cone_angle: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of rays in occupied cells, those that can be seen where there is a function to tell. Not
        differentiable.

        Args:
            rays_o: [R, 3], origins.
            rays_d: [R, 3], directions of unit length.
            sigma_fn: densities [S] of samples, called with their begins, ends and rays [S]. Samples behind a
                transmittance of ``early_stop_eps``, and those of an opacity below ``alpha_thre``, are left out.
            alpha_fn: opacities [S], likewise; not asked if there is ``sigma_fn``.
            near_plane: no sample before this distance.
            far_plane: none behind.
            t_min: [R], a nearest distance of each ray; the larger one counts.
            t_max: [R], a farthest distance; the smaller one counts.
            render_step_size: smallest step.
            early_stop_eps: smallest transmittance in front of a sample.
            alpha_thre: smallest opacity of a sample, or the mean of ``occs`` where that is less.
            stratified: whether each ray begins by a random part of a step later.
            cone_angle: growth of steps with the distance.

        Returns:
            ray_indices [S] int64, t_starts [S] and t_ends [S], in the order of rays and distances.

        Raises:
            ValueError: a shape does not fit, or a function returns another number of values.
        """
        dtype = maths_dtype(rays_o)  # half precision has no 1e10
        near, far = (torch.full_like(rays_o[..., 0], plane, dtype=dtype) for plane in (near_plane, far_plane))
        if t_min is not None:
            check_shape("t_min", t_min, len(rays_o))
            near = near.clamp(min=t_min)
        if t_max is not None:
            check_shape("t_max", t_max, len(rays_o))
            far = far.clamp(max=t_max)
        if stratified:  # all samples of a ray move together
            near = near + torch.rand_like(near) * render_step_size
        found = sample_grids(rays_o, rays_d, self.binaries, self.aabbs, near, far, render_step_size, cone_angle)
        rays, t_starts, t_ends = found.ray_indices, found.starts, found.ends
        value_fn, name = (alpha_fn, "alpha_fn") if sigma_fn is None else (sigma_fn, "sigma_fn")
        # a network is not asked about no samples
        if value_fn is None or len(rays) == 0 or not (alpha_thre > 0 or early_stop_eps > 0):
            return rays, t_starts, t_ends

        values = value_fn(t_starts, t_ends, rays)
        if values.shape != t_starts.shape:
            raise ValueError(
                f"`{name}` must return a value for each sample, {list(t_starts.shape)}, got {list(values.shape)};"
                " squeeze a last dimension of 1"
            )
        least = min(alpha_thre, self.occs.mean().item())
        packed_info = found.packed_info
        if sigma_fn is None:
            visible = render_visibility_from_alpha(values, packed_info, None, None, early_stop_eps, least)
        else:
            visible = render_visibility_from_density(
                t_starts, t_ends, values, packed_info, None, None, early_stop_eps, least
            )
        return rays[visible], t_starts[visible], t_ends[visible]

    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Evaluate some cells and decide anew which are occupied, if ``step`` is a multiple of ``n``.

        Args:
            step: of training. Before ``warmup_steps`` all cells are evaluated, later a quarter of them at random and as
                many of the occupied ones.
            occ_eval_fn: values [M, 1] or [M] at positions [M, 3], usually density times the step.
            occ_thre: a cell is occupied above this, or above the mean where that is less.
            ema_decay: factor of the old value of a cell that is evaluated.
            warmup_steps: steps in which all cells are evaluated.
            n: number of steps between two updates.

        Raises:
            RuntimeError: the module is not in training mode.
            ValueError: ``occ_eval_fn`` returns another number of values, or a NaN.
        """
        if not self.training:
            raise RuntimeError(
                "`update_every_n_steps` must be called in training mode; call .train(), or `_update` for another reason"
            )
        if step % n == 0:
            self._update(step, occ_eval_fn, occ_thre, ema_decay, warmup_steps)

    @torch.no_grad()
    def mark_invisible_cells(
        self,
        K: Tensor,
        c2w: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.0,
        chunk: int = 32**3,
    ) -> None:
        """Set ``occs`` to -1 in cells that no camera sees and to 0 in the others. To be called before training.

        A cell counts as one point, (x, y, z) / (resolution - 1) of its box. It is seen if it falls on a picture, and
        not if it is within ``near_plane`` in front of any camera.

        Args:
            K: [N, 3, 3] or [1, 3, 3], intrinsics in pixels.
            c2w: [N, 3, 4] or [N, 4, 4], poses; OpenCV axes: x right, y down, the camera looks along z.
            width: of pictures, in pixels.
            height: of pictures, in pixels.
            near_plane: nothing is seen before this depth.
            chunk: cells at a time.

        Raises:
            ValueError: a shape does not fit.
        """
        check_shape("K", K, "N", 3, 3)
        check_shape("c2w", c2w, "N", 4 if c2w.dim() == 3 and c2w.shape[1] == 4 else 3, 4)
        if len(K) not in (1, len(c2w)):
            raise ValueError(f"`K` must be of one camera or of all {len(c2w)}, got {len(K)}")
        rotation = c2w[:, :3, :3].mT  # from the world to cameras, [N, 3, 3]
        shift = -rotation @ c2w[:, :3, 3:]  # [N, 3, 1]
        for level, indices in enumerate(self._get_all_cells()):
            low, high = self.aabbs[level, :3], self.aabbs[level, 3:]
            for part in indices.split(chunk):
                place = self._coordinates(part) / (self.resolution - 1)
                points = (low + place * (high - low)).T  # [3, M]
                x, y, depth = (K @ (rotation @ points + shift)).unbind(1)  # [N, M] each
                u, v = x / depth, y / depth
                # comparisons with what a depth of 0 makes of u and v are false
                on_picture = (depth >= 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
                near = depth < near_plane
                seen = (on_picture & ~near).any(0) & ~(on_picture & near).any(0)
                self.occs[level * self.cells_per_lvl + part] = torch.where(seen, 0.0, -1.0).to(self.occs)

    def _coordinates(self, indices: Tensor) -> Tensor:
        """Cells [M, 3] of their numbers within a level [M]."""
        _, y, z = self.binaries.shape[1:]
        return torch.stack((indices // (y * z), indices // z % y, indices % z), dim=-1)

    def _get_all_cells(self) -> list[Tensor]:
        """Numbers of the cells that a camera sees, [M] of each level."""
        return [(occs >= 0).nonzero()[:, 0] for occs in self.occs.split(self.cells_per_lvl)]

    def _sample_uniform_and_occupied_cells(self, n: int) -> list[Tensor]:
        """Numbers of ``n`` random cells that a camera sees and of up to ``n`` occupied ones, [M] of each level."""
        return list(self._random_cells(n))

    def _random_cells(self, n: int) -> Iterator[Tensor]:
        for occs, binary in zip(self.occs.split(self.cells_per_lvl), self.binaries, strict=True):
            uniform = torch.randint(self.cells_per_lvl, (n,), device=self.device)
            uniform = uniform[occs[uniform] >= 0]
            occupied = binary.flatten().nonzero()[:, 0]
            if n < len(occupied):  # with repetitions
                occupied = occupied[torch.randint(len(occupied), (n,), device=self.device)]
            yield torch.cat((uniform, occupied))

    @torch.no_grad()
    def _update(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 0.01,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
    ) -> None:
        """What `update_every_n_steps` does, at any step and in any mode."""
        n = self.cells_per_lvl // 4
        # random numbers are drawn in nerfacc's order, so that a seed chooses the same cells and positions
        chosen = self._get_all_cells() if step < warmup_steps else self._sample_uniform_and_occupied_cells(n)
        for level, indices in enumerate(chosen):
            low, high = self.aabbs[level, :3], self.aabbs[level, 3:]
            cells = self._coordinates(indices)
            place = (cells + torch.rand_like(cells, dtype=torch.float32)) / self.resolution
            values = occ_eval_fn(low + place * (high - low))
            if values.numel() != len(indices):
                raise ValueError(
                    f"`occ_eval_fn` must return a value for each of [{len(indices)}] positions, got"
                    f" {list(values.shape)}; sum or select features"
                )
            values = values.reshape(-1).to(self.occs.dtype)  # half precision under autocast
            if bool(values.isnan().any()):
                raise ValueError(
                    f"`occ_eval_fn` must return numbers, got NaN for {int(values.isnan().sum())} of {len(indices)}"
                    " positions. Look for NaN in the field's parameters, its learning rate may be too high"
                )
            # a cell that was drawn twice decays once and takes the larger value
            occs = self.occs[level * self.cells_per_lvl : (level + 1) * self.cells_per_lvl]
            occs[indices] = occs[indices] * ema_decay
            occs.scatter_reduce_(0, indices, values, "amax")
        # cells that no camera sees are not part of the mean
        threshold = self.occs[self.occs >= 0].mean().clamp(max=occ_thre)
        self.binaries = (self.occs > threshold).view(self.binaries.shape)
