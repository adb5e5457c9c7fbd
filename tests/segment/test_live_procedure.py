"""What is said of a job while it goes on: by hand, and for whole random orders beside what is known at the end."""

import itertools

import numpy as np
import pytest

from ace_dist.segment.live import Labeller
from ace_dist.segment.live_procedure import LiveProcedure
from ace_dist.segment.procedure import Procedure

# lift box, then insert pin and wipe plate in any order, then tap pin once or more; shake cup may follow.
JOB = Procedure.parse([
    "lift box", {"any_order": ["insert pin", "wipe plate"]}, {"step": "tap pin", "repeat": True},
    {"step": "shake cup", "optional": True},
])  # fmt: skip
STEPS = {"l": "lift box", "i": "insert pin", "w": "wipe plate", "t": "tap pin", "s": "shake cup", "x": "juggle balls"}


def said(letters, procedure=JOB):
    """`event label` of everything that is found, and of what ends with the stream."""
    job = LiveProcedure(procedure)
    found = [finding for letter in letters for finding in job.begin(STEPS[letter])] + job.give_up()
    return [f"{finding.event} {finding.label}" if finding.label else finding.event for finding in found]


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("liwt", ["done"]),
        ("lwit", ["done"]),
        ("liwts", ["done"]),
        ("liwtstt", ["done"]),  # an optional step, and one that may be repeated, still belong to the job
        ("liwtliwt", ["done", "done"]),
        ("liwtsliwt", ["done", "done"]),
        ("llliwt", ["done"]),  # the label of before goes on
        ("litw", ["swapped tap pin", "done"]),
        ("lixwt", ["extra juggle balls", "done"]),
        ("liwiwt", ["repeated insert pin", "repeated wipe plate", "done"]),
        ("liliwt", ["missing wipe plate", "missing tap pin", "done"]),  # a first step, again: the next job
        (
            "lil",
            ["missing wipe plate", "missing tap pin", "missing insert pin", "missing wipe plate", "missing tap pin"],
        ),
        ("iwt", ["swapped insert pin", "swapped wipe plate", "swapped tap pin", "missing lift box"]),
        ("", []),
        ("x", ["extra juggle balls"]),
    ],
)
def test_each_rule_by_hand(letters, expected):
    assert said(letters) == expected


def test_a_note_names_what_a_step_waits_for():
    job = LiveProcedure(JOB)
    (found,) = job.begin("Tap pin")
    assert found.note == "comes before 'lift box', 'insert pin', 'wipe plate'"


def test_of_steps_with_one_label_the_one_that_waits_for_least_is_meant():
    """Screw, wipe, screw: neither is a repetition, and after the second one the job is done."""
    twice = Procedure.parse(["tap pin", "wipe plate", "tap pin"])
    assert said("twt", twice) == ["done"]
    assert said("twtwt", twice) == ["done", "swapped wipe plate", "missing tap pin"]


def test_one_job_in_any_order_is_done_and_told_apart_from_what_the_end_knows(fresh_seed):
    """A job of all its steps, each once, is done, whatever the order. It is said to deviate exactly when it does."""
    rng = np.random.default_rng(fresh_seed)
    for letters in rng.permutation(list(itertools.permutations("liwt")))[:12].tolist():
        events = said(letters)
        whole = JOB.deviations([(place, place + 1.0, STEPS[letter]) for place, letter in enumerate(letters)])
        assert events.count("done") == 1 and events[-1] == "done"
        assert (len(events) > 1) == bool(whole), letters
        assert all(event == "done" or event.startswith("swapped") for event in events)


def test_a_stream_says_what_its_job_does_otherwise(classifier, monkeypatch):
    """With scores that follow a script: events of the job stand behind the change that they rest on."""
    order = ["lift box", "tap pin", "insert pin", None, "wipe plate", "lift box"]
    labels = [*JOB.labels, None]

    def scripted(self, window):
        place = min(int(window.start_s / 3.0), len(order) - 1)
        return np.log(np.where(np.arange(len(labels)) == labels.index(order[place]), 0.99, 0.01 / (len(labels) - 1)))

    monkeypatch.setattr(Labeller, "scores", scripted)
    frames = ((k / 8, np.zeros((48, 48, 3), np.uint8)) for k in range(8 * 21))
    events = [event for event in classifier.stream(frames, procedure=JOB, minimum_s=0.5) if event.event != "now"]
    told = [(event.event, event.label) for event in events]
    assert told == [
        ("change", "lift box"), ("change", "tap pin"), ("swapped", "tap pin"), ("change", "insert pin"),
        ("change", None), ("change", "wipe plate"), ("done", None), ("change", "lift box"),
        *(("missing", label) for label in ("insert pin", "wipe plate", "tap pin")), ("end", None),
    ]  # fmt: skip
    swapped = events[2]
    assert swapped.as_json() | {"utc": ""} == {
        "event": "swapped", "time_s": events[1].time_s, "label": "tap pin", "dropped": 0, "utc": "",
        "note": "comes before 'insert pin', 'wipe plate'",
    }  # fmt: skip
