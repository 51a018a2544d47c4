"""What only a GPU can show: those cases are marked `gpu` and collected only where there is one.

The bodies are exercised on every machine: comparisons with the CPU's kernels also run on the CUDA kernels emulated on
the host, and tests of modules also run with everything on the CPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from host.redirect import has_tensor_cores, take_cuda_ops
from problems.agreement import check_agreement, detached, moved, tensors_of
from problems.composite import check_composite_budget, composite_and_derivatives, make_samples
from problems.hash_encode import (
    check_encoding_budget,
    encoding_and_derivatives,
    reference_in_several_orders,
    safe_positions,
)
from problems.march_rays import OPTIONS, scene
from problems.mlp import check_mlp_budget, make_batch, mlp_and_gradients, sums_of_terms
from problems.occupancy import AABB, make_cameras, make_state
from problems.ray_aabb import random_rays
from problems.samples import CUDA_ONLY, ON_CUDA, TENSOR_CORES_ONLY
from problems.sphere_trace import rough, strange_rays
from torch import Tensor, nn

import hashgrid
from hashgrid import FusedMLP, HashGrid, OccupancyGrid, make_level_table, ops, reference
from hashgrid.ops import _ngp
from hashgrid.optim import Adam
from hashgrid.util.choices import FACTORS

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
N = 4099  # a prime: no multiple of any block, warp or tile
WRONG_DEVICE = r"must be on cuda:0 like the other tensors|all tensors must be on the same device"
SMALL = {"n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 4, "max_resolution": 64}


class Other:
    """Kernels to compare with the CPU's."""

    def __init__(self, name: str) -> None:
        self.device = "cuda" if name == "cuda" else "cpu"
        self.library = torch.ops.hashgrid if name == "cuda" else torch.ops.hashgrid_on_host

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Inside, `hashgrid.ops` call them, in a backward pass as well."""
        with pytest.MonkeyPatch.context() as patch:
            if self.device == "cpu":
                take_cuda_ops(self.library, patch.setattr)
            yield

    def on(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` of tensors on the CPU, computed with these kernels."""

        def call(*arguments: Any, **options: Any) -> Any:
            return moved(function(*moved(arguments, self.device), **moved(options, self.device)), "cpu")

        return call

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self.kernels():
            return self.on(function)(*arguments, **options)


