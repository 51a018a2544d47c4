"""Keeps the one JSON of benchmarks/gpu.sh: adds a stage's outcome, draws it. Standard library and matplotlib only."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT = "hashgrid-gpu-1"
SKIPPED, TIMED_OUT = 77, (124, 137)
KEPT_CALLS = 200  # raw times of a contender that go into the file
SIGNIFICANT = 5
LIMITS = {  # parts of a limit: label and colour
    "bandwidth": ("copy bandwidth", "#457b9d"),
    "matmul": ("matmul rate", "#d1495b"),
    "l2": ("random sectors of L2", "#8ab17d"),
}

Problem = str | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    record = commands.add_parser("record", help="add a stage; exit status 1 if it failed")
    record.add_argument("--json", type=Path, required=True)
    record.add_argument("--stage", required=True)
    record.add_argument("--status", type=int, required=True, help="exit status of the stage")
    record.add_argument("--begin", type=float, required=True)
    record.add_argument("--end", type=float, required=True)
    record.add_argument("--log", type=Path, required=True)
    record.add_argument("--work", type=Path, required=True, help="folder of intermediate files")
    record.add_argument("--commit", required=True)
    record.set_defaults(run=add_stage)
    draw = commands.add_parser("plot", help="draw the ratios and the fractions of the limits")
    draw.add_argument("--json", type=Path, required=True)
    draw.add_argument("--png", type=Path, required=True)
    draw.set_defaults(run=plot)
    args = parser.parse_args()
    return args.run(args)


# ---- recording -------------------------------------------------------------------------------------------------------


def add_stage(args: argparse.Namespace) -> int:
    report = json.loads(args.json.read_text()) if args.json.exists() else {"format": FORMAT, "stages": {}}
    environment = json.loads((args.work / "environment.json").read_text())
    report |= {"card": environment["card"], "commit": args.commit, "environment": environment}

    log = args.log.read_text(errors="replace")
    outcome, reason = outcome_of(args.status, log)
    if args.stage in COLLECT:
        section, collect = COLLECT[args.stage]
        before = report.pop(section, {})
        kept = before if args.stage in BY_PART else {}
        if outcome != "skipped":
            found, problem = collect(args.work / args.stage)
            if args.stage in BY_PART:
                found = {name: part | {"commit": args.commit} for name, part in found.items()}
            kept = kept | found
            if problem is not None and outcome in ("ok", "failed"):
                outcome, reason = "failed", problem  # it says more than the log's last line
        if kept:
            report[section] = kept
    report["stages"][args.stage] = {
        "outcome": outcome,
        "reason": reason,
        "exit_status": args.status,
        "seconds": round(args.end - args.begin, 2),
        "date": datetime.datetime.fromtimestamp(args.begin, datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": args.commit,
        "python": environment["python"],
        "torch": environment["torch"],
    }
    write_json(args.json, report)
    print(f"   {args.stage}: {outcome}{f' ({reason})' if reason else ''}, {args.end - args.begin:.0f} s")
    return int(outcome in ("failed", "timeout"))


def outcome_of(status: int, log: str) -> tuple[str, Problem]:
    """Outcome of a stage (ok, skipped, timeout, failed) and why it is not ok."""
    lines = [line for line in log.splitlines() if line.strip()]
    if status == 0:
        return "ok", None
    if status == SKIPPED:
        reasons = [line.removeprefix("skip: ") for line in lines if line.startswith("skip: ")]
        return "skipped", reasons[-1] if reasons else "no reason given"
    if status in TIMED_OUT:
        return "timeout", f"stopped at its time limit; last line: {lines[-1][:200] if lines else ''}"
    return "failed", lines[-1][:400] if lines else f"exit status {status}"


def write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


# ---- what each stage leaves ------------------------------------------------------------------------------------------


def collect_tests(folder: Path) -> tuple[dict[str, Any], Problem]:
    path = folder / "junit.xml"
    if not path.exists():
        return {}, "pytest left no junit.xml"
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    bad, skips = [], collections.Counter[str]()
    counts = collections.Counter(passed=0, failed=0, errors=0, skipped=0)
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        for kind, key in (("failure", "failed"), ("error", "errors"), ("skipped", "skipped")):
            found = case.find(kind)
            if found is not None:
                counts[key] += 1
                message = (found.get("message") or "").strip()[:300]
                if kind == "skipped":
                    skips[message] += 1
                else:
                    bad.append({"test": name, "kind": kind, "message": message})
                break
        else:
            counts["passed"] += 1
    seconds = sum(float(case.get("time") or 0) for case in cases)
    slowest = sorted(((float(case.get("time") or 0), case.get("name")) for case in cases), reverse=True)[:5]
    problem = f"{counts['failed']} tests failed, {counts['errors']} errors" if bad else None
    summary = {"counts": dict(counts), "seconds": round(seconds, 1), "bad": bad[:100], "skip_reasons": dict(skips)}
    return summary | {"slowest": [{"test": name, "seconds": time} for time, name in slowest]}, problem


def collect_sanitizer(folder: Path) -> tuple[dict[str, Any], Problem]:
    """A tool has to find the planted fault, to come to the end of the ops, and to find nothing there."""
    found, problems = {}, []
    for path in sorted(folder.glob("planted_*.log")):
        tool = path.stem.removeprefix("planted_")
        log = folder / f"{tool}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        planted, errors = n_errors(path.read_text(errors="replace")), n_errors(text)
        complete = re.search(r"^done$", text, re.MULTILINE) is not None
        lines = [line for line in text.splitlines() if line.startswith("=========")]
        found[tool] = {"errors": errors, "finds_planted": bool(planted), "complete": complete, "lines": lines[:60]}
        if not planted:
            problems.append(f"{tool} does not find the planted fault")
        if not complete or errors is None:
            problems.append(f"{tool} did not come to the end")
        elif errors:
            problems.append(f"{tool} reports {errors} errors")
    return found, "; ".join(problems) or (None if found else "no tool has run")


def n_errors(text: str) -> int | None:
    """Of compute-sanitizer's last summary line; a racecheck counts hazards."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
    return int(counts[-1]) if counts else None


