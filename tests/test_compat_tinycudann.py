"""The drop-in for tiny-cuda-nn's Python module, against an independent NumPy twin of it (problems/tinycudann_twin.py),
known numbers of its own tests, and plain PyTorch."""

from __future__ import annotations

import copy
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import tinycudann_twin as twin
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import hashgrid.compat
from hashgrid import Permutohedral
from hashgrid.compat import tinycudann as tcnn
from hashgrid.compat.tinycudann_layout import grid_levels
from hashgrid.compat.tinycudann_start import Pcg32, uniform_table
from hashgrid.nn.permutohedral import elevation, simplices

HASH = {
    "otype": "HashGrid",
    "n_levels": 5,
    "n_features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 8,
    "per_level_scale": 1.5,
}
SMALL = {"otype": "FullyFusedMLP", "n_neurons": 32, "n_hidden_layers": 2}
PAPER = {"otype": "HashGrid", "n_levels": 16, "log2_hashmap_size": 19, "per_level_scale": 128 ** (1 / 15)}


def positions(n: int, n_dims: int) -> np.ndarray:
    return np.random.default_rng(n_dims).random((n, n_dims), np.float32)


def filled(module: tcnn.Module, scale: float = 1.0) -> np.ndarray:
    """A checkpoint made elsewhere: values as large as trained ones, loaded by the name and shape tiny-cuda-nn has."""
    values = np.random.default_rng(0).uniform(-scale, scale, module.params.numel()).astype(np.float32)
    module.load_state_dict({"params": torch.from_numpy(values)})
    state = module.state_dict()
    assert list(state) == ["params"] and np.array_equal(state["params"].numpy(), values)
    return values.astype(np.float64)


def check(module: tcnn.Module, x: np.ndarray, expected: Callable[[Callable], np.ndarray], n_roundings: int = 4) -> None:
    """fp32 to its own rounding, and half precision to so many roundings of the largest value."""
    with torch.no_grad():
        y = module(torch.from_numpy(x)).double().numpy()
    truth = expected(twin.exact)
    assert y.shape == truth.shape
    largest = np.abs(truth).max()
    assert np.abs(y - truth).max() <= 1e-5 * largest
    assert np.abs(y - expected(twin.to_half)).max() <= n_roundings * twin.HALF_ROUNDING * largest


# ---- numbers of tiny-cuda-nn -----------------------------------------------------------------------------------------


def test_values_match_golden_table_through_json(shared: Path) -> None:
    case = json.loads((shared / "golden" / "tcnn_reference_table.json").read_text())
    config = {"otype": "HashGrid", "n_levels": case["L"], "n_features_per_level": case["F"]}
    config |= {"log2_hashmap_size": 16, "base_resolution": case["base"], "per_level_scale": case["per_level_scale"]}
    encoding = tcnn.Encoding(case["D"], json.loads(json.dumps(config)))
    params = torch.from_numpy(np.linspace(0, 1000, case["n_params"], dtype=np.float32))
    encoding.load_state_dict({"params": params})
    y = encoding(torch.tensor(case["x"]))
    torch.testing.assert_close(y, torch.tensor(case["expected_LFxB"]).T, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "n_dims, config, n_params",
    [
        (3, {"n_levels": 20, "log2_hashmap_size": 16, "base_resolution": 32, "per_level_scale": 1.5}, 2_555_904),
        (3, PAPER, 12_196_240),
        (3, {"n_levels": 8, "n_features_per_level": 4}, 11_681_792),
        (3, {"n_levels": 8, "n_features_per_level": 4, "log2_hashmap_size": 15}, 933_888),
        (3, {}, 14_229_504),
        (2, {"log2_hashmap_size": 15, "per_level_scale": 1.5}, 708_368),
        (2, {"otype": "DenseGrid", "n_levels": 8, "n_features_per_level": 8, "base_resolution": 2}, 699_072),
    ],
)
def test_parameter_counts(n_dims: int, config: dict, n_params: int) -> None:
    with torch.device("meta"):
        encoding = tcnn.Encoding(n_dims, {"otype": "HashGrid", **config})
    assert encoding.params.shape == (n_params,)
    features = config.get("n_features_per_level", 2)
    assert encoding.n_output_dims == config.get("n_levels", 16) * features


