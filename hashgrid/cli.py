"""The ``hashgrid`` command."""

from __future__ import annotations

import argparse
import gc
import sys
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path

from hashgrid.bench import SUITES
from hashgrid.util.choices import BACKENDS
from hashgrid.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors a user can mend are one line on stderr."""
    args = _parser().parse_args(argv)
    if argv is None:  # a process of our own: what was imported stays, the collector need not look at it in every step
        gc.freeze()
    try:
        with warnings.catch_warnings():
            _show_warnings_in_one_line()
            return args.run(args)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        if args.traceback:
            raise
        print(f"hashgrid: error: {error}", file=sys.stderr)
        return 1


def _show_warnings_in_one_line() -> None:
    """Makes the library's own warnings one line on stderr, without the line of source."""
    show = warnings.showwarning

    def show_warning(message, category, *args, **kwargs) -> None:
        if category.__module__.partition(".")[0] == "hashgrid":
            print(f"hashgrid: warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            show(message, category, *args, **kwargs)

    warnings.showwarning = show_warning


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hashgrid", description="Neural graphics on hash grids.")
    parser.add_argument("--version", action="version", version=f"hashgrid {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="versions, compiler, CPU capability, CUDA")
    info.set_defaults(run=_info)

    nerf = commands.add_parser(
        "nerf",
        help="train a NeRF from a folder with a transforms.json",
        description="Trains a NeRF and renders its test views. Without SCENE it renders a procedural scene first.",
    )
    nerf.add_argument("scene", nargs="?", type=Path, metavar="SCENE", help="folder that holds transforms*.json")
    nerf.add_argument("--out", type=Path, help="where results go (default: outputs/nerf/<scene>)")
    _add_budget(nerf, "training steps", "training time in seconds, everything but the final evaluation")
    nerf.add_argument(
        "--background",
        help="behind transparent test images: white, black, grey, #rrggbb or R,G,B in 0..1"
        " (default: white, or the plain background that opaque images had)",
    )
    nerf.add_argument("--downscale", type=int, metavar="N", help="reduce images by this factor (default: 1)")
    nerf.add_argument(
        "--holdout", type=int, metavar="N", help="test every Nth view of a scene without a split (default: 8; 0: none)"
    )
    nerf.add_argument("--test-split", choices=("test", "val"), help="which of the scene's splits is tested")
    nerf.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")
    nerf.add_argument("--eval", type=Path, metavar="CHECKPOINT", help="only evaluate a checkpoint")
    nerf.add_argument("--views", type=int, help="evaluate only this many test views, evenly spread; 0 for none")
    nerf.add_argument("--no-video", action="store_true", help="no turntable.mp4")
    _add_allow_huge(nerf)
    nerf.add_argument("--profile", action="store_true", help="where the time of a step goes: a table and a trace")
    nerf.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of hashgrid.nerf.NerfConfig"
    )
    nerf.set_defaults(run=_nerf)

    image = commands.add_parser("image", help="fit a photo", description="Fits colour = f(x, y) to a photo.")
    image.add_argument("photo", type=Path, metavar="PHOTO")
    image.add_argument("--out", type=Path, help="where results go (default: outputs/image/<photo>)")
    _add_budget(image, "training steps (default: 2000)", "training time in seconds")
    _add_allow_huge(image)
    image.set_defaults(run=_image)

    sdf = commands.add_parser(
        "sdf",
        help="fit a signed distance field to a mesh or to points",
        description="From a mesh or a point cloud to a field, and from the field to a mesh and pictures. Without MESH"
        " and --points it fits a generated shape.",
    )
    sdf.add_argument("mesh", nargs="?", type=Path, metavar="MESH", help="OBJ, PLY, STL, OFF or GLB")
    sdf.add_argument("--points", type=Path, metavar="FILE", help="points, best with normals: PLY, XYZ, TXT or NPZ")
    sdf.add_argument("--truth", type=Path, metavar="MESH", help="mesh to compare with, in the coordinates of the input")
    sdf.add_argument("--eval", type=Path, metavar="CHECKPOINT", help="only extract, measure and render a stored field")
    sdf.add_argument("--out", type=Path, help="where results go (default: outputs/sdf/<mesh>)")
    _add_budget(sdf, "training steps", "training time in seconds (default: 30)")
    sdf.add_argument("--resolution", type=int, metavar="N", help="cells per side of the extracted mesh (default: 256)")
    sdf.add_argument("--no-video", action="store_true", help="no turntable.mp4")
    sdf.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of hashgrid.sdf.SdfConfig"
    )
    sdf.set_defaults(run=_sdf)

    scene = commands.add_parser("scene", help="render the procedural scene to a transforms.json folder")
    scene.add_argument("out", type=Path, metavar="OUT")
    scene.add_argument("--resolution", type=int, default=200, help="image width and height (default: 200)")
    scene.add_argument("--train-views", type=int, default=60)
    scene.add_argument("--test-views", type=int, default=20)
    scene.add_argument("--seed", type=int, default=0)
    scene.set_defaults(run=_scene)

    bench = commands.add_parser("bench", help="validate and time the kernels against plain PyTorch")
    bench.add_argument("suite", nargs="*", help=f"{', '.join(SUITES)} (default: all)")
    bench.add_argument("--quick", action="store_true", help="a minute: smaller sizes, no torch.compile, fewer suites")
    bench.add_argument("--seconds", type=float, help="time for the turns of each case (default: 15)")
    bench.add_argument("--threads", type=int, help="torch threads")
    bench.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    bench.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    bench.add_argument("--no-plot", action="store_true", help="no pictures, only JSON")
    bench.add_argument("--out", type=Path, default=Path("outputs") / "bench", help="folder of JSON and plots")
    bench.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    bench.set_defaults(run=_bench)
    return parser


