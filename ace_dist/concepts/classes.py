"""Which actions are seen (base) and which are not (novel), from the labels that occur in each split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ace_dist.concepts.actions import Action
from ace_dist.errors import UserError

__all__ = ["ClassError", "ClassLists", "split_classes"]


class ClassError(UserError):
    """A class list that cannot be trained or tested."""


@dataclass(frozen=True, slots=True)
class ClassLists:
    """Base (seen) and novel (unseen) actions, each sorted: the position is the class index."""

    base: tuple[Action, ...]
    novel: tuple[Action, ...]


def split_classes(train: Iterable[Action], test: Iterable[Action], novel: Sequence[str] | None) -> ClassLists:
    """Base actions have training clips and are not novel; novel ones are those of `novel`, or those only in the test.

    Raises `ClassError` when fewer than two base actions are left, when a listed novel action never occurs in the test
    split, or when an action that is tested was neither trained nor listed.
    """
    trained, tested = set(train), set(test)
    if novel is None:
        unseen = tested - trained
    else:
        by_label = {str(action): action for action in trained | tested}
        unknown = [label for label in novel if " ".join(label.lower().split()) not in by_label]
        if unknown:
            raise ClassError(f"dataset.novel lists {', '.join(map(repr, unknown))}, which no clip of the shards shows")
        unseen = {by_label[" ".join(label.lower().split())] for label in novel}
        stray = sorted(map(str, tested - trained - unseen))
        if stray:
            raise ClassError(
                f"the test split shows {', '.join(map(repr, stray))}, which has no training clip and is not in "
                f"dataset.novel; list it there or set dataset.novel=null"
            )
        untested = sorted(map(str, unseen - tested))
        if untested:
            raise ClassError(f"dataset.novel lists {', '.join(map(repr, untested))}, which has no test clip")
    base = trained - unseen
    if len(base) < 2:
        raise ClassError(
            f"{len(base)} base action{'s' * (len(base) != 1)} with training clips: a classifier needs two or more; "
            f"check the split column of dataset.annotations and dataset.novel"
        )
    return ClassLists(tuple(sorted(base)), tuple(sorted(unseen)))
