"""Runs other libraries' own tests against the layers of ``hashgrid.compat`` and writes what passed.

    python tests/peers/run.py                      # all, fetched from GitHub into scratch/peers
    python tests/peers/run.py nerfacc multinerf    # some
    python tests/peers/run.py --mirrors DIR        # bare repositories DIR/OWNER+NAME/repo in place of GitHub

Needs pytest, and for multinerf's tests JAX: ``pip install "jax<0.5" absl-py scipy``. Writes ``results.json`` beside
this file, and with ``models.json`` of ``models.py`` the page ``docs/peers.md``. Nothing that is fetched is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CPU = {'"cuda:0"': '"cpu"', "torch.device(0)": 'torch.device("cpu")'}


@dataclass(frozen=True)
class Suite:
    """Tests of one library.

    ``replaced``: words of its test files that are others here. ``scripts``: files that are no tests, with what has to
    hold of their variables at their end.
    """

    repo: str
    commit: str
    install: str  # what takes its place, as ``plugin.install`` has it
    folders: tuple[str, ...]
    tests: tuple[str, ...] = ()
    scripts: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)


SUITES = {
    "nerfacc": Suite(
        "nerfstudio-project/nerfacc",
        "57ccfa14feb94975836ea6913149a86737220f2b",
        "nerfacc",
        ("tests",),
        tuple(f"tests/test_{name}.py" for name in ("camera", "grid", "pack", "pdf", "rendering", "scan")),
        replaced=CPU,
    ),
    "multinerf": Suite(
        "google-research/multinerf",
        "5b4d4f64608ec8077222c52fdf814d40acc10bc1",
        "multinerf",
        ("internal", "tests"),
        tuple(f"tests/{name}_test.py" for name in ("stepfun", "coord", "render")),
    ),
    "nerfstudio": Suite(
        "nerfstudio-project/nerfstudio",
        "50e0e3c70c775e89333256213363badbf074f29d",
        "nerfstudio",
        ("tests/field_components",),
        ("tests/field_components/test_mlp.py", "tests/field_components/test_encodings.py"),
    ),
    "tiny-cuda-nn": Suite(
        "NVlabs/tiny-cuda-nn",
        "6ee3546bda615f51abe684ce9edefeb414689135",
        "tinycudann",
        ("scripts",),
        scripts={
            "scripts/test_torch_bindings.py": "net.params.grad.isfinite().all()",
            "scripts/test_grid_bwdbwd.py": "True",
            "scripts/test_random_input.py": "mlp.params.grad.isfinite().all()",
        },
        replaced={
            **{"'cuda'": "'cpu'", '"cuda"': '"cpu"', "'cuda:0'": "'cpu'"},
            **{"range(10000)": "range(20)", "[51200,3]": "[512,3]", "randint(200, 1000, 1)": "randint(2, 10, 1)"},
            **{'os.path.dirname(__file__), "scripts"': "os.path.dirname(__file__)", "# test_()": "test_()"},
        },
    ),
    "torch-ngp": Suite(
        "ashawkey/torch-ngp",
        "b6e080468925f0bb44827b4f8f0ed08291dcf8a9",
        "torch_ngp,tinycudann",
        ("testing",),
        scripts={
            "testing/test_hashgrid_grad.py": "check_results1 is True",
            "testing/test_shencoder.py": "(y1 - y2).abs().max() < 2e-6",
            "testing/test_ffmlp.py": "(y0 - y1).abs().max() < 2e-2 * y1.abs().max()",
        },
        replaced={**CPU, "from matplotlib.animation import AVConvBase\n": "", "2**21": "2**14"},
    ),
}


def fetch(suite: Suite, target: Path, mirrors: Path | None) -> None:
    """The suite's folders at its commit, with its replacements, in ``target``."""
    if mirrors is None:
        git_dir = target / ".git"
        if not git_dir.exists():
            subprocess.run(["git", "init", "-q", str(target)], check=True)
        command = ["git", "-C", str(target), "fetch", "-q", "--depth", "1"]
        subprocess.run([*command, f"https://github.com/{suite.repo}", suite.commit], check=True)
    else:
        git_dir = mirrors / suite.repo.replace("/", "+") / "repo"
    command = ["git", f"--git-dir={git_dir}", "archive", suite.commit, *suite.folders]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(target, filter="data")
    for name in (*suite.tests, *suite.scripts):
        text = (target / name).read_text()
        for old, new in suite.replaced.items():
            text = text.replace(old, new)
        (target / name).write_text(text)


