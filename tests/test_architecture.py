"""Arrows between the files of `ace_dist` go one way: every import counts, in functions and for type checkers too."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import ace_dist

ROOT = Path(ace_dist.__file__).parent
# Packages and modules of the first level, from the ground up; a file may import its own level and those before it.
LEVELS = (
    ("utils", "assets"),
    ("config",),
    ("concepts",),
    ("models", "data"),
    ("objectives",),
    ("evaluate",),
    ("train", "segment"),
    ("worlds", "cluster", "classifier"),
    ("tools",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    """Every module of the package: dotted name below `ace_dist` -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imported(name: str, path: Path, names: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it the import stands."""
    package = ["ace_dist", *name.split(".")]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(module, ".".join(package)) if node.level else module
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target == "ace_dist" or not target.startswith("ace_dist."):
                continue
            inner = target.removeprefix("ace_dist.")
            while inner and inner not in names:
                inner = inner.rpartition(".")[0]
            if inner:  # the root package itself is imported before any other
                yield inner


@functools.cache
def arrows() -> set[tuple[str, str]]:
    """(importing module, imported module) of the whole package."""
    found = modules()
    return {
        (name, target) for name, path in found.items() for target in imported(name, path, set(found)) if target != name
    }


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of nodes that reach one another."""
    follow: dict[str, set[str]] = {}
    for start, end in edges:
        follow.setdefault(start, set()).add(end)
    reach: dict[str, set[str]] = {}
    for start in follow:
        waiting, reach[start] = list(follow[start]), set()
        while waiting:
            if (node := waiting.pop()) not in reach[start]:
                reach[start].add(node)
                waiting += follow.get(node, ())
    groups = {
        frozenset(other for other in reach[node] if node in reach.get(other, ()))
        for node in reach
        if node in reach[node]
    }
    return sorted(sorted(group) for group in groups)


def level(module: str) -> int:
    """Place of a module in the order of the rooms."""
    (place,) = [number for number, names in enumerate(LEVELS) if module.split(".")[0] in names]
    return place


def test_no_circle_of_files() -> None:
    """A reader can take the files one after the other."""
    assert circles(arrows()) == []


def test_no_two_packages_import_each_other() -> None:
    """Neither do packages of the first level form a larger circle."""
    rooms = {(a.split(".")[0], b.split(".")[0]) for a, b in arrows()}
    assert circles({(a, b) for a, b in rooms if a != b}) == []


def test_arrows_follow_the_order_of_the_rooms() -> None:
    """Tools and worlds import the rooms and are never imported by them; neighbours of one level keep apart."""
    wrong = {
        (a, b)
        for a, b in arrows()
        if level(b) > level(a) or (level(b) == level(a) and a.split(".")[0] != b.split(".")[0])
    }
    assert wrong == set()
