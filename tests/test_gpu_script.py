"""benchmarks/gpu.sh as far as it goes without a GPU. Nothing here asserts a time."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hashgrid import bench, reference
from hashgrid.bench import adam_step, harness, march_rays, mlp, peers
from hashgrid.data.procedural import procedural_scene, write_scene
from hashgrid.data.scene import load_scene
from hashgrid.levels import make_level_table
from hashgrid.tasks.nerf import NerfConfig

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STAGES = ("build", "probe", "sanitize", "test", "bench", "train", "plot")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny sizes: more threads would wait for each other, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gpu_sh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "benchmarks" / "gpu_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dry_run_names_every_stage() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    done = gpu_sh("--dry-run")
    assert done.returncode == 0, done.stderr
    headings = [line.split()[1].rstrip(",") for line in done.stdout.splitlines() if line.startswith("==")]
    assert headings == [*STAGES, "all"]
    for words in (
        "build_ext --inplace",
        "-m gpu and not asynchronous",
        "--tool racecheck",
        "mma_probe",
        "--device cuda",
    ):
        assert words in done.stdout
    for suite in set(bench.SUITES.values()) - {
        "train",
        "scaling",
        "busy",
    }:  # training is a stage of its own, busy for CPUs
        assert f"hashgrid.bench.{suite} " in done.stdout


def test_ten_minutes_fit() -> None:
    """Every stage has a limit, and so has every command that may hang; the sum leaves the call some seconds."""
    done = gpu_sh("--ten-minutes", "--dry-run")
    assert done.returncode == 0, done.stderr
    limits = dict(re.findall(r"^== (\w+), at most (\d+) s$", done.stdout, re.MULTILINE))
    assert list(limits) == [stage for stage in STAGES if stage != "train"]
    assert int(limits["build"]) <= 150 and sum(map(int, limits.values())) <= 560 - 10
    assert f"== all stages, at most {sum(map(int, limits.values()))} s; this call, 560 s" in done.stdout
    commands = [line for line in done.stdout.splitlines() if re.search(r"-m pytest|--tool|hashgrid\.bench", line)]
    assert len(commands) > 20 and all(re.search(r"timeout .*\d ", line) for line in commands)
    assert [line for line in commands if "--only" in line and "--tool racecheck" in line]
    assert set(re.findall(r"hashgrid\.bench\.(\w+)", done.stdout)) == {"hash_encode", "mlp"}


def test_unknown_stage_and_missing_gpu_are_refused(tmp_path: Path) -> None:
    done = gpu_sh("everything")
    assert done.returncode == 2 and "unknown stage 'everything'" in done.stderr
    if not torch.cuda.is_available():
        done = gpu_sh("plot", WORK=str(tmp_path), OUT=str(tmp_path))
        assert done.returncode == 2 and "DEVICE=cuda" in done.stderr
        assert not (tmp_path / "gpu.json").exists()


FAKE_TOOLS = {
    # answers what the script asks about the card and passes the rest on
    "python": r"""case "$*" in
*hashgrid.bench.environment*) echo '{"card": "fake", "python": "3", "torch": "2", "cpu": "none"}' ;;
*get_device_capability*) echo 9.0 ;;
*setup.py*)
  [ ! -e pyproject.toml ] && [ -e setup.py ] && [ -e csrc/cuda ] && [ -e hashgrid/ops ] || exit 1
  echo "built for $TORCH_CUDA_ARCH_LIST" ;;
*"find_spec('${PLAYED_MISSING:-}')"*) exit 1 ;;
*find_spec*|*"hashgrid info") ;;
*"hashgrid.bench.slow "*) echo $$ > "$WORK/pid"; exec sleep 60 ;;
*"hashgrid.bench.nothing "*) exit 1 ;;
*hashgrid.bench.*)
  suite=${2#hashgrid.bench.}
  while [ "$1" != --out ]; do shift; done
  echo "{\"benchmark\": \"$suite\", \"cases\": [{\"name\": \"played\", \"contenders\": []}]}" > "$2/$suite.json" ;;
*) exec REAL_PYTHON "$@" ;;
esac""",
    "nvcc": r"""while [ "$1" != -o ]; do shift; done
printf '%s\n' '#!/bin/sh' "echo '{\"wrong\": 1, \"experiments\": 900}'; exit 1" > $2
chmod +x $2""",
    "compute-sanitizer": r"""case "$*" in
