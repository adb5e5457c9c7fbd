"""WordNet as an offline source: the reader, the rule for senses, the ranking, and trees that train."""

import csv

import pytest

from ace_dist.concepts import ConceptSampler, SynonymTrees
from ace_dist.concepts import wordnet as module
from ace_dist.concepts.wordnet import WordNet, find_wordnet
from ace_dist.config import assets_dir
from ace_dist.tools.synonyms import BuildConfig, build
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.diagnostics import diagnose
from ace_dist.utils.errors import LabelError, UserError

# A hand-made database in wndb format. "go round" (motion) has two verbs, a way ("pirouette"), and is a way of "move".
DATA = """\
  1 a licence line
00000010 38 v 02 spin 0 go_round 0 003 @ 00000020 v 0000 ~ 00000030 v 0000 + 09999999 n 0101 01 + 02 00 | turn quickly
00000020 38 v 01 move 0 002 ~ 00000010 v 0000 ~ 00000040 v 0000 00 | change place
00000030 38 v 02 pirouette 0 McTwist 0 001 @ 00000010 v 0000 00 | spin on one foot
00000040 38 v 02 slide 0 glide 0 001 @ 00000020 v 0000 00 | move smoothly
00000050 36 v 01 spin 1 000 00 | make thread
"""
INDEX = """\
  1 a licence line
glide v 1 1 @ 1 0 00000040
go_round v 1 2 @ ~ 1 1 00000010
move v 1 1 ~ 1 1 00000020
pirouette v 1 1 @ 1 0 00000030
slide v 1 1 @ 1 1 00000040
spin v 2 2 @ ~ 2 2 00000050 00000010
"""
COUNTS = "spin%2:36:00:: 1 9\nspin%2:38:00:: 2 4\nglide%2:38:00:: 1 7\nslide%2:38:00:: 1 2\nspin%1:04:00:: 1 99\n"


@pytest.fixture
def small(tmp_path):
    """The database above, with the line ends of PyPI's copy."""
    for name, text in (("data.verb", DATA), ("index.verb", INDEX), ("cntlist.rev", COUNTS)):
        (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode())
    return WordNet(find_wordnet(str(tmp_path)))


@pytest.fixture(scope="module")
def wordnet():
    """The installed database."""
    return WordNet(find_wordnet())


def test_the_physical_sense_wins_over_a_more_frequent_one(small):
    """`spin` is tagged nine times as making thread (creation), four times as turning (motion)."""
    sense = small.sense("spin")
    assert sense.gloss == "turn quickly" and small.name("spin", sense) == "spin.v.02"
    assert small.sense("spin", "spin.v.01").gloss == "make thread"
    assert small.sense("spin round").gloss == "turn quickly", "an unlisted phrasal verb has its first word's sense"


def test_the_order_of_candidates(small):
    """Same sense, ways of doing it, what it is a way of, other ways of that by count; proper names are left out."""
    sense = small.sense("spin")
    assert [verb for verb, _ in small.children("spin", sense)] == ["go round", "pirouette", "move", "glide", "slide"]
    assert [verb for verb, _ in small.children("spin", sense, avoid={"move"})][2:] == ["glide", "slide"]
    assert dict(small.children("spin", sense))["glide"].gloss == "move smoothly", "a child keeps the sense it came from"


@pytest.mark.parametrize("name", ["spin.v.03", "spin.v.00", "spin", "float.v.01"])
def test_senses_that_do_not_exist(small, name):
    """The error names the grammar of senses."""
    with pytest.raises(LabelError, match=r"spin\.v\.01"):
        small.sense("spin", name)


def test_the_shipped_database(wordnet):
    """Facts of WordNet 3.0 that its web page shows."""
    assert len(wordnet.senses) == 13767 and len(wordnet.index) == 11529  # wnstats(7WN)
    spin = wordnet.sense("spin")
    assert (
        spin.verbs == ("spin", "spin around", "whirl", "reel", "gyrate") and wordnet.name("spin", spin) == "spin.v.01"
    )
    assert wordnet.sense("pick up").gloss == "take and lift upward"
    assert wordnet.sense("screw").gloss == "turn like a screw"  # its first sense is of another trade


@pytest.mark.parametrize(
    ("verb", "words"),
    [("spinn", "did you mean 'spin'"), ("tigten", "did you mean 'tighten'")]
    + [(verb, "it holds English ones alone") for verb in ("heben", "drehen", "visser", "girar", "поднять")],
)
def test_an_unknown_verb_is_a_typo_or_no_english(wordnet, verb, words):
    """No suggestion is better than a word of another meaning: "keen" for German "heben" (lift)."""
    with pytest.raises(LabelError, match=f"no verb '{verb}'; {words}.*senses="):
        wordnet.sense(verb)


