"""Builds ``hashgrid._C``: the CPU kernels behind LibTorch's stable ABI, which outlives the torch it was built with.

Environment:
    HASHGRID_NATIVE=1   compile the baseline kernels for this machine's CPU (not for wheels)
    HASHGRID_DEBUG=1    no optimisation, debug symbols
    MAX_JOBS            parallel compile jobs; by default from cores and free memory
"""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"hashgrid builds against PyTorch and {error.name!r} is missing. Run\n"
        "    pip install 'torch>=2.10' setuptools ninja pybind11\n"
        "    pip install --no-build-isolation .\n"
        "or plain `pip install .`, which downloads a torch to build against."
    )

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020a000000000000"  # 2.10: the first release whose stable ABI is versioned


def flag(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def default_jobs() -> int:
    """As many jobs as cores, one per 1.5 GB of free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return cores
    return max(1, min(cores, int(free_bytes / 1.5e9)))


def cpu_extension() -> CppExtension:
    sources = sorted(
        str(path.relative_to(ROOT)) for folder in ("cpu", "ops") for path in (ROOT / "csrc" / folder).glob("*.cpp")
    )
    compile_args = ["-O0", "-g"] if flag("HASHGRID_DEBUG") else ["-O3", "-g0"]
    compile_args += [
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Wno-unused-parameter",
        "-Wno-maybe-uninitialized",
    ]
    if flag("HASHGRID_NATIVE"):
        compile_args.append("-march=native")
    return CppExtension(
        "hashgrid._C",
        sources,
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=[
            ("TORCH_TARGET_VERSION", TORCH_TARGET),
            ("TORCH_STABLE_ONLY", None),
            ("HASHGRID_COMPILER", "__VERSION__"),
        ],
        extra_compile_args={"cxx": compile_args},
        depends=sorted(
            str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".inl")
        ),
    )


os.environ.setdefault("MAX_JOBS", str(default_jobs()))
setup(
    ext_modules=[cpu_extension()],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
