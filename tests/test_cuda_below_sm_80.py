"""What the CUDA kernels do on a GPU without tensor cores of sm_80, which the emulation stands in for: the same results
by other kernels, or a refusal that says so."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
import torch
from host.build import HOST
from host.redirect import take_cuda_ops
from problems.agreement import check_agreement
from problems.cases import CASES
from problems.samples import ON_CUDA

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def sm_75(cuda_on_host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HASHGRID_EMULATED_CAPABILITY", "7.5")
    take_cuda_ops(torch.ops.hashgrid_on_host, monkeypatch.setattr)
    return cuda_on_host


def kernels_on_tensor_cores() -> set[str]:
    """Those whose body is left out where there are none."""
    text = "\n".join(path.read_text() for path in sorted((HOST.parents[1] / "csrc" / "cuda").iterdir()))
    return set(re.findall(r"(\w+_kernel)\([^{}]*\{\s*if constexpr \(kHasMma\)", text))


@pytest.mark.parametrize("name", sorted(ON_CUDA))
def test_registered_ops_agree_with_the_cpu_or_name_what_is_missing(name: str) -> None:
    for arguments in ON_CUDA[name]():
        check_agreement(name, arguments, torch.ops.hashgrid_on_host)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_public_ops_match_the_reference(case, sm_75: ModuleType) -> None:
    """No kernel on tensor cores is launched, as none has a body there."""
    before = sm_75.launches()
    case(33)
    launched = {name for name, count in sm_75.launches().items() if count > before[name]}
    assert len(kernels_on_tensor_cores()) >= 8
    assert launched and not launched & (kernels_on_tensor_cores() | {"mlp_pack_kernel"})
