"""What every loader promises: the same views, written in its format, are the same scene.

A format is a line of `WRITERS`: it writes the views of `SPLITS` and returns what `load_scene` takes. Formats without a
split of their own have every fourth of all views tested: `every_view` has them in that order.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import re
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

iio = pytest.importorskip("imageio.v3")

from hashgrid.data import scene as scene_module  # noqa: E402
from hashgrid.data.errors import SceneError, SceneWarning  # noqa: E402
from hashgrid.data.images import PhotoError  # noqa: E402
from hashgrid.data.loaders.transforms import scene_name  # noqa: E402
from hashgrid.data.procedural import CAMERA_ANGLE_X, orbit_cameras, render, write_scene  # noqa: E402
from hashgrid.data.scene import LOADERS, SceneOptions, Views, load_scene  # noqa: E402

SIZE = 24
SPLITS = {"train": orbit_cameras(5, SIZE, 6), "test": orbit_cameras(2, SIZE, 7)}  # those of seed 3
FOCAL = SIZE / 2 / math.tan(CAMERA_ANGLE_X / 2)


@pytest.fixture(scope="module")
def images() -> dict[str, list[np.ndarray]]:
    """uint8 [SIZE, SIZE, 4] of all views."""
    return {
        split: [
            np.floor(255 * render(cameras, i).clamp(0, 1).numpy() + 0.5).astype(np.uint8) for i in range(len(cameras))
        ]
        for split, cameras in SPLITS.items()
    }


Images = dict[str, list[np.ndarray]]


@pytest.fixture(scope="module")
def opaque(images: Images) -> Images:
    """Pictures without alpha: there is no hull to be carved, which takes long."""
    return {split: [image[..., :3] for image in part] for split, part in images.items()}


def frames(folder: Path, images: Images, split: str, name: Callable[[int], str], **keys) -> list[dict]:
    """Writes the images of a split, and gives its frames in the manner of transforms.json."""
    result = []
    for i, image in enumerate(images[split]):
        (folder / name(i)).parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(folder / name(i), image)
        matrix = [*SPLITS[split].c2w[i].tolist(), [0, 0, 0, 1]]
        result.append({"file_path": name(i), "transform_matrix": matrix, **keys})
    return result


def blender(folder: Path, images: Images) -> Path:
    """An angle, names without an extension, one file per split."""
    for split in SPLITS:
        listed = frames(folder, images, split, lambda i, split=split: f"{split}/r_{i}.png")
        for frame in listed:
            frame["file_path"] = "./" + frame["file_path"][:-4]
        text = json.dumps({"camera_angle_x": CAMERA_ANGLE_X, "frames": listed})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


def instant_ngp(folder: Path, images: Images) -> Path:
    """The lens for twice the size, the box as in the file; a file for each split, of which one is named."""
    lens = {"fl_x": 2 * FOCAL, "fl_y": 2 * FOCAL, "cx": SIZE, "cy": SIZE, "w": 2.0 * SIZE, "h": 2.0 * SIZE}
    for split in SPLITS:
        listed = frames(folder, images, split, lambda i, split=split: f"images/{split}_{i}.png")
        meta = {**lens, "aabb": [[-1.5] * 3, [1.5] * 3], "frames": listed}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder / "transforms_train.json"


def nerfstudio(folder: Path, images: Images) -> Path:
    """One file, a lens per frame, lists of names."""
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}
    listed = {
        split: frames(folder, images, split, lambda i, s=split: f"images/{s}_{i}.png", **lens) for split in SPLITS
    }
    names = {f"{split}_filenames": [frame["file_path"] for frame in part] for split, part in listed.items()}
    meta = {"camera_model": "OPENCV", "aabb": [[-1.5] * 3, [1.5] * 3], **names}
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": [*listed["test"], *listed["train"]]}))
    return folder


# ---- formats without a split, or with prefixes and folders; their poses by matrices of their own ---------------------

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's axes of a camera to OpenCV's


def every_view(images: Images) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Split, camera to world [4, 4] with OpenGL's axes, and image of all views: every fourth is a test view."""
    rest = {split: iter(zip(SPLITS[split].c2w.double().numpy(), images[split], strict=True)) for split in SPLITS}
    order = ["train" if i % 4 else "test" for i in range(7)]
    return [(split, np.vstack((pose, [0, 0, 0, 1])), image) for split in order for pose, image in [next(rest[split])]]