def run_tests(suite: Suite, folder: Path) -> dict[str, dict[str, str]]:
    """What became of each test: ``outcome``, ``why`` where it did not pass, and ``used``, functions that it called."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider", "--rootdir", "."]
        subprocess.run([*command, "--junitxml", report.name, *suite.tests], cwd=folder, env=environment(suite, folder))
        cases = ET.parse(report.name).iter("testcase")
        return {f"{case.get('classname', '')}.{case.get('name')}": outcome_of(case) for case in cases}


def outcome_of(case: ET.Element) -> dict[str, str]:
    found = {"outcome": "passed"}
    for tag in ("failure", "error", "skipped"):
        element = case.find(tag)
        if element is not None:
            found = {"outcome": "failed" if tag != "skipped" else "skipped", "why": element.get("message", "")[:200]}
    if found["outcome"] == "failed" and "has no attribute" in found["why"] and "AttributeError" in found["why"]:
        found["outcome"] = "not here"
    for item in case.iter("property"):
        if item.get("name") == "used":
            found["used"] = item.get("value", "")
            if not found["used"] and found["outcome"] == "passed":
                found["outcome"] = "none of ours"
    return found


def run_scripts(suite: Suite, folder: Path) -> dict[str, dict[str, str]]:
    """Likewise of scripts: passed where they end and their condition holds."""
    found = {}
    for name, condition in suite.scripts.items():
        program = (
            f"import plugin, runpy; plugin.install({suite.install!r});"
            f" found = runpy.run_path({name!r}, run_name='__main__');"
            f" assert eval({condition!r}, found), 'not {condition}'"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=folder, env=environment(suite, folder), capture_output=True, text=True)
        found[name] = {"outcome": "passed" if done.returncode == 0 else "failed", "checked": condition}
        if done.returncode:
            found[name]["why"] = done.stderr.strip().split("\n")[-1][:200]
    return found


def environment(suite: Suite, folder: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, (HERE, folder, ROOT)))
    return {**os.environ, "PYTHONPATH": path, "HASHGRID_PEERS_INSTALL": suite.install}


# why a test of a peer fails
REASONS = {
    "test_pdf_loss": "it compares two losses of nerfacc whose formulas differ where an interval ends before the first"
    " edge of the proposal: the bound is 0 in one, the first weight in the other; some of the CPU's random numbers are"
    " such intervals",
}


def write_page(results: dict[str, Any]) -> None:
    columns = ("passed", "failed", "not here", "none of ours")
    suites, failures, models = [], [], []
    for suite in results.values():
        counts = summary(suite["tests"])
        cells = [f"[{suite['repo']}](https://github.com/{suite['repo']})", suite["commit"][:7]]
        suites.append(f"| {' | '.join([*cells, *(str(counts.get(column, 0)) for column in columns)])} |")
        for name, test in suite["tests"].items():
            if test["outcome"] == "failed":
                failures.append(f"- `{name}`: {REASONS.get(name.split('.')[-1], test['why'])}.")
    for name, found in json.loads((HERE / "models.json").read_text()).items():
        cells = [f"{found[way][key]:.1e}" for key in ("losses", "shown") for way in ("hashgrid", "plain32")]
        models.append(f"| `{name}` of {found['repo']}, {found['commit'][:7]} | {' | '.join(cells)} |")
    tables = {"suites": suites, "failures": failures, "models": models}
    page = (HERE / "page.md").read_text().format(**{name: "\n".join(lines) for name, lines in tables.items()})
    (ROOT / "docs" / "peers.md").write_text(page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SUITES)}; all without")
    parser.add_argument("--mirrors", type=Path, help="folder of bare repositories OWNER+NAME/repo")
    parser.add_argument("--cache", type=Path, default=ROOT / "scratch" / "peers", help="where sources are put")
    args = parser.parse_args()
    unknown = set(args.names) - set(SUITES)
    if unknown:
        parser.error(f"`names` must be of {', '.join(SUITES)}, got {', '.join(unknown)}")
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in args.names or SUITES:
        suite, folder = SUITES[name], args.cache / name
        folder.mkdir(parents=True, exist_ok=True)
        fetch(suite, folder, args.mirrors)
        tests = {**(run_tests(suite, folder) if suite.tests else {}), **run_scripts(suite, folder)}
        facts = {"repo": suite.repo, "commit": suite.commit, "replaced": suite.replaced}
        facts |= {"python": platform.python_version(), "torch": metadata.version("torch")}
        results[name] = {**facts, "tests": tests}
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(name, summary(tests))
    write_page(results)
    return 0


def summary(tests: dict[str, dict[str, str]]) -> dict[str, int]:
    """How many tests had each outcome."""
    outcomes = [test["outcome"] for test in tests.values()]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}


if __name__ == "__main__":
    sys.exit(main())
