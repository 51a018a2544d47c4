"""What tiny-cuda-nn gets wrong, cannot do or is asked for, as tests of what we do instead.

``defect N`` is a finding of reading its source (commit 6ee3546), ``#N`` a thread of its tracker. Expectations are
closed forms or float64; where a line suffices, a test also computes what tcnn would and shows that it is told apart.

Not here: autocast (test_autocast.py), several GPUs, batches beyond 32-bit indices and returned memory (test_cuda.py),
hundreds of images (test_nerf_dataset.py), what a build needs (test_packaging.py). Not offered: stochastic interpolation
(defect 6), resolutions per axis (#519).
"""

from __future__ import annotations

import ast
import copy
import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import hashgrid
from hashgrid import Frequency, FusedMLP, HashGrid, LevelTable, SphericalHarmonics, make_level_table
from hashgrid.util.choices import ACTIVATIONS, FACTORS

pytestmark = pytest.mark.every_kernel

ROOT = Path(__file__).resolve().parents[1]
LOSS_SCALE = 128  # tcnn's, fixed
HALF_ROUNDING = 2.0**-11


@pytest.fixture
def once(kernels: str) -> None:
    """Of a test that no kernel can change."""
    if kernels != "cpu":
        pytest.skip("tested with the CPU's kernels")


def dense_grid(n_input_dims: int, n_levels: int = 1, resolution: int = 4, features: int = 2, **options) -> HashGrid:
    """Levels of ``resolution``, twice as much, ... cells per axis without hashing: vertex k lies at k / resolution."""
    sizes = {"n_levels": n_levels, "n_features_per_level": features, "log2_hashmap_size": 20, "convention": "paper"}
    grid = HashGrid(n_input_dims, base_resolution=resolution, per_level_scale=2, **sizes, **options)
    assert not any(grid.levels.hashed)
    nn.init.uniform_(grid.table, -1, 1)
    return grid


def interpolate(levels: LevelTable, table: Tensor, x: Tensor, smooth: bool = False) -> Tensor:
    """The sum over the corners of a cell as textbooks have it: dense levels, float64, differentiable any number of
    times."""
    features = []
    for (scale, *_), (resolution, *_), offset in zip(levels.scales, levels.resolutions, levels.offsets, strict=True):
        position = x.double() * scale + levels.shift
        cell = position.detach().floor()
        f = position - cell
        f = f * f * (3 - 2 * f) if smooth else f
        total = torch.zeros(len(x), table.shape[1], dtype=torch.float64)
        for corner in itertools.product((0, 1), repeat=levels.n_input_dims):
            weight = torch.ones(len(x), dtype=torch.float64)
            index = torch.full((len(x),), offset)
            for axis, step in enumerate(corner):
                weight = weight * (f[:, axis] if step else 1 - f[:, axis])
                index = index + (cell[:, axis].long() + step) * resolution**axis
            total = total + weight.unsqueeze(-1) * table.double()[index]
        features.append(total)
    return torch.cat(features, dim=-1)


def in_cells(n: int, n_input_dims: int, resolution: int) -> Tensor:
    """[n, D] random points, at least a tenth of a cell from the borders of cells of 1 / ``resolution``."""
    cells = torch.randint(resolution, (n, n_input_dims))
    return (cells + 0.1 + 0.8 * torch.rand(n, n_input_dims)) / resolution


def assert_exact(ours: Tensor, exact: Tensor) -> None:
    """To a hundredth of a rounding of half precision, in units of the largest element. fp32 sums stay below it, and
    tcnn, whose outputs and sums are half, cannot."""
    assert ours.shape == exact.shape
    assert (ours.double() - exact).abs().max() <= HALF_ROUNDING / 100 * exact.abs().max()


# ---- defects found by reading ----------------------------------------------------------------------------------------


def as_tcnn_unscales(gradient: Tensor) -> Tensor:
    return (gradient * LOSS_SCALE).half() / LOSS_SCALE


@pytest.mark.parametrize("compute_dtype", [None, torch.float16, torch.bfloat16])
def test_defect_1_small_table_gradients_survive(compute_dtype: torch.dtype | None) -> None:
    """tcnn divides the gradient by the loss scale in fp16, before autograd makes it fp32: the small ones are lost."""
    weights = torch.tensor([9.0, 3.0, 3.0, 1.0]) / 16  # of the corners around (1/4, 1/4) of a cell
    expected = weights * 2.0**-60
    assert not as_tcnn_unscales(expected).any()
    grid = dense_grid(2, features=1, compute_dtype=compute_dtype)
    (grid(torch.tensor([[0.3125, 0.5625]])) * 2.0**-60).sum().backward()
    assert grid.table.grad.dtype == torch.float32
    assert torch.equal(grid.table.grad[grid.table.grad != 0], expected)


