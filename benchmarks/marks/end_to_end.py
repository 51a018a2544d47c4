"""Real scenes in three formats, from photos to a coloured mesh in the coordinates of the input.

    python benchmarks/marks/end_to_end.py [SCENE ...] [--steps 600] [--browser chromium --viewer model-viewer.min.js]

Every scene is trained as it is (transforms.json), as a COLMAP model and as an LLFF capture, which are written from it
with the same coordinates: the three meshes have to lie at one place, among the cameras. Two frames of a path are
rendered, the mesh goes through `hashgrid export` to GLB, which trimesh reads back and, with --browser and --viewer (the
one file of <model-viewer>), a browser shows. Scenes are those of HASHGRID_DATA; those that are absent are skipped.
Writes results/end_to_end.json; rows of other scenes stay.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.cli import main as hashgrid
from hashgrid.data.mesh import Mesh, is_watertight
from hashgrid.geometry.boxes import Placement
from hashgrid.util.files import atomic_write_json
from hashgrid.util.optional import optional_import

PATH = Path(__file__).parent / "results" / "end_to_end.json"
DATA = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared")) / "data" / "nerf"
SCENES = ("suzanne_540", "snowmiku_plush_504", "trivial")
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's axes of a camera to OpenCV's


def as_colmap(source: Path, folder: Path) -> Path:
    """The scene as a COLMAP text model without points."""
    rotation = optional_import("scipy.spatial.transform").Rotation
    meta = json.loads((source / "transforms.json").read_text())
    model = folder / "sparse" / "0"
    for made in (model, folder / "images"):
        made.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, frame in enumerate(meta["frames"], 1):
        name = Path(frame["file_path"]).name
        shutil.copy(source / frame["file_path"], folder / "images" / name)
        w2c = np.linalg.inv(np.array(frame["transform_matrix"]) @ FLIP)
        pose = [*rotation.from_matrix(w2c[:3, :3]).as_quat()[[3, 0, 1, 2]], *w2c[:3, 3]]
        lines += [f"{number} {' '.join(f'{x:.17g}' for x in pose)} 1 {name}", ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    lens = [meta[key] for key in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")]
    size = f"{int(meta['w'])} {int(meta['h'])}"
    (model / "cameras.txt").write_text(f"1 OPENCV {size} {' '.join(f'{x:.17g}' for x in lens)}\n")
    return folder


def as_llff(source: Path, folder: Path) -> Path:
    """The scene as poses_bounds.npy, which knows no lens: pictures are freed from theirs."""
    meta = json.loads((source / "transforms.json").read_text())
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = sorted(meta["frames"], key=lambda frame: Path(frame["file_path"]).name)
    poses = np.array([frame["transform_matrix"] for frame in frames])
    far = np.linalg.norm(poses[:, :3, 3] - poses[:, :3, 3].mean(0), axis=1).max() * 2
    rows = []
    for frame, pose in zip(frames, poses, strict=True):
        image = np.asarray(Image.open(source / frame["file_path"]))
        name = Path(frame["file_path"]).with_suffix(".png").name
        Image.fromarray(without_lens(image, meta)).save(folder / "images" / name)
        right, up, back, origin = pose[:3].T
        columns = (-up, right, back, origin, [meta["h"], meta["w"], meta["fl_x"]])
        rows.append([*np.stack(columns, axis=1).reshape(-1), 0.1 * far, far])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def without_lens(image: np.ndarray, meta: dict[str, Any]) -> np.ndarray:
    """A picture as a pinhole would have taken it."""
    k1, k2 = meta["k1"], meta["k2"]
    if k1 == k2 == 0:
        return image
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    u, v = (x - meta["cx"]) / meta["fl_x"], (y - meta["cy"]) / meta["fl_y"]
    scale = 1 + k1 * (u * u + v * v) + k2 * (u * u + v * v) ** 2
    place = v * scale * meta["fl_y"] + meta["cy"] - 0.5, u * scale * meta["fl_x"] + meta["cx"] - 0.5
    look_up = optional_import("scipy.ndimage").map_coordinates
    channels = [look_up(channel.astype(float), place, order=1, mode="nearest") for channel in np.moveaxis(image, -1, 0)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


RENDITIONS = {"transforms": lambda source, folder: source, "colmap": as_colmap, "llff": as_llff}


def run(source: Path, rendition: str, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that a user does with one scene in one format."""
    scene = RENDITIONS[rendition](source, out / "scene")
    options = ["--steps", args.steps, "--target-samples", args.samples, "--downscale", args.downscale]
    _call("nerf", scene, "--out", out / "run", "--no-video", "--views", 2, *options)
    _call("render", out / "run", "--path", "between", "--frames", "2", "--size", "96x64", "--no-video")
    frames = sorted((out / "run" / "render_between" / "frames").glob("*.png"))
    looks = ["--views", str(args.views), "--size", "160"]
    _call("export", out / "run", out / "mesh.glb", "--resolution", str(args.resolution), *looks, "--keep", "1")
    facts = json.loads((out / "export.json").read_text())["mesh.glb"]
    _call("export", out / "run", out / "cameras.json")
    written = json.loads((out / "cameras.json").read_text())["frames"]
    given = json.loads((source / "transforms.json").read_text())["frames"]
    read = optional_import("trimesh").load(out / "mesh.glb", force="mesh", process=False)
    test = json.loads((out / "run" / "results.json").read_text())
    row = {
        "scene": source.name, "rendition": rendition, "steps": test["train"]["steps"],
        "samples": test["train"]["samples"], "seconds": test["train"]["seconds"], "downscale": args.downscale,
        "psnr": test["test"]["psnr_mean"], "frames_rendered": len(frames),
        "cameras_off": _cameras_off(given, written), "trimesh_reads_all": len(read.faces) == facts["faces"],
        **{key: facts[key] for key in ("vertices", "faces", "components", "area", "low", "high")},
    }  # fmt: skip
    if args.browser and args.viewer:
        row |= show(out, args.browser, args.viewer)
    return row


