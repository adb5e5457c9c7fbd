"""Which actions are base and which are novel: from the splits, from a list, or by the paper's rule."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from ace_dist.concepts.actions import Action, listed_texts, normalise
from ace_dist.utils.errors import LabelError
from ace_dist.utils.reading import read_object, why_no_file


@dataclass(frozen=True, slots=True)
class ClassLists:
    """Base and novel actions, each sorted: the position is the class index."""

    base: tuple[Action, ...]
    novel: tuple[Action, ...]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: its own label of each, the action that the label means, and labels that are none."""

    actions: Mapping[str, Action]
    not_actions: frozenset[str]
    source: str  # the file, for messages

    def action(self, label: str) -> Action | None:
        """What a label means, however it is spelt (`normalise`); None for one that the table lacks or that is none."""
        return self.meanings.get(normalise(label))

    def __contains__(self, label: str) -> bool:
        return normalise(label) in self.meanings

    @cached_property
    def meanings(self) -> dict[str, Action | None]:
        """`actions` and `not_actions` under the one form of their labels."""
        known = {normalise(label): action for label, action in self.actions.items()}
        return known | {normalise(label): None for label in self.not_actions}


def load_class_table(path: str | Path, setting: str = "dataset.classes") -> ClassTable:
    """Read a file such as those of assets/classes: `{"actions": {label: [verb, object]}, "not_actions": [label]}`.

    Raises `LabelError`, which names `setting`, when it is not of that form, or when two labels mean the same action.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"{setting}={path} {why_no_file(path)}")
    form = f'; {setting} needs {{"actions": {{label: [verb, object], ...}}, "not_actions": [label, ...]}}'
    content = read_object(path, LabelError, form)
    pairs, none = content.get("actions"), content.get("not_actions", [])
    if not isinstance(pairs, dict) or not isinstance(none, list) or not all(isinstance(label, str) for label in none):
        raise LabelError(f"{path} does not read as expected{form}")
    if wrong := [label for label, pair in pairs.items() if not is_pair(pair)]:
        raise LabelError(f"{path}: {wrong[0]!r} is not explained by a verb and an object{form}")
    actions, not_actions = {label: Action(*pair) for label, pair in pairs.items()}, frozenset(none)
    labels, meant = Counter(map(normalise, (*actions, *not_actions))), Counter(map(str, actions.values()))
    if twice := sorted({text for counts in (labels, meant) for text, count in counts.items() if count > 1}):
        raise LabelError(f"{setting}={path} lists {', '.join(map(repr, twice))} twice")
    return ClassTable(actions, not_actions, str(path))


def is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def novel_by_verb_frequency(counts: Mapping[Action, int], share: float = 1 / 3) -> tuple[Action, ...]:
    """The novel actions by the paper's rule: those of the least frequent verbs, until they are `share` of all classes.

    ACE section 4.1 takes "one-third of action classes with the least frequent verb", so that base and novel verbs
    hardly overlap. It does not say how a third is rounded or how ties break; here a verb's frequency is the number of
    clips of all its classes (`counts`, over all splits), verbs are taken whole, rarest first, equally frequent ones in
    alphabetical order, until the share is reached.

    That gives the paper's novel classes of ATA (Table 7) and GTEA (Table 9). On IKEA-ASM it gives the ten of Table 8
    and `lay down leg`: the paper keeps that class among the base ones and so has the verb "lay down" in both sets, for
    a reason it does not state. `configs/dataset/*.yaml` therefore list the novel classes. Sorted. Raises `LabelError`
    when `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise LabelError(f"dataset.novel_share={share:g} must lie between 0 and 1; the paper's is 0.3333")
    least = Fraction(share).limit_denominator(100) * len(counts)  # 0.3333 means a third
    verbs: Counter[str] = Counter()
    for action, count in counts.items():
        verbs[action.verb] += count
    novel: list[Action] = []
    for verb in sorted(verbs, key=lambda verb: (verbs[verb], verb)):
        if len(novel) < least:
            novel += [action for action in counts if action.verb == verb]
    return tuple(sorted(novel))


def split_classes(
    train: Iterable[Action],
    test: Iterable[Action],
    novel: str | Sequence[str] | None,
    *,
    novel_share: float | None = None,
    table: ClassTable | None = None,
) -> ClassLists:
    """Base and novel actions of the clips of both splits, one action a clip.

    Novel actions are those that `novel` lists, or those of the least frequent verbs (`novel_share`, see
    `novel_by_verb_frequency`), or, when both are None, those that occur in the test split alone. Base actions are the
    others with training clips. With a `table` all its classes stay in the lists whatever the splits show, so that every
    fold of a data set has the same classes.

    Raises `LabelError` when fewer than two base actions have training clips, when a novel action never occurs in the
    test split (with a table: when none does), or when an action is tested that is in neither list.
    """
    train, test = list(train), list(test)
    with_training, with_test = set(train), set(test)
    actions = with_training | with_test
    where = "no clip of the shards shows"
    if table is not None:
        where = f"dataset.classes={table.source} does not list"
        if stray := quote(actions - set(table.actions.values())):
            raise LabelError(f"the shards show {stray}, which {where}; build them again or set dataset.classes=null")
        actions = set(table.actions.values())

    if novel is not None and novel_share is not None:
        raise LabelError(
            f"dataset.novel and dataset.novel_share={novel_share:g} both choose the novel actions; set one to null"
        )
    if novel is not None:
        novel_actions, setting = listed_actions(listed_texts(novel), actions, where), "dataset.novel"
    elif novel_share is not None:
        counts = Counter(train) + Counter(test)
        novel_actions = set(novel_by_verb_frequency({a: counts[a] for a in actions}, novel_share))
        setting = f"dataset.novel_share={novel_share:g}"
    else:
        novel_actions, setting = with_test - with_training, "dataset.novel=null"

    if table is None and (stray := quote(with_test - with_training - novel_actions)):
        raise LabelError(
            f"the test split shows {stray}, which has no training clip and is not in dataset.novel; list it there or "
            f"set dataset.novel=null"
        )
    untested = quote(novel_actions - with_test)
    if untested and (table is None or not novel_actions & with_test):
        raise LabelError(f"{setting} lists {untested}, which has no test clip")
    base = with_training - novel_actions
    if len(base) < 2:
        few = f"{len(base)} base action{'s' * (len(base) != 1)} with training clips"
        raise LabelError(
            f"{few}: a classifier needs two or more; check the split column of dataset.annotations, dataset.test_groups"
            " and dataset.novel"
            if novel_share is None
            else f"{setting} takes the rarest verbs whole and leaves {few}, and a classifier needs two or more; set it "
            "to null and list the novel actions in dataset.novel"
        )
    return ClassLists(tuple(sorted(base if table is None else actions - novel_actions)), tuple(sorted(novel_actions)))


def listed_actions(labels: Sequence[str], actions: set[Action], where: str) -> set[Action]:
    """The actions that `dataset.novel` lists. Raises `LabelError` for one that is not among `actions`."""
    by_label = {str(action): action for action in actions}
    labels = [normalise(label) for label in labels]
    if unknown := [label for label in labels if label not in by_label]:
        near = [word for label in unknown for word in difflib.get_close_matches(label, by_label, n=1)]
        rest = f" and {len(by_label) - 8} more" if len(by_label) > 8 else ""
        examples = ", ".join(map(repr, sorted(by_label)[:8])) + rest
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {examples}"
        raise LabelError(f"dataset.novel lists {', '.join(map(repr, unknown))}, which {where}; {hint}")
    return {by_label[label] for label in labels}


def quote(actions: Iterable[Action]) -> str:
    return ", ".join(map(repr, sorted(map(str, actions))))
