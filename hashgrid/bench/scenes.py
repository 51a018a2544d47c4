"""The procedural scene in memory: no folder, and no package that writes and reads images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.procedural import orbit_cameras, render
from hashgrid.data.scene import Scene, Views
from hashgrid.geometry.boxes import BLENDER_HALF
from hashgrid.geometry.cameras import Cameras
from hashgrid.util.files import to_uint8
from hashgrid.util.threads import threads_in_use


def procedural_scene(n_train: int, n_test: int, resolution: int, seed: int = 0) -> Scene:
    """What :func:`hashgrid.data.scene.load_scene` reads of what :func:`hashgrid.data.procedural.write_scene` writes.

    Args:
        n_train, n_test: number of views, at least 1.
        resolution: width and height in pixels.
        seed: of the camera positions.
    """
    train = _views(orbit_cameras(n_train, resolution, 2 * seed), "train")
    test = _views(orbit_cameras(n_test, resolution, 2 * seed + 1), "test")
    aabb = torch.tensor([-BLENDER_HALF] * 3 + [BLENDER_HALF] * 3)
    up = torch.nn.functional.normalize(train.c2w[:, :, 1].mean(0), dim=0)
    return Scene(train, test, aabb, n_cascades=1, bounded=True, near=0.0, up=up, path=Path("procedural_scene"))


def _views(cameras: Cameras, split: str) -> Views:
    def pixels(view: int) -> Tensor:
        return torch.from_numpy(to_uint8(render(cameras, view))).view(-1, 4)

    threads, n_workers = torch.get_num_threads(), threads_in_use()
    torch.set_num_threads(1)  # one image per thread, as `write_scene` does
    try:
        with ThreadPoolExecutor(max_workers=n_workers) as pool:
            data = torch.cat(list(pool.map(pixels, range(len(cameras)))))
    finally:
        torch.set_num_threads(threads)
    names = tuple(f"./{split}/r_{view:03d}" for view in range(len(cameras)))
    return Views(cameras.c2w, cameras.intrinsics, cameras.sizes, cameras.distortion, data=data, names=names)
