"""Reads instant-ngp's snapshots, ``.ingp`` and ``.msgpack``, of radiance fields.

Everything is in instant-ngp's coordinates: the innermost box is the unit cube.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.compat import msgpack
from hashgrid.compat import tinycudann as tcnn
from hashgrid.compat.tinycudann_layout import next_multiple
from hashgrid.compat.tinycudann_network import NETWORK_MULTIPLE
from hashgrid.compat.torch_ngp_rays import morton3D
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.lenses import KINDS, coefficients
from hashgrid.geometry.rays import At
from hashgrid.maths import density_of
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.samplers import OccupancySampler
from hashgrid.rendering.volume import render_image

MIN_OPTICAL_THICKNESS = 0.01  # of a step, of cells that are worth a sample
FINEST_RESOLUTION = 2048  # over the unit cube, where a snapshot does not say how levels grow
STEP_SIZE, CONE_ANGLE = math.sqrt(3) / 1024, 1 / 256
_TYPES = {"__half": np.float16, "half": np.float16, "float": np.float32}


class IngpField(RadianceField):
    """A density network behind a grid, a colour network behind it and an encoding of directions, as `tinycudann`
    modules.

    Args:
        config: the snapshot's ``encoding``, ``network``, ``dir_encoding`` and ``rgb_network``.
        aabb: [6] box of the field.
        backend: ``"native"`` or ``"reference"``.
    """

    colors_follow_carry = True

    def __init__(self, config: Mapping[str, Any], aabb: Tensor, backend: str = "native") -> None:
        super().__init__(aabb)
        n_geometry = next_multiple(config["network"].get("n_output_dims", 16), NETWORK_MULTIPLE)
        encoding, network = config["encoding"], config["network"]
        rgb = {"output_activation": "Sigmoid"} | {
            key: value for key, value in config["rgb_network"].items() if key != "output_activation"
        }
        self.geometry = tcnn.NetworkWithInputEncoding(3, n_geometry, encoding, network, backend=backend)
        self.directions = tcnn.Encoding(3, config["dir_encoding"], backend=backend)
        seen = self.directions._encoding
        seen.pad_to(NETWORK_MULTIPLE)  # ones, whose weights are biases
        self.rgb = tcnn.Network(n_geometry + seen.width, 3, rgb, backend=backend)

    def density(self, at: At) -> tuple[Tensor, Tensor]:
        geometry = self.geometry(at.unit)
        return density_of(geometry), geometry

    def color(self, at: At, carry: Tensor) -> Tensor:
        seen = self.directions((at.rays.directions + 1) / 2)
        return self.rgb(torch.cat((carry, seen.index_select(0, at.ray_indices)), dim=1))

    @torch.no_grad()
    def load_params(self, params: Tensor) -> None:
        """Sets all parameters from one flat tensor: density network, colour network, grid.

        Raises:
            ValueError: there are more or fewer of them.
        """
        n_density = sum(self.geometry._network.sizes)  # type: ignore[union-attr]
        sizes = (n_density, len(self.rgb.params), len(self.geometry.params) - n_density, len(self.directions.params))
        if len(params) != sum(sizes):
            raise ValueError(f"the snapshot must have {sum(sizes)} parameters by its configuration, got {len(params)}")
        density, rgb, grid, directions = params.split(sizes)
        self.geometry.params.copy_(torch.cat((density, grid)))
        self.rgb.params.copy_(rgb)
        self.directions.params.copy_(directions)


@dataclass
class Snapshot:
    """What a snapshot holds.

    Attributes:
        field: densities and colours.
        occupancy: where there is something.
        cameras: those it was trained on; None where it has none or lenses that are not known here.
        aabb_scale: side of the field's box.
        background: [4], what is behind the scene, RGBA.
        config: all of the file.
    """

    field: IngpField
    occupancy: OccupancyGrid
    cameras: Cameras | None
    aabb_scale: int
    background: Tensor
    config: dict[str, Any]

    def sampler(self) -> OccupancySampler:
        """Steps as instant-ngp's: growing with the distance if the box is larger than the unit cube."""
        return OccupancySampler(self.occupancy, STEP_SIZE, CONE_ANGLE if self.aabb_scale > 1 else 0.0)

    def render(
        self, view: int = 0, cameras: Cameras | None = None, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Colour [H, W, 3], opacity [H, W] and depth [H, W] of one camera, of its own or of ``cameras``, in front of
        ``background`` [3] or black.

        Raises:
            ValueError: there are no cameras.
        """
        cameras = self.cameras if cameras is None else cameras
        if cameras is None:
            raise ValueError("`cameras` must be given: the snapshot has none")
        device = self.field.aabb.device
        background = torch.zeros(3) if background is None else background
        return render_image(self.field, self.sampler(), cameras.to(device), view, background.to(device))


def load_snapshot(path: str | Path, device: str | torch.device = "cpu", backend: str = "native") -> Snapshot:
    """Reads a snapshot of a radiance field.

    Args:
        path: ``.ingp`` or ``.msgpack``, compressed or not.
        device: of the field.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: the file is no such snapshot, or of a kind that is not known here.
    """
    config = read(path)
    snapshot = config.get("snapshot")
    if not isinstance(snapshot, dict) or "params_binary" not in snapshot:
        raise ValueError(f"{path} must be a snapshot of instant-ngp; it has no `snapshot` with `params_binary`")
    if str(snapshot.get("mode", "nerf")).lower() != "nerf":
        raise ValueError(f"`mode` of {path} must be nerf, got {snapshot['mode']!r}")
    nerf = snapshot.get("nerf", {})
    dataset = nerf.get("dataset", {})
    if dataset.get("n_extra_learnable_dims", 0):
        raise ValueError(f"{path} has codes of its pictures (`n_extra_learnable_dims`), which are not read here")
    if dataset.get("is_hdr", False):
        raise ValueError(f"{path} is of HDR pictures, whose colours are exponentials; only others are read")
    aabb_scale = int(nerf.get("aabb_scale", dataset.get("aabb_scale", 1)))
    half = aabb_scale / 2
    aabb = torch.tensor([0.5 - half] * 3 + [0.5 + half] * 3)
    with warnings.catch_warnings():  # of keys without effect, of which its own configurations have some
        warnings.simplefilter("ignore", UserWarning)
        field = IngpField(_networks(config, aabb_scale), aabb, backend)
    kind = snapshot.get("params_type", "__half")
    if kind not in _TYPES:
        raise ValueError(f"`params_type` must be one of {', '.join(_TYPES)}, got {kind!r}")
    field.load_params(_floats(snapshot["params_binary"], _TYPES[kind]))
    occupancy = _occupancy(snapshot, aabb_scale, backend)
    background = torch.tensor(snapshot.get("background_color", [0.0, 0.0, 0.0, 1.0]), dtype=torch.float32)
    cameras = _cameras(dataset)
    return Snapshot(field.to(device), occupancy.to(device), cameras, aabb_scale, background, config)


def read(path: str | Path) -> dict[str, Any]:
    """All of a snapshot, as dictionaries and lists; tensors are bytes.

    Raises:
        ValueError: the file is damaged.
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b" or data[:1] == b"\x78":
        try:
            data = zlib.decompress(data, zlib.MAX_WBITS | 32)
        except zlib.error as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    config = msgpack.unpack(data)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a map, got {type(config).__name__}")
    return config


def _networks(config: Mapping[str, Any], aabb_scale: int) -> dict[str, Any]:
    """The four dictionaries, with the growth of the levels told."""
    missing = [name for name in ("encoding", "network", "dir_encoding", "rgb_network") if name not in config]
    if missing:
        raise ValueError(f"the snapshot must have {', '.join(missing)}")
    encoding = dict(config["encoding"])
    n_features = encoding.setdefault("n_features_per_level", 2)
    n_levels = encoding["n_features"] // n_features if encoding.get("n_features") else encoding.get("n_levels", 16)
    encoding["log2_hashmap_size"] = encoding.get("log2_hashmap_size", 15)
    base = encoding.get("base_resolution") or 1 << encoding["log2_hashmap_size"] // 3
    encoding["base_resolution"] = base
    if encoding.get("per_level_scale", 0) <= 0:
        finest = math.log(FINEST_RESOLUTION * aabb_scale / base)
        encoding["per_level_scale"] = math.exp(finest / (n_levels - 1)) if n_levels > 1 else 1.0
    directions = dict(config["dir_encoding"])
    if "nested" in directions:  # the last one is for what directions come with, which here is nothing
        nested = directions["nested"]
        n = sum(part.get("n_dims_to_encode", 0) for part in nested)
        directions["nested"] = [part for part in nested if n < 3 or part.get("n_dims_to_encode", 0) > 0]
    return {"encoding": encoding, "dir_encoding": directions} | {k: config[k] for k in ("network", "rgb_network")}


def _floats(data: Any, kind: Any) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, kind).astype(np.float32))


def _occupancy(snapshot: Mapping[str, Any], aabb_scale: int, backend: str) -> OccupancyGrid:
    """Optical thicknesses of steps in cells, which the file has in the order of Morton codes."""
    side, n_cascades = int(snapshot.get("density_grid_size", 128)), 1 + max(0, math.ceil(math.log2(aabb_scale)))
    grid = OccupancyGrid([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], side, n_cascades, backend)
    values = _floats(snapshot.get("density_grid_binary", b""), np.float16)
    if len(values) == 0:
        return grid
    if len(values) != grid.n_cells:
        raise ValueError(f"the density grid must have {n_cascades} x {side}^3 cells, got {len(values)}")
    cells = torch.cartesian_prod(*[torch.arange(side)] * 3)
    values = values.view(n_cascades, side**3)[:, morton3D(cells).long()]
    threshold = min(MIN_OPTICAL_THICKNESS, float(values[0].clamp(min=0).mean()))
    grid.density.copy_(values.flatten())
    occupied = (values > threshold).flatten().numpy()
    grid.bits.copy_(torch.from_numpy(np.packbits(occupied, bitorder="little")))
    return grid


def _cameras(dataset: Mapping[str, Any]) -> Cameras | None:
    """The cameras a snapshot was trained on, whose y axes point down and whose z axes ahead."""
    metadata, transforms = dataset.get("metadata"), dataset.get("xforms")
    if not metadata or not transforms:
        return None
    lenses = [_lens(view.get("lens") or {}) for view in metadata]
    if None in lenses:
        warnings.warn("cameras of the snapshot are left out: they have lenses that are not known here", stacklevel=3)
        return None
    sizes = torch.tensor([view["resolution"] for view in metadata])
    points = torch.tensor([view["principal_point"] for view in metadata]) * sizes
    focal_lengths = torch.tensor([view["focal_length"] for view in metadata]).float()
    c2w = torch.tensor([view["start"] if isinstance(view, Mapping) else view for view in transforms]).float()
    kinds, distortion = zip(*(lens for lens in lenses if lens is not None), strict=True)
    return Cameras(
        c2w * torch.tensor([1.0, -1.0, -1.0, 1.0]),
        torch.cat((focal_lengths, points), dim=1),
        sizes,
        torch.tensor(distortion),
        lens=torch.tensor(kinds),
    )


def _lens(lens: Mapping[str, Any]) -> tuple[int, list[float]] | None:
    """Number of the kind and coefficients; None of a kind that is not read."""
    names = [name for name in ("k1", "k2", "k3", "k4", "p1", "p2") if name in lens]
    if not lens or "is_fisheye" in lens:
        kind = "fisheye" if lens.get("is_fisheye") else "perspective"
        return KINDS.index(kind), coefficients(**{name: lens[name] for name in names})
    return None
