"""WordNet as an offline source: the reader, the rule for senses, the ranking, and trees that train."""

import csv
import re

import pytest

from ace_dist.cli import execute
from ace_dist.concepts import ConceptSampler, SynonymTrees
from ace_dist.concepts import wordnet as module
from ace_dist.concepts.wordnet import WordNet, find_wordnet
from ace_dist.config import assets_dir, parse_settings
from ace_dist.tools.synonyms import BuildConfig, build
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.diagnostics import diagnose
from ace_dist.utils.errors import LabelError, UserError

# A hand-made database in wndb format. "go round" (motion) has two verbs, a way ("pirouette"), and is a way of "move".
# Frame 8 takes an object, 2 none; of "go round" and "slide" only one verb has it.
DATA = """\
  1 a licence line
00000010 38 v 02 spin 0 go_round 0 003 @ 00000020 v 0000 ~ 00000030 v 0000 + 09999999 n 0101 02 + 02 00 + 08 01 | turn
00000020 38 v 01 move 0 002 ~ 00000010 v 0000 ~ 00000040 v 0000 01 + 08 00 | change place; "move it"
00000030 38 v 02 pirouette 0 McTwist 0 001 @ 00000010 v 0000 00 | spin on one foot
00000040 38 v 02 slide 0 glide 0 001 @ 00000020 v 0000 01 + 08 02 | move smoothly
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
COUNTS = """\
spin%2:36:00:: 1 9
spin%2:38:00:: 2 4
glide%2:38:00:: 1 7
slide%2:38:00:: 1 2
spin%1:04:00:: 1 99
move%2:38:00:: 1 1
"""


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
    assert sense.definition == "turn" and small.name("spin", sense) == "spin.v.02"
    assert small.sense("spin", "spin.v.01").gloss == "make thread"
    assert small.sense("move").definition == "change place", "without the example"
    assert small.sense("spin round") is sense, "an unlisted phrasal verb has its first word's sense"


def test_the_order_of_candidates(small):
    """Same sense, ways of doing it, what it is a way of, other ways of that by count; proper names are left out."""
    sense = small.sense("spin")
    every = [verb for verb, _ in small.children("spin", sense, suspicious=True)]
    assert every == ["go round", "pirouette", "move", "glide", "slide"]
    assert [verb for verb, _ in small.children("spin", sense, {"move"}, suspicious=True)][2:] == ["glide", "slide"]
    assert dict(small.children("spin", sense))["glide"].gloss == "move smoothly", "a child keeps the sense it came from"


def test_suspicious_candidates_are_left_out(small, wordnet):
    """Verbs that no text uses ("go round", "pirouette"), and those that take no object in their sense ("slide")."""
    assert [verb for verb, _ in small.children("spin", small.sense("spin"))] == ["move", "glide"]
    drunk = [verb for verb, _ in wordnet.children("drink", wordnet.sense("drink"))]
    assert {"sip", "gulp"} <= set(drunk) and not {"suckle", "guggle", "booze", "drink up"} & set(drunk)
    ironed = [verb for verb, _ in wordnet.children("iron", wordnet.sense("iron"))]
    assert "unfold" in ironed and "pop" not in ironed
    assert "screw" not in [verb for verb, _ in wordnet.children("twist", wordnet.sense("twist"))], "vulgar"


@pytest.mark.parametrize("name", ["spin.v.03", "spin.v.00", "spin", "float.v.01"])
def test_senses_that_do_not_exist(small, wordnet, name):
    """The error lists those that do: of the verb that the name has, else of the action's own."""
    with pytest.raises(LabelError, match=r"'spin' has spin\.v\.01 \(make thread\); spin\.v\.02 \(turn\)$"):
        small.sense("spin", name)
    with pytest.raises(LabelError, match=r"break\.v\.12 \(.*; `ace synonyms senses break` lists all 59"):
        wordnet.sense("break", "break.v.60")
    with pytest.raises(LabelError, match=r"named spin\.v\.01"):
        wordnet.sense("torque", "torque.v.01")


def test_all_senses_of_a_verb_are_listed(capsys):
    """`*` is the one that a build takes; a verb of our own list needs none. The advice at the end is a setting."""
    execute(["synonyms", "senses", "sew"])
    said = capsys.readouterr().out.splitlines()
    assert [line[:12] for line in said[:2]] == ["* sew.v.01  ", "  sew.v.02  "] and "senses='{sew: sew.v.01}'" in said[
        -1
    ]
    execute(["synonyms", "senses", "pick", "up"])
    said = capsys.readouterr().out
    assert "our own list" in said and "  pick_up.v.16  gain or regain energy" in said and "* " not in said
    execute(["synonyms", "senses", "verb=slot-in"])
    assert "no verb 'slot in'; these are the senses of 'slot'" in capsys.readouterr().out
    execute(["synonyms", "senses", "torque"])
    assert "WordNet has no such verb" in capsys.readouterr().out
    execute(["synonyms", "senses", "screw"])
    assert "bonk" not in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean 'tighten'"):
        execute(["synonyms", "senses", "tigten"])
    with pytest.raises(UserError, match="verb is not set"):
        execute(["synonyms", "senses"])


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


