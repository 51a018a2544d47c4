"""Rays through the field of Instant-NGP in one kernel, against the ops it is made of and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems.render_rays import check_rendering, rays_into_field, rendered_in_parts

from hashgrid import reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize("half", [BF16, FP16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("n", [0, 1, 33, 1000])
def test_matches_the_ops_it_is_made_of(n: int, half: torch.dtype, kernels: str) -> None:
    """More rays than lanes: these take others when one has ended. Where there is a kernel, no hidden sample counts."""
    arguments = rays_into_field(n, compute_dtype=half)
    n_evaluated, n_visible = check_rendering(arguments)
    assert n_evaluated == n_visible if kernels != "cpu" else n_evaluated >= n_visible
    assert n < 33 or n_visible > n  # most rays see something, more than one sample


@pytest.mark.parametrize(
    "options",
    [
        {"n_cascades": 3},
        {"n_cascades": 2, "cone_angle": 1 / 64},
        {"near": 2.3, "far": 2.9},
        {"max_samples_per_ray": 3},
        {"max_samples_per_ray": 0},
        {"density": 60.0},
        {"early_stop_eps": 0.5},
        {"early_stop_eps": 2.0},
        {"bits": torch.zeros(512, dtype=torch.uint8)},
        {"bits": torch.full((512,), 255, dtype=torch.uint8), "resolution": (16, 16, 16)},
    ],
    ids=lambda options: "-".join(options),
)
def test_encoding_options_march_and_compositing(options: dict[str, Any], kernels: str) -> None:
    n_evaluated, n_visible = check_rendering(rays_into_field(70, compute_dtype=BF16, **options))
    assert kernels == "cpu" or n_evaluated == n_visible


def test_fp32_matches_the_reference() -> None:
    """Products in fp32 have no kernel on a GPU: it takes the ops."""
    arguments = rays_into_field(70)
    check_rendering(arguments, reference, rtol=2e-4)
    *ours, n_samples = reference.render_rays(**arguments)
    *expected, _ = rendered_in_parts(arguments, reference)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)) and int(n_samples) > 70


def test_half_table_and_other_numbers_of_colours() -> None:
    arguments = rays_into_field(40, compute_dtype=FP16)
    check_rendering(arguments | {"half_table": arguments["table"].to(FP16)})
    check_rendering(arguments | {"color_weights": [torch.randn(32, 22) / 4, torch.randn(5, 32) / 4]})


def test_a_ray_is_nothing_to_the_others() -> None:
    """Its bits do not depend on what lies in front of it or behind it."""
    arguments = rays_into_field(200, compute_dtype=BF16)
    order = torch.randperm(200)
    by_ray = ("rays_o", "rays_d", "ray_features")
    shuffled = _ngp.render_rays(**arguments | {name: arguments[name][order] for name in by_ray})
    for mine, other in zip(_ngp.render_rays(**arguments)[:3], shuffled[:3], strict=True):
        assert torch.equal(mine[order], other)


def test_densities_that_are_not_finite_stay_on_their_ray() -> None:
    arguments = rays_into_field(64, compute_dtype=BF16)
    arguments["ray_features"][5] = float("nan")
    arguments["rays_o"][9, 1] = float("nan")  # sees nothing
    colors, opacities, _, _ = _ngp.render_rays(**arguments)
    expected, expected_opacities, *_ = rendered_in_parts(arguments)
    assert colors[5].isnan().all() and expected[5].isnan().all() and not colors[9].any()
    torch.testing.assert_close(colors, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(opacities, expected_opacities, rtol=1e-5, atol=1e-5)


def test_one_kernel_where_there_is_one(kernels: str, request: pytest.FixtureRequest) -> None:
    if kernels != "cuda_on_host":
        pytest.skip("launches are counted by the emulation")
    host = request.getfixturevalue("cuda_on_host")
    before = host.launches()
    _ngp.render_rays(**rays_into_field(40, compute_dtype=BF16))
    launches = {name: n - before[name] for name, n in host.launches().items() if n > before[name]}
    expected = ("mlp_pack_kernel", "march_rays_mark_bricks_kernel", "march_rays_bricks_kernel", "render_rays_kernel")
    assert launches == dict.fromkeys(expected, 1)


def test_bad_input_is_refused() -> None:
    arguments = rays_into_field(40, compute_dtype=BF16)
    with pytest.raises(ValueError, match=r"`ray_features` must have shape \[40, E\], got \[39, 6\]"):
        _ngp.render_rays(**arguments | {"ray_features": torch.rand(39, 6)})
    with pytest.raises(ValueError, match=r"`field_aabb` must have shape \[6\], got \[3\]"):
        _ngp.render_rays(**arguments | {"field_aabb": torch.rand(3)})
    with pytest.raises(ValueError, match=r"`color_weights\[0\]` must have shape \[out, 22\]"):
        _ngp.render_rays(**arguments | {"color_weights": [torch.rand(32, 21), torch.rand(3, 32)]})
    with pytest.raises(ValueError, match=r"`output_activation` must be"):
        _ngp.render_rays(**arguments, output_activation="round")
    with pytest.raises(RuntimeError, match=r"`bits` must have shape \[512\], got \[511\]"):
        _ngp.render_rays(**arguments | {"bits": arguments["bits"][1:]})
    with pytest.raises(RuntimeError, match=r"`step_size` must be positive"):
        _ngp.render_rays(**arguments | {"step_size": 0.0})
