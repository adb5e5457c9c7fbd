"""Scores of timelines equal their published definitions, also on the corner cases of MS-TCN's protocol."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ace_dist.segment.metrics import (
    Detection,
    auroc,
    edit_score,
    expected_calibration_error,
    f1_at,
    fpr_at_95,
    frame_accuracy,
    label_delays,
    mean_average_precision,
    precision_recall,
    timeline_scores,
)
from ace_dist.utils.errors import UserError


def random_labels(rng: np.random.Generator, frames: int) -> list[str]:
    names = ["background", "lift box", "spin block", "tap pin"]
    lengths = rng.integers(1, 12, frames)
    return list(itertools.chain.from_iterable([names[rng.integers(4)]] * n for n in lengths))[:frames]


# The protocol again, written from its description: segments by scanning, the distance by recursion over prefixes.
def scan(labels):
    cuts = [0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)]
    return [(labels[a], a, b) for a, b in itertools.pairwise(cuts) if labels[a] != "background"]


def distance(one, other, memo=None):
    memo = {} if memo is None else memo
    key = len(one), len(other)
    if key not in memo:
        if not one or not other:
            memo[key] = len(one) + len(other)
        else:
            memo[key] = min(
                distance(one[:-1], other, memo) + 1,
                distance(one, other[:-1], memo) + 1,
                distance(one[:-1], other[:-1], memo) + (one[-1] != other[-1]),
            )
    return memo[key]


def reference_f1(predicted, truth, overlap):
    wanted, hit = scan(truth), set()
    found = scan(predicted)
    for label, a, b in found:
        shares = []
        for other, c, d in wanted:
            frames = set(range(a, b)), set(range(c, d))
            shares.append(len(frames[0] & frames[1]) / len(frames[0] | frames[1]) if label == other else 0)
        if shares and max(shares) >= overlap:
            hit.add(shares.index(max(shares)))  # a second hit of one segment adds nothing: it stays a false alarm
    if not found and not wanted:
        return 100.0
    precision = len(hit) / len(found) if found else 0.0
    recall = len(hit) / len(wanted) if wanted else 0.0
    return 200 * precision * recall / (precision + recall) if hit else 0.0


@pytest.mark.parametrize("seed", range(12))
def test_edit_and_f1_equal_a_plain_reading_of_the_protocol(seed, fresh_seed):
    rng = np.random.default_rng([fresh_seed, seed])
    truth, predicted = random_labels(rng, 90), random_labels(rng, 90)
    if seed % 2:  # near the truth, so that there are hits
        predicted = list(truth)
        for place in rng.integers(0, 90, 8):
            predicted[place] = "tap pin"
    one, other = ([label for label, *_ in scan(labels)] for labels in (predicted, truth))
    longest = max(len(one), len(other), 1)
    assert edit_score(predicted, truth) == pytest.approx(100 * (1 - distance(one, other) / longest))
    for overlap in (0.1, 0.25, 0.5):
        assert f1_at(predicted, truth, overlap) == pytest.approx(reference_f1(predicted, truth, overlap))
    assert frame_accuracy(predicted, truth) == pytest.approx(
        100 * np.mean([a == b for a, b in zip(predicted, truth, strict=True)])
    )


def test_worked_corner_cases():
    truth = ["background", "a", "a", "a", "a", "b", "b", "background"]
    assert edit_score(truth, truth) == f1_at(truth, truth, 0.5) == frame_accuracy(truth, truth) == 100
    # One true segment broken in two: the first piece has IoU 2/4 and hits, the second is a false alarm; b hits.
    broken = ["background", "a", "a", "background", "a", "b", "b", "background"]
    assert f1_at(broken, truth, 0.5) == pytest.approx(100 * 2 * 2 / (2 * 2 + 1))
    assert edit_score(broken, truth) == pytest.approx(100 * (1 - 1 / 3))
    # An IoU of just the threshold is a hit.
    assert f1_at(["a", "a", "a", "a"], ["a", "a", "b", "b"], 0.5) == pytest.approx(200 / 3)
    nothing = ["background"] * 4
    assert edit_score(nothing, nothing) == f1_at(nothing, nothing, 0.1) == 100
    assert edit_score(nothing, ["a"] * 4) == f1_at(nothing, ["a"] * 4, 0.1) == 0
    assert edit_score(["a"] * 4, nothing) == f1_at(["a"] * 4, nothing, 0.1) == 0


def test_none_is_background_and_need_not_be_named():
    truth = [None, "a", "a", "background"]
    assert frame_accuracy(["background", "a", "a", None], truth) == 100
    assert frame_accuracy([None, "a", None, None], truth) == 75
    assert frame_accuracy([None, "a", None, None], truth, count_background=False) == 50
    assert edit_score(["idle", "a", "a", "idle"], truth, background=("background", "idle")) == 100


def test_videos_share_one_f1_and_one_accuracy_but_average_their_edit_scores():
    short, long = ["a", "a"], ["b"] * 8
    scores = timeline_scores([["a", "a"], ["c"] * 8], [short, long])
    assert scores["accuracy"] == 20 and scores["edit"] == 50 and scores["f1@50"] == 50


@pytest.mark.parametrize("predicted, truth", [([], []), (["a"], ["a", "a"])])
def test_lists_of_other_lengths_are_refused(predicted, truth):
    for score in (edit_score, frame_accuracy, lambda a, b: f1_at(a, b, 0.5)):
        with pytest.raises(UserError, match="one length"):
            score(predicted, truth)
    with pytest.raises(UserError, match="overlap=50"):
        f1_at(["a"], ["a"], 50)


def test_rejection_scores_equal_their_definitions(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    known, unknown = rng.normal(1, 1, 400).round(1), rng.normal(0, 1, 300).round(1)  # rounded: with ties
    truth = [1] * 400 + [0] * 300
    assert auroc(known, unknown) == pytest.approx(100 * roc_auc_score(truth, [*known, *unknown]))
    rates = [np.mean(unknown >= threshold) for threshold in np.unique(known) if np.mean(known >= threshold) >= 0.95]
    assert fpr_at_95(known, unknown) == pytest.approx(100 * min(rates))
    with pytest.raises(UserError, match="finite"):
        auroc([], unknown)


def test_calibration_error_of_a_table_worked_by_hand():
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]]  # bins of tenths: .9 twice, .6 twice
    assert expected_calibration_error(probabilities, [0, 1, 1, 1], bins=10) == pytest.approx(
        100 * (abs(0.9 - 0.5) * 0.5 + abs(0.625 - 1.0) * 0.5)
    )


def test_average_precision_ranks_by_score_and_counts_a_second_hit_as_false(fresh_seed):
    truth = [Detection("v", "a", 0, 10), Detection("v", "a", 20, 30), Detection("w", "a", 0, 10)]
    found = [
        Detection("v", "a", 0, 10, 0.9),
        Detection("v", "a", 1, 10, 0.8),  # the same segment again
        Detection("w", "a", 0, 9, 0.7),
        Detection("w", "b", 0, 9, 0.6),  # another label does not count
    ]
    assert mean_average_precision(found, truth, 0.5) == pytest.approx(100 * (1 / 3 + (2 / 3) / 3))
    assert mean_average_precision([], truth, 0.5) == 0
    # Without misses it is the usual average precision of a ranking.
    rng = np.random.default_rng(fresh_seed)
    right, scores = rng.random(40) < 0.5, rng.random(40)
    right[0] = True
    videos = [f"v{i}" for i in range(40)]
    found = [Detection(name, "a", 0, 1, score) for name, score in zip(videos, scores, strict=True)]
    truth = [Detection(name, "a", 0, 1) for name, good in zip(videos, right, strict=True) if good]
    order = np.argsort(-scores)
    falling = np.maximum.accumulate((np.cumsum(right[order]) / np.arange(1, 41))[::-1])[::-1]
    assert mean_average_precision(found, truth, 0.5) == pytest.approx(100 * falling[right[order]].mean())
    assert mean_average_precision(found, truth, 0.5) >= 100 * average_precision_score(right, scores) - 1e-6


def test_deviations_are_counted_as_often_as_they_occur():
    truth = [("missing", "a"), ("repeated", "b"), ("repeated", "b")]
    assert precision_recall([("repeated", "b"), ("extra", "c")], truth) == (50, pytest.approx(100 / 3))
    assert precision_recall([], []) == (100, 100)


def test_the_delay_of_live_labels_equals_asking_every_tenth_of_a_second(rng):
    truth = [(0.0, 4.0, "lift box"), (4.0, 5.0, "tap pin"), (6.0, 9.0, "lift box"), (9.0, 9.5, "spin block")]
    for _ in range(20):
        times = sorted(rng.choice(100, 6, replace=False) / 10)
        changes = [(float(t), ["lift box", "tap pin", "spin block", None][rng.integers(4)]) for t in times]

        def said(time_s, changes=changes):
            return next((label for begin_s, label in reversed(changes) if begin_s <= time_s), "nothing yet")

        for (start_s, end_s, label), found in zip(truth, label_delays(changes, truth), strict=True):
            asked = [start_s + k / 10 for k in range(round(10 * (end_s - start_s)))]
            wanted = next((time_s - start_s for time_s in asked if said(time_s + 1e-9) == label), np.inf)
            assert found == pytest.approx(wanted, abs=1e-6)
    assert label_delays([], truth[:1]) == [np.inf]
