"""Cameras and scenes: geometry against OpenCV's formulas written out, dialects, splits, boxes, broken input."""

from __future__ import annotations

import json
import math
import re
import warnings

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data.errors import SceneError, SceneWarning  # noqa: E402
from hashgrid.data.scene import load_scene  # noqa: E402
from hashgrid.geometry import cameras as cameras_module  # noqa: E402
from hashgrid.geometry.cameras import Cameras, look_at, nearest_point_to_axes  # noqa: E402
from hashgrid.geometry.lenses import distort, undistort  # noqa: E402
from hashgrid.geometry.rays import Rays  # noqa: E402
from hashgrid.maths import locate_pixels  # noqa: E402
from hashgrid.util.pictures import background_color, blend  # noqa: E402

UP = torch.tensor([0.0, 0.0, 1.0])


def pose(origin=(0.0, -4.0, 1.0), target=(0.0, 0.0, 0.0)) -> list[list[float]]:
    c2w = look_at(torch.tensor(origin).double(), torch.tensor(target).double(), UP.double())
    return [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]


def ring(n: int, radius: float = 4.0) -> list[list[list[float]]]:
    angles = [2 * math.pi * i / n for i in range(n)]
    return [pose((radius * math.cos(a), radius * math.sin(a), 1.0 + 0.3 * math.sin(3 * a))) for a in angles]


def write(folder, n=10, size=(16, 12), channels=3, name="transforms.json", image="im_{:03d}.png", frame=None, **meta):
    """A scene of ``n`` random images; returns its folder."""
    rng = np.random.default_rng(n)
    meta = meta or {"camera_angle_x": 0.7}
    frames = []
    for i, matrix in enumerate(ring(n)):
        file = folder / image.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
        iio.imwrite(file, rng.integers(0, 256, shape, dtype=np.uint8))
        frames.append({"file_path": image.format(i), "transform_matrix": matrix, **(frame or {})})
    (folder / name).write_text(json.dumps({**meta, "frames": frames}))
    return folder


def edit(folder, change, name="transforms.json"):
    """Apply ``change(meta)`` to the JSON of a scene."""
    meta = json.loads((folder / name).read_text())
    change(meta)
    (folder / name).write_text(json.dumps(meta))


# Cameras -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "coefficients",
    [(0.03, 0, 0, 0, 0, 0), (-0.28, 0.07, 0, 0, 1e-3, -5e-4), (0.1, -0.05, 0.02, -0.003, 2e-3, 3e-3), (0,) * 6],
)
def test_undistort_inverts_distort(coefficients):
    coefficients = torch.tensor(coefficients, dtype=torch.float64)
    axis = torch.linspace(-0.7, 0.7, 29, dtype=torch.float64)
    ideal = torch.cartesian_prod(axis, axis)
    back, residual = undistort(distort(ideal, coefficients), coefficients)
    assert float(residual.max()) < 1e-12
    torch.testing.assert_close(back, ideal, rtol=0, atol=1e-9)


def test_distort_is_opencv():
    """OpenCV's formula, written out for one point."""
    k1, k2, k3, p1, p2 = -0.3, 0.1, -0.02, 0.004, -0.003
    x, y = 0.3, -0.4
    r2 = 0.25
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    expected = (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )
    got = distort(torch.tensor([x, y]).double(), torch.tensor([k1, k2, k3, 0, p1, p2]).double())
    torch.testing.assert_close(got, torch.tensor(expected).double())


def test_undistort_stays_finite_where_the_lens_folds():
    # r - r^3 / 2 rises up to r = 0.816, where it is 0.544; beyond, other roots lure on the far side of the axis.
    coefficients = torch.tensor([-0.5, 0, 0, 0, 0, 0], dtype=torch.float64)
    far = torch.tensor([[0.9, 0.9], [3.0, 0.0]], dtype=torch.float64)
    ideal, residual = undistort(far, coefficients)
    assert bool((ideal.norm(dim=-1) < 0.8165).all()) and bool((ideal.norm(dim=-1) > 0.7).all())
    torch.testing.assert_close(residual, far.norm(dim=-1) - 0.5443, rtol=0, atol=0.02)
    near = torch.tensor([[0.54, 0.0]], dtype=torch.float64)
    assert float(undistort(near, coefficients)[1]) < 1e-9


