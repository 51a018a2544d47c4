"""``hashgrid render``: pictures and a video of a trained scene along a path of cameras."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hashgrid.data.camera_paths import CameraPath, between, read_camera_path, spiral
from hashgrid.data.loaders.poses import read_json
from hashgrid.data.loaders.transforms import ngp_placement
from hashgrid.geometry.cameras import Cameras, orbit
from hashgrid.rendering.crop import CroppedSampler
from hashgrid.rendering.label_scores import NO_LABELS, label_colors, shown_labels
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.trained import times_of, trained_nerf
from hashgrid.util.files import atomic_write_image, atomic_write_json
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import write_depth, write_video
from hashgrid.util.threads import threads_for

WAYS = ("orbit", "spiral", "between", "train", "test")
SETTINGS = "path.json"


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="hashgrid render", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run of `hashgrid nerf`, its checkpoint, or blocks.json"
    )
    parser.add_argument("--path", default="orbit", help=f"{', '.join(WAYS)}, or a file of nerfstudio or instant-ngp")
    parser.add_argument(
        "--frames", type=int, default=120, help="of a path that is made, or has keyframes (default: 120)"
    )
    parser.add_argument("--size", type=_size, help="width and height of pictures, as 1280x720")
    time_help = "from when to when what moves is seen, evenly over the frames; one number is a moment for all of them"
    parser.add_argument("--time", type=float, nargs="+", metavar="T", help=time_help)
    parser.add_argument("--fps", type=float, help="frames per second; those of the file, or 30, if none")
    letters = ("X0", "Y0", "Z0", "X1", "Y1", "Z1")
    crop_help = "box in the scene's coordinates, outside of which nothing is shown"
    parser.add_argument("--crop", type=float, nargs=6, metavar=letters, help=crop_help)
    parser.add_argument("--background", help="white, black, grey, #rrggbb or R,G,B; that of the run if none")
    parser.add_argument("--depth", action="store_true", help="write depth/NNNNN.png, too")
    parser.add_argument("--semantic", action="store_true", help="write labels/NNNNN.png, too, of a run with --semantic")
    parser.add_argument("--no-video", action="store_true", help="pictures only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder; RUN/render_PATH if none. Frames that are there are kept")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        ValueError: the checkpoint, the path or an option is unusable.
    """
    args = make_parser().parse_args(argv)
    extras = [kind for kind, is_asked in (("depth", args.depth), ("labels", args.semantic)) if is_asked]
    if args.frames < 1 or (args.fps is not None and not args.fps > 0):
        raise ValueError(f"`--frames` and `--fps` must be positive, got {args.frames} and {args.fps}")
    task, folder = trained_nerf(args.run, args.device)
    with threads_for(task.config.backend):
        out = args.out or folder / f"render_{Path(args.path).stem}"
        path = make_path(task, args.path, args.frames, args.size)
        if args.time is not None:
            path.cameras.times = times_of(task, args.time, len(path.cameras))
        crop = path.crop if args.crop is None else corners(args.crop)
        name = args.background or task.config.background
        background = task.scene.background(name) if args.background or path.background is None else None
        background = torch.tensor(path.background) if background is None else background
        write_path(task, path, crop, background, out, extras, None if args.no_video else args.fps or path.fps or 30.0)
    print(f"results in {out}", flush=True)
    return 0


def make_path(task: Nerf, name: str, n_frames: int, size: tuple[int, int] | None) -> CameraPath:
    """The path of a name or a file, in the coordinates of the scene's file."""
    scene, placement = task.scene, task.scene.placement
    views = scene.test if name == "test" else scene.train
    if name not in WAYS:
        return read_camera_path(Path(name), size, n_frames, ngp_placement(scene.path))
    ways: dict[str, Callable[[], Cameras]] = {
        "orbit": lambda: orbit(views, scene.up, n_frames, max(size) if size else 400),
        "spiral": lambda: spiral(views, n_frames, size=size),
        "between": lambda: between(views, n_frames, size),
    }
    cameras = ways[name]() if name in ways else views.select(range(len(views)))
    if size is not None and cameras.size(0) != size:
        if name in ("train", "test"):
            raise ValueError(f"`--size` must not be given with `--path {name}`: views have their own")
        focal = float(cameras.intrinsics[0, 1]) * size[1] / cameras.size(0)[1]
        rows = torch.tensor([focal, focal, size[0] / 2, size[1] / 2]).repeat(len(cameras), 1)
        cameras = Cameras(cameras.c2w, rows, torch.tensor([size]).repeat(len(cameras), 1), times=cameras.times)
    origins = placement.to_file(cameras.origins)
    cameras.c2w = torch.cat((cameras.c2w[:, :, :3].double(), origins[..., None]), dim=-1)
    return CameraPath(cameras)