--help) echo "  --kernel-name arg"; exit ;;
*planted*) n=2 ;;
*racecheck*) n=1 ;;
*) n=0 ;;
esac
printf '%s\ndone\n========= ERROR SUMMARY: %s errors\n' "$*" $n
[ $n -ne 1 ] || exit 9""",
}


@pytest.fixture
def played(tmp_path: Path) -> dict[str, str]:
    """Environment of a call whose tools play; it leaves ``work`` and ``out`` in ``tmp_path``."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in FAKE_TOOLS.items():
        path = tools / name
        path.write_text(f"#!/bin/sh\n{text.replace('REAL_PYTHON', sys.executable)}\n")
        path.chmod(0o755)
    folders = {"WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out"), "CUDA_HOME": "", "COMMIT": "abc"}
    quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return {"PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}", **folders, **quick}


def read_report(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "gpu.json").read_text())


PLANTED = {
    "good": "def test_good(): pass\ndef test_absent(): pytest.skip('no such thing')",
    "bad": "@pytest.mark.parametrize('i', range(9))\ndef test_bad(i): assert i < 0, 'negative'",
    "trap": "def test_before(): pass\ndef test_trap(): os.abort()\ndef test_after(): pass",
    "hang": "def test_before(): assert 1 == 2\ndef test_hang(): time.sleep(1000)",
    # as in the driver, where Python does not come to a signal's handler
    "stuck": "def test_before(): pass\ndef test_stuck():\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "    time.sleep(1000)",
    "blocking": "def test_blocking(): assert os.environ['CUDA_LAUNCH_BLOCKING'] == '1'\n"
    "@pytest.mark.asynchronous\ndef test_graph(): assert os.environ['CUDA_LAUNCH_BLOCKING'] == '0'",
    "cpu": "pytestmark = []\ndef test_needs_no_gpu(): assert False",
}


@pytest.mark.full
def test_ten_minutes_survive_a_trap_and_a_hang(played: dict[str, str], tmp_path: Path) -> None:
    """Each costs the file it lies in; what ran before it there, the other files and the other stages are reported."""
    files = []
    for name, body in PLANTED.items():
        files.append(tmp_path / f"test_{name}.py")
        files[-1].write_text(f"import os, signal, time\nimport pytest\npytestmark = pytest.mark.gpu\n{body}\n")
    limits = {"LIMIT_FILE": "20", "TEST_JOBS": "8"}
    stages = ("build", "probe", "sanitize", "test", "bench")  # no plot: nothing was measured
    done = gpu_sh("--ten-minutes", *stages, **played, **limits, TESTS=" ".join(map(str, files)))
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(list((tmp_path / "out").iterdir())) <= 8
    report = read_report(tmp_path)
    assert list(report["stages"]) == list(stages) and report["commit"].startswith("abc")
    for name, stage in report["stages"].items():
        assert stage["seconds"] > 0 and stage["limit"] > 0, name
    outcomes = {name: (stage["outcome"], stage["reason"]) for name, stage in report["stages"].items()}
    assert outcomes["test"] == ("failed", "1 crashed, 4 failed, 2 hung")
    assert outcomes["bench"] == ("ok", None)
    assert set(report["benchmarks"]) == {"hash_encode", "mlp"}

    tests = report["tests"]
    assert set(tests) == {f"test_{name}" for name in PLANTED} | {"test_blocking.asynchronous"}
    passed = {name.removeprefix("test_"): part["counts"]["passed"] for name, part in tests.items()}
    assert passed == {"good": 1, "bad": 0, "trap": 1, "hang": 0, "stuck": 1, "blocking": 1, "cpu": 0} | {
        "blocking.asynchronous": 1
    }
    assert tests["test_good"]["skip_reasons"] == {"no such thing": 1}
    assert [entry["kind"] for entry in tests["test_bad"]["bad"]] == ["failed"] * 3  # and no more of nine
    assert "negative" in tests["test_bad"]["bad"][0]["message"]
    for name, kind in (("trap", "crashed"), ("hang", "hung"), ("stuck", "hung")):
        last = tests[f"test_{name}"]["bad"][-1]
        assert last["test"].endswith(f"::test_{name}") and last["kind"] == kind
    assert "assert 1 == 2" in tests["test_hang"]["bad"][0]["message"]  # pytest's report survives an interrupt

    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        names = {Path(name).as_posix() for name in archive.getnames()}
        log = archive.extractfile("./test/test_trap.log")
        assert log is not None and b"Fatal Python error: Aborted" in log.read()
    assert names >= {"logs/build.log", "logs/bench.log", "test/test_hang.xml", "sanitize/racecheck.log"}
    with tarfile.open(tmp_path / "out" / "libraries.tar.gz") as archive:
        assert all(name.startswith("hashgrid/_C") for name in archive.getnames()) and archive.getnames()


