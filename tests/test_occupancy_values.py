"""What a field says of an occupancy grid's cells in one kernel, against the ops it is made of and the reference."""

from __future__ import annotations

import pytest
import torch
from problems.occupancy_values import cells_of_field, values_in_parts

from hashgrid import reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize("half", [None, BF16, FP16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("n", [0, 1, 33, 300])
def test_matches_the_ops_it_is_made_of(n: int, half: torch.dtype | None) -> None:
    for n_cascades, seed, n_out in ((1, 3, 16), (2, None, 1), (3, 3, 20)):
        arguments = cells_of_field(n, n_cascades, n_out, seed=seed, compute_dtype=half)
        values = _ngp.occupancy_values(**arguments)
        assert values.shape == (n,) and values.dtype == torch.float32
        torch.testing.assert_close(values, values_in_parts(arguments), rtol=2e-6, atol=0)
        if half is not None:
            arguments["half_table"] = arguments["table"].to(half)
            torch.testing.assert_close(
                _ngp.occupancy_values(**arguments), values_in_parts(arguments), rtol=2e-6, atol=0
            )


def test_fp32_matches_the_reference() -> None:
    arguments = cells_of_field(200)
    torch.testing.assert_close(
        _ngp.occupancy_values(**arguments), reference.occupancy_values(**arguments), rtol=1e-4, atol=0
    )


def test_one_kernel_where_there_is_one(kernels: str, request: pytest.FixtureRequest) -> None:
    if kernels != "cuda_on_host":
        pytest.skip("launches are counted by the emulation")
    host = request.getfixturevalue("cuda_on_host")
    before = host.launches()
    _ngp.occupancy_values(**cells_of_field(40, compute_dtype=BF16))
    launches = {name: n - before[name] for name, n in host.launches().items() if n > before[name]}
    assert launches == {"mlp_pack_kernel": 1, "occupancy_values_kernel": 1}


def test_a_cell_that_does_not_exist_has_no_value(kernels: str) -> None:
    """The update of the grid passes over NaN, and names the cell."""
    if kernels == "cpu":
        pytest.skip("occupancy_points reports it")
    arguments = cells_of_field(40, compute_dtype=BF16)
    arguments["cells"][[3, 30]] = torch.tensor([-1, 2 * 8 * 9 * 10])
    values = _ngp.occupancy_values(**arguments)
    assert values[3].isnan() and values[30].isnan() and values.isfinite().sum() == 38


def test_bad_input_is_refused() -> None:
    arguments = cells_of_field(40, compute_dtype=BF16)
    with pytest.raises(ValueError, match=r"`field_aabb` must have shape \[6\], got \[3\]"):
        _ngp.occupancy_values(**arguments | {"field_aabb": torch.rand(3)})
    with pytest.raises(ValueError, match=r"`weights\[0\]` must have shape \[out, 8\]"):
        _ngp.occupancy_values(**arguments | {"weights": [torch.rand(32, 7), torch.rand(16, 32)]})
    with pytest.raises(ValueError, match=r"`bounds` must be"):
        _ngp.occupancy_values(**arguments, bounds="wrap")
    with pytest.raises(RuntimeError, match=r"`n_cascades` must be in 1\.\.16, got 0"):
        _ngp.occupancy_values(**arguments | {"n_cascades": 0})
