"""The half-precision copy of a table against everything that writes to the table."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hashgrid import HashGrid
from hashgrid.ops._half_table import is_current
from hashgrid.optim import Adam

SMALL = {"n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 4, "max_resolution": 32}


def make(backend: str = "native", compute_dtype: torch.dtype = torch.float16) -> HashGrid:
    grid = HashGrid(2, **SMALL, compute_dtype=compute_dtype, backend=backend)
    with torch.no_grad():
        grid(torch.rand(4, 2))
    return grid


def assign(grid: HashGrid) -> None:
    grid.table.data = torch.rand_like(grid.table)


def write_to_the_owner(grid: HashGrid) -> None:
    """As libraries do that keep all parameters in one vector."""
    flat = torch.rand(grid.table.numel())
    grid.table.data = flat.view_as(grid.table)
    grid(torch.rand(4, 2))
    flat.mul_(2.0)


def write_to_the_owner_after_a_cast(grid: HashGrid) -> None:
    flat = torch.rand(grid.table.numel())
    grid.table.data = flat.view_as(grid.table)
    grid.float()(torch.rand(4, 2))  # a cast that changes nothing
    flat.mul_(2.0)


def write_to_the_owner_of_a_new_table(grid: HashGrid) -> None:
    owner = torch.rand(grid.table.shape)
    grid.table = nn.Parameter(owner)
    grid(torch.rand(4, 2))
    owner.mul_(2.0)


def step_of_an_old_optimiser(grid: HashGrid) -> None:
    grid(torch.rand(50, 2)).sum().backward()
    for param in grid.parameters():
        param.data.add_(param.grad.data, alpha=-0.1)


def load_and_assign(grid: HashGrid) -> None:
    grid.load_state_dict({"table": torch.rand_like(grid.table)}, assign=True)
    grid(torch.rand(4, 2))
    grid.table.data.add_(1.0)


WRITERS: dict[str, Callable[[HashGrid], Any]] = {
    "data.copy_": lambda grid: grid.table.data.copy_(torch.rand_like(grid.table)),
    "one entry": lambda grid: grid.table.data[7].fill_(3.0),
    "foreach": lambda grid: torch._foreach_add_([grid.table.data], 1.0),
    "data = ...": assign,
    "owner of data": write_to_the_owner,
    "owner of cast data": write_to_the_owner_after_a_cast,
    "owner of a new table": write_to_the_owner_of_a_new_table,
    "vector_to_parameters": lambda grid: nn.utils.vector_to_parameters(
        torch.rand(grid.table.numel()), grid.parameters()
    ),
    "old optimiser": step_of_an_old_optimiser,
    "detach": lambda grid: grid.table.detach().add_(1.0),
    "load_state_dict": lambda grid: grid.load_state_dict({"table": torch.rand_like(grid.table)}),
    "load_state_dict(assign)": load_and_assign,
    "double and back": lambda grid: grid.double().float().table.data.add_(1.0),
}


def expected(grid: HashGrid, x: Tensor) -> Tensor:
    plain = HashGrid(2, **SMALL)
    plain.load_state_dict({"table": grid.table.detach().to(grid.compute_dtype).float()})
    return plain(x)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_write_is_seen(backend: str, writer: str) -> None:
    x = torch.rand(30, 2)
    for grid in (make(backend), copy.deepcopy(make(backend)), pickle.loads(pickle.dumps(make(backend)))):
        WRITERS[writer](grid)
        with torch.no_grad():
            torch.testing.assert_close(grid(x), expected(grid, x))


def test_moving_averages_come_and_go() -> None:
    grid, x = make(), torch.rand(30, 2)
    kept, average = grid.table.clone(), torch.rand_like(grid.table)
    with torch.no_grad():
        before = grid(x)
        grid.table.data.copy_(average)
        torch.testing.assert_close(grid(x), expected(grid, x))
        grid.table.data.copy_(kept.data)
        assert torch.equal(grid(x), before)


@pytest.mark.parametrize("skip_zero", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_step_renews_what_others_wrote_before_it(backend: str, skip_zero: bool) -> None:
    grid = make(backend)
    optimizer = Adam([grid.table], lr=0.1, skip_zero=skip_zero, backend=backend)
    optimizer.register_half_copy(grid.table, grid.half_table)
    grid.table.data.copy_(torch.rand_like(grid.table))
    grid.table.grad = torch.zeros_like(grid.table)
    grid.table.grad[5] = 1.0
    optimizer.step()
    assert is_current(grid.half_table, grid.table) and torch.equal(grid.half_table, grid.table.half())


def test_training_copies_nothing() -> None:
    grid = make()
    optimizer = Adam([grid.table], lr=0.1, skip_zero=True)
    optimizer.register_half_copy(grid.table, grid.half_table)
    for _ in range(3):
        version = grid.half_table._version
        grid(torch.rand(20, 2)).sum().backward()
        assert grid.half_table._version == version
        optimizer.step()
        assert grid.half_table._version == version + 1
        optimizer.zero_grad()


def test_the_table_stays_a_parameter() -> None:
    grid = make()
    assert isinstance(grid.table, nn.Parameter) and list(grid.parameters())[0] is grid.table
    assert type(grid.table.detach()) is type(grid.table.data) is type(grid.state_dict()["table"]) is Tensor
    assert not grid.table.data.requires_grad
    x = torch.rand(5, 2)
    compiled = torch.compile(grid, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(x), grid(x))
        grid.table.data.add_(1.0)
    nn.Parameter(grid.table.detach())
    grid.double().float()(x)
    assert is_current(grid.half_table, grid.table)  # what a cast makes is the table's own
    assert type(HashGrid(2, **SMALL).table) is nn.Parameter