def test_offsets_of_its_own_test() -> None:
    levels, n_entries = grid_levels(3, "hash", 20, 16, 32, 1.5)
    assert levels.offsets[:4] == (0, 32**3, 32**3 + 65536, 32**3 + 2 * 65536)
    assert levels.sizes[:3] == (32**3, 65536, 65536) and levels.hashed[:3] == (False, True, True)
    assert [row[0] for row in levels.resolutions[:5]] == [32, 48, 72, 108, 162] and levels.resolutions[-1][0] == 70939
    assert n_entries == levels.n_entries == 1_277_952


@pytest.mark.parametrize("kind, growth", [("hash", 1.38191), ("tiled", 1.3), ("dense", 1.2)])
def test_levels_are_rounded_in_fp32(kind: str, growth: float) -> None:
    config = {"otype": f"{kind.capitalize()}Grid", "base_resolution": 7, "per_level_scale": growth}
    expected = twin.grid_geometry(3, config | {"n_levels": 10, "log2_hashmap_size": 12})
    levels, n_entries = grid_levels(3, kind, 10, 12, 7, growth)
    made = zip(levels.scales, levels.resolutions, levels.offsets, levels.sizes, strict=True)
    assert [(s[0], r[0], offset, size) for s, r, offset, size in made] == expected
    assert n_entries == sum(size for *_, size in expected)


