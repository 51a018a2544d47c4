"""Whether rays of our loaders are those of the authors' own code, through every pixel of the same folder.

    git clone https://github.com/bmild/nerf PEERS/bmild/nerf  # and so on, as `PEERS` below has them
    python benchmarks/marks/loaders.py PEERS

A folder of each format is written with cameras that are known and nothing that is symmetric: pictures of 36 x 28, both
focal lengths, a centre that is not the middle, where a format has them. The authors' loader and ours read it, each
makes its rays, and those are compared: origins in units of the scene (cameras are 4 from what they look at), unit
directions.
Some authors shoot rays through the upper left corners of pixels, though their files have the centre between the middle
ones: `corner` is how far, in pixels, and ours are shot through the same places. Of ours, three are wrong on purpose for
each format: mirrored, half a pixel to the side, and moved by a thousandth; these have to differ.

Nothing of the authors is here: their modules are imported from PEERS, with whatever they import and do not need for
this left empty. OpenCV and jaxtyping have to be installed. Writes results/loaders.json; rows whose code is not in PEERS
are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import math
import struct
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import imageio.v3 as iio
import numpy as np
import torch

from hashgrid.data.scene import load_scene
from hashgrid.geometry.cameras import look_at
from hashgrid.util.files import atomic_write_json

RESULTS = Path(__file__).parent / "results" / "loaders.json"
WIDTH, HEIGHT, N = 36, 28, 4
FX, FY, CX, CY = 31.0, 29.0, 17.2, 14.9
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # axes of a camera, OpenGL to OpenCV
CORNER = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
K = np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 1]])
SQUARE = np.array([[FX, 0, WIDTH / 2], [0, FX, HEIGHT / 2], [0, 0, 1]])  # of formats that have one focal length only
BENDS = {"k1": 0.05, "k2": -0.02, "p1": 3e-3, "p2": -2e-3}

Rays = tuple[np.ndarray, np.ndarray]  # origins and directions of each camera's pixels [N, H * W, 3]


def cameras() -> np.ndarray:
    """Poses camera to world [N, 4, 4] with the axes of OpenGL, about a point that is not 0, each rolled."""
    rng = np.random.default_rng(0)
    poses = []
    for _ in range(N):
        towards = rng.normal(size=3)
        origin, target = np.array([0.3, -0.2, 0.5]) + 4 * towards / np.linalg.norm(towards), rng.uniform(-0.3, 0.3, 3)
        up = torch.from_numpy(rng.normal(size=3))
        pose = look_at(torch.from_numpy(origin), torch.from_numpy(target), up).numpy()
        poses.append(np.vstack((pose, [0, 0, 0, 1])))
    return np.stack(poses)


POSES = cameras()


# Folders -------------------------------------------------------------------------------------------------------------


def put(file: Path, content: np.ndarray | str | bytes | dict[str, Any]) -> None:
    """Writes an image, text, bytes or JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        iio.imwrite(file, content)
    else:
        content = json.dumps(content) if isinstance(content, dict) else content
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 255, (HEIGHT, WIDTH, channels), np.uint8)


def text(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.12g}" for x in row) for row in np.atleast_2d(matrix)) + "\n"


def square(matrix: np.ndarray) -> np.ndarray:
    """A matrix [3, 3] in one of [4, 4]."""
    full = np.eye(4)
    full[:3, :3] = matrix
    return full


def transforms(folder: Path, meta: dict[str, Any], splits: tuple[str, ...] = ("",), **keys: Any) -> Path:
    """`transforms.json`, or one for each split with the same views."""
    for split in splits:
        frames = []
        for i, pose in enumerate(POSES):
            name = f"images/{split}{i:02d}"
            put(folder / f"{name}.png", picture())
            extras = {key: value(i) for key, value in keys.items()}
            name = name if "camera_angle_x" in meta else f"{name}.png"
            frames.append({"file_path": name, "transform_matrix": pose.tolist(), **extras})
        put(folder / f"transforms{split}.json", {**meta, "frames": frames})
    return folder


