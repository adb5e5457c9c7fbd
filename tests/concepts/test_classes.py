"""Which actions are base and which novel, and SRT sets for a data set that brings none."""

import pytest

from ace_dist.concepts import Action, SynonymTrees, draw_srt, split_classes
from ace_dist.utils.errors import LabelError

A, B, C, D = (Action(verb, "block") for verb in ("spin", "lift", "push", "shake"))


def test_actions_without_training_clips_are_novel():
    """With dataset.novel=null the splits decide; class order is alphabetical, whatever the order of the clips."""
    classes = split_classes([B, A, A], [A, D, C, B], None)
    assert classes.base == (B, A) and classes.novel == (C, D)


def test_a_share_of_classes_of_one_verb_says_what_to_do():
    """Verbs are taken whole, so with one verb every class would be novel; a list of labels works."""
    put = [Action("put", text) for text in ("screw into hole", "screw on table", "nut on table")]
    with pytest.raises(LabelError, match=r"leaves 0 base actions.*set it to null and list .* dataset\.novel"):
        split_classes(put, put, None, novel_share=0.3)
    assert split_classes(put, put, "Put nut on-table").novel == (put[2],)


def test_listed_novel_actions_are_taken_out_of_training():
    """ATA's training split shows novel actions too: listed ones are not trained even with clips there."""
    classes = split_classes([A, B, C], [A, C], ["Push  Block"])
    assert classes.base == (B, A) and classes.novel == (C,)


@pytest.mark.parametrize(
    ("train", "test", "novel", "words"),
    [
        ([A], [B], None, "1 base action with training clips"),
        ([A, B], [A], ["weld pipe"], "'weld pipe', which no clip of the shards shows"),
        ([A, B, C], [A], ["push block"], "'push block', which has no test clip"),
        ([A, B], [A, C, D], ["push block"], "'shake block', which has no training clip and is not in dataset.novel"),
    ],
)
def test_class_lists_that_cannot_work(train, test, novel, words):
    """Each names the action and the setting."""
    with pytest.raises(LabelError, match=words):
        split_classes(train, test, novel)


def test_drawn_srt_sets(trees):
    """Ten runs, the first the root labels; first-order synonyms on the own object; no class named twice."""
    actions = [Action("drop", "block"), Action("put down", "block"), Action("spin", "pin")]  # two share "lower"
    runs = draw_srt(actions, trees)
    assert len(runs) == 10 and all(root == label for root, label in runs[0].items())
    for run in runs:
        assert list(run) == list(map(str, actions)) and len(set(run.values())) == 3
        for action in actions:
            verbs = [str(action.with_verb(verb)) for verb in trees.children(action.verb)]
            assert run[str(action)] in verbs
    assert runs == draw_srt(actions, trees) != draw_srt(actions, trees, seed=1)
    assert {run["spin pin"] for run in runs} == {"spin pin", "rotate pin", "turn pin"}
    pair = SynonymTrees({v: {v: [v, f"{v} x"], f"{v} x": [f"{v} x", v]} for v in ("lift", "pull", "push", "wipe")})
    sets = {tuple(run.values()) for run in draw_srt([Action(verb, "pin") for verb in pair.roots], pair)}
    assert len(sets) > 4, "trees of two words are shuffled again: four classes have 16 sets, not two that alternate"


def test_no_two_classes_draw_one_label():
    """Where others would take the whole tree of a class, its root label is left to it."""
    pairs = {"grab": "take", "take": "seize", "seize": "take"}
    trees = SynonymTrees({root: {root: [root, other], other: [other, root]} for root, other in pairs.items()})
    actions = [Action(verb, "pin") for verb in pairs]
    for seed in range(20):
        runs = draw_srt(actions, trees, seed=seed)
        assert all(len(set(run.values())) == len(actions) for run in runs)
