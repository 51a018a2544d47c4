"""The benchmark harness: nobody is timed before its results are right. Nothing here asserts a time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hashgrid import bench
from hashgrid.bench import harness
from hashgrid.bench.hash_encode import lines_per_point, ray_positions
from hashgrid.levels import make_level_table


def make_case(*contenders: harness.Contender, tolerance: float = 1e-4) -> harness.Case:
    return harness.Case("case", 10, list(contenders), tolerance)


def contender(name: str, value: float) -> harness.Contender:
    return harness.Contender(name, lambda: (torch.full((3,), value),))


def test_wrong_results_are_not_timed() -> None:
    case = make_case(contender(harness.EAGER, 1.0), contender(harness.OURS, 1.001))
    with pytest.raises(harness.ValidationError, match="off by"):
        harness.run_case(case, seconds=0)
    with pytest.raises(harness.ValidationError):
        harness.run_case(make_case(contender(harness.EAGER, 1.0), contender(harness.OURS, float("nan"))), seconds=0)


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def logged(name: str) -> harness.Contender:
        return harness.Contender(name, lambda: (calls.append(name), (torch.ones(1),))[1])

    timings = harness.run_case(
        make_case(logged(harness.EAGER), logged(harness.OURS)), seconds=0, turn_seconds=0, min_calls=3
    )
    assert [len(timing.ns) for timing in timings] == [3, 3]
    assert calls[4:] == [harness.EAGER, harness.OURS] * 3  # after two calls each


def test_a_peer_may_fail_but_not_we() -> None:
    def fail():  # as a peer that lacks the function
        raise RuntimeError("no such thing")

    truth, ours = contender(harness.EAGER, 1.0), contender(harness.OURS, 1.0)
    timings = harness.run_case(make_case(truth, harness.Contender("peer", fail), ours), seconds=0)
    assert timings[1].failure == "RuntimeError: no such thing" and not timings[1].ns
    with pytest.raises(RuntimeError, match="no such thing"):
        harness.run_case(make_case(truth, harness.Contender(harness.OURS, fail)), seconds=0)


def test_suite_writes_json_and_plot(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    args = harness.parser("").parse_args(["--out", str(tmp_path), "--seconds", "0"])
    suite = harness.Suite("trivial", "point", args)
    case = make_case(contender(harness.EAGER, 1.0), contender(harness.OURS, 1.0))
    case.limit = harness.Limit(1.0, "a guess")
    suite.run(case)
    path = suite.write()
    record = json.loads(path.read_text())
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["threads"] == torch.get_num_threads()
    (result,) = record["cases"]
    assert set(result["speedup"]) == {harness.EAGER}
    assert result["limit"]["fraction_reached"] > 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "a guess" in capsys.readouterr().out


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="must be among"):
        bench.run(["nothing"])


def test_ray_positions_are_inside() -> None:
    positions = ray_positions(1000)
    assert positions.shape == (1000, 3)
    assert positions.min() >= 0 and positions.max() <= 1


def test_lines_per_point_counts_distinct_lines() -> None:
    levels = make_level_table(3, n_levels=1, log2_hashmap_size=19, base_resolution=64, max_resolution=64)
    positions = torch.rand(4096, 3)
    # dense level, 8-byte entries: four pairs of x-neighbours, one of eight crosses a line
    assert 4.3 < lines_per_point(positions, levels, 8) < 4.7
    assert lines_per_point(positions, levels, 64) == 8


CALLGRIND = """\
fn=(1) main
3 100
cfn=(2) hashgrid::avx2::mlp_forward_range(hashgrid::MlpParams const&, long, long)
calls=2 7
+4 5000

fl=(3) mlp.inl
fn=(2)
10 40
+2 60
fi=(4) simd.h
* 5
cfn=(5) hashgrid::avx2::multiply(long)
calls=9 1
-3 900

fn=(5)
20 900

fn=(6) hashgrid::avx2::mlp_reduce_range(hashgrid::MlpParams const&, long, long)
5 7
"""


def test_instructions_are_counted_with_what_a_kernel_calls(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "instructions.py"
    spec = importlib.util.spec_from_file_location("instructions", path)
    assert spec is not None and spec.loader is not None
    instructions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(instructions)
    (tmp_path / "callgrind.out").write_text(CALLGRIND)
    counts = instructions.parse(tmp_path / "callgrind.out")
    assert counts == {"mlp_forward": 40 + 60 + 5 + 900, "mlp_reduce": 7}
    assert instructions.report(counts, {}) == []
    assert instructions.report(counts, {"mlp_forward": 1040, "mlp_reduce": 7}) == []
    assert instructions.report(counts, {"mlp_forward": 1100, "mlp_reduce": 7, "gone": 1}) == ["gone", "mlp_forward"]
    assert "<-" in capsys.readouterr().out
