"""Compressed photos: what is written is what is read, to the bit, in the bytes that were asked for."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from base64 import b64decode
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid.cli import main
from hashgrid.compress import coin_code, container, grid_code
from hashgrid.compress.coin_code import CoinCode, CoinSizes, coin_sizes
from hashgrid.compress.container import Compressed
from hashgrid.compress.contexts import bordered, mean_of, passes
from hashgrid.compress.entropy import CodecError, Decoder, Distribution, Encoder, counts, entropy, fit
from hashgrid.compress.fixed_point import product, sine_of_turns
from hashgrid.compress.grid_code import GridCode, GridSizes
from hashgrid.compress.photo import decompress
from hashgrid.compress.rate import prices
from hashgrid.fields.coin import Coin, CoinConfig
from hashgrid.fields.compressed_grid import CompressedGrid, CompressedGridConfig

pytest.importorskip("constriction")


def geometric(n: int, seed: int = 0, zero: float = 0.7, ratio: float = 0.6) -> np.ndarray:
    """Integers of either sign, most of them zeros."""
    random = np.random.default_rng(seed)
    return np.where(random.random(n) < zero, 0, random.geometric(1 - ratio, n) * random.choice([-1, 1], n))


def small_code(width: int = 37, height: int = 22, seed: int = 0) -> GridCode:
    """A grid and a network of random integers."""
    sizes, random = GridSizes(width, height, 0, 1, 3, n_neurons=8, n_hidden_layers=2, fraction_bits=6), seed
    planes = [
        geometric(math.prod(sizes.shape(level)), seed + i).reshape(sizes.shape(level)).astype(np.int32)
        for i, (level, _) in enumerate(sizes.channels)
    ]
    random = np.random.default_rng(seed)
    tensors = [random.normal(0, 20, shape).round().astype(np.int32) for shape in sizes.tensors]
    steps = random.integers(1000, 4000, len(planes)).astype(np.int32)
    return GridCode(sizes, planes, steps, tensors[: len(sizes.layers)], tensors[len(sizes.layers) :])


# ---- entropy coding --------------------------------------------------------------------------------------------------


def test_coded_integers_come_back_in_the_bytes_of_their_entropy() -> None:
    """Entropy of how often each occurs, of 2e5 integers; a coder of a distribution for each of two kinds of them that
    takes them for one kind needs 18 % more."""
    kinds = [geometric(100_000, 1, zero=0.95, ratio=0.3), geometric(100_000, 2, zero=0.3, ratio=0.8)]
    encoder, bits, largest = Encoder(), 0.0, max(int(np.abs(kind).max()) for kind in kinds)
    for kind in kinds:
        encoder.put(kind, fit(kind, largest))
        share = np.unique(kind, return_counts=True)[1] / len(kind)
        bits -= len(kind) * float((share * np.log2(share)).sum())
        assert entropy(kind, fit(kind, largest)) == pytest.approx(
            len(kind) * -float((share * np.log2(share)).sum()), rel=0.01
        )
    data = encoder.to_bytes()
    assert bits / 8 <= len(data) < 1.01 * bits / 8 + 8
    together = np.concatenate(kinds)
    assert entropy(together, fit(together, largest)) > 1.15 * bits
    decoder = Decoder(data)
    for kind in kinds:
        assert np.array_equal(decoder.take(len(kind), fit(kind, largest)), kind)
    decoder.finish()


def test_distributions_are_exact_integers() -> None:
    """Rounded down from the fractions that the bytes say; the last magnitude takes what is left."""
    for distribution in (Distribution(22, 128, 3), Distribution(0, 3, 5), Distribution(200, 250, 40, 77)):
        zero, ratio, largest, positive = distribution
        whole = Fraction(31, 32) ** zero * 2**20
        table = counts(distribution)
        assert table.dtype == np.int64 and table.min() >= 1 and len(table) == 2 * largest + 1
        assert abs(int(table[largest]) - (2**20 - whole)) <= 1
        assert abs(int(table[largest + 1 :].sum()) - whole * positive / 256) <= largest + 2
        assert abs(int(table[largest + 1]) - whole * positive / 256 * (1 - Fraction(ratio, 256))) <= 2
        assert abs(int(table[largest + 2]) - int(table[largest + 1]) * Fraction(ratio, 256)) <= 2


def test_integers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`symbols` must be in -2..2, got -3..0"):
        Encoder().put(np.array([-3, 0]), Distribution(9, 9, 2))
    with pytest.raises(CodecError, match="words of 4 bytes"):
        Decoder(b"12345")


# ---- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (37, 22), (64, 65)])
def test_grid_comes_back(width: int, height: int) -> None:
    code = small_code(width, height)
    again = grid_code.decode(width, height, grid_code.encode(code))
    assert again.sizes == code.sizes and np.array_equal(again.steps, code.steps)
    for one, other in zip([*code.planes, *code.tensors], [*again.planes, *again.tensors], strict=True):
        assert np.array_equal(one, other)


def test_classes_look_at_earlier_passes_only() -> None:
    """With entries that are not read yet replaced by others, each entry is in one pass and its class is the same."""
    plane = geometric(23 * 30).reshape(23, 30).astype(np.int32)
    above = bordered(geometric(13 * 16, 1).reshape(13, 16))
    whole = list(passes(bordered(plane), mean_of(plane), above))
    read, seen = bordered(np.full_like(plane, 9)), np.zeros(plane.shape, int)
    for step, again in zip(whole, passes(read, mean_of(plane), above), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(step[1:], again[1:], strict=True))
        read[8:-8, 8:-8][step.where] = plane[step.where]
        seen[step.where] += 1
    assert (seen == 1).all()


def test_contexts_save_bytes_where_entries_lie_together() -> None:
    """Runs of one sign: half of the bytes that one distribution takes."""
    random = np.random.default_rng(0)
    sizes = GridSizes(199, 199, 0, 0, 0, 1, 0, 6)
    smooth = np.kron(random.normal(0, 3, (25, 25)) * (random.random((25, 25)) < 0.2), np.ones((8, 8)))
    planes = [smooth.round().astype(np.int32)] * 3
    alone = sum(entropy(plane, fit(plane, int(np.abs(plane).max()))) for plane in planes) / 8
    assert prices(sizes, planes)[0] < 0.5 * alone


def test_pixels_are_those_of_the_field() -> None:
    """Of a field in floating point, whose interpolation and network know nothing of the decoder's: within one level."""
    torch.manual_seed(0)
    field = CompressedGrid(CompressedGridConfig(finest_level=0, coarsest_level=3, first_step=0.03), 37, 22, 10_000)
    with torch.no_grad():
        for table in field.tables:
            table.copy_(torch.randint(-3, 4, table.shape) / 20)
        for bias in field.mlp.biases:
            bias.uniform_(-0.3, 0.6)
        y, x = torch.meshgrid(torch.arange(22), torch.arange(37), indexing="ij")
        places = torch.stack(((x + 0.5) / 37, (y + 0.5) / 22), dim=-1)
        expected = (field(places) * 255).clamp(0, 255).numpy()
    image = grid_code.render(grid_code.decode(37, 22, field.payload(10_000)))
    assert np.abs(image - expected).max() < 0.7 and 40 < image.std()


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_products_are_exact_or_refused() -> None:
    """Against Python's integers; sums of the same in floats of 32 bits are not exact."""
    random = np.random.default_rng(0)
    x, weights, bias = (random.integers(-(2**20), 2**20, shape) for shape in ((5, 40), (3, 40), (3,)))
    expected = [
        [int(bias[j]) + sum(int(a) * int(b) for a, b in zip(row, weights[j], strict=True)) for j in range(3)]
        for row in x
    ]
    y = product(x.astype(float), weights.astype(float), bias.astype(float), 2.0**20)
    assert y.tolist() == expected
    with pytest.raises(CodecError, match="the limit is 2\\^53"):
        product(x.astype(float), weights * 2.0**20, bias.astype(float), 2.0**20)


