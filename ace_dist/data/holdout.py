"""Owns which groups of the training split validate and do not train: whole people, cameras or places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ace_dist.data.sampling import permutation
from ace_dist.utils.errors import DataError

if TYPE_CHECKING:
    from ace_dist.config import EvaluationConfig
    from ace_dist.data.shards import ClipRecord


HOLDOUT_KEY = (0, 0, 1)  # longer than the keys of clips and crops under the same seed, so it is a draw of its own


def held_out_groups(
    records: Sequence[ClipRecord], labels: Sequence[int], settings: EvaluationConfig, seed: int
) -> frozenset[str]:
    """Groups of these training clips that validate: `evaluation.validation_groups`, or drawn for `validation_share`.

    None when `evaluation.every_steps` is 0. A draw depends on `seed` and the names of the groups alone; it leaves out a
    group that is the last with training clips of a class. Raises `DataError` when there is nothing to hold out.
    """
    if not settings.every_steps:
        return frozenset()
    groups = sorted({record.group for record in records})
    if len(groups) < 2:
        raise DataError(
            f"evaluation.every_steps={settings.every_steps} holds out whole groups of training clips, but all of them "
            f"are of one group ({groups[0] if groups else ''!r}): fill the group column of dataset.annotations (who, "
            f"which camera, which place) and build the shards again, or set evaluation.every_steps=0"
        )
    shown = Counter(zip((record.group for record in records), labels, strict=True))
    left = Counter(labels)
    if settings.validation_groups:
        return chosen(groups, settings.validation_groups, shown, left)
    wanted = max(1, round(settings.validation_share * len(groups)))
    held: list[str] = []
    for index in permutation(len(groups), seed, *HOLDOUT_KEY):
        group = groups[index]
        own = Counter({label: count for (name, label), count in shown.items() if name == group})
        if len(held) < wanted and all(left[label] > count for label, count in own.items()):
            held.append(group)
            left -= own
    if not held:
        raise DataError(
            f"evaluation.validation_share={settings.validation_share:g} finds no group to hold out: each of the "
            f"{len(groups)} groups of training clips is the only one with some action; set evaluation.every_steps=0, "
            f"or film these actions with more people"
        )
    return frozenset(held)


def chosen(
    groups: Sequence[str], names: Sequence[str], shown: Counter[tuple[str, int]], left: Counter[int]
) -> frozenset[str]:
    """The named groups, if they are groups of training clips and leave clips of every class to train on."""
    if unknown := sorted(set(names) - set(groups)):
        raise DataError(
            f"evaluation.validation_groups lists {', '.join(map(repr, unknown))}; the groups of the training clips are "
            f"{', '.join(groups)}"
        )
    for (group, label), count in shown.items():
        if group in names:
            left[label] -= count
    if gone := sum(count <= 0 for count in left.values()):
        raise DataError(
            f"evaluation.validation_groups={list(names)} hold all training clips of {gone} actions; hold out fewer or "
            f"other groups of {', '.join(groups)}"
        )
    return frozenset(names)
