"""hashgrid.optim.Adam: against torch's Adam, schedules, averages, half-precision copies, resuming."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from hashgrid.ops._half_table import is_current
from hashgrid.optim import Adam


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    return request.param


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype)) for shape in ((50, 2), (16, 8), (7,))]


def set_gradients(params: list[nn.Parameter], step: int, density: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        keep = torch.rand(*param.shape[:-1], 1, generator=generator) < density
        param.grad = (grad * keep).to(param.dtype)


def train(optimizer: Adam, steps: range, density: float = 0.3) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in steps:
        set_gradients(params, step, density)
        optimizer.step()


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matches_torch_adam_where_eps_does_not_matter(backend: str, weight_decay: float) -> None:
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    options = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-20, "weight_decay": weight_decay}
    optimizers = [Adam(ours, **options, backend=backend), torch.optim.Adam(theirs, **options)]
    for step in range(20):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_skipped_rows_count_their_own_steps(backend: str) -> None:
    param = nn.Parameter(torch.zeros(4, 2))
    optimizer = Adam([param], lr=0.1, skip_zero=True, backend=backend)
    for step in range(6):
        param.grad = torch.zeros(4, 2)
        param.grad[0] = 1.0
        if step == 5:
            param.grad[1, 1] = 1.0
        optimizer.step()
    assert optimizer.state[param]["step"].tolist() == [6, 1, 0, 0]
    # the first update of a row has the size of the learning rate, however late it comes
    torch.testing.assert_close(param[1], torch.tensor([0.0, -0.1]))
    assert not param[2:].any()


def test_options_are_per_group(backend: str) -> None:
    table, weight, _ = parameters()
    start = table.detach().clone(), weight.detach().clone()
    groups = [{"params": [table], "skip_zero": True}, {"params": [weight], "weight_decay": 0.1, "lr": 1e-3}]
    optimizer = Adam(groups, lr=1e-2, backend=backend)
    table.grad, weight.grad = torch.zeros_like(table), torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(table, start[0])
    torch.testing.assert_close(weight.detach(), start[1] - 1e-3 * start[1].sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tensor", [False, True])
def test_learning_rate_schedules(backend: str, tensor: bool) -> None:
    def run(schedule: str) -> list[Tensor]:
        params = parameters()
        optimizer = Adam(params, lr=torch.tensor(0.1) if tensor else 0.1, backend=backend)
        rate = optimizer.param_groups[0]["lr"]
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if schedule == "torch" else None
        for step in range(4):
            set_gradients(params, step)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            elif schedule == "assign":
                optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (step + 1)
            elif tensor:
                rate.mul_(0.5)
            else:
                optimizer.param_groups[0]["lr"] *= 0.5
        return params

    for other in (run("torch"), run("in place")):
        for a, b in zip(run("assign"), other, strict=True):
            torch.testing.assert_close(a, b)


def test_average_follows_every_step(backend: str) -> None:
    params = parameters(torch.float64)
    optimizer = Adam(params, lr=0.1, skip_zero=True, ema_decay=0.8, backend=backend)
    averages = [param.detach().clone() for param in params]
    for step in range(12):
        set_gradients(params, step, density=0.3)
        if step % 3 == 1:
            params[1].grad = None
        optimizer.step()
        averages = [0.8 * average + 0.2 * param.detach() for average, param in zip(averages, params, strict=True)]
        for a, b in zip(optimizer.ema_parameters(), averages, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_swap_ema_restores_every_bit(backend: str) -> None:
    params = parameters()
    optimizer = Adam(params, lr=0.1, skip_zero=True, ema_decay=0.9, backend=backend)
    half_table = torch.empty(50, 2, dtype=torch.bfloat16)
    optimizer.register_half_copy(params[0], half_table)
    train(optimizer, range(5))
    before, averages = [param.detach().clone() for param in params], optimizer.ema_parameters()
    assert not same(before, averages)
    with optimizer.swap_ema():
        assert same(list(params), averages)
        assert torch.equal(half_table, averages[0].bfloat16()) and is_current(half_table, params[0])
        with pytest.raises(RuntimeError, match="`step` must not be called inside `swap_ema`"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="must not be nested"), optimizer.swap_ema():
            pass
    assert same(list(params), before) and torch.equal(half_table, before[0].bfloat16())
    with pytest.raises(ZeroDivisionError), optimizer.swap_ema():
        raise ZeroDivisionError
    assert same(list(params), before)


def test_no_average_without_ema_decay() -> None:
    with pytest.raises(RuntimeError, match="construct the optimiser with `ema_decay`"):
        Adam(parameters()).ema_parameters()


def test_half_copy_is_rewritten_in_the_step(backend: str) -> None:
    params = parameters()
    optimizer = Adam(params, lr=0.1, skip_zero=True, backend=backend)
    half_table = torch.empty(50, 2, dtype=torch.float16)
    optimizer.register_half_copy(params[0], half_table)
    for step in range(3):
        train(optimizer, range(step, step + 1))
        assert torch.equal(half_table, params[0].half()) and is_current(half_table, params[0])
    with torch.no_grad():
        params[0].add_(1.0)
    assert not is_current(half_table, params[0])


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_resumes_with_the_same_bits(backend: str, tensor_lr: bool) -> None:
    def make() -> tuple[list[nn.Parameter], Adam]:
        params = parameters()
        groups = [{"params": params[:1], "skip_zero": True}, {"params": params[1:], "weight_decay": 1e-3}]
        return params, Adam(groups, lr=torch.tensor(0.1) if tensor_lr else 0.1, ema_decay=0.9, backend=backend)

    params, optimizer = make()
    train(optimizer, range(5))
    optimizer.param_groups[0]["lr"] *= 0.5
    buffer = io.BytesIO()
    torch.save({"params": [param.detach() for param in params], "optimizer": optimizer.state_dict()}, buffer)
    train(optimizer, range(5, 12))

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed, other = make()
    rate = other.param_groups[0]["lr"]
    with torch.no_grad():
        for param, value in zip(resumed, saved["params"], strict=True):
            param.copy_(value)
    reference_state = copy.deepcopy(saved["optimizer"])
    other.load_state_dict(saved["optimizer"])
    assert not tensor_lr or other.param_groups[0]["lr"] is rate
    train(other, range(5, 12))
    assert same(params, resumed)
    assert same(optimizer.ema_parameters(), other.ema_parameters())
    for index, state in reference_state["state"].items():  # the loaded dict stays as it was
        for name, value in state.items():
            assert torch.equal(value, saved["optimizer"]["state"][index][name])


def test_zero_grad_drops_gradients_by_default(backend: str) -> None:
    params = parameters()
    optimizer = Adam(params, backend=backend)
    set_gradients(params, 0)
    optimizer.zero_grad(set_to_none=False)
    assert all(not param.grad.any() for param in params)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)


@pytest.mark.parametrize("skip_zero", [False, True])
def test_zero_grad_in_step_leaves_persistent_zeros(backend: str, skip_zero: bool) -> None:
    kept, cleared = parameters(), parameters()
    plain = Adam(kept, skip_zero=skip_zero, backend=backend)
    optimizer = Adam(cleared, skip_zero=skip_zero, zero_grad_in_step=True, backend=backend)
    buffers = [torch.zeros_like(param) for param in cleared]
    for param, buffer in zip(cleared, buffers, strict=True):
        param.grad = buffer
    for step in range(4):
        set_gradients(kept, step, 0.4)
        for param, other in zip(cleared, kept, strict=True):
            param.grad.add_(other.grad)
        plain.step()
        optimizer.step()
        optimizer.zero_grad()
        assert all(param.grad is buffer and not buffer.any() for param, buffer in zip(cleared, buffers, strict=True))
    assert same(kept, cleared)
    cleared[0].grad.add_(1.0)  # a gradient that no step consumed is cleared like any other
    optimizer.zero_grad()
    assert not cleared[0].grad.any()


def test_gradient_may_have_any_strides(backend: str) -> None:
    params, others = parameters(), parameters()
    set_gradients(params, 0)
    for param, other in zip(params, others, strict=True):
        other.grad = param.grad.clone()
    params[1].grad = params[1].grad.T.contiguous().T
    for group in (params, others):
        Adam(group, backend=backend, zero_grad_in_step=True).step()
    assert same(params, others)
    assert not params[1].grad.any()


def test_closure_gives_the_loss(backend: str) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = Adam([param], lr=0.1, backend=backend)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert losses[-1] < losses[0] == 6.0


def test_copies_and_pickles() -> None:
    params = parameters()
    optimizer = Adam(params, ema_decay=0.9, skip_zero=True)
    train(optimizer, range(3))
    clone = copy.deepcopy(optimizer)
    train(clone, range(3, 6))
    train(optimizer, range(3, 6))
    copied = [param for group in clone.param_groups for param in group["params"]]
    assert copied[0] is not params[0] and same(copied, params)


def test_empty_and_missing_gradients(backend: str) -> None:
    params = [nn.Parameter(torch.zeros(0, 2)), nn.Parameter(torch.ones(2, 2))]
    optimizer = Adam(params, skip_zero=True, ema_decay=0.9, backend=backend)
    params[0].grad = torch.zeros(0, 2)
    optimizer.step()
    assert torch.equal(params[1].detach(), torch.ones(2, 2)) and same(optimizer.ema_parameters(), params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "`lr` must not be negative, got -1.0"),
        ({"lr": torch.ones(2)}, r"`lr` must be a float or a tensor with one element, got shape \[2\]"),
        ({"betas": (0.9, 1.0)}, r"`betas` must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": -1.0}, "`eps` must not be negative"),
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\) or None, got 1.0"),
        ({"backend": "cuda"}, r"`backend` must be one of .*, got 'cuda'"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adam(parameters(), **options)


def test_wrong_half_copies_are_named() -> None:
    params = parameters()
    optimizer = Adam(params)
    with pytest.raises(ValueError, match="`param` must be one of the optimiser's parameters"):
        optimizer.register_half_copy(torch.zeros(2, 2), torch.zeros(2, 2).half())
    with pytest.raises(ValueError, match=r"`half_copy` must be float16 or bfloat16 with shape \[50, 2\]"):
        optimizer.register_half_copy(params[0], torch.zeros(50, 2))
