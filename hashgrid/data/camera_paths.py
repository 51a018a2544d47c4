"""Flights through a scene: files of viewers, and paths made of the views of a capture.

Poses are camera to world with y up, looking along -z, in the coordinates of the scene's file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import SceneError
from hashgrid.data.loaders.poses import array_of, of_quaternion, read_json, rigid
from hashgrid.data.loaders.transforms import NGP
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import Cameras, alike, look_at, nearest_point_to_axes, pinhole_focal
from hashgrid.util.files import atomic_write_json

CYCLE = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # instant-ngp has x, y, z of a file as z, x, y


@dataclass(frozen=True)
class CameraPath:
    """Cameras one after the other.

    Attributes:
        cameras: in the coordinates of the scene's file, float64: those of a survey have more digits than float32.
        fps: frames per second; None where nobody says.
        crop: box [6] outside of which nothing is shown.
        background: colour [3] in 0..1 behind everything; None for that of the scene.
    """

    cameras: Cameras
    fps: float | None = None
    crop: Tensor | None = None
    background: tuple[float, ...] | None = None


def read_camera_path(
    file: Path, size: tuple[int, int] | None = None, n_frames: int = 120, ngp: Placement = NGP
) -> CameraPath:
    """Reads nerfstudio's `camera_path.json`, which has every frame, or instant-ngp's `base_cam.json`, which has
    keyframes.

    Args:
        file: the path.
        size: width and height of pictures; those of the file, or 1280 x 720, if none.
        n_frames: of a path of keyframes.
        ngp: where instant-ngp's coordinates lie in those of the scene's file, before it turns its axes round.

    Raises:
        SceneError: the file is of another kind, or a camera in it is unusable.
    """
    meta = read_json(file)
    if isinstance(meta, dict) and isinstance(meta.get("camera_path"), list):
        return _nerfstudio(meta, file, size)
    if isinstance(meta, dict) and isinstance(meta.get("path"), list):
        return _instant_ngp(meta, file, size or (1280, 720), n_frames, ngp)
    raise SceneError(f"{file}: must have a list `camera_path` (nerfstudio) or `path` (instant-ngp)")


def write_camera_path(file: Path, path: CameraPath, keys: Cameras | None = None) -> None:
    """Writes nerfstudio's `camera_path.json`, which :func:`read_camera_path` reads.

    Args:
        file: where to.
        path: cameras of one size, in the coordinates of the scene's file.
        keys: those that a person has chosen, for viewers that go on from them.
    """
    width, height = path.cameras.size(0)
    fps = 30.0 if path.fps is None else path.fps
    meta: dict[str, Any] = {
        "camera_type": "perspective", "render_width": width, "render_height": height, "fps": fps,
        "seconds": len(path.cameras) / fps, "smoothness_value": 0.5, "is_cycle": False, "crop": None,
        "camera_path": [_frame(path.cameras, i, "camera_to_world") for i in range(len(path.cameras))],
        "keyframes": [] if keys is None else [_frame(keys, i, "matrix") for i in range(len(keys))],
    }  # fmt: skip
    if path.crop is not None:
        low, high = path.crop.double().split(3)
        meta["crop"] = {"crop_center": ((low + high) / 2).tolist(), "crop_scale": (high - low).tolist()}
        if path.background is not None:
            meta["crop"]["crop_bg_color"] = {key: 255 * x for key, x in zip("rgb", path.background, strict=True)}
    atomic_write_json(file, meta)


def _frame(cameras: Cameras, i: int, name: str) -> dict[str, Any]:
    width, height = cameras.size(i)
    pose = torch.cat((cameras.c2w[i].double(), torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)))
    fov = 2 * math.degrees(math.atan(0.5 * height / float(cameras.intrinsics[i, 1])))
    frame = {name: pose.view(-1).tolist(), "fov": fov, "aspect": width / height}
    return frame if cameras.times is None else {**frame, "render_time": float(cameras.times[i])}


def between(views: Cameras, n_frames: int, size: tuple[int, int] | None = None) -> Cameras:
    """A path through all views in their order: places on a Catmull-Rom spline, rotations on great circles."""
    n = len(views)
    if n < 2:
        raise SceneError(f"a path between views must have two at least, got {n}")
    place = torch.linspace(0, n - 1, n_frames, dtype=torch.float64)
    left = place.long().clamp(max=n - 2)
    u = (place - left)[:, None]
    p0, p1, p2, p3 = (views.origins.double()[(left + k).clamp(0, n - 1)] for k in (-1, 0, 1, 2))
    slopes = (2 * p0 - 5 * p1 + 4 * p2 - p3) * u * u + (3 * p1 - p0 - 3 * p2 + p3) * u**3
    origins = p1 + 0.5 * ((p2 - p0) * u + slopes)
    q = torch.stack([quaternion(rotation) for rotation in views.c2w[:, :, :3].double()])
    rotations = torch.stack(
        [
            torch.from_numpy(of_quaternion(_slerp(q[a], q[a + 1], float(w)), ""))
            for a, w in zip(left.tolist(), u, strict=True)
        ]
    )
    c2w = torch.cat((rotations, origins[..., None]), dim=-1)
    return _like(views, c2w, size)


def spiral(views: Cameras, n_frames: int, turns: float = 2.0, size: tuple[int, int] | None = None) -> Cameras:
    """A spiral about the mean view that looks at what all look at, as far to the sides as nine tenths of the views
    (Mildenhall et al. 2019)."""
    origins, target = views.origins.double(), nearest_point_to_axes(views)
    centre, up = origins.mean(0), torch.nn.functional.normalize(views.c2w[:, :, 1].double().mean(0), dim=0)
    axes = look_at(centre, target, up)[:, :3]
    reach = torch.quantile(((origins - centre) @ axes).abs(), 0.9, dim=0)
    phase = torch.linspace(0, 2 * math.pi * turns, n_frames + 1, dtype=torch.float64)[:-1]
    ring = torch.stack((phase.cos(), -phase.sin(), -(0.5 * phase).sin()), dim=-1)
    return _like(views, look_at(centre + (ring * reach) @ axes.T, target, up), size)


def quaternion(rotation: Tensor) -> Tensor:
    """``w, x, y, z`` [4] of a rotation [3, 3], w not negative."""
    # of the four squares the largest, whose root loses nothing (Shepperd 1978)
    d = rotation.diagonal()
    squares = torch.stack((1 + d.sum(), *(1 + 2 * d[i] - d.sum() for i in range(3))))
    most = int(squares.argmax())
    r = rotation
    rows = {
        0: (squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]),
        1: (r[2, 1] - r[1, 2], squares[1], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]),
        2: (r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], squares[2], r[1, 2] + r[2, 1]),
        3: (r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], squares[3]),
    }
    q = torch.nn.functional.normalize(torch.stack(rows[most]), dim=0)
    return q if float(q[0]) >= 0 else -q


def _slerp(a: Tensor, b: Tensor, weight: float) -> list[float]:
    cosine = float(a @ b)
    b, cosine = (-b, -cosine) if cosine < 0 else (b, cosine)
    angle = math.acos(min(cosine, 1.0))
    if angle < 1e-6:
        mixed = torch.lerp(a, b, weight)
    else:
        mixed = (math.sin((1 - weight) * angle) * a + math.sin(weight * angle) * b) / math.sin(angle)
    return mixed.tolist()  # type: ignore[no-any-return]


def _like(views: Cameras, c2w: Tensor, size: tuple[int, int] | None) -> Cameras:
    """Cameras of poses [N, 3, 4] with the field of view of others, over the height of the picture, without their
    lenses' bends; their times from first to last."""
    width, height = views.size(0)
    focal = pinhole_focal(views) / height
    width, height = size or (width // 2 * 2, height // 2 * 2)
    times = None if views.times is None else torch.linspace(*views.times.aminmax(), len(c2w))
    return alike(c2w, focal * height, (width, height), times)


def _nerfstudio(meta: dict[str, Any], file: Path, size: tuple[int, int] | None) -> CameraPath:
    kind = str(meta.get("camera_type", "perspective"))
    if kind != "perspective":
        raise SceneError(f"{file}: `camera_type` must be perspective, got {kind!r}")
    if size is None:
        size = tuple(int(array_of(meta, f"render_{side}", (), str(file))) for side in ("width", "height"))  # type: ignore[assignment]
    assert size is not None
    poses, focals, times = [], [], []
    for i, camera in enumerate(meta["camera_path"]):
        where = f"{file}, camera {i}"
        poses.append(rigid(array_of(camera, "camera_to_world", (4, 4), where), where, "camera_to_world"))
        focals.append(_focal(float(array_of(camera, "fov", (), where)), size[1], where))
        times.append(camera.get("render_time"))
    cameras = _cameras(poses, focals, size, file)
    if all(isinstance(time, (int, float)) for time in times):
        cameras.times = torch.tensor(times, dtype=torch.float32)
    crop, colour = meta.get("crop"), None
    box = None
    if isinstance(crop, dict):
        centre, extent = (array_of(crop, key, (3,), f"{file}, `crop`") for key in ("crop_center", "crop_scale"))
        if np.any(array_of(crop, "crop_rot", (3,), f"{file}, `crop`") if crop.get("crop_rot") is not None else 0):
            raise SceneError(f"{file}: `crop_rot` must be zero, got {crop['crop_rot']}")
        box = torch.from_numpy(np.concatenate((centre - extent / 2, centre + extent / 2)))
        if isinstance(shade := crop.get("crop_bg_color"), dict):
            colour = tuple(float(array_of(shade, key, (), f"{file}, `crop_bg_color`")) / 255 for key in "rgb")
    fps = None if meta.get("fps") is None else float(array_of(meta, "fps", (), str(file)))
    return CameraPath(cameras, fps, box, colour)


def _instant_ngp(meta: dict[str, Any], file: Path, size: tuple[int, int], n_frames: int, ngp: Placement) -> CameraPath:
    quaternions, origins, angles, stamps = [], [], [], []
    for i, camera in enumerate(meta["path"]):
        where = f"{file}, camera {i}"
        x, y, z, w = array_of(camera, "R", (4,), where)
        # what it makes of a file: y and z of the camera the other way, scaled and moved, then the axes turned round
        turned = CYCLE.T @ of_quaternion((w, x, y, z), where) @ np.diag([1.0, -1.0, -1.0])
        quaternions.append(quaternion(torch.from_numpy(turned)).numpy())
        origins.append(ngp.to_file(torch.from_numpy(CYCLE.T @ array_of(camera, "T", (3,), where))).numpy())
        angles.append(float(array_of(camera, "fov", (), where)))
        _focal(angles[-1], size[1], where)
        stamps.append(float(array_of(camera, "timestamp", (), where)) if "timestamp" in camera else 0.0)
    order = float(array_of({"spline_order": 3, **meta}, "spline_order", (), str(file)))
    if order not in (0, 1, 2, 3):
        raise SceneError(f"{file}: `spline_order` must be 0, 1, 2 or 3, got {order:g}")
    poses, focals = [], []
    for frame in range(n_frames if angles else 0):
        weights, where = _spline(stamps, frame / n_frames, int(order), bool(meta.get("loop"))), f"{file}, frame {frame}"
        q = np.zeros(4)
        for k in np.flatnonzero(weights):
            q += weights[k] * np.copysign(1.0, q @ quaternions[k]) * quaternions[k]  # of the two it has the nearer one
        place = weights @ np.stack(origins)
        poses.append(np.concatenate((of_quaternion(q.tolist(), where), place[:, None]), axis=1))
        focals.append(_focal(float(weights @ angles), size[1], where))
    return CameraPath(_cameras(poses, focals, size, file))


def _spline(stamps: list[float], time: float, order: int, loop: bool) -> np.ndarray:
    """What share each keyframe [K] has in a moment of instant-ngp's paths: that of a uniform B-spline, whose ends count
    twice.

    Args:
        stamps: when each keyframe is over; equal times if they do not rise from 0.
        time: 0 is the first keyframe, 1 the last, or the first again in a loop.
        order: 0 for the nearest keyframe, 1 for lines, 2 and 3 for splines, which only come near keyframes.
    """
    n = len(stamps)
    if n < 2:
        return np.ones(n)
    if not all(b > a for a, b in zip([0.0, *stamps], stamps, strict=False)):
        stamps = [(k + 1) / n for k in range(n)]
    moment = time * (stamps[-1] if loop else stamps[-2])
    k = min(int(np.searchsorted(stamps, moment, side="right")), n - 1 if loop else n - 2)
    begin = stamps[k - 1] if k else 0.0
    u = (moment - begin) / (stamps[k] - begin)
    shares = (
        (1.0 - (u >= 0.5), float(u >= 0.5)),
        (1 - u, u),
        ((1 - u) ** 2 / 2, 0.5 + u * (1 - u), u * u / 2),
        ((1 - u) ** 3 / 6, (3 * u**3 - 6 * u * u + 4) / 6, (3 * u * (1 + u - u * u) + 1) / 6, u**3 / 6),
    )[order]
    chosen, weights = np.arange(len(shares)) + k - (order > 1), np.zeros(n)
    np.add.at(weights, chosen % n if loop else chosen.clip(0, n - 1), shares)
    return weights


def _focal(degrees: float, height: int, where: str) -> float:
    if not 0 < degrees < 180:
        raise SceneError(f"{where}: `fov` must be within (0, 180) degrees, got {degrees:g}")
    return 0.5 * height / math.tan(0.5 * math.radians(degrees))


def _cameras(poses: list[np.ndarray], focals: list[float], size: tuple[int, int], file: Path) -> Cameras:
    if not poses:
        raise SceneError(f"{file}: the path must have a camera, got none")
    if min(size) < 1:
        raise SceneError(f"{file}: pictures must have pixels, got {size[0]}x{size[1]}")
    rows = [[focal, focal, size[0] / 2, size[1] / 2] for focal in focals]
    sizes = torch.tensor([size]).repeat(len(poses), 1)
    return Cameras(torch.from_numpy(np.stack(poses)), torch.tensor(rows), sizes)
