"""Synonym trees of action verbs (ACE section 3.2, Fig. 2): load, save, validate, look up."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ace_dist.errors import UserError

__all__ = ["MissingTree", "SynonymTrees", "TreeError"]

Nodes = Mapping[str, Mapping[str, tuple[str, ...]]]


class TreeError(UserError):
    """A synonym tree file that breaks a rule; the message names the file and the node."""


class MissingTree(TreeError):
    """A verb that has no tree in the file."""


class SynonymTrees:
    """One tree per root verb, to second order: root → children → grandchildren, every parent among its own children.

    `size` and `grand_size` cut each node to its first M children (M of the paper; `None` keeps all), the parent
    always kept and counted unless `include_parent=False`, which reads M as "M synonyms besides the parent".
    Files may hold levels of any size, which may differ between trees.
    """

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, Iterable[str]]],
        meta: Mapping[str, Any] | None = None,
        source: str = "synonym trees",
        size: int | None = None,
        grand_size: int | None = None,
        include_parent: bool = True,
    ) -> None:
        self.source = source
        self.meta = dict(meta or {})
        full = {root: {child: tuple(leaves) for child, leaves in tree.items()} for root, tree in nodes.items()}
        validate(full, source)
        self._nodes: Nodes = {
            root: {
                child: first_m(child, tree[child], grand_size, include_parent)
                for child in first_m(root, tuple(tree), size, include_parent)
            }
            for root, tree in full.items()
        }

    @classmethod
    def load(
        cls, path: str | Path, size: int | None = None, grand_size: int | None = None, include_parent: bool = True
    ) -> SynonymTrees:
        """Read a tree file. Raises `TreeError` naming the file when it is missing, not JSON, or breaks a rule."""
        path = Path(path)
        if not path.is_file():
            raise TreeError(f"synonym tree file {path} does not exist; set dataset.synonyms to a JSON tree file")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        except (json.JSONDecodeError, UnicodeDecodeError, DuplicateKey) as error:
            raise TreeError(f"synonym tree file {path} (dataset.synonyms) is not valid JSON: {error}") from error
        if not isinstance(raw, dict):
            raise TreeError(f"synonym tree file {path} holds a {type(raw).__name__}, expected an object of root verbs")
        meta = raw.pop("_meta", {})
        return cls(raw, meta, str(path), size, grand_size, include_parent)

    def save(self, path: str | Path) -> None:
        """Write the trees as JSON, to a temporary name first, so that a crash leaves the old file."""
        path = Path(path)
        payload = {"_meta": self.meta, **{r: {c: list(g) for c, g in t.items()} for r, t in self._nodes.items()}}
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(payload, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @property
    def roots(self) -> tuple[str, ...]:
        """All root verbs, in the order of the file."""
        return tuple(self._nodes)

    def __contains__(self, root: str) -> bool:
        return root in self._nodes

    def children(self, root: str, child: str | None = None) -> tuple[str, ...]:
        """First-order children of `root`, or, with `child`, the second-order children below it.

        Raises `MissingTree` naming the file and the nearest known verb.
        """
        tree = self._nodes.get(root)
        if tree is None:
            raise MissingTree(f"no synonym tree for the verb {root!r} in {self.source}{near(root, self._nodes)}")
        if child is None:
            return tuple(tree)
        if child not in tree:
            raise MissingTree(f"{child!r} is not a child of {root!r} in {self.source}{near(child, tree)}")
        return tree[child]

    def require(self, verbs: Iterable[str]) -> None:
        """Raise `MissingTree`, naming every verb without a tree at once."""
        missing = sorted({verb for verb in verbs if verb not in self._nodes})
        if missing:
            raise MissingTree(
                f"no synonym tree for the verb{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} in "
                f"{self.source}{near(missing[0], self._nodes)}; add it as "
                f'{{"{missing[0]}": {{"{missing[0]}": ["{missing[0]}", ...], ...}}}} or set dataset.synonyms to '
                f"another file"
            )

    def verbs(self) -> tuple[str, ...]:
        """Every verb that occurs at any level, sorted."""
        return tuple(sorted({leaf for tree in self._nodes.values() for leaves in tree.values() for leaf in leaves}))


class DuplicateKey(ValueError):
    """The same key twice in one JSON object: json would silently keep the last."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses repeated keys."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise DuplicateKey(f"the key {key!r} occurs twice")
        seen[key] = value
    return seen


def validate(nodes: Mapping[str, Mapping[str, tuple[str, ...]]], source: str) -> None:
    """The rules of a tree file; raises `TreeError` naming the node that breaks one."""
    if not nodes:
        raise TreeError(f"{source} holds no tree")
    for root, tree in nodes.items():
        check_level(root, tuple(tree), f"{source}: {root!r}")
        for child, leaves in tree.items():
            check_level(child, leaves, f"{source}: {root!r} > {child!r}")


def check_level(parent: str, children: tuple[str, ...], where: str) -> None:
    """One parent and its children: parent among them, no duplicate, no empty or unclean verb."""
    for verb in (parent, *children):
        if not isinstance(verb, str) or not verb or verb != " ".join(verb.lower().split()):
            raise TreeError(f"{where}: {verb!r} is not a lower-case verb with single spaces")
    if parent not in children:
        raise TreeError(f"{where}: the parent {parent!r} is not among its own children {list(children)}")
    twice = sorted({verb for verb in children if children.count(verb) > 1})
    if twice:
        raise TreeError(f"{where}: {', '.join(map(repr, twice))} occurs more than once")


def first_m(parent: str, children: tuple[str, ...], size: int | None, include_parent: bool) -> tuple[str, ...]:
    """The parent and its first synonyms: M in all, or M besides the parent. Raises `TreeError` when there are fewer."""
    if size is None:
        return children
    synonyms = tuple(verb for verb in children if verb != parent)
    wanted = size - 1 if include_parent else size
    if not 0 <= wanted <= len(synonyms):
        raise TreeError(
            f"{parent!r} has {len(synonyms)} synonyms besides itself, M asks for {wanted}; lower method.children or "
            f"method.grandchildren, or extend the tree file"
        )
    return (parent, *synonyms[:wanted])


def near(word: str, known: Iterable[str]) -> str:
    """`; nearest: ...` when a known verb is near, else nothing."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; nearest: {match[0]!r}" if match else ""