_COMMON = ("steps", "time_limit", "seed", "device", "backend")


def _add_budget(parser: argparse.ArgumentParser, steps: str, time_limit: str) -> None:
    parser.add_argument("--steps", type=int, help=steps)
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help=time_limit)
    parser.add_argument("--seed", type=int, help="random seed (default: 0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--backend", choices=BACKENDS, help="kernels, or their plain PyTorch twins")


def _add_allow_huge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-huge", action="store_true", help="read images of more than 179 million pixels")


def _info(args: argparse.Namespace) -> int:
    from hashgrid.util.info import describe

    for name, value in describe():
        print(f"{name + ':' if name else '':16}{value}")
    return 0


def _nerf(args: argparse.Namespace) -> int:
    from hashgrid.nerf.app import run
    from hashgrid.nerf.config import NerfConfig

    return run(
        args.scene,
        out=args.out,
        resume=args.resume,
        evaluate_only=args.eval,
        n_views=args.views,
        video=not args.no_video,
        profile=args.profile,
        changes=_changes(args, (*_COMMON, "background", "downscale", "holdout", "test_split"))
        | _assignments(args.set, NerfConfig),
        allow_huge=args.allow_huge,
    )


def _image(args: argparse.Namespace) -> int:
    from hashgrid.image.app import run

    return run(args.photo, out=args.out, changes=_changes(args, _COMMON), allow_huge=args.allow_huge)


def _sdf(args: argparse.Namespace) -> int:
    from hashgrid.sdf.app import run
    from hashgrid.sdf.config import SdfConfig

    changes = _changes(args, _COMMON) | _assignments(args.set, SdfConfig)
    if args.resolution is not None:
        changes["mesh_resolution"] = args.resolution
    return run(
        args.mesh,
        out=args.out,
        points=args.points,
        truth=args.truth,
        evaluate_only=args.eval,
        video=not args.no_video,
        changes=changes,
    )


def _scene(args: argparse.Namespace) -> int:
    from hashgrid.nerf.app import render_procedural_scene

    render_procedural_scene(args.out, args.train_views, args.test_views, args.resolution, args.seed)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from hashgrid import bench

    flags = [
        f"--{name.replace('_', '-')}" for name in ("quick", "no_compile", "no_peers", "no_plot") if vars(args)[name]
    ]
    values = [
        word
        for name in ("seconds", "threads")
        if vars(args)[name] is not None
        for word in (f"--{name}", str(vars(args)[name]))
    ]
    bench.run(args.suite, args.out, args.device, [*flags, *values])
    return 0


def _changes(args: argparse.Namespace, names: Sequence[str]) -> dict:
    """The options the user gave."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _assignments(pairs: Sequence[str], config: type) -> dict:
    """``KEY=VALUE`` pairs that name fields of a dataclass."""
    import ast
    import dataclasses

    known = [field.name for field in dataclasses.fields(config)]
    hints = typing.get_type_hints(config)
    changes = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(f"`--set` takes KEY=VALUE with KEY one of {', '.join(known)}; got {pair!r}")
        try:
            changes[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            changes[key] = text
        if hints[key] is int and isinstance(changes[key], float) and changes[key].is_integer():
            changes[key] = int(changes[key])  # 1e6
        if hints[key] is str and not isinstance(changes[key], str):
            changes[key] = text  # 0.5,0.5,0.5 is no tuple here
        if not _is_a(changes[key], hints[key]):
            name = getattr(hints[key], "__name__", None) or str(hints[key])
            raise ValueError(f"`--set {key}` must be of type {name}, got {text!r}")
    return changes


def _is_a(value: object, wanted: typing.Any) -> bool:
    """Whether a value of ``KEY=VALUE`` fits the type of its field; plain types and unions of them are looked at."""
    options = typing.get_args(wanted) if typing.get_origin(wanted) in (typing.Union, types.UnionType) else (wanted,)
    if not all(isinstance(option, type) and typing.get_origin(option) is None for option in options):
        return True
    if isinstance(value, bool):
        return bool in options
    return isinstance(value, options) or (float in options and isinstance(value, int))
