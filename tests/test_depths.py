"""Depth images: what is read of them, and what learning from them is worth where views are few."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems.nerf import nerf_trainer

from hashgrid.data.errors import SceneError
from hashgrid.data.procedural import orbit_cameras, signed_distance, write_scene
from hashgrid.data.scene import Scene, load_scene
from hashgrid.maths import locate_pixels
from hashgrid.rendering.volume import render_image
from hashgrid.train.losses import DepthLosses, of_relative_depths

iio = pytest.importorskip("imageio.v3")
SIZE, UNIT = 40, 1e-4


def march(cameras, view: int) -> np.ndarray:
    """Depths along the axis [SIZE, SIZE] of the scene of formulas, by steps along its distance; 0 where there is
    nothing."""
    rays = cameras.view_rays(view)
    t = torch.full((len(rays),), 2.0)
    for _ in range(200):
        t = t + 0.8 * signed_distance(rays.origins + t[:, None] * rays.directions)
    hit = signed_distance(rays.origins + t[:, None] * rays.directions).abs() < 5e-3
    ahead = -(rays.directions @ cameras.c2w[view, :, 2])
    return torch.where(hit & (t < 7), t * ahead, 0.0).view(SIZE, SIZE).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training views, one file of keys, depths of half the size."""
    out = write_scene(tmp_path_factory.mktemp("depths") / "scene", 4, 6, SIZE, seed=3)
    for split, n, seed in (("train", 4, 6), ("test", 6, 7)):
        file = out / f"transforms_{split}.json"
        meta, cameras = json.loads(file.read_text()), orbit_cameras(n, SIZE, seed)
        for i, frame in enumerate(meta["frames"]):
            np.testing.assert_allclose(np.array(frame["transform_matrix"])[:3], cameras.c2w[i].numpy(), atol=1e-6)
            stored = (march(cameras, i) / UNIT).round().astype(np.uint16)
            iio.imwrite(out / f"depth_{split}_{i}.png", stored)
            frame["depth_file_path"] = f"depth_{split}_{i}.png"
        file.write_text(json.dumps({**meta, "depth_unit_scale_factor": UNIT}))
    return out


def test_depths_become_distances_along_rays(folder: Path) -> None:
    """Points at them lie on the surface; also in other units, and reduced; none is invented."""
    scene = load_scene(folder)
    for views in (scene.train, load_scene(folder, downscale=2).train):
        assert views.ends is not None
        rays, ends = views.view_rays(1), views.ends[views.offsets[1] : views.offsets[2]]
        known = ends > 0
        assert 0.1 < float(known.float().mean()) < 0.9
        off = signed_distance(rays.origins + ends[:, None] * rays.directions)[known].abs()
        assert float(off.median()) < (5e-3 if views.size(0)[0] == SIZE else 0.05)
    assert "of depths known" in scene.describe()
    rays, _, _ = scene.train.sample_rays(500, 1, 2, needs={"ends"})
    assert rays.ends is not None and scene.train.sample_rays(5)[0].ends is None
    known = rays.ends > 0
    points = rays.origins + rays.ends[:, None] * rays.directions
    assert float(signed_distance(points)[known].abs().median()) < 5e-3
    with pytest.raises(SceneError, match="some view must have depths"):
        load_scene("procedural:train=1,test=1,resolution=8").train.sample_rays(5, needs={"ends"})


def test_wrong_depths_are_one_error(folder: Path, tmp_path: Path) -> None:
    meta = json.loads((folder / "transforms_train.json").read_text())
    iio.imwrite(tmp_path / "wide.png", np.zeros((10, 40), np.uint16))
    iio.imwrite(tmp_path / "colour.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    for name, why in (
        ("none.png", "does not exist"),
        ("wide.png", "one channel of the shape of the image, 40x40"),
        ("colour.png", "got 40x40 and 3 channel"),
    ):
        for frame in meta["frames"]:
            frame["file_path"] = str(folder / "train" / Path(frame["file_path"]).name)
            frame["depth_file_path"] = name
        (tmp_path / "transforms.json").write_text(json.dumps(meta))
        with pytest.raises(SceneError, match=why):
            load_scene(tmp_path, holdout=0)


