"""Which module may import which: tests share through tests/problems, never through one another."""

from __future__ import annotations

import ast
import io
import tokenize
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


# ---- the library -----------------------------------------------------------------------------------------------------

PACKAGE = TESTS.parent / "hashgrid"

# From the bottom to the top; a module imports its own row and those below. What is left out (the package itself,
# version) may import anything and is imported by nothing.
LAYERS = (
    ("levels", "maths", "util", "_extension"),
    ("ops", "reference"),
    ("geometry", "optim", "compress"),
    ("nn",),
    ("fields",),
    ("rendering", "data", "train", "viewer"),
    ("tasks", "bench"),
    ("cli", "compat"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_imports(name: str, path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a module of it imports, also inside functions; not those that only types name."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & modules
            if not names <= modules:
                found.add(base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value)  # to be imported by name
    return {module for module in found & modules if module != name}


def import_graph() -> dict[str, set[str]]:
    paths = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: module_imports(name, path, set(paths)) for name, path in paths.items()}


def layer_of(module: str) -> int | None:
    top = (module.split(".") + [""])[1]
    return next((i for i, row in enumerate(LAYERS) if top in row), None)


def imports_upwards(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    def is_up(importer: str, imported: str) -> bool:
        low, high = layer_of(importer), layer_of(imported)
        return low is not None and (imported == "hashgrid" or (high is not None and high > low))

    return {(a, b) for a, imports in graph.items() for b in imports if is_up(a, b)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, and the last the first; none without a circle."""
    state: dict[str, bool] = {}  # False while a module's imports are followed
    trail: list[str] = []

    def follow(module: str) -> list[str]:
        if module in state:
            return [] if state[module] else trail[trail.index(module) :]
        state[module] = False
        trail.append(module)
        for imported in sorted(graph[module]):
            if found := follow(imported):
                return found
        trail.pop()
        state[module] = True
        return []

    return next((found for module in graph if (found := follow(module))), [])


def natives_on_reference(graph: dict[str, set[str]]) -> set[str]:
    """Modules of the library proper that import the reference, which is there to be compared with."""
    allowed = ("hashgrid", "hashgrid.ops._backend")
    return {
        module
        for module, imports in graph.items()
        if module not in allowed and not module.startswith(("hashgrid.reference", "hashgrid.bench"))
        and any(imported.startswith("hashgrid.reference") for imported in imports)
    }  # fmt: skip


def test_imports_run_downwards() -> None:
    graph = import_graph()
    assert len(graph) > 80 and "hashgrid.levels" in graph["hashgrid.ops.hash_encode"]
    assert imports_upwards(graph) == set()


def test_compat_is_a_leaf() -> None:
    graph = {name: imports for name, imports in import_graph().items() if not name.startswith("hashgrid.compat")}
    assert not {(name, x) for name, imports in graph.items() for x in imports if x.startswith("hashgrid.compat")}


def test_the_loop_knows_no_field() -> None:
    graph = {name: imports for name, imports in import_graph().items() if name.startswith("hashgrid.train")}
    graph.pop("hashgrid.train.losses")  # terms of what tasks train
    content = tuple(f"hashgrid.{package}" for package in ("fields", "geometry", "rendering", "data", "tasks"))
    assert len(graph) > 6
    assert not {(name, x) for name, imports in graph.items() for x in imports if x.startswith(content)}


def code_lines(source: str) -> int:
    """Lines of code, docstrings and comments not counted."""
    spaces = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in spaces:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_a_method_and_a_task_is_one_short_file() -> None:
    """Where one cannot be, what its folder asks of it has to change."""
    assert code_lines('"""Text.\n\nMore."""\nx = [\n    1,\n]  # one\n\n# two\ny = 2\n') == 4
    for folder in ("fields", "tasks"):
        counts = {path.name: code_lines(path.read_text()) for path in (PACKAGE / folder).glob("*.py")}
        assert len(counts) > 4 and {name: n for name, n in counts.items() if n > 150} == {}


def test_no_module_imports_itself_by_a_detour() -> None:
    assert circle(import_graph()) == []


def test_native_code_stands_without_the_reference() -> None:
    assert natives_on_reference(import_graph()) == set()


def test_wrong_imports_are_found(tmp_path: Path) -> None:
    graph = import_graph()
    planted = {**graph, "hashgrid.levels": {"hashgrid.nn.hash_grid"}}
    assert imports_upwards(planted) == {("hashgrid.levels", "hashgrid.nn.hash_grid")}
    assert "hashgrid.levels" in circle({"hashgrid.levels": {"hashgrid.ops"}, "hashgrid.ops": {"hashgrid.levels"}})
    planted = {**graph, "hashgrid.ops.mlp": {"hashgrid.reference.mlp"}}
    assert natives_on_reference(planted) == {"hashgrid.ops.mlp"}
    source = tmp_path / "m.py"
    source.write_text("def f():\n    from hashgrid import ops\n    from hashgrid.levels import LevelTable\n")
    assert module_imports("hashgrid.m", source, set(graph)) == {"hashgrid.ops", "hashgrid.levels"}
    source.write_text("from . import levels\nfrom .ops.mlp import mlp\nimport hashgrid.nn.nothing\n")
    assert module_imports("hashgrid.m", source, set(graph)) == {"hashgrid.levels", "hashgrid.ops.mlp"}
