"""Words that validation asks for: training draws none of them, and nothing of a novel action decides which they are."""

from itertools import chain

import pytest

from ace_dist.concepts import Action, ConceptSampler, SynonymTrees
from ace_dist.concepts.held_out_words import RUNS, held_out_label_sets, hold_out_words
from ace_dist.config import assets_dir
from ace_dist.utils.errors import LabelError

BASE = [Action(*pair.split()) for pair in ("cut cone", "drop ring", "stir cup", "tap pin", "shake cup", "roll wheel")]
VERBS = [action.verb for action in BASE]


@pytest.fixture(scope="module")
def trees():
    return SynonymTrees.load(assets_dir() / "synonyms" / "tabletop.json")


def without_words(trees, share, seed):
    held = hold_out_words(trees, VERBS, share, seed)
    return held, trees.without(set(chain(*held.values())), VERBS)


@pytest.mark.parametrize("seed", range(20))
def test_training_can_draw_no_held_out_word(trees, seed):
    """Whatever a sampler may ever draw (its `phrases`): fixed, random and shadow labels, of both orders."""
    held, left = without_words(trees, 0.4, seed)
    verbs = {phrase.rsplit(" ", 1)[0] for phrase in ConceptSampler(BASE, left, seed).phrases}
    assert verbs.isdisjoint(chain(*held.values()))
    assert all(len(words) == 3 and root not in words for root, words in held.items())
    assert all(set(words) < set(trees.children(root)) for root, words in held.items())
    assert all(set(left.children(root)) == set(trees.children(root)) - set(held[root]) for root in VERBS)
    assert left.children("spin") == trees.children("spin"), "the trees of other verbs stay whole"


def test_words_of_two_base_verbs_train(trees):
    """agitate is a synonym of shake and of stir: under it no clip could be told right or wrong."""
    assert "agitate" in trees.children("shake") and "agitate" in trees.children("stir")
    for seed in range(40):
        assert "agitate" not in chain(*hold_out_words(trees, VERBS, 0.9, seed).values())


def test_novel_verbs_have_no_part_in_the_choice(trees):
    """The same words where the file has no tree of a novel verb, and another seed takes others."""
    novel = ("spin", "hammer", "insert", "wipe", "flip", "pull")
    nodes = {
        root: {child: trees.children(root, child) for child in trees.children(root)}
        for root in trees.roots
        if root not in novel
    }
    held = hold_out_words(trees, VERBS, 0.4, 3)
    assert hold_out_words(SynonymTrees(nodes), VERBS, 0.4, 3) == held
    assert hold_out_words(trees, VERBS, 0.4, 4) != held
    alone = hold_out_words(trees, ["cut"], 0.4, 3)["cut"]
    assert alone == held["cut"], "one verb's words do not depend on the others'"


def test_label_sets_show_every_held_out_word_and_no_label_twice(trees):
    for seed in range(20):
        held = hold_out_words(trees, VERBS, 0.4, seed)
        sets = held_out_label_sets(BASE, held, seed)
        assert len(sets) == RUNS
        for labels in sets:
            assert len(set(labels.labels)) == len(BASE)
            assert labels.phrases == tuple((label,) for label in labels.labels), "words are not averaged"
        for column, action in enumerate(BASE):
            shown = {labels.labels[column] for labels in sets}
            assert shown == {str(action.with_verb(word)) for word in held[action.verb]}


def test_a_tree_without_a_word_of_its_own_is_named():
    trees = SynonymTrees({"cut": {"cut": ["cut"]}, "tap": {"tap": ["tap"], "pat": ["pat"]}})
    with pytest.raises(LabelError, match="tree of 'cut'.*validation_words=0"):
        hold_out_words(trees, ["cut", "tap"], 0.4, 0)
    assert hold_out_words(trees, ["tap"], 0.1, 0) == {"tap": ("pat",)}, "one at least"