def put(file: Path, content: np.ndarray | str | bytes) -> None:
    """Writes an image, text or bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        iio.imwrite(file, content)
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def matrix_text(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.12g}" for x in row) for row in np.atleast_2d(matrix)) + "\n"


LENS = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])


def colmap_rows(images: Images) -> list[tuple[int, np.ndarray, np.ndarray, str, np.ndarray]]:
    """Number, quaternion w x y z and translation of the world in the camera, name, image."""
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    rows = []
    for i, (_, c2w, image) in enumerate(every_view(images)):
        w2c = np.linalg.inv(c2w @ FLIP)
        rows.append(
            (i + 5, rotation.from_matrix(w2c[:3, :3]).as_quat()[[3, 0, 1, 2]], w2c[:3, 3], f"a b/{i}.png", image)
        )
    return rows


def colmap_text(folder: Path, images: Images) -> Path:
    """Comments, a line of points that is empty and one that is not, names with blanks, images out of order."""
    lines = ["# Image list", "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"]
    for number, q, t, name, image in reversed(colmap_rows(images)):
        put(folder / "images" / name, image)
        lines += [f"{number} {' '.join(f'{x:.17g}' for x in (*q, *t))} 3 {name}", "1.5 2.5 -1" if number % 2 else ""]
    put(folder / "sparse/0/images.txt", "\n".join(lines) + "\n")
    put(folder / "sparse/0/cameras.txt", f"# c\n3 SIMPLE_PINHOLE {SIZE} {SIZE} {FOCAL:.17g} {SIZE / 2} {SIZE / 2}\n")
    put(folder / "sparse/0/points3D.txt", "# p\n1 0.1 0.2 0.3 255 0 0 0.5 5 0\n")
    return folder


def colmap_binary(folder: Path, images: Images) -> Path:
    """The larger of two models; an image that is not there."""
    rows = colmap_rows(images)
    cameras = struct.pack("<QIiQQ4d", 1, 3, 1, SIZE, SIZE, FOCAL, FOCAL, SIZE / 2, SIZE / 2)
    put(folder / "sparse/0/cameras.bin", cameras)
    put(folder / "sparse/1/cameras.bin", cameras)
    points = struct.pack("<QQ3d3BdQII", 1, 9, 0.1, 0.2, 0.3, 255, 0, 0, 0.5, 1, 5, 0)
    put(folder / "sparse/1/points3D.bin", points)
    for model, part in ((0, rows[:2]), (1, [*rows, (99, rows[0][1], rows[0][2], "missing.png", None)])):
        data = struct.pack("<Q", len(part))
        for number, q, t, name, image in part:
            data += struct.pack("<I7dI", number, *q, *t, 3) + name.encode() + b"\0"
            data += struct.pack("<Qddq", 1, 1.5, 2.5, -1) if number % 2 else struct.pack("<Q", 0)
            if image is not None:
                put(folder / "images" / name, image)
        put(folder / f"sparse/{model}/images.bin", data)
    return folder


def llff(folder: Path, images: Images) -> Path:
    rows = []
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"images/im_{i}.png", image)
        right, up, back, origin = c2w[:3].T
        hwf = [2 * SIZE, 2 * SIZE, 2 * FOCAL]
        rows.append([*np.stack((-up, right, back, origin, hwf), axis=1).reshape(-1), 2.0, 6.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def nsvf(folder: Path, images: Images) -> Path:
    for split, prefix in (("train", 0), ("test", 2)):
        for i, image in enumerate(images[split]):
            put(folder / f"rgb/{prefix}_{i:04d}.png", image)
            pose = np.vstack((SPLITS[split].c2w[i].double().numpy(), [0, 0, 0, 1])) @ FLIP
            put(folder / f"pose/{prefix}_{i:04d}.txt", matrix_text(pose))
    matrix = np.eye(4)
    matrix[:3, :3] = LENS
    put(folder / "intrinsics.txt", matrix_text(matrix))
    put(folder / "bbox.txt", "-1.5 -1.5 -1.5 1.5 1.5 1.5 0.1\n")
    return folder


def idr(folder: Path, images: Images) -> Path:
    """Masks beside opaque images; another scale and sign of each projection, another place of the unit sphere."""
    cameras, scale = {}, np.diag([1.5, 1.5, 1.5, 1.0])
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"image/{i:06d}.png", image[..., :3])
        put(folder / f"mask/{i:03d}.png", np.repeat(image[..., 3:], 3, axis=2))
        world = np.eye(4)  # their pixels are numbered at their middles
        world[:3] = (LENS - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]) @ np.linalg.inv(c2w @ FLIP)[:3] * (-1) ** i * (i + 1)
        cameras |= {f"world_mat_{i}": world, f"scale_mat_{i}": scale}
    np.savez(folder / "cameras_sphere.npz", **cameras)
    return folder


def nerfpp(folder: Path, images: Images) -> Path:
    matrix = np.eye(4)
    matrix[:3, :3] = LENS
    for split in SPLITS:
        for i, image in enumerate(images[split]):
            put(folder / split / f"rgb/{i:04d}.png", image)
            pose = np.vstack((SPLITS[split].c2w[i].double().numpy(), [0, 0, 0, 1])) @ FLIP
            put(folder / split / f"pose/{i:04d}.txt", matrix_text(pose.reshape(1, -1)))
            put(folder / split / f"intrinsics/{i:04d}.txt", matrix_text(matrix.reshape(1, -1)))
    return folder


def mvsnet(folder: Path, images: Images) -> Path:
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"blended_images/{i:08d}.png", image)
        put(folder / f"blended_images/{i:08d}_masked.png", image)
        put(folder / f"images/{i:08d}.png", image)  # the same views, which are not to be read twice
        w2c = matrix_text(np.linalg.inv(c2w @ FLIP))
        text = f"extrinsic\n{w2c}\nintrinsic\n{matrix_text(LENS)}\n2.0 0.03 128 6.0\n"
        put(folder / f"cams/{i:08d}_cam.txt", text)
    return folder


def nerfies(folder: Path, images: Images) -> Path:
    """Cameras for twice the size; a view that nobody lists."""
    ids: dict[str, list[str]] = {"train": [], "test": []}
    for split in SPLITS:
        for i, image in enumerate(images[split]):
            name = f"{split}_{i}"
            ids[split].append(name)
            put(folder / f"rgb/2x/{name}.png", image)
            c2w = np.vstack((SPLITS[split].c2w[i].double().numpy(), [0, 0, 0, 1])) @ FLIP
            camera = {
                "orientation": np.linalg.inv(c2w)[:3, :3].tolist(), "position": c2w[:3, 3].tolist(),
                "focal_length": 2 * FOCAL, "principal_point": [SIZE, SIZE], "image_size": [2 * SIZE, 2 * SIZE],
                "skew": 0.0, "pixel_aspect_ratio": 1.0, "radial_distortion": [0, 0, 0], "tangential": [0, 0],
            }  # fmt: skip
            put(folder / f"camera/{name}.json", json.dumps(camera))
    put(folder / "dataset.json", json.dumps({"train_ids": ids["train"], "val_ids": ids["test"]}))
    put(folder / "scene.json", json.dumps({"scale": 0.5, "center": [1, 2, 3], "near": 1.0, "far": 3.0}))
    return folder


def scannet(folder: Path, images: Images) -> Path:
    """A frame whose tracking is lost, and numbers that do not sort as words."""
    matrix = np.eye(4)
    matrix[:3, :3] = LENS - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    put(folder / "intrinsic/intrinsic_color.txt", matrix_text(matrix))
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"color/{8 + i}.png", image)
        put(folder / f"pose/{8 + i}.txt", matrix_text(c2w @ FLIP))
    put(folder / "color/3.png", images["test"][0])
    put(folder / "pose/3.txt", matrix_text(np.full((4, 4), -np.inf)))
    return folder


def nice_slam(folder: Path, images: Images) -> Path:
    room, lines = folder / "room0", []
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(room / f"results/frame{i:06d}.png", image)
        put(room / f"results/depth{i:06d}.png", image[..., 0])
        lines.append(matrix_text((c2w @ FLIP).reshape(1, -1)))
    put(room / "traj.txt", "".join(lines))
    camera = {"w": SIZE, "h": SIZE, "fx": FOCAL, "fy": FOCAL, "cx": SIZE / 2 - 0.5, "cy": SIZE / 2 - 0.5}
    put(folder / "cam_params.json", json.dumps({"camera": camera}))
    return room


def semantic_nerf(folder: Path, images: Images, labels: list[np.ndarray]) -> Path:
    """Pictures that are taken for 90 degrees wide, with maps of labels; numbers are not padded."""
    lines = []
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"rgb/rgb_{i}.png", image)
        put(folder / f"semantic_class/semantic_class_{i}.png", labels[i])
        lines.append(matrix_text((c2w @ FLIP).reshape(1, -1)))
    put(folder / "traj_w_c.txt", "".join(lines))
    return folder


def polycam(folder: Path, images: Images) -> Path:
    """Cameras of the corrected images, and others that are not to be read."""
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"keyframes/corrected_images/{i}.png", image)
        put(folder / f"keyframes/images/{i}.png", image)
        camera = {f"t_{row}{column}": c2w[row, column] for row in range(3) for column in range(4)}
        lens = {"fx": 2 * FOCAL, "fy": 2 * FOCAL, "cx": SIZE, "cy": SIZE, "width": 2 * SIZE, "height": 2 * SIZE}
        put(folder / f"keyframes/corrected_cameras/{i}.json", json.dumps({**camera, **lens, "blur_score": 9}))
        put(folder / f"keyframes/cameras/{i}.json", "{}")
    return folder


def record3d(folder: Path, images: Images) -> Path:
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    poses = []
    for i, (_, c2w, image) in enumerate(every_view(images)):
        put(folder / f"rgbd/{i}.png", image)
        poses.append([*rotation.from_matrix(c2w[:3, :3]).as_quat(), *c2w[:3, 3]])
    put(folder / "metadata", json.dumps({"poses": poses, "K": LENS.T.reshape(-1).tolist(), "w": SIZE, "h": SIZE}))
    return folder


WRITERS: dict[tuple[str, str], Callable[[Path, Images], Path]] = {
    ("transforms", "Blender"): blender,
    ("transforms", "instant-ngp"): instant_ngp,
    ("transforms", "nerfstudio"): nerfstudio,
    ("transforms", "written scene"): lambda folder, images: write_scene(folder, 5, 2, SIZE, seed=3),
    ("colmap", "text"): colmap_text,
    ("colmap", "binary"): colmap_binary,
    ("llff", "half size"): llff,
    ("nsvf", "prefixes"): nsvf,
    ("idr", "masks"): idr,
    ("nerfpp", "folders"): nerfpp,
    ("mvsnet", "BlendedMVS"): mvsnet,
    ("nerfies", "half size"): nerfies,
    ("scannet", "lost frame"): scannet,
    ("replica", "NICE-SLAM"): nice_slam,
    ("polycam", "corrected"): polycam,
    ("record3d", "metadata"): record3d,
    ("procedural", "name"): lambda folder, images: Path(f"procedural:seed=3,train=5,test=2,resolution={SIZE}"),
}


OWN_BOX = ("transforms", "nsvf", "idr", "procedural")  # formats that say what to reconstruct


@pytest.fixture(autouse=True)
def _expected_warnings() -> Iterator[None]:
    """Of what the writers leave out."""
    with warnings.catch_warnings():
        for message in ("that are not there", "not connected", "tracking was lost"):
            warnings.filterwarnings("ignore", f".*{message}", SceneWarning)
        yield


def expect_views(views: Views, split: str, images: list[np.ndarray]) -> None:
    cameras = SPLITS[split]
    torch.testing.assert_close(views.c2w, cameras.c2w, rtol=0, atol=1e-6)
    torch.testing.assert_close(views.intrinsics, torch.tensor([[FOCAL, FOCAL, SIZE / 2, SIZE / 2]] * len(images)))
    assert views.sizes.tolist() == [[SIZE, SIZE]] * len(images) and not views.is_distorted
    assert views.counts is None and views.times is None and len(set(views.names)) == len(images)
    for view, image in enumerate(images):
        assert np.array_equal(views.image(view).numpy(), image)


def test_every_loader_is_tested() -> None:
    assert {name for name, _ in WRITERS} == set(LOADERS)


@pytest.mark.parametrize(("name", "dialect"), WRITERS, ids=map("-".join, WRITERS))
def test_same_views_are_the_same_scene(name: str, dialect: str, images: Images, tmp_path: Path) -> None:
    path = WRITERS[name, dialect](tmp_path, images)
    scene = load_scene(path, holdout=4)
    expect_views(scene.train, "train", images["train"])
    expect_views(scene.test, "test", images["test"])
    if name in OWN_BOX:
        assert scene.aabb.tolist() == [-1.5] * 3 + [1.5] * 3
        assert (scene.n_cascades, scene.bounded, scene.near, scene.backdrop) == (1, True, 0.0, None)
        assert scene.normalized() is scene
    torch.testing.assert_close(scene.up.norm(), torch.tensor(1.0))
    assert scene.up[2] > 0.3 and scene.split != "none"
    assert not set(scene.name + scene_name(path)) & set('/\\:*?"<>|')
    # its path finds it again, and it is of one format only
    again = load_scene(scene.path, SceneOptions(format=name, holdout=4))
    assert again.name == scene.name and torch.equal(again.train.data, scene.train.data)
    for other in set(LOADERS) - {name}:
        with pytest.raises(SceneError):
            load_scene(path, format=other)


MARK = Path(__file__).parents[1] / "benchmarks" / "marks" / "loaders.py"
PLAIN = ("Blender", "LLFF", "Record3D", "Replica, Semantic-NeRF")  # of one focal length, about the middle


@pytest.mark.skipif(not MARK.is_file(), reason="no benchmarks beside the tests")
def test_rays_are_those_of_the_cameras_that_were_written(tmp_path: Path) -> None:
    """Of rolled cameras with two focal lengths and a centre aside, in pictures that are wider than high; what the
    benchmark compares with the authors' rays."""
    spec = importlib.util.spec_from_file_location("marks_loaders", MARK)
    assert spec is not None and spec.loader is not None
    mark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mark)
    y, x = np.mgrid[: mark.HEIGHT, : mark.WIDTH].reshape(2, -1) + 0.5
    for i, (name, (format, write, *_)) in enumerate(mark.PEERS.items()):
        if name.startswith(("nerfstudio", "instant", "COLMAP", "Nerfies", "Hyper")) or name in ("D-NeRF", "NeuS"):
            continue  # lenses that bend; the same again
        lens = mark.SQUARE if name in PLAIN else mark.K
        if name == "Replica, Semantic-NeRF":  # 90 degrees
            lens = lens * np.array([[mark.WIDTH / 2 / mark.FX, 1, 1], [1, mark.WIDTH / 2 / mark.FX, 1], [1, 1, 1]])
        local = np.linalg.inv(lens) @ np.stack((x, y, np.ones_like(x)))
        local /= np.linalg.norm(local, axis=0)
        expected = np.einsum("nij,jp->npi", (mark.POSES @ mark.FLIP)[:, :3, :3], local)
        origins, directions = mark.ours(write(tmp_path / str(i)), format, 0.0)
        assert np.abs(directions - expected).max() < 1e-6, name
        assert np.abs(origins - mark.POSES[:, None, :3, 3]).max() < 1e-6, name


