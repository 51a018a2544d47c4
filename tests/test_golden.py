"""Hash encoding against values computed independently in float64, and against a tcnn-compatible implementation."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid.levels import LevelTable, as_level_table, make_level_table

pytestmark = pytest.mark.every_kernel

CASES = (
    "paper_d2_l6_f4_smoothstep",
    "paper_d3_l8_f2_linear",
    "tcnn_d2_l6_f2_nearest",
    "tcnn_d2_l8_f2_linear",
    "tcnn_d3_l4_f8_linear",
    "tcnn_d3_l6_f1_linear",
    "tcnn_d3_l6_f4_smoothstep",
    "tcnn_d3_l8_f2_linear",
    "tcnn_d4_l4_f2_linear",
)
TOLERANCE = 1e-9  # of float64, relative to the largest value of a tensor


@pytest.fixture(params=["reference", "native"])
def ops(request) -> ModuleType:
    """The op library under test."""
    return importlib.import_module({"reference": "hashgrid.reference", "native": "hashgrid.ops"}[request.param])


class Golden:
    """One golden file: its tensors in float64, its levels and options."""

    def __init__(self, path: Path) -> None:
        arrays = dict(np.load(path))
        self.config = json.loads(str(arrays.pop("config")))
        self.levels = as_level_table(json.loads(str(arrays.pop("levels"))), self.config["n_dims"])
        self.tensors = {name: torch.from_numpy(array).double() for name, array in arrays.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def leaf(self, name: str) -> Tensor:
        return self[name].clone().requires_grad_()

    def check(self, name: str, actual: Tensor) -> None:
        expected = self[name]
        assert actual.shape == expected.shape
        error = (actual - expected).abs().max().item()
        assert error <= TOLERANCE * expected.abs().max().item(), f"{name}: max error {error}"


@pytest.fixture(params=CASES)
def golden(request, shared: Path) -> Golden:
    return Golden(shared / "golden" / f"{request.param}.npz")


def test_every_golden_file_is_tested(shared: Path) -> None:
    assert sorted(path.stem for path in (shared / "golden").glob("*.npz")) == sorted(CASES)


def test_level_table_matches_golden(golden: Golden) -> None:
    config = golden.config
    made = make_level_table(
        config["n_dims"],
        config["n_levels"],
        config["log2_hashmap_size"],
        config["base_resolution"],
        per_level_scale=config["per_level_scale"],
        convention=config["convention"],
    )
    assert made == golden.levels


def test_values_and_gradients_match_golden(ops: ModuleType, golden: Golden) -> None:
    x, table = golden.leaf("x"), golden.leaf("table")
    y = ops.hash_encode(x, table, golden.levels, golden.config["interpolation"])
    golden.check("y", y)
    grad_table, grad_x = torch.autograd.grad(y, [table, x], golden["grad_y"], allow_unused=True)
    golden.check("grad_table", grad_table)
    assert torch.equal(grad_table != 0, golden["grad_table"] != 0)
    if "grad_x" in golden:
        golden.check("grad_x", grad_x)
    else:
        assert grad_x is None or not grad_x.any()


def test_second_derivatives_of_grad_x_match_golden(ops: ModuleType, golden: Golden) -> None:
    if "dd_x" not in golden:
        assert golden.config["interpolation"] == "nearest"
        return
    x, table, grad_y = golden.leaf("x"), golden.leaf("table"), golden.leaf("grad_y")
    y = ops.hash_encode(x, table, golden.levels, golden.config["interpolation"])
    (grad_x,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
    for name, gradient in zip(
        ["dd_grad_y", "dd_table", "dd_x"], torch.autograd.grad(grad_x, [grad_y, table, x], golden["v"]), strict=True
    ):
        golden.check(name, gradient)


def test_second_derivatives_of_grad_table_match_golden(ops: ModuleType, golden: Golden) -> None:
    if "ddt_x" not in golden:
        assert golden.config["interpolation"] == "nearest"
        return
    x, table, grad_y = golden.leaf("x"), golden.leaf("table"), golden.leaf("grad_y")
    y = ops.hash_encode(x, table, golden.levels, golden.config["interpolation"])
    (grad_table,) = torch.autograd.grad(y, table, grad_y, create_graph=True)
    for name, gradient in zip(
        ["ddt_grad_y", "ddt_x"], torch.autograd.grad(grad_table, [grad_y, x], golden["V"]), strict=True
    ):
        golden.check(name, gradient)


def test_values_match_tcnn_compatible_table(ops: ModuleType, shared: Path) -> None:
    case = json.loads((shared / "golden" / "tcnn_reference_table.json").read_text())
    levels: LevelTable = make_level_table(
        case["D"], case["L"], case["T"].bit_length() - 1, case["base"], per_level_scale=case["per_level_scale"]
    )
    table = torch.from_numpy(np.linspace(0, 1000, case["n_params"], dtype=np.float32)).reshape(-1, case["F"])
    y = ops.hash_encode(torch.tensor(case["x"]), table, levels, bounds="none")
    expected = torch.tensor(case["expected_LFxB"]).T  # [N, L * F]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=0)
