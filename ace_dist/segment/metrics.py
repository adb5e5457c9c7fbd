"""How well a timeline was found: frame accuracy, segmental edit score, F1@IoU, detection mAP, rejection, deviations,
delay of live labels.

Frame labels are strings (or any hashable); `None` is "none of the labels" and always background, beside the names in
`background`. All is in percent unless it says otherwise. Frame accuracy, edit score and F1@k follow the protocol of
MS-TCN (Farha and Gall, CVPR 2019), which has them from Lea et al. (ED-TCN, CVPR 2017).
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from ace_dist.utils.errors import UserError

Labels = Sequence[Hashable]
Run = tuple[Hashable, int, int]  # label, first frame, frame after the last
BACKGROUND = ("background",)
OVERLAPS = (0.10, 0.25, 0.50)


def runs(labels: Labels, background: Collection[Hashable] = BACKGROUND) -> list[Run]:
    """Stretches of equal frame labels, in order, without background."""
    found, begin = [], 0
    for label, group in groupby(labels):
        end = begin + sum(1 for _ in group)
        if label is not None and label not in background:
            found.append((label, begin, end))
        begin = end
    return found


def frame_accuracy(
    predicted: Labels, truth: Labels, background: Collection[Hashable] = BACKGROUND, count_background: bool = True
) -> float:
    """Share of frames with the right label, in percent; any two background labels are equal.

    `count_background=False` looks at frames whose true label is an action alone ("accuracy without background").
    """
    right, total = frame_counts(predicted, truth, background, count_background)
    if not total:
        raise UserError("frame_accuracy: no frame of the truth has an action; count_background=True counts the others")
    return 100.0 * right / total


def frame_counts(
    predicted: Labels, truth: Labels, background: Collection[Hashable] = BACKGROUND, count_background: bool = True
) -> tuple[int, int]:
    """Frames with the right label, and frames that count."""
    check_lengths(predicted, truth)
    plain = [
        [None if label is None or label in background else label for label in labels] for labels in (predicted, truth)
    ]
    pairs = [(a, b) for a, b in zip(*plain, strict=True) if count_background or b is not None]
    return sum(a == b for a, b in pairs), len(pairs)


def check_lengths(predicted: Labels, truth: Labels) -> None:
    if len(predicted) != len(truth) or not len(truth):
        raise UserError(
            f"predicted and true labels must be two lists of one length > 0, a label a frame; "
            f"got {len(predicted)} and {len(truth)}"
        )


def edit_score(predicted: Labels, truth: Labels, background: Collection[Hashable] = BACKGROUND) -> float:
    """100 (1 - d / n): d the Levenshtein distance of the two orders of segments, n the longer one's length.

    100 when neither shows an action.
    """
    check_lengths(predicted, truth)
    one, other = ([label for label, *_ in runs(labels, background)] for labels in (predicted, truth))
    row = list(range(len(other) + 1))
    for i, label in enumerate(one, start=1):
        before, row = row, [i]
        for j, wanted in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (label != wanted)))
    longest = max(len(one), len(other))
    return 100.0 * (1 - row[-1] / longest) if longest else 100.0


def f1_at(predicted: Labels, truth: Labels, overlap: float, background: Collection[Hashable] = BACKGROUND) -> float:
    """F1 of segments, a hit being a true segment of that label not hit before, with IoU >= `overlap` (0 to 1).

    100 when neither shows an action.
    """
    return segment_f1(segment_counts(predicted, truth, overlap, background))


@dataclass(frozen=True)
class SegmentCounts:
    """Hits, false alarms and misses of segments; of several videos they are added before F1 is taken (MS-TCN)."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    def __add__(self, other: "SegmentCounts") -> "SegmentCounts":
        return SegmentCounts(self.hits + other.hits, self.false + other.false, self.missed + other.missed)


def segment_counts(
    predicted: Labels, truth: Labels, overlap: float, background: Collection[Hashable] = BACKGROUND
) -> SegmentCounts:
    """Each predicted segment is held against the true one of its label that it overlaps most."""
    check_lengths(predicted, truth)
    if not 0 < overlap <= 1:
        raise UserError(f"overlap={overlap} is an IoU and must lie above 0 and not above 1, as 0.5 for F1@50")
    wanted, hits = runs(truth, background), 0
    taken = [False] * len(wanted)
    found = runs(predicted, background)
    for label, begin, end in found:
        shares = [iou(begin, end, *run[1:]) if run[0] == label else 0.0 for run in wanted]
        best = int(np.argmax(shares)) if shares else -1
        if best >= 0 and shares[best] >= overlap and not taken[best]:
            taken[best], hits = True, hits + 1
    return SegmentCounts(hits, len(found) - hits, len(wanted) - hits)


def iou(begin: float, end: float, other_begin: float, other_end: float) -> float:
    """Intersection over union of two stretches of time."""
    shared = min(end, other_end) - max(begin, other_begin)
    return max(shared, 0.0) / (max(end, other_end) - min(begin, other_begin))


def segment_f1(counts: SegmentCounts) -> float:
    """2 TP / (2 TP + FP + FN) in percent; 100 when there was nothing to find and nothing was found."""
    total = 2 * counts.hits + counts.false + counts.missed
    return 200.0 * counts.hits / total if total else 100.0


