"""Label sets of a test: root labels, the ten sets of the Synonym Robustness Test, and free labels of a user."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts.actions import Action
from ace_dist.concepts.sampler import Phrases, label_phrases
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.utils.errors import LabelError


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
        raise LabelError(f"SRT file {path} does not exist; set dataset.srt to a JSON file of label sets")
    try:
        runs: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise LabelError(f"SRT file {path} (dataset.srt) is not an object with a list 'runs': {error!r}") from error
    well_formed = isinstance(runs, list) and runs and all(isinstance(run, dict) and run for run in runs)
    if not well_formed or not all(isinstance(label, str) for run in runs for label in run.values()):
        raise LabelError(f"SRT file {path} (dataset.srt): every entry of 'runs' must map root labels to labels")
    return runs


def srt_labels(
    actions: Sequence[Action], runs: Sequence[dict[str, str]], trees: SynonymTrees, leaves: bool, source: str
) -> list[LabelSet]:
    """One label set per SRT run for the novel `actions`, in class order.

    With `leaves`, a label whose verb is a child of its root's tree is averaged over the children of that node, a label
    equal to the root over the first-order children, and any other verb stands alone. Raises `LabelError` when a run
    misses a class or gives two classes the same label.
    """
    sets = []
    for number, run in enumerate(runs, start=1):
        if missing := [str(action) for action in actions if str(action) not in run]:
            raise LabelError(f"{source}: run {number} has no label for {', '.join(map(repr, missing))}")
        phrases, labels = [], []
        for action in actions:
            children = trees.children(action.verb) if action.verb in trees else ()
            label = Action.parse(run[str(action)], verbs=(action.verb, *children))  # a phrasal verb stays whole
            labels.append(str(label))
            is_averaged, drawn = leaves and label.verb in children, label.verb != action.verb
            phrases.append(label_phrases(label, trees, action.verb, drawn=drawn) if is_averaged else (str(label),))
        if len(set(labels)) < len(labels):
            raise LabelError(f"{source}: run {number} gives two classes the same label: {sorted(labels)}")
        sets.append(LabelSet(tuple(labels), tuple(phrases)))
    return sets


def draw_srt(actions: Sequence[Action], trees: SynonymTrees, runs: int = 10, seed: int = 0) -> list[dict[str, str]]:
    """SRT runs for a data set that brings none: run 1 the root labels, then first-order synonyms, drawn per class.

    A class keeps its synonyms in a shuffled cycle, so that ten runs show as many words as its tree has. When two
    classes would get the same label in a run, the later one moves on in its cycle; where its whole tree is taken it
    keeps its root label.
    """
    trees.require(action.verb for action in actions)
    cycles = [list(trees.children(action.verb)) for action in actions]
    for action, cycle in zip(actions, cycles, strict=True):
        random.Random(f"srt/{seed}/{action}").shuffle(cycle)
    drawn = [{str(action): str(action) for action in actions}]
    for number in range(runs - 1):
        run: dict[str, str] = {}
        for action, cycle in zip(actions, cycles, strict=True):
            turn = number % len(cycle)
            labels = [str(action.with_verb(verb)) for verb in cycle[turn:] + cycle[:turn]]
            run[str(action)] = next((label for label in labels if label not in run.values()), str(action))
        drawn.append(run)
    return drawn


def free_labels(texts: Sequence[str], trees: SynonymTrees | None) -> list[FreeLabel]:
    """Labels typed by a user. A verb that is a root is averaged over its children; any other label stands alone.

    Raises `LabelError` for an empty list, an empty label or a repeated one.
    """
    labels = [" ".join(text.lower().split()) for text in texts]
    if len(labels) < 2:
        raise LabelError(f"actions={list(texts)}: give at least two labels to choose between")
    if "" in labels or len(set(labels)) < len(labels):
        raise LabelError(f"actions={list(texts)}: every label must be non-empty and occur once")
    free = []
    for label in labels:
        roots = [root for root in trees.roots if label.startswith(root + " ")] if trees else []
        phrases: tuple[str, ...] = (label,)
        verb = max(roots, key=len, default=None)
        if trees and verb:
            phrases = label_phrases(Action(verb, label[len(verb) :]), trees, verb, drawn=False)
        free.append(FreeLabel(label, phrases, verb))
    return free
