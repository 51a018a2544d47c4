"""Which module may import which: tests share through tests/problems, never through one another."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    """First names of the modules that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def test_no_test_is_the_library_of_another() -> None:
    modules = sorted(TESTS.rglob("*.py"))
    assert len(modules) > 60
    wrong = {path.name: names for path in modules if (names := {n for n in imported(path) if n.startswith("test_")})}
    assert not wrong