def test_gpu_stages_with_tools_that_play(played: dict[str, str], tmp_path: Path) -> None:
    """The shell's part of building, sanitizing and probing: a race is reported, a fragment differs."""
    played["PYTHON"] = os.path.relpath(played["PYTHON"], ROOT)
    done = gpu_sh("build", "sanitize", "probe", **played)
    assert done.returncode == 1, done.stdout + done.stderr
    reasons = {name: (stage["outcome"], stage["reason"]) for name, stage in read_report(tmp_path)["stages"].items()}
    assert reasons["build"] == ("ok", None)
    assert "built for 9.0" in (tmp_path / "work" / "logs" / "build.log").read_text()
    assert reasons["sanitize"] == ("failed", "racecheck reports 1 errors")
    sanitizer = read_report(tmp_path)["sanitizer"]
    assert sanitizer["memcheck"]["finds_planted"] and sanitizer["memcheck"]["errors"] == 0
    assert "--kernel-name kns=hashgrid" in (tmp_path / "work" / "logs" / "sanitize.log").read_text()
    assert reasons["probe"] == ("failed", "1 of 900 experiments differ")


def test_calls_join_in_one_json(played: dict[str, str], tmp_path: Path) -> None:
    """One suite fails and must not hide the others; files of tests and suites of an earlier call stay."""
    for name in ("good", "bad", "trap"):
        (tmp_path / f"test_{name}.py").write_text(f"import os, pytest\npytestmark = pytest.mark.gpu\n{PLANTED[name]}\n")
    first = f"{tmp_path / 'test_trap.py'} {tmp_path / 'test_bad.py'}"
    assert gpu_sh("test", **played, TESTS=first, TEST_JOBS="1").returncode == 1
    assert read_report(tmp_path)["stages"]["test"]["reason"] == "1 crashed, 3 failed"
    (tmp_path / "out" / "gpu.json").rename(tmp_path / "first.json")
    second = {**played, "TESTS": str(tmp_path / "test_good.py"), "BENCHES": "nothing encodings"}
    assert gpu_sh("--merge", str(tmp_path / "first.json"), "test", "bench", **second).returncode == 1
    report = read_report(tmp_path)
    assert {name: stage["outcome"] for name, stage in report["stages"].items()} == {"test": "ok", "bench": "failed"}
    assert "nothing (1)" in report["stages"]["bench"]["reason"]
    assert report["tests"]["test_bad"]["counts"]["failed"] == 3 and report["tests"]["test_good"]["exit_status"] == 0
    assert list(report["benchmarks"]) == ["encodings"]


