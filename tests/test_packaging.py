"""The package as others meet it: what an import loads, what a broken build says, what the binary and the sdist hold."""

from __future__ import annotations

import importlib.machinery
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ISA_NAMESPACES = ("avx2", "avx512", "avx512_bf16")

# Modules of optional dependencies; `import hashgrid` must not need them, nor pay for them.
OPTIONAL = ("imageio", "imageio_ffmpeg", "matplotlib", "PIL", "safetensors", "scipy", "skimage", "tqdm")

# VEX-encoded instructions whose names do not start with a v: BMI, and AVX-512's mask instructions.
VEX_ONLY = set("andn bextr blsi blsmsk blsr bzhi mulx pdep pext rorx sarx shlx shrx".split())
NOT_VEX = {"verr", "verw"}


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a fresh interpreter that imports this checkout or installation."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        cwd=package().parent,
    )


def package() -> Path:
    spec = importlib.machinery.PathFinder.find_spec("hashgrid")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


# ---- import ----------------------------------------------------------------------------------------------------------


def test_import_needs_torch_and_numpy_only() -> None:
    """Compared with what torch itself loads, which differs between versions and installations."""
    code = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError("refused: " + name, name=name)
import numpy, torch
roots = {{name.partition(".")[0] for name in sys.modules}}
sys.meta_path.insert(0, Refuse())
import hashgrid
new = {{name.partition(".")[0] for name in sys.modules}} - roots - set(sys.stdlib_module_names)
print(*sorted(new))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["hashgrid"]


def test_bench_imports_without_matplotlib() -> None:
    code = """
import sys
import hashgrid.bench, hashgrid.bench.harness, hashgrid.bench.hash_encode, hashgrid.bench.mlp
assert "matplotlib" not in sys.modules
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_missing_extension_names_the_command() -> None:
    code = """
import sys
sys.modules["hashgrid._C"] = None  # as if it had not been built
import torch
import hashgrid

reference = hashgrid.HashGrid(3, n_levels=2, log2_hashmap_size=8, backend="reference")
assert reference(torch.rand(5, 3)).shape == (5, 4)
reference(torch.rand(5, 3)).sum().backward()
assert hashgrid.FusedMLP(4, 2, backend="reference")(torch.rand(5, 4)).shape == (5, 2)

try:
    hashgrid.HashGrid(3, n_levels=2, log2_hashmap_size=8)(torch.rand(5, 3))
except ImportError as error:
    print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "pip install --no-build-isolation ." in result.stdout
    assert 'backend="reference"' in result.stdout


def test_info_without_extension() -> None:
    code = 'import sys; sys.modules["hashgrid._C"] = None; from hashgrid.cli import main; sys.exit(main(["info"]))'
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "pip install --no-build-isolation ." in result.stdout


def test_info_says_what_a_bug_report_needs() -> None:
    import torch

    from hashgrid import __version__, _extension

    extension = _extension.require()
    result = subprocess.run(
        [sys.executable, "-m", "hashgrid", "info"], capture_output=True, text=True, timeout=120, cwd=package().parent
    )
    assert result.returncode == 0, result.stderr
    assert __version__ in result.stdout
    assert torch.__version__ in result.stdout
    assert extension.compiler() in result.stdout
    assert extension.cpu_capability() in result.stdout
    assert re.search(r"^CUDA kernels:\s+\S+", result.stdout, re.MULTILINE)


