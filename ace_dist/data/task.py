"""What a run learns and is tested on: classes, synonym trees and labelled clips, from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ace_dist.concepts import Action, ClassLists, SynonymTrees, load_class_table, split_classes
from ace_dist.concepts.held_out_words import HeldOut, hold_out_words
from ace_dist.concepts.trees import MAKING
from ace_dist.config import Config, DatasetConfig, resolve_path
from ace_dist.data.datasets import load_shards
from ace_dist.data.run_inputs import check_files, read_inputs
from ace_dist.data.sampling import describe_clips, digest, held_out_groups
from ace_dist.data.shards import ClipRecord, ShardSet
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import UserError

NO_TEST = "the test split has no clip (dataset.test_groups, or the split column of dataset.annotations, chooses it)"


@dataclass(frozen=True)
class Task:
    """What a run learns and is tested on. A record's action is its verb and object.

    `validation` are groups of the training split whose clips are looked at while training and do not train;
    `held_out` are words of the base verbs that name these clips in validation and that training never draws.
    """

    classes: ClassLists
    trees: SynonymTrees
    shards: ShardSet
    validation: frozenset[str] = frozenset()
    held_out: HeldOut = field(default_factory=dict)

    def training_clips(self) -> tuple[list[ClipRecord], list[int]]:
        """Training clips of base actions with their class indices; clips of novel actions are left out."""
        records = [record for record in self.shards.split("train") if record.group not in self.validation]
        return labelled(records, self.classes.base)

    def validation_clips(self) -> tuple[list[ClipRecord], list[int]]:
        records = [record for record in self.shards.split("train") if record.group in self.validation]
        return labelled(records, self.classes.base)

    def test_clips(self, novel: bool) -> tuple[list[ClipRecord], list[int]]:
        return labelled(self.shards.split("test"), self.classes.novel if novel else self.classes.base)

    def is_tested(self) -> bool:
        return bool(self.test_clips(novel=False)[0] or self.test_clips(novel=True)[0])


def labelled(records: Sequence[ClipRecord], actions: Sequence[Action]) -> tuple[list[ClipRecord], list[int]]:
    position = {action: index for index, action in enumerate(actions)}
    kept = [(record, position[action]) for record in records if (action := record.action) in position]
    return [record for record, _ in kept], [index for _, index in kept]


def load_trees(config: Config) -> SynonymTrees:
    """The synonym trees of the training, cut to the M of the method."""
    return read_trees(config, config.dataset.synonyms, config.method.children, config.method.grandchildren)


def load_test_trees(config: Config) -> SynonymTrees:
    """The synonym trees of the test, whole unless `evaluation.children` cuts them, whatever the training draws from."""
    path = config.evaluation.synonyms or config.dataset.synonyms
    return read_trees(config, path, config.evaluation.children, config.evaluation.grandchildren)


def read_trees(config: Config, path: str | None, children: int | None, grandchildren: int | None) -> SynonymTrees:
    if path is None:
        raise UserError(
            "dataset.synonyms is not set; give a JSON file of synonym trees, as those of ace_dist/assets/synonyms are; "
            f"{MAKING}"
        )
    return SynonymTrees.load(resolve_path(path), children, grandchildren, config.method.children_include_parent)


def load_task(config: Config) -> Task:
    """Open the shards and trees of a configuration and decide the classes. Every verb must have a tree.

    The classes are those of the whole training split: holding clips out for validation makes no action novel.
    """
    dataset = config.dataset
    check_files(config)
    shards = load_shards(dataset)
    if shards.older_build:
        say_once(shards.older_build)
    trees = load_trees(config)
    classes = choose_classes(dataset, shards)
    trees.require(action.verb for action in (*classes.base, *classes.novel))
    whole = split_words(config, Task(classes, trees, shards))
    return replace(whole, validation=held_out_groups(*whole.training_clips(), config.evaluation, config.seed))


def choose_classes(dataset: DatasetConfig, shards: ShardSet) -> ClassLists:
    """The base and novel actions of a split."""
    train, test = ([record.action for record in shards.split(name)] for name in ("train", "test"))
    table = load_class_table(resolve_path(dataset.classes)) if dataset.classes else None
    return split_classes(train, test, dataset.novel, novel_share=dataset.novel_share, table=table)


def training_records(config: Config, shards: ShardSet) -> list[ClipRecord]:
    """The clips of `load_shards` that a training takes; needs no trees. Raises `UserError` when there are none."""
    if not shards.split("train"):
        raise UserError(
            f"dataset.shards={shards.folder} has no training clip (dataset.test_groups chooses what is tested)"
        )
    records, labels = labelled(shards.split("train"), choose_classes(config.dataset, shards).base)
    held = held_out_groups(records, labels, config.evaluation, config.seed)
    return [record for record in records if record.group not in held]


def split_words(config: Config, task: Task) -> Task:
    """Take `evaluation.validation_words` out of the trees of the base verbs; the novel actions have no part in it."""
    if not (share := config.evaluation.validation_words):
        return task
    verbs = [action.verb for action in task.classes.base]
    held = hold_out_words(task.trees, verbs, share, config.seed)
    words = {word for own in held.values() for word in own}
    return replace(task, trees=task.trees.without(words, verbs), held_out=held)


def load_run_task(run_dir: Path, config: Config) -> Task:
    """What a run that has started is tested on here: its own classes, and the test clips of the configuration's shards.

    Shards of other clips may show actions that the run does not know: they count as novel.
    """
    inputs = read_inputs(run_dir)
    if inputs["base"] is None:
        return load_test(config, load_task(config))
    check_files(config)
    shards, trees = load_shards(config.dataset), load_test_trees(config)
    base, novel = (tuple(Action(verb, thing) for verb, thing in inputs[part]) for part in ("base", "novel"))
    new = {record.action for record in shards.split("test")} - {*base, *novel}
    if new:
        say_once(f"novel actions that the run did not know: {', '.join(sorted(map(str, new)))}")
    trees.require(action.verb for action in (*base, *novel, *sorted(new)))
    return Task(ClassLists(base, tuple(sorted({*novel, *new}))), trees, shards)


def describe_task(task: Task) -> dict[str, Any]:
    """Classes and test clips of a run, for `inputs.json`."""
    actions = {"base": task.classes.base, "novel": task.classes.novel}
    return {part: [[a.verb, a.object] for a in those] for part, those in actions.items()} | {"test": test_digest(task)}


def test_digest(task: Task) -> dict[str, Any]:
    """Number and SHA-256 of the clips of the test."""
    parts = [describe_clips(*task.test_clips(novel)) for novel in (False, True)]
    return {"clips": sum(part["clips"] for part in parts), "sha256": digest([part["sha256"] for part in parts])}


def load_test(config: Config, task: Task) -> Task:
    """What is tested: the same clips and classes, with the trees of the test. Every verb must have one there too."""
    trees = load_test_trees(config)
    trees.require(action.verb for action in (*task.classes.base, *task.classes.novel))
    return replace(task, trees=trees)
