"""Fields of the blocks of a scene, seen as one: each says what is in its block, and neighbours what they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import Kept, RadianceField
from hashgrid.geometry.blocks import shares, span
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.rays import At, Rays, RaySamples
from hashgrid.rendering.samplers import Found, Jitter, Sampler
from hashgrid.rendering.volume import visible

HIDDEN = 1e-4  # of the light: a block that gets less is not asked


class Block(RadianceField):
    """The field of a block, whose densities fall to nothing over what its neighbours share with it.

    Args:
        field: of the block and, more coarsely, of all around it.
        sampler: where it is asked.
        placement: where its coordinates lie in those of all blocks.
        edges, margins: of the block in the coordinates of all, [6] and [3]; see `geometry.blocks.Cut`.
        whole: what all blocks fill [6].
    """

    edges: Tensor
    margins: Tensor
    whole: Tensor
    origin: Tensor

    def __init__(
        self, field: RadianceField, sampler: Sampler, placement: Placement, edges: Tensor, margins: Tensor,
        whole: Tensor,
    ) -> None:  # fmt: skip
        super().__init__(field.aabb)
        self.field, self.own_sampler, self.placement = field, sampler, placement
        for name, value in (("edges", edges), ("margins", margins), ("whole", whole)):
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer("origin", torch.tensor(placement.origin, dtype=torch.float32), persistent=False)

    def rays(self, rays: Rays) -> Rays:
        """Rays in the block's own coordinates."""
        return replace(rays, origins=(rays.origins - self.origin) / self.placement.unit)

    def unit(self, positions: Tensor) -> Tensor:
        return self.field.unit(positions)

    def unit_direction(self, directions: Tensor) -> Tensor:
        return self.field.unit_direction(directions)

    def inside(self, unit: Tensor) -> Tensor:
        return self.field.inside(unit)

    def share(self, rays: Rays, ray_indices: Tensor, middles: Tensor) -> Tensor:
        """How much of places at distances ``middles`` [S] on rays of all blocks' coordinates is the block's [S]. What
        is before the box of all blocks is of those that the ray enters by, what is behind of those that it leaves by:
        they were trained on this ray."""
        enter, leave = (x.index_select(0, ray_indices) for x in span(rays, self.whole))
        origins, directions = (x.index_select(0, ray_indices) for x in (rays.origins, rays.directions))
        return shares(
            origins + directions * middles.clamp(min=enter).clamp(max=leave)[:, None], self.edges, self.margins
        )

    def sketch(self, at: At, to_train: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Densities [K] in the block's own unit of length, of which as much as belongs to it."""
        sigmas, kept = self.field.sketch(at, to_train)
        assert at.intervals is not None
        unit = self.placement.unit
        rays = replace(at.rays, origins=at.rays.origins * unit + self.origin)
        middles = (at.intervals[0] + at.intervals[1]) * (0.5 * unit)
        return sigmas * self.share(rays, at.ray_indices, middles), kept


class Blocks(RadianceField):
    """All blocks of a cut as one field.

    Densities are the sums of the blocks', each times its share of the place, colours their means by density. Samples
    that a :class:`BlockSampler` has found are each of one block, and have its part of the density alone.

    Args:
        blocks: whose samples have their numbers, from 0.
        whole: box of all of them [6].
    """

    def __init__(self, blocks: Sequence[Block], whole: Tensor) -> None:
        super().__init__(whole)
        self.blocks: Any = torch.nn.ModuleList(blocks)
        self.needs = {need for block in blocks for need in block.field.needs}

    def density(self, at: At) -> tuple[Tensor, Any]:
        return self._seen(at, False)[0], None

    def radiance(self, at: At, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        sigmas, colors = self._seen(at, True)
        return sigmas, colors if at.parts is not None else colors / sigmas[:, None].clamp_min(1e-30)

    def _seen(self, at: At, colored: bool) -> tuple[Tensor, Tensor]:
        """Densities [S], and colours [S, C], which are times the density where points are of several blocks."""
        n = len(at.ray_indices)
        sigmas, colors = at.rays.origins.new_zeros(n), at.rays.origins.new_zeros(n, 3)
        points = at.unit / self.inverse_extent + self.aabb[:3] if at.parts is None else None
        for number, block in enumerate(self.blocks):
            part, share, index = self._of_block(at, number, block, points)
            if not len(index):
                continue
            density, color = block.field.radiance(part) if colored else (block.field.density(part)[0], None)
            density = density.to(sigmas) * share / block.placement.unit
            sigmas = sigmas.index_add(0, index, density)
            if color is not None:
                color = color[:, :3].to(colors)
                colors = colors.index_add(0, index, color if points is None else color * density[:, None])
        return sigmas, colors

    def _of_block(self, at: At, number: int, block: Block, points: Tensor | None) -> tuple[At, Tensor, Tensor]:
        """What a block is asked of samples, its share of them [K], and which they are [K] int64."""
        rays = block.rays(at.rays)
        if points is not None:
            share = shares(points, block.edges, block.margins)
            index = share.nonzero().squeeze(1)
            places = (points.index_select(0, index) - block.origin) / block.placement.unit
            unit = block.inside(block.unit(places))
            return At(rays, unit, at.ray_indices.index_select(0, index)), share.index_select(0, index), index
        assert at.parts is not None and at.intervals is not None
        index = (at.parts == number).nonzero().squeeze(1)
        of_ray, starts, ends = (x.index_select(0, index) for x in (at.ray_indices, *at.intervals))
        share = block.share(at.rays, of_ray, (starts + ends) / 2)
        starts, ends = starts / block.placement.unit, ends / block.placement.unit
        places = block.unit(rays.origins).index_select(0, of_ray)
        places = places + block.unit_direction(rays.directions).index_select(0, of_ray) * ((starts + ends) / 2)[:, None]
        return At(rays, block.inside(places), of_ray, (starts, ends)), share, index


class BlockSampler(Sampler):
    """The samples of all blocks in their order along each ray: each block is asked by its own sampler, on the rays that
    come to it with light left, from the nearest to the farthest.

    Args:
        early_stop_eps: transmittance below which nothing counts.
        backend: ``"native"`` or ``"reference"``.
    """

    def __init__(self, early_stop_eps: float = 0.0, backend: str = "native") -> None:
        super().__init__()
        self.early_stop_eps, self.backend = early_stop_eps, backend

    def forward(self, rays: Rays, field: RadianceField, jitter: Jitter) -> Found:
        assert isinstance(field, Blocks)
        begins = torch.stack([self._begin(rays, block) for block in field.blocks], dim=1)
        order = begins.argsort(dim=1)
        found: list[tuple[Tensor, ...]] = []  # rays, begins and ends of samples, numbers of blocks, thicknesses
        for place in range(len(field.blocks)):
            which = order[:, place]
            begin = begins.gather(1, which[:, None]).squeeze(1)
            alive = begin.isfinite() & (self._thickness(found, begin) < -math.log(HIDDEN))
            for number in which[alive].unique().tolist():
                rows = (alive & (which == number)).nonzero().squeeze(1)
                found.append(self._samples(rays[rows], rows, number, field.blocks[number], jitter))
        return Found(self._merged(found, len(rays), rays.origins))

    def _begin(self, rays: Rays, block: Block) -> Tensor:
        """Where something on each ray begins to belong to a block [R]; inf where nothing does."""
        low = block.edges[:3] - block.margins, block.edges[3:] + block.margins
        enter, leave = span(rays, block.whole)
        first = rays.origins + enter[:, None] * rays.directions
        last = rays.origins + leave[:, None] * rays.directions
        owns_first, owns_last = (shares(x, block.edges, block.margins) > 0 for x in (first, last))
        # of the slab between infinite sides, which a ray crosses within the box of all blocks or not at all
        parallel = rays.directions == 0
        divisor = torch.where(parallel, 1e-30, rays.directions)
        sides = torch.stack([(side - rays.origins) / divisor for side in low])
        inner = torch.maximum(sides.amin(0).amax(-1), enter)
        crossed = inner <= torch.minimum(sides.amax(0).amin(-1), leave)
        begin = torch.where(crossed, inner, torch.where(owns_last, leave, math.inf))
        return torch.where(owns_first, 0.0, begin)

    @torch.no_grad()
    def _samples(self, rays: Rays, rows: Tensor, number: int, block: Block, jitter: Jitter) -> tuple[Tensor, ...]:
        """Samples of a block that can be seen on some of the rays, of numbers ``rows`` [K]: their rays, begins, ends,
        block and thickness, [S] each."""
        own, unit = block.rays(rays), block.placement.unit
        samples = block.own_sampler(own, block.field, jitter).samples
        middles = (samples.t_starts + samples.t_ends) * (unit / 2)
        samples = samples.chosen(block.share(rays, samples.ray_indices, middles).nonzero().squeeze(1))
        samples, kept, _ = visible(block, samples, own, block.own_sampler.early_stop_eps)
        thickness = kept.sigmas * (samples.t_ends - samples.t_starts)
        of_ray = rows.index_select(0, samples.ray_indices)
        starts, ends = samples.t_starts * unit, samples.t_ends * unit
        return of_ray, starts, ends, torch.full_like(of_ray, number), thickness

    @staticmethod
    def _thickness(found: list[tuple[Tensor, ...]], begin: Tensor) -> Tensor:
        """Optical thickness of what was found on each ray before ``begin`` [R]."""
        total = torch.zeros_like(begin)
        for of_ray, _, ends, _, thickness in found:
            before = ends <= begin.index_select(0, of_ray)
            total.index_add_(0, of_ray[before], thickness[before].to(total))
        return total

    def _merged(self, found: list[tuple[Tensor, ...]], n_rays: int, like: Tensor) -> RaySamples:
        """All samples in their order along each ray."""
        if not found:
            none = torch.zeros(0, dtype=torch.int64, device=like.device)
            empty = torch.zeros(n_rays, 2, dtype=torch.int64, device=like.device)
            return RaySamples(like.new_zeros(0), like.new_zeros(0), none, empty, self.backend, none)
        of_ray, starts, ends, parts = (torch.cat(each) for each in list(zip(*found, strict=True))[:4])
        by_place = starts.argsort(stable=True)
        order = by_place[of_ray[by_place].argsort(stable=True)]
        counts = torch.bincount(of_ray, minlength=n_rays)
        packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
        return RaySamples(starts[order], ends[order], of_ray[order], packed_info, self.backend, parts[order])
