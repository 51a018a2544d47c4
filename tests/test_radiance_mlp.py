"""Both networks of a radiance field as one op, against `mlp`, which it replaces, and against double precision."""

from __future__ import annotations

import pytest
import torch
from problems.radiance_mlp import check_rows_behind_the_last, networks, radiance_and_gradients, radiance_by_mlp
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

BF16, FP16 = torch.bfloat16, torch.float16
HALVES = pytest.mark.parametrize("half", [None, BF16, FP16], ids=["fp32", "bf16", "fp16"])
# Blocks are 96 to 128 rows, warps take 32; partial sums of gradients cover 2048 or more.
SIZES = (0, 1, 33, 300)


def convert(arguments: dict, dtype: torch.dtype) -> dict:
    def to(value):
        if isinstance(value, list):
            return [to(x) for x in value]
        return value.detach().to(dtype) if value.is_floating_point() else value

    return {name: to(value) for name, value in arguments.items()}


@HALVES
@pytest.mark.parametrize(
    "sizes",
    [{}, {"n_ray_features": 6, "width": 40}, {"n_ray_features": 48}, {"n_geometry": 7}, {"n_hidden": (0, 0)}],
    ids=str,
)
def test_matches_the_mlp(sizes: dict, half: torch.dtype | None) -> None:
    """Bits of colours; the rest within a few roundings of fp32, of which sums over rows have many."""
    for n in (*SIZES, 5000) if not sizes else SIZES:
        arguments, grads = networks(n, **sizes), (torch.randn(n), torch.randn(n, 3))
        ours = radiance_and_gradients(_ngp.radiance_mlp, arguments, grads, compute_dtype=half)
        theirs = radiance_and_gradients(radiance_by_mlp, arguments, grads, compute_dtype=half)
        exact = radiance_and_gradients(radiance_by_mlp, convert(arguments, torch.float64), grads)
        assert torch.equal(ours[1], theirs[1])
        for i, (a, b, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
            assert a.shape == b.shape and a.dtype == torch.float32
            if n > 0:
                scale = truth.abs().max()
                rounding = 2e-6 if half is None or i == 0 else {BF16: 2**-9, FP16: 2**-12}[half]
                assert (a - b).abs().max() <= rounding * scale, i
                assert (a - truth).abs().max() <= 2 * (b - truth).abs().max() + rounding * scale, i


def test_derivatives_in_double_precision(kernels: str) -> None:
    if kernels != "cpu":
        pytest.skip("made of mlp")
    arguments = convert(networks(6, n_geometry=3, n_ray_features=2, width=5), torch.float64)
    arguments["x"] = arguments["x"] * 0.3
    leaves = [arguments["x"], *arguments["density_weights"], *arguments["color_weights"]]
    for leaf in leaves:
        leaf.requires_grad_()

    def function(x, *weights):
        return _ngp.radiance_mlp(x, arguments["ray_features"], arguments["rays"], weights[:2], weights[2:])

    assert gradcheck(function, leaves) and gradgradcheck(function, leaves)


def test_gradient_of_ray_features() -> None:
    """As for cameras that are optimised: no kernel has it, the call is made of ops that have."""
    arguments, grads, results = networks(40), torch.randn(40, 3), []
    for library, dtype in ((_ngp, torch.float32), (reference, torch.float64)):
        converted = convert(arguments, dtype)
        converted["ray_features"].requires_grad_()
        colors = library.radiance_mlp(**converted)[1]
        results += torch.autograd.grad(colors, converted["ray_features"], grads.to(dtype))
    torch.testing.assert_close(results[0].double(), results[1], rtol=1e-4, atol=1e-5)


@HALVES
def test_densities_and_gradients_stay_finite(half: torch.dtype | None) -> None:
    """Where exp overflows its derivative does not: exp(15) is the most a gradient is multiplied by."""
    arguments = networks(64, n_hidden=(0, 1))
    arguments["density_weights"][0] = torch.zeros(16, 28)
    arguments["density_weights"][0][0, 0] = 1
    arguments["x"][:, 0] = torch.linspace(-120, 120, 64)
    sigmas, _, grad_x, *_ = radiance_and_gradients(
        _ngp.radiance_mlp, arguments, (torch.ones(64), torch.zeros(64, 3)), compute_dtype=half
    )
    z = arguments["x"].detach()[:, 0]
    z = z if half is None else z.to(half).float()
    torch.testing.assert_close(sigmas, z.exp(), rtol=1e-5, atol=1e-44)
    unit = {None: 1e-5, BF16: 2**-8, FP16: 2**-11}[half]
    torch.testing.assert_close(grad_x[:, 0], z.clamp(-15, 15).exp(), rtol=unit, atol=0)
    assert grad_x.isfinite().all() and not grad_x[:, 1:].any()


def test_gradients_keep_their_bits_at_any_scale() -> None:
    """float16 products need no loss scale: a gradient times a power of two comes out times that power."""
    arguments, grads = networks(200), (torch.randn(200), torch.randn(200, 3))
    plain = radiance_and_gradients(_ngp.radiance_mlp, arguments, grads, compute_dtype=FP16)[2:]
    for power in (-60, 40):
        scaled = radiance_and_gradients(
            _ngp.radiance_mlp, arguments, tuple(g * 2.0**power for g in grads), compute_dtype=FP16
        )[2:]
        for a, b in zip(plain, scaled, strict=True):
            assert torch.equal(a * 2.0**power, b)


@pytest.mark.cpu_only
@HALVES
def test_same_bits_for_any_number_of_threads(half: torch.dtype | None) -> None:
    arguments, grads = networks(5000), (torch.randn(5000), torch.randn(5000, 3))
    results = []
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(radiance_and_gradients(_ngp.radiance_mlp, arguments, grads, compute_dtype=half))
    finally:
        torch.set_num_threads(n_threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_that_are_not_finite_stay_alone(kernels: str) -> None:
    arguments = networks(100)
    arguments["x"][7, 2] = float("nan")
    if kernels != "cpu":  # there, a ray that does not exist is one, too
        arguments["rays"][40] = 9
        arguments["rays"][41] = -1
    sigmas, colors = _ngp.radiance_mlp(**arguments, compute_dtype=BF16)
    assert sigmas[7].isnan() and colors[7].isnan().all()
    assert sigmas.isfinite().sum() == 99
    assert colors.isfinite().all(1).sum() == (99 if kernels == "cpu" else 97)


def test_rows_behind_the_last_add_nothing_to_gradients() -> None:
    check_rows_behind_the_last()


def test_one_kernel_forward_and_one_backward(kernels: str, request: pytest.FixtureRequest) -> None:
    """Counted; sizes and types without a kernel take those of the MLP."""
    if kernels != "cuda_on_host":
        pytest.skip("launches are counted by the emulation")
    host = request.getfixturevalue("cuda_on_host")
    names = ("radiance_mlp_forward_kernel", "radiance_mlp_backward_kernel", "mlp_fused_backward_kernel")

    def launches(half: torch.dtype | None = BF16, **sizes: int) -> list[int]:
        before = host.launches()
        radiance_and_gradients(
            _ngp.radiance_mlp, networks(40, **sizes), (torch.ones(40), torch.ones(40, 3)), compute_dtype=half
        )
        after = host.launches()
        return [after[name] - before[name] for name in names]

    assert launches() == launches(FP16, n_ray_features=8) == [1, 1, 0]
    assert launches(n_geometry=8) == launches(n_ray_features=5) == launches(width=96) == [0, 0, 2]
    assert launches(None) == [0, 0, 0]


def test_bad_input_is_refused(kernels: str) -> None:
    arguments = networks(40)

    def call(**changed) -> None:
        _ngp.radiance_mlp(**arguments | changed, compute_dtype=BF16)

    with pytest.raises(ValueError, match=r"`density_weights\[0\]` must have shape \[out, 28\], got \[64, 27\]"):
        call(density_weights=[torch.rand(64, 27), torch.rand(16, 64)])
    with pytest.raises(ValueError, match=r"`color_weights\[0\]` must have shape \[out, 32\], got \[64, 31\]"):
        call(color_weights=[torch.rand(64, 31), torch.rand(3, 64)])
    with pytest.raises(ValueError, match=r"`color_weights` must have 1 to 9 layers, got 0"):
        call(color_weights=[])
    with pytest.raises(ValueError, match=r"must have at most 9 layers, got 11"):
        call(color_weights=[arguments["color_weights"][0], *[torch.rand(64, 64)] * 8])
    with pytest.raises(ValueError, match=r"`x` must have shape \[N, in\], got \[5, 8, 28\]"):
        call(x=torch.rand(5, 8, 28))
    with pytest.raises(RuntimeError, match=r"`rays` must have shape \[40\], got \[39\]"):
        call(rays=arguments["rays"][1:])
    with pytest.raises(RuntimeError, match=r"`rays` must be int64, got int32"):
        call(rays=arguments["rays"].int())
    if kernels == "cpu":
        with pytest.raises(RuntimeError, match=r"`rays\[2\]` must be in 0\.\.8, the rows of `ray_features`, got 9"):
            call(rays=torch.tensor([0, 8, 9] + [0] * 37))


@pytest.mark.cpu_only
def test_compiled_without_a_graph_break() -> None:
    arguments, grads = networks(50), (torch.randn(50), torch.randn(50, 3))
    compiled = torch.compile(_ngp.radiance_mlp, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        radiance_and_gradients(compiled, arguments, grads, compute_dtype=BF16),
        radiance_and_gradients(_ngp.radiance_mlp, arguments, grads, compute_dtype=BF16),
        strict=True,
    ):
        assert torch.equal(a, b)
