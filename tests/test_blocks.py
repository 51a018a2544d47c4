"""A scene cut into blocks: what each is trained on, and all of them seen as one."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems.nerf import OPTIONS, nerf_trainer

from hashgrid.cli import main
from hashgrid.data.blocks import BlockOptions, block_of
from hashgrid.data.errors import SceneError
from hashgrid.data.scene import load_scene
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.blocks import Cut, crosses, shares, span
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.rays import At, Rays
from hashgrid.rendering.blocks import Block, Blocks, BlockSampler
from hashgrid.rendering.crop import CroppedSampler
from hashgrid.rendering.samplers import StratifiedSampler
from hashgrid.rendering.volume import render, render_image
from hashgrid.tasks.manifest import MANIFEST, composed, read_manifest, share_done
from hashgrid.tasks.nerf import Nerf
from hashgrid.train.checkpoint import load_metadata
from hashgrid.train.run import CHECKPOINT, parse, starting_config

BOX = (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5)
WORDS = ["--grid", "2", "1", "1", *OPTIONS, "--no-video", "--views", "1"]


# ---- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid, overlap", [((2, 1, 1), 0.2), ((3, 2, 1), 1.0), ((4, 1, 3), 0.0)])
def test_shares_are_one_in_sum(grid: tuple, overlap: float) -> None:
    """Inside of the box and outside; each is 0 outside of its box, as far as there are neighbours."""
    cut, points = Cut((-1.0, 0.0, 2.0, 3.0, 1.0, 2.5), grid, overlap), 8 * torch.rand(2000, 3) - 3
    margins, total = torch.tensor(cut.margins()), torch.zeros(2000)
    for number in cut.numbers():
        share = shares(points, torch.tensor(cut.edges(number)), margins)
        assert bool((share >= 0).all())
        nearest = points.clamp(*torch.tensor(cut.whole).split(3))
        low, high = torch.tensor(cut.box(number)).split(3)
        assert bool((share[((nearest < low - 1e-6) | (nearest > high + 1e-6)).any(-1)] == 0).all())
        total += share
    torch.testing.assert_close(total, torch.ones(2000), rtol=0, atol=1e-6)


def test_rays_of_a_block() -> None:
    whole, box = torch.tensor([0.0, 0, 0, 4, 1, 1]), torch.tensor([0.0, 0, 0, 2, 1, 1])
    origins = torch.tensor([[-1.0, 0.5, 0.5], [5, 0.5, 0.5], [3, 0.5, 0.5], [0.5, 3, 0.5], [3.5, 3, 0.5]])
    directions = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    rays = Rays(origins, directions)
    assert crosses(rays, whole, box).tolist() == [True, True, False, True, False]  # the last two miss all blocks
    enter, leave = span(rays, whole)
    assert enter[:3].tolist() == [1, 1, 0] and leave[:3].tolist() == [5, 5, 0.5]
    assert bool((enter[3:] == leave[3:]).all()) and bool((enter[3:] <= 0.5).all())


def test_a_scene_of_a_block(scene: Any) -> None:
    box, whole = (-1.5, -1.5, -1.5, 0.1, 1.5, 1.5), BOX
    part = block_of(scene, BlockOptions(box, whole))
    assert part.aabb.tolist() == pytest.approx(list(box)) and not part.bounded
    low, high = part.outer_aabb.split(3)
    assert bool((low <= -1.5).all() and (high >= 1.5).all())
    assert part.train.counts is not None and 0.2 < float(part.train.counts.float().mean()) < 1
    rays = part.train.sample_rays(512)[0]
    assert bool(crosses(rays, torch.tensor(whole), torch.tensor(box)).all())
    assert block_of(scene, BlockOptions()) is scene
    away = torch.cat((torch.eye(3), torch.tensor([[1.0], [0], [-1e3]])), dim=1)  # below the other block, looking down
    far = replace(scene, train=replace(scene.train, c2w=away.expand(len(scene.train), 3, 4)))
    views = block_of(scene, BlockOptions((0.9, 0.9, 0.9, 1.5, 1.5, 1.5), whole), masked=False).train
    assert len(views.data) == int(views.sizes.prod(1).sum())
    with pytest.raises(SceneError, match="some training view must see the block"):
        block_of(far, BlockOptions(box, whole))


# ---- all blocks as one -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(scene: Any) -> Nerf:
    trainer = nerf_trainer(scene, 60)
    trainer.train()
    return trainer.task  # type: ignore[return-value]


@pytest.mark.parametrize("grid, overlap", [((2, 1, 1), 0.2), ((2, 2, 2), 0.5), ((3, 1, 1), 0.0)])
def test_one_field_in_blocks_is_that_field(trained: Nerf, scene: Any, grid: tuple, overlap: float) -> None:
    """Samples that one block alone has are the same; those that several share end a ray a sample earlier or later,
    where 1e-4 of the light is left."""
    model, sampler = composed([trained] * math.prod(grid), scene, Cut(BOX, grid, overlap))
    for view in range(2):
        alone = render_image(trained.model, trained.sampler, scene.test, view, torch.ones(3))
        parted = render_image(model, sampler, scene.test, view, torch.ones(3))
        for a, b, most in zip(alone, parted, (1e-4, 1e-4, 6e-4), strict=True):
            assert float((a - b).abs().max()) < most
            assert float((a - b).abs().median()) < 1e-6
            assert overlap > 0 or float((a - b).abs().max()) < 1e-6


@pytest.mark.full
def test_one_field_of_proposals_in_blocks(scene: Any) -> None:
    """In contracted space, where samples are long and of all distances, and cameras are outside of all blocks."""
    block = block_of(scene, BlockOptions((-1.0, -1.0, -1.0, 0.5, 1.0, 1.0)))
    trainer = nerf_trainer(block, 12, picture_block=1)
    trainer.train()
    task: Any = trainer.task
    assert task.config.sampling.sampler == "proposal" and task.scene.placement.unit != 1
    whole, views = tuple(block.aabb.tolist()), replace(scene.test, c2w=scene.test.c2w.clone())
    views.c2w = task.scene.placement.poses_from_file(views.c2w).float()
    alone = render_image(task.model, task.sampler, views, 0, torch.ones(3))
    model, sampler = composed([task] * 4, scene, Cut(whole, (2, 1, 2), 0.3))
    parted = render_image(model, sampler, scene.test, 0, torch.ones(3))
    for a, b in zip(alone[:2], parted[:2], strict=True):
        assert float((a - b).abs().max()) < 2e-4


class Fog(RadianceField):
    """Of one density and colour, whatever the unit."""

    def __init__(self, box: tuple[float, ...], density: float, color: tuple[float, ...]) -> None:
        super().__init__(torch.tensor(box))
        self.thick, self.hue = density, color

    def density(self, at: At) -> tuple[torch.Tensor, Any]:
        return torch.full_like(at.unit[:, 0], self.thick), None

    def color(self, at: At, carry: Any) -> torch.Tensor:
        return torch.tensor(self.hue).expand(len(at.unit), 3)


def foggy(overlap: float, units: tuple[float, float] = (2.0, 0.5), n: int = 4000) -> tuple[Blocks, BlockSampler, Cut]:
    """Red and green fog in two halves of a box of 4 x 1 x 1, each in a unit of its own."""
    cut = Cut((0.0, 0.0, 0.0, 4.0, 1.0, 1.0), (2, 1, 1), overlap)
    whole, blocks = torch.tensor(cut.whole), []
    colors = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    for number, unit, density, color in zip(cut.numbers(), units, (0.3, 0.7), colors, strict=True):
        placement = Placement((1.0, -1.0, 0.5), unit)
        box = tuple(torch.cat([placement.from_file(x) for x in whole.split(3)]).float().tolist())
        field = Fog(box, density * unit, color)
        edges, margins = torch.tensor(cut.edges(number)), torch.tensor(cut.margins())
        blocks.append(Block(field, StratifiedSampler(n), placement, edges, margins, whole))
    return Blocks(blocks, whole), BlockSampler(), cut


def test_blocks_are_composited_in_order() -> None:
    """Two fogs of different units, seen from both sides, against the integral."""
    model, sampler, _ = foggy(0.0)
    origins = torch.tensor([[-1.0, 0.5, 0.5], [5, 0.5, 0.5], [1, 0.5, 0.5]])
    rays = Rays(origins, torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0]]))
    out = render(model, sampler, rays)
    red, green = 1 - math.exp(-0.6), 1 - math.exp(-1.4)
    near = 1 - math.exp(-0.3)
    wanted = [[red, (1 - red) * green, 0], [(1 - green) * red, green, 0], [near, (1 - near) * green, 0]]
    torch.testing.assert_close(out.colors, torch.tensor(wanted), rtol=1e-3, atol=1e-3)
    starts = out.samples.t_starts
    assert bool((starts[1:] >= starts[:-1])[out.samples.ray_indices[1:] == out.samples.ray_indices[:-1]].all())


def test_neighbours_share_the_overlap_linearly() -> None:
    """Densities are blended, of points and along rays; colours by density."""
    model, sampler, cut = foggy(0.5)
    points = torch.tensor([[1.0, 0.5, 0.5], [1.75, 0.5, 0.5], [2.0, 0.5, 0.5], [3, 0.5, 0.5]])
    at = At(Rays(points, torch.tensor([[1.0, 0, 0]]).expand(4, 3)), model.unit(points), torch.arange(4))
    share = torch.tensor([1.0, 0.75, 0.5, 0.0])
    sigmas, colors = model.radiance(at)
    torch.testing.assert_close(sigmas, 0.3 * share + 0.7 * (1 - share))
    torch.testing.assert_close(colors[:, 0], 0.3 * share / sigmas)
    torch.testing.assert_close(model.density(at)[0], sigmas)
    across = render(model, sampler, Rays(torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]])))
    assert float(across.opacities) == pytest.approx(1 - math.exp(-2.0), abs=1e-3)  # the halves' shares are even
    cropped = CroppedSampler(sampler, torch.tensor([0.0, 0, 0, 1, 1, 1]))
    left = render(model, cropped, Rays(torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]])))
    assert float(left.opacities) == pytest.approx(1 - math.exp(-0.3), abs=1e-3) and float(left.colors[0, 1]) == 0


def test_hidden_blocks_are_not_asked() -> None:
    model, sampler, _ = foggy(0.1, n=50)
    asked = []
    model.blocks[1].own_sampler.register_forward_hook(lambda *args: asked.append(len(args[1][0])))
    rays = Rays(torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]]))
    assert float(render(model, sampler, rays).colors[0, 1]) > 0 and asked == [1]
    model.blocks[0].field.thick = 100.0
    assert float(render(model, sampler, rays).colors[0, 1]) < 1e-4 and asked == [1]
    away = render(model, sampler, Rays(torch.tensor([[-1.0, 0.5, 9.5]]), torch.tensor([[0.0, 0, 1.0]])))
    assert float(away.opacities) == 0


# ---- the command -----------------------------------------------------------------------------------------------------


def test_lines_to_run_elsewhere(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without `--jobs`: a line for each block that its own process understands; the same again, no other."""
    words = ["blocks", str(scene_path), *WORDS, "--steps", "2", "--out", str(tmp_path)]
    assert main(words) == 0 and main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hashgrid nerf")]
    assert len(lines) == 4 and lines[:2] == lines[2:]
    assert "--sampler occupancy" in lines[0] and "--resume" not in lines[0]
    manifest = read_manifest(tmp_path / MANIFEST)
    assert manifest.cut.grid == (2, 1, 1) and json.loads((tmp_path / MANIFEST).read_text())["blocks"][1]["core"][0] == 0
    assert main(["blocks", str(scene_path), *WORDS, "--steps", "3", "--out", str(tmp_path)]) == 1
    assert "`--out` must be empty or have the same blocks" in capsys.readouterr().err
    assert main(["render", str(tmp_path)]) == 1
    assert "every block must be trained to its end, 2 of 2 are not: block_0_0_0 (0%)" in capsys.readouterr().err
    config = starting_config(Nerf, shlex.split(lines[0])[2:])
    options, config = parse(Nerf, shlex.split(lines[0])[2:], config)
    assert config.scene.block.whole == BOX and options.out == tmp_path / "block_0_0_0"  # type: ignore[attr-defined]


