"""What is learned of a capture beside its scene: where its cameras stood, their lens, what each made of colours, and
what is behind everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hashgrid.data.camera_files import transforms_of
from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import nearest_point_to_axes
from hashgrid.geometry.lenses import relens
from hashgrid.geometry.motions import se3_exp, so3_exp
from hashgrid.geometry.rays import Rays
from hashgrid.nn import FusedMLP, SphericalHarmonics
from hashgrid.nn.codes import Codes
from hashgrid.nn.hash_grid import levels_on
from hashgrid.rendering.appearance import SIZES, shown
from hashgrid.rendering.around import Around
from hashgrid.rendering.samplers import Jitter, Rendered
from hashgrid.util.config import Config


@dataclass(frozen=True)
class CaptureConfig(Config):
    """What is learned of a capture beside its scene."""

    # what each training view makes of colours: exposure in stops, an affine map, or a code that the field's colours see
    appearance: Literal["none", "exposure", "affine", "code"] = "none"
    appearance_size: int = 8  # numbers of a code
    appearance_rate: float = 2e-2  # learning rate of exposures and codes; of maps a quarter
    # of test views: that of their left halves, and right halves are scored; or the mean of the training views
    test_appearance: Literal["fitted", "neutral"] = "fitted"
    # of test views, where those of training views are refined: moved as they were together, and then each to where its
    # left half is seen best, and right halves are scored (as Lin et al. 2021, BARF, with whole views); or moved alone
    test_poses: Literal["fitted", "moved"] = "fitted"
    # where cameras stood: turned about their own place and moved, or moved by a screw about the middle of the scene
    refine_cameras: Literal["none", "so3xr3", "se3"] = "none"
    refine_lens: bool = False  # focal length, k1 and k2, the same correction for all views
    camera_rate: float = 1e-3  # learning rate of poses, in radians and units of which the box has 3, and of the lens
    camera_start: float = 0.1  # share of a run before which poses and the lens stay: until there is something to see
    camera_penalty: float = 0.0  # of the mean square of corrections of poses
    coarse_levels: int = 2  # of detail, that are there at first where cameras or a lens are refined
    coarse_share: float = 0.7  # of a run, at which all are there; 0 for all from the start
    # behind everything, of opaque pictures: a colour, colours of directions, or a field of what is around a box; auto:
    # that of surfaces in a scene without an end, nothing else
    background_model: Literal["auto", "none", "color", "network", "field"] = "auto"
    # degrees, and percent of the distance to what is looked at, by which training cameras are moved: to try refinement
    perturb_cameras: float = 0.0

    @property
    def refines(self) -> bool:
        """Whether rays change."""
        return self.refine_cameras != "none" or self.refine_lens

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return self.refines or self.appearance != "none" or self.background_model not in ("auto", "none")

    def check(self) -> None:
        super().check()
        for name in ("appearance_rate", "camera_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        for name in ("camera_penalty", "perturb_cameras"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        for name in ("coarse_share", "camera_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in 0..1, got {getattr(self, name)}")
        if self.appearance_size < 1 or self.coarse_levels < 1:
            got = f"{self.appearance_size} and {self.coarse_levels}"
            raise ValueError(f"`appearance_size` and `coarse_levels` must be at least 1, got {got}")


class Behind(nn.Module):
    """What is behind everything: a colour, or colours of directions."""

    def __init__(self, kind: str, backend: str) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.zeros(3))
        self.directions = self.network = None
        if kind == "network":
            self.directions = SphericalHarmonics(6, backend=backend)
            self.network = FusedMLP(36, 3, 32, n_hidden_layers=2, backend=backend)

    def forward(self, colors: Tensor, opacities: Tensor, rays: Rays, jitter: Jitter = None) -> Tensor:
        """Colours [R, 3] of rays that have these colours [R, 3], times their opacities [R], before it."""
        seen: Tensor | float = 0.0
        if self.directions is not None and self.network is not None:
            seen = self.network(self.directions(rays.directions))
        return colors + (1 - opacities)[:, None] * (seen + self.color).sigmoid()


class Capture(nn.Module):
    """What is learned of a capture beside its scene. A field has one (``field.capture``), and :func:`render` asks it.

    Args:
        config: what.
        train: the views, in the coordinates of the field.
        rate: learning rate of the field, of which those of the configuration are multiples here.
        n_levels: of detail that the field has; 0 for none.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        truth: the poses [N, 3, 4] that the training views have, where they are known to be others than they say.
        code_of_others: [D], of what no training camera sees; None for the mean of all.
    """

    share: Tensor
    corner: Tensor
    rotations: Tensor
    lenses: Tensor

    def __init__(
        self, config: CaptureConfig, train: Views, rate: float, n_levels: int = 0, backend: str = "native"
    ) -> None:
        super().__init__()
        self.config, self.n_levels, n = config, n_levels, len(train)
        self.truth: Tensor | None = None
        self.code_of_others: Tensor | None = None
        self.stays = False
        size = SIZES.get(config.appearance, config.appearance_size)
        speed = config.appearance_rate / rate / (4 if config.appearance == "affine" else 1)  # of 12 numbers
        self.codes = None if config.appearance == "none" else Codes(n, size, speed)
        self.moves = None if config.refine_cameras == "none" else Codes(n, 6, config.camera_rate / rate)
        # of the logarithm of the focal length, k1 and k2: how far each moves the corner of a picture, in its radius
        self.lens = Codes(1, 3, config.camera_rate / rate) if config.refine_lens else None
        corner = (train.sizes / 2 / train.intrinsics[:, :2]).square().sum(1).mean()
        self.register_buffer("corner", corner, persistent=False)
        self.behind: nn.Module | None = None
        if config.background_model in ("color", "network"):
            self.behind = Behind(config.background_model, backend)
        self.register_buffer("share", torch.zeros(1))  # of the run, of which the levels of detail are
        self.register_buffer("rotations", train.c2w[:, :, :3].float().clone(), persistent=False)
        self.register_buffer("lenses", train.distortion.clone(), persistent=False)

    @property
    def changes_colors(self) -> bool:
        """Whether pictures are not what the field alone says."""
        return self.behind is not None or (self.codes is not None and self.config.appearance != "code")

    # ---- rays --------------------------------------------------------------------------------------------------------

    def fade(self, field: RadianceField, fraction: float | None = None) -> None:
        """Gives a field the levels of detail that it has at ``fraction`` of a run; where it stood without."""
        if fraction is not None:
            self.share.fill_(fraction)
        config = self.config
        self.stays = float(self.share) < config.camera_start
        share = float(self.share) / config.coarse_share if config.refines and config.coarse_share else 1.0
        for part in (field, field.coarse):
            if part is not None:
                part.level_weights = levels_on(self.n_levels, config.coarse_levels, share, field.aabb.device)

    def motions(self, camera: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotations [K, 3, 3] of the directions of cameras, and twists or translations [K, 3] for their places."""
        assert self.moves is not None
        move = self.moves(camera)
        return (so3_exp(move[:, 3:]), move[:, :3]) if self.config.refine_cameras == "so3xr3" else se3_exp(move)

    def poses(self, c2w: Tensor) -> Tensor:
        """The poses [N, 3, 4] of all training cameras, that are ``c2w`` by the file."""
        if self.moves is None:
            return c2w
        rotation, shift = self.motions()
        places = c2w[:, :, 3:]
        places = (places if self.config.refine_cameras == "so3xr3" else rotation @ places) + shift[:, :, None]
        return torch.cat((rotation @ c2w[:, :, :3], places), dim=2)

    def lens_changes(self) -> tuple[Tensor, Tensor]:
        """The factor of focal lengths [], and what is added to coefficients [2]."""
        assert self.lens is not None
        zoom, k1, k2 = self.lens()[0]
        return zoom.exp(), torch.stack((k1 / self.corner, k2 / self.corner**2))

    def rays(self, rays: Rays) -> Rays:
        """Rays of training cameras as they are now thought to be; others are as they are."""
        camera = rays.camera
        if camera is None or not self.config.refines or self.stays:
            return rays
        origins, directions = rays.origins, rays.directions
        if self.lens is not None:
            directions = self._bent(directions, camera)
        if self.moves is not None:
            rotation, shift = self.motions(camera)
            directions = (rotation @ directions[..., None])[..., 0]
            if self.config.refine_cameras == "se3":
                origins = (rotation @ origins[..., None])[..., 0]
            origins = origins + shift
        return replace(rays, origins=origins, directions=directions)

    def _bent(self, directions: Tensor, camera: Tensor) -> Tensor:
        """Unit directions [R, 3] of the same pixels through the lens as it is now thought to be."""
        zoom, added = self.lens_changes()
        axes = directions.new_tensor([1.0, -1.0, -1.0])  # of lenses, in those of cameras
        rotation = self.rotations.index_select(0, camera) * axes
        local = (directions[:, None] @ rotation)[:, 0]
        given = self.lenses.index_select(0, camera)
        changed = given + nn.functional.pad(added, (0, given.shape[1] - 2))
        x, y = relens(local[:, :2] / local[:, 2:], given, changed, zoom).unbind(-1)
        local = nn.functional.normalize(torch.stack((x, y, torch.ones_like(x)), dim=-1), dim=-1)
        return (rotation @ local[..., None])[..., 0]

    def penalty(self) -> Tensor | float:
        """What is added to the loss because of corrections alone."""
        if self.moves is None or not self.config.camera_penalty:
            return 0.0
        return self.config.camera_penalty * self.moves().square().sum(-1).mean()

    # ---- colours -----------------------------------------------------------------------------------------------------

    def neutral(self) -> Tensor:
        """The code [D] of no camera in particular: what exposures and maps are measured from is their mean."""
        assert self.codes is not None
        centre = self.codes.centre()
        return centre if self.config.appearance == "code" else torch.zeros_like(centre)

    def code(self, rays: Rays) -> Tensor:
        """Codes [R, D] of the cameras of rays."""
        assert self.codes is not None
        if rays.camera is None:
            code = self.neutral() if self.code_of_others is None else self.code_of_others
            return code.expand(len(rays), -1)
        codes = self.codes(rays.camera)
        return codes if self.config.appearance == "code" else codes - self.codes.centre()

    @contextmanager
    def without_background(self) -> Iterator[None]:
        """What is seen of the field alone, in the meantime."""
        behind, self.behind = self.behind, None
        try:
            yield
        finally:
            self.behind = behind

    def finish(self, out: Rendered, rays: Rays, background: Tensor | None, jitter: Jitter = None) -> Rendered:
        """What rays see of a field, as their cameras show it, before ``background`` [C] or [R, C], or before what is
        learned to be behind everything, at random places if it is asked at ``jitter``."""
        coarse = None if out.coarse is None else self.finish(out.coarse, rays, background, jitter)
        colors, opacities, through = out.colors, out.opacities, (1 - out.opacities)[:, None]
        if self.behind is not None:
            colors, opacities = self.behind(colors, opacities, rays, jitter), torch.ones_like(opacities)
        if self.codes is not None and self.config.appearance != "code":
            colors = shown(self.config.appearance, colors, opacities, self.code(rays))
        if self.behind is None and background is not None:
            colors = colors + through * background
        return replace(out, colors=colors, coarse=coarse)


