"""Diagnostics of synonym trees, against findings worked out by hand."""

import json

import numpy as np
import pytest

from ace_dist.concepts import Action, ConceptSampler, SynonymTrees
from ace_dist.tools.synonyms.commands import InspectConfig, inspect_command
from ace_dist.tools.synonyms.diagnostics import diagnose, embedding_spread
from ace_dist.tools.synonyms.text_report import findings_table, forest_figure, text_encoder, write_synonym_report
from ace_dist.utils.errors import UserError


def flat(root, *synonyms, below=()):
    """A tree whose nodes hold their own verb and `below`."""
    return {verb: [verb, *(word for word in below if word != verb)] for verb in (root, *synonyms)}


def test_clean_trees_have_no_warning():
    """Three concepts with nothing in common, M = 2 and 3."""
    trees = SynonymTrees(
        {
            "spin": flat("spin", "twirl", below=("rotate", "reel")),
            "lift": flat("lift", "raise", below=("hoist", "elevate")),
            "push": flat("push", "shove", below=("nudge", "press")),
        }
    )
    findings = diagnose(trees)
    assert findings.warnings == () and findings.first == {} and findings.second == {}
    assert findings.shadows == {"spin": 4, "lift": 4, "push": 4}


def test_shared_verbs_are_named():
    """`turn` belongs to two first orders, `lift` is a root inside another tree, `go` is shared in the second order."""
    trees = SynonymTrees(
        {
            "spin": flat("spin", "turn", below=("go",)),
            "flip": flat("flip", "turn", below=("reverse",)),
            "lift": flat("lift", "raise", below=("go",)),
            "pick up": flat("pick up", "lift", below=("grab",)),
        }
    )
    findings = diagnose(trees)
    assert findings.first == {("spin", "flip"): ("turn",), ("lift", "pick up"): ("lift",)}
    assert findings.second == {("spin", "flip"): ("turn",), ("spin", "lift"): ("go",), ("lift", "pick up"): ("lift",)}
    assert findings.shared_verbs() == {"lift": ("lift", "pick up"), "turn": ("flip", "spin")}
    assert "'spin' > 'turn' and 'flip' > 'turn': one verb stands for two concepts" in findings.warnings
    assert "'pick up' > 'lift': the child is the root of another concept" in findings.warnings


def test_melted_concepts_and_empty_pools():
    """Two concepts with the same words: much overlap, and no wrong verb for either (Eq. 6)."""
    trees = SynonymTrees(
        {"spin": flat("spin", "rotate"), "rotate": flat("rotate", "spin"), "lift": flat("lift", "raise")}
    )
    findings = diagnose(trees, base=["spin", "rotate"])
    assert findings.shadows == {"spin": 0, "rotate": 0}
    assert any(w.startswith("'spin' and 'rotate' share 2 verbs, 100 %") for w in findings.warnings)
    words = "shadow pool holds 0 verbs; its shadow negatives take the objects of other actions"
    assert sum(words in warning for warning in findings.warnings) == 2


def test_uneven_nodes_are_named():
    """One node of the second order has a child too many."""
    nodes = {"spin": flat("spin", "turn", below=("reel",)), "lift": flat("lift", "raise", below=("hoist",))}
    nodes["lift"]["raise"].append("boost")
    warnings = diagnose(SynonymTrees(nodes)).warnings
    assert "'lift' > 'raise': 3 children, most nodes of order 2 have 2" in warnings


def test_concepts_whose_draws_change_nothing_are_named(trees):
    """`lift` differs from its child in order alone; one new verb below one child of `spin` is enough for it."""
    nodes = {
        "spin": flat("spin", "turn", below=("turn",)),
        "lift": {"lift": ["lift", "raise"], "raise": ["raise", "lift"]},
    }
    nodes["spin"]["turn"] = ["turn", "reel"]
    (warning,) = [w for w in diagnose(SynonymTrees(nodes)).warnings if "L_rand" in w]
    assert warning.startswith("'lift': all children have the same synonyms")
    assert not [w for w in diagnose(SynonymTrees(nodes), base=["spin"]).warnings if "L_rand" in w], "lift never trains"
    labels = [Action("lift", "lid"), Action("spin", "wheel")]
    draws = [ConceptSampler(labels, SynonymTrees(nodes), seed=0).draw(step) for step in range(20)]
    assert all(set(draw.random[0]) == set(draw.fixed[0]) for draw in draws)
    assert any(set(draw.random[1]) != set(draw.fixed[1]) for draw in draws)
    for draw in draws:
        assert draw.unchanged_share == (1 + (set(draw.random[1]) == set(draw.fixed[1]))) / 2
    assert diagnose(SynonymTrees(nodes)).unchanged == {
        "spin": 0.5,
        "lift": 1.0,
    }  # the copy of spin is drawn half the time


