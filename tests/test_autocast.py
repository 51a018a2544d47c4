"""Under torch.autocast only the products of the MLP change; whatever a layer has made half is read as fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import hashgrid
from hashgrid import FusedMLP, HashGrid, OccupancyGrid, RaySamples, make_level_table
from hashgrid.ops import _ngp
from hashgrid.ops._backend import backend_ops
from hashgrid.optim import Adam

LEVELS = make_level_table(3, n_levels=4, log2_hashmap_size=9, base_resolution=4, max_resolution=64)
SMALL = {"n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 4, "max_resolution": 64}
AABB = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


# ---- half inputs -----------------------------------------------------------------------------------------------------


def _samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t_starts, t_ends, ray_indices [S] and packed_info [R, 2]; the second ray has no samples."""
    counts = torch.tensor([5, 0, 9, 2])
    t_starts = torch.cat([0.25 * torch.arange(int(count)) for count in counts])
    packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=-1)
    return t_starts, t_starts + 0.25, torch.arange(4).repeat_interleave(counts), packed_info


def _hash_encode(ops: ModuleType, x: Tensor) -> Tensor:
    table = torch.randn(LEVELS.n_entries, 2, generator=torch.Generator().manual_seed(1))
    return ops.hash_encode(x, table, LEVELS, level_weights=x.new_tensor([1.0, 0.5, 0.25, 0.75]))


def _composite(ops: ModuleType, x: Tensor) -> tuple[Tensor, ...]:
    t_starts, t_ends, _, packed_info = _samples()
    x = torch.cat([x, x])[: len(t_starts)]
    return ops.composite(x[:, 0] * 4, x, t_starts.to(x), t_ends.to(x), packed_info)


def _line_integrals(ops: ModuleType, x: Tensor) -> Tensor:
    t_starts, t_ends, _, packed_info = _samples()
    return ops.line_integrals(x[: len(t_starts)], t_starts.to(x), t_ends.to(x), packed_info)


def _visible_samples(ops: ModuleType, x: Tensor) -> tuple[Tensor, ...]:
    t_starts, t_ends, _, packed_info = _samples()
    x = torch.cat([x, x])[: len(t_starts)]
    return _ngp.visible_samples(x[:, 0] * 16, t_starts.to(x), t_ends.to(x), packed_info, 0.1)


def _window_samples(ops: ModuleType, x: Tensor) -> tuple[Tensor, ...]:
    t_starts, t_ends, _, packed_info = _samples()
    sigmas = torch.cat([x, x])[: len(t_starts), 0] * 16
    return _ngp.window_samples(x[:4], x[:4] - 0.5, sigmas, t_starts.to(x), t_ends.to(x), packed_info, 1, 9, 0.1)


def _ray_aabb(ops: ModuleType, x: Tensor) -> tuple[Tensor, ...]:
    return ops.ray_aabb(4 * x - 3, x - 0.5, x.new_tensor(AABB))


def _sphere_trace(ops: ModuleType, x: Tensor) -> tuple[Tensor, ...]:
    return ops.sphere_trace(lambda p: p.square().sum(-1) - 0.5, 2 * x - 3, 2 - x, x[:, 0], x[:, 1] + 4)


def _march_rays(ops: ModuleType, x: Tensor) -> tuple[Tensor, ...]:
    bits = torch.full((8,), 0b01101101, dtype=torch.uint8)
    return ops.march_rays(2 * x - 3, 0.5 - x, x.new_tensor(AABB), bits, (4, 4, 4), step_size=0.0625, seed=3)


def _positions(ops: ModuleType, x: Tensor) -> Tensor:
    t_starts, t_ends, ray_indices, packed_info = _samples()
    return RaySamples(t_starts, t_ends, ray_indices, packed_info).positions(x, x - 0.5)


def _occupancy_points(ops: ModuleType, x: Tensor) -> Tensor:
    return _ngp.occupancy_points(torch.arange(64), x.new_tensor(AABB), (4, 4, 4), 1, 5)


def _occupancy_visible(ops: ModuleType, x: Tensor) -> Tensor:
    planes = torch.cat([x - 0.5, x[:, :1]], dim=-1)[:10].view(2, 5, 4)
    return _ngp.occupancy_visible(planes, x.new_tensor(AABB), (4, 4, 4))


