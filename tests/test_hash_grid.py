"""The hash grid module: contracts, copies, half tables, compilation."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from hashgrid import reference
from hashgrid.levels import make_level_table
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.ops._half_table import is_current
from hashgrid.optim import Adam

SMALL = {"n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 4, "max_resolution": 32}


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize(
    ("options", "n_entries"),
    [
        ({}, 12_196_240 // 2),
        ({"n_levels": 8, "n_features_per_level": 4, "per_level_scale": 2}, 11_681_792 // 4),
        ({"per_level_scale": 2}, 14_229_504 // 2),
        ({"n_levels": 20, "log2_hashmap_size": 16, "base_resolution": 32, "per_level_scale": 1.5}, 2_555_904 // 2),
        ({"n_input_dims": 2, "log2_hashmap_size": 15, "per_level_scale": 1.5}, 708_368 // 2),
    ],
)
def test_entry_counts(options: dict, n_entries: int) -> None:
    with torch.device("meta"):
        grid = HashGrid(**options)
    assert grid.table.shape == (n_entries, options.get("n_features_per_level", 2))


def test_table_is_drawn_uniformly() -> None:
    table = HashGrid(n_levels=8).table.detach()
    assert table.dtype == torch.float32 and table.requires_grad is False
    assert table.abs().max() <= 1e-4 and table.abs().max() > 9.9e-5
    assert abs(table.mean()) < 1e-6 and abs(table.std() - 1e-4 / 3**0.5) < 1e-6


@pytest.mark.parametrize("options", [{}, {"interpolation": "smoothstep", "bounds": "zero"}, {"convention": "paper"}])
def test_forward_matches_the_reference_op(backend: str, options: dict) -> None:
    grid = HashGrid(3, **SMALL, **options, backend=backend)
    nn.init.normal_(grid.table)
    x = torch.rand(2, 5, 3) * 1.2 - 0.1
    weights = torch.rand(4)
    y = grid(x, weights)
    assert y.shape == (2, 5, grid.n_output_dims) == (2, 5, 8)
    expected = reference.hash_encode(x, grid.table, grid.levels, grid.interpolation, grid.bounds, weights)
    torch.testing.assert_close(y, expected)


def test_ready_level_table(backend: str) -> None:
    levels = make_level_table(2, 3, 6, 3, per_level_scale=1.7, convention="paper")
    grid = HashGrid(2, n_features_per_level=4, level_table=levels, backend=backend)
    assert grid.levels is levels and grid.n_levels == 3 and grid.n_output_dims == 12
    keys = {"scale": "scales", "resolution": "resolutions", "offset": "offsets", "size": "sizes", "hashed": "hashed"}
    dicts = [{a: getattr(levels, b)[level] for a, b in keys.items()} | {"shift": levels.shift} for level in range(3)]
    assert HashGrid(2, level_table=dicts, backend=backend).levels == levels


def test_module_is_twice_differentiable_in_all_inputs() -> None:
    grid = HashGrid(2, **SMALL, interpolation="smoothstep").double()
    nn.init.normal_(grid.table)
    x = (torch.rand(3, 2, dtype=torch.float64) * 0.9 + 0.05).requires_grad_()
    weights = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weights: Tensor, table: Tensor) -> Tensor:
        return torch.func.functional_call(grid, {"table": table}, (x, weights))

    assert gradcheck(function, (x, weights, grid.table), fast_mode=True)
    assert gradgradcheck(function, (x, weights, grid.table), fast_mode=True)


def test_state_dict_holds_the_table_alone(backend: str) -> None:
    grid, other = (HashGrid(3, **SMALL, compute_dtype=torch.bfloat16, backend=backend) for _ in range(2))
    assert list(grid.state_dict()) == ["table"]
    x = torch.rand(9, 3)
    assert not torch.equal(grid(x), other(x))
    other.load_state_dict(grid.state_dict())
    assert torch.equal(grid(x), other(x))
    third = HashGrid(3, **SMALL, compute_dtype=torch.bfloat16, backend=backend)
    third(x)
    third.load_state_dict(grid.state_dict(), assign=True)
    assert torch.equal(grid(x), third(x))


@pytest.mark.parametrize("compute_dtype", [None, torch.float16])
def test_copies_are_independent(backend: str, compute_dtype: torch.dtype | None) -> None:
    grid = HashGrid(3, **SMALL, compute_dtype=compute_dtype, backend=backend)
    x = torch.rand(9, 3)
    with torch.no_grad():
        grid.table.add_(1.0)  # a half table that is stale at the time of the copy must not look fresh afterwards
    buffer = io.BytesIO()
    torch.save(grid, buffer)
    buffer.seek(0)
    y = grid(x)
    for clone in (copy.deepcopy(grid), torch.load(buffer, weights_only=False)):
        assert torch.equal(clone(x), y)
        with torch.no_grad():
            clone.table.zero_()
        assert not clone(x).any()
        assert torch.equal(grid(x), y)


def test_meta_device(backend: str) -> None:
    with torch.device("meta"):
        grid = HashGrid(3, **SMALL, compute_dtype=torch.bfloat16, backend=backend)
    assert grid.table.is_meta and grid.half_table.is_meta
    if backend == "native":
        assert grid(torch.rand(5, 3, device="meta")).shape == (5, 8)
    grid.to_empty(device="cpu").reset_parameters()
    assert grid(torch.rand(5, 3)).isfinite().all()


@pytest.mark.parametrize("compute_dtype", [torch.float16, torch.bfloat16])
def test_half_table_follows_every_writer(backend: str, compute_dtype: torch.dtype) -> None:
    grid = HashGrid(3, **SMALL, compute_dtype=compute_dtype, backend=backend)
    x = torch.rand(9, 3)

    def check() -> None:
        y = grid(x)
        assert y.dtype == torch.float32
        expected = reference.hash_encode_into(x, grid.table, grid.levels, half_table=grid.table.to(compute_dtype))
        torch.testing.assert_close(y, expected)
        assert is_current(grid.half_table, grid.table)

    check()
    nn.init.normal_(grid.table)
    check()
    optimizer = torch.optim.Adam(grid.parameters(), lr=0.1)
    grid(x).float().sum().backward()
    optimizer.step()
    check()
    grid.table = nn.Parameter(torch.randn_like(grid.table))
    check()
    grid.table.data.zero_()
    check()
    grid.table.detach().numpy()[:] = 1.0  # unseen, hence:
    grid.refresh_half_table()
    check()
    grid.to(torch.float64).to(torch.float32)
    assert grid.half_table.dtype == compute_dtype
    check()


def test_current_half_table_is_not_rewritten() -> None:
    grid = HashGrid(3, **SMALL, compute_dtype=torch.bfloat16)
    x = torch.rand(9, 3)
    grid(x)
    version = grid.half_table._version
    grid(x)
    assert grid.half_table._version == version


def test_optimiser_writes_the_half_table_in_its_step(backend: str) -> None:
    grid = HashGrid(3, **SMALL, compute_dtype=torch.bfloat16, backend=backend)
    optimizer = Adam([{"params": [grid.table], "skip_zero": True}], lr=0.1, ema_decay=0.9, backend=backend)
    optimizer.register_half_copy(grid.table, grid.half_table)
    x = torch.rand(9, 3)
    for _ in range(3):
        optimizer.zero_grad()
        grid(x).float().square().sum().backward()
        assert grid.table.grad.dtype == torch.float32
        optimizer.step()
        assert is_current(grid.half_table, grid.table)
        assert torch.equal(grid.half_table, grid.table.bfloat16())
    version = grid.half_table._version
    y = grid(x)
    assert grid.half_table._version == version
    with optimizer.swap_ema():
        assert not torch.equal(grid(x), y)
    assert torch.equal(grid(x), y)


def test_inference_mode(backend: str) -> None:
    grid = HashGrid(3, **SMALL, compute_dtype=torch.bfloat16, backend=backend)
    x = torch.rand(9, 3)
    with torch.inference_mode():
        y = grid(x)
        made_here = HashGrid(3, **SMALL, compute_dtype=torch.bfloat16, backend=backend)
        made_here.load_state_dict(grid.state_dict())
        assert torch.equal(made_here(x), y)
    assert torch.equal(grid(x), y)
    grid(x).float().sum().backward()


def test_autocast_leaves_positions_alone(backend: str) -> None:
    grid = HashGrid(3, **SMALL, backend=backend)
    x = torch.rand(100, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = grid(x)
    assert y.dtype == torch.float32 and torch.equal(y, grid(x))


def test_known_features_come_back_with_their_gradient(backend: str) -> None:
    grid = HashGrid(3, **SMALL, backend=backend)
    x = torch.rand(9, 3)
    with torch.no_grad():
        known = grid(x)
    y = grid(x, precomputed=known)
    assert torch.equal(y, known)
    (grad,) = torch.autograd.grad(y.square().sum(), grid.table)
    (expected,) = torch.autograd.grad(grid(x).square().sum(), grid.table)
    torch.testing.assert_close(grad, expected)


def train(model: nn.Module, target: nn.Module, steps: int = 5) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.rand(64, 3, generator=generator)
        optimizer.zero_grad()
        loss = (target(x) - x.sin().sum(-1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.full
@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_model_trains_like_eager(backend: str, compute_dtype: torch.dtype | None, compiler: str) -> None:
    if compiler == "inductor" and (backend == "reference" or compute_dtype is not None):
        pytest.skip("one case through the code generator is enough")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = HashGrid(3, **SMALL, compute_dtype=compute_dtype, backend=backend)
            self.linear = nn.Linear(self.grid.n_output_dims, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.grid(x).float())

    eager = Model()
    compiled = copy.deepcopy(eager)
    losses = train(eager, eager)
    compiled_losses = train(compiled, torch.compile(compiled, fullgraph=True, backend=compiler))
    assert losses[-1] < losses[0]
    torch.testing.assert_close(compiled_losses, losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled.grid.table, eager.grid.table, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_kept_gradient_gets_the_second_order_too(dtype: torch.dtype, interpolation: str) -> None:
    def gradients(accumulate: bool) -> list[Tensor]:
        torch.manual_seed(0)
        grid = HashGrid(3, **SMALL, interpolation=interpolation, accumulate_grad=accumulate).to(dtype)
        with torch.no_grad():
            grid.table.uniform_(-1, 1)
        x = torch.rand(300, 3, dtype=dtype, requires_grad=True)
        y = grid(x).square().sum(-1)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert grid.table.grad is None or not grid.table.grad.any()  # the slope alone is no training step
        ((slope.norm(dim=-1) - 1).square().sum() + y.sum() + grid(x.detach()).sum()).backward()
        return [grid.table.grad, x.grad]

    for kept, fresh in zip(gradients(True), gradients(False), strict=True):
        rtol = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(kept, fresh, rtol=rtol, atol=rtol * float(fresh.abs().max()))


def test_table_gradient_is_there_whenever_it_is_asked_for(backend: str) -> None:
    grid = HashGrid(3, **SMALL, backend=backend)
    x = torch.rand(50, 3, requires_grad=True)
    y = grid(x).sum()
    (of_x,) = torch.autograd.grad(y, x, retain_graph=True)
    (of_table,) = torch.autograd.grad(y, grid.table, retain_graph=True)
    both = torch.autograd.grad(y, [x, grid.table], retain_graph=True)
    half = grid.table * 0.5  # not a leaf: the engine goes through it
    (through,) = torch.autograd.grad(
        torch.func.functional_call(grid, {"table": half}, x).sum(), grid.table, retain_graph=True
    )
    y.backward()
    assert of_table.any() and torch.equal(of_table, both[1]) and torch.equal(of_x, both[0])
    assert torch.equal(grid.table.grad, of_table) and torch.allclose(through, 0.5 * of_table)
    names = torch.func.grad(lambda table: torch.func.functional_call(grid, {"table": table}, x).sum())(grid.table)
    assert torch.equal(names, of_table)


@pytest.mark.parametrize("keep", [False, True])
def test_gradient_of_the_table_alone_is_that_of_all(backend: str, keep: bool) -> None:
    """An eikonal loss differentiated to the table, not to the positions whose gradient is part of it."""
    grid = HashGrid(3, **SMALL, interpolation="smoothstep", backend=backend)
    grid.accumulate_grad = keep
    x = torch.rand(50, 3, requires_grad=True)

    def gradient(**inputs: list[Tensor]) -> Tensor:
        grid.zero_grad()
        x.grad = None
        y = grid(x).square().sum(-1)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        ((slope.norm(dim=-1) - 1).square().sum() + y.sum()).backward(**inputs)
        return grid.table.grad.clone()

    of_all = gradient()
    assert x.grad is not None
    alone = gradient(inputs=[grid.table])
    assert x.grad is None and of_all.any()
    torch.testing.assert_close(alone, of_all, rtol=1e-6, atol=1e-6 * float(of_all.abs().max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features_per_level": 3}, r"`n_features_per_level` must be one of \(1, 2, 4, 8\), got 3"),
        ({"interpolation": "cubic"}, "`interpolation` must be one of .*, got 'cubic'"),
        ({"bounds": "wrap"}, "`bounds` must be one of .*, got 'wrap'"),
        ({"convention": "ours"}, "`convention` must be one of .*, got 'ours'"),
        ({"compute_dtype": torch.float64}, "`compute_dtype` must be torch.float16, torch.bfloat16 or None"),
        ({"backend": "cuda"}, "`backend` must be one of .*, got 'cuda'"),
        ({"n_input_dims": 8}, r"`n_input_dims` must be in 1..7, got 8"),
        ({"max_resolution": 8}, "`max_resolution` must be at least `base_resolution` 16, got 8"),
        ({"level_table": make_level_table(2)}, "`level_table` is for 2 input dims, `n_input_dims` is 3"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashGrid(**options)


def test_wrong_inputs_are_named(backend: str) -> None:
    grid = HashGrid(3, **SMALL, backend=backend)
    with pytest.raises(ValueError, match=r"`x` must have shape \[\.\.\., 3\], got \[5, 2\]"):
        grid(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"`level_weights` must have shape \[4\], got \[3\]"):
        grid(torch.zeros(5, 3), torch.ones(3))
