"""What `hashgrid data` makes of the procedural scene, and of photos, whose poses are forgotten.

    python benchmarks/marks/reconstruct.py [images | video | FOLDER ...] [--steps 400]

`images` are views as of `hashgrid scene` at 640x640, before white; `video` is a film of a turn around it, every
third frame blurred as by a shaking hand; a FOLDER has photos and a transforms.json, of which the first 40 count. Found
poses are compared with the true ones after the similarity that fits them best. Then `hashgrid nerf --downscale 2`
trains on either, as many steps, with the same images held out.
Writes results/reconstruct.json; cases that are not named keep their rows.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.procedural import CAMERA_ANGLE_X, CAMERA_RADIUS, orbit_cameras, render
from hashgrid.geometry.cameras import Cameras, alike, focal_length, look_at
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.pictures import blend, write_video

PATH = Path(__file__).parent / "results" / "reconstruct.json"
SIZE, VIEWS, FRAMES, CHOSEN, PHOTOS = 640, 48, 99, 40, 40


def orbit_path() -> Cameras:
    """One turn, in a wave."""
    turn = torch.arange(FRAMES).double() / FRAMES * 2 * math.pi
    height = (0.55 + 0.25 * torch.sin(2 * turn)).asin()
    place = torch.stack((height.cos() * turn.cos(), height.cos() * turn.sin(), height.sin()), dim=1) * CAMERA_RADIUS
    c2w = look_at(place, torch.tensor([0.0, 0.0, -0.3]).double(), torch.tensor([0.0, 0.0, 1.0]))
    return alike(c2w, focal_length(CAMERA_ANGLE_X, SIZE), (SIZE, SIZE))


def film(path: Cameras) -> Iterator[Tensor]:
    for view in range(FRAMES):
        image = blend(render(path, view), torch.ones(3))
        if view % 3 == 1:
            image = torch.nn.functional.avg_pool2d(image.movedim(2, 0)[None], 7, 1, 3, count_include_pad=False)[0]
            image = image.movedim(0, 2)
        yield image


def named(path: Cameras, name: str) -> dict[str, list[list[float]]]:
    """Poses by name of the image."""
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    return {name.format(i): torch.cat((pose, last)).tolist() for i, pose in enumerate(path.c2w)}


def prepare(case: str, work: Path) -> tuple[list[str], dict[str, list[list[float]]], dict[str, Any]]:
    """Arguments of `hashgrid data`, poses by name of the image, and the lens that is true."""
    if case == "images":
        source, path = work / "views", orbit_cameras(VIEWS, SIZE, 0)
        poses = named(path, "r_{:03d}.png")
        for view, name in enumerate(poses):
            if not (source / name).is_file():
                atomic_write_image(source / name, blend(render(path, view), torch.ones(3)))
        return ["images", str(source)], poses, {"camera_angle_x": CAMERA_ANGLE_X}
    if case == "video":
        video, path = work / "film.mp4", orbit_path()
        if not video.is_file():
            write_video(video, film(path), fps=12, n_frames=FRAMES)
        poses = named(path, "frame_{:05d}.png")
        return ["video", str(video), "--frames", str(CHOSEN)], poses, {"camera_angle_x": CAMERA_ANGLE_X}
    meta = json.loads((Path(case) / "transforms.json").read_text())
    frames = sorted(meta["frames"], key=lambda frame: frame["file_path"])[:PHOTOS]
    folder = work / f"{Path(case).name}_photos"
    folder.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        shutil.copy2(Path(case) / frame["file_path"], folder)
    poses = {Path(frame["file_path"]).name: frame["transform_matrix"] for frame in frames}
    return ["images", str(folder)], poses, {key: value for key, value in meta.items() if key != "frames"}


def aligned(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees [V], and distances [V] over the mean distance of true cameras from their middle, of poses
    [V, 3, 4] after the similarity (Umeyama 1991) that fits places best."""
    a, b = found[:, :, 3] - found[:, :, 3].mean(0), true[:, :, 3] - true[:, :, 3].mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.linalg.det(u @ vt)])
    turn, scale = u @ np.diag(sign) @ vt, (s * sign).sum() / (a**2).sum()
    off = np.linalg.norm(scale * a @ turn.T - b, axis=1) / np.linalg.norm(b, axis=1).mean()
    between = turn @ found[:, :, :3] @ true[:, :, :3].transpose(0, 2, 1)
    return np.degrees(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1))), off


def train(scenes: dict[str, Path], steps: int) -> dict[str, float]:
    """PSNR of the held-out views, of runs side by side."""
    command = [sys.executable, "-m", "hashgrid", "nerf", "--downscale", "2", "--steps", str(steps), "--no-video"]
    outs = {name: scene.with_name(f"{scene.name}_nerf") for name, scene in scenes.items()}
    runs = [subprocess.Popen([*command, str(scene), "--out", str(outs[name])]) for name, scene in scenes.items()]
    if any([run.wait() for run in runs]):
        raise RuntimeError("`hashgrid nerf` failed")
    return {name: json.loads((out / "results.json").read_text())["test"]["psnr_mean"] for name, out in outs.items()}


def measure(case: str, work: Path, steps: int) -> dict[str, Any]:
    words, poses, lens = prepare(case, work)
    found, known = work / f"{Path(case).name}_found", work / f"{Path(case).name}_true"
    subprocess.run([sys.executable, "-m", "hashgrid", "data", words[0], words[1], str(found), *words[2:]], check=True)
    report = json.loads((found / "reconstruction.json").read_text())
    frames = json.loads((found / "transforms.json").read_text())["frames"]
    names = [Path(frame["file_path"]).name for frame in frames]
    pose = np.array([frame["transform_matrix"] for frame in frames])[:, :3]
    degrees, off = aligned(pose, np.array([poses[name] for name in names])[:, :3])
    row = {
        "case": Path(case).name,
        "images": len(report["images"]),
        "registered": len(names),
        "models": 1 + len(report["other_models"]),
        "features_median": float(np.median([account["features"] for account in report["images"].values()])),
        "degrees_median": float(np.median(degrees)),
        "degrees_max": float(degrees.max()),
        "place_median": float(np.median(off)),
        "place_max": float(off.max()),
        "reprojection_error": report["reprojection_error"],
        "focal": frames[0]["fl_x"],
    }
    if case == "video":
        row["blurred"] = sum(int(name[6:11]) % 3 == 1 for name in names)
    if steps:
        true = [
            {"file_path": str((found / "images" / name).resolve()), "transform_matrix": poses[name]} for name in names
        ]
        atomic_write_json(known / "transforms.json", {**lens, "frames": true})
        row["nerf"] = {"steps": steps, "psnr": train({"found": found, "true": known}, steps)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", default=["images", "video"])
    parser.add_argument("--steps", type=int, default=400, help="of training; 0 for none")
    parser.add_argument("--work", type=Path, default=Path("outputs") / "reconstruct", help="folder of scenes and runs")
    args = parser.parse_args()
    warn_if_busy()
    for case in args.cases:
        row = measure(case, args.work, args.steps)
        print(json.dumps(row, indent=2), flush=True)
        rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
        rows = [old for old in rows if old["case"] != row["case"]] + [row]
        atomic_write_json(PATH, {"environment": environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