@pytest.mark.parametrize(("name", "dialect"), WRITERS, ids=map("-".join, WRITERS))
def test_images_are_reduced(name: str, dialect: str, images: Images, tmp_path: Path) -> None:
    views = load_scene(WRITERS[name, dialect](tmp_path, images), downscale=2, holdout=4).train
    half = SIZE // 2
    assert views.sizes.tolist() == [[half, half]] * 5
    torch.testing.assert_close(views.intrinsics, torch.tensor([[FOCAL / 2, FOCAL / 2, half / 2, half / 2]] * 5))
    for view, image in enumerate(images["train"]):
        rgba = image.reshape(half, 2, half, 2, 4).astype(np.float64)
        alpha = rgba[..., 3:].mean((1, 3))
        premultiplied = (rgba[..., :3] * rgba[..., 3:]).mean((1, 3)) / np.maximum(alpha, 1e-9)
        expected = np.concatenate((premultiplied, alpha), axis=-1)
        assert np.abs(views.image(view).numpy() - expected).max() <= 0.5 + 1e-3


def label_maps() -> list[np.ndarray]:
    """Of seven views, each another one, with void and the largest number."""
    return [np.random.default_rng(i).choice([0, 1, 2, 200, 255], (SIZE, SIZE)).astype(np.uint8) for i in range(7)]