@pytest.mark.full
def test_stages_on_a_cpu(tmp_path: Path) -> None:
    """With tiny sizes, nothing played."""
    pytest.importorskip("matplotlib")
    test = tmp_path / "test_sample.py"
    test.write_text("def test_good(): pass\n")
    settings = {"DEVICE": "cpu", "WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out"), "COMMIT": "abc"}
    done = gpu_sh(
        "build", "probe", "sanitize", "test", "bench", "plot", **settings, TESTS=str(test), BENCHES="encodings"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(tmp_path)
    outcomes = {name: stage["outcome"] for name, stage in report["stages"].items()}
    skipped = dict.fromkeys(("build", "probe", "sanitize"), "skipped")
    assert outcomes == skipped | dict.fromkeys(("test", "bench", "plot"), "ok")
    assert report["card"] == "cpu" and report["environment"]["torch"] == torch.__version__
    assert report["benchmarks"]["encodings"]["cases"]
    assert (tmp_path / "out" / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_suite_without_its_package_is_left_out(played: dict[str, str], tmp_path: Path) -> None:
    """It hides no other suite, and neither fails nor replaces what an earlier call has measured."""
    settings = {**played, "PLAYED_MISSING": "igl"}
    reason = "the Python package igl is not installed"
    for measured in ([], [{"name": "case"}]):
        assert gpu_sh("bench", **settings, BENCHES="sdf_step encodings").returncode == 0
        report = read_report(tmp_path)
        assert report["stages"]["bench"]["outcome"] == "ok" and report["benchmarks"]["encodings"]["cases"]
        found = report["benchmarks"]["sdf_step"]
        assert found["cases"] == measured and (measured or found["skipped"] == reason)
        found["cases"] = [{"name": "case"}]
        (tmp_path / "out" / "gpu.json").write_text(json.dumps(report, indent=1))
    assert gpu_sh("bench", **settings, BENCHES="sdf_step").returncode == 0
    stage = read_report(tmp_path)["stages"]["bench"]
    assert (stage["outcome"], stage["reason"]) == ("skipped", f"sdf_step: {reason}")


def test_benchmark_ends_with_its_stage(played: dict[str, str], tmp_path: Path) -> None:
    """Both have a limit; the stage's is the shorter one here."""
    assert gpu_sh("bench", **played, BENCHES="slow", LIMIT_BENCH="1").returncode == 1
    assert read_report(tmp_path)["stages"]["bench"]["outcome"] == "timeout"
    process = int((tmp_path / "work" / "pid").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the benchmark outlives its stage")


# ---- the tests it runs -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_gpu_tests_need_no_hypothesis() -> None:
    """Those of test_cuda.py; files that import it themselves are left out where it is missing."""
    code = "import sys; sys.modules['hypothesis'] = None; import test_cuda"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=True)


@pytest.mark.full
def test_marked_tests_need_a_gpu() -> None:
    """A case of the kernels or the device "cuda", or a test that says `cuda` itself; gpu.sh runs all files with one."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-o", "addopts=", "-q", "-m", "gpu", "--gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    collected = re.findall(r"^tests/(\w+\.py)::(\w+)(?:\[(.*)\])?$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and len(collected) > 1000, done.stdout[-2000:]
    files = {file: (ROOT / "tests" / file).read_text() for file, *_ in collected}
    for file, name, case in collected:
        assert not re.search(r"\b(emulated|cuda_on_host)\b", case)
        if not re.search(r"(^|-)cuda($|-)", case):
            body = re.search(rf"^def {name}\(.*?(?=^[^\s)])", files[file] + "\nend", re.MULTILINE | re.DOTALL)
            assert body is not None and "cuda" in body[0], f"{file}::{name}[{case}]"
    planned = re.findall(r"-m gpu and (?:not )?asynchronous tests/(\w+\.py)", gpu_sh("test", "--dry-run").stdout)
    assert set(planned) == set(files)
    twice = [file for file, text in files.items() if "mark.asynchronous" in text]
    assert sorted(planned) == sorted([*files, *twice]) and len(twice) == 2


# ---- what tools leave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "log", "problem"),
    [
        ("ERROR SUMMARY: 1 error", "done\n========= ERROR SUMMARY: 0 errors", None),
        ("RACECHECK SUMMARY: 2 hazards", "done\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)", None),
        ("ERROR SUMMARY: 0 errors", "done\n========= ERROR SUMMARY: 0 errors", "does not find the planted fault"),
        ("ERROR SUMMARY: 1 error", "done\n========= ERROR SUMMARY: 3 errors", "reports 3 errors"),
        ("ERROR SUMMARY: 1 error", "========= ERROR SUMMARY: 0 errors", "did not come to the end"),
        ("ERROR SUMMARY: 1 error", "done", "did not come to the end"),
    ],
)
def test_sanitizer_has_to_hear_and_to_be_silent(
    report: ModuleType, tmp_path: Path, planted: str, log: str, problem: str | None
) -> None:
    (tmp_path / "planted_tool.log").write_text(planted)
    (tmp_path / "tool.log").write_text(log)
    found, why = report.collect_sanitizer(tmp_path)
    assert set(found) == {"tool"}
    assert (why is None) if problem is None else problem in why


def test_thinned_times_stay_few(report: ModuleType) -> None:
    assert report.thin([1.23456789]) == [1.2346]
    assert len(report.thin([float(i) for i in range(100_001)])) <= report.KEPT_CALLS


@pytest.mark.full
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_probe_compiles_and_expects_a_matrix_product(tmp_path: Path) -> None:
    """Every element of a factor meets one of the other; where, is the manual's business."""
    probe = tmp_path / "mma_probe"
    sources = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "tests" / "host"), str(ROOT / "tests/cuda/mma_probe.cu")]
    options = ["-std=c++17", "-arch=sm_90", "-Werror=all-warnings"]
    subprocess.run([str(NVCC), *options, *sources, "-o", str(probe)], check=True)
    done = subprocess.run([str(probe), "--expected"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["wrong"] == 0 and not found["measured"]
    for name in ("mma.m16n8k16.bf16", "mma.m16n8k16.f16"):
        a, b = found[name]["a"], found[name]["b"]
        assert len(a["sum"]) == 256 and len(b["sum"]) == 128
        assert set(a["meets"]) == {b_element for b_element in range(128) if b["sum"][b_element] == 0}
        assert min(b["meets"]) >= 0
    assert sorted(found["ldmatrix.x4.trans"]["places"]) == list(range(256))
    if not torch.cuda.is_available():
        assert subprocess.run([str(probe)], capture_output=True).returncode == 3


@pytest.fixture
def sanitize() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "tests" / "cuda"))
    try:
        yield importlib.import_module("sanitize")
    finally:
        sys.path.pop(0)


