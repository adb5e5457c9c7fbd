"""Validation holds out whole groups of training clips, and only what training can spare."""

import random
from types import SimpleNamespace

import pytest

from ace_dist.config import EvaluationConfig, load_config
from ace_dist.data.sampling import held_out_groups
from ace_dist.utils.errors import ConfigError, DataError


def clips(**shown):
    """`clips(ann=[0, 1])`: records by group, each with its class; in a random order."""
    pairs = [(SimpleNamespace(group=group), label) for group, labels in shown.items() for label in labels]
    random.shuffle(pairs)
    return [record for record, _ in pairs], [label for _, label in pairs]


PEOPLE = {f"person-{number}": [0, 1, 2] for number in range(20)}


def test_nothing_is_held_out_unless_something_looks():
    """With `every_steps` 0 the training clips are what they always were, also of one group."""
    assert held_out_groups(*clips(ann=[0, 1]), EvaluationConfig(), 0) == frozenset()


def test_the_named_groups_are_held_out():
    """As the setting says; another name is refused with the names there are."""
    settings = EvaluationConfig(every_steps=5, validation_groups=["ben"])
    assert held_out_groups(*clips(ann=[0, 1], ben=[1]), settings, 0) == {"ben"}
    with pytest.raises(DataError, match="'ben'; the groups of the training clips are ann, carl"):
        held_out_groups(*clips(ann=[0, 1], carl=[1]), settings, 0)


def test_a_class_keeps_clips_to_train_on():
    """Named groups that take all clips of a class are refused; drawn ones never do."""
    settings = EvaluationConfig(every_steps=5, validation_groups=["ann", "ben"])
    with pytest.raises(DataError, match="hold all training clips of 1 actions"):
        held_out_groups(*clips(ann=[0, 1], ben=[0], carl=[1]), settings, 0)
    for seed in range(20):
        drawn = held_out_groups(
            *clips(ann=[0, 1], ben=[0], carl=[1, 1], dora=[2]),
            EvaluationConfig(every_steps=5, validation_share=0.7),
            seed,
        )
        assert drawn and "dora" not in drawn and drawn not in ({"ann", "ben"}, {"ann", "carl"})
    with pytest.raises(DataError, match="finds no group to hold out"):
        held_out_groups(*clips(ann=[0], ben=[1]), EvaluationConfig(every_steps=5, validation_share=0.5), 0)


def test_a_draw_depends_on_the_seed_and_not_on_the_order_of_the_clips():
    """The same groups on every rank and after a resume; a fifth of twenty; other seeds choose others."""
    settings = EvaluationConfig(every_steps=5, validation_share=0.2)
    drawn = [held_out_groups(*clips(**PEOPLE), settings, seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and {len(groups) for groups in drawn} == {4} and len(set(drawn)) > 2


def test_clips_of_one_group_cannot_be_held_out():
    """As of a CSV whose group column is empty: the message says what to fill in."""
    with pytest.raises(DataError, match=r"all of them are of one group \(''\): fill the group column"):
        held_out_groups(*clips(**{"": [0, 1, 1]}), EvaluationConfig(every_steps=5, validation_share=0.2), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluation.every_steps=5"], "has nothing to look at"),
        (["evaluation.validation_share=0.2"], "hold clips out that nothing looks at"),
        (["evaluation.every_steps=5", "evaluation.validation_share=1.0"], r"must lie in \[0, 1\)"),
        (["evaluation.every_steps=-1", "evaluation.validation_share=0.5"], "must be at least 0"),
        (
            ["evaluation.every_steps=5", "evaluation.validation_share=0.5", "evaluation.validation_groups=[a]"],
            "both choose what is held out",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    """Each message names the setting to change."""
    with pytest.raises(ConfigError, match=message):
        load_config(settings)
