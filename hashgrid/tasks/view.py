"""``hashgrid view``: a run or a scene in the browser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hashgrid.data.scene import load_scene
from hashgrid.tasks.image import Image
from hashgrid.tasks.manifest import Composed, manifest_of
from hashgrid.tasks.nerf import Nerf
from hashgrid.tasks.sdf import Sdf
from hashgrid.tasks.surface import Surface
from hashgrid.tasks.trained import restored
from hashgrid.tasks.volume import VolumeTask
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.run import CHECKPOINT
from hashgrid.train.task import Task
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_for
from hashgrid.viewer import subject_of
from hashgrid.viewer.live import serve
from hashgrid.viewer.nerf import SceneSubject
from hashgrid.viewer.page import HOST, PORT, Page

KINDS: dict[str, type[Task]] = {kind.name: kind for kind in (Nerf, Surface, Sdf, VolumeTask, Image)}


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="hashgrid view", description=(__doc__ or "").partition(": ")[2])
    what = "folder of a run of nerf, surface, sdf, volume or image, its checkpoint, a scene, or blocks.json"
    parser.add_argument("run", type=Path, metavar="RUN", help=what)
    parser.add_argument("--host", default=HOST, help="address to serve at (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument("--device", default="auto")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command until Ctrl-C.

    Raises:
        ValueError: there is neither a run nor a scene, or nothing to be seen of it.
        ImportError: viser is not installed.
        OSError: the port is taken.
    """
    args = make_parser().parse_args(argv)
    optional_import("viser")
    if (manifest := manifest_of(args.run)) is not None:
        composed = Composed(manifest, args.device)
        with threads_for(composed.config.backend):
            page = Page(subject_of(composed), args.host, args.port, manifest.parent, "hashgrid blocks")
            serve(page, args.host, composed.describe())
        return 0
    checkpoint = args.run / CHECKPOINT if args.run.is_dir() else args.run
    if not (args.run.is_dir() and not checkpoint.is_file()) and args.run.suffix != ".json":
        return view_checkpoint(checkpoint, args.host, args.port, args.device)
    scene = load_scene(args.run).normalized()
    serve(Page(SceneSubject(scene), args.host, args.port, Path("."), scene.name), args.host, scene.describe())
    return 0


def view_checkpoint(checkpoint: Path, host: str, port: int, device: str) -> int:
    """Shows what a run has left."""
    if not checkpoint.is_file():
        raise ValueError(f"`RUN` must be a folder of a run, its checkpoint or a scene, `{checkpoint}` does not exist")
    stored = load_checkpoint(checkpoint)
    kind = KINDS.get(stored.metadata.get("task", ""))
    if kind is None:
        known = f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}"
        raise ValueError(f"`RUN` must be of {known}, `{checkpoint}` is of {stored.metadata.get('task')!r}")
    task = restored(kind, stored, device)
    with threads_for(task.config.backend):
        page = Page(subject_of(task), host, port, checkpoint.parent, f"hashgrid {kind.name}")
        serve(page, host, task.describe(), stored.metadata["curve"])
    return 0
