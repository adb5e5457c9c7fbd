"""The numbers of the paper's tables: accuracy, F1, harmonic mean, SRT, random baseline; and the fusion of test views.

Everything is in percent unless it says otherwise. Numpy only: no torch, no files.
Shape letters: N samples, V views of one sample, K classes, D embedding width, S phrases.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_dist.utils.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Z95 = 1.959964  # the standard normal's 97.5 % point
FUSIONS = ("softmax_sum", "logit_mean", "logit_max", "embedding_mean")


def accuracy(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Top-1 accuracy over all samples, in percent."""
    truth, guess = class_indices(labels, predictions)
    return float(100.0 * np.mean(truth == guess))


def confusion_matrix(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int) -> IntArray:
    """Counts [K, K]: row = true class, column = predicted class."""
    truth, guess = class_indices(labels, predictions, num_classes)
    return np.bincount(truth * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_f1(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int | None = None) -> FloatArray:
    """F1 of every class in percent, [K]; NaN for a class that never occurs in `labels`.

    Without `num_classes`, K is one more than the largest index that occurs.
    """
    truth, guess = class_indices(labels, predictions, num_classes)
    counts = confusion_matrix(truth, guess, num_classes or int(max(truth.max(), guess.max())) + 1)
    hits, support, claimed = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    scores = np.full(len(counts), np.nan)
    present = support > 0
    scores[present] = 100.0 * 2.0 * hits[present] / (support + claimed)[present]  # 2TP / (2TP + FN + FP)
    return scores


def macro_f1(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int | None = None) -> float:
    """Mean F1 of the classes that occur in `labels` (ACE section 4.1: "all classes in the test split"), in percent.

    A class without a test sample is no term of the mean (a GTEA fold may lack one). Predicting such a class is still
    a miss: it lowers the recall of the sample's true class. Equals scikit-learn's `f1_score(average="macro",
    labels=present, zero_division=0)`. `num_classes` only checks the range of the indices.
    """
    return float(np.nanmean(class_f1(labels, predictions, num_classes)))


def random_baseline(labels: npt.ArrayLike, num_classes: int) -> dict[str, float]:
    """Accuracy and macro F1 to expect from guessing each of the K classes with probability q = 1/K, in percent.

    Accuracy is q. A class of share p has recall q and precision p, so its F1 is 2pq / (p + q) (the limit of many
    samples); the mean is over the classes that occur, as in `macro_f1`. ACE Table 1 prints 20.0/18.5 for the 5 classes
    of ATA.
    """
    truth, _ = class_indices(labels, labels, num_classes)
    share = np.bincount(truth, minlength=num_classes) / len(truth)
    share, q = share[share > 0], 1.0 / num_classes
    return {"accuracy": 100.0 * q, "f1": float(100.0 * np.mean(2.0 * share * q / (share + q)))}


def accuracy_interval(hits: npt.ArrayLike, groups: Sequence[str]) -> tuple[float, float]:
    """95 % interval of the mean of `hits` [N], each in [0, 1], in percent: Wilson's, at the effective number of clips.

    Clips of one group (person, recording) resemble each other, so N clips of G groups tell less than N. They count as
    N / d, where d is Kish's design effect: the variance of the mean by groups, with the factor G / (G - 1), over that
    of independent clips, and 1 at least (Dean and Pagano, "Evaluating confidence interval methods for binomial
    proportions in clustered surveys", 2015), times (t(G - 1) / t(N - 1))^2 of Student's 97.5 % points, since few groups
    know d badly (Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", 1998). A single group tells nothing of others: d is 1 then.
    """
    values = np.asarray(hits, np.float64)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    n, p, count = len(values), float(values.mean()), int(member.max()) + 1
    effect, alone = 1.0, p * (1 - p) / max(1, n - 1)
    if count > 1:
        if alone > 0:
            by_group = np.bincount(member, weights=values - p)
            effect = max(1.0, count / (count - 1) * float(np.sum(by_group**2)) / n**2 / alone)
        effect *= (student_t975(count - 1) / student_t975(n - 1)) ** 2
    scale = Z95**2 * effect / n
    centre, half = (p + scale / 2) / (1 + scale), np.sqrt(scale * (p * (1 - p) + scale / 4)) / (1 + scale)
    return 100.0 * max(0.0, float(centre - half)), 100.0 * min(1.0, float(centre + half))


def student_t975(degrees: int) -> float:
    """The 97.5 % point of Student's t, to 3e-4: a test of clips does without scipy."""
    if degrees < 5:
        return (12.70620, 4.30265, 3.18245, 2.77645)[degrees - 1]
    z = Z95  # Cornish and Fisher's expansion about the normal
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))


def harmonic_mean(a: float, b: float) -> float:
    """HM of the base and the novel score, 2ab / (a + b); 0 when both are 0."""
    if a < 0 or b < 0:
        raise UserError(f"harmonic_mean needs two scores that are not negative, got {a} and {b}")
    return 2.0 * a * b / (a + b) if a + b > 0 else 0.0


