"""The emulated CUDA kernels with one line broken have to fail, and so have kernels that break the rules of CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from host.build import HOST, HOST_BUILD, build_program, build_with_faults

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[1]
STOPPED = "cuda_on_host:"  # the emulation itself
WRONG = "AssertionError"  # a comparison with the reference
ANY = ""  # wherever a wrong number of samples leads


def instead(fault: str, sound: str, broken: str) -> str:
    """A statement, and what stands there while ``fault`` is planted."""
    return f'if (hashgrid_on_host::planted("{fault}")) {{ {broken} }} else {{ {sound} }}'


def without(fault: str, text: str, statement: str = "__syncthreads();") -> tuple[str, str]:
    """A text and the same with one statement left out."""
    return text, text.replace(statement, instead(fault, statement, ""))


ADD = "atomicAdd(target, values[0]);"
SWAPPED = """  const bool planted = hashgrid_on_host::planted("fragment");
  const uint32_t swapped[4] = {a[0], planted ? a[2] : a[1], planted ? a[1] : a[2], a[3]};
  hashgrid_on_host::mma_m16n8k16(sum, swapped, b0, b1,"""
EXCHANGE = "const A other = shuffle_up(value, distance);\n    if (lane >= distance) value = other + value;"
# fault: file, text, other text, the case that has to fail, and by what
FAULTS = {
    "atomic": (
        *("cuda/atomics.cuh", f"if constexpr (kSize == 1) {ADD}"),
        f"if constexpr (kSize == 1) {{ {instead('atomic', ADD, 'target[0] = values[0];')} }}",
        *("hash_encode_case(257)", WRONG),
    ),
    "pair of rows": (
        *("cuda/atomics.cuh", "const bool swapped = (first & 1u) != 0;"),
        'const bool swapped = (first & 1u) != 0 && !hashgrid_on_host::planted("pair of rows");',
        *("hash_encode_case(257)", WRONG),
    ),
    "corner": (
        *("core/grid_point.h", "? 1u : 1u << n_dims;"),
        *('? 1u : (1u << n_dims) - (hashgrid_on_host::planted("corner") ? 1u : 0u);', "hash_encode_case(257)", WRONG),
    ),
    "fragment": (
        *("cuda/mma.cuh", "  hashgrid_on_host::mma_m16n8k16(sum, a, b0, b1,", SWAPPED, "mlp_case(65)", WRONG),
    ),
    "exchange": (
        *("cuda/warp.cuh", EXCHANGE),
        *(instead("exchange", EXCHANGE, "if (lane >= distance) value = shuffle_up(value, distance) + value;"),),
        *("march_rays_case(257)", STOPPED),
    ),
    "run": (
        *("cuda/hash_encode.cu", "if (distance < run.length) values[i] += other;"),
        *(instead("run", "if (distance < run.length) values[i] += other;", "values[i] += other;"),),
        *("hash_encode_case(257)", WRONG),
    ),
    "axis": (
        *("core/grid_point.h", "level.axes.scales[level.first + axis]"),
        *('level.axes.scales[level.first + (hashgrid_on_host::planted("axis") ? 0 : axis)]',),
        *("hash_encode_case(257)", WRONG),
    ),
    "samples behind an alpha": (
        *("cuda/warp.cuh", "summand = summand + factor * other_summand;"),
        *(
            instead(
                "samples behind an alpha", "summand = summand + factor * other_summand;", "summand += other_summand;"
            ),
        ),
        *("composite_case(33)", WRONG),
    ),
    "samples of a line integral": (
        *("cuda/line_integrals.cu", "for (int64_t i = lane; i < count; i += kWarpSize)"),
        'for (int64_t i = lane; i < (hashgrid_on_host::planted("samples of a line integral") ? 3 : count);'
        " i += kWarpSize)",
        *("line_integrals_case(33)", WRONG),
    ),
    "barrier of hash_encode": (
        "cuda/hash_encode.cu",
        *without("barrier of hash_encode", "__syncthreads();\n    if (static_cast<int>(threadIdx.x) < half)"),
        *("hash_encode_case(257)", WRONG),
    ),
    "barrier of the sums of a block": (
        "cuda/warp.cuh",
        *without("barrier of the sums of a block", "__syncthreads();\n  if (threadIdx.x > 0) return;\n  for (int warp"),
        *("occupancy_update_case(4099)", WRONG),
    ),
    "barrier in front of the sums of scan": (
        "cuda/scan.cuh",
        *without("barrier in front of the sums of scan", "__syncthreads();\n  int64_t in_front"),
        *("march_rays_case(257)", ANY),
    ),
    "barrier behind the sums of scan": (
        "cuda/scan.cuh",
        *without("barrier behind the sums of scan", "__syncthreads();  // the next call"),
        *("march_rays_case(1000)", ANY),
    ),
    "barrier between layers of mlp": (
        "cuda/mlp_fused.cuh",
        *without("barrier between layers of mlp", "__syncthreads();  // the gradient is complete"),
        *("mlp_case(255)", WRONG),
    ),
    "barrier behind a weight gradient of mlp": (
        "cuda/mlp_fused.cuh",
        *without("barrier behind a weight gradient of mlp", "__syncthreads();  // the factors are no longer read"),
        *("mlp_case(255)", WRONG),
    ),
    "gradient of densities": (
        "cuda/mlp_fused.cuh",
        *without("gradient of densities", *(2 * ["add_density_gradient(p, shared, first, &grad);"])),
        *("radiance_mlp_case(255)", WRONG),
    ),
    "rays of rows behind the last": (
        *("cuda/radiance_tiles.cuh", "const bool inside = row < n_rows,"),
        'const bool inside = row < n_rows || hashgrid_on_host::planted("rays of rows behind the last"),',
        *("radiance_mlp.check_rows_behind_the_last()", WRONG),
    ),
    "rays of idle lanes": (
        *("cuda/render_rays.cu", "__popc(idle & ((1u << lane_index()) - 1u));"),
        '__popc(idle & ((1u << lane_index()) - 1u)) * (hashgrid_on_host::planted("rays of idle lanes") ? 0 : 1);',
        *("render_rays_case(257)", WRONG),
    ),
    "column to lanes": (
        *("cuda/mlp_tiles.cuh", "if (lane_index() / 8 == 2 * m + h) own = other;"),
        *('if (lane_index() / 8 == 2 * m + h || hashgrid_on_host::planted("column to lanes")) own = other;',),
        *("render_rays_case(257)", WRONG),
    ),
    "hidden samples": (
        *("cuda/render_rays.cu", "!(lane->transmittance >= p.early_stop_eps)"),
        *('!(lane->transmittance >= p.early_stop_eps || hashgrid_on_host::planted("hidden samples"))',),
        *("render_rays_case(257)", WRONG),
    ),
    "draw": (
        *("core/pixels.h", "counter_uniform(key, index + 3)"),
        *('counter_uniform(key, index + (hashgrid_on_host::planted("draw") ? 2 : 3))', "sample_rays_case(255)", WRONG),
    ),
    "bend of a jet": (
        *("cuda/mlp_jet.cu", "f.first * of_slope + T(2) * turned *"),
        'f.first * of_slope + T(hashgrid_on_host::planted("bend of a jet") ? 1 : 2) * turned *',
        *("mlp_jet_case(7)", WRONG),
    ),
    "jets of two axes": (
        *("core/grid_jet.h", "a.second * b.value + A(2) * a.first * b.first"),
        'a.second * b.value + A(hashgrid_on_host::planted("jets of two axes") ? 1 : 2) * a.first * b.first',
        *("hash_encode_jet_case(7)", WRONG),
    ),
    "barrier in front of a product of mlp": (
        "cuda/mlp_plain.cuh",
        *without("barrier in front of a product of mlp", "__syncthreads();\n#pragma unroll\n    for (int d = 0;"),
        *("mlp_case(65)", WRONG),
    ),
}

# More checks of the same faults: what an op may differ from the CPU by, a range followed through its roundings.
MORE_CHECKS = {
    "corner": "agreement.check_draws('hash_encode_mlp', range(1))",
    "fragment": "agreement.check_draws('radiance_mlp', range(1))",
    "gradient of densities": "agreement.check_draws('radiance_mlp_backward', range(1))",
}

RUN = """
import json, os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
torch.set_num_threads(1)
from problems import agreement, cases, radiance_mlp
from pathlib import Path
from host.build import load
from host.redirect import take_cuda_ops
load(Path({module!r}))
take_cuda_ops(torch.ops.hashgrid_on_host)
outcomes = {{}}
for name, (fault, checks) in json.loads(sys.argv[1]).items():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1), os.dup2(writer, 2), os.close(reader), os.close(writer)
        os.environ["HASHGRID_PLANTED"] = fault
        torch.manual_seed(0)
        for check in checks:
            eval(check)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as output:
        text = output.read()
    outcomes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(cuda_on_host: ModuleType) -> dict[str, tuple[int, str]]:
    """Of each check of a fault, and of all without one, "": exit status and output, in a process of its own."""
    out = HOST_BUILD.parent / "host_faults"
    only = ("composite", "hash_encode", "hash_encode_jet", "line_integrals", "march_rays", "mlp", "mlp_jet")
    only += ("occupancy_update", "occupancy_values")
    only += ("radiance_mlp", "render_rays", "sample_rays")
    module = build_with_faults(out, [fault[:3] for fault in FAULTS.values()], only, HOST_BUILD)
    checks = {name: (name, [fault[3] if "." in fault[3] else f"cases.{fault[3]}"]) for name, fault in FAULTS.items()}
    checks |= {f"{name}, agreement": (name, [check]) for name, check in MORE_CHECKS.items()}
    checks[""] = "", sorted({check for _, (check,) in checks.values()})
    code = RUN.format(tests=str(ROOT / "tests"), root=str(ROOT), module=str(module))
    done = subprocess.run([sys.executable, "-c", code, json.dumps(checks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(outcomes: dict[str, tuple[int, str]], fault: str) -> None:
    status, output = outcomes[fault]
    assert status != 0 and FAULTS[fault][4] in output, output[-3000:]


@pytest.mark.parametrize("fault", MORE_CHECKS)
def test_planted_fault_is_out_of_range(outcomes: dict[str, tuple[int, str]], fault: str) -> None:
    status, output = outcomes[f"{fault}, agreement"]
    assert status != 0 and WRONG in output and "of what is allowed" in output, output[-3000:]


def test_the_same_kernels_without_a_fault_pass(outcomes: dict[str, tuple[int, str]]) -> None:
    assert outcomes[""] == [0, ""]


# ---- rules of CUDA -----------------------------------------------------------------------------------------------

RULES = {
    "barrier of some": "threads of a block wait at different barriers",
    "exchange of some": "lanes of a warp meet from different lines",
    "exchange that some miss": "deadlock: every thread of a block waits",
    "exchange outside its mask": "a lane takes part in a warp exchange whose mask does not name it",
    "shared overflow": "a thread writes beside the dynamic shared memory",
    "shared memory unasked": "more dynamic shared memory than asked for",
    "unannounced barrier": "__syncthreads in a kernel launched without HASHGRID_LAUNCH_TOGETHER",
    "grid without depth": "a grid must be 1 to 65535 blocks deep, got 0",
    "grid too high": "a grid must be 1 to 65535 blocks high, got 65536",
    "block without threads": "a block must be",
    "block too large": "a block must have 1 to 1024 threads, got 1025",
    "more shared memory than there is": "more shared memory than a block can have",
}


@pytest.fixture(scope="module")
def broken_kernels(cuda_on_host: ModuleType) -> Path:
    return build_program(HOST / "broken_kernels.cu", HOST_BUILD.parent / "host_broken")


@pytest.mark.parametrize("rule", RULES)
def test_kernel_that_breaks_a_rule_is_stopped(broken_kernels: Path, rule: str) -> None:
    done = subprocess.run([broken_kernels, rule], capture_output=True, text=True)
    assert done.returncode != 0 and STOPPED in done.stderr and RULES[rule] in done.stderr, done.stderr


def test_sound_kernel_runs(broken_kernels: Path) -> None:
    done = subprocess.run([broken_kernels, "sound"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "0 wrong\n"
