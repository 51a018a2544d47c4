"""Checks the CUDA kernels without a GPU, in three parts, of which ``--only`` runs one.

- ``headers``: all of csrc/ops compiles with the oldest torch we support, as C++17 and C++20. Needs any torch and nvcc.
- ``contraction``: kernels that have the CPU's bits have the same machine code whether or not the compiler may fuse
  products into sums. Needs nvcc and cuobjdump.
- ``kernels``: builds them and imports the result. Fails on a compiler warning, on an op of the CPU that has no CUDA
  kernel, on a kernel that takes more registers, stack, spills or code than `resources.json` says, and on one whose
  machine code lacks what `INSTRUCTIONS` says, keeps arrays in local memory, or does not know what memory it accesses.
  Needs a CUDA torch. A table that has to change is written anew with ``--update``; the commit says why.

`make cuda-check` runs all in an environment with a CUDA torch.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).resolve().parent / "resources.json"
ALL_ARCHS = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
FIELDS = ("registers", "shared", "stack", "spill_stores", "spill_loads", "text")
MAY_NOT_GROW = ("registers", "stack", "spill_stores", "spill_loads")
TEXT_MAY_GROW = 1.05  # times: bytes of machine code; another order of instructions is not worth a new table

OLDEST_TORCH = "2.10.0"  # of pyproject.toml
OLDEST_HEADERS = ROOT / ".venv-cuda" / f"headers-{OLDEST_TORCH}"
HEADER_FOLDERS = ("csrc/stable", "csrc/inductor/aoti_torch", "headeronly")  # below torch/include/torch

# Ops whose results are those of the CPU, bit for bit.
EXACT = (
    *("counter_uniform", "march_rays", "occupancy_points", "occupancy_update", "occupancy_visible", "ray_aabb"),
    *("sample_positions", "sample_rays", "sphere_trace", "visible_samples", "window_samples"),
)

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
        r"mlp_(fused_forward|fused_backward|activate|derivative|jet_activate)_kernel<.*>",
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="9.0+PTX", help='as TORCH_CUDA_ARCH_LIST takes it, or "all"')
    parser.add_argument("--only", choices=("headers", "contraction", "kernels"))
    parser.add_argument("--update", action="store_true", help="write the table instead of comparing with it")
    args = parser.parse_args()
    archs = ALL_ARCHS if args.archs == "all" else args.archs
    if args.only in (None, "headers"):
        check_headers()
    if args.only in (None, "contraction"):
        check_contraction(archs)
    if args.only in (None, "kernels"):
        check_kernels(archs, args.update)


def check_kernels(archs: str, update: bool) -> None:
    out = ROOT / "build" / "cuda"
    resources = parse_resources(build(out, archs))
    check_import(out / "lib")
    (library,) = (out / "lib" / "hashgrid").glob("_C_cuda*.so")
    code = machine_code(library)
    check_instructions(code)
    for (arch, kernel), found in code.items():
        resources[f"sm_{arch} {kernel}"]["text"] = found.text
    if update:
        update_table(resources)
    else:
        compare(resources)
    most = max(resources.items(), key=lambda item: item[1]["registers"])
    longest = max(resources.items(), key=lambda item: item[1]["text"])
    spilled = sum(row["spill_stores"] + row["spill_loads"] > 0 for row in resources.values())
    print(
        f"{len(resources)} kernels for {archs}: {spilled} spill, the largest has {most[1]['registers']} registers:"
        f" {most[0]}; the longest {longest[1]['text']} bytes: {longest[0]}"
    )


# ---- headers of the oldest torch ---------------------------------------------------------------------------------


def check_headers() -> None:
    """Has a C++ compiler look at csrc/ops with the headers of `OLDEST_TORCH` and the macros of setup.py."""
    headers = oldest_headers()
    with mock.patch("setuptools.setup"), mock.patch.dict(os.environ, {"HASHGRID_CUDA": "0"}):
        settings = runpy.run_path(str(ROOT / "setup.py"))
    if settings["CUDA_ROOT"] is None:
        sys.exit("the headers of csrc/ops/cuda need a CUDA toolkit: nvcc is not on the PATH")
    macros = [*settings["MACROS"], ("HASHGRID_COMPILER", "__VERSION__")]
    macros += [(f"HASHGRID_{name}", '""') for name in ("NO_CUDA", "CUDA_ARCHS", "CUDA_RELEASE")]
    foreign = [headers, sysconfig.get_paths()["include"], settings["CUDA_ROOT"] / "include"]
    flags = ["-fsyntax-only", "-DTORCH_EXTENSION_NAME=_C"]
    flags += [f"-D{name}" + (f"={value}" if value is not None else "") for name, value in macros]
    flags += [f"-I{path}" for path in settings["COMMON"]["include_dirs"]]
    flags += [word for path in foreign for word in ("-isystem", str(path))]
    sources = sorted((ROOT / "csrc" / "ops").rglob("*.cpp"))

    def problem(job: tuple[str, Path]) -> str:
        command = [os.environ.get("CXX", "g++"), f"-std={job[0]}", *flags, str(job[1])]
        done = subprocess.run(command, capture_output=True, text=True)
        errors = [line for line in done.stderr.splitlines() if "error" in line][:3]
        return "" if done.returncode == 0 else "\n".join([f"{job[1].relative_to(ROOT)} as {job[0]}:", *errors])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(standard, source) for source in sources for standard in ("c++17", "c++20")]
        problems = [text for text in pool.map(problem, jobs) if text]
    if problems:
        sys.exit("\n".join(problems) + f"\ncsrc/ops does not compile with torch {OLDEST_TORCH}")
    print(f"{len(sources)} files of csrc/ops compile with torch {OLDEST_TORCH}, as C++17 and C++20")


def oldest_headers() -> Path:
    """The headers of `OLDEST_TORCH`, of its smallest wheel: aarch64, without CUDA. They are the same in all of them."""
    include = OLDEST_HEADERS / "torch" / "include"
    if include.exists():
        return include
    platform = ["--platform=manylinux_2_28_aarch64", "--python-version=3.11", "--only-binary=:all:"]
    OLDEST_HEADERS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OLDEST_HEADERS.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platform]
        done = subprocess.run([*command, f"--dest={folder}", f"torch=={OLDEST_TORCH}"], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            sys.exit(
                f"the wheel of torch {OLDEST_TORCH}, whose headers csrc/ops has to compile with, cannot be had:\n"
                f"{done.stderr[-2000:]}\nWith a network, pip downloads 146 MB once, of which the headers stay in"
                f" {OLDEST_HEADERS.relative_to(ROOT)}."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            wanted = tuple(f"torch/include/torch/{name}/" for name in HEADER_FOLDERS)
            wheel.extractall(Path(folder) / "headers", [name for name in wheel.namelist() if name.startswith(wanted)])
        (Path(folder) / "headers").rename(OLDEST_HEADERS)
    return include


# ---- contraction -------------------------------------------------------------------------------------------------


def check_contraction(archs: str) -> None:
    """Compiles the ops of `EXACT` twice and compares.

    Divisions and roots are made of fused multiply-adds as well, so that counting those would say nothing.
    """
    numbers = [arch.replace(".", "").removesuffix("+PTX") for arch in archs.split()]
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", "-fatbin"]
    flags += [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    out = ROOT / "build" / "cuda" / "contraction"
    out.mkdir(parents=True, exist_ok=True)

    def code_of(job: tuple[str, str]) -> dict[tuple[int, str], Code]:
        op, fused = job
        target = out / f"{op}.{fused}.fatbin"
        command = ["nvcc", *flags, f"-fmad={fused}", "-o", str(target), str(ROOT / "csrc" / "cuda" / f"{op}.cu")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return machine_code(target)

    jobs = [(op, fused) for op in EXACT for fused in ("true", "false")]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, int(os.environ.get("MAX_JOBS", 64)))) as pool:
        codes = dict(zip(jobs, pool.map(code_of, jobs), strict=True))
    problems, n_kernels = [], 0
    for op in EXACT:
        fused, apart = codes[op, "true"], codes[op, "false"]
        n_kernels += len(fused)
        problems += [
            f"csrc/cuda/{op}.cu: sm_{arch} {kernel}: {fused[arch, kernel].n_fused} fused multiply-adds,"
            f" {apart[arch, kernel].n_fused} without contraction"
            for arch, kernel in fused
            if fused[arch, kernel].digest.digest() != apart[arch, kernel].digest.digest()
        ]
    if problems:
        text = "\n".join(problems)
        sys.exit(f"{text}\nWrite the product with rounded_multiply or add_scaled (csrc/core/ray.h).")
    print(f"the compiler fuses no product of {n_kernels} kernels that have the CPU's bits")


# ---- kernels -----------------------------------------------------------------------------------------------------


def build(out: Path, archs: str) -> str:
    """The build's output; every source is compiled, so that ptxas speaks about each kernel."""
    environment = {**os.environ, "HASHGRID_CUDA": "1", "HASHGRID_WERROR": "1", "TORCH_CUDA_ARCH_LIST": archs}
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
    key, own = "", True
    for line in output.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            key = f"sm_{entry[2]} {entry[1]}"
            names[entry[1]] = ""
            found[key] = dict.fromkeys(FIELDS, 0)
        elif function := re.search(r"Function properties for (\w+)", line):
            own = key.endswith(f" {function[1]}")  # not of a function that the kernel calls
        elif (stack := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line)) and (
            key and own
        ):
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


