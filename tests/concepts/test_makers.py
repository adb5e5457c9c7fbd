"""Our own list of makers' verbs: large enough, well formed, honest in `_meta`, no leak of words that tests ask for."""

import json
import re

import pytest

from ace_dist.concepts import Action, ConceptSampler, load_srt
from ace_dist.concepts.actions import normalise
from ace_dist.concepts.makers import maker_node, maker_synonyms, maker_trees, phrasal_homes, split_label
from ace_dist.concepts.wordnet import VULGAR, WordNet, find_wordnet
from ace_dist.config import assets_dir, load_config
from ace_dist.tools.synonyms.diagnostics import unchanged_share
from ace_dist.utils.errors import LabelError
from ace_dist.worlds.tabletop.world import BASE_ACTIONS, NOVEL_ACTIONS

TRADES = {
    "manufacturing": "tighten torque screw unscrew rivet weld solder crimp drill deburr inspect scan palletize label",
    "kitchen": "chop slice peel stir whisk knead pour boil fry drink rinse grate season serve",
    "laboratory": "pipette aspirate centrifuge vortex titrate dilute decant incubate swab cap dispense weigh sterilize",
}


def test_it_covers_the_trades_with_four_synonyms_a_node():
    """150 verbs or more; every node of both orders has four synonyms besides its verb; no word is vulgar."""
    trees = maker_trees()
    assert len(trees.roots) >= 150 and set(" ".join(TRADES.values()).split()) <= set(trees.roots)
    assert all(len(children) >= 5 for root in trees.roots for _, children in trees.nodes(root))
    assert all(re.fullmatch(r"[a-z]+( [a-z]+){0,3}", verb) for verb in trees.verbs())
    wordnet = WordNet(find_wordnet())
    vulgar = {v for s in wordnet.senses.values() if VULGAR.search(s.gloss) for v in s.verbs if len(s.verbs) > 20}
    assert not (vulgar - {"screw", "bang", "know", "bed"}) & set(trees.verbs())
    assert "no person has revised" in trees.meta["written_by"] and trees.meta["srt_rule"]


def test_each_child_has_synonyms_of_its_own():
    """Else a drawn label averages the phrases of its root label (Eq. 4), and L_rand repeats L_fixed."""
    trees = maker_trees()
    assert max(unchanged_share(root, trees) for root in trees.roots) < 0.2
    actions = [Action(root, "part") for root in trees.roots[:12]]
    assert ConceptSampler(actions, trees, seed=0).draw(3).random


def data_set(name):
    """Base and novel actions of a data set as (verb, object), and its label sets."""
    if name == "tabletop":
        return BASE_ACTIONS, NOVEL_ACTIONS, load_srt(load_config(["experiment=demo"]).dataset.srt)
    config = load_config([f"experiment={name}_ace"])
    table = json.loads((assets_dir() / "classes" / f"{name}.json").read_text())
    novel = [words for words in table["actions"].values() if str(Action(*words)) in config.dataset.novel]
    base = [words for words in table["actions"].values() if words not in novel]
    return base, novel, load_srt(config.dataset.srt)


@pytest.mark.parametrize("name", ["ata", "gtea", "ikea", "tabletop"])
def test_no_training_reads_the_words_of_the_robustness_test(name):
    """The rule in `_meta`: the tree of a verb that trains holds at no order a verb that renames a novel class there."""
    base, novel, runs = data_set(name)
    novel_verbs = {verb for verb, _ in novel}
    words = novel_verbs | {run[f"{verb} {o}"].removesuffix(f" {o}") for run in runs for verb, o in novel}
    assert len(words) > 10
    for root in {verb for verb, _ in base} - novel_verbs:
        assert not (words - {root}) & {root, *maker_synonyms(root, root)}, root


@pytest.mark.parametrize(
    ("label", "verb"),
    [("screw in pin", "screw in"), ("put down cup", "put down"), ("turn on lamp", "turn on"),
     ("Plug_in charger", "plug in"), ("put on cap", "put"), ("put in pin", "put in"),
     ("pull through cable", "pull through"), ("insert in box", "insert"), ("press flat washer", "press"),
     ("spray paint door", "spray"), ("spin block", "spin")],
)  # fmt: skip
def test_a_phrasal_verb_of_the_list_stays_whole(label, verb):
    """With "in", "on" and "through", which alone may begin an object."""
    assert split_label(label).verb == verb and str(split_label(label)) == label.lower().replace("_", " ")


@pytest.mark.parametrize("label", ["screw in", "Turn_on", "pick up"])
def test_the_particle_of_a_verb_is_no_object(label):
    with pytest.raises(LabelError, match=f"no object after its verb '{normalise(label)}'"):
        split_label(label)


def test_a_phrasal_verb_has_synonyms_of_the_tree_where_it_is_nearest():
    """WordNet has no "screw in"; without these a label with it could not be trained."""
    assert phrasal_homes()["screw in"] == "screw" and maker_node("screw in")[0] == "screw in"
    assert "drive in" in maker_synonyms("screw in", "screw in") and maker_node("ransack") == ()
    assert all(len(maker_synonyms(verb, verb)) > 8 for verb in phrasal_homes())


@pytest.mark.parametrize("name", ["ata", "gtea", "ikea", "tabletop"])
def test_the_papers_labels_split_as_before(name):
    base, novel, _ = data_set(name)
    labels = [f"{verb} {object_}" for verb, object_ in [*base, *novel]]
    assert list(map(split_label, labels)) == list(map(Action.parse, labels))
