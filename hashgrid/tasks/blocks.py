"""``hashgrid blocks``: a large scene as overlapping boxes, each a run of ``hashgrid nerf`` of its own."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hashgrid.data.scene import Scene, load_scene
from hashgrid.geometry.blocks import Cut
from hashgrid.tasks.manifest import MANIFEST, Manifest, read_manifest, share_done
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.run import parse, starting_config

LOG, POLL = "log.txt", 0.2  # seconds between two looks at processes
UNIT = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
# what each block has of its own, or what several processes at once cannot have
OWN = ("--out", "--resume", "--eval", "--box", "--whole", "--view", "--host", "--port", "--profile")


class BlocksParser(argparse.ArgumentParser):
    """Leaves what it does not know to `hashgrid nerf`, in ``options``."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        found.options = [word for word in rest if word != "--"]
        return found


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    epilog = "All other options are those of `hashgrid nerf`, the same for every block; SOURCE comes first."
    about = (__doc__ or "").partition(": ")[2]
    parser = BlocksParser(prog="hashgrid blocks", description=about, epilog=epilog, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="a scene, as of `hashgrid nerf`")
    parser.add_argument("--grid", type=int, nargs=3, required=True, metavar=("X", "Y", "Z"), help="blocks along axes")
    overlap_help = "width of what neighbours share, as a share of a block's side (default: %(default)s)"
    parser.add_argument("--overlap", type=float, default=0.1, help=overlap_help)
    bounds_help = "the box that is cut, in the scene's coordinates; that of the scene, or its innermost one, if none"
    letters = ("X0", "Y0", "Z0", "X1", "Y1", "Z1")
    parser.add_argument("--bounds", type=float, nargs=6, metavar=letters, help=bounds_help)
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {MANIFEST} and of the blocks' folders")
    jobs_help = "train so many blocks at a time here; without it the lines to run elsewhere are printed"
    parser.add_argument("--jobs", type=int, metavar="N", help=jobs_help)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 1 where a block failed, 130 after Ctrl-C.

    Raises:
        ValueError: an option is unusable, or the folder is of blocks that were cut or trained otherwise.
    """
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        raise ValueError(f"`SOURCE` must come first, got {argv[0]!r}: hashgrid blocks SOURCE --grid 2 1 1 --out DIR")
    args = make_parser().parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"`--jobs` must be at least 1, got {args.jobs}; leave it out to have the lines printed")
    manifest = manifest_for(args)
    todo = []
    for number in manifest.cut.numbers():
        done = share_done(args.out / manifest.folder(number))
        print(f"{manifest.folder(number)}: {'finished' if done == 1 else f'{done:.0%}'}", flush=True)
        todo += [number] if done < 1 else []
    lines = {manifest.folder(number): manifest.command(args.out, number) for number in todo}
    if args.jobs is None:
        for words in lines.values():
            print(shlex.join(["hashgrid", *words]))
        return 0
    failed = run_all(lines, args.out, args.jobs)
    if failed:
        names = ", ".join(failed)
        print(f"hashgrid: error: {len(failed)} of {len(lines)} blocks failed: {names}; see their {LOG}, then run the"
              " same line again", file=sys.stderr)  # fmt: skip
        return 1
    print(f"all blocks are in {args.out}: hashgrid render {args.out}", flush=True)
    return 0


def manifest_for(args: argparse.Namespace) -> Manifest:
    """The manifest of options, written where it is not there yet.

    Raises:
        ValueError: an option is unusable, or another manifest is there.
    """
    config, cut = check_options(args.options), Cut(UNIT, tuple(args.grid), args.overlap)  # before a scene is read
    path = args.out / MANIFEST
    source = str(Path(args.source).resolve()) if Path(args.source).exists() else args.source
    if path.is_file():
        known = read_manifest(path)
        bounds = known.cut.whole if args.bounds is None else tuple(args.bounds)
        asked = Manifest(source, replace(cut, whole=bounds), tuple(args.options), known.recipe)
        if known != asked:
            raise ValueError(
                f"`--out` must be empty or have the same blocks, `{path}` has others: another scene, grid, overlap,"
                " bounds or options; choose another folder, or remove it"
            )
        return known
    scene = load_scene(source, config.scene)
    bounds = tuple(scene.aabb.double().tolist() if args.bounds is None else args.bounds)
    recipe = recipe_of(config, scene, args.options)
    manifest = Manifest(source, replace(cut, whole=bounds), tuple(args.options), recipe)
    manifest.write(path)
    return manifest


def recipe_of(config: NerfConfig, scene: Scene, words: Sequence[str]) -> tuple[str, ...]:
    """What blocks of a scene are trained with where options say nothing else. All that is around a block is contracted
    into its field. Of a scene with an end boxes around boxes say where there is something, as they do of all of it, and
    cameras may be near: after 300 steps 22.9 dB, with a calm distance 22.5."""
    recipe = {"--contraction": "cube"}
    if scene.bounded and config.fields[config.field.name].sampler == "occupancy":
        recipe |= {"--sampler": "occupancy", "--calm-distance": "0"}
    given = {word.partition("=")[0] for word in words}
    return tuple(word for name, value in recipe.items() if name not in given for word in (name, value))


def check_options(words: Sequence[str]) -> NerfConfig:
    """What options of `hashgrid nerf` say.

    Raises:
        ValueError: some are not for blocks.
    """
    for word in words:
        if (name := word.partition("=")[0]) in OWN:
            raise ValueError(f"`{name}` must not be given, each block has its own or none")
    # it ends the process with its own words where it does not know them
    config: Any = parse(Nerf, words, starting_config(Nerf, words))[1]
    config.check()
    if config.capture.refines or config.capture.background_model not in ("auto", "none") or config.labelling.semantic:
        raise ValueError(
            "`--refine-cameras`, `--refine-lens`, `--background-model` and `--semantic` must be left out: each block"
            " would learn its own, and they would not fit together"
        )
    return config  # type: ignore[no-any-return]


def run_all(lines: dict[str, list[str]], out: Path, jobs: int) -> list[str]:
    """Runs lines of `hashgrid`, so many at a time; returns the names of those that failed. Ctrl-C ends all of them
    after their next checkpoint."""
    env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    waiting, running, failed = list(lines), dict[str, subprocess.Popen](), []

    def end(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                (out / name).mkdir(parents=True, exist_ok=True)
                with open(out / name / LOG, "ab") as log:
                    command = [sys.executable, "-m", "hashgrid", *lines[name]]
                    running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
                print(f"{name}: begins", flush=True)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                status = running.pop(name).returncode
                print(f"{name}: {'finished' if status == 0 else f'failed with status {status}'}", flush=True)
                failed += [name] if status else []
            time.sleep(POLL)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed
