"""Snapshots of instant-ngp, as the test itself writes them by its field list: no real one is at hand."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import tinycudann_twin as twin

from hashgrid.compat import ingp, msgpack
from hashgrid.geometry.cameras import look_at
from hashgrid.geometry.rays import At, Rays

SIDE = 16
ENCODING = {"otype": "HashGrid", "n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 10}
NETWORK = {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 16}
DIRECTIONS = [
    {"n_dims_to_encode": 3, "otype": "SphericalHarmonics", "degree": 4},
    {"otype": "Identity", "n_bins": 4, "degree": 4},
]


def pack(value: Any) -> bytes:
    """MessagePack with the tags that a writer of JSON chooses."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if -32 <= value < 128:
            return struct.pack("b", value)
        return b"\xcd" + struct.pack(">H", value) if 0 <= value < 2**16 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return (bytes([0xA0 | len(text)]) if len(text) < 32 else b"\xd9" + bytes([len(text)])) + text
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, dict):
        head = bytes([0x80 | len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
        return head + b"".join(pack(k) + pack(v) for k, v in value.items())
    head = bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
    return head + b"".join(map(pack, value))


def morton_order() -> np.ndarray:
    """Cells [side^3, 3] in the order of Morton codes."""
    codes = np.arange(SIDE**3)
    return np.stack([sum((codes >> (3 * bit + a) & 1) << bit for bit in range(4)) for a in range(3)], axis=1)


def made(aabb_scale: int = 1, kind: str = "__half") -> tuple[dict[str, Any], np.ndarray]:
    """A snapshot and its parameters: something in a ball around the middle."""
    growth = math.exp(math.log(2048 * aabb_scale / 16) / 3)
    geometry = twin.grid_geometry(3, ENCODING | {"base_resolution": 16, "per_level_scale": growth})
    n_params = 16 * 16 + 16 * 16 + 32 * 16 + 16 * 16 + 16 * 16 + 2 * sum(size for *_, size in geometry)
    dtype = np.float16 if kind == "__half" else np.float32
    params = np.random.default_rng(0).uniform(-0.5, 0.5, n_params).astype(dtype)
    n_cascades = 1 + int(math.log2(aabb_scale))
    radii = np.linalg.norm((morton_order() + 0.5) / SIDE - [0.5, 0.5, 0.25], axis=1)
    density = np.concatenate([np.where(radii * 2**c < 0.2, 1.0, -1.0) for c in range(n_cascades)])
    pose = look_at(torch.tensor([0.5, -0.8, 0.5]), torch.tensor([0.5, 0.5, 0.25]), torch.tensor([0.0, 0, 1]))
    pose = (pose[:3] * torch.tensor([1.0, -1, -1, 1])).tolist()
    view = {"focal_length": [30.0, 31.0], "principal_point": [0.5, 0.25], "resolution": [24, 20], "lens": {}}
    bent = view | {"lens": {"is_fisheye": False, "k1": 0.1, "k2": 0.0, "p1": 0.0, "p2": 0.01}}
    dataset = {"n_images": 2, "metadata": [view, bent], "xforms": [{"start": pose, "end": pose}] * 2}
    snapshot = {
        "version": 1,
        "mode": "Nerf",
        "n_params": n_params,
        "params_type": kind,
        "params_binary": params.tobytes(),
        "density_grid_size": SIDE,
        "density_grid_binary": density.astype(np.float16).tobytes(),
        "background_color": [0.0, 0.0, 0.0, 1.0],
        "nerf": {"aabb_scale": aabb_scale, "dataset": dataset | {"aabb_scale": aabb_scale, "is_hdr": False}},
    }
    config = {
        "encoding": ENCODING | {"base_resolution": 16},
        "network": NETWORK | {"n_hidden_layers": 1},
        "dir_encoding": {"otype": "Composite", "nested": DIRECTIONS},
        "rgb_network": NETWORK | {"n_hidden_layers": 2},
        "snapshot": snapshot,
    }
    return config, params.astype(np.float64)


def written(folder: Path, config: dict[str, Any], name: str = "base.ingp") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(pack(config)) if name.endswith(".ingp") else pack(config))
    return path


@pytest.mark.parametrize("aabb_scale, kind, name", [(1, "__half", "a.ingp"), (4, "float", "a.msgpack")])
def test_field_is_its_formulas(tmp_path: Path, aabb_scale: int, kind: str, name: str) -> None:
    config, params = made(aabb_scale, kind)
    snapshot = ingp.load_snapshot(written(tmp_path, config, name))
    assert snapshot.aabb_scale == aabb_scale and snapshot.sampler().cone_angle == (0 if aabb_scale == 1 else 1 / 256)
    rng = np.random.default_rng(1)
    x, d = rng.random((50, 3)).astype(np.float32), rng.standard_normal((50, 3)).astype(np.float32)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    origins = (torch.from_numpy(x) - 0.5) * aabb_scale + 0.5
    at = At(Rays(origins, torch.from_numpy(d)), snapshot.field.unit(origins), torch.arange(50))
    with torch.no_grad():
        sigmas, colors = snapshot.field.radiance(at)

    first, second, *matrices = np.split(params, np.cumsum([256, 256, 512, 256, 256]))
    *matrices, table = matrices
    grid = ENCODING | {"base_resolution": 16, "per_level_scale": math.exp(math.log(128 * aabb_scale) / 3)}
    features = np.concatenate([twin.grid(x, table, grid), np.zeros((50, 8))], axis=1)
    relu = lambda y: np.maximum(y, 0)  # noqa: E731
    geometry = relu(features @ first.reshape(16, 16).T) @ second.reshape(16, 16).T
    seen = snapshot.field.directions(torch.from_numpy((d + 1) / 2)).double().numpy()
    assert seen.shape == (50, 16) and np.allclose(seen[:, 1], -0.48860251190291987 * d[:, 1], atol=1e-6)
    y = np.concatenate([geometry, seen], axis=1)
    y = relu(relu(y @ matrices[0].reshape(16, 32).T) @ matrices[1].reshape(16, 16).T) @ matrices[2].reshape(16, 16).T
    np.testing.assert_allclose(sigmas, np.exp(geometry[:, 0]), rtol=2e-3)
    np.testing.assert_allclose(colors, 1 / (1 + np.exp(-y[:, :3])), atol=2e-3)


def test_occupancy_and_cameras(tmp_path: Path) -> None:
    snapshot = ingp.load_snapshot(written(tmp_path, made(4)[0]))
    grid = snapshot.occupancy
    assert grid.n_cascades == 3 and grid.resolution == (SIDE,) * 3 and grid.density.min() == -1
    inside = torch.tensor([[0.5, 0.5, 0.25], [0.5, 0.5, 0.5], [0.65, 0.5, 0.25], [0.5, 0.5, 0.9]])
    assert grid.occupied_at(inside).tolist() == [True, False, True, False]
    cameras = snapshot.cameras
    assert cameras is not None and len(cameras) == 2
    torch.testing.assert_close(cameras.origins, torch.tensor([[0.5, -0.8, 0.5]] * 2))
    assert cameras.intrinsics.tolist() == [[30, 31, 12, 5]] * 2 and cameras.size(0) == (24, 20)
    assert cameras.distortion[1, 0] == pytest.approx(0.1) and cameras.distortion[1, 5] == pytest.approx(0.01)
    rays = cameras.rays(torch.tensor([0]), torch.tensor([12]), torch.tensor([5]))
    aim = torch.nn.functional.normalize(torch.tensor([0.0, 1.3, -0.25]), dim=0)
    torch.testing.assert_close(rays.directions[0], aim, rtol=0, atol=0.03)


def test_picture(tmp_path: Path) -> None:
    """What is seen lies where the density grid says, and is what the composited field says."""
    snapshot = ingp.load_snapshot(written(tmp_path, made()[0]))
    colors, opacities, depths = snapshot.render()
    assert colors.shape == (20, 24, 3) and depths.shape == opacities.shape == (20, 24)
    assert opacities[5, 12] > 0.1 and opacities[19, 0] == 0 and (colors[19, 0] == 0).all()
    assert depths[5, 12] / opacities[5, 12] == pytest.approx(1.3, abs=0.15)
    again = ingp.load_snapshot(written(tmp_path, made()[0]), backend="reference").render(0)
    torch.testing.assert_close(colors, again[0], rtol=1e-3, atol=1e-3)
    white, *_ = snapshot.render(1, background=torch.ones(3))
    assert (white[19, 0] == 1).all()


def test_wrong_files_are_told(tmp_path: Path) -> None:
    def check(message: str, change: Any) -> None:
        config = made()[0]
        change(config)
        with pytest.raises(ValueError, match=message):
            ingp.load_snapshot(written(tmp_path, config))

    check("params_binary", lambda config: config.pop("snapshot"))
    check("mode", lambda config: config["snapshot"].update(mode="Sdf"))
    check("rgb_network", lambda config: config.pop("rgb_network"))
    check("parameters", lambda config: config["encoding"].update(log2_hashmap_size=11))
    check("params_type", lambda config: config["snapshot"].update(params_type="fp8"))
    check("cells", lambda config: config["snapshot"].update(density_grid_size=8))
    check("codes", lambda config: config["snapshot"]["nerf"]["dataset"].update(n_extra_learnable_dims=4))
    check("HDR", lambda config: config["snapshot"]["nerf"]["dataset"].update(is_hdr=True))
    path = written(tmp_path, made()[0])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        ingp.load_snapshot(path)
    path.write_bytes(pack([1, 2]))
    with pytest.raises(ValueError, match="map"):
        ingp.load_snapshot(path)
    config = made()[0]
    config["snapshot"]["nerf"]["dataset"]["metadata"][0]["lens"] = {"ftheta_p0": 1.0}
    with pytest.warns(UserWarning, match="lenses"):
        snapshot = ingp.load_snapshot(written(tmp_path, config))
    with pytest.raises(ValueError, match="cameras"):
        snapshot.render()
    config = made()[0]
    config["snapshot"]["density_grid_binary"] = b""
    assert ingp.load_snapshot(written(tmp_path, config)).occupancy.occupied_fraction == 1


def test_message_pack() -> None:
    texts = ["", "a", "é" * 10, "b" * 300]
    values = [None, True, False, 0, 127, -1, -32, 1.5, {"a": [1, {"b": b"12"}], "c": 70000}, *texts[:3]]
    assert msgpack.unpack(pack(values)) == values
    for tag, kind, value in ((0xCA, "f", 0.5), (0xCC, "B", 200), (0xCE, "I", 2**31), (0xCF, "Q", 2**63)):
        assert msgpack.unpack(bytes([tag]) + struct.pack(f">{kind}", value)) == value
    for tag, kind, value in ((0xD0, "b", -100), (0xD1, "h", -1000), (0xD2, "i", -(2**30)), (0xD3, "q", -(2**40))):
        assert msgpack.unpack(bytes([tag]) + struct.pack(f">{kind}", value)) == value
    assert msgpack.unpack(b"\xda" + struct.pack(">H", 300) + b"b" * 300) == texts[3]
    assert msgpack.unpack(b"\xc4\x02ab") == b"ab" and msgpack.unpack(b"\xdd\0\0\0\x01\xc0") == [None]
    assert msgpack.unpack(zlib.decompress(zlib.compress(b"\xdf\0\0\0\x01\x01\x02"))) == {1: 2}
    for wrong in (b"", b"\xd9\x05ab", b"\xc1", b"\x01\x01", b"\x81\x90\x01", b"\xa1\xff", b"\x91" * 200):
        with pytest.raises(ValueError, match="MessagePack"):
            msgpack.unpack(wrong)