def test_start_is_that_of_the_seed() -> None:
    demo = [0xA15C02B7, 0x7B47F409, 0xBA1D3330, 0x83D2F293, 0xBFA4784B, 0xCBED606E]  # of pcg32-demo
    assert twin.pcg32(42, 54, 6) == demo
    words = np.array(twin.pcg32(1337, 1, 40_000), np.uint32)
    draws = (words >> 9) / 2.0**23
    assert np.array_equal(Pcg32(1337).draw(40_000), draws)

    model = tcnn.NetworkWithInputEncoding(3, 1, HASH, SMALL)
    shapes = twin.network_shapes(10, 1, SMALL)
    begin = 0
    for n_out, n_in in shapes:
        end = begin + n_out * n_in
        weights = (2 * draws[begin:end] - 1) * np.sqrt(6 / (n_out + n_in))
        np.testing.assert_allclose(model.params.detach()[begin:end].numpy(), weights, rtol=0, atol=1e-7)
        begin = end
    n = model.params.numel() - begin
    stride = -(-n // 512) * 128  # threads, each of which draws four entries that are this far apart
    thread, row = np.arange(n) % stride, np.arange(n) // stride
    table = (2 * draws[begin + 4 * thread + row] - 1) * 1e-4
    np.testing.assert_allclose(model.params.detach()[begin:].numpy(), table, rtol=0, atol=1e-11)
    assert torch.equal(model.params, tcnn.NetworkWithInputEncoding(3, 1, HASH, SMALL, seed=1337).params)
    assert not torch.equal(model.params, tcnn.NetworkWithInputEncoding(3, 1, HASH, SMALL, seed=1).params)
    random = Pcg32(5)
    uniform_table(random, 1000)
    assert np.array_equal(random.draw(10), Pcg32(5).draw(1010)[1000:])


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_dims", [2, 3, 4])
@pytest.mark.parametrize("kind", ["HashGrid", "TiledGrid", "DenseGrid"])
def test_checkpoint_of_an_encoding(kind: str, n_dims: int) -> None:
    config = HASH | {"otype": kind, "n_levels": 3, "base_resolution": 5}
    encoding = tcnn.Encoding(n_dims, config)
    params = filled(encoding)
    x = positions(200, n_dims)
    check(encoding, x, lambda rounded: rounded(twin.grid(x, rounded(params), config)))


@pytest.mark.parametrize("activation", twin.ACTIVATIONS)
@pytest.mark.parametrize("n_hidden_layers", [0, 2, 10])
def test_checkpoint_of_a_network(activation: str, n_hidden_layers: int) -> None:
    """5 inputs: the other 11 are ones. 10 layers are more than a kernel takes."""
    config = {"otype": "CutlassMLP", "n_neurons": 24, "n_hidden_layers": n_hidden_layers}
    config |= {"activation": activation, "output_activation": activation if n_hidden_layers < 10 else "None"}
    module = tcnn.Network(5, 3, config)
    params = filled(module, 0.1 if activation == "Exponential" else 0.5)  # neither vanishing nor beyond half precision
    x = positions(100, 5)

    def expected(rounded: Callable) -> np.ndarray:
        return twin.network(twin.padded(rounded(x), 1.0), rounded(params), 3, config, rounded)

    check(module, x, expected, n_roundings=8 + 4 * n_hidden_layers)


def test_backend_of_a_module_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"n_dims_to_encode": 3, **HASH}, {"n_dims_to_encode": 3, "otype": "SphericalHarmonics", "degree": 2}]
    config = {"otype": "FullyFusedMLP", "n_neurons": 16, "n_hidden_layers": 1}
    module = tcnn.NetworkWithInputEncoding(6, 2, {"otype": "Composite", "nested": parts}, config)
    x = torch.rand(20, 6)
    expected = module(x)
    module.backend = "reference"
    for name in ("hash_encode", "sh_encode", "mlp"):
        monkeypatch.delattr(hashgrid.ops, name)
    torch.testing.assert_close(module(x), expected)
    assert module.backend == "reference"
    module.backend = "native"
    with pytest.raises(AttributeError):
        module(x)
    with pytest.raises(ValueError, match="`backend`"):
        module.backend = "fast"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_checkpoint_of_a_network_with_encoding(backend: str) -> None:
    """10 features: the 6 weights of zeros are there, too."""
    config = SMALL | {"output_activation": "Sigmoid"}
    module = tcnn.NetworkWithInputEncoding(3, 5, HASH, config, backend=backend)
    params = filled(module, 0.5)
    n = sum(n_out * n_in for n_out, n_in in twin.network_shapes(10, 5, config))
    x = positions(200, 3)

    def expected(rounded: Callable) -> np.ndarray:
        features = rounded(twin.grid(x, rounded(params[n:]), HASH))
        return twin.network(twin.padded(features, 0.0), rounded(params[:n]), 5, config, rounded)

    check(module, x, expected, n_roundings=8)


FORMULAS = {
    "Frequency": ({"n_frequencies": 5}, lambda x: twin.frequency(x, 5), False),
    "TriangleWave": ({"n_frequencies": 7}, lambda x: twin.triangle_wave(x, 7), False),
    "OneBlob": ({"n_bins": 8}, lambda x: twin.one_blob(x, 8), False),
    "SphericalHarmonics": ({"degree": 2}, twin.spherical_harmonics, True),
    "Identity": ({"scale": 2.0, "offset": -0.5}, lambda x: 2 * x.astype(np.float64) - 0.5, False),
}


@pytest.mark.parametrize("otype", FORMULAS)
def test_encodings_without_parameters(otype: str) -> None:
    """By themselves and, with ones before or behind them, in front of a network."""
    options, formula, ones_first = FORMULAS[otype]
    x = positions(100, 3)
    encoding = tcnn.Encoding(3, {"otype": otype.lower(), **options})
    assert encoding.params.shape == (0,) and encoding.n_output_dims == formula(x).shape[1]
    check(encoding, x, lambda rounded: rounded(formula(x)))

    module = tcnn.NetworkWithInputEncoding(3, 2, {"otype": otype, **options}, SMALL)
    params = filled(module, 0.2)

    def expected(rounded: Callable) -> np.ndarray:
        features = twin.padded(rounded(formula(x)), 1.0, ones_first)
        return twin.network(features, rounded(params), 2, SMALL, rounded)

    check(module, x, expected, n_roundings=8)