def test_no_database_is_a_clear_error(tmp_path, monkeypatch):
    """Both ways to install one are named."""
    monkeypatch.setattr(module, "pypi_folders", list)
    monkeypatch.setattr(module, "DEBIAN", tmp_path)
    with pytest.raises(UserError, match=r"ace-dist\[wordnet\].*wordnet-base.*wordnet=FOLDER"):
        find_wordnet()
    with pytest.raises(UserError, match=f"wordnet={tmp_path} has no"):
        find_wordnet(str(tmp_path))
    for name in ("data.verb", "index.verb", "cntlist.rev"):
        (tmp_path / name).write_text("not wndb\n")
    with pytest.raises(UserError, match="wndb format"):
        WordNet(tmp_path)


TEN = "lift lid,push lever,spin wheel,insert pin,hammer nail,wipe table,shake bottle,cut rope,fold towel,open drawer"


def test_ten_actions_from_a_csv_to_trees_that_train(tmp_path):
    """One call: valid trees of the M asked for, no root verb inside another tree, every draw of the sampler works."""
    path = tmp_path / "annotations.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "verb", "object", "split"])
        writer.writerows(["x.mp4", *label.split(), "train"] for label in TEN.split(","))
    said = []
    config = BuildConfig(actions=str(path), output=str(tmp_path / "trees.json"), source="wordnet", children=6)
    result = build(config, said.append)
    first = result.path.read_bytes()
    build(config, said.append)
    assert result.path.read_bytes() == first, "nothing but the database decides"
    trees = SynonymTrees.load(result.path)
    assert len(trees.roots) == 10 and all(len(c) == 6 for root in trees.roots for _, c in trees.nodes(root))
    bad = ("root of another", "shadow pool", "most nodes")
    assert not [warning for warning in diagnose(trees).warnings if any(words in warning for words in bad)]
    assert trees.meta["senses"]["spin"] == "spin.v.01" and any("spin.v.01, revolve quickly" in line for line in said)
    sampler = ConceptSampler(read_actions(str(path)).actions, trees, seed=0)
    reachable = set(sampler.phrases)
    for step in range(20):
        draw = sampler.draw(step)
        assert {phrase for group in (*draw.random, *draw.shadow) for phrase in group} <= reachable


def test_a_sense_that_the_user_picks(tmp_path):
    """It shapes the tree; a name for a verb that no action has is an error; an unknown verb is reported alone."""
    config = BuildConfig(
        actions=["lay down lid", "spin block"], output=str(tmp_path / "t.json"), source="wordnet", children=3
    )
    config.senses = {"lay down": "put_down.v.01"}
    trees = SynonymTrees.load(build(config).path)
    assert "put down" in trees.children("lay down") and trees.meta["senses"]["lay down"] == "put_down.v.01"
    config.senses = {"twirl": "spin.v.01"}
    with pytest.raises(UserError, match="'twirl', which no action begins with"):
        build(config)
    config.senses, config.actions = {}, ["defrobnicate lid", "spin block"]
    result = build(config)
    assert list(result.missing) == ["defrobnicate"] and SynonymTrees.load(result.path).roots == ("spin",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "video,label\nx,spin block\n", "column verb, object is missing; the header has video, label"),
        ("a.csv", "verb,object\nspin,block\nlift,\n", "line 3.*no object"),
        ("a.txt", "# comment\n\nspin\n", "line 3.*no object"),
        ("a.txt", "", "holds no action"),
        ("a.json", '{"spin": "block"}', "does not read as expected; actions needs"),
        ("a.json", '{"actions": {"SIL": ["", "hands"]}}', "has no verb"),
    ],
)
def test_broken_action_files(tmp_path, name, text, message):
    """File and line are named."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_actions(str(tmp_path / name))


def test_action_files(tmp_path):
    """A text file and a CSV with a byte order mark, spaces in its header and a quoted line break."""
    (tmp_path / "a.txt").write_text("# mine\nspin block\nlay down  side panel\nspin block\n")
    listed = read_actions(str(tmp_path / "a.txt"))
    assert [str(action) for action in listed.actions] == ["spin block", "lay down side panel"]
    assert list(listed.by_verb()) == ["spin", "lay down"]
    (tmp_path / "b.csv").write_text(
        'note, verb ,object,split\n"two\nlines",spin,block,train\n,spin,block,test\n', "utf-8-sig"
    )
    both = read_actions(str(tmp_path / "b.csv"))
    assert (
        len(both.actions) == 1 and both.splits[both.actions[0]] == {"train", "test"} and both.base_verbs() == {"spin"}
    )
    classes = read_actions(str(assets_dir() / "classes" / "ata.json"))
    assert len(classes.actions) == 15 and classes.by_verb()["fasten"].object == "screw"
