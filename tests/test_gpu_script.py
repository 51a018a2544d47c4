"""benchmarks/gpu.sh as far as it goes without a GPU. Nothing here asserts a time."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hashgrid import bench, reference
from hashgrid.bench import adam_step, harness, march_rays, mlp, peers
from hashgrid.bench.scenes import procedural_scene
from hashgrid.levels import make_level_table
from hashgrid.nerf.config import NerfConfig
from hashgrid.nerf.dataset import load_scene
from hashgrid.nerf.procedural import write_scene

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STAGES = ("build", "test", "sanitize", "probe", "bench", "train", "plot")
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
    assert headings == list(STAGES)
    for words in ("build_ext --inplace", "and not emulated", "--tool racecheck", "mma_probe", "--device cuda"):
        assert words in done.stdout
    for suite in set(bench.SUITES.values()) - {"train", "scaling"}:  # training is a stage of its own
        assert f"hashgrid.bench.{suite} " in done.stdout


def test_unknown_stage_and_missing_gpu_are_refused(tmp_path: Path) -> None:
    done = gpu_sh("everything")
    assert done.returncode == 2 and "unknown stage 'everything'" in done.stderr
    if not torch.cuda.is_available():
        done = gpu_sh("plot", WORK=str(tmp_path), OUT=str(tmp_path))
        assert done.returncode == 2 and "DEVICE=cuda" in done.stderr
        assert not (tmp_path / "gpu.json").exists()


def test_stages_join_in_one_json(tmp_path: Path) -> None:
    """All stages with tiny sizes on the CPU, in two calls; one suite does not exist and must not hide the others."""
    pytest.importorskip("matplotlib")
    test = tmp_path / "test_sample.py"
    test.write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n"
        "def test_absent(): pytest.skip('no such thing')\n"
    )
    out = tmp_path / "out"
    settings = {"DEVICE": "cpu", "WORK": str(tmp_path / "work"), "OUT": str(out), "COMMIT": "abc"}
    first = gpu_sh("build", "test", "sanitize", "probe", **settings, TESTS=str(test), TEST_JOBS="1")
    assert first.returncode == 1  # a test fails
    merged = {**settings, "OUT": str(tmp_path / "second"), "BENCHES": "nothing encodings"}
    second = gpu_sh("--merge", str(out / "gpu.json"), "bench", "plot", **merged)
    assert second.returncode == 1

    report = json.loads((tmp_path / "second" / "gpu.json").read_text())
    stages = report["stages"]
    outcomes = {name: stage["outcome"] for name, stage in stages.items()}
    assert outcomes == dict.fromkeys(("build", "sanitize", "probe"), "skipped") | {
        "test": "failed",
        "bench": "failed",
        "plot": "ok",
    }
    assert all(stage["reason"] for name, stage in stages.items() if name != "plot")
    assert "nothing (1)" in stages["bench"]["reason"]
    assert report["card"] == "cpu" and report["commit"].startswith("abc")
    assert report["environment"]["torch"] == torch.__version__
    assert report["tests"]["counts"] == {"passed": 1, "failed": 1, "errors": 0, "skipped": 1}
    assert report["tests"]["bad"][0]["test"].endswith("::test_bad")
    assert report["tests"]["skip_reasons"] == {"no such thing": 1}
    assert list(report["benchmarks"]) == ["encodings"]
    assert (tmp_path / "second" / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "second" / "bench.log").exists()


FAKE_TOOLS = {
    # answers what the script asks about the card and passes the rest on
    "python": """case "$*" in
*hashgrid.bench.environment*) echo '{"card": "fake", "python": "3", "torch": "2", "cpu": "none"}' ;;
*get_device_capability*) echo 9.0 ;;
*setup.py*) echo "built for $TORCH_CUDA_ARCH_LIST" ;;
*setuptools.__version__*) echo ${PLAYED_SETUPTOOLS:-77.0.1} ;;
*"find_spec('${PLAYED_MISSING:-}')"*) exit 1 ;;
*"hashgrid.bench.slow "*) echo $$ > "$WORK/pid"; exec sleep 60 ;;
*"hashgrid info") ;;
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
    return {"PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}", **folders}