def test_composite() -> None:
    """Overlapping dimensions; harmonics begin at a multiple of 1, the second grid at one of its features per level, so
    that the encoding before it is padded."""
    grids = [HASH, HASH | {"otype": "TiledGrid", "n_features_per_level": 4, "n_levels": 2}]
    config = {
        "otype": "Composite",
        "nested": [
            {**grids[0], "n_dims_to_encode": 2, "dims_to_encode_begin": 1},
            {"otype": "SphericalHarmonics", "degree": 2, "n_dims_to_encode": 3, "dims_to_encode_begin": 0},
            {"otype": "Identity", "n_dims_to_encode": 1},
            {**grids[1], "n_dims_to_encode": 3, "dims_to_encode_begin": 1},
        ],
    }
    x = positions(100, 4)
    sizes = [2 * sum(size for *_, size in twin.grid_geometry(2, grids[0]))]
    sizes.append(4 * sum(size for *_, size in twin.grid_geometry(3, grids[1])))

    def features(params: np.ndarray, rounded: Callable) -> np.ndarray:
        first = twin.grid(x[:, 1:3], params[: sizes[0]], grids[0])
        parts = [first, twin.spherical_harmonics(x[:, :3]), x[:, 3:], np.ones((100, 1))]  # 15, and 1 up to 16
        return rounded(np.concatenate([*parts, twin.grid(x[:, 1:4], params[sizes[0] :], grids[1])], axis=1))

    encoding = tcnn.Encoding(4, config)
    params = filled(encoding)
    assert len(params) == sum(sizes) and encoding.n_output_dims == 24
    check(encoding, x, lambda rounded: features(rounded(params), rounded))

    module = tcnn.NetworkWithInputEncoding(4, 1, config, SMALL)
    params = filled(module, 0.3)
    n = sum(n_out * n_in for n_out, n_in in twin.network_shapes(24, 1, SMALL))

    def expected(rounded: Callable) -> np.ndarray:
        padded = twin.padded(features(rounded(params[n:]), rounded), 0.0)
        return twin.network(padded, rounded(params[:n]), 1, SMALL, rounded)

    check(module, x, expected, n_roundings=8)


@pytest.mark.parametrize("reduction", ["Sum", "Product"])
def test_composite_that_reduces(reduction: str) -> None:
    config = {"otype": "Composite", "reduction": reduction, "nested": []}
    config["nested"] = [{"otype": "Frequency", "n_frequencies": 2, "n_dims_to_encode": 1} for _ in range(2)]
    x = positions(50, 2)
    a, b = twin.frequency(x[:, :1], 2), twin.frequency(x[:, 1:], 2)
    check(tcnn.Encoding(2, config), x, lambda rounded: rounded(a + b if reduction == "Sum" else a * b))


def test_radiance_cache_is_a_composite() -> None:
    x = torch.rand(20, 10)
    nested = [
        {"otype": "TriangleWave", "n_dims_to_encode": 3},
        {"otype": "OneBlob", "n_bins": 4, "n_dims_to_encode": 5},
        {"otype": "Identity"},
        {"otype": "Empty", "n_dims_to_encode": 0},
    ]
    whole = tcnn.Encoding(10, {"otype": "Composite", "nested": nested})
    assert whole.n_output_dims == 3 * 12 + 5 * 4 + 2
    assert torch.equal(tcnn.Encoding(10, {"otype": "NRC"})(x), whole(x))


# ---- derivatives -----------------------------------------------------------------------------------------------------


