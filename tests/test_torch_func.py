"""torch.func over the native kernels, against the same over the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from hashgrid import Frequency, FusedMLP, HashGrid, SphericalHarmonics, ops, reference
from hashgrid.levels import make_level_table
from hashgrid.ops import _ngp


class Field(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.grid = HashGrid(
            3, n_levels=3, log2_hashmap_size=6, base_resolution=4, max_resolution=(16, 16, 8),
            interpolation="smoothstep", backend=backend, accumulate_grad=True,
        )  # fmt: skip
        self.frequency = Frequency(3, 2, backend=backend)
        self.directions = SphericalHarmonics(2, backend=backend)
        self.mlp = FusedMLP(
            6 + 12 + 4, 2, 8, 2, activation="softplus", bias=True, softplus_beta=2.0, backend=backend
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(torch.cat([self.grid(x), self.frequency(x), self.directions(x)], dim=-1))


def make_fields() -> list[Field]:
    torch.manual_seed(0)
    native, plain = Field("native").double(), Field("reference").double()
    nn.init.normal_(native.grid.table)
    plain.load_state_dict(native.state_dict())
    return [native, plain]


def transforms(field: nn.Module) -> dict[str, Callable[[Tensor], Any]]:
    def f(x: Tensor) -> Tensor:
        return field(x)[..., 0]

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(field, params, (x,)).square().sum()

    params = {name: param.detach() for name, param in field.named_parameters()}
    directions = {name: torch.cos(torch.arange(p.numel()).view(p.shape).to(p)) for name, p in params.items()}
    stacked = {name: torch.stack([param, 2 * param, -param]) for name, param in params.items()}
    return {
        "grad": lambda x: grad(f)(x[0]),
        "vmap": lambda x: vmap(field)(x),
        "vmap along another dimension": lambda x: vmap(field, in_dims=2, out_dims=1)(x.view(2, 3, 3).mT),
        "vmap of vmap": lambda x: vmap(vmap(field))(x.view(2, 3, 3)),
        "vmap(grad)": lambda x: vmap(grad(f))(x),
        "jacrev": lambda x: jacrev(f)(x[0]),
        "jacrev of rows": lambda x: jacrev(field)(x),
        "hessian": lambda x: jacrev(jacrev(f))(x[0]),
        "jacfwd": lambda x: jacfwd(f)(x[0]),
        "jacfwd of rows": lambda x: jacfwd(field)(x),
        "jvp": lambda x: jvp(field, (x,), (x.flip(0),)),
        "jvp of parameters": lambda x: jvp(lambda params: loss(params, x), (params,), (directions,)),
        "vmap(jvp)": lambda x: vmap(lambda v: jvp(field, (x,), (v,))[1])(torch.stack([x, x.cos()])),
        "forward over reverse": lambda x: hessian(f)(x[0]),
        "reverse over forward": lambda x: jacrev(jacfwd(f))(x[0]),
        "forward over reverse of rows": lambda x: vmap(hessian(f))(x),
        "Hessian of parameters times a direction": lambda x: jvp(
            lambda params: grad(loss)(params, x), (params,), (directions,)
        ),
        "gradient of a derivative along a direction": lambda x: grad(
            lambda params: jvp(lambda x: functional_call(field, params, (x,)), (x,), (x.flip(0),))[1].square().sum()
        )(params),
        "hessians of rows": lambda x: vmap(jacrev(jacrev(f)))(x),
        "vmap(vjp)": lambda x: vmap(vjp(field, x)[1])(torch.stack([x[:, :2], x[:, 1:]])),
        "gradient of parameters": lambda x: grad(loss)(params, x),
        "gradients per sample": lambda x: vmap(grad(loss), in_dims=(None, 0))(params, x),
        "ensemble": lambda x: vmap(lambda p: functional_call(field, p, (x,)))(stacked),
        "gradients of an ensemble": lambda x: vmap(grad(loss), in_dims=(0, None))(stacked, x),
        "jacobian(vectorize)": lambda x: torch.autograd.functional.jacobian(f, x, vectorize=True),
        "hessian(vectorize)": lambda x: torch.autograd.functional.hessian(f, x[0], vectorize=True),
        "is_grads_batched": lambda x: torch.autograd.grad(
            f(y := x.clone().requires_grad_()), y, torch.eye(len(x)).double(), is_grads_batched=True
        )[0],
    }  # fmt: skip


@pytest.mark.parametrize("name", transforms(nn.Identity()))
def test_fields_are_transformed_as_the_reference_is(name: str) -> None:
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)).double()
    native, plain = make_fields()
    torch.testing.assert_close(transforms(native)[name](x), transforms(plain)[name](x))
    assert all(param.grad is None or not param.grad.any() for param in native.parameters())


def test_rows_go_to_one_call() -> None:
    native, _ = make_fields()
    calls: list[str] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "hashgrid":
                calls.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    native.requires_grad_(False)
    with Count():
        vmap(grad(lambda x: native(x).sum()))(torch.rand(100, 3).double())
    assert 0 < len(calls) == len(set(calls)), calls


def test_dual_numbers_without_transforms() -> None:
    x, direction = torch.rand(2, 4, 3, dtype=torch.float64)
    results = []
    for field in make_fields():
        with forward_ad.dual_level():
            y = field(forward_ad.make_dual(x, direction))
            results.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*results)
    native = make_fields()[0]
    step = 1e-6
    torch.testing.assert_close(results[0], (native(x + step * direction) - native(x - step * direction)) / (2 * step))


def test_forward_mode_goes_as_far_as_there_are_kernels() -> None:
    levels = make_level_table(2, n_levels=2, log2_hashmap_size=4, base_resolution=2, max_resolution=4)
    x, table = torch.rand(3, 2), torch.rand(levels.n_entries, 2)

    with pytest.raises(NotImplementedError, match=r"no forward-mode derivative of that order"):
        jacfwd(lambda x: _ngp.hash_encode_into(x, table, levels, half_table=table.half()))(x)
    for network in (FusedMLP(2, 1, 8), FusedMLP(2, 1, 8, activation="exp", backend="reference")):
        with pytest.raises(NotImplementedError, match=r"no forward-mode derivative of that order"):
            jacfwd(jacfwd(network))(x[0])
    with pytest.raises(RuntimeError, match="hash_encode can be differentiated twice, not three times"):
        jacfwd(jacrev(jacrev(lambda x: ops.hash_encode(x, table, levels, "smoothstep").sum())))(x)


def test_compositing_and_losses_are_batched() -> None:
    t_starts = torch.arange(6.0)
    packed_info = torch.tensor([[0, 4], [4, 2]])
    sigmas, features = torch.rand(3, 6), torch.rand(3, 6, 2)
    rest = (t_starts, t_starts + 0.5, packed_info)

    def loss(library: Any, sigmas: Tensor, features: Tensor) -> Tensor:
        rendered, opacities, depths, weights, distortion, transmittances = library.composite(
            sigmas, features, *rest, 1e-4, return_transmittances=True
        )
        return rendered.square().sum() + (opacities * depths).sum() + distortion.sum() + transmittances.square().sum()

    got, expected = (
        vmap(grad(lambda s, f, library=library: loss(library, s, f), argnums=(0, 1)))(sigmas, features)
        for library in (ops, reference)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_forward_mode_reads_half_tables(backend: str) -> None:
    sizes = {"n_levels": 2, "log2_hashmap_size": 6, "base_resolution": 2, "max_resolution": 4}
    grid = HashGrid(2, **sizes, compute_dtype=torch.float16, accumulate_grad=True, backend=backend)
    nn.init.normal_(grid.table)
    x, exact = torch.rand(4, 2), HashGrid(2, **sizes, backend="reference")
    exact.load_state_dict({"table": grid.table.half().float()})
    torch.testing.assert_close(jacfwd(grid)(x), jacrev(exact)(x))
    direction = torch.randn_like(grid.table)  # features are linear in the table
    tangent = jvp(lambda table: encode(grid, x, table), (grid.table.detach(),), (direction,))[1]
    torch.testing.assert_close(tangent, encode(exact, x, direction))


def encode(grid: HashGrid, x: Tensor, table: Tensor) -> Tensor:
    return functional_call(grid, {"table": table}, (x,))


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def functions_and_inputs() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    levels = make_level_table(2, n_levels=2, log2_hashmap_size=3, base_resolution=2, max_resolution=4)
    positions = torch.tensor([[0.11, 0.29], [0.67, 0.83], [0.42, 0.57]], dtype=torch.float64).requires_grad_()
    t_starts = torch.arange(4.0, dtype=torch.float64)
    rays = (t_starts, t_starts + 0.5, torch.tensor([[0, 3], [3, 1]]))
    return {
        "hash_encode": (
            lambda x, table, weights: ops.hash_encode(x, table, levels, "smoothstep", level_weights=weights),
            [positions, *leaves((levels.n_entries, 1), (2,))],
        ),
        "mlp": (
            lambda x, a, b, bias, last: ops.mlp(x, [a, b], [bias, last], "tanh", "sigmoid"),
            leaves((3, 2), (4, 2), (2, 4), (4,), (2,)),
        ),
        "sh_encode": (lambda x: ops.sh_encode(x, 3), leaves((2, 3))),
        "frequency_encode": (lambda x: ops.frequency_encode(x, 2), leaves((2, 2))),
        "frequency_encode without pi": (lambda x: ops.frequency_encode(x, 2, pi=False), leaves((2, 2))),
        "line_integrals": (
            lambda values, t_starts, t_ends: ops.line_integrals(values, t_starts, t_ends, rays[2]),
            leaves((4, 2), (4,), (4,)),
        ),
        "composite": (lambda sigmas, features: ops.composite(sigmas, features, *rays, 0.0), leaves((4,), (4, 2))),
        "composite of alphas": (
            lambda alphas, features: ops.composite(
                None, features, *rays, 0.0, alphas=alphas, return_transmittances=True
            ),
            leaves((4,), (4, 2)),
        ),
    }


@pytest.mark.parametrize("name", functions_and_inputs())
def test_forward_mode_agrees_with_finite_differences(name: str) -> None:
    function, inputs = functions_and_inputs()[name]
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("encoding", [Frequency(3, 2), SphericalHarmonics(3)])
def test_encodings_by_formula_have_a_forward_mode_of_any_order(encoding: nn.Module) -> None:
    x = torch.rand(3, dtype=torch.float64)
    torch.testing.assert_close(jacfwd(jacfwd(encoding))(x), hessian(encoding)(x))
    torch.testing.assert_close(jacfwd(jacfwd(jacfwd(encoding)))(x), jacrev(hessian(encoding))(x))


@pytest.mark.parametrize("name", ["sigmas", "alphas"])
@pytest.mark.parametrize("return_transmittances", [False, True])
def test_compositing_in_both_modes(name: str, return_transmittances: bool) -> None:
    t_starts = torch.arange(6.0, dtype=torch.float64)
    rest = (t_starts, t_starts + 0.5, torch.tensor([[0, 4], [4, 2]]), 1e-4)
    densities, features = torch.rand(6, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)

    def results(library: Any) -> list[Any]:
        def composite(densities: Tensor, features: Tensor) -> tuple[Tensor, ...]:
            given = {"sigmas": None, name: densities, "return_transmittances": return_transmittances}
            return library.composite(given.pop("sigmas"), features, *rest, **given)

        def loss(densities: Tensor, features: Tensor) -> Tensor:
            rendered, opacities, depths, *others = composite(densities, features)
            squares = sum(output.square().sum() for output in (rendered, *others))
            return (opacities * depths).sum() + squares

        both = (0, 1)
        return [
            jacfwd(lambda densities: composite(densities, features))(densities),
            hessian(loss, argnums=both)(densities, features),
            jacrev(jacfwd(loss, argnums=both), argnums=both)(densities, features),
        ]

    torch.testing.assert_close(results(ops), results(reference))


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_second_derivatives_of_parameters(compute_dtype: torch.dtype | None) -> None:
    def make(backend: str) -> FusedMLP:
        torch.manual_seed(0)
        return FusedMLP(3, 2, 8, 2, activation="softplus", compute_dtype=compute_dtype, backend=backend)

    def results(mlp: FusedMLP) -> list[Any]:
        params = {name: param.detach() for name, param in mlp.named_parameters()}

        def eikonal(params: dict[str, Tensor], x: Tensor) -> Tensor:
            slopes = vmap(grad(lambda x: functional_call(mlp, params, (x,))[0]))(x)
            return (slopes.square().sum(-1) - 1).square().mean()

        x = torch.linspace(0, 1, 12).view(4, 3)
        return [
            grad(eikonal)(params, x),
            jacrev(jacrev(lambda params: functional_call(mlp, params, (x,)).sum()))(params),
            vmap(jacrev(jacrev(lambda x: mlp(x)[0])))(x),
            vmap(hessian(lambda x: mlp(x)[0]))(x),
            jacfwd(mlp)(x),
        ]

    # gradients of the kernels are rounded, those of the reference are not
    tolerances = {} if compute_dtype is None else {"rtol": 2**-7, "atol": 2**-7}
    torch.testing.assert_close(results(make("native")), results(make("reference")), **tolerances)


def test_radiance_fields_are_transformed() -> None:
    weights = [torch.randn(shape).double() / 4 for shape in ((8, 6), (16, 8), (8, 16 + 4), (3, 8))]
    ray_features, rays, x = torch.rand(2, 4).double(), torch.tensor([0, 0, 1, 1, 1]), torch.rand(2, 5, 6).double()

    def results(library: Any) -> list[Any]:
        def loss(x: Tensor, weights: list[Tensor]) -> Tensor:
            sigmas, colors = library.radiance_mlp(x, ray_features, rays, weights[:2], weights[2:])
            return sigmas.sum() + colors.square().sum()

        first = grad(loss, argnums=(0, 1))
        return [
            first(x[0], weights),
            vmap(first, in_dims=(0, None))(x, weights),
            grad(lambda x: grad(loss)(x, weights).square().sum())(x[0]),
            jvp(lambda x: loss(x, weights), (x[0],), (x[1],)),
        ]

    torch.testing.assert_close(results(_ngp), results(reference))
