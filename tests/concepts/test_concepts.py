"""Actions, synonym trees, the sampler of ACE Eq. 4, 6, 7, and label sets."""

import collections
import json
import random

import pytest

from ace_dist.concepts import (
    Action,
    ConceptSampler,
    SynonymTrees,
    free_labels,
    load_srt,
    root_labels,
    shadow_pool,
    srt_labels,
    words_without_node,
)
from ace_dist.utils.errors import LabelError, UserError


def tree(root, *synonyms):
    """A tree whose nodes are the synonyms, each with second-order children of its own."""
    verbs = (root, *synonyms)
    return {verb: [verb, *(f"{verb} x{i}" for i in range(len(synonyms)))] for verb in verbs}


NODES = {
    "spin": tree("spin", "rotate", "twirl"),
    "lift": tree("lift", "raise", "rotate"),  # shares "rotate" with spin
    "put down": tree("put down", "set down", "lay"),
}
ACTIONS = [Action("spin", "block"), Action("lift", "block"), Action("spin", "pin"), Action("put down", "side panel")]


@pytest.mark.parametrize(
    ("label", "verbs", "verb", "rest"),
    [
        ("spin block", (), "spin", "block"),
        ("lay down side panel", ("lay", "lay down"), "lay down", "side panel"),
        ("lay down side panel", ("lay",), "lay", "down side panel"),
        ("pick up item", (), "pick up", "item"),
        ("Position_drawer right  side up", (), "position", "drawer right side up"),
        ("align leg screw with table thread", (), "align", "leg screw with table thread"),
        ("insert in box", (), "insert", "in box"),
    ],
)
def test_labels_split_at_their_verb(label, verbs, verb, rest):
    """Phrasal verbs stay whole when listed or marked by a particle; the object keeps its prepositions."""
    action = Action.parse(label, verbs=verbs)
    assert (action.verb, action.object) == (verb, rest)
    assert str(action) == f"{verb} {rest}"


@pytest.mark.parametrize("label", ["", "  ", "spin", "Pick_up", "put down"])
def test_a_label_without_object_is_refused(label):
    """The message says what to write instead."""
    with pytest.raises(LabelError, match="empty|no object"):
        Action.parse(label)


def test_trees_survive_the_disk(tmp_path):
    """Saving and loading keeps every node, its order and the provenance."""
    trees = SynonymTrees(NODES, {"source": "hand"})
    trees.save(tmp_path / "trees.json")
    again = SynonymTrees.load(tmp_path / "trees.json")
    assert again.roots == trees.roots and again.meta == {"source": "hand"}
    for root in NODES:
        assert again.children(root) == tuple(NODES[root])
        for child in NODES[root]:
            assert again.children(root, child) == tuple(NODES[root][child])


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"spin": {"rotate": ["rotate"]}}, "'spin' is not among its own children"),
        ({"spin": {"spin": ["spin"], "rotate": ["turn"]}}, "'rotate' is not among its own children"),
        ({"spin": {"spin": ["spin", "turn", "turn"]}}, "'turn' occurs more than once"),
        ({"spin": {"spin": ["spin", "pick up", "Pick_Up"]}}, "'pick up' occurs more than once"),
        ({"spin": {"spin": ["spin"]}, "Spin": {"spin": ["spin"]}}, "'spin' and 'Spin', which are one verb"),
        ({"spin": {"spin": ["spin", " _ "]}}, "' _ ' where a verb is expected"),
        ({"spin": {"spin": ["spin", 5]}}, "5 where a verb is expected"),
        ({}, "holds no tree"),
    ],
)
def test_broken_trees_are_refused(tmp_path, nodes, words):
    """The message names the file and the node."""
    path = tmp_path / "trees.json"
    path.write_text(json.dumps(nodes))
    with pytest.raises(LabelError, match=words) as error:
        SynonymTrees.load(path)
    assert str(path) in str(error.value)


