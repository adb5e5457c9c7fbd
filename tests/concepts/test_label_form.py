"""One label in many spellings is one label, whichever door it comes in by."""

import json
from pathlib import Path
from types import MappingProxyType

import pytest

from ace_dist.classifier import Classification
from ace_dist.concepts import Action, SynonymTrees, free_labels, load_class_table, load_srt, split_classes, srt_labels
from ace_dist.concepts.actions import base_forms, normalise
from ace_dist.concepts.trees import near
from ace_dist.concepts.wordnet import WordNet, find_wordnet
from ace_dist.data.annotations.csv import read_csv
from ace_dist.data.annotations.frames import LabelledFrames, Recording, check_labels
from ace_dist.data.segments import Segment
from ace_dist.data.shards import ClipRecord, action_counts
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.sheet import read_sheet
from ace_dist.tools.synonyms.wordnet import WordNetSource
from ace_dist.utils.errors import LabelError

LABEL, VERB, OBJECT = "pick up side panel", "pick up", "side panel"
SPELLINGS = [
    ("pick up", "side panel"),
    ("Pick Up", "Side  Panel"),
    ("Pick_up", "side_panel"),
    ("pick-up", "side-panel"),
    (" PICK\tup ", "side\u00a0panel"),
    ("pick\u2011up\u200b", "side\u2010panel\ufeff"),
    ("\uff30ick up", "side __panel"),
]
TREES = {
    VERB: {VERB: [VERB, "lift"], "lift": ["lift", "raise"]},
    "spin": {"spin": ["spin", "turn"], "turn": ["turn", "roll"]},
}


def clip(verb: str, object_: str) -> ClipRecord:
    return ClipRecord("k", "s.tar", 0, 1, 1, 1.0, 1, 1, 0.0, 1.0, verb, object_, "train", "", "")


@pytest.mark.parametrize(("verb", "object_"), SPELLINGS)
def test_every_door_knows_every_spelling(tmp_path: Path, verb: str, object_: str):
    """Readers, shards, class lists, trees, label sets of tests, free labels, results and synonym tools."""
    label, trees = f"{verb} {object_}", SynonymTrees(TREES)
    action = Action(verb, object_)
    assert str(action) == normalise(label) == LABEL and Action.parse(label, verbs=verb) == action

    # Readers: a CSV file, and labels that a class table explains.
    (tmp_path / "a.mp4").touch()
    rows = f'video,start_s,end_s,verb,object,split,group\na.mp4,0,1,"{verb}","{object_}",train,g\n'
    (tmp_path / "a.csv").write_text(rows, encoding="utf-8")
    (segment,) = read_csv(tmp_path / "a.csv").segments()
    assert (segment.verb, segment.object) == (VERB, OBJECT)
    made = Segment("id", "", 0, 1, verb, object_, "train")
    assert (made.verb, made.object) == (VERB, OBJECT)
    (tmp_path / "classes.json").write_text(json.dumps({"actions": {label: [verb, object_]}, "not_actions": ["N_A"]}))
    table = load_class_table(tmp_path / "classes.json")
    assert table.action(LABEL) == table.action(label) == action and "n-a" in table and table.action("n a") is None
    check_labels([Recording("r", tmp_path, "", "train", (LabelledFrames(0, 5, LABEL, "x"),))], table)

    # Shards of an earlier version, and the classes that they give.
    assert action_counts([clip(verb, object_), clip(VERB, OBJECT)])["train"] == {LABEL: 2}
    base = [Action("spin", "block"), Action("spin", "nut")]
    assert split_classes([*base, action], [*base, action], label).novel == (action,)

    # Trees, label sets of the SRT, free labels and results.
    spelt = SynonymTrees({verb: {"Pick_Up": (verb, "LIFT"), " lift": ["lift", "raise"]}, "spin": TREES["spin"]})
    assert list(spelt.nodes(VERB)) == list(trees.nodes(VERB)) and verb in trees
    assert trees.children(verb, "LIFT") == ("lift", "raise") and trees.node(verb, "Lift") == ("lift", "raise")
    trees.require(verb)
    (tmp_path / "srt.json").write_text(json.dumps({"runs": [{label: label, "Spin_Block": "turn block"}]}))
    (labels,) = srt_labels([action, base[0]], load_srt(tmp_path / "srt.json"), trees, leaves=True, source="srt")
    assert labels.labels == (LABEL, "turn block") and labels.phrases[0] == (LABEL, f"lift {OBJECT}")
    free, _ = free_labels([label, "spin nut"], trees)
    assert (free.label, free.phrases, free.tree) == (LABEL, (LABEL, f"lift {OBJECT}"), VERB)
    assert Classification(MappingProxyType({LABEL: 1.0}), (), 1)[label] == 1.0

    # Tools that make trees.
    (tmp_path / "labels.txt").write_text(label + "\n", encoding="utf-8")
    (tmp_path / "actions.csv").write_text(f'verb,object\n"{verb}","{object_}"\n', encoding="utf-8")
    for source in (
        [label],
        str(tmp_path / "labels.txt"),
        str(tmp_path / "actions.csv"),
        str(tmp_path / "classes.json"),
    ):
        assert read_actions(source).actions == (action,)
    sheet = f'verb,child,synonym 1\n"{verb}","{verb}",Lift\n"{verb}",LIFT,raise\n'
    (tmp_path / "sheet.csv").write_text(sheet, encoding="utf-8")
    assert read_sheet(tmp_path / "sheet.csv") == {VERB: {VERB: [VERB, "lift"], "lift": ["lift", "raise"]}}
    picked = WordNetSource(None, {verb: "pick_up.v.01"}, {VERB})
    assert picked.fill((VERB,), action, 2).verbs