@pytest.mark.parametrize("words, message", [
    (["--grid", "0", "1", "1"], "`grid` must be three numbers of blocks, at least 1"),
    (["--grid", "2", "1", "1", "--overlap", "-0.1"], "`overlap` must be in 0..1"),
    (["--grid", "2", "1", "1", "--bounds", "0", "0", "0", "1", "-1", "1"], "`bounds` must be two corners"),
    (["--grid", "2", "1", "1", "--jobs", "0"], "`--jobs` must be at least 1"),
    (["--grid", "2", "1", "1", "--resume"], "`--resume` must not be given"),
    (["--grid", "2", "1", "1", "--whole", "0", "0", "0", "1", "1", "1"], "`--whole` must not be given"),
    (["--grid", "2", "1", "1", "--semantic"], "must be left out: each block would learn its own"),
])  # fmt: skip
def test_bad_options(
    words: list[str], message: str, scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["blocks", str(scene_path), *words, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_block_is_for_radiance_fields(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--box", "-1", "-1", "-1", "1", "1", "1", "--out", str(tmp_path)]
    assert main(["surface", str(scene_path), *words]) == 1
    assert "`box` must be left out" in capsys.readouterr().err
    words[1:7] = ["1", "1", "1", "-1", "-1", "-1"]
    assert main(["nerf", str(scene_path), *words]) == 1
    assert "`box` must be two corners" in capsys.readouterr().err


def test_unknown_words(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["blocks", str(scene_path), "--grid", "2", "1", "1", "--out", str(tmp_path), "--stepps", "3"])
    assert "stepps" in capsys.readouterr().err
    assert main(["blocks", "--grid", "2", "1", "1", str(scene_path), "--out", str(tmp_path)]) == 1
    assert "`SOURCE` must come first" in capsys.readouterr().err
    (tmp_path / MANIFEST).write_text('{"format": "other"}')
    assert main(["render", str(tmp_path)]) == 1
    assert "must be a manifest of `hashgrid blocks`" in capsys.readouterr().err


def test_a_street_is_longer_than_wide() -> None:
    scene = load_scene(Path("street:train=4,test=1,resolution=24"))
    low, high = scene.aabb.split(3)
    assert len(scene.train) == 4 and float((high - low)[0]) > 3 * float((high - low)[1])
    assert all(0.05 < float((scene.train.image(view)[..., 3] > 0).float().mean()) < 0.98 for view in range(4))


@pytest.mark.full
def test_blocks_go_on_after_a_kill(scene_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One process is killed: it is named, the other finishes; the same line goes on from its checkpoint, and the whole
    is rendered and exported."""
    words = ["blocks", str(scene_path), *WORDS, "--steps", "300", "--checkpoint-seconds", "0.2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "hashgrid", *words, "--jobs", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    victim, deadline = tmp_path / "block_1_0_0", time.time() + 120
    while not (victim / CHECKPOINT).is_file():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and is_of(path, str(victim))]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 of 2 blocks failed: block_1_0_0" in err
    assert "block_0_0_0: finished" in out and share_done(tmp_path / "block_0_0_0") == 1
    step = load_metadata(victim / CHECKPOINT)["progress"]["step"]
    assert 0 < step < 300
    assert main([*words, "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "block_0_0_0: begins" not in said and "block_1_0_0: finished" in said
    assert load_metadata(victim / CHECKPOINT)["progress"]["step"] == 300
    assert "--resume" in read_manifest(tmp_path / MANIFEST).command(tmp_path, (1, 0, 0))
    assert main(["render", str(tmp_path), "--path", "test", "--no-video"]) == 0
    assert len(list((tmp_path / "render_test" / "frames").glob("*.png"))) == 2
    for what in (["mesh.ply", "--method", "density", "--threshold", "5"], ["points.ply"], ["cameras.json"]):
        out_file = tmp_path / what[0]
        assert main(["export", str(tmp_path / MANIFEST), str(out_file), *what[1:]]) == 0 and out_file.is_file()


def is_of(process: Path, word: str) -> bool:
    """Whether a process of ours was started with a word."""
    try:
        return word.encode() in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