SMOOTH = HASH | {"interpolation": "Smoothstep", "n_levels": 2, "log2_hashmap_size": 6, "base_resolution": 3}


@pytest.mark.parametrize("activation", ["Softplus", "Sine", "Squareplus"])
@pytest.mark.parametrize(
    "config",
    [
        SMOOTH,
        {"otype": "Composite", "nested": [{"n_dims_to_encode": 2, **SMOOTH}, {"otype": "OneBlob", "n_bins": 4}]},
    ],
    ids=["grid", "composite"],
)
def test_first_and_second_derivatives(config: dict, activation: str) -> None:
    network = {"otype": "CutlassMLP", "n_neurons": 4, "n_hidden_layers": 2, "activation": activation}
    module = tcnn.NetworkWithInputEncoding(3, 2, config, network).double()
    filled_params = torch.rand(module.params.numel(), dtype=torch.float64) - 0.5
    x = (torch.randint(6, (3, 3)) + 0.25 + 0.5 * torch.rand(3, 3)).double() / 6

    def function(x: Tensor, params: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"params": params}, x)

    inputs = (x.requires_grad_(), filled_params.requires_grad_())
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_gradients_of_unused_padding_are_zero() -> None:
    module = tcnn.NetworkWithInputEncoding(3, 5, HASH, SMALL)
    filled(module)
    module(torch.rand(100, 3)).square().sum().backward()
    gradient = module.params.grad
    assert gradient.shape == module.params.shape and gradient.dtype == torch.float32
    first, last = gradient[: 16 * 32].view(32, 16), gradient[16 * 32 + 32 * 32 :][: 32 * 16].view(16, 32)
    assert first[:, :10].any() and not first[:, 10:].any()
    assert last[:5].any() and not last[5:].any()


