"""Protects honest results: chance, intervals that hold what they promise, a sentence wherever a score says little."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from ace_dist.config import TrainingConfig
from ace_dist.evaluate.caveats import chance_scores, few_steps, intervals, result_notes
from ace_dist.evaluate.metrics import accuracy_interval, srt_summary, student_t975
from ace_dist.evaluate.protocols import accuracy_and_f1
from ace_dist.evaluate.runs import loss_sparkline, results_table
from ace_dist.evaluate.verdict import against


def entry(labels, predictions, classes=("lift lid", "spin pin", "push arm")):
    ids = [f"clip-{index}" for index in range(len(labels))]
    return {"classes": list(classes), "ids": ids, "labels": list(labels), "predictions": list(predictions)}


def results_of(base, novel, srt=(), groups=10):
    """`results.json` of entries whose clips lie in so many groups, with its notes."""
    predictions = {"base": base, "novel": novel, "srt": list(srt), "srt_base": [], "gzsl": None}
    of_clips = {f"clip-{index}": str(index % groups) for index in range(1000)}
    scores = {name: accuracy_and_f1(part) if part else None for name, part in (("base", base), ("novel", novel))}
    results = {"method": "ace", "dataset": "mine", **scores, "hm": None, "srt_base": None, "gzsl": None}
    results["srt"] = srt_summary([accuracy_and_f1(run) for run in srt]) if srt else None
    results |= {"interval": intervals(predictions, of_clips), "chance": chance_scores(predictions)}
    return results | {"notes": result_notes(predictions, results)}


# ------------------------------------------------------------------------------------------------------ the interval
def test_wilson_by_hand():
    """8 of 10 independent clips: 49.0 to 94.3 % (Wilson 1927; the example of Newcombe's papers, rounded)."""
    low, high = accuracy_interval([1] * 8 + [0] * 2, [str(k) for k in range(10)])
    assert (low, high) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))
    assert accuracy_interval([1] * 5, list("abcde"))[0] == pytest.approx(56.6, abs=0.1), "all right is not certain"


def test_clips_of_one_group_count_together():
    """Five clips of each recording that are all right or all wrong tell what one clip of each tells, less surely."""
    hits, groups = [1] * 8 + [0] * 2, [str(k) for k in range(10)]
    low, high = accuracy_interval(np.repeat(hits, 5), np.repeat(groups, 5))
    alone = accuracy_interval(hits, groups)
    assert low <= alone[0] + 0.5 and high >= alone[1] - 0.5
    for right in (0, 1):
        few, many = (accuracy_interval([right] * 100, [str(k % groups) for k in range(100)]) for groups in (2, 100))
        assert few[1] - few[0] > 10 * (many[1] - many[0]), "two people of whom all is right say little of others"
    alike = accuracy_interval(np.tile(hits, 5), np.repeat(groups[:5], 10))
    apart = accuracy_interval(np.tile(hits, 5), [str(k) for k in range(50)])
    assert alike[0] < apart[0] and alike[1] > apart[1], "five groups know how alike clips are worse than fifty"


def test_the_design_effect_by_hand():
    """Four groups of five clips, two all right and two all wrong, so p = 1/2.

    The groups' sums less p are +-5/2: the variance of the mean is 4/3 * 25 / 400 = 1/12, that of 20 independent clips
    1/4 / 19, so d = 19/3, times (t(3) / t(19))^2 = (3.1824 / 2.0930)^2 = 2.312: 20 clips count as 1.366.
    """
    found = accuracy_interval([1] * 10 + [0] * 10, np.repeat(list("abcd"), 5))
    assert found == (pytest.approx(7.06, abs=0.02), pytest.approx(92.94, abs=0.02))


@pytest.mark.parametrize("first", [0, 1])
def test_the_interval_of_the_srt_is_of_the_mean_over_its_label_sets(first):
    """All of ten clips right under one set and six under the other: 80 % of ten, whatever set is the first."""
    labels = [0] * 10
    runs = [entry(labels, labels), entry(labels, [0] * 6 + [1] * 4)]
    predictions = {"base": None, "novel": None, "srt": [runs[first], runs[1 - first]], "srt_base": [], "gzsl": None}
    found = intervals(predictions, {clip: clip for clip in runs[0]["ids"]})["srt"]
    assert found["accuracy"] == pytest.approx([49.0, 94.3], abs=0.1) and (found["clips"], found["groups"]) == (10, 10)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 29, 500])
def test_students_quantile_is_scipys(degrees):
    assert student_t975(degrees) == pytest.approx(student_t.ppf(0.975, degrees), abs=3e-4)


def test_an_interval_holds_the_truth(rng):
    """Of 400 tests on clips of few people who differ, about 95 % hold the true accuracy; 90 % at the very least."""
    for people, clips in ((10, 3), (4, 30)):
        held = 0
        for _ in range(400):
            accuracy = rng.beta(12, 8, people)  # of mean 0.6
            hits = rng.random((people, clips)) < accuracy[:, None]
            low, high = accuracy_interval(hits.ravel(), np.repeat(np.arange(people).astype(str), clips))
            held += low <= 60 <= high
        assert held / 400 > 0.90


