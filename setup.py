"""Builds ``hashgrid._C``, the CPU kernels, and, where there are a CUDA toolkit and a CUDA torch, ``hashgrid._C_cuda``.

Both use LibTorch's stable ABI, which outlives the torch they were built with. No GPU is needed to build.

Environment:
    HASHGRID_CUDA=0|1     leave the CUDA kernels out, or fail if they cannot be built
    TORCH_CUDA_ARCH_LIST  GPUs to build for, as torch takes it ("8.6 9.0+PTX"); by default those of this machine, and
                          every GPU the toolkit knows where there are none
    HASHGRID_NATIVE=1     compile the baseline kernels for this machine's CPU (not for wheels)
    HASHGRID_DEBUG=1      no optimisation, debug symbols
    HASHGRID_WERROR=1     nvcc's warnings are errors, as `make cuda-check` has it
    MAX_JOBS              parallel compile jobs; by default from cores and free memory

On Windows the compiler has to be clang-cl, under the name `cl` and before Visual Studio's on the PATH: that one has no
vector types. Untried, see .github/workflows/wheels.yml.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020a000000000000"  # 2.10: the first release whose stable ABI is versioned
WINDOWS = os.name == "nt"
ALL_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


def flag(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def toolkit() -> tuple[Path | None, str]:
    """Root of the CUDA toolkit and nvcc's release. An nvcc on the PATH may be a script: it is asked where it lives."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        return None, ""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    if top is None:
        return None, ""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", version)
    return Path(top.group(1)).resolve(), release.group(1) if release else ""


CUDA_ROOT, CUDA_RELEASE = toolkit()
if CUDA_ROOT is not None:
    os.environ["CUDA_HOME"] = str(CUDA_ROOT)  # before torch guesses it

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    sys.exit(
        f"hashgrid builds against PyTorch and {error.name!r} is missing. Run\n"
        "    pip install 'torch>=2.10' setuptools ninja pybind11\n"
        "    pip install --no-build-isolation .\n"
        "or plain `pip install .`, which downloads a torch to build against."
    )


def default_jobs() -> int:
    """As many jobs as cores, one per 1.5 GB of free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return cores
    return max(1, min(cores, int(free_bytes / 1.5e9)))


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


def literal(text: str) -> str:
    """A macro's value that is a string. Windows' command lines take quotes away that have no backslash."""
    return f'\\"{text}\\"' if WINDOWS else f'"{text}"'


def cxx_flags() -> list[str]:
    if WINDOWS:  # what clang-cl has no spelling of its own for comes after /clang:
        flags = ["/Od", "/Z7"] if flag("HASHGRID_DEBUG") else ["/clang:-O3"]
        flags += ["/clang:-fno-math-errno", "/clang:-fno-trapping-math", "/EHsc", "/bigobj"]
        return [*flags, "/clang:-march=native"] if flag("HASHGRID_NATIVE") else flags
    flags = ["-O0", "-g"] if flag("HASHGRID_DEBUG") else ["-O3", "-g0"]
    flags += ["-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"]
    flags += ["-Wno-unused-parameter", "-Wno-maybe-uninitialized"]
    return [*flags, "-march=native"] if flag("HASHGRID_NATIVE") else flags


def link_flags() -> list[str]:
    """On Windows Clang's runtime, which Microsoft's linker does not look for: `__builtin_cpu_supports` needs it."""
    if not WINDOWS:
        return []
    command = ["clang", "--rtlib=compiler-rt", "--print-libgcc-file-name"]
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()]


def nvcc_flags() -> list[str]:
    # --threads: architectures of one file side by side; the largest file would keep one core busy for minutes.
    flags = ["-O3", "--expt-relaxed-constexpr", "-Xptxas=-v", "--threads=2"]
    return [*flags, "-Werror=all-warnings"] if flag("HASHGRID_WERROR") else flags  # a newer nvcc may know more of them


COMMON = {
    "include_dirs": [str(ROOT / "csrc"), pybind11.get_include()],
    "depends": sources("**/*.h", "**/*.inl", "**/*.cuh"),
}
MACROS = [("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)]


def cpu_extension() -> CppExtension:
    return CppExtension(
        "hashgrid._C",
        sources("cpu/*.cpp", "ops/*.cpp"),
        define_macros=[*MACROS, ("HASHGRID_COMPILER", "__VERSION__"), ("HASHGRID_NO_CUDA", literal(no_cuda()))],
        extra_compile_args={"cxx": cxx_flags()},
        extra_link_args=link_flags(),
        **COMMON,
    )


def no_cuda() -> str:
    """Why the CUDA kernels are not built; empty where they are."""
    if os.environ.get("HASHGRID_CUDA") == "0":
        return "HASHGRID_CUDA=0 when it was built"
    if torch.version.cuda is None:
        return "the torch it was built with has no CUDA"
    if CUDA_ROOT is None:
        return "there was no CUDA toolkit (nvcc) when it was built"
    if CUDA_RELEASE.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"the toolkit was CUDA {CUDA_RELEASE}, torch had CUDA {torch.version.cuda}"
    return ""


def cuda_extension() -> CUDAExtension:
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        known = subprocess.run([CUDA_ROOT / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
        archs = [arch for arch in ALL_ARCHS if f"compute_{arch.replace('.', '')}\n" in known]
        os.environ["TORCH_CUDA_ARCH_LIST"] = " ".join(archs) + "+PTX"
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or "this machine's"
    return CUDAExtension(
        "hashgrid._C_cuda",
        sources("cuda/*.cu", "ops/cuda/*.cpp"),
        define_macros=[
            *MACROS,
            ("HASHGRID_CUDA_ARCHS", literal(archs)),
            ("HASHGRID_CUDA_RELEASE", literal(CUDA_RELEASE)),
        ],
        extra_compile_args={"cxx": cxx_flags(), "nvcc": nvcc_flags()},
        **COMMON,
    )


if no_cuda() and flag("HASHGRID_CUDA"):
    sys.exit(f"HASHGRID_CUDA=1, but the CUDA kernels cannot be built: {no_cuda()}")
os.environ.setdefault("MAX_JOBS", str(default_jobs()))
setup(
    ext_modules=[cpu_extension()] if no_cuda() else [cpu_extension(), cuda_extension()],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