def test_it_trains() -> None:
    model = tcnn.NetworkWithInputEncoding(2, 1, HASH, SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.rand(512, 2)
    target = (x * 6).sin().prod(-1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


# ---- the modules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 257])
def test_any_batch(n: int) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 5, HASH, SMALL)
    filled(module)
    x = torch.rand(257, 3)
    torch.testing.assert_close(module(x[:n]), module(x)[:n], rtol=1e-5, atol=1e-6)
    assert module(x.reshape(257, 1, 3)).shape == (257, 1, 5)


def test_half_precision() -> None:
    x = torch.rand(100, 3)
    for full, half in (
        (tcnn.Encoding(3, HASH), tcnn.Encoding(3, HASH, dtype=torch.float16)),
        (tcnn.Network(3, 4, SMALL), tcnn.Network(3, 4, SMALL, dtype=torch.float16)),
        (
            tcnn.NetworkWithInputEncoding(3, 4, HASH, SMALL),
            tcnn.NetworkWithInputEncoding(3, 4, HASH, SMALL, dtype=torch.float16),
        ),
    ):
        assert full.dtype == torch.float32 and full.loss_scale == 1
        assert half.dtype == torch.float16 and half.loss_scale == 128
        filled(full)
        half.load_state_dict(full.state_dict())
        y = half(x.half())
        assert y.dtype == torch.float16
        y.float().sum().backward()
        assert half.params.grad.dtype == torch.float32
        error = (y.float() - full(x.half())).abs().max()
        assert error <= 8 * twin.HALF_ROUNDING * y.abs().max()


def test_wraps_outside_of_the_unit_cube() -> None:
    """As tiny-cuda-nn, on purpose: `HashGrid` clamps."""
    encoding = tcnn.Encoding(2, HASH)
    params = filled(encoding)
    x = (positions(50, 2) * 3 - 1).astype(np.float32)
    check(encoding, x, lambda rounded: rounded(twin.grid(x, rounded(params), HASH)))


def test_tiled_levels_that_cannot_be_counted() -> None:
    """From 1626 vertices along a side on, tiny-cuda-nn reads the first entry of a tiled level everywhere."""
    config = HASH | {"otype": "TiledGrid", "n_levels": 2, "per_level_scale": 250.0}
    encoding = tcnn.Encoding(3, config)
    params = filled(encoding)
    y = encoding(torch.rand(20, 3)).detach()
    first = torch.from_numpy(params[2 * 8**3 :][:2]).float()
    assert len(params) == 4 * 8**3
    torch.testing.assert_close(y[:, 2:], first.expand(20, 2))


def test_copies_and_stored_modules() -> None:
    module = tcnn.NetworkWithInputEncoding(3, 5, HASH, SMALL)
    x = torch.rand(10, 3)
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    for other in (copy.deepcopy(module), torch.load(stream, weights_only=False)):
        assert torch.equal(other(x), module(x))
    assert "n_input_dims=3, n_output_dims=5, seed=1337" in repr(module)


def test_compiles_as_one_graph() -> None:
    module = tcnn.NetworkWithInputEncoding(3, 5, HASH, SMALL)
    filled(module)
    x = torch.rand(10, 3)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


def test_free_functions() -> None:
    tcnn.free_temporary_memory()
    tcnn.rtc_set_cache_dir("/tmp")
    assert tcnn.batch_size_granularity() == 1 and tcnn.has_networks() and not tcnn.supports_jit_fusion()
    assert tcnn.preferred_precision() is tcnn.Precision.Fp32
    assert [tcnn.default_loss_scale(precision) for precision in tcnn.Precision] == [1, 128]
    module = tcnn.Network(3, 1, SMALL)
    module.jit_fusion = True
    assert module.jit_fusion is False
    module.loss_scale = 1024.0  # has no effect
    native = tcnn.NetworkWithInputEncoding(3, 5, HASH, SMALL).native_tcnn_module
    assert (native.n_input_dims(), native.n_output_dims(), native.n_params()) == (3, 16, 11_264)
    assert native.param_precision() is native.output_precision() is tcnn.Precision.Fp32
    assert native.hyperparams() == {"encoding": HASH, "network": SMALL}
    again = tcnn.NetworkWithInputEncoding(3, 5, HASH, SMALL, seed=7)
    assert torch.equal(native.initial_params(7), again.params)


def test_input_on_another_device_is_copied() -> None:
    with torch.device("meta"):
        module = tcnn.Network(3, 1, SMALL)
    with pytest.warns(UserWarning, match="`x` must be on meta"):
        assert module(torch.rand(4, 3)).shape == (4, 1)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_unknown_keys_warn_by_name() -> None:
    nested = {"otype": "Composite", "nested": [HASH | {"n_bins": 3}], "align_corners": True}
    with pytest.warns(UserWarning) as found:
        tcnn.NetworkWithInputEncoding(3, 1, nested, SMALL | {"bias": False})
    messages = [str(warning.message) for warning in found]
    assert [m.split(" has")[0] for m in messages] == [
        "`encoding_config['nested'][0]`",
        "`encoding_config`",
        "`network_config`",
    ]
    for key, message in zip(("'n_bins'", "'align_corners'", "'bias'"), messages, strict=True):
        assert f"without effect: {key};" in message
    assert {warning.filename for warning in found} == {__file__}
    with pytest.warns(UserWarning, match="stochastic_interpolation.* no effect"):
        tcnn.Encoding(3, HASH | {"stochastic_interpolation": True})


def test_known_keys_do_not_warn() -> None:
    config = HASH | {"otype": "Grid", "type": "Hash", "interpolation": "Linear", "hash": "CoherentPrime"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tcnn.NetworkWithInputEncoding(
            3, 1, config, SMALL | {"n_input_dims": 3, "n_output_dims": 1, "n_neurons": np.int64(16)}
        )


@pytest.mark.parametrize(
    "n_dims, config, message",
    [
        (3, {"otype": "Hashgrid2"}, r"`encoding_config\['otype'\]` must be one of Grid, HashGrid, .*, got 'Hashgrid2'"),
        (3, "HashGrid", r"`encoding_config` must be a dictionary .*, got 'HashGrid'; json.loads"),
        (3, HASH | {"n_levels": "16"}, r"`encoding_config\['n_levels'\]` must be an integer, got '16'"),
        (3, HASH | {"n_levels": 16.5}, r"\['n_levels'\]` must be an integer in 1..64, got 16.5"),
        (3, HASH | {"n_levels": 100}, r"\['n_levels'\]` must be an integer in 1..64, got 100"),
        (3, HASH | {"n_features_per_level": 3}, r"must be one of \(1, 2, 4, 8\), got 3"),
        (3, HASH | {"per_level_scale": 0}, r"\['per_level_scale'\]` must be positive, got 0"),
        (3, HASH | {"per_level_scale": None}, r"\['per_level_scale'\]` must be a number, got None"),
        (3, HASH | {"interpolation": "Cubic"}, "must be one of Nearest, Linear, Smoothstep, got 'Cubic'"),
        (3, HASH | {"hash": "Rng"}, "must be one of CoherentPrime, got 'Rng'"),
        (3, HASH | {"fixed_point_pos": True}, "must be False, got True"),
        (3, HASH | {"fixed_point_pos": 1}, "must be True or False, got 1"),
        (3, {"otype": "HashGrid", "n_features": 32, "n_levels": 16}, "without `n_levels`, got 32"),
        (3, {"otype": "HashGrid", "per_level_scale": 10.0}, "more than 2.31 vertices"),
        (8, HASH, "`n_input_dims` of a grid must be in 1..7, got 8"),
        (2, {"otype": "SphericalHarmonics"}, "must be 3, got 2"),
        (3, {"otype": "SphericalHarmonics", "degree": 9}, "must be an integer in 1..8, got 9"),
        (3, {"otype": "OneBlob", "n_bins": 12}, "must be a power of two, got 12"),
        (3, {"otype": "Composite"}, r"\['nested'\]` must be a list of encodings, got None"),
        (3, {"otype": "Composite", "nested": []}, "at least one dimension, got none"),
        (3, {"otype": "Composite", "nested": [{"n_dims_to_encode": 4}]}, "3 dimensions at most, got 4"),
        (3, {"otype": "Composite", "nested": [{}, {}]}, "leaves it out, too"),
        (
            3,
            {"otype": "Composite", "nested": [{"n_dims_to_encode": 2, "dims_to_encode_begin": 2}]},
            "must end at dimension 3, got 2 dimensions from 2 on",
        ),
        (
            2,
            {"otype": "Composite", "reduction": "Sum", "nested": [{"n_dims_to_encode": 1}, {"otype": "Identity"}]},
            r"must have as many outputs each, got \[16, 1\]",
        ),
        (0, HASH, "`n_input_dims` must be at least 1, got 0"),
    ],
)
def test_wrong_encodings(n_dims: int, config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tcnn.Encoding(n_dims, config)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"otype": "TransformerMLP"}, r"`network_config\['otype'\]` must be one of FullyFusedMLP, .*, got 'Transfor"),
        ({"activation": "GELU"}, r"\['activation'\]` must be one of None, ReLU, .*, got 'GELU'"),
        ({"otype": "FullyFusedMLP", "n_hidden_layers": 0}, "must be an integer of at least 1, got 0"),
        ({"n_neurons": [64]}, r"must be an integer, got \[64\]"),
        (None, "`network_config` must be a dictionary"),
    ],
)
def test_wrong_networks(config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tcnn.Network(3, 1, config)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="`dtype` must be torch.float32, torch.float16 or None, got torch.bfloat16"):
        tcnn.Encoding(3, HASH, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"`x` must have shape \[..., 3\], got \[5, 2\]"):
        tcnn.Encoding(3, HASH)(torch.rand(5, 2))
    with pytest.raises(RuntimeError, match="size mismatch for params"):
        tcnn.Encoding(3, HASH).load_state_dict({"params": torch.zeros(7)})