def test_sine_is_the_sine() -> None:
    turns = np.linspace(-3, 3, 1001)
    assert np.abs(sine_of_turns(turns) - np.sin(2 * np.pi * turns)).max() < 1e-10


# ---- COIN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layers", "n_neurons", "n_parameters", "bits"),
    [
        (5, 20, 1803, 0.0734),
        (5, 30, 3903, 0.159),
        (10, 28, 7479, 0.304),
        (10, 40, 15003, 0.610),
        (13, 49, 29697, 1.208),
    ],
)
def test_coin_has_the_bits_of_its_paper(n_layers: int, n_neurons: int, n_parameters: int, bits: float) -> None:
    sizes = CoinSizes(n_layers, n_neurons)
    assert sizes.n_parameters == n_parameters
    assert sizes.bits_per_pixel(768, 512) == pytest.approx(bits, abs=5e-4)
    field = Coin(CoinConfig(n_layers, n_neurons), 768, 512, 0)
    assert sum(parameter.numel() for parameter in field.parameters()) == n_parameters
    payload = field.payload(0)
    assert 16 * n_parameters / (768 * 512) == pytest.approx(8 * (len(payload) - 3) / (768 * 512), abs=1e-4)
    assert coin_sizes(sizes.n_bytes).n_parameters <= n_parameters < 1.03 * coin_sizes(sizes.n_bytes).n_parameters


