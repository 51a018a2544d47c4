"""Settings that train a radiance field in seconds."""

from __future__ import annotations

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
