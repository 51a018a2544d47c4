"""Occupancy grid: where space is known to be empty, rays need no samples (Müller et al. 2022, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.geometry.rays import RaySamples
from hashgrid.ops._backend import backend_ops, ngp_ops
from hashgrid.ops._ngp.visible_cells import visible_cells
from hashgrid.ops._tensors import keeping_dtype
from hashgrid.util.choices import BACKENDS, as_integer, as_integers, check_option


class OccupancyGrid(nn.Module):
    """Optical thickness of the cells of nested boxes, and one bit per cell: worth a sample or not.

    Cell ``((c * X + x) * Y + y) * Z + z`` belongs to cascade c, whose box is 2^c times as large as ``aabb``, around the
    same centre. Every cell is occupied until the first ``update``.

    Args:
        aabb: [6], box of cascade 0, (x_min, y_min, z_min, x_max, y_max, z_max).
        resolution: cells per axis, one number or (X, Y, Z). With several cascades multiples of 4 are best: else an
            empty cell that lies across the border of the next finer box hides the part of that box that is in it.
        n_cascades: number of cascades C, 1 for a bounded scene.
        backend: ``"native"`` or ``"reference"`` (plain PyTorch).

    Attributes:
        aabb: [6] fp32. This and ``density`` stay so whatever dtype a module is cast to.
        density: [C * X * Y * Z] fp32, optical thickness of a step; -1 where no camera looks.
        bits: [ceil(C * X * Y * Z / 8)] uint8; cell g is bit ``g & 7`` of byte ``g >> 3``.

    Raises:
        ValueError: an argument is out of range.
    """

    aabb: Tensor
    density: Tensor
    bits: Tensor

    def __init__(
        self,
        aabb: Tensor | Sequence[float],
        resolution: int | Sequence[int] = 128,
        n_cascades: int = 1,
        backend: str = "native",
    ) -> None:
        super().__init__()
        self.backend = check_option("backend", backend, BACKENDS)
        x, y, z = as_integers("resolution", resolution, 3)
        n_cascades = as_integer("n_cascades", n_cascades)
        if min(x, y, z) < 1 or n_cascades < 1:
            raise ValueError(f"`resolution` and `n_cascades` must be positive, got {resolution} and {n_cascades}")
        self.resolution = (x, y, z)
        self.n_cascades = n_cascades
        box = torch.as_tensor(aabb, dtype=torch.float32).detach().clone()
        if box.shape != (6,) or not (box.is_meta or bool((box[3:] > box[:3]).all())):
            raise ValueError(f"`aabb` must be two corners [6], the lower one first, got {box.tolist()}")
        self.register_buffer("aabb", box)
        self.register_buffer("density", torch.zeros(self.n_cells, dtype=torch.float32))
        self.register_buffer("bits", torch.full(((self.n_cells + 7) // 8,), 255, dtype=torch.uint8))

    @property
    def n_cells(self) -> int:
        """Cells of all cascades."""
        return self.n_cascades * math.prod(self.resolution)

    @property
    def occupied_fraction(self) -> float:
        """Occupied cells over all cells."""
        return int(self._occupied().sum()) / self.n_cells

    @property
    def default_step_size(self) -> float:
        """sqrt(3) / 1024 of the longest side of ``aabb``: a ray through a cube takes up to 1024 steps."""
        return float((self.aabb[3:] - self.aabb[:3]).max()) * math.sqrt(3) / 1024

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, n_cascades={self.n_cascades}, backend={self.backend!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OccupancyGrid:
        super()._apply(keeping_dtype(fn, (self.aabb, self.density)), recurse)
        return self

    def op_arguments(self) -> dict[str, Any]:
        """What ops that march through it take."""
        sizes = {"resolution": self.resolution, "n_cascades": self.n_cascades}
        return {"aabb": self.aabb, "bits": self.bits, **sizes}

    def march(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        step_size: float | None = None,
        cone_angle: float = 0.0,
        near: float | Tensor | None = 0.0,
        far: float | Tensor | None = math.inf,
        seed: int | Tensor | None = None,
        step: int | Tensor = 0,
        max_samples_per_ray: int = 1024,
    ) -> RaySamples:
        """Samples of each ray in occupied cells; see :func:`hashgrid.ops.march_rays`.

        Args:
            rays_o: [R, 3], origins.
            rays_d: [R, 3], directions; distances are in units of their length.
            step_size: smallest step; None for ``default_step_size``.
            cone_angle: growth of the step with the distance, 0 for a bounded scene, else typically 1/256.
            near: no sample before this distance: a number or one per ray, [R]; None for 0.
            far: no sample whose middle is behind this distance: a number or one per ray, [R]; None for no limit.
            seed: shifts the samples of each ray by a fraction of its first step; None for no shift.
            step: training step, varies the shift.
            max_samples_per_ray: further samples of a ray are dropped.
        """
        how = {"cone_angle": cone_angle, "near": near, "far": far, "seed": seed, "step": step}
        return self._march(rays_o, rays_d, step_size, max_samples_per_ray=max_samples_per_ray, **how)[0]

    def march_fixed(
        self, rays_o: Tensor, rays_d: Tensor, n_samples: int, n_rays: Tensor | None = None, **how: Any
    ) -> tuple[RaySamples, Tensor]:
        """As `march`, but exactly ``n_samples`` samples: of the first rays whose samples fit, filled up with samples of
        length zero that belong to no ray. Nothing is read back from a GPU where ``step_size`` is given, so that a CUDA
        graph can hold it; see :func:`hashgrid.ops.march_rays`.

        Args:
            n_samples: samples of the result.
            n_rays: int64 [1], number of rays in use; None for all.
            how: the other arguments of `march`, by name.

        Returns:
            The samples, and int64 [2]: the samples of all rays in use, the number of rays whose samples are here.
        """
        samples, (totals,) = self._march(rays_o, rays_d, n_samples=n_samples, n_rays=n_rays, **how)
        return samples, totals

    def _march(
        self, rays_o: Tensor, rays_d: Tensor, step_size: float | None = None, **how: Any
    ) -> tuple[RaySamples, list[Tensor]]:
        step_size = self.default_step_size if step_size is None else step_size
        march_rays = backend_ops(self.backend).march_rays
        found = march_rays(rays_o, rays_d, **self.op_arguments(), step_size=step_size, **how)
        t_starts, t_ends, ray_indices, packed_info, *totals = found
        return RaySamples(t_starts, t_ends, ray_indices, packed_info, self.backend), totals

    def occupied_at(self, positions: Tensor) -> Tensor:
        """Whether positions [N, 3] lie in occupied cells [N] bool, of the innermost cascade that holds them; False
        outside of all."""
        centre, half = 0.5 * (self.aabb[:3] + self.aabb[3:]), 0.5 * (self.aabb[3:] - self.aabb[:3])
        place = (positions.to(self.aabb) - centre) / half  # -1..1 in cascade 0
        cascade = torch.frexp(place.abs().amax(-1) - 1e-6)[1].clamp(min=0).long()  # 2^c is at least the largest
        sizes = torch.tensor(self.resolution, device=place.device)
        cell = ((place / 2.0 ** cascade[:, None] * 0.5 + 0.5) * sizes).long().clamp(min=0).minimum(sizes - 1)
        index = ((cascade * sizes[0] + cell[:, 0]) * sizes[1] + cell[:, 1]) * sizes[2] + cell[:, 2]
        held = cascade < self.n_cascades
        index = torch.where(held, index, 0)
        return held & (self.bits[index >> 3] >> (index & 7).to(torch.uint8) & 1).bool()

    @torch.no_grad()
    def update(
        self,
        density_fn: Callable[[Tensor], Tensor],
        step: int,
        step_size: float | None = None,
        seed: int = 0,
        full_steps: int = 256,
        uniform_fraction: float = 0.25,
        occupied_fraction: float = 0.25,
        decay: float = 0.95,
        max_threshold: float = 0.01,
        chunk: int = 1 << 17,
    ) -> int:
        """Evaluate the density in some cells, and decide anew which are occupied. To be called every 16 steps or so.

        Before ``full_steps`` every visible cell is evaluated, later a random part: ``uniform_fraction`` of all cells
        and as many as ``occupied_fraction`` of all cells among the occupied ones. Which cells, and where in a cell the
        density is taken, depends on (seed, step) only.

        Args:
            density_fn: densities [M] or [M, 1] at positions [M, 3], in scene units.
            step: training step.
            step_size: length by which densities are multiplied, doubled from cascade to cascade; None for
                ``default_step_size``.
            seed: of the random choice.
            full_steps: steps in which every visible cell is evaluated.
            uniform_fraction: of all cells, in [0, 1].
            occupied_fraction: of all cells, in [0, 1].
            decay: factor of the old values.
            max_threshold: a cell is occupied above this, or above the mean of the visible cells where that is less.
            chunk: positions per call of ``density_fn``.

        Returns:
            The number of cells evaluated.

        Raises:
            ValueError: a fraction is out of range, or ``density_fn`` returns another number of values, or a NaN; the
                grid is as it was before.
        """
        cells = self.choose_cells(step, seed, full_steps, uniform_fraction, occupied_fraction)
        ngp = ngp_ops(self.backend)
        length = self.default_step_size if step_size is None else step_size
        values = torch.empty(len(cells), dtype=torch.float32, device=self.density.device)
        cells_per_cascade = math.prod(self.resolution)
        for begin in range(0, len(cells), chunk):
            part = cells[begin : begin + chunk]
            points = ngp.occupancy_points(part, self.aabb, self.resolution, self.n_cascades, seed, step)
            sigmas = density_fn(points)
            if sigmas.numel() != len(part):
                raise ValueError(f"`density_fn` must return [{len(part)}] values, got {list(sigmas.shape)}")
            thickness = sigmas.reshape(-1).float() * length
            if self.n_cascades > 1:
                thickness = thickness * 2.0 ** (part // cells_per_cascade)
            values[begin : begin + chunk] = thickness
        _check_no_nan("density_fn", values)
        self.raise_cells(cells, values, decay, max_threshold)
        return len(cells)

    @torch.no_grad()
    def choose_cells(
        self,
        step: int,
        seed: int = 0,
        full_steps: int = 256,
        uniform_fraction: float = 0.25,
        occupied_fraction: float = 0.25,
    ) -> Tensor:
        """The cells [M] int64, sorted and unique, that :meth:`update` evaluates in this step.

        Raises:
            ValueError: a fraction is out of range.
        """
        for name, fraction in (("uniform_fraction", uniform_fraction), ("occupied_fraction", occupied_fraction)):
            if not 0 <= fraction <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {fraction}")
        if step < full_steps:
            return visible_cells(self.density)
        return self._choose(uniform_fraction, occupied_fraction, seed, step)

    @torch.no_grad()
    def raise_cells(self, cells: Tensor, values: Tensor, decay: float = 0.95, max_threshold: float = 0.01) -> None:
        """The other half of :meth:`update`: all densities decay, those of ``cells`` [M] rise to ``values`` [M], and the
        occupied cells are found anew. :func:`hashgrid.ops._ngp.occupancy_values` makes values of a radiance field.

        Raises:
            ValueError: a value is NaN; the grid is as it was before. While a CUDA graph records nothing can be read
                back, and NaN counts as no value.
        """
        _check_no_nan("values", values)
        ngp_ops(self.backend).occupancy_update(self.density, self.bits, cells, values, decay, max_threshold)

    @torch.no_grad()
    def mark_invisible_cells(
        self, c2w: Tensor, intrinsics: Tensor, sizes: Tensor, near: float = 0.0, margin: float = 0.05
    ) -> None:
        """Mark the cells that no camera sees: they stay empty and out of the mean. The others keep their density.

        A cell is seen when the sphere around it reaches into the view frustum of a camera. Without this, density that
        no image contradicts would grow in front of the cameras and outside their views.

        Args:
            c2w: [N, 3, 4], poses; OpenGL axes: x right, y up, the camera looks along -z.
            intrinsics: [N, 4], (fx, fy, cx, cy) in pixels.
            sizes: [N, 2], (width, height) in pixels.
            near: nothing is seen before this distance.
            margin: widens each view by this part of its size, for lens distortion.

        Raises:
            ValueError: a shape does not fit.
        """
        planes = _frustum_planes(c2w, intrinsics, sizes, near, margin).to(self.density)  # [N, 5, 4]
        seen = ngp_ops(self.backend).occupancy_visible(planes, self.aabb, self.resolution, self.n_cascades)
        self.density.copy_(torch.where(seen, self.density.clamp(min=0), -1.0))
        self.bits.bitwise_and_(_pack(seen))

    def _choose(self, uniform_fraction: float, occupied_fraction: float, seed: int, step: int) -> Tensor:
        """Visible cells to evaluate [M], sorted and unique: one per stratum of all cells, and of the occupied ones."""
        chosen = torch.zeros(self.n_cells, dtype=torch.bool, device=self.density.device)
        chosen[self._strata(self.n_cells, round(self.n_cells * uniform_fraction), seed, 2 * step)] = True
        occupied = self._occupied_cells()
        n_wanted = round(self.n_cells * occupied_fraction)
        chosen[occupied[self._strata(len(occupied), n_wanted, seed, 2 * step + 1)]] = True
        return visible_cells(self.density, chosen)

    def _strata(self, n_total: int, n_wanted: int, seed: int, step: int) -> Tensor:
        """At most ``n_wanted`` of 0..n_total-1, one at random in each of as many equal parts."""
        device = self.density.device
        if n_wanted >= n_total:
            return torch.arange(n_total, device=device)
        part = torch.arange(n_wanted, device=device)
        u = backend_ops(self.backend).counter_uniform(seed, step, part).double()
        return ((part + u) * (n_total / max(n_wanted, 1))).long().clamp(max=n_total - 1)

    def _occupied(self) -> Tensor:
        """[n_cells] bool."""
        return _unpack(self.bits).flatten()[: self.n_cells]

    def _occupied_cells(self) -> Tensor:
        """[M] int64, sorted. Most bytes are empty: only the others are unpacked."""
        byte = self.bits.nonzero()  # [B, 1]
        cells = byte * 8 + torch.arange(8, device=byte.device)
        return cells[_unpack(self.bits[byte.squeeze(-1)]) & (cells < self.n_cells)]


def _check_no_nan(name: str, values: Tensor) -> None:
    """Raises where a field that has diverged would empty the grid, and hide from training what went wrong."""
    if values.is_meta or (values.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    n_wrong = int(values.isnan().sum())
    if n_wrong > 0:
        raise ValueError(
            f"`{name}` must give densities, got NaN for {n_wrong} of {len(values)} cells; the grid is as it was."
            " Look for NaN in the field's parameters, its learning rate may be too high"
        )


def _unpack(bits: Tensor) -> Tensor:
    """Flags [n, 8] bool of bytes [n]."""
    shifts = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits.unsqueeze(-1) >> shifts & 1).bool()


def _pack(flags: Tensor) -> Tensor:
    """``flags`` [n] bool as [ceil(n / 8)] uint8, the first one in the lowest bit."""
    padded = nn.functional.pad(flags, (0, -flags.shape[0] % 8)).view(-1, 8)
    return (padded * 2 ** torch.arange(8, device=flags.device)).sum(-1).to(torch.uint8)


def _frustum_planes(c2w: Tensor, intrinsics: Tensor, sizes: Tensor, near: float, margin: float) -> Tensor:
    """Planes [N, 5, 4] of each view frustum: ``plane[:3] @ x + plane[3] >= 0`` inside, in units of length."""
    n = c2w.shape[0]
    for name, tensor, shape in (("c2w", c2w, (n, 3, 4)), ("intrinsics", intrinsics, (n, 4)), ("sizes", sizes, (n, 2))):
        if tensor.shape != shape:
            raise ValueError(f"`{name}` must have shape {list(shape)}, got {list(tensor.shape)}")
    c2w, intrinsics, sizes = c2w.double(), intrinsics.double(), sizes.double()
    fx, fy, cx, cy = intrinsics.unbind(-1)
    extra_x, extra_y = (sizes * margin).unbind(-1)
    width, height = sizes.unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    # a point (x, y, -depth) of the camera lies at pixel (cx + fx x / depth, cy - fy y / depth)
    normals = torch.stack(
        [
            torch.stack([fx, zero, -(cx + extra_x)], -1),
            torch.stack([-fx, zero, -(width + extra_x - cx)], -1),
            torch.stack([zero, -fy, -(cy + extra_y)], -1),
            torch.stack([zero, fy, -(height + extra_y - cy)], -1),
            torch.stack([zero, zero, -one], -1),
        ],
        dim=1,
    )  # [N, 5, 3]
    normals = nn.functional.normalize(normals @ c2w[:, :, :3].mT, dim=-1)
    offsets = -(normals @ c2w[:, :, 3:]).squeeze(-1)
    offsets[:, 4] -= near
    return torch.cat([normals, offsets.unsqueeze(-1)], dim=-1)
