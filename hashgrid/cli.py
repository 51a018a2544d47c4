"""The ``hashgrid`` command."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from hashgrid.bench import SUITES
from hashgrid.train import ranks
from hashgrid.version import __version__

# A task is a module with a class: what `hashgrid NAME` runs, and what it does.
TASKS = {
    "image": ("hashgrid.tasks.image", "Image", "fit a photo"),
    "audio": ("hashgrid.tasks.audio", "Audio", "fit a sound"),
    "video": ("hashgrid.tasks.video", "VideoTask", "fit a video"),
    "volume": ("hashgrid.tasks.volume", "VolumeTask", "fit a volume"),
    "ct": ("hashgrid.tasks.ct", "Ct", "find a volume from few X-ray projections"),
    "pde": ("hashgrid.tasks.pde", "Pde", "solve a differential equation"),
    "sdf": ("hashgrid.tasks.sdf", "Sdf", "fit a signed distance field to a mesh or to points"),
    "shape": ("hashgrid.tasks.shape", "ShapeTask", "fit one network to a shape or to many"),
    "nerf": ("hashgrid.tasks.nerf", "Nerf", "train a radiance field on posed photographs"),
    "surface": ("hashgrid.tasks.surface", "Surface", "make a coloured mesh from posed photographs"),
    "meta": ("hashgrid.tasks.meta", "Meta", "learn a start from which a few steps fit any of a family of signals"),
    "generalize": ("hashgrid.tasks.generalize", "Generalize", "train a radiance field across scenes, for others"),
    "compress": ("hashgrid.tasks.compress", "Compress", "write a photo to a small file; also `image --compress BPP`"),
}

# What is done before training and after it: a module with `main`, and what it does.
COMMANDS = {
    "data": ("hashgrid.tasks.poses", "find the poses of photos or of a video"),
    "blocks": ("hashgrid.tasks.blocks", "cut a large scene into overlapping boxes, each a run of `nerf` of its own"),
    "render": ("hashgrid.tasks.render", "render a trained scene along a path of cameras"),
    "view": ("hashgrid.tasks.view", "look at a run or a scene in the browser; also `--view` while training"),
    "export": ("hashgrid.tasks.export", "write a coloured mesh, points or cameras of a trained scene"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors a user can mend are one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    if argv is None:  # a process of our own: what was imported stays, the collector need not look at it in every step
        gc.freeze()
    try:
        with warnings.catch_warnings():
            _show_warnings_in_one_line()
            return _run(words)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        if traceback:
            raise
        which = f" (rank {os.environ['RANK']})" if ranks.wanted() > 1 else ""
        print(f"hashgrid: error{which}: {error}", file=sys.stderr, flush=True)
        return 1


def _run(words: list[str]) -> int:
    if words[:1] == ["image"] and any(word.partition("=")[0] == "--compress" for word in words):
        words = ["compress", *words[1:]]  # of the same photo, but another task
    if words and words[0] in TASKS:
        from hashgrid.train.run import main as run_task

        module, name, _ = TASKS[words[0]]
        return run_task(getattr(importlib.import_module(module), name), words[1:])
    if ranks.wanted() > 1 and words:
        ranks.refuse(f"`hashgrid {words[0]}`")
    if words and words[0] == "compare":
        from hashgrid.tasks.compare import main as compare

        return compare(TASKS, words[1:])
    if words and words[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[words[0]][0])
        return int(command.main(words[1:]))
    if words and words[0] == "bench":
        return _bench(words[1:])
    args = _parser().parse_args(words)
    return args.run(args)


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
    """What needs nothing but torch and numpy; a task reads its own options."""
    parser = argparse.ArgumentParser(
        prog="hashgrid",
        description="Implicit neural representations. `hashgrid COMMAND --help` says more.",
        epilog="--traceback shows where an error came from.",
    )
    parser.add_argument("--version", action="version", version=f"hashgrid {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, _, summary) in TASKS.items():
        commands.add_parser(name, help=summary)

    commands.add_parser("compare", help="train several fields on one task, side by side")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    info = commands.add_parser("info", help="versions, compiler, CPU capability, CUDA")
    info.set_defaults(run=_info)
    scene = commands.add_parser("scene", help="render the procedural scene to a transforms.json folder")
    scene.add_argument("out", type=Path, metavar="OUT")
    scene.add_argument("--resolution", type=int, default=200, help="image width and height (default: 200)")
    scene.add_argument("--train-views", type=int, default=60)
    scene.add_argument("--test-views", type=int, default=20)
    scene.add_argument("--seed", type=int, default=0)
    scene.set_defaults(run=_scene)
    decompress = commands.add_parser("decompress", help="read a file of `image --compress`: the same pixels everywhere")
    decompress.add_argument("file", type=Path, metavar="FILE")
    decompress.add_argument("out", type=Path, metavar="OUT", help="PNG to write")
    decompress.add_argument("--allow-huge", action="store_true", help="read more than 179 million pixels")
    decompress.set_defaults(run=_decompress)
    commands.add_parser("bench", help="validate and time the kernels against plain PyTorch")
    return parser


def _info(args: argparse.Namespace) -> int:
    from hashgrid.util.info import describe

    for name, value in describe():
        print(f"{name + ':' if name else '':16}{value}")
    return 0


def _decompress(args: argparse.Namespace) -> int:
    from torch import from_numpy

    from hashgrid.compress.photo import read_compressed
    from hashgrid.util.files import atomic_write_image

    if args.out.suffix.lower() != ".png":
        raise ValueError(f"`OUT` must end in .png, which keeps every bit, got `{args.out}`")
    photo = read_compressed(args.file, args.allow_huge)
    atomic_write_image(args.out, from_numpy(photo))
    print(f"{photo.shape[1]}x{photo.shape[0]} pixels in {args.out}")
    return 0


def _scene(args: argparse.Namespace) -> int:
    from hashgrid.data.procedural import write_scene

    write_scene(args.out, args.train_views, args.test_views, args.resolution, args.seed, bar=True)
    print(f"scene in {args.out}")
    return 0


def _bench(words: list[str]) -> int:
    from hashgrid import bench

    parser = argparse.ArgumentParser(prog="hashgrid bench", description="Validates and times the kernels.")
    parser.add_argument("suite", nargs="*", help=f"{', '.join(SUITES)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("outputs") / "bench", help="folder of JSON and plots")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options = {"quick": "a minute: smaller sizes, no torch.compile, fewer suites", "no-compile": "no torch.compile",
               "no-peers": "leave other libraries out", "no-plot": "no pictures, only JSON"}  # fmt: skip
    for name, text in options.items():
        parser.add_argument(f"--{name}", dest="flags", action="append_const", const=f"--{name}", help=text)
    for name, text in {"seconds": "time for the turns of each case (default: 15)", "threads": "torch threads"}.items():
        parser.add_argument(f"--{name}", help=text)
    args = parser.parse_args(words)
    given = {name: getattr(args, name) for name in ("seconds", "threads") if getattr(args, name) is not None}
    values = [word for name, value in given.items() for word in (f"--{name}", value)]
    bench.run(args.suite, args.out, args.device, [*(args.flags or []), *values])
    return 0