def test_unreadable_tree_files(tmp_path):
    """Missing file, broken JSON, repeated key, wrong type: each names the file."""
    path = tmp_path / "trees.json"
    with pytest.raises(LabelError, match=r"does not exist.*dataset\.synonyms"):
        SynonymTrees.load(path)
    for text, words in (
        ("{", "is not valid JSON"), ("[]", "must hold one JSON object, found list"),
        ('{"a": {}, "a": {}}', "'a' stands twice"), ('{"_meta": 5}', "_meta must be an object"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(LabelError, match=words):
            SynonymTrees.load(path)


def test_m_counts_the_parent_or_not():
    """M cuts each level to the parent and its first synonyms, in both readings; too large an M is an error."""
    trees = SynonymTrees(NODES, size=2, grand_size=1)
    assert trees.children("spin") == ("spin", "rotate")
    assert trees.children("spin", "rotate") == ("rotate",)
    assert SynonymTrees(NODES, size=2, include_parent=False).children("spin") == ("spin", "rotate", "twirl")
    assert SynonymTrees(NODES, grand_size=2).children("spin", "twirl") == ("twirl", "twirl x0")
    with pytest.raises(LabelError, match="has 2 synonyms besides itself, M asks for 4"):
        SynonymTrees(NODES, size=5)


def test_missing_trees_are_named_together():
    """A class list with unknown verbs names all of them, the file, and the nearest known verb."""
    with pytest.raises(LabelError, match=r"'spinn', 'weld'.*nearest: 'spin'"):
        ConceptSampler([Action("weld", "pin"), Action("spinn", "pin")], SynonymTrees(NODES), 0)


def test_draw_is_a_pure_function_of_seed_and_step():
    """Any rank, in any order, at any time, draws the same; other seeds and steps draw otherwise."""
    one, two = (ConceptSampler(ACTIONS, SynonymTrees(NODES), 3) for _ in range(2))
    steps = list(range(40))
    forward = [one.draw(step) for step in steps]
    random.shuffle(steps)
    assert all(two.draw(step) == forward[step] for step in steps)
    other = ConceptSampler(ACTIONS, SynonymTrees(NODES), 4)
    assert any(other.draw(step) != forward[step] for step in range(40))
    assert len({draw.random for draw in forward}) > 5


def drawn_verb(phrases, action):
    """The verb node whose second-order children these phrases are: its own name stands among them first."""
    return phrases[0].removesuffix(" " + action.object)


def test_draws_follow_equations_4_6_and_7():
    """Root children in the fixed part; one shared verb per root; shadows never from the own tree; objects kept."""
    trees = SynonymTrees(NODES)
    sampler = ConceptSampler(ACTIONS, trees, 0)
    draws = collections.Counter()
    for step in range(600):
        draw = sampler.draw(step)
        for k, action in enumerate(ACTIONS):
            assert draw.fixed[k] == tuple(f"{verb} {action.object}" for verb in trees.children(action.verb))
            positive = drawn_verb(draw.random[k], action)
            assert positive in trees.children(action.verb)
            expected = tuple(f"{v} {action.object}" for v in trees.children(action.verb, positive))
            assert draw.random[k] == expected
            wrong = drawn_verb(draw.shadow[k], action)
            assert wrong not in trees.children(action.verb)
            assert all(phrase.endswith(" " + action.object) for phrase in draw.shadow[k])
            draws[k, positive] += 1
        assert drawn_verb(draw.random[0], ACTIONS[0]) == drawn_verb(draw.random[2], ACTIONS[2])
    for k, action in enumerate(ACTIONS):
        for verb in trees.children(action.verb):
            assert 130 < draws[k, verb] < 270  # uniform over 3 children: 200 expected, six standard deviations wide


def test_shadow_pool_is_the_union_less_the_own_children():
    """Eq. 6 by hand on a tree pair that shares 'rotate'."""
    trees = SynonymTrees(NODES)
    verbs = [verb for _, verb in shadow_pool("spin", ["spin", "lift", "put down"], trees)]
    assert sorted(verbs) == ["lay", "lift", "put down", "raise", "set down"]
    assert [verb for _, verb in shadow_pool("lift", ["spin", "lift"], trees)] == ["spin", "twirl"]


def test_shadow_options():
    """A shadow may equal a base or a novel class by default and may not when asked, in no phrase that is averaged.

    An empty pool is an error with a way out.
    """
    trees = SynonymTrees(NODES)
    actions = [Action("spin", "block"), Action("lift", "block")]
    plain = ConceptSampler(actions, trees, 0, leaf_augmentation=False)
    strict = ConceptSampler(actions, trees, 0, leaf_augmentation=False, exclude_real_classes=True)
    assert any(plain.draw(step).shadow[0] == ("lift block",) for step in range(100))
    assert all(strict.draw(step).shadow[0] == ("raise block",) for step in range(100))
    for novel, left in (("raise block", {"lift"}), ("lift x1 block", {"raise"}), ("lift pin", {"lift", "raise"})):
        averaged = ConceptSampler(actions, trees, 0, unread=[novel])
        drawn = {phrase for step in range(100) for phrase in averaged.draw(step).shadow[0]}
        assert novel not in drawn and {phrase.split()[0] for phrase in drawn} == left
    with pytest.raises(LabelError, match=r"method\.exclude_novel_labels=false"):
        ConceptSampler(actions, trees, 0, unread=["raise block", "lift block"])
    alone = ConceptSampler([Action("spin", "block"), Action("spin", "pin")], trees, 0, shadow_negatives=False)
    assert alone.draw(0).shadow == ()


def test_one_verb_for_all_actions():
    """Eq. 6 is empty then: a shadow negative keeps the verb, or a synonym, and takes the object of another action."""
    trees = SynonymTrees({**NODES, "rotate": {"rotate": list(NODES["spin"]), "spin": ["spin"], "twirl": ["twirl"]}})
    actions = [Action("spin", text) for text in ("screw into hole", "screw on table", "nut on table")]
    sampler = ConceptSampler(actions, trees, 0)
    assert sampler.wrong_objects == actions
    drawn = {phrases for step in range(300) for phrases in sampler.draw(step).shadow[:1]}
    nodes = {tuple(f"{verb} {text}" for verb in node) for node in NODES["spin"].values()
             for text in ("screw on table", "nut on table")}  # fmt: skip
    assert drawn == nodes
    strict = ConceptSampler(actions, trees, 0, exclude_real_classes=True, leaf_augmentation=False)
    assert all("spin" not in phrase.split() for step in range(100) for (phrase,) in strict.draw(step).shadow)

    # A class with a wrong verb keeps to the paper; one verb and one object leave nothing.
    mixed = ConceptSampler([*actions, Action("lift", "nut")], trees, 0)
    assert mixed.wrong_objects == [] and not any("spin" in p for p in mixed.draw(0).shadow[0])
    same = {verb: {"spin": ["spin"], "turn": ["turn"]} for verb in ("spin", "turn")}
    with pytest.raises(LabelError, match=r"extend the trees, or set method\.shadow_negatives=false"):
        ConceptSampler([Action("spin", "pin"), Action("turn", "pin")], SynonymTrees(same), 0)


def test_independent_draws_and_plain_labels():
    """Classes of one root verb can differ when drawn alone; without leaf augmentation a class has one phrase."""
    free = ConceptSampler(ACTIONS, SynonymTrees(NODES), 0, independent_draws=True)
    pairs = {
        (drawn_verb(d.random[0], ACTIONS[0]), drawn_verb(d.random[2], ACTIONS[2])) for d in map(free.draw, range(80))
    }
    assert len({a == b for a, b in pairs}) == 2
    plain = ConceptSampler(ACTIONS, SynonymTrees(NODES), 0, leaf_augmentation=False).draw(5)
    assert all(len(group) == 1 for part in (plain.fixed, plain.random, plain.shadow) for group in part)


def test_phrases_cover_every_draw_and_nothing_twice():
    """What the text feature cache encodes is exactly what draws can ask for."""
    sampler = ConceptSampler(ACTIONS, SynonymTrees(NODES), 9)
    reachable = set(sampler.phrases)
    asked = set()
    for draw in map(sampler.draw, range(3000)):
        for part in (draw.fixed, draw.random, draw.shadow):
            asked.update(phrase for group in part for phrase in group)
    assert asked == reachable and len(sampler.phrases) == len(reachable)


def test_repeated_classes_are_refused():
    """Two equal classes would compete for the same videos."""
    with pytest.raises(UserError, match="'spin block' occur more than once"):
        ConceptSampler([Action("spin", "block"), Action("spin", "block")], SynonymTrees(NODES), 0)


def test_srt_sets(tmp_path):
    """Root run, synonym run, unknown verb: each averaged over the right node, or alone; errors name run and class."""
    trees = SynonymTrees(NODES)
    actions = [Action("spin", "block"), Action("put down", "side panel")]
    runs = [
        {"spin block": "spin block", "put down side panel": "put down side panel"},
        {"spin block": "twirl block", "put down side panel": "lower side panel"},
    ]
    path = tmp_path / "srt.json"
    path.write_text(json.dumps({"runs": runs}))
    sets = srt_labels(actions, load_srt(path), trees, True, "srt.json", policy="alone")
    assert sets[0] == root_labels(actions, trees, leaves=True)
    twirl = ("twirl block", "twirl x0 block", "twirl x1 block")
    assert sets[1].phrases == (twirl, ("lower side panel",))
    assert words_without_node(actions, runs, trees, "srt.json") == {"lower (put down)": [2]}
    alike = srt_labels(actions, runs, trees, True, "srt.json")  # by default a set is scored in one way
    assert alike[0] == sets[0] and alike[1].phrases == (("twirl block",), ("lower side panel",))
    known = SynonymTrees(NODES, words={"put down": {"lower": ["lower", "let down", "sink"]}})
    lower = tuple(f"{verb} side panel" for verb in known.words["put down"]["lower"])
    assert srt_labels(actions, runs, known, True, "srt.json")[1].phrases == (twirl, lower)
    whole = srt_labels(actions, runs, trees, True, "srt.json", policy="wordnet")[1].phrases
    assert whole[0] == twirl and whole[1][0] == "lower side panel" and len(set(whole[1])) == 3
    plain = srt_labels(actions, runs, trees, False, "srt.json")
    assert plain[1].phrases == (("twirl block",), ("lower side panel",))
    with pytest.raises(LabelError, match="run 1 has no label for 'lift block'"):
        srt_labels([Action("lift", "block")], runs, trees, True, "srt.json")
    with pytest.raises(LabelError, match="does not exist"):
        load_srt(tmp_path / "none.json")


def test_free_labels_say_what_they_average():
    """A verb of the trees brings its node; another makes all stand alone, or itself, or asks WordNet."""
    typed, trees = ["Spin  Block", "frobnicate pin", "put down cup", "twirl cup"], SynonymTrees(NODES)
    assert [(label.tree, label.phrases) for label in free_labels(typed, trees)] == [
        (None, (text,)) for text in ("spin block", "frobnicate pin", "put down cup", "twirl cup")
    ]
    labels = free_labels(typed, trees, policy="alone")
    assert [label.tree for label in labels] == ["spin", None, "put down", "spin"]
    assert labels[0].phrases == ("spin block", "rotate block", "twirl block")
    assert labels[1].phrases == ("frobnicate pin",)
    assert labels[3].phrases == ("twirl cup", "twirl x0 cup", "twirl x1 cup")
    with pytest.raises(LabelError, match="labels_without_node=wordnet.*'frobnicate'"):
        free_labels(typed, trees, policy="wordnet")
    _, hammered, whittled = free_labels(["spin block", "hammer pin", "whittle pin"], trees, policy="wordnet")
    assert hammered.tree == "makers.json" and hammered.phrases == ("hammer pin", "pound pin", "beat pin")
    turned = free_labels(["whittle pin", "hammer pin", "spin block"], trees, policy="wordnet")
    assert [len(label.phrases) for label in turned] == [3, 3, 3], "as many words, wherever a label stands"
    assert whittled.tree == "WordNet" and whittled.phrases[0] == "whittle pin" and len(set(whittled.phrases)) == 3
    for wrong in (["spin block"], [], ["a b", "a  b"], ["a b", ""]):
        with pytest.raises(LabelError):
            free_labels(wrong, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weld": {"join": ["join"]}}, "_words > 'weld'.*no tree of that verb"),
        ({"spin": {"twirl": ["twirl", "reel"]}}, "twirl has a node in the tree already"),
        ({"spin": {"reel": ["whirl"]}}, "the parent 'reel' is not among its own children"),
        ({"spin": ["reel"]}, "_words must be an object"),
    ],
)
def test_words_beside_the_trees_are_checked(words, message):
    """A node that nothing finds, or that stands twice, is a slip of the person who wrote it."""
    with pytest.raises(LabelError, match=message):
        SynonymTrees(NODES, words=words)


def test_a_test_finds_nodes_that_the_training_cut(tmp_path):
    """M = 1 trains on the root alone; a label of the test still has its node, cut to the M of the test."""
    SynonymTrees(NODES, words={"spin": {"reel": ["reel", "whirl", "gyrate"]}}).save(tmp_path / "trees.json")
    trees = SynonymTrees.load(tmp_path / "trees.json", size=1, grand_size=2)
    assert trees.children("spin") == ("spin",) and "reel" not in trees.verbs()
    assert trees.node("spin", "twirl") == ("twirl", "twirl x0") and trees.node("spin", "reel") == ("reel", "whirl")
    assert trees.vocabulary("spin") == (*SynonymTrees(NODES).vocabulary("spin"), "reel", "whirl", "gyrate")
    assert trees.node("spin", "lift") == ("lift",), "the root of another tree stands for that"
    assert trees.node("spin", "frobnicate") is trees.node("weld", "frobnicate") is None
