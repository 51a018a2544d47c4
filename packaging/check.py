"""Installs wheels in environments of their own, beside releases of torch, and runs the tests of the ops on them.

    python packaging/check.py dist/*.whl --with python3.11=2.10.0,2.13.0,2.14.1 --with python3.13=2.14.1
    python packaging/check.py --installed          # the tests alone, on what this Python has

An environment has torch and NumPy when the wheel comes: that installation is timed, without a compiler and with
nothing on the PATH. The tests are a copy in an empty folder, so that nothing of a checkout is imported. A torch that
the named Python has is used from there; another is downloaded from where pip is told to look, and those of PyPI bring
CUDA: gigabytes, until their tests are over.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTING = ("pytest", "hypothesis", "safetensors")
MOST_SECONDS = 15.0
# test_cuda_kernels is about the sources; opchecks and compilation have a compiler run, which is torch's affair.
LEFT_OUT = "not compile and not instruction_set"
MARK = "pytestmark = pytest.mark.every_kernel"

SMOKE = """
import json, sys
import torch, hashgrid, hashgrid._C as extension
grid = hashgrid.HashGrid(n_input_dims=3, n_levels=4, log2_hashmap_size=10)
grid(torch.rand(100, 3)).sum().backward()
print(json.dumps({
    "python": sys.version.split()[0], "torch": torch.__version__, "file": hashgrid.__file__,
    "compiler": extension.compiler(), "capability": extension.cpu_capability(),
}))
"""


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore


def succeed(*command: str | Path, **options: object) -> str:
    """Output of a command; raises with its errors where it fails."""
    done = run(*command, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def wheel_for(python: str, wheels: list[Path]) -> Path:
    """The wheel of an interpreter."""
    code = "import sys; print(f'cp{sys.version_info[0]}{sys.version_info[1]}')"
    tag = succeed(python, "-c", code).strip()
    for wheel in wheels:
        if f"-{tag}-{tag}-" in wheel.name:
            return wheel
    raise RuntimeError(f"no wheel for {tag} among {[wheel.name for wheel in wheels]}")


def site_with(python: str, torch: str) -> str | None:
    """Where an interpreter has that release of torch, and no hashgrid; None if it has not."""
    code = "import importlib.util as u, torch; print(torch.__version__, torch.__path__[0], u.find_spec('hashgrid'))"
    done = run(python, "-c", code)
    version, path, other = (done.stdout.split(maxsplit=2) + [""] * 3)[:3]
    return str(Path(path).parent) if version.partition("+")[0] == torch and other.strip() == "None" else None


def copy_tests(folder: Path) -> list[str]:
    """Copies the tests; returns the modules about the ops."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # pytest's marks
    modules = [path for path in sorted((folder / "tests").glob("test_*.py")) if MARK in path.read_text().splitlines()]
    return [str(path.relative_to(folder)) for path in modules]


def run_tests(python: str | Path, folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """The tests of the ops, in a folder with nothing but them."""
    modules = copy_tests(folder)
    chosen = f"({LEFT_OUT})" + (f" and ({tests})" if tests else "")
    options = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not full", "-k", chosen)
    data = os.environ.get("HASHGRID_DATA", str(ROOT.parent / "shared"))  # where the copy would not look for it
    return run(python, "-m", "pytest", *options, *modules, cwd=folder, env={**os.environ, "HASHGRID_DATA": data})


def count(report: str) -> dict[str, int]:
    """Of pytest's last line: how many tests had which end."""
    summary = [line for line in report.splitlines() if re.search(r"\d+ (passed|failed|error)", line)][-1]
    return {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|deselected|error)", summary)}


def check(wheel: Path, python: str, torch: str, folder: Path, tests: str) -> dict[str, object]:
    """Installs a wheel beside a torch and runs the tests of the ops; returns what was found."""
    succeed(python, "-m", "venv", folder / "env")
    inside = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    if (site := site_with(python, torch)) is not None:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        (Path(succeed(inside, "-c", code).strip()) / "torch.pth").write_text(f"{site}\n")
    else:
        succeed(inside, "-m", "pip", "install", "--quiet", f"torch=={torch}", "numpy")
    bare = {**os.environ, "PATH": "", "CC": "false", "CXX": "false"}
    begin = time.perf_counter()
    succeed(inside, "-m", "pip", "install", "--quiet", wheel, env=bare)
    seconds = time.perf_counter() - begin

    (folder / "run").mkdir()
    found = json.loads(succeed(inside, "-c", SMOKE, cwd=folder / "run", env=bare))
    if not Path(found.pop("file")).is_relative_to(folder):
        raise RuntimeError("it was not the installed wheel that was imported")
    succeed(inside, "-m", "pip", "install", "--quiet", *TESTING)
    begin = time.perf_counter()
    done = run_tests(inside, folder / "run", tests)
    if done.returncode != 0:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return {
        "wheel": wheel.name,
        **found,
        "install_seconds": round(seconds, 1),
        "bytes": wheel.stat().st_size,
        "tests": count(done.stdout),
        "test_seconds": round(time.perf_counter() - begin),
        "ok": done.returncode == 0 and seconds < MOST_SECONDS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--with", dest="pairs", action="append", default=[], metavar="PYTHON=TORCH[,TORCH]")
    parser.add_argument("--installed", action="store_true", help="the tests on what this Python has installed")
    parser.add_argument("--tests", default="", help="only tests with this in their names, as pytest's -k")
    parser.add_argument("--results", type=Path, help="JSON to add the results to")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # a checkout there would be tested in place of the wheel
    if arguments.installed:
        with tempfile.TemporaryDirectory() as folder:
            done = run_tests(sys.executable, Path(folder), arguments.tests)
        print(done.stdout[-6000:], done.stderr[-2000:])
        return done.returncode
    wheels = [wheel.resolve() for wheel in arguments.wheels]
    good = True
    for pair in arguments.pairs:
        python, _, releases = pair.partition("=")
        for torch in releases.split(","):
            with tempfile.TemporaryDirectory() as folder:
                result = check(wheel_for(python, wheels), python, torch, Path(folder).resolve(), arguments.tests)
            print(json.dumps(result), flush=True)
            good = good and bool(result["ok"])
            if arguments.results is not None:
                path = arguments.results
                results = json.loads(path.read_text()) if path.exists() else []
                same = [old for old in results if (old["python"], old["torch"]) == (result["python"], result["torch"])]
                results = [old for old in results if old not in same] + [result]
                path.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