@pytest.mark.parametrize("compute_dtype", FACTORS)
def test_defect_1_small_weight_gradients_survive(compute_dtype: torch.dtype | None) -> None:
    x = torch.tensor([[2.0**-2, 2.0**-5]])
    expected = x * 2.0**-24
    assert not as_tcnn_unscales(expected).any()
    mlp = FusedMLP(2, 1, n_hidden_layers=0, compute_dtype=compute_dtype)
    (mlp(x).sum() * 2.0**-24).backward()
    assert torch.equal(mlp.weights[0].grad, expected)


@pytest.mark.parametrize("compute_dtype", [None, torch.float16])
def test_defect_1_large_gradients_survive_scaling(compute_dtype: torch.dtype | None) -> None:
    """The other end of a fixed loss scale: tcnn's fp16 gradient of 1000 is infinite once it is multiplied by 128."""
    assert as_tcnn_unscales(torch.tensor(1000.0)).isinf()
    grid = dense_grid(3, compute_dtype=compute_dtype)
    (grid(torch.full((100, 3), 0.5)).float().sum() * 1000).backward()
    assert torch.equal(grid.table.grad[grid.table.grad != 0], torch.full((2,), 100_000.0))


def hessian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[N, D, D] second derivatives of ``function`` [N]; only ``x`` [N, D] requires a gradient."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in first.unbind(-1)]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("n_input_dims", [2, 3, 4, 5])
def test_defects_2_and_3_hessian_to_positions_alone(n_input_dims: int, interpolation: str, dtype: torch.dtype) -> None:
    """tcnn returns zero when nothing but the input requires a gradient (2), and with JIT fusion sums the corners of
    Smoothstep inside the wrong loop from three dimensions on (3)."""
    grid = dense_grid(n_input_dims, interpolation=interpolation).requires_grad_(False).to(dtype)
    x = in_cells(20, n_input_dims, 4).to(dtype)
    cotangent = torch.tensor([1.0, -0.5], dtype=dtype)
    exact = hessian(
        lambda x: interpolate(grid.levels, grid.table, x, interpolation == "smoothstep") @ cotangent.double(),
        x.double(),
    )
    assert exact.abs().max() > 1  # not tcnn's zero
    ours = hessian(lambda x: (grid(x) * cotangent).sum(-1), x)
    assert_exact(ours, exact)
    diagonal = exact.diagonal(dim1=1, dim2=2)
    assert (diagonal.abs().max() > 1) == (interpolation == "smoothstep")


