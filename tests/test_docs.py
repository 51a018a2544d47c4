"""Links and pictures of the pages lead somewhere, their commands and the examples of docstrings work."""

from __future__ import annotations

import argparse
import doctest
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hashgrid.cli import COMMANDS, TASKS, _parser
from hashgrid.train.run import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULES = sorted(path for path in (ROOT / "hashgrid").rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))


def prose(text: str) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and the site make them."""
    text = re.sub(r"^(```+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+\s+(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Links of a page into the repository that lead nowhere."""
    broken = []
    for found in LINK.finditer(prose(page.read_text(encoding="utf-8"))):
        link = found[1]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        is_there = target.resolve().exists() and (ROOT in target.resolve().parents or page.parent in target.parents)
        if not is_there or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title: with `code`, twice\n")
    (tmp_path / "page.md").write_text(
        "[a](other.md) [b](other.md#a-title-with-code-twice) [c](missing.md) ![d](missing.png) [e](other.md#no)\n"
        "[![f](lost.png)](https://example.com) `[g](code.md)` [h](#here)\n\n```\n[i](code.md)\n```\n\n## Here\n"
    )
    assert broken_links(tmp_path / "page.md") == ["missing.md", "missing.png", "other.md#no", "lost.png"]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"^```{toctree}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    entries = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert not [page for page in pages if not any(Path(page).match(entry) for entry in entries)]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Lines of pages that begin with `hashgrid`, with their page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if line.startswith("hashgrid ") and page.name not in ("README.md", "extending.md"):
                    yield page.name, shlex.split(line, comments=True)[1:]


def test_commands_of_pages_are_understood(capsys: pytest.CaptureFixture) -> None:
    """Those of the README have a test of their own; extending.md adds options first."""
    wrong, n = [], 0
    for page, (name, *words) in commands():
        n += 1
        try:
            if name in TASKS and not (name == "image" and "--compress" in words):
                module, task, _ = TASKS[name]
                command = getattr(importlib.import_module(module), task)
                fields = [after for word, after in zip(words, words[1:], strict=False) if word == "--field"]
                flags = {word for word in words if word.startswith("--")}
                if not flags & {"--tyro-print-completion", "--help"}:
                    parse(command, words, command.defaults(*(fields or [None]), torch.device("cpu"), flags))
            elif name in COMMANDS:
                importlib.import_module(COMMANDS[name][0]).make_parser().parse_args(words)
            elif name not in ("bench", "compare", "image"):
                assert isinstance(_parser().parse_args([name, *words]), argparse.Namespace)
        except SystemExit:
            wrong.append((page, name, *words, capsys.readouterr().err[-300:]))
    assert n > 50 and wrong == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(path.relative_to(ROOT).with_suffix("").parts))
def test_examples_of_docstrings(path: Path) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
