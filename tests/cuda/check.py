"""Builds the CUDA kernels without a GPU, imports them, compares what each kernel occupies with a stored table, and
looks at its instructions.

`make cuda-check` runs this in an environment with a CUDA torch. It fails on a compiler warning, on an op of the CPU
that has no CUDA kernel, on a kernel that takes more registers, stack or spills than `resources.json` says, and on one
whose machine code lacks what `INSTRUCTIONS` says, or keeps arrays in local memory. A table that has to change is
written anew with ``--update``; the commit says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).resolve().parent / "resources.json"
ALL_ARCHS = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
FIELDS = ("registers", "shared", "stack", "spill_stores", "spill_loads")
MAY_NOT_GROW = ("registers", "stack", "spill_stores", "spill_loads")

# Kernels, the first architecture it is true of, and instructions each of them has: rows of the table loaded and stored
# whole, gradients added by vector reductions, matrices multiplied by tensor cores from factors loaded as matrices.
INSTRUCTIONS = (
    (r"hash_encode_(forward|backward_positions)_kernel<float, float, [234], 2>", 75, ("LDG.E.64",)),
    (r"hash_encode_(forward|backward_positions)_kernel<float, float, [234], [48]>", 75, ("LDG.E.128",)),
    (r"hash_encode_forward_kernel<float, B?Float16, [234], 4>", 75, ("LDG.E.64", "STG.E.128")),
    (r"hash_encode_forward_kernel<float, B?Float16, [234], 8>", 75, ("LDG.E.128", "STG.E.128")),
    (r"hash_encode_forward_kernel<float, \w+, [234], 2>", 75, ("STG.E.64",)),
    (r"hash_encode_backward_table_kernel<[234], 1>", 90, ("REDG.E.ADD.F32.FTZ", "REDG.E.ADD.F32x2")),
    (r"hash_encode_backward_table_kernel<[234], 2>", 90, ("LDG.E.64", "REDG.E.ADD.F32x2", "REDG.E.ADD.F32x4")),
    (r"hash_encode_backward_table_kernel<[234], [48]>", 90, ("LDG.E.128", "REDG.E.ADD.F32x4")),
    (r"hash_encode_second_table_kernel<2>", 90, ("LDG.E.64", "REDG.E.ADD.F32x2", "REDG.E.ADD.F32x4")),
    (r"hash_encode_second_table_kernel<[48]>", 90, ("LDG.E.128", "REDG.E.ADD.F32x4")),
    (r"mlp_fused_forward_kernel<BFloat16, .*>", 80, ("HMMA.16816.F32.BF16",)),
    (r"hash_encode_mlp_kernel<float, BFloat16, .*>", 80, ("LDG.E.64", "HMMA.16816.F32.BF16")),
    (r"(hash_encode_mlp|radiance_field|render_rays|occupancy_values)_kernel<\w+, Float16.*>", 80, ("HMMA.16816.F32",)),
    (r"(radiance_field|render_rays|occupancy_values)_kernel<float, BFloat16>", 80, ("LDG.E.64", "HMMA.16816.F32.BF16")),
    (r"render_rays_kernel<.*>", 80, ("SHFL", "ATOM", "VOTE")),
    (r"radiance_mlp_forward_kernel<BFloat16>", 80, ("LDG.E.64", "HMMA.16816.F32.BF16")),
    (r"radiance_mlp_backward_kernel<BFloat16>", 80, ("LDG.E.64", "HMMA.16816.F32.BF16", "LDSM.16.MT88")),
    (r"radiance_mlp_(forward|backward)_kernel<Float16>", 80, ("HMMA.16816.F32",)),
    (r"mlp_fused_backward_kernel<BFloat16, .*>", 80, ("HMMA.16816.F32.BF16", "LDSM.16.MT88")),
    (r"mlp_fused_(forward|backward)_kernel<Float16, .*>", 80, ("HMMA.16816.F32",)),
    (r"adam_step_rows_kernel<float, 2>", 75, ("LDG.E.64", "STG.E.64")),
    (r"adam_step_rows_kernel<float, [48]>", 75, ("LDG.E.128", "STG.E.128")),
    (r"composite_\w+_kernel<.*>", 75, ("SHFL",)),
)
# Sines of large arguments, of fp64 and in the MLP's sine activation, reduce them by a table in local memory.
LOCAL_MEMORY = "|".join(
    (
        r"frequency_encode_\w+_kernel<double>",
        r"(hash_encode_mlp|radiance_field|radiance_mlp_forward|radiance_mlp_backward|render_rays)_kernel<.*>",
        r"mlp_(fused_forward|fused_backward|activate|derivative)_kernel<.*>",
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", default="9.0+PTX", help='as TORCH_CUDA_ARCH_LIST takes it, or "all"')
    parser.add_argument("--update", action="store_true", help="write the table instead of comparing with it")
    args = parser.parse_args()
    archs = ALL_ARCHS if args.archs == "all" else args.archs
    out = ROOT / "build" / "cuda"
    resources = parse_resources(build(out, archs))
    check_import(out / "lib")
    check_instructions(out / "lib")
    if args.update:
        update_table(resources)
    else:
        compare(resources)
    worst = max(resources.items(), key=lambda item: item[1]["registers"])
    spilled = sum(row["spill_stores"] + row["spill_loads"] > 0 for row in resources.values())
    print(
        f"{len(resources)} kernels for {archs}: {spilled} spill, the largest has {worst[1]['registers']} registers:"
        f" {worst[0]}"
    )


def build(out: Path, archs: str) -> str:
    """The build's output; every source is compiled, so that ptxas speaks about each kernel."""
    environment = {**os.environ, "HASHGRID_CUDA": "1", "TORCH_CUDA_ARCH_LIST": archs}
    command = [sys.executable, "setup.py", "build", "--force"]
    command += [f"--build-lib={out / 'lib'}", f"--build-temp={out / 'temp'}"]
    for path in (out / "temp").rglob("*.o"):
        path.unlink()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    warnings = [line for line in output.splitlines() if re.search(r"\b(warning|error)\b", line) and "csrc" in line]
    if done.returncode != 0 or warnings:
        sys.exit("\n".join(warnings) or output[-8000:])
    return output


