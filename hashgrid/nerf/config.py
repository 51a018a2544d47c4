"""Every default of the NeRF application, in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from hashgrid import _extension
from hashgrid.util.device import choose_device


@dataclass(frozen=True)
class NerfConfig:
    """Instant-NGP's recipe (Müller et al. 2022) with batch, schedule and update rates tuned for a few CPU cores;
    :meth:`for_device` has those of a GPU.

    Schedules run over the *progress* of a run: the larger of ``step / steps`` and ``seconds / time_limit``.
    """

    backend: str = "native"
    device: str = "auto"  # "cpu", "cuda", "cuda:1"; a GPU where there is one
    seed: int = 0
    steps: int | None = None
    time_limit: float | None = None  # seconds of everything but the final evaluation
    # Of evaluation: a colour, or "auto": what opaque images had, else white. Training blends onto random colours.
    background: str = "auto"
    downscale: int = 1  # factor by which images are reduced
    holdout: int = 8  # distance of test views in a scene without a split; 0 for none
    cut_out_backdrop: bool = True  # one colour around the object in all opaque images is taken as transparent
    test_split: str = "test"  # or "val": which of a scene's splits is tested

    # Field: 8 levels of 4 features touch half the cache lines of 16 x 2 at the same output width. 2^18 entries per
    # level train 10 % faster than 2^19, to the same PSNR after 60 and 240 s: tables and moments are memory traffic.
    n_levels: int = 8
    n_features_per_level: int = 4
    log2_hashmap_size: int = 18  # 19 on a GPU
    base_resolution: int = 16
    max_resolution: int = 1024  # vertices along the innermost box; outer cascades scale it
    n_neurons: int = 64
    n_geometry_features: int = 16
    sh_degree: int = 4
    compute_dtype: str = "auto"  # of MLP products: "float32", "bfloat16", "float16", or bfloat16 where that is fast
    table_dtype: str = "float32"  # of the copy of the table that is read: "float32", "float16", "bfloat16"

    # Rays and samples.
    target_samples: int = 1 << 15  # samples that count, per step; the number of rays follows
    max_rays: int = 1 << 14
    steps_per_diagonal: int = 512  # step = sqrt(3) / this, in units of the innermost box; 1024 on a GPU
    early_stop_eps: float = 1e-4
    fixed_size: bool = False  # steps of exactly `target_samples`, hidden ones included, which nothing is read back from
    cuda_graph: bool = True  # record steps of fixed size on a GPU, and replay them

    # Optimisation.
    learning_rate: float = 2e-2
    final_learning_rate: float = 3e-4
    decay_start: float = 0.3  # progress at which the exponential decay begins
    weight_decay: float = 1e-6  # MLP weights only
    huber_delta: float = 0.1

    # Occupancy grid.
    occupancy_resolution: int = 128
    occupancy_interval: int = 16
    occupancy_warmup_steps: int = 256  # the time share is not looked at before
    occupancy_uniform: float = 1 / 16  # of all cells, evaluated per update; 1/4 on a GPU
    occupancy_occupied: float = 1 / 16  # of all cells, from the occupied ones
    occupancy_time_share: float = 0.08  # of a run, at most

    checkpoint_seconds: float = 30.0

    @classmethod
    def for_device(cls, device: torch.device) -> NerfConfig:
        """Defaults for ``device``: on a GPU Instant-NGP's batch, step length and update rates, in half precision."""
        if device.type == "cpu":
            return cls(device="cpu")
        return cls(
            device=str(device),
            log2_hashmap_size=19,
            max_resolution=2048,
            table_dtype="float16",
            compute_dtype="float16",
            target_samples=1 << 18,
            max_rays=1 << 16,
            steps_per_diagonal=1024,
            fixed_size=True,
            learning_rate=1e-2,
            decay_start=0.5,
            occupancy_uniform=1 / 4,
            occupancy_occupied=1 / 4,
        )

    def resolved(self) -> NerfConfig:
        """With ``device`` and ``compute_dtype`` decided for this machine."""
        config = self.replace(device=str(choose_device(self.device, self.backend)))
        if config.compute_dtype != "auto":
            return config
        fast = config.backend == "native" and (
            config.device != "cpu" or _extension.require().cpu_capability() == "avx512_bf16"
        )
        return config.replace(compute_dtype="bfloat16" if fast else "float32")

    def replace(self, **changes: Any) -> NerfConfig:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NerfConfig:
        """Ignores keys this version does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