@pytest.mark.parametrize("downscale", [1, 3])
def test_replica_has_labels(downscale: int, opaque: Images, tmp_path: Path) -> None:
    """0 is void, 1 the first class; reduced pictures have the labels of the middles of their pixels."""
    given = label_maps()
    scene = load_scene(semantic_nerf(tmp_path, opaque, given), downscale=downscale, holdout=4)
    held_out = range(3, 7, 4) if len(scene.test) == 1 else range(0, 7, 4)
    for views, numbers in ((scene.test, held_out), (scene.train, [i for i in range(7) if i not in held_out])):
        for view, i in enumerate(numbers):
            middles = given[i][downscale // 2 :: downscale, downscale // 2 :: downscale].astype(int)
            expected = np.where(middles == 0, 255, middles - 1)
            assert np.array_equal(views.label_map(view), expected) and views.names[view] == f"rgb_{i}.png"
    assert scene.n_classes == 255 and "labels of 255 classes on" in scene.describe()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: labels[1:], r"labels must be one channel .* rgb_2.png, 24x24, got 24x23 and 1 channel\(s\)"),
        (lambda labels: np.stack((labels, labels), -1), r"labels must be one channel .* got 24x24 and 2 channel\(s\)"),
        (lambda labels: labels.astype(np.uint16) + 256, r"labels must be at most 255, .* got 511; number the classes"),
        (None, r"every image must have labels, 1 of 7 have none: rgb_2.png; save them, 0 for void"),
    ],
)
def test_wrong_labels_are_one_error(change: Callable | None, said: str, opaque: Images, tmp_path: Path) -> None:
    file = semantic_nerf(tmp_path, opaque, label_maps()) / "semantic_class" / "semantic_class_2.png"
    if change is None:
        file.unlink()
    else:
        put(file, change(label_maps()[2]))
    with pytest.raises(SceneError, match=said) as error:
        load_scene(tmp_path)
    assert str(tmp_path / "semantic_class") in str(error.value)


