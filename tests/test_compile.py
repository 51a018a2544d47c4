"""What torch.compile and its tools make of the ops."""

from __future__ import annotations

import copy

import pytest
import torch
from problems.samples import CUDA_ONLY, SAMPLES
from torch import Tensor, nn

import hashgrid


def registered_ops() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.partition("::")[2] for name in names if name.startswith("hashgrid::")}


def test_every_op_has_samples() -> None:
    assert registered_ops() == {*SAMPLES, *CUDA_ONLY}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_opcheck(name: str) -> None:
    """Schema (mutation, aliasing), autograd registration, fake kernel, AOT dispatch with dynamic shapes."""
    op = getattr(torch.ops.hashgrid, name).default
    for arguments in SAMPLES[name]():
        torch.library.opcheck(op, arguments)


class Field(nn.Module):
    """HashGrid and FusedMLP with an ordinary PyTorch layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = hashgrid.HashGrid(2, n_levels=4, log2_hashmap_size=8, base_resolution=4, max_resolution=32)
        self.mlp = hashgrid.FusedMLP(self.grid.n_output_dims, 16, n_neurons=32, n_hidden_layers=1)
        self.head = nn.Linear(16, 3)

    def forward(self, positions: Tensor) -> Tensor:
        return self.head(torch.relu(self.mlp(self.grid(positions))))


def train(model: nn.Module, parameters: list[nn.Parameter], n_steps: int = 20) -> list[float]:
    """Losses of fitting a smooth function."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(parameters, lr=1e-2, eps=1e-8)
    losses = []
    for _ in range(n_steps):
        positions = torch.rand(256, 2, generator=generator)
        target = torch.sin(6 * positions @ torch.tensor([[1.0, 0.5, -1.0], [0.5, -1.0, 1.0]]))
        loss = nn.functional.mse_loss(model(positions), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.full
def test_compiled_modules_train_like_eager_ones() -> None:
    eager = Field()
    with torch.no_grad():
        eager.grid.table.uniform_(-0.1, 0.1)
    model = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    expected = train(eager, list(eager.parameters()))
    losses = train(compiled, list(model.parameters()))
    assert losses[-1] < 0.8 * losses[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-3, atol=1e-5)
    positions = torch.rand(100, 2)
    torch.testing.assert_close(compiled(positions), eager(positions), rtol=1e-2, atol=1e-3)


def test_compiled_modules_take_any_batch_size() -> None:
    model = Field()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for n in (33, 64, 7):
        positions = torch.rand(n, 2)
        torch.testing.assert_close(compiled(positions), model(positions))


def test_compiled_modules_without_gradients() -> None:
    model = Field()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    positions = torch.rand(9, 2)
    with torch.no_grad():
        torch.testing.assert_close(compiled(positions), model(positions))


def test_compiled_composite_matches_eager() -> None:
    *arguments, _, _ = next(iter(SAMPLES["composite"]()))
    sigmas, features = arguments[:2]

    def loss(*arguments) -> Tensor:
        return sum(output.square().sum() for output in hashgrid.ops.composite(*arguments))

    expected = torch.autograd.grad(loss(*arguments), (sigmas, features))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*arguments), (sigmas, features)), expected)


def test_second_derivative_under_compile_is_refused() -> None:
    """A limit of torch.compile, not of the ops; it must not be silently wrong."""
    model = Field()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    positions = torch.rand(9, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(compiled(positions).sum(), positions, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()