@pytest.mark.full
def test_sanitized_work_runs(sanitize: ModuleType) -> None:
    for name in ("hash_encode", "composite", "occupancy", "adam_step"):
        sanitize.WORK[name](1)


def test_some_sanitized_ops_can_be_chosen(
    sanitize: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An op's name stands for its derivatives, not for an op whose name begins like it; time that is over is told."""
    assert set(sanitize.ON_CUDA) >= set(sanitize.WORK) - {"occupancy"}
    run = [name.partition(":")[0] for name in sanitize.tasks(["hash_encode", "mlp"], "cuda", [1, 2])]
    backward = [f"hash_encode_{name}" for name in ("backward", "accumulate_table_gradient", "backward_backward")]
    of_mlp = ["mlp", *(f"mlp_{name}" for name in ("backward", "with_gradient", "backward_backward"))]
    assert run == ["hash_encode", *backward, *of_mlp, *["hash_encode"] * 2, *["mlp"] * 2]
    assert len(sanitize.tasks(None, "cuda", [1])) == len(sanitize.ON_CUDA) + len(sanitize.WORK)
    for seconds, last in (("100", "done"), ("0", "left out after 0 s: pixel_loss: samples, pixel_loss: size 1")):
        options = ["--device", "cpu", "--only", "pixel_loss", "--sizes", "1", "--seconds", seconds]
        monkeypatch.setattr(sys, "argv", ["sanitize.py", *options])
        sanitize.main()
        assert capsys.readouterr().out.splitlines()[-1] == last
    torch.set_default_device(None)


# ---- benchmarks ------------------------------------------------------------------------------------------------------

PACKAGES = {
    "nerf_step": ["safetensors"],
    "sdf_step": ["igl", "skimage"],
    "surface_step": ["safetensors"],
}  # as in gpu.sh


@pytest.mark.full
@pytest.mark.parametrize("suite", bench.SUITES.values())
def test_suite_validates_and_writes(suite: str, tmp_path: Path) -> None:
    for package in PACKAGES.get(suite, ()):
        pytest.importorskip(package)
    module = importlib.import_module(f"hashgrid.bench.{suite}")
    path = module.main(["--out", str(tmp_path), "--tiny", "--no-compile", "--no-plot", "--seconds", "0"])
    record = json.loads(path.read_text())
    assert path.name == f"{suite}.json" and record["device"] == "cpu" and record["cases"]
    for case in record["cases"]:
        assert [row["name"] for row in case["contenders"] if "failure" in row] == []
        assert case["speedup"]


@pytest.mark.full
def test_gpu_recipe_of_the_nerf_step(tmp_path: Path) -> None:
    """Steps of fixed size, counted in rays, with the table in half precision; on the CPU here."""
    pytest.importorskip("safetensors")
    from hashgrid.bench import nerf_step

    options = ["--tiny", "--gpu-recipe", "--no-compile", "--no-plot", "--seconds", "0"]
    record = json.loads(nerf_step.main(["--out", str(tmp_path), *options]).read_text())
    (case,) = record["cases"]
    assert record["unit"] == "ns per ray"
    assert set(case["speedup"]) == {harness.EAGER, f"{harness.OURS}, steps of varying size"}
    assert min(case["samples_per_ray"].values()) > 0


def test_procedural_scene_is_the_one_of_files(tmp_path: Path) -> None:
    pytest.importorskip("imageio.v3")
    scene = procedural_scene(3, 2, 24, seed=5)
    stored = load_scene(write_scene(tmp_path, 3, 2, 24, seed=5))
    for views, expected in ((scene.train, stored.train), (scene.test, stored.test)):
        assert torch.equal(views.data, expected.data) and torch.equal(views.sizes, expected.sizes)
        assert views.names == expected.names and torch.equal(views.distortion, expected.distortion)
        torch.testing.assert_close(views.c2w, expected.c2w, rtol=0, atol=1e-6)
        torch.testing.assert_close(views.intrinsics, expected.intrinsics)
    torch.testing.assert_close(scene.up, stored.up, rtol=0, atol=1e-6)
    assert torch.equal(scene.aabb, stored.aabb) and scene.cone_angle == stored.cone_angle
    assert (scene.n_cascades, scene.bounded, scene.near) == (stored.n_cascades, stored.bounded, stored.near)


def test_what_a_contender_needs_is_on_the_device() -> None:
    """Layers are made there, and no call copies a number to it."""
    layers = mlp._sequential([torch.empty(5, 3, device="meta"), torch.empty(2, 5, device="meta")])
    assert {param.device.type for param in layers.parameters()} == {"meta"}
    calls: list[dict] = []
    contender = adam_step._contender("step", lambda **options: calls.append(options), torch.zeros(2, 2), skip=False)
    contender.run()
    assert isinstance(calls[0]["global_step"], torch.Tensor) and calls[0]["global_step"].dtype == torch.int32


def test_absent_peers_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tinycudann", "nerfacc", "drjit"):
        monkeypatch.setitem(sys.modules, name, None)  # import raises
    x, table = torch.rand(4, 3), torch.zeros(8, 2)
    samples = [torch.zeros(0), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0), torch.zeros(1, 2, dtype=torch.int64)]
    contenders = [make(x, table, None) for make in peers.hash_encoders(peers.Grid(1, 2, 3, 2, 2)).values()]
    contenders += peers.mlps([torch.zeros(16, 16), torch.zeros(16, 16)], torch.zeros(4, 16), None)
    contenders += [make(x, None) for make in (*peers.sh_encoders(4).values(), *peers.frequency_encoders(4).values())]
    contenders += [peers.nerfacc_composite(samples, True), peers.nerfacc_march(x, x, x, torch.ones(2, 2, 2) > 0, 0.1)]
    ours = harness.Contender(harness.OURS, lambda: (torch.ones(1),))
    timings = harness.run_case(harness.Case("case", 4, [ours, *contenders]), seconds=0, turn_seconds=0)
    assert timings[0].failure is None
    assert all(timing.failure and "Error" in timing.failure for timing in timings[1:])