@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize("table", [True, False])
def test_a_known_point_lies_on_the_ray_of_its_pixel(distorted, table, monkeypatch):
    """Project a point with textbook formulas so that it falls on a pixel centre: that pixel's ray meets it."""
    if not table:
        monkeypatch.setattr(cameras_module, "MAX_TABLE_PIXELS", 0)
    k = [-0.1, 0.02, 0.0, 0.0, 1e-3, -2e-3] if distorted else [0.0] * 6
    width, height, fx, fy, cx, cy = 64, 48, 61.0, 59.0, 30.5, 25.25
    c2w = torch.tensor(pose((1.0, -3.0, 2.0), (0.2, 0.1, -0.3)))[:3]
    cameras = Cameras(
        torch.stack((c2w, torch.tensor(pose())[:3])),
        torch.tensor([[fx, fy, cx, cy], [50.0, 50.0, 32.0, 24.0]]),
        torch.tensor([[width, height], [width, height]]),
        torch.tensor([k, [0.0] * 6]),
    )
    rng = np.random.default_rng(0)
    # A grid of ideal directions; take the pixels their projections fall into and correct by the remainder.
    for _ in range(20):
        column, row = int(rng.integers(width)), int(rng.integers(height))
        rays = cameras.rays(torch.tensor([0]), torch.tensor([column]), torch.tensor([row]))
        rays_o, rays_d = rays.origins, rays.directions
        assert float(rays_d.norm()) == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(rays_o[0], c2w[:, 3])
        point = (rays_o + rng.uniform(0.5, 5) * rays_d)[0].double().numpy()
        # World -> OpenGL camera -> OpenCV camera (y down, z forward) -> distortion -> pixels.
        local = np.linalg.inv(np.vstack((c2w.double().numpy(), [0, 0, 0, 1]))) @ np.append(point, 1)
        x, y = local[0] / -local[2], -local[1] / -local[2]
        assert local[2] < 0
        r2, (k1, k2, _, _, p1, p2) = x * x + y * y, k
        radial = 1 + k1 * r2 + k2 * r2 * r2
        u = fx * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + cx
        v = fy * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + cy
        assert (u, v) == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)
        pixel, depth = cameras.project(torch.from_numpy(point)[None], 0)
        assert pixel[0].tolist() == pytest.approx((u, v), abs=1e-4)
        assert float(depth) == pytest.approx(-local[2], abs=1e-5)


def test_camera_orientation():
    """x right, y up, looking along -z: the top left pixel looks left and up."""
    cameras = Cameras(torch.eye(4)[None, :3], torch.tensor([[10.0, 10.0, 2.0, 1.5]]), torch.tensor([[4, 3]]))
    rays = cameras.view_rays(0)
    rays_o, rays_d = rays.origins, rays.directions
    assert rays_d.shape == (12, 3) and bool((rays_o == 0).all())
    norm = math.sqrt(0.15**2 + 0.1**2 + 1)
    assert rays_d[0].tolist() == pytest.approx([-0.15 / norm, 0.1 / norm, -1 / norm])
    assert rays_d[-1].tolist() == pytest.approx([0.15 / norm, -0.1 / norm, -1 / norm])


def test_cameras_name_the_wrong_shape():
    with pytest.raises(ValueError, match=r"`intrinsics` must have shape \[1, 4\], got \[1, 3\]"):
        Cameras(torch.eye(4)[None, :3], torch.ones(1, 3), torch.tensor([[4, 3]]))