def test_defect_2_third_derivative_is_refused_not_zero() -> None:
    """Silence about a missing derivative is the fault; what we lack raises."""
    grid = dense_grid(2, interpolation="smoothstep").requires_grad_(False)
    x = in_cells(5, 2, 4).requires_grad_()
    (first,) = torch.autograd.grad(grid(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice, not three times"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("n_kept", range(4))
def test_defect_4_level_mask_is_the_same_forward_and_backward(n_kept: int) -> None:
    """tcnn's forward masks levels with ``>= max_level + 1e-3`` and its backward with ``>``."""
    grid = dense_grid(3, n_levels=3)
    x = in_cells(30, 3, 16).requires_grad_()
    mask = (torch.arange(3) < n_kept).float()
    cotangent = torch.randn(30, 6)
    y = grid(x, mask)
    grad_x, grad_table = torch.autograd.grad(y, [x, grid.table], cotangent, create_graph=True)
    (second,) = torch.autograd.grad(grad_x.square().sum(), grid.table, materialize_grads=True)
    assert not y[:, 2 * n_kept :].any()
    end = grid.levels.offsets[n_kept] if n_kept < 3 else len(grid.table)
    assert not grad_table[end:].any() and not second[end:].any()
    if n_kept == 0:
        assert not grad_x.any()
        return
    leaves = x.detach().double().requires_grad_(), grid.table.detach().double().requires_grad_()
    exact = interpolate(grid.levels, leaves[1], leaves[0])[:, : 2 * n_kept]
    exact_x, exact_table = torch.autograd.grad(exact, leaves, cotangent[:, : 2 * n_kept].double(), create_graph=True)
    (exact_second,) = torch.autograd.grad(exact_x.square().sum(), leaves[1])
    assert_exact(y[:, : 2 * n_kept], exact.detach())
    for ours, expected in ((grad_x, exact_x), (grad_table, exact_table), (second, exact_second)):
        assert_exact(ours.detach(), expected.detach())


@pytest.mark.parametrize("path", ["plain", "float16", "bfloat16", "known", "accumulate_grad"])
def test_defect_5_every_path_obeys_the_level_mask(path: str) -> None:
    """tcnn's JIT-fused path ignores ``max_level``."""
    options = {"compute_dtype": getattr(torch, path)} if path.startswith(("float", "bfloat")) else {}
    grid = dense_grid(3, n_levels=3, accumulate_grad=path == "accumulate_grad", **options)
    x = in_cells(30, 3, 16)
    mask = torch.tensor([1.0, 0.0, 0.5])
    with torch.no_grad():
        known = grid(x, mask) if path == "known" else None
    y = grid(x, mask, known)
    y.float().sum().backward()
    full = grid(x).detach().float()
    assert not y[:, 2:4].any() and full[:, 2:4].any()
    torch.testing.assert_close(y[:, 4:].float(), full[:, 4:] / 2, rtol=torch.finfo(y.dtype).eps, atol=0)
    sums = [part.sum() for part in grid.table.grad.split(grid.levels.sizes)]  # corner weights sum to 1
    for ours, expected in zip(sums, (60.0, 0.0, 30.0), strict=True):
        assert abs(ours - expected) <= expected * HALF_ROUNDING / 100


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("compute_dtype", [None, torch.float16, torch.bfloat16])
def test_defect_5_gradients_are_summed_in_fp32(compute_dtype: torch.dtype | None, features: int) -> None:
    """tcnn adds them up in half precision, where 2048 + 1 is 2048."""
    n = 5000
    assert np.add.accumulate(np.ones(n, np.float16))[-1] == 2048
    grid = dense_grid(2, features=features, compute_dtype=compute_dtype)
    grid(torch.full((n, 2), 0.5)).float().sum().backward()
    assert torch.equal(grid.table.grad[grid.table.grad != 0], torch.full((features,), float(n)))


@pytest.mark.parametrize("compute_dtype", FACTORS)
def test_defect_5_mlp_sums_are_fp32(compute_dtype: torch.dtype | None) -> None:
    """Likewise the products of an MLP and its weight gradients: 5000 rows here, 4097 columns below half's reach."""
    n = 5000
    mlp = FusedMLP(3, 2, n_hidden_layers=0, bias=True, compute_dtype=compute_dtype)
    mlp(torch.ones(n, 3)).sum().backward()
    assert torch.equal(mlp.weights[0].grad, torch.full((2, 3), float(n)))
    assert torch.equal(mlp.biases[0].grad, torch.full((2,), float(n)))
    wide = FusedMLP(256, 1, n_hidden_layers=0, compute_dtype=compute_dtype)
    nn.init.constant_(wide.weights[0], 1.0)
    x = torch.ones(1, 256)
    x[0, 0] = 4096
    assert np.add.accumulate(x[0].numpy().astype(np.float16))[-1] == 4096
    assert wide(x).item() == 4096 + 255


@pytest.mark.parametrize("n_input_dims", [2, 3, 4])
def test_defect_6_corner_weights_are_products(n_input_dims: int) -> None:
    """tcnn's stochastic interpolation compares one random number with every dimension's fraction, so that a corner is
    not drawn with the probability of its weight, and repeats the draw in every step. We interpolate with all corners;
    the option is refused by name."""
    f = torch.tensor([0.25, 0.5, 0.75, 0.375])[:n_input_dims]
    grid = dense_grid(n_input_dims, resolution=2, features=1)
    grid(f[None] / 2).sum().backward()
    stochastic, exact = {}, {}
    for corner in itertools.product((0, 1), repeat=n_input_dims):
        index = sum(step * 3**axis for axis, step in enumerate(corner))
        steps = torch.tensor(corner)
        exact[index] = torch.where(steps == 1, f, 1 - f).prod().item()
        # one u for all: the corner is drawn when u < f along its steps and u >= f elsewhere
        below = min([1.0, *f[steps == 1].tolist()])
        above = max([0.0, *f[steps == 0].tolist()])
        stochastic[index] = max(0.0, below - above)
    assert {i: w for i, (w,) in enumerate(grid.table.grad.tolist()) if w != 0} == exact
    assert sum(stochastic.values()) == 1 and stochastic != exact
    with pytest.raises(ValueError, match=r"one of \('linear', 'smoothstep', 'nearest'\), got 'stochastic'"):
        HashGrid(n_input_dims, interpolation="stochastic")


def supported(call: Callable[[], object]) -> list:
    """The values that the error of ``call`` says are supported."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    if found := re.search(r"must be in (\d+)\.\.(\d+)", text):
        return [*range(int(found[1]), int(found[2]) + 1)]
    found = re.search(r"must be one of (\(.*\)), got", text)
    assert found, text
    return [*ast.literal_eval(found[1])]


def test_defect_7_errors_name_exactly_what_is_supported() -> None:
    """tcnn's says "must be 2 or 3" of a number that may be 4."""

    def encode(n_input_dims: int = 2, **options) -> Tensor:
        grid = HashGrid(n_input_dims, n_levels=2, log2_hashmap_size=6, base_resolution=2, max_resolution=4, **options)
        return grid(torch.full((3, n_input_dims), 0.3))

    assert supported(lambda: encode(0)) == supported(lambda: encode(8)) == [*range(1, 8)]
    for n_input_dims in supported(lambda: encode(8)):
        assert encode(n_input_dims).isfinite().all()
    for name, wrong in (
        ("n_features_per_level", 3),
        ("interpolation", "cubic"),
        ("bounds", "repeat"),
        ("convention", "x"),
    ):
        for value in supported(lambda name=name, wrong=wrong: encode(**{name: wrong})):
            assert encode(**{name: value}).isfinite().all()
    for name in ("activation", "output_activation"):
        assert supported(lambda name=name: FusedMLP(2, 2, **{name: "gelu"})) == list(ACTIVATIONS)
        for value in ACTIVATIONS:
            assert FusedMLP(2, 2, 4, 1, **{name: value})(torch.ones(3, 2)).isfinite().all()
    for n_hidden_layers in supported(lambda: FusedMLP(2, 2, n_hidden_layers=9)):
        assert FusedMLP(2, 2, 4, n_hidden_layers)(torch.ones(3, 2)).isfinite().all()
    for degree in supported(lambda: SphericalHarmonics(9)):
        assert SphericalHarmonics(degree)(torch.eye(3)).shape == (3, degree**2)


# ---- second derivatives (#58, #69, #131, #89, #176, #303, #361, #446) ------------------------------------------------


class Field(nn.Module):
    """An encoding and the MLP behind it, with a twin in float64 made of other code."""

    def __init__(self, activation: str, bias: bool = True) -> None:
        super().__init__()
        self.grid = dense_grid(3, n_levels=2, interpolation="smoothstep")
        self.mlp = FusedMLP(self.grid.n_output_dims, 1, 16, 2, activation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.grid(x))

    def twin(self) -> Callable[[Tensor], Tensor]:
        clone = copy.deepcopy(self).double()
        sequential = clone.mlp.to_sequential()
        table = clone.grid.table.detach().requires_grad_()
        self.twin_parameters = [table, *sequential.parameters()]
        return lambda x: sequential(interpolate(self.grid.levels, table, x, smooth=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_446_eikonal_loss_trains_through_encoding_and_mlp(activation: str) -> None:
    """The loss of neural surfaces: a gradient of the norm of the position gradient, to every parameter. tcnn throws in
    both of its MLPs and in NetworkWithInputEncoding."""
    field = Field(activation)
    twin = field.twin()
    x = in_cells(25, 3, 8)

    def eikonal(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        return (gradient.norm(dim=-1) - 1).square().mean()

    parameters = [field.grid.table, *field.mlp.weights, *field.mlp.biases]
    # nn.Sequential lists weight and bias of each layer together
    order = [0, *(1 + 2 * layer for layer in range(3)), *(2 + 2 * layer for layer in range(3))]
    expected = torch.autograd.grad(eikonal(twin, x.double()), field.twin_parameters, materialize_grads=True)
    ours = torch.autograd.grad(eikonal(field, x), parameters, materialize_grads=True)
    assert expected[0].any()
    for a, i in zip(ours, order, strict=True):
        assert_exact(a, expected[i]) if expected[i].any() else None


@pytest.mark.parametrize("activation", ["softplus", "sine", "exp"])
def test_446_second_derivatives_match_finite_differences(activation: str) -> None:
    """To everything at once, derivatives of parameter gradients included, which tcnn has for no module at all."""
    field = Field(activation).double()
    x = in_cells(2, 3, 8).double().requires_grad_()
    names = [name for name, _ in field.named_parameters() if not name.startswith("grid")]
    values = [p.detach().requires_grad_() for name, p in field.named_parameters() if name in names]
    table = (0.3 * field.grid.table.detach()).requires_grad_()

    def function(x: Tensor, table: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True)) | {"grid.table": table}
        return torch.func.functional_call(field, parameters, (x,))

    assert gradcheck(function, (x, table, *values), fast_mode=True)
    assert gradgradcheck(function, (x, table, *values), fast_mode=True)


@pytest.mark.parametrize("encoding", [SphericalHarmonics(4), Frequency(3, 4)], ids=lambda e: type(e).__name__)
def test_446_second_derivatives_of_encodings_without_parameters(encoding: nn.Module) -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(encoding, x) and gradgradcheck(encoding, x)
    assert hessian(lambda x: encoding(x).square().sum(-1) + encoding(x)[..., -1], x.float()).any()


# ---- batches and sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 7, 100, 255, 256, 257])
def test_270_batches_need_no_multiple_of_256(n: int) -> None:
    """tcnn pads every batch to a multiple of 256 and slices the result; tiny batches have crashed."""
    grid = dense_grid(3, n_levels=2)
    mlp = FusedMLP(grid.n_output_dims, 3, 16, 1, "softplus", bias=True)
    x = in_cells(n, 3, 8).requires_grad_()
    y = mlp(grid(x))
    y.sum().backward()
    assert y.shape == (n, 3) and y.is_contiguous()
    assert y.untyped_storage().nbytes() == n * 3 * 4  # not a view into a padded result
    leaves = x.detach().double().requires_grad_(), grid.table.detach().double().requires_grad_()
    sequential = copy.deepcopy(mlp).double().to_sequential()
    exact = sequential(interpolate(grid.levels, leaves[1], leaves[0]))
    exact.sum().backward()
    grads = [x.grad, grid.table.grad, mlp.weights[0].grad, mlp.biases[0].grad]
    expected = [leaves[0].grad, leaves[1].grad, sequential[0].weight.grad, sequential[0].bias.grad]
    if n == 0:
        assert all(grad.shape == other.shape and not grad.any() for grad, other in zip(grads, expected, strict=True))
        return
    assert_exact(y.detach(), exact.detach())
    for grad, other in zip(grads, expected, strict=True):
        assert_exact(grad, other)


@pytest.mark.parametrize("n_outputs", [1, 3, 17, 40])
@pytest.mark.parametrize("n_inputs", [1, 3, 17, 33])
def test_61_91_any_number_of_inputs_and_outputs(n_inputs: int, n_outputs: int) -> None:
    """tcnn pads both to 16, is slower beyond 16 inputs and leaves its fused kernel beyond 16 outputs."""
    check_mlp(FusedMLP(n_inputs, n_outputs, 32, 1, "softplus", bias=True))


@pytest.mark.parametrize("width", [1, 5, 24, 64, 100, 256])
def test_38_any_width(width: int) -> None:
    """tcnn's fused kernel has 16, 32, 64 and 128."""
    check_mlp(FusedMLP(6, 5, width, 2, "softplus", bias=True))


def test_38_widths_may_differ_between_layers() -> None:
    check_mlp(FusedMLP(6, 5, [48, 7, 20], 3, "softplus", bias=True))


def check_mlp(mlp: FusedMLP) -> None:
    """Output and gradients against nn.Sequential in float64; parameters without padding."""
    widths = [weight.shape[1] for weight in mlp.weights] + [mlp.n_output_dims]
    n_parameters = sum(n_in * n_out + n_out for n_in, n_out in itertools.pairwise(widths))
    assert sum(p.numel() for p in mlp.parameters()) == n_parameters
    for bias in mlp.biases:
        nn.init.normal_(bias)
    sequential = copy.deepcopy(mlp).double().to_sequential()
    x = torch.randn(37, mlp.n_input_dims, requires_grad=True)
    x64 = x.detach().double().requires_grad_()
    cotangent = torch.randn(37, mlp.n_output_dims)
    y, exact = mlp(x), sequential(x64)
    y.backward(cotangent)
    exact.backward(cotangent.double())
    assert_exact(y.detach(), exact.detach())
    assert_exact(x.grad, x64.grad)
    linears = [module for module in sequential if isinstance(module, nn.Linear)]
    for weight, bias, linear in zip(mlp.weights, mlp.biases, linears, strict=True):
        assert_exact(weight.grad, linear.weight.grad)
        assert_exact(bias.grad, linear.bias.grad)


@pytest.mark.parametrize("n_input_dims", [1, 4, 5, 6, 7])
def test_121_246_422_one_to_seven_dimensions(n_input_dims: int) -> None:
    """tcnn has 2, 3 and 4."""
    grid = dense_grid(n_input_dims, resolution=3)
    x = in_cells(40, n_input_dims, 3).requires_grad_()
    leaves = x.detach().double().requires_grad_(), grid.table.detach().double().requires_grad_()
    cotangent = torch.randn(40, 2)
    y, exact = grid(x), interpolate(grid.levels, leaves[1], leaves[0])
    y.backward(cotangent)
    exact.backward(cotangent.double())
    for ours, other in ((y, exact), (x.grad, leaves[0].grad), (grid.table.grad, leaves[1].grad)):
        assert_exact(ours.detach(), other.detach())


def test_encodings_have_no_padding(once: None) -> None:
    """tcnn pads channels to a multiple of 8 or 16: grids with zeros, frequencies with ones behind, harmonics with ones
    in front."""
    grid = HashGrid(3, n_levels=5, n_features_per_level=1, log2_hashmap_size=8, base_resolution=4)
    assert grid(torch.rand(9, 3)).shape == (9, 5) and grid.n_output_dims == 5
    assert Frequency(3, 5)(torch.rand(9, 3)).shape == (9, 30)
    harmonics = SphericalHarmonics(3)(torch.tensor([[0.0, 0.0, 1.0]]))
    assert harmonics.shape == (1, 9)
    assert harmonics[0, 0].item() == pytest.approx(0.28209479)
    assert harmonics[0, 2].item() == pytest.approx(0.48860251)  # of z = 1: the input is the direction, not (v + 1) / 2


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["clamp", "zero", "none"])
def test_286_365_464_positions_outside_the_unit_cube(bounds: str) -> None:
    """tcnn reads whatever cell the wrapped index names, without a word."""
    grid = dense_grid(3, resolution=8, bounds=bounds)
    x = in_cells(60, 3, 8) * 3 - 1
    x.requires_grad_()
    inside = ((x >= 0) & (x <= 1)).detach()
    assert 0 < inside.all(-1).sum() < 60
    y = grid(x)
    y.sum().backward()
    clamped = x.detach().double().clamp(0, 1 - 1e-12)  # the last cell, not the one behind it
    exact = interpolate(grid.levels, grid.table.detach(), clamped)
    if bounds == "zero":
        exact = torch.where(inside.all(-1, keepdim=True), exact, 0)
    rows = inside.all(-1) if bounds == "none" else slice(None)
    assert_exact(y.detach()[rows], exact[rows])
    assert y.isfinite().all() and x.grad.isfinite().all()
    if bounds == "clamp":
        assert not x.grad[~inside].any() and x.grad[inside].all()
    elif bounds == "zero":
        assert not x.grad[~inside.all(-1)].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_286_positions_that_are_no_numbers_stay_where_they_are(bad: float) -> None:
    """A NaN shows in its own row, and neither the table nor other rows take part."""
    grid = dense_grid(3)
    x = in_cells(10, 3, 4)
    expected = grid(x).detach()
    x[4, 1] = bad
    y = grid(x)
    y.sum().backward()
    rows = torch.arange(10) != 4
    assert y[4].isnan().all() and torch.equal(y[rows], expected[rows])
    assert grid.table.grad.isfinite().all()
    assert abs(grid.table.grad.sum() - 18) < 1e-4  # nine points, two features, weights that sum to 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_496_170_half_precision_positions(dtype: torch.dtype) -> None:
    """They count for the values they have; interpolation is fp32."""
    grid = dense_grid(3)
    x = in_cells(30, 3, 4).to(dtype).requires_grad_()
    y = grid(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == torch.float32 and grad.dtype == dtype
    exact = x.detach().double().requires_grad_()
    expected = interpolate(grid.levels, grid.table.detach(), exact)
    assert_exact(y.detach(), expected.detach())
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=torch.finfo(dtype).eps, atol=1e-4)
    mlp = FusedMLP(3, 2, 16, 1)
    assert torch.equal(mlp(x), mlp(x.float()))


def test_inputs_need_not_be_contiguous_and_stay_as_they_are() -> None:
    grid = dense_grid(3)
    wide = in_cells(60, 5, 4)
    x = wide[::2, 1:4]
    before = wide.clone()
    assert torch.equal(grid(x), grid(x.contiguous()))
    assert torch.equal(wide, before)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute_dtype", [None, torch.float16, torch.bfloat16])
def test_51_378_precision_is_an_argument(compute_dtype: torch.dtype | None) -> None:
    """tcnn decides between fp32 and fp16 when it is compiled, and has no bf16."""
    grid = dense_grid(3, compute_dtype=compute_dtype)
    x = in_cells(50, 3, 4)
    y = grid(x)
    assert y.dtype == torch.float32
    stored = grid.table.detach() if compute_dtype is None else grid.table.detach().to(compute_dtype)
    assert_exact(y.detach(), interpolate(grid.levels, stored, x))


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_219_472_large_activations_do_not_overflow(compute_dtype: torch.dtype | None) -> None:
    """Hidden values beyond 65504 are infinite in tcnn's fp16, and their gradients NaN."""
    mlp = FusedMLP(1, 1, 1, 1, compute_dtype=compute_dtype)
    with torch.no_grad():
        mlp.weights[0].fill_(2.0**10)
        mlp.weights[1].fill_(2.0**-20)
    x = torch.full((5, 1), 2.0**10, requires_grad=True)
    assert (torch.tensor(2.0**10).half() * 2.0**10).isinf()
    y = mlp(x)
    y.sum().backward()
    assert torch.equal(y, torch.ones(5, 1)) and torch.equal(x.grad, torch.full((5, 1), 2.0**-10))
    assert mlp.weights[0].grad.item() == 5 * 2.0**-10 and mlp.weights[1].grad.item() == 5 * 2.0**20


def test_table_is_not_cast_in_every_forward(once: None) -> None:
    """tcnn copies all parameters to half in every call. The copy here is renewed when the table has changed."""
    grid = dense_grid(3, compute_dtype=torch.float16)
    x = in_cells(5, 3, 4)
    grid(x)
    version = grid.half_table._version
    grid(x).float().sum().backward()
    grid(x)
    assert grid.half_table._version == version
    optimizer = hashgrid.optim.Adam(grid.parameters(), lr=0.1)
    optimizer.step()
    y = grid(x)
    assert grid.half_table._version > version
    assert ((y.detach().double() - interpolate(grid.levels, grid.table.detach().half(), x)).abs() < 2e-3).all()


# ---- level masks, determinism ----------------------------------------------------------------------------------------


def test_53_406_coarse_to_fine_weights_are_soft_and_learnable() -> None:
    """tcnn has a hard cut by a fraction of the levels, without a gradient."""
    grid = dense_grid(3, n_levels=3)
    x = in_cells(30, 3, 16)
    weights = torch.tensor([1.0, 0.7, 0.2], requires_grad=True)
    cotangent = torch.randn(30, 6)
    y = grid(x, weights)
    y.backward(cotangent)
    full = interpolate(grid.levels, grid.table.detach(), x)
    assert_exact(y.detach(), full * weights.detach().double().repeat_interleave(2))
    assert_exact(weights.grad, (full * cotangent).view(30, 3, 2).sum((0, 2)))


def test_343_306_deterministic_updates() -> None:
    """Many points share an entry; tcnn's atomics add them up in any order."""
    grid = HashGrid(3, n_levels=4, log2_hashmap_size=4, base_resolution=8)
    mlp = FusedMLP(8, 2, 16, 1)
    x, cotangent = torch.rand(3000, 3), torch.randn(3000, 2)
    parameters = [*grid.parameters(), *mlp.parameters()]
    threads = torch.get_num_threads()
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            runs.append(torch.autograd.grad(mlp(grid(x)), parameters, cotangent))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "n_parameters"),
    [
        ((3, 20, 2, 16, 32, 1.5), 2_555_904),
        ((3, 16, 2, 19, 16, 128 ** (1 / 15)), 12_196_240),
        ((3, 8, 4, 19, 16, 2.0), 11_681_792),
        ((3, 16, 2, 19, 16, 2.0), 14_229_504),
        ((2, 16, 2, 15, 16, 1.5), 708_368),
    ],
)
def test_468_number_of_parameters_follows_from_the_level_table(options: tuple, n_parameters: int, once: None) -> None:
    """How large a table is, and where a level begins, is hard to find out in tcnn."""
    n_input_dims, n_levels, features, log2_size, base, scale = options
    levels = make_level_table(n_input_dims, n_levels, log2_size, base, per_level_scale=scale)
    assert levels.n_entries * features == n_parameters
    ends = [offset + size for offset, size in zip(levels.offsets, levels.sizes, strict=True)]
    assert [0, *ends] == [*levels.offsets, levels.n_entries]


def test_6_16_96_parameters_have_names_shapes_and_no_padding(once: None) -> None:
    """tcnn has one flat vector, padded, in an order that users have to dig out; no layer has a bias."""
    model = nn.ModuleDict({"grid": dense_grid(2), "mlp": FusedMLP(2, 3, 5, 1, bias=True)})
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "grid.table": (32, 2),  # 5 x 5 vertices, rounded up to a multiple of 8
        "mlp.weights.0": (5, 2),
        "mlp.weights.1": (3, 5),
        "mlp.biases.0": (5,),
        "mlp.biases.1": (3,),
    }
    assert set(model.state_dict()) == set(shapes)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_283_369_weights_can_be_exported() -> None:
    """To plain layers, and back."""
    mlp = FusedMLP(5, 3, 24, 2, "silu", "sigmoid", bias=True)
    x = torch.randn(20, 5)
    linears = [module for module in mlp.to_sequential() if isinstance(module, nn.Linear)]
    h = x
    for linear in linears[:-1]:
        h = nn.functional.silu(linear(h))
    torch.testing.assert_close(mlp(x), torch.sigmoid(linears[-1](h)))
    assert torch.equal(FusedMLP.from_sequential(mlp.to_sequential())(x), mlp(x))


