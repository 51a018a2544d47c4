"""tiny-cuda-nn's forward pass in NumPy alone, from its documentation and formulas: own hash, level scales, padding,
perceptron and random numbers. ``rounded`` is applied wherever it stores half precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
PRIMES = (1, 2654435761, 805459861, 3674653429)
HALF_ROUNDING = 2.0**-11


def exact(values: Array) -> Array:
    return values.astype(np.float64)


def to_half(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def grid_geometry(n_dims: int, config: dict) -> list[tuple[np.float32, int, int, int]]:
    """Scale, resolution, first entry and number of entries of every level."""
    kind = config.get("type", {"TiledGrid": "Tiled", "DenseGrid": "Dense"}.get(config["otype"], "Hash"))
    base = config["base_resolution"]
    log2 = np.float32(np.log2(np.float64(np.float32(config["per_level_scale"]))))
    levels, offset = [], 0
    for level in range(config["n_levels"]):
        power = np.float32(np.exp2(np.float64(np.float32(level) * log2)))
        scale = power * np.float32(base) - np.float32(1)
        resolution = int(np.ceil(scale)) + 1
        size = (resolution**n_dims + 7) // 8 * 8
        if kind == "Hash":
            size = min(size, 1 << config["log2_hashmap_size"])
        if kind == "Tiled":
            size = min(size, base**n_dims)
        levels.append((scale, resolution, offset, size))
        offset += size
    return levels


def grid(x: Array, params: Array, config: dict) -> Array:
    """Features [N, L * F] of ``x`` [N, D]."""
    n_dims, n_features = x.shape[1], config["n_features_per_level"]
    table = params.reshape(-1, n_features)
    outputs = []
    for scale, resolution, offset, size in grid_geometry(n_dims, config):
        position = (x.astype(np.float64) * np.float64(scale) + 0.5).astype(np.float32)
        cell = np.floor(position)
        fraction = (position - cell).astype(np.float64)
        total = np.zeros((len(x), n_features))
        for corner in itertools.product((0, 1), repeat=n_dims):
            weight, index, hashed, stride = np.ones(len(x)), np.zeros(len(x), np.uint64), np.zeros(len(x), np.uint64), 1
            for axis, step in enumerate(corner):
                vertex = (cell[:, axis].astype(np.int64) + step).astype(np.uint32).astype(np.uint64)
                weight *= fraction[:, axis] if step else 1 - fraction[:, axis]
                index += vertex * np.uint64(stride)
                hashed ^= vertex * np.uint64(PRIMES[axis]) & np.uint64(0xFFFFFFFF)
                stride *= resolution
            use_hash = config["otype"] in ("HashGrid", "Grid") and size < stride
            entry = (hashed if use_hash else index & np.uint64(0xFFFFFFFF)) % np.uint64(size)
            total += weight[:, None] * table[offset + entry.astype(np.int64)]
        outputs.append(total)
    return np.concatenate(outputs, axis=1)


def spherical_harmonics(x: Array) -> Array:
    """Of degree 2, of directions as [0, 1]^3."""
    x, y, z = (2 * x.astype(np.float64) - 1).T
    return np.stack([0.28209479 + 0 * x, -0.48860251 * y, 0.48860251 * z, -0.48860251 * x], axis=1)


def frequency(x: Array, n: int) -> Array:
    angles = math.pi * x.astype(np.float64)[..., None] * 2.0 ** np.arange(n)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(x), -1)


def triangle_wave(x: Array, n: int) -> Array:
    t = x.astype(np.float64)[..., None] * 2.0 ** (np.arange(n) - 1) + np.arange(n) / 4
    return (np.abs(t - np.floor(t) - 0.5) * 4 - 1).reshape(len(x), -1)


def one_blob(x: Array, n: int) -> Array:
    def integral(border: float, center: float) -> float:
        u = min(max((border - center) * n, -1.0), 1.0)
        return 15 / 16 * (u - 2 / 3 * u**3 + u**5 / 5) + 0.5

    def share(bin_index: int, center: float) -> float:
        borders = bin_index / n, (bin_index + 1) / n
        return sum(integral(borders[1] + turn, center) - integral(borders[0] + turn, center) for turn in (-1, 0, 1))

    return np.array([[share(b, value) for value in row for b in range(n)] for row in x.astype(np.float64)])


def padded(features: Array, value: float, first: bool = False, multiple: int = 16) -> Array:
    n = -features.shape[1] % multiple
    return np.pad(features, ((0, 0), (n, 0) if first else (0, n)), constant_values=value)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "None": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "LeakyReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Exponential": np.exp,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sine": np.sin,
    "Squareplus": lambda x: (10 * x + np.sqrt(100 * x * x + 4)) / 20,
    "Softplus": lambda x: np.log(np.exp(10 * x) + 1) / 10,
    "Tanh": np.tanh,
}


def network_shapes(n_inputs: int, n_outputs: int, config: dict) -> list[tuple[int, int]]:
    """[out, in] of every layer, padded."""
    hidden = [config["n_neurons"]] * config["n_hidden_layers"]
    widths = [(n_inputs + 15) // 16 * 16, *hidden, (n_outputs + 15) // 16 * 16]
    return [(b, a) for a, b in zip(widths, widths[1:], strict=False)]


def network(x: Array, params: Array, n_outputs: int, config: dict, rounded: Callable[[Array], Array]) -> Array:
    """Outputs of padded inputs ``x``."""
    shapes = network_shapes(x.shape[1], n_outputs, config)
    for layer, (n_out, n_in) in enumerate(shapes):
        weight, params = params[: n_out * n_in].reshape(n_out, n_in), params[n_out * n_in :]
        name = config.get("output_activation", "None") if layer == len(shapes) - 1 else config.get("activation", "ReLU")
        x = rounded(ACTIVATIONS[name](rounded(x @ weight.T)))
    assert len(params) == 0
    return x[:, :n_outputs]


def pcg32(seed: int, sequence: int, n: int) -> list[int]:
    """Words of PCG32, one after the other."""
    mask, words = 2**64 - 1, []
    increment = (sequence << 1 | 1) & mask

    def step(state: int) -> int:
        return (state * 6364136223846793005 + increment) & mask

    state = step((step(0) + seed) & mask)
    for _ in range(n):
        word, turn = ((state >> 18) ^ state) >> 27 & 0xFFFFFFFF, state >> 59
        words.append((word >> turn | word << (-turn & 31)) & 0xFFFFFFFF)
        state = step(state)
    return words