@dataclass
class Code:
    """Machine code of a kernel."""

    instructions: set[str] = field(default_factory=set)  # the different ones
    text: int = 0  # bytes, with functions it calls
    n_fused: int = 0  # fused multiply-adds
    digest: Any = field(default_factory=hashlib.sha256)  # of all instructions with their operands


def check_instructions(code: dict[tuple[int, str], Code]) -> None:
    """Holds machine code against `INSTRUCTIONS` and `LOCAL_MEMORY`. Each access knows which memory it is to."""
    problems = []
    for (arch, kernel), found in code.items():
        instructions = found.instructions
        has = lambda wanted: any(instruction.startswith(wanted) for instruction in instructions)  # noqa: E731, B023
        if (has("LDL") or has("STL")) and not re.fullmatch(LOCAL_MEMORY, kernel):
            problems.append(f"sm_{arch} {kernel}: keeps something in local memory")
        generic = sorted(name for name in instructions if re.fullmatch(r"(LD|ST)(\..*)?", name))
        if generic:
            problems.append(f"sm_{arch} {kernel}: {', '.join(generic)} may be to shared or global memory")
        for pattern, first_arch, wanted in INSTRUCTIONS:
            if arch >= first_arch and re.fullmatch(pattern, kernel):
                problems += [f"sm_{arch} {kernel}: no {name}" for name in wanted if not has(name)]
    for pattern, first_arch, _ in INSTRUCTIONS:
        if not any(re.fullmatch(pattern, kernel) for arch, kernel in code if arch >= first_arch):
            problems.append(f"no kernel matches {pattern}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"the instructions of {len(code)} kernels are as expected")


def machine_code(binary: Path) -> dict[tuple[int, str], Code]:
    """The machine code of each kernel, by architecture and name."""
    tool = find_cuobjdump()
    code: dict[tuple[int, str], Code] = {}
    with subprocess.Popen([tool, "-sass", str(binary)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        arch, kernel = 0, Code()
        for line in process.stdout:
            if found := re.search(r"arch = sm_(\d+)", line):
                arch = int(found[1])
            elif found := re.search(r"Function : (\w+)", line):
                kernel = code.setdefault((arch, found[1]), Code())
            elif found := re.match(r"\s+/\*([0-9a-f]+)\*/\s+((?:@!?U?P\w+ )?([A-Z][\w.]*).*?);", line):
                kernel.instructions.add(found[3])
                kernel.text = max(kernel.text, int(found[1], 16) + 16)
                kernel.n_fused += re.match("[DFH]FMA", found[3]) is not None
                kernel.digest.update(found[2].encode())
    if process.returncode != 0 or not code:
        sys.exit(f"`{tool} -sass` found no machine code in {binary}")
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
others = {"mlp_with_gradient", "mlp_backward_backward", "gather_rows", "visible_cells"}  # by ops that there are
missing = ops("CPU") - ops("CUDA") - others
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
        if row["text"] > TEXT_MAY_GROW * stored["text"] + 512:
            problems.append(f"{key}: {stored['text']} -> {row['text']} bytes of machine code")
    if problems:
        text = "\n".join(problems)
        sys.exit(f"{text}\nIf that is meant, run tests/cuda/check.py with --update and say why in the commit.")


if __name__ == "__main__":
    main()