def test_a_peer_that_differs_is_not_timed() -> None:
    ours = harness.Contender(harness.OURS, lambda: (torch.ones(3),))
    peer = harness.Contender("peer", lambda: (torch.zeros(3),), peer=True)
    part = harness.Contender("part", lambda: (torch.tensor(3.0),), project=lambda truth: (truth[0].sum(),), peer=True)
    timings = harness.run_case(harness.Case("case", 1, [ours, peer, part]), seconds=0, turn_seconds=0)
    assert timings[1].failure is not None and "off by" in timings[1].failure
    assert timings[2].failure is None


def test_limit_is_the_slower_resource() -> None:
    rates = harness.Rates(torch.device("cpu"), harness.WallClock(), tiny=True)
    rates.bandwidth = 1e9  # a byte per ns
    rates.measured["matmul_float32_flops"] = 1e12
    assert rates.limit(10, "ten").ns_per_point == pytest.approx(10)
    limit = rates.limit(10, "ten", flop=20e3)
    assert limit.ns_per_point == pytest.approx(20) and limit.parts == pytest.approx({"bandwidth": 10, "matmul": 20})
    rates.random_sector_seconds, rates.random_add_seconds = 2e-9, 3e-9
    limit = rates.limit(10, "ten", sectors=5, adds=4)
    assert limit.ns_per_point == pytest.approx(22) and limit.parts == pytest.approx({"bandwidth": 10, "l2": 22})


