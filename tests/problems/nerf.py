"""Settings that train a radiance field in seconds."""

from __future__ import annotations

from typing import Any

from hashgrid.data.scene import Scene
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer

TINY = {
    "log2_hashmap_size": 14,
    "max_resolution": 128,
    "target_samples": 4096,
    "max_rays": 1024,
    "occupancy_resolution": 32,
    "steps_per_diagonal": 256,
    "compute_dtype": "float32",
    "device": "cpu",
}

OPTIONS = [part for key, value in TINY.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def nerf_trainer(scene: Scene, steps: int | None = 40, **changes: Any) -> Trainer:
    """A trainer of the tiny field on a scene."""
    return Trainer(Nerf(NerfConfig().replace(steps=steps, **{**TINY, **changes}), scene))