def srt_summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over the runs of the Synonym Robustness Test.

    `runs`: one `{"accuracy", "f1"}` a run, in percent. The deviation is the population's (ddof = 0): the paper does not
    say which it prints, and its ten label sets are the whole test, not a sample of it.
    """
    if not runs:
        raise UserError("srt_summary needs at least one run, got none")
    summary: dict[str, Any] = {"runs": [{"accuracy": float(run["accuracy"]), "f1": float(run["f1"])} for run in runs]}
    for name in ("accuracy", "f1"):
        values = np.array([run[name] for run in summary["runs"]])
        summary[f"{name}_mean"], summary[f"{name}_std"] = float(values.mean()), float(values.std())
    return summary


CURVE_POINTS = 101  # of a bias curve that are kept


def bias_curve(
    base: tuple[npt.ArrayLike, npt.ArrayLike], novel: tuple[npt.ArrayLike, npt.ArrayLike], base_classes: int
) -> dict[str, Any]:
    """Accuracy of base and of novel clips among all classes when a bias is taken from the scores of base classes.

    Calibrated stacking (Chao et al., "Generalized Zero-Shot Learning", ECCV 2016): argmax of s_c - bias * [c is base],
    for every bias. `base`, `novel`: scores [N, K] and labels [N], the first `base_classes` columns being base classes.
    `area` lies under the curve of novel over base accuracy, in percent of the unit square: the share of pairs of a base
    and a novel clip that some bias gets both right. `best_hm` is the largest HM on the curve and `best_bias` where:
    found on the test clips, they bound what a bias chosen elsewhere can reach. The curve keeps 101 points at most.
    """
    (kept, total), (gained, count) = (
        right_margins(*part, base_classes, is_base) for part, is_base in ((base, True), (novel, False))
    )
    biases = np.unique(np.concatenate([kept, gained]))
    biases = np.append(biases, biases[-1] + 1.0) if len(biases) else np.zeros(1)  # beyond the last no base class wins
    # A base class wins a tie, as it stands first: at a bias of its own margin a base clip is right, a novel one wrong.
    seen = 100.0 * (len(kept) - np.searchsorted(kept, biases, side="left")) / total
    unseen = 100.0 * np.searchsorted(gained, biases, side="left") / count
    hm = np.array([harmonic_mean(a, b) for a, b in zip(seen, unseen, strict=True)])
    best, shown = int(hm.argmax()), np.unique(np.linspace(0, len(biases) - 1, CURVE_POINTS).round().astype(int))
    return {
        "area": float(np.sum((seen[:-1] - seen[1:]) * (unseen[:-1] + unseen[1:]) / 2) / 100.0),
        "best_hm": float(hm[best]),
        "best_bias": float(biases[best]),
        "bias": biases[shown].tolist(),
        "base": seen[shown].tolist(),
        "novel": unseen[shown].tolist(),
    }


def right_margins(
    scores: npt.ArrayLike, labels: npt.ArrayLike, base_classes: int, is_base: bool
) -> tuple[FloatArray, int]:
    """By how much the best base class beats the best novel one, sorted, of clips that are right among their own kind.

    Also the number of all clips.
    """
    table, truth = np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    groups = table[:, :base_classes], table[:, base_classes:]
    margins = groups[0].max(1) - groups[1].max(1)
    right = groups[0].argmax(1) == truth if is_base else groups[1].argmax(1) + base_classes == truth
    return np.sort(margins[right]), len(truth)


@dataclass(frozen=True)
class FusedViews:
    """One row a sample, sorted by id, so the result does not depend on the number of ranks or their order."""

    ids: tuple[str, ...]
    labels: IntArray  # [N]
    values: FloatArray  # [N, K] probabilities (softmax_sum) or logits (logit_mean); [N, D] embeddings (embedding_mean)


def fuse_views(
    values: npt.ArrayLike,
    ids: Sequence[str],
    labels: npt.ArrayLike,
    views: npt.ArrayLike,
    *,
    views_per_sample: int,
    how: str = "softmax_sum",
    expected_ids: Collection[str] | None = None,
) -> FusedViews:
    """Average the test views of each sample; rows may come in any order, from any number of ranks.

    `values` [N*V, K] are logits (S of ACE Eq. 3), for "embedding_mean" embeddings [N*V, D]. "softmax_sum" is the mean
    of the views' softmax, and so a distribution (TimeSformer, ProcVRL, ViFi); "logit_mean" the mean logit;
    "logit_max" the largest (LaViLa); "embedding_mean" the mean of the rows as given, not normalised (Text4Vis).

    Raises `UserError` when a view of a sample is missing or occurs twice (padding by a distributed sampler), when the
    rows of one id disagree on the label, when a value is not finite, or when the ids are not exactly `expected_ids`.
    """
    table = np.asarray(values, dtype=np.float64)
    names, truth, view = np.asarray(ids, dtype=np.str_), np.asarray(labels, np.int64), np.asarray(views, np.int64)
    if how not in FUSIONS:
        raise UserError(f"unknown view fusion {how!r}; choose one of {', '.join(FUSIONS)}")
    if table.ndim != 2 or not len(table) == len(names) == len(truth) == len(view) > 0:
        raise UserError(
            f"fuse_views needs one row, id, label and view each, got values {table.shape}, "
            f"{len(names)} ids, {len(truth)} labels, {len(view)} views"
        )
    if not np.isfinite(table).all():
        broken = str(names[~np.isfinite(table).all(axis=1)][0])
        raise UserError(f"the scores of sample {broken!r} are not finite")
    order = np.lexsort((view, names))  # a fixed order of summation: the same bits whatever rank saw which view
    unique, starts = np.unique(names[order], return_index=True)
    check_views(unique, np.split(truth[order], starts[1:]), np.split(view[order], starts[1:]), views_per_sample)
    if expected_ids is not None and set(unique.tolist()) != set(expected_ids):
        scored, split = set(unique.tolist()), set(expected_ids)
        missing, extra = sorted(split - scored), sorted(scored - split)
        raise UserError(
            f"the test scored {len(scored)} samples, the split has {len(split)}: "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}"
        )
    stacked = table[order].reshape(len(unique), views_per_sample, -1)
    if how == "softmax_sum":
        stacked = np.exp(stacked - stacked.max(axis=-1, keepdims=True))
        stacked /= stacked.sum(axis=-1, keepdims=True)
    fused = stacked.max(axis=1) if how == "logit_max" else stacked.mean(axis=1)
    return FusedViews(tuple(unique.tolist()), truth[order][::views_per_sample], fused)


def check_views(
    ids: npt.NDArray[np.str_], labels: Sequence[IntArray], views: Sequence[IntArray], views_per_sample: int
) -> None:
    """Every id must have the views 0..V-1 once each, and one label; `labels` and `views` [N] hold those of an id."""
    for name, label, view in zip(ids.tolist(), labels, views, strict=True):
        present, claims = view.tolist(), sorted(set(label.tolist()))
        if present != list(range(views_per_sample)):
            kind = "twice" if len(set(present)) < len(present) else "not all there"
            raise UserError(
                f"the views of sample {name!r} are {kind}: expected 0..{views_per_sample - 1} once each, got {present}"
            )
        if len(claims) > 1:
            raise UserError(f"the views of sample {name!r} carry different labels: {claims}")


def concept_distances(embeddings: npt.ArrayLike, actions: Sequence[str]) -> dict[str, float]:
    """How tight and how far apart the concepts are: cosine distances 1 - cos in the full space (no percent, no t-SNE).

    `embeddings` [S, D], `actions` [S] the action of each phrase. "within": mean distance of two phrases of one action,
    averaged over actions with at least two; "between": mean distance of phrases of two actions, averaged over pairs of
    actions. NaN where there is nothing to average.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if rows.ndim != 2 or len(rows) != len(actions) or not (norms > 0).all():
        raise UserError(
            f"concept_distances needs one non-zero row a phrase, got {rows.shape} for {len(actions)} phrases"
        )
    rows = rows / norms
    _, member = np.unique(np.asarray(actions), return_inverse=True)
    counts = np.bincount(member)
    totals = np.zeros((len(counts), rows.shape[1]))
    np.add.at(totals, member, rows)
    cosines = totals @ totals.T  # the sum of all cosines between two actions is one dot product of their sums
    several = counts > 1
    inside = (np.diag(cosines)[several] - counts[several]) / (counts[several] * (counts[several] - 1))
    across = (cosines / np.outer(counts, counts))[np.triu_indices(len(counts), k=1)]
    return {
        "within": float(1.0 - inside.mean()) if len(inside) else float("nan"),
        "between": float(1.0 - across.mean()) if len(across) else float("nan"),
    }


def class_indices(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int | None = None
) -> tuple[IntArray, IntArray]:
    """Labels and predictions as int64 [N]. Raises `UserError` unless both are N > 0 indices below `num_classes`."""
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or truth.shape != guess.shape or len(truth) == 0:
        raise UserError(
            f"labels and predictions must be two lists of one length > 0, got {truth.shape} and {guess.shape}"
        )
    for name, values in (("labels", truth), ("predictions", guess)):
        if values.dtype.kind not in "iu":
            raise UserError(f"{name} must be class indices (integers), got {values.dtype}")
        if values.min() < 0 or (num_classes is not None and values.max() >= num_classes):
            limit = "" if num_classes is None else f"..{num_classes - 1}"
            raise UserError(f"{name} must lie in 0{limit}, got {values.min()}..{values.max()}")
    return truth.astype(np.int64), guess.astype(np.int64)
