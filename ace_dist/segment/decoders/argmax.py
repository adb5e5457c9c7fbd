"""The best label of every window, smoothed by a median filter: the baseline of all decoders."""

import numpy as np
import numpy.typing as npt


def decode_argmax(scores_NK: npt.NDArray[np.float64], median: int = 1) -> npt.NDArray[np.int64]:
    """Class of each window: the one that is best most often in the `median` windows about it.

    Labels have no order, so the median is the most frequent label (the median of each label's 0/1 curve); among
    equally frequent ones the window's own best, else the one with the higher sum of scores.
    """
    windows, classes = scores_NK.shape
    best = scores_NK.argmax(1)
    half = median // 2
    if not half:
        return np.asarray(best, np.int64)
    votes = moving_sum(np.eye(classes)[best], half)
    sums = moving_sum(scores_NK, half)
    spread = np.ptp(sums) or 1.0
    rank = votes + 0.25 * (sums - sums.min()) / spread  # a tie-break that no whole vote can lose to
    rank[np.arange(windows), best] += 0.5
    chosen: npt.NDArray[np.int64] = rank.argmax(1)
    return chosen


def moving_sum(table_NK: npt.NDArray[np.float64], half: int) -> npt.NDArray[np.float64]:
    """Sums over the windows from n - half to n + half, clamped to what there is."""
    total = np.concatenate([np.zeros((1, table_NK.shape[1])), np.cumsum(table_NK, axis=0)])
    places = np.arange(len(table_NK))
    sums: npt.NDArray[np.float64] = (
        total[np.minimum(places + half + 1, len(places))] - total[np.maximum(places - half, 0)]
    )
    return sums
