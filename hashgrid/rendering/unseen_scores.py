"""What a field that was learned across scenes shows of others, beside what their pictures show as they are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import render_image
from hashgrid.util.metrics import psnr
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import write_grid

SHOWN = 3  # targets in the picture of a scene
CHUNK = 512  # rays at a time on a CPU: what is known of their samples in all sources stays in the cache


def see(
    field: RadianceField,
    views: Views,
    background: Tensor,
    numbers: Sequence[int] | None = None,
    pictures: Views | None = None,
) -> None:
    """Tells a field its source views.

    Args:
        field: that is told.
        views: of a scene.
        background: [3] of their pictures.
        numbers: those that are sources; all if none.
        pictures: views of another scene whose pictures it is to take for theirs; their own if none.
    """
    chosen, shown = range(len(views)) if numbers is None else numbers, views if pictures is None else pictures
    field.see_views(views.select(chosen), lambda i: shown.image_rgb(chosen[i], background))


def nearest_view(views: Views, place: Tensor) -> int:
    """The view of which the camera is seen at the least angle to ``place`` [3] from the origin."""
    directions = torch.nn.functional.normalize(views.origins.double(), dim=-1)
    return int((directions @ place.double()).argmax())


@torch.no_grad()
def score_unseen(
    field: RadianceField,
    sampler: Sampler,
    scenes: Sequence[Scene],
    background: Tensor,
    out: Path | None = None,
    n_scenes: int | None = None,
) -> dict[str, Any]:
    """Renders all test views of normalised scenes that the field sees by their training views alone.

    Args:
        field: that is told source views.
        sampler: where along rays it is asked.
        scenes: their training views are the sources.
        background: [3].
        out: folder for ``unseen/NUMBER.png``: sources, then for some targets truth, rendered, nearest source.
        n_scenes: the first ones, at most.

    Returns:
        Means over scenes of the mean PSNR of their targets in dB: ``psnr_mean`` of what is rendered, ``psnr_nearest``
        of the source whose direction is nearest, ``psnr_average`` of the mean of all sources, ``psnr_of_other`` of what
        is rendered by pictures of the next scene instead (None for one scene); ``gain``, the first over the second; and
        ``scenes``, the same for each.
    """
    scenes, device, behind = scenes[:n_scenes], field.aabb.device, background.to(field.aabb.device)
    chunk = CHUNK if device.type == "cpu" else None
    rows = list[dict[str, Any]]()
    bar = optional_import("tqdm").tqdm(scenes, desc="unseen scenes", unit="scene", disable=out is None)
    for number, scene in enumerate(bar):
        sources, targets, other = scene.train, scene.test, scenes[(number + 1) % len(scenes)].train
        truths = [targets.image_rgb(view, background) for view in range(len(targets))]
        nearest = [nearest_view(sources, place) for place in targets.origins]
        pictures = [sources.image_rgb(view, background) for view in range(len(sources))]
        copies = [pictures[view] for view in nearest]

        def rendered(targets: Views = targets) -> list[Tensor]:
            cameras = targets.select(range(len(targets))).to(device)
            found = (render_image(field, sampler, cameras, i, behind, chunk)[0] for i in range(len(targets)))
            return [(255 * image.cpu()).round() / 255 for image in found]

        see(field, sources, background)
        images = rendered()
        row: dict[str, Any] = {"scene": str(scene.path), "psnr": _mean(images, truths)}
        if all(image.shape == truth.shape for image, truth in zip(copies, truths, strict=True)):
            row["nearest"] = _mean(copies, truths)
        if len({image.shape for image in (*pictures, *truths)}) == 1:
            row["average"] = _mean([torch.stack(pictures).mean(0)] * len(truths), truths)
        if len(scenes) > 1 and len(other) == len(sources):
            see(field, sources, background, pictures=other)
            row["of_other"] = _mean(rendered(), truths)
        rows.append(row)
        if out is not None and len({image.shape for image in (*pictures, *truths)}) == 1:
            path = out / "unseen" / f"{number:02d}.png"
            show(path, pictures, truths[:SHOWN], images[:SHOWN], copies[:SHOWN])
    names = {"psnr": "psnr_mean", "nearest": "psnr_nearest", "average": "psnr_average", "of_other": "psnr_of_other"}
    means = {names[key]: _mean_of(rows, key) for key in names}
    gain = None if means["psnr_nearest"] is None else means["psnr_mean"] - means["psnr_nearest"]  # type: ignore[operator]
    return {**means, "gain": gain, "scenes": rows}


def show(path: Path, sources: list[Tensor], truths: list[Tensor], images: list[Tensor], copies: list[Tensor]) -> None:
    """Writes pictures [H, W, 3] of one size side by side: up to three sources | truth | rendered | nearest source."""
    titles = {f"source {i + 1}": [image] * len(truths) for i, image in enumerate(sources[:3])}
    larger: Callable[[Tensor], Tensor] = lambda x: x.repeat_interleave(2, 0).repeat_interleave(2, 1)  # noqa: E731
    columns = {**titles, "truth": truths, "rendered": images, "nearest": copies}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_grid(path, {title: [larger(image) for image in found] for title, found in columns.items()})


def _mean(images: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    return statistics.fmean(psnr(image, truth) for image, truth in zip(images, truths, strict=True))


def _mean_of(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in rows if key in row]
    return statistics.fmean(known) if known else None
