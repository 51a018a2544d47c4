"""``hashgrid export``: a coloured mesh, points or cameras of a trained scene, in the coordinates of its file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import is_watertight
from hashgrid.data.mesh_files import write_mesh, write_ply
from hashgrid.geometry.cameras import Cameras, lit_pixels
from hashgrid.geometry.lenses import COEFFICIENTS, KINDS
from hashgrid.rendering.extract import n_components
from hashgrid.rendering.fusion import OPAQUE, Shown, fuse
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.render import corners
from hashgrid.tasks.trained import trained_nerf
from hashgrid.util.files import atomic_write_json
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_for

WHAT = ("mesh", "points", "cameras")


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="hashgrid export", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of `hashgrid nerf`, or its checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="mesh.ply, .obj or .glb; points.ply; cameras.json")
    parser.add_argument("--what", choices=WHAT, help="by the name of OUT if not given")
    parser.add_argument("--resolution", type=int, default=192, help="voxels along the longest side (default: 192)")
    parser.add_argument("--views", type=int, default=100, help="training views to look from, at most (default: 100)")
    parser.add_argument("--size", type=int, default=400, help="longer side of their pictures, at most (default: 400)")
    parser.add_argument("--points", type=int, default=1_000_000, help="points of a cloud, at most (default: 1000000)")
    parser.add_argument("--crop", type=float, nargs=6, metavar=("X0", "Y0", "Z0", "X1", "Y1", "Z1"), help="box to keep")
    parser.add_argument("--device", default="auto")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        ValueError: the run or an option is unusable.
    """
    args = make_parser().parse_args(argv)
    what = args.what or next((name for name in WHAT if args.out.stem.startswith(name)), "mesh")
    if min(args.views, args.size, args.points) < 1:
        raise ValueError(
            f"`--views`, `--size` and `--points` must be positive, got {args.views}, {args.size}, {args.points}"
        )
    task, _ = trained_nerf(args.run, args.device)
    crop = None if args.crop is None else corners(args.crop)
    if what == "cameras":
        write_cameras(task, args.out)
        return 0
    with threads_for(task.config.backend):
        cameras, show = looks(task, args.views, args.size)
        if what == "points":
            facts = write_points(task, args.out, cameras, show, args.points, crop)
        else:
            facts = write_fused(task, args.out, cameras, show, args.resolution, crop)
    atomic_write_json(args.out.with_suffix(".json"), facts)
    print(f"{args.out}: {', '.join(f'{value} {name}' for name, value in facts.items())}", flush=True)
    return 0


def looks(task: Nerf, n_views: int, size: int) -> tuple[Cameras, Any]:
    """Training views, evenly spread and reduced, and what renders one of them, with a bar."""
    train = task.scene.train
    n = min(n_views, len(train))
    cameras = train.select([i * len(train) // n for i in range(n)])
    cameras = cameras.scaled(min(1.0, size / float(cameras.sizes.max()))) if len(cameras) else cameras
    there, background = cameras.to(task.device), torch.zeros(3, device=task.device)
    bar = optional_import("tqdm").tqdm(total=n, desc="views", unit="view")

    def show(view: int) -> Shown:
        bar.update()
        color, opacity, depth = render_image(task.model, task.sampler, there, view, background)
        return color / opacity.clamp_min(1e-3)[..., None], opacity, depth  # the surface, without what is behind it

    return cameras, show


def write_fused(
    task: Nerf, out: Path, cameras: Cameras, show: Any, resolution: int, crop: Tensor | None
) -> dict[str, Any]:
    """Writes a coloured mesh; returns its statistics."""
    placement = task.scene.placement
    box = task.scene.aabb if crop is None else torch.cat([placement.from_file(part) for part in crop.split(3)])
    fused = fuse(show, cameras, box, resolution)
    vertices = placement.to_file(torch.from_numpy(fused.vertices)).numpy()
    if not len(fused.faces):
        raise ValueError(f"there is no surface in {box.tolist()}: train longer, or choose another `--crop`")
    write_mesh(out, vertices, fused.faces, None, fused.colors)
    return {
        "vertices": len(vertices), "faces": len(fused.faces), "components": n_components(fused.faces),
        "watertight": is_watertight(fused.faces), "low": vertices.min(0).tolist(), "high": vertices.max(0).tolist(),
    }  # fmt: skip


def write_points(task: Nerf, out: Path, cameras: Cameras, show: Any, most: int, crop: Tensor | None) -> dict[str, Any]:
    """Writes points where pixels end, with their colours; returns how many."""
    places, colors = [], []
    for view in range(len(cameras)):
        color, opacity, depth = (x.cpu() for x in show(view))
        rays = cameras.view_rays(view)
        hit, lit = (opacity > OPAQUE).view(-1), lit_pixels(cameras, view)
        hit = hit if lit is None else hit & lit.view(-1)  # around a fisheye's circle there is nothing
        ends = rays.origins + (depth / opacity.clamp_min(1e-6)).view(-1, 1) * rays.directions
        places.append(ends[hit])
        colors.append(color.view(-1, 3)[hit])
    points, shades = task.scene.placement.to_file(torch.cat(places)).numpy(), torch.cat(colors).numpy()
    if crop is not None:
        inside = ((points >= crop[:3].numpy()) & (points <= crop[3:].numpy())).all(axis=1)
        points, shades = points[inside], shades[inside]
    if len(points) > most:
        chosen = np.random.default_rng(0).choice(len(points), most, replace=False)
        points, shades = points[chosen], shades[chosen]
    if not len(points):
        raise ValueError("no pixel ends on a surface: train longer, or choose another `--crop`")
    write_ply(out, points, np.zeros((0, 3), np.int64), None, shades)
    return {"points": len(points)}


def write_cameras(task: Nerf, out: Path) -> None:
    """Writes all views as a `transforms.json` of nerfstudio's, in the coordinates of the scene's file."""
    frames = []
    for views in (task.scene.train, task.scene.test):
        poses = task.scene.placement.to_file(views.origins)
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
    atomic_write_json(out, {**meta, "frames": frames})
    print(f"{out}: {len(frames)} cameras", flush=True)