def write_path(
    task: Nerf, path: CameraPath, crop: Tensor | None, background: Tensor, out: Path, extras: Sequence[str],
    fps: float | None,
) -> None:  # fmt: skip
    """Writes ``frames/NNNNN.png``, ``depth/NNNNN.png`` and ``labels/NNNNN.png`` where ``extras`` name them, and with
    ``fps`` ``video.mp4``. Frames that are there are kept, where the path and what is shown of it are the same.

    Raises:
        ValueError: there are no labels, sides or sizes are none of a video, or the folder is that of another path.
    """
    cameras, placement = path.cameras, task.scene.placement
    if "labels" in extras and task.model.labeler is None:
        raise ValueError(NO_LABELS)
    if fps is not None and bool((cameras.sizes % 2).any()):
        raise ValueError(f"pictures of a video must have even sides, got {cameras.sizes[0].tolist()}; or `--no-video`")
    if fps is not None and len(sizes := cameras.sizes.unique(dim=0).tolist()) > 1:
        raise ValueError(f"pictures of a video must have one size, got {sizes[0]} and {sizes[1]}; or `--no-video`")
    settings = {
        "c2w": cameras.c2w.tolist(), "intrinsics": cameras.intrinsics.tolist(), "sizes": cameras.sizes.tolist(),
        "distortion": cameras.distortion.tolist(), "lens": cameras.lens.tolist(), "model": fingerprint(task.model),
        "times": None if cameras.times is None else cameras.times.tolist(),
        "crop": None if crop is None else crop.tolist(), "background": background.tolist(),
    }  # fmt: skip
    if (out / SETTINGS).is_file() and read_json(out / SETTINGS) != settings:
        raise ValueError(f"`--out` must be empty or of the same path and training, {out} has frames of another one")
    atomic_write_json(out / SETTINGS, settings)
    ours = Cameras(
        placement.poses_from_file(cameras.c2w).float(), cameras.intrinsics, cameras.sizes, cameras.distortion,
        cameras.times, cameras.lens,
    ).to(task.device)  # fmt: skip
    sampler: Sampler = task.sampler
    if crop is not None:
        box = torch.cat([placement.from_file(corner) for corner in crop.double().split(3)])
        sampler = CroppedSampler(sampler, box).to(task.device)
    files = {kind: [out / kind / f"{view:05d}.png" for view in range(len(ours))] for kind in ("frames", *extras)}
    missing = [view for view in range(len(ours)) if not all(of_kind[view].is_file() for of_kind in files.values())]
    for view in optional_import("tqdm").tqdm(missing, desc="frames", unit="frame"):
        shown = render_image(task.model, sampler, ours, view, background.to(task.device))
        color, opacity, distance = (x.cpu() for x in shown)
        if "depth" in files:
            write_depth(files["depth"][view], distance / opacity.clamp_min(1e-6), opacity)
        if "labels" in files:
            atomic_write_image(files["labels"][view], label_colors(shown_labels(task.model, sampler, ours, view)))
        atomic_write_image(files["frames"][view], color)
    if fps is not None:
        iio = optional_import("imageio.v3")
        frames = (torch.from_numpy(iio.imread(picture))[..., :3] for picture in files["frames"])
        write_video(out / "video.mp4", frames, fps=fps, n_frames=len(ours))


def fingerprint(model: torch.nn.Module) -> str:
    """A digest of all that a model has learned."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, got {text!r}")
    return int(width), int(height)


def corners(numbers: Sequence[float]) -> Tensor:
    """The box [6] of `--crop`."""
    box = torch.tensor(numbers, dtype=torch.float64)
    if not bool((box[3:] > box[:3]).all()):
        raise ValueError(f"`--crop` must be two corners, the lower one first, got {list(numbers)}")
    return box