@pytest.fixture(params=[pytest.param("emulated", marks=pytest.mark.full), CUDA])
def other(request: pytest.FixtureRequest) -> Other:
    if request.param == "emulated":
        request.getfixturevalue("cuda_on_host")
    return Other(request.param)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same_bits(actual: Any, expected: Any) -> None:
    actual, expected = ((x,) if isinstance(x, Tensor) else x for x in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def close(results: list[Tensor], expected: list[Tensor], rounding: float = 2**-17) -> None:
    """To some roundings of the largest element, for sums in another order."""
    for a, b in zip(results, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert b.numel() == 0 or (a - b).abs().max() <= rounding * b.abs().max()


# ---- CPU and CUDA agree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(ON_CUDA) - set(CUDA_ONLY)))
def test_every_op_agrees_with_the_cpu(name: str, other: Other) -> None:
    for arguments in ON_CUDA[name]():
        check_agreement(name, arguments, other.library, other.device)


@pytest.mark.parametrize("convention", ["tcnn", "paper"])
@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
def test_hash_encode_reads_the_same_cells(convention: str, bounds: str, other: Other) -> None:
    """The table holds the number of each entry, and "nearest" returns it: 16 levels, the finest hashed into 2^19."""
    levels = make_level_table(convention=convention)
    assert any(levels.hashed) and not all(levels.hashed) and levels.n_entries < 2**24  # exact in fp32
    table = torch.arange(levels.n_entries, dtype=torch.float32).unsqueeze(-1)
    x = torch.rand(N, 3) * 1.2 - 0.1
    x[:512] = torch.randint(17, (512, 3)) / 16  # vertices, 0 and 1 among them
    x[512:520] = torch.tensor([math.nan, math.inf, -math.inf, 1e9, -1e9, 1 - 2**-24, 2**-149, -0.0]).unsqueeze(-1)
    expected = ops.hash_encode(x, table, levels, "nearest", bounds)
    assert expected[~expected.isnan()].unique().numel() > 10_000
    assert_same_bits(other(ops.hash_encode, x, table, levels, "nearest", bounds), expected)


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_hash_encode_stays_in_the_error_budget(interpolation: str, other: Other) -> None:
    """Values, first and second derivatives of 16 levels, the finest hashed into 2^19 entries."""
    levels = make_level_table()
    x = safe_positions(levels, N)
    arguments = x, torch.randn(levels.n_entries, 2), torch.rand(16), torch.randn(N, 32), levels
    truth = encoding_and_derivatives(reference.hash_encode, torch.float64, *arguments, interpolation=interpolation)
    theirs = reference_in_several_orders(torch.float32, *arguments, interpolation=interpolation)
    with other.kernels():
        ours = encoding_and_derivatives(
            other.on(ops.hash_encode), torch.float32, *arguments, interpolation=interpolation
        )
    check_encoding_budget(ours, theirs, truth, torch.finfo(torch.float32).eps)
    assert torch.equal(ours["grad_table"] != 0, truth["grad_table"] != 0), "other entries have gradients"


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("widths", [[32, 64, 64, 16], [3, 17, 5]], ids=["even", "odd"])
def test_mlp_stays_in_the_error_budget(widths: list[int], compute_dtype: torch.dtype | None, other: Other) -> None:
    x, weights, biases, grad_y = make_batch(widths, N, True)
    options = "relu" if compute_dtype is None else "softplus", "sigmoid", compute_dtype
    exact = mlp_and_gradients(reference.mlp, torch.float64, x, weights, biases, grad_y, *options[:2])
    theirs = mlp_and_gradients(reference.mlp, torch.float32, x, weights, biases, grad_y, *options)
    with other.kernels():
        ours = mlp_and_gradients(other.on(ops.mlp), torch.float32, x, weights, biases, grad_y, *options)
    unit = 2**-24 if compute_dtype is None else 2**-9
    check_mlp_budget(ours, theirs, exact, unit, sums_of_terms(x, weights, biases, grad_y, *options[:2]))


@pytest.mark.parametrize("density", [0.1, 20.0])
def test_composite_stays_in_the_error_budget(density: float, other: Other) -> None:
    samples = make_samples([3, 0, 1, 700, 33, 0, 129, *[17] * 100], density=density)
    exact = composite_and_derivatives(reference.composite, samples, torch.float64)
    theirs = composite_and_derivatives(reference.composite, samples, torch.float32)
    with other.kernels():
        ours = composite_and_derivatives(other.on(ops.composite), samples, torch.float32)
    check_composite_budget(ours, theirs, exact)
    assert torch.equal(ours[3] != 0, exact[3] != 0), "other samples count"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_march_rays_has_the_bits_of_the_cpu(options: dict, other: Other) -> None:
    for resolution, n_cascades in (((17, 9, 33), 1), ((16, 12, 8), 3)):
        arguments = scene(601, resolution, n_cascades, 0.2, torch.float32)
        expected = ops.march_rays(*arguments, **options)
        assert len(expected[0]) > 100
        assert_same_bits(other(ops.march_rays, *arguments, **options), expected)


def test_ray_aabb_has_the_bits_of_the_cpu(other: Other) -> None:
    arguments = *random_rays(N), AABB, 0.3, 2.1
    assert_same_bits(other(ops.ray_aabb, *arguments), ops.ray_aabb(*arguments))


def test_sphere_trace_has_the_bits_of_the_cpu(other: Other) -> None:
    """Also where rays are compacted after several steps."""

    def trace(*rays: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.sphere_trace(rough, *rays))

    rays = strange_rays(N, torch.float32)
    assert_same_bits(other(trace, *rays), trace(*rays))


@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_visible_samples_are_those_of_the_cpu(eps: float, other: Other) -> None:
    samples = make_samples([3, 0, 1, 700, 33, 0, 129], torch.float32, density=5.0)
    del samples["features"]
    expected = _ngp.visible_samples(**samples, early_stop_eps=eps)
    assert 0 < len(expected[0]) < len(samples["sigmas"])
    assert_same_bits(other(_ngp.visible_samples, **samples, early_stop_eps=eps), expected)
    rays = torch.rand(7, 3), torch.randn(7, 3)
    for begin, end in ((0, 5), (32, 64), (100, 1000)):
        window = *rays, *samples.values(), begin, end, eps
        expected = _ngp.window_samples(*window)
        assert len(expected[0]) > 0 or begin > 0
        assert_same_bits(other(_ngp.window_samples, *window), expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0])  # threshold: the mean, max_threshold
def test_occupancy_update_has_the_bits_of_the_cpu(scale: float, other: Other) -> None:
    state = make_state(100_000, scale)

    def update(density: Tensor, bits: Tensor, cells: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        density, bits = density.clone(), bits.clone()
        _ngp.occupancy_update(density, bits, cells, values)
        return density, bits

    expected = update(*state)
    assert 0 < expected[1].count_nonzero()
    assert_same_bits(other(update, *state), expected)


def test_occupancy_grid_has_the_bits_of_the_cpu(other: Other) -> None:
    """Points in the cells, their choice and the marks of unseen cells included, over full and partial updates."""

    def train(device: str) -> list[Tensor]:
        grid = OccupancyGrid(AABB, (12, 10, 8), n_cascades=2).to(device)
        grid.mark_invisible_cells(*moved(cameras, device))
        asked = []

        def density(points: Tensor) -> Tensor:
            points = points.cpu()  # the same sigmas for both
            asked.append(points)
            return torch.exp(8 - 8 * points.square().sum(-1)).to(device)

        for step in (0, 16, 256, 272, 288):
            grid.update(density, step)
        return moved([grid.density, grid.bits, *asked], "cpu")

    cameras = make_cameras(3)
    expected = train("cpu")
    with other.kernels():
        results = train(other.device)
    assert 0 < expected[1].count_nonzero()
    assert_same_bits(results, expected)


@pytest.mark.parametrize("skip_zero", [False, True])
def test_adam_agrees_with_the_cpu(skip_zero: bool, other: Other) -> None:
    """Ten steps of optimiser and half-precision copy; the arithmetic is elementwise, a few roundings apart at most."""

    def train(device: str) -> list[Tensor]:
        param = nn.Parameter(start.clone().to(device))
        optimizer = Adam([param], lr=1e-2, skip_zero=skip_zero, ema_decay=0.9, weight_decay=1e-6)
        half_table = torch.empty_like(param, dtype=torch.float16, requires_grad=False)
        optimizer.register_half_copy(param, half_table)
        for grad in grads:
            param.grad = grad.to(device, copy=True)
            optimizer.step()
        return moved([param.detach(), *optimizer.ema_parameters(), half_table.float()], "cpu")

    start = torch.rand(N, 2) + 1
    grads = torch.randn(10, N, 2) * (torch.rand(10, N, 1) < 0.3)
    expected = train("cpu")
    with other.kernels():
        results = train(other.device)
    for ours, theirs, rounding in zip(results, expected, (2**-20, 2**-20, 2**-10), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=0)


# ---- modules ---------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Grid and MLP as users put them together."""

    def __init__(self, compute_dtype: torch.dtype | None = None, **options: Any) -> None:
        super().__init__()
        self.grid = HashGrid(3, **SMALL, compute_dtype=compute_dtype)
        self.mlp = FusedMLP(self.grid.n_output_dims, 3, 32, 2, bias=True, compute_dtype=compute_dtype, **options)
        nn.init.uniform_(self.grid.table, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.grid(x))

    def gradients(self, x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self(x).square().sum(), list(self.parameters())))


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_modules_move_there_and_back(compute_dtype: torch.dtype | None, device: str) -> None:
    modules = nn.ModuleDict(
        {
            "model": Model(compute_dtype),
            "harmonics": hashgrid.SphericalHarmonics(4),
            "frequency": hashgrid.Frequency(3, 6),
            "occupancy": OccupancyGrid(AABB, 8),
        }
    )
    state = copy.deepcopy(modules.state_dict())
    x = torch.rand(100, 3)
    names = ("model", "harmonics", "frequency")
    expected = [modules[name](x) for name in names]
    modules.to(device)
    assert {t.device.type for t in (*modules.parameters(), *modules.buffers())} == {device}
    rounding = 2**-17 if compute_dtype is None else 2**-6
    results = [modules[name](x.to(device)) for name in names]
    assert all(result.device.type == device for result in results)
    close(moved(results, "cpu"), expected, rounding)
    with torch.no_grad():
        modules["model"].grid.table.mul_(2)  # a half-precision table has to follow on the device, too
    twice = modules["model"](x.to(device))
    assert not torch.equal(twice, results[0])
    modules.to("cpu")
    close([modules["model"](x)], [twice.cpu()], rounding)
    modules.load_state_dict(state)
    assert_same_bits([modules[name](x) for name in names], expected)


def test_modules_are_made_on_a_device(device: str) -> None:
    with torch.device(device):
        model, occupancy = Model(torch.bfloat16), OccupancyGrid(AABB, 8)
    assert {t.device.type for t in (*model.parameters(), *model.buffers(), *occupancy.buffers())} == {device}
    assert model(torch.rand(5, 3, device=device)).isfinite().all()


def test_empty_batches(device: str) -> None:
    model = Model().to(device)
    x = torch.rand(0, 3, device=device, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.shape == (0, 3) and x.grad is not None and x.grad.shape == (0, 3)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    (grad_x,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    assert torch.autograd.grad(grad_x.sum(), x, materialize_grads=True)[0].shape == (0, 3)
    assert ops.sh_encode(x, 4).shape == (0, 16) and ops.frequency_encode(x, 5).shape == (0, 30)
    grid = OccupancyGrid(AABB, 8).to(device)
    samples = grid.march(x, x)
    assert samples.n_rays == samples.n_samples == 0
    rays = torch.full((3, 3), 9.0, device=device), torch.ones(3, 3, device=device)
    samples = grid.march(*rays)  # rays that miss
    assert samples.n_rays == 3 and samples.n_samples == 0
    rendered, *_ = hashgrid.composite(
        rays[0].new_empty(0), rays[0].new_empty(0, 3), samples, background=torch.ones(3, device=device)
    )
    assert torch.equal(rendered, torch.ones(3, 3, device=device))
    kept, index = samples.visible(rays[0].new_empty(0))
    assert kept.n_samples == 0 and index.shape == (0,)


def test_table_gradient_is_deterministic_when_asked(device: str) -> None:
    """Many points for each entry: atomics would add them up in another order every time."""
    grid = HashGrid(3, n_levels=4, log2_hashmap_size=6, base_resolution=8).to(device)
    mlp = FusedMLP(8, 3, 32, 1).to(device)
    x, cotangent = torch.rand(200_000, 3, device=device), torch.randn(200_000, 3, device=device)
    parameters = [*grid.parameters(), *mlp.parameters()]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(mlp(grid(x)), parameters, cotangent) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(first, second)
    plain = torch.autograd.grad(mlp(grid(x)), parameters, cotangent)
    close(list(first), list(plain), 2**-14)


def test_compiled_model_is_one_graph(device: str) -> None:
    if device == "cuda":
        pytest.importorskip("triton")
    model = Model().to(device)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    for n in (64, 33):
        x = torch.rand(n, 3, device=device)
        y, expected = compiled(x), model(x)
        close([y.detach()], [expected.detach()])
        grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        close(list(grads), model.gradients(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, device: str) -> None:
    """A layer in front makes the positions half; grid, products of the MLP and result follow the rule."""
    model = Model().to(device)
    front = nn.Linear(2, 3).to(device)
    x = torch.rand(500, 2, device=device)
    with torch.autocast(device, dtype=dtype):
        positions = torch.sigmoid(front(x))
        assert positions.dtype == dtype
        y = model(positions)
        features = model.grid(positions)
    assert y.dtype == features.dtype == torch.float32
    assert torch.equal(features, model.grid(positions.float()))
    explicit = copy.deepcopy(model)
    explicit.mlp.compute_dtype = dtype if dtype in FACTORS else torch.float32
    assert torch.equal(y, explicit(positions.float()))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (*model.parameters(), *front.parameters()))
    close([p.grad for p in model.parameters()], explicit.gradients(positions.detach()), 2**-14)


def test_gradient_scaler_skips_infinite_steps(device: str) -> None:
    model = Model().to(device)
    optimizer = Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    x = torch.rand(64, 3, device=device)
    before = copy.deepcopy(model.state_dict())
    for factor, steps in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(x).square().mean() * factor
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.global_step == steps
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(same) if steps == 0 else not any(same)
    assert scaler.get_scale() == 2.0**9
    assert all(value.isfinite().all() for value in model.state_dict().values())


# ---- CUDA alone ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(ON_CUDA))
def test_opcheck(name: str) -> None:
    def leaves(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cuda().requires_grad_(value.requires_grad)
        return [leaves(x) for x in value] if isinstance(value, list) else value

    if name in TENSOR_CORES_ONLY and not has_tensor_cores(torch.ops.hashgrid):
        pytest.skip("needs tensor cores of sm_80")
    for arguments in ON_CUDA[name]():
        torch.library.opcheck(getattr(torch.ops.hashgrid, name).default, tuple(map(leaves, arguments)))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("name", sorted(ON_CUDA))
def test_tensor_on_the_wrong_device_is_refused(name: str, device: str) -> None:
    """Every argument of every op; only a learning rate may stay on the CPU."""
    if device == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    op = getattr(torch.ops.hashgrid, name)
    for arguments in ON_CUDA[name]():
        arguments = detached(arguments)
        places = [i for i, argument in enumerate(arguments) if tensors_of(argument)]
        for place in places if len(places) > 1 else []:
            if (op.default._schema.arguments[place].name, device) == ("lr", "cpu"):
                continue
            changed = moved(list(arguments), "cuda:0")
            changed[place] = moved(arguments[place], device)
            with pytest.raises(RuntimeError, match=WRONG_DEVICE):
                op(*changed)


@pytest.mark.gpu
def test_module_and_input_on_different_devices() -> None:
    for where, x in (("cpu", torch.rand(5, 3, device="cuda")), ("cuda", torch.rand(5, 3))):
        with pytest.raises(RuntimeError, match=WRONG_DEVICE):
            HashGrid(3, **SMALL).to(where)(x)
        with pytest.raises(RuntimeError, match=WRONG_DEVICE):
            FusedMLP(3, 2).to(where)(x)


@pytest.mark.gpu
@pytest.mark.asynchronous
def test_ops_run_on_the_current_stream() -> None:
    """A side stream that is held up before it writes the input: an op on another stream would read zeros. After
    `wait_stream` the results are there, those of the backward pass and of the optimiser included."""
    model = Model().cuda()
    expected_model = copy.deepcopy(model)
    source = torch.rand(10_000, 3, device="cuda")
    expected = expected_model(source)
    expected.square().sum().backward()
    # with so large an eps that the order of atomics does not decide about the direction of a step
    Adam(expected_model.parameters(), lr=1e-2, eps=1.0).step()
    optimizer = Adam(model.parameters(), lr=1e-2, eps=1.0)
    x = torch.zeros_like(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds
        x.copy_(source)
        y = model(x)
        y.square().sum().backward()
        assert not stream.query(), "the device was not held up long enough for this test to see anything"
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, expected)
    close(list(model.parameters()), list(expected_model.parameters()), 2**-12)


@pytest.mark.gpu
@pytest.mark.asynchronous
def test_rays_run_on_the_current_stream() -> None:
    """Ops whose number of results the host has to wait for."""
    rays_o, rays_d, aabb, bits, *rest = moved(scene(4000, (16, 12, 8), 3, 0.2, torch.float32), "cuda")
    expected = ops.march_rays(rays_o, rays_d, aabb, bits, *rest, step_size=0.02)
    late = torch.zeros_like(bits)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(bits)
        result = ops.march_rays(rays_o, rays_d, aabb, late, *rest, step_size=0.02)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(result, expected)


@pytest.mark.gpu
def test_memory_is_torchs_and_returns() -> None:
    """No arena of our own (tiny-cuda-nn #166, #278): what an op allocates is known to torch, and gone afterwards."""
    model = Model().cuda()
    x = torch.rand(100_000, 3, device="cuda")
    model.gradients(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        y = model(x)
        assert torch.cuda.memory_allocated() - before >= y.numel() * 4
        del y
        model.gradients(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before >= 100_000 * (8 + 3) * 4  # features and result at the least


@pytest.mark.gpu
def test_tensors_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    model = Model()
    x = torch.rand(N, 3)
    rays = scene(600, (17, 9, 33), 1, 0.2, torch.float32)
    results = []
    with torch.cuda.device(0):
        for device in ("cuda:0", "cuda:1"):
            there = copy.deepcopy(model).to(device)
            optimizer = Adam(there.parameters(), lr=1e-2, eps=1.0)
            y = there(x.to(device))
            y.square().sum().backward()
            optimizer.step()
            samples = ops.march_rays(*moved(rays, device), step_size=0.013)
            parameters = [p.detach() for p in there.parameters()]
            assert {t.device for t in (y, *parameters, *samples)} == {torch.device(device)}
            assert torch.cuda.current_device() == 0
            results.append(moved([y.detach(), *samples, *parameters], "cpu"))
    assert_same_bits(results[0][:5], results[1][:5])
    close(results[0][5:], results[1][5:], 2**-12)  # atomics


@pytest.mark.gpu
@pytest.mark.asynchronous
@pytest.mark.parametrize("compute_dtype", [None, torch.float16, torch.bfloat16])
def test_graph_capture_of_forward_and_backward(compute_dtype: torch.dtype | None) -> None:
    """Replayed on new inputs in the same memory, it gives what eager mode does."""
    model = Model(compute_dtype).cuda()
    eager = copy.deepcopy(model)
    x = torch.rand(5000, 3, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up, as PyTorch asks for
        for _ in range(3):
            model(x).square().sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
        y.square().sum().backward()
    for _ in range(3):
        x.copy_(torch.rand_like(x))
        graph.replay()
        assert torch.equal(y, eager(x))
        close([p.grad for p in model.parameters()], eager.gradients(x), 2**-14)


N_LARGE = 2**26 + 3  # times 32 channels: element 2^31 begins row 2^26


@pytest.fixture
def room() -> Iterator[None]:
    """Skips without room for two outputs of 8.6 GB and what belongs to them."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs 30 GB of free GPU memory")
    yield
    torch.cuda.empty_cache()


def check_large(module: nn.Module, x: Tensor) -> None:
    """Output and gradients of some rows of a large batch are those of these rows alone."""
    # around elements 2^30 and 2^31, and at both ends; one by one, so that nothing rests on PyTorch's indexing
    rows = [0, 1, 2**25 - 1, 2**25, 2**26 - 1, 2**26, N_LARGE - 2, N_LARGE - 1]
    few = torch.stack([x[row] for row in rows]).requires_grad_()
    expected = module(few)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, [few, *module.parameters()], cotangent)
    x.requires_grad_()
    y = module(x)
    assert y.numel() > 2**31
    assert torch.equal(torch.stack([y[row] for row in rows]), expected)
    grad_y = torch.zeros_like(y)
    for row, value in zip(rows, cotangent, strict=True):
        grad_y[row] = value
    grad_x, *grads = torch.autograd.grad(y, [x, *module.parameters()], grad_y)
    close([torch.stack([grad_x[row] for row in rows]), *grads], list(expected_grads))
    assert grad_x.count_nonzero() <= grad_x.shape[1] * len(rows)


@pytest.mark.gpu
@pytest.mark.usefixtures("room")
def test_hash_encode_beyond_32_bit_indices() -> None:
    grid = HashGrid(3, n_levels=16, n_features_per_level=2, log2_hashmap_size=14).cuda()
    nn.init.uniform_(grid.table, -1, 1)
    check_large(grid, torch.rand(N_LARGE, 3, device="cuda"))


@pytest.mark.gpu
@pytest.mark.usefixtures("room")
def test_mlp_beyond_32_bit_indices() -> None:
    check_large(FusedMLP(2, 32, 16, 1, bias=True).cuda(), torch.rand(N_LARGE, 2, device="cuda"))
