"""The ops that tests call on another device: with copies on the CPU in the place of a GPU."""

from __future__ import annotations

import pytest
import torch
from on_device import OpsOn
from problems.samples import SAMPLES
from torch import Tensor


def detached(arguments: tuple) -> list:
    """The arguments of one call, with tensors of their own."""

    def own(value):
        if isinstance(value, list):
            return [own(x) for x in value]
        return value.detach().clone() if isinstance(value, Tensor) else value

    return [own(value) for value in arguments]


@pytest.mark.parametrize("name", SAMPLES)
def test_results_and_what_is_written_come_back(name: str) -> None:
    for arguments in SAMPLES[name]():
        ours, plain = detached(arguments), detached(arguments)
        results = getattr(OpsOn(torch.ops.hashgrid, "cpu"), name)(*ours)
        expected = getattr(torch.ops.hashgrid, name)(*plain)
        torch.testing.assert_close(results, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def spy():
    """An op that records what it is given, and writes to its first argument and a copy of its second."""
    seen: list = []
    library = torch.library.Library("hashgrid_spy", "DEF")
    library.define("look(Tensor(a!) x, Tensor y, Tensor[] more, Tensor(b!)? z) -> Tensor")

    def look(x: Tensor, y: Tensor, more: list[Tensor], z: Tensor | None) -> Tensor:
        seen[:] = [x, y, *more, z]
        y.as_strided((1,), (1,)).add_(1)  # against the schema: nobody outside may see it
        x += 1
        if z is not None:
            z += 1
        return x * 2

    library.impl("look", look, "CPU")
    yield seen
    library._destroy()


def test_tensors_go_over_as_they_lie_in_memory(spy: list) -> None:
    storage = torch.arange(24.0)
    x, y, z = storage[1:9].view(4, 2), storage[9:24:3].expand(2, 5), storage[23:]
    empty = torch.zeros(0, 3)
    before = storage.clone()
    result = OpsOn(torch.ops.hashgrid_spy, "cpu").look(x, y, [empty, y[0]], z=z)
    assert torch.equal(result, 2 * (before[1:9].view(4, 2) + 1))
    for given, original in zip(spy, (x, y, empty, y[0], z), strict=True):
        assert given.shape == original.shape and given.stride() == original.stride()
        assert given.storage_offset() == original.storage_offset()
        assert given.numel() == 0 or given.data_ptr() != original.data_ptr()
    assert spy[0].untyped_storage().data_ptr() == spy[1].untyped_storage().data_ptr()  # still share it
    assert torch.equal(storage[1:9], before[1:9] + 1) and storage[23] == spy[4].item()
    assert torch.equal(storage[9:23], before[9:23]) and storage[0] == 0


def test_what_may_be_missing_may_be_missing(spy: list) -> None:
    x = torch.zeros(2)
    assert torch.equal(OpsOn(torch.ops.hashgrid_spy, "cpu").look(x, torch.ones(1), [], None), torch.full((2,), 2.0))
    assert torch.equal(x, torch.ones(2)) and spy[-1] is None
