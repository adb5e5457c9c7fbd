"""None of these: the error rate holds, probabilities are calibrated, and the fit is what scikit-learn finds."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ace_dist.classifier import Classification
from ace_dist.segment.metrics import auroc
from ace_dist.segment.rejection import (
    RIDGE,
    LabelledWindows,
    Rejection,
    conformal_threshold,
    fit_rejection,
    log_softmax,
    logistic_regression,
    unit,
)
from ace_dist.segment.segmenter import Calibration
from ace_dist.utils.errors import UserError

DIMENSIONS, CLASSES = 12, 4


def draw_windows(rng: np.random.Generator, people: int, each: int, background: bool = True) -> LabelledWindows:
    """Actions lie about one of four directions; background about a fifth."""
    centres = np.eye(DIMENSIONS)[:CLASSES] * 2
    labels = rng.integers(-1 if background else 0, CLASSES, people * each)
    means = np.where(labels[:, None] >= 0, centres[np.maximum(labels, 0)], np.eye(DIMENSIONS)[6])
    embeddings = means + rng.normal(0, 0.9, (len(labels), DIMENSIONS))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    groups = np.repeat([f"person-{i}" for i in range(people)], each)
    return LabelledWindows(embeddings, unit[:, :CLASSES], labels, groups)


def test_of_new_windows_a_share_of_at_most_the_error_rate_is_rejected(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    for rate in (0.05, 0.1, 0.3):
        shares = []
        for _ in range(200):  # the promise is about the mean over calibrations (marginal coverage)
            known = rng.normal(size=60)
            shares.append(np.mean(rng.normal(size=500) < conformal_threshold(known, rate)))
        expected = np.floor(rate * 61) / 61  # of exchangeable scores, of which none are equal
        assert abs(np.mean(shares) - expected) < 4 * np.std(shares) / np.sqrt(200) and expected <= rate


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_the_rate_asked_for_is_of_people_who_were_not_fitted_on(rate, fresh_seed):
    windows = draw_windows(np.random.default_rng(fresh_seed), 6, 60)
    rejection, known = fit_rejection(windows, rate, temperature=0.05)
    own, others = (set(known["groups"][part]) for part in ("calibrated", "fitted"))
    assert own and others and not own & others and own | others == set(windows.groups)
    held = np.isin(windows.groups, sorted(own)) & (windows.labels >= 0)
    scores = np.sort(rejection.scores(windows.embeddings[held], windows.cosines[held]))
    assert rejection.threshold == scores[int(rate * (len(scores) + 1) + 1e-9) - 1] and rejection.error_rate == rate


def test_a_clip_fits_from_the_threshold_on(fresh_seed):
    """What `ace classify` calls none of these; without a calibration nothing is said."""
    windows = draw_windows(np.random.default_rng(fresh_seed), 4, 30)
    rejection, _ = fit_rejection(windows, 0.2, temperature=0.05)
    scores = rejection.scores(windows.embeddings, windows.cosines)
    calibration = Calibration(rejection=replace(rejection, threshold=float(np.median(scores))))
    rows = [(windows.embeddings[i : i + 1], windows.cosines[i : i + 1]) for i in range(len(scores))]
    assert [calibration.fits(*row) for row in rows] == [bool(score >= np.median(scores)) for score in scores]
    assert Calibration().fits(*rows[0]) is None
    results = [Classification({"spin pin": 0.6, "lift lid": 0.4}, (), 1, fits=fits) for fits in (True, False, None)]
    assert [result.label for result in results] == ["spin pin", None, "spin pin"]
    assert ["none fits" in repr(result) for result in results] == [False, True, False]


def test_who_shows_background_alone_is_fitted_on(fresh_seed):
    """As a video in which nothing happens: the two people who act show no pause of their own here."""
    acting = draw_windows(np.random.default_rng(fresh_seed), 2, 60, background=False)
    idle = np.eye(DIMENSIONS)[[6, 7] * 20]
    windows = LabelledWindows(
        np.concatenate([acting.embeddings, idle]),
        np.concatenate([acting.cosines, idle[:, :CLASSES]]),
        np.concatenate([acting.labels, np.full(len(idle), -1)]),
        np.concatenate([acting.groups, np.full(len(idle), "idle")]),
    )
    rejection, _ = fit_rejection(windows, 0.1, temperature=0.05)
    assert (rejection.scores(idle, idle[:, :CLASSES]) < rejection.threshold).all()
    assert len(rejection.prototypes) == 2


def test_a_rate_below_one_in_the_number_of_scores_rejects_nothing():
    assert conformal_threshold([0.3, 0.2, 0.5], 0.1) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_background_is_told_from_actions_and_the_rate_is_kept(seed, fresh_seed):
    rng = np.random.default_rng([fresh_seed, seed])
    rejection, known = fit_rejection(draw_windows(rng, 8, 120), 0.1, temperature=0.002)
    assert set(known["groups"]["fitted"]).isdisjoint(known["groups"]["calibrated"])
    new = draw_windows(rng, 4, 300)
    scores, action = rejection.scores(new.embeddings, new.cosines), new.labels >= 0
    assert auroc(scores[action], scores[~action]) > 75
    assert np.mean(scores[action] < rejection.threshold) < 0.17
    assert known["ece_after"] < known["ece_before"] and rejection.temperature > 1
    table = np.exp(rejection.log_probabilities(new.embeddings, new.cosines, 0.002))
    assert table.shape == (len(new.labels), CLASSES + 1) and np.allclose(table.sum(1), 1)
    assert ((table[:, -1] > 0.5) == (scores < rejection.threshold)).all()


def test_embeddings_of_frames_count_by_the_mean_of_their_unit_vectors(fresh_seed):
    """BIKE's [N, T, D]: longer frames weigh no more, and frames that are all alike are one embedding."""
    rng = np.random.default_rng(fresh_seed)
    windows = draw_windows(rng, 4, 60)
    lengths = rng.uniform(0.5, 2.0, (len(windows.labels), 3, 1))
    frames = replace(windows, embeddings=windows.embeddings[:, None] * lengths)
    (one, known), (same, same_known) = (fit_rejection(each, 0.1, temperature=0.02) for each in (windows, frames))
    assert known == same_known and np.allclose(one.prototypes, same.prototypes)
    scores = [one.scores(each.embeddings, each.cosines) for each in (windows, frames)]
    assert np.allclose(*scores)
    assert np.allclose(unit(np.array([[[3.0, 0.0], [0.0, 1.0]]])), np.sqrt(0.5))


