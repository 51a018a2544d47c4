"""Native compositing against the worked example, the reference and finite differences."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from problems.composite import (
    brute_force_composite,
    check_composite_budget,
    composite_and_derivatives,
    composite_of_products,
    make_samples,
    with_alphas,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import hashgrid
from hashgrid import _extension, ops, reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

COUNTS = [[3, 0, 7, 1, 0, 33, 8], [700] * 6, [0, 0], [2000, 3, 1], [1], [16] * 65]


@pytest.mark.parametrize(("n_features", "of_alphas"), [(0, False), (1, False), (3, False), (5, False), (3, True)])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_composite_matches_reference(counts: list[int], n_features: int, of_alphas: bool) -> None:
    def draw(density: float, dtype: torch.dtype) -> dict:
        samples = make_samples(counts, dtype, density)
        samples["features"] = torch.rand(len(samples["sigmas"]), n_features, dtype=dtype)
        return with_alphas(samples) if of_alphas else samples

    for density in (0.1, 20.0):
        samples = draw(density, torch.float64)
        exact = composite_and_derivatives(reference.composite, samples, torch.float64)
        for a, b in zip(composite_and_derivatives(ops.composite, samples, torch.float64), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # In fp32 rounded inputs are the truth of both. Of a few rays a sum is one number, and PyTorch's error luck: there
    # many draws share a budget.
    for density in (0.1, 20.0):
        draws = []
        for _ in range(8 if len(counts) < 16 else 1):
            samples = draw(density, torch.float32)
            draws.append(
                [
                    composite_and_derivatives(ops.composite, samples, torch.float32),
                    composite_and_derivatives(reference.composite, samples, torch.float32),
                    composite_and_derivatives(reference.composite, samples, torch.float64),
                ]
            )
        check_composite_budget(*(
            [torch.cat([x.flatten() for x in tensors]) for tensors in zip(*runs, strict=True)]
            for runs in zip(*draws, strict=True)
        ))  # fmt: skip


def test_composite_worked_example() -> None:
    sigmas = torch.tensor([0.4, 0.8, 0.1, 0.8, 0.1, 0.0, 0.9])
    t_starts = torch.tensor([0.0, 1, 2, 0, 1, 0, 1])
    packed_info = torch.tensor([[0, 3], [3, 2], [5, 2]])
    weights = ops.composite(sigmas, torch.ones(7, 1), t_starts, t_starts + 1, packed_info)[3]
    torch.testing.assert_close(weights, torch.tensor([0.33, 0.37, 0.03, 0.55, 0.04, 0, 0.59]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("early_stop_eps", [0.0, 1e-4, 0.3])
def test_composite_matches_plain_python(early_stop_eps: float) -> None:
    samples = make_samples([3, 0, 7, 1, 0, 33, 8], density=20)
    actual = ops.composite(**samples, early_stop_eps=early_stop_eps)
    for a, b in zip(actual, brute_force_composite(samples, early_stop_eps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("early_stop_eps", [0.0, 0.3])
def test_composite_gradients_match_finite_differences(early_stop_eps: float) -> None:
    samples = make_samples([3, 0, 4], density=8)

    def run(sigmas: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return ops.composite(**samples | {"sigmas": sigmas, "features": features}, early_stop_eps=early_stop_eps)

    inputs = (samples["sigmas"].requires_grad_(), samples["features"].requires_grad_())
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("library", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(("early_stop_eps", "expected"), [(0.0, [-1.0, 0.35, 0.0]), (1e-4, [-1.0, 1.4, 0.0])])
def test_composite_gradient_at_an_alpha_of_one(library: ModuleType, early_stop_eps: float, expected: list) -> None:
    """w = [a0, (1 - a0) a1, (1 - a0) (1 - a1) a2] and its gradient by hand; with 1e-4 the last sample is hidden."""
    alphas = torch.tensor([0.3, 1.0, 0.5], requires_grad=True)
    t = torch.arange(3.0)
    packed_info = torch.tensor([[0, 3]])
    weights = library.composite(None, torch.ones(3, 1), t, t + 1, packed_info, early_stop_eps, alphas=alphas)[3]
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.7, 0.0]))
    (gradient,) = torch.autograd.grad(weights, alphas, torch.tensor([1.0, 2, 3]))
    torch.testing.assert_close(gradient, torch.tensor(expected))


@pytest.mark.parametrize("library", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("early_stop_eps", [0.0, 1e-4, 0.3])
def test_composite_of_alphas_is_that_of_products(library: ModuleType, early_stop_eps: float) -> None:
    """All derivatives up to the second, with alphas of 0 and 1 among them, by PyTorch through a product per sample."""
    samples = with_alphas(make_samples([3, 0, 7, 1, 2, 34], density=5))
    samples["alphas"][[1, 5, 12, 20]] = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)

    def products(sigmas: None, alphas: Tensor, early_stop_eps: float, return_transmittances: bool, **samples):
        return composite_of_products(alphas, samples, early_stop_eps)

    actual, expected = (
        composite_and_derivatives(run, samples, torch.float64, early_stop_eps=early_stop_eps)
        for run in (library.composite, products)
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_composite_of_alphas_gradients_match_finite_differences() -> None:
    samples = with_alphas(make_samples([3, 0, 4], density=8))

    def run(alphas: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        inputs = {"alphas": alphas, "features": features}
        return ops.composite(**samples | inputs, early_stop_eps=0.01, return_transmittances=True)

    inputs = (samples["alphas"].requires_grad_(), samples["features"].requires_grad_())
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("library", [ops, reference], ids=["ops", "reference"])
def test_composite_takes_either_densities_or_alphas(library: ModuleType) -> None:
    samples = make_samples([2, 3])
    for given in ({"alphas": samples["sigmas"]}, {"sigmas": None}):
        with pytest.raises(ValueError, match="exactly one of `sigmas` and `alphas` must be given"):
            library.composite(**samples | given)
    with pytest.raises((RuntimeError, ValueError), match=r"`alphas` must have shape \[S\], got \[5, 1\]"):
        library.composite(**samples | {"sigmas": None, "alphas": torch.zeros(5, 1)})


@pytest.mark.parametrize("name", ["sigmas", "features"])
def test_composite_of_one_differentiable_input(name: str) -> None:
    samples = make_samples([3, 2])
    samples[name].requires_grad_()
    (actual,) = torch.autograd.grad(sum(x.square().sum() for x in ops.composite(**samples)), samples[name])
    (expected,) = torch.autograd.grad(sum(x.square().sum() for x in reference.composite(**samples)), samples[name])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("loss", [torch.sum, lambda t: t.square().sum()])
def test_composite_third_derivative_raises(loss) -> None:
    samples = make_samples([3, 2])
    sigmas = samples["sigmas"].requires_grad_()
    (first,) = torch.autograd.grad(ops.composite(**samples)[1].sum(), sigmas, create_graph=True)
    (second,) = torch.autograd.grad(loss(first), sigmas, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice, not three times"):
        second.sum().backward()


def test_composite_samples_behind_early_stop_have_no_weight_and_no_gradient() -> None:
    samples = make_samples([6, 6], torch.float32, density=0.5)
    samples["sigmas"][2] = 1e4
    samples["sigmas"].requires_grad_()
    samples["features"].requires_grad_()
    outputs = ops.composite(**samples)
    assert not outputs[3][3:6].any() and outputs[3][6:].all()
    loss = sum(output.square().sum() for output in outputs)
    for gradient in torch.autograd.grad(loss, [samples["sigmas"], samples["features"]]):
        assert not gradient[3:6].any() and gradient[6:].all()


@pytest.mark.parametrize("opaque", [1e30, math.inf])
def test_composite_opaque_ray_leaves_the_others_alone(opaque: float) -> None:
    samples = make_samples([4, 300], torch.float32)
    alone = {k: v[4:] for k, v in samples.items() if k != "packed_info"} | {"packed_info": torch.tensor([[0, 300]])}
    samples["sigmas"][1] = opaque
    samples["sigmas"].requires_grad_()
    outputs = ops.composite(**samples)
    assert torch.equal(outputs[3][4:], ops.composite(**alone)[3])
    assert outputs[1][0].item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(sum(output.sum() for output in outputs), samples["sigmas"])
    assert gradient.isfinite().all()


def test_composite_shows_nan() -> None:
    samples = make_samples([4, 4], torch.float32)
    samples["sigmas"][1] = math.nan
    outputs = ops.composite(**samples)
    assert outputs[0][0].isnan().all() and outputs[1][0].isnan() and outputs[0][1].isfinite().all()


def test_composite_without_samples_or_rays() -> None:
    samples = make_samples([0, 0])
    outputs = ops.composite(**samples)
    assert [list(output.shape) for output in outputs] == [[2, 3], [2], [2], [0], [2]]
    assert not any(output.any() for output in outputs)
    samples["sigmas"].requires_grad_()
    (gradient,) = torch.autograd.grad(ops.composite(**samples)[1].sum(), samples["sigmas"])
    assert gradient.shape == (0,)
    assert ops.composite(**samples | {"packed_info": torch.zeros(0, 2, dtype=torch.int64)})[0].shape == (0, 3)


@pytest.mark.cpu_only
def test_composite_does_not_depend_on_the_number_of_threads() -> None:
    samples = make_samples([5, 0, 90, 3, 17] * 80, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 16):
            torch.set_num_threads(n_threads)
            kinds = (samples, with_alphas(samples))
            results.append([x for kind in kinds for x in composite_and_derivatives(ops.composite, kind, torch.float32)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.full
@pytest.mark.cpu_only
def test_composite_on_every_instruction_set(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "sys.path.insert(0, 'tests')\n"
        "from hashgrid import ops\n"
        "from problems.composite import composite_and_derivatives\n"
        "samples = torch.load(sys.argv[1])\n"
        "results = composite_and_derivatives(ops.composite, samples, torch.float32)\n"
        "torch.save([x.detach() for x in results], sys.argv[2])\n"
    )
    samples = make_samples([5, 0, 90, 3, 17, 300], torch.float32, density=3)
    torch.save(samples, tmp_path / "in.pt")
    exact = composite_and_derivatives(reference.composite, samples, torch.float64)
    theirs = composite_and_derivatives(reference.composite, samples, torch.float32)
    for capability in _extension.require().available_cpu_capabilities():
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")],
            env=os.environ | {"HASHGRID_CPU_CAPABILITY": capability},
            cwd=Path(__file__).resolve().parents[1],
            check=True,
        )
        check_composite_budget(torch.load(tmp_path / "out.pt"), theirs, exact)


def test_composite_takes_strides_and_half_precision() -> None:
    samples = make_samples([3, 5], torch.float32)
    expected = ops.composite(**samples)
    strided = {k: v.repeat_interleave(2, 0)[::2] for k, v in samples.items()}
    assert all(torch.equal(a, b) for a, b in zip(ops.composite(**strided), expected, strict=True))
    half = samples | {"sigmas": samples["sigmas"].bfloat16(), "features": samples["features"].half()}
    assert all(output.dtype == torch.float32 for output in ops.composite(**half))


@pytest.mark.cpu_only
def test_composite_registered_autograd_is_the_public_one() -> None:
    samples = make_samples([3, 0, 4])

    def run(sigmas: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.hashgrid.composite(sigmas, features, *list(samples.values())[2:], 1e-4, False, True)

    inputs = (samples["sigmas"].requires_grad_(), samples["features"].requires_grad_())
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": torch.zeros(5, 1)}, r"`sigmas` must have shape \[S\], got \[5, 1\]"),
        ({"features": torch.zeros(5)}, r"`features` must have shape \[5, C\], got \[5\]"),
        ({"features": torch.zeros(5, 3, dtype=torch.float32)}, "`features` must be float64, got float32"),
        ({"t_ends": torch.zeros(4)}, r"`t_ends` must have shape \[5\], got \[4\]"),
        ({"packed_info": torch.zeros(2)}, r"`packed_info` must have shape \[R, 2\], got \[2\]"),
    ],
)
def test_composite_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.composite(**make_samples([2, 3]) | changes)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("packed_info", "message"),
    [
        ([[0, 6]], "`packed_info` must count up to 5 samples, those of `t_starts`, got 6"),
        ([[0, 2], [3, 2]], "back to back, in order: ray 1 must start at 2, got start 3"),
        ([[0, 6], [6, -1]], "back to back, in order: ray 1 .* count -1"),
    ],
)
def test_composite_on_the_cpu_refuses_other_orders_of_rays(packed_info: list, message: str) -> None:
    """CUDA shows NaN instead (test_cuda_kernels.py)."""
    with pytest.raises(RuntimeError, match=message):
        ops.composite(**make_samples([2, 3]) | {"packed_info": torch.tensor(packed_info)})


# ---- visible_samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_visible_samples_are_those_that_composite_counts(counts: list[int], dtype: torch.dtype) -> None:
    samples = make_samples(counts, dtype, density=30)
    sigmas, features, t_starts, t_ends, packed_info = samples.values()
    index, kept_info = _ngp.visible_samples(sigmas, t_starts, t_ends, packed_info, 1e-3)
    weights = ops.composite(**samples, early_stop_eps=1e-3)[3]
    assert torch.equal(index, (weights > 0).nonzero().squeeze(-1))
    whole = ops.composite(**samples, early_stop_eps=1e-3)
    part = ops.composite(sigmas[index], features[index], t_starts[index], t_ends[index], kept_info, early_stop_eps=1e-3)
    for a, b in zip(part[:3], whole[:3], strict=True):
        assert torch.equal(a, b)
    if dtype == torch.float64:
        expected = reference.visible_samples(sigmas, t_starts, t_ends, packed_info, 1e-3)
        assert torch.equal(index, expected[0]) and torch.equal(kept_info, expected[1])
    if sum(counts) > 20:
        assert 0 < len(index) < len(sigmas)


# ---- window_samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("begin", "end"), [(0, 2), (1, 1), (2, 20), (17, 1 << 40)])
def test_window_samples_are_those_of_rays_still_open(
    begin: int, end: int, counts: list[int], dtype: torch.dtype
) -> None:
    sigmas, _, t_starts, t_ends, packed_info = make_samples(counts, dtype, density=30).values()
    rays_o, rays_d = torch.rand(2, len(counts), 3, dtype=dtype)
    visible = set(_ngp.visible_samples(sigmas, t_starts, t_ends, packed_info, 1e-3)[0].tolist())
    first = packed_info[:, 0].tolist()
    expected = [
        (ray, first[ray] + i)
        for ray, count in enumerate(counts)
        if first[ray] + begin in visible and begin < count
        for i in range(begin, min(end, count))
    ]
    rays, samples = (
        torch.tensor(column, dtype=torch.int64) for column in (zip(*expected, strict=True) if expected else ([], []))
    )
    unknown = sigmas.clone()  # densities of the window and behind it
    for ray, count in enumerate(counts):
        unknown[first[ray] + min(begin, count) : first[ray] + count] = math.nan
    for library in (_ngp, reference):
        index, positions = library.window_samples(
            rays_o, rays_d, unknown if library is _ngp else sigmas, t_starts, t_ends, packed_info, begin, end, 1e-3
        )
        assert torch.equal(index, samples)
        middles = rays_o[rays] + rays_d[rays] * (t_starts + t_ends)[samples, None] / 2
        torch.testing.assert_close(positions, middles, rtol=1e-6, atol=1e-6)


def test_window_samples_errors_name_contract_and_actual() -> None:
    sigmas, _, *rest = make_samples([3, 0, 2], torch.float32).values()
    rays = torch.rand(3, 3), torch.rand(3, 3)
    for library in (_ngp, reference):
        with pytest.raises((RuntimeError, ValueError), match=r"0 <= begin <= end, got 3 and 2"):
            library.window_samples(*rays, sigmas, *rest, 3, 2)
        with pytest.raises((RuntimeError, ValueError), match=r"`rays_d` must have shape \[3, 3\], got \[2, 3\]"):
            library.window_samples(rays[0], rays[1][:2], sigmas, *rest, 0, 2)


# ---- hashgrid.composite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("shape", [(3,), (7, 3)])
def test_background_fills_what_the_samples_let_through(shape: tuple[int, ...], backend: str) -> None:
    samples = make_samples([3, 0, 7, 1, 0, 33, 8])
    rays = hashgrid.RaySamples(
        samples["t_starts"], samples["t_ends"], torch.zeros(0, dtype=torch.int64), samples["packed_info"], backend
    )
    background = torch.rand(shape, dtype=torch.float64)
    plain = hashgrid.composite(samples["sigmas"], samples["features"], rays)
    filled = hashgrid.composite(samples["sigmas"], samples["features"], rays, background=background)
    torch.testing.assert_close(filled[0], plain[0] + (1 - plain[1]).unsqueeze(-1) * background)
    assert torch.equal(filled[0][1], background.expand(7, 3)[1])
    with pytest.raises(ValueError, match=r"`background` must have shape \[3\] or \[7, 3\], got \[4\]"):
        hashgrid.composite(samples["sigmas"], samples["features"], rays, background=torch.zeros(4))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_alphas_of_densities_composite_as_these(backend: str) -> None:
    samples = make_samples([3, 0, 7], density=2)
    rays = hashgrid.RaySamples(
        samples["t_starts"], samples["t_ends"], torch.zeros(0, dtype=torch.int64), samples["packed_info"], backend
    )
    *expected, transmittances = hashgrid.composite(
        samples["sigmas"], samples["features"], rays, return_transmittances=True
    )
    alphas = with_alphas(samples)["alphas"]
    torch.testing.assert_close(hashgrid.composite(None, samples["features"], rays, alphas=alphas), tuple(expected))
    torch.testing.assert_close(transmittances * alphas, expected[3])


def test_samples_know_their_positions_and_visible_part() -> None:
    samples = make_samples([3, 0, 7], torch.float32, density=30)
    rays = hashgrid.RaySamples(
        samples["t_starts"], samples["t_ends"], torch.tensor([0] * 3 + [2] * 7), samples["packed_info"]
    )
    rays_o, rays_d = torch.rand(3, 3), torch.rand(3, 3)
    middle = (rays.t_starts + rays.t_ends) / 2
    for i in range(10):
        ray = rays.ray_indices[i]
        torch.testing.assert_close(rays.positions(rays_o, rays_d)[i], rays_o[ray] + rays_d[ray] * middle[i])
    kept, index = rays.visible(samples["sigmas"], 0.3)
    assert kept.n_samples == len(index) < rays.n_samples and kept.n_rays == 3
    assert torch.equal(kept.ray_indices, rays.ray_indices[index]) and torch.equal(kept.t_starts, rays.t_starts[index])


@pytest.mark.parametrize("counts", [[], [0], [3], [40, 0, 7, 33]])
def test_samples_behind_the_last_ray_belong_to_none(counts: list[int]) -> None:
    """A result of fixed size has more samples than its rays: they change nothing and get no gradient."""
    samples = make_samples([*counts, 50], torch.float64, 2.0)
    samples["packed_info"] = samples["packed_info"][: len(counts)]
    n_placed = sum(counts)
    placed = {name: x if name == "packed_info" else x[:n_placed] for name, x in samples.items()}
    for library in (ops, reference):
        long, short = ({n: x.clone() for n, x in values.items()} for values in (samples, placed))
        for values in (long, short):
            values["sigmas"].requires_grad_()
            values["features"].requires_grad_()
        actual, expected = (library.composite(*values.values()) for values in (long, short))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a[: len(e)], e, rtol=0, atol=0)
        assert [len(a) for a in actual] == [len(counts)] * 3 + [n_placed + 50, len(counts)]
        assert not actual[3][n_placed:].any()
        for outputs in (actual, expected):
            (outputs[0].sum() + outputs[1].sum() + outputs[3].sum() + outputs[4].sum()).backward()
        for name in ("sigmas", "features"):
            torch.testing.assert_close(long[name].grad[:n_placed], short[name].grad, rtol=0, atol=0)
            assert not long[name].grad[n_placed:].any()
        ngp = _ngp if library is ops else reference
        kept, info = ngp.visible_samples(*(samples[n] for n in ("sigmas", "t_starts", "t_ends", "packed_info")))
        assert (kept < n_placed).all() and int(info[:, 1].sum()) == len(kept)