def test_wrong_capability_gives_one_clear_error() -> None:
    code = """
import torch
import hashgrid
try:
    hashgrid.HashGrid(3, n_levels=2, log2_hashmap_size=8)(torch.rand(5, 3))
except RuntimeError as error:
    print(error)
"""
    result = run_python(code, HASHGRID_CPU_CAPABILITY="sse9")
    assert result.returncode == 0, result.stderr
    assert "HASHGRID_CPU_CAPABILITY must be one of [default" in result.stdout
    assert "got 'sse9'" in result.stdout

    result = subprocess.run(
        [sys.executable, "-m", "hashgrid", "info"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HASHGRID_CPU_CAPABILITY": "sse9"},
        cwd=package().parent,
    )
    assert "got 'sse9'" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


# ---- binary ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def binary() -> Path:
    """The compiled extension."""
    from hashgrid import _extension

    return Path(str(_extension.require().__file__))


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_binary_uses_the_stable_abi_only(binary: Path) -> None:
    """C++ symbols of libtorch change from release to release; the C shim does not."""
    lines = subprocess.run(
        [tool("nm"), "-D", "-C", "--undefined-only", str(binary)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    symbols = [line.split(maxsplit=1)[1] for line in lines]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    unstable = [symbol for symbol in symbols if re.search(r"\b(c10|at|torch|caffe2|torch_?python)::|\bTHP", symbol)]
    assert not unstable


class Disassembly:
    """Function name and the mnemonics of its VEX- or EVEX-encoded instructions."""

    def __init__(self, objdump: str, binary: Path) -> None:
        self.functions: dict[str, set[str]] = {}
        name = ""
        for line in self._lines(objdump, binary):
            if line.endswith(">:\n"):
                name = line[line.index("<") + 1 : -3]
                self.functions.setdefault(name, set())
            elif line.startswith(" ") and (words := line.split("\t")) and len(words) > 1:
                mnemonic = words[1].split(maxsplit=1)[0]
                if self._is_vex(mnemonic, words[1]):
                    self.functions[name].add(mnemonic)

    @staticmethod
    def _lines(objdump: str, binary: Path) -> Iterator[str]:
        command = [objdump, "-d", "-C", "--no-show-raw-insn", str(binary)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield from process.stdout
        assert process.returncode == 0

    @staticmethod
    def _is_vex(mnemonic: str, instruction: str) -> bool:
        if mnemonic.startswith("v"):
            return mnemonic not in NOT_VEX
        return mnemonic.rstrip("lq") in VEX_ONLY or re.search(r"%[yz]mm\d|%k[0-7]\b", instruction) is not None


@pytest.fixture(scope="module")
def disassembly(binary: Path) -> Disassembly:
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("instruction sets are chosen on x86 only")
    if os.environ.get("HASHGRID_NATIVE", "0") not in ("", "0"):
        pytest.skip("HASHGRID_NATIVE compiles everything for this machine")
    return Disassembly(tool("objdump"), binary)


@pytest.mark.full
def test_default_kernels_run_on_any_machine(disassembly: Disassembly) -> None:
    default = {name: vex for name, vex in disassembly.functions.items() if "hashgrid::default_isa::" in name}
    if not default:
        pytest.skip("the binary is stripped")
    assert {name: vex for name, vex in default.items() if vex} == {}


def test_wide_instructions_stay_in_their_namespaces(disassembly: Disassembly) -> None:
    """The linker keeps one copy of an inline function: outside a namespace that may be the one with AVX-512."""
    wide = {name: vex for name, vex in disassembly.functions.items() if vex}
    inside = [name for name in wide if any(f"hashgrid::{isa}::" in name for isa in ISA_NAMESPACES)]
    if not inside:
        pytest.skip("the binary is stripped")
    assert {name: vex for name, vex in wide.items() if name not in inside} == {}


# ---- source distribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["0", "1"])
def test_nvcc_warnings_are_errors_only_where_asked_for(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer nvcc may know more warnings than ours, and a user's installation must not end there."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a checkout")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setattr(os, "environ", {**os.environ, "HASHGRID_CUDA": "0", "HASHGRID_WERROR": asked})
    flags = runpy.run_path(str(ROOT / "setup.py"))["nvcc_flags"]()
    assert any("Werror" in flag for flag in flags) == (asked == "1")


@pytest.mark.full
def test_sdist_builds_and_is_complete(tmp_path: Path) -> None:
    if not (ROOT / "setup.py").exists() or not (ROOT / "csrc").exists():
        pytest.skip("not a checkout")
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", ".aarch64", "build", "dist", "outputs", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / "hashgrid" / "_C.stale.so").touch()
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "dist")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=copy,
    )
    assert result.returncode == 0, result.stderr
    (archive,) = (tmp_path / "dist").glob("torch_hashgrid-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]
    folders = {"csrc": ("*.h", "*.inl", "*.cpp"), "hashgrid": ("*.py", "py.typed"), "tests": ("*.py",)}
    for folder, patterns in {**folders, "packaging": ("*.py", "*.h")}.items():
        wanted = {str(path.relative_to(copy)) for pattern in patterns for path in (copy / folder).rglob(pattern)}
        assert wanted and wanted <= names, sorted(wanted - names)
    assert {"setup.py", "pyproject.toml", "LICENSE"} <= names


def test_wheels_are_matched_with_pythons_and_tests_are_counted() -> None:
    """What packaging/check.py says of wheels, which it has no time to say in this suite."""
    if not (ROOT / "packaging").exists():
        pytest.skip("not a checkout")
    check = runpy.run_path(str(ROOT / "packaging" / "check.py"))
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    wheels = [Path(f"torch_hashgrid-0.1.0-{t}-{t}-manylinux_2_28_x86_64.whl") for t in ("cp39", "cp399", tag)]
    assert check["wheel_for"](sys.executable, wheels) == wheels[2]
    with pytest.raises(RuntimeError, match=f"no wheel for {tag}"):
        check["wheel_for"](sys.executable, wheels[:2])
    report = "FAILED a - 4 passed the door\n1 failed, 20 passed, 3 skipped, 7 deselected in 8.90s\n"
    assert check["count"](report) == {"failed": 1, "passed": 20, "skipped": 3, "deselected": 7}


@pytest.mark.parametrize("workflow", ["wheels.yml", "tests.yml"])
def test_workflows_are_yaml_and_say_that_they_are_untried(workflow: str) -> None:
    path = ROOT / ".github" / "workflows" / workflow
    if not path.exists():
        pytest.skip("not a checkout")
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load(path.read_text())["jobs"]
    assert all(job["steps"] for job in jobs.values())
    assert "ntried" in path.read_text().partition("name:")[0]


def test_no_text_names_another_distribution() -> None:
    """The distribution is torch-hashgrid: who installs hashgrid would get something else, or nothing."""
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml", ROOT / "setup.py"]
    for folder, patterns in (
        ("hashgrid", ["*.py"]),
        ("docs", ["*.md"]),
        ("examples", ["*.py"]),
        ("csrc", ["*.h", "*.cpp"]),
        ("packaging", ["*.py"]),
        (".github", ["*.yml"]),
    ):
        texts += [file for pattern in patterns for file in (ROOT / folder).rglob(pattern)]
    assert len(texts) > 100
    install = r"\b(?:pip|uv|poetry|conda)\b[\w ./-]*? (?:install|add)(?: -[\w-]+)*"  # up to the first package
    wrong = re.compile(install + r" ['\"]?hashgrid\b(?!/)|(?<!torch-)\bhashgrid\[\w")
    found = [f"{file.relative_to(ROOT)}: {match[0]}" for file in texts for match in wrong.finditer(file.read_text())]
    assert found == []
    name = "hashgrid"
    for text in (f"pip install {name}", f"pip install -U '{name}[nerf]'", f"see {name}[sdf]", f"uv add {name}"):
        assert wrong.search(text), text
    assert not wrong.search("pip install torch-hashgrid; pip install 'torch-hashgrid[nerf]'; import hashgrid")


BARE = """
import sys
for name in ("tyro", "tqdm", "imageio", "PIL", "safetensors", "matplotlib", "igl", "scipy", "skimage", "trimesh"):
    sys.modules[name] = None  # as if it were not installed
from hashgrid.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "train a radiance field on posed photographs"),
        (["info"], "CPU kernels"),
        (["bench", "--help"], "--no-compile"),
        (["nerf", "scene"], "`tyro` is needed here, but not installed; pip install 'torch-hashgrid[apps]'"),
        (["image", "--help"], "`tyro` is needed here, but not installed; pip install 'torch-hashgrid[apps]'"),
    ],
    ids=" ".join,
)
def test_commands_without_the_extra(arguments: list[str], message: str) -> None:
    """What needs torch and NumPy alone runs, the rest says in one sentence what to install."""
    done = subprocess.run([sys.executable, "-c", BARE, *arguments], capture_output=True, text=True)
    missing = "tyro" in message
    assert done.returncode == (1 if missing else 0)
    assert message in (done.stderr if missing else done.stdout)
    assert not missing or done.stderr.count("\n") == 1
