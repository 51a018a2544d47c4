"""A scene cut into blocks: what each is trained on, and all of them seen as one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems.nerf import nerf_trainer

from hashgrid.geometry.blocks import Cut
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.manifest import composed
from hashgrid.tasks.nerf import Nerf


@pytest.fixture(scope="module")
def trained(scene: Any) -> Nerf:
    """The tiny field, opaque enough to hide what is behind its shapes."""
    trainer = nerf_trainer(scene, 60)
    trainer.train()
    return trainer.task


def pictures(task: Nerf, scene: Any, cut: Cut, view: int = 0) -> tuple[torch.Tensor, ...]:
    """Colours of a test view by the field itself and by all blocks of a cut, each of which is that field."""
    model, sampler = composed([task] * math.prod(cut.grid), scene, cut)
    views, background = scene.test, torch.ones(3)
    alone = render_image(task.model, task.sampler, views, view, background)
    parted = render_image(model, sampler, views, view, background)
    return tuple(torch.stack(both) for both in zip(alone, parted, strict=True))


@pytest.mark.parametrize("grid, overlap", [((2, 1, 1), 0.2), ((2, 2, 2), 0.5), ((3, 1, 1), 0.0)])
def test_one_field_in_blocks_is_that_field(trained: Nerf, scene: Any, grid: tuple, overlap: float) -> None:
    cut = Cut((-1.5, -1.5, -1.5, 1.5, 1.5, 1.5), grid, overlap)
    for view in range(2):
        color, opacity, depth = pictures(trained, scene, cut, view)
        # what is hidden by another block is left out: of less light than 1e-4
        for both, scale in ((color, 1.0), (opacity, 1.0), (depth, 4.0)):
            assert float((both[0] - both[1]).abs().max()) < 2e-4 * scale
        assert float((color[0] - color[1]).abs().median()) < 1e-6
