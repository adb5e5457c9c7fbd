"""Protects the numbers of the tables: each metric against scikit-learn, a hand calculation, or a simulation."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from ace_dist.config import load_config
from ace_dist.evaluate.metrics import (
    accuracy,
    bias_curve,
    class_f1,
    concept_distances,
    confusion_matrix,
    fuse_views,
    harmonic_mean,
    macro_f1,
    random_baseline,
    srt_summary,
)
from ace_dist.evaluate.protocols import summary
from ace_dist.utils.errors import UserError


def test_accuracy_and_f1_equal_scikit_learn_also_when_classes_are_absent(rng):
    for _ in range(50):
        classes = int(rng.integers(2, 12))
        present = rng.choice(classes, size=rng.integers(1, classes + 1), replace=False)
        labels = rng.choice(present, size=rng.integers(1, 80))
        predictions = rng.integers(0, classes, size=len(labels))  # may name classes that no sample has
        expected = f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0)
        assert macro_f1(labels, predictions, classes) == pytest.approx(100 * expected)
        assert macro_f1(labels, predictions) == pytest.approx(100 * expected)
        assert accuracy(labels, predictions) == pytest.approx(100 * accuracy_score(labels, predictions))
        matrix = confusion_matrix(labels, predictions, classes)
        np.testing.assert_array_equal(matrix, sklearn_confusion(labels, predictions, labels=range(classes)))


def test_a_guess_outside_the_test_split_costs_recall_only():
    # Hand calculation: class 0 has TP 1, FN 1, FP 0 -> 2/3; class 1 is perfect; class 2 never occurs, so it is no term.
    scores = class_f1([0, 0, 1], [0, 2, 1], 3)
    assert scores[:2] == pytest.approx([200 / 3, 100])
    assert np.isnan(scores[2])
    assert macro_f1([0, 0, 1], [0, 2, 1], 3) == pytest.approx((200 / 3 + 100) / 2)


@pytest.mark.parametrize(
    ("labels", "predictions", "classes", "message"),
    [
        ([], [], None, "length > 0"),
        ([0, 1], [0], None, "one length"),
        ([0, 3], [0, 1], 3, r"labels must lie in 0\.\.2"),
        ([0, 1], [0, -1], None, "predictions must lie"),
        ([0.5, 1.0], [0, 1], None, "integers"),
    ],
)
def test_unscorable_input_is_refused(labels, predictions, classes, message):
    with pytest.raises(UserError, match=message):
        macro_f1(labels, predictions, classes)


def test_harmonic_mean_by_hand():
    """2 * 20 * 60 / 80 = 30. That of every row the paper prints: tests/tools/test_tables.py."""
    assert harmonic_mean(20.0, 60.0) == 30.0
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.0, 50.0) == 0.0
    with pytest.raises(UserError):
        harmonic_mean(-1.0, 2.0)


def test_srt_summary_uses_the_population_deviation(rng):
    # Hand calculation: 40 and 60 lie 10 from their mean 50; the sample deviation would be 14.14.
    summary = srt_summary([{"accuracy": 40.0, "f1": 10.0}, {"accuracy": 60.0, "f1": 10.0}])
    assert (summary["accuracy_mean"], summary["accuracy_std"]) == (50.0, 10.0)
    assert (summary["f1_mean"], summary["f1_std"]) == (10.0, 0.0)
    values = rng.uniform(0, 100, size=(10, 2))
    summary = srt_summary([{"accuracy": a, "f1": f} for a, f in values])
    assert [run["accuracy"] for run in summary["runs"]] == values[:, 0].tolist()
    assert summary["f1_std"] == pytest.approx(np.sqrt(np.mean((values[:, 1] - values[:, 1].mean()) ** 2)))
    with pytest.raises(UserError, match="at least one run"):
        srt_summary([])


def test_random_baseline_is_what_uniform_guessing_scores(rng):
    classes = int(rng.integers(3, 9))
    labels = rng.choice(classes, size=200_000, p=rng.dirichlet(np.full(classes, 3.0)))
    guesses = rng.integers(0, classes, size=len(labels))
    expected = random_baseline(labels, classes)
    assert expected["accuracy"] == pytest.approx(100 * accuracy_score(labels, guesses), abs=0.6)
    simulated = f1_score(labels, guesses, labels=np.unique(labels), average="macro")
    assert expected["f1"] == pytest.approx(100 * simulated, abs=0.6)


def test_random_baseline_by_hand():
    # Balanced: F1 = accuracy = 1/K. Shares 3/4 and 1/4 with q = 1/2: (0.6 + 1/3) / 2.
    assert random_baseline([0, 1, 2, 3, 4], 5) == pytest.approx({"accuracy": 20.0, "f1": 20.0})
    assert random_baseline([0, 0, 0, 1], 2) == pytest.approx({"accuracy": 50.0, "f1": 100 * (0.6 + 1 / 3) / 2})


# ------------------------------------------------------------------------------------------------------ test views
def clip_views(rng):
    """Logits of seven clips in three views among five classes; ids, labels and views."""
    rows = [(f"clip-{clip}", clip % 5, view) for clip in range(7) for view in range(3)]
    return rng.normal(size=(21, 5)) * 10, *map(list, zip(*rows, strict=True))


@pytest.mark.parametrize("how", ["softmax_sum", "logit_mean", "embedding_mean"])
def test_fusion_does_not_depend_on_the_order_in_which_ranks_deliver(rng, how):
    values, ids, labels, views = clip_views(rng)
    fused = fuse_views(values, ids, labels, views, views_per_sample=3, how=how)
    order = rng.permutation(len(ids))
    arrived = [ids[i] for i in order], np.array(labels)[order], np.array(views)[order]
    shuffled = fuse_views(values[order], *arrived, views_per_sample=3, how=how)
    assert fused.ids == shuffled.ids == tuple(sorted(set(ids)))
    np.testing.assert_array_equal(fused.values, shuffled.values)  # the same bits
    np.testing.assert_array_equal(fused.labels, shuffled.labels)
    for row, name in enumerate(fused.ids):
        mine = values[[i for i, other in enumerate(ids) if other == name]]
        if how == "softmax_sum":
            mine = np.exp(mine) / np.exp(mine).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(fused.values[row], mine.mean(axis=0), rtol=1e-12)
        assert fused.labels[row] == labels[ids.index(name)]


def test_softmax_and_logit_fusion_can_disagree():
    # One view is sure of class 0 (logit +10), two lean to class 1 (+2): the mean logit follows the one, 10/3 > 4/3;
    # the probabilities follow the two: about (1 + 0.12 + 0.12) / 3 = 0.41 against 0.59.
    rows = ([[10.0, 0.0], [0.0, 2.0], [0.0, 2.0]], ["a"] * 3, [0] * 3, [0, 1, 2])
    assert fuse_views(*rows, views_per_sample=3, how="logit_mean").values.argmax() == 0
    assert fuse_views(*rows, views_per_sample=3, how="softmax_sum").values == pytest.approx(
        np.array([[0.41, 0.59]]), abs=5e-3
    )


def test_logits_as_large_as_a_small_temperature_makes_them_stay_finite():
    fused = fuse_views([[5000.0, -5000.0]], ["a"], [0], [0], views_per_sample=1)
    np.testing.assert_array_equal(fused.values, [[1.0, 0.0]])


def test_a_padded_sampler_cannot_count_a_clip_twice(rng):
    values, ids, labels, views = clip_views(rng)
    with pytest.raises(UserError, match=r"'clip-2'.*twice"):
        padded = [*ids, ids[6]], [*labels, labels[6]], [*views, views[6]]
        fuse_views(np.vstack([values, values[6]]), *padded, views_per_sample=3)


def test_missing_views_labels_and_samples_are_named(rng):
    values, ids, labels, views = clip_views(rng)
    with pytest.raises(UserError, match=r"'clip-6'.*not all there.*got \[0, 1\]"):
        fuse_views(values[:-1], ids[:-1], labels[:-1], views[:-1], views_per_sample=3)
    with pytest.raises(UserError, match=r"'clip-0'.*different labels"):
        fuse_views(values, ids, [labels[0] + 1, *labels[1:]], views, views_per_sample=3)
    with pytest.raises(UserError, match=r"scored 7 samples, the split has 8: 1 missing \['clip-9'\]"):
        fuse_views(values, ids, labels, views, views_per_sample=3, expected_ids={*ids, "clip-9"})
    values[4, 1] = np.nan
    with pytest.raises(UserError, match="'clip-1' are not finite"):
        fuse_views(values, ids, labels, views, views_per_sample=3)
    with pytest.raises(UserError, match="choose one of softmax_sum"):
        fuse_views(values, ids, labels, views, views_per_sample=3, how="max")


def test_views_that_share_an_id_prefix_stay_apart():
    fused = fuse_views([[1.0], [2.0]], ["clip-1", "clip-10"], [0, 0], [0, 0], views_per_sample=1, how="logit_mean")
    assert fused.ids == ("clip-1", "clip-10")
    assert fused.values.tolist() == [[1.0], [2.0]]


# --------------------------------------------------------------------------------------------------- concept space
def test_concept_distances_equal_the_loop_over_pairs(rng):
    actions = ["spin block"] * 4 + ["lift pin"] * 2 + ["wipe tray"]
    rows = rng.normal(size=(7, 6))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def mean_distance(one, other):
        pairs = [(i, j) for i in range(7) for j in range(7) if i != j and (actions[i], actions[j]) == (one, other)]
        return np.mean([1 - unit[i] @ unit[j] for i, j in pairs])

    names = ["spin block", "lift pin", "wipe tray"]
    within = np.mean([mean_distance(name, name) for name in names[:2]])  # one phrase alone has no spread
    between = np.mean([mean_distance(a, b) for a, b in [names[:2], names[1:], names[::2]]])
    assert concept_distances(rows, actions) == pytest.approx({"within": within, "between": between})
    alone = concept_distances(rows[:1], actions[:1])
    assert np.isnan(alone["within"]) and np.isnan(alone["between"])
    with pytest.raises(UserError, match="non-zero row"):
        concept_distances(rows, actions[:3])


def test_the_bias_curve_against_a_sweep(rng):
    """Calibrated stacking by its definition: argmax of all scores less the bias, at each bias; area by counting pairs.

    A base and a novel clip are both right at some bias when the novel one's margin is below the base one's; scores are
    integers, so that ties are many and exact.
    """
    base_classes, novel_classes = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    classes = base_classes + novel_classes
    scores = {part: rng.integers(0, 9, (n, classes)).astype(float) for part, n in (("base", 23), ("novel", 17))}
    labels = {
        "base": rng.integers(0, base_classes, 23),
        "novel": rng.integers(base_classes, classes, 17),
    }
    found = bias_curve(*((scores[part], labels[part]) for part in ("base", "novel")), base_classes)
    swept = []
    for bias, *pair in zip(found["bias"], found["base"], found["novel"], strict=True):
        taken = np.where(np.arange(classes) < base_classes, bias, 0.0)
        by_hand = [100 * np.mean((scores[part] - taken).argmax(1) == labels[part]) for part in ("base", "novel")]
        assert pair == pytest.approx(by_hand)
        swept.append(pair)
    assert found["novel"][0] == 0 and found["base"][-1] == 0
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(swept))
    base_margins, novel_margins = margins(scores, base_classes)
    base_right = scores["base"][:, :base_classes].argmax(1) == labels["base"]
    novel_right = scores["novel"][:, base_classes:].argmax(1) + base_classes == labels["novel"]
    wins = np.sign(base_margins[base_right][:, None] - novel_margins[novel_right][None])
    assert found["area"] == pytest.approx(100 * ((wins > 0).sum() + 0.5 * (wins == 0).sum()) / (23 * 17))
    best = max(swept, key=lambda pair: 2 * np.prod(pair) / max(sum(pair), 1e-9))  # every bias is among the 101 shown
    assert found["best_hm"] == pytest.approx(2 * np.prod(best) / max(sum(best), 1e-9))
    at = found["bias"].index(found["best_bias"])
    assert harmonic_mean(found["base"][at], found["novel"][at]) == pytest.approx(found["best_hm"])


def margins(scores, base_classes):
    return [scores[p][:, :base_classes].max(1) - scores[p][:, base_classes:].max(1) for p in ("base", "novel")]


def test_the_bias_curve_of_clear_cases():
    """By hand: all right without a bias: area 100, HM 100; nothing right at all: 0."""
    right = bias_curve(([[3.0, 1.0, 0.0]], [0]), ([[0.0, 1.0, 3.0]], [2]), 2)
    assert (right["area"], right["best_hm"]) == (100.0, 100.0) and right["base"][0] == right["novel"][-1] == 100.0
    wrong = bias_curve(([[1.0, 3.0, 0.0]], [0]), ([[0.0, 3.0, 1.0, 2.0]], [2]), 2)
    assert (wrong["area"], wrong["best_hm"], wrong["base"], wrong["novel"]) == (0.0, 0.0, [0.0], [0.0])
    many = bias_curve((np.c_[np.arange(500.0), np.zeros(500)], np.zeros(500)), ([[0.0, 1.0]], [1]), 1)
    assert len(many["bias"]) == 101 and many["area"] == pytest.approx(100 * 500 / 500)


def test_all_classes_together_by_hand():
    """Two base classes and a novel one; the bias is taken from logarithms of probabilities.

    The base clip is right up to a bias of log(0.8 / 0.1), one novel clip from -log 8 on, the other beyond
    log(0.5 / 0.2). Without a bias half of the novel clips are right: HM 2 * 100 * 50 / 150, of F1 100 and 200 / 3.
    """

    def entry(probabilities, labels, classes=3):
        rows = np.array(probabilities)
        guesses = rows.argmax(1).tolist()
        return {"classes": ["a", "b", "c"][:classes], "labels": labels, "predictions": guesses, "probabilities": rows}

    predictions = {
        "base": entry([[0.9, 0.1]], [0], 2),
        "novel": entry([[0.7, 0.3], [0.6, 0.4]], [0, 1], 2),
        "srt": [],
        "srt_base": [],
        "gzsl": {
            "base": entry([[0.8, 0.1, 0.1]], [0]),
            "novel": entry([[0.1, 0.1, 0.8], [0.5, 0.3, 0.2]], [2, 2]),
        },
    }
    found = summary(load_config(["experiment=demo"]), predictions, base_classes=2)
    assert (found["base"]["accuracy"], found["novel"]["accuracy"]) == (100.0, 50.0)
    assert found["hm"] == pytest.approx({"accuracy": 200 / 3, "f1": 50.0})  # F1 of novel: (200 / 3 + 0) / 2
    assert found["gzsl"]["hm"] == pytest.approx({"accuracy": 200 / 3, "f1": 80.0})
    curve = found["gzsl"]["curve"]
    assert curve["bias"][:3] == pytest.approx([-np.log(8), np.log(2.5), np.log(8)])
    assert (curve["base"], curve["novel"]) == ([100.0, 100.0, 100.0, 0.0], [0.0, 50.0, 100.0, 100.0])
    assert (curve["best_hm"], curve["best_bias"]) == (100.0, pytest.approx(np.log(8)))
