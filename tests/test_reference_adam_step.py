"""The reference Adam step against torch.optim.Adam, row by row updates and step by step averages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hashgrid.reference import adam_step

OPTIONS = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-15, "weight_decay": 0.0, "skip_zero": False}


def make_state(param: Tensor, n_counters: int = 1, ema: bool = False) -> dict[str, Tensor]:
    state = {
        "exp_avg": torch.zeros_like(param),
        "exp_avg_sq": torch.zeros_like(param),
        "steps": torch.zeros(n_counters, dtype=torch.int32),
    }
    if ema:
        state |= {"ema": param.clone(), "ema_last": torch.zeros(n_counters, dtype=torch.int32)}
    return state


def sparse_gradients(n_steps: int, n_rows: int) -> list[Tensor]:
    gradients = [torch.randn(n_rows, 2, dtype=torch.float64) for _ in range(n_steps)]
    for gradient in gradients:
        gradient[torch.rand(n_rows) < 0.6] = 0
    gradients[-1][0, 1], gradients[-1][0, 0] = 0, 1  # a row with one zero is not a zero row
    return gradients


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dense_matches_torch_adam(weight_decay: float) -> None:
    ours = torch.randn(5, 3, dtype=torch.float64)
    theirs = ours.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.99), eps=1e-15, weight_decay=weight_decay)
    state = make_state(ours)
    for _ in range(10):
        theirs.grad = torch.randn_like(ours)
        optimizer.step()
        adam_step(ours, theirs.grad, **state, lr=torch.tensor(1e-2), **OPTIONS | {"weight_decay": weight_decay})
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-7, atol=1e-9)  # lr is fp32
    assert state["steps"].tolist() == [10]


def test_eps_is_added_to_uncorrected_root() -> None:
    param = torch.zeros(1, 1, dtype=torch.float64)
    options = OPTIONS | {"eps": 0.5}
    adam_step(param, torch.ones_like(param), **make_state(param), lr=torch.tensor(1.0).double(), **options)
    # m = 0.1, sqrt(v) = 0.1, correction sqrt(1 - 0.99) / (1 - 0.9) = 1
    assert param.item() == pytest.approx(-0.1 / (0.1 + 0.5))


def test_skip_zero_updates_each_row_as_if_alone() -> None:
    n_steps, n_rows = 12, 6
    param = torch.randn(n_rows, 2, dtype=torch.float64)
    expected = param.clone()
    gradients = sparse_gradients(n_steps, n_rows)
    lr, options = torch.tensor(1e-2).double(), OPTIONS | {"weight_decay": 0.1}

    state = make_state(param, n_rows)
    for gradient in gradients:
        adam_step(param, gradient, **state, lr=lr, **options | {"skip_zero": True})

    for row in range(n_rows):
        alone = make_state(expected[row])
        touching = [gradient[row] for gradient in gradients if gradient[row].any()]
        for gradient in touching:
            adam_step(expected[row], gradient, **alone, lr=lr, **options)
        assert state["steps"][row] == len(touching)
    torch.testing.assert_close(param, expected, rtol=1e-13, atol=1e-13)


def test_skip_zero_without_gradient_touches_nothing() -> None:
    param = torch.randn(4, 2)
    state = make_state(param, 4, ema=True) | {"half_copy": torch.zeros(4, 2).half()}
    before = {name: tensor.clone() for name, tensor in (state | {"param": param}).items()}
    options = OPTIONS | {"skip_zero": True, "weight_decay": 0.1, "global_step": 1}
    adam_step(param, torch.zeros_like(param), **state, lr=torch.tensor(1e-2), **options)
    for name, tensor in (state | {"param": param}).items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("skip_zero", [False, True])
def test_closed_form_average_matches_step_by_step(skip_zero: bool) -> None:
    n_steps, n_rows = 15, 5
    param = torch.randn(n_rows, 2, dtype=torch.float64)
    average = param.clone()
    gradients = sparse_gradients(n_steps, n_rows)
    gradients[-1][gradients[-1] == 0] = 1  # every row catches up in the last step
    state = make_state(param, n_rows if skip_zero else 1, ema=True)
    for step, gradient in enumerate(gradients, start=1):
        options = OPTIONS | {"skip_zero": skip_zero, "ema_decay": 0.8, "global_step": step}
        adam_step(param, gradient, **state, lr=torch.tensor(1e-1), **options)
        average = 0.8 * average + 0.2 * param
    torch.testing.assert_close(state["ema"], average, rtol=1e-13, atol=1e-13)
    assert (state["ema_last"] == n_steps).all()


def test_half_copy_follows_updated_rows() -> None:
    param, gradient = torch.randn(4, 2), torch.zeros(4, 2)
    gradient[1] = 1
    half_copy = torch.zeros(4, 2, dtype=torch.bfloat16)
    options = OPTIONS | {"skip_zero": True}
    adam_step(param, gradient, **make_state(param, 4), lr=torch.tensor(1e-2), half_copy=half_copy, **options)
    assert torch.equal(half_copy[1], param[1].bfloat16())
    assert not half_copy[[0, 2, 3]].any()


def test_strided_parameter_is_updated_in_place() -> None:
    storage = torch.randn(4, 6, dtype=torch.float64)
    param, expected = storage[:, ::2], storage[:, ::2].clone()
    gradient = torch.randn(4, 3, dtype=torch.float64)
    for tensor in (param, expected):
        state = make_state(expected, 4)
        adam_step(tensor, gradient, **state, lr=torch.tensor(1e-2), **OPTIONS | {"skip_zero": True})
    assert torch.equal(param, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": torch.zeros(4, 3)}, r"`grad` must have the shape of `param`, \[4, 2\], got \[4, 3\]"),
        ({"steps": torch.zeros(4, dtype=torch.int32)}, r"`steps` must have shape \[1\], got \[4\]"),
        ({"skip_zero": True}, r"`steps` must have shape \[4\], got \[1\]"),
        ({"ema": torch.zeros(4, 2)}, "`ema` and `ema_last` must be given together"),
    ],
)
def test_errors_name_contract_and_actual(changes: dict, message: str) -> None:
    param = torch.zeros(4, 2)
    arguments = {"param": param, "grad": param.clone(), **make_state(param), "lr": torch.tensor(1e-2), **OPTIONS}
    with pytest.raises(ValueError, match=message):
        adam_step(**arguments | changes)
