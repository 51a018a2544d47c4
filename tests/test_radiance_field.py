"""The field of Instant-NGP in one kernel, against the ops it is made of and the reference."""

from __future__ import annotations

import pytest
import torch

from hashgrid import ops, reference
from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

BF16, FP16 = torch.bfloat16, torch.float16
LEVELS = make_level_table(3, n_levels=6, log2_hashmap_size=9, base_resolution=5, max_resolution=60)


def field(n: int, n_features: int = 2, n_geometry: int = 16, n_ray_features: int = 16) -> dict:
    shapes = (
        [(64, LEVELS.n_levels * n_features), (n_geometry, 64)],
        [(64, n_geometry + n_ray_features), (64, 64), (3, 64)],
    )
    density, color = ([torch.randn(shape) / shape[1] ** 0.5 for shape in layers] for layers in shapes)
    return {
        "positions": torch.rand(n, 3),
        "ray_features": torch.randn(9, n_ray_features),
        "rays": torch.randint(9, (n,)),
        "table": torch.randn(LEVELS.n_entries, n_features),
        "levels": LEVELS,
        "density_weights": density,
        "color_weights": color,
    }


def double(arguments: dict) -> dict:
    def convert(value):
        if isinstance(value, list):
            return [convert(x) for x in value]
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return {name: convert(value) for name, value in arguments.items()}


@pytest.mark.parametrize("half", [None, BF16, FP16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "sizes", [{}, {"n_features": 4}, {"n_ray_features": 6}, {"n_ray_features": 48}, {"n_geometry": 8}], ids=str
)
def test_matches_the_ops_and_the_reference(sizes: dict, half: torch.dtype | None) -> None:
    """Bits of the colours; densities up to the rounding of the exponential."""
    for n in (0, 1, 33, 300):
        arguments = field(n, **sizes)
        sigmas, colors = _ngp.radiance_field(**arguments, compute_dtype=half)
        encoded = ops.hash_encode(arguments["positions"], arguments["table"], LEVELS)
        geometry = ops.mlp(encoded, arguments["density_weights"], compute_dtype=half)
        inputs = torch.cat((geometry, arguments["ray_features"][arguments["rays"]]), dim=1)
        expected = ops.mlp(inputs, arguments["color_weights"], output_activation="sigmoid", compute_dtype=half)
        assert torch.equal(colors, expected)
        torch.testing.assert_close(sigmas, geometry[:, 0].exp(), rtol=1e-6, atol=0)
        truth = reference.radiance_field(**double(arguments))
        unit = {None: 1e-5, BF16: 2**-8, FP16: 2**-11}[half]
        for ours, exact in zip((sigmas.log(), colors), (truth[0].log(), truth[1]), strict=True):
            assert ours.shape == exact.shape and torch.all((ours - exact).abs() <= 20 * unit)


def test_grid_whose_axes_differ() -> None:
    levels = make_level_table(3, 6, 9, (5, 9, 3), (60, 30, 8))
    arguments = field(100) | {"levels": levels, "table": torch.randn(levels.n_entries, 2)}
    sigmas, colors = _ngp.radiance_field(**arguments, compute_dtype=BF16)
    truth = reference.radiance_field(**double(arguments))
    torch.testing.assert_close(sigmas.log().double(), truth[0].log(), rtol=0, atol=20 * 2**-8)
    torch.testing.assert_close(colors.double(), truth[1], rtol=0, atol=20 * 2**-8)


def test_half_table_and_points_that_are_not_finite() -> None:
    arguments = field(200)
    arguments["positions"][5, 1] = float("nan")
    half_table = arguments["table"].to(FP16)
    sigmas, colors = _ngp.radiance_field(**arguments, half_table=half_table, compute_dtype=FP16)
    assert sigmas[5].isnan() and colors[5].isnan().all()
    assert sigmas.isfinite().sum() == 199 and colors.isfinite().all(1).sum() == 199
    for table in (half_table.float(), half_table):  # the latter read by the kernel where there is one
        stored = _ngp.radiance_field(**arguments | {"table": table}, compute_dtype=FP16)
        assert torch.equal(stored[0].nan_to_num(7.0), sigmas.nan_to_num(7.0))
        assert torch.equal(stored[1].nan_to_num(7.0), colors.nan_to_num(7.0))


def test_one_kernel_where_there_is_one(kernels: str, request: pytest.FixtureRequest) -> None:
    """Counted; with a gradient, in fp32, or of other sizes it is several."""
    if kernels != "cuda_on_host":
        pytest.skip("launches are counted by the emulation")
    host = request.getfixturevalue("cuda_on_host")

    def launches(arguments: dict, half: torch.dtype | None = BF16) -> int:
        before = host.launches()["radiance_field_kernel"]
        _ngp.radiance_field(**arguments, compute_dtype=half)
        return host.launches()["radiance_field_kernel"] - before

    assert launches(field(40)) == 1
    assert launches(field(40), None) == launches(field(40, n_geometry=8)) == launches(field(40, n_features=1)) == 0
    arguments = field(40)
    arguments["table"].requires_grad_()
    assert launches(arguments) == 0
    with torch.no_grad():
        assert launches(arguments) == 1


def test_rays_that_do_not_exist_give_nan(kernels: str) -> None:
    if kernels == "cpu":
        pytest.skip("index_select reports them")
    arguments = field(40)
    arguments["rays"][3] = 9
    arguments["rays"][30] = -1
    colors = _ngp.radiance_field(**arguments, compute_dtype=BF16)[1]
    assert colors[3].isnan().all() and colors[30].isnan().all() and colors.isfinite().all(1).sum() == 38


def test_gradients_flow() -> None:
    arguments = field(40)
    leaves = [arguments["table"], *arguments["density_weights"], *arguments["color_weights"]]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, exact = (
        torch.autograd.grad(sum(y.sum() for y in library.radiance_field(**arguments)), leaves)
        for library in (_ngp, reference)
    )
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused() -> None:
    arguments = field(40)
    with pytest.raises(ValueError, match=r"`density_weights\[0\]` must have shape \[out, 12\]"):
        _ngp.radiance_field(
            **arguments | {"density_weights": [torch.rand(64, 11), torch.rand(16, 64)]}, compute_dtype=BF16
        )
    with pytest.raises(ValueError, match=r"`output_activation` must be"):
        _ngp.radiance_field(**arguments, output_activation="round", compute_dtype=BF16)