def test_record3d_has_a_lens_for_each_frame(opaque: Images, tmp_path: Path) -> None:
    file = record3d(tmp_path, opaque) / "metadata"
    meta = json.loads(file.read_text())
    lenses = [[FOCAL + i, FOCAL + 2 * i, SIZE / 2 + 0.1 * i, SIZE / 2] for i in range(7)]
    file.write_text(json.dumps({**meta, "perFrameIntrinsicCoeffs": lenses}))
    torch.testing.assert_close(load_scene(tmp_path, holdout=0).train.intrinsics, torch.tensor(lenses))


def test_nsvf_has_lenses_in_two_forms(opaque: Images, tmp_path: Path) -> None:
    """Its first scenes have a focal length and the centre, and other numbers after them."""
    nsvf(tmp_path, opaque)
    lens = f"{FOCAL} 12.5 11.5 0.\n0. 0. 0.\n1.\n{SIZE} {SIZE}\n"
    (tmp_path / "intrinsics.txt").write_text(lens)
    expected = torch.tensor([[FOCAL, FOCAL, 12.5, 11.5]] * 5)
    torch.testing.assert_close(load_scene(tmp_path).train.intrinsics, expected)


def test_no_view_is_trained_on_and_tested(opaque: Images, tmp_path: Path) -> None:
    """Whatever lists or links say."""
    nerfies(tmp_path / "a", opaque)
    dataset = {"train_ids": ["train_0", "train_1", "test_0"], "val_ids": ["test_0", "test_1"]}
    (tmp_path / "a/dataset.json").write_text(json.dumps(dataset))
    with pytest.warns(SceneWarning, match=r"not training on 1 view\(s\) that are test views, too: test_0"):
        scene = load_scene(tmp_path / "a")
    assert scene.train.names == ("train_0", "train_1") and scene.test.names == ("test_0", "test_1")
    nerfpp(tmp_path / "b", opaque)
    for i in range(5):
        (tmp_path / f"b/train/rgb/{i:04d}.png").unlink()
        (tmp_path / f"b/train/rgb/{i:04d}.png").symlink_to(tmp_path / "b/test/rgb/0000.png")
    with pytest.raises(SceneError, match="leaves no training view"), warnings.catch_warnings():
        warnings.simplefilter("ignore", SceneWarning)
        load_scene(tmp_path / "b")


