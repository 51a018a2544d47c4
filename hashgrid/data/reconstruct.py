"""Poses of photos and of frames of a video, by COLMAP's library: `pip install 'torch-hashgrid[colmap]'`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hashgrid.data.errors import SceneError
from hashgrid.data.loaders.colmap import MODELS
from hashgrid.data.loaders.poses import from_opencv, images_in, inverse
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.optional import optional_import

PIXELS = 640  # longer side of frames whose sharpness is compared


@dataclass(frozen=True)
class Recipe:
    """How images are matched and placed."""

    matching: Literal["exhaustive", "sequential"] = "exhaustive"  # all pairs, or neighbours in the order of names
    mapper: Literal["incremental", "global"] = "incremental"
    camera_model: str = "OPENCV"  # of `MODELS`; perspective or OPENCV_FISHEYE, which transforms.json has
    single_camera: bool = True  # one lens took all images
    max_image_size: int = 2000  # longer side at which features are looked for

    def check(self) -> None:
        """Raises a ValueError for an option out of range."""
        known = [name for name, (kind, _) in MODELS.items() if kind == "perspective" and name != "FULL_OPENCV"]
        if self.camera_model not in (*known, "OPENCV_FISHEYE"):
            raise ValueError(f"`camera_model` must be of {', '.join(known)}, OPENCV_FISHEYE, got {self.camera_model!r}")
        if self.max_image_size < 64:
            raise ValueError(f"`max_image_size` must be at least 64, got {self.max_image_size}")


def reconstruct(images: Path, out: Path, recipe: Recipe, say: Any = print) -> dict[str, Any]:
    """Finds where the images of a folder were taken from, and writes ``transforms.json``, ``points.ply`` and the model,
    ``sparse/0``, to ``out``.

    Args:
        images: folder of pictures.
        out: folder of the scene; ``images`` may be its folder `images`, else they are copied there.
        recipe: how.
        say: is told what happens.

    Returns:
        ``registered`` and ``left_out``, names with why; ``points``, ``reprojection_error`` in pixels.

    Raises:
        SceneError: there are too few images, or none of them fit together.
        ImportError: pycolmap is not installed.
    """
    recipe.check()
    pycolmap = optional_import("pycolmap")
    found = images_in(images)
    if len(found) < 3:
        raise SceneError(f"`{images}` must hold at least 3 images, got {len(found)}")
    place = out / "images"
    if place.resolve() != images.resolve():
        place.mkdir(parents=True, exist_ok=True)
        for image in found:
            shutil.copy2(image, place / image.name)
    work = out / "colmap"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    database = work / "database.db"
    pycolmap.logging.minloglevel = 2
    mode = pycolmap.CameraMode.SINGLE if recipe.single_camera else pycolmap.CameraMode.PER_IMAGE
    say(f"features of {len(found)} images")
    pycolmap.extract_features(
        database, place, image_names=[image.name for image in found], camera_mode=mode,
        reader_options=pycolmap.ImageReaderOptions(camera_model=recipe.camera_model),
        extraction_options=pycolmap.FeatureExtractionOptions(max_image_size=recipe.max_image_size),
    )  # fmt: skip
    say(f"{recipe.matching} matching")
    match = pycolmap.match_exhaustive if recipe.matching == "exhaustive" else pycolmap.match_sequential
    match(database)
    say(f"{recipe.mapper} mapping")
    run = pycolmap.incremental_mapping if recipe.mapper == "incremental" else pycolmap.global_mapping
    models = run(database, place, work)
    if not models:
        raise SceneError(f"`{images}`: no two images fit together; take more of them, with more overlap and texture")
    best = max(models.values(), key=lambda model: model.num_reg_images())
    sparse = out / "sparse" / "0"
    sparse.mkdir(parents=True, exist_ok=True)
    best.write_binary(sparse)
    best.export_PLY(out / "points.ply")
    registered = write_transforms(best, out)
    left_out = _why_left_out(pycolmap, database, [image.name for image in found], registered)
    report = {
        "registered": registered, "left_out": left_out, "models": len(models), "points": best.num_points3D(),
        "reprojection_error": best.compute_mean_reprojection_error(), "recipe": vars(recipe),
    }  # fmt: skip
    atomic_write_json(out / "reconstruction.json", report)
    return report


def write_transforms(model: Any, out: Path) -> list[str]:
    """Writes the images of a COLMAP model as nerfstudio's ``transforms.json``, in its coordinates; returns names."""
    frames, names = [], []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        if not image.has_pose:
            continue
        camera = image.camera
        values = dict(zip(MODELS[camera.model_name][1], camera.params.tolist(), strict=True))
        if "f" in values:
            values["fx"] = values["fy"] = values.pop("f")
        lens = {"fl_x": values.pop("fx"), "fl_y": values.pop("fy"), **values, "w": camera.width, "h": camera.height}
        pose = from_opencv(inverse(np.asarray(image.cam_from_world().matrix())))
        kind = "OPENCV_FISHEYE" if camera.model_name == "OPENCV_FISHEYE" else "OPENCV"
        frame = {"file_path": f"images/{image.name}", "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
        frames.append({**frame, **lens, "camera_model": kind})
        names.append(image.name)
    atomic_write_json(out / "transforms.json", {"ply_file_path": "points.ply", "frames": frames})
    return names


def _why_left_out(pycolmap: Any, database: Path, names: list[str], registered: list[str]) -> dict[str, str]:
    """Why each image has no pose: too few features, too few matches, or another part of the scene."""
    missing = set(names) - set(registered)
    if not missing:
        return {}
    reasons: dict[str, str] = {}
    with pycolmap.Database.open(database) as opened:
        images = {image.name: image.image_id for image in opened.read_all_images()}
        pairs, counts = opened.read_two_view_geometry_num_inliers()
        best: dict[int, int] = {}
        for pair, count in zip(pairs, counts, strict=True):
            for number in pair if isinstance(pair, tuple) else pycolmap.pair_id_to_image_pair(pair):
                best[number] = max(best.get(number, 0), int(count))
        for name in sorted(missing):
            number = images.get(name)
            features = 0 if number is None else opened.num_keypoints_for_image(number)
            matches = best.get(number or -1, 0)
            if features < 100:
                reasons[name] = f"only {features} features: blurred, dark or without texture"
            elif matches < 30:
                reasons[name] = f"{features} features, at most {matches} matches with another image: too little overlap"
            else:
                reasons[name] = f"{matches} matches, but with images that are in no or another model"
    return reasons


def sharp_frames(video: Path, out: Path, n_frames: int) -> list[Path]:
    """Writes ``n_frames`` frames of a video, or all if there are fewer: of as many parts of equal length the sharpest
    one, by the variance of its Laplacian.

    Raises:
        SceneError: the file is missing, or no video.
    """
    if n_frames < 3:
        raise ValueError(f"`frames` must be at least 3, got {n_frames}")
    scores = [_sharpness(frame) for frame in _frames(video)]
    if not scores:
        raise SceneError(f"`{video}` must hold at least one frame, got none")
    parts = np.array_split(np.arange(len(scores)), min(n_frames, len(scores)))
    chosen = {int(part[np.argmax([scores[i] for i in part])]) for part in parts}
    written = []
    for i, frame in enumerate(_frames(video)):
        if i in chosen:
            file = out / f"frame_{i:05d}.png"
            atomic_write_image(file, optional_import("torch").from_numpy(frame))
            written.append(file)
    return written


def _frames(video: Path) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 of a file, one after the other."""
    if not video.is_file():
        raise SceneError(f"`{video}` must be a video file, it does not exist")
    av = optional_import("av")
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise SceneError(f"`{video}` must hold a video, it holds none")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise SceneError(f"`{video}` cannot be read as a video: {error}") from error


def _sharpness(frame: np.ndarray) -> float:
    step = max(1, max(frame.shape[:2]) // PIXELS)
    grey = frame[::step, ::step].astype(np.float32).mean(axis=2)
    laplacian = grey[1:-1, 2:] + grey[1:-1, :-2] + grey[2:, 1:-1] + grey[:-2, 1:-1] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())
