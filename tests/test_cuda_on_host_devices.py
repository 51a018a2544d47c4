"""What launchers know of a device: asked for once, and not taken for another's.

On the emulated driver, which has a device for each setting of HASHGRID_EMULATED_*.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from hashgrid.util.choices import ACTIVATIONS, FACTORS


def train() -> None:
    """Forward and backward on tensor cores."""
    ops = torch.ops.hashgrid_on_host
    weights = [torch.rand(64, 32), torch.rand(64, 64), torch.rand(16, 64)]
    options = ACTIVATIONS.index("relu"), ACTIVATIONS.index("none"), FACTORS.index(torch.bfloat16)
    x = torch.rand(70, 32)
    y = ops.mlp(x, weights, [], *options)
    ops.mlp_backward(torch.ones_like(y), x, weights, [], *options, True, True)


def test_the_driver_is_asked_once_per_device(cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def questions() -> int:
        before = cuda_on_host.questions()
        train()
        return cuda_on_host.questions() - before

    for shared_bytes in (90_001, 70_001):  # of devices that no other test has
        monkeypatch.setenv("HASHGRID_EMULATED_SHARED_BYTES", str(shared_bytes))
        assert questions() > 0 and questions() == 0
    monkeypatch.setenv("HASHGRID_EMULATED_SHARED_BYTES", "90001")
    assert questions() == 0


def test_a_limit_of_one_device_is_not_another_s(cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    monkeypatch.setenv("HASHGRID_EMULATED_SHARED_BYTES", "2048")
    with pytest.raises(RuntimeError, match="bytes of shared memory, a block has at most 2048"):
        train()
    monkeypatch.delenv("HASHGRID_EMULATED_SHARED_BYTES")
    train()
