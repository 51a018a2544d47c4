"""``hashgrid data``: a scene of photos or of a video, whose poses COLMAP's library finds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hashgrid.data.reconstruct import Recipe, reconstruct, sharp_frames


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="hashgrid data", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("kind", choices=("images", "video"))
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of photos, or a video")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the scene")
    parser.add_argument(
        "--matching", choices=("exhaustive", "sequential"), help="sequential for a video, else exhaustive"
    )
    parser.add_argument("--mapper", choices=("incremental", "global"), default=Recipe.mapper)
    parser.add_argument("--camera-model", default=Recipe.camera_model, help=f"default: {Recipe.camera_model}")
    parser.add_argument("--lens-per-image", action="store_true", help="images of several cameras or zooms")
    parser.add_argument(
        "--frames", type=int, default=120, help="of a video: the sharpest of so many parts (default: 120)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        ValueError: the images or an option are unusable.
        ImportError: pycolmap is not installed.
    """
    args = make_parser().parse_args(argv)
    matching: Any = args.matching or ("sequential" if args.kind == "video" else "exhaustive")
    recipe = Recipe(matching, args.mapper, args.camera_model, not args.lens_per_image)
    recipe.check()
    images = args.source
    if args.kind == "video":
        images = args.out / "images"
        chosen = sharp_frames(args.source, images, args.frames)
        print(f"{len(chosen)} sharp frames in {images}", flush=True)
    report = reconstruct(images, args.out, recipe, lambda text: print(text, flush=True))
    n, left = len(report["registered"]), report["left_out"]
    fit = f"{report['points']} points, {report['reprojection_error']:.2f} pixels off"
    print(f"{n} of {n + len(left)} images have a pose, {fit}")
    for name, why in left.items():
        print(f"  {name}: {why}")
    print(f"scene in {args.out}; train it with `hashgrid nerf {args.out}`", flush=True)
    return 0
