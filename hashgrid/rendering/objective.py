"""What training a radiance field minimises, of what its rays saw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hashgrid.fields.base import RadianceField
from hashgrid.ops._backend import ngp_ops
from hashgrid.rendering.ray_losses import of_histograms, of_labels, opacity_entropy
from hashgrid.rendering.samplers import Rendered


def objective(
    config: Any,
    field: RadianceField,
    out: Rendered,
    background: Tensor,
    target: Tensor,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of what rays saw, and the mean of its photometric part and of the squared error [2].

    Args:
        config: that of the task.
        field: what was seen.
        out: of the rays.
        background: [R, 3], what was put behind each.
        target: [R, 3], the pixels before that background.
        labels: of the pixels [R] int64, -1 for none; None where none are learned from.
    """
    loss, means = photometric(config, field, out, background, target)
    loss = loss + of_histograms(out, config.distortion_weight) + field.penalty()
    if config.opacity_entropy_weight:
        loss = loss + config.opacity_entropy_weight * opacity_entropy(out.opacities).mean()
    if field.capture is not None:
        loss = loss + field.capture.penalty()
    if labels is not None and out.logits is not None:
        loss = loss + config.labelling.semantic_weight * of_labels(out.logits, labels)
    if out.coarse is not None:
        loss = loss + field.coarse_weight * photometric(config, field, out.coarse, background, target)[0]
    return loss, means


def photometric(
    config: Any, field: RadianceField, out: Rendered, background: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Huber loss of colours over the background, and its mean and that of the squared error [2]."""
    covers = field.capture is not None and field.capture.behind is not None
    opacities = torch.ones_like(out.opacities) if covers else out.opacities
    return ngp_ops(config.backend).pixel_loss(out.colors, opacities, background, target, config.huber_delta)
