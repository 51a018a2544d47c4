"""IDR's and NeuS's form of DTU and BlendedMVS (Yariv et al. 2020; Wang et al. 2021): `image`, `mask`, `cameras.npz`.

`world_mat_i` is the whole projection of a view, `scale_mat_i` places the unit sphere around the object in the world.
Poses and the box are in the world. Masks become the alpha of images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.images import Photo
from hashgrid.data.loaders.boxes import ball_box
from hashgrid.data.loaders.poses import by_number, finish, from_opencv, images_in, lens_of, read_arrays, rigid
from hashgrid.data.scene import Scene, SceneOptions, hold_out

FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with `image`, and `cameras.npz` or `cameras_sphere.npz`."""
    return (path / "image").is_dir() and any((path / name).is_file() for name in FILES)


def load(path: Path, options: SceneOptions) -> Scene:
    """Loads all images, every so many-th of which is tested."""
    file = next(path / name for name in FILES if (path / name).is_file())
    images = sorted(images_in(path / "image"), key=by_number)
    masks = sorted(images_in(path / "mask"), key=by_number)
    cameras = read_arrays(file)
    if not isinstance(cameras, dict):
        raise SceneError(f"{file}: must be an archive of arrays, got one array; save it with numpy.savez")
    if "camera_mat_0" in cameras:
        raise SceneError(f"{file}: has `camera_mat_0`, as DVR's files, whose `world_mat` is no projection; convert it")
    n = sum(key.startswith("world_mat_") and "inv" not in key for key in cameras)
    if not images or n != len(images) or (masks and len(masks) != len(images)):
        got = f"{len(images)}, {len(masks)} and {n}"
        kinds = f"{path / 'image'}, {path / 'mask'} (or none) and `world_mat_i` of {file.name}"
        raise SceneError(f"{kinds} must be as many, got {got}")
    photos = [_photo(image, masks[i] if masks else None, cameras, i, file) for i, image in enumerate(images)]
    scale = _matrix(cameras, "scale_mat_0", file)
    box = ball_box(scale[:3, 3], float(np.linalg.norm(scale[:3, 0])))
    return finish(hold_out(photos, options.holdout), box, path, options, one_size=True)


def _matrix(cameras: dict[str, np.ndarray], name: str, file: Path) -> np.ndarray:
    matrix = cameras.get(name)
    if matrix is None or matrix.shape not in ((4, 4), (3, 4)) or matrix.dtype.kind not in "fiu":
        got = "nothing" if matrix is None else f"{matrix.dtype} {list(matrix.shape)}"
        raise SceneError(f"{file}: `{name}` must be numbers of shape [4, 4], got {got}")
    if not np.isfinite(matrix).all():
        raise SceneError(f"{file}: `{name}` must be finite, got {matrix.tolist()}")
    return matrix.astype(np.float64)


def _photo(image: Path, mask: Path | None, cameras: dict[str, np.ndarray], i: int, file: Path) -> Photo:
    where = f"{file}, `world_mat_{i}` ({image.name})"
    intrinsics, c2w = decomposed(_matrix(cameras, f"world_mat_{i}", file)[:3], where)
    fx, fy, cx, cy = lens_of(intrinsics, where)
    # their pixels are numbered at their middles
    return Photo(image.name, image, from_opencv(c2w), lambda *_: [fx, fy, cx + 0.5, cy + 0.5], where, alpha=mask)


def decomposed(projection: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The upper triangular matrix [3, 3] of a lens, with 1 in its corner, and the pose camera to world [3, 4] of a
    projection [3, 4], up to its scale."""
    projection = projection / (np.abs(projection[:, :3]).max() or 1.0)
    left = projection[:, :3]
    if abs(np.linalg.det(left)) < 1e-12:
        raise SceneError(f"{where}: must be a projection of rank 3, got {left.tolist()}")
    left, projection = (x * np.sign(np.linalg.det(left)) for x in (left, projection))  # in front is positive
    q, r = np.linalg.qr(np.flipud(left).T)  # RQ by QR of what is turned over
    upper, rotation = np.flipud(np.fliplr(r.T)), np.flipud(q.T)
    signs = np.sign(np.diag(upper))
    upper, rotation = upper * signs, signs[:, None] * rotation
    origin = -np.linalg.solve(left, projection[:, 3])
    return upper / upper[2, 2], rigid(np.concatenate((rotation.T, origin[:, None]), axis=1), where)
