"""``hashgrid data``: a scene of photos or of a video, whose poses COLMAP's library finds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hashgrid.data.frames import sharp_frames
from hashgrid.data.reconstruct import Recipe, claim, reconstruct

# All pairs of so many frames cost less than their features. Of a film of one turn, 40 frames: .19 degrees, .3 % off and
# a focal length of 870 instead of .30, .6 % and 860, where 889 is true.
FEW_FRAMES = 60


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="hashgrid data", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("kind", choices=("images", "video"))
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of photos, or a video")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the scene")
    parser.add_argument(
        "--matching", choices=("exhaustive", "sequential"),
        help=f"of pairs; sequential for a video of more than {FEW_FRAMES} frames, else exhaustive",
    )  # fmt: skip
    parser.add_argument(
        "--mapper", choices=("auto", "incremental", "global"), default=Recipe.mapper,
        help="auto: incremental, and global where that places more images and agrees (default)",
    )  # fmt: skip
    parser.add_argument("--camera-model", default=Recipe.camera_model, help=f"default: {Recipe.camera_model}")
    parser.add_argument("--lens-per-image", action="store_true", help="images of several cameras or zooms")
    parser.add_argument(
        "--features", type=int, default=Recipe.max_features, help=f"at most, per image (default: {Recipe.max_features})"
    )
    parser.add_argument(
        "--max-image-size", type=int, default=Recipe.max_image_size,
        help=f"longer side at which they are looked for (default: {Recipe.max_image_size})",
    )  # fmt: skip
    parser.add_argument("--plain-features", action="store_true", help="plain SIFT: faster, needs more overlap")
    parser.add_argument("--guided", action="store_true", help="more matches where there are few")
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
    recipe = Recipe(
        matching=args.matching or "exhaustive", mapper=args.mapper, camera_model=args.camera_model,
        single_camera=not args.lens_per_image, max_image_size=args.max_image_size, max_features=args.features,
        affine=not args.plain_features, guided=args.guided,
    )  # fmt: skip
    recipe.check()
    images = args.source
    if args.kind == "video":
        claim(args.out)
        images = sharp_frames(args.source, args.out / "images", args.frames)
        print(f"{len(images)} sharp frames in {args.out / 'images'}", flush=True)
        if args.matching is None and len(images) > FEW_FRAMES:
            recipe = replace(recipe, matching="sequential")
    report = reconstruct(images, args.out, recipe, lambda text: print(text, flush=True))
    n, left = len(report["registered"]), report["left_out"]
    fit = f"{report['points']} points, {report['reprojection_error']:.2f} pixels off"
    print(f"{n} of {n + len(left)} images have a pose, {fit}")
    for name, why in left.items():
        print(f"  {name}: {why}")
    if any(account["part"] for account in report["images"].values()):
        print("parts that do not fit may do so with `--mapper global`, `--guided`, or more `--features`")
    print(f"scene in {args.out}; train it with `hashgrid nerf {args.out}`", flush=True)
    return 0