def test_coin_is_its_network() -> None:
    """Pixels are those of the field in floating point with parameters in half precision, ten layers deep."""
    torch.manual_seed(0)
    field = Coin(CoinConfig(10, 16), 30, 20, 0)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(parameter.half())
        field.blocks[-1].weights[-1].mul_(4)
        y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
        expected = (field(torch.stack(((x + 0.5) / 30, (y + 0.5) / 20), dim=-1)) * 255).clamp(0, 255).numpy()
    image = coin_code.render(coin_code.decode(30, 20, field.payload(0)), 30, 20)
    assert np.abs(image - expected).max() < 0.6 and 10 < image.std()


def test_coin_parameters_must_be_finite() -> None:
    code = CoinCode(CoinSizes(1, 1), [np.full((1, 2), 1e6), np.ones((3, 1))], [np.ones(1), np.ones(3)])
    with np.errstate(over="ignore"), pytest.raises(CodecError, match="finite in half precision"):
        coin_code.encode(code)


# ---- files -----------------------------------------------------------------------------------------------------------

GOLDEN = {
    "grid": (
        "SEdJAQEwACAAAAEDEAEGBQDEAQgMXwxMDGAMUg2xDI4N7QyuDTMNCSlIVGAefFufhau4vdL3yuzm9///P////wCMl54AgIxcgDp4Q45JgCZJ"
        "D1gNVAVaAocAiv8A/wBFAP8ATF07dJUAUQAqLxs2EXkJeAaHAaQBswDAAfAC1wD6APsA/2Qd53tf1wPhr9vf1QAukaUjBHSAANMALsK7x83f"
        "jhzvm0I0qEsMVvwHfVSHyhbh5GgBprA2gCShg6hRFZRzMrYNfTw7CEv1Wt7LvlcuTH0/JjXP4SgIyYrzRr7pfEvhePfZUuXf86jRo88VZv9g"
        "+l/FJ5+zvuYHGvO6ovlJCKimCwusFDCbvNqepqxpqdiVvBS/pNpdrZeddxOLjpbRxEf2WdrOlh4wfPRrwjmj26Aqrau8LS6fz8m1SIlKQqzT"
        "LapniAYh0H+7p92d9Oh4oSQSYAkjx8u4ji42ntPAq9AKZgxY0jnYwKJdXDea3UTMPVkczgg4S9tcAdUbQAE5taLU+/dLRx31pa9or70Wk+6a"
        "R6+JmzHZE805lJj+qcKdVpdvqKbwCzCMCJAzJqzClhao0sBMmXU4ll7UoCbU47xDbIfB+2ZlYK/DR8GNux9m/8EmB+OOeCQhqpYEGZLxtZqO"
        "3qFwEVXGoGdkq0gtHzWp3Pd5c0WL8koNNasXor9+1wk8povgCc0qPpBDwyZ25+yFPAKKzEeexG6tUmxJYQwvfSzsi45UNG3KoDCteIEZd8J3"
        "FXuDAzC2Hwjh9HDTX100lV6cjlDhUppLyrmZeeGhAyFrB7zGFnyty90yKUSmvRUQThqS5LTW+cImswb4RBGqicM21XIN3pmkL0XxTvPjJNWy"
        "+0FVMqQhkiYUhwXNwomvFGHk51MvwKaBpGCE34B12iFA0RHlIBBenUeyYg1GauDrS72xRROwa5qJWVXTdMQLfSW8D/Ajz/zlzl6TQgu3VyPP"
        "nnDqswJdEmW/PuPFW8q6+SqEXRquF5ihWXSP97MqNd8qyjKv",
        "246106e092fd2af7bc0789b5093b445827d3e57bb917cfe022a385bf4fe15d4a",
    ),
    "coin": (
        "SEdJAQIwACAABAQAl8ZjRf3GYkVjRrlH5UXVytrIUkbzQT/JYLkCPCupybAZvfi9lChSMAW9Yrz9oWutHUA1OZ46JT2bvkY4GCWWLCY6Tzka"
        "uJy6bTmRvLu9i62guUa5sL35svsu8rz0tLU5CikEsro4pTh9O2w9tj2xPtCpLrssuFI/LDVhuEO+kLRquNY9EKRjuPq4ED1ttCOsrrZZMAK1"
        "iyb7sfw2I60YNbExnjODMz01vTBCNKs4AuKdmw==",
        "566549cf2390ad135d95686f563b208245ace7c776059f29b0e08bcc3aa81248",
    ),
}


