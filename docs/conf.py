"""The site: the pages of this folder, those of the repository beside it, and a reference made from docstrings.

``make docs`` writes it to ``site/``; a link, an anchor or a picture that leads nowhere ends it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "generated"
sys.path.insert(0, str(HERE.parent))

import hashgrid  # noqa: E402

project, author, version = "hashgrid", "the hashgrid authors", hashgrid.__version__
copyright = f"{author}, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
html_theme, html_title = "furo", f"hashgrid {version}"
html_static_path = html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "Config"}
napoleon_use_rtype = False

# What a page of the reference is about, and what it says first.
PACKAGES = {
    "hashgrid.nn": "Encodings and networks that the package does not name at its top.",
    "hashgrid.fields": "Fields by name: one method, one file. `--field` of a task chooses one.",
    "hashgrid.data": "Scenes, pictures, sounds, meshes and points, as they come from files.",
    "hashgrid.data.loaders": "One format of scenes, one file.",
    "hashgrid.rendering": "From fields to pictures, meshes and scores.",
    "hashgrid.geometry": "Cameras, lenses, rays, boxes.",
    "hashgrid.train": "The loop, checkpoints, configuration, losses: training without what is trained.",
    "hashgrid.tasks": "Commands: configuration, data, loss, evaluation.",
    "hashgrid.compat.nerfacc": "nerfacc's functions by its modules; most are in the package, too.",
    "hashgrid.compat.nerfacc.estimators": "Where along rays samples are worth taking.",
}
# Not in the reference: its `RaySamples` would make every mention of hashgrid's own ambiguous.
HIDDEN = ("hashgrid.compat.nerfacc.data_specs",)
# Pages that lie elsewhere in the repository, by their names here.
ELSEWHERE = {
    "readme": HERE.parent / "README.md",
    "changelog": HERE.parent / "CHANGELOG.md",
    "contributing": HERE.parent / "CONTRIBUTING.md",
    "measuring": HERE.parent / "benchmarks" / "README.md",
}
SINGLE = (
    *("hashgrid.optim", "hashgrid.levels", "hashgrid.compat", "hashgrid.compat.tinycudann"),
    *("hashgrid.compat.torch_ngp", "hashgrid.compat.torch_ngp_grid", "hashgrid.compat.torch_ngp_rays"),
    *("hashgrid.compat.nerfstudio", "hashgrid.compat.ingp"),
)


def public(module: ModuleType) -> list[str]:
    """Classes and functions that a module defines for others, but for what `hashgrid` itself names."""
    named = {name: getattr(hashgrid, name) for name in hashgrid.__all__}
    things = {name: thing for name, thing in vars(module).items() if not name.startswith("_")}
    return [
        name
        for name, thing in things.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and named.get(name) is not thing
        and thing.__module__ == module.__name__
        and inspect.getdoc(thing)
    ]


def entries(module: str, names: list[str]) -> str:
    """Directives that show objects of a module."""
    parts = [f".. currentmodule:: {module}", ""]
    for name in names:
        thing = getattr(importlib.import_module(module), name)
        kind = "class" if inspect.isclass(thing) else "function"
        parts += [f".. auto{kind}:: {module}.{name}", ""]
    return "```{eval-rst}\n" + "\n".join(parts) + "```\n"


def section(module: str, level: str) -> str:
    """A module with all that is public in it; nothing where that is nothing."""
    found = importlib.import_module(module)
    names = public(found)
    if not names:
        return ""
    text = (inspect.getdoc(found) or "").strip()
    about = f"```{{eval-rst}}\n.. module:: {module}\n\n{text}\n```\n"
    return f"{level} {module}\n\n{about}\n{entries(module, names)}\n"


def reference() -> dict[str, str]:
    """Pages by name."""
    top = [name for name in hashgrid.__all__ if callable(getattr(hashgrid, name))]
    twins = "Functions on the native kernels; `hashgrid.reference` has a twin of each in plain PyTorch, called alike."
    pages = {
        "hashgrid": f"# hashgrid\n\nWhat `import hashgrid` names.\n\n{entries('hashgrid', top)}",
        "hashgrid.ops": f"# hashgrid.ops\n\n{twins}\n\n{entries('hashgrid.ops', hashgrid.ops.__all__)}",
    }
    pages |= {name: section(name, "#") for name in SINGLE}
    for name, text in PACKAGES.items():
        package = importlib.import_module(name)
        modules = [f"{name}.{found.name}" for found in pkgutil.iter_modules(package.__path__) if not found.ispkg]
        shown = [name for name in modules if name not in HIDDEN and not name.rpartition(".")[2].startswith("_")]
        parts = [section(module, "##") for module in shown]
        pages[name] = f"# {name}\n\n{text}\n\n" + "\n".join(part for part in parts if part)
    return pages


def relinked(text: str, source: Path, place: Path) -> str:
    """A page of ``source`` with its links as they are seen from ``place``; a folder has no page, and loses its link."""

    def link(found: re.Match[str]) -> str:
        words, name, anchor = found.groups()
        if ":" in name:
            return found[0]
        target = (source.parent / name).resolve()
        if target.is_dir():
            return words[1:-1]
        target = next((GENERATED / f"{page}.md" for page, file in ELSEWHERE.items() if file == target), target)
        return f"{words}({Path(os.path.relpath(target, place.parent)).as_posix()}{anchor})"

    return re.sub(r"(\[[^\[\]]*\])\(([^)#\s]+)(#[^)\s]*|)\)", link, text)


def relink(app: Any, page: str, content: list[str]) -> None:
    file = HERE / f"{page}.md"
    if file.parent != GENERATED:
        content[0] = relinked(content[0], file, file)


def write_generated(_: Any) -> None:
    """Writes the pages that changed, and removes those of what is gone."""
    pages = reference()
    for name, source in ELSEWHERE.items():
        pages[name] = relinked(source.read_text(encoding="utf-8"), source, GENERATED / f"{name}.md")
    GENERATED.mkdir(exist_ok=True)
    for file in GENERATED.glob("*.md"):
        if file.stem not in pages:
            file.unlink()
    for name, text in pages.items():
        file = GENERATED / f"{name}.md"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def escape(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Shapes such as [*, C] begin no emphasis, a letter that is all of a text no list."""
    special = re.compile(r"(?<=\[)(?=\*)|(?<= )(?=\*\w+\])|(?<=: [A-Z])(?=\.$)")
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else special.sub(r"\\", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape)
    app.connect("builder-inited", write_generated)
    app.connect("source-read", relink)