def test_modules_copy_and_save_like_others() -> None:
    model = nn.Sequential(dense_grid(3, compute_dtype=torch.float16), FusedMLP(2, 3, 16, 1, bias=True))
    x = in_cells(9, 3, 4)
    y = model(x)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = nn.Sequential(dense_grid(3, compute_dtype=torch.float16), FusedMLP(2, 3, 16, 1, bias=True))
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for clone in (copy.deepcopy(model), loaded):
        assert torch.equal(clone(x), y)
        with torch.no_grad():
            clone[0].table.zero_()
        assert torch.equal(model(x), y) and not torch.equal(clone(x), y)


def test_modules_made_one_after_the_other_differ(once: None) -> None:
    """tcnn draws all of them from seed 1337; here torch's generator decides, as for other modules."""

    def make() -> list[Tensor]:
        return [*dense_grid(3).parameters(), *FusedMLP(2, 2, 8, 1).parameters()]

    torch.manual_seed(5)
    first, second = make(), make()
    torch.manual_seed(5)
    again = make()
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, c) and not torch.equal(a, b)


# ---- PyTorch and the machine -----------------------------------------------------------------------------------------


@pytest.mark.full
def test_import_and_training_need_no_device_and_no_toolchain(once: None) -> None:
    """``import tinycudann`` raises without a CUDA device, and moves CPU tensors to one with a warning (neurad-studio
    #40, nerfstudio #2993). Its JIT needs headers at run time (#506)."""
    code = """
import warnings, torch
warnings.simplefilter("error")
import hashgrid
grid = hashgrid.HashGrid(3, n_levels=2, log2_hashmap_size=8)
mlp = hashgrid.FusedMLP(4, 1)
optimizer = hashgrid.optim.Adam([*grid.parameters(), *mlp.parameters()])
y = mlp(grid(torch.rand(5, 3)))
y.sum().backward()
optimizer.step()
assert y.device.type == "cpu" and not torch.cuda.is_available() and not torch.cuda.is_initialized()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PATH": "", "CUDA_HOME": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_compiles_without_a_graph_break(once: None) -> None:
    """tcnn's functions are unknown to the dispatcher: each is a break."""
    model = nn.Sequential(dense_grid(3), FusedMLP(2, 3, 16, 1), nn.Linear(3, 1))
    torch._dynamo.reset()
    x = in_cells(9, 3, 4)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


DISTRIBUTED = """
import gc, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import hashgrid
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(hashgrid.HashGrid(2, n_levels=2, log2_hashmap_size=6, base_resolution=4), hashgrid.FusedMLP(4, 1, 8, 1))
x = torch.rand(64, 2)
parallel = DistributedDataParallel(model)
parallel(x[rank::2]).square().mean().backward()
grads = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
model(x).square().mean().backward()
for grad, parameter in zip(grads, model.parameters()):
    assert parameter.grad.any()
    torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-5 * parameter.grad.abs().max().item())
# gloo's threads must end before the interpreter does: one that asks for the GIL after that aborts the process
dist.barrier()
del parallel
gc.collect()
dist.destroy_process_group()
"""  # noqa: E501


@pytest.mark.full
def test_63_gradients_are_averaged_over_processes(once: None, tmp_path: Path) -> None:
    """DistributedDataParallel over two processes gives the gradient of the whole batch (NeSVoR #14, ngp_pl #2,
    torch-ngp #30)."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
