"""The most probable sequence of labels when segments have a shortest length and a change of label costs something."""

import numpy as np
import numpy.typing as npt

from ace_dist.utils.errors import UserError


def decode_viterbi(
    scores_NK: npt.NDArray[np.float64], minimum: int = 1, switch_cost: float | npt.NDArray[np.float64] = 0.0
) -> npt.NDArray[np.int64]:
    """Class of each window: maximises the sum of scores less `switch_cost` a change, no segment below `minimum`.

    `switch_cost` may be a table [K, K]: from the row's label to the column's, as a procedure gives it. A video shorter
    than two segments gets one label. O(N K) time, with a table O(N K^2).
    """
    windows, classes = scores_NK.shape
    if np.ndim(switch_cost) == 2 and np.shape(switch_cost) != (classes, classes):
        raise UserError(f"switch_cost has shape {np.shape(switch_cost)}; {classes} labels need {(classes, classes)}")
    if classes == 1 or windows < 2 * minimum:
        return np.full(windows, int(scores_NK.sum(0).argmax()), np.int64)
    total = np.concatenate([np.zeros((1, classes)), np.cumsum(scores_NK, axis=0)])
    best = np.full((windows + 1, classes), -np.inf)  # of the first n windows, the last segment k being long enough
    begin = np.zeros((windows + 1, classes), np.int64)  # where that segment begins
    before = np.full((windows + 1, classes), -1, np.int64)  # and which label stands before it
    for n in range(minimum, windows + 1):
        start = n - minimum
        if start == 0:
            best[n] = total[n]
            continue
        stay = best[n - 1] + scores_NK[n - 1]
        entry, source = best_entry(best[start], switch_cost)
        new = entry + total[n] - total[start]
        change = new > stay
        best[n] = np.where(change, new, stay)
        begin[n] = np.where(change, start, begin[n - 1])
        before[n] = np.where(change, source, before[n - 1])
    return trace_back(best, begin, before)


def best_entry(
    ends: npt.NDArray[np.float64], switch_cost: float | npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Value [K] of beginning a segment of each label now, and the label [K] that stands before it: the best other."""
    classes = len(ends)
    if np.ndim(switch_cost) == 2:
        table = ends[:, None] - np.asarray(switch_cost)
        np.fill_diagonal(table, -np.inf)
        return table.max(0), table.argmax(0)
    first = int(ends.argmax())
    second = int(np.where(np.arange(classes) == first, -np.inf, ends).argmax())
    source = np.where(np.arange(classes) == first, second, first)
    return ends[source] - switch_cost, source


def trace_back(
    best: npt.NDArray[np.float64], begin: npt.NDArray[np.int64], before: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    end = len(best) - 1
    labels = np.empty(end, np.int64)
    label = int(best[end].argmax())
    while end > 0:
        start, previous = int(begin[end, label]), int(before[end, label])
        labels[start:end] = label
        end, label = start, previous
    return labels
