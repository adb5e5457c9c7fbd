"""Grows trees node by node from any source of synonyms: order of the questions, copies of parents, what is missing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from ace_dist.concepts.actions import Action
from ace_dist.utils.errors import UserError

Path = tuple[str, ...]  # of a node: root, child, grandchild, ...


class NodeFailed(UserError):
    """One node without enough synonyms. `found` are those that there are."""

    def __init__(self, message: str, found: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.found = tuple(found)


class Stopped(UserError):
    """No further question makes sense: the budget is spent or the server refuses."""


@dataclass(frozen=True)
class NodeReport:
    """What happened at one node: answers read, lines repaired, lines rejected."""

    path: Path
    answers: int
    repairs: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


class Source(Protocol):
    """Where synonyms come from."""

    def synonyms(self, path: Path, object_: str, wanted: int) -> tuple[list[str], NodeReport]:
        """`wanted` distinct synonyms of the last verb of `path`, without that verb.

        Raises `NodeFailed` when there are fewer, `Stopped` when the whole build must end.
        """
        ...

    def cancel(self) -> None:
        """Let questions under way end soon: the build was interrupted."""
        ...


@dataclass
class Forest:
    """Trees under construction. `sizes` holds M of each order, the parent counted."""

    roots: dict[str, Action]
    sizes: tuple[int, ...]
    children: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    reports: list[NodeReport] = field(default_factory=list)
    stopped: str | None = None

    def add(self, path: Path, synonyms: Sequence[str]) -> list[Path]:
        """Put in a node, and the copies of it at deeper orders; returns the nodes below that must be asked for.

        A copy of its parent ("spin > spin") takes its parent's synonyms.
        """
        self.children[path] = (path[-1], *synonyms[: self.sizes[len(path) - 1] - 1])
        if len(path) == len(self.sizes):
            return []
        unknown: list[Path] = []
        for child in self.children[path]:
            below = (*path, child)
            unknown += self.add(below, synonyms) if child == path[-1] else [below]
        return unknown

    def complete(self, root: str) -> bool:
        """True when no node of the tree is missing."""
        return not any(node is None for _, node in self.walk((root,)))

    def walk(self, path: Path) -> Iterator[tuple[Path, tuple[str, ...] | None]]:
        """The inner nodes at and below `path`, `None` where nothing is known yet."""
        children = None if path in self.failed else self.children.get(path)
        yield path, children
        if children is not None and len(path) < len(self.sizes):
            for child in children:
                yield from self.walk((*path, child))

    def nested(self, path: Path) -> Any:
        """The tree at `path` as a tree file holds it, with what is known."""
        children = self.children.get(path, (path[-1],))
        if len(path) == len(self.sizes):
            return list(children)
        return {child: self.nested((*path, child)) for child in children}

    def missing(self) -> dict[str, str]:
        """Every node that is not there, with the reason."""
        return {
            " > ".join(path): self.failed.get(path) or self.stopped or "not asked yet"
            for root in self.roots
            for path, node in self.walk((root,))
            if node is None
        }

    def wanted(self, path: Path) -> int:
        """Synonyms that a node needs besides its verb: copies of it at deeper orders take theirs from the same list."""
        return max(self.sizes[len(path) - 1 :]) - 1


def grow(forest: Forest, source: Source, concurrency: int, node_done: Callable[[Path], None]) -> None:
    """Ask for every node, early trees first, and fill `forest`; `node_done` is called after each, in this thread.

    A failed node is noted and the others go on; `Stopped` ends the build with what there is.
    """
    order = {root: number for number, root in enumerate(forest.roots)}
    ready: list[tuple[int, int, Path]] = [(order[root], 1, (root,)) for root in forest.roots]  # a heap
    running: dict[Future[tuple[list[str], NodeReport]], Path] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while running or (ready and not forest.stopped):
                while ready and not forest.stopped and len(running) < concurrency:
                    path = heapq.heappop(ready)[2]
                    object_ = forest.roots[path[0]].object
                    running[pool.submit(source.synonyms, path, object_, forest.wanted(path))] = path
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    path = running.pop(future)
                    for below in receive(forest, path, future):
                        heapq.heappush(ready, (order[below[0]], len(below), below))
                    node_done(path)
        except BaseException:
            source.cancel()
            raise


def receive(forest: Forest, path: Path, future: Future[tuple[list[str], NodeReport]]) -> list[Path]:
    """Put the outcome of one node into the forest; returns the nodes to ask for next."""
    try:
        synonyms, report = future.result()
    except NodeFailed as failure:
        forest.failed[path] = str(failure)
        forest.children[path] = (path[-1], *failure.found)
        return []
    except Stopped as reason:
        forest.stopped = forest.stopped or str(reason)
        return []
    forest.reports.append(report)
    return forest.add(path, synonyms)
