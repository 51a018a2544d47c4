"""Labels as a field shows them: of pictures, as colours, and how many are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.scene import VOID, Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import render_labels
from hashgrid.util.files import atomic_write_image
from hashgrid.util.pictures import GAP, picture_names

SOLID = 0.5  # opacity from which a pixel shows something
FEW_VIEWS = 4  # training views that are scored, evenly spread
NOTHING = (0.93, 0.93, 0.93)  # colour of what has no label
WRONG = (0.85, 0.1, 0.1)
NO_LABELS = "`--semantic` must be left out: the run has learned no labels; train one with `--semantic`"
# Colours of classes that follow each other, sRGB, from Tol's sets "muted" and "vibrant" (2021) for people who see no
# red or green; later classes have the same ones darker.
PALETTE = torch.tensor(
    [
        [51, 34, 136], [136, 204, 238], [221, 204, 119], [17, 119, 51], [204, 102, 119], [68, 170, 153],
        [136, 34, 85], [238, 119, 51], [0, 119, 187], [153, 153, 51], [170, 68, 153], [102, 102, 102],
    ]
) / 255  # fmt: skip


def label_colors(labels: Tensor) -> Tensor:
    """Colours [..., 3] of labels [...], the same of a class in every picture; grey of `VOID`."""
    number, n = labels.long(), len(PALETTE)
    color = PALETTE[number % n] * 0.75 ** (number // n)[..., None]
    return torch.where((labels == VOID)[..., None], torch.tensor(NOTHING), color)


@torch.no_grad()
def shown_labels(field: RadianceField, sampler: Sampler, cameras: Cameras, view: int) -> Tensor:
    """The class of the largest logit in each pixel of a camera [H, W] uint8, `VOID` where rays do not end, on the CPU;
    cameras are on the field's device."""
    logits, opacity = render_labels(field, sampler, cameras, view)
    return torch.where(opacity >= SOLID, logits.argmax(-1), VOID).to(torch.uint8).cpu()


def confusion(truth: Tensor, found: Tensor, n_classes: int) -> Tensor:
    """How many pixels [255, K + 1] of each class, in rows, were found to be of each class, the last column of none;
    without pixels whose truth [...] is `VOID`."""
    known, width = truth != VOID, n_classes + 1
    column = torch.where(found == VOID, n_classes, found.long())[known]
    return torch.bincount(truth[known].long() * width + column, minlength=VOID * width).view(VOID, width)


def figures(table: Tensor) -> dict[str, Any]:
    """Scores of a table of :func:`confusion`: ``label_accuracy``, the share of the pixels that are right, and ``miou``,
    the mean over classes that are there of right pixels by those that are, or were found to be, of the class."""
    n = table.shape[1] - 1
    right, given = torch.zeros(len(table)), table.sum(1)
    right[:n] = table[:, :n].diagonal().float()
    found = torch.nn.functional.pad(table[:, :n].sum(0), (0, len(table) - n))
    there = given > 0
    if not bool(there.any()):
        return {"label_accuracy": None, "miou": None}
    share = right[there] / (given + found - right)[there]
    return {"label_accuracy": float(right.sum() / given.sum()), "miou": float(share.mean())}


def score_views(field: RadianceField, sampler: Sampler, views: Views, n_views: int, folder: Path) -> dict[str, Any]:
    """Scores of the labels of ``n_views`` views at most, evenly spread, by all labels that the scene has; writes
    ``folder/NAME.png`` of each: truth | rendered | wrong."""
    n_classes, cameras = field.labeler.n_classes, views.select(range(len(views))).to(field.aabb.device)
    names, tables = picture_names(views.names), []
    for i in range(n := min(n_views, len(views))):
        view = i * len(views) // n
        truth, found = views.label_map(view), shown_labels(field, sampler, cameras, view)
        if truth is None:
            continue
        if (mask := views.mask(view)) is not None:
            truth = truth.masked_fill(~mask, VOID)
        tables.append(confusion(truth, found, n_classes))
        atomic_write_image(folder / f"{names[view]}.png", label_strip(truth, found))
    return figures(torch.stack(tables).sum(0)) if tables else {}


def label_strip(truth: Tensor, found: Tensor) -> Tensor:
    """Labels [H, W] side by side: truth | rendered | wrong, which are red among those that are known."""
    known, gap = truth != VOID, torch.ones(len(truth), GAP, 3)
    wrong = torch.where((known & (found != truth))[..., None], torch.tensor(WRONG), label_colors(truth) * 0.3 + 0.7)
    return torch.cat((label_colors(truth), gap, label_colors(found), gap, wrong), dim=1)


def score_labels(
    field: RadianceField, sampler: Sampler, scene: Scene, n_views: int, out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of labels of test views and of a few training views, for ``results.json``, whose pictures are written to
    ``labels`` and ``labels/training``; nothing of a field without classes."""
    if field.labeler is None:
        return {}, {}
    folder = out / "labels"
    test = score_views(field, sampler, scene.test, n_views, folder)
    return test, {"training_views": score_views(field, sampler, scene.train, FEW_VIEWS, folder / "training")}