# ------------------------------------------------------------------------------------------------------ the sentences
def test_a_good_result_has_no_note():
    labels = [0, 1, 2] * 20
    results = results_of(entry(labels, labels), entry(labels, labels), [entry(labels, labels)] * 3)
    assert results["notes"] == []
    table = results_table(results)
    assert "chance             33.3 / 33.3" in table and "100.0" in table and "Wilson" in table and "note" not in table


def test_the_loss_in_a_line_falls_as_the_loss_does():
    falling = [{"step": n, "loss": 10.0 * 0.97**n} for n in range(200)]
    line = loss_sparkline([*falling, {"step": 200, "validation_accuracy": 50.0}])
    start, marks, end = line.removeprefix("loss ").split()
    assert start == "10" and float(end) == pytest.approx(10 * 0.97**199, rel=0.01)
    assert len(marks) == 40 and list(marks) == sorted(marks, reverse=True) and marks[0] == "█" and marks[-1] == "▁"
    assert loss_sparkline(falling[:1]) == loss_sparkline([]) == ""


def test_a_result_at_chance_says_so(rng):
    labels = [0, 1, 2] * 4
    results = results_of(entry(labels, labels), entry(labels, np.roll(labels, 1)[::-1]))
    (note,) = results["notes"]
    assert note.startswith("novel is not shown to be above chance: ") and "guessing 33.3, from 12 test clips" in note
    table = results_table(results)
    assert f"note: {note}" in table
    last = table.splitlines()[-1]
    assert last.startswith("ACE names ") and last.endswith("not different from guessing, which gives 33.3 %.")


@pytest.mark.parametrize(("shift", "place"), [(0, "above"), (1, "below")])
def test_a_result_apart_from_chance_says_on_which_side(shift, place):
    labels = [0, 1, 2] * 40
    results = results_of(entry(labels, labels), entry(labels, [(label + shift) % 3 for label in labels]))
    assert results_table(results).splitlines()[-1].endswith(f"{place} guessing, which gives 33.3 %.")


def test_the_difference_of_two_runs_is_of_equal_clips():
    """Though the other run lists its clips in another order. Both are wrong on class 2, one on class 0 too.

    Compared in the order of the files, errors of both would be differences, and the interval wider.
    """
    labels = [0, 1, 2] * 20
    ours = entry(labels, [(0, 1, 0)[label] for label in labels])
    same = entry(labels, [1] * len(labels))
    order = np.random.default_rng().permutation(len(labels))
    other = {name: [same[name][i] for i in order] for name in ("ids", "labels", "predictions")}
    groups = {clip: str(index // 3) for index, clip in enumerate(ours["ids"])}  # one clip of each class
    text = against([ours], "it", [same | other], groups)
    assert "ahead of it: +33.3 points" in text and "paired over 20 groups" in text
    assert text == against([ours], "it", [same], groups)


def test_always_the_commonest_label_is_not_above_chance():
    """Four of five clips are of one action: naming it always gives 80 %, far above guessing, and knows nothing."""
    labels = [0] * 40 + [1] * 5 + [2] * 5
    notes = results_of(entry(labels, [0] * 50), None)["notes"]
    assert "always the commonest label 80.0" in notes[1]
    assert notes[0].startswith("one label got 50 of 50 base test clips: lift lid;")


def test_a_spread_of_0_of_a_collapsed_model_is_no_robustness():
    labels = [0, 1, 2] * 20
    collapsed = [entry(labels, [run % 3] * 60) for run in range(10)]
    notes = results_of(None, collapsed[0], collapsed)["notes"]
    assert any(note.startswith("the spread of 0 of SRT is no robustness") for note in notes)
    sound = results_of(None, entry(labels, labels), [entry(labels, labels)] * 10)
    assert sound["srt"]["accuracy_std"] == 0 and sound["notes"] == [], "a spread of 0 can be a merit"


def test_one_action_one_group_and_actions_without_clips():
    one = results_of(entry([0, 0], [0, 0], ["lift lid"]), None)["notes"]
    assert "base has one action alone (lift lid)" in one[0] and len(one) == 1
    notes = results_of(entry([0, 1] * 30, [0, 1] * 30), None, groups=1)["notes"]
    assert "1 of 3 base actions have no test clip (push arm)" in notes[0] and "dataset.test_groups" in notes[0]
    assert notes[1].startswith("all base test clips are of one group")


def test_few_steps_name_what_to_set():
    """And a run with these settings is long enough."""
    short = TrainingConfig(epochs=15, batch_size=16)  # 60 clips: 57 steps
    assert few_steps(short, 57, 16 / 60).endswith("set training.epochs=54")  # 54 * 60 / 16 = 202.5
    cut = TrainingConfig(epochs=100, batch_size=16, max_steps=30)
    assert few_steps(cut, 30, 16 / 60).endswith("set training.max_steps=null")
    stopped = TrainingConfig(epochs=100, batch_size=16, early_stopping_patience=2)
    assert few_steps(stopped, 30, 16 / 60).endswith("set training.early_stopping_patience=0")
    assert few_steps(short, 200, 1) is None and few_steps(short, 0, 1) is None