def parse_resources(output: str) -> dict[str, dict[str, int]]:
    """``"arch kernel" -> FIELDS`` from what ``ptxas -v`` printed."""
    found: dict[str, dict[str, int]] = {}
    names: dict[str, str] = {}
    key = ""
    for line in output.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            key = f"sm_{entry[2]} {entry[1]}"
            names[entry[1]] = ""
            found[key] = dict.fromkeys(FIELDS, 0)
        elif (
            stack := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line)
        ) and key:
            found[key] |= dict(zip(("stack", "spill_stores", "spill_loads"), map(int, stack.groups()), strict=True))
        elif (used := re.search(r"Used (\d+) registers", line)) and key:
            found[key]["registers"] = int(used[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                found[key]["shared"] = int(shared[1])
            key = ""
    if not found:
        sys.exit("the build printed nothing about the kernels' resources; is `-Xptxas=-v` still passed?")
    names = demangle(names)
    return {f"{key.split()[0]} {names[key.split()[1]]}": row for key, row in sorted(found.items())}


def demangle(mangled: Iterable[str]) -> dict[str, str]:
    """Kernels without return type and namespaces, by their mangled names."""
    done = subprocess.run(["c++filt", "-p"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = (re.sub(r"hashgrid::(?:device::)?", "", name.removeprefix("void ")) for name in done.stdout.splitlines())
    return dict(zip(mangled, names, strict=True))


def check_instructions(lib: Path) -> None:
    """Holds the machine code of every architecture in the build against `INSTRUCTIONS` and `LOCAL_MEMORY`."""
    (library,) = (lib / "hashgrid").glob("_C_cuda*.so")
    code = machine_code(library)
    problems = []
    for (arch, kernel), instructions in code.items():
        has = lambda wanted: any(instruction.startswith(wanted) for instruction in instructions)  # noqa: E731, B023
        if (has("LDL") or has("STL")) and not re.fullmatch(LOCAL_MEMORY, kernel):
            problems.append(f"sm_{arch} {kernel}: keeps something in local memory")
        for pattern, first_arch, wanted in INSTRUCTIONS:
            if arch >= first_arch and re.fullmatch(pattern, kernel):
                problems += [f"sm_{arch} {kernel}: no {name}" for name in wanted if not has(name)]
    for pattern, first_arch, _ in INSTRUCTIONS:
        if not any(re.fullmatch(pattern, kernel) for arch, kernel in code if arch >= first_arch):
            problems.append(f"no kernel matches {pattern}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"the instructions of {len(code)} kernels are as expected")


def machine_code(library: Path) -> dict[tuple[int, str], set[str]]:
    """The different instructions of each kernel, by architecture and name."""
    tool = find_cuobjdump()
    code: dict[tuple[int, str], set[str]] = {}
    with subprocess.Popen([tool, "-sass", str(library)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        arch, instructions = 0, set[str]()
        for line in process.stdout:
            if found := re.search(r"arch = sm_(\d+)", line):
                arch = int(found[1])
            elif found := re.search(r"Function : (\w+)", line):
                instructions = code.setdefault((arch, found[1]), set())
            elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", line):
                instructions.add(found[1])
    if process.returncode != 0 or not code:
        sys.exit(f"`{tool} -sass` found no machine code in {library}")
    names = demangle({name for _, name in code})
    return {(arch, names[name]): found for (arch, name), found in code.items()}


def find_cuobjdump() -> str:
    """CUDA's disassembler: the toolkit's, or the one that Triton carries, which comes with a CUDA torch."""
    triton = importlib.util.find_spec("triton")
    folders = triton.submodule_search_locations if triton is not None else None
    for candidate in (
        shutil.which("cuobjdump"),
        *(f"{folder}/backends/nvidia/bin/cuobjdump" for folder in folders or ()),
    ):
        if candidate is not None and Path(candidate).exists():
            return candidate
    sys.exit("cuobjdump is neither on the PATH nor in the package triton")


def check_import(lib: Path) -> None:
    """Imports the build where no GPU is needed, and lists the ops with a CUDA kernel."""
    code = """
import torch, hashgrid
from hashgrid import _extension
assert _extension.cuda_module is not None, _extension.cuda_reason
def ops(key):
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.split("::")[1] for name in names if name.startswith("hashgrid::")}
print("CUDA kernels:", *sorted(ops("CUDA")))
missing = ops("CPU") - ops("CUDA") - {"mlp_backward_backward"}  # that one is composed of PyTorch's own ops
assert not missing, f"no CUDA kernel for {sorted(missing)}"
"""
    environment = {**os.environ, "PYTHONPATH": str(lib)}
    done = subprocess.run([sys.executable, "-c", code], cwd=lib, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    print(done.stdout, end="")


def load_table() -> dict[str, list[int]]:
    return json.loads(TABLE.read_text())["kernels"] if TABLE.exists() else {}


def update_table(resources: dict[str, dict[str, int]]) -> None:
    archs = {key.split()[0] for key in resources}
    table = {key: row for key, row in load_table().items() if key.split()[0] not in archs}
    table |= {key: [row[field] for field in FIELDS] for key, row in resources.items()}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table))
    TABLE.write_text(f'{{"fields": {json.dumps(FIELDS)}, "kernels": {{\n{lines}\n}}}}\n')
    print(f"{len(resources)} rows written to {TABLE.relative_to(ROOT)}")


def compare(resources: dict[str, dict[str, int]]) -> None:
    table = load_table()
    archs = {key.split()[0] for key in resources}
    problems = [f"{key}: not in the table" for key in resources if key not in table]
    problems += [
        f"{key}: in the table, but no longer built" for key in table if key.split()[0] in archs and key not in resources
    ]
    for key, row in resources.items():
        if key not in table:
            continue
        stored = dict(zip(FIELDS, table[key], strict=True))
        problems += [f"{key}: {stored[f]} -> {row[f]} {f}" for f in MAY_NOT_GROW if row[f] > stored[f]]
    if problems:
        text = "\n".join(problems)
        sys.exit(f"{text}\nIf that is meant, run tests/cuda/check.py with --update and say why in the commit.")


if __name__ == "__main__":
    main()
