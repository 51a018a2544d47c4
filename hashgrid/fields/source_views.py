"""What fields share that are learned across scenes: they know a scene by pictures of it, the source views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.contraction import expand
from hashgrid.geometry.rays import At
from hashgrid.nn.image_encoder import ImageEncoder
from hashgrid.util.config import Config


@dataclass(frozen=True)
class SourceConfig(Config):
    """Sizes that all fields of source views have."""

    n_sources: int = 8  # training views that are looked at, at most, evenly spread over all
    n_features: int = 32  # channels of pictures' features
    encoder_width: int = 16  # channels of the encoder's first stage
    n_coarse: int = 32  # samples per ray
    n_fine: int = 0  # further ones where the sampler is one of two looks

    def check(self) -> None:
        super().check()
        if self.n_sources < 1:
            raise ValueError(f"`n_sources` must be at least 1, got {self.n_sources}")


class Seen(NamedTuple):
    """What source views know of samples."""

    colors: Tensor  # [V, S, 3] of their pictures where the samples are seen
    features: Tensor  # [V, S, C] of their encoder there
    mask: Tensor  # [V, S] bool, whether the view sees the sample, and is not that of the ray itself
    positions: Tensor  # [S, 3] of the samples in the scene


def project(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where cameras see points [S, 3]: continuous pixel coordinates [V, S, 2], in which the middle of the first pixel
    is at (0.5, 0.5), and whether they do [V, S] bool: in front of the camera and in its picture. The coordinates of
    what is not seen are 0."""
    found = [cameras.project(points, view) for view in range(len(cameras))]
    pixels, depths = (torch.stack(x) for x in zip(*found, strict=True))
    sizes = cameras.sizes[:, None].to(pixels)
    seen = (depths > 0) & (pixels >= 0).all(-1) & (pixels <= sizes).all(-1)
    return torch.where(seen[..., None], pixels, 0.0), seen


def look_up(pictures: Tensor, places: Tensor) -> Tensor:
    """Values [V, S, C] of pictures [V, C, H, W] at ``places`` [V, S, 2], of which (0, 0) is the outer corner of the
    first pixel and (1, 1) that of the last, bilinear between the middles of pixels (``align_corners=False``): so the
    same places serve pictures of any resolution. In the outer half of a border pixel it is the border's.

    Example:
        >>> import torch
        >>> pictures = torch.arange(6.0).view(1, 1, 2, 3)  # rows 0 1 2 and 3 4 5
        >>> look_up(pictures, torch.tensor([[[0.5, 0.25], [0.0, 0.0], [0.5, 0.5]]]))[0, :, 0]
        tensor([1.0000, 0.0000, 2.5000])
    """
    grid = 2 * places[:, :, None] - 1
    found = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)


class SourceField(RadianceField):
    """A field whose parameters are those of a method, not of a scene: it knows the scene by its source views.

    Where no source sees a point there is nothing. The views a ray is trained on are no sources of it
    (``at.rays.camera`` says which is its own): a field would learn to copy the pixel it is to predict.

    Args:
        config: sizes of the field.
        aabb: [6] box the field covers.
        n_cascades: not needed: nothing ends at a box.
        backend: ``"native"`` or ``"reference"``.
    """

    needs = ("camera",)
    sampler = "stratified"
    pictures: Tensor

    def __init__(self, config: Any, aabb: Tensor, n_cascades: int = 1, backend: str = "native") -> None:
        super().__init__(aabb)
        self.n_coarse, self.n_fine, self.n_sources = config.n_coarse, config.n_fine, config.n_sources
        self.encoder = ImageEncoder(config.n_features, config.encoder_width)
        self.sources: Cameras | None = None
        self.source_numbers = list[int]()  # of the views they were chosen from
        self.register_buffer("pictures", torch.empty(0, 3, 1, 1), persistent=False)
        self._encoded: tuple[int, Tensor] | None = None

    def see_views(self, cameras: Cameras, picture: Callable[[int], Tensor]) -> None:
        n = min(self.n_sources, len(cameras))
        chosen = torch.linspace(0, len(cameras) - 1, n).round().long().tolist()
        found = [picture(view).permute(2, 0, 1) for view in chosen]
        height, width = (max(8, *(image.shape[axis] for image in found)) for axis in (1, 2))  # what is halved thrice
        padded = [
            F.pad(image[None], (0, width - image.shape[2], 0, height - image.shape[1]), mode="replicate")
            for image in found
        ]
        self.sources, self.source_numbers = cameras.select(chosen).to(self.aabb.device), chosen
        self.pictures = torch.cat(padded).to(self.pictures)
        self._encoded = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SourceField:
        super()._apply(fn, recurse)
        self._encoded = None
        if self.sources is not None:
            self.sources = self.sources.to(self.aabb.device)
        return self

    def encoded(self) -> Tensor:
        """Features of the source pictures [V, C, h, w]; without gradients they are made once for the same weights."""
        if torch.is_grad_enabled():
            return self.encoder(self.pictures)
        version = sum(param._version for param in self.encoder.parameters())
        if self._encoded is None or self._encoded[0] != version:
            self._encoded = version, self.encoder(self.pictures)
        return self._encoded[1]

    def positions(self, at: At) -> Tensor:
        """Samples [S, 3] in the scene."""
        unit = at.unit
        if self.contraction != "none":
            unit = expand(4 * unit - 2, self.contraction) / 2 + 0.5
        return self.aabb[:3] + unit / self.inverse_extent

    def seen(self, at: At) -> Seen:
        """What the source views know of samples.

        Raises:
            ValueError: there are no source views.
        """
        if self.sources is None:
            raise ValueError(f"the field {self.Config.name!r} must be given source views by `see_views`, got none")
        positions = self.positions(at)
        pixels, mask = project(self.sources, positions)
        if at.rays.camera is not None:
            own = torch.tensor(self.source_numbers, device=mask.device)[:, None] == at.rays.camera
            mask = mask & ~own.index_select(1, at.ray_indices)
        size = pixels.new_tensor([self.pictures.shape[3], self.pictures.shape[2]])
        colors = look_up(self.pictures, (pixels / size).to(self.pictures))
        # features of half the resolution, rounded down, end before an odd border
        encoded = self.encoded()
        reach = pixels.new_tensor([2 * encoded.shape[3], 2 * encoded.shape[2]])
        return Seen(colors, look_up(encoded, (pixels / reach).to(encoded)), mask, positions)

    def directions(self, at: At) -> Tensor:
        """Unit directions [S, 3] of the rays that samples are on."""
        return F.normalize(at.rays.directions, dim=-1).index_select(0, at.ray_indices)
