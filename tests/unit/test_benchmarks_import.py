"""Scripts that no other check imports (benchmarks, documentation, GPU tests) name only what is there.

mypy looks at the package alone, and these scripts are rarely run. So every name that they import from this repository
is looked up in its module's source, and every attribute that they use of an imported module. Nothing is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path for folder in ("benchmarks", "docs", "tests/gpu") for path in (ROOT / folder).rglob("*.py")
)
SOURCES = {"checkweigh": ROOT / "pipeline", "benchmarks": ROOT, "tests": ROOT}


def source_of(module: str) -> Path | None:
    """The file of a module of this repository, or the folder of one without ``__init__``; None where there is none."""
    path = SOURCES[module.partition(".")[0]].joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py", path):
        if candidate.exists():
            return candidate
    return None


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: none of a function's or class's body."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from module_level(node)


@cache
def names_of(module: str) -> frozenset[str]:
    """What a module defines or imports, and its submodules; nothing where there is no such module."""
    path = source_of(module)
    if path is None:
        return frozenset()
    folder = path if path.is_dir() else path.parent if path.name == "__init__.py" else None
    names = {child.stem for child in folder.iterdir()} if folder else set()
    for node in module_level(ast.parse(path.read_text())) if path.is_file() else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return frozenset(names)


def problems_of(tree: ast.Module) -> Iterator[str]:
    """Every import of this repository that leads nowhere, and every attribute that an imported module lacks."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in SOURCES:
            for alias in node.names:
                if alias.name not in names_of(node.module):
                    yield f"line {node.lineno}: {node.module} has no {alias.name}"
                elif source_of(f"{node.module}.{alias.name}") is not None:
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in SOURCES and source_of(alias.name) is None:
                    yield f"line {node.lineno}: there is no {alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module = modules[node.value.id]
            if node.attr not in names_of(module):
                yield f"line {node.lineno}: {module} has no {node.attr}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_is_there(script: Path) -> None:
    assert list(problems_of(ast.parse(script.read_text()))) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("from checkweigh.store import Store", None),
        ("from checkweigh.store import Shop", "line 1: checkweigh.store has no Shop"),
        ("from checkweigh.nowhere import Store", "line 1: checkweigh.nowhere has no Store"),
        ("from checkweigh import canonical; canonical.digest(1)", None),
        (
            "from checkweigh import canonical; canonical.digset(1)",
            "line 1: checkweigh.canonical has no digset",
        ),
        ("import checkweigh.nowhere", "line 1: there is no checkweigh.nowhere"),
        ("from pathlib import Nowhere", None),
    ],
)
def test_a_name_that_is_gone_is_noticed(line: str, problem: str | None) -> None:
    assert list(problems_of(ast.parse(line))) == ([] if problem is None else [problem])
