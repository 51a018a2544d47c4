"""Classes of what is seen: a field's logits of them, and which labels of training pixels are known (Zhi et al. 2021,
Semantic-NeRF)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hashgrid.data.errors import SceneError
from hashgrid.data.scene import VOID, Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.rays import At, Rays
from hashgrid.nn import Frequency, FusedMLP
from hashgrid.util.config import Config

FEW = 1 / 16  # of the pixels: where fewer have a label, each batch has rays of them beside its own
FEW_RAYS = 16
WAVES = (0.5, 0.25, 0.125, 0.0625)  # amplitudes of an octave each: with even ones few labels spread along the finest
COLOR = 5.0  # amplitude of colours, which few labels are told apart by rather than by places
WIDTH = 64
RATE = 0.1  # by how much slower the head moves than the field: as fast, it learns few labels by heart


@dataclass(frozen=True)
class SemanticConfig(Config):
    """What is learned of labels, and how few or wrong they are made, to try that."""

    semantic: bool = False  # learn labels of pixels, too
    semantic_weight: float = 0.04  # of the cross entropy of composited logits
    semantic_start: float = 0.3  # share of a run before which no labels are learned: until there is something to see
    label_noise: float = 0.0  # share of the labels of training pixels that are replaced by other classes at random
    labels_per_class: int = 0  # of each view: so many pixels of a class have a label, no other; 0 for all
    labelled_views: int = 0  # training views that have labels, evenly spread; 0 for all

    def check(self) -> None:
        super().check()
        if not self.semantic_weight >= 0:
            raise ValueError(f"`semantic_weight` must be at least 0, got {self.semantic_weight}")
        for name in ("semantic_start", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in 0..1, got {getattr(self, name)}")
        for name in ("labels_per_class", "labelled_views"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        changed = [name for name in ("label_noise", "labels_per_class", "labelled_views") if getattr(self, name)]
        if changed and not self.semantic:
            raise ValueError(f"`{changed[0]}` must be 0 without `--semantic`, got {getattr(self, changed[0])}")

    def learned(self, rays: Rays, progress: float) -> Tensor | None:
        """The labels [R] of rays that are learned at ``progress`` in 0..1; None for none yet."""
        return rays.labels if progress >= self.semantic_start else None


class LabelHead(nn.Module):
    """Logits of classes of a field's samples, by their places in slow waves and by the colours that the field says of
    them, through which no gradient flows. What is near and looks alike is of one class, unless labels say otherwise.

    Args:
        n_classes: K.
        backend: ``"native"`` or ``"reference"``.

    Example:
        >>> head = LabelHead(5)
        >>> at = At(Rays(torch.zeros(1, 3), torch.ones(1, 3)), torch.rand(8, 3), torch.zeros(8, dtype=torch.int64))
        >>> head(at, torch.rand(8, 3)).shape
        torch.Size([8, 5])
    """

    amplitudes: Tensor

    def __init__(self, n_classes: int, backend: str = "native") -> None:
        super().__init__()
        self.n_classes = n_classes
        self.waves = Frequency(3, len(WAVES), backend=backend)
        self.register_buffer("amplitudes", torch.tensor(WAVES), persistent=False)
        self.network = FusedMLP(self.waves.n_output_dims + 6, n_classes, WIDTH, 2, bias=True, backend=backend)
        with torch.no_grad():  # all numbers take Adam's steps alike: larger ones change less
            for param in self.network.parameters():
                param.div_(RATE)

    def forward(self, at: At, colors: Tensor) -> Tensor:
        """Logits [S, K] of samples with colours [S, C], of which the first three count."""
        place = at.unit.float() - 0.5
        seen = COLOR * (2 * colors[:, :3].detach().float() - 1)
        inputs = torch.cat((2 * place, self.waves(place, self.amplitudes), seen), dim=1)
        params = {name: RATE * param for name, param in self.network.named_parameters()}
        return functional_call(self.network, params, inputs)  # type: ignore[no-any-return]


class FewLabels:
    """Training views of which few pixels have labels: their batches have rays of those beside their own.

    Args:
        views: of which batches are.
        known: which pixels have a label, and count [P] bool.
    """

    def __init__(self, views: Views, known: Tensor) -> None:
        self.views, self.known = views, replace(views, counts=known)

    def sample_rays(
        self, n: int, seed: int, step: int, backend: str, needs: Collection[str]
    ) -> tuple[Rays, Tensor, Tensor]:
        """As :meth:`hashgrid.data.scene.Views.sample_rays`, and `FEW_RAYS` rays more."""
        rays, *colors = self.views.sample_rays(n, seed, step, backend, needs)
        others, *more = self.known.sample_rays(FEW_RAYS, seed, step, backend, needs)
        both = (torch.cat(pair) for pair in zip(colors, more, strict=True))
        return rays.joined(others), *both  # type: ignore[return-value]


def add_labels(
    config: SemanticConfig, field: RadianceField, scene: Scene, seed: int = 0, backend: str = "native"
) -> Views:
    """Gives a field its classes, where labels are to be learned; returns the training views with the labels that are
    known then.

    Raises:
        SceneError: the scene has no labels, or all are void.
    """
    if not config.semantic:
        return scene.train.near(field.aabb.device)
    if scene.train.labels is None:
        raise SceneError(
            f"{scene.path}: training views must have labels with `--semantic`, this scene has none; leave it out, or"
            " see docs/labels.md for formats with label maps"
        )
    views = known_labels(config, scene.train, scene.n_classes, seed)
    assert views.labels is not None
    known = views.labels != VOID
    if views.counts is not None:
        known = known & views.counts
    if not bool(known.any()):
        raise SceneError(
            f"{scene.path}: some training pixel must have a label with `--semantic`, all of them are void; are the"
            " label maps those of these views, and do `--labelled-views` reach one that has some?"
        )
    field.labeler = LabelHead(scene.n_classes, backend).to(field.aabb.device)
    if float(known.float().mean()) < FEW:
        return FewLabels(views, known)  # type: ignore[return-value]
    return views.near(field.aabb.device)


def known_labels(config: SemanticConfig, train: Views, n_classes: int, seed: int) -> Views:
    """Training views with the labels that are to be known of them: of evenly spread views, of so many pixels of each
    class in each of them, and some replaced by one of the other classes at random; a function of ``seed``."""
    assert train.labels is not None
    generator, labels = torch.Generator().manual_seed(seed), train.labels.clone()
    n = config.labelled_views or len(train)
    chosen = {i * len(train) // n for i in range(n)} if n < len(train) else set(range(len(train)))
    for view, (begin, end) in enumerate(zip(train.offsets.tolist(), train.offsets[1:].tolist(), strict=False)):
        part = labels[begin:end]
        if view not in chosen:
            part.fill_(VOID)
        elif config.labels_per_class:
            kept = torch.full_like(part, VOID)
            for number in range(n_classes):
                rows = (part == number).nonzero()[:, 0]
                rows = rows[torch.randperm(len(rows), generator=generator)[: config.labels_per_class]]
                kept[rows] = number
            part.copy_(kept)
    if config.label_noise and n_classes > 1:
        wrong = (torch.rand(len(labels), generator=generator) < config.label_noise) & (labels != VOID)
        step = torch.randint(1, n_classes, (len(labels),), generator=generator)
        labels = torch.where(wrong, ((labels.long() + step) % n_classes).to(torch.uint8), labels)
    return replace(train, labels=labels)
