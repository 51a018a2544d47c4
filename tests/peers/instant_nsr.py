"""instant-nsr-pl's models (github.com/bennyguo/instant-nsr-pl) on hashgrid's `tinycudann` and `nerfacc`, on a CPU.

Its files run as they are. What is replaced:

- ``tinycudann`` and ``nerfacc`` by hashgrid's, unless others were imported before;
- ``utils.misc.get_rank``, the number of a GPU, by one that returns a CPU, and ``torch.cuda.device`` by nothing;
- ``pytorch_lightning`` by a class of that name with what its systems read and write, and messages that go nowhere;
- ``omegaconf`` by the few lines here that read the same YAML files;
- ``torch_efficient_distloss`` by `nerfacc.loss_distortion`;
- ``mcubes``, ``cv2``, ``imageio`` and ``matplotlib`` by empty modules, as no mesh and no picture is made;
- its data sets by four pictures of a ball that are made here.

Of its options `OPTIONS` are set, which its command line could set, too.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import hashgrid.compat
from hashgrid import reference
from hashgrid.compat import nerfacc_0_3

CONFIGS = {
    "nerf": "nerf-blender.yaml",
    "neus": "neus-blender.yaml",
    "nerf-unbounded": "nerf-colmap.yaml",
    "neus-unbounded": "neus-colmap.yaml",
}
OPTIONS = {"train_num_rays": 64, "dynamic_ray_sampling": False}  # so that batches do not depend on rounding
PICTURE = 32  # pixels along a side
LAYERS = {"tinycudann": "tinycudann", "nerfacc": "nerfacc_0_3"}
# modules that other code has by these names, too: they are gone when a model is built
OWN = ("models", "systems", "utils")
EMPTY = ("torch_efficient_distloss", "mcubes", "cv2", "imageio", "matplotlib", "pytorch_lightning", "omegaconf")


def build(kind: str, folder: Path) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model of ``CONFIGS`` and its loss of a step's rays, which are the same whenever it is asked. In a program whose
    default is fp64, rays and colours are made in fp32 and then cast.

    Args:
        kind: of `CONFIGS`.
        folder: a checkout of instant-nsr-pl.
    """
    with _imports(folder):
        config = _read(folder / "configs" / CONFIGS[kind])
        config["model"].update(OPTIONS)
        systems = importlib.import_module("systems")
        torch.manual_seed(0)
        system = systems.make(config["system"]["name"], config)
    system.train()
    system.dataset = _ball()

    def loss(step: int) -> Tensor:
        torch.manual_seed(step)
        system.global_step = step
        batch: dict[str, Any] = {}
        system.preprocess_data(batch, "train")
        batch = {name: x.to(torch.get_default_dtype()) for name, x in batch.items()}
        system.model.background_color = system.model.background_color.to(torch.get_default_dtype())
        system.model.update_step(0, step)
        return system.training_step(batch, 0)["loss"]

    return system, loss


@contextlib.contextmanager
def in_plain_pytorch() -> Iterator[None]:
    """hashgrid's ops are those of `hashgrid.reference` within, whatever was built before."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.multiple("hashgrid.ops._backend", ops=reference, _ngp=reference))
        patches.enter_context(mock.patch("hashgrid.compat.nerfacc_0_3_march.ops", reference))
        for module, name in (("_traverse", "march_rays"), ("_traverse", "ray_aabb"), ("volrend", "composite")):
            patches.enter_context(mock.patch(f"hashgrid.compat.nerfacc.{module}.{name}", getattr(reference, name)))
        yield


# ---- what it imports -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _imports(folder: Path) -> Iterator[None]:
    """instant-nsr-pl's modules can be imported within; afterwards all names are as before."""

    missing = [name for name in LAYERS if name not in sys.modules]

    def is_ours(name: str) -> bool:
        return name.partition(".")[0] in (*OWN, *EMPTY, *missing)

    before = {name: module for name, module in sys.modules.items() if is_ours(name)}
    for name in before:
        del sys.modules[name]
    sys.modules.update(_stubs())
    sys.path.insert(0, str(folder))
    try:
        for name in missing:
            hashgrid.compat.install(LAYERS[name])
        importlib.import_module("utils.misc").get_rank = lambda: torch.device("cpu")
        with mock.patch("torch.cuda.device", lambda device: contextlib.nullcontext()):
            yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)