# ---- install ---------------------------------------------------------------------------------------------------------


def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tinycudann", "tinycudann.modules"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, tcnn)  # so that it is taken out again
        monkeypatch.delitem(sys.modules, name)
    assert hashgrid.compat.install("tinycudann") is tcnn
    found: dict = {}
    exec("import tinycudann as tcnn\nfrom tinycudann.modules import Encoding, _C\nimport tinycudann.modules", found)
    assert found["tcnn"] is tcnn and found["Encoding"] is tcnn.Encoding and found["_C"].batch_size_granularity() == 1
    assert hashgrid.compat.install("tinycudann") is tcnn
    monkeypatch.setitem(sys.modules, "tinycudann", json)
    with pytest.raises(ImportError, match="`tinycudann` is imported already"):
        hashgrid.compat.install("tinycudann")
    with pytest.raises(ValueError, match="`name` must be one of"):
        hashgrid.compat.install("numpy")


# ---- simplices, which tiny-cuda-nn does not have ---------------------------------------------------------------------


@pytest.mark.parametrize("n_dims", [1, 2, 3, 6])
def test_simplices_hold_their_points(n_dims: int) -> None:
    x = torch.rand(500, n_dims, dtype=torch.float64) * 3 - 1
    cells, weights = simplices(x, 7.5)
    vertices = cells * (n_dims + 1) + torch.arange(n_dims + 1).unsqueeze(-1)
    assert not vertices.sum(-1).any()
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(500, dtype=torch.float64))
    plane = x @ elevation(n_dims) * 7.5 * (n_dims * (n_dims + 1)) ** 0.5
    torch.testing.assert_close((weights.unsqueeze(-1) * vertices).sum(-2), plane)
    edges = (vertices[:, 1:] - vertices[:, :1]).double().norm(dim=-1).min() / (n_dims * (n_dims + 1)) ** 0.5
    assert edges == 1  # in units of 1 / resolution