def _call(*words: Any) -> None:
    if hashgrid([str(word) for word in words]) != 0:
        raise SystemExit(f"`hashgrid {' '.join(map(str, words))}` failed")


def _cameras_off(given: list[dict], written: list[dict]) -> float:
    """How far exported cameras lie from those given, at most, by the names of their pictures."""
    places = {Path(frame["file_path"]).stem: np.array(frame["transform_matrix"])[:3, 3] for frame in given}
    return max(
        float(np.abs(places[Path(frame["file_path"]).stem] - np.array(frame["transform_matrix"])[:3, 3]).max())
        for frame in written
    )


def show(out: Path, browser: str, viewer: Path) -> dict[str, Any]:
    """A screenshot of the mesh in <model-viewer>, and how many colours there are in it."""
    model = base64.b64encode((out / "mesh.glb").read_bytes()).decode()
    page = f"""<body style="margin:0"><script type="module">{viewer.read_text()}</script><model-viewer id="m"
        style="width:480px;height:360px;background:#fff" src="data:model/gltf-binary;base64,{model}"
        reveal="auto" interaction-prompt="none"></model-viewer></body>"""
    (out / "page.html").write_text(page)
    picture = out / "model_viewer.png"
    gl = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=480,360", *gl]
    options += ["--virtual-time-budget=60000", f"--user-data-dir={out / 'browser'}", f"--screenshot={picture}"]
    subprocess.run([browser, *options, (out / "page.html").as_uri()], check=True, capture_output=True, timeout=600)
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    return {"share_shown": float((pixels != 255).any(1).mean()), "colours_shown": len(np.unique(pixels, axis=0))}


def agreement(rows: list[dict[str, Any]], folder: Path) -> None:
    """How far each mesh lies from that of the same scene in transforms.json: the median distance of its surface, in
    parts of the diagonal of that one."""
    truth: dict[str, Mesh] = {}
    for row in sorted(rows, key=lambda row: row["rendition"] != "transforms"):
        path = folder / row["scene"] / row["rendition"] / "mesh.glb"
        if not path.exists():
            continue
        read = optional_import("trimesh").load(path, force="mesh", process=False)
        faces = np.asarray(read.faces, np.int64)
        mesh = Mesh(np.asarray(read.vertices, np.float64), faces, Placement(), is_watertight(faces), path.name)
        other = truth.setdefault(row["scene"], mesh)
        diagonal = float(np.linalg.norm(np.ptp(other.vertices, axis=0)))
        points = mesh.sample_surface(20_000, np.random.default_rng(0))[0]
        row["median_distance"] = float(np.median(other.nearest(points)[0])) / diagonal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenes", nargs="*", default=SCENES)
    parser.add_argument("--steps", type=int, default=600, help="of training, per run")
    parser.add_argument("--samples", type=int, default=1 << 13, help="per step")
    parser.add_argument("--downscale", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--views", type=int, default=16, help="that meshes are fused from")
    parser.add_argument("--renditions", nargs="+", default=list(RENDITIONS), choices=list(RENDITIONS))
    parser.add_argument("--browser", help="chromium or another that takes its options")
    parser.add_argument("--viewer", type=Path, help="model-viewer.min.js of @google/model-viewer")
    parser.add_argument("--out", type=Path, default=Path("outputs") / "marks" / "end_to_end")
    parser.add_argument("--json", type=Path, default=PATH)
    args = parser.parse_args()
    warn_if_busy()
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    for name in args.scenes:
        if not (DATA / name / "transforms.json").exists():
            print(f"{name}: not in {DATA}, skipped", flush=True)
            continue
        for rendition in args.renditions:
            row = run(DATA / name, rendition, args.out / name / rendition, args)
            rows = [old for old in rows if (old["scene"], old["rendition"]) != (name, rendition)] + [row]
            agreement(rows, args.out)
            facts = {key: getattr(args, key) for key in ("resolution", "views")}
            atomic_write_json(args.json, {**facts, "environment": environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
