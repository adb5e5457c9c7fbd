"""A procedure: which steps belong to a job, in which order; and what a timeline did otherwise.

A YAML file holds a list of steps or a graph. In a list each step comes after all that stand above it, but for steps of
one `any_order`, which may change places:

    steps:
      - lift box
      - any_order: [insert pin, wipe plate]
      - {step: tap pin, repeat: true}       # once or more
      - {step: shake cup, optional: true}   # may be left out

In a graph each step names those that must come before it:

    graph:
      lift box: []
      insert pin: [lift box]
      wipe plate: {after: [lift box], optional: true}
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_dist.concepts.actions import normalise
from ace_dist.config import did_you_mean
from ace_dist.utils.errors import LabelError
from ace_dist.utils.reading import read_yaml

Span = tuple[float, float, str]  # start_s, end_s, label


@dataclass(frozen=True)
class Step:
    """`before`: the places, in the procedure's list, of steps that must come before this one."""

    label: str
    before: frozenset[int] = frozenset()
    optional: bool = False
    repeat: bool = False


@dataclass(frozen=True)
class Deviation:
    """Something done otherwise than the procedure says. A missing step has no times.

    `kind`: missing | extra (no step of the procedure) | repeated | swapped (before a step that it must follow, or
    after one that it must precede).
    """

    kind: str
    label: str
    start_s: float | None
    end_s: float | None
    note: str


@dataclass(frozen=True)
class Procedure:
    """The steps, none before one of its `before`; `source` names the file in messages."""

    steps: tuple[Step, ...]
    source: str = "the procedure"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(step.label for step in self.steps))

    @classmethod
    def load(cls, path: str | Path) -> "Procedure":
        """Read a YAML file. Raises `LabelError` naming the file and what cannot be understood in it."""
        return cls.parse(read_yaml(Path(path), LabelError, "; procedure= names a YAML file of steps"), str(path))

    @classmethod
    def parse(cls, document: Any, source: str = "the procedure") -> "Procedure":
        """From a list of steps, `{"steps": [...]}` or `{"graph": {...}}`."""
        if isinstance(document, list):
            document = {"steps": document}
        if not isinstance(document, Mapping) or len({"steps", "graph"} & set(document)) != 1:
            raise LabelError(f"{source}: a procedure is a list under 'steps' or a mapping under 'graph'")
        steps = (
            listed_steps(document["steps"], source) if "steps" in document else graph_steps(document["graph"], source)
        )
        if not steps:
            raise LabelError(f"{source}: the procedure has no step")
        return cls(tuple(steps), source)

    def predecessors(self) -> list[frozenset[int]]:
        """Of each step, all steps that must come before it, over any number of steps between."""
        found: list[frozenset[int]] = []
        for step in self.steps:
            found.append(step.before.union(*(found[place] for place in step.before)))
        return found

    def switch_costs(self, labels: Sequence[str], cost: float, deviation_cost: float) -> npt.NDArray[np.float64]:
        """What a change from one label [K] to another costs: `cost`, and `deviation_cost` more where no step allows it.

        A label that is no step, such as "none of these", may stand between any two.
        """
        allowed = {(self.steps[a].label, self.steps[b].label) for a, b in self.neighbours()}
        table = np.full((len(labels), len(labels)), cost + deviation_cost)
        for i, one in enumerate(labels):
            for j, other in enumerate(labels):
                if (one, other) in allowed or one not in self.labels or other not in self.labels:
                    table[i, j] = cost
        return table

    def neighbours(self) -> Iterator[tuple[int, int]]:
        """Pairs of steps of which the second directly follows the first in some order that the procedure allows."""
        above = self.predecessors()
        for j in range(len(self.steps)):
            for i in range(len(self.steps)):
                between = any(i in above[k] and not self.steps[k].optional for k in above[j])
                if i != j and j not in above[i] and not between:
                    yield i, j

    def deviations(self, spans: Sequence[Span]) -> list[Deviation]:
        """What `spans` did otherwise, in the order of time, then the missing steps.

        The largest set of steps that is in order counts as in order, and the others as swapped.
        """
        spans = sorted(spans)
        steps = self.assign(spans)
        done, ordered = self.occurrences(steps)
        above = self.predecessors()
        found = []
        for place, (start_s, end_s, label) in enumerate(spans):
            step = steps[place]
            if step is None:
                found.append(Deviation("extra", label, start_s, end_s, "is no step of the procedure"))
            elif done[step] != place and not self.steps[step].repeat:
                found.append(Deviation("repeated", label, start_s, end_s, "is done more than once"))
            elif done[step] == place and step not in ordered:
                early = [other for other in ordered if other in above[step] and done[other] > place]
                late = [other for other in ordered if step in above[other] and done[other] < place]
                words = ", ".join(repr(self.steps[other].label) for other in early or late)
                found.append(
                    Deviation("swapped", label, start_s, end_s, f"comes {'before' if early else 'after'} {words}")
                )
        absent = [step for number, step in enumerate(self.steps) if number not in done and not step.optional]
        return found + [Deviation("missing", step.label, None, None, "was not seen") for step in absent]

    def assign(self, spans: Sequence[Span]) -> list[int | None]:
        """The step that each span is. Where several steps share a label, in the order that fits the others best."""
        above, seen = self.predecessors(), dict[int, list[int]]()
        steps: list[int | None] = [None] * len(spans)
        places = {label: [i for i, step in enumerate(self.steps) if step.label == label] for label in self.labels}

        def conflicts(step: int, place: int) -> int:
            early = sum(step in above[other] and own[-1] < place for other, own in seen.items())
            return early + sum(other in seen and seen[other][0] > place for other in above[step])

        for label in sorted(places, key=lambda label: len(places[label])) * 2:  # again, when all others have a place
            own = [i for i, span in enumerate(spans) if span[2] == label]
            for step in places[label]:
                seen.pop(step, None)
            for i, step in follow(own, places[label], conflicts):
                steps[i] = step
                seen.setdefault(step, []).append(i)
        return steps

    def occurrences(self, steps: Sequence[int | None]) -> tuple[dict[int, int], set[int]]:
        """When each step that was seen was done (its place in `steps`), and which of these are in order.

        A step that was seen several times was done the first time, or another one when that puts more steps in order.
        """
        seen: dict[int, list[int]] = {}
        for place, step in enumerate(steps):
            if step is not None:
                seen.setdefault(step, []).append(place)
        done = {step: places[0] for step, places in seen.items()}
        above = self.predecessors()
        ordered = largest_ordered(done, above)
        for step, places in seen.items():
            for place in places[1:] if step not in ordered else []:
                if ordered_size(trial := done | {step: place}, above, trial) > len(ordered):
                    done, ordered = trial, largest_ordered(trial, above)
        return done, ordered