def timeline_scores(
    predicted: Sequence[Labels], truth: Sequence[Labels], background: Collection[Hashable] = BACKGROUND
) -> dict[str, float]:
    """All scores of a set of videos: accuracy over all frames, edit as the mean over videos, F1 of added counts."""
    if len(predicted) != len(truth) or not truth:
        raise UserError(f"as many predicted as true timelines are needed, got {len(predicted)} and {len(truth)}")
    videos = list(zip(predicted, truth, strict=True))
    scores: dict[str, float] = {}
    for name, counted in (("accuracy", True), ("accuracy_without_background", False)):
        parts = [frame_counts(*video, background, counted) for video in videos]
        total = sum(part[1] for part in parts)
        scores[name] = 100.0 * sum(part[0] for part in parts) / total if total else float("nan")
    scores["edit"] = float(np.mean([edit_score(*video, background) for video in videos]))
    for overlap in OVERLAPS:
        counts = sum((segment_counts(*video, overlap, background) for video in videos), SegmentCounts())
        scores[f"f1@{round(100 * overlap)}"] = segment_f1(counts)
    return scores


# ------------------------------------------------------------------------------------------------------- detection
@dataclass(frozen=True)
class Detection:
    """A labelled stretch of one video, in seconds; `score` ranks it among the others of its label."""

    video: str
    label: str
    start_s: float
    end_s: float
    score: float = 1.0


def mean_average_precision(predicted: Sequence[Detection], truth: Sequence[Detection], overlap: float) -> float:
    """mAP at a temporal IoU of `overlap`: the mean over the labels of `truth` of the area under precision over recall.

    As in ActivityNet's evaluation: the best-scored detection first; each true segment is hit once; precision is made
    to fall with recall before the area is taken.
    """
    labels = sorted({segment.label for segment in truth})
    if not labels:
        raise UserError("mean_average_precision needs at least one true segment, got none")
    return float(np.mean([average_precision(predicted, truth, label, overlap) for label in labels]))


def average_precision(predicted: Sequence[Detection], truth: Sequence[Detection], label: str, overlap: float) -> float:
    wanted = [segment for segment in truth if segment.label == label]
    found = sorted((each for each in predicted if each.label == label), key=lambda each: -each.score)
    taken, hits = [False] * len(wanted), np.zeros(len(found))
    for i, each in enumerate(found):
        shares = [
            iou(each.start_s, each.end_s, own.start_s, own.end_s) if own.video == each.video and not used else 0.0
            for own, used in zip(wanted, taken, strict=True)
        ]
        best = int(np.argmax(shares))
        if shares[best] >= overlap:
            taken[best], hits[i] = True, 1.0
    recall = np.cumsum(hits) / len(wanted)
    precision = np.cumsum(hits) / np.arange(1, len(found) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100.0 * np.sum(falling * np.diff(recall, prepend=0.0)))


# ------------------------------------------------------------------------------------------------------- rejection
def auroc(known: npt.ArrayLike, unknown: npt.ArrayLike) -> float:
    """Chance that a known sample scores above an unknown one (a tie counts half), in percent."""
    high, low = np.asarray(known, np.float64), np.sort(np.asarray(unknown, np.float64))
    check_scores(high, low)
    below = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
    return float(100.0 * below.mean() / len(low))


def fpr_at_95(known: npt.ArrayLike, unknown: npt.ArrayLike) -> float:
    """Share of unknown samples taken for known ones at the threshold that keeps at least 95 % of the known, percent."""
    high, low = np.sort(np.asarray(known, np.float64)), np.asarray(unknown, np.float64)
    check_scores(high, low)
    threshold = high[int(np.floor(0.05 * len(high) + 1e-9))]
    return float(100.0 * np.mean(low >= threshold))


def check_scores(known: npt.NDArray[np.float64], unknown: npt.NDArray[np.float64]) -> None:
    if not (len(known) and len(unknown)) or not (np.isfinite(known).all() and np.isfinite(unknown).all()):
        raise UserError(
            f"rejection needs finite scores of known and of unknown samples, got {len(known)} and {len(unknown)}"
        )


def expected_calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """ECE of the top label (Guo et al., ICML 2017): |confidence - accuracy| over equal bins, weighed, in percent.

    `probabilities` [N, K], `labels` [N] indices of classes.
    """
    table, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    confidence, right = table.max(1), table.argmax(1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].mean() - right[place == b].mean()) * np.mean(place == b) for b in set(place)]
    return float(100.0 * sum(gaps))


def precision_recall(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> tuple[float, float]:
    """Of found deviations from a procedure, each such as ("missing", "spin block"), counted as often as it occurs.

    In percent; 100 where there was nothing to find, or nothing was said.
    """
    shared = sum((Counter(predicted) & Counter(truth)).values())
    precision = 100.0 * shared / len(predicted) if predicted else 100.0
    return precision, 100.0 * shared / len(truth) if truth else 100.0


def label_delays(
    changes: Sequence[tuple[float, Hashable]], truth: Sequence[tuple[float, float, Hashable]]
) -> list[float]:
    """How late a live label is: of each true segment, the seconds from its start until its label is said.

    `changes`: when a label was said, by the stream's clock, in order; it holds until the next one. `truth`: start, end
    and label. 0 where the label is already said; infinite where it is not said before the segment ends.
    """
    delays = []
    for start_s, end_s, label in truth:
        ends_s = [*(time_s for time_s, _ in changes[1:]), math.inf]
        said = zip(changes, ends_s, strict=True) if changes else ()
        begins_s = (time_s for (time_s, name), until_s in said if name == label and until_s > start_s)
        first_s = max(next(begins_s, math.inf), start_s)
        delays.append(first_s - start_s if first_s < end_s else math.inf)
    return delays
