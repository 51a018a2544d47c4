"""States of hashgrid.optim.Adam in the hands of PyTorch's tools: training goes on as if nothing had happened."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from hashgrid.optim import Adam

Pair = tuple[nn.Module, torch.optim.Optimizer]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(50, 2, generator=generator))
        self.weight = nn.Parameter(torch.randn(16, 8, generator=generator))
        self.bias = nn.Parameter(torch.randn(7, generator=generator))
        self.register_buffer("half_copy", torch.empty(50, 2, dtype=torch.float16), persistent=False)


def make(backend: str, tensor_lr: bool = False) -> Pair:
    model = Model()
    groups = [{"params": [model.table], "skip_zero": True}, {"params": [model.weight, model.bias], "eps": 1e-12}]
    lr = torch.tensor(0.1) if tensor_lr else 0.1
    optimizer = Adam(groups, lr=lr, ema_decay=0.9, weight_decay=1e-3, backend=backend)
    optimizer.register_half_copy(model.table, model.half_copy)
    return model, optimizer


def train(pair: Pair, steps: range, density: float = 0.3) -> None:
    model, optimizer = pair
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            grad = torch.randn(param.shape, generator=generator)
            param.grad = grad * (torch.rand(*param.shape[:-1], 1, generator=generator) < density)
        optimizer.step()
        optimizer.zero_grad()


def values(pair: Pair) -> list[Tensor]:
    model, optimizer = pair
    averages = optimizer.ema_parameters() if isinstance(optimizer, Adam) else []
    return [param.detach() for param in model.parameters()] + averages


def through_files(pair: Pair, fresh: Pair) -> Pair:
    file = io.BytesIO()
    torch.save([part.state_dict() for part in pair], file)
    file.seek(0)
    for part, state in zip(fresh, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    return fresh


def through_checkpoints(**options: bool) -> Callable[[Pair, Pair], Pair]:
    def restore(pair: Pair, fresh: Pair) -> Pair:
        choice = StateDictOptions(**options)
        state = copy.deepcopy(get_optimizer_state_dict(*pair, options=choice))
        # the optimiser before the model: its averages may not begin at weights that are replaced
        set_optimizer_state_dict(*fresh, state, options=choice)
        set_model_state_dict(fresh[0], get_model_state_dict(pair[0]))
        return fresh

    return restore


WAYS: dict[str, Callable[[Pair, Pair], Pair]] = {
    "deepcopy": lambda pair, _: copy.deepcopy(pair),
    "pickle": lambda pair, _: pickle.loads(pickle.dumps(pair)),
    "torch.save": through_files,
    "checkpoint": through_checkpoints(),
    "flat checkpoint": through_checkpoints(flatten_optimizer_state_dict=True),
    "full checkpoint": through_checkpoints(full_state_dict=True, cpu_offload=True),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_goes_on_with_the_same_bits(backend: str, way: str, tensor_lr: bool) -> None:
    pair = make(backend, tensor_lr)
    train(pair, range(5))
    pair[1].param_groups[0]["lr"] *= 0.5
    train(pair, range(5, 7), density=0.0)  # the table stands still, its average does not
    other = WAYS[way](pair, make(backend, tensor_lr))
    assert other[1].global_step == 7
    for both in (pair, other):
        train(both, range(7, 12))
    assert all(torch.equal(a, b) for a, b in zip(values(pair), values(other), strict=True))
    table, half_copy = other[0].table, other[0].half_copy
    assert torch.equal(half_copy, table.half())


def torch_adam(**options: Any) -> Pair:
    model = Model()
    parts = [{"params": [model.table]}, {"params": [model.weight, model.bias]}]
    # eps is added to different roots, so that nothing may depend on it
    return model, torch.optim.Adam(parts, **{"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-20, **options})


def our_adam(**options: Any) -> Pair:
    model = Model()
    parts = [{"params": [model.table]}, {"params": [model.weight, model.bias]}]
    return model, Adam(parts, **{"lr": 1e-2, "eps": 1e-20, **options})


def hand_over(pair: Pair, fresh: Pair) -> Pair:
    state = copy.deepcopy(pair[1].state_dict())
    fresh[1].load_state_dict(state)
    fresh[0].load_state_dict(pair[0].state_dict())
    return fresh


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_goes_on_where_torch_stopped(backend: str, fused: bool | None) -> None:
    pair = torch_adam(weight_decay=0.1, fused=fused)
    train(pair, range(5), density=1.0)
    other = hand_over(pair, our_adam(backend=backend, ema_decay=0.9))
    assert other[1].global_step == 5 and other[1].param_groups[0]["lr"] == 0.05
    before = [param.detach().clone() for param in pair[0].parameters()]
    for both in (pair, other):
        train(both, range(5, 6), density=1.0)
    for now, then, average in zip(pair[0].parameters(), before, other[1].ema_parameters(), strict=True):
        torch.testing.assert_close(average, 0.9 * then + 0.1 * now)
    for both in (pair, other):
        train(both, range(6, 12), density=1.0)
    for a, b in zip(pair[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    other[1].state_dict()
    assert "fused" not in other[1].param_groups[0]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_go_on_with_the_number_of_torch_steps(backend: str) -> None:
    pair = torch_adam()
    train(pair, range(5), density=1.0)
    other = hand_over(pair, our_adam(backend=backend, skip_zero=True))
    assert other[1].state[other[0].table]["step"].tolist() == [5] * 50
    for both in (pair, other):
        train(both, range(5, 9), density=1.0)
    for a, b in zip(pair[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_torch_goes_on_where_we_stopped(backend: str, fused: bool | None) -> None:
    pair = our_adam(backend=backend)
    train(pair, range(5), density=1.0)
    other = hand_over(pair, torch_adam(fused=fused))
    for both in (pair, other):
        train(both, range(5, 12), density=1.0)
    for a, b in zip(pair[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_states_of_other_optimisers_are_refused_and_nothing_is_lost() -> None:
    pair = our_adam(ema_decay=0.9)
    train(pair, range(3), density=1.0)
    expected = copy.deepcopy(pair[1].state_dict())

    def refuse(state: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pair[1].load_state_dict(state)
        now = pair[1].state_dict()
        assert now["param_groups"] == expected["param_groups"]
        for index, parts in expected["state"].items():
            assert all(torch.equal(now["state"][index][name], part) for name, part in parts.items())

    for options, message in (
        ({"amsgrad": True}, "must be of plain Adam, got a group with `amsgrad`"),
        ({"maximize": True}, "must be of plain Adam, got a group with `maximize`"),
    ):
        other = torch_adam(**options)
        train(other, range(2))
        refuse(other[1].state_dict(), message)
    for kind in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW):
        model, groups = Model(), [{"params": list(Model().parameters())[:1]}, {"params": []}]
        groups = [{"params": [model.table]}, {"params": [model.weight, model.bias]}]
        other = model, kind(groups, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
        train(other, range(2))
        refuse(other[1].state_dict(), "`state_dict` must")
    changed = copy.deepcopy(expected)
    changed["state"][1]["exp_avg"] = torch.zeros(16, 9)
    refuse(changed, r"`exp_avg` of parameter 1 must have shape \[16, 8\].*got \[16, 9\]")
    changed = copy.deepcopy(expected)
    changed["state"][0]["step"] = torch.zeros(49, dtype=torch.int32)
    refuse(changed, r"`step` of parameter 0 must have 1 or 1 elements.*got \[49\]")


def test_averages_are_not_dropped_in_silence() -> None:
    pair = our_adam(ema_decay=0.9)
    train(pair, range(3))
    with pytest.warns(UserWarning, match="they are dropped; construct it with `ema_decay`"):
        other = hand_over(pair, our_adam())
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in other[1].state.values())
    train(other, range(3, 5))