def depth_error(scene: Scene, weight: float) -> float:
    """Mean difference of rendered and true distances of test views, of pixels that show something."""
    trainer = nerf_trainer(scene, 250, depth_weight=weight, occupancy_time_share=1)
    trainer.train()
    task, errors = trainer.task, []
    for view in range(len(task.scene.test)):
        _, opacity, depth = render_image(task.model, task.sampler, task.scene.test, view, torch.ones(3))
        ends = task.scene.test.ends
        begin, end = task.scene.test.offsets[view : view + 2].tolist()
        truth = ends[begin:end].view(SIZE, SIZE)
        known = truth > 0
        errors.append(float((depth / opacity.clamp_min(1e-3) - truth)[known].abs().mean()))
    return float(np.mean(errors))


@pytest.mark.full
def test_depths_help_where_views_are_few(folder: Path) -> None:
    scene = load_scene(folder)
    assert depth_error(scene, 0.1) < 0.7 * depth_error(scene, 0.0)


def test_relative_depths_forget_scale_and_shift_of_each_group() -> None:
    """Against NumPy, group by group; nothing is left where they are a line with a positive slope, and any other
    scale and shift of what is known give the same."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 200)
    group[group == 3] = 2
    group[:2] = 3  # of which two points are always on a line
    depths, known = rng.uniform(1, 5, 200), rng.uniform(1, 5, 200)
    known[20:60] = 0
    scales, shifts = np.array([0.2, 3.0, 1.0, 9.0]), np.array([0.0, 5.0, -0.5, 2.0])

    def loss(rendered: np.ndarray, given: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(rendered, requires_grad=True)
        value = of_relative_depths(x, torch.tensor(given), torch.tensor(group), 4, delta=0.05)
        value.backward()
        return value.item(), x.grad.numpy()

    errors = np.zeros(200)
    for g in range(3):
        here = (group == g) & (known > 0)
        y = (known[here] - known[here].mean()) / known[here].std()
        off = np.abs(depths[here] - depths[here].mean() - depths[here].std() * y)
        errors[here] = np.where(off < 0.05, off**2 / 0.1, off - 0.025)
    value, gradient = loss(depths, known)
    assert value == pytest.approx(errors.sum() / ((group < 3) & (known > 0)).sum(), rel=1e-9)
    other = np.where(known > 0, scales[group] * known + shifts[group], 0)
    assert loss(depths, other)[0] == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(loss(depths, other)[1], gradient, atol=1e-12)
    line = np.where(known > 0, scales[group] * depths + shifts[group], 0)
    assert loss(depths, line)[0] == pytest.approx(0, abs=1e-12)
    assert loss(depths, np.where(line > 0, 50 - line, 0))[0] > 0.5


def test_depths_up_to_scale_are_along_the_axis(folder: Path) -> None:
    """True distances leave no loss where an image's depths have a scale and a shift; as metric depths they do."""
    train = load_scene(folder).train
    rays, _, _ = train.sample_rays(2000, 1, 2, needs={"ends"})
    truth = rays.ends
    scales, shifts = torch.tensor([0.3, 2.0, 1.0, 5.0]), torch.tensor([1.0, 0.1, -0.4, 3.0])
    camera = torch.arange(4).repeat_interleave(SIZE * SIZE)
    every = replace(train.rays(*locate_pixels(torch.arange(len(train.data)), train.offsets, train.sizes)), ends=None)
    ahead = train.ahead(every)
    changed = (scales[camera] * train.ends * ahead + shifts[camera]) / ahead
    train.ends = torch.where(train.ends > 0, changed, 0.0)
    rays, _, _ = train.sample_rays(2000, 1, 2, needs={"ends"})
    assert float(DepthLosses(depth_scale="free").of_rays(truth, rays, train)) < 1e-8
    assert float(DepthLosses().of_rays(truth, rays, train)) > 1e-2
    with pytest.raises(ValueError, match="`depth_weight` must be at least 0, got -1"):
        DepthLosses(depth_weight=-1.0).check()
