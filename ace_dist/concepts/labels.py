"""Label sets of a test: root labels, the ten sets of the Synonym Robustness Test, and free labels of a user."""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ace_dist.concepts.actions import Action, listed_texts, normalise
from ace_dist.concepts.makers import MAKERS, maker_synonyms, split_label
from ace_dist.concepts.sampler import Phrases, label_phrases
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.concepts.wordnet import WordNet, find_wordnet
from ace_dist.utils.errors import LabelError
from ace_dist.utils.reading import read_object, why_no_file

# A label whose verb has no node in the trees: alone beside averaged ones | averaged over synonyms of makers.json, or
# of WordNet | a reason for all labels of its set to stand alone. A mean of unit vectors is shorter than one of them, so
# a label that stands alone among averaged ones has the larger similarity to start with: the default scores all alike.
WORDNET_SIZE = 9  # words of a label set none of whose labels has a node
Policy = Literal["alone", "wordnet", "all_alone_when_any_is"]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """One way to name K classes: `labels[k]` is shown, `phrases[k]` are averaged (Eq. 3)."""

    labels: tuple[str, ...]
    phrases: Phrases


@dataclass(frozen=True, slots=True)
class FreeLabel:
    """A label that a user typed, what is averaged for it, and the tree that says so (`None`: it stands alone)."""

    label: str
    phrases: tuple[str, ...]
    tree: str | None


def root_labels(actions: Sequence[Action], trees: SynonymTrees, leaves: bool) -> LabelSet:
    """Root labels; with `leaves`, each averaged over the first-order children of its verb."""
    labels = tuple(map(str, actions))
    if not leaves:
        return LabelSet(labels, tuple((label,) for label in labels))
    trees.require(action.verb for action in actions)
    return LabelSet(labels, tuple(label_phrases(action, trees, action.verb, drawn=False) for action in actions))


def load_srt(path: str | Path) -> list[dict[str, str]]:
    """Read the runs of an SRT file: per run, root label → label to use. Raises `LabelError` naming the file."""
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"SRT file {path} {why_no_file(path)}; set dataset.srt to a JSON file of label sets")
    runs: Any = read_object(path, LabelError, " (dataset.srt: an object with a list 'runs')").get("runs")
    well_formed = isinstance(runs, list) and runs and all(isinstance(run, dict) and run for run in runs)
    if not well_formed or not all(isinstance(label, str) for run in runs for label in run.values()):
        raise LabelError(f"SRT file {path} (dataset.srt): every entry of 'runs' must map root labels to labels")
    for number, run in enumerate(runs, start=1):
        labels = Counter(map(normalise, run))
        if twice := [label for label, count in labels.items() if count > 1]:
            raise LabelError(f"SRT file {path} (dataset.srt): run {number} lists {twice[0]!r} twice")
    return [{normalise(root): label for root, label in run.items()} for run in runs]


def srt_labels(
    actions: Sequence[Action],
    runs: Sequence[dict[str, str]],
    trees: SynonymTrees,
    leaves: bool,
    source: str,
    policy: Policy = "all_alone_when_any_is",
) -> list[LabelSet]:
    """One label set per SRT run for `actions`, in class order.

    With `leaves`, a label is averaged over the node of its verb in the tree of its root (`SynonymTrees.node`); `policy`
    says what becomes of a set with a verb that has none. Raises `LabelError` when a run misses a class or gives two
    classes the same label.
    """
    sets = []
    for labels in run_labels(actions, runs, source):
        nodes = [trees.node(a.verb, b.verb) if leaves else None for a, b in zip(actions, labels, strict=True)]
        sets.append(averaged(labels, nodes, policy if leaves else "alone"))
    return sets


def run_labels(actions: Sequence[Action], runs: Sequence[dict[str, str]], source: str) -> list[list[Action]]:
    """The labels of every SRT run as verb and object, in class order; errors as in `srt_labels`."""
    found = []
    for number, run in enumerate(runs, start=1):
        if missing := [str(action) for action in actions if str(action) not in run]:
            words = ", ".join(map(repr, missing))
            raise LabelError(f"{source}: run {number} has no label for {words}; null draws label sets from the trees")
        labels = [relabelled(action, run[str(action)]) for action in actions]
        if len(set(labels)) < len(labels):
            raise LabelError(f"{source}: run {number} gives two classes the same label: {sorted(map(str, labels))}")
        found.append(labels)
    return found


def relabelled(action: Action, label: str) -> Action:
    """A label of `action` as verb and object: all before its object is the verb, else as `Action.parse` splits it."""
    verb = normalise(label).removesuffix(f" {action.object}")
    return Action.parse(label, verbs=(verb, action.verb) if verb != normalise(label) else (action.verb,))


def words_without_node(
    actions: Sequence[Action], runs: Sequence[dict[str, str]], trees: SynonymTrees, source: str
) -> dict[str, list[int]]:
    """`verb (root)` of which the trees know no synonym -> the SRT runs, from 1, that have it in a label."""
    found: dict[str, list[int]] = {}
    for number, labels in enumerate(run_labels(actions, runs, source), start=1):
        for action, label in zip(actions, labels, strict=True):
            if trees.node(action.verb, label.verb) is None:
                numbers = found.setdefault(f"{label.verb} ({action.verb})", [])
                numbers += [number] * (number not in numbers)
    return found