@pytest.mark.parametrize("verb", ["heben", "drücken", "🙂", "3", "null", "=sum(a1)", "heben auf"])
def test_the_advised_sense_can_be_given_as_it_is_printed(wordnet, verb):
    """Umlauts, pictures, numbers and words of the grammar are verbs of someone's sheet."""
    with pytest.raises(LabelError) as caught:
        wordnet.sense(verb)
    argument = re.search(r"senses='(.*)', or", str(caught.value))
    assert argument
    settings = parse_settings([f"senses={argument[1]}"], BuildConfig)
    assert settings.senses == {verb: "spin.v.01"}


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
    assert result.path.read_bytes() == first, "nothing but list and database decide"
    trees = SynonymTrees.load(result.path)
    assert len(trees.roots) == 10 and all(len(c) == 6 for root in trees.roots for _, c in trees.nodes(root))
    bad = ("root of another", "shadow pool", "most nodes")
    assert not [warning for warning in diagnose(trees).warnings if any(words in warning for words in bad)]
    assert trees.meta["own_list"]["verbs"] == sorted(trees.roots) and "from our own list: cut, fold" in said[0]
    sampler = ConceptSampler(read_actions(str(path)).actions, trees, seed=0)
    reachable = set(sampler.phrases)
    for step in range(20):
        draw = sampler.draw(step)
        assert {phrase for group in (*draw.random, *draw.shadow) for phrase in group} <= reachable


TWELVE = {  # verb -> one synonym that its first five must hold, and what WordNet made of it
    "torque": ("tighten to spec", "spin"), "inspect": ("examine", "visit"), "scan": ("read barcode of", "ransack"),
    "drink": ("sip", "suckle"), "screw": ("drive in", "love"), "solder": ("tack solder", "join"),
    "crimp": ("squeeze shut", "crease"), "pipette": ("draw up", "pipe"), "rinse": ("wash off", "gargle"),
    "tighten": ("cinch", "frap"), "weld": ("spot weld", "unite"), "clamp": ("grip", "dog"),
}  # fmt: skip


def test_makers_verbs_come_from_our_own_list(tmp_path, monkeypatch):
    """All twelve of an assembly line, with five and with eight synonyms, where no WordNet is installed."""
    monkeypatch.setattr(module, "pypi_folders", list)
    monkeypatch.setattr(module, "DEBIAN", tmp_path)
    for size in (6, 9):
        actions = [f"{verb} part" for verb in TWELVE]
        result = build(BuildConfig(actions=actions, output=str(tmp_path / "t.json"), source="wordnet", children=size))
        trees = SynonymTrees.load(result.path)
        assert result.missing == {} and trees.meta["source"] == "makers.json"
        for verb, (sensible, nonsense) in TWELVE.items():
            assert sensible in trees.children(verb) and nonsense not in trees.vocabulary(verb)
            assert {len(children) for _, children in trees.nodes(verb)} == {size}
    with pytest.raises(UserError, match="no WordNet database"):
        build(BuildConfig(actions=["whittle stick"], output=str(tmp_path / "u.json"), source="wordnet", children=3))


def test_verbs_of_two_concepts_come_last(tmp_path):
    """ "fuse" is a child of both in our own list; a tree of either alone has it."""
    config = BuildConfig(output=str(tmp_path / "t.json"), source="wordnet", children=5, actions=["weld a", "solder b"])
    both = SynonymTrees.load(build(config).path)
    assert "fuse" not in both.children("weld") + both.children("solder") and diagnose(both).shared_verbs() == {}
    config.actions = ["weld a"]
    assert "fuse" in SynonymTrees.load(build(config).path).children("weld")


def test_a_sense_that_the_user_picks(tmp_path, capsys):
    """It shapes the tree, also of a verb of our own list; an unknown verb or sense is reported, with the way on."""
    config = BuildConfig(
        actions=["lay down lid", "spin block"], output=str(tmp_path / "t.json"), source="wordnet", children=3
    )
    config.senses = {"lay down": "put_down.v.01"}
    trees = SynonymTrees.load(build(config).path)
    assert "put down" in trees.children("lay down") and trees.meta["senses"] == {"lay down": "put_down.v.01"}
    assert trees.meta["own_list"]["verbs"] == ["spin"] and trees.meta["source"] == "makers.json and WordNet 3.0"
    config.senses = {"twirl": "spin.v.01"}
    with pytest.raises(UserError, match="'twirl', which no action begins with"):
        build(config)
    config.senses, config.actions = {}, ["defrobnicate lid", "spin block"]
    result = build(config)
    assert list(result.missing) == ["defrobnicate"] and SynonymTrees.load(result.path).roots == ("spin",)
    with pytest.raises(SystemExit):
        execute(["synonyms", "actions=[spin block, lift lid]", "senses={spin: spin.v.99}", "source=wordnet",
                 "children=3", f"output={tmp_path}/t.json"])  # fmt: skip
    said = capsys.readouterr().err
    assert "spin.v.08 (prolong or extend)" in said and "1 node missing; the same command ends the same way" in said


def test_the_advice_for_too_few_synonyms_works(tmp_path):
    """A smaller M, or suspicious verbs of WordNet; of our own list a smaller M, or a sense of WordNet."""
    config = BuildConfig(output=str(tmp_path / "t.json"), source="wordnet", children=9, actions=["caulk gap"])
    (fault,) = build(config).missing.values()
    assert "WordNet has 7 of 8" in fault and not build(config).continues
    size = int(fault.partition("children=")[2].split()[0])
    config.children, config.grandchildren = size, 5
    assert build(config).missing == {}
    config.children, config.grandchildren, config.suspicious = 9, None, True
    assert build(config).missing == {}
    config.actions, config.children = ["torque bolt"], 60
    (fault,) = build(config).missing.values()
    config.children = int(fault.partition("children=")[2].split()[0])
    assert build(config).missing == {}
    config.children, config.senses = 60, {"torque": "tighten.v.01"}
    assert "our own list" not in "".join(build(config).missing.values())


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
