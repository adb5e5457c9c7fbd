"""Procedures are read with clear refusals, and deviations from them are named as a person would."""

import itertools

import numpy as np
import pytest

from ace_dist.segment.procedure import Procedure, largest_ordered
from ace_dist.utils.errors import LabelError

LISTED = {
    "steps": [
        "lift box",
        {"any_order": ["insert pin", "wipe plate"]},
        {"step": "tap pin", "repeat": True},
        {"step": "shake cup", "optional": True},
    ]
}


def spans(*labels):
    return [(float(i), i + 1.0, label) for i, label in enumerate(labels)]


def said(document, *labels):
    return [(each.kind, each.label) for each in Procedure.parse(document).deviations(spans(*labels))]


@pytest.mark.parametrize(
    "labels",
    [
        ("lift box", "insert pin", "wipe plate", "tap pin"),
        ("lift box", "wipe plate", "insert pin", "tap pin", "tap pin", "shake cup"),
    ],
)
def test_what_the_procedure_allows_is_no_deviation(labels):
    assert said(LISTED, *labels) == []


@pytest.mark.parametrize(
    "labels, expected",
    [
        (("lift box", "insert pin", "wipe plate"), [("missing", "tap pin")]),
        (("lift box", "insert pin", "cut cone", "wipe plate", "tap pin"), [("extra", "cut cone")]),
        (("lift box", "insert pin", "insert pin", "wipe plate", "tap pin"), [("repeated", "insert pin")]),
        (("insert pin", "lift box", "wipe plate", "tap pin"), [("swapped", "insert pin")]),
        (("insert pin", "wipe plate", "tap pin", "lift box"), [("swapped", "lift box")]),
        ((), [("missing", each) for each in ("lift box", "insert pin", "wipe plate", "tap pin")]),
        # Done too early, and then again at its place: not missing, not swapped, but done twice.
        (("tap pin", "lift box", "insert pin", "wipe plate", "shake cup"), [("swapped", "tap pin")]),
        (("wipe plate", "lift box", "insert pin", "wipe plate", "tap pin"), [("repeated", "wipe plate")]),
    ],
)
def test_deviations(labels, expected):
    assert said(LISTED, *labels) == expected


def test_a_deviation_carries_its_time_and_a_reason():
    (found,) = Procedure.parse(LISTED).deviations(spans("insert pin", "lift box", "wipe plate", "tap pin"))
    assert (found.start_s, found.end_s, found.note) == (0.0, 1.0, "comes before 'lift box'")


def test_steps_that_share_a_label_are_told_apart_by_their_neighbours():
    steps = ["pick up screw", "turn screw", "pick up screw", "wipe table"]
    assert said(steps, *steps) == []
    assert said(steps, "turn screw", "pick up screw", "wipe table") == [("missing", "pick up screw")]
    assert said(steps, "pick up screw", "turn screw", "wipe table") == [("missing", "pick up screw")]


def test_steps_that_share_a_label_are_found_at_the_beginning_of_many_segments_too():
    """Each assignment was tried by itself, the first 500 of them: those that begin with many first steps."""
    steps = ["pick up screw", "turn screw", "pick up screw", "lift lid", "pick up screw", "wipe table"]
    done = [*steps[:5], *["pick up screw"] * 40, "wipe table"]
    assert said({"steps": steps}, *done) == [("repeated", "pick up screw")] * 40


def test_the_largest_set_in_order_equals_exhaustive_search(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    for _ in range(20):
        above = [frozenset(int(j) for j in range(i) if rng.random() < 0.4) for i in range(7)]
        for i in range(7):  # closed: the predecessors of predecessors are predecessors
            above[i] = above[i].union(*(above[j] for j in above[i]))
        order = rng.permutation(7)
        done = {step: int(np.argwhere(order == step)[0, 0]) for step in range(7)}
        sizes = [
            len(chosen)
            for size in range(8)
            for chosen in itertools.combinations(range(7), size)
            if not any(done[a] < done[b] and b in above[a] for a in chosen for b in chosen)
        ]
        kept = largest_ordered(done, above)
        assert len(kept) == max(sizes)
        assert not any(done[a] < done[b] and b in above[a] for a in kept for b in kept)


def test_a_graph_is_the_same_as_its_list():
    graph = {
        "graph": {
            "tap pin": {"after": ["insert pin", "wipe plate"], "repeat": True},
            "insert pin": ["lift box"],
            "wipe plate": "lift box",
            "lift box": [],
        }
    }
    assert said(graph, "lift box", "wipe plate", "insert pin", "tap pin") == []
    assert said(graph, "insert pin", "lift box", "wipe plate", "tap pin") == [("swapped", "insert pin")]


def test_changes_that_the_procedure_allows_cost_less():
    labels = ["lift box", "insert pin", "wipe plate", "tap pin", "none of these"]
    costs = Procedure.parse(LISTED).switch_costs(labels, 1.0, 5.0)
    cheap = {(labels[i], labels[j]) for i, j in itertools.permutations(range(4), 2) if costs[i, j] == 1.0}
    assert cheap == {
        ("lift box", "insert pin"),
        ("lift box", "wipe plate"),
        ("insert pin", "wipe plate"),
        ("wipe plate", "insert pin"),
        ("insert pin", "tap pin"),
        ("wipe plate", "tap pin"),
    }
    assert (costs[4] == 1.0).all() and (costs[:, 4] == 1.0).all()


@pytest.mark.parametrize(
    "document, message",
    [
        ({"graph": {"a": ["b"], "b": ["a"]}}, "wait for each other"),
        ({"graph": {"lift box": [], "tap pin": ["lift bx"]}}, "did you mean 'lift box'"),
        ({"graph": {"a": {"before": ["b"]}}}, "before is unknown"),
        ({"steps": [{"step": "a", "repeat": "yes"}]}, "repeat is not true or false but 'yes'"),
        ({"steps": [{"step": ""}]}, "'' is not a label"),
        ({"steps": ["a", 5]}, "step 2: 5 is not a label"),
        ({"steps": [{"any_order": "a"}]}, "any_order is not a list"),
        ({"steps": []}, "has no step"),
        ({"steps": ["a"], "graph": {}}, "a list under 'steps' or a mapping under 'graph'"),
        ("lift box", "a list under 'steps'"),
    ],
)
def test_what_is_no_procedure_is_refused_with_the_reason(document, message):
    with pytest.raises(LabelError, match=message):
        Procedure.parse(document, "job.yaml")


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("steps: [lift box", encoding="utf-8")
    with pytest.raises(LabelError, match="job.yaml is not valid YAML"):
        Procedure.load(path)
    with pytest.raises(LabelError, match="gone.yaml"):
        Procedure.load(tmp_path / "gone.yaml")
