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
NO_TESTS = 5  # pytest's exit status
OUTCOMES = {"PASSED": "passed", "XPASS": "passed", "SKIPPED": "skipped", "XFAIL": "skipped", "FAILED": "failed"}
OUTCOMES |= {"ERROR": "errors"}
# Of `pytest -v`; what the test prints may stand between the two.
TEST_BEGINS = re.compile(r"^\S+\.py::\w+(?:\[.*?\](?= |$))?", re.MULTILINE)
TEST_ENDS = re.compile(rf"\b({'|'.join(OUTCOMES)})\b.* \[ *\d+%\]$", re.MULTILINE)
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
    record.add_argument("--limit", type=int, required=True, help="seconds it was given")
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
            try:
                found, problem = collect(args.work / args.stage)
            except Exception as error:  # what a stage leaves when it is killed; the other stages' results matter more
                found, problem = {}, f"its results cannot be read: {error!r}"
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
        "limit": args.limit,
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
    """By file, or file and mark. Counts are those of the log, which a process that crashes or is killed leaves, too."""
    found = {}
    for path in sorted(folder.glob("*.status")):
        status, seconds = path.read_text().split()
        found[path.stem] = {"exit_status": int(status) if status.isdigit() else None, "seconds": int(seconds)}
        found[path.stem] |= read_tests(path.with_suffix(".log"), path.with_suffix(".xml"), found[path.stem])
    bad = collections.Counter(entry["kind"] for part in found.values() for entry in part["bad"])
    problems = [f"{count} {kind}" for kind, count in sorted(bad.items())]
    if not any(part["counts"]["passed"] for part in found.values()):
        problems.append("no test has passed")
    return found, ", ".join(problems) or None


def read_tests(log: Path, junit: Path, process: dict[str, Any]) -> dict[str, Any]:
    text = log.read_text(errors="replace") if log.exists() else ""
    messages, skips = read_junit(junit)
    starts = [*TEST_BEGINS.finditer(text)]
    ends = [*(match.start() for match in starts), len(text)][1:]
    counts, bad = collections.Counter(dict.fromkeys(OUTCOMES.values(), 0)), []
    for start, end in zip(starts, ends, strict=True):
        name, outcome = start[0], TEST_ENDS.search(text, start.end(), end)
        kind = OUTCOMES[outcome[1]] if outcome else "hung" if process["exit_status"] in TIMED_OUT else "crashed"
        counts[kind] += 1
        if kind not in ("passed", "skipped"):
            bad.append({"test": name, "kind": kind, "message": messages.get(name.partition("::")[2], "")})
    if process["exit_status"] not in (0, NO_TESTS) and not bad:
        lines = [line for line in text.splitlines() if line.strip()] or ["no time left"]
        bad.append({"test": log.stem, "kind": "incomplete", "message": lines[-1][:300]})
    return {"counts": dict(counts), "bad": bad[:100], "skip_reasons": dict(skips)}


def read_junit(path: Path) -> tuple[dict[str, str], collections.Counter[str]]:
    """Messages of failures by test, and how many tests give which reason for a skip."""
    messages, skips = {}, collections.Counter[str]()
    cases = ElementTree.parse(path).getroot().iter("testcase") if path.exists() else ()
    for case in cases:
        for found in (element for kind in ("failure", "error", "skipped") for element in case.iter(kind)):
            message = (found.get("message") or "").strip()[:300]
            if found.tag == "skipped":
                skips[message] += 1
            else:
                messages[case.get("name") or ""] = message
    return messages, skips


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
            left_out = re.search(r"^left out .*", text, re.MULTILINE)
            problems.append(f"{tool} did not come to the end{f': {left_out[0]}' if left_out else ''}")
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
BY_PART = ("test", "sanitize", "bench")  # a call may run some files, tools or suites; those of earlier calls stay


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