def test_gpu_stages_with_tools_that_play(played: dict[str, str], tmp_path: Path) -> None:
    """The shell's part of building, sanitizing and probing: a race is reported, a fragment differs."""
    done = gpu_sh("build", "sanitize", "probe", **played)
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "gpu.json").read_text())
    reasons = {name: (stage["outcome"], stage["reason"]) for name, stage in report["stages"].items()}
    assert reasons["build"] == ("ok", None)
    assert "built for 9.0" in (tmp_path / "out" / "build.log").read_text()
    assert reasons["sanitize"] == ("failed", "racecheck reports 1 errors")
    assert report["sanitizer"]["memcheck"]["finds_planted"] and report["sanitizer"]["memcheck"]["errors"] == 0
    assert "--kernel-name kns=hashgrid" in (tmp_path / "out" / "sanitize.log").read_text()
    assert reasons["probe"] == ("failed", "1 of 900 experiments differ")


def test_setuptools_that_cannot_build_is_named(played: dict[str, str], tmp_path: Path) -> None:
    assert gpu_sh("build", **played, PLAYED_SETUPTOOLS="68.1.2").returncode == 0
    stage = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]["build"]
    expected = "setuptools must be 77 or newer for pyproject.toml, got 68.1.2"
    assert (stage["outcome"], stage["reason"]) == ("skipped", expected)


def test_suite_without_its_package_is_left_out(played: dict[str, str], tmp_path: Path) -> None:
    """It hides no other suite, and neither fails nor replaces what an earlier call has measured."""
    settings = {**played, "DEVICE": "cpu", "PLAYED_MISSING": "igl"}
    reason = "the Python package igl is not installed"
    for measured in ([], [{"name": "case"}]):
        assert gpu_sh("bench", **settings, BENCHES="sdf_step encodings").returncode == 0
        report = json.loads((tmp_path / "out" / "gpu.json").read_text())
        assert report["stages"]["bench"]["outcome"] == "ok" and report["benchmarks"]["encodings"]["cases"]
        found = report["benchmarks"]["sdf_step"]
        assert found["cases"] == measured and (measured or found["skipped"] == reason)
        found["cases"] = [{"name": "case"}]
        (tmp_path / "out" / "gpu.json").write_text(json.dumps(report, indent=1))
    assert gpu_sh("bench", **settings, BENCHES="sdf_step").returncode == 0
    stage = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]["bench"]
    assert (stage["outcome"], stage["reason"]) == ("skipped", f"sdf_step: {reason}")


def test_benchmark_ends_with_its_stage(played: dict[str, str], tmp_path: Path) -> None:
    """Both have a limit; the stage's is the shorter one here."""
    assert gpu_sh("bench", **played, BENCHES="slow", LIMIT_BENCH="1").returncode == 1
    stage = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]["bench"]
    assert stage["outcome"] == "timeout"
    process = int((tmp_path / "work" / "pid").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the benchmark outlives its stage")


def test_gpu_tests_need_no_hypothesis() -> None:
    """Those of test_cuda.py; files that import it themselves are left out where it is missing."""
    code = "import sys; sys.modules['hypothesis'] = None; import test_cuda"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=True)


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


def test_sanitized_work_runs() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "cuda"))
    try:
        import sanitize
    finally:
        sys.path.pop(0)
    assert set(sanitize.ON_CUDA) >= set(sanitize.WORK) - {"occupancy"}
    for name in ("hash_encode", "composite", "occupancy", "adam_step"):
        sanitize.WORK[name](1)


# ---- benchmarks ------------------------------------------------------------------------------------------------------

PACKAGES = {"nerf_step": ["safetensors"], "sdf_step": ["igl", "skimage"]}  # as in gpu.sh


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
    config = NerfConfig(log2_hashmap_size=8, steps_per_diagonal=16, occupancy_resolution=8, max_rays=64)
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