READERS: dict[str, Callable[[ModuleType, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "hash_encode": _hash_encode,
    "sh_encode": lambda ops, x: ops.sh_encode(x - 0.5, 5),
    "frequency_encode": lambda ops, x: ops.frequency_encode(x, 8),
    "composite": _composite,
    "line_integrals": _line_integrals,
    "visible_samples": _visible_samples,
    "window_samples": _window_samples,
    "ray_aabb": _ray_aabb,
    "sphere_trace": _sphere_trace,
    "march_rays": _march_rays,
    "positions": _positions,
    "occupancy_points": _occupancy_points,
    "occupancy_visible": _occupancy_visible,
}


@pytest.mark.parametrize("name", READERS)
def test_half_inputs_are_read_as_fp32(name: str, backend: str, dtype: torch.dtype) -> None:
    """What a half-precision layer returns counts for the value it has, and everything behind it is fp32."""
    x = torch.randint(33, (40, 3)).div(32).to(dtype)  # so few bits that the readers too compute with it exactly
    expected = READERS[name](backend_ops(backend), x.float())
    with torch.autocast("cpu", dtype=dtype):
        results = READERS[name](backend_ops(backend), x)
    for result, value in zip(*([r] if isinstance(r, Tensor) else r for r in (results, expected)), strict=True):
        assert result.dtype == value.dtype and value.dtype not in (torch.float16, torch.bfloat16)
        assert torch.equal(result, value)


def test_gradients_return_to_half_inputs(backend: str, dtype: torch.dtype) -> None:
    x = torch.rand(50, 3).to(dtype).requires_grad_()
    exact = x.detach().float().requires_grad_()
    grid = HashGrid(3, **SMALL, backend=backend)
    nn.init.normal_(grid.table)
    with torch.autocast("cpu", dtype=dtype):
        (grad,) = torch.autograd.grad(grid(x).square().sum(), x)
    (expected,) = torch.autograd.grad(grid(exact).square().sum(), exact)
    assert grad.dtype == dtype and torch.equal(grad, expected.to(dtype))


def test_densities_of_half_precision_update_the_occupancy_grid(backend: str, dtype: torch.dtype) -> None:
    half, full = (OccupancyGrid(AABB, 8, backend=backend) for _ in range(2))
    layer = nn.Linear(3, 1).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        half.update(lambda x: layer(x).exp(), 0, step_size=0.01)
    full.update(lambda x: layer(x.to(dtype)).exp().float(), 0, step_size=0.01)
    assert half.density.dtype == torch.float32
    torch.testing.assert_close(half.density, full.density, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_cameras_see_the_same_cells(backend: str, dtype: torch.dtype) -> None:
    """Plane distances are a matrix product, which autocast would take in half precision."""
    c2w = torch.eye(4)[:3].repeat(2, 1, 1)
    c2w[:, 2, 3] = torch.tensor([1.5, 3.0])
    views = c2w, torch.tensor([[60.0, 60.0, 16.0, 16.0]] * 2), torch.tensor([[32, 32]] * 2)
    inside, outside = (OccupancyGrid(AABB, 24, backend=backend) for _ in range(2))
    outside.mark_invisible_cells(*views)
    with torch.autocast("cpu", dtype=dtype):
        inside.mark_invisible_cells(*views)
    assert torch.equal(inside.bits, outside.bits) and 0 < outside.occupied_fraction < 1


# ---- the MLP ---------------------------------------------------------------------------------------------------------


def accepts(dtype: torch.dtype) -> bool:
    """Whether the MLP has products of this dtype."""
    try:
        hashgrid.ops.mlp(torch.zeros(1, 2), [torch.zeros(2, 2)], compute_dtype=dtype)
    except ValueError:
        return False
    return True


def derivatives(mlp: FusedMLP, x: Tensor) -> list[Tensor]:
    """Output, gradients, and gradients of a norm of the input gradient."""
    x = x.detach().requires_grad_()
    parameters = list(mlp.parameters())
    y = mlp(x)
    grad_x, *grads = torch.autograd.grad(y.square().sum(), [x, *parameters], create_graph=True)
    second = torch.autograd.grad(grad_x.square().sum(), [x, *parameters], materialize_grads=True)
    return [y, grad_x, *grads, *second]


def test_mlp_multiplies_in_the_dtype_of_autocast_and_returns_fp32(backend: str, dtype: torch.dtype) -> None:
    mlp = FusedMLP(5, 3, 16, 2, "silu", "exp", bias=True, backend=backend)
    x = torch.randn(33, 5)
    product = dtype if accepts(dtype) else torch.float32
    with torch.autocast("cpu", dtype=dtype):
        y = mlp(x)
        assert torch.equal(y, mlp(x.to(dtype))) or product != dtype  # the first rounding is all the input sees
    assert y.dtype == torch.float32
    mlp.compute_dtype = product
    assert torch.equal(y, mlp(x))
    mlp.compute_dtype = torch.float32
    assert torch.equal(y, mlp(x)) == (product == torch.float32), "the test does not see the rounding"


@pytest.mark.parametrize("region", ["forward", "both"])
def test_mlp_derivatives_follow_the_rule_of_the_forward(region: str, dtype: torch.dtype) -> None:
    """The backward may lie inside the region or, as PyTorch recommends, behind it; neither its products nor those of
    the second derivative, which is made of PyTorch's ops, are autocast once more."""
    mlp = FusedMLP(5, 3, 16, 2, "softplus", bias=True)
    x = torch.randn(33, 5)
    explicit = copy.deepcopy(mlp)
    explicit.compute_dtype = dtype if accepts(dtype) else torch.float32
    expected = derivatives(explicit, x)
    if region == "both":
        with torch.autocast("cpu", dtype=dtype):
            results = derivatives(mlp, x)
    else:
        forward = mlp.forward

        def cast(x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return forward(x)

        mlp.forward = cast  # type: ignore[method-assign]
        results = derivatives(mlp, x)
    for result, value in zip(results, expected, strict=True):
        assert result.dtype == torch.float32 and torch.equal(result, value)


def test_mlp_ignores_autocast_when_told_its_dtype(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(20, 4)
    plain = FusedMLP(4, 3, 16, 1, backend=backend)
    exact = copy.deepcopy(plain)
    exact.compute_dtype = torch.float32
    double = copy.deepcopy(exact).double()
    with torch.autocast("cpu", dtype=dtype):
        expected = double.to_sequential()(x.double())
        assert (exact(x) - expected).abs().max() < 1e-6
        assert (double(x) - expected).abs().max() < 1e-12
        double.compute_dtype = None  # autocast leaves float64 alone, as it does in nn.Linear
        assert (double(x) - expected).abs().max() < 1e-12
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(plain(x), exact(x))


def test_encodings_and_compositing_ignore_autocast(backend: str, dtype: torch.dtype) -> None:
    """Outputs and gradients of a whole ray are bitwise the same but for the MLP."""
    grid = HashGrid(3, **SMALL, backend=backend)
    nn.init.normal_(grid.table)
    t_starts, t_ends, ray_indices, packed_info = _samples()
    samples = RaySamples(t_starts, t_ends, ray_indices, packed_info, backend)
    rays_o, rays_d = torch.rand(4, 3), normalize(torch.randn(4, 3)) * 0.1

    def render() -> list[Tensor]:
        features = grid(samples.positions(rays_o, rays_d))
        rendered = hashgrid.composite(features[:, 0].exp(), features, samples, background=torch.ones(8))
        (grad,) = torch.autograd.grad(sum(output.square().sum() for output in rendered), grid.table)
        return [*rendered, grad]

    expected = render()
    with torch.autocast("cpu", dtype=dtype):
        results = render()
    for result, value in zip(results, expected, strict=True):
        assert result.dtype == torch.float32 and torch.equal(result, value)


# ---- models ----------------------------------------------------------------------------------------------------------


class Warped(nn.Module):
    """A layer that moves the positions, the grid, the fused MLP, and a layer behind it."""

    def __init__(self, backend: str, **options) -> None:
        super().__init__()
        self.front = nn.Linear(2, 3)
        self.grid = HashGrid(3, **SMALL, backend=backend, **options)
        self.mlp = FusedMLP(self.grid.n_output_dims, 4, 16, 1, backend=backend)
        self.back = nn.Linear(4, 1)
        nn.init.uniform_(self.grid.table, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.mlp(self.grid(torch.sigmoid(self.front(x)))))


@pytest.mark.parametrize("compute_dtype", [None, torch.float16])
def test_model_between_autocast_layers_trains(backend: str, dtype: torch.dtype, compute_dtype) -> None:
    model = Warped(backend, compute_dtype=compute_dtype)
    optimizer = Adam(model.parameters(), lr=1e-2, backend=backend)
    x = torch.rand(256, 2)
    target = (6 * x).sin().prod(-1, keepdim=True)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            y = model(x)
            assert y.dtype == dtype  # of the last nn.Linear
            loss = nn.functional.mse_loss(y.float(), target)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.full
def test_compiled_model_under_autocast_is_one_graph(backend: str, dtype: torch.dtype) -> None:
    """The rule is traced, and guarded: the same compiled model follows autocast switched on and off."""
    model = Warped(backend)
    x = torch.rand(33, 2)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for enabled in (True, False, True):
        outputs, grads = [], []
        for function in (compiled, model):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                y = function(x)
            outputs.append(y)
            grads.append(torch.autograd.grad(y.float().square().sum(), list(model.parameters())))
        assert outputs[0].dtype == outputs[1].dtype == (dtype if enabled else torch.float32)
        rounding = torch.finfo(outputs[0].dtype).eps
        torch.testing.assert_close(outputs[0], outputs[1], rtol=8 * rounding, atol=8 * rounding)
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=8 * rounding * b.abs().max().item())


@pytest.mark.full
def test_code_generated_under_autocast() -> None:
    model = Warped("native")
    x = torch.rand(33, 2)
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, y = model(x), torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.02)
    y.float().sum().backward()
    assert model.grid.table.grad is not None and model.grid.table.grad.any()


# ---- loss scaling ----------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"skip_zero": True, "ema_decay": 0.9},
    {"skip_zero": True, "zero_grad_in_step": True},
    {"skip_zero": True, "zero_grad_in_step": True, "accumulate_grad": True},
]


class Scaled:
    """A grid and an MLP, trained with or without a GradScaler."""

    def __init__(self, backend: str, scaler: torch.amp.GradScaler | None, **options) -> None:
        torch.manual_seed(3)
        accumulate = options.pop("accumulate_grad", False)
        self.grid = HashGrid(3, **SMALL, accumulate_grad=accumulate, backend=backend)
        self.mlp = FusedMLP(8, 1, 16, 1, backend=backend)
        skip_zero = options.pop("skip_zero", False)
        self.optimizer = Adam(
            [{"params": [self.grid.table], "skip_zero": skip_zero}, {"params": list(self.mlp.parameters())}],
            lr=1e-2,
            backend=backend,
            **options,
        )
        self.scaler = scaler
        self.generator = torch.Generator().manual_seed(0)

    def step(self, factor: float = 1.0) -> None:
        x = torch.rand(64, 3, generator=self.generator)
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (self.mlp(self.grid(x)) - x.sum(-1, keepdim=True)).square().mean() * factor
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
            return
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> list[Tensor]:
        values = [*self.grid.parameters(), *self.mlp.parameters()]
        for state in self.optimizer.state.values():
            values += state.values()
        return [value.detach().clone() for value in values]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_loss_scale_changes_no_bit(backend: str, options: dict) -> None:
    """A power of two passes through fp32 sums and bf16 products exactly, and `unscale_` takes it off again."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    plain, scaled = Scaled(backend, None, **options), Scaled(backend, scaler, **options)
    for _ in range(5):
        plain.step()
        scaled.step()
    assert scaler.get_scale() == 2.0**12
    for a, b in zip(plain.state(), scaled.state(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_step_with_infinite_gradients_is_skipped(backend: str, options: dict) -> None:
    """Neither parameters nor moments, averages or counters take part in it, and training goes on as if it had not
    been."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    skipping, other = Scaled(backend, scaler, **options), Scaled(backend, None, **options)
    skipping.step()
    other.step()
    before, n_steps = skipping.state(), skipping.optimizer.global_step
    for factor in (float("inf"), float("nan")):
        batch = skipping.generator.get_state()
        skipping.step(factor)
        skipping.generator.set_state(batch)
    assert scaler.get_scale() == 2.0**10
    assert skipping.optimizer.global_step == n_steps
    for a, b in zip(before, skipping.state(), strict=True):
        assert torch.equal(a, b)
    for _ in range(2):
        skipping.step()
        other.step()
    for a, b in zip(skipping.state(), other.state(), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)