def follow(spans: Sequence[int], steps: Sequence[int], cost: Callable[[int, int], int]) -> list[tuple[int, int]]:
    """Each span with one of the steps, in the order of both: as many steps as there can be, at the least sum of costs.

    `cost` is that of a step at a span. The other spans are the step before them once more, or the first one.
    """
    best: list[tuple[int, int, tuple[tuple[int, int], ...]]] = [(0, 0, ())] * (len(steps) + 1)  # with the first steps
    for span in spans:
        row = best[:1]
        for place, step in enumerate(steps):
            taken, paid, pairs = best[place]
            row.append(min(best[place + 1], row[-1], (taken - 1, paid + cost(step, span), (*pairs, (span, step)))))
        best = row
    chosen = dict(best[-1][2])
    step = next(iter(chosen.values()), 0)
    return [(span, step := chosen.get(span, step)) for span in spans]


def largest_ordered(done: Mapping[int, int], above: Sequence[frozenset[int]]) -> set[int]:
    """The largest set of steps of which none was done before one that must precede it; of equal sets the later steps.

    "Step a was done before b and must follow it" is a partial order, so the largest set without such a pair is its
    largest antichain, and by Dilworth's theorem as large as the number of steps less a maximum matching of the pairs.
    """
    kept = sorted(done, key=lambda step: done[step])
    largest = ordered_size(done, above, kept)
    for step in list(kept):
        rest = [other for other in kept if other != step]
        if len(kept) > largest and ordered_size(done, above, rest) == largest:
            kept = rest
    return set(kept)


