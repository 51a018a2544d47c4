"""Every default of the SDF application, in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SdfConfig:
    """Instant-NGP's recipe (Müller et al. 2022, section 5.2) with batch and rates for a few CPU cores.

    Lengths are in units of the cube [0, 1]^3 that holds the mesh.
    """

    backend: str = "native"
    device: str = "auto"
    seed: int = 0
    steps: int | None = None
    time_limit: float | None = None  # seconds of everything but the final evaluation
    default_seconds: float = 30.0  # when neither budget is given

    # Field.
    field: str = "hashgrid"  # or "siren"
    n_levels: int = 16
    n_features_per_level: int = 2
    log2_hashmap_size: int = 18
    base_resolution: int = 16
    max_resolution: int = 512
    interpolation: str = "linear"
    n_neurons: int = 64
    n_hidden_layers: int = 2
    activation: str = "silu"  # with "relu" the field may die at the surface: exactly zero around it, without a gradient
    from_centre: bool = False  # a hash grid adds to the distance to the cube's centre: outside until told otherwise
    coarse_to_fine: float = 0.0  # of the run, until all levels are on; 0 for all from the start
    coarse_levels: int = 2  # on from the start
    compute_dtype: str = "float32"  # of MLP products; sums stay fp32

    # Samples.
    margin: float = 0.1  # between the mesh and the sides of the cube
    pool: int = 1 << 20  # samples computed before training
    surface: float = 0.5  # of the samples, on the surface
    near: float = 0.375  # near it; the rest is uniform in the cube
    near_scale: float = 1 / 256  # of the logistic distribution of the distance along each axis
    batch: int = 1 << 15
    refresh_share: float = 0.1  # of a CPU core, for new samples while training is limited by time
    cache: str | None = None  # folder that keeps the first samples for the next run

    # Points without distances (see `for_points`).
    point_loss: str = "siren"  # or "igr"
    point_batch: int = 1 << 11  # on the surface, and as many near it
    uniform_batch: int = 1 << 11
    near_pool: int = 1 << 17  # that points near the surface are drawn from
    uniform_pool: int = 1 << 18  # that uniform points are drawn from
    point_neighbors: int = 50  # the distance to which is the standard deviation of points near the surface
    gradient_step: float = 0.001  # of finite differences for gradients in the loss; 0 for exact ones
    sign_weight: float = 100.0  # of the wrong side of the surface, by the winding number of the points; 0 for none
    surface_weight: float = 30.0
    normal_weight: float = 1.0
    off_surface_weight: float = 0.1
    off_surface_sharpness: float = 20.0

    # SIREN (Sitzmann et al. 2020).
    siren_neurons: int = 128
    siren_hidden_layers: int = 3
    siren_learning_rate: float = 2e-3
    siren_final_learning_rate: float = 2e-5

    # Optimisation.
    learning_rate: float = 5e-3
    final_learning_rate: float = 1e-4
    loss: str = "mape"  # or "truncated_l1"
    mape_offset: float = 0.01  # |error| / (|distance| + this)
    truncation: float = 0.1  # of distances, for truncated_l1
    eikonal_weight: float = 0.0  # of the eikonal term beside distances
    eikonal_share: float = 0.125  # of the batch, where the eikonal term is on
    weight_decay: float = 1e-6  # MLP weights only
    ema_decay: float = 0.95

    # Output.
    mesh_resolution: int = 256
    mesh_format: str = "ply"  # or "glb"
    up: str = "auto"  # axis, "x", "y" or "z", that is up in pictures; "auto" is z for STL, else y
    image_size: int = 640  # pixels per side of the stills
    n_frames: int = 48  # of the turntable
    video_size: int = 400  # pixels per side of the turntable; even

    @classmethod
    def for_points(cls) -> SdfConfig:
        """Defaults for oriented points without distances: a smooth field, no finer than the points are dense, that is
        positive at first, so that the inside grows from the points and not from anywhere else."""
        return cls(
            n_levels=8,
            n_features_per_level=4,
            max_resolution=128,
            interpolation="smoothstep",
            activation="relu",
            from_centre=True,
            coarse_to_fine=0.4,
            eikonal_weight=1.0,
        )

    @classmethod
    def for_siren(cls) -> SdfConfig:
        """Defaults for a mesh with a SIREN: many small steps on distances alone, relative errors of which it does not
        learn (bob at 12 s: IoU .91 with MAPE and ``batch`` 2^15, .98 with this loss; at 30 s .998 with these)."""
        return cls(
            field="siren",
            batch=1 << 12,
            loss="truncated_l1",
            eikonal_weight=0.0,
            siren_learning_rate=1e-2,
            siren_final_learning_rate=5e-5,
        )

    def replace(self, **changes: Any) -> SdfConfig:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