@pytest.mark.parametrize("method", GOLDEN)
def test_old_files_keep_their_pixels(method: str) -> None:
    """Files that were written once: whatever changes, they are read to the same bits."""
    data, digest = GOLDEN[method]
    assert hashlib.sha256(decompress(b64decode(data)).tobytes()).hexdigest() == digest


def test_pixels_do_not_depend_on_the_processor(tmp_path: Path) -> None:
    """With NumPy's and BLAS's plainest kernels, and more rows at once, the same bits."""
    data = {"grid": b64decode(GOLDEN["grid"][0]), "coin": b64decode(GOLDEN["coin"][0])}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    script = """
import hashlib, pathlib, sys
from hashgrid.compress import coin_code, grid_code
from hashgrid.compress.container import unpack
grid, coin = (unpack(pathlib.Path(name).read_bytes()) for name in ("grid", "coin"))
images = (grid_code.render(grid_code.decode(grid.width, grid.height, grid.payload), rows=5),
          coin_code.render(coin_code.decode(coin.width, coin.height, coin.payload), coin.width, coin.height, block=99))
print(*(hashlib.sha256(image.tobytes()).hexdigest() for image in images))
"""
    plain = {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX", "OPENBLAS_CORETYPE": "Nehalem"}
    plain |= {"HASHGRID_CPU_CAPABILITY": "default", "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == [GOLDEN["grid"][1], GOLDEN["coin"][1]], run.stderr


def packed(payload: bytes = b"", width: int = 4, height: int = 4, version: int = 1, method: int = 1) -> bytes:
    body = struct.pack("<3sBBHH", b"HGI", version, method, width, height) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def test_files_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = container.pack(Compressed("grid", 37, 22, grid_code.encode(small_code())))
    damaged = bytearray(whole)
    damaged[40] ^= 4
    cases = {
        b"": "it must begin with b'HGI'",
        b"\x89PNG\r\n" + bytes(99): "it must begin with b'HGI'",
        whole[:5]: "it is cut off",
        whole[:-1]: "damaged or cut off",
        bytes(damaged): "damaged or cut off",
        packed(version=2): "version 2, this program reads version 1",
        packed(method=9): "method 9",
        packed(width=0): "1..65535 pixels wide and high, got 0 x 4",
        packed(width=65535, height=65535): "`--allow-huge`",
        packed(b"\0\1\3\7"): "cut off within its description",
        packed(bytes((0, 1, 20, 8, 1, 6)) + b"\5\0\5\0"): "levels 0, 1..20",
        packed(bytes((0, 1, 3, 255, 1, 6)) + b"\5\0\5\0"): "255 neurons",
        packed(struct.pack("<BH", 10, 65535), method=2): "none of a sine network",
        packed(struct.pack("<BH", 10, 28), method=2): "7479 parameters take 14958 bytes",
    }
    path, out = tmp_path / "photo.hgi", tmp_path / "out.png"
    for data, message in cases.items():
        path.write_bytes(data)
        assert main(["decompress", str(path), str(out)]) == 1
        error = capsys.readouterr().err
        assert message in error and str(path) in error and error.count("\n") == 1
    assert main(["decompress", str(tmp_path / "absent.hgi"), str(out)]) == 1
    assert "does not exist" in capsys.readouterr().err and not out.exists()
    assert main(["decompress", str(path), str(tmp_path / "out.jpg")]) == 1
    assert "`OUT` must end in .png" in capsys.readouterr().err and not (tmp_path / "out.jpg").exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def picture(width: int = 64, height: int = 48) -> Tensor:
    """An edge on a colourful slope, uint8 [H, W, 3]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    inside = ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.08).float()
    return (torch.stack((x, y, 1 - x), dim=-1) * (1 - 0.7 * inside[..., None]) * 255).byte()


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (("--measure-every", "8", "--steps", "60", "--coarsest-level", "3"), 14.0),
        (("--field", "coin", "--steps", "100"), 14.0),
    ],
)
def test_command_keeps_to_the_bits_it_is_given(options: tuple[str, ...], least: float, tmp_path: Path) -> None:
    """The mean colour alone has 12.7 dB."""
    iio, out = pytest.importorskip("imageio.v3"), tmp_path / "out"
    iio.imwrite(tmp_path / "photo.png", picture().numpy())
    arguments = ["image", str(tmp_path / "photo.png"), "--compress", "3", "--device", "cpu"]
    assert main([*arguments, "--out", str(out), *options]) == 0
    results, n_bytes = json.loads((out / "results.json").read_text()), (out / "photo.hgi").stat().st_size
    assert results["bytes"] == n_bytes and results["bpp"] == pytest.approx(8 * n_bytes / (64 * 48))
    assert 0.95 * 3 < results["bpp"] <= 3
    assert main(["decompress", str(out / "photo.hgi"), str(tmp_path / "again.png")]) == 0
    again = iio.imread(tmp_path / "again.png")
    assert np.array_equal(again, iio.imread(out / "reconstruction.png"))
    mse = ((again.astype(float) - picture().numpy()) ** 2).mean()
    assert results["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-6) and results["psnr"] > least
    assert abs(results["psnr"] - results["psnr_as_trained"]) < 0.05


def test_too_few_bits_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    iio = pytest.importorskip("imageio.v3")
    iio.imwrite(tmp_path / "photo.png", picture().numpy())
    arguments = [
        "image",
        str(tmp_path / "photo.png"),
        "--steps",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    for options, message in (
        (["--compress", "0.2"], "63 are asked for"), (["--compress", "0"], "`compress` must be in (0, 24]"),
        (["--compress", "0.001", "--field", "coin"], "no network fits"),
    ):  # fmt: skip
        assert main([*arguments, *options]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