def test_nearest_point_to_axes():
    target = torch.tensor([0.3, -0.2, 0.7])
    c2w = torch.stack(
        [look_at(torch.tensor(o), target, UP) for o in ((4.0, 0.0, 1.0), (0.0, 3.0, 2.0), (-2.0, -2.0, 0.5))]
    )
    cameras = Cameras(c2w, torch.ones(3, 4), torch.ones(3, 2, dtype=torch.int64))
    torch.testing.assert_close(nearest_point_to_axes(cameras).float(), target, rtol=0, atol=0.02)
    same = Cameras(c2w[:1].expand(3, 3, 4).contiguous(), torch.ones(3, 4), torch.ones(3, 2, dtype=torch.int64))
    assert bool(nearest_point_to_axes(same).isfinite().all())


# Dialects ------------------------------------------------------------------------------------------------------------


def test_blender_dialect(tmp_path):
    """No extension, no focal length but an angle, a split in files, RGBA; val only when asked for."""
    for split, n in (("train", 6), ("test", 3), ("val", 2)):
        write(tmp_path, n, (16, 12), 4, f"transforms_{split}.json", split + "/r_{}.png", camera_angle_x=0.7)
        edit(
            tmp_path,
            lambda meta: [f.update(file_path="./" + f["file_path"][:-4]) for f in meta["frames"]],
            f"transforms_{split}.json",
        )
    scene = load_scene(tmp_path)
    assert (len(scene.train), len(scene.test)) == (6, 3)
    assert len(load_scene(tmp_path, test_split="val").test) == 2
    focal = 8 / math.tan(0.35)
    assert scene.train.intrinsics[0].tolist() == pytest.approx([focal, focal, 8, 6])
    assert scene.aabb.tolist() == [-1.5] * 3 + [1.5] * 3
    assert scene.bounded and scene.n_cascades == 1 and scene.train.has_alpha and scene.cone_angle == 0
    for i in range(6):
        assert np.array_equal(scene.train.image(i).numpy(), iio.imread(tmp_path / f"train/r_{i}.png"))
    assert "6 training and 3 test views, 16x12 RGBA" in scene.describe()


def test_instant_ngp_dialect(tmp_path):
    """Float sizes, distortion, `aabb_scale`; JSON for twice the image size is rescaled; every 8th view is held out."""
    keys = {"fl_x": 40.0, "fl_y": 42.0, "cx": 17.0, "cy": 11.0, "w": 32.0, "h": 24.0, "k1": 0.05, "p2": 1e-3}
    scene = load_scene(write(tmp_path, 17, **keys, aabb_scale=16))
    assert scene.test.names == ("im_000.png", "im_008.png", "im_016.png")
    assert len(scene.train) == 14 and not set(scene.train.names) & set(scene.test.names)
    assert scene.train.intrinsics[0].tolist() == pytest.approx([20, 21, 8.5, 5.5])
    assert scene.train.distortion[0].tolist() == pytest.approx([0.05, 0, 0, 0, 0, 1e-3, *[0] * 10])
    assert not scene.bounded and not scene.train.has_alpha and scene.cone_angle == 1 / 256 and scene.near > 0
    # Cameras sit around the border of cascade 0; the outermost is instant-ngp's box within a factor sqrt 2.
    half = 0.5 * (scene.aabb[3:] - scene.aabb[:3])
    reach = (scene.train.origins - scene.aabb.view(2, 3).mean(0)).abs().amax(-1)
    assert 0.2 < float((reach < half[0]).float().mean()) < 0.8
    outer = 0.5 * float((scene.outer_aabb[3:] - scene.outer_aabb[:3])[0])
    assert 2**-0.5 <= outer / (8 / 0.33) <= 2**0.5
    assert outer == pytest.approx(float(half[0]) * 2 ** (scene.n_cascades - 1), rel=1e-5)