@pytest.mark.parametrize(
    ("write", "file", "old", "new", "message"),
    [
        (nsvf, "intrinsics.txt", "358 0 12", "358 5 12", "axes of pixels must be at right angles, got a skew of 5"),
        (nerfpp, "test/intrinsics/0001.txt", " 33.", " -33.", r"0001.txt: focal lengths must be positive, all finite"),
        (scannet, "intrinsic/intrinsic_color.txt", "11.5", "1e20", "focal lengths must be positive, all finite"),
        (nice_slam, "cam_params.json", '"camera"', '"lens"', r"cam_params.json, `camera`: `fx` is missing"),
        (mvsnet, "cams/00000001_cam.txt", " 6.0", " 6.0 7.0", "9 numbers and depths, got"),
        (blender, "transforms_train.json", "train/r_1", "train/r_0", "frame 1: ./train/r_0 must be in one frame, it"),
        (nerfies, "dataset.json", "train_1", "train_0", "`train_ids` must have a name once, more often are train_0"),
        (nerfies, "camera/train_1.json", "[48, 48]", "[48, 36]", "must have the shape of `image_size`, 48x36"),
        (polycam, "keyframes/corrected_cameras/3.json", '"t_03": ', '"t_03": 3e30, "t": ', "must be within 1e.12 of"),
    ],
)  # fmt: skip
def test_what_was_read_in_silence(
    write: Callable[[Path, Images], Path], file: str, old: str, new: str, message: str, opaque: Images, tmp_path: Path
) -> None:
    path = write(tmp_path, opaque)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(SceneError, match=message):
        load_scene(path)


@pytest.mark.parametrize(("write", "image"), [
    (nerfpp, "train/rgb/0001.png"), (mvsnet, "blended_images/00000001.png"), (scannet, "color/9.png"),
    (polycam, "keyframes/corrected_images/1.png"),
])  # fmt: skip
def test_cameras_without_an_image_are_named(
    write: Callable[[Path, Images], Path], image: str, opaque: Images, tmp_path: Path
) -> None:
    path = write(tmp_path, opaque)
    (tmp_path / image).unlink()
    with pytest.warns(
        SceneWarning, match=rf"skipping 1 camera\(s\) without an image: 0*{Path(image).stem.lstrip('0')}"
    ):
        load_scene(path)


@pytest.mark.parametrize("text", ["procedural:size=3", "procedural:train", "procedural:seed=-1", "procedural:test=two"])
def test_wrong_names_of_the_procedural_scene(text: str) -> None:
    with pytest.raises(
        SceneError, match="must be procedural:train=N,test=N,resolution=N,seed=N or fewer of these, got"
    ):
        load_scene(text)