class _Lightning(nn.Module):
    """What its systems use of a LightningModule."""

    global_step = current_epoch = 0

    def log(self, *args: object, **kwargs: object) -> None:
        pass


def _distortion(weights: Tensor, middles: Tensor, lengths: Tensor, ray_indices: Tensor) -> Tensor:
    """The mean of rays, of samples [S]."""
    t_starts, t_ends = (middles - lengths / 2)[:, None], (middles + lengths / 2)[:, None]
    return nerfacc_0_3.loss_distortion(nerfacc_0_3.pack_info(ray_indices), weights, t_starts, t_ends).mean()


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def _stubs() -> dict[str, ModuleType]:
    names = (*EMPTY, "matplotlib.colors", "pytorch_lightning.utilities", "pytorch_lightning.utilities.rank_zero")
    stubs = {name: ModuleType(name) for name in names}
    stubs["torch_efficient_distloss"].flatten_eff_distloss = _distortion
    stubs["mcubes"].marching_cubes = _nothing
    stubs["matplotlib"].cm = None
    stubs["matplotlib.colors"].LinearSegmentedColormap = None
    stubs["pytorch_lightning"].LightningModule = _Lightning
    for name in ("rank_zero_debug", "rank_zero_info"):
        setattr(stubs["pytorch_lightning.utilities.rank_zero"], name, _nothing)
    stubs["omegaconf"].OmegaConf = SimpleNamespace(
        register_new_resolver=_nothing, to_container=lambda config, resolve: dict(config)
    )
    return stubs


# ---- its configurations ----------------------------------------------------------------------------------------------


class _Config(dict):
    """A dictionary whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


RESOLVERS: dict[str, Callable[..., Any]] = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda path: Path(path).name,
}


def _read(path: Path) -> _Config:
    """A configuration with ``${key.of.another}`` and ``${function:a,b}`` replaced by their values."""
    root = yaml.safe_load(path.read_text())

    def value_of(expression: str) -> Any:
        name, is_call, arguments = expression.partition(":")
        if is_call:
            return RESOLVERS[name](*(yaml.safe_load(argument) for argument in arguments.split(",")))
        value = root
        for key in name.split("."):
            value = value[key]
        return resolved(value)

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return _Config({key: resolved(entry) for key, entry in value.items()})
        if isinstance(value, list):
            return [resolved(entry) for entry in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        while "${" in value:  # from the inside
            value = re.sub(r"\$\{([^${}]*)\}", lambda match: str(value_of(match[1])), value)
        return yaml.safe_load(value)

    return resolved(root)


# ---- its data --------------------------------------------------------------------------------------------------------


def _ball() -> SimpleNamespace:
    """Four pictures from around of a ball of radius 0.6, coloured by its normals, before white."""
    pixel = (torch.arange(PICTURE) + 0.5) / PICTURE - 0.5
    y, x = torch.meshgrid(pixel, pixel, indexing="ij")
    directions = torch.stack((x, -y, -torch.ones_like(x)), dim=-1)
    poses, images, masks = [], [], []
    for turn in range(4):
        c, s = math.cos(turn * math.pi / 2), math.sin(turn * math.pi / 2)
        pose = torch.tensor([[c, 0, s, 2.5 * s], [0, 1, 0, 0.0], [-s, 0, c, 2.5 * c]])
        rays_d = F.normalize(directions @ pose[:, :3].T, dim=-1)
        origin = pose[:, 3]
        along = rays_d @ origin
        inside = along**2 - origin @ origin + 0.6**2
        normal = F.normalize(origin + rays_d * (-along - inside.clamp(min=0).sqrt())[..., None], dim=-1)
        seen = (inside > 0)[..., None]
        poses.append(pose)
        images.append(torch.where(seen, normal * 0.5 + 0.5, 1.0))
        masks.append(seen[..., 0].float())
    return SimpleNamespace(
        all_c2w=torch.stack(poses), all_images=torch.stack(images), all_fg_masks=torch.stack(masks),
        directions=directions, w=PICTURE, h=PICTURE, apply_mask=True, has_mask=True,
    )  # fmt: skip