def test_permutohedral_is_continuous_and_differentiable() -> None:
    encoding = Permutohedral(3, n_levels=3, log2_hashmap_size=8, base_resolution=4, max_resolution=20).double()
    torch.nn.init.uniform_(encoding.table, -1, 1)
    line = torch.rand(3, dtype=torch.float64) + torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None] * 0.3
    steps = encoding(line).diff(dim=0).abs().max()
    assert 0 < steps < 1e-2  # values of 1 and cells of 1 / 20: a jump would be near 1
    x = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(
        lambda x, table: torch.func.functional_call(encoding, {"table": table}, x), (x, encoding.table), fast_mode=True
    )
    weights = torch.tensor([1.0, 0.0, 2.0])
    assert torch.equal(encoding(x, weights)[:, 2:4], torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"`level_weights` must have shape \[3\]"):
        encoding(x, weights[:2])
    with pytest.raises(ValueError, match="`log2_hashmap_size` must be in 0..30"):
        Permutohedral(log2_hashmap_size=31)


def test_permutohedral_through_json() -> None:
    config = {"otype": "Permutohedral", "n_levels": 3, "log2_hashmap_size": 8, "base_resolution": 4}
    module = tcnn.Encoding(5, config)
    table = filled(module)
    encoding = Permutohedral(5, n_levels=3, log2_hashmap_size=8, base_resolution=4, per_level_scale=2)
    encoding.load_state_dict({"table": torch.from_numpy(table).float().view(-1, 2)})
    x = torch.rand(50, 5)
    assert torch.equal(module(x), encoding(x))
    assert tcnn.NetworkWithInputEncoding(5, 2, config, SMALL)(x).shape == (50, 2)
