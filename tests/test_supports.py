"""`takes` says yes exactly where an op takes its arguments: kernels state what they take once, and Python asks them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from hashgrid import _extension
from hashgrid.levels import LevelTable, make_level_table
from hashgrid.ops import _ngp
from hashgrid.ops._kernels import has_kernel, takes
from hashgrid.ops.hash_encode import encoding_options
from hashgrid.util.choices import ACTIVATIONS, FACTORS

pytestmark = pytest.mark.every_kernel

FP32, FP64, FP16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
N = 3
OPS = ("radiance_mlp", "radiance_field", "render_rays", "occupancy_values")
# The first of each is what every kernel takes.
CHOICES: dict[str, tuple[Any, ...]] = {
    "width": (32, 1, 15, 16, 63, 64, 65, 80, 128, 129),
    "n_geometry": (16, 1, 15, 17, 32),
    "n_ray_features": (16, 0, 1, 2, 15, 48, 49, 50),
    "n_channels": (3, 1, 2, 4, 17, 64, 65),
    "n_layers": ((2, 3), (1, 1), (1, 2), (5, 4), (5, 5), (9, 1), (0, 2), (2, 0), (10, 0)),
    "activation": ("sigmoid", *ACTIVATIONS, "round"),
    "products": (BF16, *FACTORS, FP32, FP64),
    "dtype": (FP32, FP64, FP16, BF16),
    "other_dtype": (None, FP64, FP16),  # of the last weight
    "n_dims": (3, 1, 2, 4, 7),
    "n_features": (2, 1, 3, 4, 6, 8, 16),
    "per_axis": (False, True),
    "table_dtype": (FP32, FP64, FP16, BF16),
}


def cases() -> list[dict[str, Any]]:
    """Each choice by itself, pairs of what kernels differ in, and combinations at random."""
    usual = {name: values[0] for name, values in CHOICES.items()}
    found = [usual | {name: value} for name, values in CHOICES.items() for value in values]
    pairs = itertools.product(CHOICES["products"], CHOICES["table_dtype"], CHOICES["dtype"])
    found += [usual | {"products": p, "table_dtype": t, "dtype": d} for p, t, d in pairs]
    draw = random.Random(0)
    for _ in range(300):
        names = draw.sample(sorted(CHOICES), 3)
        found.append(usual | {name: draw.choice(CHOICES[name]) for name in names})
    return found


def levels_of(case: dict[str, Any]) -> LevelTable:
    n = case["n_dims"]
    base = tuple(range(2, 2 + n)) if case["per_axis"] and n > 1 else 2
    return make_level_table(n, n_levels=4, log2_hashmap_size=6, base_resolution=base, max_resolution=9)


def weights_of(case: dict[str, Any], op: str, n_in: int) -> tuple[list[Tensor], list[Tensor]]:
    n_density, n_color = case["n_layers"] if op != "occupancy_values" else (case["n_layers"][0], 0)
    widths = [n_in, *[case["width"]] * (n_density - 1), case["n_geometry"]]
    colors = [widths[-1] + case["n_ray_features"], *[case["width"]] * (n_color - 1), case["n_channels"]]
    density, color = (
        [torch.rand(o, i, dtype=case["dtype"]) / 8 for i, o in list(itertools.pairwise(sizes))[:n]]
        for sizes, n in ((widths, n_density), (colors, n_color))
    )
    if case["other_dtype"] is not None:
        for weights in (density, color):
            weights[-1:] = [weight.to(case["other_dtype"]) for weight in weights[-1:]]
    return density, color


def asked_and_took(op: str, case: dict[str, Any]) -> tuple[bool, bool]:
    """What the query says, and whether the op returns; under FakeTensorMode the former alone."""
    levels = levels_of(case)
    n_in = 28 if op == "radiance_mlp" else levels.n_levels * case["n_features"]
    density, color = weights_of(case, op, n_in)
    points = torch.rand(N, 3 if op in ("render_rays", "occupancy_values") else levels.n_input_dims).to(case["dtype"])
    table = torch.rand(levels.n_entries, case["n_features"]).to(case["table_dtype"])
    ray_features, rays = torch.rand(N, case["n_ray_features"]).to(case["dtype"]), torch.arange(N)
    x, box = torch.rand(N, n_in).to(case["dtype"]), torch.tensor([0, 0, 0, 1, 1, 1.0]).to(case["dtype"])
    dtype = density[0].dtype if density else case["dtype"]
    products = None if case["products"] == dtype else case["products"]
    options = [
        ACTIVATIONS.index(case["activation"]) if case["activation"] in ACTIVATIONS else -1,
        FACTORS.index(products) if products in FACTORS else -1,
    ]
    grid, bits = encoding_options(levels, "linear", "clamp"), torch.full((64,), 255, dtype=torch.uint8)
    tensors: tuple[Tensor, ...]
    tensors, arguments = {
        "radiance_mlp": ((x, ray_features), (x, ray_features, rays, density, color, *options)),
        "radiance_field": (
            (points, ray_features), (points, table, ray_features, rays, *grid, density, color, *options),
        ),
        "render_rays": (
            (points, ray_features),
            (points, points, ray_features, box, bits, [8, 8, 8], 1, box, table, *grid, density, color, *options,
             0.1, 0.0, 0.0, 9.0, 4, 1e-4),
        ),
        "occupancy_values": (
            (points,), (rays, box, [8, 8, 8], 1, None, box, table, *grid, density, options[1], 0.1),
        ),
    }[op]  # fmt: skip
    of_colors = () if op == "occupancy_values" else (len(density), case["n_ray_features"], case["activation"])
    of_grid = {} if op == "radiance_mlp" else {"levels": levels, "table": table}
    asked = takes(op, tensors, n_in, [*density, *color], case["products"], *of_colors, **of_grid)
    if isinstance(x, torch._subclasses.FakeTensor):
        return asked, asked
    if op != "radiance_mlp" and levels.n_input_dims != points.shape[1]:
        return asked, False  # kernels that make points make three coordinates, and levels of other grids do not fit
    try:
        getattr(_extension.ops(), op)(*arguments)
    except RuntimeError:
        return asked, False
    return asked, True


@pytest.mark.parametrize("op", OPS)
def test_a_kernel_takes_what_the_query_says(op: str, kernels: str) -> None:
    answers = []
    for case in cases():
        asked, took = asked_and_took(op, case)
        assert asked == took, case
        answers.append(asked)
    if kernels == "cpu" and op != "radiance_mlp":
        assert not any(answers)
    else:
        assert 50 < sum(answers) < len(answers) - 50


def test_answers_do_not_need_data() -> None:
    for op, case in itertools.product(OPS, cases()[::20]):
        with FakeTensorMode():
            fake = asked_and_took(op, case)[0]
        assert fake == asked_and_took(op, case)[0], (op, case)


@pytest.mark.cpu_only
def test_devices_without_kernels() -> None:
    assert has_kernel("mlp", "cpu") and not has_kernel("mlp", "meta") and not has_kernel("mlp", "mps")


@pytest.mark.cpu_only
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_calls_ask_as_they_are_traced(dynamic: bool | None) -> None:
    """Sizes that the compiler leaves open as well."""
    compiled = torch.compile(_ngp.radiance_mlp, fullgraph=True, backend="eager", dynamic=dynamic)
    for width in (8, 12):
        sizes = [(width, 6), (4, width)], [(width, 6), (3, width)]
        density, color = ([torch.rand(shape) for shape in shapes] for shapes in sizes)
        arguments = (torch.rand(5, 6), torch.rand(2, 2), torch.tensor([0, 1, 1, 0, 1]), density, color)
        for a, b in zip(compiled(*arguments), _ngp.radiance_mlp(*arguments), strict=True):
            assert torch.equal(a, b)
