"""IBRNet (Wang et al. 2021): colours are blended from pictures, densities from how well the pictures agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hashgrid.fields.source_views import Seen, SourceConfig, SourceField
from hashgrid.geometry.rays import At
from hashgrid.maths import activate
from hashgrid.nn import Frequency


@dataclass(frozen=True)
class IbrnetConfig(SourceConfig):
    """Sizes of an :class:`Ibrnet`. Its networks are as small as the paper's, its encoder is smaller."""

    name = "ibrnet"

    n_features: int = 16  # channels of pictures' features
    n_neurons: int = 32  # of what is known of a sample in one view
    n_attended: int = 16  # numbers of a sample that others on its ray see; a multiple of 4, the number of heads
    n_frequencies: int = 4  # octaves of the place along the ray


def networks(*widths: int, last: type[nn.Module] | None = nn.ELU) -> nn.Sequential:
    """Linear layers of these widths with ELU behind each, and ``last`` behind the last."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*layers[:-1], *(() if last is None else (last(),)))


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [S, C] over views of values [V, S, C] by weights [V, S, 1] whose sum over views is 1."""
    mean = (weights * x).sum(0)
    return mean, (weights * (x - mean).square()).sum(0)


class RayAttention(nn.Module):
    """Samples of a ray look at one another (Vaswani et al. 2017), however many there are: where they are along the
    ray is told by the distance, in units of the box, not by a table of places.

    Args:
        n: numbers of a sample, in and out.
        n_frequencies: octaves of the distance.
        backend: ``"native"`` or ``"reference"``.
    """

    n_heads = 4

    def __init__(self, n: int, n_frequencies: int, backend: str = "native") -> None:
        super().__init__()
        self.places = Frequency(1, n_frequencies, backend, identity=True)
        self.enter = nn.Linear(self.places.n_output_dims, n)
        self.asked, self.leave = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n, bias=False)
        self.norm = nn.LayerNorm(n)

    def forward(self, x: Tensor, places: Tensor, ray_indices: Tensor) -> Tensor:
        """Values [S, n] of samples at distances ``places`` [S] along their rays, ``ray_indices`` [S] int64, sorted."""
        if not len(x):
            return x
        _, ray, counts = torch.unique_consecutive(ray_indices, return_inverse=True, return_counts=True)
        column = torch.arange(len(x), device=x.device) - (counts.cumsum(0) - counts)[ray]
        shape = len(counts), int(counts.max())
        there = torch.arange(shape[1], device=x.device) < counts[:, None]  # [R, n_max]
        x = x + self.enter(self.places(places[:, None].to(x)))
        rows = x.new_zeros(*shape, 3 * x.shape[1]).index_put((ray, column), self.asked(x))
        q, k, v = rows.unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # [R, heads, n_max, n / heads]
        mask = None if bool(there.all()) else there[:, None, None]
        found = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        return self.norm(x + self.leave(found[ray, column]))


class Ibrnet(SourceField):
    """Density of the mean and variance over views of what they show of a point, after its ray's samples have looked at
    one another; colour as a mean of the views' own colours, weighted by how they look and by how their directions
    differ from the ray's (section 3 of the paper). Densities are per unit of length here, so that the number of
    samples is free; with one view the least weight is not taken from all, which would leave none.
    """

    Config = IbrnetConfig
    recipe = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "target_samples": 1 << 13}

    def __init__(self, config: IbrnetConfig, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(config, aabb, n_cascades, backend)
        n, n_seen, n_attended = config.n_neurons, 3 + config.n_features, config.n_attended
        self.sharpness = nn.Parameter(torch.tensor(0.2))
        self.turned = networks(4, 16, n_seen)
        self.base = networks(3 * n_seen, 2 * n, n)
        self.visibility = networks(n, n, n + 1, last=None)
        self.again = networks(n, n, 1, last=nn.Sigmoid)
        self.geometry = networks(2 * n + 1, 2 * n, n_attended)
        self.attention = RayAttention(n_attended, config.n_frequencies, backend)
        self.thickness = networks(n_attended, n_attended, 1, last=None)
        self.blend = networks(n + 1 + 4, 16, 8, 1, last=None)

    def turns(self, at: At, seen: Seen) -> Tensor:
        """By how much the directions of the views towards samples differ from those of the rays [V, S, 4]: the unit
        vector of the difference times its length, and the cosine."""
        assert self.sources is not None
        of_views = F.normalize(seen.positions - self.sources.origins.to(seen.positions)[:, None], dim=-1)
        of_rays = self.directions(at)
        return torch.cat((of_rays - of_views, (of_rays * of_views).sum(-1, keepdim=True)), dim=-1)

    def density(self, at: At) -> tuple[Tensor, tuple[Seen, Tensor, Tensor, Tensor]]:
        seen = self.seen(at)
        turns, mask = self.turns(at, seen), seen.mask[..., None].to(seen.colors)
        x = torch.cat((seen.colors, seen.features), dim=-1) + self.turned(turns)
        weights = torch.exp(self.sharpness.abs() * (turns[..., 3:] - 1)) * mask
        weights = weights / (weights.sum(0) + 1e-8)
        common = torch.cat(moments(x, weights), dim=-1)
        x = self.base(torch.cat((common.expand(len(x), -1, -1), x), dim=-1))
        change, visible = self.visibility(x * weights).split((x.shape[-1], 1), dim=-1)
        x = x + F.elu(change)
        visible = self.again(x * visible.sigmoid() * mask) * mask
        weights = visible / (visible.sum(0) + 1e-8)
        mean_weight = weights.sum(0) / mask.sum(0).clamp_min(1)  # of those that see it, however many sources there are
        known = self.geometry(torch.cat((*moments(x, weights), mean_weight), dim=-1))
        attended = self.attention(known, self.along(at, seen), at.ray_indices)
        sigmas = activate(self.thickness(attended)[:, 0], "exp")
        return self.thinned(sigmas) * seen.mask.any(0), (seen, x, visible, turns)

    def along(self, at: At, seen: Seen) -> Tensor:
        """How far from the middle of the box samples are along their rays [S], in units of half its longest side."""
        low, high = self.aabb.split(3)
        offset = seen.positions - (low + high) / 2
        return (offset * self.directions(at)).sum(-1) / ((high - low).amax() / 2)

    def color(self, at: At, carry: tuple[Seen, Tensor, Tensor, Tensor]) -> Tensor:
        seen, *known = carry
        scores = self.blend(torch.cat(known, dim=-1)).masked_fill(~seen.mask[..., None], -1e9)
        return (scores.softmax(0) * seen.colors).sum(0)