def averaged(labels: Sequence[Action], nodes: Sequence[tuple[str, ...] | None], policy: Policy) -> LabelSet:
    """A label set whose classes are averaged over the nodes of their verbs; of a verb without one `policy` decides."""
    if policy == "all_alone_when_any_is" and None in nodes:
        nodes = [None] * len(nodes)
    if policy == "wordnet":
        size = max((len(node) for node in nodes if node), default=WORDNET_SIZE)
        nodes = [node or wordnet_node(label.verb, size) for label, node in zip(labels, nodes, strict=True)]
    phrases = [
        tuple(str(label.with_verb(verb)) for verb in node or (label.verb,))
        for label, node in zip(labels, nodes, strict=True)
    ]
    return LabelSet(tuple(map(str, labels)), tuple(phrases))


@lru_cache
def wordnet_node(verb: str, size: int) -> tuple[str, ...]:
    """A verb and its nearest synonyms, `size` together: of our own list of makers' verbs, else of WordNet.

    Raises `LabelError` for a verb that neither has.
    """
    if own := maker_synonyms(verb, verb):
        return (verb, *own[: size - 1])
    wordnet = shared_wordnet()
    try:
        sense = wordnet.sense(verb)
    except LabelError as error:
        raise LabelError(f"evaluation.labels_without_node=wordnet: {error}; or set it to alone") from error
    return (verb, *(other for other, _ in islice(wordnet.children(verb, sense), size - 1)))


@lru_cache
def shared_wordnet() -> WordNet:
    return WordNet(find_wordnet())


def draw_srt(actions: Sequence[Action], trees: SynonymTrees, runs: int = 10, seed: int = 0) -> list[dict[str, str]]:
    """SRT runs for a data set that brings none: run 1 the root labels, then first-order synonyms, drawn per class.

    A class takes its synonyms in a shuffled order, and shuffles again when it has taken all: ten runs show as many
    words as its tree has. When two classes would get the same label in a run, the later one takes its next synonym;
    in a run where a whole tree is taken by others, no class takes the root label of another one.
    """
    trees.require(action.verb for action in actions)
    generators = [random.Random(f"srt/{seed}/{action}") for action in actions]
    words = [list(trees.children(action.verb)) for action in actions]
    drawn = [{str(action): str(action) for action in actions}]
    for number in range(runs - 1):
        orders: dict[str, list[str]] = {}  # of each class, its labels as it prefers them
        for action, rng, order in zip(actions, generators, words, strict=True):
            turn = number % len(order)
            if turn == 0:
                rng.shuffle(order)
            orders[str(action)] = [str(action.with_verb(verb)) for verb in order[turn:] + order[:turn]]
        drawn.append(different_labels(orders) or different_labels(orders, kept=orders.keys()))
    return drawn


def different_labels(orders: Mapping[str, Sequence[str]], kept: Collection[str] = ()) -> dict[str, str]:
    """Root label -> the first of its labels that no class before it has; {} where a class finds none.

    Labels of `kept` are for their own class alone: with all root labels every class finds one.
    """
    run: dict[str, str] = {}
    for root, labels in orders.items():
        free = [label for label in labels if label not in run.values() and (label == root or label not in kept)]
        if not free:
            return {}
        run[root] = free[0]
    return run


def free_labels(
    texts: str | Sequence[str], trees: SynonymTrees | None, policy: Policy = "all_alone_when_any_is"
) -> list[FreeLabel]:
    """Labels typed by a user. A verb of the trees, root or first-order child, is averaged over its synonyms.

    `policy` says what becomes of labels with another verb; without trees all stand alone. Raises `LabelError` for an
    empty list, an empty label or a repeated one.
    """
    labels = [normalise(text) for text in listed_texts(texts)]
    if len(labels) < 2:
        hint = f"; write several as '[{labels[0]}]'" if labels and "," in labels[0] else ""
        raise LabelError(f"actions={listed_texts(texts)}: give at least two labels to choose between{hint}")
    if "" in labels or len(set(labels)) < len(labels):
        raise LabelError(
            f"actions={listed_texts(texts)}: every label must be non-empty and occur once, case, hyphens and "
            "underscores aside"
        )
    if trees is None:
        return [FreeLabel(label, (label,), None) for label in labels]
    known = [known_verb(label, trees) for label in labels]
    if policy == "all_alone_when_any_is" and None in known:
        return free_labels(labels, None)
    found: list[FreeLabel] = []
    sizes = [len(trees.node(root, verb) or ()) for verb, root in filter(None, known)]
    size = max(sizes, default=0) or WORDNET_SIZE  # of labels without a node, as `averaged` has it
    for label, place in zip(labels, known, strict=True):
        phrases: tuple[str, ...] = (label,)
        verb, tree = place or (label, None)
        if tree:
            words = trees.node(tree, verb) or (verb,)
            phrases = tuple(str(Action(word, label[len(verb) :])) for word in words)
        elif policy == "wordnet":
            action = split_label(label)
            tree = MAKERS if maker_synonyms(action.verb, action.verb) else "WordNet"
            words = wordnet_node(action.verb, size)
            phrases = tuple(str(action.with_verb(word)) for word in words)
        found.append(FreeLabel(label, phrases, tree))
    return found


def known_verb(label: str, trees: SynonymTrees) -> tuple[str, str] | None:
    """The longest verb of the trees that a label begins with, and the root of its tree; its own where it is a root."""
    homes = {verb: root for root in reversed(trees.roots) for verb in trees.named(root)} | {r: r for r in trees.roots}
    verb = max((verb for verb in homes if label.startswith(f"{verb} ")), key=len, default=None)
    return (verb, homes[verb]) if verb else None