def test_rates_of_the_l2_cache_are_measured() -> None:
    """Here on the CPU, which tells that the code runs."""
    rates = harness.Rates(torch.device("cpu"), harness.WallClock(), tiny=True)
    assert rates.random_sector_seconds > 0 and rates.random_add_seconds > 0
    assert set(rates.measured) == {"random_sector_ns", "random_add_ns"}


def test_cuda_clock_times_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With events that count: which calls lie between them, what is flushed, and that a turn ends."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "stream of cpu"
            log.append("event")

        def elapsed_time(self, stop: Event) -> float:
            return 2.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(L2_cache_size=64))
    clock = harness.CudaClock(torch.device("cpu"))
    assert clock._buffer.shape == (128,)
    calls = clock.turn(lambda: log.append("run"), lambda: 10, seconds=0.0)
    assert log == ["event", "run", "event", "wait", "wait"]
    assert [(call.seconds, call.points) for call in calls] == [(2e-3, 10)] and calls[0].host_seconds is not None
    ours = harness.Contender(harness.OURS, lambda: (torch.ones(1),))
    case = harness.Case("case", 10, [ours])
    (timing,) = harness.run_case(case, seconds=0, turn_seconds=0, min_calls=3, clock=clock)
    assert timing.ns == [2e5] * 3
    assert harness.summary(case, [timing])["contenders"][0]["host_median_ns"] > 0


# ---- other libraries, played by the reference ------------------------------------------------------------------------


