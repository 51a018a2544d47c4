"""Several processes that train one field: the same run as one process, to rounding."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from problems.nerf import OPTIONS, nerf_trainer
from problems.ranks import run_ranks

from hashgrid.geometry.rays import Rays
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.samplers import OccupancySampler, StratifiedSampler
from hashgrid.train import ranks
from hashgrid.train.task import Step

SCRIPT = str(Path(__file__).parent / "problems" / "ranks.py")
FIXED = "occupancy_time_share=1"  # else clocks decide when occupancy is looked at


def found(out, n):
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(n)]


def assert_same_on_all(traces):
    first, *others = traces
    for other in others:
        assert other["losses"] == first["losses"] and other["n_rays"] == first["n_rays"]
        for part in ("model", "sampler"):
            for name, value in first[part].items():
                torch.testing.assert_close(other[part][name], value, rtol=0, atol=0, msg=name)


def single(scene, steps, **changes):
    trainer, losses = nerf_trainer(scene, steps, occupancy_time_share=1, **changes), []
    trainer.train(lambda progress: losses.append(trainer.stepper.read().loss))
    return trainer, losses


def test_two_ranks_are_one_process(scene, scene_path, tmp_path):
    run_ranks(2, SCRIPT, str(scene_path), "24", str(tmp_path), FIXED)
    traces = found(tmp_path, 2)
    assert_same_on_all(traces)
    whole, losses = single(scene, 24)
    assert traces[0]["losses"] == pytest.approx(losses, rel=1e-5)
    assert traces[0]["counts"]["rays"] == whole.progress.counts["rays"]
    assert traces[0]["counts"]["samples"] == pytest.approx(whole.progress.samples, rel=1e-3)
    table = whole.task.model.grid.table
    assert traces[0]["bytes"] / 24 < 0.7 * table.nbytes  # rows that nobody touched stay at home


@pytest.mark.full
@pytest.mark.parametrize("n, changes", [(3, ()), (2, ("reduce_dtype=bfloat16",)), (2, ("sampler=stratified",))])
def test_more_ranks_and_other_ways(scene, scene_path, tmp_path, n, changes):
    run_ranks(n, SCRIPT, str(scene_path), "24", str(tmp_path), FIXED, *changes)
    traces = found(tmp_path, n)
    assert_same_on_all(traces)
    options = {} if "sampler=stratified" not in changes else {"sampler": "stratified"}
    losses = single(scene, 24, **options)[1]
    # samples everywhere touch more rows, where a gradient that is nearly zero decides by its sign: 1.2e-5 was seen
    tolerance = {"reduce_dtype=bfloat16": 2e-2, "sampler=stratified": 1e-4}
    assert traces[0]["losses"] == pytest.approx(losses, rel=tolerance[changes[0]] if changes else 1e-5)


@pytest.mark.full
def test_checkpoints_go_on_with_any_number_of_ranks(scene, scene_path, tmp_path):
    (tmp_path / "two").mkdir()
    half, whole = nerf_trainer(scene, 40, occupancy_time_share=1), single(scene, 40)[1]
    for _ in range(20):
        half.step()
    half.save(tmp_path / "checkpoint.safetensors")
    run_ranks(
        2, SCRIPT, str(scene_path), "40", str(tmp_path / "two"), FIXED, f"checkpoint={tmp_path}/checkpoint.safetensors"
    )
    traces = found(tmp_path / "two", 2)
    assert_same_on_all(traces)
    assert traces[0]["step"] == 40 and traces[0]["losses"] == pytest.approx(whole[20:], rel=1e-5)


@pytest.mark.full
def test_ranks_of_different_runs_say_so(scene_path, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import os, runpy
sys.argv = ["ranks.py", {str(scene_path)!r}, "5", {str(tmp_path)!r}, "seed=" + os.environ["RANK"]]
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""
    for process in run_ranks(2, "-c", code, wait=False):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "the run must be the same in all processes" in errors or "has ended or does not answer" in errors


def test_shifts_of_a_part_are_those_of_the_whole_batch():
    torch.manual_seed(1)
    origins, directions = torch.randn(64, 3) * 0.1 + torch.tensor([0.0, 0.0, 3.0]), torch.randn(64, 3) * 0.2
    directions = torch.nn.functional.normalize(directions - torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    rays = Rays(origins, directions)
    for cascades, cone_angle in ((1, 0.0), (2, 1 / 256)):
        grid = OccupancyGrid([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], 16, cascades)
        sampler = OccupancySampler(grid, 0.01, cone_angle, near=0.5)
        whole = sampler(rays, None, (3, 7)).samples
        part = sampler(rays[40:], None, (3, 7, 40)).samples
        first = int(whole.packed_info[40, 0])
        torch.testing.assert_close(part.t_starts, whole.t_starts[first:], rtol=0, atol=2e-6)
    stratified = StratifiedSampler(8)
    aabb = grid.aabb
    torch.testing.assert_close(
        stratified.edges(rays[40:], aabb, (3, 7, 40)), stratified.edges(rays, aabb, (3, 7))[40:], rtol=0, atol=0
    )


def test_alone_nothing_changes(monkeypatch):
    step = Step(torch.tensor(1.0), {}, {})
    assert step.times(4 / 4) is step
    assert ranks.part(5) == slice(0, 5) and ranks.total(3) == 3 and ranks.of_first(0.5) == 0.5
    assert ranks.wanted() == 1 and ranks.size() == 1 and ranks.is_first()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.wanted() == 1  # of a cluster, without a rank: not torchrun's


def test_commands_of_one_process_say_so(monkeypatch, capsys):
    from hashgrid.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for words in (["sdf"], ["bench"], ["compare", "image"], ["nerf", "--view"]):
        assert main(words) == 1
        assert "runs in one process, got 2 of torchrun" in capsys.readouterr().err


# ---- torchrun itself ------------------------------------------------------------------------------------------------


def torchrun(scene, out, *words):
    module = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hashgrid"]
    options = [*OPTIONS, "--no-video", "--out", str(out), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen([*module, "nerf", str(scene), *options], stdout=pipe, stderr=pipe, text=True)


def ranks_of(launcher):
    """Process ids of the ranks that a launcher has started, in order."""
    tasks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    children = [int(pid) for pid in tasks.read_text().split()]
    variables = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}
    of_rank = {int(word[5:]): pid for pid, words in variables.items() for word in words if word.startswith(b"RANK=")}
    return [of_rank[rank] for rank in sorted(of_rank)]


def wait_for(path, launcher):
    end = time.time() + 120
    while not path.exists():
        assert launcher.poll() is None and time.time() < end, launcher.communicate()[1]
        time.sleep(0.1)


@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_all_and_the_checkpoint_goes_on(scene_path, tmp_path, killed):
    checkpoint = tmp_path / "checkpoint.safetensors"
    launcher = torchrun(scene_path, tmp_path, "--steps", "100000", "--checkpoint-seconds", "1")
    wait_for(checkpoint, launcher)
    os.kill(ranks_of(launcher)[killed], signal.SIGKILL)
    begin = time.time()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0 and time.time() - begin < 10
    assert f"error (rank {1 - killed}): another process of the run has ended" in errors and "--resume" in errors
    resumed = torchrun(scene_path, tmp_path, "--resume", "--time-limit", "5")
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    results = json.loads((tmp_path / "results.json").read_text())
    assert output.count("results in") == 1 and results["ranks"]["processes"] == 2
    assert "2 processes: sums of gradients" in output and "error" not in errors


@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_interrupt_ends_all_after_the_same_step(scene_path, tmp_path):
    launcher = torchrun(scene_path, tmp_path, "--steps", "100000", "--checkpoint-seconds", "1")
    wait_for(tmp_path / "checkpoint.safetensors", launcher)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert "interrupted: the checkpoint is written" in output
    assert json.loads((tmp_path / "results.json").read_text())["train"]["interrupted"]


@pytest.mark.full
@pytest.mark.skipif(not (hasattr(os, "geteuid") and os.geteuid() == 0), reason="namespaces need root")
@pytest.mark.skipif(shutil.which("ip") is None, reason="namespaces need iproute2")
def test_two_network_namespaces_are_two_hosts(tmp_path):
    mark = Path(__file__).parents[1] / "benchmarks" / "marks" / "ranks.py"
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    words = [
        "--cores",
        cores,
        "--only",
        "hosts",
        "--steps",
        "5",
        "--samples",
        "2048",
        "--out",
        str(tmp_path / "marks.json"),
    ]
    done = subprocess.run([sys.executable, str(mark), *words], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    if "left out" in done.stdout:
        pytest.skip(done.stdout)
    (row,) = json.loads((tmp_path / "marks.json").read_text())["rows"]
    assert row["processes"] == 2 and row["equal"]