def test_without_background_actions_asked_without_their_label_stand_for_it(fresh_seed):
    """Trimmed clips alone: the best cosine decides, and known labels keep nearly all of their probability."""
    rng = np.random.default_rng(fresh_seed)
    rejection, known = fit_rejection(draw_windows(rng, 4, 200, background=False), 0.1, temperature=0.02)
    assert Rejection(**rejection.as_json()) == rejection and known["windows"]["background"] == 0
    new = draw_windows(rng, 4, 200, background=False)
    scores = rejection.scores(new.embeddings, new.cosines)
    assert (np.argsort(scores, kind="stable") == np.argsort(new.cosines.max(1), kind="stable")).all()
    none = np.exp(rejection.log_probabilities(new.embeddings, new.cosines, 0.02))[:, -1]
    others = np.array([np.delete(row, label) for row, label in zip(new.cosines, new.labels, strict=True)])
    of_others = np.exp(rejection.log_probabilities(new.embeddings, others, 0.02))[:, -1]
    assert np.mean(none > 0.5) < 0.2 and np.median(none) < 0.25 and np.mean(of_others > 0.5) > 0.6


def test_the_own_label_is_left_out_whatever_the_range_of_the_numbers(fresh_seed):
    """As far below zero as a sigmoid's scores lie, the own label is still the one that is not asked for."""
    rng = np.random.default_rng(fresh_seed)
    windows = draw_windows(rng, 4, 200, background=False)
    near, far = (
        fit_rejection(replace(windows, cosines=windows.cosines + shift), 0.1, temperature=0.02)[0] for shift in (0, -9)
    )
    assert far.weights == pytest.approx(near.weights, rel=1e-3) and far.weights[0] > 0
    assert far.threshold == pytest.approx(near.threshold, rel=1e-3)


def test_the_regression_equals_scikit_learns(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    rows = rng.normal(size=(300, 3))
    positive = rows @ [1.0, -2.0, 0.5] + rng.normal(size=300) > 0.8
    ours = logistic_regression(rows, positive)
    other = LogisticRegression(class_weight="balanced", C=1 / RIDGE, tol=1e-10, max_iter=1000).fit(rows, positive)
    assert np.allclose(ours, [*other.coef_[0], other.intercept_[0]], atol=1e-5)


def test_log_softmax_does_not_overflow():
    assert np.allclose(log_softmax(np.array([[1e4, 1e4]])), np.log(0.5))


def test_what_cannot_be_calibrated_on_is_refused(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    with pytest.raises(UserError, match="two people"):
        fit_rejection(draw_windows(rng, 1, 50), 0.1, 0.02)
    with pytest.raises(UserError, match="error_rate=1.5"):
        fit_rejection(draw_windows(rng, 4, 50), 1.5, 0.02)