def collect_probe(folder: Path) -> tuple[dict[str, Any], Problem]:
    path = folder / "probe.json"
    text = path.read_text() if path.exists() else ""
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        return {}, "the probe printed no result"
    return found, f"{found['wrong']} of {found['experiments']} experiments differ" if found["wrong"] else None


def collect_benchmarks(folder: Path) -> tuple[dict[str, Any], Problem]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        for case in record["cases"]:
            for row in case["contenders"]:
                if "ns" in row:
                    row["ns"] = thin(row["ns"])
        found[record["benchmark"]] = record
    return found, None if found else "no benchmark came to its end"


def thin(values: Sequence[float]) -> list[float]:
    """At most ``KEPT_CALLS`` of the times, evenly spread over the run, rounded."""
    step = max(1, -(-len(values) // KEPT_CALLS))
    return [float(f"{value:.{SIGNIFICANT}g}") for value in values[::step]]


def collect_training(folder: Path) -> tuple[dict[str, Any], Problem]:
    path = folder / "results.json"
    return (json.loads(path.read_text()), None) if path.exists() else ({}, "no results.json")


COLLECT = {
    "test": ("tests", collect_tests),
    "sanitize": ("sanitizer", collect_sanitizer),
    "probe": ("probe", collect_probe),
    "bench": ("benchmarks", collect_benchmarks),
    "train": ("training", collect_training),
}
BY_PART = ("sanitize", "bench")  # a call may run some tools or suites; those of earlier calls stay


# ---- the plot --------------------------------------------------------------------------------------------------------


def plot(args: argparse.Namespace) -> int:
    """Left: how many times as fast as each contender; right: the part of each measured limit that is reached."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    report = json.loads(args.json.read_text())
    cases = [
        (f"{name}: {case['name']}", case)
        for name, record in report.get("benchmarks", {}).items()
        for case in record["cases"]
    ]
    if not cases:
        print("skip: there are no benchmarks to draw")
        return SKIPPED
    names = sorted({name for _, case in cases for name in case["speedup"]})
    palette = plt.get_cmap("tab20")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(15, 2 + 0.42 * len(cases)), sharey=True, layout="constrained", width_ratios=(3, 2)
    )
    for i, name in enumerate(names):
        points = [(case["speedup"][name], y) for y, (_, case) in enumerate(cases) if name in case["speedup"]]
        left.plot(*zip(*points, strict=True), "osD^v"[i % 5], color=palette(i % 20), label=name, alpha=0.85)
    left.axvline(1, color="#2b2d42", linewidth=1)
    left.set_xscale("log")
    left.set_xlabel("hashgrid is ... times as fast (median)")
    left.set_yticks(range(len(cases)), [label for label, _ in cases], fontsize=8)
    left.invert_yaxis()
    left.grid(axis="x", which="both", alpha=0.25)
    left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=4, frameon=False)

    for y, (_, case) in enumerate(cases):
        fractions = case.get("limit", {}).get("fractions", {})
        for offset, (part, fraction) in enumerate(fractions.items()):
            label, color = LIMITS[part]
            place = y + 0.26 * (offset - (len(fractions) - 1) / 2)
            right.barh(place, fraction, height=0.24, color=color, label=label)
    named = {label: bars for bars in right.containers if (label := bars.get_label())}
    right.axvline(1, color="#2b2d42", linestyle=":", linewidth=1)
    right.set_xlabel("fraction of the measured limit")
    right.legend(named.values(), named.keys(), fontsize=7, loc="lower right")
    right.grid(axis="x", alpha=0.25)
    environment = report["environment"]
    card = environment.get("gpu", {}).get("name", environment["cpu"])
    figure.suptitle(f"{card}, torch {environment['torch']}, commit {report['commit'][:12]}", fontsize=10)
    figure.savefig(args.png, dpi=110)
    print(args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
