"""Which keys of `transforms.json` are read, which change no result, and which would: none is dropped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hashgrid.data.errors import some, warn_of_scene

READ = {
    *("frames", "file_path", "transform_matrix", "time", "mask_path", "mask_filename", "ply_file_path"),
    *("depth_file_path", "depth_unit_scale_factor", "fisheye_crop_radius"),
    *("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "p1", "p2", "distortion_params", "camera_model"),
    *("camera_angle_x", "camera_angle_y", "x_fov", "y_fov", "is_fisheye", "latlong", "equirectangular"),
    *("orthographic", "rolling_shutter", "aabb", "aabb_scale", "scale", "offset"),
    *("train_filenames", "test_filenames", "val_filenames", *(f"ftheta_p{i}" for i in range(5))),
}
# Where the picture of a frame comes from, how it was found, what is done to results alone, or to coordinates that are
# those of the file here.
HARMLESS = {
    *(
        "sharpness",
        "colmap_im_id",
        "rotation",
        "n_frames",
        "up",
        "render_aabb",
        "name",
        "id",
        "timestamp",
        "blur_score",
    ),
    *("applied_transform", "applied_scale", "orientation_override", "auto_scale_poses_override", "centers"),
    *("avglen", "totw", "width", "height", "depth_scale", "mesh_path", "model", "camera_label", "shot_id"),
}
UNSUPPORTED = {
    "sharpness_discard_threshold": "leaves out blurred images",
    "from_na": "turns the axes of poses",
    "from_mitsuba": "turns the axes of poses",
    "transform_matrix_start": "moves the camera during an exposure",
    "transform_matrix_end": "moves the camera during an exposure",
    "white_transparent": "makes white pixels transparent",
    "black_transparent": "makes black pixels transparent",
    "fix_premult": "divides colours by alpha",
    "envmap": "is a picture of the surroundings",
    "n_extra_learnable_dims": "gives every image a code",
    "driver_parameters": "gives every image numbers that steer it",
    "importance_sampling": "draws pixels by their error",
    "sharpen": "sharpens images",
    "enable_depth_loading": "supervises depth",
    "integer_depth_scale": "supervises depth",
    "depth_path": "supervises depth",
    "enable_ray_loading": "reads rays instead of lenses",
    "normal_mts_args": "is of Mitsuba",
    "semantic_file_path": "labels pixels",
    "semantics_path": "labels pixels",
    "exposure": "is of each image",
    "light": "changes from image to image",
}


def name_unread(meta: dict[str, Any], file: Path) -> None:
    """Warns once of keys that would change a result and are not read, and of keys that nobody knows."""
    frames = [entry for entry in meta["frames"] if isinstance(entry, dict)]
    present = {
        key for holder in (meta, *frames) for key, value in holder.items() if value not in (None, False, 0, [], {})
    }
    if isinstance(meta.get("n_frames"), int) and 0 < meta["n_frames"] < len(meta["frames"]):
        warn_of_scene(
            f"{file}: not read: `n_frames`, which leaves out {len(meta['frames']) - meta['n_frames']} of the"
            f" {len(meta['frames'])} frames; all of them are used"
        )
    unsupported = [f"`{key}`, which {UNSUPPORTED[key]}" for key in sorted(present & UNSUPPORTED.keys())]
    unknown = sorted(present - READ - HARMLESS - UNSUPPORTED.keys())
    if unsupported:
        warn_of_scene(f"{file}: not read: {some(unsupported)}; the result is as if the file did not have it")
    if unknown:
        warn_of_scene(f"{file}: unknown keys, not read: {some([f'`{key}`' for key in unknown])}")