def test_inspection_cuts_trees_as_a_run_does(tmp_path, capsys):
    """With M of two, the paper's on IKEA-ASM, half of the draws repeat the root label; of three, a third."""
    tree = {verb: [verb, *words] for verb, words in (("lift", ["raise", "hoist"]), ("raise", ["boost", "rear"]))}
    path = tmp_path / "trees.json"
    SynonymTrees({"lift": tree | {"hoist": ["hoist", "winch", "crane"]}}).save(path)
    for size, share in ((2, "50%"), (3, "33%")):
        inspect_command(InspectConfig(trees=str(path), children=size, grandchildren=size))
        table = capsys.readouterr().out.splitlines()
        assert table[0].split()[-1] == "unchanged" and table[1].split()[-1] == share


def test_embedding_spread_by_hand():
    """Two concepts on the axes of a plane; `stray` lies with the other one. cos 45° = sqrt(1/2)."""
    place = {"spin": (1, 0), "turn": (2, 0), "lift": (0, 3), "raise": (1, 1), "stray": (0, 1)}
    trees = SynonymTrees({"spin": flat("spin", "turn", "stray"), "lift": flat("lift", "raise")})
    asked = []

    def encode(phrases):
        asked.extend(phrases)
        return np.array([place[phrase.removesuffix(" cube")] for phrase in phrases])

    spin, lift = embedding_spread(trees, encode, "cube")
    assert asked == ["spin cube", "turn cube", "stray cube", "lift cube", "raise cube"]
    half = 0.5**0.5
    means = {"spin": np.array([2, 1]) / 3, "lift": np.array([half, 1 + half]) / 2}
    assert spin.tightness == pytest.approx(np.hypot(*means["spin"])) and spin.nearest == "lift"
    cosine = means["spin"] @ means["lift"] / np.hypot(*means["spin"]) / np.hypot(*means["lift"])
    assert spin.nearest_cosine == pytest.approx(cosine) == lift.nearest_cosine
    assert spin.strays == (("stray", "lift"),)
    # raise at 45°: 0.949 from the mean of spin's three, 0.924 from that of its own two, which it pulls only half way
    assert lift.strays == (("raise", "spin"),)


def test_the_report_has_pictures_a_table_and_numbers(tmp_path):
    """Shared verbs are in all of them; the picture grows with the forest and marks what is shared."""
    trees = SynonymTrees(
        {"spin": flat("spin", "turn", below=("go",)), "flip": flat("flip", "turn", below=("reverse",))}
    )
    findings = diagnose(trees)
    spread = embedding_spread(trees, lambda phrases: np.eye(len(phrases)))
    paths = write_synonym_report(trees, findings, spread, ["spin"], tmp_path / "report")
    assert [path.name for path in paths] == ["forest.png", "overlap.png", "diagnostics.json"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[:2])
    numbers = json.loads(paths[2].read_text())
    assert numbers["shared_verbs"] == {"turn": ["flip", "spin"]} and numbers["embedding"][0]["root"] == "spin"
    texts = {text.get_text() for axes in forest_figure(trees, findings, ["spin"]).axes for text in axes.texts}
    assert {"spin", "flip", "turn *", "go", "reverse"} <= texts
    assert "turn" not in texts
    words = {text.get_text() for text in forest_figure(trees, findings, ["spin"]).texts}
    assert words == {"verb of a base action", "verb of no base action", "* also a synonym in another concept"}
    apart = SynonymTrees({"spin": flat("spin", "turn"), "flip": flat("flip", "reverse")})
    names = [path.name for path in write_synonym_report(apart, diagnose(apart), [], ["spin"], tmp_path / "report")]
    assert names == ["forest.png", "diagnostics.json"] and not (tmp_path / "report" / "overlap.png").exists()
    table = findings_table(trees, findings, spread).splitlines()
    assert len(table) == 3 and table[1].split()[:6] == ["spin", "2", "3", "1", "1", "1"]


def test_text_towers_as_functions(tmp_path):
    """MiniLM knows synonyms: each of two clear concepts is nearest to itself. Anything else is refused by name."""
    trees = SynonymTrees({"hammer": flat("hammer", "pound"), "pour": flat("pour", "decant")})
    spreads = embedding_spread(trees, text_encoder("minilm"))
    assert [spread.strays for spread in spreads] == [(), ()]
    assert all(spread.tightness > spread.nearest_cosine for spread in spreads)
    with pytest.raises(UserError, match="is not minilm, a run folder, or"):
        text_encoder(str(tmp_path))