def blender(folder: Path, **keys: Any) -> Path:
    meta = {"camera_angle_x": 2 * math.atan(WIDTH / 2 / FX)}
    return transforms(folder, meta, ("_train", "_val", "_test"), **keys)


def lens_keys(**bends: Any) -> dict[str, Any]:
    return {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT, **bends}


def colmap(folder: Path) -> Path:
    """A binary model; its lens is COLMAP's OPENCV."""
    from scipy.spatial.transform import Rotation

    model = folder / "sparse" / "0"
    put(model / "cameras.bin", struct.pack("<QIiQQ8d", 1, 7, 4, WIDTH, HEIGHT, FX, FY, CX, CY, *BENDS.values()))
    images = struct.pack("<Q", N)
    for i, pose in enumerate(POSES):
        put(folder / f"images/{i:02d}.png", picture())
        w2c = np.linalg.inv(pose @ FLIP)
        x, y, z, w = Rotation.from_matrix(w2c[:3, :3]).as_quat()
        images += struct.pack("<I7dI", i + 1, w, x, y, z, *w2c[:3, 3], 7) + f"{i:02d}.png".encode() + bytes(9)
    put(model / "images.bin", images)
    put(model / "points3D.bin", struct.pack("<Q", 0))
    return folder


def llff(folder: Path) -> Path:
    rows = []
    for i, pose in enumerate(POSES):
        put(folder / f"images/{i:02d}.jpg", picture())
        right, up, back, origin = pose[:3].T
        hwf = [HEIGHT, WIDTH, FX]
        rows.append([*np.stack((-up, right, back, origin, hwf), axis=1).reshape(-1), 2.0, 6.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def nsvf(folder: Path) -> Path:
    for i, pose in enumerate(POSES):
        put(folder / f"rgb/0_{i:04d}.png", picture())
        put(folder / f"pose/0_{i:04d}.txt", text(pose @ FLIP))
    put(folder / "intrinsics.txt", text(square(K)))
    put(folder / "bbox.txt", "-1.5 -1.5 -1.5 1.5 1.5 1.5 0.1\n")
    return folder


def idr(folder: Path) -> Path:
    """The unit sphere is another one than the world's."""
    folder /= "scan0"
    arrays: dict[str, Any] = {}
    scale = np.diag([1.7, 1.7, 1.7, 1.0])
    scale[:3, 3] = 0.2, -0.4, 0.1
    for i, pose in enumerate(POSES):
        put(folder / f"image/{i:03d}.png", picture())
        put(folder / f"mask/{i:03d}.png", np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
        world = np.eye(4)
        world[:3] = (K - CORNER) @ np.linalg.inv(pose @ FLIP)[:3]
        arrays |= {f"world_mat_{i}": world, f"scale_mat_{i}": scale}
    np.savez(folder / "cameras.npz", **arrays)
    return folder


def nerfpp(folder: Path) -> Path:
    for i, pose in enumerate(POSES):
        put(folder / f"train/rgb/{i:03d}.png", picture())
        put(folder / f"train/pose/{i:03d}.txt", text((pose @ FLIP).reshape(1, -1)))
        put(folder / f"train/intrinsics/{i:03d}.txt", text(square(K).reshape(1, -1)))
    return folder


def mvsnet(folder: Path) -> Path:
    for i, pose in enumerate(POSES):
        put(folder / f"blended_images/{i:08d}.jpg", picture())
        extrinsic, depths = text(np.linalg.inv(pose @ FLIP)), "2.0 0.03 128 6.0"
        put(folder / f"cams/{i:08d}_cam.txt", f"extrinsic\n{extrinsic}\nintrinsic\n{text(K)}\n{depths}\n")
    return folder


def nerfies(folder: Path) -> Path:
    """Cameras are of pictures twice as large; a lens that bends."""
    names = [f"{i:06d}" for i in range(N)]
    for name, pose in zip(names, POSES, strict=True):
        put(folder / f"rgb/2x/{name}.png", picture())
        camera = {
            "orientation": np.linalg.inv(pose @ FLIP)[:3, :3].tolist(), "position": pose[:3, 3].tolist(),
            "focal_length": 2 * FX, "pixel_aspect_ratio": FY / FX, "principal_point": [2 * CX, 2 * CY], "skew": 0.0,
            "radial_distortion": [0.05, -0.02, 0.01], "tangential_distortion": [3e-3, -2e-3],
            "image_size": [2 * WIDTH, 2 * HEIGHT],
        }  # fmt: skip
        put(folder / f"camera/{name}.json", camera)
    put(folder / "dataset.json", {"train_ids": names, "val_ids": [], "ids": names})
    put(folder / "metadata.json", {name: {"warp_id": i, "time_id": i} for i, name in enumerate(names)})
    put(folder / "scene.json", {"scale": 0.5, "center": [1.0, 2.0, 3.0], "near": 1.0, "far": 3.0})
    return folder


def scannet(folder: Path) -> Path:
    folder /= "frames"
    for i, pose in enumerate(POSES):
        put(folder / f"color/{8 + i}.jpg", picture())
        put(folder / f"pose/{8 + i}.txt", text(pose @ FLIP))
    put(folder / "intrinsic/intrinsic_color.txt", text(square(K - CORNER)))
    return folder


def nice_slam(folder: Path) -> Path:
    folder /= "room0"
    for i in range(N):
        put(folder / f"results/frame{i:06d}.jpg", picture())
    put(folder / "traj.txt", text((POSES @ FLIP).reshape(N, 16)))
    put(folder.parent / "cam_params.json", {"camera": {"fx": FX, "fy": FY, "cx": CX - 0.5, "cy": CY - 0.5}})
    return folder


def semantic_nerf(folder: Path) -> Path:
    for i in range(N):
        for kind in ("rgb/rgb", "depth/depth", "semantic_class/semantic_class"):
            put(folder / f"{kind}_{i}.png", picture() if kind == "rgb/rgb" else picture()[..., 0])
    put(folder / "traj_w_c.txt", text((POSES @ FLIP).reshape(N, 16)))
    return folder


def polycam(folder: Path) -> Path:
    for i, pose in enumerate(POSES):
        put(folder / f"keyframes/images/{i:02d}.png", picture())
        camera = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
        put(
            folder / f"keyframes/cameras/{i:02d}.json",
            {**camera, "fx": FX, "fy": FY, "cx": CX, "cy": CY, "width": WIDTH, "height": HEIGHT, "blur_score": 9},
        )
    return folder


def record3d(folder: Path) -> Path:
    from scipy.spatial.transform import Rotation

    poses = [[*Rotation.from_matrix(pose[:3, :3]).as_quat(), *pose[:3, 3]] for pose in POSES]
    for i in range(N):
        put(folder / f"rgbd/{i}.jpg", picture())
    put(folder / "metadata", {"poses": poses, "K": SQUARE.T.reshape(-1).tolist(), "w": WIDTH, "h": HEIGHT})
    return folder


# The authors' code ---------------------------------------------------------------------------------------------------


class _Empty(types.ModuleType):
    """A module of which everything can be imported, and nothing works."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            return type(name, (), {"__init__": lambda self, *_, **__: None})
        return MagicMock()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = any(name == empty or name.startswith(f"{empty}.") for empty in self.names)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def modules(root: Path, empty: tuple[str, ...] = (), bare: tuple[str, ...] = ()) -> Iterator[Callable[[str], Any]]:
    """What imports modules from ``root``: those in ``empty`` are left empty, packages in ``bare`` have no `__init__`.
    They are forgotten afterwards, as several authors have a `utils`."""
    before, finder = dict(sys.modules), _Finder(empty)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(root))
    for name in bare:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root / name.replace(".", "/"))]
    on_cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield importlib.import_module
    finally:
        torch.Tensor.cuda = on_cuda  # type: ignore[method-assign]
        sys.path.remove(str(root))
        sys.meta_path.remove(finder)
        for name in [
            name for name in set(sys.modules) - set(before) if name in bare or _is_of(sys.modules[name], root)
        ]:
            del sys.modules[name]


def _is_of(module: types.ModuleType, root: Path) -> bool:
    spec = getattr(module, "__spec__", None)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return isinstance(module, _Empty) or any(root in Path(place).parents for place in places if place)


def by_nerf(root: Path, folder: Path) -> Rays:
    with modules(root, ("tensorflow",)) as load:
        loader = load("load_blender")
        loader.pose_spherical = lambda *_: None  # a path to render, by TensorFlow
        _, poses, _, (h, w, focal), _ = loader.load_blender_data(str(folder))
        return stacked([load("run_nerf_helpers").get_rays_np(h, w, focal, pose) for pose in poses[:N]])


def by_dnerf(root: Path, folder: Path) -> Rays:
    with modules(root, ("torchsearchsorted",)) as load:
        _, poses, times, _, _, (h, w, focal), _ = load("load_blender").load_blender_data(str(folder))
        our_times = load_scene(folder, holdout=0).train.times
        assert our_times is not None and np.allclose(times[:N], our_times)
        return stacked([load("run_dnerf_helpers").get_rays_np(h, w, focal, pose) for pose in poses[:N]])


def by_nerf_llff(root: Path, folder: Path) -> Rays:
    with modules(root, ("tensorflow",)) as load:
        _, poses, _, _, _ = load("load_llff").load_llff_data(str(folder), factor=None, recenter=False, bd_factor=None)
        helpers = load("run_nerf_helpers")
        return stacked([helpers.get_rays_np(*pose[:2, 4].astype(int), pose[2, 4], pose[:, :4]) for pose in poses])


def by_nsvf(root: Path, folder: Path) -> Rays:
    with modules(root, ("fairseq", "plyfile", "pandas", "pylab"), ("fairnr", "fairnr.data")) as load:
        utils, geometry, rays = load("fairnr.data.data_utils"), load("fairnr.data.geometry"), []
        lens = utils.load_intrinsics(str(folder / "intrinsics.txt"))
        for image, file in zip(sorted((folder / "rgb").iterdir()), sorted((folder / "pose").iterdir()), strict=True):
            _, uv, _ = utils.load_rgb(str(image), resolution=(HEIGHT, WIDTH))
            pose = geometry.parse_extrinsics(utils.load_matrix(str(file)), world2camera=False)
            start = pose[:3, 3]
            directions = geometry.get_ray_direction(start, uv.reshape(2, -1), lens, pose).T
            rays.append((np.broadcast_to(start, directions.shape), directions))
        return stacked(rays)


def in_world(folder: Path, origins: np.ndarray) -> np.ndarray:
    """Points of IDR's unit sphere in the world."""
    with np.load(folder / "cameras.npz") as arrays:
        scale = arrays["scale_mat_0"]
    return origins @ scale[:3, :3].T + scale[:3, 3]


def by_idr(root: Path, folder: Path) -> Rays:
    with modules(root / "code") as load:
        load("utils.rend_util").load_mask = lambda _: np.ones((HEIGHT, WIDTH))  # by an option imageio no longer has
        data, rays = load("datasets.scene_dataset").SceneDataset(False, str(folder.parent), [HEIGHT, WIDTH]), []
        for i in range(len(data)):
            _, sample, _ = data[i]
            one = [sample[key][None] for key in ("uv", "pose", "intrinsics")]
            directions, origin = load("utils.rend_util").get_camera_params(*one)
            rays.append((in_world(folder, origin.expand(directions.shape[1], 3).numpy()), directions[0].numpy()))
        return stacked(rays)


def by_neus(root: Path, folder: Path) -> Rays:
    class Conf(dict):  # type: ignore[type-arg]
        def get_string(self, key: str) -> str:
            return {"data_dir": str(folder)}.get(key, "cameras.npz")

        def get_bool(self, key: str, default: bool) -> bool:
            return default

        get_float = get_bool

    with modules(root, ("icecream",)) as load:
        module = load("models.dataset")
        torch_on_cpu = types.ModuleType("torch")
        vars(torch_on_cpu).update({**vars(torch), "device": lambda _: torch.device("cpu")})
        module.torch = torch_on_cpu
        data = module.Dataset(Conf())
        rays = stacked([tuple(x.reshape(-1, 3).numpy() for x in data.gen_rays_at(i)) for i in range(N)])
        return in_world(folder, rays[0]), rays[1]


def by_nerfpp(root: Path, folder: Path) -> Rays:
    with modules(root) as load:
        samplers = load("data_loader_split").load_data_split(str(folder.parent), folder.name, "train")
        return stacked([(one.rays_o, one.rays_d) for one in samplers])


def by_mvsnet(root: Path, folder: Path) -> Rays:
    """Cameras and places of pixels are theirs; the two are put together as their homographies do it."""
    with modules(root / "mvsnet", ("tensorflow",)) as load:
        warping, rays = load("homography_warping"), []
        warping.tf = types.SimpleNamespace(  # what `get_pixel_grids` needs of it
            linspace=lambda a, b, n: np.linspace(a, b, n), cast=lambda x, _: x, meshgrid=np.meshgrid,
            reshape=np.reshape, ones_like=np.ones_like, concat=np.concatenate,
        )  # fmt: skip
        grid = warping.get_pixel_grids(HEIGHT, WIDTH).reshape(3, -1)
        for file in sorted((folder / "cams").iterdir()):
            with open(file) as stream:
                (extrinsic, lens) = load("preprocess").load_cam(stream)
            rotation, lens = extrinsic[:3, :3], lens[:3, :3]
            directions = (rotation.T @ np.linalg.inv(lens) @ grid).T
            rays.append((np.broadcast_to(-rotation.T @ extrinsic[:3, 3], directions.shape), directions))
        return stacked(rays)


def by_nerfies(root: Path, folder: Path) -> Rays:
    package = root.name
    with modules(root, ("tensorflow", "jax", "flax", "absl", "immutabledict", "gin")) as load:
        load("gin").configurable = lambda x: x
        load(f"{package}.gpath").GPath = Path  # of plain files
        source, core = load(f"{package}.datasets.nerfies"), load(f"{package}.datasets.core")
        data = source.NerfiesDataSource(folder, 2)
        rays = [core.camera_to_rays(data.load_camera(item)) for item in data.train_ids]
        origins = np.stack([ray["origins"] for ray in rays]) / data.scene_scale + data.scene_center
        return stacked(list(zip(origins, [ray["directions"] for ray in rays], strict=True)))


NERFSTUDIO = (
    *(
        "nerfacc",
        "viser",
        "open3d",
        "torch.utils.tensorboard",
        "wandb",
        "comet_ml",
        "gsplat",
        "newrawpy",
        "torchmetrics",
    ),
    *("nerfstudio.viewer", "nerfstudio.viewer_legacy", "pytorch_msssim", "mediapy", "splines"),
)


def by_nerfstudio(root: Path, folder: Path) -> Rays:
    with modules(root, NERFSTUDIO) as load:
        parser = load("nerfstudio.data.dataparsers.nerfstudio_dataparser")
        config = parser.NerfstudioDataParserConfig(
            data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all",
            downscale_factor=1, load_3D_points=False,
        )  # fmt: skip
        return of_nerfstudio(parser.Nerfstudio(config).get_dataparser_outputs("train").cameras)


def by_instant_ngp_of_nerfstudio(root: Path, folder: Path) -> Rays:
    with modules(root, NERFSTUDIO) as load:
        parser = load("nerfstudio.data.dataparsers.instant_ngp_dataparser")
        config = parser.InstantNGPDataParserConfig(data=folder, eval_mode="all", scene_scale=1.0)
        return of_nerfstudio(parser.InstantNGP(config).get_dataparser_outputs("train").cameras)


def of_nerfstudio(theirs: Any) -> Rays:
    rays = [theirs.generate_rays(camera_indices=i, keep_shape=True) for i in range(len(theirs))]
    return stacked([(ray.origins.numpy(), ray.directions.numpy()) for ray in rays])


def by_polycam_of_nerfstudio(root: Path, folder: Path) -> Rays:
    with modules(root, NERFSTUDIO) as load:
        images = sorted((folder / "keyframes/images").iterdir())
        cameras_folder = folder / "keyframes/cameras"
        load("nerfstudio.process_data.polycam_utils").polycam_to_json(images, [], None, cameras_folder, folder)
    meta = json.loads((folder / "transforms.json").read_text())
    for frame, image in zip(meta["frames"], images, strict=True):  # they are copied there
        frame["file_path"] = str(image)
    put(folder / "transforms.json", meta)
    origins, directions = by_nerfstudio(root, folder)
    return origins[..., [1, 2, 0]], directions[..., [1, 2, 0]]  # their x, y, z are z, x, y of the file


def by_record3d_of_nerfstudio(root: Path, folder: Path) -> Rays:
    with modules(root, NERFSTUDIO) as load:
        images, module = sorted((folder / "rgbd").iterdir()), load("nerfstudio.process_data.record3d_utils")
        file = folder / "metadata.json"
        file.write_bytes((folder / "metadata").read_bytes())  # as they name it
        module.record3d_to_json(images, file, folder, np.arange(N), None, None)
    return by_nerfstudio(root, folder)


def by_nice_slam(root: Path, folder: Path, kind: str) -> Rays:
    with modules(root) as load:
        cam = {"H": HEIGHT, "W": WIDTH, "fx": FX, "fy": FY, "cx": CX - 0.5, "cy": CY - 0.5, "png_depth_scale": 1.0}
        place = folder.parent if kind == "ScanNet" else folder
        config = {"dataset": kind, "cam": {**cam, "crop_edge": 0}, "data": {"input_folder": str(place)}}
        data = getattr(load("src.utils.datasets"), kind)(config, types.SimpleNamespace(input_folder=None), 1.0, "cpu")
        lens = data.fx, data.fy, data.cx, data.cy
        rays = [load("src.common").get_rays(data.H, data.W, *lens, pose, "cpu") for pose in data.poses]
        return stacked([tuple(x.numpy() for x in ray) for ray in rays])


def by_semantic_nerf(root: Path, folder: Path) -> Rays:
    empty = ("imgviz", "open3d", "skvideo", "tensorboardX", "trimesh", "wandb", "tqdm", "pyrender")
    with modules(root, empty, ("SSR",)) as load:
        reader, rays = load("SSR.datasets.replica.replica_datasets"), load("SSR.models.rays")
        reader.label_colormap = lambda: np.zeros((256, 3), np.uint8)
        data = reader.ReplicaDatasetCache(str(folder), list(range(N)), [0])
        trainer = load("SSR.training.trainer").SSRTrainer
        lens = types.SimpleNamespace(
            config={
                "experiment": {"height": HEIGHT, "width": WIDTH},
                "render": {"depth_range": [0.1, 10], "test_viz_factor": 1},
            },
            save_config=lambda: None,
        )
        trainer.set_params_replica(lens)
        poses = torch.from_numpy(data.train_samples["T_wc"]).float()
        directions = rays.get_rays_camera(N, lens.H, lens.W, lens.fx, lens.fy, lens.cx, lens.cy, "z")
        return stacked(
            list(zip(*(x.numpy() for x in rays.get_rays_world(poses, directions.view(N, -1, 3))), strict=True))
        )


def by_pycolmap(root: Path, folder: Path) -> Rays:
    import pycolmap

    model, rays = pycolmap.Reconstruction(folder / "sparse" / "0"), []
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    for image in sorted(model.images.values(), key=lambda image: image.name):
        pose = image.cam_from_world().inverse()
        points = model.cameras[image.camera_id].cam_from_img(np.stack((x, y), axis=-1).reshape(-1, 2))
        directions = np.concatenate((points, np.ones((len(points), 1))), axis=1) @ pose.rotation.matrix().T
        rays.append((np.broadcast_to(pose.translation, directions.shape), directions))
    return stacked(rays)


# What is compared ----------------------------------------------------------------------------------------------------


def stacked(rays: list[Any]) -> Rays:
    """Rays of all cameras, of unit length."""
    origins, directions = (
        np.stack([np.asarray(x, np.float64).reshape(-1, 3) for x in part]) for part in zip(*rays, strict=True)
    )
    return origins, directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def ours(folder: Path, format: str, corner: float, fault: str | None = None) -> Rays:
    """Rays through all pixels of all training views, ``corner`` pixels beside their middles."""
    views = load_scene(folder, format=format, holdout=0, cut_out_backdrop=False).train
    if fault == "mirrored":
        views.c2w[:, 0] *= -1
    elif fault == "moved":
        views.c2w[:, 0, 3] += 1e-3
    elif fault == "half a pixel":
        views.intrinsics[:, 2] += 0.5
    y, x = (z.reshape(-1) for z in torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"))
    views.intrinsics[:, 2:] -= corner
    rays = [views.rays(torch.full_like(x, view), x, y) for view in range(len(views))]
    return stacked([(ray.origins.numpy(), ray.directions.numpy()) for ray in rays])


# format, what is written, repository, the dialect, how far from the middle of a pixel their rays are
Peer = Callable[[Path, Path], Rays]
PEERS: dict[str, tuple[str, Callable[[Path], Path], str, Peer, float]] = {
    "Blender": ("transforms", blender, "bmild/nerf", by_nerf, -0.5),
    "D-NeRF": (
        "transforms", lambda folder: blender(folder, time=lambda i: i / 4), "albertpumarola/D-NeRF", by_dnerf, -0.5,
    ),
    "nerfstudio, OPENCV": (
        "transforms", lambda folder: transforms(folder, lens_keys(camera_model="OPENCV", k3=0.01, k4=-5e-3, **BENDS)),
        "nerfstudio-project/nerfstudio", by_nerfstudio, 0.0,
    ),
    "nerfstudio, OPENCV_FISHEYE": (
        "transforms", lambda folder: transforms(
            folder, lens_keys(camera_model="OPENCV_FISHEYE", k1=0.05, k2=-0.02, k3=3e-3, k4=-2e-3)
        ),
        "nerfstudio-project/nerfstudio", by_nerfstudio, 0.0,
    ),
    "nerfstudio, EQUIRECTANGULAR": (
        "transforms", lambda folder: transforms(
            folder, {**lens_keys(), "camera_model": "EQUIRECTANGULAR", "fl_x": WIDTH / 2, "fl_y": HEIGHT,
                     "cx": WIDTH / 2, "cy": HEIGHT / 2}
        ),
        "nerfstudio-project/nerfstudio", by_nerfstudio, 0.0,
    ),
    "instant-ngp": (
        "transforms", lambda folder: transforms(folder, {**lens_keys(**BENDS), "fl_y": FX}),
        "nerfstudio-project/nerfstudio", by_instant_ngp_of_nerfstudio, 0.0,
    ),
    "COLMAP": ("colmap", colmap, "pycolmap", by_pycolmap, 0.0),
    "LLFF": ("llff", llff, "bmild/nerf", by_nerf_llff, -0.5),
    "NSVF": ("nsvf", nsvf, "facebookresearch/NSVF", by_nsvf, -0.5),
    "IDR": ("idr", idr, "lioryariv/idr", by_idr, 0.0),
    "NeuS": ("idr", idr, "Totoro97/NeuS", by_neus, 0.0),
    "NeRF++": ("nerfpp", nerfpp, "Kai-46/nerfplusplus", by_nerfpp, 0.0),
    "MVSNet": ("mvsnet", mvsnet, "YoYo000/MVSNet", by_mvsnet, 0.0),
    "Nerfies": ("nerfies", nerfies, "google/nerfies", by_nerfies, 0.0),
    "HyperNeRF": ("nerfies", nerfies, "google/hypernerf", by_nerfies, 0.0),
    "ScanNet": ("scannet", scannet, "cvg/nice-slam", lambda root, f: by_nice_slam(root, f, "ScanNet"), 0.0),
    "Replica, NICE-SLAM": (
        "replica", nice_slam, "cvg/nice-slam", lambda root, f: by_nice_slam(root, f, "Replica"), 0.0,
    ),
    "Replica, Semantic-NeRF": ("replica", semantic_nerf, "Harry-Zhi/semantic_nerf", by_semantic_nerf, 0.0),
    "Polycam": ("polycam", polycam, "nerfstudio-project/nerfstudio", by_polycam_of_nerfstudio, 0.0),
    "Record3D": ("record3d", record3d, "nerfstudio-project/nerfstudio", by_record3d_of_nerfstudio, 0.0),
}  # fmt: skip
CLOSE = 1e-5  # of origins and of unit directions: float32 of a few operations
FAULTS = ("mirrored", "half a pixel", "moved")


def differences(a: Rays, b: Rays) -> tuple[float, float]:
    """The largest of origins and of directions."""
    assert a[0].shape == b[0].shape, (a[0].shape, b[0].shape)
    return float(np.abs(a[0] - b[0]).max()), float(np.abs(a[1] - b[1]).max())


def version(repository: Path) -> str:
    """The commit of a repository, or the version of a package."""
    if not repository.is_dir():
        return importlib.metadata.version(repository.name)
    command = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def compare(name: str, root: Path) -> dict[str, Any]:
    format, write, repository, peer, corner = PEERS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(Path(temporary) / "scene")
        mine = ours(folder, format, corner)
        faulty = {fault: ours(folder, format, corner, fault) for fault in FAULTS}
        with torch.no_grad():
            theirs = peer(root / repository, folder)
    origin, direction = differences(mine, theirs)
    wrong = {fault: max(differences(rays, theirs)) for fault, rays in faulty.items()}
    return {
        "name": name, "format": format, "repository": repository, "corner": corner, "origin": origin,
        "direction": direction, "faults": wrong, "version": version(root / repository),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="folder of the authors' repositories, OWNER/NAME")
    parser.add_argument("--only", nargs="*", choices=list(PEERS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = {row["name"]: row for row in json.loads(args.out.read_text())["rows"]} if args.out.is_file() else {}
    for name in args.only or PEERS:
        if PEERS[name][2] != "pycolmap" and not (args.peers / PEERS[name][2]).is_dir():
            print(f"{name:28} {PEERS[name][2]} is not in {args.peers}")
            continue
        row = rows[name] = compare(name, args.peers)
        faults = ", ".join(f"{fault} {value:.1e}" for fault, value in row["faults"].items())
        print(f"{name:28} origin {row['origin']:.1e}, direction {row['direction']:.1e}; {faults}", flush=True)
    wrong = [n for n, row in rows.items() if max(row["origin"], row["direction"]) > CLOSE]
    blind = [n for n, row in rows.items() if min(row["faults"].values()) < 50 * CLOSE]
    if wrong or blind:
        raise SystemExit(f"rays differ: {wrong}; faults are not seen: {blind}")
    results = {"picture": [WIDTH, HEIGHT], "cameras": N, "rows": [rows[name] for name in PEERS if name in rows]}
    atomic_write_json(args.out, results)


if __name__ == "__main__":
    main()
