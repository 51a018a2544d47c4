"""The file that says how a scene was cut into blocks, and the fields of all of them as one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.blocks import BlockOptions, block_of
from hashgrid.data.scene import Scene, load_scene
from hashgrid.geometry.blocks import Cut
from hashgrid.geometry.boxes import Placement
from hashgrid.rendering.blocks import Block, Blocks, BlockSampler
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.checkpoint import load_metadata, with_prefix
from hashgrid.train.loop import load_model
from hashgrid.train.report import RESULTS
from hashgrid.train.run import CHECKPOINT, read_checkpoint
from hashgrid.train.task import Task
from hashgrid.util.files import atomic_write_json

MANIFEST, FORMAT, VERSION = "blocks.json", "hashgrid.blocks", 1


@dataclass(frozen=True)
class Manifest:
    """How a scene was cut, and what each block is trained with.

    Attributes:
        source: what finds the scene.
        cut: the blocks, in the coordinates of the scene's file.
        options: words of `hashgrid nerf`, the same for all blocks.
        recipe: what goes before them, by the scene.
    """

    source: str
    cut: Cut
    options: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()

    def folder(self, number: tuple[int, ...]) -> str:
        """The name of a block's folder, beside the manifest."""
        return "block_" + "_".join(map(str, number))

    def command(self, out: Path, number: tuple[int, ...]) -> list[str]:
        """The words of `hashgrid` that train a block, or go on where its last checkpoint is."""
        box, whole = ([repr(x) for x in corners] for corners in (self.cut.box(number), self.cut.whole))
        folder = out / self.folder(number)
        resume = ["--resume"] if (folder / CHECKPOINT).is_file() else []
        words = ["nerf", self.source, "--out", str(folder), "--box", *box, "--whole", *whole]
        return [*words, *self.recipe, *self.options, *resume]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the boxes of all blocks for whoever reads it."""
        cut = self.cut
        each = [
            {"number": list(n), "folder": self.folder(n), "core": list(cut.core(n)), "box": list(cut.box(n))}
            for n in cut.numbers()
        ]
        return {
            "format": FORMAT, "version": VERSION, "source": self.source, "bounds": list(cut.whole),
            "grid": list(cut.grid), "overlap": cut.overlap, "options": list(self.options),
            "recipe": list(self.recipe), "blocks": each,
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """Writes the manifest."""
        atomic_write_json(path, self.to_dict())


def read_manifest(path: Path) -> Manifest:
    """Reads what :meth:`Manifest.write` wrote.

    Raises:
        ValueError: the file is no such manifest.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is of {found['format']} {found['version']}")
        numbers = tuple(float(x) for x in found["bounds"]), tuple(int(x) for x in found["grid"])
        cut = Cut(*numbers, float(found["overlap"]))
        words = (tuple(map(str, found[name])) for name in ("options", "recipe"))
        return Manifest(str(found["source"]), cut, *words)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"`{path}` must be a manifest of `hashgrid blocks`, version {VERSION}: {why}") from error


def manifest_of(run: Path) -> Path | None:
    """The manifest that ``run`` is, or has in it; None where it is something else."""
    path = run / MANIFEST if run.is_dir() else run
    return path if path.name == MANIFEST and path.is_file() else None


def share_done(folder: Path) -> float:
    """How much of a block is trained, 0..1; 1 where its results are there, too."""
    if not (folder / CHECKPOINT).is_file():
        return 0.0
    fraction = float(load_metadata(folder / CHECKPOINT)["progress"]["fraction"])
    return fraction if (folder / RESULTS).is_file() else min(fraction, 0.99)


def check_finished(path: Path, manifest: Manifest) -> None:
    """Raises ValueError where a block of the manifest ``path`` is not there, or not trained to its end."""
    folders = [path.parent / manifest.folder(number) for number in manifest.cut.numbers()]
    missing = [f"{folder.name} ({share:.0%})" for folder in folders if (share := share_done(folder)) < 1]
    if missing:
        raise ValueError(
            f"`{path}`: every block must be trained to its end, {len(missing)} of {len(folders)} are not:"
            f" {', '.join(missing[:4])}; run the same `hashgrid blocks` again, or copy their folders here"
        )


class Composed(Nerf):
    """All blocks of a manifest as one trained task, to be looked at.

    Args:
        path: the manifest.
        device: where it goes.

    Raises:
        ValueError: a block is not trained to its end.
        SceneError: the scene is not where it was.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        manifest = read_manifest(path)
        check_finished(path, manifest)
        cut, numbers = manifest.cut, manifest.cut.numbers()
        stored = [read_checkpoint(path.parent / manifest.folder(number) / CHECKPOINT, Nerf) for number in numbers]
        configs = [
            NerfConfig.from_dict({**each.metadata["config"], "device": device}, "the checkpoint").replace(video=False)
            for each in stored
        ]
        Task.__init__(self, configs[0].with_budget())
        raw = load_scene(manifest.source, replace(configs[0].scene, block=BlockOptions()))
        self.scene = raw.normalized()
        tasks = list[Nerf]()
        for config, each in zip(configs, stored, strict=True):
            task = Nerf(config.replace(init=None).on_device(), block_of(raw, config.scene.block, masked=False))
            load_model(task.model, each.tensors, averaged=True)
            task.load_state(with_prefix(each.tensors, "state."))
            tasks.append(task)
        self.cut, self.n_blocks = cut, len(tasks)
        self.model, self.sampler = composed(tasks, self.scene, cut, self.config.backend)

    def describe(self) -> str:
        return f"{self.scene.describe()}\n{self.n_blocks} blocks, {' x '.join(map(str, self.cut.grid))}"


def composed(tasks: list[Nerf], scene: Scene, cut: Cut, backend: str = "native") -> tuple[Blocks, BlockSampler]:
    """The fields of tasks, in the order of the blocks of a cut, as one in the coordinates of a scene, with its sampler;
    ``cut`` is in those of the scene's file."""
    outer, device = scene.placement, tasks[0].device

    def moved(corners: tuple[float, ...]) -> Tensor:
        values = torch.tensor(corners, dtype=torch.float64)
        return torch.cat([outer.from_file(corner) for corner in values.split(3)]).float().to(device)

    whole, margins = moved(cut.whole), (torch.tensor(cut.margins()) / outer.unit).to(device)
    blocks = []
    for number, task in zip(cut.numbers(), tasks, strict=True):
        own = task.scene.placement
        origin = outer.from_file(torch.tensor(own.origin, dtype=torch.float64)).tolist()
        placement = Placement(tuple(origin), own.unit / outer.unit)
        block = Block(task.model, task.sampler, placement, moved(cut.edges(number)), margins, whole)
        blocks.append(block.to(device))
    eps = max(task.sampler.early_stop_eps for task in tasks)
    return Blocks(blocks, whole).to(device).eval(), BlockSampler(eps, backend)