def ordered_size(done: Mapping[int, int], above: Sequence[frozenset[int]], steps: Collection[int]) -> int:
    """Of the largest such set among some `steps`."""
    from scipy.sparse import csr_array  # of an extra: classifying needs none
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not steps:
        return 0
    wrong = np.array([[done[a] < done[b] and b in above[a] for b in steps] for a in steps], dtype=np.int8)
    matched = maximum_bipartite_matching(csr_array(wrong), perm_type="column")
    return len(steps) - int((matched >= 0).sum())


def listed_steps(items: Any, source: str) -> list[Step]:
    """Steps of a list: each follows all of the entry above it."""
    if not isinstance(items, list):
        raise LabelError(f"{source}: 'steps' is not a list but {items!r}")
    steps: list[Step] = []
    above: frozenset[int] = frozenset()
    for number, item in enumerate(items, start=1):
        where = f"{source}, step {number}"
        together = isinstance(item, Mapping) and set(item) == {"any_order"}
        group = item["any_order"] if together else [item]
        if not isinstance(group, list) or not group:
            raise LabelError(f"{where}: any_order is not a list of steps but {group!r}")
        first = len(steps)
        steps += [replace(parse_step(each, where), before=above) for each in group]
        above = frozenset(range(first, len(steps)))
    return steps


def parse_step(item: Any, where: str) -> Step:
    """A label, or `{step: label, optional: true, repeat: true}`."""
    entry = item if isinstance(item, Mapping) else {"step": item}
    if unknown := sorted(set(map(str, entry)) - {"step", "optional", "repeat"}):
        raise LabelError(
            f"{where}: {', '.join(unknown)} is unknown; a step has step, optional, repeat, or is any_order"
        )
    label = entry.get("step")
    if not isinstance(label, str) or not normalise(label):
        raise LabelError(f"{where}: {label!r} is not a label")
    return Step(normalise(label), frozenset(), **flags(entry, where))


def flags(entry: Mapping[str, Any], where: str) -> dict[str, bool]:
    found = {name: entry.get(name, False) for name in ("optional", "repeat")}
    for name, value in found.items():
        if not isinstance(value, bool):
            raise LabelError(f"{where}: {name} is not true or false but {value!r}")
    return found


def graph_steps(graph: Any, source: str) -> list[Step]:
    """Steps of a graph, sorted so that each follows those it names. Raises `LabelError` for a cycle."""
    if not isinstance(graph, Mapping):
        raise LabelError(f"{source}: 'graph' is not a mapping of steps but {graph!r}")
    entries: dict[str, dict[str, Any]] = {}
    for name, value in graph.items():
        entry = dict(value) if isinstance(value, Mapping) else {"after": value or []}
        label = parse_step(name, source).label
        where = f"{source}, step {label!r}"
        after = entry.get("after", [])
        after = [after] if isinstance(after, str) else after
        if not isinstance(after, list) or not all(isinstance(each, str) for each in after):
            raise LabelError(f"{where}: 'after' is not a list of steps but {after!r}")
        if unknown := sorted(set(map(str, entry)) - {"after", "optional", "repeat"}):
            raise LabelError(f"{where}: {', '.join(unknown)} is unknown; a step has after, optional, repeat")
        entries[label] = {"after": [normalise(each) for each in after], **flags(entry, where)}
    for label, entry in entries.items():
        for each in entry["after"]:
            if each not in entries:
                near = did_you_mean(each, list(entries))
                raise LabelError(f"{source}: step {label!r} comes after {each!r}, which is no step{near}")
    try:
        order = list(TopologicalSorter({label: entry["after"] for label, entry in entries.items()}).static_order())
    except CycleError as error:
        circle = " -> ".join(map(repr, error.args[1]))
        raise LabelError(f"{source}: these steps wait for each other: {circle}; take one arrow out") from error
    places = {label: place for place, label in enumerate(order)}
    return [
        Step(label, frozenset(places[each] for each in entry["after"]), entry["optional"], entry["repeat"])
        for label in order
        for entry in [entries[label]]
    ]