def test_a_plain_text_is_a_list_of_one():
    """Where Python would take its letters."""
    trees = SynonymTrees(TREES)
    trees.require("spin")
    with pytest.raises(LabelError, match="give at least two labels"):
        free_labels("spin block", trees)
    assert Action.parse("lay down panel", verbs="lay down").verb == "lay down"


@pytest.mark.parametrize(
    ("inflected", "base"),
    [("opening", "open"), ("putting", "put"), ("placing", "place"), ("pressing", "press"), ("rolling", "roll"),
     ("picks up", "pick up"), ("fixes", "fix"), ("tightened", "tighten"), ("carries", "carry"),
     ("picking-up", "pick up")],
)  # fmt: skip
def test_an_inflected_verb_gets_its_base_form_as_a_hint(inflected: str, base: str):
    """From WordNet and from a tree file; it is offered and never put in."""
    assert near(inflected, [base, "hammer"]) == f"; nearest: {base!r}"
    wordnet = WordNet(find_wordnet())
    if base.split()[0] not in wordnet.index or inflected.split()[0] in wordnet.index:
        return
    with pytest.raises(LabelError, match=f"did you mean {base!r}") as error:
        wordnet.sense(normalise(inflected))
    name = f"{base.replace(' ', '_')}.v.01"
    assert name in str(error.value) and wordnet.sense(inflected, name)  # the advice works


def test_the_base_form_of_a_base_form_is_itself():
    assert base_forms("spin")[0] == "spin" and base_forms("Pick_Up") == ["pick up"]


def test_two_spellings_of_one_verb_in_a_tree_file_or_of_one_label_in_others_are_refused(tmp_path: Path):
    with pytest.raises(LabelError, match="'pick up' and 'Pick_Up', which are one verb"):
        SynonymTrees({"pick up": {"pick up": ["pick up"]}, "Pick_Up": {"pick up": ["pick up"]}})
    path = tmp_path / "srt.json"
    path.write_text(json.dumps({"runs": [{"spin block": "a b", "Spin-Block": "c d"}]}))
    with pytest.raises(LabelError, match="run 1 lists 'spin block' twice"):
        load_srt(path)
    path.write_text(json.dumps({"actions": {"Spin": ["spin", "block"], "spin": ["turn", "block"]}, "not_actions": []}))
    with pytest.raises(LabelError, match="'spin' twice"):
        load_class_table(path)
    with pytest.raises(LabelError, match="occur once"):
        free_labels(["spin block", "Spin-Block"], None)
