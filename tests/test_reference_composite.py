"""The reference compositing against the worked example, a plain Python loop and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from problems.composite import brute_force_composite, make_samples
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashgrid.reference import composite


def test_worked_example() -> None:
    sigmas = torch.tensor([0.4, 0.8, 0.1, 0.8, 0.1, 0.0, 0.9])
    t_starts = torch.tensor([0.0, 1, 2, 0, 1, 0, 1])
    packed_info = torch.tensor([[0, 3], [3, 2], [5, 2]])
    weights = composite(sigmas, torch.ones(7, 1), t_starts, t_starts + 1, packed_info)[3]
    torch.testing.assert_close(weights, torch.tensor([0.33, 0.37, 0.03, 0.55, 0.04, 0, 0.59]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("early_stop_eps", [0.0, 1e-4, 0.3])
def test_matches_plain_python(early_stop_eps: float) -> None:
    samples = make_samples([3, 0, 7, 1, 0, 33, 8], density=20)
    actual = composite(**samples, early_stop_eps=early_stop_eps)
    for a, b in zip(actual, brute_force_composite(samples, early_stop_eps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("early_stop_eps", [0.0, 0.3])
def test_gradients_match_finite_differences(early_stop_eps: float) -> None:
    samples = make_samples([3, 0, 4], density=8)

    def run(sigmas: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return composite(**samples | {"sigmas": sigmas, "features": features}, early_stop_eps=early_stop_eps)

    inputs = (samples["sigmas"].requires_grad_(), samples["features"].requires_grad_())
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_samples_behind_early_stop_have_no_weight_and_no_gradient() -> None:
    samples = make_samples([6, 6], density=0.5)
    samples["sigmas"][2] = 1e4
    samples["sigmas"].requires_grad_()
    samples["features"].requires_grad_()
    outputs = composite(**samples)
    assert not outputs[3][3:6].any() and outputs[3][6:].all()
    loss = sum(output.square().sum() for output in outputs)
    for gradient in torch.autograd.grad(loss, [samples["sigmas"], samples["features"]]):
        assert not gradient[3:6].any() and gradient[6:].all()


@pytest.mark.parametrize("opaque", [1e30, math.inf])
def test_opaque_ray_leaves_the_others_alone(opaque: float) -> None:
    samples = make_samples([4, 300], torch.float32)
    alone = composite(
        **{k: v[4:] for k, v in samples.items() if k != "packed_info"}, packed_info=torch.tensor([[0, 300]])
    )
    samples["sigmas"][1] = opaque
    samples["sigmas"].requires_grad_()
    outputs = composite(**samples)
    assert torch.equal(outputs[3][4:], alone[3])
    assert outputs[1][0].item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(sum(output.sum() for output in outputs), samples["sigmas"])
    assert gradient.isfinite().all()


def test_fp32_error_stays_near_rounding() -> None:
    samples = make_samples([700] * 40, torch.float32, density=0.1)
    exact = composite(**{k: v.double() if v.is_floating_point() else v for k, v in samples.items()})
    for a, b in zip(composite(**samples), exact, strict=True):
        assert (a - b).abs().max() <= 2e-6 * b.abs().max()


def test_no_samples() -> None:
    samples = make_samples([0, 0])
    outputs = composite(**samples)
    assert [list(output.shape) for output in outputs] == [[2, 3], [2], [2], [0], [2]]
    assert not any(output.any() for output in outputs)
    assert composite(**samples | {"packed_info": torch.zeros(0, 2, dtype=torch.int64)})[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": torch.zeros(5, 1)}, r"`sigmas` must have shape \[S\], got \[5, 1\]"),
        ({"features": torch.zeros(5)}, r"`features` must have shape \[5, C\], got \[5\]"),
        ({"t_ends": torch.zeros(4)}, r"`t_ends` must have shape \[5\], got \[4\]"),
        ({"packed_info": torch.zeros(2)}, r"`packed_info` must have shape \[R, 2\], got \[2\]"),
        ({"packed_info": torch.tensor([[0, 6]])}, "`packed_info` must count up to 5 samples, .* `t_starts`, got 6"),
    ],
)
def test_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composite(**make_samples([2, 3]) | changes)
