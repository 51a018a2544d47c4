"""The emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, at the sizes around a block."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from host.build import HOST_BUILD, build_sanitized, compiler

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[1]

RUN = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import math
import torch
from problems.cases import CASES
from problems.hash_encode import check_huge_positions, check_nonfinite_positions
from pathlib import Path
from hashgrid import ops
from host.build import load
from host.redirect import take_cuda_ops
host = load(Path({module!r}))
take_cuda_ops(torch.ops.hashgrid_on_host)
torch.manual_seed(0)
"""
SIZES = """
for n in (0, 1, 7, 255, 256, 257):
    for case in CASES:
        if n not in (255, 256) or case.__name__ not in ("composite_case", "mlp_case"):  # fibers take their time
            case(n)
assert min(host.launches().values()) > 0
"""
STRANGE = """
for dtype in (torch.float32, torch.float64):
    for bounds in ("clamp", "zero", "none"):
        for bad in (math.nan, math.inf, -math.inf):
            check_nonfinite_positions(bounds, bad, dtype)
    for magnitude in (1e9, 1e20, 3e38):
        check_huge_positions(magnitude, dtype)
        x = torch.tensor([[magnitude, -magnitude, math.nan]], dtype=dtype)
        ops.sh_encode(x, 4), ops.frequency_encode(x, 6)
"""


@pytest.fixture(scope="module")
def sanitized(cuda_on_host: ModuleType) -> tuple[Path, dict[str, str]]:
    """The module, and the environment a process needs to load it; skips where the sanitizers are missing."""
    found = [
        Path(subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip())
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(path.is_absolute() and path.exists() for path in found):
        pytest.skip(f"{compiler()} has no AddressSanitizer")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(str(path.resolve()) for path in found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return build_sanitized(HOST_BUILD.parent / "host_sanitized", HOST_BUILD), environment


def run(sanitized: tuple[Path, dict[str, str]], code: str) -> subprocess.CompletedProcess[str]:
    module, environment = sanitized
    prelude = RUN.format(tests=str(ROOT / "tests"), root=str(ROOT), module=str(module))
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("code", [SIZES, STRANGE], ids=["sizes", "strange"])
def test_sanitizers_find_nothing(sanitized: tuple[Path, dict[str, str]], code: str) -> None:
    done = run(sanitized, code)
    assert done.returncode == 0, done.stderr[-6000:]


SHORT = """
x = torch.zeros(9, 3)
x.untyped_storage().resize_(8 * 3 * 4)
ops.sh_encode(x, 4)
"""


def test_address_sanitizer_finds_a_row_too_many(sanitized: tuple[Path, dict[str, str]]) -> None:
    """Of a tensor whose memory has shrunk behind its back: the sanitizers do watch the kernels."""
    done = run(sanitized, SHORT)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "sh_encode" in done.stderr