def test_a_loader_is_one_module_and_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before or behind the others as it is listed, and can be named."""
    toy = ModuleType("hashgrid.data.loaders.toy")
    toy.matches = lambda path: (path / "toy.txt").is_file()
    made: list[SceneOptions] = []
    toy.load = lambda path, options: made.append(options) or load_scene("procedural:train=1,test=1,resolution=8")
    monkeypatch.setitem(sys.modules, "hashgrid.data.loaders.toy", toy)
    monkeypatch.setattr(scene_module, "LOADERS", ("toy", *LOADERS))
    folder = write_scene(tmp_path / "both", 1, 1, 8)
    (folder / "toy.txt").touch()
    assert len(load_scene(folder, downscale=3).train) == 1 and made == [SceneOptions(downscale=3)]
    assert load_scene(folder, format="transforms").split == "transforms_test.json" and len(made) == 1
    load_scene(folder, format="toy")
    assert len(made) == 2
    monkeypatch.setattr(scene_module, "LOADERS", (*LOADERS, "toy"))
    load_scene(folder)
    assert len(made) == 2
    with pytest.raises(
        ValueError, match="`format` must be one of .*'transforms', .*'procedural', 'toy'.*, got 'bundler'"
    ):
        load_scene(folder, format="bundler")
    (tmp_path / "above" / "inside").mkdir(parents=True)
    (tmp_path / "above" / "inside" / "toy.txt").touch()
    with pytest.raises(SceneError, match=r"did you mean .*inside\?"):
        load_scene(tmp_path / "above")


# ---- broken scenes ---------------------------------------------------------------------------------------------------


def first_of_each_kind(folder: Path) -> list[Path]:
    """One file of each place and ending: what a loader reads in one way."""
    found: dict[tuple[str, str], Path] = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        place, stem = (
            re.sub(r"\d+|train|test", "", text) for text in (str(file.relative_to(folder).parent), file.stem)
        )
        kind = place, file.suffix + stem[:4]
        found.setdefault(kind, file)
    return list(found.values())


def with_nan(file: Path, data: bytes) -> bytes:
    """The last number of a text, or the last double of a binary file, that is no number."""
    if b"\0" in data:
        return data[:-16] + struct.pack("<d", math.nan) + data[-8:]
    return with_number(data, -1, b"NaN")


def with_number(data: bytes, which: int, number: bytes) -> bytes:
    """Another number in a text."""
    found = [*re.finditer(rb"-?\d+\.\d+(e-?\d+)?", data)]
    return data if not found else data[: found[which].start()] + number + data[found[which].end() :]


def with_huge_number(file: Path, data: bytes) -> bytes:
    if is_image(file):  # width and height
        return data[:16] + struct.pack(">II", 100_000, 100_000) + data[24:]
    if file.suffix == ".npy":
        return saved(np.load(file) * np.where(np.arange(17) == 3, 1e300, 1.0))  # the place of the camera
    if file.suffix == ".npz":
        return saved({key: value * np.array([1e300, 1, 1, 1])[:, None] for key, value in np.load(file).items()})
    if b"\0" in data:  # the last double of the first entry
        place = {"cameras": 56, "images": 60, "points3D": 16}[file.stem]
        return data[:place] + struct.pack("<d", 1e300) + data[place + 8 :]
    return with_number(with_number(data, len(re.findall(rb"\d\.\d", data)) // 2, b"1e300"), 0, b"1e300")


def with_wrong_shape(file: Path, data: bytes) -> bytes:
    """An image of other sides, arrays of fewer columns or rows, a text that lacks a number, a file that goes on."""
    if is_image(file):
        return saved(iio.imread(file)[:-7], ".png")
    if file.suffix == ".npy":
        return saved(np.load(file)[:, :-1])
    if file.suffix == ".npz":
        return saved({key: value[:2] for key, value in np.load(file).items()})
    if b"\0" in data:
        return data + bytes(8)
    found = [*re.finditer(rb"[\s,\[]-?\d+\.\d+(e-?\d+)?(?=[\s,\]])", data)]
    chosen = found[len(found) // 2] if found else None
    return data if chosen is None else data[: chosen.start() + 1] + data[chosen.end() :].lstrip(b" ,\n")


def saved(content: np.ndarray | dict, ending: str = "") -> bytes:
    """The bytes of a `.npy`, a `.npz` or an image."""
    stream = io.BytesIO()
    if ending:
        iio.imwrite(stream, content, extension=ending)
    elif isinstance(content, dict):
        np.savez(stream, **content)
    else:
        np.save(stream, content)
    return stream.getvalue()


def is_image(file: Path) -> bool:
    return file.suffix == ".png"


Damage = Callable[[Path, bytes], bytes | None]
DAMAGE: dict[str, Damage] = {
    "missing": lambda file, data: None,
    "empty": lambda file, data: b"",
    "cut in half": lambda file, data: data[: len(data) // 2],
    "one byte short": lambda file, data: data[:-1],
    "not UTF-8": lambda file, data: b"\xff\xfe\xfa" + data[3:],
    "something else": lambda file, data: b"GIF89a\x01\x02" * 8,
    "no number": with_nan,
    "doubled": lambda file, data: data + data,
    "huge count": lambda file, data: struct.pack("<Q", 1 << 60) + data[8:],
    "huge number": with_huge_number,
    "wrong shape": with_wrong_shape,
    "text": lambda file, data: b"pose of a camera that nobody knows\n" * 3,
}
HARMLESS = {  # files that are not read, or not needed
    *("points3D.txt", "points3D.bin", "bbox.txt", "depth000000.png"),
    *("blended_images/00000000_masked.png", "images/00000000.png"),
    *("keyframes/images/0.png", "keyframes/cameras/0.json", "sparse/0/cameras.bin", "sparse/0/images.bin"),
}


def complaints(path: Path, name: str, root: Path) -> list[str]:
    """What is said of a scene: an error, or warnings; nothing else is raised, and nothing is read as numbers that are
    none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            scene = load_scene(path, format=name, holdout=4, cut_out_backdrop=False)
        except ValueError as error:
            assert type(error) in (SceneError, PhotoError), repr(error)
            message = str(error)
            assert "\n" not in message and len(message) < 500 and str(root) in message, message
            return [message]
    assert all(issubclass(warning.category, SceneWarning) for warning in caught), [str(w.message) for w in caught]
    for views in (scene.train, scene.test):
        for tensor in (views.c2w.float(), views.intrinsics, views.distortion):
            assert tensor.isfinite().all()
        assert (views.intrinsics[:, :2] > 0).all()
    assert scene.aabb.float().isfinite().all()
    return sorted(str(warning.message) for warning in caught)