class FakeEncoding(torch.nn.Module):
    """tcnn's interface over the reference: flat fp32 parameters, half-precision results, directions in [0, 1]."""

    def __init__(self, n_input_dims: int, config: dict, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        n_params = 0
        if config["otype"] == "HashGrid":
            keys = ("n_levels", "log2_hashmap_size", "base_resolution", "per_level_scale")
            self.levels = make_level_table(n_input_dims, **{key: config[key] for key in keys})
            n_params = self.levels.n_entries * config["n_features_per_level"]
        self.params = torch.nn.Parameter(1e-2 * torch.randn(n_params))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        config, params = self.config, self.params.to(self.dtype).float()
        if config["otype"] == "HashGrid":
            y = reference.hash_encode(x, params.view(-1, config["n_features_per_level"]), self.levels)
        elif config["otype"] == "SphericalHarmonics":
            y = reference.sh_encode(2 * x - 1, config["degree"])
        else:
            y = reference.frequency_encode(x, config["n_frequencies"])
        return y.to(self.dtype)


class FakeNetwork(torch.nn.Module):
    def __init__(self, n_input_dims: int, n_output_dims: int, config: dict) -> None:
        super().__init__()
        widths = [n_input_dims, *[config["n_neurons"]] * config["n_hidden_layers"], n_output_dims]
        self.shapes = [(b, a) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        self.output_activation, self.dtype = config["output_activation"].lower(), torch.float16
        self.params = torch.nn.Parameter(0.3 * torch.randn(sum(a * b for a, b in self.shapes)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.params.float().split([a * b for a, b in self.shapes])
        weights = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return reference.mlp(x.float(), weights, output_activation=self.output_activation).half()


class FakeField(torch.nn.Module):
    """One flat parameter, the network's first."""

    def __init__(self, n_input_dims: int, n_output_dims: int, encoding: dict, network: dict) -> None:
        super().__init__()
        n_features = encoding["n_levels"] * encoding["n_features_per_level"]
        self.parts = FakeNetwork(n_features, n_output_dims, network), FakeEncoding(n_input_dims, encoding)
        self.dtype = torch.float16
        self.params = torch.nn.Parameter(torch.cat([part.params.detach() for part in self.parts]))
        self.sizes = [part.params.numel() for part in self.parts]
        for part in self.parts:
            del part.params

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part, params in zip(self.parts, self.params.split(self.sizes), strict=True):
            part.params = params
        network, encoding = self.parts
        return network(encoding(x))


class FakeEstimator(torch.nn.Module):
    def __init__(self, roi_aabb: torch.Tensor, resolution: list[int] | int, levels: int) -> None:
        super().__init__()
        self.aabb = roi_aabb
        shape = (resolution,) * 3 if isinstance(resolution, int) else tuple(resolution)
        self.binaries = torch.ones(1, *shape, dtype=torch.bool)

    def sampling(self, rays_o, rays_d, sigma_fn=None, render_step_size=1e-3, stratified=False, early_stop_eps=1e-4):
        t_starts, t_ends, rays, packed_info = reference.march_rays(
            rays_o, rays_d, self.aabb, march_rays.pack(self.binaries.flatten()), tuple(self.binaries.shape[1:]),
            step_size=render_step_size, seed=0 if stratified else None,
        )  # fmt: skip
        if sigma_fn is None:
            return rays, t_starts, t_ends
        sigmas = sigma_fn(t_starts, t_ends, rays)
        kept, _ = reference.visible_samples(sigmas.detach(), t_starts, t_ends, packed_info, early_stop_eps)
        return rays[kept], t_starts[kept], t_ends[kept]

    def update_every_n_steps(self, step, occ_eval_fn, occ_thre):
        assert occ_eval_fn(torch.zeros(5, 3)).shape == (5, 1)


def fake_rendering(t_starts, t_ends, ray_indices, n_rays, rgb_sigma_fn, expected_depths=True):
    colors, sigmas = rgb_sigma_fn(t_starts, t_ends, ray_indices)
    counts = ray_indices.bincount(minlength=n_rays)
    packed_info = torch.stack((counts.cumsum(0) - counts, counts), dim=1)
    rendered = reference.composite(sigmas, colors, t_starts, t_ends, packed_info, early_stop_eps=0.0)
    return rendered[0], rendered[1][:, None], rendered[2][:, None], {}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    tcnn = {"Encoding": FakeEncoding, "Network": FakeNetwork, "NetworkWithInputEncoding": FakeField}
    tcnn["supports_jit_fusion"] = lambda: True
    nerfacc = {"OccGridEstimator": FakeEstimator, "rendering": fake_rendering}
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(**tcnn))
    monkeypatch.setitem(sys.modules, "nerfacc", types.SimpleNamespace(**nerfacc))
    monkeypatch.setitem(sys.modules, "drjit", None)
    # on a GPU suites ask for them; here they are made to
    original = harness.Suite.__init__

    def with_peers(self, *arguments):
        original(self, *arguments)
        self.peers = True

    monkeypatch.setattr(harness.Suite, "__init__", with_peers)


@pytest.mark.full
@pytest.mark.parametrize("suite", ["hash_encode", "mlp", "hash_encode_mlp", "encodings", "composite", "march_rays"])
def test_peers_are_brought_into_our_form(fakes: None, suite: str, tmp_path: Path) -> None:
    """Layouts, gradients and input ranges of the adapters; the libraries themselves need a GPU."""
    module = importlib.import_module(f"hashgrid.bench.{suite}")
    path = module.main(["--out", str(tmp_path), "--tiny", "--no-compile", "--no-plot", "--seconds", "0"])
    for case in json.loads(path.read_text())["cases"]:
        failures = {row["name"]: row["failure"] for row in case["contenders"] if "failure" in row}
        assert set(failures) <= {"Dr.Jit"}, f"{case['name']}: {failures}"


@pytest.mark.filterwarnings("ignore:.*GradScaler")
def test_nerf_peer_steps(fakes: None) -> None:
    config = NerfConfig().replace(log2_hashmap_size=8, steps_per_diagonal=16, occupancy_resolution=8, max_rays=64)
    scene = types.SimpleNamespace(aabb=torch.tensor([-1.0, -1, -1, 1, 1, 1]))

    def batch(n_rays: int):
        rays_o, rays_d = march_rays.make_rays(n_rays)
        return rays_o * 2 - 1, rays_d, torch.rand(n_rays, 3), torch.rand(n_rays, 3)

    make = functools.partial(peers.NerfaccTrainer, scene, config, batch, torch.device("cpu"))
    contenders = peers.nerfacc_steps(make, warm_steps=2)
    ours = harness.Contender(harness.OURS, lambda: (torch.ones(1),))
    case = harness.Case("step", 1, [ours, *contenders])
    timings = harness.run_case(case, seconds=0, turn_seconds=0, min_calls=2)
    assert [timing.failure for timing in timings] == [None] * 3
    assert contenders[0].points is not None and contenders[0].points() == 64
