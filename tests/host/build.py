"""Compiles csrc/cuda with a C++ compiler behind cuda_on_host.h, as the Python module hashgrid_on_host."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).resolve().parent
# What the compiler makes of a product and a sum it goes into: "fast" fuses them where it likes, as nvcc does, "off"
# never. Results that have to be the same bits may not rest on that.
CONTRACT = os.environ.get("HASHGRID_EMULATED_CONTRACT", "fast")
HOST_BUILD = ROOT / "build" / ("host" if CONTRACT == "fast" else f"host_{CONTRACT}")  # where the tests build


def _cpu_flags() -> set[str]:
    cpu = Path("/proc/cpuinfo")
    return set(cpu.read_text().split()) if cpu.exists() and platform.machine() == "x86_64" else set()


FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fdata-sections", "-w"]
FLAGS += [f"-ffp-contract={CONTRACT}", *(["-mfma"] if "fma" in _cpu_flags() else [])]
FLAGS += ["-U_FORTIFY_SOURCE"]  # whose longjmp refuses to change stacks
FLAGS += ["-DHASHGRID_ON_HOST", "-DHASHGRID_LIBRARY=hashgrid_on_host"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-O1"]

Fault = tuple[str, str, str]  # file below csrc, text in it, text instead


def build(out: Path) -> Path:
    """Compiles what has changed since ``out`` was last built there and returns the module's path.

    Raises:
        RuntimeError: the compiler failed; the message is its output.
    """
    csrc = ROOT / "csrc"
    glue = [path for path in (csrc / "ops" / "cuda").glob("*.cpp") if path.name != "module.cpp"]
    glue += [csrc / "ops" / "registration.cpp", HOST / "module.cpp"]
    objects = _compile(out, [*_kernels(csrc), *glue], csrc)
    for stale in set(out.glob("*.o")) - set(objects):  # of a source that is gone
        stale.unlink()
    return _link(out, objects)


def build_sanitized(out: Path, sound: Path) -> Path:
    """The same with AddressSanitizer and UndefinedBehaviorSanitizer in all kernels; the rest comes from ``sound``."""
    kernels = _compile(out, _kernels(ROOT / "csrc"), ROOT / "csrc", SANITIZERS)
    return _link(out, _in_place_of(kernels, sound), SANITIZERS)


def build_with_faults(out: Path, faults: Sequence[Fault], only: Collection[str], sound: Path) -> Path:
    """Compiles the kernels ``only`` of a copy of the sources with ``faults`` planted; the rest comes from ``sound``.

    Args:
        out: folder of the copy, its objects and the module.
        faults: what to replace. Replacements ask ``hashgrid_on_host::planted(name)``, which tells whether the
            environment's ``HASHGRID_PLANTED`` is ``name``, so that one build serves many faults.
        only: names of the ops whose kernels are compiled again.
        sound: folder of :func:`build`, up to date.
    """
    csrc = out / "csrc"
    shutil.rmtree(csrc, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", csrc)
    for file, text, other in faults:
        source = (csrc / file).read_text()
        if source.count(text) != 1:
            raise RuntimeError(f"{file} must contain {text!r} once, for a fault to be planted there")
        (csrc / file).write_text(source.replace(text, other))
    planted = _compile(out, [csrc / "cuda" / f"{op}.cu" for op in only], csrc, ["-O1"])
    return _link(out, _in_place_of(planted, sound))


def build_program(source: Path, out: Path) -> Path:
    """Compiles one file of kernels with a ``main`` of its own."""
    out.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{ROOT / 'csrc'}", f"-I{HOST}", "-x", "c++", "-include", str(HOST / "cuda_on_host.h")]
    script = ["-x", "none", "-T", str(HOST / "shared.ld")]
    _run([compiler(), *FLAGS, *includes, str(source), *script, "-o", str(out / source.stem)])
    return out / source.stem


def load(path: Path) -> ModuleType:
    """Imports the module that :func:`build` made, which registers ``torch.ops.hashgrid_on_host``."""
    spec = importlib.util.spec_from_file_location("hashgrid_on_host", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["hashgrid_on_host"] = module
    return module


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def _kernels(csrc: Path) -> list[Path]:
    return [*(csrc / "cuda").glob("*.cu"), HOST / "launches.cu"]


def _in_place_of(objects: Sequence[Path], sound: Path) -> list[Path]:
    replaced = {path.name for path in objects}
    return [*objects, *(path for path in sorted(sound.glob("*.o")) if path.name not in replaced)]


def _compile(out: Path, sources: Sequence[Path], csrc: Path, more_flags: Sequence[str] = ()) -> list[Path]:
    import pybind11
    import torch
    from torch.utils.cpp_extension import include_paths

    out.mkdir(parents=True, exist_ok=True)
    foreign = [pybind11.get_include(), *include_paths(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, *more_flags, f"-I{csrc}", f"-I{HOST}"]
    flags += [word for path in foreign for word in ("-isystem", path)]

    def compile_one(source: Path) -> Path:
        target = out / f"{source.stem}{source.suffix.replace('.', '_')}{'_op' if 'ops' in source.parts else ''}.o"
        language = ["-x", "c++", "-include", str(HOST / "cuda_on_host.h")] if source.suffix == ".cu" else []
        command = [compiler(), *flags, *language, "-c", str(source)]
        identity = [*command, torch.__version__]
        stamp = target.with_suffix(".json")
        if target.exists() and stamp.exists() and json.loads(stamp.read_text()) == _stamp(identity, target):
            return target
        _run([*command, "-o", str(target), "-MMD", "-MF", str(target.with_suffix(".d"))])
        stamp.write_text(json.dumps(_stamp(identity, target)))
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # the longest first, or one of them is left over in the end
        return list(pool.map(compile_one, sorted(sources, key=lambda path: -path.stat().st_size)))


def _stamp(identity: list[str], target: Path) -> list:
    """What an object was made from: by content, as a checkout renews every file's time."""
    depends = target.with_suffix(".d")
    if not depends.exists():
        return []
    files = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return [identity, {file: _digest(Path(file)) for file in files}]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _link(out: Path, objects: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    from torch.utils.cpp_extension import library_paths

    module = out / f"hashgrid_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    inputs = [*objects, HOST / "shared.ld"]
    stamp, made_from = out / "module.json", [[str(path), _digest(path)] for path in inputs]
    if not module.exists() or not stamp.exists() or json.loads(stamp.read_text()) != made_from:
        libraries = [f"-L{path}" for path in library_paths()] + ["-lc10", "-ltorch", "-ltorch_cpu"]
        script = ["-T", str(HOST / "shared.ld")]
        _run([compiler(), "-shared", *flags, *script, "-o", str(module), *map(str, objects), *libraries])
        stamp.write_text(json.dumps(made_from))
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else HOST_BUILD))