QUICK = {("transforms", "nerfstudio"), ("colmap", "binary"), ("llff", "half size")}  # text, structures, arrays
BROKEN = [
    key if key in QUICK else pytest.param(*key, marks=pytest.mark.full)
    for key in WRITERS
    if key[0] != "procedural" and key[1] not in ("written scene", "instant-ngp")
]


@pytest.mark.parametrize(("name", "dialect"), BROKEN)
def test_damaged_files_are_named(name: str, dialect: str, images: Images, opaque: Images, tmp_path: Path) -> None:
    """A file that is damaged in any of these ways is told, by its name or its folder's, or changes nothing."""
    path = WRITERS[name, dialect](tmp_path, images if name == "idr" else opaque)
    before, told = complaints(path, name, tmp_path), set()
    for file in first_of_each_kind(tmp_path):
        whole = file.read_bytes()
        needed = str(file.relative_to(tmp_path)) not in HARMLESS and file.name not in HARMLESS
        for kind, damage in DAMAGE.items():
            if is_image(file) and kind in ("no number", "one byte short", "doubled", "huge count", "text"):
                continue  # pictures of test_photos
            data = damage(file, whole)
            if data == whole:
                continue
            if data is None:
                file.unlink()
            else:
                file.write_bytes(data)
            new = [message for message in complaints(path, name, tmp_path) if message not in before]
            told |= {kind} if new else set()
            if (
                needed
                and (kind, file.suffix) != ("doubled", ".npz")
                and kind not in ("one byte short", "missing", "wrong shape", "no number", "huge number")
            ):
                assert new, (file, kind)
            for message in new:
                assert file.name in message or file.stem in message or str(file.parent) in message, (kind, message)
            file.write_bytes(whole)
    expected = set(DAMAGE) - {"one byte short", *(("doubled",) if name == "idr" else ())}  # an end of a line; a zip
    assert expected <= told, (name, expected - told)


def copied(file: Path, name: bytes) -> Path:
    """A copy beside a file, by a name that need not be UTF-8."""
    copy = Path(os.fsdecode(os.fsencode(file.parent) + b"/" + name + os.fsencode(file.suffix)))
    shutil.copy(file, copy)
    return copy


LISTED = ("transforms", "colmap", "nerfies")  # formats that name their images: others are none of theirs


@pytest.mark.parametrize(("name", "dialect"), BROKEN)
def test_images_that_are_too_many(name: str, dialect: str, images: Images, opaque: Images, tmp_path: Path) -> None:
    """Of a camera that nobody knows, of a name that is not UTF-8, or the same one twice: told, or no view."""
    path = WRITERS[name, dialect](tmp_path, images if name == "idr" else opaque)
    before = complaints(path, name, tmp_path)
    views = load_scene(path, format=name, holdout=0).train
    found = [f for f in sorted(tmp_path.rglob(f"{Path(views.names[0]).stem}.png")) if f.parent.name != "mask"]
    image, n_views = found[0], len(views)  # of Polycam's, `corrected_images` comes first
    for name_of_copy in (b"zz_stranger", b"zz_\xff\xe9", b"twice"):
        copy = copied(image, name_of_copy)
        if name_of_copy == b"twice":
            copy = copy.rename(image.with_suffix(".jpg"))
        new = [message for message in complaints(path, name, tmp_path) if message not in before]
        assert new or name in LISTED, copy
        if not new:
            assert len(load_scene(path, format=name, holdout=0).train) == n_views
        copy.unlink()


@pytest.mark.parametrize("write", [colmap_text, llff])
def test_transparent_captures_have_the_box_of_their_object(
    write: Callable, images: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    """Formats that know of no box: what images show is bounded, and so is the scene, whatever depths say."""
    scene = load_scene(write(tmp_path, images), holdout=4)
    assert scene.bounded and scene.n_cascades == 1
    low, high = scene.aabb.split(3)
    assert bool((low < -1.0).all()) and bool((high[:2] > 1.0).all())  # the disc is 2.6 across
    assert float((high - low).max()) < 5