def add_capture(config: CaptureConfig, field: RadianceField, scene: Scene, rate: float, seed: int = 0) -> Scene:
    """Gives a field of a normalised scene what else is to be learned; returns the scene as it is trained on, which is
    another one where its cameras are to be moved.

    Raises:
        ValueError: pictures, lenses or the field are not such that it can be learned.
    """
    truth = scene.train.c2w
    if config.perturb_cameras:
        scene = replace(scene, train=perturbed(scene.train, config.perturb_cameras, seed))
    train = scene.train
    if config.refine_lens and bool((train.lens != 0).any() or (train.distortion[:, -1] != 0).any()):
        raise ValueError("`refine_lens` must be off: it is for perspective lenses of OpenCV's model alone")
    if config.refines:
        transforms_of(scene)  # what could not be written after training is said before
    if config.background_model not in ("auto", "none") and train.has_alpha:
        raise ValueError("`background_model` must be none: pictures with alpha say what is in front of anything")
    if not config.learns and not config.perturb_cameras:
        return scene
    if config.appearance == "code":
        field.see_codes(config.appearance_size)
    encoding = getattr(field, "grid", getattr(field, "positions", None))
    backend = getattr(field, "backend", "native")
    field.capture = Capture(config, train, rate, getattr(encoding, "n_levels", 0), backend).to(field.aabb.device)
    if config.background_model == "field":
        field.capture.behind = Around(scene.aabb, scene.near, backend).to(field.aabb.device)
    field.capture.truth = truth if config.perturb_cameras else None
    field.capture.fade(field, 0.0)
    return scene


def perturbed(views: Views, amount: float, seed: int) -> Views:
    """Views whose cameras are turned by ``amount`` degrees about random axes, and moved in random directions by
    ``amount`` percent of their distance from what they look at."""
    generator = torch.Generator().manual_seed(seed)
    axes, ways = nn.functional.normalize(
        torch.randn(2, len(views), 3, generator=generator, dtype=torch.float64), dim=-1
    )
    poses, distances = views.c2w.double(), (views.origins.double() - nearest_point_to_axes(views)).norm(dim=-1)
    rotation = so3_exp(axes * torch.pi / 180 * amount) @ poses[:, :, :3]
    places = poses[:, :, 3] + amount / 100 * distances[:, None] * ways
    return replace(views, c2w=torch.cat((rotation, places[:, :, None]), dim=2).to(views.c2w.dtype))