def test_nerfstudio_dialect(tmp_path):
    """Intrinsics per frame, different sizes, file lists, extra keys."""
    folder = write(
        tmp_path, 6, image="images/f_{}.png", camera_model="OPENCV", applied_transform=[[1, 0, 0, 0]] * 3,
        applied_scale=0.5, ply_file_path="x.ply", train_filenames=[f"images/f_{i}.png" for i in range(4)],
        test_filenames=["images/f_5.png"], val_filenames=["images/f_4.png"],
    )  # fmt: skip
    iio.imwrite(folder / "images/f_1.png", np.full((20, 10), 77, dtype=np.uint8))  # grey and of another size
    sizes = [(16, 12)] * 6
    sizes[1] = (10, 20)

    def lenses(meta):
        for i, (f, (w, h)) in enumerate(zip(meta["frames"], sizes, strict=True)):
            f.update(fl_x=20.0 + i, fl_y=21.0, cx=w / 2, cy=h / 2, w=w, h=h, colmap_im_id=i)

    edit(folder, lenses)
    scene = load_scene(folder)
    assert scene.test.names == ("images/f_5.png",) and len(scene.train) == 4
    assert load_scene(folder, test_split="val").test.names == ("images/f_4.png",)
    assert scene.train.intrinsics[:, 0].tolist() == [20, 21, 22, 23]
    assert scene.train.sizes.tolist() == [[16, 12], [10, 20], [16, 12], [16, 12]]
    assert scene.train.image(1).shape == (20, 10, 3) and bool((scene.train.image(1) == 77).all())
    # every pixel in its image
    view, x, y = locate_pixels(torch.arange(len(scene.train.data)), scene.train.offsets, scene.train.sizes)
    assert torch.equal(view.bincount(), scene.train.sizes.prod(1))
    for i in range(4):
        width, height = scene.train.sizes[i].tolist()
        assert torch.equal(y[view == i] * width + x[view == i], torch.arange(width * height))
        assert bool((x[view == i] < width).all())


def test_sampling_is_a_function_of_seed_and_step(tmp_path):
    views = load_scene(write(tmp_path, 3, (4, 3)), holdout=0).train

    def draw(*arguments):
        rays, rgba, noise = views.sample_rays(*arguments)
        return rays.origins, rays.directions, rgba, noise

    first = draw(2000, 5, 1)
    assert [tuple(t.shape) for t in first] == [(2000, 3), (2000, 3), (2000, 4), (2000, 3)]
    assert all(torch.equal(a, b) for a, b in zip(first, draw(2000, 5, 1), strict=True))
    assert all(torch.equal(a[:7], b) for a, b in zip(first, draw(7, 5, 1), strict=True))
    for seed, step in ((5, 2), (6, 1)):
        assert all(bool((a != b).any()) for a, b in zip(first[1:], draw(2000, seed, step)[1:], strict=True))


