"""Compiles csrc/cuda with a C++ compiler behind cuda_on_host.h, as the Python module hashgrid_on_host."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).resolve().parent


def build(
    out: Path, sanitize: bool = False, patch: tuple[str, str, str] | None = None, only: str | None = None
) -> Path:
    """Compiles what is newer than its object file into ``out`` and returns the module's path.

    Args:
        out: folder of objects and module.
        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer.
        patch: (file below csrc, text, other text): plants a fault in a copy of the sources.
        only: name of the one op to build.

    Raises:
        RuntimeError: the compiler failed; the message is its output.
    """
    import pybind11
    from torch.utils.cpp_extension import include_paths, library_paths

    out.mkdir(parents=True, exist_ok=True)
    csrc = ROOT / "csrc"
    if patch is not None:
        csrc = out / "csrc"
        shutil.copytree(ROOT / "csrc", csrc, dirs_exist_ok=True)
        file, text, other = patch
        source = (csrc / file).read_text()
        if source.count(text) != 1:
            raise RuntimeError(f"{file} must contain {text!r} once, for a fault to be planted there")
        (csrc / file).write_text(source.replace(text, other))
    flags = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w"]
    flags += [f"-I{path}" for path in (csrc, HOST, pybind11.get_include(), *include_paths())]
    flags += [f"-I{sysconfig.get_paths()['include']}", "-DHASHGRID_ON_HOST", "-DHASHGRID_LIBRARY=hashgrid_on_host"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if sanitize else []
    sources = [*(csrc / "cuda").glob("*.cu"), *(csrc / "ops" / "cuda").glob("*.cpp")]
    sources = [path for path in sources if path.name != "module.cpp" and only in (None, path.stem)]
    sources += [csrc / "ops" / "registration.cpp", HOST / "module.cpp", HOST / "launches.cu"]
    headers = [*csrc.rglob("*.h"), *csrc.rglob("*.cuh"), *HOST.glob("*.h")]
    newest_header = max(path.stat().st_mtime for path in (*headers, Path(__file__)))

    def compile_one(source: Path) -> Path:
        target = out / f"{source.stem}{source.suffix.replace('.', '_')}{'_op' if 'ops' in source.parts else ''}.o"
        if target.exists() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime):
            return target
        language = ["-x", "c++", "-include", str(HOST / "cuda_on_host.h")] if source.suffix == ".cu" else []
        _run([_compiler(), *flags, *sanitizers, *language, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted(sources)))
    module = out / f"hashgrid_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists() or module.stat().st_mtime < max(path.stat().st_mtime for path in objects):
        libraries = [f"-L{path}" for path in library_paths()] + ["-lc10", "-ltorch", "-ltorch_cpu"]
        _run([_compiler(), "-shared", *sanitizers, "-o", str(module), *map(str, objects), *libraries])
    return module


def load(path: Path) -> ModuleType:
    """Imports the module that :func:`build` made, which registers ``torch.ops.hashgrid_on_host``."""
    spec = importlib.util.spec_from_file_location("hashgrid_on_host", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
