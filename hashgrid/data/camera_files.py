"""Cameras as files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hashgrid.data.scene import Scene
from hashgrid.geometry.lenses import COEFFICIENTS, KINDS
from hashgrid.util.files import atomic_write_json


def write_cameras(scene: Scene, out: Path) -> int:
    """Writes all views as :func:`transforms_of` has them; returns how many."""
    content = transforms_of(scene)
    atomic_write_json(out, content)
    return len(content["frames"])


def transforms_of(scene: Scene) -> dict[str, Any]:
    """All views as a `transforms.json` of nerfstudio's, in the coordinates of the scene's file.

    Raises:
        ValueError: a lens is of a kind, or has coefficients, that such files do not have.
    """
    frames = []
    for views in (scene.train, scene.test):
        poses = scene.placement.to_file(views.origins)
        for i, name in enumerate(views.names):
            fx, fy, cx, cy = views.intrinsics[i].tolist()
            if KINDS[int(views.lens[i])] not in ("perspective", "fisheye"):
                raise ValueError(f"cameras must be perspective or fisheyes, {name} is {KINDS[int(views.lens[i])]}")
            k1, k2, k3, k4, p1, p2, *others = views.distortion[i].tolist()
            if any(others):
                extra = [key for key, value in zip(COEFFICIENTS[6:], others, strict=True) if value]
                raise ValueError(f"lenses must have k1, k2, k3, k4, p1 and p2 only, {name} has {', '.join(extra)}, too")
            pose = torch.cat((views.c2w[i, :, :3].double(), poses[i, :, None]), dim=1)
            frames.append({
                "file_path": name, "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]], "w": views.size(i)[0],
                "h": views.size(i)[1], "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "k1": k1, "k2": k2, "k3": k3,
                "k4": k4, "p1": p1, "p2": p2,
                "camera_model": "OPENCV_FISHEYE" if int(views.lens[i]) else "OPENCV",
                **({} if views.times is None else {"time": float(views.times[i])}),
            })  # fmt: skip
    models = {frame["camera_model"] for frame in frames}
    meta = {"camera_model": models.pop()} if len(models) == 1 else {}  # nerfstudio looks here only
    return {**meta, "frames": frames}