@pytest.mark.parametrize("kind", ["plain", "distorted", "masked", "survey"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rays_know_their_view_and_its_time(tmp_path, kind, backend):
    """Every view has a colour of its own: the ray's colour says which view it is of."""
    folder = write(tmp_path, 5, (6, 4), fl_x=9.0, **({"k1": 0.02} if kind == "distorted" else {}))
    if kind == "masked":
        iio.imwrite(folder / "mask.png", np.array([[255, 0, 0, 255, 255, 0]] * 4, dtype=np.uint8))
        edit(folder, lambda meta: meta.update(mask_path="mask.png"))
    for i in range(5):
        iio.imwrite(folder / f"im_{i:03d}.png", np.full((4, 6, 3), 50 * i, dtype=np.uint8))

    def change(meta):
        for i, frame in enumerate(meta["frames"]):
            frame["time"] = i * i / 16
            frame["transform_matrix"][0][3] += 5e6 * (kind == "survey")

    edit(folder, change)
    views = load_scene(folder, holdout=0).train
    for seed, step in ((0, 0), (3, 70)):
        rays, rgba, noise = views.sample_rays(300, seed, step, backend, {"camera", "time"})
        expected = (rgba[:, 0] * 255 / 50).round().long()
        assert torch.equal(rays.camera, expected) and expected.unique().numel() == 5
        torch.testing.assert_close(rays.time, expected**2 / 16, check_dtype=False)
        plain, *colors = views.sample_rays(300, seed, step)
        assert all(torch.equal(a, b) for a, b in zip((rgba, noise), colors, strict=True))
        torch.testing.assert_close((rays.origins, rays.directions), (plain.origins, plain.directions))
    assert views.view_rays(3, 1, 9).time.tolist() == [9 / 16] * 8 and views.view_rays(3).camera is None
    assert views.select([4, 2]).times.tolist() == [1, 0.25] == views.select([4, 2]).scaled(2).times.tolist()
    assert views.evenly(3).times.tolist() == [views.times[i].item() for i in (0, len(views) // 3, 2 * len(views) // 3)]
    assert len(views.evenly(99)) == len(views)


def test_rays_are_indexed_and_moved_as_one():
    rays = Rays(torch.rand(6, 3), torch.rand(6, 3), torch.arange(6), torch.rand(6))
    mask = torch.tensor([True, False, True, False, False, True])
    for index in (slice(1, 4), torch.tensor([5, 0]), mask):
        part = rays[index]
        assert torch.equal(part.camera, torch.arange(6)[index]) and torch.equal(part.time, rays.time[index])
        assert torch.equal(part.origins, rays.origins[index]) and torch.equal(part.directions, rays.directions[index])
        assert len(part) == len(part.camera)
    assert len(rays[:0]) == 0 and rays.to("meta").time.device.type == "meta"
    plain = Rays(rays.origins, rays.directions)[2:].to("cpu")
    assert len(plain) == 4 and plain.camera is None and plain.time is None
    with pytest.raises(ValueError, match=r"`time` must have shape \[6\], got \[5\]"):
        Rays(rays.origins, rays.directions, time=torch.rand(5))
    with pytest.raises(ValueError, match=r"`directions` must have shape \[6, 3\], got \[6, 2\]"):
        Rays(rays.origins, rays.directions[:, :2])
    with pytest.raises(ValueError, match="`camera` must be int64, got torch.float32"):
        Rays(rays.origins, rays.directions, torch.rand(6))


@pytest.mark.parametrize("keys", [{"x_fov": 60.0}, {"camera_angle_y": 1.0}, {"x_fov": 60.0, "y_fov": 40.0}])
def test_angles(tmp_path, keys):
    fx, fy = load_scene(write(tmp_path, 2, **keys)).train.intrinsics[0, :2].tolist()
    from_x = 8 / math.tan(math.radians(30))
    from_y = 6 / math.tan(0.5 if "camera_angle_y" in keys else math.radians(20))
    assert fx == pytest.approx(from_x if "x_fov" in keys else from_y)
    assert fy == pytest.approx(from_x if keys.keys() == {"x_fov"} else from_y)


def test_alpha_formats(tmp_path):
    """16 bits, grey + alpha, opaque RGBA."""
    write(tmp_path, 3, (4, 3), 4)
    image = np.full((3, 4, 4), 255, dtype=np.uint8)
    for i in range(3):
        iio.imwrite(tmp_path / f"im_{i:03d}.png", image)
    assert not load_scene(tmp_path).train.has_alpha
    iio.imwrite(tmp_path / "im_001.png", np.full((3, 4), 257 * 100, dtype=np.uint16))
    assert load_scene(tmp_path).train.image(0).unique().tolist() == [100]
    image[..., 3] = 128
    iio.imwrite(tmp_path / "im_002.png", image)
    scene = load_scene(tmp_path)
    assert scene.train.has_alpha and scene.train.image(0)[0, 0].tolist() == [100, 100, 100, 255]
    torch.testing.assert_close(scene.train.image_rgb(1, torch.zeros(3)), torch.full((3, 4, 3), 128 / 255))


def test_downscale_is_a_box_filter_on_premultiplied_alpha(tmp_path):
    write(tmp_path, 2, (4, 4), 4)
    image = np.zeros((4, 4, 4), dtype=np.uint8)
    image[:2, :2] = [[[200, 100, 0, 255], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    iio.imwrite(tmp_path / "im_001.png", image)
    views = load_scene(tmp_path, downscale=2).train
    assert views.image(0)[0, 0].tolist() == [200, 100, 0, 64]
    assert views.intrinsics[0].tolist() == pytest.approx([1 / math.tan(0.35)] * 2 + [1, 1])


def test_downscale_keeps_rays_where_the_size_is_no_multiple(tmp_path):
    """Columns and rows that fill no box are cropped: a reduced pixel is seen along the middle of its pixels."""
    folder = write(tmp_path, 2, (23, 17), fl_x=20.0, cx=11.0, cy=9.0, w=23, h=17)
    full, reduced = (load_scene(folder, holdout=0, downscale=n).train for n in (1, 4))
    assert reduced.sizes.tolist() == [[5, 4]] * 2
    rays_d = reduced.rays(torch.tensor([0]), torch.tensor([1]), torch.tensor([2])).directions
    x, y = (6 - 11) / 20, (10 - 9) / 20  # between columns 4 to 7 and rows 8 to 11
    local = torch.tensor([x, -y, -1.0])
    torch.testing.assert_close(rays_d[0], full.c2w[0, :, :3] @ (local / local.norm()))


def test_times_of_frames(tmp_path):
    """As D-NeRF writes them; all frames have one, or none does."""
    folder = write(tmp_path, 9)
    assert load_scene(folder).train.times is None
    with pytest.raises(SceneError, match="every view must have a `time`, which the field needs"):
        load_scene(folder).train.sample_rays(5, needs={"time"})
    edit(folder, lambda meta: [f.update(time=i / 8) for i, f in enumerate(meta["frames"])])
    scene = load_scene(folder, holdout=4)
    assert scene.test.times.tolist() == [0, 0.5, 1] and scene.train.times.dtype == torch.float32
    assert scene.train.times.tolist() == [i / 8 for i in range(9) if i % 4]
    edit(folder, lambda meta: meta["frames"][3].pop("time"))
    with pytest.raises(SceneError, match=r"frame 3 \(im_003.png\): must have a time, as 5 other views do"):
        load_scene(folder, holdout=4)
    edit(folder, lambda meta: meta["frames"][3].update(time="noon"))
    with pytest.raises(SceneError, match="`time` must be a finite number, got 'noon'"):
        load_scene(folder)


def test_box_from_the_file_and_from_masks(tmp_path):
    scene = load_scene(write(tmp_path, 3, fl_x=20.0, aabb=[[-1, -2, -3], [1, 2, 3]]))
    assert scene.aabb.tolist() == [-1, -2, -3, 1, 2, 3] and scene.bounded
    # A white ball of radius 0.5 around (0.3, 0, 0.1), seen with alpha: the hull's box holds it and little more.
    size = 64
    folder = write(tmp_path / "ball", 12, (size, size), 4, fl_x=80.0, aabb_scale=4)
    centre, radius = torch.tensor([0.3, 0.0, 0.1]), 0.5
    meta = json.loads((folder / "transforms.json").read_text())
    for frame in meta["frames"]:
        c2w = torch.tensor(frame["transform_matrix"])[None, :3]
        cameras = Cameras(c2w, torch.tensor([[80.0, 80.0, 32.0, 32.0]]), torch.tensor([[size, size]]))
        rays = cameras.view_rays(0)
        rays_o, rays_d = rays.origins, rays.directions
        missed = torch.linalg.cross(centre - rays_o, rays_d).norm(dim=-1) > radius
        image = torch.where(missed, 0, 255).view(size, size, 1).expand(-1, -1, 4).byte().numpy()
        iio.imwrite(folder / frame["file_path"], np.ascontiguousarray(image))
    aabb = load_scene(folder).aabb
    assert bool((aabb[:3] < centre - 0.99 * radius).all()) and bool((aabb[3:] > centre + 0.99 * radius).all())
    assert float((aabb[3:] - aabb[:3]).max()) < 1.5


def test_backgrounds():
    assert background_color("white").tolist() == [1, 1, 1]
    assert background_color("#ff8000").tolist() == pytest.approx([1, 128 / 255, 0])
    assert background_color("0.5, 0,1").tolist() == [0.5, 0, 1] == background_color((0.5, 0, 1)).tolist()
    wrong = ("pink", "", "#12345", "#+1+1+1", "0.5,0.5", "0,0,2", "-0.1,0,0", "nan,0,0", "1,1,1,1", (0, 0, 255), None)
    for value in wrong:
        message = "`background` must be white, black, grey, #rrggbb or R,G,B in 0..1, got " + re.escape(repr(value))
        with pytest.raises(ValueError, match=message):
            background_color(value)
    mixed = blend(torch.tensor([[1.0, 0.5, 0.0, 0.25]]), torch.ones(3))
    torch.testing.assert_close(mixed, torch.tensor([[1.0, 0.875, 0.75]]))


# Broken input --------------------------------------------------------------------------------------------------------


def set_pose(value):
    return lambda meta: meta["frames"][2].update(transform_matrix=value)


def changed(row, column, value):
    matrix = pose()
    matrix[row][column] = value
    return matrix


BROKEN = {
    "no frames": (lambda meta: meta.update(frames=[]), "`frames` is empty"),
    "no list": (lambda meta: meta.pop("frames"), "must be a JSON object with a list `frames`, got no `frames`"),
    "3x3": (set_pose(np.eye(3).tolist()), r"frame 2 \(im_002.png\).* must have shape \[4, 4\], got \[3, 3\]"),
    "ragged": (set_pose([[1, 2], [3]]), "must be 4 rows of 4 numbers"),
    "nan": (set_pose(changed(0, 3, math.nan)), r"frame 2 \(im_002.png\).* must be finite"),
    "inf": (set_pose(changed(1, 1, math.inf)), "must be finite"),
    "sheared": (set_pose(changed(0, 0, 3.0)), "must be rigid"),
    "mirrored": (set_pose(np.diag([1.0, 1, -1, 1]).tolist()), "must be rigid .* determinant -1"),
    "no pose": (lambda meta: meta["frames"][2].pop("transform_matrix"), "`transform_matrix` is missing"),
    "no focal length": (lambda meta: meta.pop("camera_angle_x"), "no focal length; give `fl_x`"),
    "nan focal length": (lambda meta: meta.update(fl_x="wide"), "`fl_x` must be a finite number, got 'wide'"),
    "negative focal length": (lambda meta: meta.update(fl_x=-3), "`fl_x` must be a positive number, got -3"),
    "wide angle": (lambda meta: meta.update(camera_angle_x=4), r"within \(0, 180\) degrees"),
    "rotated": (lambda meta: meta.update(w=12, h=16), "`w` x `h` = 12 x 16 .* got 16 x 12; was it rotated"),
    "flag": (lambda meta: meta.update(orthographic=True), "lens must be one of .* got 'orthographic'"),
    "model": (lambda meta: meta.update(camera_model="FISHEYE624"), "got 'FISHEYE624'"),
    "aabb": (lambda meta: meta.update(aabb=[[1, 1, 1], [0, 0, 0]]), "`aabb` must be two corners"),
    "aabb_scale": (lambda meta: meta.update(aabb_scale=-1), "`aabb_scale` must be a positive number, got -1"),
    "all images missing": (
        lambda meta: [f.update(file_path="gone.png") for f in meta["frames"]],
        r"none of its 10 frames has an image on disk \(first: gone.png\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_scene(tmp_path, case):
    change, message = BROKEN[case]
    folder = write(tmp_path)
    edit(folder, change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SceneError, match=message) as caught:
            load_scene(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_broken_files(tmp_path):
    with pytest.raises(SceneError, match="no scene of a known format .transforms, .*procedural.; the folder is empty"):
        load_scene(tmp_path)
    with pytest.raises(SceneError, match="does not exist"):
        load_scene(tmp_path / "nowhere")
    folder = write(tmp_path / "scene")
    with pytest.raises(SceneError, match="did you mean .*scene"):
        load_scene(tmp_path)
    with pytest.raises(SceneError, match="must be a folder or a file of a scene, got .*im_000.png, which is no scene"):
        load_scene(folder / "im_000.png")
    assert len(load_scene(folder / "transforms.json").train) == 8

    (folder / "im_003.png").write_bytes((folder / "im_003.png").read_bytes()[:60])
    with pytest.raises(SceneError, match="im_003.png` cannot be read as an image"):
        load_scene(folder)
    iio.imwrite(folder / "im_003.tiff", np.zeros((12, 16), dtype=np.float32))
    edit(folder, lambda meta: meta["frames"][3].update(file_path="im_003.tiff"))
    with pytest.raises(SceneError, match="must have 8 or 16 bits per channel, got float32"):
        load_scene(folder)
    (folder / "transforms.json").write_text('{\n  "frames": [\n    {"file_path": }\n  ]\n}')
    with pytest.raises(SceneError, match="transforms.json, line 3, column 19: broken JSON"):
        load_scene(folder)
    (folder / "transforms.json").write_text("[]")
    with pytest.raises(SceneError, match="got a list"):
        load_scene(folder)


def test_skipped_frames_warn_once(tmp_path):
    folder = write(tmp_path)

    def change(meta):
        meta["frames"][1]["file_path"] = "gone_a.png"
        meta["frames"][4]["file_path"] = "gone_b"
        del meta["frames"][7]["file_path"]
        meta["frames"][7]["transform_matrix"] = None  # never looked at

    edit(folder, change)
    with pytest.warns(SceneWarning) as caught:
        scene = load_scene(folder)
    messages = [str(w.message) for w in caught]
    assert len(messages) == 2
    assert "skipping 1 frame(s) without `file_path`: 7" in messages[0]
    assert "skipping 2 of 10 frames whose image is missing: gone_a.png, gone_b" in messages[1]
    assert len(scene.train) + len(scene.test) == 7 and scene.test.names == ("im_000.png",)


def test_empty_test_file_holds_out_training_views(tmp_path):
    write(tmp_path, 9, name="transforms_train.json")
    write(tmp_path, 2, name="transforms_test.json", image="test_{}.png")
    for i in range(2):
        (tmp_path / f"test_{i}.png").unlink()
    with pytest.warns(SceneWarning, match="no usable view; holding out"), pytest.warns(SceneWarning, match="missing"):
        scene = load_scene(tmp_path)
    assert (len(scene.train), len(scene.test)) == (7, 2)


# Real scenes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, n_train, n_test, size, bounded",
    [
        ("nerf_synthetic_chair_100/chair", 100, 50, (100, 100), True),
        ("snowmiku_plush_504", 84, 13, (504, 378), False),
        ("suzanne_540", 17, 3, (960, 540), True),
        ("trivial", 4, 1, (512, 512), True),
    ],
)
def test_shared_scenes(shared, name, n_train, n_test, size, bounded):
    folder = shared / "data" / "nerf" / name
    if not folder.is_dir():
        pytest.skip(f"no scene at {folder}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = load_scene(folder)
    assert (len(scene.train), len(scene.test), scene.bounded) == (n_train, n_test, bounded)
    assert tuple(scene.train.sizes[0].tolist()) == size
    rays, rgba, _ = scene.train.sample_rays(1000)
    rays_o, rays_d = rays.origins, rays.directions
    torch.testing.assert_close(rays_d.norm(dim=-1), torch.ones(1000))
    assert rgba.shape == (1000, 4) and float(rgba.max()) <= 1
    # What is opaque lies in the box: rays through opaque pixels meet it.
    inverse = 1 / rays_d
    near, far = (scene.outer_aabb[:3] - rays_o) * inverse, (scene.outer_aabb[3:] - rays_o) * inverse
    hits = torch.minimum(near, far).amax(-1) < torch.maximum(near, far).amin(-1)
    assert bool(hits[rgba[:, 3] > 0.5].all())


def test_keys_that_are_not_read_are_named(tmp_path):
    """What would change a result, and what nobody knows; never what is read or harmless."""
    keys = {"from_na": True, "envmap": "sky.exr", "colour_space": "linear", "sharpness": 3, "applied_scale": 2.0}
    with pytest.warns(SceneWarning) as caught:
        load_scene(write(tmp_path, **keys, fl_x=20.0, white_transparent=False))
    text = " ".join(str(warning.message) for warning in caught)
    assert "`envmap`, which is a picture of the surroundings, `from_na`, which turns the axes" in text
    assert "unknown keys, not read: `colour_space`" in text
    assert not any(word in text for word in ("sharpness", "applied_scale", "fl_x", "white_transparent"))
